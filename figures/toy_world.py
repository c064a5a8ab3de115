"""The toy world in one picture: what sharpening does to each class of problems, and what reviewers see.

Samples of the shipped author on held-out problems, and the stages' verdicts from its model card. Nothing here is a
method of its own: temperatures, best-of-N by log-probability, and one vote of each stage.
"""

import json

import matplotlib.pyplot as plt
import numpy as np

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


COLOURS = {"plain": "#0072B2", "tempting": "#E69F00", "hard": "#CC3377"}  # Okabe-Ito, safe for colour-blind readers
ERROR_COLOURS = ("#009E73", "#56B4E9", "#0072B2", "#F0E442", "#CC3377", "#E69F00", "#999999")


def draw(results: dict):
    figure, axes = plt.subplots(2, 3, figsize=(15, 8.4), layout="constrained")
    figure.suptitle("The relay world: three classes of problems, three lessons", fontsize=15)

    def lines(axis, rows, style="-o", label=True):
        x = [float(key) for key in rows]
        for kind in KINDS:
            y, low, high = np.array([row[kind] for row in rows.values()]).T
            axis.plot(x, y, style, color=COLOURS[kind], label=kind if label else None, markersize=5)
            if style != "--":
                axis.fill_between(x, low, high, color=COLOURS[kind], alpha=0.2, linewidth=0)

    axis = axes[0, 0]
    lines(axis, results["temperature"])
    lines(axis, results["demonstrators"], "--", label=False)
    axis.plot([], [], "k--", label="demonstrators' law")
    axis.set(title="Sharpening tokens", xlabel="temperature (0: greedy)", ylabel="accuracy", ylim=(0, 1.03))
    axis.invert_xaxis()
    axis.legend(fontsize=9)

    axis = axes[0, 1]
    lines(axis, results["best_of"])
    axis.set_xscale("log", base=2)
    axis.set_xticks([int(k) for k in results["best_of"]], list(results["best_of"]))
    axis.set(
        title="Sharpening responses", xlabel="N of best-of-N by log-probability", ylabel="accuracy", ylim=(0, 1.03)
    )
    axis.legend()

    axis = axes[0, 2]
    left = np.zeros(len(KINDS))
    for i, error in enumerate(ERRORS):
        share = np.array([results["classes"][kind][i] for kind in KINDS])
        axis.barh(KINDS, share, left=left, color=ERROR_COLOURS[i], label=error, edgecolor="white")
        left += share
    axis.invert_yaxis()
    axis.set(title="What samples at temperature 1 are", xlabel="share of samples, by their first error", xlim=(0, 1))
    axis.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=9, frameon=False)

    edges = np.array(results["logp"]["edges"])
    for axis, kind in zip((axes[1, 0], axes[1, 1]), ("tempting", "hard")):
        for ok, label, colour in (("True", "right answer", "#009E73"), ("False", "wrong answer", "#555555")):
            share = np.array(results["logp"][kind][ok])
            axis.stairs(share, edges, fill=True, alpha=0.55, color=colour, label=label)
        axis.set(title=f"Log-probability of samples, {kind} problems", xlabel="log-probability of the response (nats)",
                 ylabel="share of samples per quarter nat", xlim=(-10, 0))  # fmt: skip
        axis.legend(loc="upper left")

    axis = axes[1, 2]
    errors, stages = list(results["stages"]), list(next(iter(results["stages"].values())))
    for i, (stage, colour) in enumerate(zip(stages, ("#0072B2", "#E69F00", "#009E73"))):
        rate, low, high = np.array([results["stages"][error][stage] for error in errors]).T
        place = np.arange(len(errors)) + (i - 1) * 0.27
        axis.barh(place, rate, 0.25, color=colour, label=stage)
        axis.errorbar(rate, place, xerr=(rate - low, high - rate), fmt="none", ecolor="black", elinewidth=1)
    axis.set_yticks(range(len(errors)), errors)
    axis.invert_yaxis()
    axis.set(title="What one vote of a reviewer accepts", xlabel="share of drafts accepted", xlim=(0, 1))
    axis.legend(title="stage", ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure
