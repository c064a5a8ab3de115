"""One of N draws, picked by weight: the integrals are the sums over all outcomes, for any weights."""

import itertools

import numpy as np
import pytest

from theory import importance
from theory.power import Law

SAME = 1e-12


def laws() -> list[tuple[Law, Law]]:
    """Probabilities and weights: even, uneven, spread over nine decades, equal, one only."""
    rng = np.random.default_rng(0)
    random = [(rng.dirichlet(np.ones(n)), rng.gamma(1.0, size=n)) for n in (2, 3, 5)]
    far = (np.array([0.5, 0.3, 0.2]), np.array([1e-6, 1.0, 1e3]))
    return [*random, far, (np.array([0.4, 0.6]), np.array([2.0, 2.0])), (np.ones(1), np.array([0.3]))]


@pytest.mark.parametrize("draws", [1, 2, 3, 4])
def test_the_pick_is_the_sum_over_all_draws(draws: int) -> None:
    for probs, weights in laws():
        law = np.zeros(len(probs))
        for chosen in itertools.product(range(len(probs)), repeat=draws):
            for j in chosen:
                law[j] += probs[list(chosen)].prod() * weights[j] / weights[list(chosen)].sum()
        assert np.abs(importance.picked(probs, weights, draws) - law).max() < SAME


@pytest.mark.parametrize("draws", [10, 1000, 100_000])
def test_many_draws(draws: int) -> None:
    """A law for any number of draws; q w/E[w] in the limit."""
    for probs, weights in laws():
        law = importance.picked(probs, weights, draws)
        assert law.sum() == pytest.approx(1, abs=SAME)
        limit = probs * weights / (probs @ weights)
        spread = probs @ weights**2 / (probs @ weights) ** 2
        assert np.abs(law - limit).max() <= 2 * spread / draws + SAME


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_the_share_is_the_sum_over_all_draws(draws: int) -> None:
    for candidates in (laws()[:2], laws()[3:], [*laws()[:1], (np.ones(1), np.zeros(1)), laws()[3]]):
        expected = np.zeros(len(candidates))
        ways = [itertools.product(range(len(probs)), repeat=draws) for probs, _ in candidates]
        for rows in itertools.product(*ways):
            x = np.array([values[list(row)].sum() for (_, values), row in zip(candidates, rows)])
            expected += np.prod([probs[list(row)].prod() for (probs, _), row in zip(candidates, rows)]) * x / x.sum()
        assert np.abs(importance.share(candidates, draws) - expected).max() < SAME
