"""GRPO, the RL baseline: reward what is right, measured against the other answers to the same prompt (2402.03300).

For each prompt G responses y_1..y_G ~ π_old with rewards r_i, A_i = (r_i − mean r) / (std r + 1e-6), and

    J = mean over prompts and i of  1/|y_i| Σ_t { min(ρ_t A_i, clip(ρ_t, 1−ε, 1+ε) A_i) − β k3_t }          (Eq. 3)
    ρ_t = π_θ/π_old (y_it|x, y_i<t),   k3_t = π_base/π_θ − log π_base/π_θ − 1                              (Eq. 4)

is raised by gradient steps. std has the divisor G; a group of equal rewards has A = 0. Of a token drawn from
π_θ, k3 estimates KL(π_θ ‖ π_base) without bias, and is never negative. Its gradient, which is what is used, is unbiased
for the gradient of the *other* divergence, KL(π_base ‖ π_θ): E[∇ k3] = Σ (π_θ − π_base) ∇ log π_θ.

The reward is verifiable: it comes from the task (a grader), not from the model. Each round draws with the model as it
is, with randomness addressed by (seed, round), and makes its updates through `Trainer` (`reference/training/loop.py`);
so a run that was killed resumes exactly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reference.randomness import child_seed
from reference.sampling import Cost, LanguageModel, Samples, check_prompts, check_settings
from reference.training.loop import FitConfig, Trainer, batch_rows, digest, response_logp, train_rounds
from reference.training.lora import lora_layers, without_lora

RewardFunction = Callable[[list[int], Samples], Tensor]  # (indices of prompts, their samples) -> rewards [prompts, G]


@dataclass(frozen=True)
class GRPOConfig:
    """Settings. The defaults are DeepSeekMath's, with FitConfig(batch=1024, rate=1e-6): one update per round."""

    rounds: int = 100  # each draws anew
    prompts: int = 16  # per round, the next ones in an endless row of shuffled epochs
    group: int = 64  # G, responses per prompt
    passes: int = 1  # over a round's responses, in steps of `FitConfig.batch` responses
    clip: float = 0.2  # ε; PPO's
    beta: float = 0.04  # β, weight of the KL to the base
    max_new_tokens: int = 1024  # the horizon
    seed: int = 0

    def __post_init__(self) -> None:
        """ValueError: a setting out of range."""
        least = {"rounds": 1, "prompts": 1, "group": 2, "passes": 1, "clip": 0, "beta": 0, "max_new_tokens": 1}
        check_settings(self, least=least)


@dataclass(frozen=True)
class Reinforced:
    """What GRPO gives."""

    model: Any  # the policy that was given, trained in place
    log: dict[str, list[float]]  # per update "loss"; per round "reward" (mean) and "k3" (mean per response token)
    cost: Cost  # of all draws, those before a resumption too


