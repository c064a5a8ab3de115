"""Best-of-N (claims T6, T7, T8) and adaptive best-of-N (T11): closed forms and bounds against enumeration.

Each claim is one assertion, a function `assert_...` that takes the implementation as an argument. The tests give it
theory/best_of_n.py; the mutants give it a wrong implementation and show that it fails.
"""

import itertools
from collections.abc import Callable, Iterator
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cache

import numpy as np
import pytest

from theory import best_of_n as bon
from theory.best_of_n import Law

Measured = Callable[..., None]
LawOf = Callable[[Law, Law, int], Law]  # probs [K], rewards [K], N -> law of the output [K]
SAME = 1e-12  # two float64 computations of one number of order 1


def ignore(*_: object) -> None:
    """What mutants measure is of no interest."""


# --- T6: the law -----------------------------------------------------------------------------------------------------


def enumerate_best_of_n(probs: Law, rewards: Law, n: int, *, first: bool) -> Law:
    """The law by summing over all K^N outcomes of N draws; ties go to the first best draw or to a uniform one."""
    draws = np.indices((len(probs),) * n).reshape(n, -1)  # [N, K^N]
    weight, drawn = probs[draws].prod(0), rewards[draws]
    best = drawn == drawn.max(0)
    share = np.where(np.arange(n)[:, None] == drawn.argmax(0), 1.0, 0.0) if first else best / best.sum(0)
    return np.bincount(draws.ravel(), weights=(weight * share).ravel(), minlength=len(probs))


def assert_law_is_enumerated(law_of: LawOf, measured: Measured = ignore) -> None:
    """K <= 4 responses with every pattern of ties (all K^K reward vectors), N <= 5; one response may be impossible."""
    rng, worst = np.random.default_rng(0), 0.0
    for k in range(1, 5):
        for rewards in itertools.product(range(k), repeat=k):
            probs = rng.dirichlet(np.ones(k))
            if k == 4 and rewards[0] % 2:
                probs[0] = 0
                probs /= probs.sum()
            for n in range(1, 6):
                law = law_of(probs, np.array(rewards, dtype=float), n)
                for first in (False, True):
                    exact = enumerate_best_of_n(probs, np.array(rewards), n, first=first)
                    worst = max(worst, float(np.abs(law - exact).max()))
                    assert worst <= SAME
    measured("closed form - enumeration", worst, SAME)


def assert_keeps_tiny_probabilities(law_of: LawOf, measured: Measured = ignore) -> None:
    """Relative error against 500 digits: probabilities down to 1e-200 at the top and the bottom, N up to 1e12."""
    worst = 0.0
    with localcontext(prec=500):
        for n, tiny in itertools.product((1, 2, 50, 400, 10**12), (1e-9, 1e-12, 1e-18, 1e-200)):
            probs = np.array([tiny, 0.25, 0.75 - 2 * tiny, tiny])
            mass = [Decimal(p) for p in probs.tolist()]
            at_or_below = [sum(mass[:i], Decimal(0)) / sum(mass) for i in range(5)]
            exact = [at_or_below[i + 1] ** n - at_or_below[i] ** n for i in range(4)]
            for value, p in zip(law_of(probs, np.arange(4.0), n).tolist(), exact):
                if p > Decimal("1e-300"):  # near the end of float64's range
                    worst = max(worst, abs(float(Decimal(value) / p - 1)))
                    assert worst <= SAME
    measured("relative error, from 1e-200", worst, SAME)


def assert_argmax_mass(law_of: LawOf, measured: Measured = ignore) -> None:
    """π_N(y*_γ) = 1 - (1 - π(y*_γ))^N for the self-reward log π, with ties on top; the left side is a sum over y*_γ."""
    rng, worst = np.random.default_rng(1), 0.0
    for k, ties, n, gamma in itertools.product((2, 7, 40), (1, 2), (1, 3, 17), (0.0, 0.3, 0.9)):
        probs = rng.dirichlet(np.ones(k))
        probs[np.argsort(probs)[-ties:]] = probs.max()
        probs /= probs.sum()
        top = probs >= (1 - gamma) * probs.max()
        assert top.sum() >= ties
        worst = max(worst, abs(law_of(probs, np.log(probs), n)[top].sum() - (1 - (1 - probs[top].sum()) ** n)))
    measured("mass of the arg-max set", worst, SAME)
    assert worst <= SAME


