"""Chains of p^α at α = ∞ (claim P30) and annealed ones (claim P31): their kernels, and what they reach."""

import itertools
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch

from tests.theory.test_markov_chain import SAME, Measured, World, ignore, worlds
from tests.theory.test_tempering import two_modes
from theory import annealing
from theory.annealing import cooling, kernel_at, limit_log_ratio, outside
from theory.blocked_chain import run
from theory.power import Law
from theory.suffix_mh import Cut, EntropyCut, Setting, Texts, suffix_mh
from toy.tabular import TabularLM, enumerate_law

CUTS: list[Cut] = ["record", "horizon", EntropyCut(1.0, 0.05)]
FAR = 1e9  # an α so large that only ties are left open
KernelAt = Callable[[Texts, float, Cut, range], Law]


def states_of(w: World, tau: float, cut: Cut = "record") -> tuple[Texts, Law, Law]:
    """The records, log p [n], and which of them are the likeliest, bool [n]."""
    texts = Setting(horizon=w.horizon, alpha=1.0, tau=tau, cut=cut).texts(w.conditionals)
    states = texts.only(texts.are_records(w.horizon), w.horizon)
    logp = states.logp.sum(1)
    return states, logp, logp >= logp.max() - annealing.TOLERANCE


def stops_at_once() -> World:
    """The likeliest record is a stop token alone: nothing else shares its first token."""
    laws = {(0,): [0.3, 0.35, 0.35]} | {
        (0, *t): [0.2, 0.4, 0.4] for t in [(1,), (2,), *itertools.product((1, 2), repeat=2)]
    }
    return World(*enumerate_law(TabularLM.tree(laws, 3, torch.float64), [0], 3, [0]), 3, (0,))


def ties() -> World:
    """Two records are the likeliest, of different lengths and of different probability under the proposal."""
    laws = {(0,): [0.3, 0.4, 0.3], (0, 1): [0.75, 0.125, 0.125], (0, 2): [0.4, 0.3, 0.3]}
    return World(*enumerate_law(TabularLM.tree(laws, 3, torch.float64), [0], 2, [0]), 2, (0,))


@cache
def all_worlds() -> list[World]:
    return [stops_at_once(), ties(), two_modes(), *worlds()]


# --- α = ∞ -----------------------------------------------------------------------------------------------------------


def assert_limit(kernel: KernelAt, measured: Measured = ignore) -> None:
    """K_∞ is where K_α goes, keeps the uniform distribution on the likeliest records in detailed balance, and reaches
    them from any start."""
    off = kept = 0.0
    for w, cut, tau in itertools.product(all_worlds(), CUTS, (1.0, 0.5)):
        states, logp, best = states_of(w, tau, cut)
        cuts = range(1, w.horizon + 1)
        K, far = kernel(states, np.inf, cut, cuts), suffix_mh(states, FAR, cut=cut, cuts=cuts)
        near = np.abs(logp - logp[:, None]) > annealing.TOLERANCE  # of ties the rounding of α log p decides there
        assert np.abs(np.where(near, K - far, 0)).max() < SAME, "limit"
        off = max(off, float(np.abs(np.where(near, K - far, 0)).max()))
        uniform = best / best.sum()
        flow = uniform[:, None] * K
        kept = max(kept, float(np.abs(uniform @ K - uniform).max()), float(np.abs(flow - flow.T).max()))
        assert kept < SAME, "kept"
        assert run(states.suffix[:, 0], K, 10**6)[~best].sum() < 1e-9, "reached"
    measured("K_α − K_∞ at α = 1e9, where records are not equally likely", off, SAME)
    measured("uniform on the likeliest: change by a step", kept, SAME)


@pytest.mark.claim("P30")
def test_the_limit_climbs(measured: Measured) -> None:
    assert_limit(kernel_at, measured)


def with_ratio(ratio: Callable[[Law, Law], Law]) -> KernelAt:
    def kernel(states: Texts, alpha: float, cut: Cut, cuts: range) -> Law:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(annealing, "limit_log_ratio", ratio)
            return kernel_at(states, alpha, cut, cuts)

    return kernel


