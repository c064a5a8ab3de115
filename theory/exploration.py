"""Why exploring can need few samples: the sequential extrapolation coefficient (SEC), its bounds, coverability.

A *world* is μ over prompts x, a base distribution π_base(·|x), a reward r(x, y), β > 0. For a policy π let

    g_π(x, y) = β log π/π_base(y|x) − r(x, y),  f_π(x, y, y') = g_π(x, y) − g_π(x, y'),  E^π: x ~ μ, y ~ π, y' ~ π_base.

f_π = 0 at π*_β ∝ π_base exp(r/β) alone, and f is what XPO squares. With J_β(π) = E_π r − β KL(π‖π_base), for every π

    J_β(π*_β) − J_β(π) = E_{π_base}[β log π − β log π*_β] + E^π[f_π]                                        claim T17

The bonus keeps the first term down; the second is controlled by what earlier rounds have fitted, through

    SEC = sup over sequences in Π of  Σ_t  E^(t)[f_t]² / (λ ∨ Σ_{i<t} E^(i)[f_t²])        (Definition J.1)    claim T22

A priori   f_π = ⟨w_π, a(y) − a(y')⟩ with ‖w‖² ≤ λ, ‖a − a'‖² ≤ K, a in R^D:  SEC ≤ 2K/log(1+K) · D log(1 + TK/D)
Path-wise  the same with log det(I + Σ_t Σ^(t)) for D log(1 + TK/D), Σ^(t) = E^(t)[(a − a')(a − a')ᵀ]
           Proof. λ ∨ s >= (λ + s)/2, so a term is at most 2 wᵀΣ^(t)w / wᵀ(I + V)w <= 2 tr((I + V)^−1 Σ^(t)) with
           V = Σ_{i<t} Σ^(i); a trace u in [0, K] is at most K/log(1+K) log(1+u), and log(1+u) is at most
           log det(I + V + Σ^(t)) − log det(I + V), whose sum telescopes. Last, log det <= D log(trace/D).
Coverage   C = E_x Σ_y sup_{π∈Π} π(y|x), |f| <= f_max:  SEC <= 4C f_max²/λ + 2C log2 T
           Proof. Let d_t be the t-th distribution on (x, y, y'), D_t = Σ_{i<t} d_i, m = sup_t d_t, of sum at most C,
           and call a point fresh while D_t < m. E^(t)[f]² <= 2 E^(t)[f; fresh]² + 2 E^(t)[f; not]². The first square is
           at most f_max² d_t(fresh), and Σ_t d_t(fresh) <= Σ (m + m) <= 2C. By Cauchy-Schwarz the second, over
           Σ_{i<t} E^(i)[f²], is at most Σ d_t²/D_t <= Σ m d_t/D_t over points not fresh, where u = d_t/D_t <= 1, so
           u <= log2(1+u) and Σ_t u <= log2(D_{T+1}/m) <= log2 T.

Coverability, inf_ν sup_π ‖d^π/ν‖_∞ (2405.21046), is that C exactly (claim T24). Lemma F.2 of the paper, the elliptic
potential, is false as printed for small K/λ (claim T23).

Sources: 2412.01951, §4.3 and Appendix J; 2405.21046 (XPO). Distributions are arrays of log-probabilities; an atom of
several equal responses has one entry (every sum here weighs it by its mass, and g is the same on all of it).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linprog
from scipy.special import logsumexp

Array = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """μ [X]; log π_base and r [X, Y]; β. Where the base has probability 0 so have all policies."""

    prompts: Array
    base: Array
    reward: Array
    beta: float

    @property
    def target(self) -> Array:
        """log π*_β [X, Y]."""
        logp = self.base + self.reward / self.beta
        return logp - logsumexp(logp, axis=-1, keepdims=True)

    def log_ratio(self, policies: ArrayLike, other: Array) -> Array:
        """log π − log other, [P, X, Y], of policies log π [P, X, Y]; 0 where the base has no mass."""
        return np.subtract(policies, other, out=np.zeros(np.shape(policies)), where=self.base > -np.inf)

    def gap(self, policies: ArrayLike) -> Array:
        """g_π, [P, X, Y]; 0 where the base has no mass."""
        return self.beta * self.log_ratio(policies, self.base) - np.where(self.base > -np.inf, self.reward, 0.0)

    def objective(self, policies: ArrayLike) -> Array:
        """J_β, [P]."""
        return -np.einsum("x,pxy,pxy->p", self.prompts, np.exp(policies), self.gap(policies))


def regret_identity(world: World, policies: ArrayLike) -> tuple[Array, Array, Array]:
    """J_β(π*_β) − J_β(π), E_{π_base}[β log π − β log π*_β] and E^π[f_π], [P] each: the first is the others' sum."""
    regret = world.objective(world.target[None])[0] - world.objective(policies)
    ratio = world.log_ratio(policies, world.target)
    optimism = world.beta * np.einsum("x,xy,pxy->p", world.prompts, np.exp(world.base), ratio)
    return regret, optimism, np.diagonal(moments(world, policies)[0])


