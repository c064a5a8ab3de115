"""One target, many ways: how near to p^α each way comes, for what it costs to train and to answer.

A world of 64 texts (`power_samplers.py`, "multimodal": low temperature is .37 from p^4), where all is exact:

    samplers     power sampling, particles, look-ahead: TV from `power_samplers`; best-of-N: its exact distribution,
                 which passes p^4 on its way to the arg max
    learners     self-distillation, DPO, XPO and the policy gradient of J_β, β = 1/3, each a softmax with a parameter
                 for every text, begun at p; mean TV over seeds, against the tokens that were drawn to learn from. An
                 answer then costs one response.

What is minimised: the frequencies of n draws from p^4 (power sampling of 200 steps); the regressions of 2412.01951 to
their end, DPO's in closed form (a gradient descent from p moves each connected set of compared texts and nothing else);
REINFORCE with a leave-one-out baseline, groups of 8, plain gradient steps. Beside it the toy model and SmolLM2-135M
(products, as chat), where p^α is unknown: mean log p of the answers under the base, and accuracy, against decoded
tokens for an answer. Samplers there aim at p^4, DPO and XPO at p^3. Their numbers are those of `power_samplers`,
`training_preference`, `real_power` and `real_training`; self-distillation and policy gradient are learned here, on the
toy model from as many responses as the others there (p^3, three seeds), on the real one from 109 questions (p^4, one
seed; settings fixed before anything was trained).
"""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from figures import _real as R
from figures import _training as T
from figures._style import BY_METHOD, GREY, tidy
from figures.power_samplers import ALPHA, worlds
from figures.real_training import ALL, FAMILY, FIT, MEASURED, measure
from reference.interface import Cost
from reference.policy_gradient import PolicyGradientConfig, policy_gradient
from reference.power_distillation import PowerDistillationConfig, power_distill
from reference.power_sampling import PowerConfig
from reference.training.loop import Batches, FitConfig
from reference.training.lora import LoRAConfig, add_lora
from theory.best_of_n import best_of_n_law
from theory.markov_chain import chain, total_variation
from theory.power import power_law
from toy.tabular import enumerate_law

HERE = Path(__file__).resolve().parent
READ = ("power_samplers", "training_preference", "real_power", "real_training")
DEPENDS = (
    *R.DEPENDS, *T.DEPENDS, "reference/power_distillation.py", "reference/policy_gradient.py", "reference/training",
    "theory/best_of_n.py", "theory/markov_chain.py", "theory/suffix_mh.py", "theory/power.py", "toy/tabular.py",
    *(f"figures/results/{name}.json" for name in READ), "figures/one_target.py",
)  # fmt: skip
WORLD, BETA, STEPS = "multimodal", 1 / (ALPHA - 1), 200  # steps of the chain whose answers are learned from
SEEDS, GROUP, RATE, BONUS = 20, 8, 1.0, 0.01
DRAWN = (1, 3, 10, 30, 100, 300, 1000, 3000)  # texts to learn from, pairs, rounds, groups
NS = (1, 2, 4, 8, 16, 32, 64)
Law = np.ndarray


# -- learners: each yields a policy after so many draws, [64] ---------------------------------------------------------


def distilled(base: Law, answers: Law, rng: np.random.Generator) -> Iterator[tuple[int, Law]]:
    """Maximum likelihood on draws of a sampler's answers."""
    texts = rng.choice(len(base), max(DRAWN), p=answers)
    for n in DRAWN:
        yield n, np.bincount(texts[:n], minlength=len(base)) / n


def regressed(base: Law, _: Law, rng: np.random.Generator) -> Iterator[tuple[int, Law]]:
    """DPO on base pairs: in each connected set of compared texts log π/p = r/β + c, where gradient descent keeps the
    sum of its parameters; a text that was never compared keeps its parameter."""
    pairs = rng.choice(len(base), (max(DRAWN), 2), p=base)
    wanted = np.log(base) / BETA  # r/β
    for n in DRAWN:
        change, of = np.zeros(len(base)), np.arange(len(base))
        for a, b in pairs[:n]:
            of[of == of[b]] = of[a]
        for each in np.unique(of):
            here = of == each
            if here.sum() > 1:
                change[here] = wanted[here] - wanted[here].mean()
        yield n, softmax(np.log(base) + change)


