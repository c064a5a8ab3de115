"""Checkpoints in Hugging Face's format: config.json and safetensors files, read and written.

Module names are Hugging Face's, so that a state dict *is* a checkpoint but for the prefix "model."; Phi-3's fused
matrices are split when loaded and fused again when saved. Nothing written is ever half-written.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

# ---------------------------------------------------------------------------------------------------------------------
# config.json

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
# Weights


def read_weights(
    folder: Path, config: Config, wanted: dict[str, Tensor], dtype: torch.dtype | None, device: str | torch.device
) -> dict[str, Tensor]:
    """The state dict that a folder's safetensors hold, with the names and the shapes that are `wanted`.

    FileNotFoundError: no such file or shard. ValueError: a broken file, a tensor missing, left over or of the wrong
    shape.
    """
    weights: dict[str, Tensor] = {}
    shipped_head: Tensor | None = None
    for name, tensor in read_tensors(folder):
        for part, piece in split_fused(config, name.removeprefix("model."), tensor):
            if part.endswith("rotary_emb.inv_freq"):
                continue  # old files carry it; it follows from the configuration
            if part == "lm_head.weight" and config.tie_word_embeddings:
                shipped_head = piece  # some tied checkpoints ship the embedding twice
                continue
            if part not in wanted:
                raise ValueError(f"{folder}: tensor {name!r} has no place in a {config.model_type} model")
            if piece.shape != wanted[part].shape:
                raise ValueError(
                    f"{folder}: tensor {name!r} has shape {list(piece.shape)}, but the config asks for "
                    f"{list(wanted[part].shape)}"
                )
            weights[part] = piece.to(device=device, dtype=dtype or piece.dtype).clone()
    if missing := sorted(wanted.keys() - weights.keys()):
        raise ValueError(f"{folder}: {len(missing)} tensors are missing, the first is {missing[0]!r}")
    embedding = weights["embed_tokens.weight"]
    if shipped_head is not None and not torch.equal(shipped_head.to(embedding), embedding):
        raise ValueError(
            f"{folder}: tensor 'lm_head.weight' differs from the embedding, but the config ties the two; set "
            "tie_word_embeddings to false if the file is right"
        )
    return weights


def write_checkpoint(folder: Path, config: Config, state: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Write config.json and model.safetensors under Hugging Face's names; each file is whole or absent."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {n if n == "lm_head.weight" else f"model.{n}": w for n, w in state.items()}
    weights = {name: weight.detach().cpu().contiguous() for name, weight in fuse(config, weights).items()}
    settings = {**config.to_dict(), "dtype": str(dtype).removeprefix("torch.")}
    write_whole(folder / "model.safetensors", lambda file: save_file(weights, file, metadata={"format": "pt"}))
    write_whole(folder / "config.json", lambda file: file.write_text(json.dumps(settings, indent=2) + "\n"))


FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}  # Phi-3's, in order


def split_fused(config: Config, name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """The named parts of a checkpoint's tensor: itself, or the pieces of one of Phi-3's fused matrices."""
    c = config
    kv = c.num_key_value_heads * c.head_dim
    sizes = {"qkv_proj": (c.num_attention_heads * c.head_dim, kv, kv), "gate_up_proj": (c.intermediate_size,) * 2}
    for fused, parts in FUSED.items():
        if c.model_type == "phi3" and f".{fused}." in name:
            if tensor.shape[0] != sum(sizes[fused]):
                raise ValueError(f"tensor {name!r} has {tensor.shape[0]} rows, the config asks for {sum(sizes[fused])}")
            return [(name.replace(fused, p), t) for p, t in zip(parts, tensor.split(sizes[fused]))]
    return [(name, tensor)]


def fuse(config: Config, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `split_fused` on a whole state dict."""
    if config.model_type != "phi3":
        return weights
    weights = dict(weights)
    for fused, parts in FUSED.items():
        for name in [n for n in weights if f".{parts[0]}." in n]:
            pieces = [weights.pop(name.replace(parts[0], part)) for part in parts]
            weights[name.replace(parts[0], fused)] = torch.cat(pieces)
    return weights


def read_tensors(folder: Path):
    """(name, tensor) for every tensor of a checkpoint, one at a time: from its index's shards or its single file."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shard_of = read_json(index).get("weight_map", {})
    else:
        shard_of = None
    files = sorted(set(shard_of.values())) if shard_of is not None else ["model.safetensors"]
    for file in files:
        if not (folder / file).exists():
            named = f"; {index.name} names it" if shard_of is not None else ""
            raise FileNotFoundError(f"{folder / file} does not exist{named}; is the download complete?")
        try:
            with safe_open(folder / file, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118 (it is not a dict)
                    if shard_of is not None and shard_of.get(name) != file:
                        raise ValueError(f"{folder / file}: tensor {name!r} is not listed for it in {index.name}")
                    yield name, shard.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{folder / file} is not a readable safetensors file ({error}); fetch it again") from None


ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT if (ROOT / "Makefile").exists() else Path.cwd()  # outside a clone, runs/ is where one stands
NAMED = {  # models by name: where they are, and how one comes there
    "toy": (ROOT / "toy" / "checkpoint", "it is shipped; name a folder instead"),
    "smollm2": (HOME / "runs" / "smollm2", "make smollm2, or python -m toy.smollm2"),
}


def find_folder(path: str | os.PathLike) -> Path:
    """A local folder as it is; a model by its name; "owner/name" from the Hugging Face hub. FileNotFoundError: none."""
    if (named := NAMED.get(str(path))) and not (Path(path) / "config.json").exists():
        if not (named[0] / "config.json").exists():
            raise FileNotFoundError(f"the model {path} is not in {named[0]}; {named[1]}")
        return named[0]
    folder = Path(path)
    if folder.is_dir():
        return folder
    if str(path).count("/") != 1 or str(path)[0] in "./~":
        raise FileNotFoundError(f"no such folder: {path}; give a checkpoint's folder, or a repository id 'owner/name'")
    from huggingface_hub import snapshot_download  # a network library: only when asked for

    try:
        return Path(snapshot_download(str(path), allow_patterns=["*.json", "*.safetensors", "*.jinja"]))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(f"no folder {path}, and it could not be fetched as a repository: {reason}") from None


def read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; a checkpoint folder needs it")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None


def write_whole(path: Path, write) -> None:
    """Call `write(temporary path)`, flush it to disk and rename it to `path`: the file is never half-written. A link is
    followed to its file; a device or a pipe is written to as it is."""
    path = path.resolve()
    if path.exists() and not path.is_file() and not path.is_dir():
        write(path)
        return
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
