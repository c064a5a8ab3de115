"""Best-of-N: the exact distribution of its output, the bounds on it, and the exact distribution of its adaptive
stopping rule.

One prompt has a base distribution π over K responses and a reward r (self-reward: r = log π). Best-of-N draws y_1..y_N
~ π and returns a draw of the greatest reward, a uniform one of the tied draws (or the first: draws are exchangeable).
With F(r) = π{y: r(y) <= r} and F(r-) = π{y: r(y) < r}, the reward of the output is at most r iff that of every draw is,
and given its level set the output is distributed as π within it:

    π_N(y) = (F(r_y)^N - F(r_y-)^N) π(y) / π{y': r(y') = r_y}                                           claim T6
    KL(π_N || π) <= log N - (N-1)/N,  E_{π_N}[π_N/π] <= N^2/(2N-1),  π_N/π <= N                         claim T7
    π_N(y*_γ) = 1 - (1 - π(y*_γ))^N,  E_x (1 - π(y*_γ))^N <= C_cov,γ / (e N)                            claim T8

where y*_γ(x) = {y: π(y|x) >= (1-γ) max π(.|x)} (the arg-max set, ties included, at γ = 0) and
C_cov,γ = E_x[1/π(y*_γ(x)|x)]. Adaptive best-of-N stops at N_μ = inf{k: 1/max_{j<=k} π(y_j) <= k/μ} and returns the most
likely draw; with P* = max π, m* = |y*|                                                                 claim T11

    N_μ >= μ/P* surely,  E[N_μ] <= (μ + 1/m*)/P*,  Pr[output not in y*] <= exp(-m* μ).

Sources: 2412.01951 (Huang et al., "Self-Improvement in Language Models: The Sharpening Mechanism"), Definition F.1,
Proposition C.1, Appendix D, Lemma I.1; 2401.01879 (Beirami et al.) for the distribution and its divergence.
Everything is float64 and by formula or dynamic programming; distributions are arrays [K] of probabilities.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import rel_entr

TIE = 1e-12  # numbers within this relative distance are one number: equal probabilities summed in another order tie
TOLERANCE = 1e-6  # rewards nearer than this tie, and a rule stops so much early: as in reference/interface.py
TRUNCATE = 1e-15  # `adaptive_law` stops its recursion once the process survives with less than this probability

Law = NDArray[np.float64]


def check_law(probs: ArrayLike) -> Law:
    """`probs` [K] as float64 that sums to 1; raises ValueError unless it is nonnegative and sums to 1 within 1e-6."""
    law = np.asarray(probs, dtype=np.float64)
    if law.ndim != 1 or not law.size or not np.all(law >= 0) or not abs(law.sum() - 1) <= 1e-6:
        raise ValueError(f"a distribution has probabilities >= 0 of sum 1; got shape {law.shape}, sum {law.sum()}")
    return law / law.sum()


def level_sets(rewards: ArrayLike) -> NDArray[np.int64]:
    """Rank of each response among the distinct rewards, worst first, [K]; within `TOLERANCE` they tie. -inf is one."""
    rewards = np.asarray(rewards, dtype=np.float64)
    if np.isnan(rewards).any():
        raise ValueError("rewards hold a NaN, which has no rank")
    order = np.argsort(rewards, kind="stable")
    ordered = rewards[order]
    rank = np.empty(len(rewards), dtype=np.int64)
    rank[order] = np.concatenate([[0], np.cumsum(~np.isclose(ordered[1:], ordered[:-1], rtol=0, atol=TOLERANCE))])
    return rank


def level_masses(rank: NDArray[np.int64], base: Law) -> Law:
    """The probability of each level set, worst first, [levels]."""
    mass = np.zeros(rank.max() + 1)
    np.add.at(mass, rank, base)
    return mass


def best_of_n_law(probs: ArrayLike, rewards: ArrayLike, n: int) -> Law:
    """π_N, [K], of base `probs` [K] and `rewards` [K]. Keeps its relative precision for probabilities down to 1e-300.

    With F the mass at or below a level and m its own mass, F^N - (F - m)^N = F^N (1 - (1 - m/F)^N) has no cancellation.
    """
    base = check_law(probs)
    if np.shape(rewards) != base.shape:
        raise ValueError(f"rewards have shape {np.shape(rewards)}, probs have {base.shape}")
    if n < 1:
        raise ValueError(f"best-of-N needs n >= 1, not {n}")
    rank = level_sets(rewards)
    mass = level_masses(rank, base)
    at_or_below, above = np.cumsum(mass), np.append(np.cumsum(mass[:0:-1])[::-1], 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):  # log 0 = -inf is meant; 0/0 is a level without mass
        log_f = np.where(above < 0.5, np.log1p(-above), np.log(at_or_below))
        level = np.exp(n * log_f) * -np.expm1(n * np.log1p(-mass / at_or_below))
        return np.where(base > 0, level[rank] * (base / mass[rank]), 0.0)


def kl(law: ArrayLike, base: ArrayLike) -> float:
    """KL(distribution || base) in nats; infinite if `law` leaves the support of `base`."""
    return float(np.sum(rel_entr(law, base)))


def kl_bound(n: int) -> float:
    """log N - (N-1)/N: the least upper bound of KL(π_N || π) over all π and r, attained if no reward level has mass."""
    return float(np.log(n) - (n - 1) / n)


def kl_gap_bound(probs: ArrayLike, rewards: ArrayLike, n: int) -> float:
    """N (N-1) sum of m^2 over the masses m of the reward levels: `kl_bound` exceeds KL(π_N || π) by at most this.

    The quantile of the best draw has density f(u) = N u^(N-1) on [0, 1], and KL(f || 1) = kl_bound. A level is an
    interval (a, b) of length m that sees only the average g of f, so the gap is the sum over levels of
        ∫ f log(f/g) <= ∫ (f-g)^2/g <= m (f(b)-g)(g-f(a))/g <= m (f(b)-f(a)) <= m^2 max f',
    by KL <= chi-square, the Bhatia-Davis inequality, g - f(a) <= g, and the mean value theorem.
    """
    mass = level_masses(level_sets(rewards), check_law(probs))
    return float(n * (n - 1) * np.sum(mass**2))


def second_moment_coverage(law: ArrayLike, base: ArrayLike) -> float:
    """E_law[distribution/base], the concentrability C_π of the paper's Eq. 9; infinite if `law` leaves the support of
    `base`."""
    law, base = np.asarray(law, dtype=np.float64), np.asarray(base, dtype=np.float64)
    inside = law > 0
    with np.errstate(divide="ignore"):
        return float(np.sum(law[inside] * (law[inside] / base[inside])))


def coverage_bound(n: int) -> float:
    """N^2/(2N-1): the least upper bound of E_{π_N}[π_N/π]."""
    return n**2 / (2 * n - 1)


def argmax_set(probs: ArrayLike, gamma: float = 0.0) -> NDArray[np.bool_]:
    """y*_γ = {y: π(y) >= (1-γ) max π} as a mask [K]; ties within `TIE`."""
    probs = np.asarray(probs, dtype=np.float64)
    return probs >= (1 - gamma) * probs.max() * (1 - TIE)


def c_cov(prompts: ArrayLike, bases: Sequence[ArrayLike], *, gamma: float = 0.0, p: float = 1.0) -> float:
    """C_cov,γ,p = (E_x π(y*_γ(x)|x)^-p)^(1/p) for the distribution `prompts` [X] of x and one base distribution
    each."""
    masses = np.array([check_law(base)[argmax_set(base, gamma)].sum() for base in bases])
    return float(np.sum(check_law(prompts) * masses**-p) ** (1 / p))


def failure(mass: ArrayLike, n: float) -> NDArray[np.float64]:
    """(1 - mass)^n: the probability that none of n draws hits a set of probability `mass`. Same shape as `mass`."""
    with np.errstate(divide="ignore"):  # mass 1 never fails
        return np.exp(n * np.log1p(-np.asarray(mass, dtype=np.float64)))


def failure_bound(coverage: float, n: int) -> float:
    """C_cov/(e N) >= E_x (1 - π(y*))^N, because N p (1-p)^N <= (N/(N+1))^(N+1) < 1/e."""
    return float(coverage / (np.e * n))


def sufficient_n(mass: float, rho: float) -> int:
    """Proposition C.1: with N >= log(1/ρ)/mass draws a set of probability `mass` is missed with probability <= ρ."""
    return int(np.ceil(np.log(1 / rho) / mass))


@dataclass(frozen=True)
class AdaptiveLaw:
    """The distribution of adaptive best-of-N on one prompt."""

    stop: Law  # [k_max + 1]: Pr[N_μ = k]; entry 0 is 0
    response: Law  # [K]: Pr[output = y]
    truncated: float  # Pr[N_μ > k_max] < TRUNCATE, missing from both

    @property
    def mean(self) -> float:
        """E[N_μ], from the part that is not truncated."""
        return float(np.arange(len(self.stop)) @ self.stop)


def adaptive_law(probs: ArrayLike, mu: float) -> AdaptiveLaw:
    """The exact distributions of N_μ and of the output, by recursion over k on the running maximum of π(y_1)..π(y_k).

    The running maximum is a Markov chain on the distinct probabilities v: it stays at v if the next draw has π <= v and
    rises to v if that draw is the first to reach it. At step k it stops wherever k v >= μ. As N_μ <= μ / min π,
    the recursion ends; it is cut when less than `TRUNCATE` survives. Work: O(k_max * levels), k_max about (μ + 35)/P*.
    """
    base = check_law(probs)
    if not 0 < mu < np.inf:
        raise ValueError(f"the stopping constant mu must be > 0 and finite, not {mu}")
    with np.errstate(divide="ignore"):
        rank = level_sets(np.log(base))
    mass, value = level_masses(rank, base), np.zeros(rank.max() + 1)
    value[rank] = base
    at_or_below = np.cumsum(mass)
    stop, returned = [0.0], np.zeros(len(mass))  # [k], [levels]
    alive = mass  # [levels]: Pr[N_μ >= k and the maximum of k draws is at this level], here for k = 1
    k = 1
    while True:
        stopped = np.where(k * value >= mu * (1 - TOLERANCE), alive, 0.0)
        stop.append(float(stopped.sum()))
        returned += stopped
        alive = alive - stopped
        if alive.sum() < TRUNCATE:
            break
        lower = np.append(0.0, np.cumsum(alive)[:-1])  # survivors whose maximum is at a lower level
        alive = alive * at_or_below + lower * mass
        k += 1
    with np.errstate(invalid="ignore"):  # 0/0: a level without mass
        response = np.where(base > 0, returned[rank] * (base / mass[rank]), 0.0)
    return AdaptiveLaw(np.array(stop), response, float(alive.sum()))
