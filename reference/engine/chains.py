"""Chains: what the Metropolis-Hastings samplers of p^α share.

A slot is a chain. Its current record, and the keys and values of that, stay in a row of `records`; its proposals grow
in L *lanes*, rows of one decoder, so that one call of the model serves all lanes of all chains. A lane begins with a
copy of the record up to where its proposal leaves it; a proposal that is accepted is copied back. Every lane advances
at its own position: a chain that ends a proposal decides, and begins the next, while the others go on.

What becomes of proposals is the business of a rule: one step after the other (`prefetching.py`), one of several tries
(`tries.py`), or a ladder whose rungs swap (`ladders.py`). What they have in common stands here: how proposals are
weighed while they grow, and which steps come next. Two savings change no token:

    first-divergence skip   a proposal repeats x_t iff its random number, known without the model, falls into the
                            interval that drew x_t: decoding starts at the first that does not, and many steps decode
                            nothing
    early reject            where every w_t ≤ 0, and −log Σ e falls too, a proposal is dropped as soon as it is below
                            what acceptance would need
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from reference.engine.decoder import Decoder, Prompts
from reference.engine.records import Store, Table, Texts
from reference.engine.requests import Plan, Requests, why_not_finite
from reference.interface import Samples
from reference.randomness import ACCEPT, CUT, TOLERANCE, absorb, address, uniform, unit

IDLE = 1 << 62  # the step of a lane that has nothing to do
LOOKED_AT = 1 << 14  # random numbers that are made at a time to find steps that decode; more find them sooner, in vain
LOOKED_AT_GPU = 1 << 20  # likewise on a GPU, which waits for each look
TINY = 1e-300  # for the logarithm of a sum of cut weights that are all 0: nothing is left to chance there


@dataclass(frozen=True)
class ChainSettings:
    """What the engine needs to know of a chain (`reference/power_sampling.py` says what it means)."""

    alpha: float
    temperature: float
    block: int
    steps: int
    stages: int
    max_new_tokens: int
    cut: str | Callable[[Tensor], Tensor]
    entropy_power: float
    entropy_floor: float
    first_divergence_skip: bool
    early_reject: bool
    lanes: int
    exponents: tuple[float, ...] | None  # α of a block's beginning and of its steps; None: the same finite one always

    @classmethod
    def of(cls, config: Any) -> Self:
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})

    @property
    def weighs_cuts(self) -> bool:
        """Cut weights depend on the model, so they are summed up token by token."""
        return self.cut not in ("record", "horizon")


@dataclass
class Slots(Table):
    """What is known of each chain, int64 [S] where nothing else is said."""

    request: Tensor  # index into the history
    key: Tensor
    sample: Tensor
    step: Tensor  # the last step that has been looked at
    seeds: Tensor  # [S, tries]: of the tokens of each try; the first is that of cuts and acceptances
    waited: Tensor  # calls of the model while any lane was busy: tokens that wait for each other
    over: Tensor  # bool: the request has ended


@dataclass
class Lanes(Table):
    """What is known of each lane, [S · L], chain by chain."""

    step: Tensor  # int64: the step that it proposes, or IDLE
    threshold: Tensor  # float64: what the proposal's value must exceed


@dataclass
class History(Table):
    """How chains went, [requests, blocks · (steps + 1)]: the first step of a block draws the rest of an open record."""

    cuts: Tensor  # int64, from 1
    divergences: Tensor  # int64, from 1; 0: nowhere
    accepted: Tensor  # bool
    behind: Tensor  # bool: the cut lay behind the record's end


@dataclass
class Steps(Table):
    """Steps to come, as the records are now, [n] where nothing else is said."""

    slot: Tensor  # the chain
    step: Tensor
    horizon: Tensor
    cut: Tensor  # from 0
    behind: Tensor  # bool
    threshold: Tensor
    decodes: Tensor  # bool [n, tries]: this try does
    first: Tensor  # [n, tries]: the first position that it decodes
    uniforms: Tensor  # [n, tries, horizon + 1]
    rank: Tensor  # among those of the chain that decode


class Rule(Protocol):
    """What a sampler does with proposals."""

    group: int  # neighbouring chains that begin and end together
    falling: bool  # every w_t ≤ 0
    seeds: Tensor  # int64 [tries]: of the tokens of each try; the first is that of cuts and acceptances
    measures: int  # how many numbers `measure` gives

    def distribution(self, chains: Chains, logits: Tensor, logp: Tensor) -> Tensor:
        """log q of proposals, of logits and log p, [rows, vocab] each."""

    def measure(self, logits: Tensor) -> Tensor:
        """What the rule wants to know of each token's logits: float64 [rows, measures]."""

    def start(self, chains: Chains, slots: Tensor) -> None:
        """Requests are in these slots now: set what the rule knows of them."""

    def weight(self, chains: Chains, at: Tensor) -> Tensor:
        """w_t of the tokens at positions [rows, 1], float64 [rows, 1]."""

    def decide(self, chains: Chains, ended: Tensor) -> Tensor:
        """Accept or reject what can be decided, now that some lanes have ended (bool [S, L]), and free them. Returns
        the slots that are to go on."""

    def propose(self, chains: Chains, slots: Tensor) -> Tensor:
        """Take these chains to the next steps that decode anything. Returns those that have no step left."""

    def ordered(self, chains: Chains, slots: Tensor) -> Tensor:
        """The slots of whole groups in the order of their requests."""


