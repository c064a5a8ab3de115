"""Decoding on the CPU, side by side with transformers' `generate` on the same weights, in one run.

toy     the shipped checkpoint, 500 requests whose response lengths are log-normal with the spread that language models
        show (coefficient of variation 0.8, mean 32, at most 100), 64 at a time. transformers decodes them in batches of
        64 in the same order, each batch to its longest; only the tokens asked for count.
0.5B    random weights in the shape of Qwen2.5-0.5B, prompts of 64 tokens: 40 new tokens at batch 1, 24 at batch 16, and
        24 requests of mixed lengths (as above, mean 16, at most 48), 8 at a time. float32 and bfloat16; where the
        processor lacks the latter it is emulated, a prompt of 64 takes 2.4 s whoever reads it, and batch 1 must do.

Both sample at temperature 1 from the whole distribution, take turns, and are quoted by the median of their runs.
transformers has its default cache; with `cache_implementation="static"` it was 4 to 10 % slower on the toy model, and
no faster on 0.5B beyond the runs' spread.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from reference.sampling import generate
from reference.transformer import Config, Transformer

DEPENDS = (
    "reference/interface.py", "reference/sampling.py", "reference/engine", "reference/randomness.py",
    "reference/transformer.py", "toy/checkpoint/model.safetensors", "figures/bench_decode.py",
)  # fmt: skip
CHECKPOINT = Path(__file__).resolve().parent.parent / "toy" / "checkpoint"
HALF_BILLION: dict[str, Any] = {
    "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
    "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 2048,
    "rope_theta": 1e6, "tie_word_embeddings": True,
}  # fmt: skip


def ours(model, prompts, lengths, slots):
    result = generate(model, prompts, max_new_tokens=lengths, stop_ids=[], slots=slots)
    assert result.cost.decoded_tokens == sum(lengths)


@torch.no_grad()
def theirs(model, prompts, lengths, batch):
    for first in range(0, len(prompts), batch):
        part, horizon = prompts[first : first + batch], max(lengths[first : first + batch])
        width = max(map(len, part))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in part])  # left-padded
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in part])
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=horizon, do_sample=True, top_k=0, pad_token_id=0
        )  # fmt: skip
        assert out.shape[1] == width + horizon


def race(our_model, their_model, prompts, lengths, batch, runs):
    """Tokens per second of both, [runs] each, after one run of each that does not count."""
    speeds = {"sharpening": [], "transformers": []}
    for run in range(runs + 1):
        for name, decode, model in (("sharpening", ours, our_model), ("transformers", theirs, their_model)):
            begin = time.perf_counter()
            decode(model, prompts, lengths, batch)
            if run:
                speeds[name].append(sum(lengths) / (time.perf_counter() - begin))
    return speeds


def oracle(config, dtype=torch.float32):
    import transformers  # only here: it is what we are compared with

    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.generation_config.eos_token_id = None  # the lengths are given
    return model


def mixed_lengths(rng, count: int, mean: float, longest: int) -> list[int]:
    sigma = np.sqrt(np.log(1 + 0.8**2))
    lengths = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count).round()
    return np.clip(lengths, 1, longest).astype(int).tolist()


def has_bfloat16() -> bool:
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def toy_race(runs: int) -> dict:
    import transformers

    rng = np.random.default_rng(0)
    lengths = mixed_lengths(rng, 500, 32, 100)
    prompts = [rng.integers(0, 11, rng.integers(6, 25)).tolist() for _ in lengths]
    model = Transformer.from_pretrained(CHECKPOINT)
    other = oracle(transformers.AutoConfig.from_pretrained(CHECKPOINT))
    other.load_state_dict({f"model.{name}": weight for name, weight in model.state_dict().items()}, strict=False)
    return race(model, other, prompts, lengths, 64, runs)


def half_billion_races(dtype: torch.dtype, runs: int) -> dict[str, dict]:
    import transformers

    other = oracle(transformers.AutoConfig.for_model(**HALF_BILLION), dtype)
    with torch.device("meta"):
        model = Transformer(Config.from_dict(HALF_BILLION))
    weights = {name.removeprefix("model."): weight for name, weight in other.state_dict().items()}
    weights.pop("lm_head.weight")  # tied
    model.load_state_dict(weights, assign=True)
    model.eval().requires_grad_(False)
    prompts = torch.randint(0, 151936, (24, 64), generator=torch.Generator().manual_seed(0)).tolist()
    mixed = mixed_lengths(np.random.default_rng(0), 24, 16, 48)
    races = {"batch 1": race(model, other, prompts[:1], [40], 1, runs)}
    if dtype == torch.float32 or has_bfloat16():
        races["batch 16"] = race(model, other, prompts[:16], [24] * 16, 16, runs)
        races["8 at a time, mixed lengths"] = race(model, other, prompts, mixed, 8, runs)
    return races


def memory() -> dict:
    """Peak memory of generating with the 0.5B shape at batch 8, in a process of its own, against what it must hold."""
    program = """
