"""The decoder-only transformer of Qwen2/2.5, Qwen3, Llama 3, Mistral and Phi-3, in one file.

One block serves all five families (a weight matrix W acts as x W^T, D = head_dim, H query heads, K key-value heads):

    x ← embed[ids]
    x ← x + O·attention(RMSNorm(x)),   x ← x + Down·(silu(Gate·RMSNorm(x)) ⊙ Up·RMSNorm(x))      for each layer
    logits = Head·RMSNorm(x)

and what sets a family apart is data in `Config`: biases, RMSNorm on queries and keys (Qwen3), the RoPE frequencies
(default, llama3, longrope, partial), sliding windows, a tied head. Module names are Hugging Face's, so that a state
dict *is* a checkpoint (`reference/checkpoints.py`).

Contracts.
- Logits are float32 (float64 where the model is float64), whatever the weights' dtype.
- RMSNorm is cast back to the activations' dtype *before* the weight multiplies it; RoPE's angles are float32 and its
  cos and sin are cast to the activations' dtype; softmax is float32. That is what transformers computes, to the bit.
- The cache never forgets: a call writes its tokens at `positions`, and each query sees the slots at or before its own
  position (in a windowed layer the last W of them). So a row is rewound by passing a smaller position.
- longrope has two sets of frequencies. transformers picks one by the longest text of the batch, so that a model is
  not one law; here the declared maximum length picks it once, at load (`max_length`).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.checkpoints import find_folder, read_json, read_weights, write_checkpoint, write_whole

__all__ = ["Config", "KVCache", "Transformer", "at_least_float32", "find_folder", "read_json", "write_whole"]

# ---------------------------------------------------------------------------------------------------------------------
# Configuration

FAMILIES = ("llama", "mistral", "phi3", "qwen2", "qwen3")
ARCHITECTURES = dict(zip(FAMILIES, ("Llama", "Mistral", "Phi3", "Qwen2", "Qwen3")))
NEEDED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings",
)  # fmt: skip
# What a config.json may say that this file reads, for every family and for some.
READ = {
    *NEEDED, "model_type", "num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "hidden_act",
    "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "original_max_position_embeddings",
}  # fmt: skip
READ_BY_FAMILY = {
    "llama": {"attention_bias", "mlp_bias"},
    "mistral": {"sliding_window"},
    "phi3": {"sliding_window"},
    "qwen2": {"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"},
    "qwen3": {"sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "attention_bias"},
}
# What it may say that changes nothing here: book-keeping, training settings, token ids (read by tokenizer.py).
HARMLESS = {
    "architectures", "attention_dropout", "auto_map", "bos_token_id", "chunk_size_feed_forward", "date_string", "dtype",
    "embd_pdrop", "eos_token_id", "id2label", "initializer_range", "label2id", "max_length", "name_or_path",
    "pad_token_id", "pretraining_tp", "problem_type", "resid_pdrop", "return_dict", "task_specific_params", "templates",
    "tokenizer_class", "torch_dtype", "transformers_version", "unk_token_id", "unsloth_fixed", "unsloth_version",
    "use_cache", "_name_or_path", "_attn_implementation",
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """What the mathematics needs to know. Made by `from_dict` or `from_json`, which check a config.json key by key."""

    model_type: str
    vocab_size: int  # rows of the embedding; may exceed the tokenizer's ids
    hidden_size: int
    intermediate_size: int  # width of the gated MLP
    num_hidden_layers: int
    num_attention_heads: int  # H
    num_key_value_heads: int  # K; each serves H/K query heads
    head_dim: int  # D; not always hidden_size / H
    rms_norm_eps: float
    max_position_embeddings: int  # positions the model was made for
    tie_word_embeddings: bool  # the head is the embedding matrix
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool  # RMSNorm over each head's query and key, before RoPE
    windows: tuple[int | None, ...]  # per layer: how many positions a query sees, itself included; None = all
    rope: dict[str, Any]  # rope_type, rope_theta, partial_rotary_factor, and what the type needs
    source: dict[str, Any] = field(repr=False, compare=False, default_factory=dict)  # the config.json, kept for saving

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> Config:
        """Read a config.json. FileNotFoundError if it is missing, ValueError if it is broken or unsupported."""
        return cls.from_dict(read_json(Path(path)))

    @classmethod
    def from_dict(cls, source: dict[str, Any]) -> Config:
        """Check and read Hugging Face's configuration, in the spelling of transformers 4 or 5.

        ValueError names a key that is missing, an unknown family, activation or RoPE type, and any key that is not
        known to leave the mathematics as it is (unless its value is null or false: then it is switched off).
        """
        get, family = source.get, source.get("model_type")
        if family not in FAMILIES:
            raise ValueError(f"config: model_type {family!r} is not supported; supported are {', '.join(FAMILIES)}")
        for key in NEEDED:
            if get(key) is None:
                raise ValueError(f"config: key {key!r} is missing; a {family} model needs it")
        for key, value in source.items():
            known = key in READ or key in READ_BY_FAMILY[family] or key in HARMLESS
            if not known and value is not None and value is not False:
                raise ValueError(
                    f"config: key {key!r} = {value!r} is not read for {family} and may change the mathematics; "
                    "remove it if it does not"
                )
        if (activation := get("hidden_act", "silu")) != "silu":
            raise ValueError(f"config: hidden_act {activation!r} is not supported; only 'silu' is")

        heads, layers = source["num_attention_heads"], source["num_hidden_layers"]
        kv_heads = get("num_key_value_heads", 8 if family == "mistral" else None) or heads
        head_dim = get("head_dim", 128 if family == "qwen3" else None) or source["hidden_size"] // heads
        if heads % kv_heads or head_dim % 2:
            raise ValueError(
                f"config: num_attention_heads {heads} must be a multiple of num_key_value_heads {kv_heads}, "
                f"and head_dim {head_dim} even"
            )
        bias = bool(get("attention_bias", False))
        return cls(
            model_type=family,
            vocab_size=source["vocab_size"],
            hidden_size=source["hidden_size"],
            intermediate_size=source["intermediate_size"],
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=get("rms_norm_eps", 1e-5 if family == "phi3" else 1e-6),
            max_position_embeddings=source["max_position_embeddings"],
            tie_word_embeddings=bool(get("tie_word_embeddings", False)),
            qkv_bias=family == "qwen2" or bias,
            o_bias=family != "qwen2" and bias,
            mlp_bias=bool(get("mlp_bias", False)),
            qk_norm=family == "qwen3",
            windows=read_windows(source, family, layers),
            rope=read_rope(source, family, head_dim),
            source=dict(source),
        )

    def to_dict(self) -> dict[str, Any]:
        """The config.json of this model, as `from_dict` was given it, naming its architecture."""
        return {**self.source, "architectures": [ARCHITECTURES[self.model_type] + "ForCausalLM"]}


def read_windows(source: dict[str, Any], family: str, layers: int) -> tuple[int | None, ...]:
    """Each layer's window. Qwen windows some layers, and only on demand; Mistral and Phi-3 window all of them."""
    if family == "llama":
        return (None,) * layers
    window = source.get("sliding_window", 4096 if family == "mistral" else None)
    if family in ("mistral", "phi3"):
        return (window,) * layers
    if not source.get("use_sliding_window"):
        window = None
    if kinds := source.get("layer_types"):
        if len(kinds) != layers or not set(kinds) <= {"full_attention", "sliding_attention"}:
            raise ValueError(
                f"config: layer_types {kinds} must name full_attention or sliding_attention for {layers} layers"
            )
        if "sliding_attention" in kinds and window is None:
            raise ValueError("config: layer_types has sliding_attention, but use_sliding_window is off or has no width")
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    first = source.get("max_window_layers", 28)
    return tuple(window if i >= first else None for i in range(layers))


