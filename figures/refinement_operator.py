"""The improvement operator, measured: what refinement makes of j right drafts among four, and what follows from it.

One half of the problems measures p (share of right drafts) and g(j) by class, and the fix and break rates of
sequential refinement; the other half measures what comes out. Lines are theory/refinement.py's, points are measured.

Sequential refinement has one more thing to remember than right and wrong: an author's guess has no steps to build on,
and only the first draft can be one. So the rates of its first round do not last; those of the second do.
"""

import matplotlib.pyplot as plt
import numpy as np

from figures import _refinement as R
from figures._style import GREY, LIGHT, tidy
from reference.evaluation.statistics import accuracy
from reference.parallel_distill_refine import draft, parallel_distill_refine
from reference.sequential_refinement import sequential_refinement
from reference.text.ledger import Ledger
from theory.refinement import class_mix, fixed_points, operator, pooled, sequential

DEPENDS = (*R.DEPENDS, "figures/refinement_operator.py")
PROBLEMS, REPEATS, M = 400, 6, 4  # problems for each seed, and how often each is drafted and refined


def measure(world: R.World, seed: int) -> dict[str, np.ndarray]:
    """Of each problem, REPEATS times: right drafts j, right answer, and a chain of sequential refinement."""
    questions = world.questions
    out: dict[str, list[np.ndarray]] = {"j": [], "refined": [], "chain": []}
    for repeat in range(REPEATS):
        result = parallel_distill_refine(world.speaker, questions, R.CONFIG, seed=1000 * seed + repeat)
        out["j"].append(world.right(result.rounds[0]).sum(1))
        out["refined"].append(world.right(result.rounds[1])[:, 0])
        chain = sequential_refinement(world.speaker, questions, 3, R.CONFIG, seed=1000 * seed + 500 + repeat)
        out["chain"].append(np.stack([world.right(own)[:, 0] for own in chain.rounds], 1))
    return {name: np.stack(each, 1) for name, each in out.items()}  # [problems, repeats, ..]


def empty_workspace(world: R.World) -> dict[str, np.ndarray]:
    """An author, and a refiner who is given nothing, on each problem."""
    alone, nothing = Ledger(world.speaker, world.questions, world.seed), Ledger(world.speaker, world.questions, 77)
    return {
        "author": world.right(draft(alone, [[None]] * len(world.problems), REPEATS, R.CONFIG)).mean(1),
        "empty": world.right(draft(nothing, [[""]] * len(world.problems), REPEATS, R.CONFIG)).mean(1),
    }


def compute(problems: int = PROBLEMS) -> dict:
    """Ten minutes on two cores."""
    parts = [(world, measure(world, world.seed), empty_workspace(world)) for world in R.worlds(problems)]
    kinds = np.concatenate([world.kinds for world, _, _ in parts])
    j, refined, chain = (np.concatenate([each[name] for _, each, _ in parts]) for name in ("j", "refined", "chain"))
    fit = np.arange(len(kinds)) % 2 == 0
    classes, held = {}, ~fit
    for kind in R.KINDS:
        here = fit & (kinds == kind)
        classes[kind] = {
            "weight": float((kinds[held] == kind).mean()),
            "p": float(j[here].mean() / M),
            "g": response_curve(j[here], refined[here]),
            "cases": [int((j[here] == i).sum()) for i in range(M + 1)],
            "first": fix_and_break(chain[here], 0),
            "later": fix_and_break(chain[here], 1),
            "held out": R.by_class(refined[held].mean(1), kinds[held])[kind],
            "chain": chain[held & (kinds == kind)].mean((0, 1)).tolist(),
        }
    weights, shares = [c["weight"] for c in classes.values()], [float((kinds[fit] == kind).mean()) for kind in classes]
    p, g = [c["p"] for c in classes.values()], [[each[0] for each in c["g"]] for c in classes.values()]
    empty = {name: np.concatenate([each[name] for _, _, each in parts]) for name in ("author", "empty")}
    return {
        "problems": problems, "seeds": list(R.SEEDS), "repeats": REPEATS, "classes": classes,
        "held out": R.by_class(refined[held].mean(1), kinds[held])["all"],
        "class mix": class_mix(weights, p, g),
        "same problems": {"measured": float(refined[fit].mean()), "class mix": class_mix(shares, p, g),
                          "pooled": pooled(shares, p, g)},
        "empty workspace": {name: R.by_class(each, kinds) for name, each in empty.items()},
        "difference": float((empty["empty"] - empty["author"]).mean()),
        "standard error": float((empty["empty"] - empty["author"]).std(ddof=1) / np.sqrt(len(kinds))),
    }  # fmt: skip


