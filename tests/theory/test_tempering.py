"""Parallel tempering (claim P17): the joint law of the rungs, against a sum over what each round may do."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from math import prod

import numpy as np
import pytest
import torch

from tests.theory.test_markov_chain import LIMIT, SAME, Measured, World, ignore, world, worlds
from theory import markov_chain as mc
from theory import tempering
from theory.markov_chain import Chain
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


# --- Where it brings nothing -----------------------------------------------------------------------------------------


def three_records(a: float, b: float) -> World:
    """The texts 0, 10 and 11 of probability a, (1 - a) b and (1 - a)(1 - b)."""
    logp = np.log([a, (1 - a) * b, (1 - a) * (1 - b)])
    return World([(0,), (1, 0), (1, 1)], logp, {(): np.log([a, 1 - a]), (1,): np.log([b, 1 - b])}, 2, (0,))


def first_round(a: Fraction, b: Fraction, alphas: Sequence[int]) -> Fraction:
    """TV of the last rung to its target after one round on the three records, in fractions: the oracle."""
    p = [a, (1 - a) * b, (1 - a) * (1 - b)]

    def normal(weights: list[Fraction]) -> list[Fraction]:
        return [w / sum(weights) for w in weights]

    def stepped(alpha: int) -> list[Fraction]:
        """The law after the draw of the proposal and one step: cut at the first token or, if there is one, the
        second, whose proposal is the target's own."""
        head, tail = normal([a**alpha, (1 - a) ** alpha]), normal([b**alpha, (1 - b) ** alpha])
        q = [head[0], head[1] * tail[0], head[1] * tail[1]]
        w = [p[x] ** alpha / q[x] for x in range(3)]
        first = list(q)
        for x, y in itertools.permutations(range(3), 2):
            moved = q[x] * q[y] * min(1, w[y] / w[x])
            first[x], first[y] = first[x] - moved, first[y] + moved
        return [(one + two) / 2 for one, two in zip(first, q)]  # the second cut leaves q as it is

    laws = [stepped(alpha) for alpha in alphas]
    joint = {
        state: prod(law[x] for law, x in zip(laws, state)) for state in itertools.product(range(3), repeat=len(laws))
    }
    for k in range(len(alphas) - 1):
        after: dict[tuple[int, ...], Fraction] = defaultdict(Fraction)
        for state, mass in joint.items():
            x, y = state[k], state[k + 1]
            accept = min(Fraction(1), (p[x] / p[y]) ** (alphas[k + 1] - alphas[k]))
            after[(*state[:k], y, x, *state[k + 2 :])] += mass * accept
            after[state] += mass * (1 - accept)
        joint = after
    cold = [sum(mass for state, mass in joint.items() if state[-1] == x) for x in range(3)]
    return sum(abs(c - t) for c, t in zip(cold, normal([x ** alphas[-1] for x in p]))) / 2  # type: ignore[misc]


def assert_counterexample(curve_of: Callable[[World, Sequence[float], int], Law], measured: Measured = ignore) -> None:
    """p = (.05, .38, .57): after one round the cold rung of (1, 2, 4) is 2.46 times as far from p^4 as a single chain,
    that of the default ladder of four rungs 3.03 times; in fractions, so that no rounding decides."""
    a, b = Fraction(1, 20), Fraction(2, 5)
    single, ladder = first_round(a, b, [4]), first_round(a, b, [1, 2, 4])
    assert ladder > single > first_round(a, b, [2, 4]) > first_round(a, b, [1, 4])
    w = three_records(float(a), float(b))
    for alphas in ([4], [1, 4], [2, 4], [1, 2, 4]):
        tv = curve_of(w, [float(alpha) for alpha in alphas], 1)[1]
        assert tv == pytest.approx(float(first_round(a, b, alphas)), abs=1e-15), "fractions"
    four = curve_of(w, [1.0, 4 ** (1 / 3), 4 ** (2 / 3), 4.0], 1)[1]
    measured("TV after one round, p = (.05, .38, .57): single chain", float(single), 3.852e-5)
    measured("TV after one round, p = (.05, .38, .57): (1, 2, 4)", float(ladder), 9.481e-5)
    measured("TV after one round, p = (.05, .38, .57): four rungs", four, 1.1672e-4)
    assert float(ladder / single) == pytest.approx(2.461, abs=1e-3)
    assert four / float(single) == pytest.approx(3.030, abs=1e-3)


@pytest.mark.claim("P17")
def test_a_ladder_can_be_farther(measured: Measured) -> None:
    assert_counterexample(cold_curve, measured)


@pytest.mark.claim("P17")
def test_a_ladder_can_be_farther_mutants() -> None:
    """A round more, and swaps of which the colder pair goes first."""
    with pytest.raises(AssertionError, match="fractions"):
        assert_counterexample(lambda w, alphas, count: cold_curve(w, alphas, count + 1)[1:])

    def upside_down(w: World, alphas: Sequence[float], count: int) -> Law:
        chains = tempering.rungs(w.conditionals, alphas, horizon=w.horizon)
        joint = tempering.step_all(tempering.product([c.initial for c in chains]), [c.kernel for c in chains])
        for rung in reversed(range(len(alphas) - 1)):
            joint = tempering.swap(joint, w.logp, alphas, rung)
        return np.array([0, mc.total_variation(tempering.marginal(joint, -1), w.law(alphas[-1]))])

    with pytest.raises(AssertionError, match="fractions"):
        assert_counterexample(upside_down)


