"""SFT-Sharpening on the relay task: accuracy and log-likelihood before and after, for N of 10, 25 and 50.

Three algorithm seeds on the shipped checkpoint, each with 600 prompts to draw from and to learn, and with 200 other
problems to be measured on (the paper measures on the prompts that it learns). Labels are the likeliest of N own
responses; nothing is told what is right. Reference lines: one response at temperature 1, greedy decoding, best-of-50.
"""

import matplotlib.pyplot as plt
import numpy as np

from figures import _training as T
from figures._style import BY_METHOD

DEPENDS = T.DEPENDS


def compute() -> dict:
    return T.compare_sft()


def table(result: dict) -> str:
    lines = [f"{'':22}{'all':>22}{'plain':>8}{'tempting':>10}{'hard':>8}{'log-likelihood':>16}{'recovered':>24}"]

    def line(name, rates, logp, share=None):
        mean, low, high = rates["all"]
        recovered = "{:.2f} [{:.2f}, {:.2f}]".format(*share) if share else ""
        lines.append(f"{name:22}{mean:8.3f} [{low:.3f}, {high:.3f}]{rates['plain'][0]:8.3f}"
                     f"{rates['tempting'][0]:10.3f}{rates['hard'][0]:8.3f}{logp:16.2f}{recovered:>24}")  # fmt: skip

    base, logp = result["base"], result["logp"]
    line("temperature 1", base["right"], logp["logp"])
    line("greedy", base["greedy"], logp["greedy logp"])
    line("best of 50", base["best"], logp["best logp"])
    for n, run in result["runs"].items():
        line(f"SFT-Sharpening, N={n}", run["accuracy"], run["logp"], run["recovered"])
    return "\n".join(lines)


COLOURS = {"10": "#F5D08A", "25": BY_METHOD["sft"], "50": "#9C6B00"}  # SFT-Sharpening by N
LINES = {"right": ("one response", ":"), "greedy": ("greedy", "-."), "best": ("best of 50", "--")}


def draw(result: dict):
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    for name, (label, style) in LINES.items():
        rate = result["base"][name]["all"][0]
        left.axhline(rate, color="#D55E00", linestyle=style, linewidth=1.2, label=f"base, {label}")
    for n, run in result["runs"].items():
        mean, low, high = np.array(run["curve"]).T
        left.plot(result["steps"], mean, "o-", color=COLOURS[n], markersize=4, label=f"after SFT, N = {n}")
        left.fill_between(result["steps"], low, high, color=COLOURS[n], alpha=0.12, linewidth=0)
    left.set(title="While it learns: one response at temperature 1", xlabel="updates (600 labels, 8 epochs)",
             ylabel="held-out accuracy (95 % interval)", ylim=(0, 1.02))  # fmt: skip
    left.legend(fontsize=8.5, ncols=2, loc="upper left")
    base = result["base"]
    bars = [
        ("base, one response", base["right"], BY_METHOD["one response"]),
        ("base, best of 50", base["best"], BY_METHOD["best-of-N"]),
    ]
    bars += [(f"SFT, N = {n}", run["accuracy"], COLOURS[n]) for n, run in result["runs"].items()]
    for i, (name, rates, colour) in enumerate(bars):
        mean, low, high = np.array([rates[kind] for kind in ("all", *T.KINDS)]).T
        middle.bar(np.arange(4) + 0.16 * (i - 2), mean, 0.15, yerr=np.maximum((mean - low, high - mean), 0),
                   color=colour, ecolor="#777777", capsize=2, label=name)  # fmt: skip
    middle.set(title="By class of problem", ylabel="held-out accuracy (95 % interval)", ylim=(0, 1.3))
    middle.set_xticks(range(4), ("all", *T.KINDS))
    middle.set_yticks(np.arange(0, 1.01, 0.2))
    middle.legend(fontsize=8.5, ncols=2, loc="upper center")
    logp = result["logp"]
    names = ["base, one response", "base, greedy", "base, best of 50"] + [f"SFT, N = {n}" for n in result["runs"]]
    values = [logp["logp"], logp["greedy logp"], logp["best logp"]] + [run["logp"] for run in result["runs"].values()]
    colours = [BY_METHOD["one response"], BY_METHOD["greedy"], BY_METHOD["best-of-N"]] + [
        COLOURS[n] for n in result["runs"]
    ]
    right.barh(names, values, color=colours, height=0.6)
    for i, run in enumerate(result["runs"].values()):
        right.plot(run["logp by seed"], [3 + i] * len(run["logp by seed"]), "|", color="#BBBBBB", markersize=12)
    for i, value in enumerate(values):
        right.annotate(f"{value:.1f}", (value, i), xytext=(-4, 0), textcoords="offset points", ha="right", va="center")
    right.invert_yaxis()
    right.set(title="How likely the base finds the responses", xlabel="mean log-probability under the base, nats",
              xlim=(min(values) * 1.2, 0))  # fmt: skip
    for axis in (left, middle, right):
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure
