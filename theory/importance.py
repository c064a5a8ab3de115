"""One of N independent draws, picked in proportion to its weight: its distribution, exactly, for any N.

Draws y_1..y_N ~ q, then J = j with probability w(y_j)/Σ_i w(y_i). With S the sum of N-1 other weights,

    Pr[y_J = y] = N q(y) w(y) E[1/(S + w(y))],    E[1/(S + m)] = ∫_0^∞ e^(-tm) φ(t)^(N-1) dt,    φ(t) = E_q e^(-tw).

It is what multiple-try Metropolis, importance resampling, and the choice of a chunk by look-ahead have in common: as
N grows the distribution tends to q w/E_q[w], with a bias of order 1/N. The integrals are taken in s = log t, where the
integrands are analytic in |Im s| < π/2 and vanish at both ends, by the trapezoidal rule, which then converges
geometrically: to 14 digits at this step, whatever N.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import logsumexp

from theory.power import Law

STEP = 1 / 16  # of log t


def log_times(least: float, most: float) -> Law:
    """The nodes s = log t for integrands that are 1 before t = 1/most and vanish behind t = 1/least."""
    return np.arange(-np.log(most) - 38, -np.log(least) + 4.5, STEP)


def log_laplace(probs: Law, weights: Law, t: Law) -> Law:
    """log φ(t) = log E e^(-tw) at times [m]: [m]."""
    shrunk = -np.expm1(-t[:, None] * weights) @ probs  # 1 - φ: a power of φ wants it accurate where t is small
    return np.where(shrunk < 0.5, np.log1p(-np.minimum(shrunk, 0.5)), logsumexp(-t[:, None] * weights, b=probs, axis=1))


def inverse_mean(probs: Law, weights: Law, others: int, at: Law) -> Law:
    """E[1/(S + m)] for each m > 0 of `at`: S the sum of the weights [n] of `others` independent draws of probs [n]."""
    if not others:
        return 1 / at
    s = log_times(at.min(), at.max() + others * weights.max())
    t = np.exp(s)[:, None]
    return STEP * np.exp(s[:, None] - t * at + others * log_laplace(probs, weights, t[:, 0])[:, None]).sum(0)


def picked(probs: Law, weights: Law, draws: int) -> Law:
    """The distribution [n] of the pick among `draws` draws of probs [n], by weights [n] > 0."""
    return draws * probs * weights * inverse_mean(probs, weights, draws - 1, weights)


def share(candidates: Sequence[tuple[Law, Law]], draws: int) -> Law:
    """E[X_v / Σ_u X_u] for each candidate v, [V]: X_v the sum of `draws` independent draws of candidate v, whose
    distribution is (probs [n_v], values [n_v] >= 0), and not all of them are 0."""
    least = draws * sum(float(values.min()) for _, values in candidates)
    s = log_times(least, draws * sum(float(values.max()) for _, values in candidates))
    t = np.exp(s)
    log_phi = np.array([log_laplace(probs, values, t) for probs, values in candidates])  # [V, m]
    rest = draws * log_phi.sum(0) + s
    expected = []
    for (probs, values), own in zip(candidates, log_phi):
        first = (probs * values * np.exp(-t[:, None] * values)).sum(1)  # E[x e^(-tx)]
        expected.append(draws * STEP * float((first * np.exp(rest - own)).sum()))
    return np.array(expected)
