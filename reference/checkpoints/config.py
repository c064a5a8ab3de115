"""A model's configuration: config.json in the spelling of transformers 4 or 5, checked key by key."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FAMILIES = ("llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")
ARCHITECTURES = dict(zip(FAMILIES, ("Llama", "Mistral", "Olmo2", "Phi3", "Qwen2", "Qwen3", "SmolLM3")))
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
    "llama": {"attention_bias", "mlp_bias", "layer_types"},
    "mistral": {"sliding_window", "layer_types"},
    "olmo2": {"attention_bias", "layer_types"},
    "phi3": {"sliding_window", "layer_types"},
    "qwen2": {"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"},
    "qwen3": {"sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "attention_bias"},
    "smollm3": {
        "sliding_window",
        "use_sliding_window",
        "layer_types",
        "attention_bias",
        "mlp_bias",
        "no_rope_layers",
        "no_rope_layer_interval",
    },
}
# What it may say that changes nothing here: book-keeping, training settings, token ids (read by tokenizer.py).
HARMLESS = {
    "architectures", "attention_dropout", "auto_map", "bos_token_id", "chunk_size_feed_forward", "date_string", "dtype",
    "embd_pdrop", "eos_token_id", "id2label", "initializer_range", "label2id", "max_length", "name_or_path",
    "pad_token_id", "pretraining_tp", "problem_type", "resid_pdrop", "return_dict", "task_specific_params", "templates",
    "tokenizer_class", "torch_dtype", "transformers_version", "unk_token_id", "unsloth_fixed", "unsloth_version",
    "use_cache", "_name_or_path", "_attn_implementation",
}  # fmt: skip


# What changes the mathematics in other families, or in variants of these: refused unless it is off.
CHANGES = re.compile(
    r"(attention|mlp|qkv|lm_head|o)_?bias|use_bias|sliding_window|.*window.*|.*softcap.*|.*_multiplier|logits?_scal.*"
    r"|.*experts?.*|moe_.*|quantization_config|.*clip.*|.*qk_?(layer)?_?norm.*|qk_.*|alibi|.*parallel.*|no_rope.*|.*rope.*"
    r"|rotary.*|partial_.*|query_pre_attn_scalar|attention_chunk.*|.*sinks?|.*altup.*|.*laurel.*|head_dim_.*|.*_attn_.*dim"
    r"|layernorm.*|layer_norm.*|norm_type|use_post_norm|residual.*|.*scale|.*scaling|.*temperature.*|hidden_activation"
)
COUNTS = (*NEEDED, "num_key_value_heads", "head_dim", "sliding_window", "max_window_layers",
          "original_max_position_embeddings", "no_rope_layer_interval")  # fmt: skip
SWITCHES = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
AMOUNTS = ("rms_norm_eps", "rope_theta", "partial_rotary_factor")


def check_values(source: Any) -> None:
    """ValueError: what cannot be a configuration, or a key with a value of another kind than it has."""
    if not isinstance(source, dict):
        raise ValueError(f"config: it is {str(source)[:40]!r}; a config.json holds an object")
    for key, value in source.items():
        wanted = None
        if value is None:
            continue
        if key in COUNTS and not ((type(value) is int and value > 0) or (key == "max_window_layers" and value == 0)):
            wanted = "a positive whole number"
        elif key in SWITCHES and not isinstance(value, bool):
            wanted = "true or false"
        elif key in AMOUNTS and not is_amount(value):
            wanted = "a positive number"
        elif key in ("rope_scaling", "rope_parameters"):
            wanted = None if isinstance(value, dict) else "an object"
            check_rope(value if isinstance(value, dict) else {})
        elif key == "layer_types" and not (isinstance(value, list) and all(isinstance(x, str) for x in value)):
            wanted = "a list of texts"
        if wanted:
            raise ValueError(f"config: {key} is {str(value)[:40]!r}; it must be {wanted}")
    layers, width, heads, vocab = (source.get(key) or 1 for key in SIZES)
    across = heads * (source.get("head_dim") or 1) + (source.get("intermediate_size") or 1)
    need = 4 * (layers * width * across + vocab * width) / 1e9
    if layers > 10**5 or need > 1e5 or max(width, across, vocab) > 1 << 24:
        have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
        sizes = f"num_hidden_layers {layers}, hidden_size {width}, {across:,} across"
        raise ValueError(f"config: such a model ({sizes}) takes {need:,.0f} GB at least, and there are {have:,.0f}")


def is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e300


def check_rope(rope: dict[str, Any]) -> None:
    """ValueError: a key of RoPE's settings with a value of another kind than it has."""
    for key, value in rope.items():
        wanted = None
        if value is None:
            continue
        if key in ("rope_type", "type") and not isinstance(value, str):
            wanted = "a text"
        elif key in ("short_factor", "long_factor") and not (isinstance(value, list) and all(map(is_amount, value))):
            wanted = "a list of positive numbers"
        elif (key in AMOUNTS or re.search(r"factor$|^beta_|^mscale|^original_", key)) and not (
            is_amount(value) or key in ("short_factor", "long_factor") or (key == "mscale_all_dim" and value == 0)
        ):
            wanted = "a positive number"
        elif key == "truncate" and not isinstance(value, bool):
            wanted = "true or false"
        if wanted:
            raise ValueError(f"config: RoPE's {key} is {str(value)[:40]!r}; it must be {wanted}")


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
    qk_norm: str | None  # RMSNorm before RoPE over "each" head's query and key, or over "all" heads' (OLMo 2)
    norm_after: bool  # RMSNorm of what attention and MLP give, not of what they take (OLMo 2)
    turned: tuple[bool, ...]  # per layer: whether RoPE turns queries and keys (SmolLM3: not in every layer)
    windows: tuple[int | None, ...]  # per layer: how many positions a query sees, itself included; None = all
    rope: dict[str, Any]  # rope_type, rope_theta, partial_rotary_factor, and what the type needs
    source: dict[str, Any] = field(repr=False, compare=False, default_factory=dict)  # the config.json, kept for saving
    unknown: tuple[str, ...] = field(repr=False, compare=False, default=())  # its keys that nobody here knows

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> Config:
        """Read a config.json. FileNotFoundError if it is missing, ValueError if it is broken or unsupported."""
        return cls.from_dict(read_json(Path(path)))

    @classmethod
    def from_dict(cls, source: dict[str, Any]) -> Config:
        """Check and read Hugging Face's configuration, in the spelling of transformers 4 or 5.

        ValueError names a key that is missing or has a value of another kind, an unknown family, activation or RoPE
        type, and a key that changes the mathematics elsewhere (unless its value is null or false: then it is off). Of
        keys that nobody here knows there is a warning, and `unknown` lists them.
        """
        check_values(source)
        get, family = source.get, source.get("model_type")
        if family not in FAMILIES:
            raise ValueError(f"config: model_type {family!r} is not supported; supported are {', '.join(FAMILIES)}")
        for key in NEEDED:
            if get(key) is None:
                raise ValueError(f"config: key {key!r} is missing; a {family} model needs it")
        unknown = [key for key, value in source.items() if value is not None and value is not False
                   and not (key in READ or key in READ_BY_FAMILY[family] or key in HARMLESS)]  # fmt: skip
        for key in unknown:
            if CHANGES.fullmatch(key):
                raise ValueError(
                    f"config: key {key!r} = {source[key]!r} is not read for {family} and may change the mathematics; "
                    "remove it if it does not"
                )
        if (activation := get("hidden_act", "silu")) != "silu":
            raise ValueError(f"config: hidden_act {activation!r} is not supported; only 'silu' is")

        heads, layers = source["num_attention_heads"], source["num_hidden_layers"]
        kv_heads = get("num_key_value_heads", {"mistral": 8, "smollm3": 4}.get(family)) or heads
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
            rms_norm_eps=get("rms_norm_eps", 1e-5 if family in ("phi3", "olmo2") else 1e-6),
            max_position_embeddings=source["max_position_embeddings"],
            tie_word_embeddings=bool(get("tie_word_embeddings", family == "smollm3")),
            qkv_bias=family == "qwen2" or bias,
            o_bias=family != "qwen2" and bias,
            mlp_bias=bool(get("mlp_bias", False)),
            qk_norm={"qwen3": "each", "olmo2": "all"}.get(family),
            norm_after=family == "olmo2",
            turned=read_turned(source, family, layers),
            windows=read_windows(source, family, layers),
            rope=read_rope(source, family, head_dim),
            source=dict(source),
            unknown=tuple(unknown),
        )

    def to_dict(self) -> dict[str, Any]:
        """The config.json of this model, as `from_dict` was given it, naming its architecture."""
        return {**self.source, "architectures": [ARCHITECTURES[self.model_type] + "ForCausalLM"]}


