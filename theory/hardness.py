"""What no amount of samples mends: the arg max can be hard to compute, and sharpened policies can be outside the class.

Multi-layer linear softmax: π_θ(y|x) = Π_h p(y_h|y_<h), p(y_h|y_<h) ∝ exp⟨φ(y_1..y_h), θ_h⟩, ‖θ_h‖ <= B; to sample and
to score a response takes polynomial time. Yet

    Prop. E.1   to compute arg max π_θ is NP-hard: the max-cut gadget                                  claim T25
        y ∈ {±1}^H, φ(y_1..y_h) = all monomials of degree <= 3, H = the graph's vertices + 2, B >= √|E|, 1
        θ_1 = .. = θ_(H-2) = 0        the first H-2 tokens, the sides of a cut, are fair coins
        θ_(H-1) = -Σ_edges e_(i,j,H-1)   y_(H-1) = +1 has log-odds 2c, c = -Σ_edges y_i y_j = 2 |cut| - |E|
        θ_H = B/2 (e_(H-1,H) + e_H)     y_H = +1 is nearly sure if y_(H-1) = +1, else a fair coin
      π(y, +1, +1) = 2^-(H-2) σ(2c) σ(2B) increases in the cut. It beats every response that ends otherwise, as
      σ(2) σ(2B) > 1/2 and a maximal cut of a graph with an edge has c >= 1: a uniform one has c = 0 in expectation, the
      empty cut c = -|E|. (The paper asks for an odd |E|; it is not needed.)

    Prop. E.2   π_θ(2, 1) <= 1/2 for all θ, though (2, 1) is the unique arg max of π_θ*                 claim T26
        H = 2, tokens 1..n, φ_1 = e_1 for tokens 1 and 2, e_2 for the others; φ_2(2, 1) = e_1, φ_2(2, j) = e_2, else 0;
        θ*_1 = θ*_2 = B e_1. Tokens 1 and 2 share a feature, so neither exceeds 1/2, at any norm; hence neither π*_β
        nor the best-of-N distribution is in the class, and no policy in it is (ε, δ)-sharpened for δ < 1/2 (the paper
        prints δ > 1/2).

Source: 2412.01951, Appendix E. In one layer (H = 1) the class is closed: π_θ^(1+1/β) = π_((1+1/β)θ).
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax

from theory.power import Law, Record, record_logps

Features = Callable[[Record], NDArray[np.float64]]  # tokens so far, the last included -> φ [dim]


def layered_law(features: Features, thetas: Sequence[NDArray], vocab: Sequence[int]) -> tuple[list[Record], Law]:
    """(responses, their log-probabilities) of multi-layer linear softmax, one θ [dim] per position; by enumeration.

    Tokens are those of `vocab`; responses are in its lexicographic order.
    """
    conditionals = {}
    for h, theta in enumerate(thetas):
        for ids in itertools.product(range(len(vocab)), repeat=h):
            prefix = tuple(vocab[i] for i in ids)
            conditionals[ids] = log_softmax([features((*prefix, token)) @ theta for token in vocab])
    records, logp = record_logps(conditionals, len(thetas))
    return [tuple(vocab[i] for i in ids) for ids in records], logp


# --- Proposition E.1 -------------------------------------------------------------------------------------------------


def monomials(horizon: int) -> Features:
    """Signs y_1..y_h -> (y_i), (y_i y_j), (y_i y_j y_k) over all positions, [H + H² + H³]; later positions are 0."""

    def features(prefix: Record) -> NDArray[np.float64]:
        y = np.zeros(horizon)
        y[: len(prefix)] = prefix
        pairs = np.outer(y, y).ravel()
        return np.concatenate([y, pairs, np.outer(pairs, y).ravel()])

    return features


def max_cut_thetas(adjacency: ArrayLike, bound: float) -> list[NDArray[np.float64]]:
    """θ_1..θ_H of the gadget for a graph [V, V] with at least one edge; H = V + 2, every norm at most `bound` = B."""
    graph = np.triu(np.asarray(adjacency, dtype=bool), 1)
    edges = np.argwhere(graph)
    if not len(edges) or bound < max(1.0, np.sqrt(len(edges))):
        raise ValueError(f"the gadget needs an edge and B >= max(1, √edges); edges: {len(edges)}, B = {bound}")
    h = len(graph) + 2
    thetas = [np.zeros(h + h**2 + h**3) for _ in range(h)]
    first, second = edges.T
    thetas[-2][h + h**2 + (first * h + second) * h + (h - 2)] = -1  # the monomial y_i y_j y_(H-1)
    thetas[-1][[h - 1, h + (h - 2) * h + (h - 1)]] = bound / 2  # y_H and y_(H-1) y_H
    return thetas


def cut_size(adjacency: ArrayLike, sides: ArrayLike) -> int:
    """How many edges join the two sides, given as signs [V]."""
    graph, signs = np.triu(np.asarray(adjacency, dtype=bool), 1), np.asarray(sides)
    return int(np.sum(graph & (signs[:, None] != signs[None, :])))


def max_cut(adjacency: ArrayLike) -> int:
    """The size of a maximal cut, by trying all 2^V."""
    return max(cut_size(adjacency, sides) for sides in itertools.product((-1, 1), repeat=len(np.asarray(adjacency))))


# --- Proposition E.2 -------------------------------------------------------------------------------------------------


def shared_feature(prefix: Record) -> NDArray[np.float64]:
    """φ of Proposition E.2, [2], for tokens 1..n."""
    if len(prefix) == 1:
        return np.array([1.0, 0.0]) if prefix[0] <= 2 else np.array([0.0, 1.0])
    if prefix[0] != 2:
        return np.zeros(2)
    return np.array([1.0, 0.0]) if prefix[1] == 1 else np.array([0.0, 1.0])
