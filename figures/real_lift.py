"""Best-of-N on a real model: where it lifts greedy decoding, where it lowers it, and why (2412.01951, Fig. 1 and 2).

SmolLM2-135M-Instruct (4-bit weights, dequantised) is asked 200 questions of each of six families, as chat and raw.
From each 16 responses at temperature 1, at most 32 tokens long; best-of-N takes the first N of them, by three
self-rewards. All families, forms and settings were fixed before anything was drawn.
"""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from figures import _real as R
from figures._style import BY_METHOD, GREY, RIGHT, WRONG, tidy
from reference.evaluation.statistics import accuracy, pass_at_k
from reference.sampling import generate
from toy.questions import FAMILIES

DEPENDS = (*R.DEPENDS, "figures/real_lift.py")
QUESTIONS, N = 200, 16
SIZES = (1, 2, 4, 8, 16)
REWARDS = ("log-probability", "per token", "majority")
EDGES = np.arange(-80, 1, 2.0)  # of log p, in nats


def measure(asked: R.Asked) -> dict:
    pool = asked.draw("temperature 1", generate, samples_per_prompt=N)
    greedy = asked.draw("greedy", generate, temperature=0.0)
    cold = asked.draw("temperature 1/4", generate, temperature=0.25)
    right, logp, base = R.column(pool, "right"), R.column(pool, "logp"), R.column(greedy, "right")[:, 0]
    every = np.arange(len(right))
    found: dict = {
        "greedy": accuracy(base), "temperature 1/4": accuracy(R.column(cold, "right")[:, 0]),
        "temperature 1": accuracy(right.mean(1)),
        "any right": {n: accuracy([pass_at_k(N, int(k), n) for k in right.sum(1)]) for n in SIZES},
        "tokens": {"temperature 1": R.column(pool, "tokens").mean(), "greedy": R.column(greedy, "tokens").mean(),
                   "right": float(R.column(pool, "tokens")[right].mean()) if right.any() else None,
                   "wrong": float(R.column(pool, "tokens")[~right].mean())},
        "logp": {kind: np.histogram(logp[mask].clip(EDGES[0]), EDGES)[0].tolist()
                 for kind, mask in (("right", right), ("wrong", ~right))},
        "read": {"pool": float((R.column(pool, "answer") != None).mean()),  # noqa: E711 (elementwise)
                 "ended": float(R.column(pool, "finished").mean())},
    }  # fmt: skip
    for reward in REWARDS:
        chosen = {n: right[every, R.best(pool, reward, n)] for n in SIZES}
        found[reward] = {n: accuracy(own) for n, own in chosen.items()}
        found[f"{reward}, lift"] = {n: R.difference(own, base) for n, own in chosen.items()}
    return found


def compute() -> dict:
    """An hour on two cores; goes on from the last family that was drawn."""
    speaker = R.speaker()
    cells = {family: {form: measure(R.Asked(speaker, family, form, QUESTIONS)) for form in R.FORMS}
             for family in FAMILIES}  # fmt: skip
    return {"model": R.SOURCE, "questions": QUESTIONS, "n": N, "horizon": R.HORIZON, "seed": R.SEED, "took": R.took(),
            "cells": cells}  # fmt: skip


def table(result: dict) -> str:
    n = str(result["n"])
    lines = [
        f"{result['model']}: {result['questions']} questions a row, accuracy of one response",
        f"{'':17}{'T = 1':>7}{'T = 1/4':>9}{'greedy':>8}{f'best of {n}':>12}{'minus greedy':>23}"
        f"{'majority':>10}{'any':>6}",
    ]
    for form in R.FORMS:
        for family, forms in result["cells"].items():
            cell = forms[form]
            lift, low, high = cell["log-probability, lift"][n]
            mark = "+" if low > 0 else "-" if high < 0 else " "
            gap = f"{lift:+.2f} [{low:+.2f}, {high:+.2f}] {mark}"
            lines.append(
                f"{family + ', ' + form:17}{cell['temperature 1'][0]:7.2f}{cell['temperature 1/4'][0]:9.2f}"
                f"{cell['greedy'][0]:8.2f}{cell['log-probability'][n][0]:12.2f}{gap:>23}"
                f"{cell['majority'][n][0]:10.2f}{cell['any right'][n][0]:6.2f}"
            )
    notes = (
        f"best of {n}: by the model's own log-probability; majority, any: of the same {n} responses at temperature 1",
        "+, -: the 95 % interval, paired by question, does not hold 0",
    )
    return "\n".join([*lines, "", *notes])


