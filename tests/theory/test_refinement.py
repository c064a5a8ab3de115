"""The refinement operator (claims D1, D7, D8, D10, D11), against sums over all drafts and against simulated orbits."""

from collections.abc import Callable
from itertools import pairwise, product

import numpy as np
import pytest

from tests.assertions import assert_mean
from theory import refinement as ref

Measured = Callable[..., None]
Array = np.ndarray
SAME = 1e-12


def curves(seed: int, count: int) -> list[tuple[float, Array]]:
    """(p, g): random curves of 1..7 drafts, rising or not, some with g(0) = 0."""
    rng, out = np.random.default_rng(seed), []
    for _ in range(count):
        g = rng.random(rng.integers(2, 9)) ** rng.choice([1, 3])
        if rng.random() < 0.6:
            g = np.sort(g)
        if rng.random() < 0.3:
            g[0] = 0
        out.append((float(rng.random()), g))
    return out


def by_enumeration(p: float, g: Array) -> float:
    """The same sum over all 2^M outcomes of M drafts."""
    drafts = product((0, 1), repeat=len(g) - 1)
    return sum(p ** sum(d) * (1 - p) ** (len(d) - sum(d)) * g[sum(d)] for d in drafts)


def assert_operator(operator: Callable, slope: Callable, measured: Measured | None = None) -> None:
    """The sum is that over all drafts, and the slope the derivative, by central differences of exact polynomials."""
    error, bend = 0.0, 0.0
    for p, g in curves(0, 60):
        error = max(error, abs(float(operator(p, g)) - by_enumeration(p, g)))
        h = 1e-5
        numeric = (by_enumeration(p + h, g) - by_enumeration(p - h, g)) / (2 * h)
        bend = max(bend, abs(float(slope(p, g)) - numeric))
        error = max(error, abs(float(slope(0.0, g)) - ref.growth(g)))
    if measured:
        measured("error of the sum", error, SAME)
        measured("slope against differences", bend, 1e-6)
    assert error < SAME and bend < 1e-6


@pytest.mark.claim("D11")
def test_operator_and_slope(measured: Measured) -> None:
    assert_operator(ref.operator, ref.slope, measured)


@pytest.mark.claim("D11")
def test_operator_mutants() -> None:
    for operator, slope in (
        (lambda p, g: np.interp(p, np.linspace(0, 1, len(g)), g), ref.slope),  # g itself, between its points
        (lambda p, g: ref.operator(1 - p, g), ref.slope),  # counts the wrong drafts
        (ref.operator, lambda p, g: ref.slope(p, g) / (len(g) - 1)),  # without the factor M
    ):
        with pytest.raises(AssertionError):
            assert_operator(operator, slope)


def assert_fixed_points(find: Callable, measured: Measured | None = None) -> None:
    """Each is one; the sign of f(p) - p between them is constant and the same as on a fine grid, so none is missing;
    and there are no more than the changes of sign allow."""
    worst, found = 0.0, 0
    cases = [g for _, g in curves(1, 60)] + [ref.plurality(m) for m in (1, 3, 4, 9, 16) if m > 1]
    for g in cases:
        roots = [p for p, _ in find(g)]
        found += len(roots)
        worst = max([worst, *(abs(float(ref.operator(p, g)) - p) for p in roots)])
        grid = np.linspace(0, 1, 4001)
        gap = ref.operator(grid, g) - grid
        for low, high in pairwise([-1.0, *roots, 2.0]):
            inside = gap[(grid > low + 1e-6) & (grid < high - 1e-6)]
            assert np.all(inside > 0) or np.all(inside < 0)
        coefficients = g - np.linspace(0, 1, len(g))
        assert len([p for p in roots if 0 < p < 1]) <= ref.sign_changes(coefficients)
        assert len(roots) >= 1  # f maps [0, 1] to itself
    if measured:
        measured(f"largest |f(p) - p| of {found} fixed points", worst, 1e-10)
    assert worst < 1e-10