class Chains:
    """The machine (`loop.py`) of chains that follow a rule."""

    def __init__(self, plan: Plan, settings: ChainSettings, rule: Rule) -> None:
        self.settings, self.rule, self.group = settings, rule, rule.group
        exponents = settings.exponents or [settings.alpha]
        self.exponents = torch.tensor(exponents, dtype=torch.float64, device=plan.model.device)
        device, S, cut, massed = plan.model.device, plan.slots, settings.cut, settings.weighs_cuts
        parts = [rule.measure] * (rule.measures > 0)
        if not isinstance(cut, str):  # what cuts depend on is measured last
            parts.append(lambda logits: cut(logits.double())[:, None])
        elif massed:
            parts.append(entropy)
        measures = rule.measures + massed
        self.prompts = Prompts(plan.model, plan.prompts, S)
        self.decoder = Decoder(
            plan, lambda logits, logp: rule.distribution(self, logits, logp), rows=S * settings.lanes,
            prompts=self.prompts, measure=side_by_side(parts), measures=measures, weighed=True, massed=massed,
        )  # fmt: skip
        texts = Texts.empty(S, plan.horizon, device, measures, weighed=True, massed=massed)
        self.records = Store(plan.model, texts, self.prompts.longest + plan.horizon)
        zeros = torch.zeros((5, S), dtype=torch.int64, device=device)
        self.slots = Slots(
            request=zeros[0], key=zeros[1], sample=zeros[2], step=zeros[3], seeds=rule.seeds.expand(S, -1).clone(),
            waited=zeros[4], over=torch.ones_like(zeros[4]).bool(),
        )  # fmt: skip
        idle = torch.full((S * settings.lanes,), IDLE, device=device)
        self.lanes = Lanes(idle, torch.zeros_like(idle, dtype=torch.float64))
        shape = (len(plan.requests), settings.stages * (settings.steps + 1))
        numbers = torch.zeros((2, *shape), dtype=torch.int64, device=device)
        accepted, behind = torch.ones_like(numbers[0]).bool(), torch.zeros_like(numbers[0]).bool()
        self.history = History(numbers[0], numbers[1], accepted, behind)

    # -- the machine ---------------------------------------------------------------------------------------------------

    def load(self, slots: Tensor, requests: Requests) -> None:
        """Begin chains: step 0 draws the first block, as an extension of the empty record."""
        self.prompts.fetch(self.records, slots, requests.prompt)
        texts, own, lanes = self.records.texts, self.slots, self.rows(slots).flatten()
        texts.length[slots], texts.finished[slots] = 0, False
        own.request[slots], own.key[slots], own.sample[slots] = requests.index, requests.key, requests.sample
        own.step[slots], own.waited[slots], own.over[slots] = -1, 0, False
        self.decoder.rows.decoded[lanes] = 0
        self.free(lanes)
        self.rule.start(self, slots)
        self.rule.propose(self, slots)

    def advance(self) -> Tensor:
        decoder = self.decoder
        at, running = decoder.texts.length[:, None].clone(), decoder.rows.active.clone()
        ladders = running.view(-1, self.group * self.settings.lanes).any(1)
        self.slots.waited += ladders.repeat_interleave(self.group)
        ended = decoder.advance() | self.weigh(at, running)
        over = torch.zeros_like(self.slots.over)
        if ended.any():
            waiting = ~decoder.rows.active & (self.lanes.step < IDLE)
            if len(slots := self.rule.decide(self, waiting.view(len(self.slots), -1))):
                over[self.rule.propose(self, slots)] = True
                self.slots.over |= over
        return over

    def running(self) -> Tensor:
        return ~self.slots.over

    def keep(self, slots: Tensor) -> None:
        rows = self.rows(slots).flatten()
        self.records.keep(slots)
        self.decoder.keep(rows)
        self.slots, self.lanes = self.slots[slots], self.lanes[rows]

    def result(self, slots: Tensor) -> tuple[Samples, Tensor, Tensor]:
        slots = self.rule.ordered(self, slots)
        decoded = self.decoder.rows.decoded[self.rows(slots)].sum(1)
        return self.records.texts[slots].samples(), decoded, self.slots.waited[slots]

    # -- lanes ---------------------------------------------------------------------------------------------------------

    def rows(self, slots: Tensor) -> Tensor:
        """The lanes of some chains, [n, L]."""
        L = self.settings.lanes
        return slots[:, None] * L + torch.arange(L, device=slots.device)

    def begin(self, rows: Tensor, steps: Steps, j: Tensor | int = 0) -> None:
        """Propose steps [k], the j-th try of each, in lanes `rows` [k]."""
        i = torch.arange(len(rows), device=rows.device)
        first, now = steps.first[i, j], self.decoder.rows
        self.decoder.take(rows, self.records, steps.slot, first)
        self.lanes.put(rows, Lanes(steps.step, steps.threshold))
        now.limit[rows], now.uniforms[rows] = steps.horizon, steps.uniforms[i, j]
        self.decoder.resume(rows, first)

    def settle(self, slots: Tensor, step: Tensor, accepted: Tensor, differ: Tensor) -> None:
        """Write down what has become of steps."""
        which = self.slots.request[slots], step
        self.history.accepted[which], self.history.divergences[which] = accepted, differ

    def free(self, rows: Tensor) -> None:
        """Let lanes be idle."""
        self.lanes.step[rows] = IDLE
        self.decoder.rows.active[rows] = False

    # -- weights -------------------------------------------------------------------------------------------------------

    def weigh(self, at: Tensor, running: Tensor) -> Tensor:
        """Add the weights of the tokens that have just been decoded at positions [rows, 1]; bool [rows]: the proposals
        that cannot be accepted any more, which end here."""
        c, texts, measured = self.settings, self.decoder.texts, self.decoder.measured
        if measured.shape[1]:
            texts.measures.scatter_(1, at[..., None].expand(-1, 1, measured.shape[1]), measured[:, None])
        w = self.rule.weight(self, at)
        w = w.clamp(max=0) if self.rule.falling and not c.exponents else w  # so that rounding cannot raise a sum
        texts.weight.scatter_(1, at + 1, texts.weight.gather(1, at) + w)
        if c.weighs_cuts:
            e = measured[:, -1:]
            if c.cut == "entropy":
                before = texts.measures[..., -1].gather(1, (at - 1).clamp(min=0))
                e = c.entropy_floor + torch.where(at > 0, e - before, e).clamp(min=0) ** c.entropy_power
            texts.mass.scatter_(1, at + 1, texts.mass.gather(1, at) + e)
        if not (c.early_reject and self.rule.falling):
            return torch.zeros_like(running)
        doomed = running & (self.at_exponents(self.value(texts), texts, self.lanes.step) <= self.lanes.threshold)
        self.decoder.rows.active &= ~doomed
        return doomed

    def value(self, texts: Texts) -> Tensor:
        """What texts [n] are compared by, Σ w_t − log Σ e_t up to a constant: float64 [n]."""
        weight, length = texts.weight.gather(1, texts.length[:, None])[:, 0], texts.length
        if self.settings.cut == "horizon":
            return weight
        mass = texts.mass.gather(1, length[:, None])[:, 0] if self.settings.weighs_cuts else length.double()
        return weight - mass.clamp(min=TINY).log()

    def values(self, rows: Tensor) -> Tensor:
        """Those of proposals that have ended. ValueError: one is not a number."""
        texts, model = self.decoder.texts, self.decoder.model
        if (value := self.at_exponents(self.value(texts), texts, self.lanes.step)[rows]).isnan().any():
            raise ValueError(f"the model's logits are not finite in a proposal; {why_not_finite(model)}")
        return value

    def at_exponents(self, value: Tensor, texts: Texts, step: Tensor, of: Tensor | slice = slice(None)) -> Tensor:
        """Values of steps [n], whose weights have no α in them where α is not the same finite one always: that α log p
        of texts `of` is added here, and at α = ∞ nothing else counts, up to ties."""
        if not self.settings.exponents:
            return value
        beyond = self.decoder.columns >= texts.length[:, None]
        logp = texts.logp.double().masked_fill(beyond, 0).sum(1)[of]
        alpha = self.exponents[step % (self.settings.steps + 1)]
        return torch.where(alpha.isinf(), logp, value + alpha * logp)

    def lost_ties(self, slots: Tensor, step: Tensor, rows: Tensor) -> Tensor:
        """bool [k]: the proposals at α = ∞ that are as likely as the record, and refused by what is left then."""
        if not self.settings.exponents:
            return torch.zeros_like(slots).bool()
        own = self.slots
        u = uniform(own.seeds[slots, 0], own.key[slots], own.sample[slots], step, 0, ACCEPT)
        rest = self.value(self.decoder.texts)[rows] - self.value(self.records.texts)[slots]
        ties = self.values(rows) <= self.lanes.threshold[rows] + 2 * TOLERANCE
        return self.exponents[step % (self.settings.steps + 1)].isinf() & ties & (u.log() >= rest)

    # -- the steps to come ---------------------------------------------------------------------------------------------

    def look(self, slots: Tensor, count: int) -> Steps:
        """The next `count` steps of chains, chain by chain: [len(slots) · count]."""
        c, own, texts, columns = self.settings, self.slots, self.records.texts, self.decoder.columns
        at = slots.repeat_interleave(count)
        step = (own.step[slots, None] + torch.arange(1, 1 + count, device=slots.device)).flatten()
        key, sample, seeds, length = own.key[at], own.sample[at], own.seeds[at], texts.length[at]
        extends = step % (c.steps + 1) == 0  # the first step of a block draws the rest of an open record
        horizon = ((step // (c.steps + 1) + 1) * c.block).clamp(max=c.max_new_tokens)

        drawn = self.draw_cuts(at, uniform(seeds[:, 0], key, sample, step, 0, CUT), horizon)
        cut = torch.where(extends, length, drawn)
        tries = address(seeds, key[:, None], sample[:, None], step[:, None])  # [n, tries]
        u = unit(absorb(tries[..., None], columns))  # [n, tries, H + 1]
        changed = ((columns >= cut[:, None]) & (columns < length[:, None]))[:, None].expand_as(u)
        if c.first_divergence_skip:
            changed = changed & ((u < texts.low[at, None]) | (u >= texts.high[at, None]))
        decodes, first = changed.any(-1), changed.long().argmax(-1)  # [n, tries]
        first[extends], decodes[extends] = length[extends, None], False
        decodes[extends, 0] = (~texts.finished[at] & (length < horizon))[extends]
        threshold = uniform(seeds[:, 0], key, sample, step, 0, ACCEPT).log() + self.value(texts)[at]
        threshold = self.at_exponents(threshold, texts, step, at)
        if c.exponents:
            threshold -= TOLERANCE * self.exponents[step % (c.steps + 1)].isinf()
        threshold[extends] = -math.inf
        rank = decodes.any(1).view(-1, count).cumsum(1).flatten() - 1
        return Steps(at, step, horizon, cut, cut >= length, threshold, decodes, first, u, rank)

    def draw_cuts(self, slots: Tensor, u: Tensor, horizon: Tensor) -> Tensor:
        """The positions, from 0, that u in [0, 1) draws from the distribution of the cut of the records in some slots;
        all [k]. For cut="horizon" they may lie behind the record's end."""
        if not self.settings.weighs_cuts:
            return (u * (horizon if self.settings.cut == "horizon" else self.records.texts.length[slots])).long()
        length = self.records.texts.length[slots, None]
        mass = self.records.texts.mass[slots, :-1].masked_fill(self.decoder.columns > length, torch.inf)
        cut = torch.searchsorted(mass, u[:, None] * mass.gather(1, length), right=True) - 1
        return torch.minimum(cut, length - 1)[:, 0]

    def pass_by(self, steps: Steps, looked: Tensor) -> None:
        """Chains stand at the last of their steps that were looked at (bool [n]) now."""
        slot, step = steps.slot[looked], steps.step[looked]
        self.slots.step.scatter_reduce_(0, slot, step, "amax")
        which = self.slots.request[slot], step
        self.history.cuts[which], self.history.behind[which] = steps.cut[looked] + 1, steps.behind[looked]

    def upcoming(self, slots: Tensor, room: Tensor) -> tuple[Tensor, Steps]:
        """The next steps of chains that decode anything while their records stay as they are: at least one, if any is
        left, and at most room[i] for slots[i]; none behind one that surely changes the record. Returns the chains that
        have none left, and the steps."""
        last = self.history.cuts.shape[1] - 1
        over: list[Tensor] = []
        found: list[Steps] = []
        while len(slots) or not found:  # most steps may decode nothing, so it looks at many at once
            numbers = max(1, len(slots)) * self.slots.seeds.shape[1] * len(self.decoder.columns)
            count = max(1, min((LOOKED_AT_GPU if slots.is_cuda else LOOKED_AT) // numbers, last))
            steps, grid = self.look(slots, count), (len(slots), count)
            moves = steps.decodes.any(1)
            sure = moves & (steps.threshold == -math.inf)
            enough = (moves.view(grid).cumsum(1) >= room[:, None]) | (sure.view(grid).cumsum(1) > 0)
            looked = (enough.cumsum(1) <= 1).flatten() & (steps.step <= last)  # up to the first that is enough
            self.pass_by(steps, looked)
            chosen = moves & looked
            found.append(steps[chosen.nonzero()[:, 0]])
            none, end = ~chosen.view(grid).any(1), self.slots.step[slots] == last
            over.append(slots[none & end])
            slots, room = slots[none & ~end], room[none & ~end]
        return torch.cat(over), found[0] if len(found) == 1 else Steps.cat(found)


def side_by_side(parts: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor] | None:
    """What all of them measure, as one measure; None of none."""
    if len(parts) < 2:
        return parts[0] if parts else None
    return lambda logits: torch.cat([part(logits) for part in parts], -1)


def entropy(logits: Tensor) -> Tensor:
    """Of the distributions at temperature 1, in nats: float64 [rows, 1]."""
    return torch.special.entr(logits.double().softmax(-1)).sum(-1, keepdim=True)