def read_rope(source: dict[str, Any], family: str, head_dim: int) -> dict[str, Any]:
    """RoPE's settings from either spelling, with their defaults filled in and their keys checked."""
    rope = dict(source.get("rope_scaling") or source.get("rope_parameters") or {})
    kind = rope.pop("rope_type", None) or rope.get("type") or "default"
    rope.pop("type", None)
    if family == "phi3" and kind in ("su", "yarn"):  # what old Phi-3 files called longrope
        kind = "longrope"
    theta = rope.pop("rope_theta", None) or source.get("rope_theta") or 1e4
    partial = rope.pop("partial_rotary_factor", None) or source.get("partial_rotary_factor") or 1.0
    if partial != 1.0 and family != "phi3":
        raise ValueError(f"config: partial_rotary_factor {partial} is not supported for {family}, only for phi3")
    needs = {
        "default": (),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
        "longrope": ("short_factor", "long_factor"),
    }
    if kind not in needs:
        raise ValueError(f"config: rope_type {kind!r} is not supported; supported are {', '.join(needs)}")
    for key in needs[kind]:
        if key not in rope:
            raise ValueError(f"config: rope_type {kind!r} needs the key {key!r}")
    optional = {"default": (), "llama3": (), "longrope": ("factor", "attention_factor")}[kind]
    for key, value in rope.items():
        if key not in (*needs[kind], *optional, "original_max_position_embeddings") and value is not None:
            raise ValueError(f"config: RoPE key {key!r} = {value!r} is not read for rope_type {kind!r}")
    size = int(head_dim * partial) // 2
    for key in ("short_factor", "long_factor"):
        if kind == "longrope" and len(rope[key]) != size:
            raise ValueError(f"config: {key} has {len(rope[key])} numbers; half the rotated dimensions are {size}")
    # The length before extension: the top-level key wins; Phi-3 has a default of its own.
    original = source.get("original_max_position_embeddings") or (4096 if family == "phi3" else None)
    original = original or rope.get("original_max_position_embeddings") or source["max_position_embeddings"]
    rope |= {"original_max_position_embeddings": original}
    return {"rope_type": kind, "rope_theta": theta, "partial_rotary_factor": partial, **rope}


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
    """Angular frequencies, float32 [rotated dimensions / 2], and the factor on cos and sin (1 unless longrope)."""
    rope = config.rope
    size = int(config.head_dim * rope["partial_rotary_factor"])
    powers = rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size)
    original = rope["original_max_position_embeddings"]
    if rope["rope_type"] == "default":
        return 1.0 / powers, 1.0
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


