"""The toy world in one picture: what sharpening does to each class of problems, and what reviewers see.

Samples of the shipped author on held-out problems, and the stages' verdicts from its model card. Nothing here is a
method of its own: temperatures, best-of-N by log-probability, and one vote of each stage.
"""

import json

import matplotlib.pyplot as plt
import numpy as np

from figures._style import BY_CLASS, GREY, RIGHT, WRONG, tidy
from reference.sampling import generate
from reference.text.text_model import TextModel
from toy import relay
from toy.abilities import CLASSES, by_class, rows_of
from toy.pretrain import CHECKPOINT
from toy.relay import ERRORS, World

DEPENDS = (
    "reference/interface.py", "reference/sampling.py", "reference/engine", "reference/transformer.py", "toy/relay.py",
    "toy/abilities.py", "toy/checkpoint", "figures/toy_world.py",
)  # fmt: skip
TEMPERATURES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
SIZES = (1, 2, 4, 8, 16, 32)
KINDS = CLASSES[1:]


def compute(n: int = 1000, seed: int = 0) -> dict:
    """Two minutes on two cores."""
    world = World()
    speaker = TextModel.from_pretrained(CHECKPOINT)
    questions = relay.split_questions(world, n, seed)
    truth, kinds = relay.solve(world, questions)[:, -1], relay.problem_class(world, questions)
    prompts = [speaker.prompt("author", question=world.decode(q)) for q in questions]

    def sample(temperature: float, samples: int):
        out = generate(speaker.model, prompts, max_new_tokens=world.draft_length, stop_ids=speaker.stop_ids,
                       temperature=temperature, samples_per_prompt=samples, seed=seed)  # fmt: skip
        drafts = rows_of(out.samples)
        answers = relay.answers_of(world, drafts.reshape(n * samples, -1)).reshape(n, samples)
        return drafts, answers == truth[:, None], out.samples.total_logp().numpy()

    model, demonstrators = {}, {}
    for t in TEMPERATURES:
        drafts, right, logp = sample(t, 32 if t == 1 else 1)
        model[t] = by_class(right, kinds)
        if t == 1:
            kept = drafts, right, logp
        law = relay.sample_author_law(world, questions.repeat(4, 0), np.random.default_rng(seed), t)[0]
        demonstrators[t] = by_class((relay.answers_of(world, law) == truth.repeat(4)).reshape(n, 4), kinds)
    drafts, right, logp = kept
    best = {k: by_class(right[np.arange(n), logp[:, :k].argmax(1)], kinds) for k in SIZES}
    classes = relay.classify(world, questions.repeat(32, 0), drafts.reshape(n * 32, -1)).reshape(n, 32)
    edges, of_kind = np.linspace(-12, 0, 49), {kind: (kinds == kind)[:, None] for kind in KINDS}
    density = {
        kind: {str(ok): np.histogram(logp[(right == ok) & of_kind[kind]], edges)[0] / of_kind[kind].sum() / 32
               for ok in (True, False)}
        for kind in KINDS
    }  # fmt: skip
    return {
        "n": n, "seed": seed,
        "temperature": {str(t): row for t, row in model.items()},
        "demonstrators": {str(t): row for t, row in demonstrators.items()},
        "best_of": {str(k): row for k, row in best.items()},
        "classes": {kind: [float((classes[kinds == kind] == i).mean()) for i in range(len(ERRORS))] for kind in KINDS},
        "stages": json.loads((CHECKPOINT / "abilities.json").read_text())["stages"],
        "logp": {"edges": edges.tolist(), **{kind: {ok: h.tolist() for ok, h in row.items()}
                                             for kind, row in density.items()}},
    }  # fmt: skip


ERROR_COLOURS = ("#009E73", "#56B4E9", "#0072B2", "#CC79A7", "#E69F00", "#999999")  # the first: right
RARE = ("final line", "malformed")
STAGE_COLOURS = ("#0072B2", "#E69F00", "#009E73")


def draw(results: dict) -> dict:
    return {"": draw_classes(results), "logp": draw_logp(results), "errors": draw_errors(results)}


def draw_classes(results: dict):
    """What sharpening tokens, and sharpening responses, does to each class."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained", sharey=True)
    figure.suptitle("The relay world: three classes of problems, three lessons", fontsize=14)

    def lines(axis, rows, style="-o", label=True):
        x = [float(key) for key in rows]
        for kind in KINDS:
            y, low, high = np.array([row[kind] for row in rows.values()]).T
            axis.plot(x, y, style, color=BY_CLASS[kind], label=kind if label else None, markersize=5)
            if style != "--":
                axis.fill_between(x, low, high, color=BY_CLASS[kind], alpha=0.2, linewidth=0)

    lines(left, results["temperature"])
    lines(left, results["demonstrators"], "--", label=False)
    left.plot([], [], "--", color=GREY, label="what the model was trained on")
    left.set(title="Sharpening tokens", xlabel="temperature (0: greedy)", ylabel="accuracy (95 %)", ylim=(0, 1.03))
    left.invert_xaxis()
    lines(right, results["best_of"])
    right.set_xscale("log", base=2)
    right.set_xticks([int(k) for k in results["best_of"]], list(results["best_of"]))
    right.set(title="Sharpening responses", xlabel="N of best-of-N by log-probability")
    for axis in (left, right):
        axis.legend(fontsize=9)
        tidy(axis)
    return figure


def draw_logp(results: dict):
    """Whether the likeliest responses are right."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained", sharey=True)
    edges = np.array(results["logp"]["edges"])
    for axis, kind in zip(axes, ("tempting", "hard")):
        for ok, label, colour in (("True", "right answer", RIGHT), ("False", "wrong answer", WRONG)):
            axis.stairs(np.array(results["logp"][kind][ok]), edges, fill=True, alpha=0.55, color=colour, label=label)
        axis.set(title=f"Samples on {kind} problems", xlabel="log-probability of the response (nats)",
                 xlim=(-10, 0))  # fmt: skip
        axis.legend(loc="upper left")
        tidy(axis)
    axes[0].set_ylabel("share of samples per quarter nat")
    return figure


def draw_errors(results: dict):
    """What goes wrong, and what a reviewer lets through."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.8), layout="constrained")
    begin = np.zeros(len(KINDS))
    seen = [error for error in ERRORS if error not in RARE]
    for error, colour in zip((*seen, "other"), ERROR_COLOURS):
        own = RARE if error == "other" else (error,)
        share = np.array([sum(results["classes"][kind][ERRORS.index(each)] for each in own) for kind in KINDS])
        left.barh(KINDS, share, left=begin, color=colour, label=error, edgecolor="white")
        begin += share
    left.invert_yaxis()
    left.set(title="What samples at temperature 1 are", xlabel="share of samples, by their first error", xlim=(0, 1))
    left.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=9, frameon=False)
    errors, stages = list(results["stages"]), list(next(iter(results["stages"].values())))
    for i, (stage, colour) in enumerate(zip(stages, STAGE_COLOURS)):
        rate, low, high = np.array([results["stages"][error][stage] for error in errors]).T
        place = np.arange(len(errors)) + (i - 1) * 0.27
        right.barh(place, rate, 0.25, color=colour, label=stage)
        right.errorbar(rate, place, xerr=(rate - low, high - rate), fmt="none", ecolor="black", elinewidth=1)
    right.set_yticks(range(len(errors)), errors)
    right.invert_yaxis()
    right.set(title="What one vote of a reviewer accepts", xlabel="share of drafts accepted (95 %)", xlim=(0, 1))
    right.legend(title="stage", ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    tidy(left, right)
    return figure
