"""Results of long runs: files of JSON lines that can be interrupted, resumed, sharded, merged and reported.

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
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from reference.checkpoints import write_whole
from reference.evaluation.statistics import accuracy, pass_at_k
from reference.text.identity import first_difference

COSTS = ("decoded_tokens", "sequential_tokens")  # what is read of a result's cost
NAMES = ("model", "task")  # of settings, shown and not compared: the weights' digest and the task's are
TIMES = ".times.jsonl"


def times_of(path: str | Path) -> Path:
    """Where an evaluation writes what its batches took."""
    path = Path(path)
    return path.with_suffix(TIMES) if path.suffix == ".jsonl" else path.with_name(f"{path.name}{TIMES}")


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
        if self.path.name.endswith(TIMES):
            raise ValueError(f"{self.path} is what a file of times is called; name another file for results")
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
        whole = all(type(count) is int and count >= 0 for count in counts) and isinstance(result["responses"], list)
        if (
            whole
            and type(result["id"]) in (int, str)
            and result["responses"]
            and all(map(is_response, result["responses"]))
        ):
            return result
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ValueError(f"{path}, line {number} is no result; remove it, and the same command does its problem again")


def is_response(found: Mapping[str, Any]) -> bool:
    """KeyError, TypeError: it is not."""
    return (
        all(isinstance(found[name], bool) for name in ("finished", "right"))
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

    ValueError: the files differ in a setting, one is missing or given twice, or has not all of its problems.
    """
    paths = without_times(paths)
    headers = [read_header(path, first_line(path)) for path in paths]
    if not headers:
        raise ValueError("there is nothing to merge; name the files of all shards")
    settings = headers[0]["settings"]
    for path, header in zip(paths, headers):
        refuse_others(path, compared(header), compared(headers[0]))
    n, have = headers[0]["shard"][1], sorted(tuple(header["shard"]) for header in headers)
    if have != [(i, n) for i in range(n)]:
        shown = ", ".join(f"{i}/{of}" for i, of in have)
        raise ValueError(f"merging needs the shards 0/{n} to {n - 1}/{n}, each once; these are {shown}")

    def write(part: Path) -> None:
        with open(part, "wb") as target:
            target.write(as_line({"settings": settings, "shard": [0, 1]}))
            count = 0
            for result in in_order(paths):
                if result["index"] != count:
                    at = min(result["index"], count)
                    raise ValueError(f"the problem at place {at} is missing, or there twice; finish all shards first")
                target.write(as_line(result))
                count += 1
            if count < (total := number_of_problems(settings, count)):
                raise ValueError(f"the shards have {count} of {total} problems; finish all of them first")

    write_whole(Path(out), write)


def number_of_problems(settings: Mapping[str, Any], count: int) -> int:
    """What the header says of the whole task, or as many as there are."""
    return found if type(found := settings.get("problems")) is int else count


def without_times(paths: Sequence[str | Path]) -> list[str | Path]:
    """Without what *.jsonl means too."""
    return [path for path in paths if not str(path).endswith(TIMES)]


def is_results(path: str | Path) -> bool:
    try:
        return bool(read_header(path, first_line(path)))
    except ValueError:
        return False


