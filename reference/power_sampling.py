"""Power sampling: draws from p^α by Metropolis-Hastings, with no training (2510.14901, Algorithm 1).

The target is π(x) ∝ p(x)^α on the *records* of a horizon H: responses ended by a stop id, or open at length H. A chain
holds a record x. A step cuts it at a random position r, draws a new ending y_r, y_{r+1}, ... from the proposal
distribution q(v|h) ∝ p(v|h)^(1/τ), until a stop id or the horizon, and keeps y with probability

    min(1, exp( Σ_{t≥r} w_t(y) − Σ_{t≥r} w_t(x) )),      w_t(x) = α log p(x_t|h_t) − log q(x_t|h_t).

With τ = 1/α the weight is one scalar of the prefix, w_t = ζ_t = log Σ_v p(v|h_t)^α, whatever token was drawn. The cut
has a distribution of its own, c_x(r) = e_r / Σ_{t≤|x|} e_t, with *cut weights* e_t that the tokens before t determine.
So e_r is the same in x and y, and the ratio's factor for the cut is c_y(r) / c_x(r) = Σ_{t≤|x|} e_t / Σ_{t≤|y|} e_t:

    "record"    e = 1: r uniform on the record's own length, so that every step proposes; the factor is |x| / |y|
    "horizon"   e = 1, also behind the record's end up to H, where nothing happens (a step too): no factor
    "entropy"   e_r = floor + max(0, η_r − η_{r−1})^β, η_r the entropy of p(·|h_r), η_0 = 0: cuts where the model begins
                to be unsure (2605.30327, where the floor is 0)

All leave π invariant. (Uniform on |x| without the factor does not; nor does comparing only as many tokens as both
records have, nor stopping at the first record that ends: see `theory/markov_chain.py` for what each of them samples.)

As α → ∞ at a fixed τ, π tends to the uniform distribution on the likeliest records and the chain to a climb
(`alpha=inf`; the authors' `max_swap` nearly): a likelier proposal is accepted, a less likely one refused, and where
both are equally likely the rest of the ratio decides. *Annealing* begins each block at a smaller exponent, where a step
may fall, and cools: 1/α of the target falls evenly over the block's N steps, τ stays. What they reach, and how fast, is
in `theory/annealing.py`.

The paper draws r from 1 .. kB, as "horizon" does, for responses as long as that; its code draws it from the response's
own length, as "record" does, but without the factor. Per step "record" is nearer to π, at equal decoded tokens the two
are alike (`figures/power_cuts.py`).

As in the paper the horizon grows in blocks: the chain takes N steps on records of horizon B, extends an open record by
a draw of q to 2B, takes N steps there, and so on. Its printed ratio has π_k for π_{k+1}, and its cuts never reach the
first token; both are mended here. An ended record stays a state like any other, also in later blocks.

The page below is one chain. `power_sample` runs many at a time and returns the page's tokens, with two savings
(`reference/engine/chains.py`) and by prefetching (`reference/engine/prefetching.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from reference.interface import ACCEPT, CUT, TOLERANCE, Chance, Generation, LanguageModel, next_logits
from reference.sampling import check_settings, extend, log_probs

CUTS = ("record", "horizon", "entropy")
Record = tuple[int, ...]  # the ids of a response that has ended, or is as long as the horizon


@dataclass(frozen=True)
class PowerConfig:
    """Settings, with the paper's values as defaults."""

    alpha: float = 4.0  # the power; 1 = the model itself; inf = a climb to the likeliest, with a τ of its own
    proposal_temperature: float | None = None  # τ; None = 1/α. (The paper's AlpacaEval run has 0.5 beside α = 4.)
    block: int = 192  # B, tokens by which the horizon grows
    steps: int = 10  # N, Metropolis-Hastings steps per block
    max_new_tokens: int = 3072  # H, the horizon: most response tokens
    # The distribution of the cut: "record", "horizon" (the paper's, if responses had no end), "entropy", or a function
    # of the logits before a token, [.., vocab], that gives its cut weight e ≥ 0, [..]
    cut: str | Callable[[Tensor], Tensor] = "record"
    entropy_power: float = 4.0  # β, for cut="entropy"
    entropy_floor: float = 0.0  # nats^β, for cut="entropy"; > 0 gives every position its chance
    first_divergence_skip: bool = True
    early_reject: bool = True
    prefetch: int = 0  # steps proposed ahead; each takes a slot of its own beside the chain's
    anneal: float | None = None  # the power of a block's first step; 1/power falls evenly to 1/α; None = α throughout

    @property
    def temperature(self) -> float:
        return 1 / self.alpha if self.proposal_temperature is None else self.proposal_temperature

    @property
    def stages(self) -> int:
        return math.ceil(self.max_new_tokens / self.block)

    @property
    def lanes(self) -> int:
        """Slots that serve one chain."""
        return 1 + self.prefetch

    def exponent(self, n: int) -> float:
        """α of step n of a run; block k = 0, 1, .. has the steps k (N + 1) + 1 .. k (N + 1) + N."""
        place = n % (self.steps + 1)
        if self.anneal is None or place == self.steps:
            return self.alpha
        share = (place - 1) / (self.steps - 1)
        return 1 / ((1 - share) / self.anneal + share / self.alpha)

    @property
    def exponents(self) -> tuple[float, ...] | None:
        """α of a block's beginning, which has no ratio, and of its steps; None: finite and always the same."""
        if self.anneal is None and self.alpha < math.inf:
            return None
        return self.alpha, *map(self.exponent, range(1, self.steps + 1))

    def at(self, n: int) -> Self:
        """The settings of step n."""
        if self.anneal is None:
            return self
        return replace(self, alpha=self.exponent(n), proposal_temperature=self.temperature, anneal=None)

    def __post_init__(self) -> None:
        """ValueError: a setting out of range."""
        least = {"block": 1, "steps": 0, "max_new_tokens": 1, "prefetch": 0, "entropy_floor": 0}
        climbs = isinstance(self.alpha, float) and self.alpha == math.inf
        positive = ("proposal_temperature", "entropy_power", "anneal", *(() if climbs else ("alpha",)))
        check_settings(self, positive=positive, least=least, among={} if callable(self.cut) else {"cut": CUTS})
        if climbs and self.proposal_temperature is None:
            raise ValueError("proposal_temperature is None; it must be given if alpha is inf, where 1/alpha is greedy")
        if self.anneal is not None and self.anneal > self.alpha:
            raise ValueError(f"anneal is {self.anneal}; it must be at most alpha, {self.alpha}")


