"""Addressed randomness: every random number is a hash of where it is used; and what a number draws.

    uniform(seed, key, sample, step, position, purpose) in [0, 1)

`key` is the caller's key of the prompt, `sample` which of its samples, `step` which step of an algorithm, `position`
counts response tokens from 0, and `purpose` says what the number decides. Nothing is streamed, so nothing depends on
what else is drawn: neither on the batch, nor on the order, nor on whether a run was interrupted. The hash is integer
arithmetic on tensors, the same on every device: SplitMix64 (Steele, Lea & Flood 2014), one round for each word.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

TOKEN, CUT, ACCEPT, RESAMPLE, SWAP, CHOICE = range(6)  # purposes of a random number


def int64(value: int) -> int:
    """The 64-bit pattern of an integer, as the signed number that torch keeps."""
    return (value + 2**63) % 2**64 - 2**63


GOLDEN, MIX_1, MIX_2 = int64(0x9E3779B97F4A7C15), int64(0xBF58476D1CE4E5B9), int64(0x94D049BB133111EB)


def shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's own is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def absorb(state: Tensor, word: Tensor | int) -> Tensor:
    """One round of a counter-based hash on int64 tensors: SplitMix64's finaliser on state + (word + 1)·golden ratio."""
    x = state + (int64((word + 1) * GOLDEN) if isinstance(word, int) else (word + 1) * GOLDEN)
    x = (x ^ shift(x, 30)) * MIX_1
    x = (x ^ shift(x, 27)) * MIX_2
    return x ^ shift(x, 31)


def address(seed: int | Tensor, key: Tensor, sample: Tensor, step: Tensor | int = 0, purpose: int = TOKEN) -> Tensor:
    """All of an address but its position, hashed: int64, the shape of seed, key and sample broadcast."""
    state = torch.full_like(key, int64(seed)) if isinstance(seed, int) else seed
    for word in (purpose, key, sample, step):
        state = absorb(state, word)
    return state


def unit(state: Tensor) -> Tensor:
    """The top 53 bits of a hash as a float64 in [0, 1)."""
    return shift(state, 11).double() * 2.0**-53


def uniform(
    seed: int | Tensor, key: Tensor, sample: Tensor, step: Tensor | int, position: Tensor | int, purpose: int
) -> Tensor:
    """The float64 in [0, 1) at an address. `key` int64: the caller's key of the prompt; `sample`, `step` and
    `position` (response tokens, from 0) int64 tensors or ints that broadcast with it; `purpose`: TOKEN, CUT, ..."""
    return unit(absorb(address(seed, key, sample, step, purpose), position))


def child_seed(seed: int, *labels: int | str) -> int:
    """A seed for a part of a computation (a round, a role, a vote): a hash of the parent's seed and the labels."""
    digest = hashlib.blake2b(repr((seed, *labels)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def key_of(name: int | str) -> int:
    """A prompt's key: an integer as it is, a name hashed to one."""
    return int64(name) if isinstance(name, int) else child_seed(0, name)


# ---------------------------------------------------------------------------------------------------------------------
# The distribution of a token, and a draw from it

TOLERANCE = 1e-6  # numbers that were computed and are nearer than this are equal; so in pages, engine and theory


def log_law(
    logits: Tensor, temperature: float | Tensor = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """The proposal distribution, log q [rows, vocab], of logits [rows, vocab]; -inf where a filter has cut.

    Order of filters: temperature; top-k, exactly k ids, ties to the smaller id; top-p on the renormalised distribution:
    sorted by (-q, id), an id stays iff the mass before it is < top_p (by more than rounding). Temperature 0 is all mass
    on the first arg max.
    Temperatures [rows] > 0 give each row its own. (Of float32 logits of 152k ids the log-normaliser is off by 7e-6 at
    most, measured; a response's log-probability by so much for each token.)
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
    """Cut a distribution to the ids that `keep` (float64 masses in falling order -> bool) keeps, and renormalise it."""
    ranked, ids = logq.sort(dim=-1, descending=True, stable=True)  # stable: ties keep the order of ids
    cut = ~keep(ranked.double().exp())
    return logq.scatter(-1, ids, ranked.masked_fill(cut, -math.inf)).log_softmax(-1)


def inverse_cdf(logq: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The ids that u in [0, 1), float64 [rows], draws from distributions log q [rows, vocab]: int64 [rows], and for
    each the interval low <= u < high, float64 [rows], of the numbers that draw it.

    In float64 (at 152k ids float32's cumulative sum has steps wider than many probabilities), and never an id of
    probability 0: the cumulative sum, divided by its last entry, reaches 1 at the last id that has any mass. (On a GPU
    both hold up to float64's rounding: its cumulative sums are made in parallel.)
    Of many ids it finds a block of them first, whose masses are exponentials and sums in logq's own precision: the
    edges of float32 move by some 1e-7 of themselves, and one row in ten million draws a neighbour.
    """
    if logq.shape[-1] <= MANY:
        return invert(logq.double().exp(), u)
    mass = logq.exp()
    if rest := -mass.shape[-1] % BLOCK:
        mass = F.pad(mass, (0, rest))
    mass = mass.unflatten(-1, (-1, BLOCK))
    block, below, above = invert(mass.sum(-1).double(), u)
    width = above - below
    within = ((u - below) / width).clamp(0, 1 - 2.0**-53)
    token, low, high = invert(mass[torch.arange(len(mass), device=mass.device), block].double(), within)
    return block * BLOCK + token, below + width * low, below + width * high


MANY, BLOCK = 4096, 256  # more ids than MANY are searched by blocks of so many


def invert(mass: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`inverse_cdf` of masses, float64 [rows, n], that need not sum to 1."""
    cdf = mass.cumsum(-1)
    cdf = cdf / cdf[:, -1:]
    token = torch.searchsorted(cdf, u[:, None], right=True)
    token = token.clamp(max=mass.shape[-1] - 1)  # a distribution of NaNs is reported later, by `check_finite`
    low = cdf.gather(1, (token - 1).clamp(min=0)).masked_fill(token == 0, 0.0)
    return token[:, 0], low[:, 0], cdf.gather(1, token)[:, 0]


def systematic(u: Tensor) -> Tensor:
    """(u_0 + i)/n, i = 0 .. n−1, of uniform numbers [.., n]: the first of them alone."""
    n = u.shape[-1]
    return ((u[..., :1] + torch.arange(n, device=u.device)) / n).clamp(max=1 - 2.0**-53)


# What resampling makes of uniform numbers [.., n]: the points at which the cumulative weights are inverted
RESAMPLING: dict[str, Callable[[Tensor], Tensor]] = {"systematic": systematic, "multinomial": lambda u: u}
