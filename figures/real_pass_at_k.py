"""pass@k on a real model: does sharpening narrow what k responses can find? (2510.14901, Fig. 5)

SmolLM2-135M-Instruct (4-bit weights, dequantised), 100 questions of two families that were named beforehand, raw: 32
responses to each by the model, by the model at temperature 1/4, and by chains for p^4.
"""

import matplotlib.pyplot as plt
import numpy as np

from figures import _real as R
from figures._style import tidy
from figures.real_power import FEWER, FOCUS, METHODS, POWER
from reference.evaluation.statistics import accuracy, pass_at_k
from reference.power_sampling import power_sample
from reference.sampling import generate

DEPENDS = (*R.DEPENDS, "reference/power_sampling.py", "figures/real_power.py", "figures/real_pass_at_k.py")
K, KS = 32, (1, 2, 4, 8, 16, 32)


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
    speaker = R.speaker()
    passed = {family: passes(R.Asked(speaker, family, "raw", FEWER)) for family in FOCUS}
    return {"model": R.SOURCE, "questions": FEWER, "seed": R.SEED, "took": R.took(), "passes": passed}


def draw(result: dict):
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
    figure.suptitle(f"Is one of k responses right? {result['model']}, {result['questions']} questions")
    return figure
