"""Parallel tempering for p^α: a ladder of chains that swap places (PPT, Theodoropoulos et al. 2026), with no training.

Rung k = 1..K of a ladder α_1 < ... < α_K = α holds a record x^k and targets π_k ∝ p^(α_k). A round is one step of power
sampling on every rung (`reference/power_sampling.py`, cut="horizon", proposal q_k ∝ p^(α_k)), where a new ending y of x
is kept with probability

    min(1, exp( Σ_{t≥r} ζ_k(y, t) − Σ_{t≥r} ζ_k(x, t) )),      ζ_k(x, t) = log Σ_v p(v|h_t)^(α_k),

and then swaps of neighbours (1, 2), (2, 3), ... in that order: their records change places with probability

    min(1, exp( (α_{k+1} − α_k) (log p(x^k) − log p(x^{k+1})) )).

Both keep Π_k π_k, so the record of the last rung has law p^α in the limit; the lower rungs move freely and hand on what
they find. Not the texts but the exponents change places: a text stays in its slot, with its cache row. As ζ of every
rung is kept for every token, its weights at the new exponent are at hand. Horizons grow in blocks as there.

K = 1 is power sampling, with the same tokens. First-divergence skip rests on the law that drew a token being that of
the proposal; after a swap it is not, so tokens drawn before it are decoded anew. Early reject is on if α_1 ≥ 1.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from reference.chains import Chains
from reference.power_sampling import PowerConfig
from reference.randomness import ACCEPT, CUT, SWAP, absorb, uniform
from reference.samples import Generation, Samples
from reference.sampling import (
    Decoder,
    LanguageModel,
    Requests,
    check_horizons,
    check_law,
    check_prompts,
    choose_slots,
    decode_all,
    log_law,
    make_requests,
)


@dataclass(frozen=True)
class TemperingConfig(PowerConfig):
    """Settings of each rung's chain, and the ladder."""

    rungs: int = 4  # K, chains that swap; each takes a slot of its own
    ladder: tuple[float, ...] | None = None  # α_1 < ... < α_K = α; None: geometric, from 1

    @property
    def alphas(self) -> tuple[float, ...]:
        if self.ladder is not None:
            return tuple(self.ladder)
        return (*(self.alpha ** (k / (self.rungs - 1)) for k in range(self.rungs - 1)), self.alpha)

    def check(self) -> None:
        super().check()
        if self.rungs < 1:
            raise ValueError(f"rungs is {self.rungs}; it must be at least 1")
        if len(self.alphas) != self.rungs or self.alphas[-1] != self.alpha:
            raise ValueError(f"ladder is {self.alphas}; it must have {self.rungs} rungs, the last of them {self.alpha}")
        if not all(low < high for low, high in zip((0.0, *self.alphas), self.alphas)):
            raise ValueError(f"ladder is {self.alphas}; it must rise, from above 0 (the default one needs alpha > 1)")
        for name, only in (("proposal_temperature", None), ("cut", "horizon"), ("prefetch", 0)):
            if (value := getattr(self, name)) != only:
                raise ValueError(f"{name} is {value!r}; it must be {only!r} with parallel tempering")


@dataclass(frozen=True)
class TemperingSamples(Generation):
    """`samples[prompt][i]` is the last rung of ladder i. The rest says how it went, one entry per round."""

    rungs: Samples  # all rungs: rung k of ladder i is rungs[prompt][i · K + k]
    divergences: Tensor  # int64 [prompts, n, K, rounds]: the first position that a step decoded; 0 if it decoded none
    accepted: Tensor  # bool [prompts, n, K, rounds]; a step that decodes nothing is accepted
    swapped: Tensor  # bool [prompts, n, K − 1, rounds]: rungs k and k + 1 after the round

    @property
    def acceptance(self) -> list[float]:
        """Per rung, the share of accepted proposals among those that decoded anything."""
        moves = self.divergences > 0
        return ((self.accepted & moves).sum((0, 1, 3)) / moves.sum((0, 1, 3))).tolist()

    @property
    def swap_acceptance(self) -> list[float]:
        """Per pair of neighbours."""
        return self.swapped.double().mean((0, 1, 3)).tolist()


