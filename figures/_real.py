"""What the figures of the real model share: SmolLM2 and its questions, draws that are kept, what is said of them.

The model is SmolLM2-135M-Instruct with 4-bit weights, dequantised (`make smollm2`). Questions are those of
`toy/questions.py`, of a seed that was fixed before anything was drawn. What was drawn is kept in runs/real, a file for
each family, form and way of drawing, under a hash of all that it depends on (settings, prompts, stop ids, weights): so
what was cut off goes on from the last whole file, and a second figure finds what the first has drawn.
"""

import copy
import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from figures._machine import machine
from reference.checkpoints import write_whole
from reference.interface import Generation
from reference.text.text_model import TextModel
from toy import questions as Q
from toy.smollm2 import SMOLLM2
from toy.smollm2 import SOURCE as SOURCE

DEPENDS = (
    "reference/interface.py", "reference/sampling.py", "reference/randomness.py", "reference/engine",
    "reference/transformer.py", "reference/evaluation/answers.py", "toy/questions.py", "toy/smollm2.py",
    "figures/_real.py",
)  # fmt: skip
KEPT = Path(__file__).resolve().parent.parent / "runs" / "real"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOOK: dict[str, tuple[str, float]] = {}  # what was read or made since `speaker` -> machine and seconds
SEED, HORIZON, SLOTS = 0, 32, 512 if DEVICE == "cuda" else 128  # horizon: most tokens of a response
FORMS = Q.FORMS


def speaker() -> TextModel:
    if not (SMOLLM2 / "config.json").exists():
        raise SystemExit(f"{SMOLLM2} is not there; make smollm2")
    torch.set_num_threads(2)
    TOOK.clear()
    return TextModel.from_pretrained(SMOLLM2, device=DEVICE)


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


@cache
def weights() -> str:
    with open(SMOLLM2 / "model.safetensors", "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def save(path: Path, begin: float, **found: Any) -> None:
    """As JSON, with what it took since `begin`."""
    found = {"seconds": round(time.time() - begin, 1), "machine": machine(), **found}
    KEPT.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda part: part.write_text(json.dumps(found)))
    print(f"{path.name}: {found['seconds']:.0f} s", file=sys.stderr, flush=True)


def load(path: Path) -> dict:
    found = json.loads(path.read_text())
    TOOK[path.name] = found["machine"], found["seconds"]
    return found


def took() -> dict[str, float]:
    """Seconds by machine of all that a figure has read or made, whichever call of it, or of another, made it."""
    by_machine: dict[str, float] = {}
    for where, seconds in TOOK.values():
        by_machine[where] = round(by_machine.get(where, 0.0) + seconds, 1)
    return by_machine


