"""Power sampling on a real model by α and by its number of steps (2510.14901, Fig. 6 and Table 5).

SmolLM2-135M-Instruct (4-bit weights, dequantised), 100 questions of two families that were named beforehand, in both
forms. α is varied at 10 steps in each block of 8 tokens, and steps at α = 4.
"""

import matplotlib.pyplot as plt
import numpy as np

from figures import _real as R
from figures._style import BY_METHOD, tidy
from figures.real_power import FEWER, FOCUS
from reference.evaluation.statistics import accuracy
from reference.power_sampling import PowerConfig, power_sample

DEPENDS = (*R.DEPENDS, "reference/power_sampling.py", "figures/real_power.py", "figures/real_ablation.py")
ALPHAS, STEPS = (1.0, 2.0, 4.0, 8.0), (2, 5, 10, 20, 40)


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


def compute() -> dict:
    speaker = R.speaker()
    varied = {family: {form: vary(R.Asked(speaker, family, form, FEWER)) for form in R.FORMS} for family in FOCUS}
    return {"model": R.SOURCE, "questions": FEWER, "seed": R.SEED, "took": R.took(), "varied": varied}


def draw(result: dict):
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
    axes[0, 1].legend(fontsize=9, loc="lower right")
    tidy(*axes.flat)
    figure.suptitle(f"Power sampling by its steps and by α: {result['model']}, {result['questions']} questions")
    return figure
