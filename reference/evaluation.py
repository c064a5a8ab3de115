"""Any method on any task, and honest numbers: what an accuracy is worth.

pass@k = E[1 − C(n−c, k) / C(n, k)] over problems, c of whose n samples are right: unbiased (2107.03374, eq. 1)
interval: Clopper-Pearson where each problem is right or wrong, a bootstrap over problems where it has a share
"""

from __future__ import annotations

import itertools
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from reference.chat_templates import last_boxed

if TYPE_CHECKING:  # they import this file
    from reference.graders import Verdict
    from reference.results import Results
    from reference.tasks import Problem


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
    with tqdm(total=own, initial=len(results.done), unit="problem", smoothing=0.1, disable=quiet) as bar:
        try:
            for group in groups:
                if all(problem.id in results.done for _, problem in group):
                    continue
                begin = time.perf_counter()
                found = method([problem.prompt for _, problem in group], [problem.id for _, problem in group])
                decoded = time.perf_counter()
                lines = [
                    {"index": index, "id": problem.id, **graded(grader, problem, one)}
                    for (index, problem), one in zip(group, found, strict=True)
                    if problem.id not in results.done
                ]
                seconds = {"decode": decoded - begin, "grade": time.perf_counter() - decoded}
                results.append(lines, {"ids": [line["id"] for line in lines], "seconds": seconds})
                bar.update(len(lines))
        except KeyboardInterrupt:
            of = "" if own is None else f" of {own}"
            print(f"\n{len(results.done)}{of} problems are in {results.path}; the same command goes on from there",
                  file=sys.stderr)  # fmt: skip
            raise


def batches(task: Iterable[Problem], batch: int) -> Iterator[list[tuple[int, Problem]]]:
    """Consecutive problems with their places, `batch` at a time."""
    numbered = enumerate(task)
    while group := list(itertools.islice(numbered, batch)):
        yield group


def graded(grader: Callable[[Problem, str], Verdict], problem: Problem, found: Mapping[str, Any]) -> dict[str, Any]:
    verdicts = [grader(problem, response["text"]) for response in found["responses"]]
    responses = [{**x, "answer": v.answer, "right": v.right} for x, v in zip(found["responses"], verdicts)]
    return {"responses": responses, "cost": found["cost"]}


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


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The unbiased estimate, from n samples with `correct` right, that one of k samples is right."""
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(f"pass@{k} needs 1 <= k <= n and 0 <= correct <= n; n is {n} and correct is {correct}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def accuracy(scores: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """(mean, lower, upper) of the problems' scores in [0, 1].

    Right-or-wrong scores get the exact binomial interval (Clopper-Pearson). Shares (of several samples of a problem)
    get a percentile bootstrap over problems, 2000 resamples of a fixed seed: samples of one problem are not
    independent.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not len(values) or values.min() < 0 or values.max() > 1:
        raise ValueError("accuracy needs at least one score, all of them in [0, 1]")
    n, tail = len(values), (1 - level) / 2
    if np.isin(values, (0.0, 1.0)).all():
        k = int(values.sum())
        lower = 0.0 if k == 0 else solve(lambda p: binomial_tail(k, n, p), tail)
        upper = 1.0 if k == n else 1 - solve(lambda p: binomial_tail(n - k, n, p), tail)
        return k / n, lower, upper
    resampled = np.random.default_rng(0).choice(values, (2000, n)).mean(1)
    return float(values.mean()), float(np.quantile(resampled, tail)), float(np.quantile(resampled, 1 - tail))


def binomial_tail(k: int, n: int, p: float) -> float:
    """P(Binomial(n, p) >= k)."""
    if p in (0.0, 1.0):
        return float(p)
    terms = (
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(p) + (n - i) * math.log1p(-p)
        for i in range(k, n + 1)
    )
    return math.fsum(math.exp(term) for term in terms)


def solve(increasing, value: float) -> float:
    """The p in [0, 1] with increasing(p) = value, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if increasing(middle) < value else (low, middle)
    return low
