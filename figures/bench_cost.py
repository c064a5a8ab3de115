"""What power sampling costs, over the length of the answers, the steps and the number of chains: theory and clock.

The toy model, α = 4, every record of the same length T (no stop token), so that without the two savings a chain decodes
T + N Σ_k (h_k + 1)/2 tokens on average (`theory/cost.py`), drawn as lines. Points are measured: tokens, and seconds,
these beside the same tokens at the speed at which `generate` decodes in as many slots, in the same run.
"""

import statistics
import time

import matplotlib.pyplot as plt
import torch

from figures.bench_decode import CHECKPOINT
from reference.power_sampling import PowerConfig, power_sample
from reference.sampling import generate
from reference.transformer import Transformer
from theory.cost import paper_tokens, tokens

DEPENDS = (
    "reference/interface.py", "reference/sampling.py", "reference/engine", "reference/randomness.py",
    "reference/transformer.py", "reference/power_sampling.py", "theory/cost.py", "toy/checkpoint/model.safetensors",
    "figures/bench_cost.py",
)  # fmt: skip
ALPHA, BLOCK, RUNS, PROMPT = 4.0, 16, 3, 16
LENGTH, STEPS, CHAINS = 64, 10, 64  # where they are not varied
VARIED = {"length": (16, 32, 64, 96), "steps": (0, 2, 5, 10, 20), "chains": (1, 4, 16, 64, 256)}


def measure(model: Transformer, length: int, steps: int, chains: int) -> dict:
    """Decoded tokens per chain, [chains] with and without savings; seconds of RUNS runs, and of one decoded token in a
    slot of `generate`, all slots at work."""
    prompts = torch.randint(0, 11, (chains, PROMPT), generator=torch.Generator().manual_seed(0)).tolist()
    out: dict = {"length": length, "steps": steps, "chains": chains, "tokens": {}, "seconds": {}}
    for name, savings in (("savings off", False), ("savings on", True)):
        config = PowerConfig(ALPHA, block=BLOCK, steps=steps, max_new_tokens=length, first_divergence_skip=savings,
                             early_reject=savings)  # fmt: skip
        out["seconds"][name] = []
        for run in range(RUNS):
            begin = time.perf_counter()
            costs = power_sample(model, prompts, config, stop_ids=[], slots=chains, seed=run).costs
            out["seconds"][name].append(time.perf_counter() - begin)
        out["tokens"][name] = [cost.decoded_tokens for cost in costs]
    times = []
    for run in range(RUNS):
        begin = time.perf_counter()
        generate(model, prompts, max_new_tokens=length, stop_ids=[], slots=chains, seed=run)
        times.append(time.perf_counter() - begin)
    out["second_per_token"] = statistics.median(times) / length
    return out


def compute() -> dict:
    model, result = Transformer.from_pretrained(CHECKPOINT), {}
    middle = {"length": LENGTH, "steps": STEPS, "chains": CHAINS}
    measure(model, 16, 2, 4)  # warm up
    for name, values in VARIED.items():
        result[name] = [measure(model, **{**middle, name: value}) for value in values]
    return {"alpha": ALPHA, "block": BLOCK, "varied": result}


def table(result: dict) -> str:
    lines = [
        f"{'length':>7}{'steps':>6}{'chains':>7}{'tokens':>9}{'theory':>8}{'saved':>8}{'seconds':>9}{'x generate':>12}"
    ]
    for rows in result["varied"].values():
        for row in rows:
            off, on = (statistics.mean(row["tokens"][name]) for name in ("savings off", "savings on"))
            spent, theory = statistics.median(row["seconds"]["savings off"]), tokens(row["length"], BLOCK, row["steps"])
            ratio = spent / (off * row["second_per_token"])
            lines.append(f"{row['length']:7}{row['steps']:6}{row['chains']:7}{off:9.1f}{theory:8.1f}"
                         f"{100 * (1 - on / off):6.0f} %{spent:9.2f}{ratio:12.2f}")  # fmt: skip
    return "\n".join(lines)


def draw(result: dict):
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    for axis, (name, rows) in zip(axes, result["varied"].items()):
        x = [row[name] for row in rows]
        theory = [tokens(row["length"], BLOCK, row["steps"]) for row in rows]
        clock = name == "chains"
        if clock:
            expected = [t * row["second_per_token"] for t, row in zip(theory, rows)]
            axis.plot(x, expected, "k-", linewidth=1, label="theory's tokens at generate's speed")
        else:
            axis.plot(x, theory, "k-", linewidth=1, label=r"theory: $T + N\sum_k (h_k+1)/2$")
            paper = [paper_tokens(row["length"], BLOCK, row["steps"]) for row in rows]
            axis.plot(x, paper, ":", color="#777777", label=r"in print: $N T^2/(4B)$")
        for label, colour in (("savings off", "#0072B2"), ("savings on", "#D55E00")):
            values = [row["seconds"][label] if clock else row["tokens"][label] for row in rows]
            centre = [statistics.median(each) if clock else statistics.mean(each) for each in values]
            axis.plot(x, centre, "o", color=colour, label=label)
            if clock:
                for place, each in zip(x, values):
                    axis.plot([place] * len(each), each, ".", color=colour, alpha=0.5)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set(xlabel={"length": "tokens of the answer, T", "steps": "steps per block, N", "chains": "chains"}[name],
                 ylabel="seconds" if clock else "decoded tokens per chain")  # fmt: skip
        if clock:
            axis.set(xscale="log", yscale="log")
            axis.set_xticks(x, x)
        axis.legend(fontsize=8)
    figure.suptitle(f"Power sampling on the toy model, α = {result['alpha']:g}, blocks of {result['block']}")
    return figure
