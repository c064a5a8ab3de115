"""Every sampler of p^4 on a real model: how likely, and how often right, its answers are at equal decoded tokens and at
equal tokens that wait for each other.

SmolLM2-135M-Instruct (4-bit weights, dequantised), 100 questions of two families that were named beforehand, raw. p^4
cannot be enumerated here: its mean log p is what all samplers of it tend to as they are given more. Best-of-N tends to
the likeliest response instead, so it may pass them.
"""

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from figures import _real as R
from figures._style import BY_METHOD, tidy
from reference.evaluation.statistics import accuracy
from reference.interface import Generation
from reference.lookahead import LookaheadConfig, lookahead
from reference.multiple_try import MultipleTryConfig, multiple_try
from reference.parallel_tempering import TemperingConfig, parallel_tempering
from reference.power_sampling import PowerConfig, power_sample
from reference.power_smc import SMCConfig, power_smc
from reference.sampling import generate

DEPENDS = (
    *R.DEPENDS, "reference/power_sampling.py", "reference/multiple_try.py", "reference/parallel_tempering.py",
    "reference/power_smc.py", "reference/lookahead.py", "figures/real_samplers.py",
)  # fmt: skip
FAMILIES, QUESTIONS, ALPHA, POOL = ("products", "stories"), 100, 4.0, 16
CHAIN: dict[str, Any] = {"block": 8, "max_new_tokens": R.HORIZON}
SETTINGS = {  # method -> what is varied
    "power": (2, 5, 10, 20, 40), "entropy": (2, 5, 10, 20), "tries": (1, 2, 5, 10), "tempering": (1, 2, 4, 8),
    "smc": (2, 4, 8, 16, 32), "chunks": (2, 4, 8, 16), "best": (1, 2, 4, 8, 16),
}  # fmt: skip
NAMES = {  # method -> (name, colour, marker)
    "cold": ("temperature 1/4", BY_METHOD["low temperature"], "*"),
    "power": ("power sampling", BY_METHOD["power"], "o"),
    "entropy": ("power sampling, entropy cuts", BY_METHOD["entropy cuts"], "h"),
    "tries": ("multiple try, 4 tries", BY_METHOD["multiple try"], "s"),
    "tempering": ("parallel tempering, 3 rungs", BY_METHOD["tempering"], "D"),
    "smc": ("power SMC", BY_METHOD["smc"], "^"),
    "chunks": ("look-ahead by chunks of 8", BY_METHOD["chunks"], "P"),
    "best": ("best-of-N by log p", BY_METHOD["best-of-N"], "X"),
}
PICTURES = {
    "": ("cold", "power", "tempering", "smc", "chunks", "best"),
    "chains": ("cold", "power", "entropy", "tries"),
}


def answers(asked: R.Asked, method: str, size: int) -> list[dict]:
    """One for each question."""
    if method == "best":
        pool = asked.draw("temperature 1", generate, samples_per_prompt=POOL)
        chosen = R.best(pool, "log-probability", size)
        return [{**own[i], "decoded": sum(one["tokens"] for one in own[:size]),
                 "sequential": max(one["tokens"] for one in own[:size])} for own, i in zip(pool, chosen)]  # fmt: skip
    how: dict[str, Callable[[], tuple[Callable[..., Generation], Any]]] = {
        "power": lambda: (power_sample, PowerConfig(ALPHA, **CHAIN, steps=size)),
        "entropy": lambda: (power_sample, PowerConfig(ALPHA, **CHAIN, steps=size, cut="entropy")),
        "tries": lambda: (multiple_try, MultipleTryConfig(ALPHA, **CHAIN, steps=size, tries=4)),
        "tempering": lambda: (parallel_tempering, TemperingConfig(ALPHA, **CHAIN, steps=size, rungs=3)),
        "smc": lambda: (power_smc, SMCConfig(ALPHA, particles=size, max_new_tokens=R.HORIZON)),
        "chunks": lambda: (lookahead, LookaheadConfig(
            ALPHA, max_new_tokens=R.HORIZON, chunk=8, candidates=size, rollouts=1, rollout_law="g", chunk_law="g",
        )),
    }  # fmt: skip
    return [own[0] for own in asked.draw(method, *how[method]())]


def numbers(rows: list[dict]) -> dict:
    logp = np.array([one["logp"] for one in rows])
    half = 1.96 * logp.std(ddof=1) / len(logp) ** 0.5
    return {
        "accuracy": accuracy([float(one["right"]) for one in rows]),
        "logp": [float(logp.mean()), float(logp.mean() - half), float(logp.mean() + half)],
        **{name: float(np.mean([one[name] for one in rows])) for name in ("decoded", "sequential")},
    }


def compute() -> dict:
    speaker, found = R.speaker(), {}
    for family in FAMILIES:
        asked = R.Asked(speaker, family, "raw", QUESTIONS)
        cold = [own[0] for own in asked.draw("temperature 1/4", generate, temperature=1 / ALPHA)]
        found[family] = {"cold": {1: numbers(cold)}} | {
            method: {size: numbers(answers(asked, method, size)) for size in sizes}
            for method, sizes in SETTINGS.items()
        }
    return {
        "model": R.SOURCE,
        "questions": QUESTIONS,
        "alpha": ALPHA,
        "seed": R.SEED,
        "took": R.took(),
        "families": found,
    }


def draw(result: dict) -> dict:
    return {name: picture(result, methods) for name, methods in PICTURES.items()}


def picture(result: dict, methods: tuple[str, ...]):
    lowest = min(row["logp"][1] for found in result["families"].values() for method in methods if method != "best"
                 for row in found[method].values())  # fmt: skip
    figure, axes = plt.subplots(2, 2 * len(result["families"]), figsize=(16, 7.5), sharey="row", layout="constrained")
    for i, (family, found) in enumerate(result["families"].items()):
        for j, (budget, label) in enumerate((("decoded", "decoded tokens per answer"),
                                             ("sequential", "tokens that wait for each other"))):  # fmt: skip
            for row, key in enumerate(("logp", "accuracy")):
                axis = axes[row, 2 * i + j]
                for method in methods:
                    name, colour, marker = NAMES[method]
                    rows = list(found[method].values())
                    mean, low, high = np.array([each[key] for each in rows]).T
                    axis.errorbar([each[budget] for each in rows], mean, (mean - low, high - mean), fmt=f"{marker}-",
                                  color=colour, capsize=2, elinewidth=0.7, markersize=5, label=name)  # fmt: skip
                axis.set(xscale="log", xlabel=label, title=f"{family}, raw")
                if key == "logp":
                    axis.set_ylim(bottom=lowest - 0.3)
                tidy(axis)
    axes[0, 0].set_ylabel("mean log p of the answer (nats, 95 %)")
    axes[1, 0].set_ylabel("accuracy (95 %)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    below = " (log p of best-of-N at small N: below the panels)" if "best" in methods else ""
    figure.suptitle(f"Samplers of p^{result['alpha']:g}: {result['model']}, {result['questions']} questions{below}")
    return figure
