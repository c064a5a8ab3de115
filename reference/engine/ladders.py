"""Ladders as slots of the one decoding loop: how the rungs of `reference/parallel_tempering.py` step and swap.

K neighbouring slots are a ladder, each a chain (`chains.py`) on the rung that it stands on. A rung that has ended its
step waits for the others; then neighbours swap. A swap moves no text: two slots change their rungs, and their
records get the weights that ζ at the new exponent gives them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reference.engine.chains import Chains
from reference.engine.decoder import Decoder
from reference.engine.proposals import entropy
from reference.engine.requests import Requests
from reference.interface import LanguageModel, Samples, log_law
from reference.randomness import ACCEPT, CUT, SWAP, absorb, address, child_seed, int64, uniform, unit

if TYPE_CHECKING:
    from reference.parallel_tempering import TemperingConfig


class Ladders(Chains):
    """Chains in groups of K neighbouring slots. `request` of a slot is that of the rung that it stands on."""

    config: TemperingConfig
    rounds: Tensor

    def __init__(
        self, model: LanguageModel, prompts: Sequence[Tensor], slots: int, config: TemperingConfig, requests: Requests,
        stop_ids: Iterable[int], seed: int, *, swap_log_ratio: Callable[..., Tensor],
    ):  # fmt: skip
        super().__init__(model, prompts, slots, config, requests, stop_ids, seed)
        self.swap_log_ratio = swap_log_ratio
        seeds = [seed] + [child_seed(seed, "rung", k) for k in range(1, config.rungs)]
        self.seeds = torch.tensor([int64(each) for each in seeds], device=model.device)  # one for each rung
        self.group, self.falling = config.rungs, config.alphas[0] >= 1
        self.alphas = torch.tensor(config.alphas, dtype=torch.float64, device=model.device)
        self.measure, self.measures = (
            partial(zetas, alphas=config.alphas, by_entropy=config.cut == "entropy"),
            self.weight.new_zeros((slots, config.max_new_tokens + 1, config.rungs + (config.cut == "entropy"))),
        )
        ladders = len(requests) // config.rungs
        self.rounds = torch.zeros(ladders, dtype=torch.int64, device=model.device)
        self.swapped = torch.zeros(
            (ladders, config.rungs - 1, self.cuts.shape[1]), dtype=torch.bool, device=model.device
        )

    def proposal_law(self, logits: Tensor, logp: Tensor) -> Tensor:
        if self.group == 1:
            return super().proposal_law(logits, logp)
        return log_law(logits, 1 / self.alphas[self.request % self.group])

    def load(self, slots: Tensor, requests: Requests) -> None:
        """Begin ladders: requests i · K + k are the rungs k of ladder i, each with random numbers of its own."""
        super().load(slots, replace(requests, sample=requests.sample // self.group))
        self.uniforms[slots] = self.numbers_of_rung(slots)

    def numbers_of_rung(self, slots: Tensor) -> Tensor:
        """The random numbers of the rungs that some slots stand on, at their steps: [k, horizon + 1]."""
        seeds = self.seeds[self.request[slots] % self.group]
        state = address(seeds, self.key[slots], self.sample[slots], self.step[slots])
        return unit(absorb(state[:, None], self.columns))

    def responses(self, slots: Tensor) -> Samples:
        """What stands in some slots, whole ladders, in the order of the rungs."""
        order = self.request[slots].view(-1, self.group).argsort(1)
        return super().responses(slots.view(-1, self.group).gather(1, order).flatten())

    def advance(self) -> Tensor:
        """One token for every rung that has not ended its step; bool [S]: the ladders that took their last step."""
        at, running = self.length[:, None].clone(), self.active.clone()
        going = running.view(-1, self.group).any(1)
        self.rounds.index_add_(0, self.request[:: self.group] // self.group, going.long())
        ended = Decoder.advance(self)
        zeta = self.measures.gather(1, at[..., None].expand(-1, 1, self.measures.shape[-1]))[:, 0]
        w = zeta.gather(1, (self.request % self.group)[:, None])
        self.weight.scatter_(1, at + 1, self.weight.gather(1, at) + (w.clamp(max=0) if self.falling else w))
        self.weigh_cut(at)
        if self.config.early_reject and self.falling:
            doomed = running & (self.value() <= self.threshold)
            self.active &= ~doomed
            ended |= doomed
        over = torch.zeros_like(going)
        if ended.any():
            self.settle(ended.nonzero()[:, 0])
            ready = (going & ~self.active.view(-1, self.group).any(1)).nonzero()[:, 0]
            while len(ready):
                slots = (ready[:, None] * self.group + torch.arange(self.group, device=ready.device)).flatten()
                self.swap(slots[self.step[slots] % (self.config.steps + 1) > 0])
                last = self.step[slots[:: self.group]] == self.cuts.shape[1] - 1
                over[ready[last]] = True
                ready = ready[~last]
                self.begin(slots[~last.repeat_interleave(self.group)])
                ready = ready[~self.active.view(-1, self.group)[ready].any(1)]
        return over.repeat_interleave(self.group)

    def begin(self, slots: Tensor) -> None:
        """The next step of some rungs; one that decodes nothing has been taken with it."""
        c = self.config
        self.step[slots] += 1
        step, length = self.step[slots], self.length[slots]
        who = (self.seeds[self.request[slots] % self.group], self.key[slots], self.sample[slots], step)
        extends = step % (c.steps + 1) == 0  # the first step of a block draws the rest of an open record
        horizon = ((step // (c.steps + 1) + 1) * c.block).clamp(max=c.max_new_tokens)
        cut = torch.where(extends, length, self.draw_cuts(slots, uniform(*who, 0, CUT), horizon))
        u = self.numbers_of_rung(slots)
        changed = (self.columns >= cut[:, None]) & (self.columns < length[:, None])
        if c.first_divergence_skip:
            changed &= (u < self.low[slots]) | (u >= self.high[slots])
        decodes = torch.where(extends, ~self.finished[slots] & (length < horizon), changed.any(1))
        first = torch.where(extends, length, changed.long().argmax(1))
        threshold = uniform(*who, 0, ACCEPT).log() + self.value()[slots]
        which = self.request[slots], step
        self.cuts[which], self.behind[which] = cut + 1, cut >= length
        going = slots[decodes]
        self.limit[going], self.uniforms[going] = horizon[decodes], u[decodes]
        self.threshold[going] = threshold.masked_fill(extends, -math.inf)[decodes]
        self.rewind(going, first[decodes])

    def swap(self, slots: Tensor) -> None:
        """Swaps of neighbouring rungs, upwards, in some ladders; their slots, of which none is decoding."""
        if not len(slots) or self.group == 1:
            return
        before = self.request[slots]
        at = slots.view(-1, self.group).gather(1, before.view(-1, self.group).argsort(1))  # [ladders, K]: by rung
        beyond = self.columns >= self.length[at][..., None]
        logp = self.logp[at].double().masked_fill(beyond, 0).sum(-1)
        ladder, step = before[:: self.group] // self.group, self.step[at[:, 0]]
        for k in range(self.group - 1):
            u = uniform(self.seed, self.key[at[:, 0]], self.sample[at[:, 0]], step, k, SWAP)
            yes = u.log() < self.swap_log_ratio(self.alphas[k], self.alphas[k + 1], logp[:, k], logp[:, k + 1])
            self.swapped[ladder, k, step] = yes
            pair, turned = slice(k, k + 2), yes[:, None]
            at[:, pair] = torch.where(turned, at[:, pair].flip(1), at[:, pair])
            logp[:, pair] = torch.where(turned, logp[:, pair].flip(1), logp[:, pair])
        self.request[at] = ladder[:, None] * self.group + torch.arange(self.group, device=slots.device)
        if len(moved := slots[self.request[slots] != before]):
            self.reweigh(moved)

    def reweigh(self, slots: Tensor) -> None:
        """Give the records in some slots the weights of the rungs that they have come to."""
        rung = (self.request[slots] % self.group)[:, None, None].expand(-1, len(self.columns), 1)
        zeta = self.measures[slots].gather(2, rung)[..., 0]
        self.weight[slots, 1:] = (zeta.clamp(max=0) if self.falling else zeta).cumsum(1)
        self.low[slots] = 1.0  # no number is in [1, high): these tokens are not known to repeat
        self.kept["weight"][slots], self.kept["low"][slots] = self.weight[slots], self.low[slots]


def zetas(logits: Tensor, alphas: Sequence[float], by_entropy: bool = False) -> Tensor:
    """ζ of every rung, and the entropy if cuts go by it: float64 [S, K (+ 1)]."""
    logp = logits.log_softmax(-1)
    measured = torch.stack([(a * logp).logsumexp(-1).double() for a in alphas], -1)
    return torch.cat((measured, entropy(logits)), -1) if by_entropy else measured
