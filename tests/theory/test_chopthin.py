"""Chopthin resampling (claim P33), over every outcome: no bias, and weights of bounded ratio."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.theory.test_markov_chain import SAME, Measured, ignore
from tests.theory.test_particles import assert_unbiased
from theory import particles
from theory.particles import ancestors, chopthin
from theory.power import Law

ETA = 3 + np.sqrt(8)


def clouds() -> Iterator[tuple[Law, float]]:
    """Weights of mean 1, and η: from nearly equal to one particle that has nearly all; and where the bounds are met."""
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 4, 7, 16, 50):
        for spread in (0.1, 1.0, 3.0, 9.0):
            for eta in (4.0, ETA, 20.0):
                weights = np.exp(spread * rng.normal(size=n))
                weights[rng.random(n) < 0.1] = 0.0
                weights[0] += 0.01
                yield weights / weights.mean(), eta
    for n in (7, 13):  # one is nearly chopped in two, the others are thinned a little: it stays, and they all do
        heavy = 0.999 * 6.0
        weights = np.array([heavy, *[(n - 2 * 0.999) / (n - 1)] * (n - 1)])
        yield weights / weights.mean(), 6.0


Chop = Callable[[Law, float], tuple[Law, Law]]
Draw = Callable[[Law], Iterator[tuple[tuple[int, ...], float]]]


def systematic(h: Law) -> Iterator[tuple[tuple[int, ...], float]]:
    return ancestors(h, "systematic")


def assert_chopthin(chop: Chop, measured: Measured = ignore, draw: Draw = systematic, most: int = 50) -> None:
    off = 0.0
    widest, least = 0.0, np.inf
    for weights, eta in clouds():
        n = len(weights)
        if n > most:
            continue
        h, divided = chop(weights, eta)
        assert abs(h.sum() - n) < 1e-9, "N"
        worth = np.zeros(n)
        for parents, chance in draw(h):
            assert len(parents) == n, "N"
            children = np.bincount(parents, minlength=n)
            after = np.array([divided[i] / children[i] for i in parents])
            np.add.at(worth, list(parents), chance * after)
            ratio = float(after.max() / after.min())
            assert chance < 1e-9 or ratio <= eta * (1 + 1e-9), "ratio"
            ess = float(after.sum() ** 2 / (after**2).sum())
            bound = 4 * eta * n / (1 + eta) ** 2
            assert chance < 1e-9 or ess >= bound * (1 - 1e-9), "effective sample size"
            if chance > 1e-6:
                widest, least = max(widest, ratio / eta), min(least, ess / bound)
        off = max(off, float(np.abs(worth - weights).max() / weights.max()))
        assert off < 1e-9, "bias"
    measured("|E[Σ w' of the children of i] − w_i| / max w", off, 1e-9)
    measured("ratio of the weights after / η, greatest", widest, 1.0)
    measured("effective sample size after / its bound, least", least, 1.0)
    assert widest > 0.95 and least < 1.05


@pytest.mark.claim("P33")
def test_chopthin(measured: Measured) -> None:
    assert_chopthin(chopthin, measured)


@pytest.mark.claim("P33")
def test_a_ratio_below_4_may_not_be_kept(measured: Measured) -> None:
    """Two particles with 1.02 and 1.98 children on average: if the first is chopped and the second is not, 0.51 stands
    beside 1.98, whatever η <= 3.88 was asked for."""
    weights = np.array([1.02, 1.98, 0.0])
    h, divided = chopthin(weights, 3.0)
    after = [[divided[i] / parents.count(i) for i in parents] for parents, _ in systematic(h)]
    widest = max(max(each) / min(each) for each in after)
    measured("ratio of the weights after, at η = 3 (above)", widest, 3.0)
    assert np.abs(h - weights).max() < SAME and widest == pytest.approx(1.98 / 0.51)


def test_a_narrow_cloud_stays_as_it_is() -> None:
    narrow = [(w, eta) for w, eta in clouds() if w.min() > 0 and w.max() / w.min() <= eta / 2]
    assert len(narrow) > 10
    for weights, eta in narrow:
        assert np.abs(chopthin(weights, eta)[0] - 1).max() < SAME


@pytest.mark.claim("P33")
@pytest.mark.parametrize(
    ("chop", "what"),
    [
        (lambda w, eta: (w, np.ones_like(w)), "bias"),  # systematic resampling whose children share 1
        (lambda w, eta: (chopthin(w, eta)[0], w), "ratio"),  # thinned particles keep their weight
        (lambda w, eta: chopthin(w, 2 * eta), "ratio"),
        (lambda w, eta: (0.9 * chopthin(w, eta)[0], chopthin(w, eta)[1]), "N"),
    ],
    ids=["equal", "not thinned", "twice the ratio", "fewer"],
)
def test_other_rules_are_caught(chop: Chop, what: str) -> None:
    with pytest.raises(AssertionError, match=what):
        assert_chopthin(chop)


@pytest.mark.claim("P33")
def test_independent_ancestors_are_caught() -> None:
    """A particle may then have no child where it should have one."""
    with pytest.raises(AssertionError, match=r"bias|ratio"):
        assert_chopthin(chopthin, draw=lambda h: ancestors(h, "multinomial"), most=4)


@pytest.mark.claim("P33")
def test_the_normalizer_is_without_bias(measured: Measured) -> None:
    settings = [{"tau": 1.0}, {"eta": 4.0, "tau": 1.0, "kappa": 0.8}, {"ramp": True, "tau": 0.7}]
    assert_unbiased([{"resampling": "chopthin", **each} for each in settings], measured)


@pytest.mark.claim("P33")
def test_a_normalizer_that_forgets_the_weights_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(particles, "chopthin", lambda w, eta: (chopthin(w, eta)[0], np.ones_like(w)))
    with pytest.raises(AssertionError, match="biased"):
        assert_unbiased([{"resampling": "chopthin", "tau": 1.0}])
