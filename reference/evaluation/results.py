"""Results of long runs: files of JSON lines that can be interrupted, resumed, sharded and merged.

    line 1      {"settings": {...}, "shard": [i, n]}    all that the results follow from
    line 2..    {"index", "id", "responses": [{"text", "tokens", "logp", "finished", "answer", "right"}], "cost"}

A line is there when it is flushed and synchronised; one that was half-written when the machine went down is removed
before the run goes on. Times are no results: they go to a file of their own, so that the bytes of a run that was
interrupted, or sharded and merged, are those of one that was not.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from reference.checkpoints import is_stream, write_whole
from reference.text.identity import first_difference

COSTS = ("decoded_tokens", "sequential_tokens")  # what is read of a result's cost
NAMES = ("model", "task")  # of settings, shown and not compared: the weights' digest and the task's are
TIMES = ".times.jsonl"


def times_of(path: str | Path) -> Path:
    """Where an evaluation writes what its batches took."""
    path = Path(path)
    return path.with_suffix(TIMES) if path.suffix == ".jsonl" else path.with_name(f"{path.name}.results{TIMES}")


class Results:
    """A file that results are appended to, made or resumed: `with Results(path, settings) as results`.

    ValueError: the file is of other settings (it names the first), no such file, or in use. OSError: not writable.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], shard: tuple[int, int] = (0, 1)):
        self.path, self.shard = Path(path), shard
        self.settings = json.loads(json.dumps(settings))  # as they are read back
        self.times = times_of(self.path)
        self.done: set[int | str] = set()  # ids

    def __enter__(self) -> Results:
        if is_stream(self.path):
            raise ValueError(f"{self.path} is a device or a pipe, and results are read again; name a file")
        if self.path.name.endswith(TIMES):
            raise ValueError(f"{self.path} is what a file of times is called; name another file for results")
        if self.times.is_file() and first_line(self.times)[:8] not in (b"", b'{"ids": '):
            raise ValueError(f"{self.times} is no file of times, and they would be written there; move it")
        self.new = not self.path.exists()
        self.file: IO[bytes] = open(self.path, "a+b")
        try:
            self.resume()
        except BaseException:
            self.file.close()
            raise
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is not None and self.new and not self.done:  # a start that failed leaves nothing behind
            self.path.unlink(missing_ok=True)
        self.file.close()

    def resume(self) -> None:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{self.path} is being written by another process; wait for it, or end it") from None
        header, end = {"settings": self.settings, "shard": list(self.shard)}, 0  # end: of the last whole line
        self.file.seek(0)
        for number, line in enumerate(self.file, 1):
            if number == 1 and not as_line(header).startswith(line):  # not the same, nor the same half-written
                self.compare(read_header(self.path, line))
            if not line.endswith(b"\n"):
                break
            if number > 1:
                self.done.add(read_result(self.path, number, line)["id"])
            end += len(line)
        self.file.truncate(end)
        if not end:
            self.append([header])

    def compare(self, header: Mapping[str, Any]) -> None:
        """ValueError: it names the first setting that differs."""
        theirs = {**compared(header), "shard": "{}/{}".format(*header["shard"])}
        ours = {**compared({"settings": self.settings}), "shard": "{}/{}".format(*self.shard)}
        refuse_others(self.path, theirs, ours)

    def append(self, lines: Sequence[Mapping[str, Any]], times: Mapping[str, Any] | None = None) -> None:
        """Write the lines, all at once, and wait until they are on the disk."""
        self.file.write(b"".join(map(as_line, lines)))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.done |= {line["id"] for line in lines if "id" in line}
        if times is not None:
            with open(self.times, "a", encoding="utf-8") as file:
                file.write(json.dumps(times) + "\n")


def as_line(result: Mapping[str, Any]) -> bytes:
    return json.dumps(result).encode() + b"\n"


