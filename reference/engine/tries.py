"""Several tries of one step, one of which may be kept: the rule of `reference/multiple_try.py`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from reference.engine.chains import IDLE, Chains, ChainSettings
from reference.engine.prefetching import InOrder
from reference.engine.records import first_difference
from reference.engine.requests import Plan
from reference.interface import inverse_cdf
from reference.randomness import CHOICE, child_seed, int64, uniform

WAITS = 5  # steps are decided when this share of the chains waits: a few that wait cost less than bookkeeping for each


class Tries(InOrder):
    """The rule of chains whose lanes work on the tries of one step."""

    def __init__(self, plan: Plan, settings: ChainSettings, log_ratio: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(plan, settings)
        self.log_ratio, own = log_ratio, self.seeds
        seeds = [child_seed(plan.seed, "try", j) for j in range(1, settings.lanes)]
        self.seeds = torch.cat((own, torch.tensor([int64(seed) for seed in seeds], dtype=torch.int64).to(own)))

    def decide(self, chains: Chains, ended: Tensor) -> Tensor:
        tried = chains.lanes.step.view_as(ended) < IDLE
        slots = (ended.any(1) & (ended | ~tried).all(1)).nonzero()[:, 0]
        if len(slots) < len(tried) // WAITS and chains.decoder.rows.active.any():
            return slots[:0]
        tried, rows, own = tried[slots], chains.rows(slots), chains.slots
        step = chains.lanes.step[rows].amin(1)
        threshold = chains.lanes.threshold[rows].masked_fill(~tried, -math.inf).amax(1)  # the same in all lanes in use
        value = chains.value(chains.records.texts)[slots]
        repeats = torch.where(threshold == -math.inf, -math.inf, 0.0)  # log w of x itself; an extension has one try
        chains.values(rows[tried])  # are numbers
        log_w = torch.where(tried, chains.value(chains.decoder.texts)[rows] - value[:, None], repeats[:, None])

        u = uniform(own.seeds[slots, 0], own.key[slots], own.sample[slots], step, 0, CHOICE)
        pick = inverse_cdf(log_w.log_softmax(1), u)[0][:, None]
        accepted = value + self.log_ratio(log_w, pick) > threshold
        texts, now = chains.decoder.texts, chains.records.texts
        of = slots.repeat_interleave(rows.shape[1])
        differ = first_difference(
            texts.tokens[rows.flatten()], texts.length[rows.flatten()], now.tokens[of], now.length[of]
        ).view_as(rows)
        never = len(chains.decoder.columns) + 1
        first = differ.masked_fill(~tried | (differ == 0), never).amin(1)
        chains.settle(slots, step, accepted, first.masked_fill(first == never, 0))
        moved = accepted & tried.gather(1, pick)[:, 0]
        chains.records.take(slots[moved], chains.decoder, rows.gather(1, pick)[moved, 0])
        chains.free(rows.flatten())
        return slots

    def propose(self, chains: Chains, slots: Tensor) -> Tensor:
        """Give the lanes of chains the next step of which a try decodes anything; a try that repeats x is x."""
        over, steps = chains.upcoming(slots, torch.ones_like(slots))
        i, j = steps.decodes.nonzero(as_tuple=True)
        chains.begin(chains.rows(steps.slot)[i, j], steps[i], j)
        return over
