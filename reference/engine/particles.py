"""Clouds of particles: the machine of `reference/power_smc.py`.

N neighbouring slots are a cloud. After each token a cloud's particles are weighed, W ← W ω_t, and if its effective
sample size is too small they are drawn anew: a particle that takes another's place takes its text, its sums and its
cache row. A cloud ends with its last particle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reference.engine.decoder import Decoder, Distribution
from reference.engine.records import Table
from reference.engine.requests import Plan, Requests
from reference.interface import Samples
from reference.randomness import RESAMPLE, uniform


@dataclass
class Particles(Table):
    """What is known of each particle, [S]."""

    request: Tensor  # int64
    key: Tensor  # int64
    sample: Tensor  # int64: of the cloud
    time: Tensor  # int64: tokens by which the cloud has grown
    total: Tensor  # float64: log p
    log_weight: Tensor  # float64: log W


@dataclass
class History(Table):
    """How clouds went."""

    log_weights: Tensor  # float64 [clouds, N]: log W in the end
    log_normalizer: Tensor  # float64 [clouds]: log Ẑ
    ess: Tensor  # float64 [clouds, H]: before resampling; 0 after the end
    resampled: Tensor  # bool [clouds, H]


class Clouds:
    """Machine of clouds."""

    def __init__(
        self, plan: Plan, particles: int, exponents: list[float], least_ess: float,
        points: Callable[[Tensor], Tensor], chop: Callable[[Tensor], tuple[Tensor, Tensor]] | None,
        log_mean: Callable[[Tensor], Tensor], distribution: Distribution | None,
        by_exponent: Callable[[Tensor, Tensor], Tensor],
    ) -> None:  # fmt: skip
        """exponents: α_0 .. α_H. points(u [.., N]) -> where the ancestors' cumulative weights are looked up. chop: of
        shares [.., N] the weights by which ancestors are drawn, and what the children of each share; None: the shares,
        and all get the same. The proposal is `distribution`; None: `by_exponent(logits, α_t [S])`."""
        self.group, self.least_ess, self.points, self.log_mean = particles, least_ess, points, log_mean
        self.chop = chop
        self.horizon, device = plan.horizon, plan.model.device
        self.decoder = Decoder(plan, distribution or (lambda logits, logp: by_exponent(logits, self.exponent(1))))
        self.prompts = self.decoder.prompts
        integers = torch.zeros((4, plan.slots), dtype=torch.int64, device=device)
        self.slots = Particles(*integers, *torch.zeros((2, plan.slots), dtype=torch.float64, device=device))
        self.exponents = torch.tensor(exponents, dtype=torch.float64, device=device)
        clouds = len(plan.requests) // particles
        ess = self.exponents.new_zeros((clouds, plan.horizon))
        self.history = History(
            ess.new_zeros((clouds, particles)), ess.new_zeros(clouds), ess, torch.zeros_like(ess).bool()
        )

    def exponent(self, ahead: int = 0) -> Tensor:
        """α of each particle's text, or of the text that is longer by a token."""
        return self.exponents[(self.slots.time + ahead).clamp(max=self.horizon)]

    def load(self, slots: Tensor, requests: Requests) -> None:
        """Begin clouds: requests i · N + j are the particles j of cloud i, each with random numbers of its own."""
        sample, particle = requests.sample // self.group, requests.sample % self.group
        self.decoder.load(slots, replace(requests, sample=sample), step=particle)
        nothing = torch.zeros_like(slots)
        self.slots.put(slots, Particles(requests.index, requests.key, sample, nothing, *2 * [nothing.double()]))

    def advance(self) -> Tensor:
        """One token for every particle that has not ended; bool [S]: the clouds that have just ended."""
        now, done = self.slots, self.history
        at, grows = self.decoder.texts.length[:, None].clone(), self.running().clone()
        going = self.growing(grows)
        self.decoder.advance()
        self.weigh(at, grows, going.repeat_interleave(self.group))
        share = now.log_weight.view(-1, self.group).softmax(1)
        ess = 1 / (share**2).sum(1)
        cloud, last = now.request[:: self.group] // self.group, now.time[:: self.group] - 1
        done.ess[cloud[going], last[going]] = ess[going]
        poor = self.growing(self.running()) & (ess < self.least_ess)
        if poor.any():
            done.resampled[cloud[poor], last[poor]] = True
            done.log_normalizer[cloud[poor]] += self.log_mean(now.log_weight.view(-1, self.group)[poor])
            self.resample(poor.nonzero()[:, 0], share[poor])
        over = going & ~self.growing(self.running())  # all that were drawn anew may have ended, too
        if over.any():
            jump = (self.exponents[-1] - self.exponent()) * now.total
            done.log_weights[cloud[over]] = (now.log_weight + jump).view(-1, self.group)[over]
            done.log_normalizer[cloud[over]] += self.log_mean(done.log_weights[cloud[over]])
        return over.repeat_interleave(self.group)

    def growing(self, active: Tensor) -> Tensor:
        """bool [clouds]: a particle is."""
        return active.view(-1, self.group).any(1)

    def weigh(self, at: Tensor, grows: Tensor, going: Tensor) -> None:
        """Multiply the weights in the clouds that go on by ω_t; the tokens of the particles that grew are at `at`."""
        texts, now = self.decoder.texts, self.slots
        logp, logq = (x.gather(1, at)[:, 0].double().masked_fill(~grows, 0) for x in (texts.logp, texts.logq))
        total = now.total + logp
        now.log_weight += (self.exponent(1) * total - self.exponent() * now.total - logq).masked_fill(~going, 0)
        now.total.copy_(total)
        now.time += going

    def resample(self, clouds: Tensor, share: Tensor) -> None:
        """Draw the particles of some clouds anew, in proportion to their shares [k, N] of the weight."""
        now, decoder = self.slots, self.decoder
        rows = clouds[:, None] * self.group + torch.arange(self.group, device=clouds.device)  # [k, N]
        u = uniform(decoder.seed, now.key[rows], now.sample[rows], rows - rows[:, :1], now.time[rows], RESAMPLE)
        expected, divided = self.chop(share) if self.chop else (share, None)
        cdf = expected.cumsum(1)
        ancestor = torch.searchsorted(cdf / cdf[:, -1:], self.points(u), right=True) + rows[:, :1]
        moved = ancestor != rows
        source, target = ancestor[moved], rows[moved]
        if len(source):
            decoder.take(target, decoder, source)
            for tensor in (decoder.rows.before, decoder.rows.active, now.total):
                tensor[target] = tensor[source]
        now.log_weight[rows] = 0.0
        if divided is not None:
            of = ancestor - rows[:, :1]
            children = torch.zeros_like(divided).scatter_add_(1, of, torch.ones_like(divided))
            now.log_weight[rows] = (divided / children).gather(1, of).log()

    def running(self) -> Tensor:
        return self.decoder.rows.active

    def keep(self, slots: Tensor) -> None:
        self.decoder.keep(slots)
        self.slots = self.slots[slots]

    def result(self, slots: Tensor) -> tuple[Samples, Tensor, Tensor]:
        samples, decoded, _ = self.decoder.result(slots)
        return samples, decoded, self.slots.time[slots]
