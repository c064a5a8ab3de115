"""SFT-Sharpening: best-of-N, learned by maximum likelihood; one draw then does what N did (2412.01951, §3.1, App. D).

    y_i = arg max_{j≤N} r(y_ij|x_i),  y_ij ~ π_base(·|x_i),  i = 1..n;     π̂ = arg max_{π∈Π} Σ_i log π(y_i|x_i)

If Π holds the distribution of best-of-N, π̂ is (ε, δ)-sharpened once n ≈ log|Π|/(δε) and N ≈ C_cov log(1/δ)/ε: coverage
is the price (Theorem 4.1). With N chosen by the adaptive rule of `reference/best_of_n.py` ε leaves N, and m = Σ_i N_i
falls from 1/ε² to 1/ε (Theorem D.1). The text's restatement in §4.1 prints log π_base in the second sum; it is log π.

This file also holds what `reference/rlhf_sharpening.py` shares: responses with what the base says of them, a policy's
log-likelihood of them with its gradient, and how a loss is minimised over a class of policies. A policy is any
`LanguageModel` with parameters.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reference.best_of_n import BestOfN, adaptive_best_of_n, best_of_n
from reference.randomness import CHOICE, uniform
from reference.sampling import Cost, LanguageModel, Samples, check_settings
from reference.self_reward import log_probability
from reference.training.loop import token_logp

Prompts = Sequence[Sequence[int] | Tensor]
Reward = Callable[[Samples], Tensor]  # Samples, `logp` being the base's -> float64 [prompts, n]


# ---------------------------------------------------------------------------------------------------------------------
# Data


@dataclass(frozen=True)
class Responses:
    """n texts, prompt and response, and what the base says of the response."""

    tokens: Tensor  # int64 [n, width], padded on the right
    start: Tensor  # int64 [n]: where the response begins,
    end: Tensor  # int64 [n]: and where it has ended
    base: Tensor  # float64 [n]: log π_base(y|x)
    reward: Tensor  # float64 [n]: r(y|x)

    @property
    def cost(self) -> Cost:
        """Of having the base score them: one pass over the texts."""
        return Cost(prefilled_tokens=int((self.end - 1).sum()))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Any) -> Responses:
        return Responses(*(getattr(self, field.name)[rows] for field in fields(self)))

    def __add__(self, other: Responses) -> Responses:
        width = max(self.tokens.shape[1], other.tokens.shape[1])
        tokens = [nn.functional.pad(part.tokens, (0, width - part.tokens.shape[1])) for part in (self, other)]
        rest = [torch.cat((getattr(self, f.name), getattr(other, f.name))) for f in fields(self)[1:]]
        return Responses(torch.cat(tokens), *rest)


LOGITS_PER_CALL = 1 << 27  # how many logits `score_responses` computes at a time


def log_likelihood(policy: Callable[..., Tensor], data: Responses) -> Tensor:
    """log π(y|x) of each response, with gradient: float64 [n]."""
    position = torch.arange(1, data.tokens.shape[1], device=data.tokens.device)
    inside = (position >= data.start[:, None]) & (position < data.end[:, None])
    logp = token_logp(policy, data.tokens).double()
    return torch.where(inside, logp, 0.0).sum(-1)  # where: the padding may be impossible


@torch.no_grad()
def score_responses(base: LanguageModel, prompts: Prompts, samples: Samples, reward: Reward) -> Responses:
    """The responses samples[prompt][i], prompt by prompt, scored by the base: whoever drew them, r is the base's."""
    n, horizon = samples.tokens.shape[1:]
    texts = [torch.as_tensor(prompt, dtype=torch.int64, device=base.device) for prompt in prompts]
    start = torch.tensor([len(text) for text in texts], device=base.device).repeat_interleave(n)
    tokens = torch.zeros((len(start), int(start.max()) + horizon), dtype=torch.int64, device=base.device)
    for row, at in enumerate(start.tolist()):
        tokens[row, :at], tokens[row, at : at + horizon] = texts[row // n], samples.tokens[row // n, row % n]
    end = start + samples.lengths.flatten()
    columns = start[:, None] - 1 + torch.arange(horizon, device=base.device)
    rows = max(1, LOGITS_PER_CALL // (base.vocab_size * tokens.shape[1]))
    logp = torch.cat([token_logp(base, part) for part in tokens.split(rows)]).double().gather(1, columns)
    logp = logp.masked_fill(columns >= end[:, None] - 1, 0.0)
    scored = Samples(samples.tokens, logp.view(samples.tokens.shape), samples.logq, samples.lengths, samples.finished)
    return Responses(tokens, start, end, logp.sum(-1), reward(scored).flatten())


# ---------------------------------------------------------------------------------------------------------------------
# Minimising


@dataclass(frozen=True)
class Loss:
    """A sum over data, as a function of the policy; `loss(policy, rows)` is the sum over some of it."""

    term: Callable[..., Tensor]  # (policy, *data) -> the sum, with gradient
    data: tuple[Responses, ...]  # of one length each
    settings: Mapping[str, float] = field(default_factory=dict)  # what the term depends on besides, such as β

    def __call__(self, policy: Callable[..., Tensor], rows: Any = slice(None)) -> Tensor:
        return self.term(policy, *(part[rows] for part in self.data))

    def __len__(self) -> int:
        return len(self.data[0])

    @property
    def digest(self) -> str:
        """What tells this loss from another when a run is resumed: its data, and what the base says of them."""
        values = [getattr(part, each.name).cpu().numpy() for part in self.data for each in fields(part)]
        content = "".join(f"{value.shape}" for value in values).encode() + b"".join(map(np.ndarray.tobytes, values))
        return hashlib.blake2b(content, digest_size=8).hexdigest()


class FiniteClass(Sequence):
    """Policies that differ in their parameters alone, which are kept stacked: a loss is computed for all at once."""

    def __init__(self, policies: Sequence[nn.Module]):
        self.policies = list(policies)
        if not self.policies:
            raise ValueError("the class is empty; give at least one policy")
        named = [dict(policy.named_parameters()) for policy in self.policies]
        self.parameters = {name: torch.stack([part[name].detach() for part in named]) for name in named[0]}

    def __len__(self) -> int:
        return len(self.policies)

    def __getitem__(self, i):
        return self.policies[i]

    @torch.no_grad()
    def losses(self, loss: Loss) -> Tensor:
        """float64 [policies]."""

        def one(parameters):
            return loss(lambda *tokens: torch.func.functional_call(self.policies[0], parameters, tokens))

        return torch.vmap(one)(self.parameters)


@dataclass(frozen=True)
class Enumerate:
    """minimise(loss, FiniteClass): the policy of least loss, of equal ones any (ties are broken at random).

    A policy to which a response of the data is impossible has an infinite loss. ValueError: so it is with all."""

    seed: int = 0
    tie: float = 1e-12  # losses this near to the least, relative to max(1, |loss|), are equal to it

    def __call__(self, loss: Loss, policies: FiniteClass) -> nn.Module:
        losses = policies.losses(loss)
        best = losses.min()
        if not best.isfinite():
            raise ValueError(
                f"the least loss of {len(policies)} policies is {float(best)}: each finds one of the responses "
                "impossible; give a class that holds a policy without probabilities of 0"
            )
        ties = (losses <= best + self.tie * best.abs().clamp(min=1)).nonzero()[:, 0]
        u = uniform(self.seed, torch.tensor([len(loss)]), torch.tensor([0]), 0, 0, CHOICE)
        return policies[int(ties[int(u * len(ties))])]


@dataclass(frozen=True)
class Descend:
    """minimise(loss, policies): L-BFGS on the whole loss from each of the given policies, and the best end of them.

    For small models; the policies given are starting points and stay as they are. (Transformers: `Batches` of
    `reference/training/loop.py`.)"""

    steps: int = 100
    tolerance: float = 1e-6  # of the gradient of the mean loss

    def __call__(self, loss: Loss, policies: Sequence[nn.Module]) -> nn.Module:
        ends = [self.descend(loss, copy.deepcopy(start)) for start in policies]
        return min(ends, key=lambda end: end[0])[1]

    def descend(self, loss: Loss, policy: nn.Module) -> tuple[float, nn.Module]:
        for parameter in policy.parameters():
            parameter.requires_grad_(True)
        optimizer = torch.optim.LBFGS(
            policy.parameters(), max_iter=self.steps, tolerance_grad=self.tolerance,
            tolerance_change=self.tolerance / 1000, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss(policy) / len(loss)
            value.backward()
            return value

        optimizer.step(closure)
        with torch.no_grad():
            return float(loss(policy)), policy.requires_grad_(False)


# ---------------------------------------------------------------------------------------------------------------------
# The algorithm


@dataclass(frozen=True)
class SFTConfig:
    """Settings, with the values of the paper's experiments as defaults."""

    n: int = 50  # N, draws per prompt; with mu the most that the adaptive rule may take
    mu: float | None = None  # None: N draws for every prompt; else the adaptive rule's constant, ln(2/δ) in Theorem D.1
    max_new_tokens: int = 512  # the horizon

    def __post_init__(self) -> None:
        """ValueError: a setting out of range."""
        check_settings(self, positive=("mu",), least={"n": 1, "max_new_tokens": 1})


@dataclass(frozen=True)
class Sharpened:
    """What training gives."""

    policy: Any  # π̂, a LanguageModel
    chosen: BestOfN  # the responses it was fitted to; `chosen.draws` are the N_i
    cost: Cost  # of drawing and scoring, not of minimising


def sft_loss(policy: Callable[..., Tensor], chosen: Responses) -> Tensor:
    """−Σ_i log π(y_i|x_i)."""
    return -log_likelihood(policy, chosen).sum()


def call(sampler: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """Draw in this process alone."""
    return sampler(*args, **settings)


def sft_sharpen(
    base: LanguageModel,
    policy_class: Any,
    prompts: Prompts,
    config: SFTConfig,
    *,
    stop_ids: Iterable[int],
    minimise: Callable[[Loss, Any], Any] | None = None,
    reward: Reward = log_probability,
    sample: Callable[..., Any] = call,
    seed: int = 0,
    **settings,
) -> Sharpened:
    """Fit a policy of the class to the best of N responses to each prompt (drawn from μ by the caller; may repeat).

    minimise(loss, policy_class): `Enumerate` for a `FiniteClass`, `Descend` for starting points (None: whichever
    fits), `reference.training.loop.Batches` for a transformer, which itself is then the policy class. sample(sampler,
    base, prompts, ...): how responses are drawn; `reference.training.distributed.sample` shares the prompts among
    processes. settings: as for `generate`, whose errors it raises.
    """
    if config.mu is not None and reward is not log_probability:
        raise ValueError(f"mu is {config.mu}: the adaptive rule scores by log_probability; drop mu or the reward")
    minimise = minimise or default_minimise(policy_class, seed)
    common = dict(max_new_tokens=config.max_new_tokens, stop_ids=stop_ids, seed=seed, **settings)
    if config.mu is None:
        chosen = sample(best_of_n, base, prompts, n=config.n, reward=reward, **common)
    else:
        chosen = sample(adaptive_best_of_n, base, prompts, mu=config.mu, max_draws=config.n, **common)
    data = score_responses(base, prompts, chosen.samples, reward)
    return Sharpened(minimise(Loss(sft_loss, (data,)), policy_class), chosen, chosen.cost + data.cost)


def default_minimise(policy_class: Any, seed: int) -> Callable[[Loss, Any], Any]:
    return Enumerate(seed) if isinstance(policy_class, FiniteClass) else Descend()
