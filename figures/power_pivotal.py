"""Power against low temperature on a tree with one pivotal token (2510.14901, Example 1 and Proposition 3).

The first token is the pivotal one, of probability ε, after which only one text follows, or the other, of probability
ε′ = 1 − ε, after which N texts are equally likely. p^α weighs them ε^α : N (ε′/N)^α, low temperature ε^α : ε′^α; so
p^α prefers the pivotal token iff ε > ε′ / N^(1−1/α), low temperature iff ε > ε′. Lines are these formulas; points are
draws by `power_sample` and by `generate` at temperature 1/α on the tree.
"""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from scipy.special import expit

from figures._style import BY_METHOD, GREY
from reference.evaluation.statistics import accuracy
from reference.power_sampling import PowerConfig, power_sample
from reference.sampling import generate
from theory.markov_chain import chain, tv_curve
from theory.power import pivotal_log_odds
from toy.tabular import TabularLM, enumerate_law

DEPENDS = (
    "reference/interface.py", "reference/sampling.py", "reference/engine", "reference/power_sampling.py",
    "reference/randomness.py", "theory/markov_chain.py", "theory/power.py", "toy/tabular.py",
    "figures/power_pivotal.py",
)  # fmt: skip
DRAWS, MOST, SEED = 4000, 300, 0
EXAMPLE = 4 / 9  # of Example 1, whose three texts .40, .25, .25 are normalised here
ALPHAS = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
EPSILONS = tuple(np.linspace(0.1, 0.7, 7).round(2).tolist())
FUTURES = (4, 16)


def tree(epsilon: float, futures: int) -> TabularLM:
    """Tokens 0 (pivotal) and 1 follow the prompt (0); then 0 for certain, or any of `futures`."""
    size = max(futures, 2)
    first, certain, even = np.zeros((3, size))
    first[:2], certain[0], even[:futures] = (epsilon, 1 - epsilon), 1, 1 / futures
    return TabularLM.tree({(0,): first, (0, 0): certain, (0, 1): even}, size)


def measure(epsilon: float, futures: int, alpha: float) -> dict:
    """How often the first token is the pivotal one, with 95 % intervals; the chain has taken so many steps that its
    exact distribution is within TV 0.005 of p^α."""
    model = tree(epsilon, futures)
    common: dict[str, Any] = {"stop_ids": (), "samples_per_prompt": DRAWS, "seed": SEED}
    exact = chain(enumerate_law(model, [0], 2, ())[2], horizon=2, alpha=alpha)
    steps = int((tv_curve(exact.initial, exact.kernel, exact.target, MOST) > 0.005).sum())
    config = PowerConfig(alpha, block=2, steps=steps, max_new_tokens=2)
    drawn = {
        "power": power_sample(model, [[0]], config, slots=2048, **common),
        "temperature": generate(model, [[0]], max_new_tokens=2, temperature=1 / alpha, **common),
    }
    shares = {law: accuracy((out.samples.tokens[0, :, 0] == 0).double().tolist()) for law, out in drawn.items()}
    return {"steps": steps, **shares}


def compute() -> dict:
    return {
        "seed": SEED, "draws": DRAWS, "epsilon": EXAMPLE,
        "alphas": {str(alpha): measure(EXAMPLE, 2, alpha) for alpha in ALPHAS},
        "epsilons": {str(n): {str(epsilon): measure(epsilon, n, 2.0) for epsilon in EPSILONS} for n in FUTURES},
    }  # fmt: skip


POWER, COLD = BY_METHOD["power"], BY_METHOD["low temperature"]
SHADES = {4: BY_METHOD["prefetch"], 16: POWER}


def points(axis, rows: dict, law: str, colour: str, label: str | None = None):
    mean, low, high = np.array([row[law] for row in rows.values()]).T
    marker = "o" if law == "power" else "s"
    axis.errorbar(
        [float(x) for x in rows], mean, (mean - low, high - mean), fmt=marker, color=colour, markersize=5, capsize=3,
        label=label,
    )  # fmt: skip


