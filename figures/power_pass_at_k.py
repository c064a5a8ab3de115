"""pass@k on the relay task: is one of k responses right? From the model, at temperature 1/4, and from chains for p^4.

The unbiased estimate from n = 64 responses of each problem (`reference/evaluation/statistics.py`); bands are bootstrap
intervals over problems. A distribution that is sharper gives better single responses and fewer different ones.
"""

import matplotlib.pyplot as plt
import numpy as np

from figures._style import BY_METHOD
from figures.demo import CHECKPOINT, HORIZON, KINDS, World
from reference.evaluation.statistics import accuracy, pass_at_k
from reference.power_sampling import PowerConfig, power_sample
from reference.text.text_model import TextModel
from toy.relay import make_problems

DEPENDS = (
    "reference/interface.py", "reference/sampling.py", "reference/engine", "reference/randomness.py",
    "reference/transformer.py", "reference/power_sampling.py", "reference/evaluation/statistics.py", "toy/relay.py",
    "toy/checkpoint/model.safetensors", "figures/power_pass_at_k.py",
)  # fmt: skip
PROBLEMS, RESPONSES, STEPS, SEED = 200, 64, 100, 0
SIZES = (1, 2, 4, 8, 16, 32, 64)


def compute() -> dict:
    world = World(TextModel.from_pretrained(CHECKPOINT), make_problems(PROBLEMS, seed=SEED + 1000))
    kinds = np.array([problem.kind for problem in world.problems])
    drawn = {
        "model": world.sample(RESPONSES),
        "temperature": world.sample(RESPONSES, 0.25),
        "power": power_sample(
            world.text_model.model, world.prompts, PowerConfig(4.0, block=HORIZON, steps=STEPS, max_new_tokens=HORIZON),
            stop_ids=world.text_model.stop_ids, samples_per_prompt=RESPONSES, slots=2048, seed=SEED,
            keys=[problem.id for problem in world.problems],
        ),
    }  # fmt: skip
    curves = {}
    for law, out in drawn.items():
        correct = world.right(out.samples).sum(1).astype(int)
        at = {k: np.array([pass_at_k(RESPONSES, int(c), k) for c in correct]) for k in SIZES}
        groups = {"all": np.ones(len(kinds), bool)} | {kind: kinds == kind for kind in KINDS}
        curves[law] = {group: [accuracy(at[k][mask]) for k in SIZES] for group, mask in groups.items()}
    counts = {"all": PROBLEMS} | {kind: int((kinds == kind).sum()) for kind in KINDS}
    return {"seed": SEED, "responses": RESPONSES, "steps": STEPS, "counts": counts, "curves": curves}


LAWS = {
    "model": ("the model, temperature 1", BY_METHOD["one response"], "^"),
    "temperature": ("temperature 1/4", BY_METHOD["low temperature"], "s"),
    "power": ("chains for p^4, {steps} steps", BY_METHOD["power"], "o"),
}  # fmt: skip


def draw(result: dict):
    figure, axes = plt.subplots(1, 4, figsize=(14, 4), sharey=True, layout="constrained")
    for axis, (group, count) in zip(axes, result["counts"].items()):
        for law, (label, colour, marker) in LAWS.items():
            mean, low, high = np.array(result["curves"][law][group]).T
            axis.fill_between(SIZES, low, high, color=colour, alpha=0.15, linewidth=0)
            axis.plot(SIZES, mean, f"{marker}-", color=colour, markersize=5, label=label.format(**result))
        axis.set(title=f"{group} ({count} problems)", xscale="log", xlabel="k, responses per problem", ylim=(0, 1.03))
        axis.set_xticks(SIZES, SIZES)
        axis.minorticks_off()
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("pass@k (95 % interval over problems)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(
        "pass@k: where the likeliest response is right, sharper distributions are right sooner; their tries differ less"
    )
    return figure