@dataclass
class Asked:
    """The questions of a family in one form, and what is drawn for them."""

    speaker: TextModel
    family: str
    form: str
    n: int

    @cached_property
    def questions(self) -> list[Q.Question]:
        return Q.questions(self.family, self.n, SEED)

    @cached_property
    def prompts(self) -> list[list[int]]:
        return [Q.prompt_of(self.speaker, question, self.form) for question in self.questions]

    @cached_property
    def stop_ids(self) -> list[int]:
        return Q.stop_ids(self.speaker, self.form)

    def draw(
        self, how: str, sample: Callable[..., Generation], *args: Any, ids: bool = False, **settings: Any
    ) -> list[list[dict]]:
        """For each question its responses: text, tokens, log p, whether it ended, the answer read; drawn once, kept.

        ids: keep the tokens' ids too."""
        identity = {
            "how": how, "args": str(args), "settings": str(sorted(settings.items())), "horizon": HORIZON, "seed": SEED,
            "questions": digest([vars(question) for question in self.questions]), "prompts": digest(self.prompts),
            "stop_ids": digest(self.stop_ids), "weights": weights(), "dtype": "float32",
            **({"ids": True} if ids else {}),
        }  # fmt: skip
        path = KEPT / f"{self.family}-{self.form}-{how.replace('/', '_').replace(' ', '-')}-{digest(identity)}.json"
        if not path.exists():
            begin = time.time()
            settings = {"max_new_tokens": HORIZON, **settings} if not args else settings
            drawn = sample(
                self.speaker.model, self.prompts, *args, stop_ids=self.stop_ids, seed=SEED, slots=SLOTS,
                keys=[question.id for question in self.questions], **settings,
            )  # fmt: skip
            rows = [self.rows(own, cost.decoded_tokens, cost.sequential_tokens, ids)
                    for own, cost in zip(drawn.samples, drawn.costs)]  # fmt: skip
            save(path, begin, identity=identity, rows=rows)
        rows = load(path)["rows"]
        for question, own in zip(self.questions, rows):
            for one in own:  # the answer is read anew: the same responses, whatever a reader learns to read
                one["answer"] = Q.read(question, one["text"])
                one["right"] = one["answer"] == question.answer
        return rows

    def rows(self, own: Any, decoded: int, sequential: int, ids: bool) -> list[dict]:
        found = []
        for one in own:
            found.append({"text": self.speaker.tokenizer.decode(one.tokens), "tokens": len(one.tokens),
                          "logp": round(float(one.logp.double().sum()), 5), "finished": one.finished,
                          "decoded": decoded / len(own), "sequential": sequential})  # fmt: skip
            if ids:
                found[-1]["ids"] = one.tokens.tolist()
        return found


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def column(rows: list[list[dict]], name: str) -> np.ndarray:
    """[questions, responses]."""
    return np.array([[one[name] for one in own] for own in rows])


def difference(a: np.ndarray, b: np.ndarray) -> list[float]:
    """[mean, low, high] of the questions' a - b, paired: a bootstrap over questions, 2000 resamples of a fixed seed."""
    gap = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    means = np.random.default_rng(0).choice(gap, (2000, len(gap))).mean(1)
    return [float(gap.mean()), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))]


def best(rows: list[list[dict]], reward: str, n: int) -> np.ndarray:
    """Which of the first n responses to each question a self-reward chooses, the first of equal ones: int [questions].

    reward: "log-probability", "per token" or "majority" (of the answers read; a response without one has no vote)."""
    logp, tokens = column(rows, "logp")[:, :n], column(rows, "tokens")[:, :n]
    if reward == "majority":
        answers = [[one["answer"] for one in own[:n]] for own in rows]
        votes = [[own.count(answer) if answer is not None else 0 for answer in own] for own in answers]
        return np.array(votes).argmax(1)
    return (logp if reward == "log-probability" else logp / tokens.clip(min=1)).argmax(1)


# ---------------------------------------------------------------------------------------------------------------------
# Whatever else takes minutes


def kept(name: str, depends: Any, compute: Callable[[], Any]) -> Any:
    """What `compute` returns, as JSON, or what an earlier call left in runs/real.

    depends: what it depends on besides the weights."""
    path = KEPT / f"{name.replace(', ', '-')}-{digest([weights(), str(depends)])}.json"
    if not path.exists():
        begin = time.time()
        save(path, begin, found=compute())
    return load(path)["found"]


def trained(name: str, depends: Any, learn: Callable[[], Any], base: Any) -> Any:
    """The model that `learn` trains, or the one that an earlier call left in runs/real: its merged weights.

    depends: what it depends on besides the weights that it begins with."""
    path = KEPT / f"trained-{name}-{digest([weights(), str(depends)])}.pt"
    if not path.exists():
        begin, state = time.time(), learn().state_dict()
        KEPT.mkdir(parents=True, exist_ok=True)
        save(path.with_suffix(".json"), begin)
        write_whole(path, lambda part: torch.save(state, part))
    load(path.with_suffix(".json"))
    model = copy.deepcopy(base)
    model.load_state_dict(torch.load(path, map_location=base.device, weights_only=True))
    return model
