"""The law of one token, and a draw from it.

    q = top-p ∘ top-k ∘ softmax(log p / temperature),   x = the id whose interval of q's cumulative sum holds u

The proposal law and the law that is reported are one and the same array of log-probabilities; its draws are inverse
CDFs, in float64 and in id order, of random numbers that are given (`reference/randomness.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

TOLERANCE = 1e-6  # numbers that were computed and are nearer than this are equal; so in pages, engine and theory


def log_law(
    logits: Tensor, temperature: float | Tensor = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """The proposal law, log q [rows, vocab], of logits [rows, vocab]; -inf where a filter has cut.

    Order of filters: temperature; top-k, exactly k ids, ties to the smaller id; top-p on the renormalised law: sorted
    by (-q, id), an id stays iff the mass before it is < top_p (by more than rounding). Temperature 0 is all mass on
    the first arg max.
    Temperatures [rows] > 0 give each row its own.
    """
    if isinstance(temperature, Tensor):
        logits = (logits - logits.amax(-1, keepdim=True)) / temperature[:, None].to(logits.dtype)
    elif temperature == 0:
        best = torch.full_like(logits, -math.inf)
        return best.scatter_(-1, logits.argmax(-1, keepdim=True), 0.0)
    elif temperature != 1:
        logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # the largest is 0: nothing overflows
    logq = logits.log_softmax(-1)
    if top_k is not None and top_k < logits.shape[-1]:
        logq = keep_best(logq, lambda mass: torch.arange(mass.shape[-1], device=mass.device) < top_k)
    if top_p is not None and top_p < 1:
        logq = keep_best(logq, lambda mass: mass.cumsum(-1) - mass < top_p * (1 - TOLERANCE))
    return logq


def keep_best(logq: Tensor, keep: Callable[[Tensor], Tensor]) -> Tensor:
    """Cut a law to the ids that `keep` (float64 masses in falling order -> bool) keeps, and renormalise it."""
    ranked, ids = logq.sort(dim=-1, descending=True, stable=True)  # stable: ties keep the order of ids
    cut = ~keep(ranked.double().exp())
    return logq.scatter(-1, ids, ranked.masked_fill(cut, -math.inf)).log_softmax(-1)


def inverse_cdf(logq: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The ids that u in [0, 1), float64 [rows], draws from laws log q [rows, vocab]: int64 [rows], and for each the
    interval low <= u < high, float64 [rows], of the numbers that draw it.

    In float64 (at 152k ids float32's cumulative sum has steps wider than many probabilities), and never an id of
    probability 0: the cumulative sum, divided by its last entry, reaches 1 at the last id that has any mass. (On a GPU
    both hold up to float64's rounding: its cumulative sums are made in parallel.)
    """
    cdf = logq.double().exp().cumsum(-1)
    cdf = cdf / cdf[:, -1:]
    token = torch.searchsorted(cdf, u[:, None], right=True)
    token = token.clamp(max=logq.shape[-1] - 1)  # a law of NaNs is reported later, by `check_finite`
    low = cdf.gather(1, (token - 1).clamp(min=0)).masked_fill(token == 0, 0.0)
    return token[:, 0], low[:, 0], cdf.gather(1, token)[:, 0]