@pytest.mark.claim("D11")
def test_fixed_points(measured: Measured) -> None:
    assert_fixed_points(ref.fixed_points, measured)


@pytest.mark.claim("D11")
def test_fixed_point_mutants() -> None:
    def by_iteration(g: Array) -> list[tuple[float, float]]:  # finds attracting ones alone
        return [(float(ref.orbit(0.5, g, 300)[-1]), 0.0)]

    def of_the_curve(g: Array) -> list[tuple[float, float]]:  # where g(j) crosses j/M
        gap, m = g - np.linspace(0, 1, len(g)), len(g) - 1
        return [(j / m, 0.0) for j in range(m + 1) if gap[j] * gap[max(j - 1, 0)] <= 0]

    for mutant in (by_iteration, of_the_curve):
        with pytest.raises(AssertionError):
            assert_fixed_points(mutant)


def test_fixed_points_where_the_curve_touches_the_line() -> None:
    """f(p) - p = (p - 1/2)^2 (1 - p); and where all p are fixed there is nothing to list."""
    (half, slope), (one, _) = ref.fixed_points([1 / 4, 1 / 6, 3 / 4, 1])
    assert abs(half - 0.5) < 1e-5 and abs(slope - 1) < 1e-4 and one == 1
    with pytest.raises(ValueError, match="leaves every p as it is"):
        ref.fixed_points(ref.picking(4))


def grows(g: Array) -> bool:
    """Does a small p grow?"""
    return bool(ref.orbit(1e-3, g, 10)[-1] > 1e-3)


def assert_threshold(growth: Callable[[Array], float], measured: Measured | None = None) -> None:
    """With g(0) = 0 a small p grows iff g(1) > 1/M, on both sides of the threshold."""
    for m in (2, 3, 4, 8, 16):
        for factor in (0.8, 0.9, 0.98, 1.02, 1.1, 1.25):
            g = np.minimum(factor * np.arange(m + 1) / m, 1.0)
            up = grows(g)
            if measured:
                measured(f"M g(1), {'growing' if up else 'dying'}", growth(g), 1)
            assert up == (growth(g) > 1)


@pytest.mark.claim("D11")
def test_threshold(measured: Measured) -> None:
    assert_threshold(ref.growth, measured)


@pytest.mark.claim("D11")
def test_threshold_mutants() -> None:
    for growth in (lambda g: 2 * g[1], lambda g: len(g) * g[1], lambda g: 2 * g[-1]):
        with pytest.raises(AssertionError):
            assert_threshold(growth)


@pytest.mark.claim("D11")
def test_plurality_is_a_coin_at_one_half() -> None:
    """p = 1/2 is fixed and unstable, 0 and 1 attract: questions with p < 1/2 get worse."""
    for m in (3, 5, 9, 16):
        (low, a), (half, b), (high, c) = ref.fixed_points(ref.plurality(m))
        assert (low, high) == (0, 1) and abs(half - 0.5) < 1e-9 and a < 1 < b and c < 1


def simulate(p: float, g: Array, rounds: int, n: int, seed: int, branches: bool = True) -> Array:
    """n questions: M independent drafts each round, each of which is right with the probability that the j right ones
    before it give; `branches`: every draft has parents of its own, else they share them."""
    rng, m = np.random.default_rng(seed), len(g) - 1
    chance = np.full(n, p)
    for _ in range(rounds):
        right = rng.random((n, m)) < chance[:, None]
        j = right.sum(1)
        chance = np.asarray(g)[rng.permutation(j) if branches else j]  # parents of other questions: independent
    return (rng.random(n) < chance).astype(float)


def assert_orbit(final: Callable, g: Array, measured: Measured | None = None) -> None:
    n = 100_000
    statistic, bound = assert_mean(simulate(0.3, g, 1, n, 3), final(0.3, g), 0, 1, detect=0.02, seed=3)
    if measured:
        measured("|mean - f(p)|", statistic, bound)