# ---------------------------------------------------------------------------------------------------------------------
# The page: one chain


def init(
    model: LanguageModel, prompt: Sequence[int], config: PowerConfig, *, stop_ids: Collection[int], chance: Chance
) -> Record:
    """x ~ q on the first block's horizon."""
    horizon = min(config.block, config.max_new_tokens)
    return extend(model, prompt, (), horizon, config.temperature, stop_ids=stop_ids, chance=chance)


def step(
    model: LanguageModel, prompt: Sequence[int], x: Record, config: PowerConfig, horizon: int, n: int, *,
    stop_ids: Collection[int], chance: Chance,
) -> tuple[Record, int, int, bool]:  # fmt: skip
    """Step n, from record x to the next; also the cut (from 1), where y first differed (0: nowhere), and acceptance."""
    config = config.at(n)
    w_x, e_x = weigh(model, prompt, x, config, horizon)
    r = chance.index(len(e_x), CUT, step=n) if config.cut in CUTS[:2] else chance.weighted(e_x, CUT, step=n)
    y = extend(model, prompt, x[:r], horizon, config.temperature, step=n, stop_ids=stop_ids, chance=chance)
    w_y, e_y = weigh(model, prompt, y, config, horizon)
    log_ratio = sum(w_y[r:]) - sum(w_x[r:]) + math.log(sum(e_x) / sum(e_y))
    if config.alpha == math.inf:
        rise = float(log_probs(model, prompt, y)[0].sum() - log_probs(model, prompt, x)[0].sum())
        log_ratio = limit(rise, log_ratio)
    accepted = chance.happens(log_ratio, ACCEPT, step=n)  # log u < log_ratio
    return y if accepted else x, r + 1, first_difference(x, y), accepted


def power_sampling_page(
    model: LanguageModel, prompt: Sequence[int], config: PowerConfig, *, stop_ids: Collection[int], chance: Chance,
    transition: Callable[..., tuple[Record, int, int, bool]] = step,
) -> Chain:  # fmt: skip
    """Algorithm 1 of 2510.14901: N steps on each block's horizon, which begins by extending an open record."""
    x, moves = init(model, prompt, config, stop_ids=stop_ids, chance=chance), []
    for block in range(config.stages):
        first, horizon = block * (config.steps + 1), min((block + 1) * config.block, config.max_new_tokens)
        if block > 0:
            x = extend(model, prompt, x, horizon, config.temperature, step=first, stop_ids=stop_ids, chance=chance)
        for n in range(first + 1, first + 1 + config.steps):
            x, *move = transition(model, prompt, x, config, horizon, n, stop_ids=stop_ids, chance=chance)
            moves.append(move)
    return Chain(x, *(zip(*moves) if moves else ((), (), ())))


