"""Mistakes on purpose: plant each one that tests/mutants.toml lists in a copy of the tree, and see a test fail.

    python -m tests.mutants [--only WORD ...] [--jobs N]

An entry names a file, a text that stands in it exactly once, a wrong text for it, and tests that notice within 25 s.
First all these tests run on the tree as it is: one that fails anyway notices nothing. A mistake is caught if a test
then fails (pytest's exit status 1); if the tests cannot even be collected, the entry is broken. Nothing is written
outside a temporary directory. Exit status 0: all are caught; 1: not all; 2: bad input, or a test that fails anyway.
"""

import argparse
import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent
LIST = "tests/mutants.toml"
SLOW, LIMIT = 25.0, 60.0  # seconds: more than the first is too slow, at the second a run is killed
LEFT_OUT = (".git", ".venv", "runs", "build", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")  # without git
T = TypeVar("T")
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", "-m", "")  # the last: slow tests too


@dataclass(frozen=True)
class Mutant:
    """One [[mutant]] of the list."""

    file: str  # from the root
    text: str  # occurs exactly once in it
    wrong: str  # what it becomes
    tests: list[str]  # node ids or files; at least one test of them must fail
    why: str  # what the mistake is, in one line


def load(root: Path = ROOT) -> list[Mutant]:
    """The list. ValueError: one line that names the entry at fault."""
    try:
        rows = tomllib.loads((root / LIST).read_text(encoding="utf-8"))["mutant"]
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise ValueError(f"{LIST}: {error}") from None
    for number, row in enumerate(rows, 1):
        if problem := problem_of(row, root):
            raise ValueError(f"{LIST}, entry {number} ({row.get('file')}, {row.get('why')!r}): {problem}")
    return [Mutant(**row) for row in rows]


def problem_of(row: dict, root: Path) -> str | None:
    """What is wrong with an entry, or None."""
    names, tests = [field.name for field in fields(Mutant)], row.get("tests")
    if {*row} != {*names}:
        return f"its fields are {', '.join(row)}; they must be {', '.join(names)}"
    texts = [row[name] for name in names if name != "tests"]
    if not isinstance(tests, list) or not tests or not all(isinstance(text, str) for text in (*tests, *texts)):
        return "tests must be a list of at least one node id or file, and all else a string"
    if not row["text"] or not row["why"] or "\n" in row["why"] or row["wrong"] == row["text"]:
        return "text must not be empty, wrong must differ from it, and why must be one line"
    for file in (row["file"], *(test.partition("::")[0] for test in tests)):
        if not (root / file).is_file():
            return f"there is no file {file!r}"
    count = (root / row["file"]).read_text(encoding="utf-8").count(row["text"])
    return None if count == 1 else f"its text occurs {count} times in the file, not once: {row['text']!r}"


def copy_tree(root: Path, to: Path) -> None:
    """Copy what git tracks or would track; without git, all but what tools leave behind."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        shutil.copytree(root, to, ignore=shutil.ignore_patterns(*LEFT_OUT))
        return
    for file in filter(None, listed):
        if (root / file).is_file():  # not deleted
            (to / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / file, to / file)


async def run_tests(copy: Path, tests: Sequence[str], *options: str, limit: float | None = None) -> tuple[int, str]:
    """pytest's exit status and output; a negative status if it was killed at the limit."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    # No bytecode: Python knows it by the second and the size of its source, which two mistakes may have in common.
    environment["PLANTED"] = "1"  # what is only stale has not noticed anything
    environment |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # no random order, and a second less
    process = await asyncio.create_subprocess_exec(
        sys.executable, *PYTEST, f"--basetemp={copy}.tmp", *options, *tests, cwd=copy, env=environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    output = b""
    try:
        async with asyncio.timeout(limit):
            output, _ = await process.communicate()
    except TimeoutError:
        pass
    finally:  # also when interrupted
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return await process.wait(), output.decode(errors="replace")


async def plant(copy: Path, mutant: Mutant) -> tuple[str, str]:
    """(outcome, the last line that pytest said). The copy is restored."""
    path, start = copy / mutant.file, time.monotonic()
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace(mutant.text, mutant.wrong), encoding="utf-8")
    try:
        status, output = await run_tests(copy, mutant.tests, "-x", limit=LIMIT)
    finally:
        path.write_text(source, encoding="utf-8")
    seconds = time.monotonic() - start
    outcome = "SLOW" if seconds > SLOW else {0: "SURVIVED", 1: "caught"}.get(status, "BROKEN")
    print(f"{outcome:8} {seconds:5.1f} s  {mutant.file}: {mutant.why}", flush=True)
    return outcome, (output.strip().splitlines() or [""])[-1]


async def together(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What they return. (asyncio.gather, when interrupted, would not wait until all have killed what they run.)"""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(coroutine) for coroutine in coroutines]
    return [task.result() for task in tasks]


async def run(mutants: Sequence[Mutant], root: Path, directory: Path, jobs: int) -> int:
    """Plant them all and give the exit status."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    copies = [directory / str(job) for job in range(min(jobs, len(mutants), len(tests)))]
    for copy in copies:
        copy_tree(root, copy)
    unchanged = [run_tests(copy, tests[i :: len(copies)], "--tb=no") for i, copy in enumerate(copies)]
    if said := [line for status, output in await together(unchanged) if status for line in output.splitlines()]:
        failing = [line for line in said if line.startswith(("FAILED", "ERROR"))] or said
        print("These do not pass on the unchanged tree, so they notice no mistake:", *failing, sep="\n")
        return 2
    waiting, results = [*mutants], list[tuple[Mutant, str, str]]()

    async def work(copy: Path) -> None:
        while waiting:
            mutant = waiting.pop(0)
            results.append((mutant, *await plant(copy, mutant)))

    await together([work(copy) for copy in copies])
    for mutant, outcome, told in results:
        if outcome != "caught":
            print(f"{outcome}: {mutant.file}: {mutant.text!r} -> {mutant.wrong!r}: {told}")
    count = Counter(outcome for _, outcome, _ in results)
    others = [f", {count[name]} {name.lower()}" for name in ("BROKEN", "SLOW") if count[name]]
    print(f"{len(mutants)} planted, {count['caught']} caught, {count['SURVIVED']} survived", *others, sep="")
    return int(count["caught"] < len(mutants))


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="WORD", default=[""], help="entries with a word in file or why")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 4), help="how many at a time")
    given = parser.parse_args(arguments)
    try:
        mutants = [m for m in load(root) if any(word in part for word in given.only for part in (m.file, m.why))]
        if not mutants or given.jobs < 1:
            raise ValueError(f"{len(mutants)} entries and {given.jobs} jobs; there must be at least one of each")
        with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
            return asyncio.run(run(mutants, root, Path(directory).resolve(), given.jobs))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