def first_line(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        return file.readline()


# ---------------------------------------------------------------------------------------------------------------------
# The report


@dataclass(frozen=True)
class Report:
    rows: list[dict[str, Any]]  # one for each file

    def __str__(self) -> str:
        """The table, in Markdown."""
        ks = sorted({k for row in self.rows for k in row["pass_at"]})
        lifted = any(row["lift"] for row in self.rows)
        head = ["model", "task", "method", "problems", "accuracy [95 %]", *(f"pass@{k}" for k in ks), "unreadable",
                "cut", "tokens", "in a row", "log p", *(["lift over greedy"] if lifted else [])]  # fmt: skip
        lines = [head, ["---"] * len(head)]
        for row in self.rows:
            mean, low, high = (100 * x for x in row["accuracy"])
            lift = row["lift"]
            lines.append([
                row["model"], row["task"], row["name"], f"{row['problems']}" + f" of {row['of']}" * (not row["whole"]),
                f"{mean:.1f} [{low:.1f}, {high:.1f}]" if row["graded"] else "not graded",
                *(f"{100 * row['pass_at'][k]:.1f}" if k in row["pass_at"] else "" for k in ks),
                f"{100 * row['unreadable']:.1f} %", f"{100 * row['cut']:.1f} %", f"{row['total_tokens']:.0f}",
                f"{row['sequential_tokens']:.0f}", f"{row['logp']:.2f}",
                *([say_lift(lift) if lift else ""] if lifted else []),
            ])  # fmt: skip
        return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)

    @property
    def lifts(self) -> tuple[list[str], list[str], np.ndarray]:
        """The heat map: methods, places (model and task), and 100 (accuracy / greedy accuracy − 1); NaN: unknown."""
        rows = [row for row in self.rows if row["lift"]]
        methods = list(dict.fromkeys(row["name"] for row in rows))
        places = list(dict.fromkeys(f"{row['model']}\n{row['task']}" for row in rows))
        table = np.full((len(methods), len(places)), np.nan)
        for row in rows:
            table[methods.index(row["name"]), places.index(f"{row['model']}\n{row['task']}")] = row["lift"]["percent"]
        return methods, places, table

    def draw(self, path: str | Path) -> None:
        """Accuracy against sequential and total tokens, and the lift over greedy where it is known.

        ValueError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ValueError("the picture needs the package matplotlib; pip install matplotlib") from None
        methods, places, table = self.lifts
        figure = Figure(figsize=(15 if methods else 10, 4.5), layout="constrained")
        panels = figure.subplots(1, 3 if methods else 2)
        colours = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000"]
        for panel, tokens, words in (
            (panels[0], "sequential_tokens", "sequential tokens per problem"),
            (panels[1], "total_tokens", "decoded tokens per problem"),
        ):
            for i, row in enumerate(self.rows):
                mean, low, high = (100 * x for x in row["accuracy"])
                panel.errorbar(
                    max(row[tokens], 1), mean, yerr=[[max(mean - low, 0)], [max(high - mean, 0)]], capsize=3,
                    fmt="osD^vP*"[i // len(colours) % 7], color=colours[i % len(colours)],
                    label=f"{row['name']}, {row['task']}, {row['model']}",
                )  # fmt: skip
            panel.set(xscale="log", xlabel=words, ylabel="accuracy (%), with 95 % interval", ylim=(-2, 102))
            panel.grid(alpha=0.3)
        panels[0].legend(fontsize="x-small")
        if methods:
            most = 1.5 * max(1.0, np.nanmax(np.abs(np.where(np.isinf(table), np.nan, table)), initial=1.0))
            image = panels[2].imshow(table, cmap="PuOr_r", vmin=-most, vmax=most, aspect="auto")
            panels[2].set_xticks(range(len(places)), places, fontsize="small")
            panels[2].set_yticks(range(len(methods)), methods, fontsize="small")
            for (i, j), value in np.ndenumerate(table):
                panels[2].text(j, i, "" if math.isnan(value) else f"{value:+.1f}", ha="center", va="center")
            figure.colorbar(image, ax=panels[2], label="lift of accuracy over greedy (%)")
        kind = Path(path).suffix.lstrip(".") or "png"
        write_whole(Path(path), lambda part: figure.savefig(part, dpi=150, format=kind))


def report(paths: Sequence[str | Path]) -> Report:
    """Numbers of files of results, finished or not; shards of one run count as one. The lift is over greedy decoding
    (method "sample" at temperature 0) of the same model and task among them, on the problems that both have.

    ValueError: a file that is none of results, or has none yet; a problem that a run's files have twice.
    """
    paths = [*{Path(path).resolve(): path for path in without_times(paths)}.values()]  # each once
    if not paths:
        raise ValueError("there is nothing to report; name files of results")
    runs: dict[str, list[str | Path]] = {}
    for path in paths:
        header = read_header(path, first_line(path))
        whole = header["shard"][1] == 1  # two whole files are two runs, whatever their settings
        runs.setdefault(str(path) if whole else json.dumps(compared(header)), []).append(path)
    rows = [summary(files) for files in runs.values()]
    greedy = {row["place"]: row for row in rows if row["greedy"]}
    for row in rows:
        if (base := greedy.get(row["place"])) and base is not row:
            row["lift"] = lift(row["scores"], base["scores"])
    counted = [row["name"] for row in rows]
    for row in rows:  # two files of one method: the file's name tells them apart
        if counted.count(row["name"]) > len({r["place"] for r in rows if r["name"] == row["name"]}):
            row["name"] = f"{row['name']} ({Path(row['path']).stem})"
    return Report(rows)


def summary(paths: Sequence[str | Path]) -> dict[str, Any]:
    """One run's row."""
    path, settings = paths[0], read_header(paths[0], first_line(paths[0]))["settings"]
    scores: dict[int | str, float] = {}
    counts: list[tuple[int, int]] = []  # (responses, right ones) of each problem
    cut = unreadable = 0
    total = sequential = logp = 0.0
    for result in in_order(paths):  # which the bootstrap depends on
        if result["id"] in scores:
            raise ValueError(f"problem {result['id']!r} is there twice in {', '.join(map(str, paths))}")
        responses = result["responses"]
        right = sum(response["right"] for response in responses)
        scores[result["id"]] = right / len(responses)
        counts.append((len(responses), right))
        unreadable += sum(response["answer"] is None for response in responses)
        cut += sum(not response["finished"] for response in responses)
        logp += math.fsum(math.fsum(response["logp"]) for response in responses)
        total += result["cost"]["decoded_tokens"]
        sequential += result["cost"]["sequential_tokens"]
    if not counts:
        raise ValueError(f"{path} has no result yet")
    problems, drawn, least = len(counts), sum(n for n, _ in counts), min(n for n, _ in counts)
    ks = [k for k in (2**i for i in range(1, 20)) if k <= least]
    greedy = settings.get("method") == "sample" and settings.get("temperature") == 0
    return {
        "path": str(path), "model": str(settings.get("model", "?")).rstrip("/").rpartition("/")[2],
        "task": str(settings.get("task", "?")), "name": "greedy" if greedy else str(settings.get("method", "?")),
        "greedy": greedy, "place": place_of(settings), "graded": settings.get("grader") != "none",
        "problems": problems, "of": (of := number_of_problems(settings, problems)), "whole": problems == of,
        "accuracy": accuracy(list(scores.values())), "scores": scores,
        "pass_at": {k: float(np.mean([pass_at_k(n, c, k) for n, c in counts])) for k in ks},
        "unreadable": unreadable / drawn, "cut": cut / drawn, "total_tokens": total / problems,
        "sequential_tokens": sequential / problems, "logp": logp / drawn, "lift": None,
    }  # fmt: skip


