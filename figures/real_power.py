"""Power sampling on a real model: against low temperature, best-of-N and majority at equal decoded tokens (2510.14901,
Table 1 and Fig. 4 to 6).

SmolLM2-135M-Instruct (4-bit weights, dequantised), 200 questions of each family in both forms; chains for p^4 take 10
steps in each block of 8 tokens. Best-of-n and majority have as many responses as fit the tokens that the chains took,
question by question on average. Methods are compared by McNemar's exact test on the questions that they answer
differently. α, the number of steps, and pass@k are varied on two families that were named beforehand.
"""

import math

import matplotlib.pyplot as plt
import numpy as np

from figures import _real as R
from figures._style import BY_METHOD, tidy
from reference.evaluation.statistics import accuracy, binomial_tail, pass_at_k
from reference.power_sampling import PowerConfig, power_sample
from reference.sampling import generate
from toy.questions import FAMILIES

DEPENDS = (*R.DEPENDS, "reference/power_sampling.py", "figures/real_power.py")
QUESTIONS, N = 200, 16  # the pool is that of real_lift
POWER = PowerConfig(4.0, block=8, steps=10, max_new_tokens=R.HORIZON)
FOCUS, FEWER, K = ("products", "stories"), 100, 32  # for what is varied
ALPHAS, STEPS, KS = (1.0, 2.0, 4.0, 8.0), (2, 5, 10, 20, 40), (1, 2, 4, 8, 16, 32)
METHODS = {  # name -> (what it is called, colour)
    "temperature 1": ("temperature 1", BY_METHOD["one response"]),
    "greedy": ("greedy", BY_METHOD["greedy"]),
    "cold": ("temperature 1/4", "#555555"),
    "best": ("best of n by log p", BY_METHOD["best-of-N"]),
    "majority": ("majority of n", BY_METHOD["majority"]),
    "power": ("power sampling, p^4", BY_METHOD["power"]),
}


def mcnemar(a: np.ndarray, b: np.ndarray) -> dict:
    """Questions that only one of the two gets right, and the exact two-sided p-value of their being even."""
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    n, k = only_a + only_b, max(only_a, only_b)
    return {"only power": only_a, "only it": only_b, "p": min(1.0, 2 * binomial_tail(k, n, 0.5)) if n else 1.0}


def compare(asked: R.Asked) -> dict:
    """All methods on a family in one form."""
    pool = asked.draw("temperature 1", generate, samples_per_prompt=N)
    chosen = {
        "temperature 1": [own[0] for own in pool],
        "greedy": [own[0] for own in asked.draw("greedy", generate, temperature=0.0)],
        "cold": [own[0] for own in asked.draw("temperature 1/4", generate, temperature=0.25)],
        "power": [own[0] for own in asked.draw("power", power_sample, POWER)],
    }
    spent = float(np.mean([one["decoded"] for one in chosen["power"]]))
    length = float(R.column(pool, "tokens").mean())
    n = min(N, max(1, math.floor(spent / length)))
    for name, reward in (("best", "log-probability"), ("majority", "majority")):
        chosen[name] = [own[i] for own, i in zip(pool, R.best(pool, reward, n))]
    right = {name: np.array([one["right"] for one in own]) for name, own in chosen.items()}
    tokens = {name: float(np.mean([one["decoded"] for one in own])) for name, own in chosen.items()}
    tokens |= {"best": n * length, "majority": n * length}
    return {
        "n": n,
        "methods": {name: {"accuracy": accuracy(right[name].astype(float)), "decoded": tokens[name],
                           "logp": float(np.mean([one["logp"] for one in own])),
                           "tokens": float(np.mean([one["tokens"] for one in own]))}
                    for name, own in chosen.items()},
        "mcnemar": {name: mcnemar(right["power"], right[name]) for name in METHODS if name != "power"},
    }  # fmt: skip


def vary(asked: R.Asked) -> dict:
    """α at 10 steps, steps at α = 4: accuracy, mean log p, decoded tokens."""

    def one(config: PowerConfig) -> dict:
        rows = asked.draw("power", power_sample, config)
        return {
            "accuracy": accuracy(R.column(rows, "right")[:, 0].astype(float)),
            "logp": float(R.column(rows, "logp").mean()), "decoded": float(R.column(rows, "decoded").mean()),
        }  # fmt: skip

    return {
        "alpha": {alpha: one(PowerConfig(alpha, block=8, steps=10, max_new_tokens=R.HORIZON)) for alpha in ALPHAS},
        "steps": {n: one(PowerConfig(4.0, block=8, steps=n, max_new_tokens=R.HORIZON)) for n in STEPS},
    }


def passes(asked: R.Asked) -> dict:
    """pass@k of 32 responses by the model, at low temperature, and of 32 chains."""
    ways = {
        "temperature 1": asked.draw("temperature 1", generate, samples_per_prompt=K),
        "cold": asked.draw("temperature 1/4", generate, temperature=0.25, samples_per_prompt=K),
        "power": asked.draw("power", power_sample, POWER, samples_per_prompt=K),
    }
    counts = {name: R.column(rows, "right").sum(1) for name, rows in ways.items()}
    return {name: {k: accuracy([pass_at_k(K, int(c), k) for c in own]) for k in KS} for name, own in counts.items()}


def compute() -> dict:
    """An hour and a half on two cores, of which the pool is that of real_lift; goes on from what has been drawn."""
    speaker = R.speaker()
    cells = {family: {form: compare(R.Asked(speaker, family, form, QUESTIONS)) for form in R.FORMS}
             for family in FAMILIES}  # fmt: skip
    varied = {family: {form: vary(R.Asked(speaker, family, form, FEWER)) for form in R.FORMS} for family in FOCUS}
    passed = {family: passes(R.Asked(speaker, family, "raw", FEWER)) for family in FOCUS}
    return {"model": R.SOURCE, "questions": QUESTIONS, "fewer": FEWER, "seed": R.SEED, "cells": cells, "varied": varied,
            "passes": passed}  # fmt: skip


def table(result: dict) -> str:
    lines = [
        f"{result['model']}; {result['questions']} questions of each family; p: McNemar against power sampling",
        f"{'':18}" + "".join(f"{METHODS[name][0]:>20}" for name in METHODS) + f"{'n':>4}{'tokens':>8}",
    ]
    for family, forms in result["cells"].items():
        for form, cell in forms.items():
            line = f"{family + ', ' + form:18}"
            for name in METHODS:
                test = cell["mcnemar"].get(name)
                line += (
                    f"{cell['methods'][name]['accuracy'][0]:.2f}{'' if test is None else f' (p {said(test)})'}".rjust(
                        20
                    )
                )
            lines.append(line + f"{cell['n']:4}{cell['methods']['power']['decoded']:8.0f}")
    return "\n".join(lines)


def said(test: dict) -> str:
    return "<.001" if test["p"] < 0.001 else f"{test['p']:.3f}".lstrip("0")


def draw(result: dict) -> dict:
    return {"": draw_methods(result), "ablation": draw_ablation(result), "pass_at_k": draw_passes(result)}


def draw_methods(result: dict):
    figure, axes = plt.subplots(len(R.FORMS), len(result["cells"]), figsize=(14, 6), sharex=True, sharey=True,
                                layout="constrained")  # fmt: skip
    for row, form in zip(axes, R.FORMS):
        for axis, (family, forms) in zip(row, result["cells"].items()):
            for i, (name, (_, colour)) in enumerate(METHODS.items()):
                mean, low, high = forms[form]["methods"][name]["accuracy"]
                axis.errorbar(mean, i, xerr=[[mean - low], [high - mean]], fmt="o", color=colour, capsize=3)
                if (test := forms[form]["mcnemar"].get(name)) and test["p"] < 0.05:
                    axis.text(high + 0.03, i, "-" if test["only power"] > test["only it"] else "+", va="center",
                              fontsize=13, color=colour)  # fmt: skip
            axis.set_title(f"{family}, {form} (n = {forms[form]['n']})", fontsize=10)
            axis.set(xlim=(0, 1.08))
            tidy(axis)
        row[0].set_yticks(range(len(METHODS)), [called for called, _ in METHODS.values()])
    axes[0, 0].invert_yaxis()
    for axis in axes[-1]:
        axis.set_xlabel("accuracy (95 %)")
    figure.suptitle(f"At most the decoded tokens of power sampling: {result['model']}\n"
                    "(+, -: better or worse than power sampling, McNemar p < 0.05)")  # fmt: skip
    return figure


def draw_ablation(result: dict):
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharex="col", layout="constrained")
    styles = {"chat": "o-", "raw": "s--"}
    colours = dict(zip(FOCUS, (BY_METHOD["power"], BY_METHOD["tempering"])))
    for column, (what, label) in enumerate((("steps", "steps in each block, α = 4"), ("alpha", "α, at 10 steps"))):
        for family, forms in result["varied"].items():
            for form, cell in forms.items():
                rows = cell[what]
                x = [float(value) for value in rows]
                mean, low, high = np.array([row["accuracy"] for row in rows.values()]).T
                how = {"fmt": styles[form], "color": colours[family], "markersize": 4}
                axes[0, column].errorbar(
                    x, mean, (mean - low, high - mean), capsize=2, label=f"{family}, {form}", **how
                )
                logp = [row["logp"] for row in rows.values()]
                axes[1, column].plot(x, logp, styles[form], color=colours[family], markersize=4)
        axes[1, column].set(xscale="log", xlabel=label)
        axes[1, column].set_xticks(x, [f"{value:g}" for value in x])
        axes[1, column].minorticks_off()
    axes[0, 0].set_ylabel("accuracy (95 %)")
    axes[1, 0].set_ylabel("mean log p of the response (nats)")
    axes[0, 0].legend(fontsize=9)
    tidy(*axes.flat)
    figure.suptitle(f"Power sampling by its steps and by α: {result['model']}, {result['fewer']} questions")
    return figure


def draw_passes(result: dict):
    figure, axes = plt.subplots(1, len(result["passes"]), figsize=(10, 4.2), sharey=True, layout="constrained")
    for axis, (family, ways) in zip(axes, result["passes"].items()):
        for name, points in ways.items():
            mean, low, high = np.array(list(points.values())).T
            called, colour = METHODS[name]
            axis.fill_between(KS, low, high, color=colour, alpha=0.15, linewidth=0)
            axis.plot(KS, mean, "o-", color=colour, markersize=4, label=called)
        axis.set(title=f"{family}, raw", xscale="log", xlabel="k, responses to a question", ylim=(0, 1.02))
        axis.set_xticks(KS, KS)
        axis.minorticks_off()
        tidy(axis)
    axes[0].set_ylabel("pass@k (95 %)")
    axes[0].legend()
    figure.suptitle(f"Is one of k responses right? {result['model']}, {result['fewer']} questions")
    return figure
