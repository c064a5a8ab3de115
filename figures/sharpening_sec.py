"""The sequential extrapolation coefficient on hypercubes: what XPO visits, what an adversary can reach, and the bounds.

SEC (2412.01951, Definition J.1; theory/exploration.py) is what XPO's number of rounds is proportional to. It is a
supremum over sequences of policies, so whatever sequence is shown is a lower bound: the policies that XPO visits, and
those of a greedy adversary, who picks the largest term from a class of 400 at each round. Both grow like log T below
bounds of order d log T, which know nothing of the 2^d responses.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import torch

from reference.rlhf_sharpening import RLHFConfig, xpo
from reference.sft_sharpening import Descend
from theory import exploration as ex
from theory.exploration import World
from toy.linear_softmax import LinearSoftmax

DEPENDS = (
    "reference/interface.py", "reference/rlhf_sharpening.py", "reference/sft_sharpening.py", "reference/sampling.py",
    "reference/engine", "toy/linear_softmax.py", "theory/exploration.py", "figures/sharpening_sec.py",
)  # fmt: skip
DIMENSIONS, DELTA, ROUNDS, VISITED, K = (3, 5, 8), 0.25, 1000, 16, 4.0


def log_laws(theta: np.ndarray, points: np.ndarray) -> np.ndarray:
    """log π_θ [policies, 1, responses]."""
    logits = theta @ points.T
    top = logits.max(1, keepdims=True)
    return (logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True)))[:, None]


def one_dimension(d: int, seed: int) -> dict:
    points = (2 * (np.arange(2**d)[:, None] >> np.arange(d) & 1) - 1) / math.sqrt(d)
    star = points[-1]
    size = math.log(2 / DELTA) + d * math.log(2)
    margin = ex.hypercube_margin(d)
    beta, ball = margin / (2 * size), 3 * size / margin
    base = log_laws(star[None], points)[0]
    world = World(np.ones(1), base, base, beta)
    regulariser = (beta * ball + 1 + beta) ** 2  # the least that the a-priori bound allows

    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(400, d))
    directions *= ball * rng.choice([0.03, 0.1, 0.3, 1.0], size=(400, 1)) / np.linalg.norm(directions, axis=1)[:, None]
    policies = log_laws(directions, points)
    first, second = ex.moments(world, policies)
    sequence = ex.greedy_sequence(first, second, ROUNDS, regulariser)
    largest = float(np.ptp(world.gap(policies), axis=-1).max())
    coverability = ex.coverability(world.prompts, np.exp(policies))

    model = LinearSoftmax.hypercube(torch.from_numpy(star))
    start = rng.normal(size=d)
    starts = [model.at(torch.from_numpy(start / np.linalg.norm(start) * ball / 2), ball)]
    config = RLHFConfig(beta=beta, alpha=1e-4, rounds=VISITED - 1, max_new_tokens=d)
    run = xpo(model, starts, [[0]], config, stop_ids=[], minimise=Descend(60), objective=lambda policy: 0.0, seed=seed)
    visited = log_laws(np.stack([policy.parameter.numpy() for policy in run.policies]), points)
    moments = ex.moments(world, visited)
    at = np.unique(np.geomspace(1, ROUNDS, 60).astype(int))  # the rounds that are drawn
    return {
        "rounds": at.tolist(),
        "responses": 2**d, "beta": beta, "regulariser": regulariser, "coverability": coverability, "largest": largest,
        "adversary": np.cumsum(ex.sec(first, second, sequence, regulariser))[at - 1].tolist(),
        "path": ex.path_bound(ex.difference_moment(world, policies, points[None])[sequence], K)[at - 1].tolist(),
        "linear": [ex.linear_bound(d, t, K) for t in at.tolist()],
        "general": [ex.coverability_bound(coverability, largest, t, regulariser) for t in at.tolist()],
        "visited": np.cumsum(ex.sec(*moments, range(len(visited)), regulariser)).tolist(),
    }  # fmt: skip


def compute(seed: int = 0) -> dict:
    """Half a minute on one core."""
    return {"seed": seed, "worlds": {d: one_dimension(d, seed) for d in DIMENSIONS}}


LINES = (  # key, colour, style, label
    ("general", "#CC79A7", "-.", "bound by coverability C: 4C f²/λ + 2C log₂ T"),
    ("linear", "#D55E00", "--", "a-priori bound, 2K/log(1+K) · d log(1+TK/d)"),
    ("path", "#E69F00", "-", "path-wise bound, log det"),
    ("adversary", "#009E73", "-", "greedy adversary, 400 policies"),
    ("visited", "#0072B2", "o-", "policies that XPO visits"),
)


def draw(results: dict):
    figure, axes = plt.subplots(1, 3, figsize=(15, 5.4), layout="constrained", sharey=True)
    figure.suptitle("The sequential extrapolation coefficient grows like d log T, whatever the number of responses")
    for axis, (d, world) in zip(axes, results["worlds"].items()):
        for key, colour, style, label in LINES:
            sums = np.where(np.array(world[key]) > 0, world[key], np.nan)  # the base itself, first visited, may have 0
            rounds = range(1, len(sums) + 1) if key == "visited" else world["rounds"]
            axis.plot(rounds, sums, style, color=colour, label=label, markersize=4)
        title = f"d = {d}: {world['responses']} responses, coverability {world['coverability']:.0f}"
        axis.set(xscale="log", yscale="log", xlabel="rounds T", title=title)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("Σ of the first T terms")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
