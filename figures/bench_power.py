"""Power sampling on the CPU against a straightforward implementation on transformers' `generate`, in one run.

The toy checkpoint, α = 4, one block, the same number of steps. Ours: 64 chains of 64 problems, with the two savings and
without. Theirs: one chain at a time, each step a call of `generate` on prompt and kept prefix, which it prefills anew,
with the logits asked for; so work the implementations in circulation. Both sample the same distribution. Speed is
counted in Metropolis-Hastings steps that a chain without savings decodes for (a cut behind a record's end is free for
all), per second. Runs alternate. Beside it one chain alone, whose steps are proposed 0 to 7 ahead.
"""

import statistics
import time
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from figures.bench_decode import oracle
from figures.demo import CHECKPOINT, HORIZON, World
from reference.power_sampling import PowerConfig, power_sample
from reference.text.text_model import TextModel
from toy.relay import make_problems

DEPENDS = (
    "reference/interface.py", "reference/sampling.py", "reference/engine", "reference/randomness.py",
    "reference/transformer.py", "reference/power_sampling.py", "toy/checkpoint/model.safetensors",
    "figures/bench_power.py",
)  # fmt: skip
ALPHA, STEPS, CHAINS, THEIR_CHAINS, RUNS = 4.0, 50, 64, 2, 3
AHEAD = (0, 1, 3, 7)


@torch.no_grad()
def theirs(model, prompts: list[list[int]], stop_ids: frozenset[int], steps: int, seed: int) -> int:
    """Chains one after the other; the number of steps that decoded."""
    rng, decoded = np.random.default_rng(seed), 0
    torch.manual_seed(seed)

    def continued(prompt: list[int], prefix: list[int]) -> tuple[list[int], list[float]]:
        """Tokens drawn after a prefix, and α log p - log q of each."""
        ids = torch.tensor([prompt + prefix])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=HORIZON - len(prefix), do_sample=True, top_k=0,
            temperature=1 / ALPHA, eos_token_id=list(stop_ids), pad_token_id=0, return_dict_in_generate=True,
            output_logits=True, output_scores=True,
        )  # fmt: skip
        tokens = out.sequences[0, ids.shape[1] :]
        logp, logq = (torch.cat(kept).log_softmax(-1).gather(1, tokens[:, None]) for kept in (out.logits, out.scores))
        return tokens.tolist(), (ALPHA * logp - logq)[:, 0].tolist()

    for prompt in prompts:
        tokens, weights = continued(prompt, [])
        for _ in range(steps):
            cut = int(rng.integers(HORIZON))
            if cut >= len(tokens):
                continue
            decoded += 1
            proposal, weight = continued(prompt, tokens[:cut])
            if np.log(rng.random()) < sum(weight) - sum(weights[cut:]):
                tokens, weights = tokens[:cut] + proposal, weights[:cut] + weight
    return decoded


def compute() -> dict:
    import transformers  # only here: it is what we are compared with

    text_model = TextModel.from_pretrained(CHECKPOINT)
    prompts = World(text_model, make_problems(CHAINS, seed=1000)).prompts
    other = oracle(transformers.AutoConfig.from_pretrained(CHECKPOINT))
    model: Any = text_model.model
    weights = model.state_dict()
    other.load_state_dict({f"model.{name}": weight for name, weight in weights.items()}, strict=False)

    def ours(run: int, chains: int = CHAINS, steps: int = STEPS, **setting):
        config = PowerConfig(ALPHA, block=HORIZON, steps=steps, max_new_tokens=HORIZON, cut="horizon", **setting)
        begin = time.perf_counter()
        out = power_sample(text_model.model, prompts[:chains], config, stop_ids=text_model.stop_ids, seed=run)
        return time.perf_counter() - begin, out

    plain = {"first_divergence_skip": False, "early_reject": False}
    speeds: dict[str, list[float]] = {"sharpening": [], "sharpening, savings off": [], "transformers": []}
    for run in range(RUNS + 1):
        seconds, out = ours(run, **plain)
        decoded = int((~out.behind).sum())  # as there; the chains are the same with the savings
        begin = time.perf_counter()
        their_steps = theirs(other, prompts[:THEIR_CHAINS], text_model.stop_ids, STEPS, run)
        their_seconds = time.perf_counter() - begin
        if run:  # the first does not count
            speeds["sharpening"].append(decoded / ours(run)[0])
            speeds["sharpening, savings off"].append(decoded / seconds)
            speeds["transformers"].append(their_steps / their_seconds)
    latency: dict[int, dict[str, list[float]]] = {ahead: {"seconds": [], "sequential": []} for ahead in AHEAD}
    for run in range(RUNS + 1):
        for ahead, kept in latency.items():
            seconds, out = ours(run, chains=1, steps=400, prefetch=ahead, **plain)
            if run:
                kept["seconds"].append(seconds)
                kept["sequential"].append(out.cost.sequential_tokens)
    return {"alpha": ALPHA, "steps": STEPS, "chains": CHAINS, "speeds": speeds, "latency": latency}


def table(result: dict) -> str:
    speed = {name: statistics.median(values) for name, values in result["speeds"].items()}
    pairs = [a / b for a, b in zip(result["speeds"]["sharpening"], result["speeds"]["transformers"])]
    lines = [f"{'Metropolis-Hastings steps per second':44}{'steps':>8}{'ratio':>8}"]
    for name, value in speed.items():
        chains = 1 if name == "transformers" else result["chains"]
        lines.append(f"{f'{name}, {chains} at a time':44}{value:8.1f}{value / speed['transformers']:8.1f}")
    lines.append(f"ratio over pairs of runs: {min(pairs):.1f} to {max(pairs):.1f}; the machine was shared")
    for ahead, kept in result["latency"].items():
        seconds, sequential = (statistics.median(kept[key]) for key in ("seconds", "sequential"))
        lines.append(f"one chain, {ahead} steps ahead: {seconds:6.2f} s, {sequential:6.0f} tokens in a row")
    return "\n".join(lines)


def draw(result: dict):
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    colours = ("#0072B2", "#56B4E9", "#999999")
    for x, (values, colour) in enumerate(zip(result["speeds"].values(), colours)):
        left.bar(x, statistics.median(values), color=colour, width=0.6)
        left.plot([x] * len(values), values, "k.", markersize=5)
        left.text(x + 0.08, statistics.median(values) * 1.1, f"{statistics.median(values):.0f}", fontsize=9)
    left.set_xticks(range(3), [name.replace(", ", "\n") for name in result["speeds"]])
    left.set(yscale="log", ylabel="Metropolis-Hastings steps per second",
             title=f"{result['chains']} chains against one at a time")  # fmt: skip
    ahead = [int(key) for key in result["latency"]]
    for key, colour, marker in (("seconds", "#0072B2", "o"), ("sequential", "#D55E00", "s")):
        kept = np.array([row[key] for row in result["latency"].values()])  # [ahead, runs]
        relative = kept / kept[0]  # each run to itself: some chains end early
        label = {"seconds": "wall time", "sequential": "tokens in a row"}[key]
        right.plot(ahead, np.median(relative, 1), f"{marker}-", color=colour, label=label)
        right.plot(ahead, relative, ".", color=colour, alpha=0.5)
    right.axhline(1, color="#777777", linewidth=0.8)
    right.set_xticks(ahead)
    right.set(xlabel="steps proposed ahead (prefetch)", ylabel="relative to no prefetching", ylim=(0, None),
              title="One chain alone: latency")  # fmt: skip
    right.legend()
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Bars and lines: medians; dots: runs. The machine was shared")
    return figure
