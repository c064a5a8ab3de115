"""Sequential Monte Carlo (claim P18): unbiased weights, the variance of the normaliser, the law of what is returned."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from tests.theory.test_markov_chain import Measured, World, ignore, world, world_with_zeros, worlds
from theory import importance, particles, power
from theory.markov_chain import total_variation
from theory.power import Law, Record
from toy.tabular import TabularLM, enumerate_law

SAME = 1e-10  # relative; weights are rounded to 12 digits where clouds are told apart

SETTINGS: list[dict] = [
    {},
    {"resampling": "systematic"},
    {"kappa": 0.9},
    {"kappa": 0.7, "resampling": "systematic", "tau": 1.0},
    {"kappa": 0.0},
    {"ramp": True, "kappa": 0.9},
    {"ramp": True, "tau": 0.5, "resampling": "systematic"},
]


def small_worlds() -> list[World]:
    return [world(0, 3, 3), world(1, 2, 4), world(2, 3, 3, (1, 2)), world(3, 2, 4, ()), world_with_zeros()]


def outcome(w: World, alpha: float, n: int, setting: dict) -> particles.Cloud:
    setting = dict(setting)
    if setting.pop("ramp", False):
        setting["ramp"] = np.linspace(1.0, alpha, w.horizon).tolist()
    return particles.cloud(w.conditionals, horizon=w.horizon, alpha=alpha, particles=n, **setting)


def assert_unbiased(settings: Sequence[dict], measured: Measured = ignore) -> None:
    """E[Ẑ Σ W_i f(x_i)/Σ W_i] = Σ p^α f for the indicator f of every record, so E[Ẑ] = Σ p^α; at N = 1, 2 and 3."""
    worst = z = 0.0
    for (w, alpha), setting in itertools.product(zip(small_worlds(), (4.0, 1.5, 4.0, 4.0, 2.0)), settings):
        for n in (1, 2, 3) if w.horizon == 3 else (1, 2):
            cloud, target = outcome(w, alpha, n, setting), np.exp(alpha * w.logp)
            assert cloud.records == w.records
            worst = max(worst, float(np.abs(cloud.weighted - target).max() / target.sum()))
            z = max(z, abs(cloud.mean / target.sum() - 1))
            assert max(worst, z) < SAME, "biased"
            assert cloud.returned.sum() == pytest.approx(1, abs=SAME)
    measured("E[Ẑ]/Z - 1", z, SAME)
    measured("(E[Ẑ; record] - p^α)/Z", worst, SAME)


@pytest.mark.claim("P18")
def test_unbiased(measured: Measured) -> None:
    assert_unbiased(SETTINGS, measured)


def weights_kept(cloud: tuple, chosen: Sequence[int]) -> tuple:
    """Never resets the weights after resampling (the baseline in the code of 2605.30327)."""
    return tuple(cloud[i] for i in chosen)


def no_ramp_correction(self: particles.Growth, text: Record, logp: float, t: int) -> list:
    """A ramp whose weight is that of a token at its own exponent."""
    return [(y, s, q, w - (self.alphas[t] - self.alphas[t - 1]) * logp) for y, s, q, w in options(self, text, logp, t)]


def one_offset(weights: Law, resampling: str) -> list:
    """Systematic resampling with u = 1/2 instead of a random one."""
    points = (np.arange(len(weights)) + 0.5) / len(weights)
    return [(tuple(np.searchsorted(weights.cumsum() / weights.sum(), points).tolist()), 1.0)]


options = particles.Growth.options
MUTANTS = {
    "weights kept": (particles, "resampled", weights_kept, [{}]),
    "ramp without its correction": (particles.Growth, "options", no_ramp_correction, [{"ramp": True}]),
    "systematic with one offset": (particles, "ancestors", one_offset, [{"resampling": "systematic"}]),
}


@pytest.mark.claim("P18")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_unbiased_mutants(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, wrong, settings = MUTANTS[mutant]
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(AssertionError, match="biased"):
        assert_unbiased(settings)


MomentOf = Callable[..., float]
second_moment = particles.second_moment


def z(conditionals: power.Conditionals, setting: dict) -> float:
    return float(np.exp(setting["alpha"] * power.record_logps(conditionals, setting["horizon"])[1]).sum())


def assert_second_moment(moment_of: MomentOf, measured: Measured = ignore) -> None:
    """The recursion over pairs is the sum over all clouds; the variance falls with N, like 1/N in the end; but two
    particles that are drawn anew after every token can be worse than one."""
    worst = 0.0
    limits, growth = [], []
    for w, alpha in zip(small_worlds(), (4.0, 1.5, 4.0, 4.0, 2.0)):
        z = float(np.exp(alpha * w.logp).sum())
        for n, setting in itertools.product(
            (1, 2, 3) if w.horizon == 3 else (1, 2), ({}, {"tau": 1.0}, {"ramp": True})
        ):
            brute = outcome(w, alpha, n, setting).square
            ramp = np.linspace(1.0, alpha, w.horizon).tolist() if "ramp" in setting else None
            exact = moment_of(
                w.conditionals, horizon=w.horizon, alpha=alpha, particles=n, tau=setting.get("tau"), ramp=ramp
            )
            worst = max(worst, abs(exact / brute - 1))
            assert worst < SAME, "second moment"
        counts = [1, 2, 4, 16, 256, 4096, 2**20]
        relative = [moment_of(w.conditionals, horizon=w.horizon, alpha=alpha, particles=n) / z**2 - 1 for n in counts]
        assert all(a > b > 0 for a, b in itertools.pairwise(relative[1:]))
        growth.append(relative[1] / relative[0])
        limits.append(counts[-2] * relative[-2])
        assert counts[-1] * relative[-1] == pytest.approx(limits[-1], rel=1e-2)
    measured("E[Ẑ²]: recursion / enumeration - 1", worst, SAME)
    measured("lim N Var[Ẑ]/Z², greatest", max(limits), 1)
    measured("Var[Ẑ] at N = 2 / at N = 1, greatest", max(growth), 1)
    assert max(growth) > 1


@pytest.mark.claim("P18")
def test_second_moment(measured: Measured) -> None:
    assert_second_moment(particles.second_moment, measured)


@pytest.mark.claim("P18")
@pytest.mark.parametrize(
    "mutant",
    [
        lambda c, **s: second_moment(c, **(s | {"particles": s["particles"] + 1})),
        lambda c, **s: second_moment(c, **(s | {"ramp": None})),
        lambda c, **s: (
            (1 + (second_moment(c, **(s | {"particles": 1})) / z(c, s) ** 2 - 1) / s["particles"]) * z(c, s) ** 2
        ),
    ],
    ids=["one particle more", "no ramp", "N independent estimates"],
)
def test_second_moment_mutants(mutant: MomentOf) -> None:
    with pytest.raises(AssertionError, match="second moment"):
        assert_second_moment(mutant)


def assert_equal_weights(table: TabularLM, measured: Measured = ignore) -> None:
    """Where ζ(h) is the same for all open prefixes of a length and nothing ends early, every particle has the same
    weight: Ẑ = Z without variance, and the returned particle has law p^α at any N, without a step of resampling."""
    _, logp, conditionals = enumerate_law(table, [0], 3, [])
    target = power.power_law(logp, 4.0)
    for n in (1, 2):
        cloud = particles.cloud(conditionals, horizon=3, alpha=4.0, particles=n, kappa=0.999)
        measured("TV of the returned particle to p^α", total_variation(cloud.returned, target), SAME)
        assert total_variation(cloud.returned, target) < SAME, "law"
        assert cloud.square == pytest.approx(np.exp(4 * logp).sum() ** 2, rel=SAME), "variance"
        assert cloud.resamplings == 0


def permuted(step: int) -> TabularLM:
    """After each token a permutation of one law: ζ is the same everywhere, the law is not."""
    law = [0.6, 0.3, 0.1]
    return TabularLM.markov([law[i * step % 3 :] + law[: i * step % 3] for i in range(3)], torch.float64)


@pytest.mark.claim("P18")
def test_equal_weights(measured: Measured) -> None:
    for step in (0, 1, 2):
        assert_equal_weights(permuted(step), measured)


@pytest.mark.claim("P18")
def test_equal_weights_mutants() -> None:
    """One law differs: then so do the weights."""
    with pytest.raises(AssertionError):
        assert_equal_weights(TabularLM.markov([[0.6, 0.3, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]], torch.float64))


def decoy(horizon: int) -> World:
    """Token 0 ends the text; after the likelier token 1 every further one is a coin's: p^4 wants the 0."""
    laws = {(0, *(1,) * t): [0.5, 0.5] if t else [0.45, 0.55] for t in range(horizon)}
    table = TabularLM.tree(laws, 2, torch.float64)
    return World(*enumerate_law(table, [0], horizon, [0]), horizon, (0,))


