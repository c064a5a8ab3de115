"""Best-of-N: draw N responses, keep the one that the model itself scores highest (2412.01951, §3.1 and Appendix D).

    y_1, ..., y_N ~ π(·|x) i.i.d.,   ŷ = arg max_i r(y_i|x),   r = log π(y|x) or another of `reference.self_reward`

It sharpens: with r = log π the mass of the most likely responses y*(x) is exactly 1 − (1 − π(y*|x))^N, so that
N ≈ 1/π(y*|x) draws are what it takes (the coverage). A prompt with a likely best response needs few draws, and the
adaptive rule finds out for itself how many: it stops at

    N_μ(x) = inf{ k : 1 / max_{j≤k} π(y_j|x) ≤ k/μ },   and then ŷ is outside y*(x) with probability at most e^(−μ).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reference.sampling import Cost, LanguageModel, Samples, child_seed, generate
from reference.self_reward import log_probability


@dataclass(frozen=True)
class BestOfN:
    """`samples[prompt][0]` is the chosen response; everything else is how it came about."""

    samples: Samples  # [prompts, 1]
    rewards: Tensor  # float64 [prompts]: of the chosen response
    draws: Tensor  # int64 [prompts]: how many responses it was chosen from
    costs: list[Cost]  # per prompt
    pool: Samples | None = None  # all that were drawn, [prompts, N]; None for the adaptive rule

    @property
    def cost(self) -> Cost:
        return Cost.parallel(self.costs)


def select(samples: Samples, rewards: Tensor) -> Samples:
    """Each prompt's response of highest reward, [prompts, 1]; of equal ones the first (draws are exchangeable)."""
    return samples.take(rewards.argmax(-1, keepdim=True))


def best_of_n(
    model: LanguageModel,
    prompts: Sequence[Sequence[int] | Tensor],
    n: int,
    *,
    reward: Callable[[Samples], Tensor] = log_probability,
    max_new_tokens: int | Sequence[int],
    stop_ids: Iterable[int],
    seed: int = 0,
    **settings,
) -> BestOfN:
    """The best of n responses to each prompt by `reward` (Samples -> float64 [prompts, n]).

    settings: temperature (1 in the paper), top_k, top_p, slots, keys, as for `generate`, whose errors it raises.
    """
    drawn = generate(
        model,
        prompts,
        samples_per_prompt=n,
        max_new_tokens=max_new_tokens,
        stop_ids=stop_ids,
        seed=seed,
        **settings,
    )
    rewards = reward(drawn.samples)
    draws = torch.full((len(prompts),), n)
    return BestOfN(select(drawn.samples, rewards), rewards.amax(-1), draws, drawn.costs, drawn.samples)


def adaptive_best_of_n(
    model: LanguageModel,
    prompts: Sequence[Sequence[int] | Tensor],
    mu: float,
    max_draws: int,
    *,
    max_new_tokens: int,
    stop_ids: Iterable[int],
    seed: int = 0,
    **settings,
) -> BestOfN:
    """Best-of-N by log-probability with N chosen for each prompt by the stopping rule above (Appendix D).

    mu > 0: the more, the surer; ln(2/δ) in Theorem D.1. max_draws: where an undecided prompt gives up (it needs at
    least μ / max π draws, which no one can afford on long responses). Each round draws one response for every prompt
    that is still undecided, all of them together.
    """
    if not mu > 0 or max_draws < 1:
        raise ValueError(f"mu is {mu} and max_draws is {max_draws}; they must be above 0 and at least 1")
    stop_ids, keys = list(stop_ids), list(settings.pop("keys", None) or range(len(prompts)))
    costs, draws = [Cost()] * len(prompts), torch.zeros(len(prompts), dtype=torch.int64)
    best = Samples.empty(len(prompts), 1, max_new_tokens, model.device)
    rewards = torch.full((len(prompts),), -torch.inf, dtype=torch.float64)
    undecided = list(range(len(prompts)))
    for k in range(1, max_draws + 1):
        drawn = generate(
            model,
            [prompts[i] for i in undecided],
            max_new_tokens=max_new_tokens,
            stop_ids=stop_ids,
            seed=child_seed(seed, k),
            keys=[keys[i] for i in undecided],
            **settings,
        )
        index = torch.tensor(undecided)
        reward = log_probability(drawn.samples)[:, 0].cpu()
        better = reward > rewards[index]
        best.put(index[better], drawn.samples.rows(better))
        rewards[index] = torch.maximum(reward, rewards[index])
        draws[index] = k
        for i, cost in zip(undecided, drawn.costs):
            costs[i] += cost
        undecided = index[(-rewards[index]).exp() > k / mu].tolist()  # 1 / max π > k / μ: not yet
        if not undecided:
            break
    return BestOfN(best, rewards, draws, costs)