def seeded_worlds() -> Iterator[World]:
    """Seeds 0..199 of each of five shapes, all tokens' distributions uniform on the simplex: 3 to 9 records."""
    for vocab, horizon, stops in ((2, 2, (0,)), (3, 2, (0,)), (2, 3, (0,)), (3, 2, ()), (2, 3, ())):
        yield from (world(seed, vocab, horizon, stops) for seed in range(200))


FARTHER = {  # ladder -> in how many of the thousand worlds, and by how much at most, it is farther in rounds 1 to 12
    (1.0, 4.0): (0, 0.0),
    (2.0, 4.0): (6, 0.00404),
    (0.5, 4.0): (68, 0.00188),
    (1.0, 2.0, 4.0): (21, 0.00119),
    (1.0, 4 ** (1 / 3), 4 ** (2 / 3), 4.0): (24, 0.00126),
}


@pytest.mark.claim("P17")
def test_how_often_a_ladder_is_farther(measured: Measured) -> None:
    singles = [cold_curve(w, [4.0], 12) for w in seeded_worlds()]
    for alphas, (count, most) in FARTHER.items():
        excess = [float((cold_curve(w, alphas, 12) - single)[1:].max()) for w, single in zip(seeded_worlds(), singles)]
        label = ", ".join(f"{alpha:.3g}" for alpha in alphas)
        measured(f"({label}): worlds of 1000 in which the cold rung is farther", sum(e > LIMIT for e in excess), count)
        measured(f"({label}): by how much in TV, at most", max(0.0, *excess), most)
        assert sum(e > LIMIT for e in excess) == count, label
        assert max(0.0, *excess) == pytest.approx(most, abs=1e-5), label


HotOf = Callable[[Chain, World, float], Chain]  # the cold chain, the world, α_1 -> the hot chain


def assert_never_farther(hot_of: HotOf, measured: Measured = ignore) -> None:
    """(b) of the module: a hot rung that is drawn anew, a cold one that cuts at 1, and π/q that rises with p."""
    worst, nearest, seen = -np.inf, 0.0, 0
    family = [
        *(three_records(a, b) for a, b in itertools.product((0.02, 0.4, 0.7, 0.95), (0.05, 0.4, 0.5))),
        *seeded_worlds(),
    ]
    for w, hot in itertools.product(family, (0.1, 1.0, 2.0)):
        cold = mc.chain(w.conditionals, horizon=w.horizon, alpha=4.0, cuts=range(1, 2))
        if not tempering.weight_rises(cold, w.logp):
            continue
        seen += 1
        both = tempering.rounds([hot_of(cold, w, hot), cold], w.logp, [hot, 4.0])
        single = mc.tv_curve(cold.initial, cold.kernel, cold.target, 8)
        ladder = np.array([mc.total_variation(tempering.marginal(next(both), -1), cold.target) for _ in range(9)])
        worst = max(worst, float((ladder - single).max()))
        assert worst < SAME, "farther"
        nearest = max(nearest, float((ladder / single)[1:][single[1:] > 1e-6].max(initial=0)))
    assert seen > 300
    measured("TV of the cold rung - TV of a single chain, greatest", worst, 0)
    measured("TV of the cold rung / TV of a single chain, greatest", nearest, 1)
    assert nearest > 0.8


def redrawn(cold: Chain, w: World, hot: float) -> Chain:
    return tempering.redrawn(cold.records, w.law(hot))


@pytest.mark.claim("P17")
def test_never_farther_from_fresh_draws(measured: Measured) -> None:
    assert_never_farther(redrawn, measured)
    for w in worlds():  # α = 1 with the cut at 1 is such a rung
        base = mc.chain(w.conditionals, horizon=w.horizon, alpha=1.0, cuts=range(1, 2))
        fresh = tempering.redrawn(base.records, w.law(1.0))
        assert np.abs(base.kernel - fresh.kernel).max() < SAME and np.abs(base.initial - fresh.initial).max() < SAME


@pytest.mark.claim("P17")
def test_never_farther_mutants() -> None:
    """A hot rung that stands still, and one that starts at its proposal of temperature 1/α."""

    def still(cold: Chain, w: World, hot: float) -> Chain:
        return Chain(cold.records, cold.initial, np.eye(len(cold.target)), w.law(hot))

    def own(cold: Chain, w: World, hot: float) -> Chain:
        return mc.chain(w.conditionals, horizon=w.horizon, alpha=hot, cuts=range(1, 2))

    for wrong in (still, own):
        with pytest.raises(AssertionError, match="farther"):
            assert_never_farther(wrong)


