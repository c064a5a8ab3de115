"""Best-of-N: draw N responses, keep the one that the model itself scores highest (2412.01951, §3.1 and Appendix D).

    y_1, ..., y_N ~ π(·|x) i.i.d.,   ŷ = arg max_i r(y_i|x),   r = log π(y|x) or another of `reference.self_reward`

It sharpens: with r = log π the mass of the most likely responses y*(x) is exactly 1 − (1 − π(y*|x))^N, so that
N ≈ 1/π(y*|x) draws are what it takes (the coverage). A prompt with a likely best response needs few draws, and the
adaptive rule finds out for itself how many: it stops at

    N_μ(x) = inf{ k : 1 / max_{j≤k} π(y_j|x) ≤ k/μ },   and then ŷ is outside y*(x) with probability at most e^(−μ).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reference.interface import (
    TOLERANCE,
    Chance,
    Cost,
    LanguageModel,
    Samples,
    check_count,
    check_keys,
    check_prompts,
    check_stop_ids,
    child_seed,
)
from reference.sampling import GenerateConfig, check_settings, check_token_settings, extend, generate, log_probs
from reference.self_reward import log_probability


@dataclass(frozen=True)
class BestOfNConfig:
    """Settings."""

    n: int  # N, responses that one is chosen from
    max_new_tokens: int | Sequence[int]  # the horizon: most response tokens; one, or one for each prompt
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    reward: Callable[[Samples], Tensor] = log_probability  # Samples [prompts, n] -> float64 [prompts, n]

    def __post_init__(self) -> None:
        """ValueError: a setting out of range."""
        check_settings(self, least={"n": 1})
        check_token_settings(self)


@dataclass(frozen=True)
class AdaptiveConfig:
    """Settings of the adaptive rule; the reward is log-probability."""

    mu: float  # μ: the more, the surer; ln(2/δ) in Theorem D.1
    max_draws: int  # where a prompt that is still undecided gives up
    max_new_tokens: int  # the horizon: most response tokens
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        """ValueError: a setting out of range."""
        if not isinstance(self.max_new_tokens, int):
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; the adaptive rule takes one number")
        check_settings(self, positive=("mu",), least={"max_draws": 1})
        check_token_settings(self)


# ---------------------------------------------------------------------------------------------------------------------
# The pages


class Best(NamedTuple):
    """The chosen response, its reward, and how many it was chosen from."""

    tokens: tuple[int, ...]
    rewards: float
    draws: int


def best_of_n_page(
    model: LanguageModel, prompt: Sequence[int], config: BestOfNConfig, *, stop_ids: Collection[int], chance: Chance
) -> Best:
    """ŷ = arg max_i r(y_i|x); the first of those that tie."""
    law = (config.temperature, config.top_k, config.top_p)
    if not isinstance(config.max_new_tokens, int):
        raise ValueError(f"max_new_tokens is {config.max_new_tokens}; it must be one number for one prompt")
    responses = [
        extend(model, prompt, (), config.max_new_tokens, *law, stop_ids=stop_ids, chance=chance.sample(i, of=config.n))
        for i in range(config.n)
    ]
    logp, logq = zip(*(log_probs(model, prompt, y, *law) for y in responses))
    rewards = config.reward(Samples.of(responses, logp, logq, stop_ids, config.max_new_tokens))[0]
    chosen = int(first_best(rewards))
    return Best(responses[chosen], float(rewards.max()), config.n)


def adaptive_best_of_n_page(
    model: LanguageModel, prompt: Sequence[int], config: AdaptiveConfig, *, stop_ids: Collection[int], chance: Chance
) -> Best:
    """Draw y_1, y_2, ... until 1 / max_j π(y_j) ≤ k/μ; the likeliest so far (Algorithm of Appendix D)."""
    best: tuple[int, ...] = ()
    most, law = -math.inf, (config.temperature, config.top_k, config.top_p)
    for k in range(1, config.max_draws + 1):
        y = extend(model, prompt, (), config.max_new_tokens, *law, stop_ids=stop_ids, chance=chance.child(k))
        logp = float(log_probs(model, prompt, y)[0].sum())
        if logp > most + TOLERANCE:
            best, most = y, logp
        if decided(most, k, config.mu):
            break
    return Best(best, most, k)


def first_best(rewards: Tensor) -> Tensor:
    """The index of the highest reward, int64 [...] of rewards [..., n]; of those that tie (within `TOLERANCE`) the
    first: draws are exchangeable. ValueError: a reward is NaN."""
    if rewards.isnan().any():
        raise ValueError(f"a reward is NaN, among {rewards.tolist()}; rewards must be numbers")
    return (rewards >= rewards.amax(-1, keepdim=True) - TOLERANCE).int().argmax(-1)


def decided(most: float | Tensor, k: int, mu: float) -> Any:
    """Whether k draws, of which the likeliest has log-probability `most`, are enough: k · max π ≥ μ."""
    likeliest = most.exp() if isinstance(most, Tensor) else math.exp(most)
    return k * likeliest >= mu * (1 - TOLERANCE)


# ---------------------------------------------------------------------------------------------------------------------
# Many prompts at a time


@dataclass(frozen=True)
class BestOfN:
    """`samples[prompt][s]` is a chosen response; everything else is how it came about."""

    samples: Samples  # [prompts, samples_per_prompt], as rewards and draws
    rewards: Tensor  # float64: of the chosen response
    draws: Tensor  # int64: how many responses it was chosen from
    costs: list[Cost]  # per prompt
    pool: Samples | None = None  # all that were drawn, [prompts, samples_per_prompt · N]; None for the adaptive rule

    @property
    def cost(self) -> Cost:
        return Cost.parallel(self.costs)


def select(samples: Samples, rewards: Tensor) -> Samples:
    """Each prompt's response of highest reward, [prompts, 1], by `first_best`."""
    return samples.take(first_best(rewards)[:, None])


