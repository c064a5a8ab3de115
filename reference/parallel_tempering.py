"""Parallel tempering for p^α: a ladder of chains that swap places (PPT, Theodoropoulos et al. 2026), with no training.

Rung k = 1..K of a ladder α_1 < ... < α_K = α holds a record x^k and targets π_k ∝ p^(α_k). A round is one step of power
sampling on every rung (`reference/power_sampling.py`, with any of its cuts; proposal q_k ∝ p^(α_k)), where a new ending
y of x is kept with probability

    min(1, exp( Σ_{t≥r} ζ_k(y, t) − Σ_{t≥r} ζ_k(x, t) ) c_y(r) / c_x(r)),      ζ_k(x, t) = log Σ_v p(v|h_t)^(α_k),

and then swaps of neighbours (1, 2), (2, 3), ... in that order: their records change places with probability

    min(1, exp( (α_{k+1} − α_k) (log p(x^k) − log p(x^{k+1})) )).

Both keep Π_k π_k, so the record of the last rung has the distribution p^α in the limit; the lower rungs move freely and
hand on what they find. Horizons grow in blocks as there. A rung has random numbers of its own, whichever record stands
on it; those of the first are power sampling's, so K = 1 is power sampling, with the same tokens.

The page below is one ladder. `parallel_tempering` runs many at a time and returns the page's tokens. There not the
records but the exponents change places: a record stays in its slot, with its cache row. As ζ of every rung is kept for
every token, its weights at the new exponent are at hand. First-divergence skip rests on the distribution that drew a
token being that of the proposal; after a swap it is not, so tokens drawn before it are decoded anew. Early reject is on
if α_1 ≥ 1.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reference import power_sampling
from reference.interface import SWAP, Chance, Generation, LanguageModel, Samples
from reference.power_sampling import PowerConfig, PowerSamples, Record
from reference.sampling import check_settings, extend, log_probs

Records = tuple[Record, ...]  # one per rung


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

    def rung(self, k: int) -> PowerConfig:
        """The settings of rung k's chain, k = 0 .. K−1."""
        own = {field.name: getattr(self, field.name) for field in fields(PowerConfig)}
        return PowerConfig(**own | {"alpha": self.alphas[k]})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, least={"rungs": 1})
        if self.alpha == math.inf:
            raise ValueError("alpha is inf; it must be finite with parallel tempering")
        if len(self.alphas) != self.rungs or self.alphas[-1] != self.alpha:
            raise ValueError(f"ladder is {self.alphas}; it must have {self.rungs} rungs, the last of them {self.alpha}")
        if not all(low < high for low, high in zip((0.0, *self.alphas), self.alphas)):
            raise ValueError(f"ladder is {self.alphas}; it must rise, from above 0 (the default one needs alpha > 1)")
        for name, only in (("proposal_temperature", None), ("prefetch", 0), ("anneal", None)):
            if (value := getattr(self, name)) != only:
                raise ValueError(f"{name} is {value!r}; it must be {only!r} with parallel tempering")


# ---------------------------------------------------------------------------------------------------------------------
# The page: one ladder


class Ladder(NamedTuple):
    """Where a ladder's rungs ended, and how it went: one entry per round, and in it one per rung."""

    tokens: Record  # of the last rung
    rungs: Records
    cuts: tuple[Record, ...]
    divergences: tuple[Record, ...]
    accepted: tuple[tuple[bool, ...], ...]
    swapped: tuple[tuple[bool, ...], ...]  # one per pair of neighbours


def init(
    model: LanguageModel, prompt: Sequence[int], config: TemperingConfig, *, stop_ids: Collection[int], chance: Chance
) -> Records:
    """Each rung's draw of its own q_k on the first block's horizon."""
    streams = [of_rung(chance, k) for k in range(config.rungs)]
    return tuple(
        power_sampling.init(model, prompt, config.rung(k), stop_ids=stop_ids, chance=own)
        for k, own in enumerate(streams)
    )


def step(
    model: LanguageModel, prompt: Sequence[int], xs: Records, config: TemperingConfig, horizon: int, n: int, *,
    stop_ids: Collection[int], chance: Chance,
) -> tuple[Records, Any, Any, Any, Any]:  # fmt: skip
    """Round n: a step of power sampling on every rung, then swaps of neighbours, upwards."""
    alphas, swapped = config.alphas, []
    moves = [
        power_sampling.step(model, prompt, x, config.rung(k), horizon, n, stop_ids=stop_ids, chance=of_rung(chance, k))
        for k, x in enumerate(xs)
    ]
    xs, cuts, divergences, accepted = zip(*moves)
    for k in range(config.rungs - 1):
        logp = [float(log_probs(model, prompt, x)[0].sum()) for x in xs[k : k + 2]]
        log_ratio = float(swap_log_ratio(alphas[k], alphas[k + 1], *logp))
        swapped.append(chance.happens(log_ratio, SWAP, step=n, position=k))  # log u < log_ratio
        if swapped[-1]:
            xs = (*xs[:k], xs[k + 1], xs[k], *xs[k + 2 :])
    return xs, cuts, divergences, accepted, tuple(swapped)


