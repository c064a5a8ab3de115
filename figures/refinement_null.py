"""Null worlds of refinement: what is left of it where its distillers check nothing, or its reviewers are no better.

In each world a model of its own was trained the same way (`make toy-worlds`, in runs/; their weights are not shipped):
in *plurality* distillers write each step's most frequent value; in *careless* those who check err as often as authors;
in *misguided* they hold the misconception more often. The same problems in all worlds, three seeds; the majorities are
of as many drafts as refinement reads in its first round, and as its tokens would buy.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from figures import _refinement as R
from figures._style import BY_METHOD
from reference.parallel_distill_refine import parallel_distill_refine
from reference.sequential_refinement import draws_for, independent_drafts
from toy.pretrain import CHECKPOINT

DEPENDS = (*R.DEPENDS, "figures/refinement_null.py")
PROBLEMS = 500  # for each seed
RUNS = Path(__file__).resolve().parent.parent / "runs"
WORLDS = {"relay": CHECKPOINT} | {name: RUNS / f"{name}-0" for name in ("plurality", "careless", "misguided")}


def compute(problems: int = PROBLEMS) -> dict:
    """Five minutes on one core."""
    found = {name: measure(folder, problems) for name, folder in WORLDS.items()}
    return {"problems": problems, "seeds": list(R.SEEDS), "worlds": found}


def measure(folder: Path, problems: int) -> dict:
    if not (folder / "model.safetensors").exists():
        raise SystemExit(f"{folder} has no model; `make toy-worlds` trains the null worlds (20 minutes each)")
    found: dict[str, list] = {}
    for world in R.worlds(problems, folder):
        given = (world.speaker, world.questions)
        for drafts in ((4,), (4, 4)):
            result = parallel_distill_refine(*given, replace(R.CONFIG, drafts=drafts), seed=world.seed)
            name = ", ".join(map(str, (*drafts, 1)))
            found.setdefault(f"({name})", []).append((world, result))
            n = draws_for(result.ledger)
            majority = independent_drafts(*given, n, R.CONFIG, seed=world.seed)
            found.setdefault(f"majority, tokens of ({name})", []).append((world, majority))
        for name, n in (("single pass", 1), ("majority of 4", 4)):
            found.setdefault(name, []).append((world, independent_drafts(*given, n, R.CONFIG, seed=world.seed)))
    right = {name: np.concatenate([world.graded(result) for world, result in each]) for name, each in found.items()}
    return {
        "weights": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "rows": {name: R.row(each) for name, each in found.items()},
        "minus majority": {
            name: R.difference(right[name], right[f"majority, tokens of {name}"]) for name in ("(4, 1)", "(4, 4, 1)")
        },
    }


ROWS = {  # name -> colour
    "single pass": BY_METHOD["one response"], "majority of 4": "#EBCDDD",
    "majority, tokens of (4, 1)": BY_METHOD["majority"], "majority, tokens of (4, 4, 1)": "#9A4D78",
    "(4, 1)": BY_METHOD["pdr, chosen"], "(4, 4, 1)": BY_METHOD["pdr"],
}  # fmt: skip


def table(result: dict) -> str:
    lines = [f"{'':12}" + "".join(f"{name:>32}" for name in ROWS)]
    for world, found in result["worlds"].items():
        rates = (found["rows"][name]["accuracy"]["all"] for name in ROWS)
        lines.append(f"{world:12}" + "".join("{:14.3f} [{:.3f}, {:.3f}]".format(*rate) for rate in rates))
        for name, difference in found["minus majority"].items():
            lines.append("  {} minus the majority of its tokens: {:+.3f} [{:+.3f}, {:+.3f}]".format(name, *difference))
    return "\n".join(lines)


def draw(result: dict):
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.6), sharey=True, layout="constrained")
    for axis, kind in zip(axes, ("all", "hard")):
        for i, (name, colour) in enumerate(ROWS.items()):
            rates = [found["rows"][name]["accuracy"][kind] for found in result["worlds"].values()]
            mean, low, high = np.array(rates).T
            x = np.arange(len(rates)) + (i - 2.5) * 0.14
            label = f"refinement {name}" if name.startswith("(") else name
            axis.bar(x, mean, 0.13, color=colour, label=label)
            axis.errorbar(x, mean, (mean - low, high - mean), fmt="none", ecolor="#555555", capsize=2, linewidth=1)
        axis.set_xticks(range(len(result["worlds"])), result["worlds"])
        axis.set(title=f"{kind} problems", ylim=(0, 1.02), xlabel="world")
        axis.grid(alpha=0.25, axis="y")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("accuracy (95 % interval)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    figure.suptitle("Where drafts are not verified, refinement is no better than voting")
    return figure
