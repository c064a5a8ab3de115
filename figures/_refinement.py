"""What the figures of refinement share: the toy model, its problems, grades by class, differences, a consensus."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from figures._style import BY_CLASS
from reference.evaluation.statistics import accuracy
from reference.parallel_distill_refine import Drafts, PDRConfig, Refinement
from reference.text.ledger import Ledger
from reference.text.text_model import Role, Templates, TextModel
from toy import relay
from toy.pretrain import CHECKPOINT

DEPENDS = (
    "reference/text/ledger.py", "reference/parallel_distill_refine.py", "reference/interface.py",
    "reference/sampling.py", "reference/engine", "reference/sequential_refinement.py", "reference/text/text_model.py",
    "reference/transformer.py", "theory/refinement.py", "toy/relay.py", "toy/checkpoint", "figures/_refinement.py",
)  # fmt: skip
SEEDS = (0, 1, 2)
KINDS = ("plain", "tempting", "hard")
COLOURS = BY_CLASS
CONFIG = PDRConfig((4,), k=2, workspace=8, max_new_tokens=20)


@dataclass(frozen=True)
class World:
    speaker: TextModel
    problems: list[relay.Problem]
    seed: int

    @property
    def questions(self) -> list[str]:
        return [problem.question for problem in self.problems]

    @property
    def kinds(self) -> np.ndarray:
        return np.array([problem.kind for problem in self.problems])

    def right(self, drafts: Drafts) -> np.ndarray:
        """bool [problems, drafts]."""
        return np.array([[self.grader(i, text) for text in own] for i, own in enumerate(drafts)])

    def graded(self, result: Refinement) -> np.ndarray:
        """bool [problems]: the final drafts."""
        return self.right([[text] for text in result.texts])[:, 0]

    def grader(self, i: int, text: str) -> bool:
        return relay.answer(text) == self.problems[i].answer


def worlds(n: int, folder: Path = CHECKPOINT) -> list[World]:
    """n problems for each seed, and the seed."""
    speaker = TextModel.from_pretrained(folder)
    return [World(speaker, relay.make_problems(n, seed=seed + 2000), seed) for seed in SEEDS]


def by_class(right: np.ndarray, kinds: np.ndarray) -> dict[str, list[float]]:
    """[rate, low, high] of bool [problems], over all and by class."""
    masks = {"all": np.full(len(kinds), True)} | {kind: kinds == kind for kind in KINDS}
    return {name: list(accuracy(right[mask].astype(float).tolist())) for name, mask in masks.items() if mask.any()}


def difference(a: np.ndarray, b: np.ndarray) -> list[float]:
    """[mean, low, high] of a - b, paired by problem ([problems] each): a 95 % interval, by the normal distribution."""
    paired = a.astype(float) - b.astype(float)
    half = 1.96 * paired.std(ddof=1) / np.sqrt(len(paired))
    return [float(paired.mean()), float(paired.mean() - half), float(paired.mean() + half)]


def row(found: list[tuple[World, Refinement]]) -> dict:
    """Accuracy by class, budgets and the share of answers that cannot be parsed, over all seeds."""
    right = np.concatenate([world.graded(result) for world, result in found])
    kinds = np.concatenate([world.kinds for world, _ in found])
    budgets = [result.ledger.budgets() for _, result in found]
    return {
        "accuracy": by_class(right, kinds),
        "seeds": [float(world.graded(result).mean()) for world, result in found],
        **{name: float(np.mean([each[name] for each in budgets])) for name in budgets[0]},
        "unparsable": float(np.mean([result.unparsable for _, result in found])),
        "longest prompt": max(max(result.ledger.longest_prompt()) for _, result in found),
    }


def no_preference(ledger: Ledger, drafts: Drafts, branches: int, config: PDRConfig) -> list:
    return [[[0.0] * len(own)] * branches for own in drafts]


def consensus(speaker: TextModel) -> TextModel:
    """A world where drafts are not verified: a workspace has each step's most frequent value. (Use with k = M.)"""
    templates = speaker.templates

    def aggregator(question: str, drafts: list[str]) -> list[int]:
        values = [relay.show_values(question, text).split() for text in drafts]
        columns = [[value for value in column if value != "?"] for column in zip(*values)]
        best = [max(sorted(set(column)), key=column.count) if column else "?" for column in columns]
        return list(templates.role("refiner").prompt(question=question, workspace=" ".join(best)))

    roles = {**templates.roles, "aggregator": Role(aggregator, relay.answer)}
    return replace(speaker, templates=Templates("relay, consensus", roles, templates.stages))