import pathlib, re, torch
from figures.bench_decode import HALF_BILLION
from reference.sampling import generate
from reference.transformer import Config, Transformer
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
generate(Transformer(Config.from_dict({**HALF_BILLION, "vocab_size": 8, "hidden_size": 28, "num_hidden_layers": 1})),
         [[1]], max_new_tokens=2, stop_ids=[])  # what the libraries take once
before = peak()
model = Transformer(Config.from_dict(HALF_BILLION)).requires_grad_(False)
generate(model, torch.randint(0, 1000, (8, 512)).tolist(), max_new_tokens=8, stop_ids=[])
needed = 4 * model.num_parameters() + 8 * 520 * model.kv_bytes_per_token() + 8 * 4 * model.vocab_size
print(peak() - before, needed)
"""
    root = Path(__file__).resolve().parent.parent
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, env={**os.environ})
    used, needed = map(int, run.stdout.split())
    return {"used": used, "needed": needed}


def compute() -> dict:
    races = {"toy, 64 at a time, mixed lengths": toy_race(runs=5)}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        races |= {f"0.5B {name}, {what}": kept for what, kept in half_billion_races(dtype, runs=3).items()}
    return {"races": races, "memory": memory(), "capability": torch.backends.cpu.get_cpu_capability()}


def medians(result: dict):
    for name, speeds in result["races"].items():
        mine, other = (statistics.median(speeds[who]) for who in ("sharpening", "transformers"))
        pairs = [a / b for a, b in zip(speeds["sharpening"], speeds["transformers"])]
        yield name, mine, other, statistics.median(pairs), min(pairs), max(pairs)


def table(result: dict) -> str:
    lines = [f"{'useful tokens per second':36}{'sharpening':>12}{'transformers':>14}{'ratio':>8}  (range over pairs)"]
    for name, mine, other, ratio, low, high in medians(result):
        lines.append(f"{name:36}{mine:12.1f}{other:14.1f}{ratio:8.2f}  ({low:.2f} to {high:.2f})")
    used, needed = (result["memory"][key] / 2**30 for key in ("used", "needed"))
    lines.append(
        f"memory, 0.5B float32, batch 8: {used:.2f} GiB at the peak; weights + cache + logits are {needed:.2f}"
    )
    lines.append(f"{result['about']['machine']}; {result['capability']}")
    return "\n".join(lines)


def draw(result: dict):
    count = len(result["races"])
    figure, grid = plt.subplots(2, -(-count // 2), figsize=(1.6 * count, 6.4), layout="constrained", squeeze=False)
    axes = grid.flatten()
    for unused in axes[count:]:
        unused.set_axis_off()
    colours = {"sharpening": "#0072B2", "transformers": "#999999"}
    for axis, (name, speeds) in zip(axes, result["races"].items()):
        for x, (who, values) in enumerate(speeds.items()):
            axis.bar(x, statistics.median(values), color=colours[who], width=0.6)
            axis.plot([x] * len(values), values, "k.", markersize=4)
        axis.set_xticks(range(2), speeds)
        axis.set_title(name.replace(", ", "\n", 1), fontsize=10)
    axes[0].set_ylabel("useful tokens per second (bars: median; dots: runs)", fontsize=8)
    return figure
