"""Power self-distillation: learn to say at once what a chain finds, by maximum likelihood (2605.04542).

    y_ij ~ p^α(·|x_i)/Z(x_i),  j = 1..n;        π̂ = arg max_{π∈Π} Σ_ij log π(y_ij|x_i)

What is minimised is −E_{p^α} log π = H(p^α) + KL(p^α ‖ π): if Π holds p^α, the minimiser is p^α and nothing else, and
one response then has the distribution that a chain of many steps had. Best-of-N's SFT (`sft_sharpening.py`) learns the
distribution of best-of-N instead, which tends to the arg max as N grows. Accuracy moves with the covariance of what is
right and of log p under p^α. The chains are power sampling's (`power_sampling.py`); what they have not reached after
their steps is not learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from reference.interface import Cost
from reference.power_sampling import PowerConfig, PowerSamples, power_sample
from reference.sampling import LanguageModel, check_settings
from reference.self_reward import log_probability
from reference.sft_sharpening import Loss, Prompts, call, default_minimise, score_responses, sft_loss


@dataclass(frozen=True)
class PowerDistillationConfig:
    """Settings."""

    n: int = 4  # responses to learn from, for each prompt: the ends of as many chains
    power: PowerConfig = field(default_factory=PowerConfig)

    def __post_init__(self) -> None:
        """ValueError: a setting out of range."""
        check_settings(self, least={"n": 1})


@dataclass(frozen=True)
class PowerDistilled:
    """What training gives."""

    policy: Any  # π̂, a LanguageModel
    drawn: PowerSamples  # what it was fitted to
    cost: Cost  # of drawing and scoring, not of minimising


def power_distill(
    base: LanguageModel, policy_class: Any, prompts: Prompts, config: PowerDistillationConfig, *,
    stop_ids: Iterable[int], minimise: Callable[[Loss, Any], Any] | None = None, sample: Callable[..., Any] = call,
    seed: int = 0, **settings: Any,
) -> PowerDistilled:  # fmt: skip
    """Fit a policy of the class to n draws from the base's p^α to each prompt.

    minimise, policy_class, sample: as of `sft_sharpen`. settings: keys and slots. ValueError: as from `power_sample`.
    """
    minimise = minimise or default_minimise(policy_class, seed)
    drawn = sample(power_sample, base, prompts, config.power, stop_ids=stop_ids, samples_per_prompt=config.n,
                   seed=seed, **settings)  # fmt: skip
    data = score_responses(base, prompts, drawn.samples, log_probability)
    return PowerDistilled(minimise(Loss(sft_loss, (data,)), policy_class), drawn, drawn.cost + data.cost)
