"""Coverage is what best-of-N needs (2412.01951, Proposition C.1), and where pass@k gets its power law (2502.17578).

Left: the probability that best-of-N does not return the most likely response. One prompt of mass p fails with (1-p)^N
and touches C_cov/(eN) = 1/(epN) near N = 1/p; a mixture of prompts falls much more slowly, below its own line. Right:
1 - pass@k over prompts whose chance p of a right response is Beta(a, b). Lines are formulas; points are responses that
`best_of_n` and `generate` draw from tabular models: 95 % intervals, on the right over prompts.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from reference.best_of_n import best_of_n
from reference.evaluation.statistics import accuracy, pass_at_k
from reference.sampling import generate
from theory.best_of_n import c_cov, failure_bound
from theory.sample_complexity import beta_c_cov, beta_failure, beta_tail, mixture_failure
from toy.tabular import TabularLM

DEPENDS = (
    "reference/interface.py", "reference/sampling.py", "reference/engine", "reference/best_of_n.py",
    "reference/evaluation/statistics.py", "reference/randomness.py", "theory/best_of_n.py",
    "theory/sample_complexity.py", "toy/tabular.py", "figures/coverage.py",
)  # fmt: skip
NS, DRAWS, SEED = (1, 2, 4, 8, 16, 32, 64, 128), 1000, 0
WORLDS = {  # masses of y* at the prompts, all equally likely
    "one prompt, p = 0.2": [0.2],
    "one prompt, p = 0.03": [0.03],
    "50 prompts, p from 0.007 to 0.50": stats.beta(1.5, 8).ppf((np.arange(50) + 0.5) / 50).tolist(),
}
PROMPTS, SAMPLES, KS = 400, 128, (1, 2, 4, 8, 16, 32, 64, 128)
SHAPES = ((0.4, 1.0), (1.0, 3.0), (2.0, 6.0))  # a, b


def model_with(masses: list[float], others: int) -> TabularLM:
    """Prompt (x) is answered by one token: 0 with masses[x], each of `others` with an equal share of the rest."""
    size = max(len(masses), others + 1)
    laws: dict[tuple[int, ...], np.ndarray] = {}
    for x, p in enumerate(masses):
        laws[(x,)] = np.zeros(size)
        laws[(x,)][: others + 1] = np.append(p, np.full(others, (1 - p) / others))
    return TabularLM.tree(laws, size)


def failures(masses: list[float], n: int) -> tuple[float, float, float]:
    """The share of `DRAWS` runs of best-of-N that end outside y*, with its interval."""
    model, repeat = model_with(masses, others=200), DRAWS // len(masses)
    assert min(masses) > 1 / 201  # so that y* is token 0
    prompts = [[x] for x in range(len(masses))] * repeat
    best = best_of_n(model, prompts, n=n, max_new_tokens=1, stop_ids=(), seed=SEED)
    return accuracy((best.samples.tokens[:, 0, 0] != 0).double().tolist())


def pass_at_ks(a: float, b: float) -> dict[str, tuple[float, float, float]]:
    """1 - pass@k for each k by the unbiased estimator, on prompts with p ~ Beta(a, b)."""
    masses = np.random.default_rng(SEED).beta(a, b, PROMPTS).tolist()
    drawn = generate(
        model_with(masses, others=1), [[x] for x in range(PROMPTS)], samples_per_prompt=SAMPLES, max_new_tokens=1,
        stop_ids=(), seed=SEED,
    )  # fmt: skip
    correct = (drawn.samples.tokens[..., 0] == 0).sum(-1).tolist()
    return {str(k): accuracy([1 - pass_at_k(SAMPLES, c, k) for c in correct]) for k in KS}


def compute() -> dict:
    return {
        "seed": SEED, "draws": DRAWS, "prompts": PROMPTS, "samples": SAMPLES, "worlds": WORLDS,
        "failure": {name: {str(n): failures(masses, n) for n in NS} for name, masses in WORLDS.items()},
        "pass_at_k": [{"a": a, "b": b, "points": pass_at_ks(a, b)} for a, b in SHAPES],
    }  # fmt: skip


COLOURS = ("#009E73", "#0072B2", "#D55E00")  # Okabe-Ito
FLOOR = 5e-5


def points(axis, rows: dict, colour: str, marker: str) -> None:
    mean, low, high = np.array(list(rows.values())).T
    x = np.array([float(k) for k in rows])
    keep = mean > 0  # what no run showed has no place on a logarithmic axis
    errors = (np.minimum(mean - low, mean * 0.999)[keep], (high - mean)[keep])
    axis.errorbar(x[keep], mean[keep], errors, fmt=marker, color=colour, markersize=5, capsize=3)


def draw(result: dict):
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    n = np.unique(np.round(np.logspace(0, np.log10(150), 80)))
    for (name, masses), colour, marker in zip(result["worlds"].items(), COLOURS, "os^"):
        prompts = np.full(len(masses), 1 / len(masses))
        coverage = c_cov(prompts, [[p, *np.full(200, (1 - p) / 200)] for p in masses])
        left.plot(n, mixture_failure(prompts, masses, n), color=colour, label=f"{name}: C_cov = {coverage:.1f}")
        left.plot(n, [failure_bound(coverage, k) for k in n], color=colour, linestyle="--", linewidth=1)
        points(left, result["failure"][name], colour, marker)
    left.plot([], [], color="#444444", linestyle="--", linewidth=1, label="C_cov / (e N), of the same colour")
    left.set(
        title="Best-of-N misses the most likely response", xlabel="N, draws per prompt", xlim=(0.9, 160),
        ylabel="probability of a miss", ylim=(FLOOR, 1.3),
    )  # fmt: skip
    k = np.logspace(0, 2.3, 80)
    for row, colour, marker in zip(result["pass_at_k"], COLOURS[::-1], "os^"):
        a, b = row["a"], row["b"]
        coverage = beta_c_cov(a, b)
        size = "infinite" if coverage == np.inf else f"{coverage:.0f}"
        right.plot(k, beta_failure(a, b, k), color=colour, label=f"p ~ Beta({a:g}, {b:g}): C_cov {size}")
        right.plot(k, beta_tail(a, b, k), color=colour, linestyle=":", linewidth=1.2)
        points(right, row["points"], colour, marker)
    right.plot([], [], color="#444444", linestyle=":", label="Γ(a+b)/Γ(b) · k^(−a), of the same colour")
    right.set(
        title="Failure over many prompts is a power law k^(−a)", xlabel="k, responses per prompt", xlim=(0.9, 160),
        ylabel="1 − pass@k", ylim=(FLOOR, 1.3),
    )  # fmt: skip
    for axis in (left, right):
        axis.set(xscale="log", yscale="log")
        axis.legend(loc="lower left", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.suptitle("How many draws it takes is decided by the prompts with little mass (points: 95 % intervals)")
    return figure
