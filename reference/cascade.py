"""Verification by the model itself: a cascade of stages, each of several votes (2605.26132; validators of 2508.17580).

    Accept(q, y) = static(y) · Π_stages [ the stage's v votes are unanimous, or a majority of them says yes ]

A vote asks the judge anew, in all of the stage's turns, and draws its own random numbers: those of (question's key,
candidate, stage, vote). So what a vote says depends neither on the batch it shares nor on which other votes were cast,
and a cascade with early exit accepts exactly what the full record accepts. Early exit is

    "vote"     a stage stops as soon as its outcome is decided (at the first dissent, if votes must be unanimous), and
               a candidate that a stage rejects sees no later stage
    "stage"    the votes of a stage are cast side by side; a rejected candidate sees no later stage
    "none"     every vote on every candidate that passes the static check: a record from which any n, v, policy and
               choice of stages can be evaluated

The static check asks for an answer that can be read and, of models that think, for thinking that has ended. A judge's
reply that was cut at the horizon is taken as empty, since its last word is not in it. Nothing here sees an answer key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reference.interface import Cost
from reference.randomness import child_seed, key_of
from reference.sampling import check_settings, check_token_settings
from reference.text.text_model import TextModel, after_thinking

UNASKED = -1
EXITS = ("vote", "stage", "none")
POLICIES = ("unanimous", "majority")
Case = tuple[int, int]  # (question, candidate)


@dataclass(frozen=True)
class CascadeConfig:
    """Settings. The defaults are the paper's, so far as they are known."""

    votes: int = 5  # v, per stage; early runs of the paper: 3
    policy: str = "unanimous"  # or "majority": more than half
    stages: tuple[str, ...] | None = None  # in this order; (): the static check alone; None: all the templates have
    exit: str = "vote"  # see above
    require_thinking: bool = (
        False  # a candidate must hold thinking that has ended, "</think>" (the paper's models think)
    )
    max_new_tokens: int = 8192  # most tokens of a judge's reply
    temperature: float = 0.6
    top_p: float | None = 0.95

    def __post_init__(self) -> None:
        """ValueError: a setting out of range."""
        check_settings(self, least={"votes": 1}, among={"policy": POLICIES, "exit": EXITS})
        check_token_settings(self)
        if self.stages is not None and len({*self.stages}) < len(self.stages):
            raise ValueError(f"stages are {self.stages}; name each once, or None for all")


# ---------------------------------------------------------------------------------------------------------------------
# The page: one candidate that has passed the static check


class Verdict(NamedTuple):
    """Whether a candidate is accepted, and the votes that were cast on it, stage by stage."""

    accepted: bool
    votes: tuple[tuple[bool, ...], ...]


def cascade_page(vote: Callable[[str, int], bool], stages: Sequence[str], config: CascadeConfig) -> Verdict:
    """Stage after stage, each passed by v unanimous votes, or by most of them. vote(stage, j): vote j of a stage."""
    v, need = config.votes, needed(config.votes, config.policy)
    accepted, cast = True, []
    for stage in stages:
        said: list[bool] = []
        while len(said) < v and (accepted or config.exit == "none"):
            said.append(vote(stage, len(said)))
            decided = said.count(True) >= need or said.count(False) > v - need
            if config.exit == "vote" and decided:
                break
        accepted = accepted and said.count(True) >= need
        cast.append(tuple(said))
    return Verdict(accepted, tuple(cast))


# ---------------------------------------------------------------------------------------------------------------------
# Many candidates at a time


