"""Responses that go on from given ones: how `generate(continuing=...)` begins, and what it keeps for the next time."""

from __future__ import annotations

import torch
from torch import Tensor

from reference.engine.decoder import Decoder, Distribution, Prompts
from reference.engine.requests import Plan, Requests
from reference.interface import Kept, Samples


class Continuing(Decoder):
    """A decoder whose requests begin with given responses, if there are any, and whose keys and values are kept."""

    def __init__(self, plan: Plan, distribution: Distribution, given: Samples | None, keep: bool) -> None:
        """given: [prompts, requests for each], no longer than the horizon. keep: have each response's keys and values
        in a row of its own in the end, `kept`."""
        super().__init__(plan, distribution)
        self.given = given if given is None else Samples(*(x.flatten(0, 1) for x in given.tensors()))  # [requests]
        self.source = None if given is None else given.kept
        self.beginnings: Prompts | None = None  # prompts with what is given, to be prefilled where nothing was kept
        if self.given is not None and self.source is None:
            lengths = self.given.lengths.tolist()
            responses = [row[:n] for row, n in zip(self.given.tokens, lengths)]
            texts = [torch.cat((plan.prompts[i // plan.each], row)) for i, row in enumerate(responses)]
            self.beginnings = Prompts(plan.model, texts, plan.slots)
        self.request = torch.zeros(plan.slots, dtype=torch.int64, device=plan.model.device)
        self.kept = plan.model.new_cache(len(plan.requests), self.cache.capacity) if keep else None

    def place(self, rows: Tensor, requests: Requests) -> Tensor:
        self.request[rows] = requests.index
        if self.given is None:
            return super().place(rows, requests)
        given, texts = self.given, self.texts
        length, start = given.lengths[requests.index], self.prompts.length[requests.prompt]
        if self.beginnings is not None:
            self.beginnings.fetch(self, rows, requests.index)
            self.prompts.prefilled = self.beginnings.prefilled.view(len(self.prompts.length), -1).sum(1)
        elif self.source is not None and (longest := int((start + length).max()) - 1):
            kept = self.source.rows.flatten()[requests.index]
            self.cache.copy_rows(kept, rows, other=self.source.cache, length=longest)
        texts.prompt[rows], texts.start[rows] = requests.prompt, start
        h = given.tokens.shape[1]
        texts.tokens[rows, :h], texts.logp[rows, :h] = given.tokens[requests.index], given.logp[requests.index]
        texts.logq[rows, :h] = given.logq[requests.index]
        return length

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self.request = self.request[rows]

    def result(self, slots: Tensor) -> tuple[Samples, Tensor, Tensor]:
        if self.kept is not None:
            longest = int((self.texts.start + self.texts.length)[slots].max()) - 1
            self.kept.copy_rows(slots, self.request[slots], other=self.cache, length=max(1, longest))
        return super().result(slots)

    def rows_kept(self, order: Tensor, each: int) -> Kept | None:
        """The rows of the responses, prompts in this order: [prompts, each]."""
        rows = torch.arange(len(order) * each, device=order.device).view(-1, each)[order]
        return None if self.kept is None else Kept(self.kept, rows)