def far_worlds() -> list[tuple[World, float]]:
    """(world, temperature of the proposal) at TV >= .3 from p^4: decoys, and all such of `worlds`."""
    family = itertools.product([decoy(2), decoy(3), decoy(5), *worlds()], (0.25, 1.0))
    return [(w, tau) for w, tau in family if total_variation(proposal(w, tau), w.law(4.0)) >= 0.3]


def proposal(w: World, tau: float) -> Law:
    return np.exp(power.record_logps(power.tempered(w.conditionals, tau), w.horizon)[1])


def returned_without_resampling(w: World, tau: float, n: int) -> Law:
    """One of n whole records of temperature tau, picked by weight p^4/q: any n."""
    q = proposal(w, tau)
    return importance.picked(q, np.exp(4.0 * w.logp) / q, n)


def assert_bias_of_the_returned(returned_of: Callable[[World, float, int], Law], measured: Measured = ignore) -> None:
    """The returned particle is biased, by O(1/N): from TV >= .3 at N = 1 TV falls with N, and N·TV tends to the
    constant of the first order, ½ E_π|u - E_π u|, u = π/q."""
    slowest, least, worst = 0.0, 1.0, 0.0
    for w, tau in far_worlds():
        target, q = w.law(4.0), proposal(w, tau)
        counts = (1, 2, 3, 10**6, 4 * 10**6)
        biases = [total_variation(returned_of(w, tau, n), target) for n in counts]
        assert biases[0] >= 0.3 and np.all(np.diff(biases) < 0), "falls"
        assert biases[-2] / biases[-1] == pytest.approx(4, rel=0.01), "order 1/N"
        u = target / q
        constant = float(target @ np.abs(u - target @ u)) / 2
        worst = max(worst, abs(counts[-1] * biases[-1] / constant - 1))
        assert worst < 0.01, "constant"
        slowest, least = max(slowest, constant), min(least, biases[0])
    measured("TV of one particle, least", least, 0.3)
    measured("lim N TV of one of N by weight, greatest", slowest, 100)
    measured("N TV at N = 4e6 / its limit - 1", worst, 0.01)