def explored(base: Law, _: Law, rng: np.random.Generator) -> Iterator[tuple[int, Law]]:
    """XPO, a pair a round: y from the policy, y' from the base, and the bonus on y'. No parameter goes further from
    the base's than the rewards' range over β, or what was never compared would draw all mass."""
    parameters, log_base, pairs = np.log(base), np.log(base), np.zeros((0, 2), dtype=int)
    counts, reach = np.zeros(len(base)), np.ptp(log_base) / BETA  # counts: of y'
    bounds = np.stack((log_base - reach, log_base + reach), 1)

    def loss(theta: Law) -> tuple[float, Law]:
        shift = BETA * (theta - log_base) - log_base  # β log π/p − r, up to a constant
        off = shift[pairs[:, 0]] - shift[pairs[:, 1]]
        slope = np.bincount(pairs[:, 0], 2 * BETA * off, len(base)) - np.bincount(
            pairs[:, 1], 2 * BETA * off, len(base)
        )
        logp = log_softmax(theta)
        return float((off**2).sum() + BONUS * counts @ logp), slope + BONUS * (counts - counts.sum() * np.exp(logp))

    for t in range(1, DRAWN[-2] + 1):
        pair = rng.choice(len(base), p=softmax(parameters)), rng.choice(len(base), p=base)
        pairs = np.vstack((pairs, pair))
        counts[pair[1]] += 1
        parameters = minimize(loss, parameters, jac=True, method="L-BFGS-B", bounds=bounds).x
        if t in DRAWN:
            yield t, softmax(parameters)


def reinforced(base: Law, _: Law, rng: np.random.Generator) -> Iterator[tuple[int, Law]]:
    """Steps along the gradient of J_β, from groups of responses whose rewards are compared with the others' mean."""
    parameters, log_base = np.log(base), np.log(base)
    for t in range(1, max(DRAWN) + 1):
        policy = softmax(parameters)
        drawn = rng.choice(len(base), GROUP, p=policy)
        reward = log_base[drawn] - BETA * (np.log(policy[drawn]) - log_base[drawn])
        advantage = (reward - reward.mean()) * GROUP / (GROUP - 1)
        ahead = np.bincount(drawn, advantage, len(base)) - advantage.sum() * policy  # Σ A ∇log π
        parameters = parameters + RATE * ahead / GROUP
        if t in DRAWN:
            yield t, softmax(parameters)


LEARNERS: dict[str, Callable] = {
    "self-distillation": distilled, "DPO": regressed, "XPO": explored, "policy gradient": reinforced,
}  # fmt: skip


def measure_world(read: dict[str, Any]) -> dict:
    model, prompt, horizon = worlds()[WORLD]
    _, logp, conditionals = enumerate_law(model, [prompt], horizon, [0])
    base, target = np.exp(logp), power_law(logp, ALPHA)
    steady = chain(conditionals, horizon=horizon, alpha=ALPHA, cut="record")
    after = steady.initial @ np.linalg.matrix_power(steady.kernel, STEPS)
    kept = read["power_samplers"]["worlds"][WORLD]
    ways = {
        name: [[row["decoded"], row.get("exact", row["tv"][0])] for row in kept["methods"][name].values()]
        for name in ("low temperature", "power", "smc", "lookahead g")
    }
    length = kept["length"]
    ways["best-of-N"] = [[n * length, total_variation(best_of_n_law(base, logp, n), target)] for n in NS]
    each = {"self-distillation": kept["methods"]["power"][str(STEPS)]["decoded"], "DPO": 2 * length,
            "XPO": 2 * length, "policy gradient": GROUP * length}  # fmt: skip
    learned: dict[str, list[list[float]]] = {}
    for name, learn in LEARNERS.items():
        runs = [dict(learn(base, after, np.random.default_rng(seed))) for seed in range(SEEDS)]
        far = {n: [total_variation(run[n], target) for run in runs] for n in runs[0]}
        learned[name] = [[n * each[name], float(np.mean(tv)), float(np.std(tv))] for n, tv in far.items()]
    return {"length": length, "base": total_variation(base, target), "samplers": ways, "learned": learned,
            "sampler that is distilled": total_variation(after, target)}  # fmt: skip