T6 = {"enumeration": assert_law_is_enumerated, "tiny": assert_keeps_tiny_probabilities, "argmax": assert_argmax_mass}


@pytest.mark.claim("T6")
@pytest.mark.parametrize("name", T6)
def test_law(name: str, measured: Measured) -> None:
    T6[name](bon.best_of_n_law, measured)


def one_draw_less(probs: Law, rewards: Law, n: int) -> Law:
    return bon.best_of_n_law(probs, rewards, max(n - 1, 1))


def ties_to_the_first_response(probs: Law, rewards: Law, n: int) -> Law:
    """Breaks ties by response id, as an argmax over the distinct responses instead of over the draws would."""
    ranks = np.lexsort((-np.arange(len(probs)), rewards)).argsort().astype(float)
    return bon.best_of_n_law(probs, ranks, n)


def ties_shared_equally(probs: Law, rewards: Law, n: int) -> Law:
    """Gives tied responses equal shares, instead of shares in proportion to π."""
    rank = bon.level_sets(rewards)
    level = np.bincount(rank, weights=bon.best_of_n_law(probs, rewards, n))
    return level[rank] / np.bincount(rank)[rank]


def worst_of_n(probs: Law, rewards: Law, n: int) -> Law:
    return bon.best_of_n_law(probs, -rewards, n)


def ties_ignored_in_the_mass(probs: Law, rewards: Law, n: int) -> Law:
    """1 - (1 - π(y))^N for each best response: forgets that tied draws compete."""
    law = bon.best_of_n_law(probs, rewards, n)
    return np.where(rewards == rewards.max(), 1 - (1 - probs) ** n, law)


def cancelling(probs: Law, rewards: Law, n: int) -> Law:
    """The formula as printed, F^N - F(-)^N: right, but a probability of 1e-18 is lost by cancellation."""
    f = np.array([[probs[rewards <= r].sum(), probs[rewards < r].sum(), probs[rewards == r].sum()] for r in rewards])
    return (f[:, 0] ** n - f[:, 1] ** n) * np.divide(probs, f[:, 2], out=np.zeros_like(probs), where=f[:, 2] > 0)


T6_MUTANTS: list[tuple[str, LawOf]] = [
    ("enumeration", one_draw_less),
    ("enumeration", ties_to_the_first_response),
    ("enumeration", ties_shared_equally),
    ("enumeration", worst_of_n),
    ("enumeration", ties_ignored_in_the_mass),
    ("argmax", one_draw_less),
    ("argmax", worst_of_n),
    ("argmax", ties_ignored_in_the_mass),
    ("tiny", cancelling),
    ("tiny", one_draw_less),
]


@pytest.mark.claim("T6")
@pytest.mark.parametrize(("name", "mutant"), T6_MUTANTS)
def test_law_mutants(name: str, mutant: LawOf) -> None:
    with pytest.raises(AssertionError):
        T6[name](mutant)


def test_only_the_cancelling_mutant_is_right_where_nothing_cancels() -> None:
    """So that its failure above is about precision: the two implementations of the formula agree elsewhere."""
    assert_law_is_enumerated(cancelling)