# ---------------------------------------------------------------------------------------------------------------------
# The coefficient


def moments(world: World, policies: ArrayLike) -> tuple[Array, Array]:
    """E^(i)[f_k] and E^(i)[f_k²], [P, P] each, of all pairs of policies log π [P, X, Y]."""
    g, laws, base = world.gap(policies), np.exp(policies), np.exp(world.base)
    mean, square = np.einsum("ixy,kxy->ikx", laws, g), np.einsum("ixy,kxy->ikx", laws, g**2)
    base_mean, base_square = np.einsum("xy,kxy->kx", base, g), np.einsum("xy,kxy->kx", base, g**2)
    second = np.maximum(square - 2 * mean * base_mean + base_square, 0)  # y and y' are independent
    return (mean - base_mean) @ world.prompts, second @ world.prompts


def sec(first: Array, second: Array, sequence: Sequence[int], regulariser: float) -> Array:
    """The terms of the coefficient, [T], of a sequence of policies, from their `moments`; regulariser: λ."""
    chosen = np.asarray(sequence, dtype=np.int64)
    past = np.cumsum(second[np.ix_(chosen, chosen)], axis=0)  # [i, t]: Σ_{j<=i} E^(j)[f_t²]
    spent = np.append(0.0, np.diagonal(past, offset=1)) if len(chosen) > 1 else np.zeros(len(chosen))
    return first[chosen, chosen] ** 2 / np.maximum(spent, regulariser)


def greedy_sequence(first: Array, second: Array, rounds: int, regulariser: float) -> list[int]:
    """An adversary: at each round the policy whose term is largest. A lower bound on the coefficient."""
    spent, gain, sequence = np.zeros(len(first)), np.diagonal(first) ** 2, []
    for _ in range(rounds):
        sequence.append(int(np.argmax(gain / np.maximum(spent, regulariser))))
        spent += second[sequence[-1]]
    return sequence


def exact_sec(first: Array, second: Array, rounds: int, regulariser: float) -> float:
    """The supremum itself, over all |Π|^T sequences."""
    every = itertools.product(range(len(first)), repeat=rounds)
    return max(float(sec(first, second, sequence, regulariser).sum()) for sequence in every)


def linear_bound(dim: int, rounds: int, k: float) -> float:
    """The a-priori bound."""
    return float(2 * k / np.log1p(k) * dim * np.log1p(rounds * k / dim))


def difference_moment(world: World, policies: ArrayLike, features: Array) -> Array:
    """Σ^(t) = E^(t)[(a − a')(a − a')ᵀ], [P, D, D], of features a [X, Y, D]."""
    laws, base = np.exp(policies), np.exp(world.base)
    mean = np.einsum("pxy,xyd->pxd", laws, features)
    base_mean = np.einsum("xy,xyd->xd", base, features)
    square = np.einsum("pxy,xyd,xye->pxde", laws, features, features)
    base_square = np.einsum("xy,xyd,xye->xde", base, features, features)
    cross = np.einsum("pxd,xe->pxde", mean, base_mean)
    return np.einsum("x,pxde->pde", world.prompts, square + base_square - cross - cross.swapaxes(-1, -2))


def path_bound(differences: Array, k: float) -> Array:
    """The path-wise bound after each round, [T], of Σ^(1), ..., Σ^(T) [T, D, D]."""
    total = np.eye(differences.shape[-1]) + np.cumsum(differences, axis=0)
    return 2 * k / np.log1p(k) * np.linalg.slogdet(total)[1]


