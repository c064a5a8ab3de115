"""Particles as slots of the one decoding loop: how the clouds of `reference/power_smc.py` grow.

N neighbouring slots are a cloud. After each token a cloud's particles are weighed, W ← W ω_t, and if its effective
sample size is too small they are drawn anew: a particle that takes another's place takes its text, its sums and its
cache row. A cloud ends with its last particle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reference.engine.decoder import Decoder
from reference.engine.requests import Requests
from reference.interface import LanguageModel, log_law
from reference.randomness import RESAMPLE, uniform

if TYPE_CHECKING:
    from reference.power_smc import SMCConfig


class Clouds(Decoder):
    """A decoder with N neighbouring slots for each cloud, one for each particle."""

    per_slot = (*Decoder.per_slot, "request", "key", "sample", "time", "total", "log_weight")

    def __init__(
        self, model: LanguageModel, prompts: Sequence[Tensor], slots: int, config: SMCConfig, clouds: int,
        stop_ids: Iterable[int], seed: int, *, log_mean: Callable[[Tensor], Tensor],
    ):  # fmt: skip
        temperature = config.proposal_temperature or 1 / config.alpha
        super().__init__(
            model, prompts, slots, config.max_new_tokens, stop_ids=stop_ids, temperature=temperature, seed=seed
        )
        self.config, self.group, self.log_mean, device = config, config.particles, log_mean, model.device
        self.request, self.key, self.sample, self.time = torch.zeros((4, slots), dtype=torch.int64, device=device)
        self.total, self.log_weight = torch.zeros((2, slots), dtype=torch.float64, device=device)  # log p, log W
        self.exponents = torch.tensor(config.exponents(), dtype=torch.float64, device=device)
        self.log_weights = self.total.new_zeros((clouds, self.group))
        self.log_normalizer, self.ess = (
            self.total.new_zeros(clouds),
            self.total.new_zeros((clouds, config.max_new_tokens)),
        )
        self.resampled = torch.zeros_like(self.ess, dtype=torch.bool)

    def load(self, slots: Tensor, requests: Requests) -> None:
        """Begin clouds: requests i · N + j are the particles j of cloud i, each with random numbers of its own."""
        super().load(slots, requests)
        particle = requests.sample % self.group
        self.request[slots], self.key[slots] = requests.index, requests.key
        self.sample[slots] = requests.sample // self.group
        self.uniforms[slots] = self.numbers(requests.key, self.sample[slots], particle)
        self.time[slots], self.total[slots], self.log_weight[slots] = 0, 0.0, 0.0

    def proposal_law(self, logits: Tensor, logp: Tensor) -> Tensor:
        if self.config.ramp and self.config.proposal_temperature is None:
            return log_law(logits, 1 / self.exponents[(self.time + 1).clamp(max=self.config.max_new_tokens)])
        return super().proposal_law(logits, logp)

    def advance(self) -> Tensor:
        """One token for every particle that has not ended; bool [S]: the clouds that have just ended."""
        at, grows = self.length[:, None].clone(), self.active.clone()
        going = grows.view(-1, self.group).any(1)  # [clouds]
        super().advance()
        self.weigh(at, grows, going.repeat_interleave(self.group))
        share = self.log_weight.view(-1, self.group).softmax(1)
        ess = 1 / (share**2).sum(1)
        cloud, last = self.request[:: self.group] // self.group, self.time[:: self.group] - 1
        self.ess[cloud[going], last[going]] = ess[going]
        poor = self.active.view(-1, self.group).any(1) & (ess < self.config.least_ess)
        if poor.any():
            self.resampled[cloud[poor], last[poor]] = True
            self.log_normalizer[cloud[poor]] += self.log_mean(self.log_weight.view(-1, self.group)[poor])
            self.resample(poor.nonzero()[:, 0], share[poor])
        over = going & ~self.active.view(-1, self.group).any(1)
        if over.any():
            jump = (self.config.alpha - self.exponents[self.time]) * self.total
            self.log_weights[cloud[over]] = (self.log_weight + jump).view(-1, self.group)[over]
            self.log_normalizer[cloud[over]] += self.log_mean(self.log_weights[cloud[over]])
        return over.repeat_interleave(self.group)

    def weigh(self, at: Tensor, grows: Tensor, going: Tensor) -> None:
        """Multiply the weights in the clouds that go on by ω_t; the tokens of the particles that grew are at `at`."""
        logp, logq = (x.gather(1, at)[:, 0].double().masked_fill(~grows, 0) for x in (self.logp, self.logq))
        before, after = self.exponents[self.time], self.exponents[(self.time + 1).clamp(max=self.config.max_new_tokens)]
        total = self.total + logp
        self.log_weight += (after * total - before * self.total - logq).masked_fill(~going, 0)
        self.total = total
        self.time += going

    def resample(self, clouds: Tensor, share: Tensor) -> None:
        """Draw the particles of some clouds anew, in proportion to their shares [k, N] of the weight."""
        rows = clouds[:, None] * self.group + torch.arange(self.group, device=clouds.device)  # [k, N]
        particle = (rows - rows[:, :1]) * (self.config.resampling == "multinomial")
        u = uniform(self.seed, self.key[rows], self.sample[rows], particle, self.time[rows], RESAMPLE)
        if self.config.resampling == "systematic":  # one number for the whole cloud
            u = ((u + rows - rows[:, :1]) / self.group).clamp(max=1 - 2.0**-53)
        cdf = share.cumsum(1)
        ancestor = torch.searchsorted(cdf / cdf[:, -1:], u, right=True) + rows[:, :1]
        moved = ancestor != rows
        source, target = ancestor[moved], rows[moved]
        if len(source):
            for name in ("tokens", "logp", "logq", "length", "finished", "before", "active", "total"):
                tensor = getattr(self, name)
                tensor[target] = tensor[source]
            longest = int((self.start + self.length)[target].max()) - 1  # the last token is yet to be fed
            self.cache.copy_rows(source, target, length=longest)
        self.log_weight[rows] = 0.0