@pytest.mark.claim("P17")
def test_the_first_round_from_the_base_is_never_farther(measured: Measured) -> None:
    """(a) of the module, for every cut; not so from α_1 = 1/2, whose rung does not start at its target."""
    worst = {1.0: -np.inf, 0.5: -np.inf}
    for w, hot in itertools.product([two_modes(), *worlds(), *seeded_worlds()], worst):
        single, ladder = cold_curve(w, [4.0], 1), cold_curve(w, [hot, 4.0], 1)
        worst[hot] = max(worst[hot], float(ladder[1] - single[1]))
    measured("first round of (1, 4): TV of the cold rung - TV of a single chain, greatest", worst[1.0], 0)
    assert worst[1.0] < SAME and worst[0.5] > 1e-4


# --- Ladders at equal tokens -----------------------------------------------------------------------------------------

CurveOf = Callable[[World, Sequence[float], int], Law]
EQUAL = {
    rungs: [4 ** (k / (rungs - 1)) for k in range(rungs - 1)] + [4.0] if rungs > 1 else [4.0] for rungs in (1, 2, 3, 4)
}


def assert_equal_steps(curve_of: CurveOf, measured: Measured = ignore) -> None:
    """24 local steps in all, shared by the K rungs of geometric ladders from 1 to 4, in a thousand worlds: seeds 0..99
    of each of five shapes, tokens' distributions Dirichlet(1) and Dirichlet(.3)."""
    shapes = ((2, 2, (0,)), (3, 2, (0,)), (2, 3, (0,)), (3, 2, ()), (2, 3, ()))
    family = itertools.product(shapes, (1.0, 0.3), range(100))
    tv = np.array([
        [curve_of(world(seed, *shape, concentration), alphas, 24 // rungs)[-1] for rungs, alphas in EQUAL.items()]
        for shape, concentration, seed in family
    ])  # fmt: skip
    single, best = tv[:, 0], tv.argmin(1) + 1
    far, near = single >= 0.02, single < 1e-6
    measured("worlds of 1000 in which a single chain is at TV >= .02 after 24 steps", int(far.sum()), 42)
    measured("of these, (1, 4) is nearest of the four", int((best[far] == 2).sum()), int(far.sum()))
    measured("worlds in which it is below 1e-6", int(near.sum()), 585)
    measured("of these, the single chain is nearest", int((best[near] == 1).sum()), int(near.sum()))
    measured("worlds in which three or four rungs are nearest", int((best > 2).sum()), 0)
    measured("most that (1, 4) gains in TV", float((single - tv[:, 1]).max()), 1)
    measured("most that (1, 4) loses in TV", float((tv[:, 1] - single).max()), 0)
    assert far.sum() == 42 and np.all(best[far] == 2), "far"
    assert 2 * (best[near] == 1).sum() > near.sum() == 585, "near"
    assert (best > 2).sum() <= 10, "more rungs"
    assert (tv[:, 1] - single).max() < 0.002 and (single - tv[:, 1]).max() > 0.2, "stakes"
    between = ~far & ~near
    measured("worlds between, in which (1, 4) is nearest", int((best[between] == 2).sum()), int(between.sum()))


@pytest.mark.claim("P28")
def test_equal_steps(measured: Measured) -> None:
    assert_equal_steps(cold_curve, measured)


@pytest.mark.claim("P28")
def test_equal_steps_mutants() -> None:
    """Rounds in place of steps, and rungs that never swap."""
    with pytest.raises(AssertionError, match="far"):
        assert_equal_steps(lambda w, alphas, count: cold_curve(w, alphas, count * len(alphas)))

    def apart(w: World, alphas: Sequence[float], count: int) -> Law:
        return cold_curve(w, alphas[-1:], count)

    with pytest.raises(AssertionError, match="far"):
        assert_equal_steps(apart)


@pytest.mark.claim("P28")
def test_swaps_of_longer_texts(measured: Measured) -> None:
    """Why small worlds do not decide for long texts: of H independent tokens .7, .3 the converged rungs 1 and 4 swap
    ever more seldom, and 1 and 2 or 2 and 4 lose less."""
    pairs = ((1.0, 4.0), (1.0, 2.0), (2.0, 4.0))
    rates = []
    for horizon in (2, 6, 10):
        rare = np.array([bin(text).count("1") for text in range(2**horizon)])
        logp = rare * np.log(0.3) + (horizon - rare) * np.log(0.7)
        rates.append([tempering.swap_rate(logp, low, high) for low, high in pairs])
        measured(f"swaps of (1, 4), H = {horizon}", rates[-1][0], 1)
        measured(f"swaps of (2, 4), H = {horizon}", rates[-1][2], 1)
    kept = np.array(rates[-1]) / rates[0]
    assert kept[0] < 0.6 * min(kept[1:]) and all(min(rate[1:]) > rate[0] for rate in rates)


def test_bad_ladders_are_value_errors() -> None:
    for alphas in ([4.0, 1.0], [2.0, 2.0]):
        with pytest.raises(ValueError, match="rising"):
            tempering.rungs(world(0, 2, 3).conditionals, alphas, horizon=3)
