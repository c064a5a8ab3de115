"""Operator-consistent RL against ordinary RL, from one checkpoint: accuracy alone and as an operator, (4, 1).

Three ways to make the same number of updates, each on the same number of rollouts, with the same settings: traces alone
(ordinary RL); half traces and half rollouts of one round of the operator, whose refiner carries the gradient; the same
with gradient for the drafts and the workspace too. Rewards are the grader's. Three seeds, each with its own problems to
learn from and to be measured on, which no model has seen.

Rollouts of the operator cost more tokens, since their drafts are sampled too; so the same is drawn against the tokens.
"given drafts" is what a model makes of the same four drafts of the model before training: its distiller and refiner
alone. Beside it in the results, g(j) on these drafts.
"""

import copy
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from figures import _refinement as R
from reference.evaluation.statistics import accuracy
from reference.operator_rl import KINDS, OperatorConfig, operator_rl
from reference.parallel_distill_refine import Drafts, distill, draft, parallel_distill_refine
from reference.text.ledger import Ledger
from reference.training.loop import FitConfig
from toy import relay

DEPENDS = (
    *R.DEPENDS, "reference/operator_rl.py", "reference/grpo.py", "reference/training/loop.py",
    "figures/refinement_rl.py",
)  # fmt: skip
PROBLEMS, SEEN, ROUNDS, EVERY = 300, 2000, 24, 6  # problems for each seed; those to learn from; rounds
CONFIG = OperatorConfig(ROUNDS, prompts=16, group=16, pdr=R.CONFIG)
FIT = FitConfig(batch=128, rate=3e-4, schedule="constant", weight_decay=0.0, clip=1.0)  # two updates a round
ARMS: dict[str, dict[str, Any]] = {
    "ordinary": {"kinds": ("trace",)},
    "operator, refiner": {"kinds": KINDS, "carries": "answer"},
    "operator, all calls": {"kinds": KINDS, "carries": "all"},
}
WAYS = ("single pass", "(4, 1)", "given drafts", "(4, 4, 1)")


def first_drafts(world: R.World) -> Drafts:
    return draft(Ledger(world.speaker, world.questions, 52), [[None]] * len(world.questions), 4, R.CONFIG)


def measure(world: R.World, given: Drafts, ways=WAYS) -> dict[str, np.ndarray]:
    """Share of right answers of each problem."""
    alone, refined = Ledger(world.speaker, world.questions, 50), Ledger(world.speaker, world.questions, 53)
    workspaces = distill(refined, given, 1, R.CONFIG, None, None)
    found = {
        "single pass": world.right(draft(alone, [[None]] * len(world.questions), 4, R.CONFIG)).mean(1),
        "given drafts": world.right(draft(refined, workspaces, 1, R.CONFIG))[:, 0].astype(float),
    }
    for way, drafts in (("(4, 1)", (4,)), ("(4, 4, 1)", (4, 4))):
        if way in ways:
            config = replace(R.CONFIG, drafts=drafts)
            result = parallel_distill_refine(world.speaker, world.questions, config, seed=51)
            found[way] = world.graded(result).astype(float)
    return found


def train(world: R.World, given: Drafts, arm: dict) -> tuple[list[dict], list[int], dict[str, list[float]]]:
    """What `measure` finds during and after training, [point]; the tokens sampled until then; the rewards by round."""
    problems = relay.make_problems(SEEN, seed=world.seed, split="seeds")
    speaker = replace(world.speaker, model=copy.deepcopy(world.speaker.model))
    here, points, tokens = replace(world, speaker=speaker), [], []

    def after(run) -> None:
        drawn = run.log["tokens"]
        if len(drawn) % EVERY == 0:
            points.append(measure(here, given, WAYS if len(drawn) == ROUNDS else WAYS[:3]))
            tokens.append(int(sum(drawn)))

    out = operator_rl(
        speaker, [problem.question for problem in problems], lambda i, text: relay.answer(text) == problems[i].answer,
        replace(CONFIG, seed=world.seed, **arm), FIT, after=after,
    )  # fmt: skip
    return points, tokens, {name: values for name, values in out.log.items() if name.endswith("reward")}


