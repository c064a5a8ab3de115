"""Any method on any task: problems in batches, responses graded and written down."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tqdm import tqdm

from reference.evaluation.formats import Problem
from reference.evaluation.graders import Verdict
from reference.evaluation.results import Results

Method = Callable[[list[str], list[int | str]], list[dict[str, Any]]]


def evaluate(
    method: Method,
    task: Iterable[Problem],
    grader: Callable[[Problem, str], Verdict],
    results: Results,
    *,
    batch: int = 16,
    progress: bool = True,
) -> None:
    """Run a method on the problems that `results` does not have yet, grade its responses, and write them down.

    method(questions, keys) -> for each question {"responses": [{"text", "tokens", "logp", "finished", ...}], "cost"};
    the keys, which are the problems' ids, address its random numbers. It is asked `batch` consecutive problems at a
    time. Batch g belongs to shard g mod n, and one of which something is missing is run whole again: so a run that was
    interrupted, or sharded and merged, decodes the very batches of one that was not, and writes the same bytes.

    Ctrl-C ends it between two lines; it says what is done and raises KeyboardInterrupt. ValueError: a problem that the
    grader cannot grade.
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}; it must be at least 1")
    for problem in task:
        grader(problem, "")  # what it cannot grade is found before a token is decoded
    shard, shards = results.shard
    total = results.settings.get("problems")
    groups = (group for g, group in enumerate(batches(task, batch)) if g % shards == shard)
    own = None if total is None else sum(min(batch, total - g) for g in range(shard * batch, total, shards * batch))
    quiet = None if progress else True  # None: quiet where nobody looks at a terminal
    told = ""
    with tqdm(total=own, initial=len(results.done), unit="problem", smoothing=0.1, disable=quiet) as bar:
        try:
            for group in groups:
                if all(problem.id in results.done for _, problem in group):
                    continue
                begin = time.perf_counter()
                found = method([problem.prompt for _, problem in group], [problem.id for _, problem in group])
                decoded = time.perf_counter()
                lines = [
                    {"index": index, "id": problem.id, "prompt": problem.prompt, **graded(grader, problem, one)}
                    for (index, problem), one in zip(group, found, strict=True)
                    if problem.id not in results.done
                ]
                seconds = {"decode": decoded - begin, "grade": time.perf_counter() - decoded}
                results.append(lines, {"ids": [line["id"] for line in lines], "seconds": seconds})
                bar.update(len(lines))
                if progress and lines and own and not told:
                    told = forecast(found, len(group), decoded - begin, own - len(results.done))
                    print(told, file=sys.stderr)
        except KeyboardInterrupt:
            of = "" if own is None else f" of {own}"
            print(f"\n{len(results.done)}{of} problems are in {results.path}; the same command goes on from there",
                  file=sys.stderr)  # fmt: skip
            raise


def forecast(found: list[dict[str, Any]], problems: int, seconds: float, left: int) -> str:
    """What the first batch says of the others."""
    tokens = sum(one["cost"]["decoded_tokens"] for one in found)
    return (
        f"{tokens / max(seconds, 1e-9):.0f} tokens per second; {left} problems are left, about "
        f"{left * tokens / problems:,.0f} tokens, {until(left * seconds / problems)}"
    )


def until(seconds: float) -> str:
    """When so much time has passed: an hour of a day of this week, a day, or how many years."""
    if seconds > (year := 365.25 * 86400) * 100:
        return f"which takes {seconds / year:.0e} years"
    return time.strftime(
        f"until %H:%M on {'%A' if seconds < 6 * 86400 else '%-d %B %Y'}", time.localtime(time.time() + seconds)
    )


def batches(task: Iterable[Problem], batch: int) -> Iterator[list[tuple[int, Problem]]]:
    """Consecutive problems with their places, `batch` at a time."""
    numbered = enumerate(task)
    while group := list(itertools.islice(numbered, batch)):
        yield group


def graded(grader: Callable[[Problem, str], Verdict], problem: Problem, found: Mapping[str, Any]) -> dict[str, Any]:
    verdicts = [grader(problem, response["text"]) for response in found["responses"]]
    responses = [{**x, "answer": v.answer, "right": v.right} for x, v in zip(found["responses"], verdicts)]
    return {"responses": responses, "cost": found["cost"]}
