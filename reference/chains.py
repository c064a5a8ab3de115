"""Chains as slots of the one decoding loop: what the Metropolis-Hastings samplers of p^α share.

Every slot advances at its own position; a chain that ends a proposal accepts or rejects it and begins the next while
the others go on, and its cache row goes back by position. A second cache keeps the current record's row, from which a
rejected proposal is undone. Records are compared by Σ_t w_t − log Σ_t e_t, with the weights w and the cut weights e of
`reference/power_sampling.py`; both sums grow token by token, so a proposal starts with those of the prefix that it
keeps. Two savings change no token:

    first-divergence skip   the proposal repeats x_t iff its random number falls into the interval that drew x_t, which
                            is known without the model; so decoding starts at the first that does not
    early reject            with 1 ≤ 1/τ ≤ α every w_t ≤ 0, and −log Σ e falls too: a proposal is dropped as soon as it
                            is below what acceptance would need
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from reference.randomness import ACCEPT, CUT, absorb, address, uniform, unit
from reference.sampling import Decoder, LanguageModel, Requests

if TYPE_CHECKING:
    from reference.power_sampling import PowerConfig

# What a slot knows of a record.
RECORD = ("tokens", "logp", "logq", "low", "high", "weight", "mass", "measures", "length", "finished")
TINY = 1e-300  # for the logarithm of a sum of cut weights that are all 0: nothing is left to chance there


class Proposals(Decoder):
    """A decoder that weighs what it decodes, and drops what cannot be accepted any more."""

    per_slot = (*Decoder.per_slot, "threshold", "weight", "mass")

    def __init__(
        self, model: LanguageModel, prompts: Sequence[Tensor], slots: int, config: PowerConfig, *,
        stop_ids: Iterable[int], seed: int,
    ):  # fmt: skip
        by_entropy, device = config.cut == "entropy", model.device
        super().__init__(
            model, prompts, slots, config.horizon, stop_ids=stop_ids, temperature=config.temperature, seed=seed,
            measure=entropy if by_entropy else None,
        )  # fmt: skip
        self.config = config
        self.falling = 1 <= 1 / config.temperature <= config.alpha  # every w_t <= 0
        self.threshold = torch.zeros(slots, dtype=torch.float64, device=device)  # proposals above it are accepted
        self.weight = torch.zeros((slots, config.horizon + 2), dtype=torch.float64, device=device)  # Σ of the first t w
        count = torch.arange(config.horizon + 2, device=device).double()
        self.mass = (torch.ones_like(count) if config.cut == "horizon" else count).repeat(slots, 1)  # likewise of e
        self.measures = self.weight.new_zeros((slots, config.horizon + 1, int(by_entropy)))

    def advance(self) -> Tensor:
        """One token for every slot; bool [S]: the proposals that have just ended, or been dropped."""
        c, at, running = self.config, self.length[:, None].clone(), self.active.clone()
        ended = super().advance()
        w = c.alpha * self.logp.gather(1, at).double() - self.logq.gather(1, at).double()
        w = w.clamp(max=0) if self.falling else w  # so that rounding cannot raise a sum
        self.weight.scatter_(1, at + 1, self.weight.gather(1, at) + w)
        if c.cut == "entropy":
            here, before = (self.measures[..., -1].gather(1, place) for place in (at, (at - 1).clamp(min=0)))
            rise = torch.where(at > 0, here - before, here).clamp(min=0)
            self.mass.scatter_(1, at + 1, self.mass.gather(1, at) + c.entropy_floor + rise**c.entropy_power)
        if c.early_reject and self.falling:
            doomed = running & (self.value() <= self.threshold)
            self.active &= ~doomed
            ended |= doomed
        return ended

    def value(self) -> Tensor:
        """What records are compared by, float64 [S]. (Σ e_t is constant for cut="horizon", and here 1.)"""
        weight, mass = (sums.gather(1, self.length[:, None])[:, 0] for sums in (self.weight, self.mass))
        return weight - mass.clamp(min=TINY).log()

    def values(self, slots: Tensor) -> Tensor:
        """Those of some slots. ValueError: one is not a number."""
        if (value := self.value()[slots]).isnan().any():
            raise ValueError("the model's logits are not a law (NaN or infinite) in a proposal; try float32 weights")
        return value

    def draw_cuts(self, slots: Tensor, u: Tensor, horizon: Tensor) -> Tensor:
        """The positions, from 0, that u in [0, 1) draws from the law of the cut of the records in some slots; all [k].
        For cut="horizon" they may lie behind the record's end."""
        if self.config.cut == "horizon":
            return (u * horizon).long()
        length = self.length[slots, None]
        mass = self.mass[slots, :-1].masked_fill(self.columns > length, torch.inf)
        cut = torch.searchsorted(mass, u[:, None] * mass.gather(1, length), right=True) - 1
        return torch.minimum(cut, length - 1)[:, 0]