def test_rounding_decides_nothing() -> None:
    """Where rounding would break a tie, or miss a boundary, what is equal in exact arithmetic is taken as equal."""
    assert bon.level_sets([2.0, -np.inf, 1.0, 1.0 + 1e-7, -np.inf, 1.0 + 1e-5]).tolist() == [3, 0, 1, 1, 0, 2]
    assert bon.argmax_set([0.1 + 0.2, 0.3, 0.4 - 1e-9]).tolist() == [False, False, True]
    assert 0.1 + 0.2 > 0.3 and bon.argmax_set([0.1 + 0.2, 0.3, 0.2, 0.2]).tolist() == [True, True, False, False]
    even = {k: np.full(k, 1 / k) for k in range(2, 60)}
    assert any(k * bon.check_law(probs)[0] < 1 for k, probs in even.items())  # a boundary that rounding would miss
    for k, probs in even.items():
        assert bon.adaptive_law(probs, 1.0).mean == pytest.approx(k, rel=SAME)
    law = bon.best_of_n_law([0.5, 0.3, 0.2], [0, 1, 2], 3)  # probabilities that were rounded to float32 are normalised
    assert bon.best_of_n_law(np.multiply([0.5, 0.3, 0.2], 1 + 5e-7), [0, 1, 2], 3) == pytest.approx(law, abs=SAME)


def test_an_impossible_response_takes_nothing() -> None:
    """Its reward is log 0 = -inf."""
    assert bon.best_of_n_law([0.0, 0.5, 0.5], [-np.inf, 0.0, 1.0], 2).tolist() == [0, 0.25, 0.75]
    assert bon.adaptive_law([0.0, 0.5, 0.5], 0.5).response.tolist() == [0, 0.5, 0.5]


# --- T7: divergence and coverage -------------------------------------------------------------------------------------


