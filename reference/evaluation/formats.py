"""The formats of the public benchmarks: from a line of a file to a problem, its prompt and its answer.

A line is an object. A format knows the public file's own names for a question and an answer, and writes the prompt; of
what the file has besides nothing is read. Choices are shuffled by seed and id where the file has the right one first.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import math
import pickle
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any

from reference.evaluation.lines import QUESTIONS
from reference.randomness import child_seed, key_of

ANSWERS = ("answer", "solution", "expected_answer")
IDS = ("id", "unique_id", "task_id", "question_id", "problem_idx", "ID", "Record ID")
STEPS = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Problem:
    id: str | int  # unique in its task; it addresses the problem's random numbers
    prompt: str
    answer: str  # of a problem in code: the tests, which raise where the code is wrong
    begin: str = ""  # of a problem in code: how the program begins that the response may go on with
    grader: str | None = None  # its own, in a task of several kinds
    stdin: bool = False  # of a problem in code: the program reads its input and prints; the tests call `run(input)`
    header: str = ""  # of a problem in code: what its judge puts before the program


@dataclass(frozen=True)
class Format:
    """How a benchmark's lines become problems."""

    # (line, id, seed); None: a problem that is left out, for its picture; KeyError: a field is missing
    read: Callable[[Mapping[str, Any], str | int, int], Problem | None]
    grader: str  # the usual one, of `reference.evaluation.graders`
    styles: Mapping[str, Callable[..., Problem]] = field(default_factory=dict)  # other ways to ask, by name
    stop: tuple[str, ...] = ()  # what ends a response to the bare style


# ---------------------------------------------------------------------------------------------------------------------
# Formats


def get(fields: Mapping[str, Any], *names: str) -> str:
    """The first field of these names that there is. KeyError: its argument says what is missing."""
    for name in names:
        value = fields.get(name)
        if isinstance(value, float) and math.isfinite(value):
            return f"{Decimal(repr(value)):f}"  # never 1e-05
        if isinstance(value, str | int) and not isinstance(value, bool):
            return str(value)
    raise KeyError(" or ".join(map(repr, names)) + " (text or a number)")


def answer_of(fields: Mapping[str, Any]) -> str:
    return get(fields, *ANSWERS)


def plain(fields: Mapping[str, Any], id: str | int, seed: int) -> Problem:
    return Problem(id, get(fields, *QUESTIONS), answer_of(fields))


def boxed(fields: Mapping[str, Any], id: str | int, seed: int) -> Problem:
    """MATH500 ("problem", "answer", "unique_id") and AIME (also "Problem", "Answer", "ID")."""
    return Problem(id, get(fields, *QUESTIONS, "Problem") + STEPS, get(fields, "answer", "Answer"))


def gsm8k(fields: Mapping[str, Any], id: str | int, seed: int) -> Problem:
    """The answer is what stands behind the worked solution's "####"."""
    answer = get(fields, "answer").rpartition("####")[2].strip().replace(",", "")
    return Problem(id, get(fields, *QUESTIONS) + STEPS, answer)


def ask_usually(question: str, choices: list[str]) -> str:
    lines = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices))
    return (
        f"{question}\n\n{lines}\n\nPlease reason step by step, and put the letter of your final choice within "
        "\\boxed{}."
    )


def ask_as_paper(question: str, choices: list[str]) -> str:
    """As the code of 2510.14901 does."""
    lines = "\n".join(f"{letter}) {choice}" for letter, choice in zip(LETTERS, choices))
    return (
        "Answer the following multiple choice question. The last line of your response should be of the following "
        "format: '\\boxed{$LETTER}' (without quotes) where LETTER is one of ABCD (ex. '\\boxed{A}'). Think step by "
        f"step before answering.\n\n{question}\n\n{lines}"
    )


