"""Operator-consistent RL: a model is trained as the operator that it is used as (2510.01123), by CISPO (2506.13585).

Ordinary RL rewards what a model answers alone; parallel-distill-refine asks it otherwise. So half of each batch are
*traces*, an author's drafts, and half are rollouts of one round of the *operator*, of which the last response counts:

    x → s_1 .. s_4 (author), C (distiller of s_1 .. s_4), o (refiner given C),          J = ½ J_trace + ½ J_operator

Each half has prompts with G rollouts o_1 .. o_G, whose rewards r_i give A_i as in `reference/grpo.py`, and raises

    J_half = mean over prompts of  1/Σ_i |o_i|  Σ_i Σ_t sg(ρ̂_it) A_i log π_θ(o_it)           2506.13585, Eq. 4, 5
             + α · mean over i with r_i > 0 of  1/|o_i| Σ_t log π_θ(o_it)                          SFT on what is right

    ρ = π_θ/π_old (o_it | what stands before it),   ρ̂ = clip(ρ, 1−ε_low, 1+ε_high),   sg: no gradient flows through it

The gradient of the first line is Σ ρ̂ A ∇log π. Within the clip it is PPO's, ∇(ρA) = ρ A ∇log π. Beyond it, where the
ratio has moved the way that A wants, PPO's min(ρA, ρ̂A) is constant and the token learns nothing more; here the clip
bounds the token's weight, and every token goes on learning.

Prompts, and so the drafts and the workspace as a refiner reads them, never carry gradient. Whether the calls that
wrote them do, with the reward of what came of them, is a setting; the papers' summaries suggest that they do not.
What was not to be had from the papers, and is ours: every rollout has drafts and a workspace of its own, so that G
rollouts of a prompt differ in all that may carry gradient; and the clip's width.

Rewards come from the task's grader. A run that was killed resumes exactly, as in `reference/grpo.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reference.grpo import Reinforced, advantages
from reference.parallel_distill_refine import Checker, PDRConfig, parallel_distill_refine
from reference.randomness import child_seed
from reference.sampling import Cost, check_settings
from reference.sequential_refinement import sequential_refinement
from reference.text.ledger import Text
from reference.text.text_model import TextModel
from reference.training.loop import FitConfig, Trainer, batch_rows, digest, response_logp, train_rounds

KINDS = ("trace", "operator")
ROUND = PDRConfig((4,), max_new_tokens=16384)


@dataclass(frozen=True)
class OperatorConfig:
    """Settings. The defaults are the paper's, with FitConfig(batch=256): four updates per round."""

    rounds: int = 100  # each draws anew
    prompts: int = 32  # per round, shared out evenly among the kinds
    group: int = 32  # G, rollouts per prompt
    kinds: tuple[str, ...] = KINDS  # of rollouts; ("trace",) is ordinary RL
    carries: str = "answer"  # which tokens carry gradient: the last response's ("answer"), or those of "all" calls
    pdr: PDRConfig = ROUND  # the operator; its tokens are the traces' too; temperature 1, that of π_old
    passes: int = 1  # over a round's rollouts, in steps of `FitConfig.batch` rollouts
    low: float = math.inf  # ε_low; MiniMax-M1 has no lower bound
    high: float = 0.28  # ε_high; no paper gives it
    alpha: float = 0.1  # α, weight of the SFT term
    seed: int = 0

    def __post_init__(self) -> None:
        """ValueError: a setting out of range."""
        least = {"rounds": 1, "prompts": 1, "group": 2, "passes": 1, "low": 0, "high": 0, "alpha": 0}
        check_settings(self, least=least, among={"carries": ("answer", "all")})
        if self.pdr.temperature != 1:
            raise ValueError(f"pdr.temperature is {self.pdr.temperature}; it must be 1, as π_old is trained")
        if not self.kinds or not {*self.kinds} <= {*KINDS}:
            raise ValueError(f"kinds are {self.kinds}; name one or more of {', '.join(KINDS)}")


@dataclass(frozen=True)
class Rollouts:
    """One half of a round: G rollouts of each prompt, prompt by prompt."""

    texts: list[list[Text]]  # [rollout]: the calls that carry gradient
    rewards: Tensor  # float64 [prompts, G]
    cost: Cost


