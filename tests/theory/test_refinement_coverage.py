"""Refinement and coverage (claim D20): pass@k and E[1/p] after rounds, by enumeration; bounds on both sides; rounds
against drafts."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from scipy.special import betaln

from theory import refinement as ref
from theory import refinement_coverage as cov

Measured = Callable[..., None]
Array = np.ndarray
SAME = 1e-12


def ignore(*_: object) -> None:
    """What mutants measure is of no interest."""


def anything(seed: int) -> cov.Response:
    """g_M for M = 1 .. 3, rising or not."""
    rng = np.random.default_rng(seed)
    rows = {m: rng.random(m + 1) for m in (1, 2, 3)}
    return lambda m: rows[m]


def falls(p: float, n: int):
    """(probability, right [n]) of n independent answers."""
    for case in product((0, 1), repeat=n):
        yield float(np.prod([p if right else 1 - p for right in case])), case


def one_workspace(p: float, drafts: cov.Schedule, response: cov.Response, k: int) -> float:
    """pass@k as the sum over every draft of every round and every answer."""
    if not drafts:
        return sum(chance * any(case) for chance, case in falls(p, k))
    g = response(drafts[0])
    return sum(c * one_workspace(g[sum(case)], drafts[1:], response, k) for c, case in falls(p, drafts[0]))


def own_drafts(p: float, drafts: cov.Schedule, response: cov.Response, k: int) -> float:
    """The same where every draft has drafts of its own behind it."""
    if not drafts:
        return sum(chance * any(case) for chance, case in falls(p, k))
    before = own_drafts(p, drafts[:-1], response, 1)
    g = response(drafts[-1])
    return one_workspace(sum(c * g[sum(case)] for c, case in falls(before, drafts[-1])), (), response, k)


def assert_rounds(shared: Callable, branching: Callable, measured: Measured = ignore) -> None:
    """Both equal their sums, and answers of one workspace are right together: fewer problems for the same k."""
    error, gaps = 0.0, []
    for seed, drafts, k in product(range(4), ((), (2,), (3, 2), (1, 3, 2)), (1, 2, 3)):
        response = anything(seed)
        p = float(np.random.default_rng(seed + 100).random())
        one, own = float(shared(p, drafts, response, k)), float(branching(p, drafts, response, k))
        error = max(error, abs(one - one_workspace(p, drafts, response, k)))
        error = max(error, abs(own - own_drafts(p, drafts, response, k)))
        if len(drafts) == 1:
            gaps.append((k, own - one))
    measured("|formula - sum over drafts and answers|", error, SAME)
    assert error <= SAME and all(abs(gap) <= SAME if k == 1 else gap > 0 for k, gap in gaps)


@pytest.mark.claim("D20")
def test_rounds_by_enumeration(measured: Measured) -> None:
    assert_rounds(cov.shared, cov.branching, measured)


@pytest.mark.claim("D20")
@pytest.mark.parametrize(("shared", "branching"), [
    (cov.branching, cov.branching),  # as if answers of one workspace were independent
    (cov.shared, cov.shared),
    (lambda p, drafts, response, k: cov.shared(p, drafts[::-1], response, k), cov.branching),  # last round first
])  # fmt: skip
def test_round_mutants(shared: Callable, branching: Callable) -> None:
    with pytest.raises(AssertionError):
        assert_rounds(shared, branching)


# --- What no draft holds ---------------------------------------------------------------------------------------------


def assert_capped(lift: float, m_of: Callable[[int], int], measured: Measured = ignore) -> None:
    """g(0) = `lift`: pass@k ≤ pass@kM of the drafts, of one workspace ≤ pass@M, and E[1/f] ≥ E[1/p]/M; all are nearly
    attained."""
    rng, tights = np.random.default_rng(5), []
    for m in (1, 2, 4, 8):
        tight = np.zeros(3)
        tights.append(tight)
        oracle = np.append(lift, np.ones(m))
        for g in (oracle, *(np.append(lift, rng.random(m)) for _ in range(20))):
            p, weights = rng.random(40) ** 3, rng.dirichlet(np.ones(40))
            for k in (1, 3, 20):
                own, one = (weights @ how(p, (m,), lambda _, g=g: g, k) for how in (cov.branching, cov.shared))
                caps = weights @ cov.pass_at(k * m_of(m), p), weights @ cov.pass_at(m_of(m), p)
                assert own <= caps[0] + SAME and one <= caps[1] + SAME
                tight[:2] = np.maximum(tight[:2], (own / caps[0], one / caps[1]))
            for few in (p, p * 1e-4):
                least = cov.inverse_mass(weights, few) / m_of(m)
                most = cov.inverse_mass(weights, ref.operator(few, g))
                assert most >= least * (1 - SAME)
                tight[2] = max(tight[2], least / most)
    for name, ratio in zip(("pass@kM", "pass@M", "E[1/p]/M"), np.min(tights, 0)):
        measured(f"{name}: nearest to its bound, for the least near M", ratio, 1)
    assert np.min(tights) > 0.99


@pytest.mark.claim("D20")
def test_what_no_draft_holds_is_not_refined(measured: Measured) -> None:
    assert_capped(0.0, lambda m: m, measured)


@pytest.mark.claim("D20")
@pytest.mark.parametrize(("lift", "m_of"), [(0.1, lambda m: m), (0.0, lambda m: max(1, m // 2))])
def test_cap_mutants(lift: float, m_of: Callable) -> None:
    """A refiner that solves without a right draft is not capped; nor is one capped at half as many drafts."""
    with pytest.raises(AssertionError):
        assert_capped(lift, m_of)


@pytest.mark.claim("D20")
def test_a_refiner_of_its_own_skill_makes_coverage_finite(measured: Measured) -> None:
    """Where some problems are never right, E[1/p] is infinite, and E[1/f] ≤ 1/min g: attained where all are such."""
    g, weights = np.array([0.05, 0.4, 0.9]), np.array([0.999, 0.001])
    p = np.array([0.0, 0.5])
    assert cov.inverse_mass(weights, p) == np.inf
    found = cov.inverse_mass(weights, ref.operator(p, g))
    measured("E[1/f]", found, 1 / g.min())
    assert 0.99 / g.min() < found <= 1 / g.min()


def beta_failures(g: Array, a: float, b: float, k: int) -> tuple[float, float]:
    """E(1−p)^k before and after a round, p ~ Beta(a, b): trapezoids in log p, whose ends vanish."""
    y = np.linspace(-60 / a, -1e-9, 60_001)
    p = np.exp(y)
    density = np.exp(a * y + (b - 1) * np.log1p(-p) - betaln(a, b)) * (y[1] - y[0])
    return tuple(
        float((density * np.exp(k * np.log1p(-np.minimum(q, 1 - 1e-16)))).sum()) for q in (p, ref.operator(p, g))
    )


CROSSES = np.array([0, 0.1, 0.9, 1, 1])


def assert_tail(ratio: Callable, measured: Measured = ignore) -> None:
    """(1 − pass@k after)/(1 − pass@k before) at k = 10^5; above 1 iff M g(1) < 1, also where pass@1 has risen."""
    worst = 0.0
    for g, (a, b) in product(
        (CROSSES, np.array([0, 0.6, 0.7]), np.array([0, 1, 1, 1]), np.array([0, 0.25, 0.5, 0.5, 1])),
        ((0.5, 2.0), (1.0, 1.0), (2.0, 3.0)),
    ):
        before, after = beta_failures(g, a, b, 10**5)
        assert before == pytest.approx(np.exp(betaln(a, b + 10**5) - betaln(a, b)), rel=1e-6)
        worst = max(worst, abs(after / before / ratio(g, a) - 1))
    first, last = beta_failures(CROSSES, 1, 1, 1), beta_failures(CROSSES, 1, 1, 100)
    assert first[1] < first[0] and last[1] > 1.5 * last[0]  # pass@1 rises, pass@100 falls
    measured("|ratio of failures / s^(−a) - 1|", worst, 0.01)
    assert worst <= 0.01


@pytest.mark.claim("D20")
def test_the_tail_of_pass_at_k(measured: Measured) -> None:
    assert_tail(cov.tail_ratio, measured)


@pytest.mark.claim("D20")
@pytest.mark.parametrize("mutant", [
    lambda g, a: g[1] ** -a, lambda g, a: cov.tail_ratio(g, 1.0), lambda g, a: 1 / cov.tail_ratio(g, a),
])  # fmt: skip
def test_tail_mutants(mutant: Callable) -> None:
    with pytest.raises(AssertionError):
        assert_tail(mutant)


# --- Rounds or drafts ------------------------------------------------------------------------------------------------


def curve(seed: int) -> Callable[[Array], Array]:
    """A concave, rising h of [0, 1] into itself, of kinks and a root; h(0) is 0 or not."""
    rng = np.random.default_rng(seed)
    kinks, low, high = rng.uniform(0.05, 1, 3), rng.choice([0, 0.2]) * rng.random(), rng.uniform(0.7, 1)
    weights = rng.dirichlet(np.ones(4))

    def h(x: Array) -> Array:
        rising = [np.minimum(1, np.asarray(x) / kink) for kink in kinks]
        return low + (high - low) * sum(w * each for w, each in zip(weights, (*rising, np.sqrt(x))))

    return h


def upside_down(h: Callable) -> Callable:
    """Concave to convex."""
    return lambda x: 1 - h(1 - np.asarray(x, dtype=np.float64))


def assert_ordered(sign: int, bend: Callable, ks: tuple[int, ...], measured: Measured = ignore) -> None:
    """sign = 1: more drafts in any round never hurt, up to h(h(p)), and one workspace is worth less than branches;
    sign = −1: all turned round."""
    p, near = np.linspace(0, 1, 21), 0.0
    for seed, k in product(range(8), ks):
        h = bend(curve(seed))
        response = cov.of_share(h)
        for place in (lambda m: (m, 2), lambda m: (3, m)):
            values = [cov.shared(p, place(m), response, k) for m in (1, 2, 3, 5, 9, 40)]
            assert (sign * np.diff(values, axis=0)).min() >= -SAME
        limit, many = cov.pass_at(k, h(h(p))), cov.shared(p, (600, 600), response, k)
        assert (sign * (limit - many)).min() >= -SAME
        near = max(near, np.abs(limit - many).max())
        assert (sign * (cov.branching(p, (3, 2), response, k) - cov.shared(p, (3, 2), response, k))).min() >= -SAME
    measured("distance from the limit at M = 600", near, 0.05)
    assert near <= 0.05


@pytest.mark.claim("D20")
def test_drafts_help_where_the_response_is_concave(measured: Measured) -> None:
    """And for the share itself, which is concave and convex, neither drafts nor rounds matter."""
    assert_ordered(1, lambda h: h, (1, 3), measured)
    p = np.linspace(0, 1, 21)
    for drafts in ((1,), (5,), (3, 2), (2, 4, 3)):
        assert np.abs(cov.shared(p, drafts, cov.of_share(lambda x: x)) - p).max() <= SAME


@pytest.mark.claim("D20")
def test_drafts_hurt_where_it_is_convex_and_else_both(measured: Measured) -> None:
    """For a majority, neither convex nor concave, they hurt below one half and help above it."""
    assert_ordered(-1, upside_down, (1,), measured)
    votes = [cov.shared([0.3, 0.7], (m,), ref.plurality) for m in (1, 3, 5, 9)]
    assert np.all(np.diff(votes, axis=0)[:, 0] < 0) and np.all(np.diff(votes, axis=0)[:, 1] > 0)


@pytest.mark.claim("D20")
@pytest.mark.parametrize(("sign", "bend", "ks"), [
    (1, upside_down, (1,)), (-1, lambda h: h, (1,)),
    (1, lambda h: lambda x: np.square(x) * (3 - 2 * np.asarray(x)), (1,)),  # like a majority
    (-1, upside_down, (3,)),  # pass@k of convex responses has neither order
])  # fmt: skip
def test_order_mutants(sign: int, bend: Callable, ks: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        assert_ordered(sign, bend, ks)


DRAFT, DISTILL = 20, 10


def assert_rounds_win(wins: Callable, measured: Measured = ignore) -> None:
    """Two rounds of M drafts beat one round of any number of them iff `wins`; concave responses, up to 3000 drafts.
    Both happen; also that they only beat as many as their tokens buy, or would if every draft had its own parents."""
    seen = {True: 0, False: 0, "branches alone": 0, "tokens alone": 0}
    for seed, m, p in product(range(40), (2, 4, 8), (0.05, 0.2, 0.5)):
        h = curve(seed)
        response = cov.of_share(h)
        two, best = float(cov.shared(p, (m, m), response)), float(cov.shared(p, (3000,), response))
        if abs(two - h(np.array(p))) < 2e-3:
            continue  # 3000 drafts are not all
        beats = two > best
        assert beats == wins(p, m, response, h)
        _, price = ref.budgets((m, m), [DRAFT] * 3, [DISTILL] * 2)
        equal = max(n for n in range(1, 3 * m) if ref.budgets((n,), [DRAFT] * 2, [DISTILL])[1] <= price)
        assert not beats or two > float(cov.shared(p, (equal,), response))
        seen[beats] += 1
        seen["tokens alone"] += two > float(cov.shared(p, (equal,), response)) and not beats
        seen["branches alone"] += not beats and float(cov.branching(p, (m, m), response)) > best
    measured(f"worlds in which two rounds win, of {seen[True] + seen[False]}", seen[True], seen[True] + seen[False])
    assert min(seen.values()) > 0


@pytest.mark.claim("D20")
def test_when_a_round_beats_any_number_of_drafts(measured: Measured) -> None:
    assert_rounds_win(lambda p, m, response, h: float(cov.shared(p, (m, m), response)) > h(np.array(p)), measured)


@pytest.mark.claim("D20")
@pytest.mark.parametrize("mutant", [
    lambda p, m, response, h: float(cov.branching(p, (m, m), response)) > h(np.array(p)),  # independent drafts
    lambda p, m, response, h: h(np.array(p)) > p,  # whenever a round helps
])  # fmt: skip
def test_round_condition_mutants(mutant: Callable) -> None:
    with pytest.raises(AssertionError):
        assert_rounds_win(mutant)


def assert_best(best: Callable) -> None:
    """Of all schedules of at most so many tokens, by the sum over drafts; more rounds where problems are hard."""
    response = cov.of_share(lambda x: 0.1 + 0.8 * np.minimum(1, 2 * x))
    weights, p = np.array([0.3, 0.7]), np.array([0.05, 0.4])
    some = list(cov.schedules(160, DRAFT, DISTILL, 3))
    assert len({*some}) == len(some) and (4,) in some and (2, 2) in some and (7,) not in some and (6,) in some
    values = {s: sum(w * one_workspace(each, s, response, 1) for w, each in zip(weights, p)) for s in some}
    found, value = best(weights, p, response, some)
    assert abs(value - max(values.values())) <= SAME and abs(values[found] - value) <= SAME
    rounds = [len(best([1.0], [each], response, list(cov.schedules(300, DRAFT, DISTILL)))[0]) for each in (0.05, 0.4)]
    assert rounds[0] > rounds[1]


@pytest.mark.claim("D20")
def test_the_best_schedule_of_a_budget() -> None:
    assert_best(cov.best_schedule)


@pytest.mark.claim("D20")
def test_best_schedule_mutants() -> None:
    def by_mean(weights: Array, p: Array, *rest) -> tuple:  # as if all problems were like their mean
        return cov.best_schedule([1.0], [np.asarray(weights) @ np.asarray(p)], *rest)

    def most_drafts(weights: Array, p: Array, response: cov.Response, some: list) -> tuple:
        one = [max((s for s in some if len(s) == 1), default=())]
        return cov.best_schedule(weights, p, response, one)

    for mutant in (by_mean, most_drafts):
        with pytest.raises(AssertionError):
            assert_best(mutant)


@pytest.mark.parametrize("call, message", [
    (lambda: cov.pass_at(0, 0.5), "k is 0"), (lambda: cov.tail_ratio([0.1, 0.5], 1), "g begins with 0.1"),
    (lambda: cov.tail_ratio([0, 0, 1], 1), r"g\(0\) = 0 < g\(1\)"),
    (lambda: cov.tail_ratio([0, 0.5, 0], 1), r"ends with 0.0"),
])  # fmt: skip
def test_bad_input(call: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
