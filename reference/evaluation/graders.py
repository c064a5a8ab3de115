"""Graders: is a response right? grader(problem, text) -> Verdict; ValueError for a problem that it cannot grade.

    exact     as numeric where the true answer is a number; else the last box, else what follows the last "answer is" or
              "answer:", else the last line, as text but for case and blanks
    numeric   the last number in the last box, else behind the last "####", else in the text; 1,000 = 1000.0, 1/2 = 0.5
    choice    the letter in the last box, else after the last "answer is" or "answer:"
    math      mathematics in LaTeX, by the package math-verify (extra [eval])
    code      the program passes its tests (`reference/evaluation/code_grader.py`)

A response from which no answer can be read (it was cut, or has no box) is wrong. Its `answer` is None, so that a report
can say how often that happened: an accuracy with many of them measures the horizon, not the model.
"""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from reference.evaluation.code_grader import WARNING, CodeLimits, confinement, find_program, run_program
from reference.evaluation.tasks import LETTERS, Problem
from reference.text.chat_templates import last_boxed


@dataclass(frozen=True)
class Verdict:
    right: bool
    answer: str | None  # as it was read; None: there is none


LONGEST = 1000  # characters of an answer
Grader = Callable[[Problem, str], Verdict]
SAID = re.compile(r"answer(?:\s+is|\s*:)[\s:*]*", re.IGNORECASE)


def said(text: str) -> Iterator[str]:
    """What follows "answer is" and "answer:" on their lines, the last first."""
    for end in reversed([match.end() for match in SAID.finditer(text)]):
        if line := text[end : end + LONGEST].partition("\n")[0]:
            yield line


def exact(problem: Problem, text: str) -> Verdict:
    if as_number(problem.answer) is not None:
        return numeric(problem, text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    answer = last_boxed(text) or next(said(text), None) or next(reversed(lines), None)
    return Verdict(equal(answer, problem.answer), answer)


def numeric(problem: Problem, text: str) -> Verdict:
    """ValueError: the problem's answer is no number."""
    if as_number(problem.answer) is None:
        raise ValueError(f"problem {problem.id!r}: the answer {problem.answer!r} is no number; use another grader")
    answer = number_in(last_boxed(text) or text.rpartition("####")[2])
    return Verdict(equal(answer, problem.answer), answer)


def number_in(text: str) -> str | None:
    r"""The last number, 1,000 and \frac{1}{2} too."""
    text = re.sub(r"\\[dt]?frac\{(-?[\d.]+)\}\{([\d.]+)\}", r"\1/\2", text.replace("\\,", "").replace("{,}", ""))
    return extract(text) if as_number(text) is None else text.strip()


def choice(problem: Problem, text: str) -> Verdict:
    r"""\boxed{C}, \boxed{\text{(C)}}, "the answer is (C)", "Answer: C". ValueError: the true answer is no letter."""
    if problem.answer not in tuple(LETTERS):
        raise ValueError(f"problem {problem.id!r}: the answer {problem.answer!r} is no letter; use another grader")
    for part in itertools.chain([last_boxed(text)], said(text)):
        if part and (letter := re.match(r"\W*(?i:text\w*|mathrm|choice|option)?\W*([A-J])(?![\w'])", part)):
            return Verdict(letter[1] == problem.answer, letter[1])
    return Verdict(False, None)


def extract(text: str) -> str | None:
    r"""The answer of a response: its last \boxed{...}, else its last number; None if it has neither."""
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?", text)
    return last_boxed(text) or (numbers[-1] if numbers else None)


def equal(given: str | None, answer: str) -> bool:
    """Equal as numbers (1,000 = 1000.0, 1/2 = 0.5), or as texts but for case, blanks and a final stop."""
    if given is None:
        return False
    a, b = as_number(given), as_number(answer)
    if a is not None and b is not None:
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    plain = ("".join(text.lower().split()).strip("$").rstrip(".") for text in (given, answer))
    return len(set(plain)) == 1


def as_number(text: str) -> float | None:
    match = re.fullmatch(r"\$?\s*(-?[\d,]*\.?\d+)\s*(?:/\s*([\d,]*\.?\d+))?\s*\$?", text.strip().rstrip("."))
    if match is None:
        return None
    top, bottom = (float((part or "1").replace(",", "")) for part in match.groups())
    return top / bottom if bottom else None


def mathematics() -> Grader:
    try:
        from math_verify import parse, verify
    except ImportError:
        raise ValueError("grader 'math' needs the package math-verify; pip install 'sharpening[eval]'") from None

    def grade(problem: Problem, text: str) -> Verdict:
        box = last_boxed(text)
        given = parse(f"\\boxed{{{box}}}" if box else text)
        answer = box or (str(given[-1]) if given else None)
        right = bool(given) and verify(parse(f"\\boxed{{{problem.answer}}}"), given)
        return Verdict(right or equal(answer, problem.answer), answer)

    return grade


def code(limits: CodeLimits | None) -> Grader:
    def grade(problem: Problem, text: str) -> Verdict:
        program = find_program(text, problem.begin)
        return Verdict(program is not None and run_program(f"{program}\n\n{problem.answer}", limits).right, program)

    return grade


GRADERS = ("exact", "numeric", "choice", "math", "code")


def make_grader(name: str, allow_code_execution: bool = False, limits: CodeLimits | None = None) -> Grader:
    """ValueError: no such grader, a package that is not installed, or code without the permission to run it."""
    if name == "math":
        return mathematics()
    if name == "code":
        if not allow_code_execution:
            raise ValueError(f"grader 'code' needs --allow-code-execution: {WARNING}")
        print(f"code: {confinement()}", file=sys.stderr)
        return code(limits)
    plain = {"exact": exact, "numeric": numeric, "choice": choice}
    if name not in plain:
        raise ValueError(f"grader is {name!r}; it must be one of {', '.join(GRADERS)}")
    return plain[name]