def random_instances(seed: int, count: int) -> Iterator[tuple[Law, Law, int]]:
    """Bases from even to concentrated, rewards from distinct to all tied, N from 2 to 200."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        k = int(rng.integers(1, 40))
        probs = rng.dirichlet(np.full(k, rng.choice([0.05, 1.0, 20.0])))
        rewards = rng.integers(0, rng.choice([1, 3, 1000]), k).astype(float)
        yield probs, rewards, int(np.ceil(2 * 100 ** rng.random()))


BOUNDS: dict[str, tuple[Callable[[Law, Law, Law, int], float], float]] = {  # (law, probs, rewards, N) -> at most this
    "KL - (log N - (N-1)/N)": (lambda law, probs, rewards, n: bon.kl(law, probs) - bon.kl_bound(n), 0),
    "E[π_N/π] / (N²/(2N-1))": (
        lambda law, probs, rewards, n: bon.second_moment_coverage(law, probs) / bon.coverage_bound(n),
        1,
    ),
    "max π_N/π / N": (lambda law, probs, rewards, n: float(np.max(law[probs > 0] / probs[probs > 0])) / n, 1),
    "(log N - (N-1)/N - KL) / (N(N-1) Σm²)": (
        lambda law, probs, rewards, n: (bon.kl_bound(n) - bon.kl(law, probs)) / bon.kl_gap_bound(probs, rewards, n),
        1,
    ),
}


def assert_bound(name: str, law_of: LawOf, measured: Measured = ignore) -> None:
    """On random laws, and on many even atoms, where the bounds are nearly reached."""
    quantity, bound = BOUNDS[name]
    even = [(np.full(k, 1 / k), np.arange(k, dtype=float), n) for k in (2, 500, 20_000) for n in (2, 5, 30)]
    worst = max(
        quantity(law_of(probs, rewards, n), probs, rewards, n)
        for probs, rewards, n in [*random_instances(2, 500), *even]
    )
    measured(name, worst, bound)
    assert worst <= bound + SAME


def assert_equality_as_atoms_shrink(law_of: LawOf, measured: Measured = ignore) -> None:
    """On K even atoms without ties the gaps of KL (N >= 3) and of the coverage vanish like c/K^2.

    With f(u) = N u^(N-1), the density of the quantile of the best draw, the second-order terms of the Riemann sums give
    c = ∫ f'^2/(24 f) = N(N-1)^2/(24(N-2)) and c = ∫ f'^2/12 = N^2(N-1)^2/(12(2N-3)).
    """
    for n in (3, 4, 8):
        constants = np.array([n * (n - 1) ** 2 / (24 * (n - 2)), n**2 * (n - 1) ** 2 / (12 * (2 * n - 3))])
        gaps = []
        for k in (100, 400, 1600):
            probs = np.full(k, 1 / k)
            law = law_of(probs, np.arange(k, dtype=float), n)
            divergence, coverage = bon.kl(law, probs), bon.second_moment_coverage(law, probs)
            gaps.append([bon.kl_bound(n) - divergence, bon.coverage_bound(n) - coverage])
        assert np.all(np.diff(gaps, axis=0) < 0)
        deviation = float(np.abs(np.array(gaps[-1]) * 1600**2 / constants - 1).max())
        measured("K²·gap / its limit - 1, K = 1600", deviation, 1e-3)
        assert deviation <= 1e-3


@pytest.mark.claim("T7")
@pytest.mark.parametrize("name", BOUNDS)
def test_divergence_and_coverage_bounds(name: str, measured: Measured) -> None:
    assert_bound(name, bon.best_of_n_law, measured)


@pytest.mark.claim("T7")
def test_equality_gap_shrinks_with_the_atoms(measured: Measured) -> None:
    assert_equality_as_atoms_shrink(bon.best_of_n_law, measured)


def assert_kl_equals(formula: Callable[[int], float], measured: Measured = ignore) -> None:
    """KL(π_N || π) on two equally likely responses, reward 0 and 1."""
    probs, rewards = np.array([0.5, 0.5]), np.array([0.0, 1.0])
    for n in (2, 10, 100, 10_000):
        error = abs(bon.kl(bon.best_of_n_law(probs, rewards, n), probs) - formula(n))
        measured("KL - closed form, two responses", error, SAME)
        assert error <= SAME


def binary_kl(n: int) -> float:
    """log 2 - H(2^-N), which tends to log 2 = log 1/π(y*) while the bound grows like log N."""
    q = 0.5**n
    return float(np.log(2) + (q * np.log(q) if q else 0.0) + (1 - q) * np.log1p(-q))


@pytest.mark.claim("T7")
def test_divergence_of_two_responses_saturates(measured: Measured) -> None:
    assert_kl_equals(binary_kl, measured)
    assert bon.kl_bound(10_000) > 8 and binary_kl(10_000) == pytest.approx(np.log(2), abs=SAME)


@pytest.mark.claim("T7")
def test_the_popular_equality_is_false() -> None:
    """KL = log N - (N-1)/N, often quoted as an identity, fails on two responses."""
    with pytest.raises(AssertionError):
        assert_kl_equals(bon.kl_bound)


def one_draw_more(probs: Law, rewards: Law, n: int) -> Law:
    return bon.best_of_n_law(probs, rewards, n + 1)


def base(probs: Law, rewards: Law, n: int) -> Law:
    return probs


def greedy(probs: Law, rewards: Law, n: int) -> Law:
    return (np.arange(len(probs)) == np.argmax(rewards)).astype(float)


T7_MUTANTS: list[tuple[str, LawOf]] = [
    *((name, mutant) for name in [*BOUNDS][:3] for mutant in (one_draw_more, greedy)),
    ([*BOUNDS][3], base),  # too little sharpening leaves a gap that does not shrink
]


@pytest.mark.claim("T7")
@pytest.mark.parametrize(("name", "mutant"), T7_MUTANTS)
def test_bound_mutants(name: str, mutant: LawOf) -> None:
    with pytest.raises(AssertionError):
        assert_bound(name, mutant)


@pytest.mark.claim("T7")
@pytest.mark.parametrize("mutant", [one_draw_less, one_draw_more, base])
def test_equality_mutants(mutant: LawOf) -> None:
    with pytest.raises(AssertionError):
        assert_equality_as_atoms_shrink(mutant)


# --- T8: coverage is what best-of-N needs ----------------------------------------------------------------------------


def prompt_mixtures(seed: int, count: int) -> Iterator[tuple[Law, list[Law], int]]:
    """Weights of up to 20 prompts, their base laws (some tied on top), and N."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        bases = []
        for _ in range(int(rng.integers(1, 21))):
            probs = rng.dirichlet(np.full(int(rng.integers(2, 200)), rng.choice([0.1, 1.0, 10.0])))
            probs[np.argsort(probs)[-int(rng.integers(1, 3)) :]] = probs.max()
            bases.append(probs / probs.sum())
        yield rng.dirichlet(np.ones(len(bases))), bases, int(np.ceil(1000 ** rng.random()))


