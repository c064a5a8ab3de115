"""The power distribution p^α: its distribution on records, its conditionals, and how it differs from low temperature.

A model is a table of `conditionals`: {open prefix: log p(.|prefix) [vocab]}, as toy.tabular.enumerate_law returns it. A
record of horizon H is a text that ended (no distribution follows it) at length <= H, or is open at length H. On these

    π(x) = p(x)^α / Z,   log p(x) = Σ_t log p(x_t|x_<t),   Z = Σ_x p(x)^α             power law
    π(v|h) ∝ p(v|h)^α F(h,v),   F(h) = Σ_rest p(rest|h)^α, 1 for a record             its conditionals, claim P2
    q_τ(v|h) = p(v|h)^(1/τ) / exp ζ(h),   ζ(h) = log Σ_v p(v|h)^(1/τ)                 low temperature

so power sampling looks ahead (F) where low temperature does not, and the two agree at the last position. With
τ = 1/α,   α log p(x) - log q(x) = Σ_t ζ(x_<t): a record's weight needs one number per token      claim P3
Sources: 2510.14901 (Karan & Du, "Reasoning with Sampling"), Eqs. 7 and 8, Example 1, Proposition 3; 2601.21590
(Ji et al.), Theorem 3.1; 2605.04542 (Tomihari & Sato) for the objective. float64; log-probabilities are natural.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, logsumexp, rel_entr, softmax

Record = tuple[int, ...]
Law = NDArray[np.float64]
Conditionals = Mapping[Record, Law]  # open prefix -> log-probabilities of the next token [vocab]


def record_logps(conditionals: Conditionals, horizon: int) -> tuple[list[Record], Law]:
    """(records of `horizon` in lexicographic order, log-probabilities [n]) of any table: base, tempered or power."""
    if horizon < 1 or () not in conditionals:
        raise ValueError(f"records need a distribution of the first token and a horizon >= 1, not {horizon}")
    logp: dict[Record, float] = {(): 0.0}
    for prefix in sorted((text for text in conditionals if len(text) < horizon), key=len):
        if prefix in logp:  # else the table cannot reach it
            law = conditionals[prefix]
            logp |= {(*prefix, int(v)): logp[prefix] + law[v] for v in np.flatnonzero(law > -np.inf)}
    records = sorted(text for text in logp if len(text) == horizon or text not in conditionals)
    return records, np.array([logp[record] for record in records])


def power_law(logp: ArrayLike, alpha: float) -> Law:
    """p^α normalised, [n], of log-probabilities [n]; they need not be normalised."""
    return softmax(alpha * np.asarray(logp, dtype=np.float64))


def tempered(conditionals: Conditionals, tau: float) -> dict[Record, Law]:
    """q_τ: every conditional to the power 1/τ, renormalised. The low-temperature distribution of records is its
    product."""
    return {prefix: log_softmax(law / tau) for prefix, law in conditionals.items()}


def top_k(conditionals: Conditionals, k: int) -> dict[Record, Law]:
    """Each conditional restricted to its k likeliest tokens (exactly k, ties by id) and renormalised."""
    filtered = {}
    for prefix, law in conditionals.items():
        kept = np.argsort(-law, kind="stable")[:k]
        filtered[prefix] = np.full_like(law, -np.inf)
        filtered[prefix][kept] = log_softmax(law[kept])
    return filtered


def zeta(conditionals: Conditionals, alpha: float) -> dict[Record, float]:
    """ζ(h) = log Σ_v p(v|h)^α = (1-α) times the Rényi entropy of order α; <= 0 iff α >= 1."""
    return {prefix: float(logsumexp(alpha * law)) for prefix, law in conditionals.items()}


def future(conditionals: Conditionals, alpha: float, horizon: int) -> dict[Record, float]:
    """log F(h) of every open prefix shorter than `horizon`, by recursion from the end. log F(()) = log Z."""
    log_f: dict[Record, float] = {}
    for prefix in sorted((text for text in conditionals if len(text) < horizon), key=len, reverse=True):
        ahead = np.array([log_f.get((*prefix, v), 0.0) for v in range(len(conditionals[prefix]))])
        log_f[prefix] = float(logsumexp(alpha * conditionals[prefix] + ahead))
    return log_f


def power_conditionals(conditionals: Conditionals, alpha: float, horizon: int) -> dict[Record, Law]:
    """log π(v|h) = α log p(v|h) + log F(h,v) - log F(h) of every open prefix shorter than `horizon`."""
    log_f = future(conditionals, alpha, horizon)
    law: dict[Record, Law] = {}
    for prefix, own in log_f.items():
        ahead = [log_f.get((*prefix, v), 0.0) for v in range(len(conditionals[prefix]))]
        law[prefix] = alpha * conditionals[prefix] + ahead - own
    return law


def objective(law: ArrayLike, logp: ArrayLike, beta: float) -> float:
    """J(distribution) = E_law[log p] - β KL(distribution || p); greatest, and equal to β log Σ p^α, at p^α with α = 1 +
    1/β."""
    law, logp = np.asarray(law, dtype=np.float64), np.asarray(logp, dtype=np.float64)
    return float(law @ logp - beta * np.sum(rel_entr(law, np.exp(logp))))


# --- How the distribution moves with α
# ----------------------------------------------------------------------------------------


def slope(logp: ArrayLike, alpha: float, reward: ArrayLike) -> float:
    """d/dα E_{π_α}[reward] = Cov_{π_α}(reward, log p).                                                     claim P25"""
    law, logp = power_law(logp, alpha), np.asarray(logp, dtype=np.float64)
    return float(law @ (logp * reward) - (law @ logp) * (law @ np.asarray(reward)))


def separation(logp: ArrayLike, alpha: float, correct: NDArray[np.bool_]) -> tuple[float, float]:
    """(δ, dδ/dα): δ(α) = E_{π_α}[log p | correct] - E_{π_α}[log p | not], so that P = π_α(correct) has
    dP/dα = P (1-P) δ; dδ/dα = Var[log p | correct] - Var[log p | not]; δ(∞) = max log p of the ones - of the others."""
    logp = np.asarray(logp, dtype=np.float64)
    moments = [
        (law @ part, law @ part**2) for part in (logp[correct], logp[~correct]) for law in [power_law(part, alpha)]
    ]
    (mean, square), (other, other_square) = moments
    return float(mean - other), float(square - mean**2 - other_square + other**2)


# --- Proposition 3: pivotal tokens -----------------------------------------------------------------------------------


def pivotal_log_odds(epsilon: float, epsilon_spread: float, futures: int, alpha: float) -> tuple[float, float]:
    """(under p^α, under low temperature): the log odds of a token of probability ε whose future is certain over one of
    probability ε' whose `futures` N futures are even.

    Power: log ε^α - log N (ε'/N)^α. Low temperature: log ε^α - log ε'^α.
    """
    ratio = np.log(epsilon / epsilon_spread)
    return float(alpha * ratio + (alpha - 1) * np.log(futures)), float(alpha * ratio)


def pivotal_threshold(epsilon_spread: float, futures: int, alpha: float) -> float:
    """ε'/N^(1-1/α): power sampling prefers the certain future iff ε is greater, low temperature iff ε > ε'."""
    return float(epsilon_spread / futures ** (1 - 1 / alpha))


# --- A model whose tokens are independent ----------------------------------------------------------------------------


@dataclass(frozen=True)
class GeometricLM:
    """Independent tokens: the stop token has probability e, each of V others (1-e)/V. Everything is in closed form.

    The V^(n-1) records that end at length n weigh e^α ρ^(n-1) together, those open at the horizon H weigh ρ^H, with
    ρ = V ((1-e)/V)^α; ζ = log(e^α + ρ) at every position.                                                   claim P23
    """

    stop: float  # e, in (0, 1)
    others: int  # V

    def rho(self, alpha: float) -> float:
        return (1 - self.stop) ** alpha * self.others ** (1 - alpha)

    def zeta(self, alpha: float) -> float:
        return float(np.log(self.stop**alpha + self.rho(alpha)))

    def power_lengths(self, alpha: float, horizon: int) -> Law:
        """Pr[length = 1..H] under p^α on records of horizon H, [H]. At α = 1 the base distribution."""
        rho = self.rho(alpha)
        weight = self.stop**alpha * rho ** np.arange(horizon)
        weight[-1] += rho**horizon
        return weight / weight.sum()

    def power_mean_length(self, alpha: float) -> float:
        """1/(1-ρ), without a horizon: never more than the base's 1/e."""
        return 1 / (1 - self.rho(alpha))

    def low_temperature_stop(self, alpha: float) -> float:
        """e^α/(e^α + ρ): the chance to stop at temperature 1/α; below e iff e < (1-e)/V."""
        return float(self.stop**alpha / np.exp(self.zeta(alpha)))

    def log_acceptance(self, alpha: float, length: int, proposed: int) -> float:
        """log of the Metropolis-Hastings ratio at proposal temperature 1/α: ζ times the change in length."""
        return self.zeta(alpha) * (proposed - length)
