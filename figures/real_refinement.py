"""Can a model of this size review itself? Refinement and verification on a real model (2510.01123, 2605.26132).

SmolLM2-135M-Instruct (4-bit weights, dequantised), 200 word problems as chat. The author is only asked the question;
reviewers and refiners speak by the templates for chat models. Each question has four drafts. From them come a majority,
parallel-distill-refine, two revisions one after another, and UQ-TTC: the first draft whose two votes in each of three
stages all say yes. One round of self-verified distillation learns from the drafts of 116 other questions that the
cascade accepts, and, to compare, from a draft of each that nobody has seen. Counted besides right answers: how often
reviewers accept what is right and what is wrong, and what of their replies cannot be read. Settings were fixed
beforehand.
"""

import time
from dataclasses import replace
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from figures import _real as R
from figures._style import BY_METHOD, LIGHT, RIGHT, WRONG, tidy
from reference.cascade import CascadeConfig
from reference.evaluation.answers import number_of
from reference.evaluation.statistics import accuracy
from reference.parallel_distill_refine import PDRConfig, parallel_distill_refine
from reference.self_reward import majority_vote
from reference.self_verified_distillation import (
    Candidates,
    SVDConfig,
    draw_candidates,
    examples,
    kept_cases,
    nothing_accepted,
    train_from,
)  # fmt: skip
from reference.sequential_refinement import sequential_refinement
from reference.text.chat_templates import last_boxed, read_verdict
from reference.text.text_model import Role, TextModel
from reference.training.loop import FitConfig
from reference.training.lora import LoRAConfig
from toy import questions as Q

DEPENDS = (
    *R.DEPENDS, "reference/text", "reference/training", "reference/parallel_distill_refine.py",
    "reference/sequential_refinement.py", "reference/cascade.py", "reference/self_verified_distillation.py",
    "figures/real_refinement.py",
)  # fmt: skip
FAMILY, ALL, MEASURED, DRAFTS, TOKENS = "stories", 316, 200, 4, 64
CASCADE = CascadeConfig(votes=2, exit="none", max_new_tokens=96)
DISTILLED = SVDConfig(n=DRAFTS, temperature=0.8, max_new_tokens=TOKENS, cascade=CASCADE, replay=1.0, block=50)
REFINED = PDRConfig((DRAFTS,), workspace=96, max_new_tokens=96, temperature=0.8)
FIT, ADAPTERS = FitConfig(epochs=3, batch=8, rate=3e-4, clip=1.0, weight_decay=0.0, warmup=5), LoRAConfig()
COLOURS = {
    "one draft": "one response", "asked to box it": "one response", "majority of 4": "majority",
    "two revisions": "sequential", "parallel-distill-refine": "pdr", "UQ-TTC": "uq-ttc",
    "distilled": "distilled", "distilled, unseen": "one response",
}  # fmt: skip


def plain(speaker: TextModel) -> TextModel:
    """The chat models' templates with an author who is asked the question, and nothing else."""

    def author(question: str) -> list[int]:
        return speaker.tokenizer.chat_prompt([{"role": "user", "content": question}])

    roles = {**speaker.templates.roles, "author": Role(author, number_of)}
    return replace(speaker, templates=replace(speaker.templates, roles=roles))


def right(asked: list[Q.Question], texts: list[str]) -> np.ndarray:
    return np.array([Q.right(question, text) for question, text in zip(asked, texts)])


def candidates(name: str, speaker: TextModel, asked: list[Q.Question]) -> Candidates:
    """Four drafts of each question and every vote on them, kept in blocks."""
    folder = R.KEPT / f"{name}-{R.digest([R.weights(), str(DISTILLED), [vars(question) for question in asked]])}"
    texts, keys = [question.question for question in asked], [question.id for question in asked]
    begin, record = time.time(), folder.with_suffix(".json")
    drawn = draw_candidates(speaker, speaker, texts, DISTILLED, seed=R.SEED, keys=keys, folder=folder, slots=R.SLOTS)
    if not record.exists():
        R.save(record, begin)
    R.load(record)
    return drawn


def compute() -> dict:
    boxing = R.speaker()
    speaker = plain(boxing)
    every = Q.questions(FAMILY, ALL, R.SEED)
    asked, others = every[:MEASURED], every[MEASURED:]
    common: dict[str, Any] = {"seed": R.SEED, "keys": [question.id for question in asked], "slots": R.SLOTS}
    texts = [question.question for question in asked]

    drawn = candidates("reviewed", speaker, asked)
    read = [[Q.read(question, text) for text in own] for question, own in zip(asked, drawn.texts)]
    voted = majority_vote(read).argmax(1).tolist()
    valid = drawn.verification.first_valid().tolist()
    rows = {
        "one draft": [own[0] for own in drawn.texts],
        "majority of 4": [own[i] for own, i in zip(drawn.texts, voted)],
        "UQ-TTC": [own[max(i, 0)] for own, i in zip(drawn.texts, valid)],
        "two revisions": R.kept("revised", (REFINED, texts), lambda: sequential_refinement(
            speaker, texts, 2, REFINED, **common).texts),
        "parallel-distill-refine": R.kept("refined", (REFINED, texts), lambda: parallel_distill_refine(
            speaker, texts, REFINED, **common).texts),
        "asked to box it": R.kept("boxed", (REFINED, texts), lambda: sequential_refinement(
            boxing, texts, 0, REFINED, **common).texts),
    }  # fmt: skip

    learned = candidates("learned", speaker, others)
    accepted = kept_cases(learned.verification.accepted(), "first")
    unseen = [(i, 0) for i in range(len(others))]
    for name, cases in (("distilled", accepted), ("distilled, unseen", unseen)):
        if cases:
            data = examples(speaker, [question.question for question in others], learned.samples, cases)
            rows[name] = R.kept(name, (FIT, ADAPTERS, cases), partial(answers_after, speaker, data, texts, common))
    base = right(asked, rows["one draft"]).astype(float)
    return {
        "model": R.SOURCE, "family": FAMILY, "questions": MEASURED, "others": len(others), "seed": R.SEED,
        "rows": {name: {"accuracy": accuracy((hit := right(asked, own)).astype(float)),
                        "gain": R.difference(hit.astype(float), base)} for name, own in rows.items()},
        "boxed": float(np.mean([last_boxed(text) is not None for text in rows["asked to box it"]])),
        "kept": len(accepted), "kept right": sum(Q.right(others[i], learned.texts[i][c]) for i, c in accepted),
        "nothing": None if accepted else nothing_accepted(learned.verification),
        "took": R.took(), "answered": sum(i >= 0 for i in valid), "reviewers": reviewers(speaker, asked, drawn),
    }  # fmt: skip


