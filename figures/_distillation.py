"""The experiments of figures/distillation.py and figures/distillation_rounds.py: filters, students and their grades.

    python -m figures._distillation      toy/results/distillation_null.json, from the null worlds' weights in runs/

(ten minutes on one core; the weights are made by `python -m toy.pretrain --world careless`, and so on, and are not
shipped). Only this file sees an answer, in `right`: the oracle keeps by it, and grades are given by it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from figures._refinement import SEEDS, by_class
from reference.cascade import CascadeConfig, verify
from reference.evaluation.statistics import accuracy
from reference.self_verified_distillation import (
    Candidates,
    SVDConfig,
    draw_candidates,
    examples,
    kept_cases,
    replayed,
    train_from,
)
from reference.text.text_model import TextModel
from reference.training.loop import FitConfig
from reference.transformer import write_whole
from reference.uq_ttc import uq_ttc
from toy import relay
from toy.abilities import RESULTS, rounded, rows_of
from toy.pretrain import CHECKPOINT

DEPENDS = (
    "reference/self_verified_distillation.py", "reference/cascade.py", "reference/interface.py",
    "reference/sampling.py", "reference/engine", "reference/text/text_model.py", "reference/training/loop.py",
    "reference/transformer.py", "reference/uq_ttc.py", "toy/relay.py", "toy/checkpoint", "figures/_distillation.py",
)  # fmt: skip
# Candidates and votes at temperature 1, so that learning all candidates leaves the model where it is. The paper's judge
# has 0.6, its author 0.8: sharper than the model, and in this world the misconception is what would be sharpened.
CASCADE = CascadeConfig(votes=5, exit="none", max_new_tokens=24, temperature=1.0, top_p=None)
CONFIG = SVDConfig(n=8, max_new_tokens=24, temperature=1.0, top_p=None, cascade=CASCADE)
QUICK = replace(CONFIG, cascade=replace(CASCADE, exit="vote"))
BATCH, STEPS, SAMPLES = 32, 100, 4
NULL, NULL_RESULTS = ("careless", "misguided"), RESULTS / "distillation_null.json"
QUESTIONS, HELDOUT, ASKED = 400, 1000, 300  # per seed: unlabeled, held-out, and those of the latter for UQ-TTC
N, V = (1, 4, 8), (1, 5)
FEWER, PROBE, ROUNDS = 200, 150, 3
MODES = {"live": (True, 0.0), "frozen": (False, 0.0), "replay": (True, 1.0)}  # (live judge, calls per kept solution)
SMALL = replace(CONFIG, n=4, cascade=replace(CASCADE, votes=3, exit="vote"))
Methods = dict[str, tuple[torch.Tensor, str]]  # name -> (accepted bool [questions, n], "first" or "all")


@dataclass(frozen=True)
class Run:
    """One seed: unlabeled questions to learn from, other problems to be graded on."""

    speaker: TextModel
    seeds: list[relay.Problem]
    heldout: list[relay.Problem]
    seed: int
    world: relay.World

    @property
    def questions(self) -> list[str]:
        return [problem.question for problem in self.seeds]

    def collect(self, config: SVDConfig = CONFIG) -> Candidates:
        return draw_candidates(self.speaker, self.speaker, self.questions, config, seed=self.seed)

    def student(self, found: Candidates, accepted: torch.Tensor, keep: str = "first") -> TextModel:
        """Trained on the kept candidates, STEPS steps however many they are."""
        kept = kept_cases(accepted, keep)
        data = examples(self.speaker, self.questions, found.samples, kept)
        return train_from(self.speaker, data, training(len(data), self.seed))[0]

    def grade(self, speaker: TextModel) -> np.ndarray:
        """Each held-out problem's share of right answers at temperature 1."""
        fields = [{"question": problem.question} for problem in self.heldout]
        texts, _ = speaker.ask("author", fields, max_new_tokens=24, samples_per_prompt=SAMPLES, seed=self.seed + 77)
        return right(self.heldout, texts).mean(1)

    @property
    def kinds(self) -> np.ndarray:
        return np.array([problem.kind for problem in self.heldout])