@dataclass(frozen=True)
class Verification:
    """The vote record. Tensors are on the CPU."""

    stages: tuple[str, ...]
    policy: str  # by which it was made, and is read unless another is asked for
    static: Tensor  # bool [questions, n]: passed the static check
    votes: Tensor  # int8 [questions, n, stages, v]: 1 yes, 0 no, UNASKED
    calls: Tensor  # int64 [questions, n, stages]: prompts asked
    tokens: Tensor  # int64 [questions, n, stages]: theirs and their replies'
    unread: Tensor  # int64 [questions, n, stages]: votes of which nobody knows what they say: dissents
    costs: list[Cost]  # per question

    def passed(self, votes: int | None = None, policy: str | None = None) -> Tensor:
        """int8 [questions, n, stages]: 1 passed, 0 rejected, UNASKED undecided, by the first `votes` votes."""
        cast = self.votes[..., :votes]
        v = cast.shape[-1]
        if not 1 <= (votes or v) <= self.votes.shape[-1]:
            raise ValueError(f"votes is {votes}; the record has 1..{self.votes.shape[-1]} of each stage")
        need = needed(v, policy or self.policy)
        passed = torch.full_like(cast[..., 0], UNASKED)
        passed[(cast == 1).sum(-1) >= need] = 1
        passed[(cast == 0).sum(-1) > v - need] = 0
        return passed

    def accepted(
        self, votes: int | None = None, policy: str | None = None, stages: Sequence[str] | None = None
    ) -> Tensor:
        """bool [questions, n]: by the first `votes` votes of some of the stages (default: all).

        ValueError: the record cannot tell, because votes that it would take were not cast.
        """
        columns = [self.stages.index(name) for name in (self.stages if stages is None else stages)]
        passed = self.passed(votes, policy)[..., columns]
        undecided = self.static & (passed == UNASKED).any(-1) & ~(passed == 0).any(-1)
        if undecided.any():
            raise ValueError(
                f"{int(undecided.sum())} candidates have too few votes to say; make the record with exit='none'"
            )
        return self.static & (passed == 1).all(-1)

    def first_valid(self, **how: Any) -> Tensor:
        """int64 [questions]: each question's first accepted candidate, -1 if there is none; how: as for `accepted`."""
        accepted = self.accepted(**how)
        return torch.where(accepted.any(-1), accepted.int().argmax(-1), -1)

    @property
    def remark(self) -> str:
        """How many votes could not be read: too many of them, and the record says nothing."""
        return f"unread votes, which count as no: {int(self.unread.sum())} of {int((self.votes != UNASKED).sum())}"

    def rejections(self) -> dict[str, int]:
        """How many candidates each stage was the first to reject."""
        passed = self.passed()
        left = self.static.clone()
        counts = {"static": int((~left).sum())}
        for s, name in enumerate(self.stages):
            counts[name] = int((left & (passed[..., s] == 0)).sum())
            left &= passed[..., s] == 1
        return counts


@dataclass(frozen=True)
class Transcript:
    """One call of a judge, ids."""

    key: int  # its address: question, candidate, stage, vote, turn, and prompt of the turn
    stage: str
    prompt: list[int]
    reply: Tensor


def needed(v: int, policy: str) -> int:
    """How many of v votes must say yes."""
    return v if policy == "unanimous" else v // 2 + 1


def verify(
    speaker: TextModel,
    questions: Sequence[str],
    solutions: Sequence[Sequence[str]],
    config: CascadeConfig | None = None,
    *,
    seed: int = 0,
    keys: Sequence[int | str] | None = None,
    transcripts: list[Transcript] | None = None,
    **settings: Any,
) -> Verification:
    """What the speaker's model, as a judge, makes of solutions[question][candidate], n texts of each question.

    keys: what addresses a question's randomness (default: its index). transcripts: gets every judge's prompt and
    reply. settings: slots, as for `generate`. ValueError: no question, or unequal numbers of candidates; a stage or a
    role that the templates lack; what `generate` refuses.
    """
    config = config or CascadeConfig()
    judge = Judge(speaker, questions, solutions, config, seed, keys, transcripts, **settings)
    stages = tuple(speaker.templates.stages if config.stages is None else config.stages)
    n, v, need = len(solutions[0]), config.votes, needed(config.votes, config.policy)
    static = torch.tensor([[static_check(speaker, text, config.require_thinking) for text in own] for own in solutions])
    votes = torch.full((len(questions), n, len(stages), v), UNASKED, dtype=torch.int8)
    calls, tokens, unread = torch.zeros((3, *votes.shape[:3]), dtype=torch.int64)
    left = static.clone()
    for s, name in enumerate(stages):
        for j in range(v):
            said = votes[:, :, s]
            decided = ((said == 1).sum(-1) >= need) | ((said == 0).sum(-1) > v - need)
            cases = (left & ~decided if config.exit == "vote" else left).nonzero()
            i, c = cases.T
            cast = judge.vote(name, [(a, b) for a, b in cases.tolist()], j)
            votes[i, c, s, j] = torch.tensor([verdict is True for verdict in cast.verdicts], dtype=torch.int8)
            for counts, own in ((calls, cast.calls), (tokens, cast.tokens)):
                counts[i, c, s] += torch.tensor(own, dtype=torch.int64)
            unread[i, c, s] += torch.tensor([verdict is None for verdict in cast.verdicts], dtype=torch.int64)
        if config.exit != "none":
            left &= (votes[:, :, s] == 1).sum(-1) >= need
    return Verification(stages, config.policy, static, votes, calls, tokens, unread, judge.costs)


