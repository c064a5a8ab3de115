"""Power-SMC: draws from p^α by particles that grow token by token, with no training (2602.10273, Power-SMC).

The target is π(x) ∝ p(x)^α on the records of a horizon H (`reference/power_sampling.py`), reached through prefixes: the
cloud of N particles stands for γ_t(x_≤t) = p(x_≤t)^(α_t) with α_H = α. A token drawn from q(v|h) multiplies its
particle's weight W by

    ω_t = γ_t(x_≤t) / (γ_{t−1}(x_<t) q(x_t|x_<t)) = p(x_≤t)^(α_t) / (p(x_<t)^(α_{t−1}) q(x_t|x_<t)).

With α_t = α and the default q ∝ p^α that is one scalar of the prefix, exp ζ_t = Σ_v p(v|h_t)^α, whatever token was
drawn: no proposal that sees the prefix alone has a smaller variance. When the effective sample size (Σ W)² / Σ W² falls
below κN the cloud is *resampled*: N particles drawn in proportion to W, and W = 1. One particle of the last cloud is
returned, in proportion to W. (`reference/self_reward.py`: or all of them vote.)

*Chopthin* resampling (1502.07732) does no more than bound the ratio of the weights by η. With the cloud's mean weight 1
and a such that the expected numbers of children add up to N,

    h(W) = min(W/a, 1) + max(2W/(ηa) − 1, 0),      one child or none below a, one up to ηa/2, several above,

N children are drawn systematically by h; those of a particle share max(W, a), so that their weight
is W on average. The weights are in [a, ηa] then, and the effective sample size is at least 4ηN/(1 + η)²: N/2 at η = 3 +
√8.

A particle that has ended stays in the cloud with its weight, is resampled like the others and costs nothing. With a
*ramp* (α_t rises from 1 to α over the first tokens) its ω_t is p(x)^(α_t − α_{t−1}), the re-weighting that the other
prefixes have in their ω_t too; so the last target is p^α, and a cloud whose particles have all ended goes to α in one
step.

    Ẑ = Π (mean of W) over the resamplings and the end,     E[Ẑ] = Σ_x p(x)^α    for every N, κ, ramp and resampling

is without bias (`theory/particles.py`); the returned particle has a bias of O(1/N). N = 1 is decoding at temperature
1/α, token by token the same.

The page below is one cloud. `power_smc` grows many at a time (`reference/engine/particles.py`): the page's tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reference.interface import (
    CHOICE,
    RESAMPLING,
    TOLERANCE,
    Chance,
    Generation,
    LanguageModel,
    Samples,
    inverse_cdf,
    log_law,
    next_logits,
    uniform,
)
from reference.power_sampling import PowerConfig
from reference.sampling import check_settings


@dataclass(frozen=True)
class SMCConfig:
    """Settings, with the paper's values as defaults, but for the number of particles (64) and the ramp (100)."""

    alpha: float = 4.0  # the power; 1 = the model itself
    particles: int = 16  # N
    proposal_temperature: float | None = None  # τ; None = 1/α_t
    max_new_tokens: int = 3072  # H, the horizon: most response tokens
    ess_threshold: float = 0.5  # κ; 0 = never resample, above 1 = after every token
    # "systematic", "multinomial", "chopthin", or a function that makes of N uniform numbers, [.., N], the N points at
    # which the cumulative weights are inverted
    resampling: str | Callable[[Tensor], Tensor] = "systematic"
    ramp: int = 0  # tokens until α_t is α: α_t = 1 + (α − 1) t / ramp before; 0 = at once
    eta: float = 3 + math.sqrt(8)  # η of resampling="chopthin": the largest ratio of its weights; at least 4

    def exponents(self) -> list[float]:
        """α_0 .. α_H; α_0 belongs to the empty text, of probability 1."""
        return [
            1 + (self.alpha - 1) * (min(1, t / self.ramp) if self.ramp else 1) for t in range(self.max_new_tokens + 1)
        ]

    @property
    def least_ess(self) -> float:
        """The effective sample size below which a cloud is resampled: κN, up to rounding."""
        return self.ess_threshold * self.particles * (1 - TOLERANCE)

    def __post_init__(self) -> None:
        """ValueError: a setting out of range."""
        least = {"particles": 1, "max_new_tokens": 1, "ramp": 0, "ess_threshold": 0, "eta": 4}
        check_settings(
            self, positive=("alpha", "proposal_temperature"), least=least,
            among={} if callable(self.resampling) else {"resampling": (*RESAMPLING, "chopthin")},
        )  # fmt: skip
        if self.ramp > self.max_new_tokens:
            raise ValueError(f"ramp is {self.ramp}; it must be at most max_new_tokens, {self.max_new_tokens}")


