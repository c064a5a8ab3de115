"""Verification at test time: UQ-TTC, and the UQ validators as combinators (2605.26132, 2508.17580).

    y_0 .. y_{n−1} ~ π(· | q);   ŷ = the first y_i that the validator accepts, y_0 if it accepts none

With the cascade of `reference/cascade.py` as validator this spends up to n + 4nv calls on what self-verified
distillation learns to say in one. Candidates may be asked for one after another, and the first valid one ends it; since
random numbers are addressed, that is the same answer, so one run knows the price of both (`tokens(lazy=...)`).

The UQ paper builds validators from stages; a validator is a function (judge, cases, label) -> verdicts:

    vote(name)                one vote of a stage
    repeat(validator, k)      k validators, each with random numbers of its own
    majority(validators)      more than half of them say yes
    unanimous(validators)     all of them do; all are asked
    sequential(validators)    all of them do; each is asked only what those before it have accepted
    reflect(stage, again, k)  a stage whose last turn is followed by k − 1 turns that ask to think again

"3-Iter" is sequential([unanimous(repeat(vote(name), 3)) for name in stages]).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reference.cascade import CascadeConfig, Case, Judge, Verdict, Verification, cascade_page, static_check, verify
from reference.interface import Cost, Samples
from reference.randomness import child_seed
from reference.self_verified_distillation import SVDConfig
from reference.text.text_model import Stage, TextModel, Turn

Validator = Callable[..., list[bool]]  # (judge, cases, *label) -> the verdict on each case


def vote(name: str) -> Validator:
    """One vote of a stage of the templates."""

    def validate(judge: Judge, cases: Sequence[Case], *label: int) -> list[bool]:
        return [verdict is True for verdict in judge.vote(name, cases, *label).verdicts]

    return validate


def repeat(validator: Validator, k: int) -> list[Validator]:
    """The validator k times, independent of each other given the case. ValueError: k is below 1."""
    if k < 1:
        raise ValueError(f"k is {k}; repeat a validator at least once")

    def numbered(j: int) -> Validator:
        return lambda judge, cases, *label: validator(judge, cases, *label, j)

    return [numbered(j) for j in range(k)]


def majority(validators: Sequence[Validator]) -> Validator:
    def validate(judge: Judge, cases: Sequence[Case], *label: int) -> list[bool]:
        verdicts = [validator(judge, cases, *label) for validator in validators]
        return [sum(own) > len(own) // 2 for own in zip(*verdicts)]

    return validate


def unanimous(validators: Sequence[Validator]) -> Validator:
    def validate(judge: Judge, cases: Sequence[Case], *label: int) -> list[bool]:
        verdicts = [validator(judge, cases, *label) for validator in validators]
        return [all(own) for own in zip(*verdicts)]

    return validate


def sequential(validators: Sequence[Validator]) -> Validator:
    def validate(judge: Judge, cases: Sequence[Case], *label: int) -> list[bool]:
        left = list(cases)
        for validator in validators:
            left = [case for case, said in zip(left, validator(judge, left, *label)) if said]
        return [case in {*left} for case in cases]

    return validate


def reflect(stage: Stage, again: Turn, k: int) -> Stage:
    """The stage asked k times in a row; `again` builds on the replies so far, and the verdict is read off the last."""
    last = len(stage.turns) - 1

    def verdict(question: str, candidate: str, replies: Sequence[Sequence[str]]) -> Any:
        return stage.verdict(question, candidate, [*replies[:last], replies[-1]])

    return Stage((*stage.turns, *[again] * (k - 1)), verdict)


def validate(
    speaker: TextModel, questions: Sequence[str], solutions: Sequence[Sequence[str]], validator: Validator,
    config: CascadeConfig | None = None, *, seed: int = 0, keys: Sequence[int | str] | None = None, **settings: Any,
) -> tuple[Tensor, Judge]:  # fmt: skip
    """What a validator accepts, bool [questions, n], and the judge, which knows the costs. Of the config only how
    judges reply matters. The randomness is that of `verify`: a vote of the same label is the same vote."""
    config = config or CascadeConfig()
    judge = Judge(speaker, questions, solutions, config, seed, keys, **settings)
    accepted = torch.tensor(
        [[static_check(speaker, text, config.require_thinking) for text in own] for own in solutions]
    )
    cases = [(i, c) for i, c in accepted.nonzero().tolist()]
    accepted[accepted.clone()] = torch.tensor(validator(judge, cases), dtype=torch.bool)
    return accepted, judge


# ---------------------------------------------------------------------------------------------------------------------
# UQ-TTC


# The page: one question


class Answer(NamedTuple):
    """Which candidate is the answer, and the verdicts up to it."""

    answer: int  # the first valid candidate; 0 if there is none
    valid: int  # likewise; -1 if there is none
    verdicts: tuple[Verdict, ...]


def uq_ttc_page(votes: Sequence[Callable[[str, int], bool]], stages: Sequence[str], config: CascadeConfig) -> Answer:
    """The first of n candidates that the cascade accepts; votes[i](stage, j) casts a vote on candidate i."""
    verdicts: list[Verdict] = []
    for i, vote in enumerate(votes):
        verdicts.append(cascade_page(vote, stages, config))
        if verdicts[-1].accepted:
            return Answer(i, i, tuple(verdicts))
    return Answer(0, -1, tuple(verdicts))


# ---------------------------------------------------------------------------------------------------------------------
# Many questions at a time


@dataclass(frozen=True)
class Validated:
    """`samples[problem][0]` is the answer; `pool` are all candidates."""

    samples: Samples  # [problems, 1]
    texts: list[str]
    answers: list[str | None]
    valid: Tensor  # int64 [problems]: the first valid candidate, -1 if there was none (and the answer is candidate 0)
    pool: Samples  # [problems, n]
    verification: Verification
    prompts: Tensor  # int64 [problems]: tokens of the author's prompt
    costs: list[Cost]

    @property
    def cost(self) -> Cost:
        return Cost.parallel(self.costs)

    @property
    def remark(self) -> str | None:
        return self.verification.remark if self.verification.unread.any() else None

    def tokens(self, lazy: bool = False) -> Tensor:
        """int64 [problems]: tokens in and out, of the candidates and of the calls on them; lazy: as if candidates were
        asked for one after another, until the first valid one."""
        return self.spent(self.prompts[:, None] + self.pool.lengths.cpu() + self.verification.tokens.sum(-1), lazy)

    def calls(self, lazy: bool = False) -> Tensor:
        """int64 [problems]: the same in calls."""
        return self.spent(1 + self.verification.calls.sum(-1), lazy)

    def spent(self, each: Tensor, lazy: bool) -> Tensor:
        n = each.shape[1]
        needed = torch.where(self.valid < 0, n, self.valid + 1) if lazy else torch.full_like(self.valid, n)
        return (each * (torch.arange(n) < needed[:, None])).sum(-1)


def uq_ttc(
    speaker: TextModel,
    questions: Sequence[str],
    config: SVDConfig,
    *,
    seed: int = 0,
    keys: Sequence[int | str] | None = None,
    **settings: Any,
) -> Validated:
    """The first valid of n candidates, or candidate 0. config: n, tokens, temperature (the paper's 0.7 here), top_p,
    and the cascade. settings: slots. ValueError: as from `generate` and `verify`."""
    prompts = [speaker.prompt("author", question=question) for question in questions]
    texts, drawn = speaker.reply(
        prompts, samples_per_prompt=config.n, max_new_tokens=config.max_new_tokens, temperature=config.temperature,
        top_p=config.top_p, seed=child_seed(seed, "draw"), keys=keys, **settings,
    )  # fmt: skip
    record = verify(speaker, questions, texts, config.cascade, seed=child_seed(seed, "verify"), keys=keys, **settings)
    valid = record.first_valid()
    chosen = valid.clamp(min=0)
    final = [own[i] for own, i in zip(texts, chosen.tolist())]
    return Validated(
        drawn.samples.take(chosen[:, None].to(drawn.samples.tokens.device)), final,
        [speaker.parse("author", text) for text in final], valid, drawn.samples, record,
        torch.tensor([len(prompt) for prompt in prompts]), [a + b for a, b in zip(drawn.costs, record.costs)],
    )  # fmt: skip
