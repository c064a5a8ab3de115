"""Every sampler of p^α on the same footing: how near its answers come, against decoded tokens and against waiting.

α = 4 throughout, one block. Three worlds that can be enumerated, each a few tokens long:

    easy         texts of one length whose futures are alike, so low temperature is near p^α already
    multimodal   two texts share p^α, and each token on its own prefers the way to one of them, 16 to 1
    lengths      a guess at once, or a long text: p^α gives the guess 3 in 8, low temperature 1 in 33

There TV to p^α is measured: with A the records that a first half of the draws has more often than p^α, the share of
the second half in A, less p^α(A), never overestimates TV on average and has a binomial interval. Where theory has the
output's distribution, its exact TV is drawn as a line. Then the toy model and its relay problems, where p^α itself is
unknown.

Decoded tokens are per answer, all that were spent on it. Sequential tokens are those of them that wait for each other:
what an answer takes if every row that could be decoded side by side is.
"""

from collections.abc import Callable, Iterator
from itertools import islice, product
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from figures._style import BY_METHOD, GREY, tidy
from figures.demo import CHECKPOINT, HORIZON, World, rewards
from figures.power_accuracy import interval
from reference.best_of_n import select
from reference.evaluation.statistics import accuracy
from reference.interface import Generation, Samples
from reference.lookahead import LookaheadConfig, lookahead
from reference.multiple_try import MultipleTryConfig, multiple_try
from reference.parallel_tempering import TemperingConfig, parallel_tempering
from reference.power_sampling import PowerConfig, power_sample
from reference.power_smc import SMCConfig, power_smc
from reference.sampling import LanguageModel, generate
from reference.text.text_model import TextModel
from theory.importance import picked
from theory.lookahead import lookahead_law
from theory.markov_chain import EntropyCut, chain, total_variation, tv_curve
from theory.power import Conditionals, power_law, zeta
from theory.tempering import marginal, rounds, rungs
from toy.relay import make_problems
from toy.tabular import TabularLM, enumerate_law

DEPENDS = (
    *(f"reference/{name}.py" for name in (
        "interface", "sampling", "randomness", "transformer", "power_sampling", "multiple_try",
        "parallel_tempering", "power_smc", "lookahead", "best_of_n",
    )),
    *(f"theory/{name}.py" for name in (
        "importance", "lookahead", "markov_chain", "suffix_mh", "power", "tempering",
    )),
    "reference/engine", "toy/tabular.py", "toy/relay.py", "toy/checkpoint/model.safetensors",
    "figures/power_samplers.py",
)  # fmt: skip
ALPHA, SEED, SLOTS = 4.0, 0, 4096
TRIES, RUNGS, AHEAD = 4, 3, 7
CANDIDATES = 2  # of look-ahead on the toy model; in the worlds all tokens are
DRAWS, PROBLEMS = 4000, 100
SIZES = (1, 2, 4, 8, 16, 32, 64)
SETTINGS = {  # of each method: in the enumerable worlds, and on the toy model
    "low temperature": ((1,), (1,)),
    "power": ((2, 5, 10, 20, 50, 100, 200), (10, 30, 100, 200, 400)),
    "entropy": ((2, 5, 10, 20, 50, 100, 200), (10, 30, 100, 200, 400)),
    "prefetch": ((2, 5, 10, 20, 50, 100, 200), (10, 30, 100, 200, 400)),
    "tries": ((1, 2, 5, 10, 20, 50), (10, 30, 100, 200)),
    "tempering": ((1, 2, 5, 10, 20), (1, 3, 10, 30)),
    "smc": (SIZES, SIZES[:6]),
    "lookahead p": (SIZES[:6], (1, 2, 4)),
    "lookahead g": (SIZES[:4], (1, 2, 4)),
    "chunks": (SIZES[1:6], (2, 4, 8, 16)),
    "published": (SIZES[1:6], (2, 4, 8, 16)),
}
Draw = Callable[..., Generation]  # of (model, prompts, stop_ids=, keys=, ...): one answer to each prompt