@pytest.mark.claim("D11")
def test_simulated_rounds(measured: Measured) -> None:
    for g in ((0.1, 0.5, 0.7, 0.8, 0.9), (0.0, 0.0, 1.0, 1.0), (0.3, 0.8)):
        assert_orbit(lambda p, g: float(ref.operator(p, g)), g, measured)


@pytest.mark.claim("D11")
def test_simulation_mutants() -> None:
    for final in (lambda p, g: float(np.interp(p, np.linspace(0, 1, len(g)), g)), lambda p, g: p * g[-1]):
        with pytest.raises(AssertionError):
            assert_orbit(final, (0.1, 0.5, 0.7, 0.8, 0.9))


# --- D8 ----------------------------------------------------------------------------------------------------------


def assert_sequential(closed_form: Callable, measured: Measured | None = None) -> None:
    """The closed form is the orbit of M = 1; it ends at the plateau; it helps iff it begins below it."""
    rng, error = np.random.default_rng(4), 0.0
    for _ in range(100):
        p, a, b = rng.random(3)
        path = closed_form(p, a, b, 12)
        error = max(error, float(np.abs(path - ref.orbit(p, [a, 1 - b], 12)).max()))
        assert (path[1] > p) == (p < a / (a + b))
        ((plateau, slope),) = ref.fixed_points([a, 1 - b])
        error = max(error, abs(plateau - a / (a + b)), abs(slope - (1 - a - b)))
    if measured:
        measured("closed form against the orbit", error, 1e-11)
    assert error < 1e-11


@pytest.mark.claim("D8")
def test_sequential_refinement(measured: Measured) -> None:
    assert_sequential(ref.sequential, measured)
    assert np.array_equal(ref.sequential(0.3, 0.0, 0.0, 2), [0.3, 0.3, 0.3])


@pytest.mark.claim("D8")
def test_sequential_mutants() -> None:
    for mutant in (
        lambda p, a, b, rounds: ref.sequential(p, b, a, rounds),
        lambda p, a, b, rounds: 1 - (1 - p) * (1 - a) ** np.arange(rounds + 1),  # nothing is ever broken
    ):
        with pytest.raises(AssertionError):
            assert_sequential(mutant)


# --- D7, D10: mixtures -------------------------------------------------------------------------------------------


def exact_mixture(weights: Array, p: Array, g: Array) -> float:
    return float(sum(w * by_enumeration(each, row) for w, each, row in zip(weights, p, g)))


def assert_class_mix(predict: Callable) -> None:
    rng = np.random.default_rng(5)
    for _ in range(40):
        classes, m = rng.integers(2, 5), rng.integers(1, 5)
        weights, p = rng.dirichlet(np.ones(classes)), rng.random(classes)
        g = np.sort(rng.random((classes, m + 1)))
        assert abs(predict(weights, p, g) - exact_mixture(weights, p, g)) < SAME


@pytest.mark.claim("D7")
def test_class_mix(measured: Measured) -> None:
    assert_class_mix(ref.class_mix)
    # The prototype's numbers: the pooled prediction is higher, since a pooled question is never hopeless.
    weights, p = np.array([0.59, 0.41]), np.array([0.63, 0.25])
    g = np.array([[0.82, 0.84, 0.93, 0.92, 0.93], [0.29, 0.68, 0.83, 0.84, 0.96]])
    mix, pooled = ref.class_mix(weights, p, g), ref.pooled(weights, p, g)
    measured("pooled - class mix, prototype", pooled - mix, 0)
    assert abs(pooled - mix) > 0.01


@pytest.mark.claim("D7")
def test_pooled_is_wrong() -> None:
    with pytest.raises(AssertionError):
        assert_class_mix(ref.pooled)


def test_jensen_has_a_sign() -> None:
    """For one curve for all classes the mean of f(p_c) is below f of the mean if f is concave."""
    concave = np.sqrt(np.linspace(0, 1, 5))
    weights, p, g = [0.5, 0.5], [0.2, 0.8], [concave, concave]
    assert ref.class_mix(weights, p, g) < float(ref.operator(0.5, concave))


