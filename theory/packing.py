"""Packings: how many directions fit, and what a softmax over them covers (Example J.1, Lemma J.4; claims T34, T39).

On N points of the unit sphere no two nearer than δ, log π_base(y) ∝ ⟨y, θ⟩ with θ one of them, ⟨y, θ⟩ = 1 − ‖y − θ‖²/2:

    C_cov = 1/π_base(θ) = Σ_y e^(⟨y, θ⟩ − 1),   N e^(−2) ≤ C_cov ≤ 1 + (N − 1) e^(−δ²/2);     margin ≥ e^(δ²/2) − 1.

A packing to which no point can be added covers the sphere by caps of chord δ, so N is at least one over the share of
such a cap: e^Ω(d) at a constant δ < √2, hence a C_cov that is exponential in d beside a constant margin.

In the ball of radius B in R^d, balls of radius ε/2 around points no two nearer than ε are disjoint and lie in the ball
of radius B + ε/2. So there are at most (1 + 2B/ε)^d of them, and as many that no further one fits are an ε-net: that is
Lemma J.4, which has (6B/ε)^d, with a better constant where ε ≤ 4B.
"""

import math

import numpy as np
from scipy.special import betainc

from theory.power import Law


def coverage(points: Law, best: int) -> float:
    """C_cov = 1/π_base(y*) of the softmax over points [N, d] with θ = points[best]."""
    return float(np.exp(points @ points[best] - 1).sum())


def margin(points: Law, best: int) -> float:
    """γ_margin = π_base(y*)/max of the others − 1."""
    others = np.delete(points @ points[best], best)
    return float(np.expm1(1 - others.max()))


def cap(d: int, chord: float) -> float:
    """The share of the unit sphere in R^d within this distance of one of its points."""
    angle = 2 * math.asin(chord / 2)
    half = 0.5 * float(betainc((d - 1) / 2, 0.5, math.sin(angle) ** 2))
    return half if angle <= math.pi / 2 else 1 - half


def net_size(radius: float, epsilon: float, d: int) -> float:
    """(1 + 2B/ε)^d: no more points of the ball are pairwise ε apart."""
    return (1 + 2 * radius / epsilon) ** d