def answers_after(speaker: TextModel, data: list, texts: list[str], common: dict) -> list[str]:
    """One draft of each question by a student of the data."""
    student, _ = train_from(speaker, data, FIT, ADAPTERS)
    drafts, _ = student.ask(
        "author", [{"question": text} for text in texts], max_new_tokens=TOKENS, temperature=DISTILLED.temperature,
        top_p=DISTILLED.top_p, **common,
    )  # fmt: skip
    return [own[0] for own in drafts]


def reviewers(speaker: TextModel, asked: list[Q.Question], drawn: Candidates) -> dict:
    """Of each stage, [accepted, all] of the right and of the wrong drafts, votes that say yes, replies that say nothing
    that can be read; and the same of the whole cascade."""
    record = drawn.verification
    hit = np.array([right([question] * DRAFTS, own) for question, own in zip(asked, drawn.texts)])
    found: dict[str, Any] = {}
    for stage in (*record.stages, "all stages"):
        own = record.accepted(stages=None if stage == "all stages" else [stage]).numpy()
        found[stage] = {kind: [int((own & of).sum()), int(of.sum())] for kind, of in (("right", hit), ("wrong", ~hit))}
        replies = [call.reply for call in drawn.transcripts
                   if call.stage == stage and "[[Y]]" in speaker.tokenizer.decode(call.prompt)]  # fmt: skip
        if replies:
            said = [read_verdict(speaker.tokenizer.decode(reply)) for reply in replies]
            cut = sum(len(reply) == CASCADE.max_new_tokens for reply in replies)
            found[stage] |= {"replies": len(said), "yes": said.count(True), "unreadable": said.count(None), "cut": cut}
    return found


def table(result: dict) -> str:
    lines = [f"{result['model']}; {result['questions']} word problems as chat", f"{'':26}{'right':>6}{'gain':>24}"]
    for name, row in result["rows"].items():
        mean, low, high = row["gain"]
        gain = "" if name == "one draft" else f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
        lines.append(f"{name:26}{row['accuracy'][0]:6.2f}{gain:>24}")
    lines += ["", f"{'':26}{'accepts right':>15}{'accepts wrong':>15}{'yes':>6}{'unreadable':>12}{'cut at 96':>11}"]
    for stage, own in result["reviewers"].items():
        shares = "".join(f"{kept} of {of}".rjust(15) for kept, of in (own["right"], own["wrong"]))
        of = own.get("replies")
        said = f"{own['yes'] / of:6.2f}{own['unreadable'] / of:12.2f}{own['cut'] / of:11.2f}" if of else ""
        lines.append(f"{stage:26}{shares}{said}")
    return "\n".join(lines)


def draw(result: dict):
    figure, (left, right_axis) = plt.subplots(1, 2, figsize=(13, 4.8), layout="constrained", width_ratios=(1.3, 1))
    for i, (name, row) in enumerate(result["rows"].items()):
        mean, low, high = row["accuracy"]
        left.errorbar(mean, i, xerr=[[mean - low], [high - mean]], fmt="o", color=BY_METHOD[COLOURS[name]], capsize=3)
    left.set_yticks(range(len(result["rows"])), result["rows"])
    left.invert_yaxis()
    left.set(xlim=(0, 1), xlabel="accuracy (95 %)", title=f"{result['questions']} word problems, as chat")
    stages = {name: own for name, own in result["reviewers"].items() if "replies" in own}
    begin = np.zeros(len(stages))
    for key, colour in (("yes", RIGHT), ("no", WRONG), ("unreadable", LIGHT)):
        counts = [{"no": own["replies"] - own["yes"] - own["unreadable"], **own}[key] for own in stages.values()]
        shares = np.array(counts) / [own["replies"] for own in stages.values()]
        right_axis.bar(range(len(stages)), shares, 0.6, begin, color=colour, label=key)
        begin += shares
    kept = ("{} of {} right,\n{} of {} wrong drafts".format(*own["right"], *own["wrong"]) for own in stages.values())
    named = [f"{stage}\naccepts {counts}" for stage, counts in zip(stages, kept)]
    right_axis.set_xticks(range(len(stages)), named, fontsize=9)
    right_axis.set(ylim=(0, 1.2), ylabel="share of a stage's verdicts", title="What its reviewers say")
    right_axis.legend(ncols=3, loc="upper right")
    tidy(left, right_axis)
    figure.suptitle(f"Reviewing itself: {result['model']}")
    return figure
