"""Ladders of chains that swap: the rule of `reference/parallel_tempering.py`.

K neighbouring slots are a ladder, each a chain on the rung that it stands on; request i · K + k is rung k of ladder i.
A rung that has ended its step waits for the others; then neighbours swap. A swap moves no text: two slots change their
requests, and so their rungs, and their records get the weights that ζ at the new exponent gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from reference.engine.chains import Chains, ChainSettings
from reference.engine.prefetching import InOrder
from reference.engine.requests import Plan
from reference.interface import child_seed, log_law
from reference.randomness import SWAP, int64, uniform


class Ladders(InOrder):
    """The rule of chains in groups of K, each with the random numbers of its rung."""

    def __init__(
        self, plan: Plan, settings: ChainSettings, alphas: Sequence[float], swap_log_ratio: Callable[..., Tensor]
    ) -> None:
        super().__init__(plan, settings)
        device, self.exponents = plan.model.device, list(alphas)
        self.group = self.measures = len(alphas)
        self.swap_log_ratio, self.falling = swap_log_ratio, alphas[0] >= 1
        self.alphas = torch.tensor(alphas, dtype=torch.float64, device=device)
        seeds = [plan.seed, *(child_seed(plan.seed, "rung", k) for k in range(1, self.group))]
        self.of_rungs = torch.tensor([int64(seed) for seed in seeds], device=device)
        shape = (len(plan.requests) // self.group, self.group - 1, settings.stages * (settings.steps + 1))
        self.swapped = torch.zeros(shape, dtype=torch.bool, device=device)

    def start(self, chains: Chains, slots: Tensor) -> None:
        own = chains.slots
        own.sample[slots] //= self.group  # of the ladder
        own.seeds[slots, 0] = self.of_rungs[own.request[slots] % self.group]

    def distribution(self, chains: Chains, logits: Tensor, logp: Tensor) -> Tensor:
        if self.group == 1:
            return super().distribution(chains, logits, logp)
        return log_law(logits, 1 / self.alphas[chains.slots.request % self.group])

    def measure(self, logits: Tensor) -> Tensor:
        """ζ of every rung: float64 [rows, K]."""
        logp = logits.log_softmax(-1)
        return torch.stack([(a * logp).logsumexp(-1).double() for a in self.exponents], -1)

    def weight(self, chains: Chains, at: Tensor) -> Tensor:
        """ζ of the rung that a chain stands on."""
        return chains.decoder.measured.gather(1, (chains.slots.request % self.group)[:, None])

    def decide(self, chains: Chains, ended: Tensor) -> Tensor:
        slots = super().decide(chains, ended)
        waits = ~chains.decoder.rows.active.view(-1, self.group).any(1)
        touched = torch.zeros_like(chains.slots.over).index_fill_(0, slots, True).view(-1, self.group).any(1)
        return self.slots_of((waits & touched).nonzero()[:, 0])

    def slots_of(self, ladders: Tensor) -> Tensor:
        return (ladders[:, None] * self.group + torch.arange(self.group, device=ladders.device)).flatten()

    def propose(self, chains: Chains, slots: Tensor) -> Tensor:
        """One step at a time, since neighbours swap after each; those that decode nothing are over at once."""
        over, last = [], chains.history.cuts.shape[1] - 1
        while len(slots):
            step = chains.slots.step[slots]
            self.swap(chains, slots[(step >= 0) & (step % (chains.settings.steps + 1) > 0)])
            over.append(slots[step == last])
            slots = slots[step < last]
            steps = chains.look(slots, 1)
            chains.pass_by(steps, torch.ones_like(steps.behind))
            steps = steps[steps.decodes[:, 0]]
            chains.begin(steps.slot, steps)
            idle = ~chains.decoder.rows.active[slots].view(-1, self.group).any(1)
            slots = slots[idle.repeat_interleave(self.group)]
        return torch.cat(over) if over else slots

    def swap(self, chains: Chains, slots: Tensor) -> None:
        """Swaps of neighbouring rungs, upwards, in ladders of which no slot is decoding."""
        if not len(slots) or self.group == 1:
            return
        own, texts = chains.slots, chains.records.texts
        before = own.request[slots]
        at = self.ordered(chains, slots).view(-1, self.group)  # [ladders, K]: by rung
        beyond = chains.decoder.columns >= texts.length[at][..., None]
        logp = texts.logp[at].double().masked_fill(beyond, 0).sum(-1)
        ladder, key, sample, step = (
            before[:: self.group] // self.group,
            *(x[at[:, 0]] for x in (own.key, own.sample, own.step)),
        )
        for k in range(self.group - 1):
            u = uniform(chains.decoder.seed, key, sample, step, k, SWAP)
            yes = u.log() < self.swap_log_ratio(self.alphas[k], self.alphas[k + 1], logp[:, k], logp[:, k + 1])
            self.swapped[ladder, k, step] = yes
            pair, turned = slice(k, k + 2), yes[:, None]
            at[:, pair] = torch.where(turned, at[:, pair].flip(1), at[:, pair])
            logp[:, pair] = torch.where(turned, logp[:, pair].flip(1), logp[:, pair])
        rungs = torch.arange(self.group, device=slots.device)
        own.request[at] = ladder[:, None] * self.group + rungs
        own.seeds[at, 0] = self.of_rungs.expand_as(at)
        if len(moved := slots[own.request[slots] != before]):
            self.reweigh(chains, moved)

    def reweigh(self, chains: Chains, slots: Tensor) -> None:
        """Give the records in some slots the weights of the rungs that they have come to."""
        texts, rung = chains.records.texts, chains.slots.request[slots] % self.group
        zeta = texts.measures[slots].gather(2, rung[:, None, None].expand(-1, texts.tokens.shape[1], 1))[..., 0]
        texts.weight[slots, 1:] = (zeta.clamp(max=0) if self.falling else zeta).cumsum(1)
        texts.low[slots] = 1.0  # no number is in [1, high): these tokens are not known to repeat

    def ordered(self, chains: Chains, slots: Tensor) -> Tensor:
        """By ladder, and in it by rung."""
        order = chains.slots.request[slots].view(-1, self.group).argsort(1)
        return slots.view(-1, self.group).gather(1, order).flatten()
