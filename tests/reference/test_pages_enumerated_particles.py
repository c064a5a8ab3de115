"""The page of Power-SMC, run for every outcome of its cloud: law, normaliser and resamplings are theory's."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from reference import power_smc as S
from reference.power_smc import SMCConfig, power_smc_page
from tests.reference.small_worlds import EXACT, WORLDS, assert_same, gap, mutated
from theory.exact_law import CHOICE, Enumerated, runs
from theory.particles import chopthin, cloud, second_moment

pytestmark = pytest.mark.usefixtures("remember")


def settings(world, **change):
    return SMCConfig(
        **{"alpha": world.alpha, "max_new_tokens": world.horizon, "particles": 2, "ess_threshold": 2.0, **change}
    )


def enumerated(world, config, page=power_smc_page):
    """What the page's clouds amount to, summed over every path, in theory.particles' names."""
    records = world.law[0]
    index = {record: i for i, record in enumerate(records)}
    returned, weighted = np.zeros((2, len(records)))
    mean = square = resamplings = total = 0.0
    for result, run in runs(partial(world.run, page, config)):
        mass, z = run.probability, np.exp(result.log_normalizer)
        total += mass
        mean, square = mean + mass * z, square + mass * z**2
        resamplings += mass * sum(result.resampled)
        returned[index[result.tokens]] += mass
        weights = np.exp(np.array(result.log_weights) - max(result.log_weights))
        for particle, share in zip(result.particles, weights / weights.sum()):
            weighted[index[particle]] += mass * z * share
        assert len(result.ess) == len(result.resampled) and (np.array(result.ess) >= 1 - EXACT).all()
    assert abs(total - 1) <= EXACT
    return SimpleNamespace(
        returned=returned, weighted=weighted, mean=mean, square=square, resamplings=resamplings,
    )  # fmt: skip


def assert_cloud(world, config, page=power_smc_page):
    """Theory's cloud; and E[Ẑ Σ W f/ΣW] = Σ p^α f for every f, which no formula of it gave."""
    alphas = [1 + (config.alpha - 1) * min(1.0, t / config.ramp) for t in range(1, config.max_new_tokens + 1)] \
        if config.ramp else None  # fmt: skip
    exact = cloud(
        world.law[2], horizon=config.max_new_tokens, alpha=config.alpha, particles=config.particles, ramp=alphas,
        tau=config.proposal_temperature, kappa=config.ess_threshold, resampling=config.resampling,
        eta=config.eta,
    )  # fmt: skip
    records, logp, _ = world.law
    assert exact.records == records
    found = enumerated(world, config, page)
    mass = np.exp(config.alpha * logp)
    unbiased = [assert_same(found.weighted, mass), assert_same(found.mean, mass.sum())]
    law = [assert_same(vars(found)[name], vars(exact)[name]) for name in ("returned", "square", "resamplings")]
    return max(unbiased), max(law), found


CASES = [
    ("pivot", {"particles": 1}), ("ties", {"resampling": "multinomial"}), ("pivot", {}), ("ties", {}),
    ("pivot", {"ess_threshold": 0.0}), ("pivot", {"ess_threshold": 0.8}), ("ties", {"ess_threshold": 1.0}),
    ("two stops", {"ess_threshold": 0.9, "resampling": "multinomial", "proposal_temperature": 1.0}),
    ("pivot", {"ramp": 2}),
    ("ties", {"ramp": 3, "ess_threshold": 0.8, "resampling": "multinomial"}), ("pivot", {"ramp": 3, "particles": 1}),
    ("short", {"proposal_temperature": 1.0}), ("ties", {"proposal_temperature": 0.5, "ramp": 2}),
    ("pivot", {"proposal_temperature": 1.3, "ess_threshold": 0.7}), ("short", {"ramp": 2}),
    ("fork", {"particles": 3, "resampling": "multinomial"}), ("short", {"particles": 3}),
    ("fork", {"particles": 3, "ess_threshold": 0.75, "proposal_temperature": 1.0}),
    ("short", {"particles": 3, "ess_threshold": 1.0}),
    ("fork", {"particles": 3, "ess_threshold": 0.0, "ramp": 2}), ("fork", {"particles": 3, "ramp": 2}),
]  # fmt: skip


@pytest.mark.claim("P18")
@pytest.mark.parametrize(("name", "change"), CASES)
def test_the_cloud_is_theorys_and_without_bias(name, change, measured):
    unbiased, law, _ = assert_cloud(WORLDS[name], settings(WORLDS[name], **change))
    measured("max |E[Ẑ Σ W f/ΣW] - Σ p^α f|", unbiased, EXACT)
    measured("max |law of the returned particle - theory|", law, EXACT)


