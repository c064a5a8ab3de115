"""Several slots for one chain: what prefetching (`prefetching.py`) and multiple tries (`multiple_try.py`) share.

A chain's current record stays in a slot of its own. Proposals are decoded in the chain's L *lanes*, slots of a second
decoder, so that one call of the model serves all lanes of all chains. A lane begins with a copy of the record and of
its cache row, up to where its proposal leaves the record; an accepted proposal is copied back. What a chain waits for
is the number of calls while any of its lanes decodes; what it decodes is the sum over its lanes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reference.engine.chains import Chains
from reference.engine.decoder import Decoder
from reference.engine.proposals import RECORD, Proposals
from reference.engine.requests import Requests
from reference.interface import LanguageModel

if TYPE_CHECKING:
    from reference.power_sampling import PowerConfig

IDLE = 1 << 62  # the step of a lane that has nothing to do


class Lanes(Chains):
    """Chains whose own rows hold the current records, and `lanes`, whose rows are the proposals, [chain, lane]."""

    per_slot = (*Chains.per_slot, "lane_step")
    rounds: Tensor

    def __init__(
        self, model: LanguageModel, prompts: Sequence[Tensor], slots: int, config: PowerConfig, requests: Requests,
        stop_ids: Iterable[int], seed: int,
    ):  # fmt: skip
        super().__init__(model, prompts, slots, config, requests, stop_ids, seed)
        weighed = self.weighed(config)
        self.lanes = Proposals(model, prompts, slots * config.lanes, weighed, stop_ids=stop_ids, seed=seed)
        self.lane_step = torch.full((slots, config.lanes), IDLE, device=model.device)  # what each lane proposes
        self.rounds = torch.zeros(len(requests), dtype=torch.int64, device=model.device)

    def weighed(self, config: PowerConfig) -> PowerConfig:
        """The settings by which proposals are weighed."""
        return config

    def keep(self, slots: Tensor) -> None:
        Decoder.keep(self, slots)  # the records are here
        self.lanes.keep(self.rows(slots).flatten())

    def rows(self, chains: Tensor) -> Tensor:
        """The lanes' rows of some chains, [n, L]."""
        return chains[:, None] * self.config.lanes + torch.arange(self.config.lanes, device=chains.device)

    def load(self, slots: Tensor, requests: Requests) -> None:
        super().load(slots, requests)
        self.lane_step[slots], self.step[slots] = IDLE, -1
        self.propose(slots)  # step 0 draws the first block

    def advance(self) -> Tensor:
        """One token for every lane; bool [S]: the chains that have just taken their last step."""
        running = self.lanes.active.view(self.lane_step.shape)
        self.decoded += running.sum(1)
        self.rounds.index_add_(0, self.request, running.any(1).long())
        over = torch.zeros_like(self.active)
        if self.lanes.advance().any():
            ended = ~self.lanes.active.view(self.lane_step.shape) & (self.lane_step < IDLE)
            if len(chains := self.decide(ended)):
                over[self.propose(chains)] = True
        self.active &= ~over
        return over

    @abstractmethod
    def decide(self, ended: Tensor) -> Tensor:
        """Accept or reject what can be decided now that some lanes have ended (bool [S, L]), and free them. Returns the
        chains that it was decided for."""

    def begin(
        self, rows: Tensor, chains: Tensor, step: Tensor, horizon: Tensor, threshold: Tensor, first: Tensor,
        uniforms: Tensor,
    ) -> None:  # fmt: skip
        """Start one proposal in each of some rows; all [k], and uniforms [k, horizon + 1]."""
        if len(rows):
            for name in ("prompt", "start", *RECORD):
                getattr(self.lanes, name)[rows] = getattr(self, name)[chains]
            if longest := int((self.start[chains] + first).max()) - 1:  # the last token is yet to be fed
                self.lanes.cache.copy_rows(chains, rows, other=self.cache, length=longest)
            self.lane_step.view(-1)[rows] = step
            self.lanes.limit[rows], self.lanes.threshold[rows], self.lanes.uniforms[rows] = horizon, threshold, uniforms
            self.lanes.rewind(rows, first)

    def take(self, chains: Tensor, rows: Tensor) -> None:
        """Make the proposals in some rows the current records of their chains."""
        if len(chains):
            for name in RECORD:
                getattr(self, name)[chains] = getattr(self.lanes, name)[rows]
            longest = int((self.start + self.length)[chains].max()) - 1
            self.cache.copy_rows(rows, chains, other=self.lanes.cache, length=longest)

    def free(self, rows: Tensor) -> None:
        """Let lanes be idle."""
        self.lane_step.view(-1)[rows] = IDLE
        self.lanes.active[rows] = False
