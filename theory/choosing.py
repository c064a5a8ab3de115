"""Which sampler, at what price: best-of-N beside p^α, the gap where all is closed, blocks at equal tokens.

Best-of-N by log p against p^α (claim T38). For any q, with π_α = p^α/Z,

    KL(q‖π_α) = KL(q‖p) − (α−1) E_q log p + log Z,

and 0 = KL(π_α‖p) − (α−1) E_{π_α} log p + log Z. So where KL(q‖p) = KL(π_α‖p), E log p under π_α exceeds that under q by
exactly KL(q‖π_α)/(α−1), and TV(q, π_α)² ≤ half of that KL (Pinsker). Which α an N replaces depends on how log p is
spread: for log p normal under p with variance s², KL(π_α‖p) = (α−1)² s²/2 and the win rate against p is Φ((α−1)s/√2),
while best of N has at most log N − (N−1)/N and N/(N+1).

The gap of independent tokens (claim P35), stop probability e, V others, ρ = (1−e)^α V^(1−α), z = e^α + ρ, cut uniform
on 1..H, proposal temperature 1/α. w = π/q is z^|x|/Z, greatest at |x| = 1 since z ≤ 1, and a text may end at its first
token; so by claim P7 the gap is 1/(H w*) = Z/(H z), with

    Z = e^α (1 + ρ + .. + ρ^(H−1)) + ρ^H = (e^α + (1−z) ρ^H)/(1−ρ),    so    H gap = (e^α + (1−z) ρ^H)/((1−ρ) z).

In H the gap falls exponentially, by ρ a token, while texts that are open at H outweigh the ended ones, (1−z) ρ^H > e^α,
and like 1/H behind that. In α, with b = (1−e)/V < 1: Z is the sum of V^(n−1) (e b^(n−1))^α, n = 1..H, and V^H b^(Hα),
so at least max(e, b^H)^α and at most 1 + V + .. + V^H times that; z is at least max(e, b)^α, at most 1 + V times that:

    −log(1 + V) ≤ log(H gap) − α L ≤ log(1 + V + .. + V^H),    L = log max(e, b^H) − log max(e, b),

and log gap/α → L: 0 iff e ≥ b or H = 1; otherwise the gap falls like (e/b)^α if b^H ≤ e, like b^((H−1)α) if b^H > e.

Blocks (claim P36): chains of N or N+1 steps a block, by a coin that makes the expected decoded tokens what is asked.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from theory.best_of_n import kl, kl_bound, level_masses, level_sets
from theory.blocked_chain import blocked_law
from theory.cost import expected_tokens
from theory.power import Conditionals, GeometricLM, Law, power_law

# --- Best-of-N and p^α -----------------------------------------------------------------------------------------------


def win_rate(law: Law, base: Law, reward: Law) -> float:
    """Pr[r(y) > r(y')] + Pr[r(y) = r(y')]/2, y ~ law, y' ~ base, all [n]; equal as for best-of-N."""
    rank = level_sets(reward)
    ahead = rank[:, None] - rank
    return float(law @ (np.where(ahead == 0, 0.5, ahead > 0) @ base))


def matched_alpha(logp: Law, divergence: float, most: float = 1e4) -> float:
    """α ≥ 1 with KL(p^α ‖ p) = divergence. ValueError: no α has so much."""
    base = np.exp(logp)

    def off(alpha: float) -> float:
        return kl(power_law(logp, alpha), base) - divergence

    if off(most) < 0:
        raise ValueError(f"KL(p^α ‖ p) stays below {divergence}; a divergence below −log max p has an α")
    return float(brentq(off, 1.0, most, xtol=1e-13))


def excess(law: Law, logp: Law, alpha: float) -> float:
    """E_{π_α} log p − E_law log p, which is KL(law ‖ π_α)/(α−1) where both have one KL to p."""
    return float((power_law(logp, alpha) - law) @ logp)


def normal_alpha(n: int, spread: float) -> float:
    """The α whose KL is best-of-N's (`kl_bound`), if log p is normal with this standard deviation under the base."""
    return 1 + math.sqrt(2 * kl_bound(n)) / spread


def normal_win_rate(alpha: float, spread: float) -> float:
    return float(norm.cdf((alpha - 1) * spread / math.sqrt(2)))


# --- The gap of independent tokens -----------------------------------------------------------------------------------


def geometric_gap(model: GeometricLM, alpha: float, horizon: int) -> float:
    """1 − λ₂ of suffix Metropolis-Hastings on the model's texts."""
    rho, z = model.rho(alpha), math.exp(model.zeta(alpha))
    total = model.stop**alpha * (1 - rho**horizon) / (1 - rho) + rho**horizon
    return total / (horizon * z)


def geometric_gap_rate(model: GeometricLM, horizon: int) -> float:
    """L, the limit of log(gap)/α as α grows: log max(e, b^H) − log max(e, b), b = (1−e)/V; never above 0."""
    other = (1 - model.stop) / model.others
    return math.log(max(model.stop, other**horizon) / max(model.stop, other))


# --- Blocks at equal tokens ------------------------------------------------------------------------------------------


def at_budget(conditionals: Conditionals, budget: float, **setting: Any) -> tuple[list, Law] | None:
    """(records, distribution) of a blocked chain that decodes `budget` tokens in expectation, its steps a block N or
    N + 1. None: the budget is below that of no step."""

    def cost(steps: int) -> float:
        return expected_tokens(conditionals, steps=steps, **setting)

    if (low := cost(0)) > budget:
        return None
    n = 0
    while (high := cost(n + 1)) < budget:
        n, low = n + 1, high
    share = (budget - low) / (high - low)
    records, law = blocked_law(conditionals, steps=n, **setting)
    return records, (1 - share) * law + share * blocked_law(conditionals, steps=n + 1, **setting)[1]


def best_block(far: Sequence[float | None], blocks: Sequence[int]) -> int:
    """The block of least distance."""
    return min((tv, block) for tv, block in zip(far, blocks) if tv is not None)[1]


def best_of_n_win_rate(base: Law, reward: Law, n: int) -> float:
    """Σ over levels of reward (F^N − F₋^N)(F + F₋)/2, F₋ < F the masses below and up to a level: a tie counts half. At
    most N/(N+1): it is ∫ m dμ over levels, m their middles, of the measure N u^(N−1) du on [0, 1], whose density
    rises, so that on each level its mean is not below m, and ∫ u dμ = N/(N+1).                            claim T40"""
    mass = level_masses(level_sets(reward), base)
    upper = np.cumsum(mass)
    lower = upper - mass
    return float(((upper**n - lower**n) * (upper + lower) / 2).sum())
