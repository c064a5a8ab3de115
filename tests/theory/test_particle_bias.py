"""The bias of the returned particle (claim P29): its first order in 1/N by the formula, against its exact law."""

import itertools
from collections.abc import Callable, Iterator
from math import inf

import numpy as np
import pytest
import torch
from scipy.special import xlogy

from tests.theory.test_markov_chain import Measured, World, ignore, world
from tests.theory.test_particles import SETTINGS, decoy, outcome, small_worlds
from theory import particle_bias as bias
from theory import particles
from theory.markov_chain import total_variation
from theory.power import Law
from toy.tabular import TabularLM, enumerate_law

SAME = 1e-10
THRESHOLDS = (0.0, 0.5, 0.8, inf)


def hard(taus: tuple[float | None, ...] = (None, 1.0)) -> Iterator[tuple[World, dict]]:
    """Worlds and settings in which one particle is at TV >= .3 from p^4: decoys, and all such of the first seeds."""
    family = [decoy(2), decoy(3), *(world(seed, 2, 2, (0,)) for seed in range(10))]
    family += [world(seed, 2, 3, (0,)) for seed in range(6)]
    for w, tau in itertools.product(family, taus):
        settings = {"horizon": w.horizon, "alpha": 4.0, "tau": tau}
        if total_variation(bias.returned(w.conditionals, particles=1, **settings), w.law(4.0)) >= 0.3:  # type: ignore[arg-type]
            yield w, settings


def assert_counts(returned_of: Callable[..., Law], measured: Measured = ignore) -> None:
    """The law by counts is that of the whole cloud, particle by particle."""
    worst = 0.0
    for (w, settings), kappa in itertools.product([*hard()], THRESHOLDS):
        for n in (1, 2, 3, 4)[: 3 + (w.horizon == 2)]:
            exact = particles.cloud(w.conditionals, particles=n, kappa=kappa, **settings).returned
            worst = max(
                worst, total_variation(exact, returned_of(w.conditionals, particles=n, kappa=kappa, **settings))
            )
            assert worst < SAME, "cloud"
    ramp = {"horizon": 3, "alpha": 4.0, "ramp": [1.0, 2.0, 4.0], "kappa": 0.8, "particles": 3}
    for seed in range(3):
        w = world(seed, 2, 3, (0,))
        exact = particles.cloud(w.conditionals, **ramp).returned  # type: ignore[arg-type]
        worst = max(worst, total_variation(exact, returned_of(w.conditionals, **ramp)))
        assert worst < SAME, "cloud"
    measured("TV of the law by counts to that of the cloud, N = 1 to 4", worst, SAME)


@pytest.mark.claim("P29")
def test_law_by_counts(measured: Measured) -> None:
    assert_counts(bias.returned, measured)


@pytest.mark.claim("P29")
def test_law_by_counts_mutants() -> None:
    for wrong in ({"kappa": 0.0}, {"kappa": inf}, {"ramp": None}):
        with pytest.raises(AssertionError, match="cloud"):
            assert_counts(lambda c, wrong=wrong, **settings: bias.returned(c, **settings | wrong))


FirstOrder = Callable[[Law, Law], Law]  # π [n], u [stretches, n] -> the coefficient of 1/N [n]


def steady(w: World, settings: dict, kappa: float, u: Law) -> bool:
    """Whether no limit of the effective sample size is within .1 of the threshold, and no ratio u above 8: else N = 64
    is not many."""
    near = [bias.ratios(w.conditionals, kappa=max(0.0, kappa + d), **settings)[1] for d in (-0.1, 0.1)]
    return u.max() <= 8 and all(np.array_equal(other, u) for other in near)


def assert_first_order(coefficient: FirstOrder, measured: Measured = ignore) -> None:
    """N (r - π) at N, 2N and 4N, extrapolated through powers of 1/N, is the coefficient, at every threshold."""
    worst, greatest, seen = 0.0, dict.fromkeys(THRESHOLDS, 0.0), set()
    for (w, settings), kappa in itertools.product([*hard()], THRESHOLDS):
        target, u = bias.ratios(w.conditionals, kappa=kappa, **settings)
        if not steady(w, settings, kappa, u):
            continue
        exact, counts = coefficient(target, u), (16, 32, 64) if w.horizon == 2 else (12, 24, 48)
        laws = [bias.returned(w.conditionals, particles=n, kappa=kappa, **settings) for n in counts]
        first, second, third = (n * (law - target) for n, law in zip(counts, laws))
        limit = (8 * third - 6 * second + first) / 3
        constant = float(np.abs(bias.first_order(target, u)).sum() / 2)
        worst = max(worst, float(np.abs(limit - exact).sum() / 2 / constant))
        assert worst < 0.05, "first order"
        greatest[kappa] = max(greatest[kappa], constant)
        seen.add((w.horizon, len(u)))
    assert {(2, 1), (2, 2), (3, 1), (3, 2), (3, 3)} <= seen, seen
    measured("lim N (r - π), extrapolated, against the formula, relative", worst, 0.05)
    for kappa, constant in greatest.items():
        measured(f"C = lim N TV at κ = {kappa}, greatest", constant, 1)


