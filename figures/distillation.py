"""Self-verified distillation on the relay task: what each filter is worth, and what n and v are.

From each seed's unlabeled questions eight candidates each are drawn once and every vote on them is cast once; every
student here is the base, trained for the same number of steps on what one way of reading that record keeps. Students
answer held-out problems at temperature 1. The oracle alone has seen answers. Beside them the cascade at test time
(UQ-TTC), with what each answer costs; and the worlds whose reviewers are no better than their authors.
"""

import json

import matplotlib.pyplot as plt
import numpy as np

from figures._distillation import DEPENDS, NULL, NULL_RESULTS, N, V, compare_filters
from figures._refinement import COLOURS, KINDS
from figures._style import BY_METHOD, GREY, tidy

__all__ = ["DEPENDS", "compute", "draw", "table"]
NAMES = {"oracle": "oracle of answers"}
FILTERS = ("no filter", "cycle alone", "facts alone", "correct alone", "cascade", "oracle", "oracle of steps")


def compute() -> dict:
    """A quarter of an hour on one core."""
    return compare_filters()


def table(result: dict) -> str:
    head = (
        f"{'learned from':22}{'kept':>7}{'right':>8}{'accuracy':>10} {'95 %':16}{'plain':>7}{'tempting':>9}{'hard':>6}"
    )
    lines = [
        f"{result['questions']} unlabeled questions, {result['n']} candidates, {result['votes']} votes a stage, "
        f"{len(result['seeds'])} seeds; {result['heldout']} held-out problems each", "", head,
    ]  # fmt: skip

    def line(name, row):
        mean, low, high = row["accuracy"]["all"]
        kept = f"{row['kept']:7}{row['precision'][0]:8.3f}" if row.get("kept") else f"{'':15}"
        cells = (
            f"{row['accuracy']['plain'][0]:6.2f}{row['accuracy']['tempting'][0]:9.2f}{row['accuracy']['hard'][0]:6.2f}"
        )
        return f"{name:22}{kept}{mean:10.3f} [{low:.3f}, {high:.3f}]{cells:>22}"

    lines.append(line("nothing (base)", result["base"]))
    lines += [line(name, row) for name, row in result["rows"].items()]
    ttc = result["ttc"]
    lines += [line("base with UQ-TTC", ttc), "", f"tokens per answer: student {ttc['one response']:.0f}, UQ-TTC "
              f"{ttc['tokens']:.0f}, {ttc['tokens, lazy']:.0f} if it stops at the first valid candidate"]  # fmt: skip
    return "\n".join(lines)


def bars(axis, rows: dict, base: dict, groups=("all", *KINDS)) -> None:
    """Accuracy by class for each row, the base as a dashed line behind it."""
    width = 0.8 / len(groups)
    for g, group in enumerate(groups):
        mean, low, high = np.array([row["accuracy"][group] for row in rows.values()]).T
        x = np.arange(len(rows)) + (g - (len(groups) - 1) / 2) * width
        axis.bar(x, mean, width * 0.9, color=COLOURS[group], alpha=0.85, label=group)
        axis.errorbar(x, mean, (mean - low, high - mean), fmt="none", ecolor="#555555", elinewidth=1)
        axis.axhline(base["accuracy"][group][0], color=COLOURS[group], linestyle="--", linewidth=1)
    axis.set(ylim=(0, 1.04))


def draw(result: dict) -> dict:
    return {"": draw_filters(result), "cost": draw_cost(result), "null": draw_null()}


def draw_filters(result: dict):
    """What each filter is worth."""
    figure, axis = plt.subplots(figsize=(14, 4.8), layout="constrained")
    rows = {name: result["rows"][name] for name in FILTERS}
    bars(axis, rows, result["base"])
    for i, row in enumerate(rows.values()):
        axis.plot(np.full(len(row["seeds"]), i - 0.3), row["seeds"], "o", color="white", markeredgecolor="black",
                  markersize=4, label="a seed" if i == 0 else None)  # fmt: skip
    kept = [f"kept {row['kept']}, {100 * row['precision'][0]:.1f} % right" for row in rows.values()]
    axis.set_xticks(range(len(rows)), [f"{NAMES.get(name, name)}\n{how}" for name, how in zip(rows, kept)])
    axis.set(ylabel="accuracy at temperature 1 (95 %)",
             title="Self-verified distillation: after learning from the candidates that a filter keeps "
             "(dashed: before)")  # fmt: skip
    axis.legend(loc="upper left", ncols=5, frameon=False)
    tidy(axis)
    return figure