def runs(questions: int, heldout: int, folder: Path = CHECKPOINT, name: str = "relay") -> list[Run]:
    speaker, world = TextModel.from_pretrained(folder), relay.WORLDS[name]

    def problems(n: int, seed: int, split: str) -> list[relay.Problem]:
        return relay.make_problems(n, seed + 3000, split, world)

    return [Run(speaker, problems(questions, s, "seeds"), problems(heldout, s, "heldout"), s, world) for s in SEEDS]


def training(examples: int, seed: int) -> FitConfig:
    return FitConfig(epochs=STEPS * BATCH / examples, batch=BATCH, rate=1e-3, clip=1.0, weight_decay=0.0,
                     schedule="cosine", seed=seed)  # fmt: skip


def right(problems: Sequence[relay.Problem], texts: Sequence[Sequence[str]]) -> np.ndarray:
    """bool [problems, n]."""
    return np.array([[relay.answer(text) == each.answer for text in own] for each, own in zip(problems, texts)])


def filters(found: Candidates, truth: np.ndarray) -> dict[str, torch.Tensor]:
    """bool [questions, n] by name, from one record; `truth` is for the oracle alone."""
    record = found.verification
    single = {f"{name} alone": record.accepted(stages=[name]) for name in record.stages}
    return {"no filter": record.static, **single, "cascade": record.accepted(), "oracle": torch.tensor(truth)}


def flawless(run: Run, found: Candidates) -> torch.Tensor:
    """bool [questions, n]: what an oracle of every step would keep; the oracle of answers keeps lucky guesses too."""
    world, drafts = run.world, rows_of(found.samples)
    questions = np.array([world.encode(question) for question in run.questions]).repeat(drafts.shape[1], 0)
    errors = relay.classify(world, questions, drafts.reshape(-1, drafts.shape[-1]))
    return torch.from_numpy(errors == relay.ERRORS.index("right")).view(len(drafts), -1)


def kept_set(kinds: np.ndarray, accepted: torch.Tensor, truth: np.ndarray, keep: str = "first") -> dict[str, list]:
    """What is kept: of each whether it is right, and hard; of each candidate whether it is accepted; of each question
    whether it has one."""
    kept = kept_cases(accepted, keep)
    return {"right": [bool(truth[i, c]) for i, c in kept], "hard": [bool(kinds[i] == "hard") for i, _ in kept],
            "accepted": accepted.flatten().tolist(), "coverage": accepted.any(-1).tolist()}  # fmt: skip


@dataclass
class Tally:
    """One method over all seeds: held-out shares of right answers, and what was learned from."""

    scores: list[np.ndarray]
    kept: list[dict[str, list]]

    def row(self, base: list[np.ndarray], kinds: list[np.ndarray]) -> dict:
        """Rates with their intervals; the gain over the base is paired by problem, with its standard error."""
        gain = np.concatenate(self.scores) - np.concatenate(base)
        kept = {name: [x for each in self.kept for x in each[name]] for name in (self.kept or [{}])[0]}
        return {
            "accuracy": by_class(np.concatenate(self.scores), np.concatenate(kinds)),
            "seeds": [float(scores.mean()) for scores in self.scores],
            "gain": [float(gain.mean()), float(gain.std(ddof=1) / len(gain) ** 0.5)],
            "kept": len(kept.get("right", ())),
            **{name: list(accuracy([float(x) for x in kept[key]]))
               for name, key in (("precision", "right"), ("hard", "hard"), ("accepted", "accepted"),
                                 ("coverage", "coverage")) if kept.get(key)},
        }  # fmt: skip


