"""Accuracy against B_seq and B_total: every way to refine, and the baselines that spend the same tokens otherwise.

Relay problems that the model has not seen, three seeds. "consensus" is a world in which drafts are not verified: its
workspaces have each step's most frequent value. The relay task's drafts stop by themselves, so a long chain of thought
is one draft.
"""

from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from figures import _refinement as R
from figures._style import BY_METHOD, tidy
from reference.parallel_distill_refine import PDRConfig, Refinement, parallel_distill_refine
from reference.sequential_refinement import draws_for, independent_drafts, sequential_refinement
from toy import relay

DEPENDS = (*R.DEPENDS, "figures/refinement_budget.py")
PROBLEMS, MORE = 150, 800  # for each seed; MORE where a difference of few points is to be decided
SCHEDULES = ((4,), (4, 4), (4, 4, 4))


def compute(problems: int = PROBLEMS, more: int = MORE) -> dict:
    """Eight minutes on one core."""
    found: dict[str, list] = {}
    unsolved: list[np.ndarray] = []
    sizes = {}
    for world in R.worlds(problems):
        speaker, questions = world.speaker, world.questions
        settings: dict[str, Any] = {"seed": world.seed}

        def keep(name: str, result: Refinement, world=world) -> Refinement:
            found.setdefault(name, []).append((world, result))
            return result

        def refine(name: str, config: PDRConfig, speaker=speaker, questions=questions, keep=keep, **more) -> Refinement:
            return keep(name, parallel_distill_refine(speaker, questions, config, **more))

        for rounds in (0, 1, 3, 5):
            keep(f"sequential, {rounds} rounds" if rounds else "single pass",
                 sequential_refinement(speaker, questions, rounds, R.CONFIG, **settings))  # fmt: skip
        analysed = sequential_refinement(
            speaker, questions, 3, R.CONFIG, analyst=relay.analyst(speaker.templates), **settings
        )
        keep("sequential with error analysis, 3 rounds", analysed)
        keep("greedy", independent_drafts(speaker, questions, 1, replace(R.CONFIG, temperature=0.0), **settings))
        for drafts in SCHEDULES:
            name = ", ".join(map(str, (*drafts, 1)))
            config = replace(R.CONFIG, drafts=drafts)
            result = refine(f"summary ({name})", config, **settings)
            if drafts == (4,):
                ok = world.graded(result)
                unsolved.append(ok[~world.right(result.rounds[0]).any(1)])
            n = sizes[name] = draws_for(result.ledger)
            for choice in ("majority", "log-probability"):
                keep(f"{choice}, tokens of ({name})",
                     independent_drafts(speaker, questions, n, R.CONFIG, choice=choice, **settings))  # fmt: skip
            shared = replace(config, distiller="shared-top-k", k=4)
            refine(f"consensus ({name})", shared, R.consensus(speaker), scorer=R.no_preference, **settings)
        keep("majority of 16", independent_drafts(speaker, questions, 16, R.CONFIG, **settings))
        for distiller in ("shared-top-k", "per-sample-top-k", "random-k", "oracle-right", "oracle-wrong"):
            grader = {"grader": world.grader} if distiller.startswith("oracle") else {}
            refine(
                f"{distiller} (4, 4, 1)", replace(R.CONFIG, drafts=(4, 4), distiller=distiller), **grader, **settings
            )
        refine("random-1 (4, 1)", replace(R.CONFIG, distiller="random-k", k=1), **settings)
    kinds = np.concatenate([world.kinds for world, _ in found["single pass"]])
    none = np.concatenate(unsolved)
    return {
        "problems": problems, "seeds": list(R.SEEDS), "draws": sizes,
        "counts": {kind: int((kinds == kind).sum()) for kind in R.KINDS},
        "rows": {name: R.row(results) for name, results in found.items()},
        "no draft right": {"problems": len(none), "right": int(none.sum())},
        "chosen at random": chosen_at_random(more),
    }  # fmt: skip


