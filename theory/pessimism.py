"""When the reward is not the true one: χ²-pessimism, and the coverage profile that best-of-N rests on.

A comparator π* is judged by the true reward r*, a policy is chosen by another, r̂, with ε² = E_π_ref (r̂ - r*)². With
C_π = E_π[π/π_ref] and χ²(π) = (C_π - 1)/2, the pessimistic policy is                                     claim T29

    π^χ_β = arg max E_π r̂ - β χ²(π) = π_ref relu((r̂ - λ)/β),   λ such that it sums to 1
    J(π*) - J(π^χ_β) <= √(C_π* ε²) + β C_π*/2 + ε²/(2β)   for every π*;   2 √(C_π* ε²) at β = √(ε²/C_π*)

(|E_π (r̂ - r*)| <= √(C_π ε²), and √(C_π ε²) <= β C_π/2 + ε²/(2β) for π = π^χ_β.) Best-of-N by r̂ has no such bound that
is uniform in N: it overoptimises. In sharpening r̂ = r* = log π_base, ε = 0, and more draws never hurt.

The coverage profile of π̂ for π is Cov_N(π || π̂) = Pr_π[π/π̂ >= N]                                        claim T30

    D.1   Cov_N <= KL(π || π̂) / (log N - 1 + 1/N)                          D.4   Cov_N <= 2N/(√N - 1)² D_H²/2
    D.5   Cov_M1(π || π̂) <= M2 Cov_(M1/M2)(π′ || π̂) + Cov_M2(π || π′)   for every π′
    D.6   N >= 2M log(1/ε), Cov_M <= 1/2  ⇒  best-of-N of π̂ by a reward in [0, 1] loses at most Cov_M + ε against π
    D.7   the reward 1{π/π̂ >= 2N} makes it lose at least Cov_2N/2
    for π = a point mass on y*(x):  E_x Cov_N = Pr_x[π̂(y*) <= 1/N] <= C_cov/N, which links it to sharpening.

Sources: 2503.21878 (Huang et al., "Is best-of-N the best of them?"); 2510.15020 ("The coverage principle"), Appendix D.
Distributions and rewards are [K], one prompt; float64.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from theory.best_of_n import TIE, Law, check_law, second_moment_coverage


def chi_square(law: ArrayLike, reference: ArrayLike) -> float:
    """χ²(π) = (E_π[π/π_ref] - 1)/2; infinite outside the support of the reference."""
    return (second_moment_coverage(law, reference) - 1) / 2


def pessimistic(reference: ArrayLike, reward: ArrayLike, beta: float) -> tuple[Law, float]:
    """(π^χ_β [K], λ), exactly. On the k best responses λ_k = (Σ π_ref r̂ - β)/Σ π_ref solves the equation without relu,
    so that λ_k <= λ, and equals λ for the k that relu keeps: λ = max_k λ_k."""
    reference, reward = check_law(reference), np.asarray(reward, dtype=np.float64)
    if not beta > 0:
        raise ValueError(f"beta must be > 0, not {beta}")
    order = np.argsort(-reward, kind="stable")
    order = order[reference[order] > 0]
    mass, value = reference[order], reward[order]
    level = float(np.max((np.cumsum(mass * value) - beta) / np.cumsum(mass)))
    return reference * np.maximum((reward - level) / beta, 0.0), level


def mean_square_error(reference: ArrayLike, reward: ArrayLike, true_reward: ArrayLike) -> float:
    """ε² = E_π_ref (r̂ - r*)²."""
    return float(check_law(reference) @ (np.asarray(reward) - np.asarray(true_reward)) ** 2)


def pessimism_bound(coverage: float, square_error: float, beta: float) -> float:
    """√(C ε²) + β C/2 + ε²/(2β) >= J(π*) - J(π^χ_β) for every comparator of concentrability C."""
    return float(np.sqrt(coverage * square_error) + beta * coverage / 2 + square_error / (2 * beta))


def coverage_profile(law: ArrayLike, other: ArrayLike, n: float) -> float:
    """Cov_N(π || π̂) = Pr_π[π/π̂ >= N]; N within rounding of the ratio counts."""
    law, other = np.asarray(law, dtype=np.float64), np.asarray(other, dtype=np.float64)
    return float(law[law >= n * other * (1 - TIE)].sum())


def profile_kl_bound(divergence: float, n: float) -> float:
    """D.1: KL/(log N - 1 + 1/N), N > 1. With u = π/π̂, KL >= E_π[log u - 1 + 1/u]; it is >= 0 and rises for u >= 1."""
    return float(divergence / (np.log(n) - 1 + 1 / n))


def profile_hellinger_bound(square: float, n: float) -> float:
    """D.4 with the un-normalised D_H² of `sample_complexity.hellinger`: N/(√N - 1)² D_H², N > 1."""
    return float(n / (np.sqrt(n) - 1) ** 2 * square)


def separating_reward(law: ArrayLike, other: ArrayLike, n: float) -> NDArray[np.float64]:
    """D.7's reward, [K]: 1 where π/π̂ >= 2N, which best-of-N of π̂ finds at most half as often as π has it."""
    law, other = np.asarray(law, dtype=np.float64), np.asarray(other, dtype=np.float64)
    return ((law > 0) & (law >= 2 * n * other * (1 - TIE))).astype(float)