def measure(
    some: Sequence[Run], methods: Callable[[Run, Candidates, np.ndarray], Methods], config: SVDConfig = CONFIG
) -> dict:
    """Base and students of all runs, by name. methods: (run, found, truth) -> {name: (accepted, keep)}."""
    base: list[np.ndarray] = []
    kinds: list[np.ndarray] = []
    tallies: dict[str, Tally] = {}
    for run in some:
        found = run.collect(config)
        truth = right(run.seeds, found.texts)
        base.append(run.grade(run.speaker))
        kinds.append(run.kinds)
        for name, (accepted, keep) in methods(run, found, truth).items():
            tally = tallies.setdefault(name, Tally([], []))
            tally.scores.append(run.grade(run.student(found, accepted, keep)))
            tally.kept.append(kept_set(np.array([p.kind for p in run.seeds]), accepted, truth, keep))
            print(f"seed {run.seed}, {name}: {tally.scores[-1].mean():.3f}, base {base[-1].mean():.3f}", flush=True)
    return {"base": Tally(base, []).row(base, kinds), "rows": {n: t.row(base, kinds) for n, t in tallies.items()}}


def null_worlds() -> dict:
    """The same in worlds whose reviewers are no better than authors, or worse; and in the relay world, to compare."""

    def methods(run: Run, found: Candidates, truth: np.ndarray) -> Methods:
        record = found.verification
        return {"no filter": (record.static, "first"), "cascade": (record.accepted(), "first"),
                "oracle": (torch.tensor(truth), "first")}  # fmt: skip

    config = replace(CONFIG, cascade=replace(CASCADE, votes=2, exit="vote"))  # careless judges never agree for long
    folders = {"relay": CHECKPOINT, **{name: Path("runs") / f"{name}-0" for name in NULL}}
    return {name: measure(runs(QUESTIONS, HELDOUT, at, name), methods, config) for name, at in folders.items()}


def compare_filters() -> dict:
    """A quarter of an hour on one core."""
    some = runs(QUESTIONS, HELDOUT)

    def methods(run, found, truth):
        record = found.verification
        grid = {f"{n},{v}": (record.accepted(votes=v)[:, :n], "first") for n in N for v in V
                if (n, v) != (CONFIG.n, CONFIG.cascade.votes)}  # fmt: skip
        wanted = {name: (accepted, "first") for name, accepted in filters(found, truth).items()}
        return {
            **wanted,
            "oracle of steps": (flawless(run, found), "first"),
            "cascade, all valid": (record.accepted(), "all"),
            **grid,
        }

    result = measure(some, methods)
    rows = result["rows"]
    grid = {f"{n},{v}": rows.pop(f"{n},{v}", rows["cascade"]) for n in N for v in V}
    return {
        "questions": QUESTIONS, "heldout": HELDOUT, "seeds": [run.seed for run in some], **result, "grid": grid,
        "n": CONFIG.n, "votes": CONFIG.cascade.votes, "ttc": test_time(some),
    }  # fmt: skip