CHOPPED = [
    ("pivot", {"proposal_temperature": 1.0}), ("ties", {}), ("short", {"particles": 3, "proposal_temperature": 1.0}),
    ("fork", {"particles": 3, "eta": 4.0, "proposal_temperature": 1.0}), ("fork", {"particles": 3, "ramp": 2}),
    ("ties", {"ess_threshold": 0.7, "proposal_temperature": 1.0, "eta": 4.0}),
]  # fmt: skip


@pytest.mark.claim("P33")
@pytest.mark.parametrize(("name", "change"), CHOPPED)
def test_chopthin_clouds_are_theorys_and_without_bias(name, change, measured):
    """Their weights are unequal after resampling, and Ẑ takes that into account."""
    unbiased, law, _ = assert_cloud(WORLDS[name], settings(WORLDS[name], resampling="chopthin", **change))
    measured("max |E[Ẑ Σ W f/ΣW] - Σ p^α f|", unbiased, EXACT)
    measured("max |law of the returned particle - theory|", law, EXACT)


CHOP_MUTANTS = {
    "equal weights": ("math.log(divided[a] / ancestors.count(a)) for", "0.0 for", {}),
    "every child has all": ("math.log(divided[a] / ancestors.count(a))", "math.log(divided[a])", {}),
    "shares in place of h": ("chance.ancestors(h,", "chance.ancestors(share,", {}),
    "drawn independently": ('"systematic" if chops', '"multinomial" if chops', {}),
}  # fmt: skip


@pytest.mark.claim("P33")
@pytest.mark.parametrize("mutant", CHOP_MUTANTS)
def test_wrong_chopthin_is_caught(mutant):
    right, wrong, change = CHOP_MUTANTS[mutant]
    world = WORLDS["fork"]
    config = settings(world, resampling="chopthin", eta=4.0, proposal_temperature=2.0, **change)
    assert_cloud(world, config)
    with pytest.raises(AssertionError):
        assert_cloud(world, config, mutated(power_smc_page, right, wrong))


def test_chopthin_is_theorys():
    """By bisection in the code, by interpolation in theory; with weights of 0, and equal ones."""
    rng = np.random.default_rng(1)
    for n, eta in ((1, 4.0), (2, 5.8), (5, 4.0), (16, 3 + 8**0.5), (64, 40.0)):
        for power in (0.3, 2.0, 9.0):
            weights = rng.random(n) ** power * (rng.random(n) < 0.8)
            weights[0] += 0.1
            share = weights / weights.sum()
            for found, exact in zip(S.chopthin(torch.from_numpy(share), eta), chopthin(n * share, eta)):
                assert_same(found.numpy(), exact)


def test_some_clouds_are_resampled_and_some_are_not():
    """In the cases whose threshold is between 0 and 1. With 0 none is, above 1 each one with an open text, and at 1
    all but those of equal weights: after the first token of a constant exponent and the best proposal all weights are.
    """
    shares = {}
    for name, change in CASES:
        config, world = settings(WORLDS[name], **change), WORLDS[name]
        if config.particles > 1 and not config.ramp:
            asked = {"tau": config.proposal_temperature, "kappa": config.ess_threshold}
            exact = cloud(world.law[2], horizon=world.horizon, alpha=world.alpha, particles=config.particles, **asked,
                          resampling=config.resampling)  # fmt: skip
            shares.setdefault(config.ess_threshold, []).append(exact.resamplings / (world.horizon - 1))
    assert shares.pop(0.0) == [0.0] and min(shares.pop(2.0)) > 0.7 and 0.0 in shares.pop(1.0)
    assert len(shares) >= 3 and all(0.05 < share < 0.6 for found in shares.values() for share in found)


@pytest.mark.claim("P18")
def test_the_second_moment_after_every_token(measured):
    """Multinomial, without a ramp: the recursion over pairs of texts."""
    world = WORLDS["ties"]
    found = enumerated(world, settings(world, resampling="multinomial"))
    exact = second_moment(world.law[2], horizon=world.horizon, alpha=world.alpha, particles=2)
    measured("|E[Ẑ²] - recursion|", assert_same(found.square, exact), EXACT)


@pytest.mark.claim("P18")
def test_the_returned_particle_is_biased(measured):
    """From TV > .3 nearer to p^α with every particle, and not there; with a ramp too."""
    world = WORLDS["fork"]
    distance = [np.abs(enumerated(world, settings(world, particles=n)).returned - world.target()).sum() / 2
                for n in (1, 2, 3)]  # fmt: skip
    measured("TV to p^α, N = 3", distance[2], 0.0)
    assert distance[0] > distance[1] > distance[2] > 0.01
    ramped = [np.abs(enumerated(world, settings(world, particles=n, ramp=2)).returned - world.target()).sum() / 2
              for n in (1, 3)]  # fmt: skip
    measured("TV of one particle to p^α", min(distance[0], ramped[0]), 0.3)
    measured("TV to p^α, N = 3, ramp = 2", ramped[1], 0.0)
    assert min(distance[0], ramped[0]) > 0.3 and ramped[0] > ramped[1] > 0.01


