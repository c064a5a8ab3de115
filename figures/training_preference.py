"""Four ways to learn from as many sampled tokens: SFT-Sharpening, DPO, XPO, and GRPO, which is told what is right.

400 prompts with 10 responses each: the likeliest is learned (SFT, N = 10), or five pairs are regressed on (DPO), or in
each of five rounds a response of the policy and one of the base (XPO). DPO and XPO tend to p^(1+1/β), here p^3. GRPO's
groups are of 16 responses, 4096 in all, graded by the task. Three algorithm seeds on the shipped checkpoint.
"""

import matplotlib.pyplot as plt
import numpy as np

from figures import _training as T
from figures._style import BY_METHOD

DEPENDS = T.DEPENDS


def compute() -> dict:
    return T.compare_ways()


def table(result: dict) -> str:
    lines = [f"{'':16}{'tokens':>9}{'all':>22}{'plain':>8}{'tempting':>10}{'hard':>8}{'log-lik.':>10}{'seeds':>20}"]
    rows: list[tuple] = [("temperature 1", 0, result["base"]["right"], result["logp"]["right"], [])]
    rows += [(n, w["tokens"], w["accuracy"], w["logp"], w["seeds"]) for n, w in result["ways"].items()]
    rows += [("best of 50", 0, result["base"]["best"], result["logp"]["best"], [])]
    for name, tokens, rates, logp, seeds in rows:
        mean, low, high = rates["all"]
        lines.append(
            f"{name:16}{tokens:9.0f}{mean:8.3f} [{low:.3f}, {high:.3f}]{rates['plain'][0]:8.3f}"
            f"{rates['tempting'][0]:10.3f}{rates['hard'][0]:8.3f}{logp:10.2f}"
            f"{' '.join(f'{seed:.3f}' for seed in seeds):>20}"
        )
    return "\n".join(lines)


COLOURS = {name: BY_METHOD[name.lower()] for name in ("SFT", "DPO", "XPO", "GRPO")}
NAMES = {"SFT": "SFT-Sharpening", "DPO": "DPO (regression)", "XPO": "XPO", "GRPO": "GRPO (told what is right)"}


def draw(result: dict):
    figure, axis = plt.subplots(figsize=(11, 5), layout="constrained")
    rows: list[tuple] = [("base, one response", result["base"]["right"], BY_METHOD["one response"], [])]
    rows += [(NAMES[name], way["accuracy"], COLOURS[name], way["seeds"]) for name, way in result["ways"].items()]
    rows += [("base, best of 50", result["base"]["best"], BY_METHOD["best-of-N"], [])]
    for i, (name, rates, colour, seeds) in enumerate(rows):
        mean, low, high = np.array([rates[kind] for kind in ("all", *T.KINDS)]).T
        at = np.arange(4) + 0.14 * (i - 2.5)
        axis.bar(at, mean, 0.13, yerr=np.maximum((mean - low, high - mean), 0), color=colour, ecolor="#555555",
                 capsize=2, label=name)  # fmt: skip
        axis.plot([at[0]] * len(seeds), seeds, "k.", markersize=4)
    axis.set(ylabel="held-out accuracy of one response (95 % interval)", ylim=(0, 1.25),
             title="Learning from equal numbers of sampled tokens: one response at temperature 1")  # fmt: skip
    axis.set_xticks(range(4), ("all (dots: seeds)", *T.KINDS))
    axis.set_yticks(np.arange(0, 1.01, 0.2))
    axis.legend(ncols=3, loc="upper center", frameon=False)
    axis.grid(alpha=0.25, axis="y")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    return figure
