"""The decoder-only transformer of Qwen2/2.5, Qwen3, Llama 3, Mistral, Phi-3, SmolLM3 and OLMo 2, in one file.

One block serves all families (a weight matrix W acts as x W^T, D = head_dim, H query heads, K key-value heads):

    x ← embed[ids]
    x ← x + O·attention(RMSNorm(x)),   x ← x + Down·(silu(Gate·RMSNorm(x)) ⊙ Up·RMSNorm(x))      for each layer
    logits = Head·RMSNorm(x)

and what sets a family apart is data in `Config`: biases, RMSNorm on queries and keys (Qwen3, OLMo 2) or behind
attention and MLP (OLMo 2), the RoPE frequencies (default, llama3, longrope, partial), layers without it (SmolLM3),
sliding windows, a tied head. Module names are Hugging Face's, so that a state dict *is* a checkpoint
(`reference/checkpoints`).

Contracts.
- Logits are float32 (float64 where the model is float64), whatever the weights' dtype.
- RMSNorm is cast back to the activations' dtype *before* the weight multiplies it; RoPE's angles are float32 and its
  cos and sin are cast to the activations' dtype; softmax is float32. That is what transformers computes, to the bit
  (but for OLMo 2 in bfloat16, whose norms and angles it casts later).
- The cache never forgets: a call writes its tokens at `positions`, and each query sees the slots at or before its own
  position (in a windowed layer the last W of them). So a row is rewound by passing a smaller position.
- longrope has two sets of frequencies. transformers picks one by the longest text of the batch, so that a model is
  not one distribution; here the declared maximum length picks it once, at load (`max_length`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.checkpoints import Config, find_folder, read_json, read_weights, write_checkpoint, write_whole

__all__ = ["Config", "KVCache", "Transformer", "at_least_float32", "find_folder", "read_json", "write_whole"]

# ---------------------------------------------------------------------------------------------------------------------
# The parts


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) in float32, cast back, then times a weight."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == at_least_float32(x.dtype):  # no cast: torch's own is the same to the bit, and one call
            return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        return F.rms_norm(x, x.shape[-1:], None, self.eps) * self.weight


def rope_frequencies(config: Config, max_length: int) -> tuple[Tensor, float]:
    """Angular frequencies, float32 [rotated dimensions / 2], and the factor on cos and sin (not 1: longrope, yarn)."""
    rope = config.rope
    size = int(config.head_dim * rope["partial_rotary_factor"])
    powers = rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size)
    original = rope["original_max_position_embeddings"]
    if rope["rope_type"] == "default":
        return 1.0 / powers, 1.0
    if rope["rope_type"] == "linear":  # positions divided
        return 1.0 / powers / rope["factor"], 1.0
    if rope["rope_type"] == "dynamic":  # a base that grows with the text (the NTK-aware one), for the longest of them
        beyond = max(max_length, config.max_position_embeddings) / config.max_position_embeddings
        stretched = (rope["factor"] * beyond - (rope["factor"] - 1)) ** (size / (size - 2)) * rope["rope_theta"]
        return 1.0 / stretched ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size), 1.0
    if rope["rope_type"] == "yarn":
        return yarn(rope, size, powers, config.max_position_embeddings)
    if rope["rope_type"] == "llama3":  # slow down the low frequencies, keep the high ones, blend between (Llama 3.1)
        frequency, factor = 1.0 / powers, rope["factor"]
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        wavelength = 2 * math.pi / frequency
        blend = (original / wavelength - low) / (high - low)
        blended = (1 - blend) * frequency / factor + blend * frequency
        slowed = torch.where(wavelength > original / low, frequency / factor, blended)
        return torch.where(wavelength < original / high, frequency, slowed), 1.0
    stretch = torch.tensor(rope["long_factor" if max_length > original else "short_factor"], dtype=torch.float32)
    scale = rope.get("factor") or config.max_position_embeddings / original
    default = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    return 1.0 / (stretch * powers), rope.get("attention_factor") or default


def yarn(rope: dict[str, Any], size: int, powers: Tensor, positions: int) -> tuple[Tensor, float]:
    """Slow frequencies interpolated, fast ones as they were, a ramp between (2309.00071, §3.2 and 3.4)."""
    original = rope["original_max_position_embeddings"]
    factor = rope.get("factor") or positions / original

    def turned(rotations: float) -> float:  # the dimension that turns so often in the original length
        return size * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))

    def magnified(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    low, high = turned(rope.get("beta_fast") or 32), turned(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = (torch.arange(size // 2, dtype=torch.float32) - low) / (high - low or 0.001)
    slow, fast = 1.0 / (factor * powers), 1.0 / powers
    both, each = rope.get("mscale_all_dim"), rope.get("mscale")
    scale = magnified(each) / magnified(both) if each and both else magnified(1.0)
    return torch.lerp(fast, slow, ramp.clamp(0, 1)), rope.get("attention_factor") or scale


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on "split halves": dimension i turns with i + size/2. x [N, heads, D]; cos, sin [N, 1, size <= D].

    `sin` carries the minus sign of its first half, so that the partner of each dimension is one `roll` away.
    """
    size = cos.shape[-1]
    if size == x.shape[-1]:
        return x * cos + x.roll(size // 2, -1) * sin
    turned, rest = x.split((size, x.shape[-1] - size), dim=-1)  # partial rotary: the rest passes
    return torch.cat((rotate(turned, cos, sin), rest), -1)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(D)) v, each key-value head serving a group of H/K query heads without being copied.

    q [B, T, H, D]; k, v [B, S, K, D]; mask bool [B, 1, T, S], true where visible -> [B, T, H, D]. This is the
    specification, rounding included.
    """
    (B, T, H, D), (S, K) = q.shape, k.shape[1:3]
    q = q.transpose(1, 2).reshape(B, K, H // K * T, D)
    scores = (q @ k.permute(0, 2, 3, 1) * D**-0.5).view(B, H, T, S)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1, dtype=at_least_float32(q.dtype)).to(q.dtype)
    return (weights.view(B, K, H // K * T, S) @ v.transpose(1, 2)).view(B, H, T, D).transpose(1, 2)


@cache
def direct_product() -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
    """oneDNN's x Wᵀ + b, float32 on a CPU, if this torch has it and it is what it should be: reading weights for a few
    rows, it is up to twice as fast as the product that `nn.Linear` calls there. The two differ by rounding."""
    x, weight, bias = torch.arange(6.0).view(2, 3), torch.eye(4, 3), torch.ones(4)
    try:
        product = torch.ops.mkldnn._linear_pointwise
        if torch.equal(product(x, weight, bias, "none", [], ""), F.linear(x, weight, bias)):
            return lambda x, weight, bias: product(x, weight, bias, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        pass
    return None


LARGE = 1 << 16  # weights of a layer that are worth the call


def linear(x: Tensor, *layers: nn.Module) -> list[Tensor]:
    """What each of the layers (linear ones, or a tied head's embedding) makes of x [N, in]: [N, out] each. Without a
    cache, and in layers that are not plain, it is as ever: what transformers computes."""
    plain = x.is_cpu and x.dtype == torch.float32 and torch.is_inference_mode_enabled()  # decoding into a cache
    product = direct_product() if plain else None
    made = []
    for layer in layers:
        if type(layer) not in (nn.Linear, nn.Embedding):
            made.append(layer(x))
            continue
        weight, bias = cast(Tensor, layer.weight), getattr(layer, "bias", None)
        made.append((product if product and weight.numel() >= LARGE else F.linear)(x, weight, bias))
    return made


class Attention(nn.Module):
    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        width, kv_width = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=config.o_bias)
        self.norms, self.turned = config.qk_norm, config.turned[layer]
        if self.norms is not None:
            sizes = (config.head_dim,) * 2 if self.norms == "each" else (width, kv_width)
            self.q_norm, self.k_norm = (RMSNorm(size, config.rms_norm_eps) for size in sizes)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, view: View) -> Tensor:
        q, k, v = self.heads(x, cos, sin)
        return linear(view.attend(self.layer, q, k, v).reshape(x.shape[0], -1), self.o_proj)[0]

    def heads(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [N, H, D], keys and values [N, K, D] of x [N, hidden]."""
        q, k, v = linear(x, self.q_proj, self.k_proj, self.v_proj)
        if self.norms == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (each.view(x.shape[0], -1, self.head_dim) for each in (q, k, v))
        if self.norms == "each":
            q, k = self.q_norm(q), self.k_norm(k)
        if self.turned:
            q, k = rotate(torch.cat((q, k), 1), cos, sin).split((q.shape[1], k.shape[1]), 1)  # both at once
        return q, k, v


class MLP(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(hidden, inner, bias=config.mlp_bias)
        self.up_proj = nn.Linear(hidden, inner, bias=config.mlp_bias)
        self.down_proj = nn.Linear(inner, hidden, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = linear(x, self.gate_proj, self.up_proj)
        return linear(F.silu(gate) * up, self.down_proj)[0]


class Layer(nn.Module):
    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.self_attn, self.mlp = Attention(config, layer), MLP(config)
        self.input_layernorm: nn.Module = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, view: View) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, view)
        return x + self.mlp(self.post_attention_layernorm(x))

    def fill(self, x: Tensor, cos: Tensor, sin: Tensor, view: View) -> None:
        """Only keep the keys and values: all that the last layer is for, where nobody reads the logits."""
        if view.cache is not None:
            _, k, v = self.self_attn.heads(self.input_layernorm(x), cos, sin)
            view.keep(self.self_attn.layer, k, v)


class NormAfterLayer(Layer):
    """OLMo 2's."""

    def __init__(self, config: Config, layer: int):
        super().__init__(config, layer)
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.input_layernorm = nn.Identity()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, view: View) -> Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(x, cos, sin, view))
        return x + self.post_feedforward_layernorm(self.mlp(x))


