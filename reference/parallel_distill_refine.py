"""Parallel-distill-refine: a model as an operator that improves its own drafts (2510.01123).

Given a question x and a workspace C (none at first), a round writes M_r drafts and distills them into the next one:

    s_i ~ M(· | x, C^(r−1)), i ≤ M_r,      C^(r) = D(x, s_1 .. s_{M_r}),  |C^(r)| ≤ κ,      r = 1 .. R,  M_R = 1

The only draft of the last round is the answer: no vote, no verifier. A workspace is written anew each round and never
appended to, so the context does not grow with rounds. D is one of

    "summary"             one report on all drafts, for every draft of the next round
    "shared-top-k"        the k drafts of highest score, for every draft of the next round
    "per-sample-top-k"    each draft of the next round chooses k of its own: scored anew, ties broken by chance
    "random-k"            each draft of the next round gets k at random
    "oracle-right"        k of the right drafts, or "oracle-wrong": experiments, which alone see the grader

Chosen drafts are the workspace as they are (role "aggregator") or, where a world has no such role, by way of a report
on them alone. The score is pluggable: by default the model chooses (role "selector"), or it counts the verification
stages that a draft passes.

The paper's full text was not at hand, so this is ours: a report that cannot be read, and chosen drafts of which not one
fits κ, are no workspace, and the draft is written as in round 1. (If that is so for all problems, κ is too small: an
error.) A report is cut at κ; what of a draft is shown to others (not its thinking) is the templates' affair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import torch

from reference.randomness import CHOICE, uniform
from reference.sampling import Cost, Samples, check_settings, child_seed
from reference.text.ledger import Ledger
from reference.text.text_model import TextModel

Workspace = str | tuple[str, ...] | None  # a report; chosen drafts; none
Drafts = list[list[str]]  # [problem][draft]
Scorer = Callable[[Ledger, Drafts, int, "PDRConfig"], Sequence[Sequence[Sequence[float]]]]  # [problem][branch][draft]
Checker = Callable[[int, str], bool]  # (problem, draft) -> right
SHARED = ("summary", "shared-top-k", "oracle-right", "oracle-wrong")  # one workspace for all of a round's drafts
DISTILLERS = (*SHARED, "per-sample-top-k", "random-k")


@dataclass(frozen=True)
class PDRConfig:
    """Settings. The paper's are (16, 8, 4), k = 2 or 4, and 8192 to 24576 thinking tokens with 2048 for the answer."""

    drafts: tuple[int, ...] = (16, 8, 4)  # M_1, M_2, ..; the last round's single draft is implied
    distiller: str = "summary"  # see above
    k: int = 2  # drafts that a distiller other than "summary" keeps
    workspace: int = 2048  # κ: most tokens that a workspace may have
    max_new_tokens: int = 10240  # most tokens of a draft, and of a judge's reply
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """ValueError: a setting out of range."""
        least = {"workspace": 1, "max_new_tokens": 1, "temperature": 0}
        check_settings(self, least=least, among={"distiller": DISTILLERS})
        if not self.drafts or min(self.drafts) < 1:
            raise ValueError(f"drafts are {self.drafts}; give each round before the last at least 1, as in (4,)")
        if self.distiller != "summary" and not 1 <= self.k <= min(self.drafts):
            raise ValueError(f"k is {self.k}; it must be in 1..{min(self.drafts)}, the fewest drafts of a round")


@dataclass(frozen=True)
class Refinement:
    """`samples[problem][0]` is the final draft; `rounds` are all drafts [round][problem][draft], the final one last."""

    samples: Samples  # [problems, 1]
    texts: list[str]
    answers: list[str | None]  # None: the template cannot parse the draft; it counts as wrong
    ledger: Ledger
    rounds: list[Drafts] = field(default_factory=list)
    workspaces: list[list[list[Workspace]]] = field(default_factory=list)  # [round][problem][branch]

    @property
    def costs(self) -> list[Cost]:
        return self.ledger.costs

    @property
    def cost(self) -> Cost:
        return Cost.parallel(self.costs)

    @property
    def unparsable(self) -> float:
        """The share of problems whose final draft has no answer."""
        return fmean(answer is None for answer in self.answers)


