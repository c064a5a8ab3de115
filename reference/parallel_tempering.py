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

from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from reference.ladders import Ladders
from reference.power_sampling import PowerConfig
from reference.samples import Generation, Samples
from reference.sampling import (
    LanguageModel,
    check_horizons,
    check_law,
    check_prompts,
    choose_slots,
    decode_all,
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
