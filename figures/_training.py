"""What the figures of training share: the toy model, its problems, its training runs, and what is measured of a model.

Problems to learn from are of the split "seeds", those to be measured on of "heldout"; each algorithm seed has its own.
All weights are trained: the model is small, and LoRA is for large ones. Trained weights are kept in runs/training/
under a hash of the files that they depend on, so that a second figure finds them; without them they are trained again.
"""

import copy
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from figures.__main__ import fingerprint
from reference.evaluation.statistics import accuracy, pass_at_k
from reference.grpo import GRPOConfig, grpo
from reference.interface import Samples
from reference.power_sampling import PowerConfig, power_sample
from reference.rlhf_sharpening import RLHFConfig, dpo_sharpen, xpo
from reference.sampling import Cost, generate
from reference.self_reward import log_probability
from reference.sft_sharpening import SFTConfig, score_responses, sft_sharpen
from reference.text.text_model import TextModel
from reference.training.loop import Batches, FitConfig, Trainer, digest
from reference.transformer import write_whole
from toy import relay
from toy.abilities import RESULTS
from toy.pretrain import CHECKPOINT

DEPENDS = (
    "reference/training/loop.py", "reference/sft_sharpening.py", "reference/rlhf_sharpening.py", "reference/grpo.py",
    "reference/interface.py", "reference/best_of_n.py", "reference/power_sampling.py", "reference/sampling.py",
    "reference/engine", "reference/transformer.py", "toy/relay.py", "toy/checkpoint", "figures/_training.py",
)  # fmt: skip
SEEDS = (0, 1, 2)
KINDS = ("plain", "tempting", "hard")
HORIZON, SLOTS = 18, 1024
KEPT = Path(__file__).resolve().parent.parent / "runs" / "training"
# The paper's recipe (LoRA, rate 3e-4, clip 0.1, batch 4, 30 epochs) is for 4B weights; these are for 0.2M.
FIT = FitConfig(epochs=8, batch=64, rate=1e-3, clip=1.0, weight_decay=0.0, save_every=10**6)
LEARNED, HELDOUT = 600, 200  # problems of each seed
N, POINTS, SAMPLES = (10, 25, 50), (1, 3, 6, 12, 25, 50, 75), 8


@dataclass(frozen=True)
class World:
    """One algorithm seed: a model, problems to learn from, and problems to be measured on."""

    speaker: TextModel
    learned: list[relay.Problem]
    heldout: list[relay.Problem]
    seed: int

    def prompts(self, problems: Sequence[relay.Problem]) -> list[list[int]]:
        return [self.speaker.prompt("author", question=problem.question) for problem in problems]

    def sample(self, n: int, model=None, temperature: float = 1.0, seed: int = 100, horizon: int = HORIZON) -> Samples:
        """n responses to each held-out problem; model: None is the base."""
        return generate(
            model or self.speaker.model, self.prompts(self.heldout), samples_per_prompt=n, max_new_tokens=horizon,
            stop_ids=self.speaker.stop_ids, temperature=temperature, seed=seed, slots=SLOTS,
        ).samples  # fmt: skip

    def right(self, samples: Samples, problems: Sequence[relay.Problem] | None = None) -> np.ndarray:
        """bool [problems, n]: the task's grades."""
        decode = self.speaker.tokenizer.decode
        return np.array([[relay.answer(decode(sample.tokens)) == problem.answer for sample in own]
                         for problem, own in zip(problems or self.heldout, samples)])  # fmt: skip

    def base_logp(self, samples: Samples) -> np.ndarray:
        """log π_base(y|x), [problems, n], whoever drew them."""
        data = score_responses(self.speaker.model, self.prompts(self.heldout), samples, log_probability)
        return data.base.view(samples.tokens.shape[:2]).numpy()

    def best_of(self, samples: Samples) -> np.ndarray:
        """bool [problems]: is the likeliest of each problem's samples right?"""
        return self.right(samples.take(log_probability(samples).argmax(-1, keepdim=True)))[:, 0]

    @property
    def kinds(self) -> np.ndarray:
        return np.array([problem.kind for problem in self.heldout])