FailureOf = Callable[[Law, int, float], float]  # probs [K], N, γ -> probability that the output is not in y*_γ


def law_failure(probs: Law, n: int, gamma: float) -> float:
    """From the law itself, so that T8 is about best-of-N and not about (1-p)^N."""
    return float(bon.best_of_n_law(probs, np.log(probs), n)[~bon.argmax_set(probs, gamma)].sum())


def assert_coverage_bound(
    failure_of: FailureOf,
    bound: Callable[[float, int], float],
    coverage: Callable[..., float],
    measured: Measured = ignore,
) -> None:
    """E_x Pr[output not in y*_γ] <= C_cov,γ / (e N) on random mixtures, and where it is tight, at π(y*) = 1/(N+1)."""
    tight = [(np.ones(1), [np.array([2.0, *np.ones(2 * n)]) / (2 * n + 2)], n) for n in (1, 3, 30, 300)]
    worst = 0.0
    for (prompts, bases, n), gamma in itertools.product([*prompt_mixtures(3, 100), *tight], (0.0, 0.2)):
        failure = float(prompts @ [failure_of(probs, n, gamma) for probs in bases])
        worst = max(worst, failure / bound(coverage(prompts, bases, gamma=gamma), n))
    measured("failure · e N / C_cov", worst, 1)
    assert worst <= 1 + SAME


@pytest.mark.claim("T8")
def test_coverage_bounds_the_failure(measured: Measured) -> None:
    assert_coverage_bound(law_failure, bon.failure_bound, bon.c_cov, measured)


@pytest.mark.claim("T8")
@pytest.mark.parametrize(
    ("failure_of", "bound", "coverage"),
    [
        (lambda probs, n, gamma: law_failure(probs, max(n - 1, 1), gamma), bon.failure_bound, bon.c_cov),
        (law_failure, lambda coverage, n: coverage / (np.e * (n + 2)), bon.c_cov),
        (law_failure, lambda coverage, n: coverage * 0.5**n, bon.c_cov),  # exponential in N: false for a mixture
        (law_failure, bon.failure_bound, lambda x, b, gamma: 1 / (x @ [p[bon.argmax_set(p, gamma)].sum() for p in b])),
    ],
    ids=["one draw less", "two draws too many in the bound", "exponential bound", "1/E[π(y*)] for E[1/π(y*)]"],
)
def test_coverage_mutants(failure_of: FailureOf, bound: Callable, coverage: Callable) -> None:
    with pytest.raises(AssertionError):
        assert_coverage_bound(failure_of, bound, coverage)


def test_c_cov_by_hand() -> None:
    bases = [[0.5, 0.25, 0.25], [0.4, 0.4, 0.2], [1.0]]
    assert bon.c_cov([0.5, 0.25, 0.25], bases) == pytest.approx(0.5 / 0.5 + 0.25 / 0.8 + 0.25, abs=SAME)
    assert bon.c_cov([0.5, 0.25, 0.25], bases, gamma=0.5) == pytest.approx(1, abs=SAME)
    assert bon.c_cov([0.5, 0.25, 0.25], bases, p=2) == pytest.approx((2 + 0.25 / 0.64 + 0.25) ** 0.5, abs=SAME)


