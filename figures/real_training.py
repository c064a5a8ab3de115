"""Learning to say what sampling finds, on a real model (2412.01951, Table 1; 2510.14901, Fig. 5).

SmolLM2-135M-Instruct (4-bit weights, dequantised), adapters of rank 16 on all projections, products as chat and raw.
From 109 questions that are not measured on: SFT-Sharpening on the best of 16 own responses by log-probability,
regression-form DPO once over 4 pairs a question, XPO for three rounds, and GRPO, which alone is told what is right.
Before and after, on 100 other questions: accuracy of one response at temperature 1 and greedily, log-probability of the
responses under the base, pass@k. Settings were fixed before anything was trained; there is one seed.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from figures import _real as R
from figures._style import BY_METHOD, tidy
from reference.evaluation.statistics import accuracy, pass_at_k
from reference.grpo import GRPOConfig, grpo
from reference.interface import Samples
from reference.rlhf_sharpening import RLHFConfig, dpo_sharpen, xpo_rounds
from reference.sampling import generate, score
from reference.sft_sharpening import SFTConfig, sft_sharpen
from reference.text.text_model import TextModel
from reference.training.loop import Batches, FitConfig, weights_digest
from reference.training.lora import LoRAConfig, add_lora
from toy import questions as Q

DEPENDS = (
    *R.DEPENDS, "reference/training", "reference/sft_sharpening.py", "reference/rlhf_sharpening.py",
    "reference/grpo.py", "reference/best_of_n.py", "figures/real_training.py",
)  # fmt: skip
FAMILY, ALL, MEASURED, K = "products", 209, 100, 16
KS = (1, 2, 4, 8, 16)
FIT = FitConfig(epochs=3, batch=8, rate=3e-4, clip=1.0, weight_decay=0.0, warmup=5)
PAIRS = replace(FIT, epochs=1)  # there are four times as many, of two responses each
PREFERENCES = RLHFConfig(beta=0.5, rounds=3, prompts=32, pairs=4, max_new_tokens=R.HORIZON)
GRPO = GRPOConfig(rounds=10, prompts=8, group=16, beta=0.0, max_new_tokens=R.HORIZON)
NAMES = {
    "base": ("before", BY_METHOD["one response"]), "sft": ("SFT-Sharpening, N = 16", BY_METHOD["sft"]),
    "dpo": ("DPO (regression)", BY_METHOD["dpo"]), "xpo": ("XPO, 3 rounds", BY_METHOD["xpo"]),
    "grpo": ("GRPO, told what is right", BY_METHOD["grpo"]),
}  # fmt: skip


def learners(base: TextModel, questions: list[Q.Question], form: str) -> dict[str, Callable[[], Any]]:
    """Each trains a copy of the base, and returns it."""
    prompts = [Q.prompt_of(base, question, form) for question in questions]
    common: dict[str, Any] = {"stop_ids": Q.stop_ids(base, form), "seed": R.SEED, "slots": R.SLOTS}
    keys = [question.id for question in questions]

    def fresh() -> Any:
        return add_lora(copy.deepcopy(base.model), LoRAConfig())

    def sft() -> Any:
        config = SFTConfig(16, max_new_tokens=R.HORIZON)
        return sft_sharpen(base.model, fresh(), prompts, config, minimise=Batches(FIT), keys=keys, **common).policy

    def dpo() -> Any:
        return dpo_sharpen(
            base.model, fresh(), prompts, PREFERENCES, minimise=Batches(PAIRS), keys=keys, **common
        ).policy

    def xpo() -> Any:
        rounds = xpo_rounds(base.model, fresh(), prompts, PREFERENCES, minimise=Batches(PAIRS), **common)
        return [policy for policy, _, _ in rounds][-1]

    def reinforced() -> Any:
        def reward(index: list[int], samples: Samples) -> torch.Tensor:
            return torch.tensor([[float(Q.right(questions[i], base.tokenizer.decode(one.tokens))) for one in own]
                                 for i, own in zip(index, samples)])  # fmt: skip

        fit = FitConfig(batch=64, micro=16, rate=1e-4, clip=1.0, weight_decay=0.0, schedule="constant")
        return grpo(fresh(), prompts, reward, GRPO, fit, stop_ids=common["stop_ids"], slots=R.SLOTS).model

    return {"sft": sft, "dpo": dpo, "xpo": xpo, "grpo": reinforced}


def measure(name: str, base: TextModel, model: Any, form: str) -> dict:
    """On questions that nothing was learned from."""
    speaker = TextModel(model, base.tokenizer, base.stop_ids, base.templates)
    asked = R.Asked(speaker, FAMILY, form, MEASURED)
    mark = f"{name} {weights_digest(model)}"
    rows = asked.draw(f"after {mark}", generate, samples_per_prompt=K, ids=True)
    greedy = asked.draw(f"greedy after {mark}", generate, temperature=0.0)
    right = R.column(rows, "right")
    scored = score(base.model, asked.prompts, [own[0]["ids"] for own in rows])
    logp = [float(each.double().sum()) for each in scored]
    return {
        "accuracy": accuracy(right.mean(1)), "greedy": accuracy(R.column(greedy, "right")[:, 0].astype(float)),
        "pass": {k: accuracy([pass_at_k(K, int(c), k) for c in right.sum(1)]) for k in KS},
        "logp under the base": float(np.mean(logp)), "tokens": float(R.column(rows, "tokens").mean()),
        "right by question": right.mean(1).tolist(),
    }  # fmt: skip


def compute() -> dict:
    base = R.speaker()
    learned = Q.questions(FAMILY, ALL, R.SEED)[MEASURED:]
    forms = {}
    for form in R.FORMS:
        rows = forms[form] = {"base": measure("nothing", base, base.model, form)}
        for name, learn in learners(base, learned, form).items():
            settings = {"sft": FIT, "grpo": GRPO}.get(name, (PREFERENCES, PAIRS))
            model = R.trained(f"{name}-{form}", (FAMILY, settings), learn, base.model)
            rows[name] = measure(name, base, model, form)
        for row in rows.values():
            row["gain"] = R.difference(np.array(row["right by question"]), np.array(rows["base"]["right by question"]))
    return {"model": R.SOURCE, "family": FAMILY, "learned": len(learned), "measured": MEASURED, "seed": R.SEED,
            "took": R.took(), "forms": forms}  # fmt: skip


def table(result: dict) -> str:
    lines = [
        f"{result['model']}; {result['family']}, {result['learned']} to learn from, {result['measured']} others asked",
        f"{'':31}{'one response':>13}{'gain':>22}{'greedy':>8}{'pass@16':>9}{'log p, base':>13}{'tokens':>8}",
    ]
    for form, rows in result["forms"].items():
        for name, row in rows.items():
            mean, low, high = row["gain"]
            gain = "" if name == "base" else f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
            best, logp = row["pass"][str(K)][0], row["logp under the base"]
            rest = f"{row['greedy'][0]:8.2f}{best:9.2f}{logp:13.2f}{row['tokens']:8.1f}"
            lines.append(f"{form:6}{NAMES[name][0]:25}{row['accuracy'][0]:13.2f}{gain:>22}{rest}")
    return "\n".join(lines)


def draw(result: dict):
    figure, axes = plt.subplots(2, 2, figsize=(12, 8), sharex="col", sharey="col", layout="constrained")
    for (left, right), (form, rows) in zip(axes, result["forms"].items()):
        for i, (name, row) in enumerate(rows.items()):
            called, colour = NAMES[name]
            for j, key in enumerate(("accuracy", "greedy")):
                mean, low, high = row[key]
                left.bar(i + 0.4 * j - 0.2, mean, 0.36, color=colour, alpha=1 if j == 0 else 0.5,
                         yerr=[[mean - low], [high - mean]], ecolor="#444444", capsize=2)  # fmt: skip
            mean, low, high = np.array(list(row["pass"].values())).T
            right.plot(KS, mean, "o-", color=colour, markersize=4, label=called)
            right.fill_between(KS, low, high, color=colour, alpha=0.12, linewidth=0)
        left.set_xticks(range(len(rows)), [NAMES[name][0].replace(", ", ",\n").replace(" (", "\n(") for name in rows])
        left.set(ylabel="accuracy (95 %)", title=f"{form}: one response at temperature 1 (pale: greedy)")
        right.set(xscale="log", ylabel="pass@k (95 %)", ylim=(0, 1.02), title=f"{form}: pass@k")
        right.set_xticks(KS, KS)
        right.minorticks_off()
        tidy(left, right)
    axes[0, 1].legend(fontsize=9)
    axes[1, 1].set_xlabel("k, responses to a question")
    figure.suptitle(f"{result['family'].capitalize()}: {result['model']}, before and after training")
    return figure
