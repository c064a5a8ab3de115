"""Self-verified distillation: a model learns from those of its own solutions that it cannot fault (2605.26132).

For unlabeled questions q, with base π and judge J (the same model),

    y_1 .. y_n ~ π(· | q);   Accept_J(q, y): the cascade of `reference/cascade.py`, unanimous in every stage
    D = { (q, y_i) : i the first with Accept_J(q, y_i) },   questions without one dropped        ("all": every such i)
    π' = arg max Σ_D log π'(y | q)  by gradient steps from π

A round is draw, verify, train. The paper has one; in further ones the last student draws, the judge is that student
("live") or the base ("frozen"), and training starts from the base again. Learning the author's role changes the judge
too, for better or worse; `replay` mixes into D what the judge itself wrote, as many calls of each stage: self-samples,
unfiltered, which in expectation leave the judge where it is.

No answer key enters: the function is given questions, and nothing that could grade. With a folder, each block of
questions and each step of training is saved, and a run that was killed goes on to the same result.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reference.cascade import CascadeConfig, Case, Transcript, Verification, verify
from reference.interface import Cost, Samples
from reference.randomness import CHOICE, child_seed, uniform
from reference.sampling import check_settings, check_token_settings
from reference.text.identity import digest, flat
from reference.text.text_model import TextModel
from reference.training.loop import FitConfig, fit, weights_digest
from reference.training.lora import LoRAConfig, add_lora, merge_lora
from reference.training.run_folder import RunFolder
from reference.transformer import write_whole


@dataclass(frozen=True)
class SVDConfig:
    """Settings. The defaults are the paper's; for 4B it trains at FitConfig(batch=64, rate=2e-5, clip=0.2), cosine."""

    n: int = 8  # candidates of each question
    keep: str = "first"  # valid candidate of a question, or "all"
    temperature: float = 0.8
    top_p: float | None = 0.95
    max_new_tokens: int = 32768  # most tokens of a candidate
    cascade: CascadeConfig = field(default_factory=CascadeConfig)
    rounds: int = 1
    judge: str = "live"  # or "frozen": from the second round on
    replay: float = 0.0  # calls of the judge that are learned, for each kept solution
    block: int = 256  # questions that are drawn, verified and saved at a time
    seed: int = 0

    def __post_init__(self) -> None:
        """ValueError: a setting out of range."""
        least = {"n": 1, "rounds": 1, "block": 1, "replay": 0}
        check_settings(self, least=least, among={"keep": ("first", "all"), "judge": ("live", "frozen")})
        check_token_settings(self)


@dataclass(frozen=True)
class Round:
    candidates: Candidates
    kept: list[Case]  # (question, candidate)
    student: TextModel
    log: dict[str, list[float]]  # of training


def self_verified_distillation(
    speaker: TextModel,
    questions: Sequence[str],
    config: SVDConfig,
    training: FitConfig,
    *,
    lora: LoRAConfig | None = None,
    keys: Sequence[int | str] | None = None,
    folder: str | Path | None = None,
    after: Callable[[int, int, int], None] | None = None,
    **settings: Any,
) -> list[Round]:
    """The rounds; the last one's `student` is the result. The speaker itself is not changed.

    lora: adapters to train, which are merged in the end; None: all weights. keys: what addresses a question's
    randomness (default: its index). folder: where the run is saved, and goes on from. after(drawn, left, tokens):
    called after each block of questions, with how many were drawn here and are left, and the tokens decoded. settings:
    slots.
    ValueError: a question twice or none, a role or stage that the templates lack, a folder of other settings; no
    candidate accepted.
    """
    check_questions(questions)
    speaker.templates.role("author")
    depends = {
        "config": config, "training": training, "lora": lora, "weights": weights_digest(speaker.model),
        "templates": speaker.templates.name, "stop_ids": speaker.stop_ids, "questions": digest(list(questions)),
        "keys": digest(None if keys is None else list(keys)),
    }  # fmt: skip
    with nullcontext() if folder is None else RunFolder(folder, flat(depends)) as place:
        return run_rounds(speaker, questions, config, training, lora, keys, place, {**settings, "after": after})


def run_rounds(
    speaker: TextModel, questions: Sequence[str], config: SVDConfig, training: FitConfig, lora: LoRAConfig | None,
    keys: Sequence[int | str] | None, folder: Path | None, settings: dict[str, Any],
) -> list[Round]:  # fmt: skip
    rounds: list[Round] = []
    student = speaker
    for r in range(1, config.rounds + 1):
        place = folder and folder / f"round-{r}"
        judge = student if config.judge == "live" else speaker
        seed = child_seed(config.seed, "round", r)
        found = draw_candidates(student, judge, questions, config, seed=seed, keys=keys, folder=place, **settings)
        kept = kept_cases(found.verification.accepted(), config.keep)
        if not kept:
            raise ValueError(f"round {r}: {nothing_accepted(found.verification)}")
        data = examples(speaker, questions, found.samples, kept) + replayed(found.transcripts, config, len(kept), seed)
        student, log = train_from(speaker, data, training, lora, place and place / "training.pt")
        rounds.append(Round(found, kept, student, log))
    return rounds