def test_one_particle_is_low_temperature():
    world = WORLDS["pivot"]
    config = settings(world, particles=1)
    returned = world.page_law(power_smc_page, config)
    low = world.page_law(S.power_smc_page, settings(world, particles=1, ess_threshold=0.0))
    assert {*returned} == {*low} and gap([*returned.values()], [low[text] for text in returned]) <= EXACT


# --- Mutants ---------------------------------------------------------------------------------------------------------

MUTANTS = {
    "weights kept": ("[logp[a] for a in ancestors], [0.0] * N", "[logp[a] for a in ancestors], log_w", {}),
    "log p of the wrong particle": ("[logp[a] for a in ancestors]", "logp", {"ramp": 3}),
    "Ẑ counted once too often": ("log_z += log_mean(log_w)", "log_z += 2 * log_mean(log_w)", {}),
    "Ẑ not counted": ("            log_z += log_mean(log_w)\n", "", {}),
    "no proposal term": (" - before - log_q", " - before", {}),
    "sign of the proposal term": (" - before - log_q", " - before + log_q", {}),
    "proposal of another exponent": ("1 / alphas[t + 1]", "1 / alphas[t]", {"ramp": 2}),
    "ramp off by one": ("alphas[t + 1] * logp[i] - before", "alphas[t] * logp[i] - before", {"ramp": 2}),
    "prefix not weighed again": ("before, log_q = alphas[t] * logp[i]", "before, log_q = alphas[t + 1] * logp[i]",
                                 {"ramp": 2}),
    "never at the last exponent": ("(config.alpha - alphas[len(ess)]) * total", "0 * total", {"ramp": 3}),
    "chosen at random": ("chance.weighted(share, CHOICE)", "chance.index(N, CHOICE)", {}),
    "ended particles are dropped": ("share = torch.tensor(log_w, dtype=torch.float64).softmax(0)\n        ess",
        "log_w = [w if is_open(y, config, stop_ids) else -60.0 for w, y in zip(log_w, x)]\n"
        "        share = torch.tensor(log_w, dtype=torch.float64).softmax(0)\n        ess", {}),
    "resampled when it is good": ("ess[-1] < config.least_ess", "ess[-1] >= config.least_ess", {"ess_threshold": 0.8}),
    "no tolerance": ("ess[-1] < config.least_ess", "ess[-1] < config.least_ess * (1 + 2e-6)", {"ess_threshold": 1.0}),
    "resampled after the end too": (
        " and any(is_open(y, config, stop_ids) for y in x)\n        resampled", "\n        resampled", {}),
}  # fmt: skip


@pytest.mark.claim("P18")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_wrong_clouds_are_caught(mutant):
    right, wrong, change = MUTANTS[mutant]
    with pytest.raises(AssertionError):
        assert_cloud(WORLDS["ties"], settings(WORLDS["ties"], **change), mutated(power_smc_page, right, wrong))


@pytest.mark.claim("P18")
@pytest.mark.parametrize("change", [{"resampling": "multinomial"}, {"resampling": "systematic", "ramp": 2}])
def test_other_ancestors_are_caught(change, monkeypatch):
    """Those of equal weights."""
    ancestors = Enumerated.ancestors
    monkeypatch.setattr(Enumerated, "ancestors", lambda self, weights, scheme, *, position: ancestors(
        self, np.ones(len(weights)), scheme, position=position))  # fmt: skip
    with pytest.raises(AssertionError):
        assert_cloud(WORLDS["ties"], settings(WORLDS["ties"], **change))


@pytest.mark.claim("P18")
def test_the_other_scheme_is_caught():
    """Both are without bias, but not with the same law."""
    world = WORLDS["ties"]
    laws = [enumerated(world, settings(world, resampling=scheme)) for scheme in ("multinomial", "systematic")]
    assert_same(*(law.weighted for law in laws))
    with pytest.raises(AssertionError):
        assert_same(*(law.returned for law in laws))


@pytest.mark.claim("P18")
def test_a_mean_of_logarithms_is_caught(monkeypatch):
    monkeypatch.setattr(S, "log_mean", lambda log_w: sum(log_w) / len(log_w))
    with pytest.raises(AssertionError):
        assert_cloud(WORLDS["pivot"], settings(WORLDS["pivot"]))


def test_the_choice_is_made_once():
    """Of all the questions of a path one is the choice of the returned particle."""
    world = WORLDS["short"]
    for _, run in runs(partial(world.run, power_smc_page, settings(world))):
        assert [purpose for *_, purpose, _, _ in run.asked].count(CHOICE) == 1
