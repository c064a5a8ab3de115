"""Checkpoints in Hugging Face's format: config.json and safetensors files, read and written.

Module names are Hugging Face's, so that a state dict *is* a checkpoint but for the prefix "model."; Phi-3's fused
matrices are split when loaded and fused again when saved. Nothing written is ever half-written.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections import Counter
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from reference.checkpoints.config import Config, read_json

__all__ = [
    "NAMED", "Config", "find_folder", "is_stream", "read_json", "read_weights", "stored_dtype", "weight_files",
    "write_checkpoint", "write_whole",
]  # fmt: skip

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # safetensors' names, and torch's
INDEX = "model.safetensors.index.json"

# ---------------------------------------------------------------------------------------------------------------------
# Weights


def read_weights(
    folder: Path, config: Config, wanted: dict[str, Tensor], dtype: torch.dtype | None, device: str | torch.device
) -> dict[str, Tensor]:
    """The state dict that a folder's safetensors hold, with the names and the shapes that are `wanted`.

    FileNotFoundError: no such file or shard. ValueError: a broken file, a tensor missing, left over or of the wrong
    shape.
    """
    if config.unknown:
        named = ", ".join(map(repr, config.unknown))
        warnings.warn(f"{folder}: config.json has keys that nobody here knows or reads: {named}", stacklevel=2)
    if dtype is None:
        dtype = stored_dtype(folder, warn=True)
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
            weights[part] = piece.to(device=device, dtype=dtype).clone()
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


def stored_dtype(folder: Path, warn: bool = False) -> torch.dtype:
    """What a checkpoint's weights are: its files' dtype; of several the one that config.json names, or most have."""
    said = read_json(folder / "config.json")
    named = str(said.get("dtype") or said.get("torch_dtype")).removeprefix("torch.")
    counts: Counter[str] = Counter()
    for kind, shape in read_tensors(folder, headers=True):
        if kind in DTYPES:
            counts[DTYPES[kind]] += math.prod(shape)
    if not counts:
        raise ValueError(f"{folder}: its tensors have no floating-point dtype; quantised files are not supported")
    found = named if named in counts else counts.most_common(1)[0][0]
    if warn and len(counts) > 1:
        warnings.warn(f"{folder}: its weights are {' and '.join(sorted(counts))}; all become {found}", stacklevel=3)
    elif warn and named not in ("None", found):
        warnings.warn(f"{folder}: config.json says {named}, but its weights are {found}, and stay so", stacklevel=3)
    return getattr(torch, found)


def weight_files(folder: Path) -> list[str]:
    """The names of the files that its weights are read from. ValueError: an index that names none."""
    index = read_index(folder)
    return ["model.safetensors"] if index is None else sorted(set(index.values()))


def read_index(folder: Path) -> dict[str, str] | None:
    """Which file holds which tensor; None: there is no index, so all are in model.safetensors."""
    if not (folder / INDEX).exists():
        return None
    found = read_json(folder / INDEX)
    names = found.get("weight_map") if isinstance(found, dict) else None
    if (
        not isinstance(names, dict)
        or not names
        or not all(isinstance(x, str) and Path(x).name == x and x.strip(".") for x in names.values())
    ):
        raise ValueError(f"{folder / INDEX} has no weight_map from tensors to files beside it; fetch it again")
    if (folder / "model.safetensors").exists() and not all((folder / name).exists() for name in names.values()):
        return None  # an index that was left behind: the whole file counts, as elsewhere
    return names


def read_tensors(folder: Path, headers: bool = False):
    """(name, tensor) for every tensor of a checkpoint, one at a time: from its index's shards or its single file.
    headers: their dtypes, as the file names them, and shapes instead."""
    shard_of = read_index(folder)
    for file in weight_files(folder):
        if not (folder / file).exists():
            named = f"; {INDEX} names it" if shard_of is not None else ""
            raise FileNotFoundError(f"{folder / file} does not exist{named}; is the download complete?")
        try:
            with safe_open(folder / file, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118 (it is not a dict)
                    if shard_of is not None and shard_of.get(name) != file:
                        raise ValueError(f"{folder / file}: tensor {name!r} is not listed for it in {INDEX}")
                    part = shard.get_slice(name) if headers else shard.get_tensor(name)
                    yield (part.get_dtype(), part.get_shape()) if headers else (name, part)
        except SafetensorError as error:
            raise ValueError(f"{folder / file} is not a readable safetensors file ({error}); fetch it again") from None


ROOT = Path(__file__).resolve().parents[2]
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

    try:  # first what says which files there are
        place = Path(snapshot_download(str(path), allow_patterns=["*.json", "*.jinja"]))
        return Path(snapshot_download(str(path), allow_patterns=["*.json", "*.jinja", *weight_files(place)]))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(f"no folder {path}, and it could not be fetched as a repository: {reason}") from None


def is_stream(path: Path) -> bool:
    """A device or a pipe: it may be read once only, and its opening may wait."""
    return path.exists() and not path.is_file() and not path.is_dir()


def write_whole(path: Path, write) -> None:
    """Call `write(temporary path)`, flush it to disk and rename it to `path`: the file is never half-written. A link is
    followed to its file; a device or a pipe is written to as it is."""
    path = path.resolve()
    if is_stream(path):
        write(path)
        return
    part = path.with_name(f".{path.name[:200]}.{os.getpid()}.part")  # nobody else's
    try:
        write(part)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.umask(mask := os.umask(0))  # to read it is to set it
        part.chmod(path.stat().st_mode if path.exists() else 0o666 & ~mask)  # safetensors writes for its owner alone
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