# -- the toy model, and a real one ------------------------------------------------------------------------------------

TOY_POWER = PowerDistillationConfig(T.DRAWS, PowerConfig(3.0, block=T.HORIZON, steps=100, max_new_tokens=T.HORIZON))
TOY_CLIMB = PolicyGradientConfig(beta=0.5, rounds=32, group=8, max_new_tokens=T.HORIZON)
REAL_POWER = PowerDistillationConfig(2, PowerConfig(ALPHA, block=8, steps=10, max_new_tokens=R.HORIZON))
REAL_CLIMB = PolicyGradientConfig(beta=BETA, rounds=20, group=8, max_new_tokens=R.HORIZON)
REAL_FIT = FitConfig(batch=64, micro=16, rate=1e-4, clip=1.0, weight_decay=0.0, schedule="constant")
LEARNED = ("self-distillation", "policy gradient")


def toy_learner(name: str, world: T.World) -> tuple[Any, Cost]:
    base, prompts = world.speaker.model, world.prompts(world.learned)
    if name == "self-distillation":
        minimise = Batches(replace(T.FIT, seed=world.seed))
        out = power_distill(base, base, prompts, TOY_POWER, minimise=minimise, **T.common(world))
        return out.policy, out.drawn.cost
    fit = replace(T.REINFORCE, seed=world.seed)
    climbed = policy_gradient(copy.deepcopy(base), prompts, replace(TOY_CLIMB, seed=world.seed), fit,
                              stop_ids=world.speaker.stop_ids, slots=T.SLOTS)  # fmt: skip
    return climbed.model, climbed.cost


def measure_toy() -> dict:
    found: dict[str, dict] = {}
    seeds = T.worlds(T.FEWER, T.HELDOUT)
    for name in LEARNED:
        right, logp, tokens = [], [], []
        for world in seeds:
            model, cost = toy_learner(name, world)
            samples = world.sample(T.SAMPLES, model)
            right.append(world.right(samples).mean())
            logp.append(world.base_logp(samples).mean())
            tokens.append(cost.decoded_tokens)
        found[name] = {"accuracy": float(np.mean(right)), "seeds": list(map(float, right)),
                       "logp": float(np.mean(logp)), "tokens": float(np.mean(tokens))}  # fmt: skip
    drawn = [world.sample(T.SAMPLES) for world in seeds]
    found["length"] = {"tokens": float(np.mean([each.lengths.double().mean() for each in drawn]))}
    return found


def measure_real() -> dict:
    base, found = R.speaker(), {}
    asked = R.Asked(base, FAMILY, "chat", ALL)
    asked.questions = asked.questions[MEASURED:]  # those that are not measured on
    common: dict[str, Any] = {"stop_ids": asked.stop_ids, "slots": R.SLOTS}

    def distil() -> Any:
        policy = add_lora(copy.deepcopy(base.model), LoRAConfig())
        return power_distill(base.model, policy, asked.prompts, REAL_POWER, minimise=Batches(FIT), seed=R.SEED,
                             keys=[question.id for question in asked.questions], **common).policy  # fmt: skip

    def climb() -> Any:
        policy = add_lora(copy.deepcopy(base.model), LoRAConfig())
        return policy_gradient(policy, asked.prompts, REAL_CLIMB, REAL_FIT, **common).model

    for name, learn, depends in zip(LEARNED, (distil, climb), ((REAL_POWER, FIT), (REAL_CLIMB, REAL_FIT))):
        model = R.trained(f"{name}-chat".replace(" ", "-"), (FAMILY, depends), learn, base.model)
        found[name] = measure(name, base, model, "chat")
    return {"took": R.took(), **found}


