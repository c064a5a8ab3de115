"""Chains as slots of the one decoding loop: what the Metropolis-Hastings samplers of p^α share.

Every slot advances at its own position; a chain that ends a proposal accepts or rejects it and begins the next while
the others go on, and its cache row goes back by position. A second cache keeps the current record's row, from which a
rejected proposal is undone. Of its random numbers, known without the model, a chain reads ahead:

    first-divergence skip   the proposal repeats x_t iff its random number falls into the interval that drew x_t, so
                            decoding starts at the first that does not, and many steps decode nothing

How a proposal is weighed while it grows, and dropped early: `reference/engine/proposals.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from reference.engine.proposals import RECORD, Proposals
from reference.engine.requests import Requests
from reference.interface import LanguageModel
from reference.randomness import ACCEPT, CUT, absorb, address, int64, uniform, unit

if TYPE_CHECKING:
    from reference.power_sampling import PowerConfig


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
        self.behind = torch.zeros_like(self.accepted)  # the cut lay behind the record's end
        self.seeds = torch.tensor([int64(seed)], device=device)  # one for each try

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
        self.limit[slots] = min(self.config.block, self.config.max_new_tokens)
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
        accepted, which = self.values(slots) > self.threshold[slots], (self.request[slots], self.step[slots])
        kept = self.kept["tokens"][slots], self.kept["length"][slots]
        self.accepted[which] = accepted
        self.divergences[which] = first_difference(self.tokens[slots], self.length[slots], *kept)
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
            many = (LOOKED_AT << 6 * slots.is_cuda) // (max(1, len(slots)) * len(self.seeds) * len(self.columns))
            ahead = torch.arange(1, 1 + max(1, min(many, last)), device=slots.device)
            grid = (len(slots), len(ahead))
            at, step = slots.repeat_interleave(grid[1]), (self.step[slots, None] + ahead).flatten()  # [grid]
            who, length = (self.key[at], self.sample[at], step), self.length[at]
            extends = step % (c.steps + 1) == 0  # the first step of a block draws the rest of an open record
            horizon = ((step // (c.steps + 1) + 1) * c.block).clamp(max=c.max_new_tokens)

            cut = torch.where(extends, length, self.draw_cuts(at, uniform(self.seed, *who, 0, CUT), horizon))
            tries = address(self.seeds, *(word[:, None] for word in who))  # [grid, tries]
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
            which = self.request[at[looked]], step[looked]
            self.cuts[which], self.behind[which] = cut[looked] + 1, (cut >= length)[looked]
            chosen = moves & looked
            found.append([x[chosen] for x in (at, step, horizon, accept, decodes, first, u)])
            none, end = ~chosen.view(grid).any(1), self.step[slots] == last
            over.append(slots[none & end])
            slots, room = slots[none & ~end], room[none & ~end]
        return torch.cat(over), Steps(*map(torch.cat, zip(*found)))


def first_difference(tokens: Tensor, length: Tensor, other: Tensor, other_length: Tensor) -> Tensor:
    """The first position, from 1, at which responses [k, horizon] go on differently; 0 where they do not: int64 [k]."""
    shared = torch.minimum(length, other_length)
    columns = torch.arange(tokens.shape[1] + 1, device=tokens.device)
    differs = torch.nn.functional.pad((tokens != other) & (columns[:-1] < shared[:, None]), (0, 1))
    differs |= (columns == shared[:, None]) & (length != other_length)[:, None]
    return (differs.long().argmax(1) + 1) * differs.any(1)


LOOKED_AT = 1 << 14  # random numbers that `find` makes at a time; on a GPU, which each look waits for, 64 times as many
