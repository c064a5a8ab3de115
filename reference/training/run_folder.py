"""A folder that belongs to one run, and to one process at a time: what it depends on, and what has been drawn so far.

training.json     the run's identity (`reference/text/identity.py`); another run is refused before anything is written
draws/       responses, a file for each block of prompts: what was drawn is saved before it is trained on
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from reference.best_of_n import BestOfN
from reference.checkpoints import write_whole
from reference.interface import Cost, Generation, Samples
from reference.power_sampling import PowerSamples
from reference.text.identity import digest, first_difference, flat
from reference.training.distributed import join

BLOCK = 64  # prompts whose responses are drawn between two files
SAFE: list[Any] = [BestOfN, Cost, Generation, PowerSamples, Samples]


class RunFolder:
    """`with RunFolder(path, identity) as folder`: a new or empty folder, or one of the same run.

    ValueError: it belongs to another run, holds something else, or is in use. A start that fails leaves nothing behind.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any]) -> None:
        if not str(path):
            raise ValueError("the name of the folder to write to is empty; give one")
        self.path, self.identity = Path(path), json.loads(json.dumps(identity))

    def __enter__(self) -> Path:
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file, and a run has a folder; name another")
        self.made = [path for path in (self.path, *self.path.parents) if not path.exists()]  # innermost first
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock = os.open(self.path, os.O_RDONLY)  # the folder itself is locked
        try:
            self.claim(self.path / "training.json")
        except BaseException:
            self.leave()
            raise
        return self.path

    def claim(self, record: Path) -> None:
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{self.path} is being written by another process; wait for it, or end it") from None
        if record.exists():
            if difference := first_difference(read_record(record), self.identity):
                raise ValueError(
                    f"{self.path} was written with {difference}; name another folder, or give the same settings"
                )
            for part in self.path.rglob(".*.part"):
                if re.fullmatch(r"\..+\.\d+\.part", part.name):  # `write_whole`'s, of a process that was killed
                    part.unlink()
        elif any(self.path.iterdir()):
            raise ValueError(
                f"{self.path} is not empty, and what it holds is no run of this command; name a new folder"
            )
        else:
            write_whole(record, lambda part: part.write_text(json.dumps(self.identity, indent=1) + "\n"))

    def leave(self) -> None:
        os.close(self.lock)
        for path in self.made:
            with contextlib.suppress(OSError):  # somebody else has come
                path.rmdir()

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is not None and {path.name for path in self.path.iterdir()} <= {"training.json"}:
            (self.path / "training.json").unlink(missing_ok=True)
        else:
            self.made = []
        self.leave()


def read_record(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    except ValueError:
        pass
    raise ValueError(f"{path} is no record of a run; name another folder")


def read_draws(path: Path, device: torch.device) -> Any:
    try:
        with torch.serialization.safe_globals(SAFE):
            return torch.load(path, weights_only=True, map_location=device)
    except Exception as error:  # torch raises what it likes
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} holds no draws ({reason}); remove it, and they are drawn again") from None


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
        depends = {name: value for name, value in settings.items() if name != "slots"}  # how many at a time
        drawn, tokens, told = 0, 0, flat({"sampler": sampler, "args": args, **depends})
        parts = []
        for at in range(0, len(prompts), block):
            own, named = prompts[at : at + block], keys[at : at + block]
            mark = digest([told, [list(map(int, prompt)) for prompt in own], named])
            path = folder / "draws" / f"{mark}.pt"
            if path.exists():
                parts.append(read_draws(path, model.device))
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