def compute() -> dict:
    read = {name: json.loads((HERE / "results" / f"{name}.json").read_text()) for name in READ}
    return {"alpha": ALPHA, "world": measure_world(read), "toy": measure_toy(), "real": measure_real(),
            "read": {"toy samplers": read["power_samplers"]["toy"]["methods"],
                     "toy learners": {"base": read["training_preference"]["logp"],
                                      **read["training_preference"]["ways"]},
                     "real samplers": read["real_power"]["cells"][FAMILY]["chat"]["methods"],
                     "real learners": read["real_training"]["forms"]["chat"]}}  # fmt: skip


# -- what is shown ----------------------------------------------------------------------------------------------------

COLOURS = {
    "power": BY_METHOD["power"], "smc": BY_METHOD["smc"], "lookahead g": BY_METHOD["lookahead"],
    "best-of-N": BY_METHOD["best-of-N"], "low temperature": BY_METHOD["low temperature"],
    "self-distillation": BY_METHOD["self-distillation"], "policy gradient": BY_METHOD["policy gradient"],
    "DPO": BY_METHOD["dpo"], "XPO": BY_METHOD["majority"], "SFT": BY_METHOD["sft"],  # XPO's is power sampling's here
}  # fmt: skip
LABELS = {  # where a name stands beside its point
    "SFT": (8, 9), "self-distillation": (8, 1), "XPO": (8, -6), "DPO": (8, -13), "smc": (6, -12),
    "lookahead g": (-40, 8), "best-of-N": (8, -10), "low temperature": (8, -12), "power": (-44, 7),
}  # fmt: skip
AT = {"smc": 3, "best-of-N": 2, "lookahead g": 1, "power": 3}  # beside which of its points, if not the last
NAMES = {"power": "power sampling", "smc": "particles", "lookahead g": "look-ahead",
         "low temperature": "temperature 1/α", "SFT": "SFT on best-of-N"}  # fmt: skip
TOY = {"power": "power", "smc": "smc", "lookahead g": "lookahead g", "log-probability": "best-of-N",
       "low temperature": "low temperature"}  # fmt: skip
REAL = {"power": "power", "best": "best-of-N", "cold": "low temperature"}
REAL_LEARNERS = {"dpo": "DPO", "xpo": "XPO", "sft": "SFT"}


def points(result: dict, place: str) -> list[tuple[str, float, float, float]]:
    """(way, decoded tokens of an answer, mean log p, accuracy) on the toy or the real model."""
    read, rows = result["read"], []
    learned = result[place]
    if place == "toy":
        for method, way in TOY.items():
            for row in read["toy samplers"][method].values():
                rows.append((way, row["decoded"], row["logp"][0], row["accuracy"][0]))
        for way in ("SFT", "DPO", "XPO"):
            row = read["toy learners"][way]
            rows.append((way, learned["length"]["tokens"], row["logp"], row["accuracy"]["all"][0]))
        rows += [(way, learned["length"]["tokens"], learned[way]["logp"], learned[way]["accuracy"]) for way in LEARNED]
    else:
        for method, way in REAL.items():
            row = read["real samplers"][method]
            rows.append((way, row["decoded"], row["logp"], row["accuracy"][0]))
        pairs = [*((way, read["real learners"][name]) for name, way in REAL_LEARNERS.items()),
                 *((way, learned[way]) for way in LEARNED)]  # fmt: skip
        rows += [(way, row["tokens"], row["logp under the base"], row["accuracy"][0]) for way, row in pairs]
    return rows


def base_of(result: dict, place: str) -> tuple[float, float]:
    """Mean log p and accuracy of one response of the model as it is."""
    if place == "toy":
        row = result["read"]["toy samplers"]["log-probability"]["1"]
        return row["logp"][0], row["accuracy"][0]
    row = result["read"]["real samplers"]["temperature 1"]
    return row["logp"], row["accuracy"][0]


