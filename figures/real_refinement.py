"""Can a model of this size review itself? Refinement and verification on a real model (2510.01123, 2605.26132).

SmolLM2-135M-Instruct (4-bit weights, dequantised), 60 word problems, by the templates for chat models: the author
reasons and boxes its answer; parallel-distill-refine with four drafts, one revision after another; and the cascade, two
votes a stage on four candidates each. What is counted besides right answers is whether they can be read at all, and
what reviewers say: yes, no, or nothing that can be read. Settings were fixed beforehand; responses have 96 tokens.
"""

from collections import Counter
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from figures import _real as R
from figures._style import BY_METHOD, RIGHT, WRONG, tidy
from reference.cascade import CascadeConfig, verify
from reference.evaluation.statistics import accuracy
from reference.parallel_distill_refine import PDRConfig, parallel_distill_refine
from reference.self_reward import majority_vote
from reference.sequential_refinement import sequential_refinement
from reference.text.text_model import TextModel
from toy import questions as Q

DEPENDS = (
    *R.DEPENDS, "reference/text", "reference/parallel_distill_refine.py", "reference/sequential_refinement.py",
    "reference/cascade.py", "figures/real_refinement.py",
)  # fmt: skip
FAMILY, QUESTIONS, DRAFTS, VOTES, TOKENS = "stories", 60, 4, 2, 96
CONFIG = PDRConfig((DRAFTS,), workspace=TOKENS, max_new_tokens=TOKENS)
CASCADE = CascadeConfig(votes=VOTES, exit="none", max_new_tokens=TOKENS, temperature=0.6)


def graded(questions: list[Q.Question], texts: list[str]) -> dict:
    """Of one final text a question: whether it is right, and whether it has a boxed answer."""
    right = [Q.read(question, text) == question.answer for question, text in zip(questions, texts)]
    return {
        "accuracy": accuracy([float(x) for x in right]),
        "boxed": float(np.mean(["boxed" in text for text in texts])),
    }


def compute() -> dict:
    """Half an hour on two cores."""
    speaker = R.speaker()
    asked = Q.questions(FAMILY, QUESTIONS, R.SEED)
    texts, keys = [question.question for question in asked], [question.id for question in asked]
    common: dict[str, Any] = {"seed": R.SEED, "keys": keys, "slots": R.SLOTS}
    refined = parallel_distill_refine(speaker, texts, CONFIG, **common)
    drafts = [list(own) for own in refined.rounds[0]]
    revised = sequential_refinement(speaker, texts, 2, CONFIG, **common)
    votes = np.array([[Q.read(question, text) for text in own] for question, own in zip(asked, drafts)], dtype=object)
    voted = majority_vote([[None if answer is None else str(answer) for answer in own] for own in votes.tolist()])
    rows = {
        "one draft": graded(asked, [own[0] for own in drafts]),
        f"majority of {DRAFTS}": graded(asked, [own[int(i)] for own, i in zip(drafts, voted.argmax(1).tolist())]),
        "parallel-distill-refine": graded(asked, refined.texts), "two revisions": graded(asked, revised.texts),
    }  # fmt: skip
    return {
        "model": R.SOURCE, "family": FAMILY, "questions": QUESTIONS, "drafts": DRAFTS, "votes": VOTES, "seed": R.SEED,
        "rows": rows, "reviewers": reviewed(speaker, asked, texts, drafts, common),
    }  # fmt: skip


def reviewed(speaker: TextModel, asked: list, texts: list[str], drafts: list[list[str]], common: dict) -> dict:
    """What each stage votes on right and on wrong drafts, and what the cascade keeps."""
    record = verify(speaker, texts, drafts, CASCADE, **common)
    right = np.array(
        [[Q.read(question, text) == question.answer for text in own] for question, own in zip(asked, drafts)]
    )
    static, accepted = record.static.numpy(), record.accepted().numpy()
    found: dict[str, Any] = {"static": float(static.mean()), "accepted": int(accepted.sum()), "drafts": int(right.size),
                             "right among all": float(right.mean())}  # fmt: skip
    found["right among accepted"] = float(right[accepted].mean()) if accepted.any() else None
    for i, stage in enumerate(record.stages):
        cast = record.votes[:, :, i].numpy()
        found[stage] = {kind: dict(Counter(cast[mask & static].flatten().tolist()))
                        for kind, mask in (("right", right), ("wrong", ~right))}  # fmt: skip
    return found


def draw(result: dict):
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
    colours = [BY_METHOD[name] for name in ("one response", "majority", "pdr", "sequential")]
    for i, (row, colour) in enumerate(zip(result["rows"].values(), colours)):
        mean, low, high = row["accuracy"]
        left.bar(i, mean, 0.65, color=colour, yerr=[[mean - low], [high - mean]], ecolor="#444444", capsize=3)
        left.text(i, high + 0.02, f"{100 * row['boxed']:.0f} % boxed", ha="center", fontsize=9)
    left.set_xticks(range(len(result["rows"])), result["rows"])
    left.set(ylim=(0, 1), ylabel="accuracy (95 %)", title=f"{result['questions']} word problems")
    stages = [name for name, value in result["reviewers"].items() if isinstance(value, dict)]
    for j, (kind, colour) in enumerate((("right", RIGHT), ("wrong", WRONG))):
        rates = []
        for stage in stages:
            counts = {int(vote): n for vote, n in result["reviewers"][stage][kind].items()}
            whole = counts.get(0, 0) + counts.get(1, 0)
            rates.append(counts.get(1, 0) / whole if whole else 0.0)
        right.bar(np.arange(len(stages)) + 0.38 * j - 0.19, rates, 0.36, color=colour, label=f"{kind} drafts")
    right.set_xticks(range(len(stages)), stages)
    right.set(ylim=(0, 1), ylabel="share of votes that say yes", title="What its reviewers accept")
    right.legend()
    tidy(left, right)
    figure.suptitle(f"Reviewing itself: {result['model']}")
    return figure
