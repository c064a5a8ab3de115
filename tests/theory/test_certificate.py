"""The certificate of mixing against exact kernels: it holds from every state, and where it is tight (claim P34)."""

from itertools import count

import numpy as np
import pytest

from tests.theory.test_markov_chain import World, worlds
from theory import certificate as C
from theory.markov_chain import Chain, chain, total_variation
from toy.tabular import TabularLM, enumerate_law

SETTINGS = [(1.0, None), (2.0, None), (4.0, None), (4.0, 0.5), (3.0, 1.0)]  # α, τ; None: 1/α


def log_w(world: World, alpha: float, tau: float | None) -> float:
    return C.first_factor(np.exp(world.conditionals[()]), alpha, tau)


def log_z(world: World, alpha: float) -> float:
    return float(np.log(np.exp(alpha * world.logp).sum()))


def assert_forgets(own: Chain, delta: float) -> float:
    """K ≥ δ π, entry by entry; the least of K/(δ π)."""
    ratio = (own.kernel / (delta * own.target)).min()
    assert ratio >= 1 - 1e-9
    return float(ratio)


def cases(cut: str):
    for world in worlds():
        for alpha, tau in SETTINGS:
            own = chain(world.conditionals, horizon=world.horizon, alpha=alpha, tau=tau, cut=cut)
            yield world, own, log_z(world, alpha), log_w(world, alpha, tau)


@pytest.mark.claim("P34")
@pytest.mark.parametrize("cut", ["horizon", "record"])
def test_certificate(cut, measured):
    """The minorisation, the distance that follows from every start, and that N steps are enough: in all worlds."""
    tightest, loosest = np.inf, 0.0
    for world, own, z, w in cases(cut):
        for bound in (0.0, w):
            tightest = min(tightest, assert_forgets(own, C.rate(z, world.horizon, bound)))
            enough = int(C.steps_enough(z, world.horizon, 0.05, bound))
            law = np.linalg.matrix_power(own.kernel, enough)
            assert max(total_variation(row, own.target) for row in law) <= 0.05
            far = max(total_variation(row, own.target) for row in np.linalg.matrix_power(own.kernel, 3))
            assert far <= C.distance(z, world.horizon, 3, bound) + 1e-12
        needed = least_steps(own, 0.05)
        loosest = max(loosest, C.steps_enough(z, world.horizon, 0.05, w) / needed)
    measured(f"least K/(δ π), cut {cut}", tightest, 1)
    measured(f"steps certified / steps needed at most, cut {cut}", loosest, 500)
    assert loosest <= 500  # how loose it is where no first token decides


def least_steps(own: Chain, tv: float) -> int:
    law = np.eye(len(own.target))
    for n in count(1):
        law = law @ own.kernel
        if max(total_variation(row, own.target) for row in law) <= tv:
            return n
    raise AssertionError


def pivotal(futures: int, alpha: float) -> tuple[Chain, float, float]:
    """Two even first tokens; the first has one future, the second so many. H = 2, and no text ends early."""
    laws = {(1,): [0.5, 0.5] + [0.0] * futures, (1, 0): [1.0] + [0.0] * (futures + 1)}
    laws[1, 1] = [0.0, 0.0] + [1 / futures] * futures
    model = TabularLM.tree(laws, futures + 2)
    _, logp, conditionals = enumerate_law(model, [1], 2, [])
    own = chain(conditionals, horizon=2, alpha=alpha, cut="horizon")
    first = C.first_factor(np.exp(conditionals[()]), alpha)
    return own, float(np.log(np.exp(alpha * logp).sum())), first


@pytest.mark.claim("P34")
@pytest.mark.parametrize("alpha", [2.0, 4.0])
def test_where_it_is_tight(alpha, measured):
    """A first token that decides: with its factor for W the certificate is the chain's own rate; with W = 1 it is off
    by that factor."""
    own, z, w = pivotal(20, alpha)
    gap = 1 - np.sort(np.linalg.eigvals(own.kernel).real)[-2]
    tight = C.rate(z, 2, w) / gap
    measured(f"certified rate / spectral gap, α = {alpha:g}", tight, 1)
    assert 0.9 < tight <= 1 + 1e-9
    assert C.rate(z, 2) / gap == pytest.approx(tight * np.exp(w))
    assert C.steps_enough(z, 2, 0.01, w) <= 1.2 * least_steps(own, 0.01)