def assert_sufficient(n_of: Callable[[float, float], float], measured: Measured = ignore) -> None:
    """Proposition C.1: with N draws a best-of-N output misses y*_γ with probability at most ρ."""
    rng, worst = np.random.default_rng(4), 0.0
    for rho, gamma, k in itertools.product((0.5, 0.1, 1e-3, 1e-9), (0.0, 0.3), (2, 20, 3000)):
        probs = rng.dirichlet(np.ones(k))
        mass = float(probs[bon.argmax_set(probs, gamma)].sum())
        worst = max(worst, law_failure(probs, max(int(n_of(mass, rho)), 1), gamma) / rho)
    measured("Pr[miss]/ρ", worst, 1)
    assert worst <= 1 + SAME


@pytest.mark.claim("T8")
def test_proposition_c1(measured: Measured) -> None:
    assert_sufficient(bon.sufficient_n, measured)


@pytest.mark.claim("T8")
@pytest.mark.parametrize("factor", [0.1, 0.9])
def test_fewer_draws_do_not_suffice(factor: float) -> None:
    with pytest.raises(AssertionError):
        assert_sufficient(lambda mass, rho: factor * bon.sufficient_n(mass, rho))


def test_failure_at_the_scale_of_the_hypercube() -> None:
    """π(y*) = 1/C_cov, C_cov = (1 + e^(-2/64))^64: C_cov draws miss with probability 1/e, 3 C_cov with e^-3."""
    coverage = float(np.exp(64 * np.log1p(np.exp(-2 / 64))))
    assert coverage == pytest.approx(6.8e18, rel=0.01)
    assert bon.failure(1 / coverage, coverage) == pytest.approx(np.exp(-1), rel=SAME)
    assert bon.failure(1 / coverage, 3 * coverage) == pytest.approx(np.exp(-3), rel=SAME)
    assert bon.failure([0.0, 0.5, 1.0], 3).tolist() == pytest.approx([1, 0.125, 0])


# --- T11: the adaptive stopping rule ---------------------------------------------------------------------------------

Stop = Callable[[list[Fraction], int, Fraction], bool]  # probabilities of the draws so far, k, μ -> stop?
Output = Callable[[list[Fraction]], int]  # which draw is returned
AdaptiveOf = Callable[[tuple[Fraction, ...], Fraction], tuple[list[float], list[float]]]  # Pr[N_μ = k], Pr[output = y]


def definition(drawn: list[Fraction], k: int, mu: Fraction) -> bool:
    return 1 / max(drawn) <= Fraction(k) / mu


def most_likely(drawn: list[Fraction]) -> int:
    return drawn.index(max(drawn))


@cache
def by_tree(
    probs: tuple[Fraction, ...], mu: Fraction, stop: Stop = definition, output: Output = most_likely
) -> tuple[list[float], list[float]]:
    """Follows every sequence of draws until the rule stops it, in rational arithmetic; nothing is rounded."""
    stopped, returned = [Fraction(0)], [Fraction(0)] * len(probs)
    paths: list[tuple[list[int], Fraction]] = [([], Fraction(1))]
    while paths and len(paths) < 5000 and len(stopped) < 50:  # a mutant may never stop
        stopped.append(Fraction(0))
        survivors = []
        for path, weight in paths:
            for y, p in enumerate(probs):
                drawn = [*path, y]
                values = [probs[i] for i in drawn]
                if stop(values, len(drawn), mu):
                    stopped[-1] += weight * p
                    returned[drawn[output(values)]] += weight * p
                else:
                    survivors.append((drawn, weight * p))
        paths = survivors
    assert stop is not definition or sum(stopped) == 1
    return [float(p) for p in stopped], [float(p) for p in returned]


def by_theory(probs: tuple[Fraction, ...], mu: Fraction) -> tuple[list[float], list[float]]:
    law = bon.adaptive_law([float(p) for p in probs], float(mu))
    return law.stop.tolist(), law.response.tolist()