@pytest.mark.claim("P30")
@pytest.mark.parametrize(
    ("ratio", "what"),
    [
        (lambda logp, rest: limit_log_ratio(-logp, rest), "limit"),  # descends
        (lambda logp, rest: limit_log_ratio(logp, -rest), "kept"),  # the rest with its sign reversed
        (lambda logp, rest: limit_log_ratio(logp, 0 * rest), "kept"),  # every tie is accepted, as in `max_swap`
        (lambda logp, rest: limit_log_ratio(logp + rest, rest), "limit"),  # by the ratio at α = 1
    ],
)
def test_other_limits_are_caught(ratio: Callable[[Law, Law], Law], what: str) -> None:
    with pytest.raises(AssertionError, match=what):
        assert_limit(with_ratio(ratio))


def bound(q_best: float, horizon: int, steps: int) -> Law:
    """(1 − q*)(1 − q*/H)^n, n = 0..steps."""
    return (1 - q_best) * (1 - q_best / horizon) ** np.arange(steps + 1)


BoundOf = Callable[[float, int, int], Law]


def assert_rate(bound_of: BoundOf, measured: Measured = ignore) -> None:
    """Outside the likeliest for n steps: by the power of the kernel, under the bound, and in the long run at the rate
    of the largest chance to stay; without ties the kernel is triangular in the order of p."""
    tightest = off = 0.0
    for w, cut, tau in itertools.product(all_worlds(), ["record", "horizon"], (1.0, 0.5, 0.25)):
        states, logp, best = states_of(w, tau)
        K = kernel_at(states, np.inf, cut, range(1, w.horizon + 1))  # type: ignore[arg-type]
        q, H = states.suffix[:, 0], w.horizon
        q_best = float(q[best].sum())
        found, most = outside(q, K, best, 60), bound_of(q_best, H, 60)
        assert np.all(found <= most + SAME), "bound"
        tightest = max(tightest, float((found / most).max()) if cut == "horizon" else 0.0)
        order = np.argsort(logp)
        if np.diff(logp[order]).min() > annealing.TOLERANCE:
            triangle = K[np.ix_(order, order)]
            assert np.tril(triangle, -1).max() == 0, "triangular"
        rate = np.abs(np.linalg.eigvals(K[np.ix_(~best, ~best)])).max() if not best.all() else 0.0
        stays = np.diag(K)[~best].max()
        assert rate >= stays - 1e-9, "rate"
        if np.diff(logp[order]).min() > annealing.TOLERANCE:
            off = max(off, abs(rate - stays))
            assert off < 1e-6, "rate"  # eigenvalues of a triangle that is nearly not diagonalisable
    measured("largest eigenvalue outside − largest chance to stay, without ties", off, 1e-6)
    measured("Pr[outside] over its bound, cut = horizon, greatest", tightest, 1.0)
    assert tightest > 1 - 1e-9, "nearly attained"


@pytest.mark.claim("P30")
def test_how_fast_it_climbs(measured: Measured) -> None:
    assert_rate(bound, measured)


@pytest.mark.claim("P30")
@pytest.mark.parametrize(
    "wrong",
    [
        lambda q, H, n: (1 - q) * (1 - q) ** np.arange(n + 1),  # as if every step cut at the first token
        lambda q, H, n: (1 - q) * (1 - q / (H - 1)) ** np.arange(n + 1),
        lambda q, H, n: (1 - q / H) ** np.arange(1, n + 2) * (1 - q),
        lambda q, H, n: bound(q, H, n) * 1.25,
    ],
    ids=["first cut", "H - 1 cuts", "a step more", "loose"],
)
def test_other_rates_are_caught(wrong: BoundOf) -> None:
    with pytest.raises(AssertionError, match=r"bound|attained"):
        assert_rate(wrong)


