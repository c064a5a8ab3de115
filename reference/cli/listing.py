"""The commands by name, read from the source of `commands.py`, so that help needs no torch."""

from __future__ import annotations

import ast
from pathlib import Path

COMMANDS = Path(__file__).with_name("commands.py")


def commands() -> dict[str, dict[str, str]]:
    """By kind, the commands with what they do: `best_of_n` is "best-of-n", `train_sft` "train sft"."""
    kinds: dict[str, dict[str, str]] = {"methods": {}, "training": {}, "more": {}}
    for node in ast.parse(COMMANDS.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            trains, asks = (
                node.name.startswith("train_"),
                node.returns and ast.unparse(node.returns).startswith("Answers"),
            )
            kind = kinds["training" if trains else "methods" if asks else "more"]
            name = "train " + node.name.removeprefix("train_") if trains else node.name
            kind[name.replace("_", "-")] = (ast.get_docstring(node) or "").partition("\n")[0]
    return kinds
