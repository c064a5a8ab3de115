"""The commands by name, read from the source of the files that hold them, so that help needs no torch."""

from __future__ import annotations

import ast
from pathlib import Path

KINDS = {"methods": "methods.py", "training": "training.py", "more": "more.py"}  # in this folder
FOLDER = Path(__file__).parent


def commands() -> dict[str, dict[str, str]]:
    """By kind, the commands with what they do: `best_of_n` is "best-of-n", `train_sft` "train sft"."""
    kinds: dict[str, dict[str, str]] = {}
    for kind, file in KINDS.items():
        tree = ast.parse((FOLDER / file).read_text(encoding="utf-8"))
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"]
        said = {each.name: (ast.get_docstring(each) or "").partition("\n")[0] for each in functions}
        kinds[kind] = {name.replace("train_", "train ").replace("_", "-"): about for name, about in said.items()}
    return kinds


def module_of(name: str) -> str:
    """Which module holds a command, such as "reference.cli.methods"."""
    kind = next(kind for kind, named in commands().items() if name in named)
    return f"reference.cli.{KINDS[kind].removesuffix('.py')}"