def assert_first_cut(cuts: range, draws: int, measured: Measured = ignore) -> None:
    """Cut at the first token alone, x_N is the best of N + 1 draws of q: Pr[log p(x_N) ≤ z] = F(z)^(N+1)."""
    off = 0.0
    for w, tau in itertools.product(all_worlds(), (1.0, 0.5)):
        states, logp, best = states_of(w, tau)
        q, K = states.suffix[:, 0], kernel_at(states, np.inf, "horizon", cuts)
        below = (logp <= logp[:, None] + annealing.TOLERANCE).astype(float)  # [z, x]
        law = q
        for n in range(1, 8):
            law = law @ K
            off = max(off, float(np.abs(below @ law - (below @ q) ** (n + draws)).max()))
            assert off < SAME, "best of N"
            assert abs(law[~best].sum() - (1 - q[best].sum()) ** (n + draws)) < SAME, "best of N"
    measured("Pr[log p(x_N) ≤ z] − that of the best of N + 1", off, SAME)


@pytest.mark.claim("P30")
def test_first_cuts_alone_are_best_of_n(measured: Measured) -> None:
    assert_first_cut(range(1, 2), 1, measured)


@pytest.mark.claim("P30")
@pytest.mark.parametrize(("cuts", "draws"), [(range(1, 2), 0), (range(1, 3), 1)])
def test_other_cuts_are_not(cuts: range, draws: int) -> None:
    with pytest.raises(AssertionError, match="best of N"):
        assert_first_cut(cuts, draws)


def assert_spared(first: int, measured: Measured = ignore) -> None:
    """If the first token is never cut the climb ends at the likeliest record of every first token, and has each first
    token as often as the proposal."""
    off, traps = 0.0, 0
    for w in all_worlds():
        states, logp, best = states_of(w, 0.5)
        q, K = states.suffix[:, 0], kernel_at(states, np.inf, "horizon", range(first, w.horizon + 1))
        law = run(q, K, 10**6)
        heads = np.array([record[0] for record in states.texts])
        tops = np.zeros(len(q), dtype=bool)
        for head in {*heads.tolist()}:
            own = heads == head
            tops |= own & (logp >= logp[own].max() - annealing.TOLERANCE)
            off = max(off, abs(float(law[own].sum() - q[own].sum())))
        off = max(off, float(law[~tops].sum()))
        assert off < 1e-9, "spared"
        traps += bool(law[~best].sum() > 0.1)
    measured("mass elsewhere than at the likeliest of each first token", off, 1e-9)
    measured("worlds in which it ends outside the arg max with chance above 0.1", traps, len(all_worlds()))
    assert traps >= 10


@pytest.mark.claim("P30")
def test_spared_tokens_are_never_mended(measured: Measured) -> None:
    assert_spared(2, measured)


@pytest.mark.claim("P30")
def test_cuts_at_the_first_token_mend_them() -> None:
    with pytest.raises(AssertionError, match="spared"):
        assert_spared(1)


# --- Annealing -------------------------------------------------------------------------------------------------------


def test_the_temperature_falls_evenly() -> None:
    assert cooling(1.0, 4.0, 0) == [] and cooling(1.0, 4.0, 1) == [4.0]
    assert cooling(1.0, np.inf, 2) == [1.0, np.inf]
    temperatures = 1 / np.array(cooling(0.5, 4.0, 6))
    assert np.allclose(np.diff(temperatures), -0.35) and temperatures[0] == 2.0 and temperatures[-1] == 0.25


def best_mass(w: World, tau: float, exponents: list[float]) -> float:
    states, _, best = states_of(w, tau)
    law = states.suffix[:, 0]
    for alpha in exponents:
        law = law @ kernel_at(states, alpha, "record", range(1, w.horizon + 1))
    return float(law[best].sum())


