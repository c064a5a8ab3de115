"""Graders: is a response right? grader(problem, text) -> Verdict; ValueError for a problem that it cannot grade.

    numeric   a number; what math-verify finds equal to it is right too
    choice    a letter
    math      mathematics in LaTeX, by math-verify
    exact     a text, but for case and blanks; a number where the true answer is one
    code      the program passes its tests (`reference/evaluation/code_grader.py`)
    game24    an expression of four numbers that makes 24
    mixed     each problem by its own of these
    none      nothing is judged here

Where a response has its answer, and what is equal, is in `reference/evaluation/answers.py`. A response from which no
answer can be read (it was cut, or has no box) is wrong. Its `answer` is None, so that a report can say how often that
happened: an accuracy with many of them measures the horizon, not the model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from reference.evaluation.answers import (
    after_thinking,
    as_number,
    letter_of,
    mathematics_of,
    number_of,
    same_mathematics,
    same_number,
    same_text,
    text_of,
)  # fmt: skip
from reference.evaluation.code_grader import WARNING, CodeLimits, confinement, find_program, run_program
from reference.evaluation.formats import LETTERS, Problem, reaches_24


@dataclass(frozen=True)
class Verdict:
    right: bool
    answer: str | None  # as it was read; None: there is none


Grader = Callable[[Problem, str], Verdict]


def exact(problem: Problem, text: str) -> Verdict:
    if as_number(problem.answer) is not None:
        return numeric(problem, text)
    answer = text_of(text)
    return Verdict(same_text(answer, problem.answer), answer)


def numeric(problem: Problem, text: str) -> Verdict:
    """ValueError: the problem's answer is no number."""
    if as_number(problem.answer) is None:
        raise ValueError(f"problem {problem.id!r}: the answer {problem.answer!r} is no number; use another grader")
    answer = number_of(text)
    return Verdict(same_number(answer, problem.answer), answer)


def choice(problem: Problem, text: str) -> Verdict:
    """ValueError: the true answer is no letter."""
    if problem.answer not in tuple(LETTERS):
        raise ValueError(f"problem {problem.id!r}: the answer {problem.answer!r} is no letter; use another grader")
    answer = letter_of(text)
    return Verdict(answer == problem.answer, answer)


def mathematics(problem: Problem, text: str) -> Verdict:
    answer = mathematics_of(text)
    right = answer is not None and (same_text(answer, problem.answer) or same_mathematics(answer, problem.answer))
    return Verdict(right, answer)


def code(limits: CodeLimits | None) -> Grader:
    def grade(problem: Problem, text: str) -> Verdict:
        program = find_program(after_thinking(text) or "", problem.begin)
        source = STDIN.format(source=program) if program is not None and problem.stdin else program
        return Verdict(source is not None and run_program(source, limits, problem.answer).right, program)

    return grade


STDIN = """import contextlib, io, sys

def run(given):
    sys.stdin, out = io.TextIOWrapper(io.BytesIO(given.encode())), io.TextIOWrapper(io.BytesIO(), write_through=True)
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        exec(compile({source!r}, "program", "exec"), {{"__name__": "__main__"}})
    out.flush()
    return out.buffer.getvalue().decode(errors="replace")
"""


def game24(problem: Problem, text: str) -> Verdict:
    answer = mathematics_of(text) if "\\boxed" in text else text_of(text)
    return Verdict(answer is not None and reaches_24(answer, problem.answer), answer)


def mixed(problem: Problem, text: str) -> Verdict:
    return PLAIN[problem.grader or "exact"](problem, text)


def none(problem: Problem, text: str) -> Verdict:
    return Verdict(False, "")


PLAIN: dict[str, Grader] = {
    "exact": exact, "numeric": numeric, "choice": choice, "math": mathematics, "game24": game24, "mixed": mixed,
    "none": none,
}  # fmt: skip
GRADERS = (*PLAIN, "code")


def make_grader(name: str, allow_code_execution: bool = False, limits: CodeLimits | None = None) -> Grader:
    """ValueError: no such grader, or code without the permission to run it."""
    if name == "code":
        if not allow_code_execution:
            raise ValueError(f"grader 'code' needs --allow-code-execution: {WARNING}")
        print(f"code: {confinement()}", file=sys.stderr)
        return code(limits)
    if name not in PLAIN:
        raise ValueError(f"grader is {name!r}; it must be one of {', '.join(GRADERS)}")
    return PLAIN[name]
