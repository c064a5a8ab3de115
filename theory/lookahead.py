"""Scalable power sampling (2601.21590): the exact distribution of decoding by estimated look-ahead, right and as
published.

After a prefix h a chunk c of b tokens is drawn from the conditional of p^α, π(c|h) ∝ p(c|h)^α F(h,c) (theory/power.py),
with F estimated from M rollouts to the horizon, each an unbiased F(h,c) in weight:

    from p     F̂ = (1/M) Σ_r p(rollout_r)^(α-1)              from g ∝ p^α     F̂ = (1/M) Σ_r Π_t exp ζ

Tokens (b = 1, all of them candidates, Algorithm 1): with X_v = p(v)^α F̂(v), plug-in p̂ = X/ΣX. Its bias is
(1/M)(π_v Σ_u π_u² r_u - π_v² r_v) + O(1/M²), r_u = Var(F̂)/F² at M = 1 (relative variance). Jackknife: with p̂_-s
without the s-th rollout of every candidate, M p̂ - ((M-1)/M) Σ_s p̂_-s, biased by O(1/M²); entries may be negative, and
the sampler then sets them to 0 and renormalises ("clipped").

Chunks (Algorithm 2): L chunks are drawn from a distribution q, one is picked in proportion to its weight. L, M → ∞
gives q·weight normalised, so the weight must be p^α F̂/q. Published is p^α F̂ with q = p: it tends to p^(α+1) F. claim
P20 Rollouts are drawn afresh for every token or chunk, so a record's distribution is the product of expected
conditionals.
"""

from collections.abc import Callable
from itertools import combinations_with_replacement, product
from math import factorial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from theory import power
from theory.importance import picked, share
from theory.power import Conditionals, Law, Record

RolloutLaw = Literal["p", "g"]
Estimator = Literal["plug_in", "jackknife", "clipped"]  # "jackknife": its expectation, no clipping: what no sampler has
Futures = tuple[Law, Law]  # probabilities of the rollouts after a text, and their weights, whose mean is F


def continuations(table: Conditionals, text: Record, horizon: int) -> list[Record]:
    """All ways from an open text of fewer than `horizon` tokens to a record."""
    if len(text) == horizon or text not in table:
        return [text]
    possible = np.flatnonzero(table[text] > -np.inf)
    return [record for v in possible for record in continuations(table, (*text, int(v)), horizon)]


def total(table: Conditionals, record: Record, start: int) -> float:
    """log-probability of record[start:] given the rest."""
    return float(sum(table[record[:t]][record[t]] for t in range(start, len(record))))


def futures(conditionals: Conditionals, alpha: float, horizon: int, text: Record, law: RolloutLaw) -> Futures:
    """The rollouts after a text; after a record there is one, of weight 1."""
    proposal = conditionals if law == "p" else power.tempered(conditionals, 1 / alpha)
    records = continuations(conditionals, text, horizon)
    logp, logq = (np.array([total(t, record, len(text)) for record in records]) for t in (conditionals, proposal))
    return np.exp(logq), np.exp(alpha * logp - logq)


def multisets(probs: Law, draws: int) -> tuple[NDArray[np.int64], Law]:
    """All outcomes of some draws without their order, [m, draws], and their probabilities [m]."""
    chosen = np.array(list(combinations_with_replacement(range(len(probs)), draws)))
    repeats = [np.prod([factorial(row.count(i)) for i in {*row}]) for row in chosen.tolist()]
    return chosen, factorial(draws) / np.array(repeats) * probs[chosen].prod(1)


def relative_variance(law: Futures) -> float:
    """Var(F̂)/F² of one rollout."""
    probs, weights = law
    return float(probs @ weights**2 / (probs @ weights) ** 2 - 1)


# --- One token -------------------------------------------------------------------------------------------------------


def of_tokens(
    conditionals: Conditionals, alpha: float, horizon: int, prefix: Record, law: RolloutLaw, kept: int | None = None
) -> list[Futures]:
    """For each token the distribution of one rollout's p(v)^α weight: 0 unless it is among the `kept` likeliest (None:
    all)."""
    found = []
    mass = np.exp(alpha * conditionals[prefix])
    if kept is not None:
        mass[power.top_k({prefix: conditionals[prefix]}, kept)[prefix] == -np.inf] = 0
    for v, of in enumerate(mass):
        probs, weights = futures(conditionals, alpha, horizon, (*prefix, v), law) if of else (np.ones(1), np.ones(1))
        found.append((probs, of * weights))
    return found


def jackknife(of: Callable[[int], Law], rollouts: int) -> Law:
    """E of the jackknife, [V], from E[p̂] for any number of rollouts: leaving one out is a plug-in with M - 1."""
    return of(rollouts) if rollouts == 1 else rollouts * of(rollouts) - (rollouts - 1) * of(rollouts - 1)


