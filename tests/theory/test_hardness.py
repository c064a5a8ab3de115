"""The max-cut gadget (claim T25) and the class without its own sharpened policies (T26), by enumeration."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from theory import hardness as hard
from theory import sharpening as sharp

Measured = Callable[..., None]
SAME = 1e-9


def ignore(*_: object) -> None:
    """What mutants measure is of no interest."""


# --- T25: the arg max is a maximal cut -------------------------------------------------------------------------------


def graphs() -> Iterator[NDArray]:
    """Every graph with an edge on 2 to 4 vertices, and random ones on 5 to 7."""
    for v in (2, 3, 4):
        slots = list(zip(*np.triu_indices(v, 1)))
        for chosen in itertools.product((0, 1), repeat=len(slots)):
            if any(chosen):
                graph = np.zeros((v, v), dtype=int)
                for (i, j), edge in zip(slots, chosen):
                    graph[i, j] = graph[j, i] = edge
                yield graph
    rng = np.random.default_rng(0)
    for v in (5, 5, 6, 6, 7):
        graph = np.triu(rng.random((v, v)) < 0.5, 1)
        yield graph | graph.T


Thetas = Callable[[NDArray, float], list[NDArray]]


def assert_mode_is_a_max_cut(thetas_of: Thetas, measured: Measured = ignore) -> None:
    """y* is exactly the maximal cuts, each followed by +1, +1, for every graph, with an odd or even number of edges."""
    wrong = {0: 0, 1: 0}
    for graph in graphs():
        edges = int(np.triu(graph, 1).sum())
        bound = max(1.0, edges**0.5)
        thetas = thetas_of(graph, bound)
        assert all(np.linalg.norm(theta) <= bound + 1e-12 for theta in thetas)
        responses, logp = hard.layered_law(hard.monomials(len(graph) + 2), thetas, (-1, 1))
        assert np.exp(logp).sum() == pytest.approx(1, abs=SAME)
        found = {response for response, best in zip(responses, sharp.top_set(logp)) if best}
        most = hard.max_cut(graph)
        cuts = {(*sides, 1, 1) for sides in itertools.product((-1, 1), repeat=len(graph))
                if hard.cut_size(graph, sides) == most}  # fmt: skip
        wrong[edges % 2] += found != cuts
    measured("graphs with an odd number of edges whose y* is not the maximal cuts", wrong[1], 0)
    measured("the same with an even number", wrong[0], 0)
    assert sum(wrong.values()) == 0


@pytest.mark.claim("T25")
def test_the_mode_is_a_max_cut(measured: Measured) -> None:
    assert_mode_is_a_max_cut(hard.max_cut_thetas, measured)
    triangle = np.ones((3, 3)) - np.eye(3)
    assert hard.max_cut(triangle) == 2 and hard.cut_size(triangle, [1, 1, 1]) == 0
    with pytest.raises(ValueError, match="needs an edge"):
        hard.max_cut_thetas(triangle, 1.0)


def no_last_token(graph: NDArray, bound: float) -> list[NDArray]:
    thetas = hard.max_cut_thetas(graph, bound)
    return [*thetas[:-1], 0 * thetas[-1]]


def attracting(graph: NDArray, bound: float) -> list[NDArray]:
    """J = A(G): the mode then has all vertices on one side."""
    thetas = hard.max_cut_thetas(graph, bound)
    return [*thetas[:-2], -thetas[-2], thetas[-1]]


@pytest.mark.claim("T25")
@pytest.mark.parametrize("wrong", [no_last_token, attracting])
def test_max_cut_mutants(wrong: Thetas) -> None:
    with pytest.raises(AssertionError):
        assert_mode_is_a_max_cut(wrong)


# --- T26: sharpened policies outside the class -----------------------------------------------------------------------


def assert_out_of_reach(features: hard.Features, level: float = 0.5, measured: Measured = ignore) -> None:
    """π_θ(2, 1) <= level: random θ up to norm 1000, and ascent by coordinate from the best of them."""
    rng, best = np.random.default_rng(1), 0.0
    for n in (3, 5):

        def mass(theta: NDArray, n: int = n) -> float:
            responses, logp = hard.layered_law(features, [*theta.reshape(2, 2)], range(1, n + 1))
            return float(np.exp(logp[responses.index((2, 1))]))

        starts = [np.array([1.0, 0, 1, 0]) * 4 * np.log(n)]
        starts += [rng.normal(size=4) * 1000 ** rng.random() for _ in range(150)]
        theta = max(starts, key=mass)
        for step in (100.0, 10.0, 1.0) * 3:
            for i in range(4):
                theta = max((theta, theta + step * np.eye(4)[i], theta - step * np.eye(4)[i]), key=mass)
        best = max(best, mass(theta))
    measured("greatest π_θ(2, 1) found", best, level)
    assert best <= level + SAME


@pytest.mark.claim("T26")
def test_sharpened_policies_are_out_of_reach(measured: Measured) -> None:
    assert_out_of_reach(hard.shared_feature, measured=measured)
    for n in (3, 5, 20):
        base_theta = [np.array([np.log(n), 0.0])] * 2
        responses, logp = hard.layered_law(hard.shared_feature, base_theta, range(1, n + 1))
        top = sharp.top_set(logp)
        assert [response for response, best in zip(responses, top) if best] == [(2, 1)]
        law = dict(zip(responses, np.exp(logp)))
        first = [sum(p for response, p in law.items() if response[0] == token) for token in (1, 2)]
        assert first[0] == pytest.approx(first[1], abs=1e-12)  # so greedy decoding has to break a tie
        assert sharp.set_mass(sharp.target(logp[None], 0.01), top[None]) > 0.9  # yet the target exists
        far = [np.array([800.0, 0.0])] * 2
        _, reached = hard.layered_law(hard.shared_feature, far, range(1, n + 1))
        one, wanted = np.ones(1), top[None]
        assert not sharp.is_sharpened(one, reached[None], wanted, 0.1, 0.49)
        assert sharp.is_sharpened(one, reached[None], wanted, 0.1, 0.5 + 1e-9)  # δ > 1/2, as printed, is within reach


def own_feature(prefix: tuple[int, ...]) -> NDArray:
    """φ_1 tells token 1 from token 2."""
    return np.array([0.0, 1.0]) if prefix == (1,) else hard.shared_feature(prefix)


@pytest.mark.claim("T26")
@pytest.mark.parametrize(("features", "level"), [(own_feature, 0.5), (hard.shared_feature, 0.49)])
def test_out_of_reach_mutants(features: hard.Features, level: float) -> None:
    with pytest.raises(AssertionError):
        assert_out_of_reach(features, level)


def test_one_layer_is_closed_under_sharpening() -> None:
    rng = np.random.default_rng(2)
    features, theta = rng.normal(size=(12, 3)), rng.normal(size=3)
    sharpened = sharp.target(log_softmax(features @ theta)[None], 0.25)
    assert np.exp(sharpened[0]) == pytest.approx(softmax(features @ (5 * theta)), abs=1e-12)
