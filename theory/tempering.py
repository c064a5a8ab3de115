"""Parallel tempering for p^α: the exact distribution of K chains that swap what they hold (PPT, Theodoropoulos et al.
2026).

Rung k = 1..K targets π_k ∝ p^(α_k), α_1 < ... < α_K; the last is the one that is wanted. The joint distribution of the
rungs' records is an array [n, ..., n] with one axis for each. A round is N steps of each rung's own kernel, then the
swaps of neighbours (1, 2), (2, 3), ... in that order: records x and y of rungs k and k + 1 change places with
probability

    min(1, exp((α_{k+1} - α_k) (log p(x) - log p(y)))),       in detailed balance with π_k(x) π_{k+1}(y).

Both keep Π_k π_k, so do rounds of them, and rung k of a draw of it has the distribution π_k. claim P17

Is the cold rung ever farther from π_K than a single chain after as many rounds? With (1, 2, 4) it can be: three records
suffice. Two things are true of two rungs, the hot one at α_1.

(a) If the hot rung starts at π_1 (α_1 = 1 does: τ = 1 draws from p), the *first* round is never farther: the joint
    distribution before the swap is π_1 ⊗ μK, so the cold rung's after it is μKQ, Q the Metropolis-Hastings step for π_2
    that proposes from π_1; and TV(νQ, π) <= TV(ν, π), since Q keeps π.
(b) If the hot rung is drawn anew from π_1 in each step (`redrawn`; α_1 = 1 with the cut at 1 is) and the cold one
    always cuts at 1, *no* round is farther, provided that w = π/q rises with p: a censoring inequality (Peres & Winkler
    2013). The swap's partner being fresh, n rounds are (KQ)^n. Order the records by p. K and Q are independence
    samplers whose weights π/q and π/π_1 rise in that order, so both are monotone: from x the chance to move above c is
    Σ_{y>c} q(y) for x <= c and 1 - Σ_{y<=c} π(y)/w(x) for x > c, which rises with x and is the larger. Both are
    reversible, so they take a decreasing μ/π, such as q/π, to a decreasing one. On such μ, Q moves mass up: with
    f = μ/π and g = 1{. <= c} both decreasing, Σ_{x<=c} (μ - μQ)(x) = ½ Σ π(x) Q(x, y) (f(x) - f(y)) (g(x) - g(y)) >= 0.
    By induction q(KQ)^n is stochastically above qK^n. Both ratios to π decrease, so each TV is the greatest excess of
    mass over π on a set {. <= c}, and the ladder's is the smaller one.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from theory import power
from theory.markov_chain import Chain, chain
from theory.power import Conditionals, Law, Record


def product(laws: Sequence[Law]) -> Law:
    """The joint distribution [n, ..., n] of independent rungs."""
    joint = np.ones(())
    for law in laws:
        joint = np.multiply.outer(joint, law)
    return joint


def marginal(joint: Law, rung: int) -> Law:
    """[n]"""
    return joint.sum(tuple(axis for axis in range(joint.ndim) if axis != rung % joint.ndim))


def step_all(joint: Law, kernels: Sequence[Law]) -> Law:
    """One step of every rung by its own kernel [n, n]."""
    for rung, kernel in enumerate(kernels):
        joint = np.moveaxis(np.tensordot(joint, kernel, (rung, 0)), -1, rung)
    return joint


def swap_chance(logp: Law, low: float, high: float) -> Law:
    """[n, n]: at (x, y), x on the rung of exponent `low` and y on that of `high`."""
    return np.exp(np.minimum((high - low) * (logp[:, None] - logp), 0))


def swap(joint: Law, logp: Law, alphas: Sequence[float], rung: int) -> Law:
    """The distribution after rungs `rung` and `rung + 1` (from 0) have tried to swap."""
    joint = np.moveaxis(joint, (rung, rung + 1), (-2, -1))
    swapped = joint * swap_chance(logp, alphas[rung], alphas[rung + 1])
    return np.moveaxis(joint - swapped + swapped.swapaxes(-1, -2), (-2, -1), (rung, rung + 1))


def swap_rate(logp: Law, low: float, high: float) -> float:
    """How often neighbours swap once both have converged: Σ_{x,y} min(π(x) π'(y), π'(x) π(y)), that is 1 - the total
    variation between the pair and the swapped pair."""
    joint = product([power.power_law(logp, low), power.power_law(logp, high)])
    return float(np.minimum(joint, joint.T).sum())


def rungs(conditionals: Conditionals, alphas: Sequence[float], **setting: object) -> list[Chain]:
    """Each rung's chain; `setting` as in markov_chain.Setting, the proposal temperature by default its own 1/α_k."""
    if list(alphas) != sorted(set(alphas)):
        raise ValueError(f"the rungs need exponents in rising order, not {list(alphas)}")
    return [chain(conditionals, alpha=alpha, **setting) for alpha in alphas]  # type: ignore[arg-type]


def redrawn(records: list[Record], law: Law) -> Chain:
    """The chain [n] that draws from its target itself in each step."""
    return Chain(records, law, np.tile(law, (len(law), 1)), law)


def weight_rises(cold: Chain, logp: Law) -> bool:
    """Whether π/q never falls as p rises: the condition of (b)."""
    w = cold.target / cold.initial
    return bool(np.diff(w[np.argsort(logp)]).min() >= -1e-12 * w.max())


def rounds(chains: Sequence[Chain], logp: Law, alphas: Sequence[float], steps: int = 1) -> Iterator[Law]:
    """The joint distribution before the first round and after each, for ever; every rung starts with a draw of its
    proposal."""
    joint = product([chain.initial for chain in chains])
    while True:
        yield joint
        for _ in range(steps):
            joint = step_all(joint, [chain.kernel for chain in chains])
        for rung in range(len(alphas) - 1):
            joint = swap(joint, logp, alphas, rung)