@pytest.mark.claim("P29")
def test_first_order(measured: Measured) -> None:
    assert_first_order(bias.first_order, measured)


@pytest.mark.claim("P29")
@pytest.mark.parametrize(
    "mutant",
    [
        lambda pi, u: -bias.first_order(pi, u),
        lambda pi, u: bias.first_order(pi, u[-1:]),
        lambda pi, u: bias.first_order(pi, u[:1]),
        lambda pi, u: bias.first_order(pi, u.prod(0, keepdims=True)),
        lambda pi, u: bias.first_order(pi, u / u.max(1, keepdims=True)),
    ],
    ids=["sign", "last stretch", "first stretch", "product", "unnormalised"],
)
def test_first_order_mutants(mutant: FirstOrder) -> None:
    with pytest.raises(AssertionError, match="first order"):
        assert_first_order(mutant)


Bound = Callable[[float], float]  # E[Ẑ²]/Z² -> a bound on KL(π | r)


def assert_bound(bound: Bound, measured: Measured = ignore) -> None:
    """KL(p^α | r) <= log(E[Ẑ²]/Z²) for every N, threshold, resampling and ramp; equal in the limit where p^α is all on
    one record, nearly so at α = 30."""
    closest = 0.0
    cases = [(w, alpha, setting) for w, alpha in zip(small_worlds(), (4.0, 1.5, 4.0, 4.0, 2.0)) for setting in SETTINGS]
    cases += [
        (w, alpha, {"tau": 1.0, "kappa": kappa})
        for w in (decoy(2), decoy(3))
        for alpha in (4.0, 30.0)
        for kappa in (0, inf)
    ]
    for (w, alpha, setting), n in itertools.product(cases, (1, 2, 3)):
        if n == 3 and w.horizon > 3:
            continue
        cloud, target = outcome(w, alpha, n, setting), w.law(alpha)
        r = cloud.returned / cloud.returned.sum()
        kl = float(xlogy(target, target / r).sum())
        most = bound(cloud.square / float(np.exp(alpha * w.logp).sum()) ** 2)
        assert kl <= most + SAME, "bound"
        if kl > 1e-3:
            closest = max(closest, kl / most)
    measured("KL(p^α | r) / log(E[Ẑ²]/Z²), greatest", closest, 1)
    assert closest > 0.8


@pytest.mark.claim("P29")
def test_bound_for_every_count(measured: Measured) -> None:
    assert_bound(np.log, measured)


@pytest.mark.claim("P29")
def test_bound_mutants() -> None:
    """Half of it is the rate of the first order, and no bound."""
    with pytest.raises(AssertionError, match="bound"):
        assert_bound(lambda square: 0.5 * float(np.log(square)))


@pytest.mark.claim("P29")
def test_independent_tokens(measured: Measured) -> None:
    """Tokens .6, .4 drawn from p: C grows like √H if resampled at each token, exponentially if never. Where a token's
    weight does not tell what comes, as in the decoy of two tokens, resampling doubles it."""
    x = np.array([0.6, 0.4])
    chi = float((x**8 / x).sum() / (x**4).sum() ** 2)  # 1 + χ² of one token
    constants = {}
    for horizon, kappa in itertools.product((2, 4, 8), (0.0, inf)):
        table = TabularLM.markov([[0.6, 0.4]] * 2, torch.float64)
        _, _, conditionals = enumerate_law(table, [0], horizon, [])
        target, u = bias.ratios(conditionals, horizon=horizon, alpha=4.0, tau=1.0, kappa=kappa)
        assert u @ target == pytest.approx([chi**horizon] if kappa == 0 else [chi] * horizon, rel=SAME)
        constants[horizon, kappa] = float(np.abs(bias.first_order(target, u)).sum() / 2)
        measured(f"C at H = {horizon}, κ = {kappa}", constants[horizon, kappa], 1)
    assert all(constants[h, inf] < constants[h, 0.0] for h in (2, 4, 8))
    assert constants[8, inf] / constants[2, inf] == pytest.approx(2, rel=0.2)
    assert constants[8, 0.0] / constants[4, 0.0] > constants[4, 0.0] / constants[2, 0.0] > 1
    never, always = (bias.ratios(decoy(2).conditionals, horizon=2, alpha=4.0, kappa=kappa) for kappa in (0.0, inf))
    ratio = np.abs(bias.first_order(*always)).sum() / np.abs(bias.first_order(*never)).sum()
    measured("decoy of two tokens: C at κ = inf / C at κ = 0", float(ratio), 2)
    assert ratio == pytest.approx(2, rel=1e-3)
