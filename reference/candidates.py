"""Candidates: what a model draws for questions, and what a judge makes of it, in blocks of questions that are saved.

A block's file is written whole or not at all, and read instead of being made again. Random numbers are addressed by
question, so neither the size of the blocks nor where a run was cut short changes anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from reference.cascade import Transcript, Verification, verify
from reference.randomness import child_seed
from reference.samples import Cost, Samples
from reference.text_model import TextModel
from reference.transformer import write_whole

if TYPE_CHECKING:
    from reference.self_verified_distillation import SVDConfig


@dataclass(frozen=True)
class Candidates:
    """What a round drew, and what its judge said of it."""

    samples: Samples  # [questions, n]
    texts: list[list[str]]  # [question][candidate]
    verification: Verification
    transcripts: list[Transcript]  # what the judge wrote, if it is to be replayed
    costs: list[Cost]  # of drawing, per question; the judge's are `verification.costs`

    @property
    def cost(self) -> Cost:
        return Cost.parallel(a + b for a, b in zip(self.costs, self.verification.costs))


def collect(
    author: TextModel, judge: TextModel, questions: Sequence[str], config: SVDConfig, *, seed: int = 0,
    keys: Sequence[int | str] | None = None, folder: Path | None = None, **settings: Any,
) -> Candidates:  # fmt: skip
    """n candidates of each question by the author, verified by the judge, in blocks of questions."""
    keys = list(keys if keys is not None else range(len(questions)))
    blocks = []
    for begin in range(0, len(questions), config.block):
        part = slice(begin, begin + config.block)
        file = folder and folder / f"questions-{begin}.pt"
        if file and file.exists():
            blocks.append(load_block(file))
            continue
        texts, drawn = author.ask(
            "author", [{"question": question} for question in questions[part]], samples_per_prompt=config.n,
            max_new_tokens=config.tokens, temperature=config.temperature, top_p=config.top_p, keys=keys[part],
            seed=child_seed(seed, "draw"), **settings,
        )  # fmt: skip
        transcripts: list[Transcript] | None = [] if config.replay else None
        verification = verify(judge, questions[part], texts, config.cascade, seed=child_seed(seed, "verify"),
                              keys=keys[part], transcripts=transcripts, **settings)  # fmt: skip
        blocks.append(Candidates(drawn.samples, texts, verification, transcripts or [], drawn.costs))
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, lambda part, block=blocks[-1]: torch.save(packed(block), part))
    return joined(blocks)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def packed(block: Candidates) -> dict[str, Any]:
    """A block of plain values, to be saved."""
    record = block.verification
    return {
        "samples": [tensor.cpu() for tensor in block.samples.tensors()], "texts": block.texts,
        "verification": {name: value for name, value in vars(record).items() if name != "costs"},
        "transcripts": [(call.key, call.stage, call.prompt, call.reply) for call in block.transcripts],
        "costs": [[tuple(vars(cost).values()) for cost in costs] for costs in (block.costs, record.costs)],
    }  # fmt: skip


def load_block(file: Path) -> Candidates:
    """ValueError: the file is no block of candidates."""
    try:
        return unpacked(torch.load(file, weights_only=True))
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{file} is not a block of candidates ({reason}); remove it") from None


def unpacked(kept: dict[str, Any]) -> Candidates:
    drawn, judged = ([Cost(*cost) for cost in costs] for costs in kept["costs"])
    transcripts = [Transcript(*call) for call in kept["transcripts"]]
    record = Verification(**kept["verification"], costs=judged)
    return Candidates(Samples(*kept["samples"]), kept["texts"], record, transcripts, drawn)


def joined(blocks: Sequence[Candidates]) -> Candidates:
    """The blocks' questions, one after another."""
    samples = [[tensor.cpu() for tensor in block.samples.tensors()] for block in blocks]
    records = [block.verification for block in blocks]
    static, votes, calls, tokens = (
        torch.cat([getattr(record, name) for record in records]) for name in ("static", "votes", "calls", "tokens")
    )
    costs = [cost for record in records for cost in record.costs]
    return Candidates(
        Samples(*map(torch.cat, zip(*samples))), [own for block in blocks for own in block.texts],
        Verification(records[0].stages, records[0].policy, static, votes, calls, tokens, costs),
        [call for block in blocks for call in block.transcripts], [cost for block in blocks for cost in block.costs],
    )  # fmt: skip
