"""χ²-pessimism (claim T29) and the coverage profile (T30): identities and bounds on random and on extreme instances."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from theory import best_of_n as bon
from theory import pessimism as pess
from theory.best_of_n import Law
from theory.sample_complexity import hellinger

Measured = Callable[..., None]
SAME = 1e-9


def ignore(*_: object) -> None:
    """What mutants measure is of no interest."""


def hack(mass: float = 1e-3) -> tuple[Law, Law, Law]:
    """(reference, r̂, r*): a rare worthless response that r̂ takes for the best, and a rare good one it knows."""
    return np.array([mass, 0.05, 0.45, 0.5 - mass]), np.array([1.0, 0.9, 0.5, 0.2]), np.array([0.0, 0.9, 0.5, 0.2])


def instances(seed: int, count: int) -> Iterator[tuple[Law, Law, Law, np.random.Generator]]:
    """(reference, r̂, r*, generator); rewards in [0, 1], some tied, r̂ wrong by a little or a lot, and `hack`."""
    rng = np.random.default_rng(seed)
    for mass in (0.1, 1e-3, 1e-6):
        yield (*hack(mass), rng)
    for _ in range(count):
        k = int(rng.integers(2, 25))
        reference = rng.dirichlet(np.full(k, rng.choice([0.2, 1.0, 10.0])))
        true = np.round(rng.random(k), rng.choice([1, 12]))
        yield reference, np.clip(true + rng.choice([0.0, 0.05, 1.0]) * rng.normal(size=k), 0, 1), true, rng


# --- T29: χ²-pessimism -----------------------------------------------------------------------------------------------

Policy = Callable[[Law, Law, float], Law]  # reference, reward, β -> law


def pessimistic(reference: Law, reward: Law, beta: float) -> Law:
    return pess.pessimistic(reference, reward, beta)[0]


def assert_pessimism_is_optimal(policy: Policy, measured: Measured = ignore) -> None:
    """It is a law, and E r̂ - β χ² exceeds that of any other π by β/2 times E_ref (Δ density)² at least: the objective
    is strongly concave in the density."""
    worst = np.zeros(2)
    for reference, reward, _, rng in instances(0, 60):
        for beta in (1e-3, 0.05, 0.5, 20.0):
            law = policy(reference, reward, beta)
            worst[0] = max(worst[0], abs(law.sum() - 1))
            assert law.min() >= 0
            value = law @ reward - beta * pess.chi_square(law, reference)
            near = law + 0.01 * (rng.dirichlet(np.ones(len(law))) - law)
            for other in (near, reference, rng.dirichlet(np.full(len(law), 0.5)), *np.eye(len(law))[:3]):
                if np.all(reference[other > 0] > 1e-9):
                    density = (other - law)[reference > 0] / reference[reference > 0]
                    lost = value - (other @ reward - beta * pess.chi_square(other, reference))
                    excess = beta / 2 * (reference[reference > 0] @ density**2) - lost
                    worst[1] = max(worst[1], excess / (1 + abs(lost)))
    measured("sum - 1", worst[0], SAME)
    measured("β/2 E(Δ density)² - loss of another π", worst[1], SAME)
    assert worst.max() <= SAME


@pytest.mark.claim("T29")
def test_pessimism_is_optimal(measured: Measured) -> None:
    assert_pessimism_is_optimal(pessimistic, measured)
    law, level = pess.pessimistic([0.5, 0.5], [1.0, 0.0], 0.25)
    assert law.tolist() == [1, 0] and level == pytest.approx(0.5)  # relu((1 - 0.5)/0.25) / 2 = 1
    with pytest.raises(ValueError, match="beta must be > 0"):
        pess.pessimistic([0.5, 0.5], [1.0, 0.0], 0.0)


def kl_policy(reference: Law, reward: Law, beta: float) -> Law:
    """The KL-regularised policy in its place."""
    law = reference * np.exp((reward - reward.max()) / beta)
    return law / law.sum()


def greedy_policy(reference: Law, reward: Law, beta: float) -> Law:
    return np.eye(len(reward))[np.argmax(np.where(reference > 0, reward, -1))]


@pytest.mark.claim("T29")
@pytest.mark.parametrize(
    "wrong", [kl_policy, greedy_policy, lambda reference, reward, beta: pessimistic(reference, reward, 2 * beta)]
)
def test_pessimism_mutants(wrong: Policy) -> None:
    with pytest.raises(AssertionError):
        assert_pessimism_is_optimal(wrong)


def assert_regret_bound(policy: Policy, measured: Measured = ignore) -> None:
    """J(π*) - J(π) <= √(C ε²) + β C/2 + ε²/(2β) for comparators: the true best response, random laws, smooth ones."""
    worst = 0.0
    for reference, reward, true, rng in instances(1, 100):
        error = pess.mean_square_error(reference, reward, true)
        best = np.eye(len(true))[np.argmax(np.where(reference > 1e-9, true, -1))]
        for other in (best, rng.dirichlet(np.ones(len(true))), pessimistic(reference, true, 0.1)):
            if not np.all(reference[other > 0] > 1e-9):
                continue
            coverage = bon.second_moment_coverage(other, reference)
            for beta in (0.01, 0.3, np.sqrt(error / coverage)):
                if beta > 0:
                    regret = (other - policy(reference, reward, beta)) @ true
                    worst = max(worst, regret / pess.pessimism_bound(coverage, error, beta))
    measured("regret / (√(Cε²) + βC/2 + ε²/2β)", worst, 1)
    assert worst <= 1 + SAME


@pytest.mark.claim("T29")
def test_regret_of_pessimism(measured: Measured) -> None:
    assert_regret_bound(pessimistic, measured)


@pytest.mark.claim("T29")
@pytest.mark.parametrize("wrong", [kl_policy, greedy_policy])
def test_regret_mutants(wrong: Policy) -> None:
    with pytest.raises(AssertionError):
        assert_regret_bound(wrong)


NS = 2 ** np.arange(0, 16)


def assert_never_worse(laws: Callable[[Law, Law], list[Law]], corrupt: bool, measured: Measured = ignore) -> None:
    """The true regret never rises along a path of laws of ever more optimisation of r̂."""
    worst = 0.0
    for reference, reward, true, _ in instances(2, 30):
        regret = [(true.max() - law @ true) for law in laws(reference, reward if corrupt else true)]
        worst = max(worst, float(np.diff(regret).max()))
    measured("greatest rise of the regret with N, r̂ = r*", worst, 1e-12)
    assert worst <= 1e-12


def best_of_ns(reference: Law, reward: Law) -> list[Law]:
    return [bon.best_of_n_law(reference, reward, int(n)) for n in NS]


@pytest.mark.claim("T29")
def test_best_of_n_by_the_true_reward_never_hurts(measured: Measured) -> None:
    assert_never_worse(best_of_ns, corrupt=False, measured=measured)


@pytest.mark.claim("T29")
def test_best_of_n_by_a_corrupt_reward_does() -> None:
    with pytest.raises(AssertionError):
        assert_never_worse(best_of_ns, corrupt=True)


def assert_no_hacking(regret: Callable[[Law, Law, Law, int], float], measured: Measured = ignore) -> None:
    """`hack`: after N = 2^20 the regret against the good response is at most 2√(C ε²), the bound at the best β."""
    worst = 0.0
    for mass in (1e-2, 1e-3, 1e-4):
        reference, reward, true = hack(mass)
        limit = 2 * np.sqrt(pess.mean_square_error(reference, reward, true) / reference[1])
        worst = max(worst, regret(reference, reward, true, 2**20) / limit)
    measured("regret / 2√(Cε²)", worst, 1)
    assert worst <= 1


@pytest.mark.claim("T29")
def test_pessimism_does_not_hack(measured: Measured) -> None:
    def regret(reference: Law, reward: Law, true: Law, n: int) -> float:
        beta = np.sqrt(pess.mean_square_error(reference, reward, true) * reference[1])  # √(ε²/C), C = 1/π(good)
        return float(true[1] - pessimistic(reference, reward, beta) @ true)

    assert_no_hacking(regret, measured)


@pytest.mark.claim("T29")
def test_best_of_n_hacks() -> None:
    """Its regret falls until N is about 1/π(good), then rises to all there is to lose, as N passes 1/π(hack)."""
    reference, reward, true = hack()
    regret = [float(true[1] - law @ true) for law in best_of_ns(reference, reward)]
    assert 3 <= int(np.argmin(regret)) <= 8 and regret[-1] > 0.89 > 0.2 > min(regret)
    with pytest.raises(AssertionError):
        assert_no_hacking(lambda ref, hat, star, n: float(star[1] - bon.best_of_n_law(ref, hat, n) @ star))


# --- T30: the coverage profile ---------------------------------------------------------------------------------------


def pairs(seed: int, count: int) -> Iterator[tuple[Law, Law, Law]]:
    """Three laws: alike, unlike, and two-point ones on which the bounds are nearly tight."""
    rng = np.random.default_rng(seed)
    for a, b in ((0.4, 0.01), (0.9, 1e-4), (1.0, 0.3), (0.02, 1e-3)):
        yield np.array([a, 1 - a]), np.array([b, 1 - b]), np.array([(a * b) ** 0.5, 1 - (a * b) ** 0.5])
    for _ in range(count):
        k = int(rng.integers(2, 30))
        first, second, third = rng.dirichlet(np.full(k, rng.choice([0.1, 0.5, 3.0])), size=3)
        yield first, second, (first + third) / 2


def assert_profile_bounds(scale: tuple[float, float, float, float], measured: Measured = ignore) -> None:
    """D.1, D.4, D.5 and the link to C_cov, each bound multiplied by its `scale` (1 but for mutants)."""
    worst = np.zeros(4)
    for law, other, middle in pairs(0, 300):
        for n in (1.5, 3.0, 10.0, 1e3):
            profile = pess.coverage_profile(law, other, n)
            divergence, square = bon.kl(law, other), float(hellinger(law, other))
            for i, bound in enumerate([pess.profile_kl_bound(divergence, n), pess.profile_hellinger_bound(square, n)]):
                worst[i] = max(worst[i], profile / max(scale[i] * bound, 1e-300))
            for m2 in (1.2, n / 1.2, 2.0 * n):
                chain = m2 * pess.coverage_profile(middle, other, n / m2) + pess.coverage_profile(law, middle, m2)
                worst[2] = max(worst[2], profile / max(scale[2] * chain, 1e-300))
    rng = np.random.default_rng(1)
    for n in (2, 10, 100):
        for tight in (True, False):
            prompts, bases = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(20), size=6)
            if tight:
                bases = np.array([np.append(1 / n, np.full(4 * n, (1 - 1 / n) / (4 * n)))] * 6)
            points = [np.eye(len(base))[np.argmax(base)] for base in bases]
            profile = prompts @ [pess.coverage_profile(point, base, n) for point, base in zip(points, bases)]
            worst[3] = max(worst[3], profile * n / (scale[3] * bon.c_cov(prompts, [*bases])))
    for name, value in zip(("D.1 by KL", "D.4 by D_H²", "D.5 by a third law", "C_cov/N"), worst):
        measured(f"profile / {name}", value, 1)
    assert worst.max() <= 1 + SAME


@pytest.mark.claim("T30")
def test_profile_bounds(measured: Measured) -> None:
    assert_profile_bounds((1, 1, 1, 1), measured)


@pytest.mark.claim("T30")
@pytest.mark.parametrize("scale", [(0.7, 1, 1, 1), (1, 0.5, 1, 1), (1, 1, 0.8, 1), (1, 1, 1, 0.9)])
def test_profile_mutants(scale: tuple[float, float, float, float]) -> None:
    """The second is D.4 with the un-normalised D_H² taken for the normalised one."""
    with pytest.raises(AssertionError):
        assert_profile_bounds(scale)


def assert_best_of_n_regret(draws: Callable[[float, float], float], slack: float, measured: Measured = ignore) -> None:
    """D.6 and D.7: with N = draws(M, ε) best-of-N of π̂ loses at most Cov_M + ε against π, if Cov_M <= 1/2, by any
    reward in [0, 1]; by the separating reward of any N it loses at least `slack` Cov_2N."""
    rng, worst = np.random.default_rng(2), np.zeros(2)
    sparse = [(np.array([0.999, 1e-3]), np.array([0.999 / m, 1 - 0.999 / m]), None) for m in (3.0, 30.0)]
    for law, other, _ in [*pairs(1, 150), *sparse]:
        for m, epsilon in itertools.product((1.2, 3.0, 30.0), (0.3, 0.01)):
            profile = pess.coverage_profile(law, other, m)
            if profile <= 0.5:
                n = max(int(np.ceil(draws(m, epsilon))), 1)
                shapes = (np.log(law + 1e-300) - np.log(other + 1e-300), rng.normal(size=len(law)))
                for shape, quantile in itertools.product(shapes, (0.5, 0.9)):
                    reward = (shape >= np.quantile(shape, quantile)).astype(float)
                    regret = (law - bon.best_of_n_law(other, reward, n)) @ reward
                    worst[0] = max(worst[0], regret / (profile + epsilon))
        for n in (1, 5, 50):
            reward = pess.separating_reward(law, other, n)
            regret = (law - bon.best_of_n_law(other, reward, n)) @ reward
            worst[1] = max(worst[1], slack * pess.coverage_profile(law, other, 2 * n) - regret)
    measured("regret of best-of-N / (Cov_M + ε)", worst[0], 1)
    measured("Cov_2N/2 - regret by the separating reward", worst[1], SAME)
    assert worst[0] <= 1 + SAME and worst[1] <= SAME


@pytest.mark.claim("T30")
def test_best_of_n_regret(measured: Measured) -> None:
    assert_best_of_n_regret(lambda m, epsilon: 2 * m * np.log(1 / epsilon), 0.5, measured)


@pytest.mark.claim("T30")
@pytest.mark.parametrize(
    ("draws", "slack"),
    [(lambda m, epsilon: m, 0.5), (lambda m, epsilon: 2 * m * np.log(1 / epsilon), 0.95)],
    ids=["N = M", "all of Cov_2N"],
)
def test_best_of_n_regret_mutants(draws: Callable[[float, float], float], slack: float) -> None:
    with pytest.raises(AssertionError):
        assert_best_of_n_regret(draws, slack)
