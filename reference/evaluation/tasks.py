"""Tasks: problems from a file of JSON lines, streamed, in the formats of the public benchmarks.

A line is an object with a "prompt", "problem" or "question", an "answer", and perhaps an "id". A format knows the
public file's own names for these, and writes the prompt. What comes out of a file depends on the file, the format and
the seed only: the choices of a multiple-choice problem are shuffled by seed and id, not by place.

However many problems a file has, one is in memory at a time (and 8 bytes for each id, to find duplicates).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from reference.evaluation.lines import QUESTIONS, check_id, read_objects
from reference.randomness import child_seed, key_of

ANSWERS = ("answer", "solution", "expected_answer")
IDS = ("id", "unique_id", "task_id", "ID", "Record ID")
STEPS = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Problem:
    id: str | int  # unique in its task; it addresses the problem's random numbers
    prompt: str
    answer: str  # of a problem in code: the tests, which raise where the code is wrong
    begin: str = ""  # of a problem in code: how the program begins that the response may go on with


@dataclass(frozen=True)
class Format:
    """How a benchmark's lines become problems."""

    read: Callable[[Mapping[str, Any], str | int, int], Problem]  # (line, id, seed); KeyError: a field is missing
    grader: str  # the usual one, of `reference.evaluation.graders`


@dataclass(frozen=True)
class Task:
    """A file's problems, in its order. FileNotFoundError, ValueError where they are read."""

    path: str | Path  # the file of problems
    format: str = "plain"  # or math500, gsm8k, gpqa, aime, humaneval
    seed: int = 0  # of shuffled choices
    limit: int | None = None  # only the first so many problems

    def __post_init__(self):
        if self.format not in FORMATS:
            raise ValueError(f"format is {self.format!r}; it must be one of {', '.join(FORMATS)}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}; it must be at least 1")

    def __iter__(self) -> Iterator[Problem]:
        yield from itertools.islice(self.problems(), self.limit)

    def problems(self) -> Iterator[Problem]:
        seen: set[bytes] = set()
        for place, number, fields in read_objects(self.path):
            id = next((fields[name] for name in IDS if name in fields), number - 1)
            check_id(place, id)
            mark = hashlib.blake2b(str(id).encode(), digest_size=8).digest()
            if mark in seen:
                raise ValueError(f"{place}: the id {id!r} was there before; ids must differ")
            seen.add(mark)
            try:
                problem = FORMATS[self.format].read(fields, id, self.seed)
            except KeyError as error:
                have = ", ".join(map(str, fields)) or "nothing"
                raise ValueError(
                    f"{place}: format {self.format!r} needs {error.args[0]}; the line has {have}"
                ) from None
            if not problem.prompt.strip():
                raise ValueError(f"{place}: the prompt is empty")
            yield problem

    def check(self) -> int:
        """The number of problems. ValueError: anything that is wrong with the file, before a model is loaded for it."""
        return self.settings["problems"]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the problems follow from; results are resumed and merged only if it is the same."""
        if Path(self.path).exists() and not (Path(self.path).is_file() or Path(self.path).is_dir()):
            raise ValueError(f"{self.path} is a pipe, and a task is read several times; write it to a file first")
        count = sum(1 for _ in self)
        if not count:
            raise ValueError(f"{self.path} has no problem; put one on each line, as JSON")
        with open(self.path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"task": Path(self.path).stem, "task_sha256": digest, "problems": count, "format": self.format,
                "task_seed": self.seed}  # fmt: skip


def parse_shard(text: str, name: str = "shard") -> tuple[int, int]:
    """ "1/4" is the second of four."""
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise ValueError(f"{name} is {text!r}; it must be i/n with i from 0 to n - 1, such as 0/2 and 1/2")
    return int(i), int(n)


# ---------------------------------------------------------------------------------------------------------------------
# Formats


def field(fields: Mapping[str, Any], *names: str) -> str:
    """The first field of these names that there is. KeyError: its argument says what is missing."""
    for name in names:
        if isinstance(value := fields.get(name), str | int | float) and not isinstance(value, bool):
            return str(value)
    raise KeyError(" or ".join(map(repr, names)) + " (text or a number)")


def answer_of(fields: Mapping[str, Any]) -> str:
    return field(fields, *ANSWERS)


def plain(fields: Mapping[str, Any], id: str | int, seed: int) -> Problem:
    return Problem(id, field(fields, *QUESTIONS), answer_of(fields))


def boxed(fields: Mapping[str, Any], id: str | int, seed: int) -> Problem:
    """MATH500 ("problem", "answer", "unique_id") and AIME (also "Problem", "Answer", "ID")."""
    return Problem(id, field(fields, *QUESTIONS, "Problem") + STEPS, field(fields, "answer", "Answer"))


def gsm8k(fields: Mapping[str, Any], id: str | int, seed: int) -> Problem:
    """The answer is what stands behind the worked solution's "####"."""
    answer = field(fields, "answer").rpartition("####")[2].strip().replace(",", "")
    return Problem(id, field(fields, *QUESTIONS) + STEPS, answer)


def gpqa(fields: Mapping[str, Any], id: str | int, seed: int) -> Problem:
    """The public file's columns, or "question", "choices" and "answer": the right one's text, letter or place from 0.

    Choices are sorted by a random number of their own, addressed by seed, id and place in the file.
    """
    if "Correct Answer" in fields:
        choices = [field(fields, "Correct Answer"), *(field(fields, f"Incorrect Answer {i}") for i in (1, 2, 3))]
        question, right = field(fields, "Question"), 0
    else:
        question, given, answer = field(fields, *QUESTIONS), fields.get("choices"), fields.get("answer")
        if not isinstance(given, list) or not 2 <= len(given) <= len(LETTERS):
            raise KeyError(f'"Correct Answer" and "Incorrect Answer 1..3", or "choices" (2 to {len(LETTERS)} of them)')
        choices = [str(choice) for choice in given]
        names: list[Any] = [*choices, *LETTERS[: len(choices)], *range(len(choices))]
        if answer not in names:
            raise KeyError(f'"answer" to be one of the choices, its letter or its place; it is {answer!r}')
        right = names.index(answer) % len(choices)
    order = sorted(range(len(choices)), key=lambda i: child_seed(seed, "choice", key_of(id), i))
    lines = "\n".join(f"{letter}. {choices[i].strip()}" for letter, i in zip(LETTERS, order))
    prompt = (
        f"{question.strip()}\n\n{lines}\n\nPlease reason step by step, and put the letter of your final choice within "
        "\\boxed{}."
    )
    return Problem(id, prompt, LETTERS[order.index(right)])


def humaneval(fields: Mapping[str, Any], id: str | int, seed: int) -> Problem:
    begin = field(fields, "prompt")
    tests = f"{field(fields, 'test')}\n\ncheck({field(fields, 'entry_point')})\n"
    prompt = f"Complete this Python function. Give the whole function in one code block.\n\n```python\n{begin}\n```"
    return Problem(id, prompt, tests, begin)


FORMATS = {
    "plain": Format(plain, "exact"), "math500": Format(boxed, "math"), "gsm8k": Format(gsm8k, "numeric"),
    "gpqa": Format(gpqa, "choice"), "aime": Format(boxed, "numeric"), "humaneval": Format(humaneval, "code"),
}  # fmt: skip
