"""XPO's regret with its constants, for exact expectations: Theorem J.1 without its statistics (claim T33).

A finite class that holds π*_β; π_1 the base, and for t = 1..T−1, with E_i of y ~ π_i, y' ~ π_base,

    π_{t+1} = arg min_π  α t E_base[log π] + Σ_{i≤t} E_i[f_π²],       f_π as in theory/exploration.py.

By the regret identity (claim T17) regret_t = o_t + E_t[f_t], o_t = β E_base[log π_t − log π*_β].

1. π_t beats π*_β, whose f is 0: V_t := Σ_{i<t} E_i[f_t²] ≤ −(α/β)(t−1) o_t. So o_t ≤ 0 for t ≥ 2.
2. With s_t = E_t[f_t]²/max(λ, V_t), the terms of the SEC, E_t[f_t] ≤ (η/2) s_t + (λ + V_t)/(2η) for every η > 0.
3. η = αT/(2β): V_t/(2η) ≤ −o_t (t−1)/T ≤ −o_t. What is left of o_t is at most 0, and for t = 1 it is β KL(base ‖ π*_β):

    Σ_t regret_t ≤ β KL(base ‖ π*_β) + (αT/4β) Σ_t s_t + λβ/α,

at best, α = 2β √(λ/(T SEC)), √(λ T SEC): the mean regret falls like √(SEC/T), and C_cov is nowhere. The sampled theorem
has (R_max + V_max)² for λ, and logarithms.
"""

import numpy as np
from numpy.typing import ArrayLike

from theory.exploration import Array, World, moments, regret_identity, sec


def population_xpo(world: World, policies: ArrayLike, alpha: float, rounds: int) -> list[int]:
    """Which of the policies log π [P, X, Y] each round plays; the first is the base, and ties go to the first."""
    _, optimism, _ = regret_identity(world, policies)
    second = moments(world, policies)[1]
    played, squares = [0], np.zeros(len(optimism))
    for t in range(1, rounds):
        squares = squares + second[played[-1]]
        played.append(int(np.argmin(alpha / world.beta * t * optimism + squares)))
    return played


def regret_and_bound(
    world: World, policies: ArrayLike, played: list[int], alpha: float, regulariser: float
) -> tuple[float, float]:
    """Σ_t regret_t, and what it is at most; regulariser: λ."""
    regret, optimism, _ = regret_identity(world, policies)
    first, second = moments(world, policies)
    spent = float(sec(first, second, played, regulariser).sum())
    growth = alpha * len(played) / (4 * world.beta) * spent
    return float(regret[played].sum()), float(optimism[played[0]]) + growth + regulariser * world.beta / alpha


def best_alpha(world: World, rounds: int, coefficient: float, regulariser: float) -> float:
    """The α of least bound, for a known SEC."""
    return 2 * world.beta * float(np.sqrt(regulariser / (rounds * coefficient)))


def uniform(world: World, policies: Array) -> Array:
    """The base and π*_β put before policies log π [P, X, Y]."""
    return np.concatenate((world.base[None], np.asarray(policies), world.target[None]))
