"""Chains that sample p^α, as exact matrices: their kernels, their blocks, and how fast they converge.

The kernels are in theory/suffix_mh.py, the blocked schedule in theory/blocked_chain.py; their names are found here too.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import eigvalsh

from theory import power
from theory.blocked_chain import Stage, blocked_law, extended, horizons, run, schedule, trim
from theory.power import Conditionals, Law, Record
from theory.suffix_mh import (
    Cut,
    EntropyCut,
    Rule,
    Setting,
    Texts,
    all_texts,
    cut_counts,
    log_ratio,
    proposed,
    suffix_mh,
    with_rejections,
)

__all__ = [
    "Chain", "Cut", "EntropyCut", "Rule", "Setting", "Stage", "Texts", "all_texts", "blocked_law", "chain",
    "cut_counts", "extended", "horizons", "independence_spectrum", "log_ratio", "proposed", "run", "schedule",
    "spectral_gap", "spectrum", "stationary", "suffix_mh", "total_variation", "trim", "tv_curve", "with_rejections",
]  # fmt: skip


@dataclass(frozen=True)
class Chain:
    """One block: where the chain starts, its kernel, and what it should converge to."""

    records: list[Record]
    initial: Law  # [n]: q
    kernel: Law  # [n, n]
    target: Law  # [n]: p^α


def chain(conditionals: Conditionals, *, cuts: range | None = None, **setting: Any) -> Chain:
    """The chain on the records of the horizon (all that the proposal can draw), for `cuts` or those of the rule.

    Rules of the schedule, "early_exit" and "authors", do not make sense here.
    """
    s = Setting(**setting)
    texts = s.texts(conditionals)
    states = texts.only(texts.are_records(s.horizon), s.horizon)
    cuts = s.cuts(s.horizon) if cuts is None else cuts
    kernel = suffix_mh(states, s.alpha, cut=s.cut, rule=s.rule, cuts=cuts, tries=s.tries)
    return Chain(states.texts, states.suffix[:, 0], kernel, power.power_law(states.logp.sum(1), s.alpha))


def total_variation(law: ArrayLike, other: ArrayLike) -> float:
    return float(np.abs(np.asarray(law) - np.asarray(other)).sum() / 2)


def tv_curve(law: Law, kernel: Law, target: Law, steps: int) -> Law:
    """TV(distribution K^n, target) for n = 0..steps, [steps + 1]."""
    curve = [total_variation(law, target)]
    for _ in range(steps):
        law = law @ kernel
        curve.append(total_variation(law, target))
    return np.array(curve)


def stationary(kernel: Law) -> Law:
    """The one distribution that an irreducible kernel keeps, [n]."""
    n = len(kernel)
    equations = np.vstack((kernel.T - np.eye(n), np.ones(n)))
    return np.linalg.lstsq(equations, np.append(np.zeros(n), 1.0), rcond=None)[0]


def spectrum(kernel: Law) -> Law:
    """The eigenvalues of a reversible kernel, greatest first, [n]: √(K_ij K_ji) is symmetric and similar to K."""
    return eigvalsh(np.sqrt(kernel * kernel.T))[::-1]


def spectral_gap(kernel: Law) -> float:
    """1 - max |λ| over all eigenvalues but the first, of a reversible kernel."""
    return float(1 - np.abs(spectrum(kernel)[1:]).max())


def independence_spectrum(proposal: Law, target: Law) -> Law:
    """Eigenvalues of the kernel that always cuts at 1, greatest first, [n]: 1, and with states sorted by decreasing
    w = target/proposal, λ_k = Σ_{j>=k} (proposal_j - target_j/w_k), k = 1..n-1 (Liu 1996).                claim P6"""
    order = np.argsort(-target / proposal, kind="stable")
    g, pi = proposal[order], target[order]
    tail_g, tail_pi = (np.cumsum(law[::-1])[::-1] for law in (g, pi))
    return np.append(1.0, (tail_g - tail_pi * g / pi)[:-1])