class Ladders(Chains):
    """Chains in groups of K neighbouring slots. `request` of a slot is that of the rung that it stands on."""

    config: TemperingConfig
    per_slot = (*Chains.per_slot, "ladder")
    rounds: Tensor

    def __init__(
        self, model: LanguageModel, prompts: Sequence[Tensor], slots: int, config: TemperingConfig, requests: Requests,
        stop_ids: Iterable[int], seed: int,
    ):  # fmt: skip
        super().__init__(model, prompts, slots, config, requests, stop_ids, seed)
        self.group, self.falling = config.rungs, config.alphas[0] >= 1
        self.alphas = torch.tensor(config.alphas, dtype=torch.float64, device=model.device)
        self.measure, self.measures = self.zetas, self.weight.new_zeros((slots, config.horizon + 1, config.rungs))
        ladders = len(requests) // config.rungs
        self.ladder = torch.zeros_like(self.step)  # the key of the ladder, whichever slot
        self.rounds = torch.zeros(ladders, dtype=torch.int64, device=model.device)
        self.swapped = torch.zeros(
            (ladders, config.rungs - 1, self.cuts.shape[1]), dtype=torch.bool, device=model.device
        )

    def zetas(self, logits: Tensor) -> Tensor:
        """ζ of every rung: float64 [S, K]."""
        logp = logits.log_softmax(-1)
        return torch.stack([(a * logp).logsumexp(-1).double() for a in self.config.alphas], -1)

    def proposal_law(self, logits: Tensor, logp: Tensor) -> Tensor:
        if self.group == 1:
            return super().proposal_law(logits, logp)
        return log_law(logits, 1 / self.alphas[self.request % self.group])

    def load(self, slots: Tensor, requests: Requests) -> None:
        """Begin ladders: requests i · K + k are the rungs k of ladder i, each with random numbers of its own."""
        rung = requests.sample % self.group
        key = torch.where(rung > 0, absorb(requests.key, rung), requests.key)
        self.ladder[slots] = requests.key
        super().load(slots, replace(requests, key=key, sample=requests.sample // self.group))

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
        zeta = self.measures.gather(1, at[..., None].expand(-1, 1, self.group))[:, 0]
        w = zeta.gather(1, (self.request % self.group)[:, None])
        self.weight.scatter_(1, at + 1, self.weight.gather(1, at) + (w.clamp(max=0) if self.falling else w))
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
        who = (self.key[slots], self.sample[slots], step)
        extends = step % (c.steps + 1) == 0  # the first step of a block draws the rest of an open record
        horizon = ((step // (c.steps + 1) + 1) * c.block).clamp(max=c.horizon)
        cut = torch.where(extends, length, self.draw_cuts(slots, uniform(self.seed, *who, 0, CUT), horizon))
        u = self.numbers(*who)
        changed = (self.columns >= cut[:, None]) & (self.columns < length[:, None])
        if c.first_divergence_skip:
            changed &= (u < self.low[slots]) | (u >= self.high[slots])
        decodes = torch.where(extends, ~self.finished[slots] & (length < horizon), changed.any(1))
        first = torch.where(extends, length, changed.long().argmax(1))
        threshold = uniform(self.seed, *who, 0, ACCEPT).log() + self.value()[slots]
        self.divergences[self.request[slots], step] = (first + 1) * decodes
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
            u = uniform(self.seed, self.ladder[at[:, 0]], self.sample[at[:, 0]], step, k, SWAP)
            yes = u.log() < swap_log_ratio(self.alphas[k], self.alphas[k + 1], logp[:, k], logp[:, k + 1])
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


def swap_log_ratio(low: Tensor, high: Tensor, logp_low: Tensor, logp_high: Tensor) -> Tensor:
    """Log of the ratio that a swap is accepted with, of the two rungs' exponents and their records' log p."""
    return (high - low) * (logp_low - logp_high)


def tune_ladder(alphas: Sequence[float], swap_acceptance: Sequence[float]) -> tuple[float, ...]:
    """The ladder of as many rungs and the same ends whose neighbours would swap equally often, from a pilot run on
    `alphas`: what is rejected adds up along the ladder, and is divided evenly (Syed et al. 2022, their Λ). Between two
    rungs of the pilot it is taken to rise with log α; repeat it with the tuned ladder as pilot to be nearer."""
    rejected = list(accumulate((max(1 - rate, 1e-6) for rate in swap_acceptance), initial=0.0))
    tuned = []
    for step in range(1, len(alphas) - 1):
        level = rejected[-1] * step / (len(alphas) - 1)
        k = bisect(rejected, level) - 1  # the pair of the pilot's in which it falls
        share = (level - rejected[k]) / (rejected[k + 1] - rejected[k])
        tuned.append(alphas[k] * (alphas[k + 1] / alphas[k]) ** share)
    return (alphas[0], *tuned, *alphas[1:][-1:])


@torch.no_grad()
def parallel_tempering(
    model: LanguageModel,
    prompts: Sequence[Sequence[int] | Tensor],
    config: TemperingConfig | None = None,
    *,
    stop_ids: Iterable[int],
    samples_per_prompt: int = 1,
    slots: int | None = None,
    seed: int = 0,
    keys: Sequence[int | str] | None = None,
) -> TemperingSamples:
    """`samples_per_prompt` independent ladders for each prompt. `slots` rungs are decoded at a time (None: as many as
    fit), in whole ladders; a ladder that ends makes room for the next.

    ValueError: a setting out of range, slots for less than one ladder, and what `generate` refuses.
    """
    config = config or TemperingConfig()
    config.check()
    n, K, stop_ids, texts = samples_per_prompt, config.rungs, list(stop_ids), check_prompts(model, prompts)
    horizons = check_horizons(model, texts, config.horizon)
    check_law(model, stop_ids, config.temperature, None, None)
    requests = make_requests(model, texts, horizons, n * K, keys)
    slots = choose_slots(slots, model, len(requests), max(map(len, texts)) + config.horizon, caches=2, group=K)
    ladders = Ladders(model, texts, slots, config, requests, stop_ids, seed)
    drawn = decode_all(ladders, requests, n * K, keys, "parallel tempering")
    shape = (len(texts), n)
    longest = ladders.rounds.view(shape).amax(1).tolist()

    def rounds(kept: Tensor) -> Tensor:  # without the draws that begin the blocks
        return kept.view(*shape, -1, config.stages, config.steps + 1)[..., 1:].flatten(3)

    cold = torch.arange(K - 1, n * K, K, device=model.device).expand(shape)
    return TemperingSamples(
        drawn.samples.take(cold),
        [replace(cost, sequential_tokens=tokens) for cost, tokens in zip(drawn.costs, longest)],
        drawn.samples,
        *map(rounds, (ladders.divergences, ladders.accepted, ladders.swapped)),
    )