def fix_and_break(chain: np.ndarray, t: int) -> list[float]:
    """How often a wrong draft is fixed, and a right one broken, between rounds t and t + 1."""
    before, after = chain[:, :, t], chain[:, :, t + 1]
    return [float(after[~before].mean()), float((~after[before]).mean())]


def response_curve(j: np.ndarray, refined: np.ndarray) -> list[list[float]]:
    """g(0..M), each [rate, low, high]; a j that was never seen has the rate of the one below, with no knowledge."""
    g: list[list[float]] = []
    for i in range(M + 1):
        seen = refined[j == i].astype(float).tolist()
        g.append(list(accuracy(seen)) if seen else [g[-1][0] if g else 0.0, 0.0, 1.0])
    return g


def draw(result: dict) -> dict:
    return {"": draw_operator(result), "chain": draw_chain(result)}


def draw_operator(result: dict):
    """One step of parallel-distill-refine as a map of the share of right drafts."""
    figure, (curve, maps) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    grid = np.linspace(0, 1, 200)
    for kind, each in result["classes"].items():
        colour, (mean, low, high) = R.COLOURS[kind], np.array(each["g"]).T
        seen = high - low < 1
        curve.errorbar(
            np.arange(M + 1)[seen], mean[seen], np.stack((mean - low, high - mean))[:, seen], fmt="o-", color=colour,
            capsize=3, label=kind,
        )  # fmt: skip
        maps.plot(grid, operator(grid, mean), color=colour, label=kind)
        out, low_out, high_out = each["held out"]
        maps.errorbar([each["p"]], [out], [[out - low_out], [high_out - out]], fmt="o", color=colour, capsize=3)
        for point, slope in fixed_points(mean):
            maps.plot(
                point, point, "D", color=colour if abs(slope) < 1 else "white", markeredgecolor=colour, markersize=8
            )
    maps.plot(grid, grid, color=LIGHT, linewidth=0.8)
    maps.plot([], [], "o", color=GREY, label="measured on other problems (95 %)")
    maps.plot([], [], "D", color=GREY, label="fixed point, to which repeating it leads")
    curve.set(title="What the refiner makes of its drafts", xlabel=f"right ones among the {M} drafts",
              ylabel="the refined answer is right (95 %)", xticks=range(M + 1))  # fmt: skip
    maps.set(title="So what a round makes of the share of right drafts", xlabel="share of right drafts before a round",
             ylabel="share of right answers after it")  # fmt: skip
    for axis in (curve, maps):
        axis.set_ylim(-0.02, 1.02)
        axis.legend(fontsize=9, loc="lower right")
        tidy(axis)
    return figure


def draw_chain(result: dict):
    """Sequential refinement: a chain of two states, right and wrong."""
    figure, axis = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    for kind, each in result["classes"].items():
        colour, (fix, broken) = R.COLOURS[kind], each["later"]
        rounds = np.arange(len(each["chain"]))
        first = sequential(each["chain"][0], each["first"][0], each["first"][1], len(rounds) - 1)
        later = sequential(each["chain"][1], fix, broken, len(rounds) - 2)
        axis.plot(rounds, first, "--", color=colour)
        axis.plot(rounds[1:], later, "-", color=colour)
        axis.plot(rounds, each["chain"], "o", color=colour, label=kind)
        axis.axhline(fix / (fix + broken), color=colour, linestyle=":", linewidth=1)
    for style, label in (("--", "by the rates of the first revision"), ("-", "by the rates of later ones"),
                         (":", "where those lead: fix / (fix + break)")):  # fmt: skip
        axis.plot([], [], style, color=GREY, label=label)
    axis.set(title="Sequential refinement (points: other problems)", xlabel="revisions", ylabel="accuracy",
             ylim=(-0.02, 1.02), xticks=rounds)  # fmt: skip
    axis.legend(fontsize=9, ncols=2, loc="upper center")
    tidy(axis)
    return figure