# ---------------------------------------------------------------------------------------------------------------------
# The cache


class KVCache:
    """Keys and values of `rows` texts, `capacity` positions each: two tensors [layers, rows, K, capacity, D].

    rotations: `Transformer.rotations` of all its positions, in the dtype and on the device of keys and values.
    """

    def __init__(self, config: Config, rows: int, capacity: int, rotations: tuple[Tensor, Tensor]):
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, capacity, config.head_dim)
        self.rows, self.capacity, self.rotations = rows, capacity, rotations
        self.visible: int | None = None  # how many slots a call reads; None: up to the last that any query sees
        # Zeros, not empty memory: a masked slot has weight 0, and 0 times an uninitialised NaN would be NaN.
        self.k, self.v = (rotations[0].new_zeros(shape) for _ in range(2))

    def reach(self, positions: Tensor) -> int:
        """How many slots a call at these positions reads; on a GPU rounded up, so that few graphs serve all calls."""
        visible, step = int(positions.max()) + 1, 256 if positions.is_cuda else 1
        return min(-(-visible // step) * step, self.capacity)

    def copy_rows(self, source: Tensor, target: Tensor, other: KVCache | None = None, length: int | None = None):
        """Copy rows `source` of `other` (default: this cache) into rows `target`: their first `length` slots.

        source, target: int64 [n]; sources may repeat, targets may not. Every source is read before any target is
        written, some layers at a time, so a permutation in place is right and the extra memory is one layer's rows, or
        256 MiB if that is more.
        """
        other = self if other is None else other
        length = min(self.capacity, other.capacity) if length is None else length
        bytes_of_layer = len(source) * length * self.k.shape[2] * self.k.shape[4] * self.k.itemsize
        some = max(1, 2**28 // max(1, bytes_of_layer))
        for layers in (slice(first, first + some) for first in range(0, len(self.k), some)):
            for mine, theirs in ((self.k, other.k), (self.v, other.v)):
                mine[layers, target, :, :length] = theirs[layers, source, :, :length]


def attend_once(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention of one query a row, q [rows, 1, H, D], to k, v [rows, K, visible, D]: the queries of a key head are the
    rows of a matrix. On a CPU that is faster than the fused kernel, in bfloat16 by half a step."""
    grouped = q.view(len(q), k.shape[1], -1, q.shape[3])
    scores = (grouped @ k.transpose(2, 3)).to(at_least_float32(q.dtype)) * q.shape[3] ** -0.5 + mask
    return (scores.softmax(-1).to(v.dtype) @ v).view(q.shape)


class View:
    """What one call sees: where its keys and values are written and read, and each layer's mask."""

    def __init__(self, config: Config, positions: Tensor, cache: KVCache | None):
        self.cache, self.shape = cache, positions.shape
        rows, time = positions.shape
        visible = time
        if cache is not None:
            visible = cache.visible or cache.reach(positions)
            self.rows, self.positions = torch.arange(rows, device=positions.device)[:, None], positions
        at, here = torch.arange(visible, device=positions.device), positions[:, None, :, None]
        masks = {w: at <= here if w is None else (at <= here) & (at > here - w) for w in set(config.windows)}
        if cache is not None:  # the kernel wants them as numbers to be added: made once for all layers
            masks = {w: torch.zeros_like(m, dtype=cache.k.dtype).masked_fill_(~m, -math.inf) for w, m in masks.items()}
        self.visible, self.masks = visible, [masks[w] for w in config.windows]  # each [rows, 1, time, visible]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of this call's q [N, H, D] to what each may see; k, v [N, K, D] are kept first, after RoPE."""
        q, mask = q.unflatten(0, self.shape), self.masks[layer]
        if self.cache is None:
            return attention(q, k.unflatten(0, self.shape), v.unflatten(0, self.shape), mask)
        k, v = (kept[:, :, : self.visible] for kept in self.keep(layer, k, v))
        if q.is_cpu and self.shape[1] == 1:
            return attend_once(q, k, v, mask)
        grouped = q.shape[2] != k.shape[1]
        return F.scaled_dot_product_attention(q.transpose(1, 2), k, v, mask, enable_gqa=grouped).transpose(1, 2)

    def keep(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v [N, K, D] into the cache; all that it has of this layer, [rows, K, capacity, D] each."""
        assert self.cache is not None
        kept_k, kept_v = self.cache.k[layer], self.cache.v[layer]
        kept_k[self.rows, :, self.positions] = k.unflatten(0, self.shape)
        kept_v[self.rows, :, self.positions] = v.unflatten(0, self.shape)
        return kept_k, kept_v


# ---------------------------------------------------------------------------------------------------------------------
# The model


class Transformer(nn.Module):
    """A decoder with its own cache; implements `reference.sampling.LanguageModel`."""

    capture = True  # on a GPU, decode by captured steps (`reference/engine/captured_step.py`)

    def __init__(self, config: Config, max_length: int | None = None):
        """`max_length`: the longest text that will be asked of it (it fixes the frequencies of longrope and dynamic);
        default: all."""
        super().__init__()
        self.config, self.vocab_size = config, config.vocab_size
        self.max_length = config.max_position_embeddings if max_length is None else max_length
        most = config.max_position_embeddings
        if config.rope["rope_type"] == "dynamic":
            most = int(most * config.rope["factor"])
        if not 1 <= self.max_length <= most:
            raise ValueError(f"max_length {max_length} is outside 1..{most}, the positions the model has")
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        kind = NormAfterLayer if config.norm_after else Layer
        self.layers = nn.ModuleList(kind(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, False)
        with torch.device("cpu"):  # also when the weights are made on "meta"
            self.frequencies, self.rope_factor = rope_frequencies(config, self.max_length)
        for weight in self.parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02)

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        capacity = -(-capacity // 8) * 8 if self.device.type == "cuda" else capacity  # bfloat16 products want 16 bytes
        rotations = self.rotations(torch.arange(capacity, device=self.device), self.dtype)
        return KVCache(self.config, rows, capacity, rotations)

    def forward(
        self, tokens: Tensor, positions: Tensor | None = None, cache: KVCache | None = None, *, logits: bool = True
    ) -> Tensor | None:
        """tokens, positions int64 [rows, time] -> logits [rows, time, vocab] (None if logits=False: fill the cache).

        With a cache, `positions` says where each token stands in its row's text, counted from 0 and increasing along
        the call; without one the rows are whole texts and positions are None.
        """
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        if cache is None or torch.is_grad_enabled():
            return self.compute(tokens, positions, cache, logits)
        with torch.inference_mode():  # decoding skips autograd's book-keeping
            computed = self.compute(tokens, positions, cache, logits)
        return None if computed is None else computed.clone()  # an ordinary tensor, that may meet autograd again

    def compute(self, tokens: Tensor, positions: Tensor, cache: KVCache | None, logits: bool) -> Tensor | None:
        x = self.embed_tokens(tokens.flatten())  # [N = rows · time, hidden]: rows and time meet only in attention
        at = positions.flatten()
        cos, sin = self.rotations(at, x.dtype) if cache is None else (table[at] for table in cache.rotations)
        view = View(self.config, positions, cache)
        layers: Any = self.layers
        *others, last = layers
        for layer in others:
            x = layer(x, cos, sin, view)
        if not logits:
            return last.fill(x, cos, sin, view)
        x = last(x, cos, sin, view)
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        return linear(self.norm(x), head)[0].to(at_least_float32(x.dtype)).unflatten(0, tokens.shape)

    def rotations(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What `rotate` takes at some positions [N]: cos and sin, [N, 1, size] each."""
        self.frequencies = frequencies = self.frequencies.to(positions.device)  # from the host once, not at each step
        sign = torch.full_like(frequencies, self.rope_factor)
        angles = positions[:, None, None].float() * torch.cat((frequencies, frequencies))
        cos, sin = angles.cos() * self.rope_factor, angles.sin() * torch.cat((-sign, sign))
        return cos.to(dtype), sin.to(dtype)

    # -- what it costs ------------------------------------------------------------------------------------------------

    def num_parameters(self) -> int:
        """Weights, a tied head counted once."""
        return sum(weight.numel() for weight in self.parameters())

    def bytes_per_step(self) -> int:
        """Bytes of weights read by one decoding step: all but the embedding, unless it is also the head."""
        skipped = 0 if self.lm_head is None else self.embed_tokens.weight.numel()
        return (self.num_parameters() - skipped) * self.embed_tokens.weight.element_size()

    def kv_bytes_per_token(self) -> int:
        """Bytes that one position of one row takes in the cache."""
        c = self.config
        size = self.embed_tokens.weight.element_size()
        return 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * size

    def flops_per_token(self, context: int) -> int:
        """Floating-point operations to decode one token that sees `context` positions: 2 per weight multiplied, and
        per layer 2·H·D for each score and as many for each weighted value."""
        c = self.config
        multiplied = self.num_parameters() - (0 if self.lm_head is None else self.embed_tokens.weight.numel())
        return 2 * multiplied + 4 * c.num_hidden_layers * c.num_attention_heads * c.head_dim * context

    # -- checkpoints --------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        max_length: int | None = None,
    ) -> Transformer:
        """Load a folder in Hugging Face format, or (with a network) a repository by its id, "owner/name".

        dtype: of the weights; None keeps the stored one. max_length: see `__init__`.
        FileNotFoundError: no such folder, file or shard. ValueError: a broken file, a tensor missing, left over or of
        the wrong shape.
        """
        folder = find_folder(path)
        config = Config.from_json(folder / "config.json")
        with torch.device("meta"):
            model = cls(config, max_length)
        model.load_state_dict(read_weights(folder, config, model.state_dict(), dtype, device), assign=True)
        return model.eval().requires_grad_(False)

    def save_pretrained(self, path: str | os.PathLike) -> None:
        """Write config.json and model.safetensors under Hugging Face's names; each file is whole or absent."""
        write_checkpoint(Path(path), self.config, self.state_dict(), self.dtype)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
