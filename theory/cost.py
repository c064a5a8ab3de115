"""What power sampling costs: decoded tokens and attention, exactly, beside the formulas in print.

Decoded tokens of the blocked chain (N steps a stage, stage horizons h_k = min(kB, T), k = 1..ceil(T/B)) when every
record has length T: a draw of the T tokens, and steps of E[h_k - r + 1] = (h_k + 1)/2 tokens each           claim P21

    T + N Σ_k (h_k + 1)/2      against N T^2/(4B) in 2510.14901, Eq. 12, which drops the draw, the ceiling and B/T.

Where records end, `expected_tokens` follows the distribution of the chain: a step at x costs E_r,y[|y| - r + 1; r <=
|x|]. With the two exact savings it costs less: a token of x that is drawn again is known without the model (first
divergence), and a proposal ends when U exceeds a bound of its acceptance ratio (early reject).
Attention: a token at position t costs t, so regenerating r..n costs Σ_{t>=r} t, on average over r (n+1)(2n+1)/6, and
the whole N Σ_k (h_k+1)(2h_k+1)/6 -> N T^3/(9B) against T(T+1)/2 for one answer: 2NT/(9B) times as much.
"""

from typing import Any

import numpy as np

from theory.markov_chain import Cut, Setting, Texts, cut_counts, horizons, schedule
from theory.power import Conditionals, Law

# --- Every record of the same length T -------------------------------------------------------------------------------


def tokens(length: int, block: int, steps: int) -> float:
    """T + N Σ_k (h_k + 1)/2, the expected number of decoded tokens, their first draw included."""
    return length + steps * sum((h + 1) / 2 for h in horizons(length, block))


def paper_tokens(length: int, block: int, steps: int) -> float:
    """N T^2/(4B), Eq. 12 of 2510.14901: less than `tokens`, by 39 % at T = 679, B = 192, N = 10."""
    return steps * length**2 / (4 * block)


def paper_token_sum(length: int, block: int, steps: int) -> float:
    """N Σ_{k <= ceil(T/B)} kB/2, which Eq. 12 puts equal to `paper_tokens`: counts the last stage as full."""
    return steps * sum(k * block / 2 for k in range(1, len(horizons(length, block)) + 1))


def attention(length: int, block: int, steps: int) -> float:
    """N Σ_k (h_k+1)(2h_k+1)/6: attended positions of all steps, without those of the first draw, T(T+1)/2."""
    return steps * sum((h + 1) * (2 * h + 1) / 6 for h in horizons(length, block))


def attention_limit(length: int, block: int, steps: int) -> float:
    """N T^3/(9B): what `attention` tends to for 1 << B << T."""
    return steps * length**3 / (9 * block)


def seed_attention(length: int, block: int, steps: int) -> float:
    """N Σ_k (kB)^3/3, the seed note's sum: the mean cost of a step at horizon n is n^2/3, not n^3/3."""
    return steps * sum(h**3 / 3 for h in horizons(length, block))


def seed_attention_limit(length: int, block: int, steps: int) -> float:
    """N T^2/(9B), the seed note's total: a power of T is missing."""
    return steps * length**2 / (9 * block)


def restarts(length: int, block: int, steps: int) -> float:
    """Σ_k N/h_k = (N/B)(1 + 1/2 + ... + B/T): how often the first token is cut, on average.               claim P22"""
    return redraws(1, length, block, steps)


def redraws(position: int, length: int, block: int, steps: int) -> float:
    """Σ_{k: h_k >= t} N t/h_k: how often the token at position t = 1.. is drawn anew, if the record reaches it."""
    return steps * sum(position / h for h in horizons(length, block) if h >= position)


def untouched(length: int, block: int, steps: int) -> float:
    """Π_k (1 - 1/h_k)^N: the chance that the first token is never cut, so still a low-temperature draw."""
    return float(np.prod([(1 - 1 / h) ** steps for h in horizons(length, block)]))


# --- Records that end at different lengths ---------------------------------------------------------------------------


def tokens_per_step(
    states: Texts,
    alpha: float,
    *,
    cut: Cut = "horizon",
    first_divergence_skip: bool = False,
    early_reject: bool = False,
) -> Law:
    """Expected decoded tokens of one step at each state, [n]: the sum over y and t <= |y| of the chance to decode y_t.

    y_t is decoded if the cut r <= min(t, |x|) and the proposal is y (weight q(y_>=r)); with the skip only behind the
    common prefix; with early reject only if U <= w(y_<t)/w(x), times |x|/(t-1) under cut="record". That is exact, and
    changes no decision, iff no factor of w exceeds 1: 1 <= 1/τ <= α.
    """
    n, h = states.logp.shape
    length, t = states.length, np.arange(1, h + 1)
    reach = np.pad(np.cumsum(states.suffix[:, :-1], axis=1), ((0, 0), (1, 0)))  # [y, m]: Σ_{r <= m} q(y_>=r)
    last_cut = np.minimum(np.minimum(states.shared + 1, length[:, None])[..., None], t)  # [x, y, t]
    chance = reach[np.arange(n)[:, None], last_cut] * (t <= length[:, None])
    if first_divergence_skip:
        chance *= t > states.shared[..., None]
    if early_reject:
        log_w = np.cumsum(alpha * states.logp - states.logq, axis=1)
        bound = np.pad(log_w, ((0, 0), (1, 0)))[None, :, :-1] - log_w[:, -1, None, None]  # w(y_<t)/w(x), [x, y, t]
        if cut == "record":
            bound = bound + np.log(length)[:, None, None] - np.log(np.maximum(t - 1, 1))
        chance *= np.exp(np.minimum(bound, 0))
    return chance.sum((1, 2)) / cut_counts(states, cut, range(1, h + 1))


def expected_tokens(
    conditionals: Conditionals, *, first_divergence_skip: bool = False, early_reject: bool = False, **setting: Any
) -> float:
    """E[decoded tokens] of one blocked chain of a markov_chain.Setting, whose rule must be exact.

    Stop tokens, the first draw and the extensions are counted.
    """
    s = Setting(**setting)
    if s.rule != "exact":
        raise ValueError(f"only the exact rule's tokens are known, not those of {s.rule!r}")
    if s.tries > 1 or s.cut not in ("horizon", "record"):
        raise ValueError(f"the tokens of one try and of cut 'horizon' or 'record' are known, not of {s.tries}, {s.cut}")
    total = before = 0.0
    for stage in schedule(conditionals, **setting):
        total += float(stage.start @ stage.states.length) - before
        before = float(stage.end @ stage.states.length)
        per_step = tokens_per_step(
            stage.states, s.alpha, cut=s.cut, first_divergence_skip=first_divergence_skip, early_reject=early_reject
        )
        law = stage.start
        for _ in range(s.steps):
            total += float(law @ per_step)
            law = law @ stage.kernel
    return total
