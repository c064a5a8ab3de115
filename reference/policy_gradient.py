"""The policy gradient of J_β: what RLHF-Sharpening regresses to, climbed on-policy (2412.01951, §4.2; 2402.14740).

    J_β(π) = E_{x, y~π} [log p(y|x)] − β KL(π ‖ p),        greatest at p^α, normalised, with α = 1 + 1/β

p is the base, and log p its self-reward: no labels. For each prompt k responses y_1..y_k ~ π, and

    r_i = log p(y_i|x) − β log π(y_i|x)/p(y_i|x),        A_i = r_i − 1/(k−1) Σ_{j≠i} r_j,
    ∇J_β = E [1/k Σ_i A_i ∇log π(y_i|x)]

exactly: the others' mean does not depend on y_i, and the derivative of −β log π inside the reward has mean 0. The whole
group's mean would shrink the gradient by (k−1)/k; dividing by the group's standard deviation, as GRPO does, makes
another direction of it, which is no gradient of J_β. Each round draws from the policy as it is and makes one step, so
there is no ratio of policies and nothing to clip. With a grader's reward in the place of log p it climbs to p e^(r/β).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reference.grpo import RewardFunction
from reference.interface import Chance
from reference.randomness import child_seed
from reference.sampling import Cost, LanguageModel, check_prompts, check_settings, extend, log_probs
from reference.training.loop import FitConfig, Trainer, batch_rows, digest, response_logp, train_rounds
from reference.training.lora import lora_layers, without_lora

REWARDS = ("self", "grader")


@dataclass(frozen=True)
class PolicyGradientConfig:
    """Settings. A round's responses are the `FitConfig.batch`, all of one optimiser step."""

    reward: str = "self"  # "self": the base's log p, no labels; "grader": whether the answer is right
    beta: float = 1 / 3  # β, weight of the KL to the base; by the self-reward the goal is p^(1 + 1/β)
    rounds: int = 100  # each draws anew, and is one step
    group: int = 8  # k, responses to a prompt, of which each is measured against the others
    max_new_tokens: int = 512  # the horizon
    seed: int = 0

    def __post_init__(self) -> None:
        """ValueError: a setting out of range."""
        least = {"rounds": 1, "group": 2, "max_new_tokens": 1}
        check_settings(self, positive=("beta",), least=least, among={"reward": REWARDS})


# ---------------------------------------------------------------------------------------------------------------------
# The page: the responses to one prompt, and what each weighs


def policy_gradient_page(
    policy: LanguageModel, base: LanguageModel, prompt: Sequence[int], config: PolicyGradientConfig, *,
    stop_ids: Collection[int], chance: Chance,
) -> list[tuple[tuple[int, ...], float]]:  # fmt: skip
    """(y_i, A_i), i = 1..k: the step is along 1/k Σ_i A_i ∇log π(y_i|x)."""
    responses = [
        extend(policy, prompt, (), config.max_new_tokens, stop_ids=stop_ids, chance=chance.sample(i, of=config.group))
        for i in range(config.group)
    ]
    logp, logq = (torch.tensor([[float(log_probs(model, prompt, y)[0].sum()) for y in responses]], dtype=torch.float64)
                  for model in (base, policy))  # fmt: skip
    return list(zip(responses, leave_one_out(regularised(logp, logq, logp, config.beta))[0].tolist()))


def regularised(reward: Tensor, logq: Tensor, logp: Tensor, beta: float) -> Tensor:
    """reward − β log π/p, of log π and log p of whole responses, float64 [prompts, k] each."""
    return reward - beta * (logq - logp)


def leave_one_out(reward: Tensor) -> Tensor:
    """A_i = r_i − 1/(k−1) Σ_{j≠i} r_j, of rewards [prompts, k]."""
    k = reward.shape[-1]
    return (reward - reward.mean(-1, keepdim=True)) * k / (k - 1)


# ---------------------------------------------------------------------------------------------------------------------
# Batched


@dataclass(frozen=True)
class Climbed:
    """What training gives."""

    model: Any  # the policy that was given, trained in place
    log: dict[str, list[float]]  # per round: "loss"; means over responses: "reward", and "kl", of log π/p
    cost: Cost  # of all draws, those before a resumption too; scoring by the base is as much prefilling