def worlds(learned: int, heldout: int, folder: Path = CHECKPOINT, seeds: Sequence[int] = SEEDS) -> list[World]:
    speaker = TextModel.from_pretrained(folder)
    return [World(speaker, relay.make_problems(learned, seed + 7000, "seeds"),
                  relay.make_problems(heldout, seed + 7000, "heldout"), seed) for seed in seeds]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Training: each gives (model, tokens sampled)

After = Callable[[Trainer], None] | None


def sft(world: World, n: int, after: After = None) -> tuple[Any, Cost]:
    out = sft_sharpen(
        world.speaker.model, world.speaker.model, world.prompts(world.learned), SFTConfig(n, max_new_tokens=HORIZON),
        minimise=Batches(replace(FIT, seed=world.seed), after=after), **common(world),
    )  # fmt: skip
    return out.policy, out.chosen.cost


def dpo(world: World, config: RLHFConfig, fit: FitConfig, after: After = None) -> tuple[Any, Cost]:
    out = dpo_sharpen(
        world.speaker.model, world.speaker.model, world.prompts(world.learned), config,
        minimise=Batches(replace(fit, seed=world.seed), after=after), **common(world),
    )  # fmt: skip
    return out.policy, out.cost


def explore(world: World, config: RLHFConfig, fit: FitConfig) -> tuple[Any, Cost]:
    """XPO's last iterate. (Which iterate has the greatest J_β would take more samples to find out.)"""
    out = xpo(
        world.speaker.model, world.speaker.model, world.prompts(world.learned), config, objective=lambda policy: 0.0,
        minimise=Batches(replace(fit, seed=world.seed)), **common(world),
    )  # fmt: skip
    return out.last, out.cost


def reinforce(world: World, config: GRPOConfig, fit: FitConfig, after: After = None) -> tuple[Any, Cost]:
    """GRPO, which alone is told what is right."""
    policy = copy.deepcopy(world.speaker.model)
    out = grpo(
        policy, world.prompts(world.learned),
        lambda index, samples: torch.from_numpy(world.right(samples, [world.learned[i] for i in index])),
        replace(config, seed=world.seed), replace(fit, seed=world.seed), stop_ids=world.speaker.stop_ids, after=after,
        slots=SLOTS,
    )  # fmt: skip
    return out.model, out.cost


def common(world: World) -> dict:
    return {"stop_ids": world.speaker.stop_ids, "seed": world.seed, "slots": SLOTS}


def kept(name: str, world: World, make: Callable[[], tuple]):
    """make()'s model, or the one that an earlier call left in runs/training/."""
    if not place(name, world).exists():
        return keep(name, world, make()[0])
    model: Any = copy.deepcopy(world.speaker.model)
    model.load_state_dict(torch.load(place(name, world), weights_only=True))
    return model


def keep(name: str, world: World, model):
    place(name, world).parent.mkdir(parents=True, exist_ok=True)
    write_whole(place(name, world), lambda part: torch.save(model.state_dict(), part))
    return model


def place(name: str, world: World) -> Path:
    model: Any = world.speaker.model
    base = [weight.sum().item() for weight in model.parameters()]
    return KEPT / f"{name}-{world.seed}-{digest((fingerprint(DEPENDS[:-1]), base, FIT, world.learned))}.pt"


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def by_class(scores: np.ndarray, kinds: np.ndarray) -> dict[str, list[float]]:
    """[mean, low, high] of problems' scores, over all and by class: bootstrap intervals over problems."""
    masks = {"all": np.full(len(kinds), True)} | {kind: kinds == kind for kind in KINDS}
    return {name: list(accuracy(scores[mask].astype(float))) for name, mask in masks.items()}


