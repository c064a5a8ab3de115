"""Rollouts: continuations of a text that another decoder holds, drawn side by side from one law.

`Branches` is a decoder with a fixed number of rows for each slot of a trunk. A row begins as a copy of a text, and of
its cache row, up to some position, and goes on by itself: nothing is prefilled again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from reference.engine.decoder import Decoder
from reference.interface import LanguageModel


class Branches(Decoder):
    """Rows [slot, *shape]."""

    def __init__(
        self, model: LanguageModel, prompts: Sequence[Tensor], slots: int, horizon: int, *, stop_ids: Iterable[int],
        shape: tuple[int, ...] = (), temperature: float = 1.0, seed: int = 0,
        measure: Callable[[Tensor], Tensor] | None = None,
    ):  # fmt: skip
        super().__init__(
            model, prompts, slots * math.prod(shape), horizon, stop_ids=stop_ids, temperature=temperature, seed=seed,
            measure=measure,
        )  # fmt: skip
        self.shape = shape
        self.limit[:] = horizon

    def rows(self, slots: Tensor) -> Tensor:
        """Those of some slots, int64 [n, *shape]."""
        size = math.prod(self.shape)
        return (slots[:, None] * size + torch.arange(size, device=slots.device)).view(-1, *self.shape)

    def fork(self, rows: Tensor, source: Decoder, of: Tensor, length: Tensor) -> None:
        """Continue the first `length` tokens of rows `of` of another decoder in `rows`; all int64, of one shape."""
        rows, of, length = rows.flatten(), of.flatten(), length.flatten()
        for name in ("prompt", "start", "tokens", "logp", "logq"):
            getattr(self, name)[rows] = getattr(source, name)[of]
        if longest := int((source.start[of] + length).max()) - 1:  # the last token is yet to be fed
            self.cache.copy_rows(of, rows, other=source.cache, length=longest)
        self.resume(rows, length)

    def resume(self, rows: Tensor, length: Tensor) -> None:
        """Go on after the first `length` tokens, if these do not end the response; int64 [n] each."""
        self.rewind(rows, length)
        self.finished[rows] = (length > 0) & self.stops[self.tokens[rows, length - 1]]
        self.active[rows] = ~self.finished[rows] & (length < self.limit[rows])

    def finish(self, rows: Tensor, key: Tensor, sample: Tensor, step: Tensor) -> Tensor:
        """Decode `rows` [n, *shape] to their ends, with the random numbers of keys and samples [n] and steps [n,
        *shape]; how many tokens each took, [n, *shape]."""
        times = math.prod(self.shape)
        address = key.repeat_interleave(times), sample.repeat_interleave(times), step.flatten()
        self.uniforms[rows.flatten()] = self.numbers(*address)
        self.decoded[rows] = 0
        while self.active.any():
            self.advance()
        return self.decoded[rows]

    def log_weight(self, rows: Tensor, start: Tensor, alpha: float, of_law: float = 1.0) -> Tensor:
        """Σ α log p − `of_law` · log q over the tokens from `start` on: float64, of the rows' shape."""
        w = alpha * self.logp[rows].double() - of_law * self.logq[rows].double()
        inside = (self.columns >= start[..., None]) & (self.columns < self.length[rows][..., None])
        return w.masked_fill(~inside, 0).sum(-1)