def assert_correlated(law: Callable, measured: Measured | None = None) -> None:
    """Mean Mp, pair correlation ρ, and the two extremes, for the number of right drafts."""
    worst = 0.0
    for m, p, rho in product((2, 4, 8), (0.2, 0.5, 0.9), (0.0, 1e-6, 0.2, 0.6, 0.99, 1.0)):
        j, probs = np.arange(m + 1), law(m, p, rho)
        variance = probs @ j**2 - (m * p) ** 2
        worst = max(worst, abs(probs.sum() - 1), abs(probs @ j - m * p))
        worst = max(worst, abs(variance - m * p * (1 - p) * (1 + (m - 1) * rho)))
    if measured:
        measured("error of the moments", worst, 1e-9)
    assert worst < 1e-9


@pytest.mark.claim("D10")
def test_correlated_drafts(measured: Measured) -> None:
    assert_correlated(ref.right_drafts, measured)
    assert abs(ref.correlated(0.4, [0.1, 0.6, 0.9], 1.0) - (0.4 * 0.9 + 0.6 * 0.1)) < SAME


@pytest.mark.claim("D10")
def test_correlated_mutants() -> None:
    for mutant in (
        lambda m, p, rho: ref.right_drafts(m, p, 0.0),
        lambda m, p, rho: ref.right_drafts(m, p, rho**2),
        lambda m, p, rho: (1 - rho) * ref.right_drafts(m, p, 0.0) + rho * ref.right_drafts(m, 1 - p, 1.0),
    ):
        with pytest.raises(AssertionError):
            assert_correlated(mutant)


def assert_correlation_estimate(estimate: Callable, measured: Measured | None = None) -> None:
    rng = np.random.default_rng(6)
    for rho in (0.1, 0.5, 0.8):
        total = 1 / rho - 1
        p = rng.beta(0.4 * total, 0.6 * total, 20_000)
        found = estimate(rng.random((20_000, 5)) < p[:, None])
        if measured:
            measured(f"estimate at ρ = {rho}, its error", abs(found - rho), 0.02)
        assert abs(found - rho) < 0.02  # six standard errors at this size


@pytest.mark.claim("D10")
def test_correlation_is_estimated(measured: Measured) -> None:
    assert_correlation_estimate(ref.intraclass_correlation, measured)


@pytest.mark.claim("D10")
def test_correlation_mutants() -> None:
    for mutant in (
        lambda right: ref.intraclass_correlation(right) ** 2,
        lambda right: float(right.mean(1).var() / (right.mean() * (1 - right.mean()))),  # not freed of binomial noise
    ):
        with pytest.raises(AssertionError):
            assert_correlation_estimate(mutant)


# --- D1 ----------------------------------------------------------------------------------------------------------


@pytest.mark.claim("D1")
def test_budgets_of_the_prototype(measured: Measured) -> None:
    """Its table: drafts of 32 tokens, then 76 a round for distillation and refinement together."""
    for drafts, distill, refine, expected in (((4,), 34, 42, (108, 204)), ((4, 4), 34, 42, (184, 204 + 76 + 3 * 42))):
        found = ref.budgets(drafts, [32] + [refine] * len(drafts), [distill] * len(drafts))
        measured("B_seq", found[0], expected[0])
        assert found == expected
    assert ref.budgets((1, 1), [5, 6, 7], [0, 0]) == (18, 18)  # sequential refinement
    assert ref.budgets((3, 2), [5, 7, 11], [13, 17]) == (53, 53 + 2 * 5 + 7)  # every number once


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ref.operator(0.5, [0.5]), "M >= 1"),
        (lambda: ref.operator(0.5, [0.5, 1.2]), r"in \[0, 1\]"),
        (lambda: ref.right_drafts(3, 0.5, 1.5), "correlation is 1.5"),
        (lambda: ref.intraclass_correlation(np.ones((3, 1))), "at least 2 questions"),
        (lambda: ref.intraclass_correlation(np.ones((3, 4))), "all drafts are alike"),
        (lambda: ref.budgets((4,), [1], [1]), "one draft length more"),
    ],
)
def test_bad_input(call: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