def gpqa(
    fields: Mapping[str, Any], id: str | int, seed: int, ask: Callable[[str, list[str]], str] = ask_usually
) -> Problem:
    """The public file's columns, or "question", "choices" and "answer": the right one's text, letter or place from 0.

    Choices are sorted by a random number of their own, addressed by seed, id and place in the file.
    """
    if "Correct Answer" in fields:
        choices = [get(fields, "Correct Answer"), *(get(fields, f"Incorrect Answer {i}") for i in (1, 2, 3))]
        question, right = get(fields, "Question"), 0
    else:
        question, (choices, right) = get(fields, *QUESTIONS), choices_of(fields)
    order = sorted(range(len(choices)), key=lambda i: child_seed(seed, "choice", key_of(id), i))
    return Problem(id, ask(question.strip(), [choices[i].strip() for i in order]), LETTERS[order.index(right)])


def choices_of(fields: Mapping[str, Any]) -> tuple[list[str], int]:
    """The texts of "choices", and the place of the right one, which "answer" names by text, letter or place from 0.
    KeyError: it names none, or might mean several."""
    given, answer = fields.get("choices"), fields.get("answer")
    if not isinstance(given, list) or not 2 <= len(given) <= len(LETTERS):
        raise KeyError(f'"Correct Answer" and "Incorrect Answer 1..3", or "choices" (2 to {len(LETTERS)} of them)')
    letters, places = LETTERS[: len(given)], range(len(given))
    meant = {i for i in places for name in (given[i], letters[i], i) if (type(name), name) == (type(answer), answer)}
    if len(meant) != 1:
        why = f"{answer!r}, which may mean several" if meant else repr(answer)
        raise KeyError(f'"answer" to be one of the choices, its letter or its place; it is {why}')
    return [str(choice) for choice in given], meant.pop()


def paper_boxed(fields: Mapping[str, Any], id: str | int, seed: int) -> Problem:
    """As the code of 2510.14901 asks, base models as text, chat models as a turn; the braces are doubled there."""
    asked = f"Can you solve the following math problem? {get(fields, *QUESTIONS, 'Problem')}"
    steps = " Please reason step by step, and put your final answer within \\boxed{{}}."
    return Problem(id, asked + steps, get(fields, "answer", "Answer"))


def bare_humaneval(fields: Mapping[str, Any], id: str | int, seed: int) -> Problem:
    """The stub alone, for a base model to go on with."""
    usual = humaneval(fields, id, seed)
    return replace(usual, prompt=usual.begin)


def humaneval(fields: Mapping[str, Any], id: str | int, seed: int) -> Problem:
    begin = get(fields, "prompt")
    tests = f"{get(fields, 'test')}\n\ncheck({get(fields, 'entry_point')})\n"
    prompt = f"Complete this Python function. Give the whole function in one code block.\n\n```python\n{begin}\n```"
    return Problem(id, prompt, tests, begin)


def mmlu(fields: Mapping[str, Any], id: str | int, seed: int) -> Problem:
    """ "question", "choices", "answer": a place from 0, or a letter. The choices stay in their order, as is usual."""
    choices, right = choices_of(fields)
    prompt = ask_usually(get(fields, *QUESTIONS).strip(), [choice.strip() for choice in choices])
    return Problem(id, prompt, LETTERS[right])


def prontoqa(fields: Mapping[str, Any], id: str | int, seed: int) -> Problem:
    """ "context", "question", "options" ("A) True", ..), "answer" (a letter); or "question" (the facts), "query" (the
    statement), "answer" ("True" or "False")."""
    if "options" in fields or "context" in fields:
        text = f"{get(fields, 'context')}\n\n{get(fields, *QUESTIONS)}"
        statement = re.sub(r"(?i)is the following statement true or false\?\s*", "", text)
        options = dict(re.findall(r"(?im)^\W*([A-J])\W+(true|false)\b", "\n".join(map(str, listed(fields, "options")))))
        said = get(fields, "answer").strip()
        answer = (options or {"A": "True", "B": "False"}).get(said, said).capitalize()
    else:
        query = re.sub(r"(?i)^\s*(?:true or false|prove):\s*", "", get(fields, "query"))
        statement, answer = f"{get(fields, *QUESTIONS)}\n\n{query}", get(fields, "answer").strip()
    if answer not in ("True", "False"):
        raise KeyError(f'"answer" to be True or False, A or B; it is {answer!r}')
    prompt = (
        f"{statement}\n\nIs the last statement true or false? Please reason step by step, and put True or False within "
        "\\boxed{}."
    )
    return Problem(id, prompt, answer)


