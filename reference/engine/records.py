"""What is known of responses, as tables: tensors of one length, by name.

A record that moves from one row to another moves as a whole, so no field can be forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from reference.interface import LanguageModel, Samples


class Table:
    """Of a dataclass of tensors [n, ...]: some rows of all fields, or other values for them."""

    def __len__(self) -> int:
        return len(next(iter(vars(self).values())))

    def __getitem__(self, rows: Tensor | slice) -> Self:
        return type(self)(*(tensor[rows] for tensor in vars(self).values()))

    def put(self, rows: Tensor, other: Self) -> None:
        for mine, theirs in zip(vars(self).values(), vars(other).values()):
            mine[rows] = theirs

    @classmethod
    def cat(cls, tables: Iterable[Self]) -> Self:
        return cls(*map(torch.cat, zip(*(vars(table).values() for table in tables))))


@dataclass
class Texts(Table):
    """Responses as far as they have come, [n, horizon + 1] where nothing else is said; the last column is scratch."""

    prompt: Tensor  # int64 [n]: which prompt it continues,
    start: Tensor  # int64 [n]: and its length
    length: Tensor  # int64 [n]: response tokens so far
    finished: Tensor  # bool [n]: ended by a stop id
    tokens: Tensor  # int64
    logp: Tensor  # float32: log-probability under the model at temperature 1,
    logq: Tensor  # float32: and under the distribution that it was drawn from
    low: Tensor  # float64: the interval of random numbers that draw the token,
    high: Tensor  # float64: low ≤ u < high
    measures: Tensor  # [n, horizon + 1, k]: what a sampler wants to know of the logits there
    weight: Tensor  # float64 [n, horizon + 2], of chains: the sum of w_t over the first t tokens,
    mass: Tensor  # float64 [n, horizon + 2]: and of the cut weights e_t, where these depend on the model

    @classmethod
    def empty(
        cls, n: int, horizon: int, device: torch.device, measures: int = 0, weighed: bool = False, massed: bool = False
    ) -> Texts:
        def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros((n, *shape), dtype=dtype, device=device)

        wide, summed = horizon + 1, horizon + 2
        return cls(
            prompt=zeros(dtype=torch.int64), start=torch.ones_like(zeros(dtype=torch.int64)),
            length=zeros(dtype=torch.int64), finished=zeros(dtype=torch.bool), tokens=zeros(wide, dtype=torch.int64),
            logp=zeros(wide, dtype=torch.float32), logq=zeros(wide, dtype=torch.float32), low=zeros(wide),
            high=zeros(wide), measures=zeros(wide, measures), weight=zeros(summed if weighed else 0),
            mass=zeros(summed if massed else 0),
        )  # fmt: skip

    def samples(self) -> Samples:
        """[n, 1]."""
        columns = torch.arange(self.tokens.shape[1] - 1, device=self.tokens.device)
        beyond = columns >= self.length[:, None]
        padded = (x[:, :-1].masked_fill(beyond, 0)[:, None] for x in (self.tokens, self.logp, self.logq))
        tokens, logp, logq = padded
        return Samples(tokens, logp, logq, self.length[:, None], self.finished[:, None])


class Store:
    """Texts in rows, with their keys and values."""

    def __init__(self, model: LanguageModel, texts: Texts, capacity: int) -> None:
        self.model, self.texts = model, texts
        self.cache: Any = model.new_cache(len(texts), capacity)  # a Cache

    def take(self, rows: Tensor, other: Store, of: Tensor, length: Tensor | None = None) -> None:
        """Have in `rows` what `other` has in rows `of` (int64 [k] each): all that is known, and keys and values of the
        first `length` response tokens (int64 [k]; default: all), but of the last, which is yet to be fed."""
        if len(rows):
            self.texts.put(rows, other.texts[of])
            length = self.texts.length[rows] if length is None else length
            if longest := int((self.texts.start[rows] + length).max()) - 1:
                self.cache.copy_rows(of, rows, other=other.cache, length=longest)

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these; they are 0 .. len(rows) − 1 from now on."""
        kept = self.model.new_cache(len(rows), self.cache.capacity)
        kept.copy_rows(rows, torch.arange(len(rows), device=rows.device), other=self.cache)
        self.texts, self.cache = self.texts[rows], kept


def first_difference(tokens: Tensor, length: Tensor, other: Tensor, other_length: Tensor) -> Tensor:
    """The first position, from 1, at which responses [k, horizon + 1] go on differently; 0: nowhere; int64 [k]."""
    shared = torch.minimum(length, other_length)[:, None]
    columns = torch.arange(tokens.shape[1], device=tokens.device)
    differs = (tokens != other) & (columns < shared)
    differs |= (columns == shared) & (length != other_length)[:, None]
    return (differs.long().argmax(1) + 1) * differs.any(1)
