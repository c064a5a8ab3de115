"""Parallel tempering for p^α: the exact distribution of K chains that swap what they hold (PPT, Theodoropoulos et al.
2026).

Rung k = 1..K targets π_k ∝ p^(α_k), α_1 < ... < α_K; the last is the one that is wanted. The joint distribution of the
rungs' records is an array [n, ..., n] with one axis for each. A round is N steps of each rung's own kernel, then the
swaps of neighbours (1, 2), (2, 3), ... in that order: records x and y of rungs k and k + 1 change places with
probability

    min(1, exp((α_{k+1} - α_k) (log p(x) - log p(y)))),       in detailed balance with π_k(x) π_{k+1}(y).

Both keep Π_k π_k, so do rounds of them, and rung k of a draw of it has the distribution π_k. claim P17

When a ladder cannot hurt. Let the record y above the cold rung be an exact draw of π_{K−1} that is independent of the
cold record: so it is in the first round of (1, α), whose hot rung begins with a draw of p, and in every round if the
hot rung is drawn anew each time. Then the swap moves the cold record by the kernel S of an independence sampler with
proposal π_{K−1} (`fresh_swap`), which is reversible with respect to π_K, and a round of the cold rung is K S. A kernel
that keeps π_K never increases the total variation to it: TV(μ K S, π_K) ≤ TV(μ K, π_K). And in L²(π_K), on functions
of mean 0, ‖K S‖ ≤ ‖K‖ ‖S‖ ≤ ‖K‖ = max |λ|: the rate is never worse. As ladders are run neither condition holds beyond
the first round, or for a middle rung in any: they may be farther, and sometimes are.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from theory import power
from theory.markov_chain import Chain, chain
from theory.power import Conditionals, Law


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


def fresh_swap(logp: Law, low: float, high: float) -> Law:
    """S [n, n]: the colder record after a swap with an independent draw of p^low, normalised."""
    moves = power.power_law(logp, low) * swap_chance(logp, low, high).T
    return moves + np.diag(1 - moves.sum(1))


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
