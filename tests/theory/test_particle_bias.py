"""The bias of the returned particle: exact clouds of 1 to 6 particles tend to the closed form (claim P29)."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.theory.test_markov_chain import Measured, World, ignore, world
from theory import particle_bias
from theory.importance import picked
from theory.markov_chain import total_variation
from theory.particles import cloud
from theory.power import Law

ALPHA = 3.0
WORLDS = [world(seed, 2, horizon) for seed, horizon in ((5, 3), (43, 2))] + [world(2, 3, 2)]


def clouds(w: World, particles: int, kappa: float, tau: float | None) -> Law:
    setting = {"horizon": w.horizon, "alpha": ALPHA, "tau": tau, "resampling": "multinomial"}
    return cloud(w.conditionals, particles=particles, kappa=kappa, **setting).returned  # type: ignore[arg-type]


def extrapolated(w: World, most: int, kappa: float) -> Law:
    """N (law − π) at N → ∞: the intercept of a polynomial in 1/N through the last four N. Proposal 1/α: p's weights
    are too uneven for so few particles to show the limit."""
    sizes = np.arange(most - 3, most + 1)
    scaled = np.array([n * (clouds(w, n, kappa, None) - w.law(ALPHA)) for n in sizes])
    return np.linalg.solve((1 / sizes[:, None]) ** np.arange(4), scaled)[0]


def assert_every_token(bias: Callable[..., Law] = particle_bias.bias, measured: Measured = ignore) -> None:
    for w in WORLDS:
        found = extrapolated(w, 6 if len(w.records) < 6 else 5, 2.0)
        exact = bias(w.conditionals, ALPHA, w.horizon)
        off = np.abs(found - exact).sum() / np.abs(exact).sum()
        measured("N (law − π), extrapolated, against the closed form: relative error", off, 0.1)
        assert off < 0.1


@pytest.mark.claim("P29")
def test_resampled_after_every_token(measured: Measured) -> None:
    assert_every_token(measured=measured)


def assert_never(bias: Callable[..., Law] = particle_bias.bias, measured: Measured = ignore) -> None:
    """Without resampling the returned particle is one of N draws picked by weight, exact for every N; here of p."""
    for w in WORLDS:
        q, target = np.exp(w.logp), w.law(ALPHA)
        exact = bias(w.conditionals, ALPHA, w.horizon, tau=1.0, resampled=False)
        found = 4000 * (picked(q, target / q, 4000) - target)
        off = np.abs(found - exact).sum() / np.abs(exact).sum()
        measured("4000 (law − π) against the closed form: relative error", off, 0.01)
        assert off < 0.01 and total_variation(q, target) > 0.2
        assert np.abs(clouds(w, 3, 0.0, 1.0) - picked(q, target / q, 3)).max() < 1e-12


@pytest.mark.claim("P29")
def test_never_resampled(measured: Measured) -> None:
    assert_never(measured=measured)


@pytest.mark.claim("P29")
def test_particles_that_are_enough(measured: Measured) -> None:
    """N for a bias of .01: with it the exact one is within a quarter of that."""
    for w in WORLDS:
        coefficient = particle_bias.bias(w.conditionals, ALPHA, w.horizon, tau=1.0, resampled=False)
        n = particle_bias.particles_enough(coefficient, 0.01)
        q, target = np.exp(w.logp), w.law(ALPHA)
        far = total_variation(picked(q, target / q, n), target)
        measured("TV with the N that is said to be enough for .01", far, 0.0125)
        assert 0.0075 < far < 0.0125 and n > 5


@pytest.mark.claim("P29")
def test_bias_mutants() -> None:
    right = particle_bias.bias

    def never(*told, **setting):
        return right(*told, **{**setting, "resampled": not setting.get("resampled", True)})

    for wrong in (never, lambda *told, **setting: -right(*told, **setting), lambda *t, **s: right(*t, **s) / 2):
        for assertion in (assert_every_token, assert_never):
            with pytest.raises(AssertionError):
                assertion(wrong)