# ---------------------------------------------------------------------------------------------------------------------
# The page: one cloud


class Cloud(NamedTuple):
    """The returned particle, the last cloud, and how it grew, one entry per token."""

    tokens: tuple[int, ...]
    particles: tuple[tuple[int, ...], ...]
    log_weights: tuple[float, ...]  # log W of each particle
    log_normalizer: float  # log Ẑ
    ess: tuple[float, ...]  # before resampling
    resampled: tuple[bool, ...]


def power_smc_page(
    model: LanguageModel, prompt: Sequence[int], config: SMCConfig, *, stop_ids: Collection[int], chance: Chance
) -> Cloud:
    """Grow, weigh, resample (Algorithm 1 of 2602.10273)."""
    N, alphas = config.particles, config.exponents()
    x: list[tuple[int, ...]] = [()] * N  # the particles
    logp, log_w = [0.0] * N, [0.0] * N  # log p(x), log W
    log_z, ess, resampled = 0.0, list[float](), list[bool]()
    while any(growing := [is_open(y, config, stop_ids) for y in x]):
        t = len(ess)
        for i in range(N):
            before, log_q = alphas[t] * logp[i], 0.0
            if growing[i]:
                logits = next_logits(model, prompt, x[i])
                law = log_law(logits, config.proposal_temperature or 1 / alphas[t + 1])
                v = chance.token(law, step=i, position=t)
                x[i], logp[i], log_q = (*x[i], v), logp[i] + float(logits.log_softmax(-1)[v]), float(law[v])
            log_w[i] += alphas[t + 1] * logp[i] - before - log_q  # log ω
        share = torch.tensor(log_w, dtype=torch.float64).softmax(0)
        ess.append(1 / float((share**2).sum()))
        poor = ess[-1] < config.least_ess and any(is_open(y, config, stop_ids) for y in x)
        resampled.append(poor)
        if poor:
            log_z += log_mean(log_w)
            chops = config.resampling == "chopthin"
            h, divided = chopthin(share, config.eta) if chops else (share, share)
            ancestors = chance.ancestors(h, "systematic" if chops else config.resampling, position=t + 1)
            x, logp, log_w = [x[a] for a in ancestors], [logp[a] for a in ancestors], [0.0] * N
            if chops:
                log_w = [math.log(divided[a] / ancestors.count(a)) for a in ancestors]
    log_w = [w + (config.alpha - alphas[len(ess)]) * total for w, total in zip(log_w, logp)]
    share = torch.tensor(log_w, dtype=torch.float64).softmax(0)
    chosen = chance.weighted(share, CHOICE)
    return Cloud(x[chosen], tuple(x), tuple(log_w), log_z + log_mean(log_w), tuple(ess), tuple(resampled))


def is_open(x: Sequence[int], config: SMCConfig, stop_ids: Collection[int]) -> bool:
    return len(x) < config.max_new_tokens and not (x and x[-1] in stop_ids)


def log_mean(log_w: Sequence[float] | Tensor) -> Any:
    """log of the mean weight, of log-weights [..., N]."""
    mean = torch.as_tensor(log_w, dtype=torch.float64).logsumexp(-1) - math.log(torch.as_tensor(log_w).shape[-1])
    return mean if isinstance(log_w, Tensor) else float(mean)


