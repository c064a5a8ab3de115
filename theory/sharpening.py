"""Sharpening: what it is, what it needs of the base model, and the deterministic steps in the proofs of its theorems.

Prompts x ~ μ have base distributions π_base(.|x). Sharpening moves the mass of a policy π to the arg-max set, ties
included,

    y*_γ(x) = {y : π_base(y|x) >= (1-γ) max π_base(.|x)},   y* = y*_0                                  Definition F.1
    π is (ε, δ, γ)-sharpened iff Pr_x[π(y*_γ(x)|x) >= 1-δ] >= 1-ε                                      Definition 3.1

The KL-regularised target maximises J_β(π) = E_π[r] - β KL(π || π_base), r = log π_base; it is a power law:

    π*_β ∝ π_base exp(r/β) = π_base^(1+1/β),   J_β(π*_β) - J_β(π) = β KL(π || π*_β),
    J_β(π*_β) = β E_x log E_π_base exp(r/β)                                                            claim T3
    β <= γ_margin / (2 log(2|Y|/δ))  ⇒  π*_β(y*) >= 1 - δ/2                                            claim T4
    C_{π*_β} <= C_cov and <= (1-γ)^(-1/β) C_cov,γ,   E_π_base (π_base/π*_β)^β <= |Y|                   Lemma 4.1, T5

with C_π = E_π[π/π_base] and max π_base(.|x) >= (1 + γ_margin) π_base(y'|x) for every y' outside y*. For any π, with
π† = π_base(.|y*), h = β log(π/π_base) - r and Δ = h(y) - h(y'), the residual of RLHF-Sharpening's loss     claim T14

    δ log(1+γ_margin) Pr_x[π(y*) < 1-δ] <= J_0(π†) - J_0(π)
        <= (√C_cov + √C_π) √E_{π_base⊗π_base}[Δ²] + β KL(π† || π_base) - β KL(π || π_base)

(Cauchy-Schwarz on E_π† Δ and E_π Δ). And with the two-point kl(δ || δ/2) >= (1 - 2^-1/2)² δ                   claim T16

    π*_β(y*) >= 1 - δ/2 and E_x KL(π || π*_β) <= ε kl(δ || δ/2)  ⇒  π is (ε, δ)-sharpened

(data processing to the event y ∈ y*; a share above ε of failing prompts would cost more). The paper has εδ/12.
Prop. 3.1: greedy decoding finds a unique y* with π(y*) > 1/2, as each of its conditionals exceeds 1/2     claim T1

Source: 2412.01951 (Huang et al., "Self-Improvement in Language Models: The Sharpening Mechanism").
Arrays: `prompts` [X] is μ; base, policy, reward are [X, K] log-probabilities (-inf: impossible, also used as padding).
C_cov and its γ and p variants are `theory.best_of_n.c_cov`. float64; in log space, as 1/β is often above 100.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, logsumexp, rel_entr
from scipy.stats import binom

from theory.best_of_n import TIE, check_law
from theory.power import Conditionals, Record

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def check_logs(logp: ArrayLike) -> Array:
    """`logp` [X, K], normalised; raises ValueError unless every row is the logarithm of a distribution within 1e-6."""
    logs = np.asarray(logp, dtype=np.float64)
    if logs.ndim != 2 or not logs.size or not np.all(np.abs(total := logsumexp(logs, axis=-1)) <= 1e-6):
        raise ValueError(f"log-probabilities must be [prompts, responses], each row of sum 1; got shape {logs.shape}")
    return logs - total[:, None]


def top_set(reward: ArrayLike, gamma: float = 0.0) -> Mask:
    """y*_γ of reward = log π_base [X, K] as a mask; logs within `TIE` of each other tie."""
    reward = np.asarray(reward, dtype=np.float64)
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma must be in [0, 1), not {gamma}")
    return reward >= reward.max(-1, keepdims=True) + np.log1p(-gamma) - TIE


def set_mass(policy: ArrayLike, subset: Mask) -> Array:
    """π(subset(x)|x) of each prompt, [X]."""
    return np.where(subset, np.exp(policy), 0.0).sum(-1)


def failure_share(prompts: ArrayLike, policy: ArrayLike, subset: Mask, delta: float) -> float:
    """Pr_x[π(subset) < 1-δ]; a mass that rounding alone keeps from 1-δ is no failure."""
    return float(check_law(prompts) @ (set_mass(policy, subset) < 1 - delta - TIE))


def is_sharpened(prompts: ArrayLike, policy: ArrayLike, subset: Mask, epsilon: float, delta: float) -> bool:
    """Definition 3.1, or F.1 if `subset` is y*_γ."""
    return failure_share(prompts, policy, subset, delta) <= epsilon + TIE


def c_cov_single(prompts: ArrayLike, base: ArrayLike) -> float:
    """C̄_cov = E_x[1/max π_base(.|x)] >= C_cov: what the adaptive rule pays, which cannot know of ties."""
    return float(check_law(prompts) @ np.exp(-np.max(base, axis=-1)))


def margin(reward: ArrayLike) -> float:
    """γ_margin = min over x and y' outside y* of max π_base(.|x)/π_base(y'|x) - 1 (Assumption 4.2); may be infinite."""
    reward = np.asarray(reward, dtype=np.float64)
    gap = reward.max(-1, keepdims=True) - reward
    return float(np.expm1(np.min(gap, where=~top_set(reward), initial=np.inf)))


def mean(prompts: ArrayLike, policy: ArrayLike, values: Array) -> float:
    """E_x E_π[values], [X, K] each; impossible responses do not count, whatever their value."""
    weight = np.exp(policy)
    return float(check_law(prompts) @ np.multiply(weight, values, out=np.zeros_like(weight), where=weight > 0).sum(-1))


def log_ratio(policy: ArrayLike, other: ArrayLike) -> Array:
    """log π/π', [X, K]; 0 where both are impossible."""
    policy, other = np.asarray(policy, dtype=np.float64), np.asarray(other, dtype=np.float64)
    return np.subtract(policy, other, out=np.zeros_like(policy), where=(policy > -np.inf) | (other > -np.inf))