def refuse_others(path: str | Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    if difference := first_difference(theirs, ours):
        raise ValueError(f"{path} was written with {difference}; name another file, or give the same settings")


def compared(header: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that make two runs the same."""
    return {name: value for name, value in header["settings"].items() if name not in NAMES}


def read_header(path: str | Path, line: bytes) -> dict[str, Any]:
    try:
        header = json.loads(line)
        i, n = header["shard"]
        if isinstance(header["settings"], dict) and type(i) is int and type(n) is int and 0 <= i < n:
            return header
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise ValueError(f"{path} is no file of results; its first line has no settings")


def read_result(path: str | Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        result = json.loads(line)
        counts = [result["index"], *(result["cost"][name] for name in COSTS)]
        whole = all(type(count) is int and 0 <= count < 1 << 53 for count in counts) and isinstance(
            result["responses"], list
        )
        if (
            whole
            and type(result["id"]) in (int, str)
            and isinstance(result["prompt"], str)
            and result["responses"]
            and all(map(is_response, result["responses"]))
        ):
            return result
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        pass
    raise ValueError(f"{path}, line {number} is no result; remove it, and the same command does its problem again")


def is_response(found: Mapping[str, Any]) -> bool:
    """KeyError, TypeError: it is not."""
    return (
        isinstance(found["text"], str)
        and all(isinstance(found[name], bool) for name in ("finished", "right"))
        and all(isinstance(found[name], list) for name in ("tokens", "logp"))
        and all(isinstance(x, int | float) and math.isfinite(x) for x in (*found["tokens"], *found["logp"]))
        and (found["answer"] is None or isinstance(found["answer"], str))
    )


def read_results(path: str | Path) -> Iterator[dict[str, Any]]:
    """The results one by one, in the task's order; a half-written last line is passed over. One whose line was removed
    stands at the end once it was done again."""
    with open(path, "rb") as file:
        places, offset = list[tuple[int, int, int]](), 0  # (index, line, offset)
        for number, line in enumerate(file, 1):
            if number > 1 and line.endswith(b"\n"):
                places.append((read_result(path, number, line)["index"], number, offset))
            offset += len(line)
        for _, number, offset in sorted(places):
            file.seek(offset)
            yield read_result(path, number, file.readline())


def in_order(paths: Sequence[str | Path]) -> Iterator[dict[str, Any]]:
    """The results of shards in the task's order, one of each in memory."""
    return heapq.merge(*map(read_results, paths), key=lambda result: result["index"])


def merge(paths: Sequence[str | Path], out: str | Path) -> None:
    """The shards of one run as the file that it would have written alone; a line of each is in memory at a time.

    ValueError: the files differ in a setting, one is missing or given twice, or has not all of its problems; there is
    a file of that name which is none of this run.
    """
    paths = without_times(paths)
    headers = [read_header(path, first_line(path)) for path in paths]
    if not headers:
        raise ValueError("there is nothing to merge; name the files of all shards")
    settings = headers[0]["settings"]
    for path, header in zip(paths, headers):
        refuse_others(path, compared(header), compared(headers[0]))
    if Path(out).is_file() and Path(out).stat().st_size:
        refuse_others(out, compared(read_header(out, first_line(out))), compared(headers[0]))

    def write(part: Path) -> None:
        with open(part, "wb") as target:
            target.write(as_line({"settings": settings, "shard": [0, 1]}))
            target.writelines(map(as_line, all_results(paths)))

    write_whole(Path(out), write)


def all_results(paths: Sequence[str | Path]) -> Iterator[dict[str, Any]]:
    """The results of a run's shards, all of them, in the task's order. ValueError: a shard or a problem is missing."""
    headers = [read_header(path, first_line(path)) for path in paths]
    n, have = headers[0]["shard"][1], sorted(tuple(header["shard"]) for header in headers)
    if have != [(i, n) for i in range(n)]:
        shown = ", ".join(f"{i}/{of}" for i, of in have)
        raise ValueError(f"the shards 0/{n} to {n - 1}/{n} are needed, each once; these are {shown}")
    count = 0
    for result in in_order(paths):
        if result["index"] != count:
            at = min(result["index"], count)
            raise ValueError(f"the problem at place {at} is missing, or there twice; finish all shards first")
        yield result
        count += 1
    if count < (total := number_of_problems(headers[0]["settings"], count)):
        raise ValueError(f"the shards have {count} of {total} problems; finish all of them first")


def number_of_problems(settings: Mapping[str, Any], count: int) -> int:
    """What the header says of the whole task, or as many as there are."""
    return found if type(found := settings.get("problems")) is int else count


def without_times(paths: Sequence[str | Path]) -> list[str | Path]:
    """Each once, without what *.jsonl means too."""
    return [*{Path(path).resolve(): path for path in paths if not str(path).endswith(TIMES)}.values()]


def is_results(path: str | Path) -> bool:
    try:
        return bool(read_header(path, first_line(path)))
    except ValueError:
        return False


def first_line(path: str | Path) -> bytes:
    """ValueError: a device or a pipe, which may never say anything."""
    if is_stream(Path(path)):
        raise ValueError(f"{path} is a device or a pipe, and results are read several times; name a file")
    with open(path, "rb") as file:
        return file.readline()
