"""Tokens decoded per token returned: counted, exactly expected, and by the paper's formula N T/(4B) (Eq. 12).

left    records of one length T = 64, no savings: T + N Σ (h_k + 1)/2 against the paper, over the block
middle  records whose lengths vary, a one-letter model with a gamma distribution of lengths of mean 24, horizon 96,
blocks of
        24, α = 1 (so that the distribution of lengths stays the model's): the more they vary, the more tokens (E[T²]
        counts)
right   the relay model, α = 1, 2, 4, one block: what is left of the tokens with each of the two exact savings
"""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import gamma

from figures.demo import CHECKPOINT, HORIZON, World
from reference.power_sampling import PowerConfig, power_sample
from reference.text.text_model import TextModel
from theory.cost import expected_tokens, paper_tokens, tokens
from toy.relay import make_problems
from toy.tabular import TabularLM

DEPENDS = (
    "reference/interface.py", "reference/sampling.py", "reference/engine", "reference/randomness.py",
    "reference/transformer.py", "reference/power_sampling.py", "theory/cost.py", "theory/suffix_mh.py",
    "toy/tabular.py", "toy/relay.py", "toy/checkpoint/model.safetensors", "figures/power_tokens.py",
)  # fmt: skip
SEED, STEPS, LENGTH, BLOCKS = 0, 10, 64, (4, 8, 16, 32, 64)
MEAN, LONGEST, BLOCK, SPREADS = 24, 96, 24, (0.1, 0.25, 0.5, 0.75, 1.0)
CHAINS, PROBLEMS, TOY_STEPS, ALPHAS = 300, 60, 50, (1.0, 2.0, 4.0)
SAVINGS = {
    "off": (False, False), "early reject": (False, True), "first-divergence skip": (True, False), "both": (True, True)
}  # fmt: skip


def mean_interval(values) -> tuple[float, float, float]:
    values = np.asarray(values, float)
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def count(model, prompts, config: PowerConfig, savings: str, stop_ids, keys=None):
    """Decoded tokens of each chain, with the interval of their mean, and the mean length of what is returned."""
    skip, reject = SAVINGS[savings]
    config = PowerConfig(config.alpha, None, config.block, config.steps, config.max_new_tokens,
                         first_divergence_skip=skip, early_reject=reject)  # fmt: skip
    out = power_sample(model, prompts, config, stop_ids=stop_ids, slots=2048, seed=SEED, keys=keys)
    return mean_interval([cost.decoded_tokens for cost in out.costs]), float(out.samples.lengths.double().mean())


def lengths_world(spread: float) -> tuple[TabularLM, dict]:
    """One letter and the end: a record is its length, whose distribution is a gamma with this coefficient of variation.
    The model, and its conditionals after each prefix."""
    edges = gamma.cdf(np.arange(LONGEST + 1), 1 / spread**2, scale=MEAN * spread**2)
    end = np.clip(np.diff(edges) / np.maximum(1 - edges[:-1], 1e-12), 1e-12, 1 - 1e-12)
    laws = np.stack((end, 1 - end), 1)
    model = TabularLM(
        torch.from_numpy(np.log(np.concatenate((laws[:1], laws)))),  # state 0 is that of the empty text
        torch.arange(1, LONGEST + 2).clamp(max=LONGEST)[:, None].expand(-1, 2).contiguous(),
    )
    return model, {(1,) * t: np.log(law) for t, law in enumerate(laws)}


