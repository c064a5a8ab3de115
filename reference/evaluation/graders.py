"""Graders: is a response right? grader(problem, text) -> Verdict; ValueError for a problem that it cannot grade.

    numeric   a number; what math-verify finds equal to it is right too
    choice    a letter
    math      mathematics in LaTeX, by math-verify
    exact     a text, but for case and blanks; a number where the true answer is one
    truth     true or false
    code      the program passes its tests (`reference/evaluation/code_grader.py`)
    game24    an expression of four numbers that makes 24
    mixed     each problem by its own of these
    none      nothing is judged here

Where a response has its answer, and what is equal, is in `reference/evaluation/answers.py`. A response from which no
answer can be read (it was cut, or has no box) is wrong. Its `answer` is None, so that a report can say how often that
happened: an accuracy with many of them measures the horizon, not the model.
"""

from __future__ import annotations

import ast
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
    truth_of,
)  # fmt: skip
from reference.evaluation.code_grader import WARNING, CodeLimits, confinement, find_program, parsed, run_program
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
        raise ValueError(
            f"problem {problem.id!r}: the answer {shortened(problem.answer)} is no number; use another grader"
        )
    answer = number_of(text)
    return Verdict(same_number(answer, problem.answer), answer)


def choice(problem: Problem, text: str) -> Verdict:
    """ValueError: the true answer is no letter."""
    if problem.answer not in tuple(LETTERS):
        raise ValueError(
            f"problem {problem.id!r}: the answer {shortened(problem.answer)} is no letter; use another grader"
        )
    answer = letter_of(text)
    return Verdict(answer == problem.answer, answer)


def mathematics(problem: Problem, text: str) -> Verdict:
    answer = mathematics_of(text)
    right = answer is not None and (same_text(answer, problem.answer) or same_mathematics(answer, problem.answer))
    return Verdict(right, answer)


def truth(problem: Problem, text: str) -> Verdict:
    """ValueError: the true answer is neither."""
    if problem.answer not in ("True", "False"):
        raise ValueError(
            f"problem {problem.id!r}: the answer {shortened(problem.answer)} is not True or False; use another grader"
        )
    answer = truth_of(text)
    return Verdict(answer == problem.answer, answer)


def code(limits: CodeLimits | None) -> Grader:
    def grade(problem: Problem, text: str) -> Verdict:
        check_tests(problem)
        program = find_program(after_thinking(text) or "", problem.begin)
        if program is None:
            return Verdict(False, None)
        source = program
        if problem.stdin or problem.header:
            form = PRINTING if problem.stdin else LENDING
            source = form.format(source=repr(program), header=repr(problem.header))
        return Verdict(run_program(source, limits, problem.answer).right, program)

    return grade


def check_tests(problem: Problem) -> None:
    """ValueError: no program could be wrong."""
    nodes = [*ast.walk(parsed(problem.answer))]
    if not any(isinstance(node, ast.Assert | ast.Raise | ast.Call) for node in nodes):
        raise ValueError(
            f"problem {problem.id!r}: grader 'code' needs tests, which fail where a program is wrong; the answer is "
            f"{shortened(problem.answer)}"
        )


def shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


LENDING = """exec({header})
exec(compile({source}, "program", "exec"))
"""
PRINTING = """import atexit, os, sys, threading

def feed(end, data):
    try:
        while data:
            data = data[os.write(end, data):]
    except OSError:
        pass  # nobody reads on
    os.close(end)

def run(given):
    theirs, ours = os.pipe()
    back, out = os.pipe()
    if not (child := os.fork()):
        status = 1
        try:
            os.dup2(theirs, 0), os.dup2(out, 1), os.closerange(3, 64)
            sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)
            names, sys.argv = {{"__name__": "__main__"}}, ["program"]
            exec({header}, names)
            try:
                exec(compile({source}, "program", "exec"), names)
            except SystemExit:
                pass
            atexit._run_exitfuncs()
            sys.stdout.flush()
            status = 0
        finally:
            os._exit(status)
    os.close(theirs), os.close(out)
    threading.Thread(target=feed, args=(ours, given.encode()), daemon=True).start()
    with open(back, "rb") as file:
        printed = file.read().decode(errors="replace")
    if status := os.waitpid(child, 0)[1]:
        raise RuntimeError(f"it left with status {{status}}")
    return printed
"""


def game24(problem: Problem, text: str) -> Verdict:
    answer = mathematics_of(text) if "\\boxed" in text else text_of(text)
    return Verdict(answer is not None and reaches_24(answer, problem.answer), answer)


def mixed(problem: Problem, text: str) -> Verdict:
    return PLAIN[problem.grader or "exact"](problem, text)


def none(problem: Problem, text: str) -> Verdict:
    return Verdict(False, "")


PLAIN: dict[str, Grader] = {
    "exact": exact, "numeric": numeric, "choice": choice, "math": mathematics, "truth": truth, "game24": game24,
    "mixed": mixed, "none": none,
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