def operator_rl(
    speaker: TextModel, questions: Sequence[str], grader: Checker, config: OperatorConfig, fit: FitConfig, *,
    state: str | Path | None = None, after: Callable[[Trainer], None] | None = None, **settings,
) -> Reinforced:  # fmt: skip
    """Train the speaker's model (its adapters, if it has any) in place.

    grader: (index of a question, response) -> right. state, after: as for `train`, but per round. settings: slots.
    The log has, per round, the mean reward of each kind and "tokens", all that were sampled, discarded ones included.
    ValueError: as from `parallel_distill_refine` and `train`; prompts or a batch that cannot be shared out evenly.
    """
    kinds = len(config.kinds)
    for name, size in (("prompts", config.prompts), ("batch", fit.batch)):
        if size % kinds:
            raise ValueError(f"{name} is {size}; it must be a multiple of {kinds}, the number of kinds of rollouts")
    rollouts = config.prompts // kinds * config.group  # of each kind
    updates = -(-config.passes * kinds * rollouts // fit.batch)  # per round
    depends = {"config": config, "questions": digest(list(questions)), "stop_ids": speaker.stop_ids,
               "templates": speaker.templates.name}  # fmt: skip
    run = Trainer(speaker.model, fit, config.rounds * updates, depends)
    run.resume(state)

    def round_of(t: int) -> tuple[CISPOLoss, Callable[[int], Tensor], Cost]:
        shares = batch_rows(len(questions), config.prompts, config.seed, t).split(config.prompts // kinds)
        halves = [
            play(kind, speaker, questions, own.tolist(), grader, config, child_seed(config.seed, kind, t), settings)
            for kind, own in zip(config.kinds, shares)
        ]
        drawn, order = Cost.parallel(half.cost for half in halves), child_seed(config.seed, "order", t)
        for kind, half in zip(config.kinds, halves):
            run.log.setdefault(f"{kind} reward", []).append(float(half.rewards.mean()))
        run.log.setdefault("tokens", []).append(drawn.decoded_tokens)

        def rows(u: int) -> Tensor:  # as many of each kind
            own = batch_rows(rollouts, fit.batch // kinds, order, u)
            return torch.cat([own + k * rollouts for k in range(kinds)])

        return CISPOLoss(run, halves, config), rows, drawn

    cost = train_rounds(run, config.rounds, updates, round_of, label="operator rl", state=state, after=after)
    return Reinforced(run.whole(), run.log, cost)


def play(
    kind: str, speaker: TextModel, questions: Sequence[str], chosen: list[int], grader: Checker, config: OperatorConfig,
    seed: int, settings: dict[str, Any],
) -> Rollouts:  # fmt: skip
    """G rollouts of each of the chosen questions, with the model as it is."""
    owners = [i for i in chosen for _ in range(config.group)]
    asked, settings = [questions[i] for i in owners], {"seed": seed, **settings}
    if kind == "operator":
        out = parallel_distill_refine(speaker, asked, config.pdr, **settings)
    else:
        out = sequential_refinement(speaker, asked, 0, config.pdr, **settings)
    texts = [
        [text for call, text in zip(*own) if config.carries == "all" or call.step == out.ledger.steps]
        for own in zip(out.ledger.calls, out.ledger.texts)
    ]
    rewards = torch.tensor([float(grader(i, text)) for i, text in zip(owners, out.texts)], dtype=torch.float64)
    return Rollouts(texts, rewards.view(len(chosen), config.group), out.cost)


class CISPOLoss:
    """−Σ over rollouts of what J is the mean of, as `Trainer.update` wants it: rows are rollouts, half by half."""

    def __init__(self, run: Trainer, halves: Sequence[Rollouts], config: OperatorConfig):
        """π_old is the run's model as it is now."""
        self.texts, self.config = [own for half in halves for own in half.texts], config
        self.lengths = [sum(len(response) for _, response in own) for own in self.texts]
        weights, imitated, at = [], [], 0
        for half in halves:
            length = torch.tensor(self.lengths[at : at + half.rewards.numel()]).view_as(half.rewards)
            right = (half.rewards > 0).double()
            # Over the rows' number the first is 1/Σ|o|, a mean over prompts, and the second a mean over what is right
            weights.append(advantages(half.rewards) * half.rewards.shape[1] / length.sum(1, keepdim=True))
            imitated.append(config.alpha * right * right.numel() / right.sum().clamp(min=1) / length)
            at += right.numel()
        device = run.model.device
        self.weight = torch.cat([weight.flatten() for weight in weights]).to(device)[:, None]
        self.imitated = torch.cat([share.flatten() for share in imitated]).to(device)[:, None]
        width = max(self.lengths)

        def padded(rows: Tensor) -> Tensor:
            logp = self.logp(run.model, rows)
            return nn.functional.pad(logp, (0, width - logp.shape[1]))

        self.old = run.values(padded, len(self))

    def __len__(self) -> int:
        return len(self.texts)

    def logp(self, model: Any, rows: Tensor) -> Tensor:
        """log π of each rollout's tokens, one call's after the other's, [rows, longest], 0 in the padding."""
        chosen, device = rows.tolist(), model.device
        calls = [[torch.as_tensor(part, device=device) for part in text] for i in chosen for text in self.texts[i]]
        logp, mask = response_logp(model, *zip(*calls))
        return nn.utils.rnn.pad_sequence(logp[mask].split([self.lengths[i] for i in chosen]), batch_first=True)

    def __call__(self, policy: Any, rows: Tensor) -> Tensor:
        logp = self.logp(policy, rows)
        rows = rows.to(logp.device)
        ratio = (logp.detach() - self.old[rows, : logp.shape[1]]).exp()  # sg: nothing but log π has a gradient
        clipped = ratio.clamp(1 - self.config.low, 1 + self.config.high)
        return -((clipped * self.weight[rows] + self.imitated[rows]) * logp).sum()
