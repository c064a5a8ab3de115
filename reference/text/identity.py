"""What a run's result depends on: its identity, in one place for evaluations and for all training.

    {"version": 1, "config.beta": 0.1, .., "prompts": digest, "answers": digest, "weights": digest, "stop_ids": [2], ..}

Settings are read off their dataclasses, every field of every one, so that a new field joins unasked. A file or folder
that belongs to another identity is refused, with the first thing that differs and both values, and never written to.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from reference.checkpoints import write_whole

VERSION = 1  # of what is written; a change of it makes older files another run's
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "sharpening" / "digests.json"


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every field of settings, those of nested dataclasses by dotted names, as JSON has them."""
    if is_dataclass(value) and not isinstance(value, type):
        parts = [flat(getattr(value, field.name), f"{name}.{field.name}".lstrip(".")) for field in fields(value)]
        return {key: part for own in parts for key, part in own.items()}
    if isinstance(value, Mapping):
        return {key: part for k, v in value.items() for key, part in flat(v, f"{name}.{k}".lstrip(".")).items()}
    if isinstance(value, tuple | list | set | frozenset):
        return {name: [plain(each) for each in (value if isinstance(value, tuple | list) else sorted(value))]}
    return {name: plain(value)}


def plain(value: Any) -> Any:
    """A value as JSON reads it back; functions by their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    if isinstance(value, Callable):  # type: ignore[arg-type]
        return f"{value.__module__}.{value.__qualname__}"
    return str(value)


def digest(content: Any) -> str:
    """Of texts, ids and answers."""
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:16]


def first_difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    """What a refusal names: "beta = 0.1, and now beta is 1.0"; None if they are the same."""
    for name in (*ours, *theirs):
        if (a := theirs.get(name)) != (b := ours.get(name)):
            digests = all(isinstance(x, str) and re.fullmatch(r"([0-9a-f]{16}){1,4}", x) for x in (a, b))
            return f"{name} = {json.dumps(a)}, and now {name} is {json.dumps(b)}" + " (digests of contents)" * digests
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def files_digest(folder: Path, names: Iterable[str]) -> str:
    """Of some of a folder's files. Those of large ones are remembered by size and times: gigabytes are read once.
    FileNotFoundError: one is missing."""
    return digest({name: file_digest(folder / name) for name in sorted(names)})


def module_digest(name: str | None) -> str | None:
    """Of the file that a template set "module:object" stands in; None: no name, or no such file."""
    try:
        spec = importlib.util.find_spec((name or "").partition(":")[0])
        return file_digest(Path(spec.origin)) if spec and spec.origin else None
    except (ImportError, ValueError, TypeError, OSError):
        return None


def file_digest(path: Path) -> str:
    stat = path.stat()
    key, mark = str(path.resolve()), [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    if stat.st_size < 1 << 20:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        known = dict(json.loads(CACHE.read_text()))
        *theirs, found = known.get(key, [None])
        if theirs == mark:
            return str(found)
    except (OSError, ValueError, TypeError, RecursionError):
        known = {}  # there is none, or what is there is none
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        write_whole(CACHE, lambda part: part.write_text(json.dumps({**known, key: [*mark, found]})))
    except OSError:
        pass  # it is read again next time
    return found