@pytest.mark.claim("P34")
def test_an_estimate_of_z_is_enough(measured):
    """Pr[Z < ρ Ẑ] ≤ ρ for Ẑ of two particles, over all pairs; the claim P18 has E Ẑ = Z for every cloud."""
    nearest = 0.0
    for _world, own, z, _ in cases("horizon"):
        q, weight = own.initial, np.exp(z) * own.target / own.initial
        pairs, chance = (weight[:, None] + weight) / 2, np.outer(q, q)
        assert (pairs * chance).sum() == pytest.approx(np.exp(z))
        for rho in (0.05, 0.3, 0.7, 0.9):
            missed = chance[z < C.with_confidence(np.log(pairs)[..., None], rho)].sum()
            nearest = max(nearest, float(missed) / rho)
            assert missed <= rho
    measured("Pr[Z < ρ Ẑ] / ρ", nearest, 1)


def assert_several_clouds(confidence=C.with_confidence, measured=lambda *_: None):
    """Two and three clouds of one particle each, over all of what they may hold: the misses, and what the confidence
    costs, against one cloud."""
    nearest, costs = 0.0, []
    for _world, own, z, _ in cases("horizon"):
        q, log_w = own.initial, z + np.log(own.target / own.initial)
        for m in (2, 3):
            grids = np.stack(np.meshgrid(*[log_w] * m, indexing="ij"), -1) if len(q) ** m < 300_000 else None
            if grids is None:
                continue
            chance = np.prod(np.stack(np.meshgrid(*[q] * m, indexing="ij"), -1), axis=-1)
            for miss in (0.05, 0.3, 0.7):
                missed = float(chance[z < confidence(grids, miss)].sum())
                nearest = max(nearest, missed / miss)
                assert missed <= miss
        costs.append(float(confidence(np.zeros(5), 0.05)))
    measured("Pr[Z < ρ min Ẑ] / ρ^m", nearest, 1)
    assert costs[0] == pytest.approx(np.log(0.05) / 5) and nearest > 0.2


@pytest.mark.claim("P37")
def test_the_least_of_several_clouds(measured):
    assert_several_clouds(measured=measured)


@pytest.mark.claim("P37")
def test_several_clouds_mutants():
    """The greatest of them, and their mean."""
    for wrong in (
        lambda z, miss: np.max(z, -1) + np.log(miss) / np.shape(z)[-1],
        lambda z, miss: np.min(z, -1) + 0 * miss,
    ):
        with pytest.raises(AssertionError):
            assert_several_clouds(wrong)


@pytest.mark.claim("P34")
def test_certificate_mutants():
    """Twice the rate, a horizon too short, and α below 1."""
    for delta in (2.0, None):
        with pytest.raises(AssertionError):
            for world, own, z, w in cases("horizon"):
                assert_forgets(own, (delta or 2 * world.horizon) * C.rate(z, world.horizon, w))
    world = next(worlds())
    own = chain(world.conditionals, horizon=world.horizon, alpha=0.5, cut="horizon")
    with pytest.raises(AssertionError):
        assert_forgets(own, min(1, C.rate(log_z(world, 0.5), world.horizon)))


def test_numbers_by_hand():
    assert C.rate(np.log(0.2), 4) == pytest.approx(0.05) and C.rate(np.log(0.2), 4, np.log(0.5)) == pytest.approx(0.1)
    assert C.steps_enough(np.log(0.5), 1, 0.1) == 4 and C.distance(np.log(0.5), 1, 4) == 0.0625
    assert C.steps_enough(-1e4, 5, 0.1) == np.inf and C.steps_enough(0.0, 1, 0.1) == 1
    assert C.with_confidence(np.log(0.4), 0.05) == pytest.approx(np.log(0.02))
    assert C.with_confidence(np.log([0.4, 0.2]), 0.25) == pytest.approx(np.log(0.1))
    assert C.first_factor(np.array([0.5, 0.5, 0.0]), 3.0) == pytest.approx(np.log(0.25))
    assert C.first_factor(np.array([0.75, 0.25]), 3.0, 1.0) == pytest.approx(2 * np.log(0.75))