def listed(fields: Mapping[str, Any], name: str) -> list[Any]:
    return found if isinstance(found := fields.get(name), list) else []


def game24(fields: Mapping[str, Any], id: str | int, seed: int) -> Problem:
    """Four numbers: "numbers" (a list), or "Puzzles", "puzzle" or "input" (a text, "4 5 6 10")."""
    text = " ".join(map(str, listed(fields, "numbers"))) or get(fields, "numbers", "Puzzles", "puzzle", "input")
    numbers = re.split(r"[\s,;]+", text.strip(" ()[]"))
    if len(numbers) != 4 or not all(map(str.isdecimal, numbers)):
        raise KeyError(f"four whole numbers; it has {text!r}")
    prompt = (
        f"Use the numbers {', '.join(numbers[:3])} and {numbers[3]}, each exactly once, with + - * / and parentheses, "
        "to make 24. Please reason step by step, and put the expression within \\boxed{}."
    )
    return Problem(id, prompt, " ".join(numbers))


def hle(fields: Mapping[str, Any], id: str | int, seed: int) -> Problem | None:
    """Humanity's Last Exam; questions with a picture are left out."""
    if fields.get("image"):
        return None
    kind, answer = get(fields, "answer_type"), get(fields, "answer").strip()
    own = "choice" if kind == "multipleChoice" and answer in tuple(LETTERS) else "math"
    steps = STEPS.replace("your final answer", "the letter of your final choice") if own == "choice" else STEPS
    return Problem(id, get(fields, *QUESTIONS) + steps, answer, grader=own)


def livecodebench(fields: Mapping[str, Any], id: str | int, seed: int) -> Problem:
    """v5 and v6 ("question_content", "starter_code", "public_test_cases", "private_test_cases", "metadata")."""
    cases = [case for name in ("public_test_cases", "private_test_cases") for case in test_cases(fields, name)]
    if not cases:
        raise KeyError('"public_test_cases" or "private_test_cases" with a test')
    question, starter = get(fields, "question_content"), str(fields.get("starter_code") or "").strip()
    if len(kinds := {str(case.get("testtype")) for case in cases}) > 1:
        raise KeyError(f'tests of one "testtype"; it has {" and ".join(sorted(kinds))}')
    if kinds == {"functional"}:
        try:
            name = json.loads(get(fields, "metadata"))["func_name"]
            calls = [[[json.loads(line) for line in case["input"].split("\n")], json.loads(case["output"])]
                     for case in cases]  # fmt: skip
        except (ValueError, TypeError, KeyError, RecursionError):
            name = None
        if not isinstance(name, str) or not name.isidentifier():
            raise KeyError('"metadata" with a "func_name", and tests in JSON')
        prompt = (
            f"{question}\n\nComplete this Python program. Give the whole program in one code block.\n\n```python\n"
            f"{starter}\n```"
        )
        tests = FUNCTIONAL.format(cases=json.dumps(json.dumps(calls)), name=name)
        return Problem(id, prompt, tests, header=USUAL)
    pairs = [[case["input"], case["output"]] for case in cases]
    prompt = (
        f"{question}\n\nWrite a Python program that reads the input from standard input and prints the answer. Give "
        "the whole program in one code block."
    )
    return Problem(id, prompt, PRINTED.format(cases=json.dumps(json.dumps(pairs))), stdin=True, header=USUAL)