def kept_cases(accepted: Tensor, keep: str) -> list[Case]:
    """The kept (question, candidate) of accepted bool [questions, n]: each question's first, or all."""
    if keep == "first":
        accepted = accepted & (accepted.cumsum(-1) == 1)
    return [(i, c) for i, c in accepted.nonzero().tolist()]


def examples(
    speaker: TextModel, questions: Sequence[str], samples: Samples, kept: Sequence[Case]
) -> list[tuple[list[int], Tensor]]:
    """(prompt, response) ids to be learned: responses as they were drawn, never encoded anew."""
    return [(speaker.prompt("author", question=questions[i]), samples.sample(i, c).tokens) for i, c in kept]


def replayed(
    transcripts: Sequence[Transcript], config: SVDConfig, kept: int, seed: int
) -> list[tuple[list[int], Tensor]]:
    """replay · kept of the judge's calls, at random, as nearly as many of each stage as there are."""
    keys = torch.tensor([call.key for call in transcripts], dtype=torch.int64)
    luck = uniform(child_seed(seed, "replay"), keys, torch.tensor(0), 0, 0, CHOICE).tolist()
    rank: dict[str, int] = {}  # how many of the stage have been taken: the stages take turns
    order = []
    for k in sorted(range(len(transcripts)), key=luck.__getitem__):
        stage = transcripts[k].stage
        rank[stage] = rank.get(stage, 0) + 1
        order.append((rank[stage], luck[k], k))
    chosen = [transcripts[k] for *_, k in sorted(order)[: round(config.replay * kept)]]
    return [(call.prompt, call.reply) for call in chosen]


def train_from(
    base: TextModel, data: Sequence[tuple[Sequence[int], Tensor]], training: FitConfig, lora: LoRAConfig | None = None,
    state: Path | None = None,
) -> tuple[TextModel, dict[str, list[float]]]:  # fmt: skip
    """A copy of the base, trained on data; and training's log."""
    policy = copy.deepcopy(base.model)
    if lora is not None:
        add_lora(policy, lora)
    fitted = fit(policy, data, training, state=state)
    return replace(base, model=merge_lora(fitted.model) if lora is not None else fitted.model), fitted.log


def nothing_accepted(verification: Verification) -> str:
    """Which stage rejected how many."""
    counts = verification.rejections()
    static = counts.pop("static")
    by_stage = ", ".join(f"{name} {count}" for name, count in counts.items())
    return (
        f"no candidate was accepted: of {verification.static.numel()} the static check rejected {static}, then "
        f"{by_stage} ({verification.remark}); draw more candidates (n), ask for fewer votes, or look at the stage that "
        "rejects most"
    )


def check_questions(questions: Sequence[str]) -> None:
    """ValueError: none, or one twice."""
    if not questions:
        raise ValueError("there are no questions; give at least one")
    places: dict[str, int] = {}
    for i, question in enumerate(questions):
        if places.setdefault(question, i) != i:
            raise ValueError(f"question {i} is question {places[question]} again ({question[:60]!r}); give each once")


# ---------------------------------------------------------------------------------------------------------------------
# Candidates, in blocks of questions that are saved


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


def draw_candidates(
    author: TextModel, judge: TextModel, questions: Sequence[str], config: SVDConfig, *, seed: int = 0,
    keys: Sequence[int | str] | None = None, folder: Path | None = None,
    after: Callable[[int, int, int], None] | None = None, **settings: Any,
) -> Candidates:  # fmt: skip
    """n candidates of each question by the author, verified by the judge, in blocks of questions."""
    keys = list(keys if keys is not None else range(len(questions)))
    blocks, asked, decoded = [], 0, 0
    for begin in range(0, len(questions), config.block):
        part = slice(begin, begin + config.block)
        file = folder and folder / f"questions-{begin}.pt"
        if file and file.exists():
            blocks.append(load_block(file))
            continue
        texts, drawn = author.ask(
            "author", [{"question": question} for question in questions[part]], samples_per_prompt=config.n,
            max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p, keys=keys[part],
            seed=child_seed(seed, "draw"), **settings,
        )  # fmt: skip
        transcripts: list[Transcript] | None = [] if config.replay else None
        verification = verify(judge, questions[part], texts, config.cascade, seed=child_seed(seed, "verify"),
                              keys=keys[part], transcripts=transcripts, **settings)  # fmt: skip
        blocks.append(Candidates(drawn.samples, texts, verification, transcripts or [], drawn.costs))
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, lambda part, block=blocks[-1]: torch.save(packed(block), part))
        asked, decoded = asked + len(texts), decoded + blocks[-1].cost.decoded_tokens
        if after is not None:
            after(asked, len(questions) - begin - len(texts), decoded)
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
    static, votes, calls, tokens, unread = (
        torch.cat([getattr(record, name) for record in records])
        for name in ("static", "votes", "calls", "tokens", "unread")
    )
    costs = [cost for record in records for cost in record.costs]
    return Candidates(
        Samples(*map(torch.cat, zip(*samples))), [own for block in blocks for own in block.texts],
        Verification(records[0].stages, records[0].policy, static, votes, calls, tokens, unread, costs),
        [call for block in blocks for call in block.transcripts], [cost for block in blocks for cost in block.costs],
    )  # fmt: skip