def compute() -> dict:
    even = TabularLM.iid([0.5, 0.3, 0.2])
    fixed = {}
    for block in BLOCKS:
        config = PowerConfig(1.0, block=block, steps=STEPS, max_new_tokens=LENGTH)
        fixed[block] = {
            "measured": [x / LENGTH for x in count(even, [[0]] * (CHAINS // 10), config, "off", ())[0]],
            "exact": tokens(LENGTH, block, STEPS) / LENGTH, "paper": paper_tokens(LENGTH, block, STEPS) / LENGTH,
        }  # fmt: skip
    varied: dict = {savings: {} for savings in ("off", "first-divergence skip")}
    for spread in SPREADS:
        model, conditionals = lengths_world(spread)
        config = PowerConfig(1.0, block=BLOCK, steps=STEPS, max_new_tokens=LONGEST)
        for savings in varied:
            measured, length = count(model, [[1]] * CHAINS, config, savings, [0])
            exact = expected_tokens(
                conditionals, horizon=LONGEST, alpha=1.0, block=BLOCK, steps=STEPS, cut=config.cut,
                first_divergence_skip=SAVINGS[savings][0],
            )  # fmt: skip
            varied[savings][spread] = {"measured": [x / MEAN for x in measured], "exact": exact / MEAN}
    text_model = TextModel.from_pretrained(CHECKPOINT)
    world = World(text_model, make_problems(PROBLEMS, seed=SEED + 1000))
    toy: dict[float, dict[str, Any]] = {}
    for alpha in ALPHAS:
        config = PowerConfig(alpha, block=HORIZON, steps=TOY_STEPS, max_new_tokens=HORIZON)
        toy[alpha] = {}
        for savings in SAVINGS:
            keys = [problem.id for problem in world.problems]
            measured, length = count(text_model.model, world.prompts, config, savings, text_model.stop_ids, keys)
            toy[alpha][savings] = [x / length for x in measured]
    return {
        "seed": SEED, "steps": STEPS, "length": LENGTH, "mean": MEAN, "horizon": LONGEST, "block": BLOCK,
        "paper": paper_tokens(MEAN, BLOCK, STEPS) / MEAN, "toy_steps": TOY_STEPS, "toy_horizon": HORIZON,
        "fixed": fixed, "varied": varied, "toy": toy,
    }  # fmt: skip


BLUE, RED, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"


def draw(result: dict):
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.8), layout="constrained")

    def points(axis, x, rows, colour, label):
        mean, low, high = np.array(rows).T
        axis.errorbar(x, mean, (mean - low, high - mean), fmt="o", color=colour, capsize=3, markersize=5, label=label)

    x = [int(block) for block in result["fixed"]]
    rows = list(result["fixed"].values())
    left.plot(x, [row["exact"] for row in rows], color=BLUE, label="exact: 1 + (N/T) Σ (h_k + 1)/2")
    left.plot(x, [row["paper"] for row in rows], "--", color=RED, label="paper: N T/(4B)")
    points(left, x, [row["measured"] for row in rows], BLUE, "counted, savings off")
    left.set_xscale("log", base=2)
    left.set_yscale("log")
    left.set_xticks(x, x)
    left.set_yticks(*[(2, 5, 10, 20, 40)] * 2)
    left.minorticks_off()
    left.set(title=f"Every record {result['length']} tokens long", xlabel="B, tokens per block")

    for (savings, found), colour in zip(result["varied"].items(), (BLUE, GREEN)):
        spreads = [float(spread) for spread in found]
        middle.plot(spreads, [row["exact"] for row in found.values()], color=colour, label=f"exact, {savings}"
                    if savings != "off" else "exact, savings off")  # fmt: skip
        points(middle, spreads, [row["measured"] for row in found.values()], colour, "counted")
    middle.axhline(result["paper"], linestyle="--", color=RED, label="paper, at the mean length")
    middle.set(title=f"Lengths vary about a mean of {result['mean']}, B = {result['block']}", ylim=(0, None),
               xlabel="coefficient of variation of the length")  # fmt: skip

    colours = dict(zip(next(iter(result["toy"].values())), (BLUE, "#E69F00", GREEN, "#CC79A7")))
    for i, found in enumerate(result["toy"].values()):
        for j, (savings, (mean, low, high)) in enumerate(found.items()):
            label = {"off": "savings off", "both": "both savings"}.get(savings, savings)
            right.bar(i + 0.2 * (j - 1.5), mean, 0.18, color=colours[savings], label=label if not i else None,
                      yerr=[[mean - low], [high - mean]], capsize=2, error_kw={"elinewidth": 0.8})  # fmt: skip
            if savings != "off":
                right.text(i + 0.2 * (j - 1.5), high * 1.08, f"{mean / found['off'][0]:.0%}", ha="center", fontsize=7)
    right.set_xticks(range(len(result["toy"])), [f"α = {float(alpha):g}" for alpha in result["toy"]])
    right.set(title=f"Relay model, {result['toy_steps']} steps (numbers: share left)", yscale="log")
    right.set_yticks(*[(2, 5, 10, 20)] * 2)
    right.minorticks_off()
    for axis in (left, middle, right):
        axis.set_ylabel("decoded tokens per returned token")
        axis.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13), fontsize=9, frameon=False)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"What a chain costs (N = {result['steps']} steps per block; points and bars: 95 % intervals)")
    return figure