def compute() -> dict:
    """Ten minutes on one core."""
    found, arms, last = R.worlds(PROBLEMS), {}, {}
    drafts = [first_drafts(world) for world in found]
    before = [measure(*pair) for pair in zip(found, drafts)]
    kinds = np.concatenate([world.kinds for world in found])
    j = np.concatenate([world.right(own).sum(1) for world, own in zip(found, drafts)])

    def together(parts) -> dict[str, np.ndarray]:  # of the seeds
        return {way: np.concatenate([part[way] for part in parts]) for way in WAYS if way in parts[0]}

    def curve(right: np.ndarray) -> list[list[float]]:
        return [list(accuracy(right[j == i].tolist())) for i in range(5) if (j == i).any()]

    for name, arm in ARMS.items():
        points, tokens, rewards = zip(*(train(*pair, arm) for pair in zip(found, drafts)))
        path = [together(each) for each in (before, *zip(*points))]
        last[name] = path[-1]
        arms[name] = {
            "updates": [2 * EVERY * i for i in range(len(path))],
            "tokens": [0.0, *np.mean(tokens, 0).tolist()],
            "accuracy": {way: [R.by_class(point[way], kinds)["all"] for point in path] for way in WAYS[:3]},
            "before": {way: R.by_class(path[0][way], kinds) for way in WAYS},
            "after": {way: R.by_class(path[-1][way], kinds) for way in WAYS},
            "g": {"before": curve(path[0]["given drafts"]), "after": curve(path[-1]["given drafts"])},
            "rewards": list(rewards),
        }

    def compare(name: str, way: str) -> dict:
        change = last[name][way] - last["ordinary"][way]
        return {
            "all": R.difference(last[name][way], last["ordinary"][way]),
            "seeds": [float(part.mean()) for part in np.split(change, len(found))],
        }

    return {
        "problems": PROBLEMS, "seeds": list(R.SEEDS), "rounds": ROUNDS, "rollouts": CONFIG.prompts * CONFIG.group,
        "arms": arms,
        "minus ordinary": {name: {way: compare(name, way) for way in WAYS} for name in ARMS if name != "ordinary"},
    }  # fmt: skip


def table(result: dict) -> str:
    arms = result["arms"]
    ways = list(arms["ordinary"]["after"])
    lines = [f"{'':22}{'tokens':>9}" + "".join(f"{way:>26}" for way in ways)]
    rows = [("before", 0, arms["ordinary"]["before"])]
    rows += [(name, each["tokens"][-1], each["after"]) for name, each in arms.items()]
    for name, tokens, rates in rows:
        cells = "".join("{:10.3f} [{:.3f}, {:.3f}]".format(*rates[way]["all"]) for way in ways)
        lines.append(f"{name:22}{tokens:9.0f}{cells}")
    for name, leads in result["minus ordinary"].items():
        cells = "".join("{:+9.3f} [{:+.3f},{:+.3f}]".format(*leads[way]["all"]) for way in ways)
        lines.append(f"{name + ' - ordinary':31}{cells}")
    return "\n".join(lines)


COLOURS = {"ordinary": "#000000", "operator, refiner": "#0072B2", "operator, all calls": "#D55E00"}  # Okabe-Ito


def draw(result: dict):
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained", width_ratios=(1, 1, 0.9))
    for name, each in result["arms"].items():
        for way, style in (("single pass", "--"), ("(4, 1)", "-")):
            mean, low, high = np.array(each["accuracy"][way]).T
            for axis, x in zip(axes, ("updates", "tokens")):
                axis.errorbar(np.array(each[x]) / (1000 if x == "tokens" else 1), mean, (mean - low, high - mean),
                              fmt=f"o{style}", color=COLOURS[name], capsize=2, markersize=4, linewidth=1.2)  # fmt: skip
        axes[0].plot([], [], "o-", color=COLOURS[name], label=name)
    for style, label in (("-", "refined, (4, 1)"), ("--", "single pass")):
        axes[0].plot([], [], style, color="#777777", label=label)
    axes[0].set(title="Equal updates", xlabel="updates", ylabel="accuracy (95 % interval over problems)")
    axes[1].set(title="The same by tokens", xlabel="thousand tokens sampled, discarded ones included")
    axes[0].legend(fontsize=9, loc="lower right")
    for axis in axes[:2]:
        axis.set_ylim(0, 1.02)
    for shift, (name, leads) in zip((-0.12, 0.12), result["minus ordinary"].items()):
        for i, lead in enumerate(leads.values()):
            mean, low, high = lead["all"]
            axes[2].errorbar(
                [i + shift], [mean], [[mean - low], [high - mean]], fmt="o", color=COLOURS[name], capsize=3
            )
            axes[2].plot([i + shift + 0.05] * len(lead["seeds"]), lead["seeds"], ".", color=COLOURS[name], alpha=0.5)
    axes[2].axhline(0, color="#999999", linewidth=0.8)
    axes[2].set(title="After all updates, minus ordinary RL\n(small dots: seeds)", ylabel="difference of accuracy")
    axes[2].set_xticks(range(len(leads)), leads)
    axes[2].margins(x=0.2)
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure
