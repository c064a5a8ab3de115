"""Parallel tempering (claim P17): the joint law of the rungs, against a sum over what each round may do."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from tests.theory.test_markov_chain import SAME, Measured, World, ignore, world, worlds
from theory import markov_chain as mc
from theory import tempering
from theory.power import Law
from toy.tabular import TabularLM, enumerate_law

LADDERS = [(1.0, 4.0), (1.0, 2.0, 4.0), (0.5, 4.0), (3.0, 3.5)]


def targets(w: World, alphas: Sequence[float]) -> list[Law]:
    return [w.law(alpha) for alpha in alphas]


SwapOf = Callable[[Law, Law, Sequence[float], int], Law]  # like tempering.swap


def assert_keeps_the_product(swap_of: SwapOf, measured: Measured = ignore) -> None:
    """Every swap and every sweep of local moves keeps Π p^(α_k), and swaps do so in detailed balance."""
    worst = 0.0
    for w, alphas in itertools.product(worlds(), LADDERS):
        if len(w.records) ** len(alphas) > 30_000:
            continue
        joint = tempering.product(targets(w, alphas))
        kernels = [chain.kernel for chain in tempering.rungs(w.conditionals, alphas, horizon=w.horizon)]
        after = [tempering.step_all(joint, kernels)]
        after += [swap_of(joint, w.logp, alphas, rung) for rung in range(len(alphas) - 1)]
        worst = max(worst, *(float(np.abs(law - joint).max()) for law in after))
        assert worst < SAME, "invariance"
        for rung in range(len(alphas)):
            assert np.abs(tempering.marginal(after[-1], rung) - w.law(alphas[rung])).max() < SAME
    measured("change of the joint law", worst, SAME)


@pytest.mark.claim("P17")
def test_swaps_keep_the_product(measured: Measured) -> None:
    assert_keeps_the_product(tempering.swap, measured)


def swap_with(chance: Callable[[Law, float, float], Law]) -> SwapOf:
    """`tempering.swap` with another acceptance."""

    def swap(joint: Law, logp: Law, alphas: Sequence[float], rung: int) -> Law:
        joint = np.moveaxis(joint, (rung, rung + 1), (-2, -1))
        swapped = joint * chance(logp, alphas[rung], alphas[rung + 1])
        return np.moveaxis(joint - swapped + swapped.swapaxes(-1, -2), (-2, -1), (rung, rung + 1))

    return swap


swap_chance = tempering.swap_chance
WRONG_CHANCES = [
    lambda logp, low, high: swap_chance(logp, high, low),  # reversed
    lambda logp, low, high: swap_chance(logp, 0.0, high),  # only the colder exponent
    lambda logp, low, high: np.ones((len(logp), len(logp))),  # always
]


@pytest.mark.claim("P17")
@pytest.mark.parametrize("chance", WRONG_CHANCES)
def test_swap_mutants(chance: Callable[[Law, float, float], Law]) -> None:
    with pytest.raises(AssertionError, match="invariance"):
        assert_keeps_the_product(swap_with(chance))


def test_rounds_are_the_procedure() -> None:
    """The joint law after two rounds, over all moves and swaps by hand; three rungs, two steps a round."""
    w, alphas = world(0, 2, 3), (1.0, 2.0, 4.0)
    chains = tempering.rungs(w.conditionals, alphas, horizon=w.horizon)
    n = len(w.records)
    law = {state: float(np.prod([c.initial[x] for c, x in zip(chains, state)])) for state in np.ndindex(n, n, n)}
    laws = tempering.rounds(chains, w.logp, alphas, steps=2)
    for _ in range(3):
        joint = next(laws)
        assert joint.sum() == pytest.approx(1, abs=SAME)
        assert max(abs(joint[state] - mass) for state, mass in law.items()) < SAME
        for rung, _ in itertools.product(range(3), range(2)):
            after: dict[tuple[int, ...], float] = defaultdict(float)
            for state, mass in law.items():
                for y in range(n):
                    moved = (*state[:rung], y, *state[rung + 1 :])
                    after[moved] += mass * chains[rung].kernel[state[rung], y]
            law = after
        for k in range(2):
            after = defaultdict(float)
            for state, mass in law.items():
                x, y = state[k], state[k + 1]
                density = w.logp[x] * alphas[k] + w.logp[y] * alphas[k + 1]
                swapped = w.logp[y] * alphas[k] + w.logp[x] * alphas[k + 1]
                accept = min(1.0, np.exp(swapped - density))
                after[(*state[:k], y, x, *state[k + 2 :])] += mass * accept
                after[state] += mass * (1 - accept)
            law = after


def test_one_rung_is_one_chain() -> None:
    for w in worlds():
        chain = mc.chain(w.conditionals, horizon=w.horizon, alpha=4.0)
        laws = tempering.rounds(tempering.rungs(w.conditionals, [4.0], horizon=w.horizon), w.logp, [4.0], steps=3)
        for n in (0, 3, 6):
            assert np.abs(next(laws) - mc.run(chain.initial, chain.kernel, n)).max() < SAME


def test_swap_rate() -> None:
    for w in worlds():
        low, high = w.law(1.0), w.law(4.0)
        rate = float(low @ tempering.swap_chance(w.logp, 1.0, 4.0) @ high)
        assert tempering.swap_rate(w.logp, 1.0, 4.0) == pytest.approx(rate, abs=SAME)
        assert tempering.swap_rate(w.logp, 4.0, 4.0) == pytest.approx(1, abs=SAME)


# --- What the ladder brings ------------------------------------------------------------------------------------------


def two_modes() -> World:
    """p^4 wants one certain text behind an unlikely token; temperature 1/4 starts with the likely token, whose many
    endings are all unlikely, and seldom leaves it; the base finds the other one in three of ten draws."""
    certain, even = [0.0, 0.98, 0.01, 0.01], [0.01, 0.33, 0.33, 0.33]
    laws = {(0,): [0.002, 0.298, 0.7, 0.0]}
    for text in itertools.chain.from_iterable(itertools.product((1, 2, 3), repeat=t) for t in range(1, 4)):
        laws[(0, *text)] = certain if text[0] == 1 else even
    return World(*enumerate_law(TabularLM.tree(laws, 4, torch.float64), [0], 4, [0]), 4, (0,))


def cold_curve(w: World, alphas: Sequence[float], count: int) -> Law:
    """TV of the cold rung to its target after 0 .. count rounds of one step."""
    laws = tempering.rounds(tempering.rungs(w.conditionals, alphas, horizon=w.horizon), w.logp, alphas)
    target = w.law(alphas[-1])
    return np.array([mc.total_variation(tempering.marginal(next(laws), -1), target) for _ in range(count + 1)])


def assert_cold_curve(measured: Measured = ignore) -> None:
    """At equal rounds the cold rung of (1, 4) is never farther from p^4 than a single chain; at equal steps of all
    rungs it is nearer where the single chain is slow, and farther where it is fast."""
    least = np.inf
    slow_worlds = wins = losses = 0
    for w in [two_modes(), *worlds()]:
        single, ladder = cold_curve(w, [4.0], 40), cold_curve(w, [1.0, 4.0], 40)
        assert np.all(ladder[1:] <= single[1:] + SAME), "equal rounds"
        least = min(least, float((single - ladder)[1:].min()))
        slow = single[40] > 0.02
        slow_worlds += bool(slow)
        wins += bool(slow and ladder[20] < single[40])
        losses += bool(ladder[5] > single[10] + 1e-3)
        assert not slow or ladder[20] < single[40], "equal steps"
    measured("TV of a single chain - TV of the cold rung at equal rounds, least", least, 0)
    measured("worlds in which 20 rounds of two rungs beat 40 steps of a slow chain", wins, slow_worlds)
    measured("worlds in which 5 rounds of two rungs lose to 10 steps of one", losses, 0)
    assert losses
    single, ladder = cold_curve(two_modes(), [4.0], 40), cold_curve(two_modes(), [1.0, 4.0], 40)
    measured("two modes, 40 rounds: TV of a single chain", float(single[40]), 0.7019)
    measured("two modes, 40 rounds: TV of the cold rung", float(ladder[40]), 0.0256)
    assert single[40] > 0.7 and ladder[40] < 0.03


@pytest.mark.claim("P17")
def test_cold_curve(measured: Measured) -> None:
    assert_cold_curve(measured)


@pytest.mark.claim("P17")
@pytest.mark.parametrize("chance", [lambda logp, low, high: np.zeros((len(logp), len(logp))), *WRONG_CHANCES])
def test_cold_curve_mutants(chance: Callable[[Law, float, float], Law], monkeypatch: pytest.MonkeyPatch) -> None:
    """No swaps, and wrong ones."""
    monkeypatch.setattr(tempering, "swap_chance", chance)
    with pytest.raises(AssertionError, match="equal"):
        assert_cold_curve()


def assert_fresh_draws_cannot_hurt(fresh: Callable[[Law, float, float], Law], measured: Measured = ignore) -> None:
    """S keeps p^4 in detailed balance; the first round of (1, 4) is K S; K S is never farther, nor slower."""
    first, slower = 0.0, 0.0
    for w in [two_modes(), *worlds()]:
        cold, target = mc.chain(w.conditionals, horizon=w.horizon, alpha=4.0), w.law(4.0)
        swap = fresh(w.logp, 1.0, 4.0)
        assert np.abs(swap.sum(1) - 1).max() < SAME and np.abs(target @ swap - target).max() < SAME
        assert np.abs(target[:, None] * swap - (target[:, None] * swap).T).max() < SAME
        laws = tempering.rounds(tempering.rungs(w.conditionals, [1.0, 4.0], horizon=w.horizon), w.logp, [1.0, 4.0])
        _, joint = next(laws), next(laws)
        first = max(first, np.abs(tempering.marginal(joint, -1) - cold.initial @ cold.kernel @ swap).max())
        assert first < SAME, "the first round"
        rng = np.random.default_rng(0)
        for law in (cold.initial, *rng.dirichlet(np.ones(len(target)), size=5)):
            for _ in range(5):
                alone, law = law @ cold.kernel, law @ cold.kernel @ swap
                assert mc.total_variation(law, target) <= mc.total_variation(alone, target) + SAME
        root = np.sqrt(target)
        norm = np.linalg.norm(root[:, None] * (cold.kernel @ swap - target) / root, 2)
        slower = max(slower, norm / (1 - mc.spectral_gap(cold.kernel)))
        assert slower <= 1 + SAME
    measured("the first round of (1, 4) − K S", first, SAME)
    measured("‖K S‖ / ‖K‖", slower, 1)


@pytest.mark.claim("P17")
def test_fresh_draws_cannot_hurt(measured: Measured) -> None:
    assert_fresh_draws_cannot_hurt(tempering.fresh_swap, measured)


@pytest.mark.claim("P17")
def test_fresh_draws_mutants() -> None:
    def from_the_proposal(logp: Law, low: float, high: float) -> Law:
        return tempering.fresh_swap(logp, low + 1, high)

    def always(logp: Law, low: float, high: float) -> Law:
        return np.tile(np.exp(logp), (len(logp), 1))

    for wrong in (from_the_proposal, always):
        with pytest.raises(AssertionError):
            assert_fresh_draws_cannot_hurt(wrong)


FAMILIES = [(2, 3, 100), (2, 2, 150), (3, 2, 150)]  # vocabulary, horizon, seeds


def farther(alphas: Sequence[float], families: Sequence[tuple[int, int, int]] = FAMILIES) -> tuple[int, float]:
    """Seeded worlds in which the cold rung is farther than a single chain after one of ten rounds; by how much."""
    count, most = 0, 0.0
    for vocab, horizon, seeds in families:
        for seed in range(seeds):
            w = world(seed, vocab, horizon)
            ahead = (cold_curve(w, alphas, 10) - cold_curve(w, [4.0], 10)).max()
            count, most = count + bool(ahead > SAME), max(most, float(ahead))
    return count, most


def assert_ladders(expected: dict[tuple[float, ...], int], measured: Measured = ignore) -> None:
    """Of 400 worlds, those in which a ladder is farther at equal rounds, and never by more than .005."""
    for alphas, worlds_farther in expected.items():
        count, most = farther(alphas)
        measured(f"worlds of 400 in which {alphas} is farther", count, worlds_farther)
        measured(f"and by how much at most, {alphas}", most, 0.005)
        assert count == worlds_farther and most < 0.005


@pytest.mark.claim("P17")
def test_ladders_may_be_farther(measured: Measured) -> None:
    assert_ladders({(1.0, 4.0): 0, (1.0, 2.0, 4.0): 7, (2.0, 4.0): 1}, measured)


@pytest.mark.claim("P17")
def test_a_ladder_that_is_farther(measured: Measured) -> None:
    """(1, 2, 4) in one world, found by search: after two rounds .00168, where a single chain has .00049."""
    w = world(122, 3, 2)
    single, ladder = cold_curve(w, [4.0], 2)[2], cold_curve(w, [1.0, 2.0, 4.0], 2)[2]
    assert (single, ladder) == pytest.approx((0.00049112, 0.00167965), abs=1e-7)
    measured("TV of a single chain after two rounds, against (1, 2, 4)", float(single), float(ladder))
    assert cold_curve(w, [1.0, 4.0], 2)[2] <= single
    counts = farther((1.0, 2.0, 4.0), [(3, 2, 130)])
    assert counts[0] >= 1 and counts[1] == pytest.approx(0.00118853, abs=1e-7)


def test_bad_ladders_are_value_errors() -> None:
    for alphas in ([4.0, 1.0], [2.0, 2.0]):
        with pytest.raises(ValueError, match="rising"):
            tempering.rungs(world(0, 2, 3).conditionals, alphas, horizon=3)