def chopthin(share: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """Of shares of the weight [..., N]: the expected numbers of children h(W), and what the children of each share."""
    W = share * share.shape[-1]
    low, high = torch.ones_like(W[..., :1]), torch.full_like(W[..., :1], eta / 2)  # 2W/(ηa) ≤ h ≤ W/a, so 1/a is here
    for _ in range(60):
        b = (low + high) / 2
        enough = ((W * b).clamp(max=1) + (2 * W * b / eta - 1).clamp(min=0)).sum(-1, keepdim=True) >= W.shape[-1]
        low, high = torch.where(enough, low, b), torch.where(enough, b, high)
    return (W * high).clamp(max=1) + (2 * W * high / eta - 1).clamp(min=0), torch.maximum(W, 1 / high)


# ---------------------------------------------------------------------------------------------------------------------
# Many clouds at a time


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
    from reference.engine.decoder import filtered
    from reference.engine.loop import run
    from reference.engine.particles import Clouds
    from reference.engine.requests import make_plan

    c, n = config or SMCConfig(), samples_per_prompt
    plan = make_plan(
        model, prompts, c.max_new_tokens, stop_ids=stop_ids, samples_per_prompt=n, slots=slots, seed=seed, keys=keys,
        group=c.particles,
    )  # fmt: skip
    fixed = filtered(c.proposal_temperature or 1 / c.alpha) if c.proposal_temperature or not c.ramp else None
    chop = partial(chopthin, eta=c.eta) if c.resampling == "chopthin" else None
    points = c.resampling if callable(c.resampling) else RESAMPLING["systematic" if chop else c.resampling]
    clouds = Clouds(
        plan, c.particles, c.exponents(), c.least_ess, points, chop, log_mean, fixed,
        lambda logits, a: log_law(logits, 1 / a),
    )  # fmt: skip
    drawn = run(clouds, plan, "power SMC")
    log_weights, log_normalizer, ess, resampled = vars(clouds.history).values()
    shape = (len(plan.prompts), n)
    first = plan.requests[torch.arange(0, len(plan.requests), c.particles, device=model.device)]  # of each cloud
    cloud = torch.arange(n, device=model.device).repeat(len(plan.prompts))
    u = uniform(seed, first.key, cloud, 0, 0, CHOICE)
    chosen = inverse_cdf(log_weights.log_softmax(1), u)[0] + cloud * c.particles
    return SMCSamples(
        drawn.samples.take(chosen.view(shape)),
        drawn.costs,
        drawn.samples,
        log_weights.view(*shape, -1),
        log_normalizer.view(shape),
        ess.view(*shape, -1),
        resampled.view(*shape, -1),
    )


def steps_enough(log_z: Tensor, first: Tensor, power: PowerConfig, tv: float = 0.05, miss: float = 0.05) -> float:
    """How many Metropolis-Hastings steps a block bring power sampling within a total variation of p^α on one prompt,
    with probability 1 − miss over the particles of m clouds, whose log Ẑ [m] are given; inf: more than can be counted.

    With δ = miss^(1/m) min Ẑ/(W H), W the greatest p^(α−1/τ) Σ p^(1/τ) of the first token (log p [vocab]), it is the
    least N with (1 − δ)^N ≤ tv, from any start (`theory/certificate.py`). ValueError: α below 1, or not 1 ≤ 1/τ ≤ α,
    where it does not hold.
    """
    alpha, cold = power.alpha, 1 / power.temperature
    if not 1 <= cold * (1 + TOLERANCE) <= (1 + TOLERANCE) ** 2 * alpha < math.inf or not isinstance(power.cut, str):
        raise ValueError(
            f"alpha {alpha} and proposal temperature {power.temperature:g}: steps are known to be enough for a finite "
            "alpha of at least 1 and temperatures from 1/alpha to 1"
        )
    if power.cut == "entropy":
        raise ValueError("cut is 'entropy': steps are known to be enough for cuts on the record or the horizon alone")
    first = first.double()
    log_w = (cold * first).logsumexp(-1) + (alpha - cold) * first.max()
    forgets = min(1.0, math.exp(float(log_z.min()) + math.log(miss) / len(log_z) - float(log_w)) / power.max_new_tokens)
    return math.inf if forgets < 1e-300 else 1.0 if forgets == 1 else math.ceil(math.log(tv) / math.log1p(-forgets))
