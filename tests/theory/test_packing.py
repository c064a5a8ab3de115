"""Packings of sphere and ball: coverage and margin (T34), sizes of nets (T39)."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from theory import packing
from theory.best_of_n import argmax_set, c_cov
from toy.linear_softmax import LinearSoftmax, greedy_packing


def assert_softmax(coverage: Callable = packing.coverage, margin: Callable = packing.margin, measured=lambda *_: None):
    """Against the model's own probabilities; then the bounds in N and δ."""
    worst, tight = 0.0, 0.0
    for d, distance in ((2, 0.3), (3, 0.5), (5, 1.0), (8, 1.0)):
        points = greedy_packing(d, distance, 3000)
        law = LinearSoftmax.packing(points, points[0]).law().exp().numpy()
        n, own = len(points), points.numpy()
        assert np.flatnonzero(argmax_set(law)).tolist() == [0]
        worst = max(worst, abs(coverage(own, 0) / c_cov([1.0], [law]) - 1))
        second = np.sort(law)[-2]
        worst = max(worst, abs(margin(own, 0) - (law[0] / second - 1)))
        assert worst < 1e-9
        assert n * math.exp(-2) <= coverage(own, 0) <= 1 + (n - 1) * math.exp(-(distance**2) / 2)
        assert margin(own, 0) >= math.expm1(distance**2 / 2)
        tight = max(tight, math.expm1(distance**2 / 2) / margin(own, 0))
    measured("closed forms against the model, relative", worst, 1e-9)
    measured("bound on the margin / margin", tight, 1)
    assert tight > 0.8


@pytest.mark.claim("T34")
def test_softmax_over_a_packing(measured) -> None:
    assert_softmax(measured=measured)


@pytest.mark.claim("T34")
def test_packings_are_exponential_at_a_constant_margin(measured) -> None:
    """The cap's share against counted points, and how 1/share grows: by 2/√3 a dimension at distance 1."""
    rng = np.random.default_rng(0)
    for d, chord in ((2, 0.5), (3, 1.0), (6, 1.2), (4, 1.7)):
        points = rng.normal(size=(200_000, d))
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        near = np.mean(np.linalg.norm(points - np.eye(d)[0], axis=1) <= chord)
        assert abs(near - packing.cap(d, chord)) < 6 * math.sqrt(0.25 / 200_000)
    growth = packing.cap(200, 1.0) / packing.cap(201, 1.0)
    measured("growth of 1/cap with d at distance 1, less 2/√3", abs(growth - 2 / math.sqrt(3)), 0.01)
    assert abs(growth - 2 / math.sqrt(3)) < 0.01
    for d in (3, 5, 7):  # greedy packings from many candidates are nearly ones that nothing can be added to
        points = greedy_packing(d, 1.0, 20_000)
        assert len(points) >= 1 / packing.cap(d, 1.0)
        assert packing.coverage(points.numpy(), 0) >= math.exp(-2) / packing.cap(d, 1.0)


@pytest.mark.claim("T34")
def test_packing_mutants() -> None:
    for wrong in (
        {"coverage": lambda p, i: packing.coverage(p, i) / math.e},
        {"margin": lambda p, i: packing.margin(p, i) + 1},
    ):
        with pytest.raises(AssertionError):
            assert_softmax(**wrong)


def separated(d: int, radius: float, epsilon: float) -> int:
    """How many points of the ball a greedy search finds that are ε apart: a grid's, then random ones."""
    steps = np.arange(-math.floor(radius / epsilon + 1e-9), radius / epsilon + 1e-9) * epsilon
    grid = np.stack(np.meshgrid(*[steps] * d), -1).reshape(-1, d)
    kept = [point for point in grid if np.linalg.norm(point) <= radius + 1e-12]
    rng = np.random.default_rng(0)
    for point in rng.uniform(-radius, radius, size=(3000, d)):
        if np.linalg.norm(point) <= radius and min(np.linalg.norm(np.array(kept) - point, axis=1)) >= epsilon:
            kept.append(point)
    return len(kept)


def assert_net(size: Callable = packing.net_size, measured=lambda *_: None) -> None:
    nearest = 0.0
    for d, radius, epsilon in ((1, 1.0, 0.5), (1, 3.0, 0.1), (2, 1.0, 0.25), (3, 1.0, 0.5), (2, 5.0, 2.0)):
        found = separated(d, radius, epsilon)
        nearest = max(nearest, found / size(radius, epsilon, d))
        assert found <= size(radius, epsilon, d) + 1e-9
        assert size(radius, epsilon, d) <= (6 * radius / epsilon) ** d
    measured("points that are ε apart / (1 + 2B/ε)^d", nearest, 1)
    assert nearest > 0.8


@pytest.mark.claim("T39")
def test_nets_of_a_ball(measured) -> None:
    assert_net(measured=measured)


@pytest.mark.claim("T39")
def test_net_mutants() -> None:
    for wrong in (lambda b, e, d: (2 * b / e) ** d, lambda b, e, d: (1 + b / e) ** d):
        with pytest.raises(AssertionError):
            assert_net(wrong)