LENT = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools",
    "functools", "operator", "io", "sys", "json", "typing", "builtins",
)  # fmt: skip
USUAL = (  # what LiveCodeBench's own judge puts before a program
    "".join(f"from {name} import *\n" for name in LENT) + f"import {', '.join(LENT)}\nsys.setrecursionlimit(50_000)\n"
)
FUNCTIONAL = """import json

def plain(value):
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value

for given, wanted in json.loads({cases}):
    assert plain(Solution().{name}(*given)) == wanted
"""
PRINTED = """import json
from decimal import Decimal

def same(a, b):
    if a == b:
        return True
    try:
        return [Decimal(part) for part in a.split()] == [Decimal(part) for part in b.split()]
    except ArithmeticError:
        return False

for given, wanted in json.loads({cases}):
    printed, right = ([line.strip() for line in text.strip().split("\\n")] for text in (run(given), wanted))
    assert len(printed) == len(right) and all(map(same, printed, right))
"""


def test_cases(fields: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """A list as it is, as JSON, or (the private ones) as base64 of zlib of a pickled text, of which nothing but a text
    is unpickled."""
    found = fields.get(name) or []
    try:
        if isinstance(found, str) and not found.lstrip().startswith("["):
            found = TextOnly(io.BytesIO(zlib.decompress(base64.b64decode(found)))).load()
        found = json.loads(found) if isinstance(found, str | bytes) else found
        if all(isinstance(case["input"], str) and isinstance(case["output"], str) for case in found):
            return list(found)
    except Exception:  # a pickle may raise anything
        pass
    raise KeyError(f'"{name}" to be tests with "input" and "output"')


class TextOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is no text")


def alpacaeval(fields: Mapping[str, Any], id: str | int, seed: int) -> Problem:
    """AlpacaEval 2: no grader; `sharpen report --alpaca-eval` writes the file that its judge reads."""
    return Problem(id, get(fields, "instruction"), "")


SIGNS = {
    r"\times": "*", r"\cdot": "*", r"\div": "/", "×": "*", "÷": "/", "·": "*", "∗": "*", "−": "-", r"\left": "",
    r"\right": "", "x": "*", "[": "(", "]": ")", "$": "",
}  # fmt: skip


def reaches_24(expression: str, numbers: str) -> bool:
    """Whether an expression of + - * / has the value 24 and each of the numbers exactly once."""
    text = re.sub(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))", expression)
    for mark, sign in SIGNS.items():
        text = text.replace(mark, sign)
    first, *more = map(str.strip, text.split("="))
    text = re.sub(r"(?<=[\d)])\s*(?=\()|(?<=\))\s*(?=\d)", "*", more[0] if first == "24" and more else first)
    if len(text) > 200 or not re.fullmatch(r"[\d+\-*/() ]+", text) or "**" in text or "//" in text:
        return False
    if sorted(map(int, re.findall(r"\d+", text))) != sorted(map(int, numbers.split())):
        return False
    try:
        return value_of(ast.parse(text, mode="eval").body) == 24
    except (SyntaxError, ZeroDivisionError, ValueError, KeyError):
        return False


def value_of(node: ast.expr) -> Fraction:
    if isinstance(node, ast.BinOp):
        a, b = value_of(node.left), value_of(node.right)
        return {ast.Add: a.__add__, ast.Sub: a.__sub__, ast.Mult: a.__mul__, ast.Div: a.__truediv__}[type(node.op)](b)
    if isinstance(node, ast.Constant):
        return Fraction(node.value)  # type: ignore[arg-type]
    raise ValueError("neither a number nor one of + - * /")


STUB_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # Codex's
FORMATS = {
    "plain": Format(plain, "exact"), "math500": Format(boxed, "math", {"paper": paper_boxed}),
    "gsm8k": Format(gsm8k, "numeric"),
    "gpqa": Format(gpqa, "choice", {"paper": partial(gpqa, ask=ask_as_paper)}),
    "aime": Format(boxed, "numeric", {"paper": paper_boxed}),
    "humaneval": Format(humaneval, "code", {"paper": humaneval, "bare": bare_humaneval}, STUB_STOPS),
    "hmmt": Format(boxed, "math"), "mmlu": Format(mmlu, "choice"), "prontoqa": Format(prontoqa, "truth"),
    "game24": Format(game24, "game24"), "hle": Format(hle, "mixed"), "livecodebench": Format(livecodebench, "code"),
    "alpacaeval": Format(alpacaeval, "none"),
}  # fmt: skip