@pytest.mark.claim("P18")
def test_bias_of_the_returned(measured: Measured) -> None:
    assert len(far_worlds()) >= 6
    assert_bias_of_the_returned(returned_without_resampling, measured)
    for w, tau in [(decoy(3), 0.25), (decoy(3), 1.0), (decoy(2), 0.25)]:
        biases = []
        for n in (1, 2, 3):  # the same by enumeration, and with resampling
            setting = {"horizon": w.horizon, "alpha": 4.0, "tau": tau, "particles": n}
            alone = particles.cloud(w.conditionals, **setting, kappa=0.0)  # type: ignore[arg-type]
            assert total_variation(alone.returned, returned_without_resampling(w, tau, n)) < SAME
            clouds = [
                particles.cloud(w.conditionals, **setting, resampling=scheme)  # type: ignore[arg-type]
                for scheme in ("multinomial", "systematic")
            ]  # fmt: skip
            biases.append([total_variation(cloud.returned, w.law(4.0)) for cloud in clouds])
            measured(f"TV of the returned particle, N = {n}, greatest", max(biases[-1]), 1)
        assert min(biases[0]) >= 0.3 and max(biases[-1]) < min(biases[0])


@pytest.mark.claim("P18")
def test_bias_of_the_returned_mutant() -> None:
    """A particle picked evenly has the law of the proposal, whatever N."""
    with pytest.raises(AssertionError):
        assert_bias_of_the_returned(lambda w, tau, n: returned_without_resampling(w, tau, 1))
