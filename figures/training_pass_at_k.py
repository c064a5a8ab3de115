"""pass@k after training, k = 1..256: the model, low temperature, chains for p^4, SFT-Sharpening, and GRPO.

The first algorithm seed's held-out problems, 256 responses of each distribution to each problem; bands are bootstrap
intervals over problems. Below: log-probabilities under the base of right and of wrong responses, before and after
training.
"""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from figures import _training as T
from figures._style import BY_METHOD, RIGHT, WRONG

DEPENDS = T.DEPENDS


def compute() -> dict:
    return T.compare_laws()


LAWS = {
    "base": ("the model, temperature 1", BY_METHOD["one response"], "^"),
    "temperature": ("temperature 1/4", BY_METHOD["low temperature"], "s"),
    "power": ("chains for p^4, {steps} steps", BY_METHOD["power"], "o"),
    "sft": ("after SFT-Sharpening, N = 50", BY_METHOD["sft"], "D"),
    "grpo": ("after GRPO", BY_METHOD["grpo"], "v"),
}  # fmt: skip
TITLES = {"base": "before", "sft": "after SFT-Sharpening", "grpo": "after GRPO"}


def crossing(result: dict, law: str) -> int | None:
    """The least k at which GRPO's pass@k is below the other distribution's by more than its 95 % interval."""
    return next((k for k, (_, _, high) in zip(result["sizes"], result["grpo minus"][law]) if high < 0), None)


def table(result: dict) -> str:
    lines = [f"{'':32}" + "".join(f"{f'pass@{k}':>10}" for k in result["sizes"])]
    for law, (label, _, _) in LAWS.items():
        lines.append(
            f"{label.format(**result):32}" + "".join(f"{row[0]:10.3f}" for row in result["curves"][law]["all"])
        )
    for law, rows in result["grpo minus"].items():
        lines.append(f"{f'GRPO - {law}':32}" + "".join(f"{mean:+10.3f}" for mean, _, _ in rows))
    for law in result["grpo minus"]:
        k = crossing(result, law)
        lines.append(f"GRPO is surely below {law} {'at no k' if k is None else f'from k = {k}'}")
    return "\n".join(lines)


def draw(result: dict):
    figure = plt.figure(figsize=(14, 8), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    upper, lower = parts
    axes, sizes = upper.subplots(1, 4, sharey=True), result["sizes"]
    for axis, (group, count) in zip(axes, result["counts"].items()):
        for law, (label, colour, marker) in LAWS.items():
            mean, low, high = np.array(result["curves"][law][group]).T
            axis.fill_between(sizes, low, high, color=colour, alpha=0.12, linewidth=0)
            axis.plot(sizes, mean, f"{marker}-", color=colour, markersize=4.5, label=label.format(**result))
        axis.set(title=f"{group} ({count} problems)", xscale="log", xlabel="k, responses per problem", ylim=(0, 1.03))
        axis.set_xticks(sizes[::2], sizes[::2])
        axis.minorticks_off()
    axes[0].set_ylabel("pass@k (95 % interval)")
    upper.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    upper.suptitle("pass@k: is one of k responses right?")
    low, high = (np.array(result["edges"])[part] for part in (slice(None, -1), slice(1, None)))
    panels = lower.subplots(1, 3, sharey=True)
    for axis, (law, title) in zip(panels, TITLES.items()):
        right, wrong = (np.array(result["histograms"][law][name]) for name in ("right", "wrong"))
        middle, width = (low + high) / 2, high - low
        axis.bar(middle, right, width, color=RIGHT, alpha=0.85, label=f"right: {right.sum():.0%}")
        axis.bar(middle, -wrong, width, color=WRONG, alpha=0.85, hatch="//", edgecolor="white", linewidth=0,
                 label=f"wrong: {wrong.sum():.0%}")  # fmt: skip
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(title=title, xlabel="log-probability under the base, nats")
        axis.legend(loc="upper left", frameon=False)
        axis.yaxis.set_major_formatter(lambda share, _: f"{abs(share):.0%}")
    panels[0].set_ylabel("share of responses\n(up: right, down: wrong)")
    for axis in (*axes, *panels):
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure
