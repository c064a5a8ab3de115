"""Power sampling on a real model: against low temperature, best-of-N and majority at equal decoded tokens (2510.14901,
Table 1).

SmolLM2-135M-Instruct (4-bit weights, dequantised), 200 questions of each family in both forms; chains for p^4 take 10
steps in each block of 8 tokens. Best-of-n and majority have as many responses as fit the tokens that the chains took,
question by question on average. Methods are compared by McNemar's exact test on the questions that they answer
differently.
"""

import math

import matplotlib.pyplot as plt
import numpy as np

from figures import _real as R
from figures._style import BY_METHOD, tidy
from reference.evaluation.statistics import accuracy, binomial_tail
from reference.power_sampling import PowerConfig, power_sample
from reference.sampling import generate
from toy.questions import FAMILIES

DEPENDS = (*R.DEPENDS, "reference/power_sampling.py", "figures/real_power.py")
QUESTIONS, N = 200, 16  # the pool is that of real_lift
POWER = PowerConfig(4.0, block=8, steps=10, max_new_tokens=R.HORIZON)
FOCUS, FEWER = ("products", "stories"), 100  # what real_ablation and real_pass_at_k ask
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


def compute() -> dict:
    speaker = R.speaker()
    cells = {family: {form: compare(R.Asked(speaker, family, form, QUESTIONS)) for form in R.FORMS}
             for family in FAMILIES}  # fmt: skip
    return {"model": R.SOURCE, "questions": QUESTIONS, "seed": R.SEED, "took": R.took(), "cells": cells}


def table(result: dict) -> str:
    short = ("T = 1", "greedy", "T = 1/4", "best", "majority", "p^4")
    lines = [
        f"{result['model']}: {result['questions']} questions a row, accuracy of one answer",
        f"{'':16}" + "".join(f"{name:>10}" for name in short) + f"{'n':>5}{'tokens':>8}",
    ]
    for family, forms in result["cells"].items():
        for form, cell in forms.items():
            own = [f"{cell['methods'][name]['accuracy'][0]:.2f} {sign(cell['mcnemar'].get(name))}" for name in METHODS]
            spent = cell["methods"]["power"]["decoded"]
            lines.append(f"{family + ', ' + form:16}{''.join(each.rjust(10) for each in own)}{cell['n']:5}{spent:8.0f}")
    lines += ["", "tokens: decoded by power sampling; best (by log p) and majority are of n responses, as many as fit"]
    return "\n".join([*lines, "+, -: more or fewer right than by power sampling, McNemar p < 0.05"])


def sign(test: dict | None) -> str:
    """Whether a method is better or worse than power sampling."""
    if test is None or test["p"] >= 0.05:
        return " "
    return "-" if test["only power"] > test["only it"] else "+"


def draw(result: dict):
    figure, axes = plt.subplots(len(R.FORMS), len(result["cells"]), figsize=(14, 6), sharex=True, sharey=True,
                                layout="constrained")  # fmt: skip
    for row, form in zip(axes, R.FORMS):
        for axis, (family, forms) in zip(row, result["cells"].items()):
            for i, (name, (_, colour)) in enumerate(METHODS.items()):
                mean, low, high = forms[form]["methods"][name]["accuracy"]
                axis.errorbar(mean, i, xerr=[[mean - low], [high - mean]], fmt="o", color=colour, capsize=3)
                axis.text(
                    high + 0.03, i, sign(forms[form]["mcnemar"].get(name)), va="center", fontsize=13, color=colour
                )
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