def concentrability(prompts: ArrayLike, policy: ArrayLike, other: ArrayLike, power: float = 1.0) -> float:
    """C_{π/π';power} = E_π[(π/π')^power]; at power 1 and π' = π_base it is C_π (Eq. 9)."""
    return mean(prompts, policy, np.exp(power * log_ratio(policy, other)))


def divergence(prompts: ArrayLike, policy: ArrayLike, other: ArrayLike) -> float:
    """E_x KL(π || π'), in nats."""
    return mean(prompts, policy, log_ratio(policy, other))


def target(base: ArrayLike, beta: float, reward: ArrayLike | None = None) -> Array:
    """log π*_β [X, K], by default of the self-reward log π_base; β = 0 is the limit, π_base on its best responses."""
    base = check_logs(base)
    reward = base if reward is None else np.asarray(reward, dtype=np.float64)
    if beta == 0:
        return restricted(base, top_set(reward))
    if beta < 0:
        raise ValueError(f"beta must be >= 0, not {beta}")
    return log_softmax(base + reward / beta, axis=-1)


def restricted(base: ArrayLike, subset: Mask) -> Array:
    """log π_base(.|subset), [X, K]; π† if `subset` is y*."""
    return log_softmax(np.where(subset, base, -np.inf), axis=-1)


def objective(
    prompts: ArrayLike, policy: ArrayLike, base: ArrayLike, beta: float, reward: ArrayLike | None = None
) -> float:
    """J_β(π) = E_π[r] - β KL(π || π_base), r = log π_base by default."""
    values = np.asarray(base if reward is None else reward, dtype=np.float64)
    return mean(prompts, policy, values) - beta * divergence(prompts, policy, base)


