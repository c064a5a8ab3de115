"""How far a chain is from p^α, in total variation, after N steps: kernels that are right, and those in circulation.

One small world (three tokens, one of them the end, horizon 5, 63 records), α = 2, proposals at temperature 1/2. Lines
are exact: g K^N for one block, the blocked schedule's law for blocks of 2 (`theory/markov_chain.py`). Points are
chains of `power_sample`: with A the records that the exact law after N steps has more often than p^α, TV = law(A) -
p^α(A), so the share of chains that end in A, less p^α(A), estimates it without bias and has a binomial interval.
"""

import matplotlib.pyplot as plt
import numpy as np

from reference.evaluation import accuracy
from reference.power_sampling import PowerConfig, power_sample
from theory.markov_chain import blocked_law
from theory.power import power_law
from toy.tabular import TabularLM, enumerate_law

DEPENDS = (
    "reference/token_law.py", "reference/interface.py", "reference/sampling.py", "reference/engine",
    "reference/power_sampling.py", "reference/randomness.py", "theory/suffix_mh.py", "theory/blocked_chain.py",
    "theory/power.py", "toy/tabular.py", "figures/power_convergence.py",
)  # fmt: skip
HORIZON, ALPHA, CHAINS, SEED = 5, 2.0, 4000, 0
STEPS = (0, 1, 2, 3, 5, 7, 10, 14, 20, 30, 40, 60, 100, 140, 200, 300, 600, 1000)
MEASURED = (0, 1, 2, 5, 10, 20, 40)
PANELS = {
    "one block": (5, (
        ("exact", "horizon"), ("exact", "record"), ("no_proposal", "horizon"), ("wrong_sign", "horizon"),
        ("no_length_factor", "record"),
    )),
    "blocks of 2": (2, (
        ("exact", "horizon"), ("exact", "record"), ("early_exit", "horizon"), ("nested", "horizon"),
        ("authors", "record"),
    )),
}  # fmt: skip


def compute() -> dict:
    model = TabularLM.random(3, HORIZON, seed=2)
    records, logp, conditionals = enumerate_law(model, [0], HORIZON, [0])
    target = dict(zip(records, power_law(logp, ALPHA)))
    setting = {"horizon": HORIZON, "alpha": ALPHA}

    def law_of(block: int, rule: str, cut: str, steps: int) -> dict:
        return dict(zip(*blocked_law(conditionals, **setting, block=block, rule=rule, cut=cut, steps=steps)))

    def measure(block: int, cut: str, steps: int) -> tuple[float, ...]:
        exact = law_of(block, "exact", cut, steps)
        more = {record for record, mass in exact.items() if mass > target[record]}
        drawn = power_sample(
            model, [[0]], PowerConfig(ALPHA, block=block, steps=steps, horizon=HORIZON, cut=cut), stop_ids=[0],
            samples_per_prompt=CHAINS, slots=2048, seed=SEED,
        )  # fmt: skip
        rows = zip(drawn.samples.tokens[0].tolist(), drawn.samples.lengths[0].tolist())
        share = accuracy([tuple(tokens[:length]) in more for tokens, length in rows])
        return tuple(value - sum(target[record] for record in more) for value in share)

    panels = {}
    for name, (block, rules) in PANELS.items():
        curves = {}
        for rule, cut in rules:
            laws = [law_of(block, rule, cut, steps) for steps in (*STEPS, 100_000)]
            far = [sum(abs(target.get(x, 0) - mass) for x, mass in law.items()) / 2 for law in laws]
            curves[f"{rule}, {cut}"] = {"tv": far[:-1], "floor": far[-1]}
            if rule == "exact":
                curves[f"{rule}, {cut}"]["measured"] = {n: measure(block, cut, n) for n in MEASURED}
        panels[name] = curves
    return {"seed": SEED, "alpha": ALPHA, "horizon": HORIZON, "chains": CHAINS, "steps": STEPS, "panels": panels}


LABELS = {
    "exact, horizon": ("right: cut uniform on the horizon", "#0072B2", "-", "o"),
    "exact, record": ("right: cut uniform on the record, length factor", "#009E73", "-", "s"),
    "no_proposal, horizon": ("no proposal term: p^α q", "#E69F00", "--", None),
    "wrong_sign, horizon": ("proposal term with the wrong sign: p^α q²", "#D55E00", "--", None),
    "no_length_factor, record": ("cut uniform on the record, no length factor", "#CC79A7", "--", None),
    "early_exit, horizon": ("returns a record as soon as it has ended", "#E69F00", "-.", None),
    "nested, horizon": ("cuts in the last block only", "#CC79A7", "-.", None),
    "authors, record": ("the authors' released code", "#000000", "-.", None),
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
        axis.set(xlim=(-0.15, 2200), ylim=(-0.02, 0.72), title=f"{panel[0].upper()}{panel[1:]}",
                 xlabel="N, Metropolis-Hastings steps per block")  # fmt: skip
        axis.axhline(0, color="#777777", linewidth=0.8)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), fontsize=9, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("total variation distance to p^α")
    figure.suptitle(
        f"Right kernels reach p^{result['alpha']:g}, others a law of their own "
        f"(lines: exact; points: {result['chains']} chains, 95 % intervals; numbers: limits)"
    )
    return figure
