"""The needle: e^s dull responses and 2d others, one of them the best. Rounds and samples to find it, against coverage.

Here exploring is what counts (2412.01951, §4.3): all that the base says is dull, so drawing from it (SFT, offline DPO)
takes about as many samples as there are dull responses, and XPO at most d + 1 rounds whatever their number. Finite
class of 4d policies, exact minimisation with ties at random, the needle at a random place.
"""

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

import reference.rlhf_sharpening as rlhf
from figures._style import BY_METHOD, GREY, LIGHT, tidy
from reference.rlhf_sharpening import RLHFConfig, dpo_loss, dpo_sharpen, xpo_loss, xpo_rounds
from reference.sft_sharpening import FiniteClass, Loss, SFTConfig, log_likelihood, sft_sharpen
from theory import exploration as ex
from toy.linear_softmax import LinearSoftmax, needle_class, per_response

DEPENDS = (
    "reference/interface.py", "reference/rlhf_sharpening.py", "reference/sft_sharpening.py", "reference/best_of_n.py",
    "reference/sampling.py", "reference/engine", "toy/linear_softmax.py", "theory/exploration.py",
    "figures/sharpening_needle.py",
)  # fmt: skip
D, DELTA = 8, 0.01
SIZES, SMALL = (10, 20, 40, 80, 120, 160, 200), (1, 2, 3, 4, 5, 6, 7, 8)
ROUNDS = 2 * (D + 1)


def instance(s: float, seed: int):
    rng = np.random.default_rng(seed)
    theta = torch.zeros(D, dtype=torch.float64)
    place, sign = int(rng.integers(D)), int(rng.choice([-1, 1]))
    theta[place] = sign * math.log(2)
    world = LinearSoftmax.needle(D, s, theta)
    beta = 1 / (2 * (math.log(2 / DELTA) + np.logaddexp(s, math.log(2 * D))))
    return world, 1 + place + (D if sign < 0 else 0), FiniteClass(needle_class(world, beta)), beta


def is_sharp(policy: LinearSoftmax, star: int) -> bool:
    return float(policy.law()[star]) >= math.log(1 - DELTA)


def towards_the_base(loss: Loss, policies: FiniteClass):
    """Least loss, ties to the policy nearest to the base."""
    losses = policies.losses(loss)
    tied = (losses <= losses.min() + 1e-12).nonzero()[:, 0].tolist()
    return policies[min(tied, key=lambda i: float(policies[i].theta.norm()))]


def trace(s: float, seed: int, loss=xpo_loss, minimise=None) -> list[bool]:
    """Whether the policy is sharpened after each of ROUNDS rounds."""
    world, star, policies, beta = instance(s, seed)
    original, rlhf.xpo_loss = rlhf.xpo_loss, loss
    try:
        rounds = xpo_rounds(
            world, policies, [[0]], RLHFConfig(beta=beta, rounds=ROUNDS, max_new_tokens=1), stop_ids=[],
            reward=per_response(world), minimise=minimise, seed=seed,
        )  # fmt: skip
        return [is_sharp(policy, star) for policy, _, _ in rounds]
    finally:
        rlhf.xpo_loss = original


def xpo_needs(s: float, seed: int) -> int:
    world, star, policies, beta = instance(s, seed)
    config = RLHFConfig(beta=beta, rounds=ROUNDS, max_new_tokens=1)
    rounds = xpo_rounds(world, policies, [[0]], config, stop_ids=[], reward=per_response(world), seed=seed)
    return next(t for t, (policy, _, _) in enumerate(rounds, 1) if is_sharp(policy, star))


def drawing_needs(s: float, seed: int, offline: bool) -> int:
    """The least power of two of base draws from which SFT, or offline DPO, learns the sharpened policy."""
    world, star, policies, beta = instance(s, seed)
    common: dict[str, Any] = {"stop_ids": [], "reward": per_response(world), "seed": seed, "slots": 4096}
    for k in range(1, 24):
        if offline:
            pairs = RLHFConfig(beta=beta, pairs=2 ** (k - 1), max_new_tokens=1)
            policy = dpo_sharpen(world, policies, [[0]], pairs, minimise=towards_the_base, **common).policy
        else:
            draws = SFTConfig(2**k, max_new_tokens=1)
            policy = sft_sharpen(world, policies, [[0]], draws, minimise=towards_the_base, **common).policy
        if is_sharp(policy, star):
            return 2**k
    raise ValueError(f"no sharpened policy from {2**k} draws at s = {s}")


def printed(policy, first, second, beta, alpha):
    return alpha * log_likelihood(policy, second).sum() - dpo_loss(policy, first, second, beta)


def reversed_bonus(policy, first, second, beta, alpha):
    return xpo_loss(policy, first, second, beta, -alpha)


def no_bonus(policy, first, second, beta, alpha):
    return dpo_loss(policy, first, second, beta)