def share(after: np.ndarray, before: np.ndarray, best: np.ndarray) -> list[float]:
    """(mean after − mean before) / (mean best − mean before), scores paired by problem: with a bootstrap interval."""

    def ratio(i):
        return (after[i].mean() - before[i].mean()) / (best[i].mean() - before[i].mean())

    rng = np.random.default_rng(0)
    values = [ratio(rng.integers(len(after), size=len(after))) for _ in range(2000)]
    return [float(ratio(slice(None))), *map(float, np.quantile(values, (0.025, 0.975)))]


# ---------------------------------------------------------------------------------------------------------------------
# SFT-Sharpening


def learn(world: World, n: int) -> tuple[dict, list]:
    """What is measured of the trained model, and held-out shares of right responses at some steps."""
    curve = []

    def after(run):
        if run.step in POINTS and run.step < run.steps:
            curve.append(world.right(world.sample(4, run.model)).mean(1))

    model, cost = sft(world, n, after)
    keep(f"sft {n}", world, model)
    samples = world.sample(SAMPLES, model)
    found = {"right": world.right(samples).mean(1), "logp": world.base_logp(samples).mean(1)}
    return found | {"greedy": world.right(world.sample(1, model, 0.0))[:, 0], "tokens": cost.decoded_tokens}, curve


def before(world: World) -> dict:
    """The base: one response, the likeliest of 50, greedy decoding; and what it says of each."""
    samples, greedy = world.sample(50), world.sample(1, temperature=0.0)
    logp = world.base_logp(samples)
    return {
        "right": world.right(samples).mean(1), "best": world.best_of(samples), "greedy": world.right(greedy)[:, 0],
        "logp": logp.mean(1), "best logp": logp.max(1), "greedy logp": world.base_logp(greedy)[:, 0],
    }  # fmt: skip


def measure(found: list[World], n: tuple[int, ...] = N) -> dict:
    kinds, base = np.concatenate([world.kinds for world in found]), [before(world) for world in found]
    pooled = {name: np.concatenate([each[name] for each in base]).astype(float) for name in base[0]}
    result: dict = {
        "base": {name: by_class(pooled[name], kinds) for name in ("right", "best", "greedy")},
        "logp": {name: pooled[name].mean() for name in ("logp", "best logp", "greedy logp")}, "runs": {},
    }  # fmt: skip
    for draws in n:
        runs = [learn(world, draws) for world in found]
        after = {name: np.concatenate([run[name] for run, _ in runs]).astype(float)
                 for name in ("right", "greedy", "logp")}  # fmt: skip
        curves = [np.concatenate(points) for points in zip(*(curve for _, curve in runs))]
        result["runs"][str(draws)] = {
            "accuracy": by_class(after["right"], kinds), "greedy": by_class(after["greedy"], kinds),
            "seeds": [run["right"].mean() for run, _ in runs],
            "recovered": share(after["right"], pooled["right"], pooled["best"]),
            "recovered by seed": [share(run["right"], own["right"], own["best"])[0]
                                  for (run, _), own in zip(runs, base)],
            "logp": after["logp"].mean(), "logp by seed": [run["logp"].mean() for run, _ in runs],
            "tokens": np.mean([run["tokens"] for run, _ in runs]),
            "curve": [by_class(np.asarray(points), kinds)["all"] for points in (pooled["right"], *curves)]
            + [by_class(after["right"], kinds)["all"]],
        }  # fmt: skip
        print(f"N = {draws}: {result['runs'][str(draws)]['recovered']}", flush=True)
    return result


def compare_sft() -> dict:
    """A quarter of an hour on one core."""
    found = worlds(LEARNED, HELDOUT)
    return {"seeds": list(SEEDS), "learned": LEARNED, "heldout": HELDOUT, "steps": [0, *POINTS]} | measure(found)


# ---------------------------------------------------------------------------------------------------------------------
# Several ways to train, at equal sampled tokens