def parallel_distill_refine(
    speaker: TextModel,
    questions: Sequence[str],
    config: PDRConfig | None = None,
    *,
    scorer: Scorer | None = None,
    grader: Checker | None = None,
    seed: int = 0,
    keys: Sequence[int | str] | None = None,
    **settings,
) -> Refinement:
    """settings: top_k, top_p, slots, as for `generate`. ValueError: a setting out of range, a role that the templates
    lack, an oracle without a grader, a context beyond the model's maximum."""
    config = config or PDRConfig()
    if config.distiller.startswith("oracle") and grader is None:
        raise ValueError(f"distiller {config.distiller!r} needs a grader; only an experimenter has one")
    ledger = Ledger(speaker, questions, seed, keys, temperature=config.temperature, **settings)
    rounds, history = [], []
    workspaces: list[list[Workspace]] = [[None] for _ in questions]
    for now, following in zip(config.drafts, (*config.drafts[1:], 1)):
        rounds.append(draft(ledger, workspaces, now, config))
        workspaces = distill(ledger, rounds[-1], following, config, scorer, grader)
        history.append(workspaces)
    rounds.append(draft(ledger, workspaces, 1, config))  # refine
    return finish(ledger, rounds, history)


def draft(ledger: Ledger, workspaces: Sequence[Sequence[Workspace]], n: int, config: PDRConfig) -> Drafts:
    """n drafts of each problem, all side by side; each problem has one workspace for all of them, or one for each."""

    def prompt(question: str, workspace: Workspace) -> list[int]:
        if workspace is None:
            return ledger.speaker.prompt("author", question=question)
        if isinstance(workspace, tuple):
            return ledger.speaker.prompt("aggregator", question=question, drafts=workspace)
        return ledger.speaker.prompt("refiner", question=question, workspace=workspace)

    branches = len(workspaces[0])
    prompts = [[prompt(question, each) for each in own] for question, own in zip(ledger.questions, workspaces)]
    replies = ledger.ask("draft", prompts, max_new_tokens=config.max_new_tokens, samples_per_prompt=n // branches)
    return [[text for texts in own for text in texts] for own in replies]


def distill(
    ledger: Ledger, drafts: Drafts, following: int, config: PDRConfig, scorer: Scorer | None, grader: Checker | None
) -> list[list[Workspace]]:
    """The workspaces of the next round, which has `following` drafts: one for each problem, or one for each draft."""
    if config.distiller == "summary":
        return report(ledger, [[own] for own in drafts], config)
    chosen = choose(ledger, drafts, 1 if config.distiller in SHARED else following, config, scorer, grader)
    roles = ledger.speaker.templates.roles
    return (bundle if "aggregator" in roles else report)(ledger, chosen, config)


def choose(
    ledger: Ledger, drafts: Drafts, branches: int, config: PDRConfig, scorer: Scorer | None, grader: Checker | None
) -> list[list[list[str]]]:
    """k drafts for each branch, best first, ties in random order: chosen[problem][branch]."""
    if config.distiller.startswith("oracle"):
        assert grader is not None  # checked at the beginning
        wanted = config.distiller == "oracle-right"
        return [[[text for text in own if grader(i, text) == wanted][: config.k]] for i, own in enumerate(drafts)]
    m = range(len(drafts[0]))
    key, branch, place = torch.tensor(ledger.keys), torch.arange(branches), torch.arange(len(m))
    seed = child_seed(ledger.seed, "choice", ledger.steps)
    chance = uniform(seed, key[:, None, None], branch[:, None], 0, place, CHOICE).tolist()  # [problem][branch][draft]
    scores: Sequence[Sequence[Sequence[float]]] = [[[0.0] * len(m)] * branches] * len(drafts)
    if config.distiller != "random-k":
        scores = (scorer or default_scorer(ledger.speaker))(ledger, drafts, branches, config)
        if any(math.isnan(value) for own in scores for row in own for value in row):
            raise ValueError("the scorer gave a score that is NaN; scores must be numbers")
    return [
        [[own[j] for j in sorted(m, key=lambda j: (-score[j], luck[j]))[: config.k]] for score, luck in zip(*both)]
        for own, *both in zip(drafts, scores, chance)
    ]


def report(ledger: Ledger, chosen: list[list[list[str]]], config: PDRConfig) -> list[list[Workspace]]:
    """The distiller's words on chosen[problem][branch]; None where it has nothing to read, or nothing to say."""
    speaker = ledger.speaker
    prompts = [
        [speaker.prompt("distiller", question=question, drafts=drafts) for drafts in own if drafts]
        for question, own in zip(ledger.questions, chosen)
    ]
    replies = ledger.ask("distill", prompts, max_new_tokens=config.workspace)
    read = [[speaker.parse("distiller", texts[0]) for texts in own] for own in replies]
    if any(replies) and not any(map(any, read)) and not ledger.samples.finished.any():
        raise ValueError(f"workspace is {config.workspace} tokens: no report can be read within them; give it more")
    said = [iter(own) for own in read]
    return [[next(words) if drafts else None for drafts in own] for own, words in zip(chosen, said)]


def bundle(ledger: Ledger, chosen: list[list[list[str]]], config: PDRConfig) -> list[list[Workspace]]:
    """The chosen drafts themselves, best first, that fit κ together, by what they add to a prompt."""

    def fit(question: str, drafts: list[str]) -> Workspace:
        def length(some: list[str]) -> int:
            return len(ledger.speaker.prompt("aggregator", question=question, drafts=some))

        kept: list[str] = []
        for text in drafts:
            if length([*kept, text]) - length([]) <= config.workspace:
                kept.append(text)
        return tuple(kept) or None

    bundles = [[fit(question, drafts) for drafts in own] for question, own in zip(ledger.questions, chosen)]
    if any(map(any, chosen)) and not any(map(any, bundles)):
        raise ValueError(f"workspace is {config.workspace} tokens: not one draft fits into them; give it more")
    return bundles


def finish(ledger: Ledger, rounds: list[Drafts], workspaces: Sequence[list[list[Workspace]]] = ()) -> Refinement:
    texts = [own[0] for own in rounds[-1]]
    answers = [ledger.speaker.parse("author", text) for text in texts]
    return Refinement(ledger.samples, texts, answers, ledger, rounds, list(workspaces))


# ---------------------------------------------------------------------------------------------------------------------
# Scores of drafts


def default_scorer(speaker: TextModel) -> Scorer:
    """The model's own choice, if it can be asked for one, else the verdicts of its stages."""
    if "selector" not in speaker.templates.roles and speaker.templates.stages:
        return count_verdicts
    return ask_selector


def ask_selector(ledger: Ledger, drafts: Drafts, branches: int, config: PDRConfig) -> list[list[list[float]]]:
    """The role "selector" names drafts (from 0), best first; those that it does not name come last."""
    speaker = ledger.speaker
    prompts = [
        [speaker.prompt("selector", question=question, drafts=own, k=config.k)] * branches
        for question, own in zip(ledger.questions, drafts)
    ]
    replies = ledger.ask("select", prompts, max_new_tokens=config.max_new_tokens)
    named = [[speaker.parse("selector", texts[0]) or [] for texts in own] for own in replies]
    m = range(len(drafts[0]))
    return [[[-float(best.index(j) if j in best else len(m)) for j in m] for best in own] for own in named]


def count_verdicts(ledger: Ledger, drafts: Drafts, branches: int, config: PDRConfig) -> list[list[list[float]]]:
    """How many of the stages a draft passes, one vote each, cast anew for each branch."""
    m, stages = len(drafts[0]), ledger.speaker.templates.stages
    candidates = [own * branches for own in drafts]
    held = [
        ledger.hold(name, stage, candidates, max_new_tokens=config.max_new_tokens) for name, stage in stages.items()
    ]
    passed = [[float(votes.count(True)) for votes in zip(*own)] for own in zip(*held)]  # [problem][branch and draft]
    return [[own[b * m : (b + 1) * m] for b in range(branches)] for own in passed]