def weigh(
    model: LanguageModel, prompt: Sequence[int], x: Record, config: PowerConfig, horizon: int
) -> tuple[list[float], list[float]]:
    """w_t and e_t of every token of a record; for cut="horizon" e_t also behind its end. At α = ∞ w_t = −log q."""
    logp, logq = log_probs(model, prompt, x, config.temperature)
    e = [1.0] * (horizon if config.cut == "horizon" else len(x))
    if callable(config.cut):
        e = config.cut(next_logits(model, prompt, x, first=0)).tolist()
    elif config.cut == "entropy":
        eta = [0.0, *torch.special.entr(next_logits(model, prompt, x, first=0).softmax(-1)).sum(-1).tolist()]
        e = [config.entropy_floor + max(0.0, b - a) ** config.entropy_power for a, b in pairwise(eta)]
    e = e if sum(e) > 0 else [*e[:-1], 1.0]  # nothing is left to chance: any cut will do
    alpha = config.alpha if config.alpha < math.inf else 0.0
    return (alpha * logp - logq).tolist(), e


def limit(rise: float, rest: float) -> float:
    """The limit of α · rise + rest as α → ∞, of `rise` = log p(y) − log p(x)."""
    return rest if abs(rise) <= TOLERANCE else math.copysign(math.inf, rise)


class Chain(NamedTuple):
    """Where a chain ended, and how it went: one entry per step."""

    tokens: Record
    cuts: tuple[int, ...]
    divergences: tuple[int, ...]
    accepted: tuple[bool, ...]


def first_difference(x: Record, y: Record) -> int:
    """The first position, from 1, at which two records of a horizon go on differently; 0 if they are equal."""
    return next((t for t, (a, b) in enumerate(zip(x, y), 1) if a != b), 0)


# ---------------------------------------------------------------------------------------------------------------------
# Many chains at a time


@dataclass(frozen=True)
class PowerSamples(Generation):
    """`samples[prompt][i]` is where chain i ended. The rest says how it went: one entry per step, in the order of the
    blocks; [prompts, n, blocks · steps]."""

    cuts: Tensor  # int64: the first position that the step might change, from 1
    divergences: Tensor  # int64: the first position at which its proposal differed from the record; 0 if nowhere
    accepted: Tensor  # bool; a proposal that does not differ is accepted
    behind: Tensor  # bool: the cut lay behind the record's end, so that the step could do nothing

    @property
    def idle(self) -> float:
        """The share of the steps whose cut lay behind the record's end."""
        return float(self.behind.double().mean()) if self.behind.numel() else 0.0

    @property
    def remark(self) -> str | None:
        """What the person who ran this should know."""
        if self.idle <= 0.5:
            return None
        return (
            f"{self.idle:.0%} of the steps cut behind the end of their response and did nothing; "
            'set the cut to "record", or lower the most tokens that a response may have'
        )

    @property
    def acceptance(self) -> float:
        """The share of accepted proposals among those that differed from the record."""
        return float(self.accepted[self.divergences > 0].double().mean())


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
    from reference.engine.prefetching import InOrder

    return run_chains(
        InOrder, model, prompts, config or PowerConfig(), "power sampling", stop_ids=stop_ids,
        samples_per_prompt=samples_per_prompt, slots=slots, seed=seed, keys=keys,
    )  # fmt: skip


def run_chains(
    rule: Callable, model: LanguageModel, prompts: Sequence, config: PowerConfig, label: str, **asked: Any
) -> PowerSamples:
    """Chains that follow a rule of the engine; asked: stop_ids, samples_per_prompt, slots, seed and keys."""
    from reference.engine.chains import Chains, ChainSettings
    from reference.engine.loop import run
    from reference.engine.requests import make_plan

    plan = make_plan(model, prompts, config.max_new_tokens, caches=1 + config.lanes, **asked)
    settings = ChainSettings.of(config)
    chains = Chains(plan, settings, rule(plan, settings))
    drawn = run(chains, plan, label)

    def steps(kept: Tensor) -> Tensor:  # without the draws that begin the blocks
        return kept.view(len(plan.prompts), plan.each, config.stages, config.steps + 1)[..., 1:].flatten(2)

    return PowerSamples(drawn.samples, drawn.costs, *map(steps, vars(chains.history).values()))