def coverability_bound(coverability: float, largest: float, rounds: int, regulariser: float) -> float:
    """The bound by coverability; largest: f_max."""
    return float(coverability * (4 * largest**2 / regulariser + 2 * np.log2(rounds)))


# ---------------------------------------------------------------------------------------------------------------------
# Elliptic potential, coverability


def elliptic_sum(matrices: Array, regulariser: float) -> float:
    """Σ_t tr((λI + Σ_{i<t} Σ_i)^−1 Σ_t) of positive semidefinite matrices [T, D, D]."""
    past = regulariser * np.eye(matrices.shape[-1])
    total = 0.0
    for matrix in matrices:
        total += float(np.trace(np.linalg.solve(past, matrix)))
        past = past + matrix
    return total


def elliptic_bound(dim: int, k: float, regulariser: float, rounds: int) -> float:
    """d (K/λ)/log(1+K/λ) log(1 + TK/(dλ)) for traces at most K: what Lemma F.2 should say."""
    ratio = k / regulariser
    return float(dim * ratio / np.log1p(ratio) * np.log1p(rounds * ratio / dim))


def printed_elliptic_bound(dim: int, k: float, regulariser: float, rounds: int) -> float:
    """Lemma F.2 as printed: d (K/λ)/log(1+K/λ) log((T+1)K/λ), negative where (T+1)K < λ."""
    ratio = k / regulariser
    return float(dim * ratio / np.log1p(ratio) * np.log((rounds + 1) * ratio))


def coverability(prompts: Array, laws: ArrayLike) -> float:
    """E_x Σ_y sup_π π(y|x), of distributions (probabilities) [P, X, Y]."""
    return float(prompts @ np.max(laws, axis=0).sum(-1))


def coverability_by_lp(prompts: Array, laws: ArrayLike) -> float:
    """inf_ν sup_π max_{x,y} μ(x)π(y|x)/ν(x, y) over distributions ν, as it is defined: the least C with C ν >= every
    μπ.

    Variables ν [X·Y] and 1/C: maximise 1/C subject to (1/C) μπ <= ν, Σ ν = 1."""
    joint = (prompts[:, None] * np.asarray(laws)).reshape(len(np.asarray(laws)), -1)
    policies, n = joint.shape
    below = np.hstack((np.tile(-np.eye(n), (policies, 1)), joint.reshape(-1, 1)))
    solved = linprog(
        np.append(np.zeros(n), -1.0), A_ub=below, b_ub=np.zeros(policies * n),
        A_eq=np.append(np.ones(n), 0.0)[None], b_eq=[1.0], method="highs",
    )  # fmt: skip
    return float(1 / solved.x[-1])


# ---------------------------------------------------------------------------------------------------------------------
# Closed forms of two worlds (toy/linear_softmax.py)


def hypercube_coverage(d: int, norm: float = 1.0) -> float:
    """C_cov = (1 + e^(−2·norm/d))^d of the hypercube at θ = norm·y*, log-concave by bits; 2^d/e as d grows, norm 1."""
    return float(np.exp(d * np.log1p(np.exp(-2 * norm / d))))


def hypercube_margin(d: int, norm: float = 1.0) -> float:
    """γ_margin = e^(2·norm/d) − 1: one bit wrong costs 2·norm/d."""
    return float(np.expm1(2 * norm / d))


def draws_for(mass: float, coverage: float) -> float:
    """The N at which best-of-N has `mass` on y* if π_base(y*) = 1/C_cov: log(1−mass)/log(1−1/C_cov)."""
    return float(np.log1p(-mass) / np.log1p(-1 / coverage))


def needle_log_coverage(d: int, s: float) -> float:
    """log C_cov = log(Z/2), Z = e^s + 2(d−1) + 5/2, of the needle."""
    return float(np.logaddexp(s, np.log(2 * d + 0.5)) - np.log(2))


def any_informative(d: int, s: float, pairs: float) -> float:
    """1 − (1 − p)^(2n), p = 1 − e^s/Z: the probability that n base pairs hold any response but the dull ones. (Of
    these alone the regression learns nothing: every policy of the class has loss 0.)"""
    share = np.exp(np.log(2 * d + 0.5) - np.logaddexp(s, np.log(2 * d + 0.5)))
    return float(-np.expm1(2 * pairs * np.log1p(-share)))
