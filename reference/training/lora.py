"""LoRA: small trainable additions to frozen linear layers (2106.09685).

    y = W x + b + (alpha / rank) B A x,   W frozen,  A [rank, in] ~ U(±1/√in),  B [out, rank] = 0 at first

`add_lora` changes a model's `nn.Linear`s into such, in place, and `reference/training/loop.py` then trains A and B
alone. In the model's `state_dict`, and so in what `save_pretrained` writes, W + (alpha/rank) B A stands under W's name:
merged on save. Sampling needs no merging, `merge_lora` makes it as fast as before, and `without_lora` is the base.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.randomness import child_seed
from reference.sampling import check_settings
from reference.transformer import at_least_float32

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoRAConfig:
    rank: int = 16  # the paper's sweep: 8 or 16
    alpha: float = 32.0  # the adapters' weight is alpha / rank
    targets: tuple[str, ...] = PROJECTIONS  # last part of a layer's name
    seed: int = 0  # of A

    def __post_init__(self) -> None:
        """ValueError: a setting out of range."""
        check_settings(self, least={"rank": 1}, positive=("alpha",))
        if not self.targets:
            raise ValueError(f"targets are empty; name layers, such as {', '.join(PROJECTIONS)}")


class LoRALinear(nn.Linear):
    """W x + b + scale·B A x; takes over a linear layer's W and b. To the outside its weight is W + scale·B A."""

    def __init__(self, linear: nn.Linear, config: LoRAConfig, name: str):
        super().__init__(1, 1, bias=False, device="meta")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias, self.scale = linear.weight, linear.bias, config.alpha / config.rank
        device, dtype = linear.weight.device, at_least_float32(linear.weight.dtype)
        random = torch.Generator().manual_seed(child_seed(config.seed, name))
        a = (2 * torch.rand(config.rank, self.in_features, generator=random) - 1) / self.in_features**0.5
        self.lora_a = nn.Parameter(a.to(device, dtype))  # [rank, in]
        self.lora_b = nn.Parameter(torch.zeros(self.out_features, config.rank, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(x, self.lora_a.to(x.dtype))
        return super().forward(x) + self.scale * F.linear(low, self.lora_b.to(x.dtype))

    def merged(self) -> Tensor:
        """W + scale·B A in W's dtype."""
        return (self.weight + self.scale * (self.lora_b @ self.lora_a)).to(self.weight.dtype)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[prefix + "weight"] = self.merged().detach()
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()


def lora_layers(model: Any) -> list[LoRALinear]:
    return [layer for layer in model.modules() if isinstance(layer, LoRALinear)]


def add_lora(model: Any, config: LoRAConfig) -> Any:
    """Give the target layers adapters, in place. They change no logit at first. ValueError: nothing to adapt."""
    found = {name: layer for name, layer in model.named_modules() if type(layer) is nn.Linear}
    names = {name.rpartition(".")[2] for name in found}
    if unknown := [target for target in config.targets if target not in names]:
        raise ValueError(
            f"LoRA target {unknown[0]!r} is no linear layer of the model; it has {sorted(names) or 'none'}"
        )
    for name, layer in found.items():
        if name.rpartition(".")[2] in config.targets:
            if config.rank > (most := min(layer.in_features, layer.out_features)):
                raise ValueError(f"LoRA rank is {config.rank}, but {name} has rank {most} at most; give a smaller one")
            model.set_submodule(name, LoRALinear(layer, config, name))
    return model


@torch.no_grad()
def merge_lora(model: Any) -> Any:
    """Work the adapters into the weights, in place: the model is again what it was before `add_lora`, but trained."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoRALinear):
            plain = nn.Linear(1, 1, bias=False, device="meta")
            plain.in_features, plain.out_features = layer.in_features, layer.out_features
            plain.weight, plain.bias = nn.Parameter(layer.merged(), requires_grad=False), layer.bias
            model.set_submodule(name, plain)
    return model


@contextlib.contextmanager
def without_lora(model: Any):
    """Within it, the model is the one that the adapters were added to."""
    scales = [(layer, layer.scale) for layer in lora_layers(model)]
    try:
        for layer, _ in scales:
            layer.scale = 0.0
        yield model
    finally:
        for layer, scale in scales:
            layer.scale = scale
