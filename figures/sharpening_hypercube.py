"""Samples to sharpen on the hypercube against its dimension: best-of-N needs 2^d/e, regression and exploration about d.

2412.01951, Example J.1 with the corners of a cube for its packing. The base is π_θ at θ = y*, a random corner;
sharpened means π(y*) > 3/4. Offline DPO solves this instance as well as XPO does: its rewards are linear, so d
independent pairs are enough. The needle (figures/sharpening_needle.py) tells the two apart.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import torch

from figures._style import BY_METHOD
from reference.best_of_n import best_of_n
from reference.rlhf_sharpening import RLHFConfig, dpo_sharpen, xpo_rounds
from reference.sft_sharpening import Descend
from theory import exploration as ex
from toy.linear_softmax import LinearSoftmax

DEPENDS = (
    "reference/interface.py", "reference/rlhf_sharpening.py", "reference/sft_sharpening.py", "reference/best_of_n.py",
    "reference/sampling.py", "reference/engine", "toy/linear_softmax.py", "theory/exploration.py",
    "figures/sharpening_hypercube.py",
)  # fmt: skip
MASS, DELTA = 0.75, 0.25
ENUMERATED, CLOSED = range(2, 21), range(2, 65)
DRAWN, TRAINED = (2, 4, 6, 8, 10), (4, 6, 8, 10, 12, 16)


def instance(d: int, seed: int):
    """Base, a starting point in the ball of Theorem J.3 and its β."""
    rng = np.random.default_rng((d, seed))
    star = torch.from_numpy(rng.choice([-1.0, 1.0], d) / math.sqrt(d))
    size = math.log(2 / DELTA) + d * math.log(2)
    beta, ball = ex.hypercube_margin(d) / (2 * size), 3 * size / ex.hypercube_margin(d)
    start = rng.normal(size=d)
    base = LinearSoftmax.hypercube(star)
    return base, base.at(torch.from_numpy(start / np.linalg.norm(start) * ball / 2), ball), beta


def solved(base: LinearSoftmax, policy: LinearSoftmax) -> bool:
    d = len(base.theta)
    return float(torch.sigmoid(2 * policy.parameter * base.theta.sign() / math.sqrt(d)).prod()) > MASS


def xpo_needs(d: int, seed: int) -> int | None:
    base, start, beta = instance(d, seed)
    config = RLHFConfig(beta=beta, alpha=1e-4, rounds=3 * d, max_new_tokens=d)
    rounds = xpo_rounds(base, [start], [[0]], config, stop_ids=[], minimise=Descend(60), seed=seed)
    return next((t for t, (policy, _, _) in enumerate(rounds, 1) if solved(base, policy)), None)


def dpo_needs(d: int, seed: int) -> int | None:
    base, start, beta = instance(d, seed)
    for n in range(1, 4 * d):
        config = RLHFConfig(beta=beta, pairs=n, max_new_tokens=d)
        trained = dpo_sharpen(base, [start], [[0]], config, stop_ids=[], minimise=Descend(60), seed=seed)
        if solved(base, trained.policy):
            return n
    return None


def first_hits(d: int, runs: int) -> list[int]:
    """The number of draws until y*, in each of `runs` pools of 6 C_cov draws (missing in one of 400: left out)."""
    base, _, _ = instance(d, 0)
    pool = best_of_n(
        base, [[0]] * runs, n=math.ceil(6 * ex.hypercube_coverage(d)), max_new_tokens=d, stop_ids=[], slots=2048, seed=d
    ).pool
    assert pool is not None
    hit = (pool.tokens == (base.theta > 0)).all(-1)
    return [int(row.nonzero()[0]) + 1 for row in hit if row.any()]


def enumerated_coverage(d: int) -> float:
    """1/π_base(y*) by summing exp⟨φ, θ⟩ over all 2^d corners."""
    scores = np.zeros(1)
    for _ in range(d):
        scores = np.add.outer(scores, [-1 / d, 1 / d]).ravel()
    return float(np.exp(scores - scores.max()).sum())


def compute(seeds: int = 5) -> dict:
    """Two minutes on one core."""
    return {
        "coverage": {"enumerated": {d: enumerated_coverage(d) for d in ENUMERATED},
                     "closed": {d: ex.hypercube_coverage(d) for d in CLOSED}},
        "best_of_n": {"draws": {d: ex.draws_for(MASS, ex.hypercube_coverage(d)) for d in CLOSED},
                      "first_hits": {d: first_hits(d, 40) for d in DRAWN}},
        "xpo": {d: [xpo_needs(d, seed) for seed in range(seeds)] for d in TRAINED},
        "dpo": {d: [dpo_needs(d, seed) for seed in range(seeds)] for d in TRAINED},
        "sec_bound": {d: ex.linear_bound(d, 2 * d, 4.0) for d in CLOSED},
        "seeds": seeds,
    }  # fmt: skip


def draw(results: dict):
    figure, axis = plt.subplots(figsize=(9.5, 6), layout="constrained")

    def line(rows: dict, style: str, label: str | None, **more):
        axis.plot([int(d) for d in rows], list(rows.values()), style, label=label, **more)

    line(
        results["coverage"]["closed"],
        "-",
        "coverage C_cov: closed form, points: enumerated",
        color="#999999",
        linewidth=5,
        alpha=0.5,
    )
    line(results["coverage"]["enumerated"], "o", None, color="#555555", markersize=4)
    line(
        results["best_of_n"]["draws"],
        "-",
        "best-of-N, so SFT: N for ¾ of the mass, exact",
        color=BY_METHOD["best-of-N"],
    )
    hits = results["best_of_n"]["first_hits"]
    mean = np.array([np.mean(row) for row in hits.values()])
    error = np.array([1.96 * np.std(row) / math.sqrt(len(row)) for row in hits.values()])
    axis.errorbar([int(d) for d in hits], mean, yerr=error, color=BY_METHOD["best-of-N"], fmt="s", capsize=3,
                  label="best-of-N: draws until y*, mean of 40 runs, 95 %")  # fmt: skip
    zoom = axis.inset_axes((0.6, 0.2, 0.39, 0.36))
    for name, colour, marker, shift, label in (
        ("dpo", BY_METHOD["dpo"], "v", -0.12, "offline DPO: draws (two a pair), mean and range"),
        ("xpo", BY_METHOD["xpo"], "o", 0.12, "XPO: draws (two a round), mean and range"),
    ):
        rows = {int(d): 2 * np.array([n for n in row if n], dtype=float) for d, row in results[name].items()}
        mean = np.array([row.mean() for row in rows.values()])
        spread = np.abs([[row.min(), row.max()] for row in rows.values()] - mean[:, None]).T
        for into in (axis, zoom):
            into.errorbar(
                np.array([*rows]) + shift, mean, yerr=spread, fmt=marker, color=colour, capsize=3, label=label
            )
    zoom.plot([2, 18], [4, 36], ":", color="#555555")
    zoom.text(15.5, 33, "2d draws", color="#555555", ha="right")
    zoom.set_xticks([4, 8, 12, 16])
    zoom.set_title("the same, linear scale", fontsize=9)
    line(results["sec_bound"], "--", "bound on SEC over 2d rounds, of order d", color=BY_METHOD["xpo"])
    axis.set(yscale="log", xlabel="dimension d (2^d responses)", ylabel="responses drawn, or coefficient",
             ylim=(1, 1e20), xlim=(1, 65),
             title="The hypercube: what it takes to put ¾ of the mass on the best response")  # fmt: skip
    axis.set_xticks([4, 8, 12, 16, 20, 32, 48, 64])
    for into in (axis, zoom):
        into.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="upper left", fontsize=9)
    return figure
