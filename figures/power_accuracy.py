"""What power sampling buys on the relay task, token for token: accuracy, log-probability and shortcuts.

Chains for p^α in one block against their number of steps N and against α, beside best-of-N and majority vote of
independent responses at temperature 1, over the same axis: decoded tokens per problem.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from figures._style import BY_METHOD
from figures.demo import CHECKPOINT, HORIZON, KINDS, SHORT, World, rewards
from reference.best_of_n import select
from reference.evaluation.statistics import accuracy
from reference.power_sampling import PowerConfig, power_sample
from reference.sampling import Samples
from reference.text.text_model import TextModel
from toy.relay import make_problems

DEPENDS = (
    "reference/interface.py", "reference/sampling.py", "reference/engine", "reference/randomness.py",
    "reference/transformer.py", "reference/power_sampling.py", "reference/best_of_n.py", "toy/relay.py",
    "toy/checkpoint/model.safetensors", "figures/power_accuracy.py",
)  # fmt: skip
PROBLEMS, POOL, SEED = 200, 32, 0
STEPS, ALPHAS, FIXED = (0, 1, 2, 5, 10, 20, 50, 100, 200, 400), (1.0, 2.0, 4.0, 8.0), 100
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 32)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """(mean, lower, upper) by the normal distribution of the mean over problems."""
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def measure(world: World, samples: Samples, tokens: np.ndarray) -> dict:
    """samples [problems, 1], tokens decoded for each problem [problems]."""
    right, kinds = world.right(samples)[:, 0], np.array([problem.kind for problem in world.problems])
    groups = {"all": np.ones(len(kinds), bool)} | {kind: kinds == kind for kind in KINDS}
    return {
        "tokens": interval(tokens),
        "accuracy": {group: accuracy(right[mask]) for group, mask in groups.items()},
        "logp": interval(samples.total_logp()[:, 0].numpy()),
        "short": accuracy((samples.lengths[:, 0] <= SHORT).double().tolist()),
    }


def compute() -> dict:
    world = World(TextModel.from_pretrained(CHECKPOINT), make_problems(PROBLEMS, seed=SEED + 1000))

    def power(alpha: float, steps: int) -> dict:
        drawn = power_sample(
            world.text_model.model, world.prompts,
            PowerConfig(alpha, block=HORIZON, steps=steps, max_new_tokens=HORIZON),
            stop_ids=world.text_model.stop_ids, keys=[problem.id for problem in world.problems], seed=SEED,
        )  # fmt: skip
        return measure(world, drawn.samples, np.array([float(cost.decoded_tokens) for cost in drawn.costs]))

    pool = world.sample(POOL).samples
    result: dict[str, dict] = {}
    for name in ("log-probability", "majority vote"):
        result[name] = {}
        for n in SIZES:
            first = pool.take(torch.arange(n).expand(PROBLEMS, n))
            chosen = select(first, rewards(world)[name](first))
            result[name][n] = measure(world, chosen, first.lengths.sum(1).double().numpy())
    return {
        "seed": SEED, "problems": PROBLEMS, "fixed": FIXED, **result,
        "steps": {n: power(4.0, n) for n in STEPS},
        "alphas": {alpha: power(alpha, FIXED) for alpha in ALPHAS},
    }  # fmt: skip


COLOURS = {
    "steps": BY_METHOD["power"], "log-probability": BY_METHOD["best-of-N"],
    "majority vote": BY_METHOD["majority"], "alphas": BY_METHOD["entropy cuts"],
}  # fmt: skip
LABELS = {
    "steps": "chains for p^4, N steps (number: N)", "alphas": "chains for p^α (number: α)",
    "log-probability": "best-of-N by log-probability", "majority vote": "majority vote of N",
}  # fmt: skip


def draw(result: dict):
    figure, axes = plt.subplots(2, 3, figsize=(14, 8), layout="constrained", sharex=True)

    def curve(axis, series: str, marker: str, key: str, group: str | None):
        rows = list(result[series].values())
        x = [row["tokens"][0] for row in rows]
        mean, low, high = np.array([row[key][group] if group else row[key] for row in rows]).T
        line = "none" if series == "alphas" else "-"
        axis.errorbar(x, mean, (mean - low, high - mean), fmt=marker, linestyle=line, color=COLOURS[series],
                      markersize=5, capsize=2, elinewidth=0.8, label=LABELS[series])  # fmt: skip
        if series in ("steps", "alphas"):
            for n, a, b in zip(result[series], x, mean):
                if series == "alphas" or int(n) in (10, 100, 400):
                    axis.annotate(f"{float(n):g}", (a, b), (4, -12), textcoords="offset points", fontsize=8,
                                  color=COLOURS[series])  # fmt: skip

    panels: list[tuple] = [("accuracy", group, f"Accuracy, {group} problems") for group in ("all", *KINDS)]
    panels.append(("logp", None, "Mean log-probability of the answer given (nats)"))
    panels.append(("short", None, "Share of short answers, which show no steps"))
    for axis, (key, group, title) in zip(axes.flat, panels):
        for series, marker in (("log-probability", "s"), ("majority vote", "^"), ("steps", "o"), ("alphas", "D")):
            curve(axis, series, marker, key, group)
        axis.set(title=title)
        if group:
            axis.set_ylim(-0.02, 1.05)
    for axis in axes.flat:
        axis.set_xscale("log")
        axis.set_xticks((10, 20, 50, 100, 200, 400), ("10", "20", "50", "100", "200", "400"))
        axis.minorticks_off()
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[1]:
        axis.set_xlabel("decoded tokens per problem")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(
        f"Power sampling against independent responses at the same tokens: {result['problems']} relay problems, "
        f"95 % intervals; α varied at N = {result['fixed']}"
    )
    return figure
