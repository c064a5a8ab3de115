"""SFT-Sharpening against the number of prompts n and of draws N, with the bound of Theorem 4.1' (2412.01951).

40 prompts, equally likely, with 32 responses each; the best one has mass 0.04 to 0.5. Which response is the best at
which prompt is one of 64 hypotheses, so a class of 64 policies holds the distribution of best-of-N under every
hypothesis, and a few prompts tell them apart. Tables, for contrast, share nothing between prompts. Sharpened: π(y*|x)
>= 1 − δ, δ = ½. The bound, with probability 1 − ρ,

    Pr_x[π̂(y*|x) < 1 − δ]  <=  2 log(|Π|/ρ) / ((1 − 2^−½)² δ n)  +  C_cov/N*,      N = N* log(2/δ)
"""

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch

from reference.sft_sharpening import FiniteClass, SFTConfig, sft_sharpen
from theory.best_of_n import best_of_n_law, c_cov
from toy.tabular import TabularLM

DEPENDS = (
    "reference/interface.py", "reference/sft_sharpening.py", "reference/best_of_n.py", "reference/sampling.py",
    "reference/engine", "toy/tabular.py", "theory/best_of_n.py", "figures/sharpening_sft.py",
)  # fmt: skip
PROMPTS, RESPONSES, HYPOTHESES, DELTA, RHO = 40, 32, 64, 0.5, 0.05
BEST = np.geomspace(0.04, 0.5, PROMPTS)  # π_base(y*|x); the other responses share the rest equally
LABELS, DRAWS = (1, 2, 4, 8, 16, 32, 64, 128, 256), (1, 2, 4, 8, 16, 32, 64, 128, 256)


def hypotheses(seed: int) -> np.ndarray:
    """Base distributions [hypotheses, prompts, responses]."""
    rng = np.random.default_rng(seed)
    best = rng.integers(RESPONSES, size=(HYPOTHESES, PROMPTS))
    is_best = np.arange(RESPONSES) == best[..., None]
    return np.where(is_best, BEST[:, None], (1 - BEST[:, None]) / (RESPONSES - 1))


def policy_of(laws: np.ndarray) -> TabularLM:
    """One token after each prompt: distributions [prompts, responses]."""
    table = np.zeros((1 + PROMPTS, PROMPTS))
    table[0], table[1:, :RESPONSES] = 1 / PROMPTS, laws / laws.sum(-1, keepdims=True)
    transition = torch.zeros(table.shape, dtype=torch.int64)
    transition[0] = 1 + torch.arange(PROMPTS)
    with np.errstate(divide="ignore"):
        return TabularLM(torch.from_numpy(np.log(table)), transition, max_length=2)


def best_law(laws: np.ndarray, n: int) -> np.ndarray:
    return np.array([best_of_n_law(law, law, n) for law in laws])


def failure(laws: np.ndarray, policy: TabularLM) -> float:
    mass = policy.logits[1:].softmax(-1).gather(1, torch.from_numpy(laws.argmax(-1))[:, None])
    return float((mass < 1 - DELTA - 1e-9).double().mean())


def run(laws: np.ndarray, n: int, draws: int, seed: int, tables: bool) -> float:
    """The share of prompts that are not sharpened."""
    rng = np.random.default_rng((n, draws, seed))
    truth = int(rng.integers(HYPOTHESES))
    asked = [[int(x)] for x in rng.integers(PROMPTS, size=n)]
    policies: Sequence[TabularLM]
    if tables:
        policies = [policy_of(np.full((PROMPTS, RESPONSES), 1 / RESPONSES))]
    else:
        policies = FiniteClass([policy_of(best_law(rows, draws)) for rows in laws])
    config = SFTConfig(draws, max_new_tokens=1)
    fitted = sft_sharpen(policy_of(laws[truth]), policies, asked, config, stop_ids=[], seed=seed, slots=4096)
    return failure(laws[truth], fitted.policy)


def compute(runs: int = 6, seed: int = 0) -> dict:
    """A minute on one core."""
    laws, many, fixed = hypotheses(seed), 128, 256
    coverage = c_cov(np.full(PROMPTS, 1 / PROMPTS), laws[0])
    of_n = {kind: {n: [run(laws, n, many, r, kind == "tables") for r in range(runs)] for n in LABELS}
            for kind in ("class", "tables")}  # fmt: skip
    return {
        "prompts": PROMPTS, "hypotheses": HYPOTHESES, "delta": DELTA, "rho": RHO, "runs": runs, "seed": seed,
        "coverage": coverage, "many": many, "fixed": fixed,
        "of_n": of_n,
        "of_draws": {k: [run(laws, fixed, k, r, False) for r in range(runs)] for k in DRAWS},
        "exact": {k: float(np.mean(1 - (1 - BEST) ** k < 1 - DELTA)) for k in range(1, 257)},
        "statistical": 2 * math.log(HYPOTHESES / RHO) / ((1 - 2**-0.5) ** 2 * DELTA),  # over n
    }  # fmt: skip


def draw(results: dict):
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.8), layout="constrained", sharey=True)
    figure.suptitle("SFT-Sharpening: prompts on which the trained policy is not sharpened, π̂(y*|x) < ½", fontsize=14)
    inner = math.log(2 / results["delta"])

    def points(axis, rows, colour, marker, label):
        x = np.array([int(key) for key in rows])
        mean, low, high = np.array([[np.mean(r), np.min(r), np.max(r)] for r in rows.values()]).T
        error = np.maximum((mean - low, high - mean), 0)
        axis.errorbar(x, mean, yerr=error, fmt=marker, color=colour, capsize=3, label=label)

    points(left, results["of_n"]["class"], "#0072B2", "o-", f"{results['hypotheses']} policies, maximum likelihood")
    points(left, results["of_n"]["tables"], "#E69F00", "s-", "tables: nothing shared between prompts")
    one = 1 / results["prompts"]  # a share below one prompt is none
    n = np.geomspace(1, 1e5, 200)
    first, rest = results["statistical"] / n, results["coverage"] * inner / results["many"]
    left.plot(n, first + rest, "k--", label="bound of Theorem 4.1'")
    left.plot(n[first >= one], first[first >= one], "k:", label="its first term, 2 log(|Π|/ρ) / (0.0858 δ n)")
    left.set(xscale="log", xlabel="prompts n", ylabel="share of prompts (mean and range of runs)",
             title=f"N = {results['many']} draws per prompt")  # fmt: skip
    points(right, results["of_draws"], "#0072B2", "o", f"{results['hypotheses']} policies, n = {results['fixed']}")
    k = np.array([int(key) for key in results["exact"]])
    right.step(k, list(results["exact"].values()), where="post", color="#0072B2", alpha=0.5,
               label="exact, for best-of-N itself")  # fmt: skip
    k = np.geomspace(1, results["coverage"] * inner / one, 200)
    right.plot(k, results["coverage"] * inner / k, "k--", label="second term of the bound, C_cov log(2/δ) / N")
    right.set(xscale="log", xlabel="draws per prompt N", title=f"C_cov = {results['coverage']:.1f}")
    for axis in (left, right):
        axis.set_yscale("symlog", linthresh=one, linscale=0.3)
        axis.set_ylim(-0.003, 2)
        axis.set_yticks([0, one, 0.1, 1], ["none", f"1 in {results['prompts']}", "0.1", "1"])
        axis.axhline(1, color="#BBBBBB", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)
    return figure
