"""Which distribution of the cut wins, per decoded token: uniform on the horizon, or on the record with the length
factor?

Both keep p^α. A cut behind a record's end is free, so steps are not the measure: for every world the exact TV to p^α
after n steps is set against the exact expectation of tokens decoded until then (`theory/cost.py`), with the two savings
off and on. 30 random worlds, one token of which ends the text with a chance between 0.05 and 0.6, and named ones.
"""

from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import torch

from theory.cost import tokens_per_step
from theory.markov_chain import Setting, suffix_mh, total_variation
from theory.power import power_law
from toy.tabular import TabularLM, enumerate_law

DEPENDS = ("theory/cost.py", "theory/suffix_mh.py", "theory/power.py", "toy/tabular.py", "figures/power_cuts.py")
HORIZON, WORLDS, STEPS, ALPHAS = 5, 30, 1000, (2.0, 4.0)
TOKENS = np.geomspace(1, 300, 40).round(2)
CUTS: tuple[Literal["horizon", "record"], ...] = ("horizon", "record")
SAVINGS = (False, True)


def random_world(seed: int) -> TabularLM:
    """Dirichlet distributions of 3 tokens, the first of which ends the text with a chance near the world's own."""
    model, end = TabularLM.random(3, HORIZON, seed=seed), np.random.default_rng(seed).uniform(0.05, 0.6)
    table = model.logits.double().exp().numpy()
    chance = np.clip(3 * end * table[:, :1], 0.01, 0.95)
    rest = (1 - chance) * table[:, 1:] / table[:, 1:].sum(1, keepdims=True)
    return TabularLM(torch.from_numpy(np.log(np.concatenate((chance, rest), 1))), model.transition)


def curves(model: TabularLM, alpha: float) -> dict:
    """TV at TOKENS, per distribution of the cut and savings."""
    texts = Setting(horizon=HORIZON, alpha=alpha).texts(enumerate_law(model, [1], HORIZON, [0])[2])
    states = texts.only(texts.are_records(HORIZON), HORIZON)
    target, result = power_law(states.logp.sum(1), alpha), {}
    for cut in CUTS:
        kernel = suffix_mh(states, alpha, cut=cut)
        law, laws = states.suffix[:, 0], []
        for _ in range(STEPS):
            laws.append(law)
            law = law @ kernel
        far = np.array([total_variation(law, target) for law in laws])
        for saving in SAVINGS:
            per_step = tokens_per_step(states, alpha, cut=cut, first_divergence_skip=saving, early_reject=saving)
            spent = laws[0] @ states.length + np.concatenate(([0], np.cumsum(np.array(laws) @ per_step)[:-1]))
            at = np.interp(TOKENS, spent - spent[0], far)
            result[f"{cut}, {'savings' if saving else 'plain'}"] = at
    return result


def compute() -> dict:
    named = {
        "geometric, e = 0.05": TabularLM.iid([0.05, 0.475, 0.475]),
        "geometric, e = 0.5": TabularLM.iid([0.5, 0.25, 0.25]),
        "no end": TabularLM.iid([1e-9, 0.6, 0.4 - 1e-9]),
        "short guess or long text": TabularLM.markov([[1, 0, 0], [0.02, 0.96, 0.02], [0.95, 0.025, 0.025]]),
    }
    result = {}
    for alpha in ALPHAS:
        rows = [curves(random_world(seed), alpha) for seed in range(WORLDS)]
        bands = {key: np.quantile([row[key] for row in rows], (0.1, 0.5, 0.9), axis=0) for key in rows[0]}
        ratios = {}
        for saving in ("plain", "savings"):
            at = int(np.searchsorted(TOKENS, 20))
            ratios[saving] = np.array(
                [max(row[f"record, {saving}"][at], 1e-4) / max(row[f"horizon, {saving}"][at], 1e-4) for row in rows]
            )
        result[str(alpha)] = {
            "bands": {key: band.round(5).tolist() for key, band in bands.items()},
            "ratio at 20 tokens": {key: ratio.round(4).tolist() for key, ratio in ratios.items()},
            "named": {
                name: {key: at.round(5).tolist() for key, at in
                       curves(model, alpha).items()}
                for name, model in named.items()
            },
        }  # fmt: skip
    return {"horizon": HORIZON, "worlds": WORLDS, "tokens": TOKENS.tolist(), "alphas": result}


COLOURS = {"horizon": "#0072B2", "record": "#D55E00"}
LABELS = {"horizon": "cut uniform on the horizon", "record": "cut uniform on the record, length factor"}


def draw(result: dict):
    figure, axes = plt.subplots(2, 3, figsize=(14, 7.6), layout="constrained")
    for row, (alpha, found) in zip(axes, result["alphas"].items()):
        for axis, saving in zip(row, ("plain", "savings")):
            for cut in CUTS:
                low, middle, high = found["bands"][f"{cut}, {saving}"]
                axis.fill_between(result["tokens"], low, high, color=COLOURS[cut], alpha=0.15, linewidth=0)
                axis.plot(result["tokens"], middle, color=COLOURS[cut], linewidth=2, label=LABELS[cut])
            title = "both savings on" if saving == "savings" else "savings off"
            axis.set(xscale="log", title=f"α = {float(alpha):g}, {title}", xlabel="expected tokens decoded by steps",
                     ylabel="total variation distance to p^α", ylim=(0, None))  # fmt: skip
        axis = row[2]
        for i, (saving, marker) in enumerate((("plain", "s"), ("savings", "o"))):
            ratio = np.sort(found["ratio at 20 tokens"][saving])
            label = "both savings on" if saving == "savings" else "savings off"
            axis.plot(ratio, (np.arange(len(ratio)) + 0.5) / len(ratio), marker, linestyle="-", markersize=4,
                      color=("#777777", "#009E73")[i], label=f"{label}; median {np.median(ratio):.2f}")  # fmt: skip
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set(xscale="log", title=f"α = {float(alpha):g}: left of 1 the record's cut wins",
                 xlabel="TV of record cuts / TV of horizon cuts, at 20 tokens", ylabel="share of worlds",
                 xlim=(0.2, 30))  # fmt: skip
        axis.set_xticks((0.25, 0.5, 1, 2, 4, 8, 16), ("1/4", "1/2", "1", "2", "4", "8", "16"))
        axis.minorticks_off()
        axis.legend(fontsize=9, loc="lower right")
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False,
                  title=f"lines: median, bands: 80 % of {result['worlds']} worlds")  # fmt: skip
    figure.suptitle("Two exact distributions of the cut, compared by decoded tokens (all curves exact)")
    return figure