def place_of(settings: Mapping[str, Any]) -> str:
    """The model and the task: their digests, or names where an old file has none."""
    model, task = settings.get("weights", settings.get("model")), settings.get("task_sha256", settings.get("task"))
    return json.dumps([model, task, settings.get("format")])


def lift(scores: Mapping[int | str, float], base: Mapping[int | str, float]) -> dict[str, Any] | None:
    """Accuracy above greedy decoding's: in points with a paired bootstrap's 95 % interval (2000 resamples of problems
    of a fixed seed), and in percent of it, as in the heat map of 2412.01951, Figure 1(a)."""
    both = [id for id in scores if id in base]
    if not both:
        return None
    ours, theirs = np.array([scores[id] for id in both]), np.array([base[id] for id in both])
    resampled = np.random.default_rng(0).choice(ours - theirs, (2000, len(both))).mean(1)
    low, high = np.quantile(resampled, (0.025, 0.975))
    percent = 100 * (ours.mean() / theirs.mean() - 1) if theirs.any() else math.nan
    return {"points": (float((ours - theirs).mean()), float(low), float(high)), "percent": float(percent)}


def say_lift(found: Mapping[str, Any]) -> str:
    mean, low, high = (100 * x for x in found["points"])
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}] ({found['percent']:+.1f} %)"
