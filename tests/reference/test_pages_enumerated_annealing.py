"""The page of power sampling at α = ∞ and annealed, run for every outcome: its kernels and its law are theory's."""

import math

import numpy as np
import pytest

from reference import power_sampling as P
from reference.power_sampling import PowerConfig, power_sampling_page
from tests.reference.small_worlds import EXACT, WORLDS, as_array, assert_same
from tests.reference.test_pages_enumerated_chains import CUTS, first_only, page_kernel, settings, theorys
from theory.annealing import annealed_law, cooling, kernel_at
from theory.suffix_mh import Setting

pytestmark = pytest.mark.usefixtures("remember")

CLIMB = {"alpha": math.inf, "proposal_temperature": 0.8}


def states_of(world, config):
    s = Setting(**theorys(config) | {"alpha": 1.0})
    texts = s.texts(world.law[2])
    return texts.only(texts.are_records(s.horizon), s.horizon), s


def assert_climb(world, config):
    """The step's kernel is theory's limit, and keeps the uniform distribution on the likeliest records."""
    states, s = states_of(world, config)
    _, logp, _ = world.law
    K = page_kernel(world, config)
    best = logp >= logp.max() - 1e-6
    uniform = best / best.sum()
    off = [assert_same(K, kernel_at(states, math.inf, s.cut, s.cuts(s.horizon))), assert_same(uniform @ K, uniform)]
    return max(off)


@pytest.mark.claim("P30")
@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("cut", [CUTS[0], CUTS[1], CUTS[3]])
def test_the_page_climbs(name, cut, measured):
    measured("max |K - theory|, |u K - u|", assert_climb(WORLDS[name], settings(WORLDS[name], **CLIMB, **cut)), EXACT)


@pytest.mark.claim("P30")
@pytest.mark.parametrize("wrong", [
    lambda rise, rest: rest if abs(rise) <= 1e-6 else math.copysign(math.inf, -rise),  # descends
    lambda rise, rest: 0.0 if abs(rise) <= 1e-6 else math.copysign(math.inf, rise),  # takes every tie
    lambda rise, rest: math.copysign(math.inf, rise),  # asks rounding
    lambda rise, rest: rest,  # α = 0
])  # fmt: skip
def test_other_climbs_are_caught(wrong, monkeypatch):
    monkeypatch.setattr(P, "limit", wrong)
    with pytest.raises(AssertionError):
        assert_climb(WORLDS["ties"], settings(WORLDS["ties"], **CLIMB))


def assert_best_of(world, config, chance, draws=1):
    """Of N steps that cut at the first token, N + 1 draws: the best by log p."""
    states, _ = states_of(world, config)
    logp, q = world.law[1], states.suffix[:, 0]
    below = (logp <= logp[:, None] + 1e-6).astype(float)
    law, K = q, page_kernel(world, config, chance)
    off = []
    for n in range(1, 6):
        law = law @ K
        off.append(assert_same(below @ law, (below @ q) ** (n + draws)))
    return max(off)


@pytest.mark.claim("P30")
@pytest.mark.parametrize("name", WORLDS)
def test_cut_at_the_first_token_it_is_best_of_n(name, measured):
    config = settings(WORLDS[name], **CLIMB)
    measured("max |Pr[log p ≤ z] - that of the best of N + 1|", assert_best_of(WORLDS[name], config, first_only), EXACT)


@pytest.mark.claim("P30")
def test_cut_anywhere_it_is_not():
    with pytest.raises(AssertionError):
        assert_best_of(WORLDS["pivot"], settings(WORLDS["pivot"], **CLIMB), lambda chance: chance)


def assert_annealed(world, config):
    """What the whole page returns has the law q K_{α_1} ... K_{α_N}, block by block."""
    cut = theorys(config)["cut"]
    exponents = cooling(config.anneal, config.alpha, config.steps) if config.anneal else [config.alpha] * config.steps
    records, law = annealed_law(
        world.law[2], exponents, horizon=config.max_new_tokens, tau=config.temperature, cut=cut, block=config.block
    )
    return assert_same(as_array(world.page_law(power_sampling_page, config), records), law)


ANNEALED = [
    ("short", {"steps": 2, "anneal": 0.5}), ("ties", {"steps": 1, "anneal": 1.0}),
    ("fork", {"steps": 3, "anneal": 1.0}),
    ("short", {"steps": 2, "anneal": 1.0, "block": 1}), ("fork", {"steps": 2, "anneal": 2.0, **CLIMB}),
    ("fork", {"steps": 3, "anneal": 0.7, **CLIMB, "cut": "horizon"}), ("two stops", {"steps": 2, "block": 1, **CLIMB}),
    ("ties", {"block": 2, **CLIMB}), ("short", {"steps": 2, **CLIMB, **CUTS[3]}),
    ("pivot", {"steps": 0, "anneal": 1.0}),
]  # fmt: skip


@pytest.mark.claim("P31")
@pytest.mark.parametrize(("name", "change"), ANNEALED)
def test_the_page_has_the_law_of_its_exponents(name, change, measured):
    off = assert_annealed(WORLDS[name], settings(WORLDS[name], **change))
    measured(f"max |law - theory|, {name}, {change}", off, EXACT)


@pytest.mark.claim("P31")
@pytest.mark.parametrize("wrong", [
    lambda self, n: self.anneal if n % (self.steps + 1) < self.steps else self.alpha,  # cools at the last step alone
    lambda self, n: PowerConfig.exponents.fget(self)[self.steps + 1 - n % (self.steps + 1)],  # heats
    lambda self, n: self.alpha,  # does not
])  # fmt: skip
def test_other_exponents_are_caught(wrong, monkeypatch):
    plain = PowerConfig.exponent
    config = settings(WORLDS["fork"], steps=3, anneal=1.0)

    def exponent(self, n):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PowerConfig, "exponent", plain)
            return wrong(self, n)

    monkeypatch.setattr(PowerConfig, "exponent", exponent)
    with pytest.raises(AssertionError):
        assert_annealed(WORLDS["fork"], config)


@pytest.mark.parametrize(("anneal", "alpha"), [(0.5, 4.0), (1.0, 1.0), (2.0, math.inf)])
@pytest.mark.parametrize("steps", [0, 1, 2, 7])
def test_exponents_are_theorys(anneal, alpha, steps):
    config = PowerConfig(alpha, 1.0, steps=steps, anneal=anneal)
    assert np.allclose(config.exponents[1:], cooling(anneal, alpha, steps), rtol=1e-14)
    second = [config.exponent(steps + 1 + n) for n in range(1, steps + 1)]  # of the second block
    assert second == list(config.exponents[1:])