def read_windows(source: dict[str, Any], family: str, layers: int) -> tuple[int | None, ...]:
    """Each layer's window. Qwen windows some layers, and only on demand; Mistral and Phi-3 window all of them."""
    if family in ("llama", "olmo2"):
        if {*(source.get("layer_types") or ())} - {"full_attention"}:
            raise ValueError(
                f"config: layer_types {source['layer_types']} is not supported for {family}, only full_attention"
            )
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
    if family == "smollm3":  # as the code of transformers reads it, windows are for layers without RoPE
        return tuple(None if turned else window for turned in read_turned(source, family, layers))
    first = source.get("max_window_layers", 28)
    return tuple(window if i >= first else None for i in range(layers))


def read_turned(source: dict[str, Any], family: str, layers: int) -> tuple[bool, ...]:
    """Which layers have RoPE: all, but every fourth or those named of SmolLM3."""
    if family != "smollm3":
        return (True,) * layers
    every = source.get("no_rope_layer_interval") or 4
    named = source.get("no_rope_layers")
    if named is None:
        return tuple((i + 1) % every != 0 for i in range(layers))
    if not isinstance(named, list) or len(named) < layers or not all(type(x) in (int, bool) for x in named):
        raise ValueError(f"config: no_rope_layers {str(named)[:40]!r} must have a 1 or a 0 for each of {layers} layers")
    return tuple(map(bool, named[:layers]))


