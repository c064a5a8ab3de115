"""What files of results say: accuracy with its interval, pass@k, tokens, the lift over greedy, wins over the base."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reference.checkpoints import write_whole
from reference.evaluation.results import compared, first_line, in_order, number_of_problems, read_header, without_times
from reference.evaluation.statistics import accuracy, pass_at_k, win_rate


@dataclass(frozen=True)
class Report:
    rows: list[dict[str, Any]]  # one for each file

    def __str__(self) -> str:
        """The table, in Markdown."""
        ks = sorted({k for row in self.rows for k in row["pass_at"]})
        lifted, compared = any(row["lift"] for row in self.rows), any(row["wins"] is not None for row in self.rows)
        head = ["model", "task", "method", "problems", "accuracy [95 %]", *(f"pass@{k}" for k in ks), "unreadable",
                "cut", "tokens", "in a row", "log p", *(["lift over greedy"] if lifted else []),
                *(["wins over the base"] if compared else [])]  # fmt: skip
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
                *(["" if row["wins"] is None else f"{100 * row['wins']:.1f} %"] if compared else []),
            ])  # fmt: skip
        return "\n".join(
            f"| {' | '.join(' '.join(cell.split()).replace('|', '&#124;') for cell in line)} |" for line in lines
        )

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
    (method "sample" at temperature 0) of the same model and task among them, on the problems that both have; wins are
    by log-probability over draws of the model itself (temperature 1, no filter), on these problems likewise.

    ValueError: a file that is none of results, or has none yet; a problem that a run's files have twice.
    """
    paths = without_times(paths)
    if not paths:
        raise ValueError("there is nothing to report; name files of results")
    runs: dict[str, list[str | Path]] = {}
    for path in paths:
        header = read_header(path, first_line(path))
        whole = header["shard"][1] == 1  # two whole files are two runs, whatever their settings
        runs.setdefault(str(path) if whole else json.dumps(compared(header)), []).append(path)
    rows = [summary(files) for files in runs.values()]
    for row in rows:
        for name in ("greedy", "plain"):
            bases = [base for base in rows if base[name] and base["place"] == row["place"]]
            same = [base for base in bases if base["horizon"] == row["horizon"]] or bases
            if same and not row[name] and name == "greedy":
                row["lift"] = lift(row["scores"], same[0]["scores"])
            elif same and not row[name] and (both := [id for id in row["rewards"] if id in same[0]["rewards"]]):
                ours, theirs = ([each["rewards"][id] for id in both] for each in (row, same[0]))
                row["wins"] = win_rate(ours, theirs)
    counted = [row["name"] for row in rows]
    for row in rows:  # two files of one method: the file's name tells them apart
        if counted.count(row["name"]) > len({r["place"] for r in rows if r["name"] == row["name"]}):
            row["name"] = f"{row['name']} ({Path(row['path']).stem})"
    return Report(rows)


def summary(paths: Sequence[str | Path]) -> dict[str, Any]:
    """One run's row."""
    path, settings = paths[0], read_header(paths[0], first_line(paths[0]))["settings"]
    scores: dict[int | str, float] = {}
    rewards: dict[int | str, list[float]] = {}  # log-probabilities
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
        rewards[result["id"]] = [math.fsum(response["logp"]) for response in responses]
        logp += math.fsum(rewards[result["id"]])
        total += result["cost"]["decoded_tokens"]
        sequential += result["cost"]["sequential_tokens"]
    if not counts:
        raise ValueError(f"{path} has no result yet")
    problems, drawn, least = len(counts), sum(n for n, _ in counts), min(n for n, _ in counts)
    ks = [k for k in (2**i for i in range(1, 20)) if k <= least]
    decoded = settings.get("method") == "sample"
    greedy = decoded and settings.get("temperature") == 0
    plain = decoded and [settings.get(name) for name in ("temperature", "top_k", "top_p")] == [1, None, None]
    return {
        "path": str(path), "model": str(settings.get("model", "?")).rstrip("/").rpartition("/")[2],
        "task": str(settings.get("task", "?")), "name": "greedy" if greedy else str(settings.get("method", "?")),
        "greedy": greedy, "plain": plain, "place": place_of(settings), "graded": settings.get("grader") != "none",
        "horizon": settings.get("max_new_tokens"),
        "problems": problems, "of": (of := number_of_problems(settings, problems)), "whole": problems == of,
        "accuracy": accuracy(list(scores.values())), "scores": scores,
        "pass_at": {k: float(np.mean([pass_at_k(n, c, k) for n, c in counts])) for k in ks},
        "unreadable": unreadable / drawn, "cut": cut / drawn, "total_tokens": total / problems,
        "sequential_tokens": sequential / problems, "logp": logp / drawn, "lift": None,
        "rewards": rewards, "wins": None,
    }  # fmt: skip


ASKED = ("format", "prompt_style", "raw", "templates", "enable_thinking", "grader", "stop")  # how a task is asked


def place_of(settings: Mapping[str, Any]) -> str:
    """The model, the task (their digests, or names where an old file has none), and how it is asked and graded."""
    model, task = settings.get("weights", settings.get("model")), settings.get("task_sha256", settings.get("task"))
    return json.dumps([model, task, *map(settings.get, ASKED)])


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
    percent = "" if math.isnan(found["percent"]) else f" ({found['percent']:+.1f} %)"
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]{percent}"
