"""The public names and signatures of `reference`, as a snapshot: `python -m tests.api` writes tests/api.json anew."""

import importlib
import inspect
import json
import re

from tests.conftest import ROOT

SNAPSHOT = ROOT / "tests" / "api.json"


def signature(thing) -> str:
    try:
        found = str(inspect.signature(thing))
    except (TypeError, ValueError):  # a class without a constructor of its own
        return "class"
    return re.sub(r" at 0x[0-9a-f]+", "", found)  # functions as defaults


def public() -> dict[str, dict[str, str]]:
    """module -> name -> signature, of what a module of the algorithms' room defines itself."""
    found = {}
    for path in sorted((ROOT / "reference").glob("*.py")):
        if not path.stem.startswith("__"):
            module = importlib.import_module(f"reference.{path.stem}")
            own = {name: thing for name, thing in vars(module).items()
                   if getattr(thing, "__module__", None) == module.__name__ and not name.startswith("_")
                   and (inspect.isclass(thing) or inspect.isfunction(thing))}  # fmt: skip
            found[path.stem] = {name: signature(own[name]) for name in sorted(own)}
    return found


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(public(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