def parallel_tempering_page(
    model: LanguageModel, prompt: Sequence[int], config: TemperingConfig, *, stop_ids: Collection[int], chance: Chance
) -> Ladder:
    """N rounds on each block's horizon, which begins by extending open records."""
    xs, rounds = init(model, prompt, config, stop_ids=stop_ids, chance=chance), []
    for block in range(config.stages):
        first, horizon = block * (config.steps + 1), min((block + 1) * config.block, config.max_new_tokens)
        if block > 0:
            xs = tuple(
                extend(model, prompt, x, horizon, 1 / a, step=first, stop_ids=stop_ids, chance=of_rung(chance, k))
                for k, (x, a) in enumerate(zip(xs, config.alphas))
            )
        for n in range(first + 1, first + 1 + config.steps):
            xs, *went = step(model, prompt, xs, config, horizon, n, stop_ids=stop_ids, chance=chance)
            rounds.append(went)
    return Ladder(xs[-1], xs, *(zip(*rounds) if rounds else ((), (), (), ())))


def of_rung(chance: Chance, k: int) -> Chance:
    """Random numbers of rung k; the first has those of a chain alone."""
    return chance.child("rung", k) if k > 0 else chance


def swap_log_ratio(low: Any, high: Any, logp_low: Any, logp_high: Any) -> Any:
    """Log of the ratio that a swap is accepted with, of the two rungs' exponents and their records' log p."""
    return (high - low) * (logp_low - logp_high)


# ---------------------------------------------------------------------------------------------------------------------
# Many ladders at a time


@dataclass(frozen=True)
class TemperingSamples(Generation):
    """`samples[prompt][i]` is the last rung of ladder i. The rest says how it went, one entry per round."""

    rungs: Samples  # all rungs: rung k of ladder i is rungs[prompt][i · K + k]
    cuts: Tensor  # int64 [prompts, n, K, rounds]: the first position that a step might change, from 1
    divergences: Tensor  # int64 [prompts, n, K, rounds]: the first at which its proposal differed; 0 if nowhere
    accepted: Tensor  # bool [prompts, n, K, rounds]
    swapped: Tensor  # bool [prompts, n, K − 1, rounds]: rungs k and k + 1 after the round
    behind: Tensor  # bool [prompts, n, K, rounds]: the cut lay behind the record's end, so that the step did nothing

    idle, remark = PowerSamples.idle, PowerSamples.remark

    @property
    def acceptance(self) -> list[float]:
        """Per rung, the share of accepted proposals among those that differed from the record."""
        moves = self.divergences > 0
        return ((self.accepted & moves).sum((0, 1, 3)) / moves.sum((0, 1, 3))).tolist()

    @property
    def swap_acceptance(self) -> list[float]:
        """Per pair of neighbours."""
        return self.swapped.double().mean((0, 1, 3)).tolist()


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
    from reference.engine.chains import Chains, ChainSettings
    from reference.engine.ladders import Ladders
    from reference.engine.loop import run
    from reference.engine.requests import make_plan

    config = config or TemperingConfig()
    plan = make_plan(
        model, prompts, config.max_new_tokens, stop_ids=stop_ids, samples_per_prompt=samples_per_prompt, slots=slots,
        seed=seed, keys=keys, group=config.rungs, caches=2,
    )  # fmt: skip
    settings, n, K = ChainSettings.of(config), samples_per_prompt, config.rungs
    rule = Ladders(plan, settings, config.alphas, swap_log_ratio)
    chains = Chains(plan, settings, rule)
    drawn = run(chains, plan, "parallel tempering")
    shape = (len(plan.prompts), n)

    def rounds(kept: Tensor) -> Tensor:  # without the draws that begin the blocks
        return kept.view(*shape, -1, config.stages, config.steps + 1)[..., 1:].flatten(3)

    cuts, divergences, accepted, behind = vars(chains.history).values()
    return TemperingSamples(
        drawn.samples.take(torch.arange(K - 1, n * K, K, device=model.device).expand(shape)),
        drawn.costs,
        drawn.samples,
        *map(rounds, (cuts, divergences, accepted, rule.swapped, behind)),
    )
