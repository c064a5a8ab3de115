"""One step after the other, some of them proposed ahead: the rule of power sampling.

A chain that rejects a step proposes in the next what it would have proposed without waiting, since its random numbers
are addressed. So its first lane works on the next step that decodes anything, the others on those after it, as if the
record stayed as it is. Steps are decided in their order. One that leaves the record as it is frees its lane for a later
one. One that changes it makes what the later lanes hold stale: all lanes begin anew. Tokens, cuts and decisions are
those of a chain with one lane. It waits for fewer tokens where proposals are rejected, and decodes more, the stale ones
among them. Steps that surely change the record, the first draw and a block's extension, have no lanes behind them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reference.engine.chains import IDLE, Chains, ChainSettings
from reference.engine.decoder import filtered
from reference.engine.records import first_difference
from reference.engine.requests import Plan
from reference.randomness import int64


class InOrder:
    """The rule of chains whose lanes work on consecutive steps."""

    group, measures = 1, 0

    def __init__(self, plan: Plan, settings: ChainSettings) -> None:
        self.draw = filtered(settings.temperature)
        least = min((settings.exponents or (settings.alpha,))[-settings.steps :])
        self.falling = least == math.inf or 1 <= 1 / settings.temperature <= least
        self.seeds = torch.tensor([int64(plan.seed)], device=plan.model.device)

    def distribution(self, chains: Chains, logits: Tensor, logp: Tensor) -> Tensor:
        return self.draw(logits, logp)

    def measure(self, logits: Tensor) -> Tensor:
        raise NotImplementedError

    def start(self, chains: Chains, slots: Tensor) -> None:
        pass

    def weight(self, chains: Chains, at: Tensor) -> Tensor:
        """α log p − log q; −log q where the steps' exponents differ, or are ∞."""
        texts, alpha = chains.decoder.texts, 0.0 if chains.settings.exponents else chains.settings.alpha
        return alpha * texts.logp.gather(1, at).double() - texts.logq.gather(1, at).double()

    def decide(self, chains: Chains, ended: Tensor) -> Tensor:
        slots, decided = ended.any(1).nonzero()[:, 0], []
        while len(slots):
            step, lane = chains.lanes.step.view_as(ended)[slots].min(1)  # the step that comes first
            ready = ended[slots, lane]
            slots, step, rows = slots[ready], step[ready], chains.rows(slots)[ready, lane[ready]]
            changed = self.settle(chains, slots, step, rows)
            decided.append(slots)
            if ended.shape[1] == 1:
                return slots
            ended[slots, lane[ready]] = False
            slots = slots[~changed]
            slots = slots[ended[slots].any(1)]
        return torch.cat(decided).unique() if decided else slots

    def settle(self, chains: Chains, slots: Tensor, step: Tensor, rows: Tensor) -> Tensor:
        """Accept or reject one proposal of each of some chains; bool [k]: the record has changed."""
        accepted = chains.values(rows) > chains.lanes.threshold[rows]
        accepted &= ~chains.lost_ties(slots, step, rows)
        texts, own = chains.decoder.texts, chains.records.texts
        differ = first_difference(texts.tokens[rows], texts.length[rows], own.tokens[slots], own.length[slots])
        chains.settle(slots, step, accepted, differ)
        changed = accepted & (differ > 0)
        chains.records.take(slots[accepted], chains.decoder, rows[accepted])  # an equal one, for its intervals
        moved = slots[changed]
        chains.slots.step[moved] = step[changed]
        chains.free(rows)
        if chains.settings.lanes > 1:
            chains.free(chains.rows(moved).flatten())  # what was proposed behind it is stale
        return changed

    def propose(self, chains: Chains, slots: Tensor) -> Tensor:
        """Give the idle lanes of chains their next steps; returns the chains with none left, and none under way."""
        rows, lanes = chains.rows(slots), chains.lanes
        busy = lanes.step[rows] < IDLE
        sure = (busy & (lanes.threshold[rows] == -math.inf)).any(1)  # of these the record will change
        over, steps = chains.upcoming(slots[~sure], (~busy[~sure]).sum(1))
        rows = chains.rows(steps.slot)
        idle_first = lanes.step[rows].argsort(1, descending=True)
        chains.begin(rows.gather(1, idle_first.gather(1, steps.rank[:, None]))[:, 0], steps)
        return over[(lanes.step[chains.rows(over)] == IDLE).all(1)]

    def ordered(self, chains: Chains, slots: Tensor) -> Tensor:
        return slots