def table(result: dict) -> str:
    world = result["world"]
    lines = [f"a world of 64 texts: total variation to p^4 (one response: {world['base']:.3f}; its greedy tokens, 1/α: "
             f"{world['samplers']['low temperature'][0][1]:.3f})"]  # fmt: skip
    for name in ("power", "smc", "lookahead g", "best-of-N"):
        kept = "  ".join(f"{tokens:.0f}: {tv:.3f}" for tokens, tv in world["samplers"][name])
        lines.append(f"{NAMES.get(name, name):18} tokens an answer  {kept}")
    for name, rows in world["learned"].items():
        kept = "  ".join(f"{tokens:.0f}: {tv:.3f}" for tokens, tv, _ in rows)
        lines.append(f"{name:18} tokens to learn   {kept}")
    for place, title in (("toy", "the toy model"), ("real", "SmolLM2-135M, products as chat")):
        logp, accuracy = base_of(result, place)
        lines += [
            "",
            f"{title + f': one response {logp:.1f}, {accuracy:.2f}':50}{'tokens':>8}{'log p':>9}{'accuracy':>10}",
        ]
        for way, tokens, logp, accuracy in points(result, place):
            lines.append(f"{NAMES.get(way, way):50}{tokens:8.0f}{logp:9.2f}{accuracy:10.2f}")
    return "\n".join(lines)


def draw(result: dict) -> dict:
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained", sharey=True)
    world = result["world"]
    for name, marker in (("power", "o"), ("smc", "^"), ("lookahead g", "v"), ("best-of-N", "X")):
        tokens, tv = np.array(world["samplers"][name]).T
        left.plot(tokens, tv, f"{marker}-", color=COLOURS[name], label=NAMES.get(name, name))
    for name, rows in world["learned"].items():
        tokens, tv, spread = np.array(rows).T
        right.plot(tokens, tv, "o-", color=COLOURS[name], label=name)
        right.fill_between(tokens, tv - spread, tv + spread, color=COLOURS[name], alpha=0.12, linewidth=0)
    for axis in (left, right):
        axis.axhline(world["base"], color=GREY, linewidth=0.8, linestyle=":")
        axis.axhline(world["samplers"]["low temperature"][0][1], color=GREY, linewidth=0.8, linestyle="--")
        axis.set(xscale="log", yscale="log", ylim=(1e-4, 1))
        axis.legend(fontsize=9)
    left.set(xlabel="decoded tokens for an answer", ylabel="total variation to p^4", title="Sampling")
    right.set(xlabel="tokens drawn to learn from (an answer then costs 6)", title="Learning (band: seeds)")
    tidy(left, right)
    figure.suptitle("One target, a world of 64 texts. Dotted: one response; dashed: temperature 1/α")
    second, grid = plt.subplots(2, 2, figsize=(12, 8), layout="constrained", sharex="row")
    for row, (place, title) in zip(grid, (("toy", "toy model"), ("real", "SmolLM2-135M, products as chat"))):
        base = base_of(result, place)
        for axis, column, what in zip(row, (2, 3), ("mean log p under the base", "accuracy")):
            found: dict[str, list] = {}
            for each in points(result, place):
                found.setdefault(each[0], []).append((each[1], each[column]))
            for way, pairs in found.items():
                tokens, values = np.array(pairs).T
                marker = "*" if way in (*LEARNERS, "SFT") else "o"
                axis.plot(tokens, values, f"{marker}-", color=COLOURS[way], markersize=11 if marker == "*" else 6)
                at = AT.get(way, -1) if len(tokens) > 1 else -1
                axis.annotate(NAMES.get(way, way), (tokens[at], values[at]), fontsize=8, color=COLOURS[way],
                              xytext=LABELS.get(way, (8, 4)), textcoords="offset points")  # fmt: skip
            axis.axhline(base[column - 2], color=GREY, linewidth=0.8, linestyle=":")
            axis.set(xscale="log", ylabel=what, title=title)
            ticks = (10, 30, 100, 300, 1000) if place == "toy" else (15, 30, 60, 120, 240)
            axis.set_xticks(ticks, ticks)
            axis.minorticks_off()
            tidy(axis)
    for axis in grid[1]:
        axis.set_xlabel("decoded tokens for an answer")
    second.suptitle("What an answer costs, and what it is worth. Stars: learned; dotted: one response")
    return {"": figure, "models": second}