def entropy(logits: Tensor) -> Tensor:
    """Of the laws at temperature 1, in nats: float64 [S, 1]."""
    return torch.special.entr(logits.double().softmax(-1)).sum(-1, keepdim=True)


class Steps(NamedTuple):
    """k steps that decode something. (There is one try, but in `reference/multiple_try.py`.)"""

    slot: Tensor  # [k]: the chain
    step: Tensor  # [k]
    horizon: Tensor  # [k]
    threshold: Tensor  # [k]: what a proposal's value must exceed
    decodes: Tensor  # bool [k, tries]: this try does
    first: Tensor  # [k, tries]: the first position that it decodes
    uniforms: Tensor  # [k, tries, horizon + 1]


class Chains(Proposals):
    """A decoder whose requests are chains. Its rows hold the proposals; `kept` and `kept_cache` the current records."""

    per_slot = (*Proposals.per_slot, "request", "key", "sample", "step")
    rounds: Tensor | None = None  # tokens that each request waited for, where these are not all that it decoded

    def __init__(
        self, model: LanguageModel, prompts: Sequence[Tensor], slots: int, config: PowerConfig, requests: Requests,
        stop_ids: Iterable[int], seed: int,
    ):  # fmt: skip
        super().__init__(model, prompts, slots, config, stop_ids=stop_ids, seed=seed)
        device, shape = model.device, (len(requests), config.stages * (config.steps + 1))
        self.request, self.key, self.sample, self.step = torch.zeros((4, slots), dtype=torch.int64, device=device)
        self.cuts, self.divergences = torch.zeros((2, *shape), dtype=torch.int64, device=device)
        self.accepted = torch.ones(shape, dtype=torch.bool, device=device)
        self.seeds = [seed]  # one for each try

    @cached_property
    def kept(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).clone() for name in RECORD}

    @cached_property
    def kept_cache(self) -> Any:  # a Cache
        return self.model.new_cache(len(self.tokens), self.cache.capacity)

    def keep(self, slots: Tensor) -> None:
        super().keep(slots)
        self.kept = {name: kept[slots] for name, kept in self.kept.items()}
        self.kept_cache = self.smaller(self.kept_cache, slots)

    def load(self, slots: Tensor, requests: Requests) -> None:
        """Begin chains, with a draw of the proposal law on the first block."""
        super().load(slots, requests)
        self.request[slots], self.key[slots], self.sample[slots] = requests.index, requests.key, requests.sample
        self.limit[slots] = min(self.config.block, self.config.horizon)
        self.step[slots], self.threshold[slots] = 0, -math.inf

    def advance(self) -> Tensor:
        """One token for every chain; bool [S]: the chains that have just taken their last step."""
        ended = super().advance()
        over = torch.zeros_like(ended)
        if ended.any():
            slots = ended.nonzero()[:, 0]
            self.settle(slots)
            over[self.propose(slots)] = True
        return over

    def settle(self, slots: Tensor) -> None:
        """Accept or reject: a record and its cache row go one way or the other between `kept` and here."""
        accepted = self.values(slots) > self.threshold[slots]
        self.accepted[self.request[slots], self.step[slots]] = accepted
        here = {name: getattr(self, name) for name in RECORD}
        for moved, source, target, cache, other in (
            (slots[accepted], here, self.kept, self.kept_cache, self.cache),
            (slots[~accepted], self.kept, here, self.cache, self.kept_cache),
        ):
            if len(moved):
                for name in RECORD:
                    target[name][moved] = source[name][moved]
                longest = int((self.start + source["length"])[moved].max())
                cache.copy_rows(moved, moved, other=other, length=longest - 1)  # the last token is yet to be fed

    def propose(self, slots: Tensor) -> Tensor:
        """Take chains to the next step that decodes anything; returns those that have no step left."""
        over, steps = self.find(slots, torch.ones_like(slots))
        going = steps.slot
        self.limit[going], self.threshold[going] = steps.horizon, steps.threshold
        self.uniforms[going] = steps.uniforms[:, 0]
        self.rewind(going, steps.first[:, 0])
        return over

    def find(self, slots: Tensor, room: Tensor) -> tuple[Tensor, Steps]:
        """The next steps of chains that decode anything while their records stay as they are: at least one, if any is
        left, and at most room[i] for slots[i]. Returns the chains that have none left, and the steps.

        Most steps may decode nothing, so it looks at many at once."""
        c, last = self.config, self.cuts.shape[1] - 1
        over: list[Tensor] = []
        found: list[list[Tensor]] = []
        while len(slots) or not found:
            many = LOOKED_AT // (max(1, len(slots)) * len(self.seeds) * len(self.columns))
            ahead = torch.arange(1, 1 + max(1, min(many, last)), device=slots.device)
            grid = (len(slots), len(ahead))
            at, step = slots.repeat_interleave(grid[1]), (self.step[slots, None] + ahead).flatten()  # [grid]
            who, length = (self.key[at], self.sample[at], step), self.length[at]
            extends = step % (c.steps + 1) == 0  # the first step of a block draws the rest of an open record
            horizon = ((step // (c.steps + 1) + 1) * c.block).clamp(max=c.horizon)

            cut = torch.where(extends, length, self.draw_cuts(at, uniform(self.seed, *who, 0, CUT), horizon))
            tries = torch.stack([address(seed, *who) for seed in self.seeds], 1)
            u = unit(absorb(tries[..., None], self.columns))  # [grid, tries, H + 1]
            changed = ((self.columns >= cut[:, None]) & (self.columns < length[:, None]))[:, None].expand_as(u)
            if c.first_divergence_skip:
                changed = changed & ((u < self.low[at, None]) | (u >= self.high[at, None]))
            decodes, first = changed.any(-1), changed.long().argmax(-1)  # [grid, tries]
            first[extends], decodes[extends] = length[extends, None], False
            decodes[extends, 0] = (~self.finished[at] & (length < horizon))[extends]
            accept = uniform(self.seed, *who, 0, ACCEPT).log() + self.value()[at]
            accept[extends] = -math.inf

            moves = decodes.any(1)
            sure = moves & extends  # of these the record surely changes
            enough = (moves.view(grid).cumsum(1) >= room[:, None]) | (sure.view(grid).cumsum(1) > 0)
            looked = (enough.cumsum(1) <= 1).flatten() & (step <= last)  # up to the first that is enough
            self.step[slots] += looked.view(grid).sum(1)
            diverges = torch.where(decodes, first + 1, len(self.columns)).amin(1)
            here = (self.request[at[looked]], step[looked])
            self.cuts[here], self.divergences[here] = cut[looked] + 1, (diverges * moves)[looked]
            chosen = moves & looked
            found.append([x[chosen] for x in (at, step, horizon, accept, decodes, first, u)])
            none, end = ~chosen.view(grid).any(1), self.step[slots] == last
            over.append(slots[none & end])
            slots, room = slots[none & ~end], room[none & ~end]
        return torch.cat(over), Steps(*map(torch.cat, zip(*found)))


LOOKED_AT = 1 << 14  # random numbers that `find` makes at a time