def sketch(axis):
    """The tree of Example 1."""
    axis.set(xlim=(-0.25, 2.75), ylim=(-0.1, 3.1), title="The model: Example 1, normalised")
    axis.axis("off")
    nodes = {"": (0, 1.7), "a": (1, 2.6), "b": (1, 0.8), "ab": (2, 2.6), "ba": (2, 1.2), "bb": (2, 0.4)}
    for end, text in (("a", "4/9"), ("b", "5/9"), ("ab", "1"), ("ba", "1/2"), ("bb", "1/2")):
        (x0, y0), (x1, y1) = nodes[end[:-1]], nodes[end]
        colour = POWER if end.startswith("a") else GREY
        axis.plot((x0, x1), (y0, y1), color=colour, linewidth=2, zorder=1)
        up = 0.12 if y1 >= y0 else -0.26
        axis.text((x0 + x1) / 2, (y0 + y1) / 2 + up, text, ha="center", color=colour)
    for name, (x, y) in nodes.items():
        colour = "#000000" if not name else POWER if name.startswith("a") else GREY
        axis.plot(x, y, "o", color="white", markeredgecolor=colour, markersize=24, markeredgewidth=1.6, zorder=2)
        axis.text(x, y, name[-1:] or "·", ha="center", va="center", fontsize=12, zorder=3)
    for name, mass in (("ab", ".44"), ("ba", ".28"), ("bb", ".28")):
        x, y = nodes[name]
        axis.text(x + 0.2, y, f"p = {mass}", va="center")
    axis.text(1, 3.0, "pivotal: one sure future", color=POWER, ha="center", fontsize=9)
    axis.text(1, 0.0, "likelier, but N = 2 futures", color=GREY, ha="center", fontsize=9)


def draw(result: dict):
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(14, 4.8), layout="constrained", gridspec_kw={"width_ratios": (0.8, 1, 1)}
    )
    sketch(left)
    steps = [row["steps"] for row in result["alphas"].values()]
    alphas, epsilon = np.linspace(1, 8.3, 200), result["epsilon"]
    odds = np.array([pivotal_log_odds(epsilon, 1 - epsilon, 2, alpha) for alpha in alphas])
    middle.plot(alphas, expit(odds[:, 0]), color=POWER, label="p^α (formula)")
    middle.plot(alphas, expit(odds[:, 1]), color=COLD, linestyle="--", label="temperature 1/α (formula)")
    points(middle, result["alphas"], "power", POWER, f"power_sample, {max(steps)} steps at most")
    points(middle, result["alphas"], "temperature", COLD, "generate at temperature 1/α")
    crossing = 1 / (1 - np.log((1 - epsilon) / epsilon) / np.log(2))
    middle.axhline(0.5, color=GREY, linewidth=0.8)
    middle.axvline(crossing, color=GREY, linestyle=":")
    middle.text(crossing + 0.1, 0.03, f"α = {crossing:.2f}: ε = ε′ / N^(1−1/α)", color="#444444", fontsize=9)
    middle.set(title="The two distributions part ways as α grows", xlabel="α", xlim=(0.8, 8.3))
    middle.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13), fontsize=9, frameon=False)

    grid = np.linspace(0.02, 0.8, 200)
    cold = [pivotal_log_odds(e, 1 - e, 1, 2.0)[1] for e in grid]
    right.plot(grid, expit(cold), color=COLD, linestyle="--", label="temperature 1/2, any N")
    points(right, result["epsilons"][str(FUTURES[-1])], "temperature", COLD)
    for n in FUTURES:
        right.plot(grid, expit([pivotal_log_odds(e, 1 - e, n, 2.0)[0] for e in grid]), color=SHADES[n],
                   label=f"p², N = {n} futures of the other token")  # fmt: skip
        points(right, result["epsilons"][str(n)], "power", SHADES[n])
    for n, colour in ((1, COLD), *SHADES.items()):
        right.plot(1 / (1 + np.sqrt(n)), 0.5, "D", color="white", markeredgecolor=colour, markersize=9, zorder=5)
    right.axhline(0.5, color=GREY, linewidth=0.8)
    right.plot([], [], "D", color="white", markeredgecolor="black", label="ε = ε′ / N^(1−1/α): even odds")
    right.set(title="α = 2: the pivotal token wins above ε′ / √N", xlabel="ε, probability of the pivotal token under p")
    right.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13), fontsize=9, frameon=False)
    for axis in (middle, right):
        axis.set(ylim=(-0.02, 1.02), ylabel="probability of the pivotal first token")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.suptitle("Power sampling looks ahead, low temperature does not (points: draws with 95 % intervals)")
    return figure
