"""Power-SMC: draws from p^α by particles that grow token by token, with no training (2602.10273, Power-SMC).

The target is π(x) ∝ p(x)^α on the records of a horizon H (`reference/power_sampling.py`), reached through prefixes: the
cloud of N particles stands for γ_t(x_≤t) = p(x_≤t)^(α_t) with α_H = α. A token drawn from q(v|h) multiplies its
particle's weight W by

    ω_t = γ_t(x_≤t) / (γ_{t−1}(x_<t) q(x_t|x_<t)) = p(x_≤t)^(α_t) / (p(x_<t)^(α_{t−1}) q(x_t|x_<t)).

With α_t = α and the default q ∝ p^α that is one scalar of the prefix, exp ζ_t = Σ_v p(v|h_t)^α, whatever token was
drawn: no proposal that sees the prefix alone has a smaller variance. When the effective sample size (Σ W)² / Σ W² falls
below κN the cloud is *resampled*: N particles drawn in proportion to W, and W = 1. One particle of the last cloud is
returned, in proportion to W.

A particle that has ended stays in the cloud with its weight, is resampled like the others and costs nothing. With a
*ramp* (α_t rises from 1 to α over the first tokens) its ω_t is p(x)^(α_t − α_{t−1}), the re-weighting that the other
prefixes have in their ω_t too; so the last target is p^α, and a cloud whose particles have all ended goes to α in one
step.

    Ẑ = Π (mean of W) over the resamplings and the end,     E[Ẑ] = Σ_x p(x)^α    for every N, κ, ramp and resampling

is without bias (`theory/particles.py`); the returned particle has a bias of O(1/N). N = 1 is decoding at temperature
1/α, token by token the same. How a cloud grows in the slots of the one decoding loop: `reference/particles.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reference.particles import Clouds
from reference.randomness import CHOICE, uniform
from reference.samples import Generation, Samples
from reference.sampling import (
    LanguageModel,
    check_horizons,
    check_law,
    check_prompts,
    choose_slots,
    decode_all,
    inverse_cdf,
    make_requests,
)


@dataclass(frozen=True)
class SMCConfig:
    """Settings, with the paper's values as defaults, but for the number of particles (64) and the ramp (100)."""

    alpha: float = 4.0  # the power; 1 = the model itself
    particles: int = 16  # N
    proposal_temperature: float | None = None  # τ; None = 1/α_t
    horizon: int = 3072  # H, most response tokens
    ess_threshold: float = 0.5  # κ; 0 = never resample, above 1 = after every token
    resampling: str = "systematic"  # or "multinomial"
    ramp: int = 0  # tokens until α_t is α: α_t = 1 + (α − 1) t / ramp before; 0 = at once

    def exponents(self) -> list[float]:
        """α_0 .. α_H; α_0 belongs to the empty text, of probability 1."""
        return [1 + (self.alpha - 1) * (min(1, t / self.ramp) if self.ramp else 1) for t in range(self.horizon + 1)]

    def check(self) -> None:
        """ValueError: a setting out of range."""
        for name in ("alpha", "proposal_temperature"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; it must be a positive number")
        for name, least in (("particles", 1), ("horizon", 1), ("ramp", 0), ("ess_threshold", 0)):
            if not (value := getattr(self, name)) >= least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if self.ramp > self.horizon:
            raise ValueError(f"ramp is {self.ramp}; it must end within the horizon of {self.horizon} tokens")
        if self.resampling not in ("systematic", "multinomial"):
            raise ValueError(f"resampling is {self.resampling!r}; it must be 'systematic' or 'multinomial'")


@dataclass(frozen=True)
class SMCSamples(Generation):
    """`samples[prompt][i]` is drawn from the last cloud i of the prompt. The rest is about the n clouds."""

    particles: Samples  # the clouds: particle j of cloud i is particles[prompt][i · N + j]
    log_weights: Tensor  # their log W, float64 [prompts, n, N]
    log_normalizer: Tensor  # log Ẑ, float64 [prompts, n]
    ess: Tensor  # effective sample size after each token, before it is resampled; 0 after the end; [prompts, n, H]
    resampled: Tensor  # bool [prompts, n, H]


@torch.no_grad()
def power_smc(
    model: LanguageModel,
    prompts: Sequence[Sequence[int] | Tensor],
    config: SMCConfig | None = None,
    *,
    stop_ids: Iterable[int],
    samples_per_prompt: int = 1,
    slots: int | None = None,
    seed: int = 0,
    keys: Sequence[int | str] | None = None,
) -> SMCSamples:
    """One particle of each of `samples_per_prompt` independent clouds for each prompt. `slots` particles are decoded at
    a time (None: as many as fit), in whole clouds; a cloud that ends makes room for the next.

    ValueError: a setting out of range, slots for less than one cloud, and what `generate` refuses.
    """
    config = config or SMCConfig()
    config.check()
    n, N, stop_ids, texts = samples_per_prompt, config.particles, list(stop_ids), check_prompts(model, prompts)
    horizons = check_horizons(model, texts, config.horizon)
    check_law(model, stop_ids, config.proposal_temperature or 1 / config.alpha, None, None)
    clouds = make_requests(model, texts, horizons, n, keys)
    requests = make_requests(model, texts, horizons, n * N, keys)
    slots = choose_slots(slots, model, len(requests), max(map(len, texts)) + config.horizon, group=N)
    decoder = Clouds(model, texts, slots, config, len(clouds), stop_ids, seed)
    drawn = decode_all(decoder, requests, n * N, keys, "power SMC")

    u = uniform(seed, clouds.key, clouds.sample, 0, 0, CHOICE)
    chosen = inverse_cdf(decoder.log_weights.log_softmax(1), u)[0] + clouds.sample * N
    shape = (len(texts), n)
    rounds = (decoder.ess > 0).sum(1).view(shape).amax(1).tolist()
    return SMCSamples(
        drawn.samples.take(chosen.view(shape)),
        [replace(cost, sequential_tokens=tokens) for cost, tokens in zip(drawn.costs, rounds)],
        drawn.samples,
        decoder.log_weights.view(*shape, N),
        decoder.log_normalizer.view(shape),
        decoder.ess.view(*shape, -1),
        decoder.resampled.view(*shape, -1),
    )
