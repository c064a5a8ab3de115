"""What an accuracy is worth.

pass@k = E[1 − C(n−c, k) / C(n, k)] over problems, c of whose n samples are right: unbiased (2107.03374, eq. 1)
win rate = E[P(r > r') + P(r = r')/2] over problems, r' the self-reward of a draw of the base (2401.01879)
interval: Clopper-Pearson where each problem is right or wrong, a bootstrap over problems where it has a share
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The unbiased estimate, from n samples with `correct` right, that one of k samples is right."""
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(f"pass@{k} needs 1 <= k <= n and 0 <= correct <= n; n is {n} and correct is {correct}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def win_rate(ours: Sequence[Sequence[float]], base: Sequence[Sequence[float]], tie: float = 1e-6) -> float:
    """The share of wins over pairs of a response of ours and one of the base's, each with its reward, ties half; the
    mean over problems. ours[problem][i], base[problem][j]; rewards nearer than `tie` are equal (as in best-of-N). 1/2
    is no better than the base; best-of-N by its own reward has at most N/(N + 1)."""
    if not len(ours) or len(ours) != len(base) or not all(map(len, (*ours, *base))):
        raise ValueError(f"a win rate needs a reward of each for each problem; {len(ours)} and {len(base)} were given")
    gaps = [np.subtract.outer(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(ours, base)]
    return float(np.mean([np.where(np.abs(gap) <= tie, 0.5, gap > 0).mean() for gap in gaps]))


def accuracy(scores: Sequence[float] | np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """(mean, lower, upper) of the problems' scores in [0, 1].

    Right-or-wrong scores get the exact binomial interval (Clopper-Pearson). Shares (of several samples of a problem)
    get a percentile bootstrap over problems, 2000 resamples of a fixed seed: samples of one problem are not
    independent.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not len(values) or values.min() < 0 or values.max() > 1:
        raise ValueError("accuracy needs at least one score, all of them in [0, 1]")
    n, tail = len(values), (1 - level) / 2
    if np.isin(values, (0.0, 1.0)).all():
        k = int(values.sum())
        lower = 0.0 if k == 0 else solve(lambda p: binomial_tail(k, n, p), tail)
        upper = 1.0 if k == n else 1 - solve(lambda p: binomial_tail(n - k, n, p), tail)
        return k / n, lower, upper
    resampled = np.random.default_rng(0).choice(values, (2000, n)).mean(1)
    return float(values.mean()), float(np.quantile(resampled, tail)), float(np.quantile(resampled, 1 - tail))


def binomial_tail(k: int, n: int, p: float) -> float:
    """P(Binomial(n, p) >= k)."""
    if p in (0.0, 1.0):
        return float(p)
    terms = (
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(p) + (n - i) * math.log1p(-p)
        for i in range(k, n + 1)
    )
    return math.fsum(math.exp(term) for term in terms)


def solve(increasing, value: float) -> float:
    """The p in [0, 1] with increasing(p) = value, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if increasing(middle) < value else (low, middle)
    return low
