"""More rounds of self-verified distillation: what becomes of the judge.

The student learns the author's role alone; what that does to the judge in it is measured here. Side by side, each over
three rounds of draw, verify and train from the base: the live judge, the base as a frozen judge, and a live judge that
learns, beside each kept solution, one of its own calls (replay). Every student is probed as a judge of the base's
drafts of held-out problems, one vote of each stage: how many of the right and of the wrong ones does it accept?
"""

import matplotlib.pyplot as plt
import numpy as np

from figures._distillation import DEPENDS, compare_judges

__all__ = ["DEPENDS", "compute", "draw"]


def compute() -> dict:
    """A quarter of an hour on one core."""
    return compare_judges()


STYLES = {"live": ("#D55E00", "o"), "frozen": ("#0072B2", "s"), "replay": ("#009E73", "^")}  # Okabe-Ito
LABELS = {"live": "the judge is the last student (live)", "frozen": "the judge is the base (frozen)",
          "replay": "live, and learns its own calls too (replay)"}  # fmt: skip


def draw(result: dict):
    figure, axes = plt.subplots(2, 3, figsize=(14, 7.6), layout="constrained")
    stages = list(next(iter(result["modes"].values()))[0]["judge"])

    def lines(axis, value, first=0, line="-", **how):
        for m, (mode, places) in enumerate(result["modes"].items()):
            colour, marker = STYLES[mode]
            mean, low, high = np.array([value(place) for place in places[first:]]).T
            x = np.arange(first, len(places)) + 0.04 * (m - 1)
            axis.errorbar(x, mean, (mean - low, high - mean), fmt=marker + line, color=colour, capsize=2,
                          label=LABELS[mode], **how)  # fmt: skip
        axis.set_xticks(range(first, len(places)), ["base", *range(1, len(places))][first:])
        axis.set(ylim=(0, 1.04), xlabel="round")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)

    for axis, stage in zip(axes[0], stages):
        lines(axis, lambda place, stage=stage: place["judge"][stage]["right"])
        lines(axis, lambda place, stage=stage: place["judge"][stage]["wrong"], line=":", mfc="white")
        axis.set(title=f"The student as a judge: stage {stage!r}", ylabel="share accepted by one vote")
    axes[0, 0].text(0.02, 0.02, "filled: right drafts\nopen, dotted: wrong drafts", transform=axes[0, 0].transAxes,
                    fontsize=9)  # fmt: skip
    lines(axes[1, 0], lambda place: place["accuracy"]["all"])
    axes[1, 0].set(title="Student: accuracy at temperature 1", ylabel="accuracy")
    for axis, name, title in ((axes[1, 1], "coverage", "Questions with a valid candidate"),
                              (axes[1, 2], "precision", "Kept candidates that are right")):  # fmt: skip
        lines(axis, lambda place, name=name: place[name], first=1)
        axis.set(title=title, ylabel=name)
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"Rounds of self-verified distillation (n = {result['n']}, v = {result['votes']}): in this "
                    "world, a model that learns to write learns to judge", fontsize=13)  # fmt: skip
    return figure
