"""RLHF-Sharpening: regression to differences of reward, offline (DPO) and with optimistic exploration (XPO).

    J_β(π) = E_{x~μ} [ E_π r(x, y) − β KL(π(·|x) ‖ π_base(·|x)) ],  r = log π_base:  maximal at π*_β ∝ π_base^(1+1/β)

π*_β satisfies β log π/π_base(y|x) − β log π/π_base(y'|x) = r(x, y) − r(x, y') for all y, y'. With Δ_π(x, y, y') the
left side less the right:

    DPO   π̂ = arg min_π Σ Δ_π(x, y, y')²,                       y, y' ~ π_base                            (Eq. 4 and 8)
    XPO   π^(1) = π_base;  in round t: x ~ μ, y ~ π^(t), y' ~ π_base, D = D ∪ {(x, y, y')},
          π^(t+1) = arg min_π  α Σ_D log π(y'|x) + Σ_D Δ_π(x, y, y')²                                     (Algorithm 1)

(2412.01951, §3.2, §4.2, §4.3, App. J.) Rewards are not compared but regressed on: no "chosen" and "rejected", and no
noise, so the sum of squares is 0 at π*_β. The bonus moves mass off what the base says anyway: where the data leave a
choice, π^(t+1) is the policy that could be best, and the next draw finds out. The data accumulate, and y' is always
drawn from the base.

loss="logistic" has, in place of Δ², what the preferences of a judge would cost who prefers y with probability σ(r − r')
(2405.21046): the KL of these from σ(Δ + r − r'), 0 at π*_β too. Preferences without chance, the likelier response
always chosen, have no such π: they push Δ to infinity.

Deviations. The paper prints a minus before XPO's sum of squares, which would seek large errors; its own proof has the
plus above (claim T18 runs both). Its α is off by (R_max + V_max)² between algorithm and proof, and its value there
is a worst case: here α is a free parameter, small against the squares that tell policies apart, and above rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from reference.randomness import CHOICE, child_seed, uniform
from reference.sampling import Cost, LanguageModel, check_settings, generate
from reference.self_reward import log_probability
from reference.sft_sharpening import (
    Loss,
    Prompts,
    Responses,
    Reward,
    call,
    default_minimise,
    log_likelihood,
    score_responses,
)

LOSSES = ("regression", "logistic")


@dataclass(frozen=True)
class RLHFConfig:
    """Settings of both algorithms. The paper gives β as γ_margin / (2 log(2|Y|/δ)) and ran no experiments."""

    beta: float = 0.1  # β, weight of KL(π‖π_base) against the reward: the target is π_base^(1+1/β)
    alpha: float = 1e-6  # α, weight of XPO's bonus; DPO ignores it
    rounds: int = 100  # T of XPO
    prompts: int = 1  # per round of XPO (the paper's 1)
    pairs: int = 1  # per prompt (XPO: in each round; the paper's 1)
    max_new_tokens: int = 512  # the horizon
    loss: str = "regression"  # Δ²; or "logistic": the cost of preferences that are drawn by the rewards' difference

    @property
    def how(self) -> tuple[str, ...]:
        """What the losses are told besides numbers."""
        return () if self.loss == "regression" else (self.loss,)

    def __post_init__(self) -> None:
        """ValueError: a setting out of range."""
        least = {"alpha": 0, "rounds": 1, "prompts": 1, "pairs": 1, "max_new_tokens": 1}
        check_settings(self, positive=("beta",), least=least, among={"loss": LOSSES})


# ---------------------------------------------------------------------------------------------------------------------
# The losses


def residual(logp: Tensor, logp_other: Tensor, first: Responses, second: Responses, beta: float) -> Tensor:
    """Δ_π(x, y, y'), float64 [n], of pairs (first: y, second: y') whose log π are given.

    +∞ where π or the base finds one of the two impossible: such a policy fits no reward, and loses."""
    difference = beta * ((logp - first.base) - (logp_other - second.base)) - (first.reward - second.reward)
    impossible = torch.stack((logp, logp_other, first.base, second.base)).isneginf().any(0)
    return torch.where(impossible, torch.inf, difference)


def misfit(difference: Tensor, first: Responses, second: Responses, loss: str) -> Tensor:
    """Σ Δ²; or Σ KL(σ(r − r') ‖ σ(Δ + r − r')) of a preference for y, of Δ float64 [n]."""
    if loss == "regression":
        return difference.square().sum()
    gap = first.reward - second.reward
    cost = torch.zeros_like(gap)
    for sign in (1, -1):  # y is preferred; y' is
        cost = cost + (sign * gap).sigmoid() * (logsigmoid(sign * gap) - logsigmoid(sign * (gap + difference)))
    return torch.where(difference.isinf(), torch.inf, cost).sum()


def dpo_loss(
    policy: Callable[..., Tensor], first: Responses, second: Responses, beta: float, loss: str = "regression"
) -> Tensor:
    """Σ Δ_π(x, y, y')²."""
    logp, logp_other = log_likelihood(policy, first), log_likelihood(policy, second)
    return misfit(residual(logp, logp_other, first, second, beta), first, second, loss)


def xpo_loss(
    policy: Callable[..., Tensor], first: Responses, second: Responses, beta: float, alpha: float,
    loss: str = "regression",
) -> Tensor:  # fmt: skip
    """α Σ log π(y'|x) + Σ Δ_π(x, y, y')²: less mass on the base's responses, among policies that fit the rewards."""
    logp, logp_other = log_likelihood(policy, first), log_likelihood(policy, second)
    bonus = torch.where(logp_other > -torch.inf, logp_other, 0.0)  # of what is impossible Δ is infinite already
    return alpha * bonus.sum() + misfit(residual(logp, logp_other, first, second, beta), first, second, loss)


# ---------------------------------------------------------------------------------------------------------------------
# Offline


@dataclass(frozen=True)
class Trained:
    """What offline training gives."""

    policy: Any  # π̂, a LanguageModel
    pairs: tuple[Responses, Responses]  # y and y'
    cost: Cost  # of drawing and scoring, not of minimising


def dpo_sharpen(
    base: LanguageModel,
    policy_class: Any,
    prompts: Prompts,
    config: RLHFConfig,
    *,
    stop_ids: Iterable[int],
    minimise: Callable[[Loss, Any], Any] | None = None,
    reward: Reward = log_probability,
    sample: Callable[..., Any] = call,
    seed: int = 0,
    **settings,
) -> Trained:
    """Regression on `config.pairs` pairs of base responses to each prompt (drawn from μ by the caller).

    minimise, policy_class, reward, sample, settings: as for `sft_sharpen`."""
    drawn = sample(
        generate, base, prompts, samples_per_prompt=2 * config.pairs, max_new_tokens=config.max_new_tokens,
        stop_ids=stop_ids, seed=seed, **settings,
    )  # fmt: skip
    scored = score_responses(base, prompts, drawn.samples, reward)
    first, second = scored[0::2], scored[1::2]
    settings = {"beta": config.beta, **dict.fromkeys(config.how, 1.0)}
    loss = Loss(
        lambda policy, y, other: dpo_loss(policy, y, other, config.beta, *config.how), (first, second), settings
    )
    minimise = minimise or default_minimise(policy_class, seed)
    return Trained(minimise(loss, policy_class), (first, second), drawn.cost + scored.cost)


# ---------------------------------------------------------------------------------------------------------------------
# Online


@dataclass(frozen=True)
class Explored:
    """The iterates of XPO and which of them to use."""

    policies: list[Any]  # π^(1) = the base, ..., π^(T+1)
    objective: Tensor  # float64 [T + 1]: J_β of each, exact or estimated
    pairs: tuple[Responses, Responses]  # y and y' of all rounds
    cost: Cost  # of drawing and scoring, neither of minimising nor of the estimates of J_β

    @property
    def best(self) -> Any:
        """The iterate of greatest J_β, which the theorem speaks of; the first of equal ones."""
        return self.policies[int(self.objective.argmax())]

    @property
    def last(self) -> Any:
        return self.policies[-1]


def xpo_rounds(
    base: LanguageModel,
    policy_class: Any,
    prompts: Prompts,
    config: RLHFConfig,
    *,
    stop_ids: Iterable[int],
    minimise: Callable[[Loss, Any], Any] | None = None,
    reward: Reward = log_probability,
    sample: Callable[..., Any] = call,
    seed: int = 0,
    **settings,
) -> Iterator[tuple[Any, tuple[Responses, Responses], Cost]]:
    """Algorithm 1, a round at a time: (π^(t+1), all pairs so far, the round's cost) for t = 1..T. Stop when you like.

    prompts: μ is uniform on them. minimise, policy_class, reward, sample, settings: as for `sft_sharpen`."""
    minimise = minimise or default_minimise(policy_class, seed)
    stop_ids, policy, data = list(stop_ids), base, None
    draws = torch.arange(config.rounds * config.prompts)
    u = uniform(child_seed(seed, "prompts"), draws, torch.tensor([0]), 0, 0, CHOICE)
    asked = [prompts[i] for i in (u * len(prompts)).long().tolist()]  # x^(1), ..., x^(T), `config.prompts` each

    def draw(model: LanguageModel, texts: Prompts, seed: int):
        drawn = sample(
            generate, model, texts, samples_per_prompt=config.pairs, max_new_tokens=config.max_new_tokens,
            stop_ids=stop_ids, seed=seed, **settings,
        )  # fmt: skip
        return score_responses(base, texts, drawn.samples, reward), drawn.costs

    from_base, base_costs = draw(base, asked, child_seed(seed, "base"))  # y' depends on nothing: drawn at once
    for t in range(config.rounds):
        own = slice(t * config.prompts, (t + 1) * config.prompts)
        first, costs = draw(policy, asked[own], child_seed(seed, "policy", t))
        second = from_base[own.start * config.pairs : own.stop * config.pairs]
        data = (first, second) if data is None else (data[0] + first, data[1] + second)
        told = {"alpha": config.alpha, "beta": config.beta, **dict.fromkeys(config.how, 1.0)}
        loss = Loss(
            lambda policy, y, other: xpo_loss(policy, y, other, config.beta, config.alpha, *config.how), data, told
        )
        policy = minimise(loss, policy_class)
        yield policy, data, Cost.parallel([*costs, *base_costs[own]]) + first.cost + second.cost


def xpo(
    base: LanguageModel,
    policy_class: Any,
    prompts: Prompts,
    config: RLHFConfig,
    *,
    stop_ids: Iterable[int],
    objective: Callable[[Any], float] | None = None,
    reward: Reward = log_probability,
    seed: int = 0,
    **settings,
) -> Explored:
    """All T rounds, and J_β of every iterate: `objective(policy)`, or its estimate from 64 draws for each prompt.

    settings: as for `xpo_rounds`."""
    stop_ids = list(stop_ids)
    rounds = list(
        xpo_rounds(base, policy_class, prompts, config, stop_ids=stop_ids, reward=reward, seed=seed, **settings)
    )
    policies = [base, *(policy for policy, _, _ in rounds)]
    if objective is None:
        validation = child_seed(seed, "validation")

        def objective(policy: Any) -> float:
            return estimate_objective(
                base, policy, prompts, config.beta, samples_per_prompt=64, max_new_tokens=config.max_new_tokens,
                stop_ids=stop_ids, reward=reward, seed=validation,
            )  # fmt: skip

    values = torch.tensor([objective(policy) for policy in policies], dtype=torch.float64)
    return Explored(policies, values, rounds[-1][1], sum((cost for _, _, cost in rounds), Cost()))


@torch.no_grad()
def estimate_objective(
    base: LanguageModel, policy: LanguageModel, prompts: Prompts, beta: float, *, reward: Reward, **settings
) -> float:
    """J_β(π) = E_π [r − β log π/π_base] by draws of π; settings: as for `generate`."""
    data = score_responses(base, prompts, generate(policy, prompts, **settings).samples, reward)
    return float((data.reward - beta * (log_likelihood(policy, data) - data.base)).mean())
