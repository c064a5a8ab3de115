"""Best-of-N with N chosen by the stopping rule, against a fixed N at equal cost (2412.01951, Appendix D, Theorem D.1).

Nine prompts of ten are easy (y* has mass 0.9), one hides its best response among 41 (mass 0.05). A fixed N pays the
price of the hard prompt at all of them; the rule 1/max π <= k/μ stops at the easy ones after a few draws. Left: misses
against draws per prompt; lines are exact (`theory.best_of_n`; N_μ jumps with μ, hence the corners), points are runs of
`best_of_n` and `adaptive_best_of_n`. Right: the pairs that the lower bound's instance takes as its rare prompts get
rarer (Theorems 3.1 and D.2), exact.
"""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from figures._style import BY_METHOD
from reference.best_of_n import adaptive_best_of_n, best_of_n
from reference.evaluation.statistics import accuracy
from theory.best_of_n import adaptive_law, failure
from theory.sample_complexity import adaptive_pairs, fixed_pairs
from toy.tabular import TabularLM

DEPENDS = (
    "reference/interface.py", "reference/sampling.py", "reference/engine", "reference/best_of_n.py",
    "reference/evaluation/statistics.py", "reference/randomness.py", "theory/best_of_n.py",
    "theory/sample_complexity.py", "toy/tabular.py", "figures/adaptive.py",
)  # fmt: skip
EASY, HARD, OTHERS, PROMPTS, SEED = 0.9, 0.05, 40, 10, 0
NS, MUS, RUNS = (1, 2, 4, 8, 16, 32, 64), (0.4, 0.7, 1.0, 1.5, 2.0, 2.5, 3.0), 600
EPSILONS = (0.05, 0.02, 0.01, 0.005, 0.002)
MISS, MU = 0.25, float(np.log(20))


def laws() -> list[np.ndarray]:
    """One distribution per prompt; y* is token 0."""
    masses = [EASY] * (PROMPTS - 1) + [HARD]
    return [np.append(p, np.full(OTHERS, (1 - p) / OTHERS)) for p in masses]


def measured(best) -> dict:
    """Draws per prompt, with the half-width of a 95 % interval, and the share of misses with its interval."""
    draws = best.draws.flatten().double().numpy()
    miss = accuracy((best.samples.tokens[:, 0, 0] != 0).double().tolist())
    return {"draws": draws.mean(), "width": 1.96 * draws.std() / len(draws) ** 0.5, "miss": miss}


def compute() -> dict:
    model = TabularLM.tree({(x,): law for x, law in enumerate(laws())}, OTHERS + 1)
    prompts = [[x] for x in range(PROMPTS)] * RUNS
    common: dict[str, Any] = {"max_new_tokens": 1, "stop_ids": (), "seed": SEED}
    return {
        "seed": SEED, "runs": len(prompts),
        "fixed": {str(n): measured(best_of_n(model, prompts, n=n, **common)) for n in NS},
        "adaptive": {
            str(mu): measured(adaptive_best_of_n(model, prompts, mu=mu, max_draws=10_000, **common)) for mu in MUS
        },
        "pairs": {
            str(epsilon): {
                "fixed": fixed_pairs(round(8 / epsilon), 4 * epsilon, MISS),
                "adaptive": adaptive_pairs(round(8 / epsilon), 4 * epsilon, MISS, MU),
            }
            for epsilon in EPSILONS
        },
    }  # fmt: skip


FIXED, ADAPTIVE = BY_METHOD["best-of-N"], BY_METHOD["power"]


def points(axis, rows: dict, colour: str, marker: str, label: str) -> None:
    """A triangle is the upper limit where no run missed."""
    for i, row in enumerate(rows.values()):
        mean, low, high = row["miss"]
        axis.errorbar(
            row["draws"], mean or high, ([0 if not mean else mean - low], [high - mean if mean else 0]),
            xerr=row["width"], fmt=marker if mean else "v", color=colour, markersize=5, capsize=3,
            label=label if not i else None,
        )  # fmt: skip


def draw(result: dict):
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    for axis in (left, right):
        axis.set(xscale="log", yscale="log")
    n, mus = np.arange(1, 101), np.linspace(0.1, 4, 79)
    fixed = np.array([np.mean([failure(law[0], float(k)) for law in laws()]) for k in n])
    exact = [[adaptive_law(law, mu) for law in (laws()[0], laws()[-1])] for mu in mus]
    share = np.array([1 - 1 / PROMPTS, 1 / PROMPTS])
    left.plot(n, fixed, color=FIXED, label="fixed N (exact)")
    left.plot(
        [share @ [law.mean for law in pair] for pair in exact],
        [share @ [1 - law.response[0] for law in pair] for pair in exact],
        color=ADAPTIVE, label=f"adaptive, μ from {mus[0]:g} to {mus[-1]:g} (exact)",
    )  # fmt: skip
    points(left, result["fixed"], FIXED, "s", f"best_of_n, {result['runs']} runs")
    points(left, result["adaptive"], ADAPTIVE, "o", f"adaptive_best_of_n, {result['runs']} runs")
    left.set(
        title="Equal cost: one hard prompt among ten", xlabel="draws per prompt, m / n", xlim=(0.9, 110),
        ylabel="probability of a miss, over prompts", ylim=(2e-4, 1.2),
    )  # fmt: skip
    epsilons = np.array([float(epsilon) for epsilon in result["pairs"]])
    for rule, colour, marker, power in (("fixed", FIXED, "s", 2), ("adaptive", ADAPTIVE, "o", 1)):
        pairs = np.array([row[rule] for row in result["pairs"].values()])
        constant = pairs[-1] * epsilons[-1] ** power
        grid = np.array([0.07, 0.0015])
        right.plot(grid, constant / grid**power, color=colour, linewidth=1, linestyle="--")
        name = {"fixed": "fixed N, at its best", "adaptive": f"adaptive, μ = {MU:.1f}"}[rule]
        right.plot(epsilons, pairs, marker, color=colour, label=f"{name}: {constant:.3g} / ε{'²' * (power == 2)}")
    right.set(
        title="Hard instance: a share 4ε of prompts hides 1 of 8/ε", xlim=(0.08, 0.0013), xticks=epsilons,
        xticklabels=[f"{epsilon:g}" for epsilon in epsilons],
        xlabel="ε, share of prompts that may fail", ylabel="m, pairs (prompt, response) needed",
    )  # fmt: skip
    for axis in (left, right):
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    left.legend(loc="upper right", fontsize=9)
    right.legend(loc="upper left", fontsize=9)
    figure.suptitle("Choosing N prompt by prompt pays where few prompts are hard (points: 95 % intervals)")
    return figure