class Attention(nn.Module):
    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        width, kv_width = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=config.o_bias)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, view: View) -> Tensor:
        q, k, v = self.heads(x, cos, sin)
        return self.o_proj(view.attend(self.layer, q, k, v).reshape(x.shape[0], -1))

    def heads(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [N, H, D], keys and values [N, K, D] of x [N, hidden]."""
        q, k, v = (each(x).view(x.shape[0], -1, self.head_dim) for each in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
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
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.self_attn, self.mlp = Attention(config, layer), MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, view: View) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, view)
        return x + self.mlp(self.post_attention_layernorm(x))

    def fill(self, x: Tensor, cos: Tensor, sin: Tensor, view: View) -> None:
        """Only keep the keys and values: all that the last layer is for, where nobody reads the logits."""
        if view.cache is not None:
            _, k, v = self.self_attn.heads(self.input_layernorm(x), cos, sin)
            view.keep(self.self_attn.layer, k, v)


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
        """`max_length`: the longest text that will be asked of it (it fixes longrope's factors); default: all."""
        super().__init__()
        self.config, self.vocab_size = config, config.vocab_size
        self.max_length = config.max_position_embeddings if max_length is None else max_length
        if not 1 <= self.max_length <= config.max_position_embeddings:
            raise ValueError(
                f"max_length {max_length} is outside 1..{config.max_position_embeddings}, the positions the model has"
            )
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
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
        return F.linear(self.norm(x), head.weight).to(at_least_float32(x.dtype)).unflatten(0, tokens.shape)

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
