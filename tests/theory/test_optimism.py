"""Theorem J.1 for exact expectations: XPO's regret against its bound, round by round, in small worlds (claim T33)."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from tests.theory.test_exploration import Measured, ignore, random_worlds
from theory import optimism
from theory.exploration import World, exact_sec, moments, sec

ROUNDS = (2, 10, 100, 1000)


def cases():
    for world, policies in list(random_worlds(8))[::6]:
        yield world, optimism.uniform(world, policies)


def assert_regret(play: Callable = optimism.population_xpo, factor: float = 1.0, measured: Measured = ignore) -> None:
    """At every T, λ and α, and for the α that the theorem would take."""
    nearest, fallen = 0.0, []
    for (world, policies), rounds, regulariser in product(cases(), ROUNDS, (0.01, 1.0)):
        for alpha in (1e-3, 0.1, optimism.best_alpha(world, rounds, 3.0, regulariser)):
            played = play(world, policies, alpha, rounds)
            regret, bound = optimism.regret_and_bound(world, policies, played, alpha, regulariser)
            nearest = max(nearest, regret / bound)
            assert regret <= factor * bound * (1 + 1e-9)
        if rounds == 1000:
            fallen.append(regret / rounds)
    measured("Σ regret / bound", nearest, 1)
    measured("mean regret after 1000 rounds at the theorem's α, greatest", max(fallen), 0.05)
    assert nearest > 0.25 and max(fallen) < 0.05


@pytest.mark.claim("T33")
def test_regret_of_exact_xpo(measured: Measured) -> None:
    assert_regret(measured=measured)


@pytest.mark.claim("T33")
def test_the_path_is_below_the_exact_sec(measured: Measured) -> None:
    """The sum over the rounds that were played is at most the supremum over all sequences, at five rounds."""
    for world, policies in cases():
        some = policies[[0, 1, 2, -1]]
        first, second = moments(world, some)
        hope = optimism.regret_identity(world, some)[1]
        for played in (optimism.population_xpo(world, some, 0.1, 5), [1, 2, 3, 1, 2]):
            _, bound = optimism.regret_and_bound(world, some, played, 0.1, 0.3)
            path = (bound - hope[played[0]] - 0.3 * world.beta / 0.1) * 4 * world.beta / (0.1 * 5)
            assert path == pytest.approx(float(sec(first, second, played, 0.3).sum()), abs=1e-9)
            assert path <= exact_sec(first, second, 5, 0.3) + 1e-9


def test_the_best_alpha_has_the_least_bound():
    """αT SEC/(4β) + λβ/α is √(λ T SEC) there, and more at any other."""
    world, _ = next(cases())

    def bound(alpha):
        return alpha * 50 * 3.0 / (4 * world.beta) + 0.1 * world.beta / alpha

    best = optimism.best_alpha(world, 50, 3.0, 0.1)
    assert bound(best) == pytest.approx(np.sqrt(0.1 * 50 * 3.0))
    assert bound(best) < min(bound(0.9 * best), bound(1.1 * best))


@pytest.mark.claim("T33")
def test_regret_mutants() -> None:
    """The printed sign, a pessimist, and a bound of a fifth."""

    def printed(world: World, policies, alpha, rounds):
        second, (_, hope, _) = moments(world, policies)[1], optimism.regret_identity(world, policies)
        played, squares = [0], np.zeros(len(hope))
        for t in range(1, rounds):
            squares = squares + second[played[-1]]
            played.append(int(np.argmin(alpha / world.beta * t * hope - squares)))
        return played

    for mutant in ({"play": printed}, {"play": lambda w, p, a, n: optimism.population_xpo(w, p, -a, n)},
                   {"factor": 0.2}):  # fmt: skip
        with pytest.raises(AssertionError):
            assert_regret(**mutant)
