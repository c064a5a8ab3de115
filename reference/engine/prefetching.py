"""Prefetching: the next steps of a chain are proposed side by side, as if its record stayed as it is.

A chain of `reference/power_sampling.py` that rejects a step proposes in the next what it would have proposed without
waiting, since its random numbers are addressed. So a chain has 1 + k lanes: the first works on the next step that
decodes anything, the others on those after it. Steps are decided in their order. A step that leaves the record as it is
frees its lane for a later one. A step that changes it makes what the later lanes hold stale: they are thrown away, and
all lanes begin anew. Tokens, cuts and decisions are those of the chain that waits for each step in turn. It waits for
fewer tokens where proposals are rejected, and decodes more, the thrown away ones among them.

Steps that surely change the record, the first draw and a block's extension, have no lanes behind them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reference.engine.chains import first_difference
from reference.engine.lanes import IDLE, Lanes


class Prefetching(Lanes):
    """Chains with 1 + k lanes each, on as many steps."""

    def decide(self, ended: Tensor) -> Tensor:
        order = self.lane_step.argsort(1)  # [S, L]: lanes by their steps, the idle ones last
        chain = torch.arange(len(order), device=order.device)[:, None].expand_as(order)
        row = self.rows(chain[:, 0]).gather(1, order)
        decided = ended.gather(1, order).cumprod(1).bool()  # a step waits for those before it,
        accepted = (self.lanes.value() > self.lanes.threshold)[row]
        differ = self.differ(row)
        changes = decided & accepted & (differ > 0)
        decided &= changes.cumsum(1) - changes.long() == 0  # and what was proposed before a change is stale
        changes &= decided
        self.lanes.values(row[decided])  # are numbers

        steps = self.lane_step.view(-1)[row]
        which = self.request[chain[decided]], steps[decided]
        self.accepted[which], self.divergences[which] = accepted[decided], differ[decided]
        changed = chain[changes]
        self.take(changed, row[changes])
        self.step[changed] = steps[changes]
        self.free(row[decided])
        self.free(self.rows(changed).flatten())
        return chain[decided].unique()

    def differ(self, row: Tensor) -> Tensor:
        """Where the proposals in rows [S, L] first differ from the records of the chains, from 1; 0: nowhere."""
        own = (x.repeat_interleave(row.shape[1], 0) for x in (self.tokens, self.length))
        return first_difference(self.lanes.tokens[row.flatten()], self.lanes.length[row.flatten()], *own).view_as(row)

    def propose(self, slots: Tensor) -> Tensor:
        """Give the idle lanes of chains their next steps; returns the chains with none left, and none under way."""
        busy = self.lane_step[slots] < IDLE
        sure = (busy & (self.lanes.threshold[self.rows(slots)] == -math.inf)).any(1)  # of these the record will change
        over, steps = self.find(slots[~sure], (~busy[~sure]).sum(1))
        _, group, size = steps.slot.unique_consecutive(return_inverse=True, return_counts=True)
        rank = torch.arange(len(group), device=group.device) - (size.cumsum(0) - size)[group]  # within its chain
        idle_first = self.lane_step.argsort(1, descending=True)
        rows = self.rows(steps.slot).gather(1, idle_first[steps.slot, rank][:, None])[:, 0]
        self.begin(rows, *steps[:4], steps.first[:, 0], steps.uniforms[:, 0])
        return over[(self.lane_step[over] == IDLE).all(1)]