def assert_adaptive_law(adaptive_of: AdaptiveOf, measured: Measured = ignore) -> None:
    """Laws with and without ties, μ on and off the boundaries of the rule; both marginals."""
    worst = 0.0
    for numerators in ((1,), (1, 1), (2, 1, 1), (1, 1, 1), (4, 2, 1), (2, 2, 1), (6, 3, 1), (3, 3, 2, 2)):
        probs = tuple(Fraction(a, sum(numerators)) for a in numerators)
        for mu in (Fraction(1, 2), Fraction(1), Fraction(7, 5), Fraction(2)):
            for got, exact in zip(adaptive_of(probs, mu), by_tree(probs, mu)):
                size = max(len(got), len(exact))
                difference = np.pad(got, (0, size - len(got))) - np.pad(exact, (0, size - len(exact)))
                worst = max(worst, float(np.abs(difference).max()))
                assert worst <= SAME
    measured("recursion - enumeration", worst, SAME)


@pytest.mark.claim("T11")
def test_adaptive_law(measured: Measured) -> None:
    assert_adaptive_law(by_theory, measured)


@pytest.mark.claim("T11")
@pytest.mark.parametrize(
    ("stop", "output"),
    [
        (lambda drawn, k, mu: 1 / drawn[0] <= Fraction(k) / mu, most_likely),
        (lambda drawn, k, mu: 1 / drawn[-1] <= Fraction(k) / mu, most_likely),
        (lambda drawn, k, mu: 1 / max(drawn) <= mu / k, most_likely),
        (lambda drawn, k, mu: 1 / max(drawn) < Fraction(k) / mu, most_likely),
        (lambda drawn, k, mu: k > 1 and 1 / max(drawn) <= Fraction(k - 1) / mu, most_likely),
        (definition, lambda drawn: len(drawn) - 1),
        (definition, lambda drawn: 0),
    ],
    ids=["maximum not updated", "last draw for the maximum", "k/μ inverted", "strict inequality", "one draw late",
         "returns the last draw", "returns the first draw"],
)  # fmt: skip
def test_adaptive_mutants(stop: Stop, output: Output) -> None:
    with pytest.raises(AssertionError):
        assert_adaptive_law(lambda probs, mu: by_tree(probs, mu, stop, output))


AdaptiveLawOf = Callable[[Law, float], bon.AdaptiveLaw]


def assert_survival(adaptive_of: AdaptiveLawOf, measured: Measured = ignore) -> None:
    """k max_{j<=k} π(y_j) grows with k, so N_μ > k iff each of k draws has π < μ/k: Pr[N_μ > k] = π{π(y) < μ/k}^k."""
    rng, worst = np.random.default_rng(5), 0.0
    for k, mu in itertools.product((3, 30, 1000), (0.3, 2.0, 9.0)):
        probs = rng.dirichlet(np.ones(k))
        stop = adaptive_of(probs, mu).stop
        survival = 1 - np.cumsum(stop)
        exact = [probs[probs * i < mu].sum() ** i for i in range(len(stop))]
        worst = max(worst, float(np.abs(survival - exact).max()))
    measured("Pr[N_μ > k] - closed form", worst, SAME)
    assert worst <= SAME


@pytest.mark.claim("T11")
def test_survival_has_a_closed_form(measured: Measured) -> None:
    assert_survival(bon.adaptive_law, measured)