def read_rope(source: dict[str, Any], family: str, head_dim: int) -> dict[str, Any]:
    """RoPE's settings from either spelling, with their defaults filled in and their keys checked."""
    rope = dict(source.get("rope_scaling") or source.get("rope_parameters") or {})
    kind = rope.pop("rope_type", None) or rope.get("type") or "default"
    rope.pop("type", None)
    if family == "phi3" and kind in ("su", "yarn"):  # what old Phi-3 files called longrope
        kind = "longrope"
    theta = rope.pop("rope_theta", None) or source.get("rope_theta")
    theta = theta or (2e6 if family == "smollm3" else 1e4)
    partial = rope.pop("partial_rotary_factor", None) or source.get("partial_rotary_factor") or 1.0
    if partial != 1.0 and family != "phi3":
        raise ValueError(f"config: partial_rotary_factor {partial} is not supported for {family}, only for phi3")
    needs = {
        "default": (),
        "linear": ("factor",),
        "dynamic": ("factor",),
        "yarn": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
        "longrope": ("short_factor", "long_factor"),
    }
    if kind not in needs:
        raise ValueError(f"config: rope_type {kind!r} is not supported; supported are {', '.join(needs)}")
    for key in needs[kind]:
        if key not in rope:
            raise ValueError(f"config: rope_type {kind!r} needs the key {key!r}")
    optional = {
        "longrope": ("factor", "attention_factor"),
        "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    }.get(kind, ())  # fmt: skip
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


def read_json(path: Path) -> Any:
    if not path.exists() and path.name == "config.json" and (path.parent / "adapter_config.json").exists():
        raise FileNotFoundError(
            f"{path.parent} holds an adapter of PEFT, not a model; merge it into its base first (PEFT's "
            "merge_and_unload, then save_pretrained), and name the merged folder"
        )
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; a checkpoint folder needs it")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
