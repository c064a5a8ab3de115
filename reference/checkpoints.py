"""Checkpoints in Hugging Face's format: config.json and safetensors files, read and written.

Module names are Hugging Face's, so that a state dict *is* a checkpoint but for the prefix "model."; Phi-3's fused
matrices are split when loaded and fused again when saved. Nothing written is ever half-written.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from reference.transformer import Config


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


def find_folder(path: str | os.PathLike) -> Path:
    """A local folder as it is; "owner/name" from the Hugging Face hub."""
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
    """Call `write(temporary path)`, flush it to disk and rename it to `path`: the file is never half-written."""
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
