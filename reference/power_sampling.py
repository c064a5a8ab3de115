"""Power sampling: draws from p^α by Metropolis-Hastings, with no training (2510.14901, Algorithm 1).

The target is π(x) ∝ p(x)^α on the *records* of a horizon H: responses ended by a stop id, or open at length H. A chain
holds a record x. A step cuts it at a random position r, draws a new ending y_r, y_{r+1}, ... from the proposal law
q(v|h) ∝ p(v|h)^(1/τ), until a stop id or the horizon, and keeps y with probability

    min(1, exp( Σ_{t≥r} w_t(y) − Σ_{t≥r} w_t(x) )),      w_t(x) = α log p(x_t|h_t) − log q(x_t|h_t).

With τ = 1/α the weight is one scalar of the prefix, w_t = ζ_t = log Σ_v p(v|h_t)^α, whatever token was drawn. The cut
is drawn from a law of its own:

    "horizon"   r uniform on 1..H; beyond the record's end nothing happens, and that is a step too
    "record"    r uniform on the record's own length |x|; the ratio then carries a factor |x| / |y|

Both leave π invariant. (Uniform on |x| without the factor does not; nor does comparing only as many tokens as both
records have, nor stopping at the first record that ends: see `theory/markov_chain.py` for what each of them samples.)

As in the paper the horizon grows in blocks: the chain takes N steps on records of horizon B, extends an open record by
a draw of q to 2B, takes N steps there, and so on. Its printed ratio has π_k for π_{k+1}, and its cuts never reach the
first token; both are mended here. An ended record stays a state like any other, also in later blocks.

Chains are slots of the one decoding loop: each advances at its own position, and its cache row goes back by position;
a second cache keeps the current record's row, from which a rejected proposal is undone. Two savings change no token:

    first-divergence skip   the proposal repeats x_t iff its random number falls into the interval that drew x_t, which
                            is known without the model; so decoding starts at the first that does not
    early reject            with 1 ≤ 1/τ ≤ α every w_t ≤ 0, so a proposal's sum only falls: it is dropped as soon as it
                            is below what acceptance would need
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reference.randomness import ACCEPT, CUT, uniform
from reference.samples import Generation
from reference.sampling import (
    Decoder,
    LanguageModel,
    Requests,
    check_horizons,
    check_law,
    check_prompts,
    choose_slots,
    decode_all,
    make_requests,
)


@dataclass(frozen=True)
class PowerConfig:
    """Settings, with the paper's values as defaults."""

    alpha: float = 4.0  # the power; 1 = the model itself
    proposal_temperature: float | None = None  # τ; None = 1/α. (The paper's AlpacaEval run has 0.5 beside α = 4.)
    block: int = 192  # B, tokens by which the horizon grows
    steps: int = 10  # N, Metropolis-Hastings steps per block
    horizon: int = 3072  # H, most response tokens
    cut: str = "horizon"  # or "record": the law of the cut
    first_divergence_skip: bool = True
    early_reject: bool = True

    @property
    def temperature(self) -> float:
        return 1 / self.alpha if self.proposal_temperature is None else self.proposal_temperature

    @property
    def stages(self) -> int:
        return math.ceil(self.horizon / self.block)

    def check(self) -> None:
        """ValueError: a setting out of range."""
        for name, value in (("alpha", self.alpha), ("proposal_temperature", self.proposal_temperature)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; it must be a positive number")
        for name, value, least in (("block", self.block, 1), ("steps", self.steps, 0), ("horizon", self.horizon, 1)):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if self.cut not in ("horizon", "record"):
            raise ValueError(f"cut is {self.cut!r}; it must be 'horizon' or 'record'")


@dataclass(frozen=True)
class PowerSamples(Generation):
    """`samples[prompt][i]` is where chain i ended. The rest says how it went: one entry per step, in the order of the
    blocks; [prompts, n, blocks · steps]."""

    cuts: Tensor  # int64: the first position that the step might change, from 1
    divergences: Tensor  # int64: the first position that it decoded; 0 if it decoded none
    accepted: Tensor  # bool; a step that decodes nothing is accepted

    @property
    def acceptance(self) -> float:
        """The share of accepted proposals among those that decoded anything."""
        return float(self.accepted[self.divergences > 0].double().mean())


class Chains(Decoder):
    """A decoder whose requests are chains. Its rows hold the proposals; `kept` and `kept_cache` the current records."""

    per_slot = (*Decoder.per_slot, "request", "key", "sample", "step", "threshold", "weight")

    def __init__(
        self, model: LanguageModel, prompts: Sequence[Tensor], slots: int, config: PowerConfig, requests: Requests,
        stop_ids: Iterable[int], seed: int,
    ):  # fmt: skip
        super().__init__(
            model, prompts, slots, config.horizon, stop_ids=stop_ids, temperature=config.temperature, seed=seed
        )  # fmt: skip
        device, shape = model.device, (len(requests), config.stages * (config.steps + 1))
        self.config = config
        self.falling = 1 <= 1 / config.temperature <= config.alpha  # every w_t <= 0
        self.request, self.key, self.sample, self.step = torch.zeros((4, slots), dtype=torch.int64, device=device)
        self.threshold = torch.zeros(slots, dtype=torch.float64, device=device)  # proposals above it are accepted
        self.weight = torch.zeros((slots, config.horizon + 2), dtype=torch.float64, device=device)  # Σ of the first t w
        self.kept = {name: getattr(self, name).clone() for name in RECORD}
        self.kept_cache = model.new_cache(slots, self.cache.capacity)
        self.cuts, self.divergences = torch.zeros((2, *shape), dtype=torch.int64, device=device)
        self.accepted = torch.ones(shape, dtype=torch.bool, device=device)

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
        at, running = self.length[:, None].clone(), self.active.clone()
        ended = super().advance()
        w = self.config.alpha * self.logp.gather(1, at).double() - self.logq.gather(1, at).double()
        w = w.clamp(max=0) if self.falling else w  # so that rounding cannot raise a sum
        self.weight.scatter_(1, at + 1, self.weight.gather(1, at) + w)
        if self.config.early_reject and self.falling:
            doomed = running & (self.value() <= self.threshold)
            self.active &= ~doomed
            ended |= doomed
        over = torch.zeros_like(ended)
        if ended.any():
            slots = ended.nonzero()[:, 0]
            self.settle(slots)
            over[self.propose(slots)] = True
        return over

    def value(self) -> Tensor:
        """What records are compared by, float64 [S]: Σ w_t, less log |x| where the law of the cut depends on |x|."""
        total = self.weight.gather(1, self.length[:, None])[:, 0]
        return total if self.config.cut == "horizon" else total - self.length.log()

    def settle(self, slots: Tensor) -> None:
        """Accept or reject: a record and its cache row go one way or the other between `kept` and here."""
        value = self.value()[slots]
        if value.isnan().any():
            raise ValueError("the model's logits are not a law (NaN or infinite) in a proposal; try float32 weights")
        accepted = value > self.threshold[slots]
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
        c, over = self.config, [slots[:0]]
        while len(slots):
            step = self.step[slots] + 1
            over.append(slots[step == self.cuts.shape[1]])
            slots, step = slots[step < self.cuts.shape[1]], step[step < self.cuts.shape[1]]
            self.step[slots] = step
            address = (self.key[slots], self.sample[slots], step)
            length, request = self.length[slots], self.request[slots]
            extends = step % (c.steps + 1) == 0  # the first step of a block draws the rest of an open record
            horizon = ((step // (c.steps + 1) + 1) * c.block).clamp(max=c.horizon)

            cut = uniform(self.seed, *address, 0, CUT) * (horizon if c.cut == "horizon" else length)
            cut = torch.where(extends, length, cut.long())
            u = self.numbers(*address)
            changed = (self.columns >= cut[:, None]) & (self.columns < length[:, None])
            if c.first_divergence_skip:
                changed &= (u < self.low[slots]) | (u >= self.high[slots])
            first = torch.where(extends, length, changed.long().argmax(1))
            decodes = torch.where(extends, ~self.finished[slots] & (length < horizon), changed.any(1))
            accept = uniform(self.seed, *address, 0, ACCEPT).log() + self.value()[slots]

            self.cuts[request, step] = cut + 1
            self.divergences[request, step] = torch.where(decodes, first + 1, 0)
            going = slots[decodes]
            self.limit[going], self.uniforms[going] = horizon[decodes], u[decodes]
            self.threshold[going] = torch.where(extends, -math.inf, accept)[decodes]
            self.rewind(going, first[decodes])
            slots = slots[~decodes]
        return torch.cat(over)


RECORD = ("tokens", "logp", "logq", "low", "high", "weight", "length", "finished")  # what a slot knows of a record


@torch.no_grad()
def power_sample(
    model: LanguageModel,
    prompts: Sequence[Sequence[int] | Tensor],
    config: PowerConfig | None = None,
    *,
    stop_ids: Iterable[int],
    samples_per_prompt: int = 1,
    slots: int | None = None,
    seed: int = 0,
    keys: Sequence[int | str] | None = None,
) -> PowerSamples:
    """`samples_per_prompt` independent chains for each prompt, `slots` of them at a time (None: as many as fit).

    ValueError: a setting out of range, and what `generate` refuses.
    """
    config, stop_ids = config or PowerConfig(), list(stop_ids)
    config.check()
    texts, n = check_prompts(model, prompts), samples_per_prompt
    horizons = check_horizons(model, texts, config.horizon)
    check_law(model, stop_ids, config.temperature, None, None)
    requests = make_requests(model, texts, horizons, n, keys)
    slots = choose_slots(slots, model, len(requests), max(map(len, texts)) + config.horizon, caches=2)
    chains = Chains(model, texts, slots, config, requests, stop_ids, seed)
    drawn = decode_all(chains, requests, n, keys, "power sampling")

    def steps(kept: Tensor) -> Tensor:  # without the draws that begin the blocks
        return kept.view(len(texts), n, config.stages, config.steps + 1)[..., 1:].flatten(2)

    return PowerSamples(drawn.samples, drawn.costs, *map(steps, (chains.cuts, chains.divergences, chains.accepted)))
