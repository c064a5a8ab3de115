"""How far samplers of p^α are from it, in total variation, after N steps: right ones, and wrong ones in circulation.

One small world (three tokens, one of them the end, horizon 5, 63 records), α = 2, proposals at temperature 1/2. Lines
are exact and come from the code: a step, of `reference/power_sampling.py` or of `tests/wrong_samplers.py`, is run along
all its paths (`theory/exact_law.py`), which gives its kernel K; the distribution after a block is that of `extend`
times K^N. They are the curves of `theory/blocked_chain.py` (tests/reference/test_wrong_samplers.py). Points are chains
of `power_sample`: with A the records that the exact distribution after N steps has more often than p^α, TV = law(A) -
p^α(A), so the share of chains that end in A, less p^α(A), estimates it without bias and has a binomial interval.
"""

from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from reference.evaluation.statistics import accuracy
from reference.power_sampling import PowerConfig, Record, power_sample, step
from reference.sampling import extend
from theory.blocked_chain import run
from theory.exact_law import exact_law
from theory.power import power_law
from toy.tabular import TabularLM, enumerate_law

DEPENDS = (
    "reference/interface.py", "reference/sampling.py", "reference/engine", "reference/power_sampling.py",
    "reference/randomness.py", "theory/exact_law.py", "theory/blocked_chain.py", "theory/power.py", "toy/tabular.py",
    "tests/wrong_samplers.py", "figures/power_convergence.py",
)  # fmt: skip
HORIZON, ALPHA, CHAINS, SEED, PROMPT, STOPS = 5, 2.0, 4000, 0, [0], [0]
STEPS = (0, 1, 2, 3, 5, 7, 10, 14, 20, 30, 40, 60, 100, 140, 200, 300, 600, 1000)
MEASURED = (0, 1, 2, 5, 10, 20, 40)
PANELS = {
    "one block": (5, (
        ("exact", "horizon"), ("exact", "record"), ("no_proposal", "horizon"), ("wrong_sign", "horizon"),
        ("no_length_factor", "record"), ("literal", "horizon"),
    )),
    "blocks of 2": (2, (
        ("exact", "horizon"), ("exact", "record"), ("early_exit", "horizon"), ("nested", "horizon"),
        ("authors", "record"),
    )),
}  # fmt: skip
RETURNS = {"early_exit", "authors"}  # what has ended, after each block


def matrix_of(rows: dict[Record, dict[Record, float]], columns: Iterable[Record]) -> np.ndarray:
    """Distributions by record as a matrix [rows, columns]."""
    at = {text: i for i, text in enumerate(columns)}
    matrix = np.zeros((len(rows), len(at)))
    for i, law in enumerate(rows.values()):
        for text, mass in law.items():
            matrix[i, at[text]] = mass
    return matrix


def law_after(blocks: list[tuple[list[Record], np.ndarray, np.ndarray]], steps: int) -> dict[Record, float]:
    """The distribution of a sampler that makes so many steps in each block. A text that is not extended has been
    returned."""
    total, law = defaultdict[Record, float](float), np.ones(1)
    texts: list[Record] = [()]
    for after, extension, kernel in blocks:
        for i in np.flatnonzero(extension.sum(1) == 0):
            total[texts[i]] += law[i]
        texts, law = after, run(law @ extension, kernel, steps)
    for text, mass in zip(texts, law):
        total[text] += mass
    return total


