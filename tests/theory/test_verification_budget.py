"""Candidates against votes at one budget of judge calls (claim V19): against sums over every candidate and every vote,
against every split, and against the limits."""

import json
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from figures.__main__ import RESULTS
from theory import verification as ver
from theory import verification_budget as bud

Measured = Callable[..., None]
Array = np.ndarray
SAME = 1e-12


def ignore(*_: object) -> None:
    """What mutants measure is of no interest."""


def mixtures(seed: int, most: int) -> tuple[float, tuple[Array, Array], tuple[Array, Array], Array, Array]:
    """p; (weights, q) of right and of wrong candidates, some q certain; and their moments [most]."""
    rng = np.random.default_rng(seed)
    right, wrong = ((rng.dirichlet(np.ones(3)), rng.beta(a, b, 3)) for a, b in ((2, 1), (1, 2)))
    right[1][0], wrong[1][0] = 1.0, 0.0
    powers = [np.array([law @ q**v for v in range(1, most + 1)]) for law, q in (right, wrong)]
    return float(rng.uniform(0.1, 0.9)), right, wrong, *powers


def outcomes(p: float, right: tuple[Array, Array], wrong: tuple[Array, Array], n: int, v: int):
    """(probability, right [n], kept [n]) of all that n candidates, their Q and their v votes can be."""
    one = [
        (share * weight * float(np.prod([q if yes else 1 - q for yes in cast])), good, all(cast))
        for share, good, (law, q_) in ((p, True, right), (1 - p, False, wrong))
        for weight, q in zip(law, q_)
        for cast in product((True, False), repeat=v)
    ]
    joined: dict[tuple[bool, bool], float] = {}
    for chance, good, kept in one:
        joined[good, kept] = joined.get((good, kept), 0.0) + chance
    for case in product(joined, repeat=n):
        good, kept = zip(*case)
        yield float(np.prod([joined[each] for each in case])), good, kept


def assert_splits(splits: Callable, nothing_kept: Callable, measured: Measured = ignore) -> None:
    """Precision of the first kept, coverage, the student's error, and that m questions keep nothing."""
    error = 0.0
    for seed, budget in product(range(6), (1, 2, 3, 5, 6)):
        p, right, wrong, *powers = mixtures(seed, budget)
        for split in splits(budget, p, *powers):
            covered = hit = empty = 0.0
            for chance, good, kept in outcomes(p, right, wrong, split.n, split.votes):
                covered += chance * any(kept)
                hit += chance * (any(kept) and good[kept.index(True)])
                empty += chance * (not any(kept))
            student = hit + (1 - covered) * p
            a = ver.accepted(p, *(power[split.votes - 1] for power in powers))
            error = max(
                error,
                abs(split.coverage - covered),
                abs(split.precision - hit / covered),
                abs(split.error - 1 + student),
                abs(nothing_kept([a, a / 2], split.n) - empty * sum_of_none(a / 2, split.n)),
            )
    measured("|formula - sum over candidates and votes|", error, SAME)
    assert error <= SAME


def sum_of_none(a: float, n: int) -> float:
    """That none of n is kept, as one less the sums of all others."""
    return 1 - sum(np.prod([a if k else 1 - a for k in kept]) for kept in product((True, False), repeat=n) if any(kept))


@pytest.mark.claim("V19")
def test_splits_by_enumeration(measured: Measured) -> None:
    assert_splits(bud.splits, bud.nothing_kept, measured)


def independent(budget: int, p: float, right: Array, wrong: Array) -> list[bud.Split]:
    v = np.arange(1, budget + 1)
    return bud.splits(budget, p, right[0] ** v, wrong[0] ** v)


@pytest.mark.claim("V19")
@pytest.mark.parametrize(("splits", "nothing"), [
    (independent, bud.nothing_kept),  # powers of the means
    (bud.splits, lambda a, n: (1 - np.mean(a)) ** (n * len(a))),  # questions all alike
    (bud.splits, lambda a, n: float(np.prod(1 - np.asarray(a)))),  # one candidate
])  # fmt: skip
def test_split_mutants(splits: Callable, nothing: Callable) -> None:
    with pytest.raises(AssertionError):
        assert_splits(splits, nothing)


def worlds(seed: int, count: int) -> list[tuple[float, bud.Judge, bud.Judge]]:
    """p and beta-distributed judges of right and of wrong candidates, better and worse than chance, alike and not."""
    rng = np.random.default_rng(seed)
    return [(p, (a, x), (b, y)) for p, a, b, x, y in rng.uniform(0.02, 0.98, (count, 5))]


BUDGET = 48


