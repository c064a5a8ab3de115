"""The figures' command line.

    python -m figures draw [NAME ...]     redraw figures/NAME.png from figures/results/NAME.json (default: all)
    python -m figures compute NAME ...    compute figures/results/NAME.json again, redraw, put its tables into READMEs
    python -m figures stale               name the results that were computed from other code than today's
    python -m figures demo [NAME]         compute and show the demo, in runs/: nothing that git tracks changes

A figure is a module figures/NAME.py with `compute() -> plain dict`; `draw(dict)`, which returns a matplotlib figure, or
several by the rest of their names ("" is NAME.png, "cost" NAME_cost.png); optionally `table(dict) -> text` or
`tables(dict) -> texts by name`; and `DEPENDS`, the files and folders whose contents decide what `compute` returns.
"""

import sys

if __name__ == "__main__":  # Ctrl-C at any moment, also while torch is loaded, ends with one line
    say = sys.excepthook
    sys.excepthook = lambda kind, *rest: (
        print("\ninterrupted; the same command begins again", file=sys.stderr)
        if issubclass(kind, KeyboardInterrupt)
        else say(kind, *rest)
    )

import argparse
import hashlib
import importlib
import json
import platform
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from figures._machine import machine
from reference.transformer import write_whole

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def fingerprint(depends: tuple[str, ...]) -> str:
    """A hash of the files that a result depends on (Python, weights and settings below the named paths)."""
    digest = hashlib.sha256()
    for name in depends:
        path = HERE.parent / name
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.suffix in (".py", ".json", ".safetensors"):
                digest.update(file.relative_to(HERE.parent).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def module(name: str):
    if not (HERE / f"{name}.py").exists():
        raise SystemExit(f"there is no figure {name!r}; there are {', '.join(names())}")
    return importlib.import_module(f"figures.{name}")


def names() -> list[str]:
    return sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))


def compute(name: str, folder: Path = RESULTS) -> dict:
    figure, begin = module(name), time.time()
    depends = fingerprint(figure.DEPENDS)  # of the code that computes, whatever is edited meanwhile
    result = figure.compute()
    result["about"] = {
        "depends": depends,
        "seconds": round(time.time() - begin, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": machine(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1) + "\n"
    write_whole(folder / f"{name}.json", lambda part: part.write_text(text))
    return json.loads(text)  # as it is read back


def draw(name: str, results: Path = RESULTS, pictures: Path = HERE) -> None:
    result = json.loads((results / f"{name}.json").read_text())
    drawn = module(name).draw(result)
    for part, figure in (drawn if isinstance(drawn, dict) else {"": drawn}).items():
        path = pictures / f"{name}{'_' * bool(part)}{part}.png"
        write_whole(path, lambda file, figure=figure: figure.savefig(file, dpi=120, format="png"))
        plt.close(figure)


def tables(name: str, result: dict) -> dict[str, str]:
    """A figure's tables by name: those of its `tables`, or its one `table`, or none."""
    figure = module(name)
    if hasattr(figure, "tables"):
        return figure.tables(result)
    return {name: figure.table(result)} if hasattr(figure, "table") else {}


def write_tables(name: str, result: dict) -> None:
    """Put a figure's tables into the READMEs that have the two comments that name them."""
    for readme in (HERE.parent / "README.md", *HERE.parent.glob("*/README.md")):
        before = text = readme.read_text()
        for title, table in tables(name, result).items():
            head, begin, rest = text.partition(f"<!-- table: {title} -->\n")
            if begin:
                _, end, tail = rest.partition("<!-- end -->\n")
                text = f"{head}{begin}```\n{table}\n```\n{end}{tail}"
        if text != before:
            write_whole(readme, lambda part, text=text: part.write_text(text))


def stale() -> list[str]:
    """The results whose dependencies have changed since they were computed."""
    kept = {path.stem: json.loads(path.read_text())["about"]["depends"] for path in sorted(RESULTS.glob("*.json"))}
    return [name for name, depends in kept.items() if fingerprint(module(name).DEPENDS) != depends]


def show(name: str, result: dict, picture: Path) -> None:
    if hasattr(module(name), "table"):
        print(module(name).table(result))
    print(f"picture: {picture.relative_to(HERE.parent)}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m figures", description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("draw", "compute", "stale", "demo"))
    parser.add_argument("names", nargs="*", metavar="NAME")
    arguments = parser.parse_args()
    chosen = arguments.names
    if arguments.action == "stale":
        print("\n".join(f"{name}: computed from other code than today's" for name in stale()) or "all are up to date")
    elif arguments.action == "demo":
        runs = HERE.parent / "runs"
        for name in chosen or ["demo"]:
            result = compute(name, runs)
            draw(name, runs, runs)
            show(name, result, runs / f"{name}.png")
    elif arguments.action == "draw":
        wanted = chosen or sorted(path.stem for path in RESULTS.glob("*.json"))
        for name in wanted:
            draw(name)
            print(f"figures/{name}.png")
        if old := [name for name in stale() if name in wanted]:
            sys.exit(
                "\n".join(f"{name}: computed from other code than today's; make results NAME={name}" for name in old)
            )
    elif not chosen:
        sys.exit(f"name a figure to compute: {', '.join(names())}")
    else:
        for name in chosen:
            result = compute(name)
            draw(name)
            write_tables(name, result)
            show(name, result, HERE / f"{name}.png")


if __name__ == "__main__":
    main()
