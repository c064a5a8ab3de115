"""Proposals as slots of the one decoding loop: new endings of a record, weighed token by token.

Records are compared by Σ_t w_t − log Σ_t e_t, with the weights w and the cut weights e of
`reference/power_sampling.py`; both sums grow token by token, so a proposal starts with those of the prefix that it
keeps. A saving that changes no token:

    early reject   with 1 ≤ 1/τ ≤ α every w_t ≤ 0, and −log Σ e falls too: a proposal is dropped as soon as it is below
                   what acceptance would need
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reference.engine.decoder import Decoder
from reference.interface import LanguageModel

if TYPE_CHECKING:
    from reference.power_sampling import PowerConfig

# What a slot knows of a record.
RECORD = ("tokens", "logp", "logq", "low", "high", "weight", "mass", "measures", "length", "finished")
TINY = 1e-300  # for the logarithm of a sum of cut weights that are all 0: nothing is left to chance there


class Proposals(Decoder):
    """A decoder that weighs what it decodes, and drops what cannot be accepted any more."""

    per_slot = (*Decoder.per_slot, "threshold", "weight", "mass")

    def __init__(
        self, model: LanguageModel, prompts: Sequence[Tensor], slots: int, config: PowerConfig, *,
        stop_ids: Iterable[int], seed: int,
    ):  # fmt: skip
        by_entropy, device = config.cut == "entropy", model.device
        super().__init__(
            model, prompts, slots, config.max_new_tokens, stop_ids=stop_ids, temperature=config.temperature, seed=seed,
            measure=entropy if by_entropy else None,
        )  # fmt: skip
        self.config = config
        self.falling = 1 <= 1 / config.temperature <= config.alpha  # every w_t <= 0
        self.threshold = torch.zeros(slots, dtype=torch.float64, device=device)  # proposals above it are accepted
        self.weight = torch.zeros(
            (slots, config.max_new_tokens + 2), dtype=torch.float64, device=device
        )  # Σ of the first t w
        count = torch.arange(config.max_new_tokens + 2, device=device).double()
        self.mass = (torch.ones_like(count) if config.cut == "horizon" else count).repeat(slots, 1)  # likewise of e
        self.measures = self.weight.new_zeros((slots, config.max_new_tokens + 1, int(by_entropy)))

    def advance(self) -> Tensor:
        """One token for every slot; bool [S]: the proposals that have just ended, or been dropped."""
        c, at, running = self.config, self.length[:, None].clone(), self.active.clone()
        ended = super().advance()
        w = c.alpha * self.logp.gather(1, at).double() - self.logq.gather(1, at).double()
        w = w.clamp(max=0) if self.falling else w  # so that rounding cannot raise a sum
        self.weight.scatter_(1, at + 1, self.weight.gather(1, at) + w)
        self.weigh_cut(at)
        if c.early_reject and self.falling:
            doomed = running & (self.value() <= self.threshold)
            self.active &= ~doomed
            ended |= doomed
        return ended

    def weigh_cut(self, at: Tensor) -> None:
        """Add the cut weights of the tokens at [S, 1]; only those of cut="entropy" depend on the model."""
        if self.config.cut == "entropy":
            here, before = (self.measures[..., -1].gather(1, place) for place in (at, (at - 1).clamp(min=0)))
            rise = torch.where(at > 0, here - before, here).clamp(min=0)
            e = self.config.entropy_floor + rise**self.config.entropy_power
            self.mass.scatter_(1, at + 1, self.mass.gather(1, at) + e)

    def value(self) -> Tensor:
        """What records are compared by, float64 [S]. (Σ e_t is constant for cut="horizon", and here 1.)"""
        weight, mass = (sums.gather(1, self.length[:, None])[:, 0] for sums in (self.weight, self.mass))
        return weight - mass.clamp(min=TINY).log()

    def values(self, slots: Tensor) -> Tensor:
        """Those of some slots. ValueError: one is not a number."""
        if (value := self.value()[slots]).isnan().any():
            raise ValueError("the model's logits are not a law (NaN or infinite) in a proposal; try float32 weights")
        return value

    def draw_cuts(self, slots: Tensor, u: Tensor, horizon: Tensor) -> Tensor:
        """The positions, from 0, that u in [0, 1) draws from the law of the cut of the records in some slots; all [k].
        For cut="horizon" they may lie behind the record's end."""
        if self.config.cut == "horizon":
            return (u * horizon).long()
        length = self.length[slots, None]
        mass = self.mass[slots, :-1].masked_fill(self.columns > length, torch.inf)
        cut = torch.searchsorted(mass, u[:, None] * mass.gather(1, length), right=True) - 1
        return torch.minimum(cut, length - 1)[:, 0]


def entropy(logits: Tensor) -> Tensor:
    """Of the laws at temperature 1, in nats: float64 [S, 1]."""
    return torch.special.entr(logits.double().softmax(-1)).sum(-1, keepdim=True)