def draw_cost(result: dict):
    """Candidates and votes; and the cascade at training time against the cascade at test time."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.6), width_ratios=(1, 1, 1.4), layout="constrained")
    for axis, (name, value) in zip(axes, (("accuracy of the student", lambda row: row["accuracy"]["all"][0]),
                                          ("share of kept candidates that are right",
                                           lambda row: row["precision"][0]))):  # fmt: skip
        cells = np.array([[value(result["grid"][f"{n},{v}"]) for v in V] for n in N])
        axis.imshow(cells, cmap="Blues", vmin=cells.min() - (np.ptp(cells) or 1) * 0.5, vmax=cells.max(), aspect="auto")
        for i, n in enumerate(N):
            for j, v in enumerate(V):
                kept, cell = result["grid"][f"{n},{v}"]["kept"], cells[i, j]
                dark = cell > cells.min() + 0.6 * np.ptp(cells)
                axis.text(j, i, f"{cell:.3f}\n({kept} kept)", ha="center", va="center",
                          color="white" if dark else "black")  # fmt: skip
        axis.set_xticks(range(len(V)), V)
        axis.set_yticks(range(len(N)), N)
        axis.set(title=name, xlabel="v, votes per stage", ylabel="n, candidates of a question")
    ttc, axis = result["ttc"], axes[2]
    for name, x, row, colour, marker, offset in (
        ("the model", ttc["one response"], result["base"], BY_METHOD["one response"], "s", (8, -4)),
        ("the student", ttc["one response"], result["rows"]["cascade"], BY_METHOD["distilled"], "o", (8, -4)),
        ("UQ-TTC, stops at\nthe first valid", ttc["tokens, lazy"], ttc, BY_METHOD["uq-ttc"], "v", (-6, -34)),
        ("UQ-TTC,\nall 8", ttc["tokens"], ttc, BY_METHOD["uq-ttc"], "^", (-6, 12)),
    ):
        mean, low, high = row["accuracy"]["all"]
        axis.errorbar(x, mean, [[mean - low], [high - mean]], fmt=marker, color=colour, capsize=3, markersize=8)
        axis.annotate(name, (x, mean), offset, textcoords="offset points", fontsize=9)
    axis.set(xscale="log", ylim=(0, 1.04), xlim=(20, 2500), xlabel="tokens in and out, per answer",
             ylabel="accuracy (95 %)", title="The cascade at training time, or at test time")  # fmt: skip
    tidy(axis)
    return figure


def draw_null():
    """The cascade's gain in each world, by class; the interval adds the student's and the base's in squares."""
    figure, axis = plt.subplots(figsize=(8, 4.6), layout="constrained")
    null = json.loads(NULL_RESULTS.read_text())
    worlds = {name: null[name] for name in ("relay", *NULL)}
    width = 0.25
    for g, group in enumerate(("all", "plain", "hard")):
        pairs = np.array([[world[0]["accuracy"][group], world[1]["accuracy"][group]] for world in
                          ((each["rows"]["cascade"], each["base"]) for each in worlds.values())])  # fmt: skip
        error = np.sqrt((((pairs[..., 2] - pairs[..., 1]) / 2) ** 2).sum(1))
        axis.bar(np.arange(len(worlds)) + (g - 1) * width, pairs[:, 0, 0] - pairs[:, 1, 0], width * 0.9, yerr=error,
                 color=COLOURS[group], ecolor=GREY, label=group)  # fmt: skip
    axis.axhline(0, color="black", linewidth=0.8)
    names = ("relay: reviewers\nerr less than authors", "careless:\nas often", "misguided: more often\non hard ones")
    axis.set_xticks(range(len(worlds)), names)
    axis.set(ylabel="gain in accuracy by the cascade (v = 2)", ylim=(None, 0.82),
             title="Where reviewers are no better than authors, distillation gains less, or loses")  # fmt: skip
    axis.legend(frameon=False, loc="upper right", ncols=3)
    tidy(axis)
    return figure