def test_the_law_is_the_product_of_kernels() -> None:
    """In one block; that it is the page's, in several, too, see tests/reference/test_pages_enumerated_annealing.py."""
    for w in all_worlds()[:6]:
        exponents = cooling(1.0, 4.0, 5)
        states, _, best = states_of(w, 0.5)
        records, law = annealing.annealed_law(w.conditionals, exponents, horizon=w.horizon, tau=0.5)
        assert records == states.texts and abs(law[best].sum() - best_mass(w, 0.5, exponents)) < SAME


def funnel() -> World:
    """Two first tokens, 0 with 0.2. After 0 the next is one of eight and the rest is certain: the likeliest record,
    0.028, stands among seven of 0.0246. After 1 all eight continue alike, each with one ending of 0.025: traps, which
    are just likelier than the seven. 72 records of three tokens."""
    laws = {(0,): [0.2, 0.8, *[0.0] * 6], (0, 0): [0.14, *[0.86 / 7] * 7], (0, 1): [1 / 8] * 8}
    for v in range(8):
        laws |= {(0, 0, v): [1.0, *[0.0] * 7], (0, 1, v): [0.25, *[0.75 / 7] * 7]}
    return World(*enumerate_law(TabularLM.tree(laws, 8, torch.float64), [0], 3, []), 3, ())


LENGTHS, PROPOSALS = (2, 5, 10, 40), (1.0, 0.5, 0.25)


def assert_when_it_helps(schedule: Callable[[float, float, int], list[float]], measured: Measured = ignore) -> None:
    """The chance to hold the likeliest record after N steps, exactly, in 15 worlds, from draws at three temperatures:

    cooled to α = 4, from 1: never more than by 4 throughout. Cooled to ∞: nearly always more than by 4, and nearly
    always less than by the climb throughout. In a world with traps in front of a funnel, more than by either.
    """
    gain_4, gain_inf, wins, cases = -1.0, -1.0, 0, 0
    for w, tau, n in itertools.product([two_modes(), *worlds()], PROPOSALS, LENGTHS):
        constant, climb = best_mass(w, tau, [4.0] * n), best_mass(w, tau, [np.inf] * n)
        gain_4 = max(gain_4, best_mass(w, tau, schedule(1.0, 4.0, n)) - constant)
        for first in (2.0, 4.0):
            cooled = best_mass(w, tau, schedule(first, np.inf, n))
            gain_inf = max(gain_inf, cooled - climb)
            wins += cooled > constant
            cases += 1
    measured("cooled from 1 to 4: greatest gain of the arg max's mass over α = 4", gain_4, 0.0)
    measured("cooled to ∞: greatest gain over the climb, random worlds", gain_inf, 0.01)
    measured("cooled to ∞: cases above α = 4", wins, cases)
    assert gain_4 <= SAME and 0.005 < gain_inf < 0.01 and wins > 0.8 * cases, "seldom"
    for n, above in ((10, 0.02), (100, 0.25)):
        cooled, climb, constant = (
            best_mass(funnel(), 0.5, ex) for ex in (schedule(8.0, np.inf, n), [np.inf] * n, [4.0] * n)
        )
        measured(f"funnel, {n} steps, cooled from 8 to ∞: Pr[arg max]", cooled, 1.0)
        measured(f"funnel, {n} steps, climb: Pr[arg max]", climb, 1.0)
        measured(f"funnel, {n} steps, α = 4: Pr[arg max]", constant, 1.0)
        assert cooled > climb + above and climb > constant, "funnel"


@pytest.mark.claim("P31")
def test_when_annealing_helps(measured: Measured) -> None:
    assert_when_it_helps(cooling, measured)


@pytest.mark.claim("P31")
@pytest.mark.parametrize(
    "schedule",
    [
        lambda first, last, n: cooling(first, last, n)[::-1],  # heats
        lambda first, last, n: [last] * n,  # no schedule
        lambda first, last, n: [first] * n,  # never cools
    ],
)
def test_other_schedules_do_not_help_so(schedule: Callable[[float, float, int], list[float]]) -> None:
    with pytest.raises(AssertionError, match=r"seldom|funnel"):
        assert_when_it_helps(schedule)
