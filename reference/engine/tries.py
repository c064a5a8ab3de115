"""Multiple tries as lanes of a chain: how `reference/multiple_try.py` proposes and picks many at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reference.engine.chains import first_difference
from reference.engine.lanes import IDLE, Lanes
from reference.engine.requests import Requests
from reference.interface import CHOICE, LanguageModel, child_seed, int64, inverse_cdf, uniform

if TYPE_CHECKING:
    from reference.multiple_try import MultipleTryConfig
    from reference.power_sampling import PowerConfig

WAITS = 5  # steps are decided when this share of the chains waits


class Tries(Lanes):
    """Chains with K lanes each, on the tries of one step."""

    config: MultipleTryConfig

    def __init__(
        self, model: LanguageModel, prompts: Sequence[Tensor], slots: int, config: MultipleTryConfig,
        requests: Requests, stop_ids: Iterable[int], seed: int, *, log_ratio: Callable[[Tensor, Tensor], Tensor],
    ):  # fmt: skip
        self.log_ratio = log_ratio
        super().__init__(model, prompts, slots, config, requests, stop_ids, seed)
        seeds = [seed] + [child_seed(seed, "try", j) for j in range(1, config.tries)]
        self.seeds = torch.tensor([int64(each) for each in seeds], device=model.device)

    def weighed(self, config: PowerConfig) -> PowerConfig:
        return replace(config, early_reject=config.early_reject and config.lanes == 1)

    def decide(self, ended: Tensor) -> Tensor:
        tried = self.lane_step < IDLE
        chains = (ended.any(1) & (ended | ~tried).all(1)).nonzero()[:, 0]
        if len(chains) < len(tried) // WAITS and self.lanes.active.any():
            return chains[:0]  # a few chains that wait cost less than bookkeeping for each
        tried, rows, step = tried[chains], self.rows(chains), self.step[chains]
        self.lanes.values(rows[tried])  # are numbers
        own = self.value()[chains]
        extends = self.threshold[chains] == -math.inf
        repeats = torch.where(extends, -math.inf, 0.0)  # log w of x itself; an extension has but one try
        log_w = torch.where(tried, self.lanes.value()[rows] - own[:, None], repeats[:, None])  # [n, K]

        u = uniform(self.seed, self.key[chains], self.sample[chains], step, 0, CHOICE)
        pick = inverse_cdf(log_w.log_softmax(1), u)[0][:, None]
        accepted = own + self.log_ratio(log_w, pick) > self.threshold[chains]
        records = (x[chains].repeat_interleave(rows.shape[1], 0) for x in (self.tokens, self.length))
        differ = first_difference(self.lanes.tokens[rows.flatten()], self.lanes.length[rows.flatten()], *records)
        differ = differ.view_as(rows).masked_fill(~tried, 0)
        never = len(self.columns) + 1
        differ = differ.masked_fill(differ == 0, never).amin(1)
        self.accepted[self.request[chains], step] = accepted
        self.divergences[self.request[chains], step] = differ.masked_fill(differ == never, 0)
        moved = accepted & tried.gather(1, pick)[:, 0]
        self.take(chains[moved], rows.gather(1, pick)[moved, 0])
        self.free(rows.flatten())
        return chains

    def propose(self, slots: Tensor) -> Tensor:
        """Take chains to the next step of which a try decodes anything; returns those that have no step left."""
        over, steps = self.find(slots, torch.ones_like(slots))
        self.threshold[steps.slot] = steps.threshold
        i, j = steps.decodes.nonzero(as_tuple=True)
        self.begin(
            self.rows(steps.slot)[i, j], steps.slot[i], steps.step[i], steps.horizon[i], steps.threshold[i],
            steps.first[i, j], steps.uniforms[i, j],
        )  # fmt: skip
        return over