def grpo(
    policy: LanguageModel, prompts: Sequence[Sequence[int] | Tensor], reward: RewardFunction, config: GRPOConfig,
    fit: FitConfig, *, stop_ids: Iterable[int], base: LanguageModel | None = None, state: str | Path | None = None,
    after: Callable[[Trainer], None] | None = None, trainer: type[Trainer] = Trainer, **settings,
) -> Reinforced:  # fmt: skip
    """Train the policy (its adapters, if it has any) in place.

    reward: the task's grader. base: what the KL is to; None: the policy as it was given, or without its adapters.
    state, after, trainer: as for `train`, but per round. settings: slots. ValueError: as from `generate` and `train`.
    """
    texts, stop_ids = check_prompts(policy, prompts), list(stop_ids)
    responses = config.prompts * config.group
    updates = -(-config.passes * responses // fit.batch)  # per round
    if config.beta and base is None and not lora_layers(policy):
        base = copy.deepcopy(policy)
    depends = {"prompts": digest([text.tolist() for text in texts]), "config": config}
    run = trainer(policy, fit, config.rounds * updates, depends)
    run.resume(state)

    def play(t: int) -> tuple[GRPOLoss, Callable[[int], Tensor], Cost]:
        index = batch_rows(len(texts), config.prompts, config.seed, t).tolist()
        drawn = run.generate(
            [texts[i] for i in index], samples_per_prompt=config.group, stop_ids=stop_ids,
            max_new_tokens=config.max_new_tokens, seed=child_seed(config.seed, "round", t), **settings,
        )  # fmt: skip
        rewards = torch.as_tensor(reward(index, drawn.samples), dtype=torch.float64)
        if rewards.shape != drawn.samples.lengths.shape or not rewards.isfinite().all():
            raise ValueError(
                f"the rewards are {list(rewards.shape)}; they must be finite numbers, "
                f"{list(drawn.samples.lengths.shape)}, one for each response to each prompt"
            )
        loss = GRPOLoss(run, base, [texts[i] for i in index], drawn.samples, advantages(rewards), config)
        run.log.setdefault("reward", []).append(float(rewards.mean()))
        run.log.setdefault("k3", []).append(loss.k3)
        order = child_seed(config.seed, "order", t)
        return loss, lambda u: batch_rows(responses, fit.batch, order, u), drawn.cost

    cost = train_rounds(run, config.rounds, updates, play, label="grpo", state=state, after=after)
    return Reinforced(run.whole(), run.log, cost)


def advantages(rewards: Tensor) -> Tensor:
    """A, float64 [prompts, G], of rewards [prompts, G]."""
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred / (rewards.std(-1, correction=0, keepdim=True) + 1e-6)


class GRPOLoss:
    """−Σ over responses of the braces of J, as `Trainer.update` wants it: rows are responses, prompt by prompt."""

    def __init__(
        self, run: Trainer, base: LanguageModel | None, prompts: Sequence[Tensor], samples: Samples, advantage: Tensor,
        config: GRPOConfig,
    ):  # fmt: skip
        """π_old is the run's model as it is now; π_base is `base`, or None: that model without its adapters."""
        self.prompts = [prompt for prompt in prompts for _ in range(samples.tokens.shape[1])]
        self.responses = [sample.tokens for row in samples for sample in row]
        self.advantage, self.config = advantage.flatten().to(run.model.device), config
        self.old = self.frozen(run, run.model)
        self.base, self.k3 = self.old, 0.0
        if config.beta:
            with without_lora(run.model) if base is None else nullcontext():
                self.base = self.frozen(run, run.model if base is None else base)
            self.k3 = float(k3(self.old, self.base).sum() / sum(map(len, self.responses)))

    def __len__(self) -> int:
        return len(self.responses)

    def logp(self, model: Any, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        return response_logp(model, [self.prompts[i] for i in rows], [self.responses[i] for i in rows])

    def frozen(self, run: Trainer, model: Any) -> Tensor:
        """log π of all responses' tokens [responses, longest], without gradient, in the precision of training."""
        width = max(map(len, self.responses))

        def padded(rows: Tensor) -> Tensor:
            logp, _ = self.logp(model, rows.tolist())
            return nn.functional.pad(logp, (0, width - logp.shape[1]))

        return run.values(padded, len(self))

    def __call__(self, policy: Any, rows: Tensor) -> Tensor:
        logp, mask = self.logp(policy, rows.tolist())
        rows = rows.to(logp.device)
        old, base = (kept[rows, : logp.shape[1]] for kept in (self.old, self.base))
        A, ratio = self.advantage[rows, None], (logp - old).exp()
        gain = torch.minimum(ratio * A, ratio.clamp(1 - self.config.clip, 1 + self.config.clip) * A)
        if self.config.beta:
            gain = gain - self.config.beta * k3(logp, base)
        return -(gain.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1)).sum()


def k3(logp: Tensor, base: Tensor) -> Tensor:
    """π_base/π − log π_base/π − 1, of log-probabilities."""
    return (base - logp).exp() - (base - logp) - 1
