"""Multiple-try Metropolis for p^α: K new endings from one cut, decoded side by side, of which one may be kept.

A step of a chain on π ∝ p^α (`reference/power_sampling.py`) cuts the record x at r ~ c_x and draws K independent
endings y_1, ..., y_K from the proposal law q(·|x_<r) (2606.09926, EGPS: "independent multiple-try"). With the weights

    w_j = π(y_j) c_{y_j}(r) q(x) / (π(x) c_x(r) q(y_j)),   W = Σ_j w_j

it picks J with probability w_J / W and moves to y_J with probability min(1, W / (W − w_J + 1)).

Why that is exact. Write v(y) = π(y) c_y(r) / q(y_≥r|x_<r), so w_j = v(y_j)/v(x), and S for the sum of v over the K − 1
tries that are not picked: its law depends on x_<r alone, which x and y share. For y ≠ x the K tries have equal parts in
the chance to move,

    K_r(x, y) = K q(y) E[ v(y)/(S + v(y)) · min(1, (S + v(y))/(S + v(x))) ] = K q(y) v(y) E[ 1/(S + max(v(x), v(y))) ],

and π(x) c_x(r) K_r(x, y) = K v(x) q(x) v(y) q(y) E[...] is symmetric in x and y. Summed over r: detailed balance. (The
1 stands for x, which takes the place of y_J among the tries of the move back; min(1, W) would not be symmetric.)

With K = 1 this is power sampling: the first try has the random numbers of its proposal, so the tokens are the same. A
try whose random numbers all repeat x is x, with weight 1, and is not decoded (first-divergence skip). Early reject is
off for K > 1: a try that will not be picked counts in W and in the other tries' S with its full weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reference.lanes import IDLE, Lanes
from reference.power_sampling import PowerConfig, PowerSamples, run
from reference.randomness import CHOICE, child_seed, int64, uniform
from reference.sampling import LanguageModel, Requests, inverse_cdf


@dataclass(frozen=True)
class MultipleTryConfig(PowerConfig):
    """Settings of the chain, and the number of tries."""

    tries: int = 4  # K, endings proposed in each step; each takes a slot of its own beside the chain's

    @property
    def lanes(self) -> int:
        return self.tries

    def check(self) -> None:
        super().check()
        if self.tries < 1:
            raise ValueError(f"tries is {self.tries}; it must be at least 1")
        if self.prefetch:
            raise ValueError(f"prefetch is {self.prefetch}; it must be 0, the lanes of a chain hold its tries")


WAITS = 5  # steps are decided when this share of the chains waits


class Tries(Lanes):
    """Chains with K lanes each, on the tries of one step."""

    config: MultipleTryConfig

    def __init__(
        self, model: LanguageModel, prompts: Sequence[Tensor], slots: int, config: MultipleTryConfig,
        requests: Requests, stop_ids: Iterable[int], seed: int,
    ):  # fmt: skip
        super().__init__(model, prompts, slots, config, requests, stop_ids, seed)
        seeds = [seed] + [child_seed(seed, "try", j) for j in range(1, config.tries)]
        self.seeds = torch.tensor([int64(each) for each in seeds], device=model.device)

    def weighed(self, config: PowerConfig) -> PowerConfig:
        return replace(config, early_reject=config.early_reject and config.lanes == 1)

    def decide(self, ended: Tensor) -> Tensor:
        tried = self.lane_step < IDLE
        chains = (ended.any(1) & (ended | ~tried).all(1)).nonzero()[:, 0]
        if len(chains) < len(tried) // WAITS and self.lanes.active.any():
            return chains[:0]  # a few chains that wait cost less than bookkeeping for each
        tried, rows, step = tried[chains], self.rows(chains), self.step[chains]
        self.lanes.values(rows[tried])  # are numbers
        own = self.value()[chains]
        extends = self.threshold[chains] == -math.inf
        repeats = torch.where(extends, -math.inf, 0.0)  # log w of x itself; an extension has but one try
        log_w = torch.where(tried, self.lanes.value()[rows] - own[:, None], repeats[:, None])  # [n, K]

        u = uniform(self.seed, self.key[chains], self.sample[chains], step, 0, CHOICE)
        pick = inverse_cdf(log_w.log_softmax(1), u)[0][:, None]
        accepted = own + log_ratio(log_w, pick) > self.threshold[chains]
        self.accepted[self.request[chains], step] = accepted
        moved = accepted & tried.gather(1, pick)[:, 0]
        self.take(chains[moved], rows.gather(1, pick)[moved, 0])
        self.free(rows.flatten())
        return chains

    def propose(self, slots: Tensor) -> Tensor:
        """Take chains to the next step of which a try decodes anything; returns those that have no step left."""
        over, steps = self.find(slots, torch.ones_like(slots))
        self.threshold[steps.slot] = steps.threshold
        i, j = steps.decodes.nonzero(as_tuple=True)
        self.begin(
            self.rows(steps.slot)[i, j], steps.slot[i], steps.step[i], steps.horizon[i], steps.threshold[i],
            steps.first[i, j], steps.uniforms[i, j],
        )  # fmt: skip
        return over


def log_ratio(log_w: Tensor, pick: Tensor) -> Tensor:
    """log W − log(W − w_J + 1), float64 [n], of log-weights [n, K] and picks J [n, 1]."""
    return log_w.logsumexp(1) - log_w.scatter(1, pick, 0.0).logsumexp(1)


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
    config = config or MultipleTryConfig()
    return run(Tries, model, prompts, config, stop_ids, samples_per_prompt, slots, seed, keys, "multiple try")