def short(result: dict) -> str:
    """Greedy decoding and best-of-N, as chat and raw."""
    n = str(result["n"])
    lines = [f"{'':10}" + "".join(f"{f'as {form}: greedy':>20}{f'best of {n}':>12}{'lift':>8}" for form in R.FORMS)]
    for family, forms in result["cells"].items():
        line = f"{family:10}"
        for form in R.FORMS:
            mean, low, high = forms[form]["log-probability, lift"][n]
            sure = "*" if low > 0 or high < 0 else " "
            line += f"{forms[form]['greedy'][0]:20.2f}{forms[form]['log-probability'][n][0]:12.2f}{mean:+7.2f}{sure}"
        lines.append(line)
    notes = (
        f"accuracy on {result['questions']} questions; best by log-probability; *: the 95 % interval does not hold 0"
    )
    return "\n".join([*lines, notes])


def tables(result: dict) -> dict[str, str]:
    return {"real_lift": table(result), "real-short": short(result)}


def draw(result: dict) -> dict:
    return {"": draw_lift(result), "logp": draw_logp(result), "n": draw_n(result)}


def draw_lift(result: dict):
    """The heat map: best of N minus greedy decoding."""
    rows = [(family, form) for form in R.FORMS for family in result["cells"]]
    figure, axes = plt.subplots(1, len(REWARDS), figsize=(13, 7.5), sharey=True, layout="constrained")
    image: Any = None
    for axis, reward in zip(axes, REWARDS):
        lift = np.array(
            [[result["cells"][family][form][f"{reward}, lift"][str(n)] for n in SIZES] for family, form in rows]
        )
        image = axis.imshow(100 * lift[..., 0], cmap="RdBu", vmin=-50, vmax=50, aspect="auto")
        for i, j in np.ndindex(lift.shape[:2]):
            mean, low, high = 100 * lift[i, j]
            sure = low > 0 or high < 0
            weight, colour = "bold" if sure else "normal", "white" if abs(mean) > 35 else "black"
            axis.text(j, i, f"{mean:+.0f}", ha="center", va="center", fontsize=9, fontweight=weight, color=colour)
        axis.set_xticks(range(len(SIZES)), SIZES)
        axis.set_yticks(range(len(rows)), [f"{family}, {form}" for family, form in rows])
        axis.set(title=f"by {reward}", xlabel="N, responses that one is chosen from")
    figure.colorbar(image, ax=axes, label="points of accuracy")
    said = f"{result['model']}, {result['questions']} questions a row; bold: 95 % interval without 0"
    figure.suptitle(f"Best-of-N minus greedy decoding, points of accuracy\n({said})")
    return figure


def panels(result: dict, **how: Any):
    columns = len(result["cells"])
    size = (2.3 * columns, 5.4)
    return plt.subplots(len(R.FORMS), columns, figsize=size, sharex=True, layout="constrained", **how)


def draw_logp(result: dict):
    """Log-probabilities of right and wrong responses."""
    figure, axes = panels(result, sharey="row")
    for row, form in zip(axes, R.FORMS):
        for axis, (family, forms) in zip(row, result["cells"].items()):
            counts = forms[form]["logp"]
            whole = sum(map(sum, counts.values()))
            for kind, colour in (("right", RIGHT), ("wrong", WRONG)):
                axis.stairs(np.array(counts[kind]) / whole, EDGES, fill=True, alpha=0.55, color=colour, label=kind)
            axis.set_title(f"{family}, {form}", fontsize=10)
            tidy(axis)
        row[0].set_ylabel("share of responses per 2 nats")
    for axis in axes[-1]:
        axis.set_xlabel("log p (first bar: −80 or less)")
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(f"Is the likely response the right one? {result['model']}, temperature 1")
    return figure


def draw_n(result: dict):
    """Accuracy against N."""
    figure, axes = panels(result, sharey=True)
    colours = {"log-probability": BY_METHOD["best-of-N"], "per token": BY_METHOD["best-of-N, per token"],
               "majority": BY_METHOD["majority"], "any right": BY_METHOD["pass@N"]}  # fmt: skip
    for row, form in zip(axes, R.FORMS):
        for axis, (family, forms) in zip(row, result["cells"].items()):
            for name, colour in colours.items():
                mean, low, high = np.array([forms[form][name][str(n)] for n in SIZES]).T
                axis.plot(SIZES, mean, "o-", color=colour, markersize=3, label=name)
                axis.fill_between(SIZES, low, high, color=colour, alpha=0.15, linewidth=0)
            axis.axhline(
                forms[form]["greedy"][0], color=BY_METHOD["greedy"], linestyle="--", linewidth=1.2, label="greedy"
            )
            axis.axhline(
                forms[form]["temperature 1/4"][0], color=GREY, linestyle=":", linewidth=1.2, label="temperature 1/4"
            )
            axis.set_title(f"{family}, {form}", fontsize=10)
            axis.set(xscale="log", ylim=(0, 1.02))
            axis.set_xticks(SIZES, SIZES, fontsize=8)
            axis.minorticks_off()
            tidy(axis)
        row[0].set_ylabel("accuracy (95 %)")
    for axis in axes[-1]:
        axis.set_xlabel("N")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    figure.suptitle(f"Best-of-N by three self-rewards, {result['model']}")
    return figure
