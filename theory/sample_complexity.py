"""How many samples sharpening takes: upper bounds with explicit constants, and the instance on which they are needed.

n prompts x ~ μ, N responses to each from π_base, m = n N pairs, a finite class Π of policies that realises the target;
each bound holds with probability 1-ρ. With κ = (1 - 2^-1/2)² = 0.0858 and the un-normalised D_H² = Σ (√p - √q)²:

    MLE             E_x D_H²(π̂, π) <= 2 log(|Π|/ρ) / n                                               Lemma F.1, claim
                    T9
    SFT             Pr_x[π̂(y*_γ) < 1-δ] <= 2 log(|Π|/ρ) / (κ δ n) + C_cov,γ / N*,  N = N* log(2/δ)    Thm 4.1′, T10
    adaptive SFT    Pr_x[π̂(y*) < 1-δ] <= 2 log(|Π|/ρ) / (κ δ n),  E[m] <= n (1 + log(2/δ)) C̄_cov      Thm D.1
    RLHF (pairs)    E Δ² <= R² log(|Π|/ρ) / n, hence with `sharpening.regret_bound` (Thm 4.2)           claim T14
                    Pr_x[π̂(y*) < 1-δ] <= ((√C_cov + √C_conc) R √(log(|Π|/ρ)/n) + β log C_cov) / (δ log(1+γ_margin))

SFT: where N* >= 1/π_base(y*_γ) a label misses y*_γ with probability at most e^(-log(2/δ)) = δ/2, and a policy that
misses it with more than δ has D_H² > κ δ there; the other prompts have μ at most C_cov,γ/N* (Markov). RLHF: the loss is
free of noise, so its minimiser has loss 0 on the n pairs, as a policy with |Δ| <= R, E Δ² > s has with probability at
most (1 - s/R²)^n. With both terms of SFT at ε/2, m ∝ 1/ε²; the adaptive bound gives 1/ε. Both rates are needed:

    hard instance   x_0 is trivial; x_1..x_d, of μ = Δ/d each, have M responses, of which one hidden has 1/((1-γ)M) and
                    the others less than 1/M                                                        App. H, claim T13
    C_cov,γ,p = ((1-Δ) + Δ (M(1-γ))^p)^(1/p);  m ≳ C log|Π| / (ε^(1+1/p) (1 + log(C ε^(-1/p)))), adaptive ε^(1/p)

Fixed N must pay M at every prompt to find what hides in a share Δ of them; adaptive N pays it only there     claim T12
Where the mass of what counts as right varies over prompts like Beta(a, b)                                    claim T31

    1 - pass@k = E (1-p)^k = B(a, b+k)/B(a, b) ~ Γ(a+b)/Γ(b) k^-a,   C_cov = E[1/p] = (a+b-1)/(a-1) if a > 1, else ∞

Sources: 2412.01951 (Huang et al.); 2502.17578 for the power law. float64 numpy.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaln, gammaln

from theory.best_of_n import adaptive_law, check_law

Array = NDArray[np.float64]
KAPPA = (1 - 2**-0.5) ** 2  # (√δ - √(δ/2))² / δ; the paper has 1/12 in its place


def check_rates(**rates: float) -> None:
    """Each of epsilon, delta, rho must be in (0, 1)."""
    for name, value in rates.items():
        if not 0 < value < 1:
            raise ValueError(f"{name} must be in (0, 1), not {value}")


# --- upper bounds ----------------------------------------------------------------------------------------------------


def hellinger(p: ArrayLike, q: ArrayLike) -> Array:
    """D_H² = Σ (√p - √q)² over the last axis: at most 2, reached by distributions that share no response."""
    return ((np.sqrt(p) - np.sqrt(q)) ** 2).sum(-1)


def mle_bound(log_class: float, n: float, rho: float) -> float:
    """2 log(|Π|/ρ)/n >= E_x D_H²(π̂, π). A policy beats the truth on n pairs with probability <= (1 - D_H²/2)^n."""
    check_rates(rho=rho)
    return 2 * (log_class - np.log(rho)) / n


def sft_draws(n_star: float, delta: float) -> int:
    """N = N* log(2/δ), rounded up: Theorem 4.1′, where the logarithm is outside N*."""
    check_rates(delta=delta)
    return int(np.ceil(n_star * np.log(2 / delta)))


def sft_failure_bound(
    log_class: float, n: float, rho: float, delta: float, n_star: float = np.inf, coverage: float = 1.0
) -> float:
    """Pr_x[π̂(y*_γ) < 1-δ] for SFT-Sharpening; n_star = ∞ is the adaptive rule with μ = log(2/δ)."""
    check_rates(delta=delta)
    return mle_bound(log_class, n, rho) / (KAPPA * delta) + coverage / n_star


def sft_sizes(log_class: float, epsilon: float, rho: float, delta: float, coverage: float) -> tuple[int, int]:
    """(n, N) with which `sft_failure_bound` is at most ε, half of it from each term. m = n N grows like 1/ε²."""
    check_rates(epsilon=epsilon)
    n = int(np.ceil(2 * sft_failure_bound(log_class, 1, rho, delta) / epsilon))
    return n, sft_draws(2 * coverage / epsilon, delta)


def adaptive_sizes(log_class: float, epsilon: float, rho: float, delta: float, coverage: float) -> tuple[int, float]:
    """(n, the bound n (1+μ) C̄_cov on E[m]), μ = log(2/δ), with which the failure bound is at most ε: 1/ε."""
    check_rates(epsilon=epsilon)
    n = int(np.ceil(sft_failure_bound(log_class, 1, rho, delta) / epsilon))
    return n, float(n * (1 + np.log(2 / delta)) * coverage)


def pair_loss_bound(log_class: float, n: float, rho: float, reach: float) -> float:
    """R² log(|Π|/ρ)/n >= E Δ² of every policy with loss 0 on n pairs, where |Δ| <= R = `reach` on the class."""
    return reach**2 * mle_bound(log_class, n, rho) / 2


def dpo_failure_bound(
    log_class: float, n: float, rho: float, delta: float, *,
    reach: float, beta: float, gamma_margin: float, coverage: float, concentration: float,
) -> float:  # fmt: skip
    """Pr_x[π̂(y*) < 1-δ] for RLHF-Sharpening on n pairs; concentration: C_conc >= C_π of the whole class."""
    check_rates(delta=delta)
    loss = pair_loss_bound(log_class, n, rho, reach)
    regret = (np.sqrt(coverage) + np.sqrt(concentration)) * np.sqrt(loss) + beta * np.log(coverage)
    return float(regret / (delta * np.log1p(gamma_margin)))


# --- lower bounds and their instance ---------------------------------------------------------------------------------


def lower_bound(log_class: float, coverage: float, epsilon: float, p: float = 1.0, *, adaptive: bool = False) -> float:
    """C log|Π| / (ε^(1+1/p) (1 + log(C ε^(-1/p)))), or with ε^(1/p) if adaptive: m up to an unknown constant."""
    check_rates(epsilon=epsilon)
    power = 1 / p if adaptive else 1 + 1 / p
    return float(coverage * log_class / (epsilon**power * (1 + np.log(coverage * epsilon ** (-1 / p)))))


def hidden_law(responses: int, hidden: int, gamma: float = 0.5) -> Array:
    """P_i on y_1..y_M, [M]: the hidden one has 1/((1-γ)M), the others share the rest."""
    if not 0 <= gamma < 1 or responses * (1 - gamma) < 1 or responses < 2:
        raise ValueError(f"the instance needs M >= 2, 1/(1-gamma); M is {responses} and gamma is {gamma}")
    law = np.full(responses, (1 - gamma / ((responses - 1) * (1 - gamma))) / responses)
    law[hidden] = 1 / ((1 - gamma) * responses)
    return law


def hard_instance(hidden: ArrayLike, responses: int, rare: float, gamma: float = 0.5) -> tuple[Array, Array]:
    """(prompts [d+1], bases [d+1, M+1]) of the base model π^I, I = `hidden` [d]; `rare`: the mass Δ of x_1..x_d."""
    hidden = np.asarray(hidden)
    prompts = np.append(1 - rare, np.full(len(hidden), rare / len(hidden)))
    bases = np.zeros((len(hidden) + 1, responses + 1))
    bases[0, 0] = 1
    bases[1:, 1:] = [hidden_law(responses, i, gamma) for i in hidden]
    return prompts, bases


def hard_c_cov(responses: int, rare: float, gamma: float = 0.5, p: float = 1.0) -> float:
    """C_cov,γ,p of the instance, as the hidden response is all of y*_γ."""
    return float(((1 - rare) + rare * (responses * (1 - gamma)) ** p) ** (1 / p))


def bayes_error(responses: int, draws: int) -> Array:
    """The least probability of not naming the hidden response (γ = 1/2) after k draws at its prompt, [draws + 1].

    A draw of it is recognised, as likelihoods are seen. If it was not drawn, (1 - 2/M)^k, the draws were uniform over
    the other M-1, and it is equally likely to be each of the M - D responses not drawn: the best guess is one of them.
    """
    distinct = np.arange(responses)  # D = 0..M-1, whose distribution is the coupon collector's
    law, errors = np.eye(1, responses)[0], np.empty(draws + 1)
    for k in range(draws + 1):
        errors[k] = (1 - 2 / responses) ** k * (1 - np.sum(law / (responses - distinct)))
        repeat = distinct / (responses - 1)
        law = law * repeat + np.append(0.0, (law * (1 - repeat))[:-1])
    return errors


def fixed_pairs(responses: int, rare: float, miss: float) -> float:
    """The least m = n N, over N, with which the hidden response of one rare prompt stays undrawn w.p. at most `miss`.

    A visit of mass `rare` draws it with 1 - (1-2/M)^N, all visits count: n = log(miss)/log(1 - rare (1 - (1-2/M)^N)).
    n is not rounded, so that the scaling is exact.
    """
    draws = np.arange(1, 4 * responses)
    visit = -np.expm1(draws * np.log1p(-2 / responses))
    return float(np.min(draws * np.log(miss) / np.log1p(-rare * visit)))


def adaptive_pairs(responses: int, rare: float, miss: float, mu: float) -> float:
    """E[m] = n E[N_μ] of the adaptive rule at the same task, exact by `best_of_n.adaptive_law`; d = 1."""
    prompts, bases = hard_instance([0], responses, rare)
    laws = [adaptive_law(base, mu) for base in bases]
    n = np.log(miss) / np.log1p(-rare * laws[1].response[1])
    return float(n * (prompts @ [law.mean for law in laws]))


# --- pass@k over prompts ---------------------------------------------------------------------------------------------


def plug_in_pass_at_k(n: int, correct: int, k: int) -> float:
    """1 - (1 - c/n)^k, the biased estimate."""
    return float(1 - (1 - correct / n) ** k)


def beta_failure(a: float, b: float, k: ArrayLike) -> Array:
    """E (1-p)^k for p ~ Beta(a, b): 1 - pass@k, and the failure of best-of-k if p is the mass of y*."""
    return np.exp(betaln(a, b + np.asarray(k, dtype=np.float64)) - betaln(a, b))


def beta_tail(a: float, b: float, k: ArrayLike) -> Array:
    """Γ(a+b)/Γ(b) k^-a, to which `beta_failure` is asymptotic."""
    return np.exp(gammaln(a + b) - gammaln(b)) * np.asarray(k, dtype=np.float64) ** -a


def beta_c_cov(a: float, b: float) -> float:
    """E[1/p] = (a+b-1)/(a-1); infinite for a <= 1, where the failure falls slower than 1/k."""
    return (a + b - 1) / (a - 1) if a > 1 else np.inf


def mixture_failure(prompts: ArrayLike, masses: ArrayLike, n: ArrayLike) -> Array:
    """E_x (1 - p_x)^n for an array of n."""
    with np.errstate(divide="ignore"):
        logs = np.log1p(-np.asarray(masses, dtype=np.float64))
    return np.exp(np.multiply.outer(np.asarray(n, dtype=np.float64), logs)) @ check_law(prompts)