def best_of_n(
    model: LanguageModel,
    prompts: Sequence[Sequence[int] | Tensor],
    config: BestOfNConfig | None = None,
    *,
    stop_ids: Iterable[int],
    samples_per_prompt: int = 1,
    slots: int | None = None,
    seed: int = 0,
    keys: Sequence[int | str] | None = None,
    **settings,
) -> BestOfN:
    """The best of N responses to each prompt, `samples_per_prompt` times. config: or its fields as settings, `n=50`.

    ValueError: a reward of another shape or that is NaN, and what `generate` refuses.
    """
    c = config or BestOfNConfig(**settings)
    times = check_count("samples_per_prompt", samples_per_prompt)
    law = GenerateConfig(c.max_new_tokens, c.temperature, c.top_k, c.top_p)
    common = {"stop_ids": stop_ids, "slots": slots, "seed": seed, "keys": keys}
    if c.n < 1:
        raise ValueError(f"n is {c.n}; it must be at least 1")
    drawn = generate(model, prompts, law, samples_per_prompt=times * c.n, **common)  # type: ignore[arg-type]
    rewards = c.reward(drawn.samples)
    if rewards.shape != drawn.samples.lengths.shape:
        raise ValueError(f"rewards have shape {list(rewards.shape)}, not {list(drawn.samples.lengths.shape)}")
    rewards = rewards.view(-1, times, c.n)
    chosen = first_best(rewards) + torch.arange(0, times * c.n, c.n, device=rewards.device)
    draws = torch.full((len(prompts), times), c.n)
    return BestOfN(drawn.samples.take(chosen), rewards.amax(-1), draws, drawn.costs, drawn.samples)


def adaptive_best_of_n(
    model: LanguageModel,
    prompts: Sequence[Sequence[int] | Tensor],
    config: AdaptiveConfig | None = None,
    *,
    stop_ids: Iterable[int],
    samples_per_prompt: int = 1,
    slots: int | None = None,
    seed: int = 0,
    keys: Sequence[int | str] | None = None,
    **settings,
) -> BestOfN:
    """Best-of-N by log-probability, N chosen for each prompt by the stopping rule above (Appendix D). config: or its
    fields as settings, `mu=3, max_draws=1000`.

    An undecided prompt needs at least μ / max π draws, which no one can afford on long responses: hence `max_draws`.
    Each round draws one response for every one that is still undecided, all of them together. ValueError: as above.
    """
    from reference.engine.requests import check_memory

    c = config or AdaptiveConfig(**settings)
    times = check_count("samples_per_prompt", samples_per_prompt, least=1)
    law = GenerateConfig(c.max_new_tokens, c.temperature, c.top_k, c.top_p)
    prompts, stop_ids = check_prompts(model, prompts), check_stop_ids(model, stop_ids)
    names = check_keys(keys, len(prompts))
    check_memory(model, len(prompts) * times, 1, c.max_new_tokens, max(map(len, prompts)))
    runs = [(p, s) for p in range(len(prompts)) for s in range(times)]
    costs, draws = [Cost()] * len(runs), torch.zeros(len(runs), dtype=torch.int64)
    best = Samples.empty(len(runs), 1, c.max_new_tokens, model.device)
    most = torch.full((len(runs),), -torch.inf, dtype=torch.float64)
    index = torch.arange(len(runs))
    for k in range(1, c.max_draws + 1):
        undecided = [runs[i] for i in index.tolist()]
        drawn = generate(
            model,
            [prompts[p] for p, _ in undecided],
            law,
            stop_ids=stop_ids,
            first_sample=[s for _, s in undecided],
            slots=slots,
            seed=child_seed(seed, k),
            keys=[names[p] for p, _ in undecided],
        )
        logp = log_probability(drawn.samples)[:, 0].cpu()
        better = logp > most[index] + TOLERANCE
        best.put(index[better], drawn.samples.rows(better))
        most[index], draws[index] = torch.where(better, logp, most[index]), k
        for i, cost in zip(index.tolist(), drawn.costs):
            costs[i] += cost
        index = index[~decided(most[index], k, c.mu)]
        if not len(index):
            break
    shape = (len(prompts), times)
    samples = Samples(*(tensor.view(*shape, *tensor.shape[2:]) for tensor in best.tensors()))
    shared = [Cost.parallel(costs[p * times : (p + 1) * times]) for p in range(len(prompts))]
    return BestOfN(samples, most.view(shape), draws.view(shape), shared)