def test_time(some) -> dict:
    """The cascade at inference, on the first held-out problems of each seed; a response's tokens for comparison."""
    asked = [uq_ttc(run.speaker, [problem.question for problem in run.heldout[:ASKED]], QUICK, seed=run.seed)
             for run in some]  # fmt: skip
    score = np.concatenate([right(run.heldout[:ASKED], [[text] for text in each.texts])[:, 0]
                            for run, each in zip(some, asked)])  # fmt: skip
    kinds = np.concatenate([run.kinds[:ASKED] for run in some])
    valid = torch.cat([each.valid >= 0 for each in asked]).numpy()
    single = torch.cat([each.prompts + each.pool.lengths[:, 0] for each in asked])

    def mean(name, **how):
        return float(torch.cat([getattr(each, name)(**how) for each in asked]).double().mean())

    return {
        "problems": len(score), "accuracy": by_class(score, kinds),
        "validated": list(accuracy(valid.astype(float).tolist())),
        "precision": list(accuracy(score[valid].astype(float).tolist())), "one response": float(single.double().mean()),
        **{f"{name}{', lazy' if lazy else ''}": mean(name, lazy=lazy)
           for name in ("tokens", "calls") for lazy in (False, True)},
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Rounds


def compare_judges() -> dict:
    """A quarter of an hour on one core."""
    tally: dict = {mode: [{} for _ in range(ROUNDS + 1)] for mode in MODES}

    def enter(place: dict, **found) -> None:
        for name, values in found.items():
            place.setdefault(name, []).append(values)

    for run in runs(FEWER, 500):
        drafts = run.speaker.ask("author", [{"question": p.question} for p in run.heldout], samples_per_prompt=4,
                                 max_new_tokens=24, seed=run.seed + 55)[0]  # fmt: skip
        probe = probes(run.heldout, drafts)
        base = {"scores": run.grade(run.speaker), "judge": probed(run.speaker, probe, run.seed)}
        for mode, (live, replay) in MODES.items():
            config = replace(SMALL, replay=replay)
            student = run.speaker
            enter(tally[mode][0], **base, kinds=run.kinds)
            for r in range(1, ROUNDS + 1):
                seed = 10 * run.seed + r
                judge = student if live else run.speaker
                found = draw_candidates(student, judge, run.questions, config, seed=seed)
                truth, accepted = right(run.seeds, found.texts), found.verification.accepted()
                kept = kept_cases(accepted, "first")
                data = examples(run.speaker, run.questions, found.samples, kept)
                data = data + replayed(found.transcripts, config, len(kept), seed)
                student = train_from(run.speaker, data, training(len(data), seed))[0]
                enter(tally[mode][r], scores=run.grade(student), judge=probed(student, probe, run.seed),
                      kinds=run.kinds, coverage=accepted.any(-1).tolist(),
                      precision=[bool(truth[i, c]) for i, c in kept])  # fmt: skip
                print(f"seed {run.seed}, {mode}, round {r}: {tally[mode][r]['scores'][-1].mean():.3f}", flush=True)
    return {
        "questions": FEWER, "heldout": 500, "n": SMALL.n, "votes": SMALL.cascade.votes,
        "modes": {mode: [pooled(place) for place in places] for mode, places in tally.items()},
    }  # fmt: skip


def probes(problems, drafts) -> list[tuple[str, str, bool]]:
    """PROBE right and PROBE wrong worked drafts, the first ones, at most one of each kind of a problem."""
    chosen: dict[bool, list] = {True: [], False: []}
    truth = right(problems, drafts)
    for problem, own, good in zip(problems, drafts, truth):
        for want, some in chosen.items():
            worked = [text for text, ok in zip(own, good) if ok == want and not text.startswith("=")]
            if worked and len(some) < PROBE:
                some.append((problem.question, worked[0], want))
    return chosen[True] + chosen[False]


def probed(judge, probe, seed: int) -> dict[str, dict[str, list[bool]]]:
    """One vote of each stage on each draft of the probe."""
    record = verify(judge, [q for q, *_ in probe], [[text] for _, text, _ in probe], replace(CASCADE, votes=1),
                    seed=seed + 66)  # fmt: skip
    good = torch.tensor([ok for *_, ok in probe])
    votes = record.votes[:, 0, :, 0] == 1
    return {stage: {"right": votes[good, s].tolist(), "wrong": votes[~good, s].tolist()}
            for s, stage in enumerate(record.stages)}  # fmt: skip


def pooled(place: dict) -> dict:
    """All seeds' rates with intervals."""

    def rate(lists):
        return list(accuracy([float(x) for each in lists for x in each]))

    judge = {stage: {kind: rate([each[stage][kind] for each in place["judge"]]) for kind in ("right", "wrong")}
             for stage in place["judge"][0]}  # fmt: skip
    result: dict = {"accuracy": by_class(np.concatenate(place["scores"]), np.concatenate(place["kinds"])),
              "seeds": [float(scores.mean()) for scores in place["scores"]], "judge": judge}  # fmt: skip
    if "coverage" in place:
        result |= {name: rate(place[name]) for name in ("coverage", "precision")}
        result["kept"] = sum(map(len, place["precision"]))
    return result


def main() -> None:
    text = json.dumps(rounded(null_worlds()), indent=1) + "\n"
    write_whole(NULL_RESULTS, lambda part: part.write_text(text))


if __name__ == "__main__":
    main()