def chosen_at_random(problems: int) -> dict:
    """Reports on two drafts at random, a new one for each draft of the next round, against one report on all four, and
    against what the tokens of the former buy else; paired by problem."""
    found: dict[str, list] = {}
    for world in R.worlds(problems):
        given = (world.speaker, world.questions)
        summary, random = (
            parallel_distill_refine(*given, replace(R.CONFIG, drafts=(4, 4), distiller=distiller), seed=world.seed)
            for distiller in ("summary", "random-k")
        )
        n = draws_for(random.ledger)
        for name, result in (
            ("random-2 (4, 4, 1)", random), ("summary (4, 4, 1)", summary),
            ("majority, tokens of random-2", independent_drafts(*given, n, R.CONFIG, seed=world.seed)),
            ("single pass", independent_drafts(*given, 1, R.CONFIG, seed=world.seed)),
        ):  # fmt: skip
            found.setdefault(name, []).append((world, result))
    right = {name: np.concatenate([world.graded(result) for world, result in each]) for name, each in found.items()}
    first, *others = found
    return {
        "problems": problems, "rows": {name: R.row(each) for name, each in found.items()},
        "random-2 minus": {name: R.difference(right[first], right[name]) for name in others},
    }  # fmt: skip


def table(result: dict) -> str:
    lines = [f"{'':46}{'accuracy':>9}{'plain':>7}{'tempting':>10}{'hard':>6}{'B_seq':>8}{'B_total':>9}"]
    for name, row in result["rows"].items():
        rates = [row["accuracy"][kind][0] if kind in row["accuracy"] else np.nan for kind in ("all", *R.KINDS)]
        lines.append(f"{name:46}{rates[0]:9.3f}{rates[1]:7.2f}{rates[2]:10.2f}{rates[3]:6.2f}"
                     f"{row['B_seq']:8.0f}{row['B_total']:9.0f}")  # fmt: skip
    random = result["chosen at random"]
    lines.append(
        f"\nreports on two drafts at random (4, 4, 1), {len(result['seeds']) * random['problems']} problems, minus"
    )
    for name, (mean, low, high) in random["random-2 minus"].items():
        lines.append(f"  {name:44}{mean:+9.3f} [{low:+.3f}, {high:+.3f}]")
    return "\n".join(lines)


FAMILIES = {  # label -> (beginning of the names, colour, marker)
    "single pass": ("single", BY_METHOD["one response"], "X"),
    "sequential refinement": ("sequential, ", BY_METHOD["sequential"], "s"),
    "parallel-distill-refine": ("summary", BY_METHOD["pdr"], "o"),
    "... consensus, no verification": ("consensus", BY_METHOD["consensus"], "D"),
    "majority": ("majority,", BY_METHOD["majority"], "p"),
    "best-of-N by log-probability": ("log-prob", BY_METHOD["best-of-N"], "^"),
}
WORKSPACES = {
    "parallel-distill-refine: reports": ("summary", BY_METHOD["pdr"], "o"),
    "... on chosen drafts": ("shared-top-k", BY_METHOD["pdr, chosen"], "^"),
    "... chosen for each call": ("per-sample", BY_METHOD["pdr, each its own"], "v"),
    "... on drafts at random": ("random-k", BY_METHOD["pdr, random"], "d"),
    "sequential refinement: the draft": ("sequential, ", BY_METHOD["sequential"], "s"),
    "... with error analysis": ("sequential with", BY_METHOD["analysis"], "P"),
}


def draw(result: dict) -> dict:
    return {
        "": panels(result, FAMILIES, "Refinement against voting on the relay task, by both budgets"),
        "workspaces": panels(result, WORKSPACES, "What the refiner is given, and what it makes of it"),
    }


def panels(result: dict, families: dict, title: str):
    figure, axes = plt.subplots(1, 2, figsize=(13, 5), sharey=True, layout="constrained")
    for axis, budget, note in zip(axes, ("B_seq", "B_total"), ("that wait for each other", "paid for")):
        for label, (start, colour, marker) in families.items():
            rows = [row for name, row in result["rows"].items() if name.startswith(start)]
            mean, low, high = np.array([row["accuracy"]["all"] for row in rows]).T
            x = [row[budget] for row in rows]
            axis.errorbar(x, mean, (mean - low, high - mean), fmt=f"{marker}-", color=colour, label=label, capsize=2,
                          linewidth=1)  # fmt: skip
        axis.set(xscale="log", xlabel=f"{budget}: tokens {note}, per problem", ylim=(0, 1.02))
        axis.set_xticks(*[(25, 50, 100, 200, 400, 800, 1600)] * 2)
        axis.minorticks_off()
        tidy(axis)
    axes[0].set_ylabel("accuracy (95 % interval)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(title)
    return figure