def policy_gradient(
    policy: LanguageModel, prompts: Sequence[Sequence[int] | Tensor], config: PolicyGradientConfig, fit: FitConfig, *,
    stop_ids: Iterable[int], reward: RewardFunction | None = None, base: LanguageModel | None = None,
    state: str | Path | None = None, after: Any = None, trainer: type[Trainer] = Trainer, **settings,
) -> Climbed:  # fmt: skip
    """Train the policy (its adapters, if it has any) in place: a round draws `fit.batch` responses, k to each prompt.

    reward: as of `grpo`, for config.reward "grader". base: p; None: the policy as it was given, or without its
    adapters. state, after, trainer, settings: as of `grpo`. ValueError: as from `generate` and `train`, a batch that k
    does not divide, a reward where none is asked for, or none where one is.
    """
    texts, stop_ids = check_prompts(policy, prompts), list(stop_ids)
    count = fit.batch // config.group  # prompts of a round
    if fit.batch % config.group:
        raise ValueError(f"batch is {fit.batch}: each step takes whole groups, so give a multiple of {config.group}")
    if (reward is None) != (config.reward == "self"):
        raise ValueError(f"reward is {config.reward!r}; a reward function goes with 'grader', and only with it")
    if base is None and not lora_layers(policy):
        base = copy.deepcopy(policy)
    depends = {"prompts": digest([text.tolist() for text in texts]), "config": config}
    run = trainer(policy, fit, config.rounds, depends)
    run.resume(state)

    def play(t: int):
        index = batch_rows(len(texts), count, config.seed, t).tolist()
        drawn = run.generate(
            [texts[i] for i in index], samples_per_prompt=config.group, stop_ids=stop_ids,
            max_new_tokens=config.max_new_tokens, seed=child_seed(config.seed, "round", t), **settings,
        )  # fmt: skip
        loss = PolicyGradientLoss([texts[i] for i in index for _ in range(config.group)],
                                  [one.tokens for own in drawn.samples for one in own])  # fmt: skip
        with without_lora(run.model) if base is None else nullcontext():
            logp = loss.of(run, run.model if base is None else base).view(count, config.group)
        logq = loss.of(run, run.model).view(count, config.group)
        r = logp if reward is None else torch.as_tensor(reward(index, drawn.samples)).to(logp)
        if r.shape != logp.shape or not r.isfinite().all():
            raise ValueError(f"the rewards are {list(r.shape)}; they must be finite numbers, {list(logp.shape)}")
        loss.advantage = leave_one_out(regularised(r, logq, logp, config.beta)).flatten()
        run.log.setdefault("reward", []).append(float(r.mean()))
        run.log.setdefault("kl", []).append(float((logq - logp).mean()))
        return loss, lambda u: torch.arange(fit.batch), drawn.cost

    cost = train_rounds(run, config.rounds, 1, play, label="policy gradient", state=state, after=after)
    return Climbed(run.whole(), run.log, cost)


class PolicyGradientLoss:
    """−Σ_i A_i log π(y_i|x_i) over responses, as `Trainer.update` wants it: its mean's gradient is −∇J_β, estimated."""

    advantage: Tensor  # float64 [responses]

    def __init__(self, prompts: list[Tensor], responses: list[Tensor]):
        self.prompts, self.responses = prompts, responses

    def __len__(self) -> int:
        return len(self.responses)

    def logp(self, model: Any, rows: Tensor) -> Tensor:
        """log π(y|x) of responses, with gradient: float64 [rows]."""
        prompts, responses = ([part[i] for i in rows.tolist()] for part in (self.prompts, self.responses))
        return response_logp(model, prompts, responses)[0].double().sum(-1)

    def of(self, run: Trainer, model: Any) -> Tensor:
        return run.values(lambda rows: self.logp(model, rows), len(self))

    def __call__(self, policy: Any, rows: Tensor) -> Tensor:
        logp = self.logp(policy, rows)
        return -(self.advantage.to(logp.device)[rows.to(logp.device)] * logp).sum()