def compute() -> dict:
    from tests.wrong_samplers import STEPS as WRONG  # here: to draw the figure needs no tests

    model = TabularLM.random(3, HORIZON, seed=2)
    records, logp, _ = enumerate_law(model, PROMPT, HORIZON, STOPS)
    target = dict(zip(records, power_law(logp, ALPHA)))

    @cache
    def moved(rule: str, cut: str, block: int, horizon: int, x: Record) -> dict[Any, float]:
        """One step from x."""
        transition, config = WRONG.get(rule, step), PowerConfig(ALPHA, block=block, max_new_tokens=HORIZON, cut=cut)
        return exact_law(
            lambda chance: transition(model, PROMPT, x, config, horizon, 1, stop_ids=STOPS, chance=chance)[0]
        )

    @cache
    def extended(horizon: int, x: Record) -> dict[Any, float]:
        def draw(chance: Any) -> Record:
            return extend(model, PROMPT, x, horizon, 1 / ALPHA, stop_ids=STOPS, chance=chance)

        return exact_law(draw)

    @cache
    def blocks_of(block: int, rule: str, cut: str) -> list[tuple[list[Record], np.ndarray, np.ndarray]]:
        """Of each block: its texts, the distribution of their extension from the texts before, the kernel of a step."""
        blocks = []
        before: list[Record] = [()]
        same = ("exact" if rule == "early_exit" else rule), cut, (block if rule == "nested" else HORIZON)
        for end in range(block, HORIZON + block, block):
            extension: dict[Record, dict[Record, float]] = {}
            kernel: dict[Record, dict[Record, float]] = {}
            for x in before:
                until = min(len(x) + block if rule == "authors" else end, HORIZON)
                extension[x] = {} if rule in RETURNS and x and x[-1] in STOPS else extended(until, x)
            waiting = [y for law in extension.values() for y in law]
            while waiting:
                if (x := waiting.pop()) not in kernel:
                    kernel[x] = moved(*same, min(end, HORIZON), x)
                    waiting += kernel[x]
            blocks.append(([*kernel], matrix_of(extension, kernel), matrix_of(kernel, kernel)))
            before = [*kernel]
        return blocks

    def measure(block: int, cut: str, steps: int) -> tuple[float, ...]:
        exact = law_after(blocks_of(block, "exact", cut), steps)
        more = {record for record, mass in exact.items() if mass > target[record]}
        drawn = power_sample(
            model, [PROMPT], PowerConfig(ALPHA, block=block, steps=steps, max_new_tokens=HORIZON, cut=cut),
            stop_ids=STOPS, samples_per_prompt=CHAINS, slots=2048, seed=SEED,
        )  # fmt: skip
        rows = zip(drawn.samples.tokens[0].tolist(), drawn.samples.lengths[0].tolist())
        share = accuracy([tuple(tokens[:length]) in more for tokens, length in rows])
        return tuple(value - sum(target[record] for record in more) for value in share)

    panels = {}
    for name, (block, rules) in PANELS.items():
        curves = {}
        for rule, cut in rules:
            laws = [law_after(blocks_of(block, rule, cut), steps) for steps in (*STEPS, 100_000)]
            far = [sum(abs(target.get(x, 0) - law.get(x, 0)) for x in {*target, *law}) / 2 for law in laws]
            curves[f"{rule}, {cut}"] = {"tv": far[:-1], "floor": far[-1]}
            if rule == "exact":
                curves[f"{rule}, {cut}"]["measured"] = {n: measure(block, cut, n) for n in MEASURED}
        panels[name] = curves
    return {"seed": SEED, "alpha": ALPHA, "horizon": HORIZON, "chains": CHAINS, "steps": STEPS, "panels": panels}


LABELS = {
    "exact, horizon": ("right: cut anywhere up to the horizon", "#0072B2", "-", "o"),
    "exact, record": ("right: cut within the response, with the factor |x|/|y|", "#009E73", "-", "s"),
    "no_proposal, horizon": ("wrong: no proposal term; reaches $p^α q$", "#E69F00", "--", None),
    "wrong_sign, horizon": ("wrong: proposal term with its sign reversed; reaches $p^α q^2$", "#D55E00", "--", None),
    "no_length_factor, record": ("wrong: cut within the response, no factor", "#CC79A7", "--", None),
    "literal, horizon": ("wrong: Algorithm 1 as printed, which never cuts the first token", "#8C564B", "--", None),
    "early_exit, horizon": ("wrong: returns a response that has ended after a block", "#A89F00", "-.", None),
    "nested, horizon": ("wrong: cuts in the last block only", "#7B4FB5", "-.", None),
    "authors, record": ("wrong: the code released with the paper", "#000000", "-.", None),
}
TITLES = {
    "one block": "One block: steps on whole responses",
    "blocks of 2": "Blocks of 2 tokens: steps after each block",
}


def draw(result: dict):
    figure, axes = plt.subplots(1, 2, figsize=(12.5, 5.2), sharey=True, layout="constrained")
    for axis, (panel, curves) in zip(axes, result["panels"].items()):
        for i, (name, curve) in enumerate(curves.items()):
            label, colour, style, marker = LABELS[name]
            axis.plot(result["steps"], curve["tv"], style, color=colour, linewidth=1.8, label=label)
            if curve["floor"] > 1e-3:
                axis.text(1150, curve["floor"], f"{curve['floor']:.2f}", color=colour, va="center", fontsize=9)
            if marker:
                steps = np.array([float(n) for n in curve["measured"]]) * (1 + 0.03 * (2 * i - 1))
                mean, low, high = np.array(list(curve["measured"].values())).T
                axis.errorbar(steps, mean, (mean - low, high - mean), fmt=marker, color=colour, markersize=5, capsize=3)
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xticks((0, 1, 10, 100, 1000), ("0", "1", "10", "100", "1000"))
        axis.set(xlim=(-0.15, 2200), ylim=(-0.02, 0.72), title=TITLES[panel],
                 xlabel="N, Metropolis-Hastings steps in each block")  # fmt: skip
        axis.axhline(0, color="#777777", linewidth=0.8)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), fontsize=9, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    power = f"$p^{{{result['alpha']:g}}}$"
    axes[0].set_ylabel(f"total variation distance to {power}")
    figure.suptitle(
        f"Right samplers reach {power}; wrong ones in circulation reach something else\n"
        f"lines: exact, by running the code along all its paths; numbers: where they end; "
        f"points: {result['chains']} chains drawn, 95 % intervals", fontsize=11.5,
    )  # fmt: skip
    return figure