def static_check(speaker: TextModel, text: str, thinking: bool = False) -> bool:
    """Whether an answer can be read, and thinking that was begun (or that must be there) has ended."""
    said = after_thinking("<think>" * thinking + text)  # where it must be there, text without its end was cut
    return said is not None and speaker.parse("author", said) is not None


class Cast(NamedTuple):
    """A vote on each of several cases."""

    verdicts: list[bool | None]  # None: nobody knows what the reply says
    calls: list[int]  # prompts asked
    tokens: list[int]  # theirs and their replies'


class Judge:
    """Casts votes on candidates by asking the speaker's model."""

    def __init__(
        self, speaker: TextModel, questions: Sequence[str], solutions: Sequence[Sequence[str]], config: CascadeConfig,
        seed: int = 0, keys: Sequence[int | str] | None = None, transcripts: list[Transcript] | None = None,
        **settings: Any,
    ):  # fmt: skip
        if not questions or len(solutions) != len(questions) or len({len(own) for own in solutions} | {0}) != 2:
            raise ValueError(
                f"{len(questions)} questions with {sorted({len(own) for own in solutions})} solutions each; give at "
                "least one question, and to each the same number of solutions"
            )
        if keys is not None and len(keys) != len(questions):
            raise ValueError(f"{len(questions)} questions with {len(keys)} keys; give one to each")
        if not speaker.templates.stages:
            raise ValueError(f"the template set {speaker.templates.name!r} has no stages; name a set that has some")
        for name in config.stages or ():
            speaker.templates.stage(name)
        self.speaker, self.questions, self.solutions, self.seed = speaker, questions, solutions, seed
        self.keys = [key_of(key) for key in (keys if keys is not None else range(len(questions)))]
        self.transcripts, self.costs = transcripts, [Cost()] * len(questions)
        self.settings = {
            "max_new_tokens": config.max_new_tokens,
            "temperature": config.temperature,
            "top_p": config.top_p,
        }
        self.settings |= settings

    def vote(self, name: str, cases: Sequence[Case], *label: int) -> Cast:
        """The stage's verdict on each case; label: which vote this is."""
        stage = self.speaker.templates.stage(name)
        calls, tokens = [0] * len(cases), [0] * len(cases)

        def ask(turn: int, prompts: list[list[Sequence[int]]]) -> list[list[str]]:
            heard: list[list[str]] = [[] for _ in cases]
            flat = [(k, j, list(prompt)) for k, own in enumerate(prompts) for j, prompt in enumerate(own)]
            if not flat:
                return heard
            seed = child_seed(self.seed, "vote", name, *label, turn)
            keys = [child_seed(self.keys[cases[k][0]], cases[k][1], j) for k, j, _ in flat]
            texts, out = self.speaker.reply([prompt for *_, prompt in flat], seed=seed, keys=keys, **self.settings)
            whole = (out.samples.finished | (not self.speaker.stop_ids))[:, 0].tolist()
            shares: dict[int, list[Cost]] = {}
            for r, ((k, _, prompt), length) in enumerate(zip(flat, out.samples.lengths[:, 0].tolist())):
                heard[k].append(texts[r][0] if whole[r] else "")
                calls[k] += 1
                tokens[k] += len(prompt) + length
                shares.setdefault(cases[k][0], []).append(out.costs[r])
                if self.transcripts is not None:
                    reply = out.samples.tokens[r, 0, :length].cpu().clone()
                    self.transcripts.append(Transcript(child_seed(seed, keys[r]), name, prompt, reply))
            for i, share in shares.items():
                self.costs[i] += Cost.parallel(share)
            return heard

        verdicts = stage.judge([(self.questions[i], self.solutions[i][c]) for i, c in cases], ask)
        return Cast([None if verdict is None else bool(verdict) for verdict in verdicts], calls, tokens)