VARIANTS = {
    "XPO": (xpo_loss, None),
    "no bonus, ties at random": (no_bonus, None),
    "no bonus, ties to the base": (no_bonus, towards_the_base),
    "printed sign": (printed, None),
    "reversed bonus": (reversed_bonus, None),
}


def compute(seeds: int = 40, trials: int = 5) -> dict:
    """Two minutes on one core."""
    log_coverage = {s: ex.needle_log_coverage(D, s) for s in (*SMALL, *SIZES)}
    return {
        "d": D, "seeds": seeds, "trials": trials,
        "log_coverage": log_coverage,
        "xpo": {s: [xpo_needs(s, seed) for seed in range(seeds // 2)] for s in (*SMALL[1::2], *SIZES)},
        "sft": {s: [drawing_needs(s, seed, False) for seed in range(trials)] for s in SMALL},
        "dpo": {s: [drawing_needs(s, seed, True) for seed in range(trials)] for s in SMALL},
        "printed": {s: float(np.mean([trace(s, seed, printed)[-1] for seed in range(seeds // 4)])) for s in SIZES},
        "traces": {name: np.mean([trace(40, seed, *how) for seed in range(seeds)], axis=0).tolist()
                   for name, how in VARIANTS.items()},
    }  # fmt: skip


SFT, DPO, XPO = (BY_METHOD[name] for name in ("sft", "dpo", "xpo"))
OTHERS = [BY_METHOD[name] for name in ("prefetch", "grpo", "best-of-N", "majority")]  # XPO with other bonuses


def draw(results: dict) -> dict:
    return {"": draw_draws(results), "signs": draw_signs(results)}


def draw_draws(results: dict):
    """What it takes, by coverage: where drawing can still be run, and far beyond."""
    figure, (near, far) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    d, ten = results["d"], math.log(10)
    figure.suptitle(f"The needle, d = {d}: one response of 2d + eˢ is twice as likely as the others", fontsize=14)
    place = {s: value / ten for s, value in results["log_coverage"].items()}
    x, rows = np.linspace(0, 88, 3000), results["xpo"]
    mean, low, high = np.array([[np.mean(row), min(row), max(row)] for row in rows.values()]).T
    for axis in (near, far):
        axis.plot(x, 10**x * math.log(4), color=SFT, label="SFT: C_cov log 4 draws (exact, for ¾ of the mass)")
        axis.plot(x, math.log(2) * 10**x / 1.25, "--", color=DPO, label="offline DPO: an even chance of a useful pair")
        for name, colour, marker in (("sft", SFT, "s"), ("dpo", DPO, "v")):
            axis.plot([place[s] for s in results[name]], [np.median(row) for row in results[name].values()], marker,
                      color=colour, markersize=7, fillstyle="none",
                      label=f"{name.upper()}: draws, median of {results['trials']} runs")  # fmt: skip
        axis.errorbar([place[s] for s in rows], mean, yerr=(mean - low, high - mean), fmt="o-", color=XPO, capsize=3,
                      label=f"XPO: rounds, mean and range of {len(rows['10'])}")  # fmt: skip
        axis.axhline(d + 1, color=GREY, linestyle=":", label=f"d + 1 = {d + 1} rounds")
        axis.set(yscale="log", xlabel="log₁₀ of the coverage coefficient C_cov", ylabel="responses drawn, or rounds")
        tidy(axis)
    near.set(xlim=(0.8, 5), ylim=(0.8, 1e5), title="Where drawing can be run")
    far.set(ylim=(0.8, 1e88), title="As the needle becomes rare")
    far.legend(loc="upper left", fontsize=9)
    return figure


def draw_signs(results: dict):
    """XPO with other signs of its bonus, and without."""
    figure, axis = plt.subplots(figsize=(8.5, 5), layout="constrained")
    d = results["d"]
    styles = ("-o", "-s", "-^", "-v", "--x")
    for (name, share), colour, style in zip(results["traces"].items(), (XPO, *OTHERS), styles):
        axis.plot(range(1, len(share) + 1), share, style, color=colour, label=name, markersize=5, clip_on=False)
    exact = np.cumsum([0, *[1 / d] * d]) + 1 / (2 * d)
    exact[-1] = 1
    axis.plot(range(1, d + 2), exact, "k:", label="XPO, exact distribution")
    axis.axvline(d + 1, color=LIGHT, linewidth=1)
    axis.text(d + 1.15, 0.5, "d + 1", color=GREY)
    axis.set(xlabel="round", ylabel="share of runs whose policy is sharpened now", ylim=(0, 1.02),
             title=f"The needle, C_cov = 1.2e17: XPO with other signs ({results['seeds']} runs)")  # fmt: skip
    axis.set_xticks(range(1, 2 * d + 3, 2))
    axis.annotate("printed sign, reversed bonus, no bonus with ties\nto the base: none, after a lucky first guess",
                  (10, 0.01), (9.4, 0.07), fontsize=9)  # fmt: skip
    axis.legend(loc="center right", fontsize=9)
    tidy(axis)
    return figure
