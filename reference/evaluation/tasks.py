"""Tasks: problems from a file of JSON lines, streamed, in the formats of the public benchmarks.

A line is an object with a "prompt", "problem" or "question", an "answer", and perhaps an "id". A format knows the
public file's own names for these, and writes the prompt. What comes out of a file depends on the file, the format and
the seed only: the choices of a multiple-choice problem are shuffled by seed and id, not by place.

However many problems a file has, one is in memory at a time (and 8 bytes for each id, to find duplicates).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from reference.checkpoints import is_stream
from reference.evaluation.formats import FORMATS, IDS, Problem
from reference.evaluation.lines import check_id, read_objects


@dataclass(frozen=True)
class Task:
    """A file's problems, in its order. FileNotFoundError, ValueError where they are read."""

    path: str | Path  # the file of problems
    format: str = "plain"  # or math500, gsm8k, gpqa, aime, hmmt, mmlu, prontoqa, game24, hle, humaneval, ..
    seed: int = 0  # of shuffled choices
    limit: int | None = None  # only the first so many problems
    prompt_style: str = "usual"  # how it asks; paper: as 2510.14901 (math500, aime, gpqa, humaneval)

    def __post_init__(self):
        if self.format not in FORMATS:
            raise ValueError(f"format is {self.format!r}; it must be one of {', '.join(FORMATS)}")
        if self.prompt_style not in (known := ("usual", *FORMATS[self.format].styles)):
            raise ValueError(
                f"prompt_style is {self.prompt_style!r}; for the format {self.format!r} it must be {' or '.join(known)}"
            )
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
                form = FORMATS[self.format]
                problem = form.styles.get(self.prompt_style, form.read)(fields, id, self.seed)
            except KeyError as error:
                have = ", ".join(map(str, fields)) or "nothing"
                raise ValueError(
                    f"{place}: format {self.format!r} needs {error.args[0]}; the line has {have}"
                ) from None
            if problem is None:
                continue
            if not problem.prompt.strip():
                raise ValueError(f"{place}: the prompt is empty")
            yield problem

    def check(self) -> int:
        """The number of problems. ValueError: anything that is wrong with the file, before a model is loaded for it."""
        return self.settings["problems"]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the problems follow from; results are resumed and merged only if it is the same."""
        if is_stream(Path(self.path)):
            raise ValueError(f"{self.path} is a pipe, and a task is read several times; write it to a file first")
        count = sum(1 for _ in self)
        if not count:
            raise ValueError(f"{self.path} has no problem; put one on each line, as JSON")
        with open(self.path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"task": Path(self.path).stem, "task_sha256": digest, "problems": count, "format": self.format,
                "task_seed": self.seed, "prompt_style": self.prompt_style}  # fmt: skip


def parse_shard(text: str, name: str = "shard") -> tuple[int, int]:
    """ "1/4" is the second of four."""
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise ValueError(f"{name} is {text!r}; it must be i/n with i from 0 to n - 1, such as 0/2 and 1/2")
    return int(i), int(n)