def best_objective(prompts: ArrayLike, base: ArrayLike, beta: float) -> float:
    """J_β(π*_β) = β E_x log E_π_base exp(r/β), r = log π_base; the paper's J.1 prints it without the two β."""
    base = check_logs(base)
    return float(beta * (check_law(prompts) @ logsumexp(base + base / beta, axis=-1)))


def beta_threshold(gamma_margin: float, responses: int, delta: float) -> float:
    """γ/(2 log(2|Y|/δ)): at this β or below π*_β(y*) >= 1-δ/2.

    A response outside y* has π*_β at most (1+γ)^-(1+1/β) <= e^(-γ/2β) = δ/2|Y|. The first step needs γ <= 2.5 (the
    paper: γ < 1); a base of a larger margin has margin 1 too, which is what counts then.
    """
    if not gamma_margin > 0:
        raise ValueError(f"the threshold needs a margin above 0, not {gamma_margin}")
    return min(gamma_margin, 1.0) / (2 * np.log(2 * responses / delta))


def squared_residual(prompts: ArrayLike, policy: ArrayLike, base: ArrayLike, beta: float) -> float:
    """E_{x, y ⊗ y' ~ π_base}[Δ²] = 2 E_x Var_π_base(h): the loss of RLHF-Sharpening (Eq. 8) on all pairs."""
    base = check_logs(base)
    h = np.subtract(beta * log_ratio(policy, base), base, out=np.zeros_like(base), where=base > -np.inf)
    centred = h - (np.exp(base) * h).sum(-1, keepdims=True)
    return 2 * mean(prompts, base, centred**2)


def margin_step(prompts: ArrayLike, policy: ArrayLike, base: ArrayLike, delta: float) -> float:
    """δ log(1+γ_margin) Pr_x[π(y*) < 1-δ]: what failing prompts cost of J_0 at least."""
    return delta * np.log1p(margin(base)) * failure_share(prompts, policy, top_set(base), delta)


def regret_bound(prompts: ArrayLike, policy: ArrayLike, base: ArrayLike, beta: float) -> float:
    """(√C_cov + √C_π) √E Δ² + β KL(π† || π_base) - β KL(π || π_base) >= J_0(π†) - J_0(π)."""
    dagger = restricted(base, top_set(base))
    c_cov, c_policy = concentrability(prompts, dagger, base), concentrability(prompts, policy, base)
    regression = (np.sqrt(c_cov) + np.sqrt(c_policy)) * np.sqrt(squared_residual(prompts, policy, base, beta))
    return regression + beta * (divergence(prompts, dagger, base) - divergence(prompts, policy, base))


def sharpening_divergence(delta: float) -> float:
    """kl(δ || δ/2): the least KL(π || π') of a π with π(y*) <= 1-δ and a π' with π'(y*) >= 1-δ/2."""
    return float(rel_entr([delta, 1 - delta], [delta / 2, 1 - delta / 2]).sum())


def greedy(conditionals: Conditionals, horizon: int) -> Record:
    """The record of the most likely token after most likely token; ties by id, within `TIE`."""
    record: Record = ()
    while len(record) < horizon and record in conditionals:
        record = (*record, int(np.argmax(top_set(conditionals[record]))))
    return record


def hypercube_c_cov(d: int, gamma: float = 0.0) -> float:
    """C_cov,γ of π_θ(y) ∝ exp⟨y, θ⟩ on {±1/√d}^d at θ = y*: (1 + e^(-2/d))^d at γ = 0, claims T21 and T28.

    A response with k bits unlike y* is e^(-2k/d) times as likely as y*, and k is Binomial(d, σ(-2/d)); so y*_γ is the
    Hamming ball of the greatest radius k with γ >= 1 - e^(-2k/d).
    """
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma must be in [0, 1), not {gamma}")
    radius = np.floor(-np.log1p(-gamma) * d / 2 + TIE * d)
    return float(np.exp(-binom.logcdf(radius, d, 1 / (1 + np.exp(2 / d)))))
