"""Multiple-try Metropolis for p^α: K new endings from one cut, of which one may be kept.

A step of a chain on π ∝ p^α (`reference/power_sampling.py`) cuts the record x at r ~ c_x and draws K independent
endings y_1, ..., y_K from the proposal distribution q(·|x_<r) (2606.09926, EGPS: "independent multiple-try"). With the
weights

    w_j = π(y_j) c_{y_j}(r) q(x) / (π(x) c_x(r) q(y_j)),   W = Σ_j w_j

it picks J with probability w_J / W and moves to y_J with probability min(1, W / (W − w_J + 1)).

Why that is exact. Write v(y) = π(y) c_y(r) / q(y_≥r|x_<r), so w_j = v(y_j)/v(x), and S for the sum of v over the K − 1
tries that are not picked: its distribution depends on x_<r alone, which x and y share. For y ≠ x the K tries have equal
parts in the chance to move,

    K_r(x, y) = K q(y) E[ v(y)/(S + v(y)) · min(1, (S + v(y))/(S + v(x))) ] = K q(y) v(y) E[ 1/(S + max(v(x), v(y))) ],

and π(x) c_x(r) K_r(x, y) = K v(x) q(x) v(y) q(y) E[...] is symmetric in x and y. Summed over r: detailed balance. (The
1 stands for x, which takes the place of y_J among the tries of the move back; min(1, W) would not be symmetric.)

With K = 1 this is power sampling: the first try has the random numbers of its proposal, so the tokens are the same. A
try whose random numbers all repeat x is x, with weight 1, and is not decoded (first-divergence skip). Early reject is
off for K > 1: a try that will not be picked counts in W and in the other tries' S with its full weight.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from reference.interface import ACCEPT, CHOICE, CUT, Chance, LanguageModel
from reference.power_sampling import (
    CUTS,
    Chain,
    PowerConfig,
    PowerSamples,
    Record,
    first_difference,
    power_sampling_page,
    run_chains,
    weigh,
)
from reference.sampling import check_settings, extend


@dataclass(frozen=True)
class MultipleTryConfig(PowerConfig):
    """Settings of the chain, and the number of tries."""

    tries: int = 4  # K, endings proposed in each step; each takes a slot of its own beside the chain's

    @property
    def lanes(self) -> int:
        return self.tries

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self, least={"tries": 1})
        if self.exponents:
            name = "alpha" if self.anneal is None else "anneal"
            raise ValueError(f"{name} is {getattr(self, name)}; several tries take one finite alpha for all steps")
        if self.prefetch:
            raise ValueError(f"prefetch is {self.prefetch}; it must be 0, the lanes of a chain hold its tries")


# ---------------------------------------------------------------------------------------------------------------------
# The page: one chain. It begins, and its blocks follow each other, as in power sampling


def step(
    model: LanguageModel, prompt: Sequence[int], x: Record, config: MultipleTryConfig, horizon: int, n: int, *,
    stop_ids: Collection[int], chance: Chance,
) -> tuple[Record, int, int, bool]:  # fmt: skip
    """Step n, from record x to the next; also the cut (from 1), where a try first differed (0: nowhere), acceptance."""
    w_x, e_x = weigh(model, prompt, x, config, horizon)
    r = chance.index(len(e_x), CUT, step=n) if config.cut in CUTS[:2] else chance.weighted(e_x, CUT, step=n)
    tries, log_w = [], []
    for j in range(config.tries):
        own = chance.child("try", j) if j > 0 else chance
        y = extend(model, prompt, x[:r], horizon, config.temperature, step=n, stop_ids=stop_ids, chance=own)
        w_y, e_y = weigh(model, prompt, y, config, horizon)
        tries.append(y)
        log_w.append(sum(w_y[r:]) - sum(w_x[r:]) + math.log(sum(e_x) / sum(e_y)))
    weights = torch.tensor([log_w], dtype=torch.float64)
    pick = chance.weighted(weights[0].softmax(0), CHOICE, step=n)  # w_J / W
    accepted = chance.happens(float(log_ratio(weights, torch.tensor([[pick]]))), ACCEPT, step=n)
    differs = [t for y in tries if (t := first_difference(x, y))]
    return tries[pick] if accepted else x, r + 1, min(differs, default=0), accepted


def multiple_try_page(
    model: LanguageModel, prompt: Sequence[int], config: MultipleTryConfig, *, stop_ids: Collection[int], chance: Chance
) -> Chain:
    """A chain whose every step has K tries."""
    return power_sampling_page(model, prompt, config, stop_ids=stop_ids, chance=chance, transition=step)


def log_ratio(log_w: Tensor, pick: Tensor) -> Tensor:
    """log W − log(W − w_J + 1), float64 [n], of log-weights [n, K] and picks J [n, 1]."""
    return log_w.logsumexp(1) - log_w.scatter(1, pick, 0.0).logsumexp(1)


# ---------------------------------------------------------------------------------------------------------------------
# Many chains at a time


@torch.no_grad()
def multiple_try(
    model: LanguageModel,
    prompts: Sequence[Sequence[int] | Tensor],
    config: MultipleTryConfig | None = None,
    *,
    stop_ids: Iterable[int],
    samples_per_prompt: int = 1,
    slots: int | None = None,
    seed: int = 0,
    keys: Sequence[int | str] | None = None,
) -> PowerSamples:
    """`samples_per_prompt` independent chains for each prompt, `slots` of them at a time (None: as many as fit).

    ValueError: a setting out of range, and what `generate` refuses.
    """
    from reference.engine.tries import Tries

    config = config or MultipleTryConfig()
    config = replace(config, early_reject=config.early_reject and config.tries == 1)  # W needs every try's full weight

    return run_chains(
        partial(Tries, log_ratio=log_ratio), model, prompts, config, "multiple try",
        stop_ids=stop_ids, samples_per_prompt=samples_per_prompt, slots=slots, seed=seed, keys=keys,
    )  # fmt: skip