def chunk(horizon: int) -> int:
    return max(2, horizon // 6)


def sampler(method: str, size: int, horizon: int, candidates: int | None) -> Draw:
    """A method with its setting, the number that SETTINGS varies."""
    chain_of: dict[str, Any] = {"block": horizon, "steps": size, "max_new_tokens": horizon}
    configs: dict[str, tuple[Callable[..., Any], Any]] = {
        "power": (power_sample, PowerConfig(ALPHA, **chain_of)),
        "entropy": (power_sample, PowerConfig(ALPHA, **chain_of, cut="entropy")),
        "prefetch": (power_sample, PowerConfig(ALPHA, **chain_of, prefetch=AHEAD)),
        "tries": (multiple_try, MultipleTryConfig(ALPHA, **chain_of, tries=TRIES)),
        "tempering": (parallel_tempering, TemperingConfig(ALPHA, **chain_of, rungs=RUNGS)),
        "smc": (power_smc, SMCConfig(ALPHA, particles=size, max_new_tokens=horizon)),
    }
    chunked: dict[str, Any] = {"max_new_tokens": horizon, "chunk": chunk(horizon), "candidates": size, "rollouts": 1}
    configs["chunks"] = (lookahead, LookaheadConfig(ALPHA, **chunked, rollout_law="g", chunk_law="g"))
    configs["published"] = (lookahead, LookaheadConfig(ALPHA, **chunked, weight="published"))
    for law in "pg":
        config = LookaheadConfig(ALPHA, max_new_tokens=horizon, candidates=candidates, rollouts=size, rollout_law=law)
        configs[f"lookahead {law}"] = (lookahead, config)

    def draw(model: LanguageModel, prompts: list, **setting) -> Generation:
        if method == "low temperature":
            return generate(model, prompts, max_new_tokens=horizon, temperature=1 / ALPHA, seed=SEED, **setting)
        sample, config = configs[method]
        return sample(model, prompts, config, seed=SEED, **setting)

    return draw


# --- Enumerable worlds -----------------------------------------------------------------------------------------------


def of_two_tokens(first: float, law: Callable[[tuple[int, ...]], float], horizon: int) -> TabularLM:
    """Texts of tokens 1 and 2 that never end: `first` and law(text) are the chances of token 1."""
    laws: dict[tuple[int, ...], list[float]] = {(1,): [0, first, 1 - first]}
    for n in range(1, horizon):
        laws |= {(1, *text): [0, law(text), 1 - law(text)] for text in product((1, 2), repeat=n)}
    return TabularLM.tree(laws, 3)


def worlds() -> dict[str, tuple[TabularLM, int, int]]:
    """name -> (model, its one prompt token, horizon). Token 0 ends a text."""
    rng = np.random.default_rng(SEED)
    near = {text: rng.uniform(0.6, 0.8) for n in range(1, 6) for text in product((1, 2), repeat=n)}
    stay = {(1, 1): 0.79, (1, 2): 0.55, (2, 1): 0.35, (2, 2): 0.1}  # by first and last token
    return {
        "easy": (of_two_tokens(0.7, lambda text: near[text], 6), 1, 6),
        "multimodal": (of_two_tokens(0.67, lambda text: stay[text[0], text[-1]], 6), 1, 6),
        "lengths": (TabularLM.markov([[0.2, 0.4, 0.4], [0.1, 0.9, 0], [0.1, 0, 0.9]]), 0, 8),
    }


def distance(samples: Samples, target: dict[tuple[int, ...], float]) -> tuple[float, float, float]:
    """(TV, lower, upper) by the two halves of the draws."""
    texts = [tuple(row[:n]) for row, n in zip(samples.tokens[:, 0].tolist(), samples.lengths[:, 0].tolist())]
    half = len(texts) // 2
    counts: dict[tuple[int, ...], int] = {}
    for text in texts[:half]:
        counts[text] = counts.get(text, 0) + 1
    more = {text for text, count in counts.items() if count / half > target[text]}
    mass = sum(target[text] for text in more)
    mean, low, high = (share - mass for share in accuracy([text in more for text in texts[half:]]))
    return mean, low, high


def exact(conditionals: Conditionals, logp: np.ndarray, horizon: int) -> dict[str, dict[int, float]]:
    """TV of the output's distribution where theory has it, per method and setting. (Look-ahead: the plug-in's; SMC of
    two particles never resamples at κ = 1/2, so it is one of two draws picked by weight.)"""
    setting: dict[str, Any] = {"horizon": horizon, "alpha": ALPHA}
    one = chain(conditionals, **setting, cut="record")
    several = chain(conditionals, **setting, cut="record", tries=TRIES)
    unsure = chain(conditionals, **setting, cut=EntropyCut())
    records, target = one.records, one.target
    log_z = zeta(conditionals, ALPHA)
    weights = np.exp([sum(log_z[record[:t]] for t in range(len(record))) for record in records])
    found = {"low temperature": {1: total_variation(one.initial, target)}}
    found["smc"] = {n: total_variation(picked(one.initial, weights, n), target) for n in (1, 2)}
    for method, of in (("power", one), ("entropy", unsure), ("tries", several)):
        curve = tv_curve(of.initial, of.kernel, target, max(SETTINGS[method][0]))
        found[method] = {n: float(curve[n]) for n in SETTINGS[method][0]}
    found["prefetch"] = found["power"]
    alphas = TemperingConfig(ALPHA, rungs=RUNGS).alphas
    joints = rounds(rungs(conditionals, alphas, horizon=horizon, cut="record"), logp, alphas)
    steps = SETTINGS["tempering"][0]
    far = [total_variation(marginal(joint, -1), target) for joint in islice(joints, max(steps) + 1)]
    found["tempering"] = {n: far[n] for n in steps}
    for law in "pg":
        found[f"lookahead {law}"] = {}
        for n in SETTINGS[f"lookahead {law}"][0]:
            laws = lookahead_law(conditionals, **setting, rollouts=n, rollout_law=law, estimator="plug_in")
            found[f"lookahead {law}"][n] = total_variation([laws.get(x, 0) for x in records], target)
    for method, law, weight in (("chunks", "g", "exact"), ("published", "p", "published")):
        found[method] = {}
        for n in SETTINGS[method][0]:
            laws = lookahead_law(
                conditionals, **setting, chunk=chunk(horizon), draws=n, rollouts=1, rollout_law=law, proposal=law,
                weight=weight,
            )  # fmt: skip
            found[method][n] = total_variation([laws.get(x, 0) for x in records], target)
    return found


def measure_world(model: TabularLM, prompt: int, horizon: int) -> dict:
    records, logp, conditionals = enumerate_law(model, [prompt], horizon, [0])
    target, theory = dict(zip(records, power_law(logp, ALPHA))), exact(conditionals, logp, horizon)
    length = float(np.exp(logp) @ [len(record) for record in records])
    methods: dict[str, dict[int, dict]] = {}
    for method, (sizes, _) in SETTINGS.items():
        methods[method] = {}
        for size in sizes:
            # prefetching changes what the tokens of a chain cost, and not one of them
            n = DRAWS // 8 if method == "prefetch" else DRAWS
            draw = sampler(method, size, horizon, None)
            drawn = draw(model, [[prompt]] * n, stop_ids=[0], keys=range(n), slots=SLOTS)
            tv = methods["power"][size]["tv"] if method == "prefetch" else distance(drawn.samples, target)
            methods[method][size] = spent(drawn) | {"tv": tv}
            if size in theory.get(method, {}):
                methods[method][size]["exact"] = round(theory[method][size], 6)
    return {"length": length, "methods": methods}


def spent(drawn: Generation) -> dict:
    """Tokens per prompt."""
    names = {"decoded": "decoded_tokens", "sequential": "sequential_tokens"}
    return {key: sum(getattr(cost, name) for cost in drawn.costs) / len(drawn.costs) for key, name in names.items()}


# --- The toy model ---------------------------------------------------------------------------------------------------


def judge(world: World, samples: Samples) -> dict:
    """samples [problems, 1]."""
    return {"accuracy": accuracy(world.right(samples)[:, 0]), "logp": interval(samples.total_logp()[:, 0].numpy())}


def independent(world: World) -> Iterator[tuple[str, dict]]:
    """Best-of-N and majority vote: the first N of one pool."""
    pool = world.sample(max(SIZES)).samples
    for name in ("log-probability", "majority vote"):
        rows = {}
        for n in SIZES:
            first = pool.take(torch.arange(n).expand(len(pool), n))
            cost = {
                "decoded": float(first.lengths.sum(1).double().mean()),
                "sequential": float(first.lengths.amax(1).double().mean()),
            }
            rows[n] = cost | judge(world, select(first, rewards(world)[name](first)))
        yield name, rows


def measure_toy() -> dict:
    world = World(TextModel.from_pretrained(CHECKPOINT), make_problems(PROBLEMS, seed=SEED + 1000))
    methods = dict(independent(world))
    for method, (_, sizes) in SETTINGS.items():
        methods[method] = {}
        for size in sizes:
            drawn = sampler(method, size, HORIZON, CANDIDATES)(
                world.text_model.model, world.prompts, stop_ids=world.text_model.stop_ids,
                keys=[problem.id for problem in world.problems],
            )  # fmt: skip
            methods[method][size] = spent(drawn) | judge(world, drawn.samples)
    length = methods["log-probability"][1]["decoded"]
    return {"length": length, "methods": methods}


def compute() -> dict:
    return {
        "seed": SEED, "alpha": ALPHA, "draws": DRAWS, "problems": PROBLEMS,
        "worlds": {name: measure_world(*world) for name, world in worlds().items()},
        "toy": measure_toy(),
    }  # fmt: skip


# --- What is shown ---------------------------------------------------------------------------------------------------

NAMES = {  # method -> (name, colour, marker)
    "low temperature": ("low temperature, 1/α", BY_METHOD["low temperature"], "*"),
    "power": ("power sampling", BY_METHOD["power"], "o"),
    "entropy": ("power sampling, entropy cuts", BY_METHOD["entropy cuts"], "h"),
    "prefetch": (f"power sampling, prefetch {AHEAD}", BY_METHOD["prefetch"], "o"),
    "tries": (f"multiple try, {TRIES} tries", BY_METHOD["multiple try"], "s"),
    "tempering": (f"parallel tempering, {RUNGS} rungs", BY_METHOD["tempering"], "D"),
    "smc": ("power SMC", BY_METHOD["smc"], "^"),
    "lookahead p": ("look-ahead, rollouts from p", BY_METHOD["lookahead p"], "v"),
    "lookahead g": ("look-ahead, rollouts from g", BY_METHOD["lookahead"], "v"),
    "chunks": ("look-ahead by chunks from g", BY_METHOD["chunks"], "P"),
    "published": ("chunks, published weight", BY_METHOD["chunks, published"], "P"),
    "log-probability": ("best-of-N by log-probability", BY_METHOD["best-of-N"], "X"),
    "majority vote": ("majority vote of N", BY_METHOD["majority"], "X"),
}
BOTH = ("decoded", "sequential")
PICTURES = {  # the rest of its name -> (methods, panels, a row for each of these budgets, title)
    "": (
        ("low temperature", "power", "tempering", "smc", "lookahead g", "log-probability"),
        ("multimodal", "lengths", "accuracy"), ("decoded",), "How near to p^4, for how many tokens",
    ),
    "waiting": (
        ("low temperature", "power", "tempering", "smc", "lookahead g", "log-probability"),
        ("multimodal", "lengths", "accuracy"), ("sequential",), "How near to p^4, for how long a wait",
    ),
    "chains": (
        ("low temperature", "power", "entropy", "prefetch", "tries", "tempering"),
        ("multimodal", "lengths", "accuracy"), BOTH, "Samplers of p^4 that are chains",
    ),
    "lookahead": (
        ("low temperature", "power", "lookahead p", "lookahead g", "chunks", "published"),
        ("easy", "multimodal", "lengths", "accuracy"), BOTH, "Samplers of p^4 that look ahead, beside power sampling",
    ),
    "logp": (
        ("low temperature", "power", "tempering", "smc", "log-probability", "majority vote"),
        ("logp",), BOTH, "The toy model: log-probability of the answer given",
    ),
}  # fmt: skip
WORLDS = ("easy", "multimodal", "lengths")
BUDGETS = (("decoded", 8), ("decoded", 40), ("sequential", 4))  # in responses of the model at temperature 1


def within(place: dict, method: str, axis: str, budget: float) -> dict | None:
    """A method's last, greatest setting that costs no more than the budget."""
    rows = [row for row in place["methods"].get(method, {}).values() if row[axis] <= budget * place["length"]]
    return rows[-1] if rows else None


def table(result: dict) -> str:
    places = [(result["worlds"][name], "tv") for name in WORLDS]
    places += [(result["toy"], key) for key in ("accuracy", "logp")]
    widths, blocks = (16, 16, 16, 21, 15), []
    heads = ("TV to p^4: easy ", "multimodal ", "lengths ", "toy: accuracy ", "mean log p ")
    for axis, budget in BUDGETS:
        tokens = ", ".join(f"{budget * place['length']:.0f}" for place, _ in places[:-1])
        columns = [cells(place, key, axis, budget) for place, key in places]
        lines = [
            f"At most {budget} responses' worth of {axis} tokens ({tokens})",
            " " * 28 + " ".join(f"{head:>{width}}" for head, width in zip(heads, widths)).rstrip(),
        ]
        for method, (name, *_) in NAMES.items():
            if any(column[method] != "- " for column in columns):
                row = " ".join(f"{column[method]:>{width}}" for column, width in zip(columns, widths))
                lines.append(f"{name:28}{row}".rstrip())
        blocks.append("\n".join(lines))
    return "\n\n".join((*blocks, LESSONS))


def cells(place: dict, key: str, axis: str, budget: float) -> dict[str, str]:
    """A column: what each method reaches within a budget."""
    found = {method: within(place, method, axis, budget) for method in NAMES}
    values = {method: row[key] for method, row in found.items() if row}
    best = min(values.values()) if key == "tv" else max(values.values())
    column = dict.fromkeys(NAMES, "- ")
    for method, (mean, low, high) in values.items():
        if key == "accuracy":
            text = f"{mean:.2f} [{low:.2f}, {high:.2f}]"
        else:
            text = f"{mean:.3f} ±{(high - low) / 2:.3f}"
        column[method] = text + ("*" if low <= best[2] and high >= best[1] else " ")
    return column


LESSONS = """*: the best of its column, or its interval overlaps the best one's (95 %). -: nothing so cheap, or no TV.
Each method at its greatest setting within the budget; a response is the model's own at temperature 1."""


TITLES = {
    "easy": "World 'easy': futures are alike", "multimodal": "World 'multimodal': two likely texts",
    "lengths": "World 'lengths': a guess, or a long text", "accuracy": "Toy model", "logp": "Toy model",
}  # fmt: skip


def draw(result: dict) -> dict:
    return {name: picture(result, *how) for name, how in PICTURES.items()}


def picture(result: dict, methods: tuple[str, ...], panels: tuple[str, ...], budgets: tuple[str, ...], title: str):
    """A panel for each world and budget."""
    rows, columns = (1, len(budgets)) if len(panels) == 1 else (len(budgets), len(panels))
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.7 * columns, 3.4 * rows + 1.4), squeeze=False, layout="constrained"
    )
    for i, budget in enumerate(budgets):
        for axis, panel in zip(axes.flat[i * len(panels) :], panels):
            place, key = (result["worlds"][panel], "tv") if panel in WORLDS else (result["toy"], panel)
            for method in methods:
                points(axis, place["methods"].get(method, {}), method, key, budget)
            axis.set(xscale="log", title=TITLES[panel])
            axis.set_xlabel({"decoded": "decoded tokens per answer",
                             "sequential": "tokens that wait for each other, per answer"}[budget])  # fmt: skip
            axis.set_ylabel({"tv": f"total variation distance to p^{result['alpha']:g}", "accuracy": "accuracy",
                             "logp": "mean log p of the answer (nats)"}[key])  # fmt: skip
            tidy(axis)
            if key == "tv":
                axis.axhline(0, color=GREY, linewidth=0.8)
                axis.set_ylim(-0.05, 0.5)
            elif key == "logp":
                axis.set_ylim(-3.6, None)
    named = [NAMES[method] for method in methods]
    handles = [plt.Line2D([], [], color=c, marker=m, linestyle="-", label=name) for name, c, m in named]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    notes = "lines in the worlds: exact, dashed: without the jackknife, dotted: nothing exact; points: measured, 95 %"
    figure.suptitle(f"{title}\n({notes})" if len(panels) > 1 else f"{title} (95 % intervals)", fontsize=12)
    return figure


def points(axis, rows: dict, method: str, key: str, budget: str) -> None:
    """A method's settings, and its exact distribution where theory has it."""
    if not (rows := {size: row for size, row in rows.items() if key in row}):
        return
    _, colour, marker = NAMES[method]
    x = [found[budget] for found in rows.values()]
    mean, low, high = np.array([found[key] for found in rows.values()]).T
    line = "-" if key != "tv" else ":" if method == "smc" else "none"
    drawn = axis.errorbar(
        x, mean, (mean - low, high - mean), fmt=marker, linestyle=line, color=colour, capsize=2,
        markersize=12 if marker == "*" else 5, elinewidth=0.8, linewidth=1.2, zorder=3 if marker == "*" else 2,
    )  # fmt: skip
    for part in (*drawn[1], *drawn[2]):
        part.set_alpha(0.45)
    exact_at = [(a, found["exact"]) for a, found in zip(x, rows.values()) if "exact" in found]
    if key == "tv" and len(exact_at) > 1:
        axis.plot(*zip(*exact_at), "--" if method.startswith("lookahead") else "-", color=colour, linewidth=1.3)
