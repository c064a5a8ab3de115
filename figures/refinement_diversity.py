"""One workspace for all drafts of a round, or one for each: accuracy and diversity over the rounds.

Four drafts in each of four rounds. Both kinds of workspace are reports on the same four drafts; one is written once and
shown to all, the other is written anew for each draft. The dashed line is what independent drafts would do.

Beside them, not drawn, two wrong implementations of the latter: the first draft's workspace is given to all; and each
workspace has read only one of the four drafts.
"""

from dataclasses import replace
from typing import Any
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np

from figures import _refinement as R
from reference import parallel_distill_refine as pdr
from theory.refinement import intraclass_correlation, operator

DEPENDS = (*R.DEPENDS, "figures/refinement_diversity.py")
PROBLEMS, M, ROUNDS = 200, 4, 4
Settings = dict[str, dict[str, Any]]
VARIANTS: Settings = {"shared": {"distiller": "summary"}, "per-sample": {"distiller": "random-k", "k": M}}
MUTANTS: Settings = {"one for all": VARIANTS["per-sample"], "one draft each": {"distiller": "random-k", "k": 1}}


def compute(problems: int = PROBLEMS) -> dict:
    """Eight minutes on one core."""
    found = R.worlds(problems)
    kinds, variants = np.concatenate([world.kinds for world in found]), {}
    for name, change in (VARIANTS | MUTANTS).items():
        config, right = replace(R.CONFIG, drafts=(M,) * ROUNDS, **change), []
        for world in found:
            with mock.patch.object(pdr, "distill", first_for_all if name == "one for all" else pdr.distill):
                result = pdr.parallel_distill_refine(world.speaker, world.questions, config, seed=world.seed)
            right.append(np.stack([world.right(own) for own in result.rounds[:-1]]))  # [rounds, problems, drafts]
        rounds = np.concatenate(right, 1)
        variants[name] = {
            "accuracy": [R.by_class(each.mean(1), kinds)["all"] for each in rounds],
            "any right": [R.by_class(each.any(1), kinds)["all"] for each in rounds],
            "correlation": [intraclass_correlation(each) for each in rounds],
            "within classes": [
                float(np.mean([intraclass_correlation(each[kinds == kind]) for kind in R.KINDS])) for each in rounds
            ],
            "independent": independent(rounds, kinds),
        }
    mutants = {name: variants.pop(name) for name in MUTANTS}
    return {"problems": problems, "seeds": list(R.SEEDS), "drafts": M, "variants": variants, "mutants": mutants}


def first_for_all(*given, distill=pdr.distill) -> list[list[pdr.Workspace]]:
    return [[own[0]] * len(own) for own in distill(*given)]


def independent(rounds: np.ndarray, kinds: np.ndarray) -> list[float]:
    """What the orbits of the classes would be if a round's drafts were independent; g is that of the first round."""
    total = np.zeros(len(rounds))
    for kind in R.KINDS:
        here = kinds == kind
        j, after = rounds[0][here].sum(1), rounds[1][here].mean(1)
        g, seen = np.arange(M + 1.0), np.unique(j)
        g = np.interp(g, seen, [after[j == i].mean() for i in seen])  # between, for a j that never occurred
        p = [rounds[0][here].mean()]
        for _ in rounds[1:]:
            p.append(float(operator(p[-1], g)))
        total += here.mean() * np.array(p)
    return total.tolist()


def draw(result: dict):
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    for (name, each), colour in zip(result["variants"].items(), ("#D55E00", "#0072B2")):
        rounds = np.arange(1, len(each["accuracy"]) + 1)
        for axis, key in zip(axes, ("accuracy", "any right")):
            mean, low, high = np.array(each[key]).T
            axis.errorbar(rounds, mean, (mean - low, high - mean), fmt="o-", color=colour, capsize=3, label=name)
        axes[0].plot(rounds, each["independent"], "--", color=colour, linewidth=1)
        axes[2].plot(rounds, each["correlation"], "o-", color=colour, label=f"{name}, over all")
        axes[2].plot(rounds, each["within classes"], "s:", color=colour, label=f"{name}, within classes")
    axes[0].set(title="Drafts (dashed: if independent)", ylabel="share of right drafts")
    axes[1].set(title="Pass@4", ylabel="problems with a right draft")
    axes[2].set(title="Likeness", ylabel="correlation of a problem's drafts")
    for axis in axes:
        axis.set(xlabel="round", ylim=(-0.02, 1.02), xticks=rounds)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    return figure
