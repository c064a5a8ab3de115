"""Addressed randomness: every random number is a hash of where it is used.

    uniform(seed, key, sample, step, position, purpose) in [0, 1)

`key` is the caller's key of the prompt, `sample` which of its samples, `step` which step of an algorithm, `position`
counts response tokens from 0, and `purpose` says what the number decides. Nothing is streamed, so nothing depends on
what else is drawn: neither on the batch, nor on the order, nor on whether a run was interrupted. The hash is integer
arithmetic on tensors, the same on every device: SplitMix64 (Steele, Lea & Flood 2014), one round for each word.
"""

from __future__ import annotations

import hashlib

import torch
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