def assert_lemma_i1(adaptive_of: AdaptiveLawOf, measured: Measured = ignore) -> None:
    """N_μ >= μ/P* surely, E[N_μ] <= (μ + 1/m*)/P*, Pr[miss] <= exp(-m* μ): random laws, ties on top, and tight ones.

    The first is reached where all responses tie, the second nearly where one likely response is alone and μ small, the
    third nearly where all other responses are only just less likely.
    """
    rng = np.random.default_rng(6)
    instances = [(np.full(8, 1 / 8), 1.0), (np.append(0.01, np.full(99_000, 1e-5)), 0.05), (np.full(200, 1 / 200), 1.0)]
    instances[-1][0][1:] -= 1e-6
    for _ in range(150):
        probs = rng.dirichlet(np.full(int(rng.integers(1, 30)), rng.choice([0.3, 1.0, 10.0])))
        probs[np.argsort(probs)[-int(rng.integers(1, 4)) :]] = probs.max()
        instances.append((probs / probs.sum(), 6 * rng.random()))
    early = mean = miss = -np.inf
    for probs, mu in instances:
        probs = probs / probs.sum()
        law, best, m = adaptive_of(probs, mu), probs.max(), int(bon.argmax_set(probs).sum())
        possible = np.flatnonzero(law.stop)
        early = max(early, (mu / best) / possible.min())
        mean = max(mean, law.mean / ((mu + 1 / m) / best))
        miss = max(miss, float(law.response[~bon.argmax_set(probs)].sum()) / np.exp(-m * mu))
    for name, value in (("(μ/P*)/N_μ", early), ("E[N_μ] P*/(μ + 1/m*)", mean), ("Pr[miss]/exp(-m*μ)", miss)):
        measured(name, value, 1)
        assert value <= 1 + SAME, name
    assert min(early, mean, miss) > 0.95, "the instances do not come near the bounds"


@pytest.mark.claim("T11")
def test_lemma_i1(measured: Measured) -> None:
    assert_lemma_i1(bon.adaptive_law, measured)


def scaled(factor: float) -> AdaptiveLawOf:
    return lambda probs, mu: bon.adaptive_law(probs, factor * mu)


def last_draw(probs: Law, mu: float) -> bon.AdaptiveLaw:
    """Stops right and returns the last draw: after a stop by patience it is a fresh draw, which misses too often."""
    law = bon.adaptive_law(probs, mu)
    return bon.AdaptiveLaw(law.stop, probs, law.truncated)


def one_draw_early(probs: Law, mu: float) -> bon.AdaptiveLaw:
    law = bon.adaptive_law(probs, mu)
    early = np.append([0.0, law.stop[1:3].sum()], law.stop[3:])  # k = 1 stays, k + 1 becomes k
    return bon.AdaptiveLaw(early, law.response, law.truncated)


@pytest.mark.claim("T11")
@pytest.mark.parametrize(
    "mutant",
    [scaled(0.9), scaled(1.2), last_draw, one_draw_early],
    ids=["0.9 μ", "1.2 μ", "last draw", "one draw early"],
)
def test_lemma_i1_mutants(mutant: AdaptiveLawOf) -> None:
    """Too small a μ stops early, too large a one costs more than the bound."""
    with pytest.raises(AssertionError, match=r"N_μ|miss"):
        assert_lemma_i1(mutant)


@pytest.mark.claim("T11")
@pytest.mark.parametrize("mutant", [scaled(0.99), one_draw_early], ids=["0.99 μ", "one draw early"])
def test_survival_mutants(mutant: AdaptiveLawOf) -> None:
    with pytest.raises(AssertionError):
        assert_survival(mutant)


def test_truncation_is_what_it_says() -> None:
    """A response of probability 1e-9 could hold the rule up for 1e9 draws; what is cut off has less than 1e-15."""
    law = bon.adaptive_law([0.5, 0.5 - 1e-9, 1e-9], 1.0)
    assert 0 <= law.truncated < bon.TRUNCATE and len(law.stop) < 10
    assert law.stop.sum() + law.truncated == pytest.approx(1, abs=1e-15)
    assert law.response.sum() + law.truncated == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize(
    "call",
    [
        lambda: bon.best_of_n_law([0.5, 0.4], [0, 1], 2),
        lambda: bon.best_of_n_law([0.5, 0.5], [0, 1, 2], 2),
        lambda: bon.best_of_n_law([0.5, 0.5], [0, np.nan], 2),
        lambda: bon.best_of_n_law([0.5, 0.5], [0, 1], 0),
        lambda: bon.best_of_n_law([1.5, -0.5], [0, 1], 2),
        lambda: bon.adaptive_law([0.5, 0.5], 0.0),
        lambda: bon.adaptive_law([0.5, 0.5], np.inf),
    ],
)
def test_bad_input_is_a_value_error(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"distribution|rewards|N|mu"):
        call()
