"""Refinement as an operator on success probabilities: its fixed points, its threshold, its channels and its budgets.

One question, whose drafts are right with probability p each. Let g(j) be the probability that what is refined from M
drafts is right if j of them are. With independent drafts a round of parallel-distill-refine maps p to

    f(p) = Σ_j Binom(j; M, p) g(j),      f′(p) = M Σ_j Binom(j; M−1, p) (g(j+1) − g(j))                 claims D7, D11

the Bernstein polynomial of g. So f(0) = g(0) and f(1) = g(M), which oracle workspaces measure (claim D9), and
f(p) − p has Bernstein coefficients g(j) − j/M, hence no more roots in (0, 1) than these have changes of sign. If
g(0) = 0, a small p grows iff f′(0) = M g(1) > 1: one right draft among M must be found more often than by picking one.

M = 1 is sequential refinement: a = g(0) wrong drafts are fixed, b = 1 − g(1) right ones are broken      claim D8

    p_t = p* + (1 − a − b)^t (p_0 − p*),   p* = a/(a + b);    it helps iff p_0 < p*

Questions differ. The mean over classes of f_c(p_c) is not f(p̄) with the pooled g, since the number of right drafts is
a mixture of binomials and not Binom(M, p̄) (Jensen). The same happens within one question when the drafts of a round
share a workspace: if it makes p a beta random number with Var p = ρ p(1−p), then j is beta-binomial     claim D10

Budgets, M_r drafts of d_r tokens a round and D_r for its distillation (none in the last round)          claim D1

    B_seq = Σ_r (d_r + D_r),   B_total = Σ_r (M_r d_r + D_r)

Sources: 2510.01123 (the operators, the budgets); the rest is derived here. Everything is float64 and by formula.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import comb
from scipy.stats import binom

Array = NDArray[np.float64]
SAME = 1e-12  # coefficients below this are 0
CLOSE = 1e-5  # roots within this are one: where a curve only touches a line, it is within SAME of it about so far


def check_response(g: ArrayLike) -> Array:
    """g(0..M) as float64 [M + 1]. ValueError: not probabilities, or fewer than two."""
    g = np.asarray(g, dtype=np.float64)
    if g.ndim != 1 or len(g) < 2 or not np.all((g >= 0) & (g <= 1)):
        raise ValueError(f"g must be g(0), .., g(M), M >= 1, all in [0, 1]; got {g}")
    return g


def operator(p: ArrayLike, g: ArrayLike) -> Array:
    """f(p) = Σ_j Binom(j; M, p) g(j), of the shape of p."""
    g, p = check_response(g), np.asarray(p, dtype=np.float64)
    return binom.pmf(np.arange(len(g)), len(g) - 1, p[..., None]) @ g


def slope(p: ArrayLike, g: ArrayLike) -> Array:
    """f′(p) = M Σ_j Binom(j; M−1, p) (g(j+1) − g(j)), of the shape of p."""
    g, p = check_response(g), np.asarray(p, dtype=np.float64)
    m = len(g) - 1
    return m * (binom.pmf(np.arange(m), m - 1, p[..., None]) @ np.diff(g))


def sign_changes(coefficients: Array) -> int:
    """How often a sequence changes its sign, zeros not counted."""
    signs = np.sign(coefficients[np.abs(coefficients) > SAME])
    return int(np.count_nonzero(np.diff(signs)))


def fixed_points(g: ArrayLike) -> list[tuple[float, float]]:
    """All p in [0, 1] with f(p) = p, in rising order, each with f′(p): stable iff |f′(p)| < 1.

    By subdivision: a polynomial has at most as many roots in the inside of an interval as its Bernstein coefficients
    there have changes of sign, and as many if that is 0 or 1. ValueError: every p is fixed (g(j) = j/M).
    """
    g = check_response(g)
    gap = g - np.linspace(0, 1, len(g))
    if np.all(np.abs(gap) <= SAME):
        raise ValueError("g(j) = j/M leaves every p as it is, so all of [0, 1] is fixed")
    roots = [float(end) for end in (0, 1) if abs(gap[-end]) <= SAME]

    def search(coefficients: Array, low: float, high: float) -> None:
        changes, middle = sign_changes(coefficients), (low + high) / 2
        if np.all(np.abs(coefficients) <= SAME):
            roots.append(middle)  # where f touches the diagonal
        elif changes == 1 and abs(coefficients[0]) > SAME < abs(coefficients[-1]):
            roots.append(float(brentq(lambda p: operator(p, g) - p, low, high, xtol=SAME)))
        elif changes:
            left, right = halves(coefficients)
            if abs(left[-1]) <= SAME:
                roots.append(middle)
            search(left, low, middle)
            search(right, middle, high)

    search(gap, 0.0, 1.0)
    ordered = sorted(roots)
    distinct = [p for p, before in zip(ordered, [-1.0, *ordered]) if p - before > CLOSE]
    return [(p, float(slope(p, g))) for p in distinct]


def halves(coefficients: Array) -> tuple[Array, Array]:
    """De Casteljau: the Bernstein coefficients of the same polynomial on the lower and the upper half."""
    left, right = [coefficients[0]], [coefficients[-1]]
    while len(coefficients) > 1:
        coefficients = (coefficients[1:] + coefficients[:-1]) / 2
        left.append(coefficients[0])
        right.append(coefficients[-1])
    return np.array(left), np.array(right[::-1])


def orbit(p: float, g: ArrayLike, rounds: int) -> Array:
    """p, f(p), f(f(p)), ..; [rounds + 1]. What independent drafts would do; see `correlated` for why rounds do less."""
    points = [p]
    for _ in range(rounds):
        points.append(float(operator(points[-1], g)))
    return np.array(points)


def sequential(p: float, fix: float, broken: float, rounds: int) -> Array:
    """p_0 .. p_rounds of sequential refinement, by its closed form."""
    if fix + broken == 0:
        return np.full(rounds + 1, p)
    plateau = fix / (fix + broken)
    return np.asarray(plateau + (1 - fix - broken) ** np.arange(rounds + 1) * (p - plateau), dtype=np.float64)


def growth(g: ArrayLike) -> float:
    """f′(0) = M (g(1) − g(0)). With g(0) = 0 a small p grows iff this exceeds 1, that is iff g(1) > 1/M."""
    g = check_response(g)
    return float((len(g) - 1) * (g[1] - g[0]))


def plurality(m: int) -> Array:
    """g of a distiller that keeps what most of M drafts say, ties by a coin, if wrong drafts agree: [M + 1]."""
    j = np.arange(m + 1)
    return np.where(2 * j == m, 0.5, 2.0 * j > m).astype(np.float64)


def picking(m: int) -> Array:
    """g(j) = j/M: one draft at random. f(p) = p: verification adds nothing, nor do rounds."""
    return np.linspace(0, 1, m + 1)


def class_mix(weights: ArrayLike, p: ArrayLike, g: ArrayLike) -> float:
    """Σ_c w_c f_c(p_c): weights, p [classes], g [classes, M + 1]."""
    return float(np.asarray(weights) @ [operator(each, row) for each, row in zip(np.asarray(p), np.asarray(g))])


def pooled(weights: ArrayLike, p: ArrayLike, g: ArrayLike) -> float:
    """f(p̄) with the pooled ḡ(j) = E[g_c(j) | j], as one who does not see the classes would measure it. Wrong."""
    weights, p, g = (np.asarray(x, dtype=np.float64) for x in (weights, p, g))
    m = g.shape[1] - 1
    joint = weights[:, None] * binom.pmf(np.arange(m + 1), m, p[:, None])  # [classes, M + 1]
    mean = (joint * g).sum(0) / joint.sum(0)
    return float(operator(weights @ p, mean))


def right_drafts(m: int, p: float, correlation: float) -> Array:
    """The distribution of the number of right drafts among m, [m + 1]: beta-binomial (as a product: exact near 0
    too)."""
    if not 0 <= correlation <= 1:
        raise ValueError(f"correlation is {correlation}; it must be in [0, 1]")
    if correlation == 1:
        return np.eye(m + 1)[0] * (1 - p) + np.eye(m + 1)[m] * p
    i = np.arange(m) * correlation / (1 - correlation)  # Pólya's urn: each draw makes its like more likely

    def rising(x: float) -> Array:  # x (x + i_1) .. of 0 .. m factors
        return np.cumprod(np.append(1.0, x + i))

    return comb(m, np.arange(m + 1)) * rising(p) * rising(1 - p)[::-1] / rising(1.0)[-1]


def correlated(p: float, g: ArrayLike, correlation: float) -> float:
    """One round of drafts that share a workspace: E f(P), P beta of mean p. At correlation 1, p g(M) + (1−p) g(0)."""
    g = check_response(g)
    return float(right_drafts(len(g) - 1, p, correlation) @ g)


def intraclass_correlation(right: ArrayLike) -> float:
    """ρ of right [questions, drafts], by one-way analysis of variance: (MSB − MSW) / (MSB + (M−1) MSW)."""
    right = np.asarray(right, dtype=np.float64)
    n, m = right.shape
    if n < 2 or m < 2:
        raise ValueError(f"correlation within questions needs at least 2 questions of 2 drafts, not {n} of {m}")
    between = m * right.mean(1).var(ddof=1)
    within = ((right - right.mean(1, keepdims=True)) ** 2).sum() / (n * (m - 1))
    if between == within == 0:
        raise ValueError("all drafts are alike, so their correlation is not defined")
    return float((between - within) / (between + (m - 1) * within))


def budgets(drafts: Sequence[int], draft_tokens: Sequence[int], distill_tokens: Sequence[int]) -> tuple[int, int]:
    """(B_seq, B_total) of M_1 .. M_{R−1} drafts and the last one's, of d_1 .. d_R and D_1 .. D_{R−1} tokens a call."""
    if not len(drafts) + 1 == len(draft_tokens) == len(distill_tokens) + 1:
        raise ValueError(f"{len(drafts)} rounds of drafts need as many distillations, and one draft length more")
    waited = sum(draft_tokens) + sum(distill_tokens)
    return waited, waited + sum((m - 1) * d for m, d in zip(drafts, draft_tokens))