def clipped(found: list[Futures], rollouts: int) -> tuple[Law, float]:
    """(E of the jackknife with negative entries set to 0 and renormalised [V], the chance that there are any): by a sum
    over all multisets of M joint rollouts, one of each candidate."""
    joint = np.array(list(product(*(range(len(probs)) for probs, _ in found))))  # [joint rollouts, V]
    mass = np.prod([probs[joint[:, v]] for v, (probs, _) in enumerate(found)], axis=0)
    x = np.stack([values[joint[:, v]] for v, (_, values) in enumerate(found)], -1)
    chosen, chance = multisets(mass, rollouts)
    sums = x[chosen].sum(1)  # [m, V]
    estimate = sums / sums.sum(1, keepdims=True)
    if rollouts > 1:
        left = sums[:, None] - x[chosen]
        estimate = rollouts * estimate - (rollouts - 1) * (left / left.sum(2, keepdims=True)).mean(1)
    kept = np.maximum(estimate, 0)
    negative = (estimate < -1e-15).any(1)
    return chance @ (kept / kept.sum(1, keepdims=True)), float(chance @ negative)


def token_law(
    conditionals: Conditionals,
    prefix: Record,
    *,
    horizon: int,
    alpha: float,
    rollouts: int,
    rollout_law: RolloutLaw = "p",
    estimator: Estimator = "plug_in",
    candidates: int | None = None,
) -> Law:
    """E[p̂(v|h)], [V]: the exact distribution of the next token, for any number of rollouts."""
    found = of_tokens(conditionals, alpha, horizon, prefix, rollout_law, candidates)
    if estimator == "plug_in":
        return share(found, rollouts)
    if estimator == "jackknife":
        return jackknife(lambda m: share(found, m), rollouts)
    return clipped(found, rollouts)[0]


def plug_in_bias(found: list[Futures]) -> Law:
    """lim M·bias of the plug-in, [V]: π_v Σ_u π_u² r_u - π_v² r_v."""
    means = np.array([probs @ values for probs, values in found])
    pi = means / means.sum()
    spread = pi**2 * [relative_variance(law) if mean else 0.0 for law, mean in zip(found, means)]
    return pi * spread.sum() - spread


# --- One chunk -------------------------------------------------------------------------------------------------------


def rolled(law: Futures, rollouts: int | None) -> Futures:
    """The distribution of F̂, the mean of so many rollouts; None: F itself."""
    probs, weights = law
    if rollouts is None:
        return np.ones(1), np.array([probs @ weights])
    chosen, chance = multisets(probs, rollouts)
    return chance, weights[chosen].mean(1)


def chunk_law(
    conditionals: Conditionals,
    prefix: Record,
    *,
    horizon: int,
    alpha: float,
    chunk: int,
    draws: int,
    rollouts: int | None,
    rollout_law: RolloutLaw = "p",
    proposal: RolloutLaw = "p",
    weight: Literal["exact", "published"] = "exact",
) -> dict[Record, float]:
    """The distribution of the text after one chunk of at most `chunk` tokens: picked among `draws` L by weight."""
    drawn_from = conditionals if proposal == "p" else power.tempered(conditionals, 1 / alpha)
    texts = continuations(conditionals, prefix, min(len(prefix) + chunk, horizon))
    probs, weights, of = [], [], []
    for i, text in enumerate(texts):
        logp, logq = (total(table, text, len(prefix)) for table in (conditionals, drawn_from))
        drawn, f = rolled(futures(conditionals, alpha, horizon, text, rollout_law), rollouts)
        probs.append(np.exp(logq) * drawn)
        weights.append(np.exp(alpha * logp - (0 if weight == "published" else logq)) * f)
        of.append(np.full(len(f), i))
    law = picked(np.concatenate(probs), np.concatenate(weights), draws)
    return dict(zip(texts, np.bincount(np.concatenate(of), weights=law)))


# --- Whole records ---------------------------------------------------------------------------------------------------


def record_law(
    grow: Callable[[Record], dict[Record, float]], conditionals: Conditionals, horizon: int
) -> dict[Record, float]:
    """The distribution of the records that grow by steps, each from an open prefix to a distribution of longer
    texts."""
    records: dict[Record, float] = {}
    growing: dict[Record, float] = {(): 1.0}
    while growing:
        after: dict[Record, float] = {}
        for prefix, mass in growing.items():
            for text, chance in grow(prefix).items():
                ended = len(text) == horizon or text not in conditionals
                (records if ended else after)[text] = mass * chance
        growing = after
    return dict(sorted(records.items()))


def lookahead_law(
    conditionals: Conditionals, *, horizon: int, chunk: int | None = None, **setting: Any
) -> dict[Record, float]:
    """The exact distribution of a sampler's output: by tokens (settings of `token_law`), or by chunks (of
    `chunk_law`)."""

    def grow(prefix: Record) -> dict[Record, float]:
        if chunk is not None:
            return chunk_law(conditionals, prefix, horizon=horizon, chunk=chunk, **setting)
        law = token_law(conditionals, prefix, horizon=horizon, **setting)
        return {(*prefix, v): float(mass) for v, mass in enumerate(law) if mass}

    return record_law(grow, conditionals, horizon)