def assert_best(precise: Callable, student: Callable, measured: Measured = ignore) -> None:
    """Of all (n, v) with n v ≤ b, by trying them: the greatest precision with coverage ≥ c, and the least error."""
    error, several = 0.0, set()
    for p, right, wrong in worlds(0, 40):
        powers = [bud.moments(judge, BUDGET) for judge in (right, wrong)]
        every = [(n, v) for v in range(1, BUDGET + 1) for n in range(1, BUDGET // v + 1)]
        t, f = (power[[v - 1 for _, v in every]] for power in powers)
        covered = 1 - (1 - (p * t + (1 - p) * f)) ** [n for n, _ in every]
        sure = p * t / (p * t + (1 - p) * f)
        for least in (0.3, 0.9):
            if (covered >= least).any():
                found = precise(BUDGET, p, *powers, least)
                error = max(error, abs(found.precision - sure[covered >= least].max()), least - found.coverage)
                several.add(found.votes)
        errors = 1 - (covered * sure + (1 - covered) * p)
        if errors.min() < 1 - p:
            found = student(BUDGET, p, *powers)
            error = max(error, abs(found.error - errors.min()))
            several.add(found.votes)
            assert found.n * found.votes <= BUDGET
        else:
            assert np.all(t <= f)
            with pytest.raises(ValueError, match="use no filter"):
                bud.least_error(BUDGET, p, *powers)
    measured("|best - best of all splits|", error, SAME)
    assert error <= SAME and len(several) > 10  # the best number of votes is not always the same


@pytest.mark.claim("V19")
def test_the_best_split(measured: Measured) -> None:
    assert_best(bud.most_precise, bud.least_error, measured)


@pytest.mark.claim("V19")
@pytest.mark.parametrize(("precise", "student"), [
    (lambda b, p, t, f, c: bud.splits(b, p, t, f)[0], bud.least_error),  # one vote, most candidates
    (lambda b, p, t, f, c: [s for s in bud.splits(b, p, t, f) if s.coverage >= c][-1], bud.least_error),  # most votes
    (bud.most_precise, lambda b, p, t, f: max(bud.splits(b, p, t, f), key=lambda s: s.precision)),  # whatever it covers
])  # fmt: skip
def test_best_split_mutants(precise: Callable, student: Callable) -> None:
    with pytest.raises(AssertionError):
        assert_best(precise, student)


def test_the_relay_models_judges_spend_on_candidates() -> None:
    """One vote of the cascade accepts 63 % of right candidates and .8 % of wrong ones, two accept 52 and .09 %: then
    more candidates are worth more to the student than a second vote, as the students of figures/distillation.py say."""
    rates = json.loads((RESULTS / "verification_votes.json").read_text())["cascade"]
    pairs = ((one, two) for (one, *_), (two, *_) in (rates[kind][:2] for kind in ("right", "wrong")))
    right, wrong = ((mean, (second - mean**2) / (mean * (1 - mean))) for mean, second in pairs)
    found = bud.least_error(8, 0.28, bud.moments(right, 8), bud.moments(wrong, 8))
    assert (found.n, found.votes) == (8, 1)
    grid = json.loads((RESULTS / "distillation.json").read_text())["grid"]
    assert grid["4,1"]["accuracy"]["all"][1] > grid["1,5"]["accuracy"]["all"][2]  # 4 votes against 5


# --- More votes ------------------------------------------------------------------------------------------------------


def assert_turn(another: Callable, measured: Measured = ignore) -> None:
    """Precision moves from v to v + 1 votes as the sign says, so it turns at most once; it does so both ways."""
    ways, least = set(), np.inf
    v = np.arange(1, 60)
    for p, right, wrong in worlds(1, 300):
        log_odds = np.diff([np.log(bud.moments(judge, 60)) for judge in (right, wrong)], axis=0)[0]  # of F against T
        change, sign = -np.diff(log_odds), np.sign(another(right, wrong, v))
        clear = np.abs(change) > 1e-10
        assert np.array_equal(np.sign(change)[clear], sign[clear])
        assert np.count_nonzero(np.diff(sign)) <= 1
        least = min(least, np.abs(change[clear]).min())
        ways.add((sign[0], sign[-1]))
        odds = np.array([s.precision for s in bud.splits(8, p, bud.moments(right, 8), bud.moments(wrong, 8))])
        rise = np.diff(np.log(odds) - np.log1p(-odds))
        assert np.allclose(rise, change[:7], atol=1e-8)
    measured("least change of the log odds that was told from 0", -np.log10(least), 10)
    assert len(ways) == 4  # rises, falls, rises and then falls, falls and then rises


@pytest.mark.claim("V19")
def test_precision_turns_at_most_once(measured: Measured) -> None:
    assert_turn(bud.another_vote, measured)
    right, wrong = (0.8, 0.1), (0.3, 0.6)  # wrong candidates divide the judges more: a misconception that some share
    v = np.arange(1, 40)
    odds = bud.moments(right, 40) / bud.moments(wrong, 40)
    turn = int(np.argmax(bud.another_vote(right, wrong, v) <= 0)) + 1
    assert int(np.argmax(odds)) + 1 == turn == 3


@pytest.mark.claim("V19")
@pytest.mark.parametrize("mutant", [
    lambda right, wrong, v: np.full(len(v), right[0] - wrong[0]),  # the better judge of one vote is better at all
    lambda right, wrong, v: bud.another_vote((right[0], wrong[1]), wrong, v),  # votes equally correlated
    lambda right, wrong, v: bud.another_vote(right, wrong, v - 1),  # a vote too early
])  # fmt: skip
def test_turn_mutants(mutant: Callable) -> None:
    with pytest.raises(AssertionError):
        assert_turn(mutant)


def test_moments_are_those_of_the_cascade_and_log_convex() -> None:
    for _, judge, _ in worlds(2, 20):
        powers = bud.moments(judge, 30)
        assert np.allclose(powers, [ver.beta_moment(*judge, v) for v in range(1, 31)], rtol=1e-12)
        assert np.all(powers[1:-1] ** 2 <= powers[:-2] * powers[2:] * (1 + SAME))
    for seed in range(20):  # not of beta distributions alone
        *_, powers, _ = mixtures(seed, 12)
        assert np.all(powers[1:-1] ** 2 <= powers[:-2] * powers[2:] * (1 + SAME))


def assert_exponent(exponent: Callable, measured: Measured = ignore) -> None:
    """The odds of being wrong, at coverage .9, fall like this power of the budget, from 10^4 to 10^6 calls."""
    for right, wrong in (((0.9, 0.5), (0.3, 0.4)), ((0.8, 0.4), (0.2, 0.2)), ((0.95, 0.6), (0.5, 0.5))):
        errors = []
        for budget in (10**4, 10**6):
            most = budget // 4
            t, f = (bud.moments(judge, most) for judge in (right, wrong))
            kept = 0.3 * t + 0.7 * f
            v = np.arange(1, most + 1)
            n = np.log(0.1) / np.log1p(-kept)  # that coverage .9 needs, whole or not
            at = np.flatnonzero(n * v <= budget)[-1]
            errors.append(f[at] / t[at])
        found = np.log10(errors[0] / errors[1]) / 2
        off = abs(found / exponent(right, wrong) - 1)
        measured(f"|slope / exponent - 1|, exponent {exponent(right, wrong):.3f}", off, 0.02)
        assert off <= 0.02


@pytest.mark.claim("V19")
def test_the_price_of_precision(measured: Measured) -> None:
    assert_exponent(bud.exponent, measured)


@pytest.mark.claim("V19")
@pytest.mark.parametrize("mutant", [
    lambda right, wrong: bud.exponent(right, wrong) * (1 + (1 - right[0]) / bud.excess(right)),  # candidates are free
    lambda right, wrong: 0.9 * bud.exponent(right, wrong),
])  # fmt: skip
def test_price_mutants(mutant: Callable) -> None:
    with pytest.raises(AssertionError):
        assert_exponent(mutant)


# --- Starving --------------------------------------------------------------------------------------------------------


def assert_starves(starving: Callable) -> None:
    """Below, at least `least` questions are kept in the mean, at it and above fewer; by trying all votes."""
    seen = set()
    for p, right, wrong in worlds(3, 40):
        powers = [bud.moments(judge, BUDGET) for judge in (right, wrong)]
        for questions, least in ((10, 5.0), (200, 20.0)):
            found = starving(BUDGET, p, *powers, questions, least)
            a = [p * t + (1 - p) * f for t, f in zip(*powers)]
            kept = [questions * (1 - (1 - each) ** (BUDGET // v)) for v, each in enumerate(a, 1)]
            assert all((number < least) == (found is not None and v >= found) for v, number in enumerate(kept, 1))
            seen.add(found)
    assert None in seen and len(seen) > 8


@pytest.mark.claim("V19")
def test_when_a_filter_starves() -> None:
    assert_starves(bud.starving)


@pytest.mark.claim("V19")
@pytest.mark.parametrize("mutant", [
    lambda b, p, t, f, m, least: bud.starving(b, p, t[0] ** np.arange(1, b + 1), f[0] ** np.arange(1, b + 1), m, least),
    lambda b, p, t, f, m, least: bud.starving(b, p, t, f, 1, least / m / 2),
])  # fmt: skip
def test_starving_mutants(mutant: Callable) -> None:
    """Independent votes starve sooner; half the threshold."""
    with pytest.raises(AssertionError):
        assert_starves(mutant)


def test_questions_that_differ_starve_the_more_often() -> None:
    """Jensen: log(1−a) is concave, so Π (1−a_q) ≤ (1 − ā)^m; and for a question drawn at random it is the other way."""
    a = np.array([0.02, 0.3, 0.7])
    assert bud.nothing_kept(a, 2) < (1 - a.mean()) ** 6
    assert ((1 - a) ** 2).mean() > (1 - a.mean()) ** 2
    assert bud.nothing_kept([0.2, 1.0], 3) == 0


@pytest.mark.parametrize("call, message", [
    (lambda: bud.moments((1.2, 0.1), 3), "mean in"), (lambda: bud.excess((0.5, 1.0)), "correlation in"),
    (lambda: bud.exponent((0.5, 0.0), (0.2, 0.1)), "without correlation"),
    (lambda: bud.exponent((0.5, 0.1), (0.4, 0.5)), "the first must be less"),
    (lambda: bud.splits(3, 0.5, [0.5, 0.4], [0.1, 0.1]), "as many moments"),
    (lambda: bud.most_precise(1, 0.5, [0.5], [0.1], 0.9), "coverage 0.9 is out of reach"),
])  # fmt: skip
def test_bad_input(call: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