FEWER, DRAWS = 400, 10  # prompts; responses to each prompt, in all
RLHF = RLHFConfig(beta=0.5, prompts=FEWER, rounds=DRAWS // 2, pairs=DRAWS // 2, max_new_tokens=HORIZON)  # p^3
REGRESS = replace(FIT, batch=16, epochs=3, schedule="cosine")
GRPO = GRPOConfig(rounds=8, prompts=32, group=16, max_new_tokens=HORIZON)  # 4096 responses; 4000 by the others
REINFORCE = replace(FIT, batch=128, rate=5e-4, schedule="constant")


def ways() -> dict[str, Callable[[World], tuple[Any, Cost]]]:
    return {
        "SFT": lambda world: sft(world, DRAWS),
        "DPO": lambda world: dpo(world, RLHF, REGRESS),
        "XPO": lambda world: explore(world, replace(RLHF, pairs=1), REGRESS),
        "GRPO": lambda world: reinforce(world, GRPO, REINFORCE),
    }


def compare_ways() -> dict:
    """A quarter of an hour on one core."""
    found = worlds(FEWER, HELDOUT)
    kinds, base = np.concatenate([world.kinds for world in found]), [before(world) for world in found]
    pooled = {name: np.concatenate([each[name] for each in base]).astype(float) for name in base[0]}
    result: dict = {
        "seeds": list(SEEDS), "learned": FEWER, "draws": DRAWS, "heldout": HELDOUT, "beta": RLHF.beta,
        "base": {name: by_class(pooled[name], kinds) for name in ("right", "best", "greedy")},
        "logp": {"right": pooled["logp"].mean(), "best": pooled["best logp"].mean()}, "ways": {},
    }  # fmt: skip
    for name, train in ways().items():
        after, logp, tokens = [], [], []
        for world in found:
            model, cost = train(world)
            samples = world.sample(SAMPLES, model)
            after.append(world.right(samples).mean(1))
            logp.append(world.base_logp(samples).mean())
            tokens.append(cost.decoded_tokens)
        result["ways"][name] = {
            "accuracy": by_class(np.concatenate(after), kinds), "seeds": [each.mean() for each in after],
            "recovered": share(np.concatenate(after), pooled["right"], pooled["best"]),
            "logp": np.mean(logp), "tokens": np.mean(tokens),
        }  # fmt: skip
        print(f"{name}: {result['ways'][name]}", flush=True)
    return result


# ---------------------------------------------------------------------------------------------------------------------
# pass@k

PROBLEMS, RESPONSES, STEPS = 120, 256, 100
SIZES = tuple(2**i for i in range(9))
LONGER = replace(GRPO, rounds=24)


def compare_laws() -> dict:
    """pass@k of five distributions on the first seed's held-out problems, and the log-probabilities of some of their
    responses under the base. Ten minutes on one core."""
    (world,) = worlds(LEARNED, PROBLEMS, seeds=SEEDS[:1])
    sharp = kept("sft 50", world, lambda: sft(world, 50))
    reinforced = kept("grpo", world, lambda: reinforce(world, LONGER, REINFORCE))
    config = PowerConfig(4.0, block=HORIZON, steps=STEPS, max_new_tokens=HORIZON)
    power = power_sample(world.speaker.model, world.prompts(world.heldout), config, samples_per_prompt=RESPONSES,
                         stop_ids=world.speaker.stop_ids, slots=2048, seed=100).samples  # fmt: skip
    drawn = {"base": world.sample(RESPONSES), "temperature": world.sample(RESPONSES, temperature=0.25), "power": power,
             "sft": world.sample(RESPONSES, sharp), "grpo": world.sample(RESPONSES, reinforced)}  # fmt: skip
    right = {law: world.right(samples) for law, samples in drawn.items()}
    at = {law: np.array([[pass_at_k(RESPONSES, int(c), k) for k in SIZES] for c in grades.sum(1)])
          for law, grades in right.items()}  # fmt: skip
    edges = np.arange(-16.0, 0.51, 0.5)

    def histogram(law: str, wanted: bool) -> list[float]:
        """Shares of all of the distribution's responses, by log π_base in bins of half a nat."""
        chosen = right[law][:, :32] == wanted
        logp = world.base_logp(drawn[law].take(torch.arange(32).expand(PROBLEMS, 32)))[chosen]
        return (np.histogram(logp.clip(edges[0], edges[-1]), edges)[0] / right[law][:, :32].size).tolist()

    def minus(law: str, other: str) -> list[list[float]]:
        """[mean, low, high] of the difference, by k: paired by problem."""
        paired = at[law] - at[other]
        half = 1.96 * paired.std(0, ddof=1) / len(paired) ** 0.5
        return np.stack([paired.mean(0), paired.mean(0) - half, paired.mean(0) + half], 1).tolist()

    return {
        "problems": PROBLEMS, "responses": RESPONSES, "steps": STEPS, "sizes": list(SIZES),
        "counts": {"all": PROBLEMS} | {kind: int((world.kinds == kind).sum()) for kind in KINDS},
        "curves": {law: {group: [list(each) for each in zip(*rows)] for group, rows in curves(values, world).items()}
                   for law, values in at.items()},
        "grpo minus": {law: minus("grpo", law) for law in ("base", "temperature", "power", "sft")},
        "edges": edges.tolist(),
        "histograms": {law: {name: histogram(law, wanted) for name, wanted in (("right", True), ("wrong", False))}
                       for law in ("base", "sft", "grpo")},
    }  # fmt: skip


def curves(values: np.ndarray, world: World) -> dict[str, list]:
    """[mean, low, high] of pass@k, each by k, for all problems and by class."""
    rows = [by_class(column, world.kinds) for column in values.T]
    return {group: list(zip(*(row[group] for row in rows))) for group in rows[0]}


# ---------------------------------------------------------------------------------------------------------------------
# Best-of-N against greedy decoding, by length or class of the problem and stage of pre-training

LENGTHS, STAGES, LIFT = (3, 4, 5, 6, 7), {"early": "early", "middle": "middle", "final": "."}, 50
LIFTED = 150  # problems of each length


def compare_stages() -> dict:
    """Accuracy of best-of-50 less that of greedy decoding, by stage: for each length, and at the length that the model
    was trained on for each class. Five minutes on one core."""
    cells: dict = {}
    for stage, folder in STAGES.items():
        speaker = TextModel.from_pretrained(CHECKPOINT / folder)
        for steps in LENGTHS:
            task = relay.World(steps=steps)
            world = World(speaker, [], relay.make_problems(LIFTED, 7000, "heldout", task), 0)
            samples = world.sample(LIFT, horizon=task.draft_length)
            greedy = world.right(world.sample(1, temperature=0.0, horizon=task.draft_length))[:, 0].astype(float)
            best = world.best_of(samples).astype(float)
            cells.setdefault(stage, {})[str(steps)] = lift(best, greedy)
            if steps == relay.World().steps:
                cells[stage] |= {kind: lift(best[world.kinds == kind], greedy[world.kinds == kind]) for kind in KINDS}
    return {"problems": LIFTED, "n": LIFT, "cells": cells}


def lift(best: np.ndarray, greedy: np.ndarray) -> dict:
    mean, half = (best - greedy).mean(), 1.96 * (best - greedy).std(ddof=1) / len(best) ** 0.5
    return {"best": best.mean(), "greedy": greedy.mean(), "lift": [mean, mean - half, mean + half]}


# ---------------------------------------------------------------------------------------------------------------------
# Another pre-training seed, whose weights are not shipped


def second_seed(folder: str) -> None:
    """toy/results/second_seed_training.json: SFT-Sharpening, N = 50, one algorithm seed, on the checkpoint in `folder`.

    make toy-worlds && python -m figures._training runs/relay-1"""
    result = {"learned": FEWER, "heldout": HELDOUT, **measure(worlds(FEWER, HELDOUT, Path(folder), SEEDS[:1]), (50,))}
    text = json.dumps(result, indent=1) + "\n"
    write_whole(RESULTS / "second_seed_training.json", lambda part: part.write_text(text))


if __name__ == "__main__":
    second_seed(sys.argv[1])
