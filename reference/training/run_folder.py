"""A folder that belongs to one run, and to one process at a time: what it depends on, and what has been drawn so far.

training.json     the run's identity (`reference/text/identity.py`); another run is refused before anything is written
draws/       responses, a file for each block of prompts: what was drawn is saved before it is trained on
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from reference.best_of_n import BestOfN
from reference.checkpoints import write_whole
from reference.interface import Cost, Generation, Samples
from reference.text.identity import digest, first_difference, flat
from reference.training.distributed import join

BLOCK = 64  # prompts whose responses are drawn between two files
SAFE: list[Any] = [BestOfN, Cost, Generation, Samples]


class RunFolder:
    """`with RunFolder(path, identity) as folder`: a new or empty folder, or one of the same run.

    ValueError: it belongs to another run, holds something else, or is in use. A start that fails leaves nothing behind.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any]) -> None:
        self.path, self.identity, self.made = Path(path), json.loads(json.dumps(identity)), False

    def __enter__(self) -> Path:
        record = self.path / "training.json"
        if self.path.is_dir() and any(self.path.iterdir()) and not record.exists():
            raise ValueError(
                f"{self.path} is not empty, and what it holds is no run of this command; name a new folder"
            )
        self.made = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock = os.open(self.path, os.O_RDONLY)  # the folder itself is locked
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self.lock)
            raise ValueError(f"{self.path} is being written by another process; wait for it, or end it") from None
        if not record.exists():
            write_whole(record, lambda part: part.write_text(json.dumps(self.identity, indent=1) + "\n"))
            return self.path
        if difference := first_difference(read_record(record), self.identity):
            os.close(self.lock)
            raise ValueError(
                f"{self.path} was written with {difference}; name another folder, or give the same settings"
            )
        return self.path

    def __exit__(self, kind: Any, *_: Any) -> None:
        os.close(self.lock)
        if kind is not None and {path.name for path in self.path.iterdir()} <= {"training.json"}:
            shutil.rmtree(self.path) if self.made else (self.path / "training.json").unlink(missing_ok=True)


def read_record(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    except ValueError:
        pass
    raise ValueError(f"{path} is no record of a run; name another folder")


def in_blocks(
    sample: Callable[..., Any], folder: Path, block: int = BLOCK, after: Callable[[int, int, int], None] | None = None
) -> Callable[..., Any]:
    """sample(sampler, model, prompts, *args, keys=..., **settings), a block of prompts at a time, each block's result
    kept in folder/draws: what was cut off goes on from the last whole block. (What `sft_sharpen` and others call
    `sample`.) after(drawn, left, tokens): called after each block that was drawn, with the numbers of prompts, and of
    tokens decoded."""

    def kept(
        sampler: Callable, model: Any, prompts: Sequence, *args: Any, keys: Sequence | None = None, **settings: Any
    ) -> Any:
        keys = list(range(len(prompts)) if keys is None else keys)
        drawn, tokens, told = 0, 0, flat({"sampler": sampler, "args": args, **settings})
        parts = []
        for at in range(0, len(prompts), block):
            own, named = prompts[at : at + block], keys[at : at + block]
            mark = digest([told, [list(map(int, prompt)) for prompt in own], named])
            path = folder / "draws" / f"{mark}.pt"
            if path.exists():
                with torch.serialization.safe_globals(SAFE):
                    parts.append(torch.load(path, weights_only=True, map_location=model.device))
                continue
            parts.append(sample(sampler, model, own, *args, keys=named, **settings))
            drawn, tokens = drawn + len(own), tokens + Cost.parallel(parts[-1].costs).decoded_tokens
            if after is not None:
                after(drawn, len(prompts) - at - len(own), tokens)
            if not dist.is_initialized() or dist.get_rank() == 0:
                path.parent.mkdir(exist_ok=True)
                write_whole(path, lambda file, part=parts[-1]: torch.save(part, file))
        return join(parts, torch.arange(len(prompts)))

    return kept
