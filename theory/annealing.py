"""Chains of p^α at α = ∞ and at exponents that rise step by step, as exact matrices.

As α → ∞ at a fixed proposal q the ratio of a move from x to y, α log p(y)/p(x) − log q(y)/q(x) + log C(x)/C(y), tends
to +∞ if y is likelier, to −∞ if x is, and is the rest if they are equally likely. The kernel K_∞ of that limit climbs:

    outside S* = arg max p a chain only rises, and never returns: with no two records equally likely K_∞ is triangular
    in the order of p, and its eigenvalues are the chances to stay;
    K_∞ keeps the uniform distribution on S* (the limit of π_α K_α = π_α), in detailed balance on every level of p.

If the first token may be cut, at x with probability c_x(1) ≥ 1/H, and q has the support of p, S* is hit from anywhere:

    Pr[x_N ∉ S*] ≤ (1 − q(S*)) (1 − q(S*)/H)^N,

and the rate is exact, max over x ∉ S* of K_∞(x, x), which is 1 − q(S*)/H where cut="horizon" and the second likeliest
record has another first token. If the first m tokens are never cut, K_∞ ends at the likeliest record of its first m
tokens. If only the first token is, every proposal is a draw of q and the best so far is kept: x_N is the best of N + 1
draws by log p, and Pr[x_N ∉ S*] = (1 − q(S*))^(N+1).                                                          claim P30

Annealing: step n = 1..N has the exponent α_n, 1/α_n falling evenly from 1/α_1 to 1/α_N = 1/α. The distribution of x_N
is q K_{α_1} ... K_{α_N}, exactly.                                                                             claim P31
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from theory.blocked_chain import extended, horizons
from theory.power import Conditionals, Law, Record
from theory.suffix_mh import Cut, Setting, Texts, log_weight, proposed, suffix_mh, with_rejections

TOLERANCE = 1e-6  # records whose log-probabilities are nearer are equally likely, as in reference/randomness.py


def limit_log_ratio(logp: Law, rest: Law) -> Law:
    """[n, n]: the limit of the log ratio of the move from x to y, of log p [n] and of its rest, −log q − log C, [n]."""
    rise, rest = logp - logp[:, None], rest - rest[:, None]
    return np.where(np.abs(rise) <= TOLERANCE, rest, np.where(rise > 0, np.inf, -np.inf))


def kernel_at(states: Texts, alpha: float, cut: Cut, cuts: range) -> Law:
    """K_α [n, n] of one step on `states`, whose log q is that of the proposal; α may be ∞."""
    if alpha < np.inf:
        return suffix_mh(states, alpha, cut=cut, cuts=cuts)
    log_ratio = limit_log_ratio(states.logp.sum(1), log_weight(states, 0.0, cut, "exact", cuts))
    return with_rejections(proposed(states, cut, cuts) * np.exp(np.minimum(log_ratio, 0.0)))


def cooling(first: float, last: float, steps: int) -> list[float]:
    """α_1 .. α_N: 1/α_n falls evenly from 1/first to 1/last, which may be 0; a single step has the last."""
    return [1 / (1 / first + (1 / last - 1 / first) * n / (steps - 1)) for n in range(steps - 1)] + [last] * (steps > 0)


def annealed_law(
    conditionals: Conditionals, exponents: Sequence[float], *, horizon: int, tau: float, cut: Cut = "record",
    block: int | None = None,
) -> tuple[list[Record], Law]:  # fmt: skip
    """(records, their probabilities [n]) after steps of these exponents on the horizon of every block, from draws of
    q at temperature tau."""
    block = block or horizon
    s = Setting(horizon=horizon, alpha=1.0, tau=tau, cut=cut)
    texts = s.texts(conditionals)
    law = np.array([float(text == ()) for text in texts.texts])
    for h in horizons(horizon, block):
        law = extended(texts, law, block)
        here = texts.are_records(h)
        states, end = texts.only(here, h), law[here]
        for alpha in exponents:
            end = end @ kernel_at(states, alpha, cut, s.cuts(h))
        law = np.zeros(len(texts.texts))
        law[here] = end
    return states.texts, law[here]


def outside(law: Law, kernel: Law, best: NDArray[np.bool_], steps: int) -> Law:
    """Pr[x_n outside the set `best`, bool [n]] for n = 0..steps, [steps + 1]: it is not left again."""
    masses = [float(law[~best].sum())]
    for _ in range(steps):
        law = law @ kernel
        masses.append(float(law[~best].sum()))
    return np.array(masses)
