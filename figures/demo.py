"""The demo: one small model, several ways to ask it, and what each costs.

200 problems of the relay task that the model has never seen (`toy/relay.py`), answered by greedy decoding, by sampling
at three temperatures, by best-of-N with three self-rewards, by chains that tend to p^α, each beside best-of-N and
majority vote at the same number of decoded tokens, by four other samplers of p^4, and by refinement: a draft that is
revised again and again, and parallel-distill-refine. Only the accuracy columns have seen an answer.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from figures._distillation import QUICK
from figures._style import BY_METHOD
from figures._verification import committed
from reference.best_of_n import select
from reference.evaluation.statistics import accuracy
from reference.interface import Generation
from reference.lookahead import LookaheadConfig, lookahead
from reference.multiple_try import MultipleTryConfig, multiple_try
from reference.parallel_distill_refine import PDRConfig, Refinement, parallel_distill_refine
from reference.parallel_tempering import TemperingConfig, parallel_tempering
from reference.power_sampling import PowerConfig, power_sample
from reference.power_smc import SMCConfig, power_smc
from reference.sampling import Cost, Samples, generate, score
from reference.self_reward import length_normalized, log_probability, majority_vote
from reference.sequential_refinement import sequential_refinement
from reference.text.text_model import TextModel
from reference.uq_ttc import uq_ttc
from toy.relay import Problem, make_problems

DEPENDS = ("reference", "toy", "figures/demo.py")
CHECKPOINT = Path(__file__).resolve().parent.parent / "toy" / "checkpoint"
PROBLEMS, POOL, SEED, HORIZON = 200, 32, 0, 24
SHORT = 3  # tokens of a response without steps, "= 6 ."
KINDS = ("plain", "tempting", "hard")
SIZES = (1, 2, 4, 8, 16, 32)


@dataclass
class World:
    """What every method is given: the model, the problems, and how to read a response."""

    text_model: TextModel
    problems: list[Problem]

    @property
    def prompts(self) -> list[list[int]]:
        return [self.text_model.prompt("author", question=problem.question) for problem in self.problems]

    def sample(self, n: int, temperature: float = 1.0):
        model = self.text_model
        return generate(
            model.model, self.prompts, max_new_tokens=HORIZON, stop_ids=model.stop_ids, samples_per_prompt=n,
            temperature=temperature, keys=[problem.id for problem in self.problems], seed=SEED,
        )  # fmt: skip

    def answers(self, samples: Samples) -> list[list[str | None]]:
        """What each response answers, [problem][i]."""
        parse, texts = self.text_model.parse, self.text_model.texts(samples)
        return [[parse("author", text) for text in responses] for responses in texts]

    def right(self, samples: Samples) -> np.ndarray:
        """1 where a response's answer is the truth, [problems, n]."""
        truth = (problem.answer for problem in self.problems)
        return np.array([[a == answer for a in given] for given, answer in zip(self.answers(samples), truth)], float)


@dataclass
class Row:
    """One method's line in the table."""

    method: str
    samples: Samples  # [problems, 1]: the responses that it answers with
    costs: list[Cost]  # per problem
    seconds: float
    budgets: tuple[float, float] | None = None  # B_seq, B_total per problem, of what asks in whole calls

    @property
    def decoded(self) -> float:
        """Tokens decoded per problem."""
        return sum(cost.decoded_tokens for cost in self.costs) / len(self.costs)

    @property
    def sequential(self) -> float:
        """... of which so many wait for each other."""
        return sum(cost.sequential_tokens for cost in self.costs) / len(self.costs)


def ask(world: World, method: str, sample: Callable[..., Generation], config: object) -> Row:
    """One answer to each problem by a sampler of p^α."""
    begin, keys = time.perf_counter(), [problem.id for problem in world.problems]
    model = world.text_model
    drawn = sample(model.model, world.prompts, config, stop_ids=model.stop_ids, keys=keys, seed=SEED)
    return Row(method, drawn.samples, drawn.costs, time.perf_counter() - begin)


def one_response(world: World) -> Iterator[Row]:
    """Decode once: greedily, at low temperatures, at temperature 1."""
    for method, temperature in (
        ("greedy", 0.0), ("temperature 1/4", 0.25), ("temperature 1/2", 0.5), ("temperature 1", 1.0)
    ):  # fmt: skip
        begin = time.perf_counter()
        drawn = world.sample(1, temperature)
        yield Row(method, drawn.samples, drawn.costs, time.perf_counter() - begin, side_by_side(drawn.costs))


def best(world: World, n: int, names: Iterable[str], form: str) -> Iterator[Row]:
    """Of n responses, the one that each of some self-rewards prefers."""
    begin = time.perf_counter()
    drawn = world.sample(n)
    seconds = time.perf_counter() - begin
    for name in names:
        chosen = select(drawn.samples, rewards(world)[name](drawn.samples))
        yield Row(form.format(n=n, name=name), chosen, drawn.costs, seconds, side_by_side(drawn.costs))


def side_by_side(costs: list[Cost]) -> tuple[float, float]:
    """B_seq and B_total of calls that do not wait for each other, all with the problem's own prompt."""
    waited = sum(cost.prompt_tokens / cost.calls + cost.sequential_tokens for cost in costs)
    return waited / len(costs), sum(cost.prompt_tokens + cost.decoded_tokens for cost in costs) / len(costs)


def best_of_n(world: World) -> Iterator[Row]:
    """Best-of-N by log-probability for several N, and by the other two self-rewards for the largest."""
    for n in (4, 8, POOL):
        yield from best(world, n, rewards(world) if n == POOL else ("log-probability",), "best of {n} by {name}")


def power(world: World) -> Iterator[Row]:
    """The last state of a chain for p^α, in one block: N steps cut the first token about N/24 times. Under it, what as
    many independent responses as have about the same number of tokens give: the comparison that the paper leaves out.
    """
    per_response = world.sample(1).cost.decoded_tokens / len(world.problems)
    for alpha, steps in ((4.0, 10), (2.0, 100), (4.0, 100), (4.0, 400)):
        config = PowerConfig(alpha, block=HORIZON, steps=steps, max_new_tokens=HORIZON)
        yield (row := ask(world, f"power p^{alpha:g}, {steps} steps", power_sample, config))
        n = round(row.decoded / per_response)
        if n > 1:
            names = ("log-probability", "majority vote") if n > 2 else ("log-probability",)  # two never disagree
            yield from best(world, n, names, "  same tokens: {n} by {name}")


def particles(world: World) -> Iterator[Row]:
    """One of 8 particles that grow side by side."""
    yield ask(world, "power SMC p^4, 8 particles", power_smc, SMCConfig(particles=8, max_new_tokens=HORIZON))


def ladder(world: World) -> Iterator[Row]:
    """The last of three chains, for p, p^2 and p^4, that swap places."""
    config = TemperingConfig(rungs=3, block=HORIZON, steps=3, max_new_tokens=HORIZON)
    yield ask(world, "parallel tempering p^4, 3 x 3 steps", parallel_tempering, config)


def tries(world: World) -> Iterator[Row]:
    """A chain with four proposals in each step."""
    config = MultipleTryConfig(tries=4, block=HORIZON, steps=100, max_new_tokens=HORIZON)
    yield ask(world, "multiple try p^4, 4 x 100 steps", multiple_try, config)


def chunks(world: World) -> Iterator[Row]:
    """Four tokens at a time, picked among four by what one rollout each leads to."""
    config = LookaheadConfig(max_new_tokens=HORIZON, chunk=4, candidates=4, rollouts=1, rollout_law="g", chunk_law="g")
    yield ask(world, "look-ahead p^4, 4 chunks, 1 rollout", lookahead, config)


def refinement(world: World) -> Iterator[Row]:
    """One draft that is revised three times; four drafts, distilled and refined, once and twice."""
    asked = (world.text_model, [problem.question for problem in world.problems])
    settings = {"seed": SEED, "keys": [problem.id for problem in world.problems]}

    def timed(method: str, refine: Callable[..., Refinement], *arguments: object) -> Row:
        begin = time.perf_counter()
        result = refine(*asked, *arguments, **settings)
        budgets = result.ledger.budgets()
        seconds = time.perf_counter() - begin
        return Row(method, result.samples, result.costs, seconds, (budgets["B_seq"], budgets["B_total"]))

    def config(*drafts: int) -> PDRConfig:
        return PDRConfig(drafts, workspace=8, max_new_tokens=HORIZON)

    yield timed("sequential refinement, 3 rounds", sequential_refinement, 3, config(4))
    yield timed("parallel-distill-refine (4, 1)", parallel_distill_refine, config(4))
    yield timed("parallel-distill-refine (4, 4, 1)", parallel_distill_refine, config(4, 4))


def cascade(world: World) -> Iterator[Row]:
    """The first of 8 candidates that passes all votes of all stages, else the first: no distillation, many calls."""
    begin, keys = time.perf_counter(), [problem.id for problem in world.problems]
    found = uq_ttc(world.text_model, [problem.question for problem in world.problems], QUICK, seed=SEED, keys=keys)
    method = f"first of {QUICK.n} that passes the cascade"
    yield Row(method, found.samples, found.costs, time.perf_counter() - begin)


METHODS = (one_response, best_of_n, power, particles, ladder, tries, chunks, refinement, cascade)


def rewards(world: World) -> dict[str, Callable[[Samples], torch.Tensor]]:
    return {
        "log-probability": log_probability,
        "log p per token": length_normalized,
        "majority vote": lambda samples: majority_vote(world.answers(samples)),
    }


def mean_logp(world: World, samples: Samples) -> float:
    """Mean log-probability as an author's responses, whoever wrote them."""
    scored = score(world.text_model.model, world.prompts, [responses[0].tokens for responses in samples])
    return float(np.mean([float(logp.double().sum()) for logp in scored]))


def curves(world: World) -> dict:
    """Accuracy against N by class, for each self-reward, from one pool: the first N of 32 responses."""
    pool = world.sample(POOL).samples
    kinds = np.array([problem.kind for problem in world.problems])
    groups = {"all": np.ones(len(kinds), bool)} | {kind: kinds == kind for kind in KINDS}
    right = world.right(pool)
    result = {"any right (pass@N)": {n: right[:, :n].max(1) for n in SIZES}}
    for name, reward in rewards(world).items():
        first = {n: pool.take(torch.arange(n).expand(len(pool), n)) for n in SIZES}
        result[name] = {n: world.right(select(samples, reward(samples)))[:, 0] for n, samples in first.items()}
    return {
        group: {name: [accuracy(scores[n][mask]) for n in SIZES] for name, scores in result.items()}
        for group, mask in groups.items()
    }


def compute() -> dict:
    text_model = TextModel.from_pretrained(CHECKPOINT)
    world = World(text_model, make_problems(PROBLEMS, seed=SEED + 1000))
    kinds = np.array([problem.kind for problem in world.problems])
    rows = []
    for method in METHODS:
        for row in method(world):
            right = world.right(row.samples)[:, 0]
            by_kind = {kind: accuracy(right[kinds == kind]) for kind in KINDS}
            short = float((row.samples.lengths <= SHORT).double().mean())
            rows.append(
                {
                    "method": row.method, "accuracy": accuracy(right), **by_kind, "logp": mean_logp(world, row.samples),
                    "short": short, "decoded": row.decoded, "sequential": row.sequential, "seconds": row.seconds,
                    "budgets": row.budgets,
                }
            )  # fmt: skip
    counts = {kind: int((kinds == kind).sum()) for kind in KINDS}
    return {"seed": SEED, "problems": PROBLEMS, "counts": counts, "rows": rows, "curves": curves(world)}


def table(result: dict) -> str:
    counts = result["counts"]
    lines = [
        f"{result['problems']} problems that the model has not seen: "
        + ", ".join(f"{counts[kind]} {kind}" for kind in KINDS),
        "",
        f"{'':36}{'accuracy':>9} {'95 %':14}{'plain':>7}{'tempting':>9}{'hard':>6}{'mean':>7}{'short':>7}"
        f"{'tokens':>8}{'in a':>7}",
        f"{'':36}{'':9} {'interval':14}{'':22}{'log p':>7}{'share':>7}{'':8}{'row':>7}{'seconds':>9}{'B_seq':>7}"
        f"{'B_total':>9}",
    ]
    for row in result["rows"]:
        mean, low, high = row["accuracy"]
        plain, tempting, hard = (row[kind][0] for kind in KINDS)
        budgets = "{:7.0f}{:9.0f}".format(*row["budgets"]) if row["budgets"] else ""
        lines.append(
            f"{row['method']:36}{mean:9.3f} [{low:.3f}, {high:.3f}]{plain:6.2f}{tempting:9.2f}{hard:6.2f}"
            f"{row['logp']:7.2f}{row['short']:7.2f}{row['decoded']:8.1f}{row['sequential']:7.1f}{row['seconds']:9.1f}"
            f"{budgets}"
        )
    return "\n".join((*lines, "", committed(), "", LESSONS))


STORY = (
    "greedy", "temperature 1/4", "temperature 1", "best of 8 by log-probability", "best of 32 by majority vote",
    "power p^4, 400 steps", "parallel-distill-refine (4, 4, 1)", "first of 8 that passes the cascade",
)  # fmt: skip


def short(result: dict) -> str:
    """The rows that tell the story."""
    counts = "   ".join(f"{kind} {n}" for kind, n in result["counts"].items())
    lines = [f"{'accuracy':36}{'all':>7}{'plain':>9}{'tempting':>10}{'hard':>7}{'tokens':>10}"]
    for row in result["rows"]:
        if row["method"] in STORY:
            plain, tempting, hard = (row[kind][0] for kind in KINDS)
            shares = f"{row['accuracy'][0]:7.2f}{plain:9.2f}{tempting:10.2f}{hard:7.2f}"
            lines.append(f"{row['method']:36}{shares}{row['decoded']:10.0f}")
    notes = (
        f"{result['problems']} problems: {counts}",
        "tokens: decoded per problem, with those of checks and of rejected proposals",
        "power p^4: 400 Metropolis-Hastings steps, most of which are decided without decoding anything",
        "(4, 4, 1): two rounds of 4 drafts, each round seeing reports on the last, then one answer",
        "cascade: the model's own checks of a draft (question, facts, result), all of which must say yes",
    )  # fmt: skip
    return "\n".join((*lines, "", *notes))


def tables(result: dict) -> dict[str, str]:
    return {"demo": table(result), "demo-short": short(result)}


LESSONS = """tokens: decoded per problem, "in a row" those that wait for each other. short: answers that show no steps.
B_seq, B_total: tokens of prompts and responses, of the calls that wait for each other and of all (for whole calls).
plain: the right draft is the most likely one, token by token; any sharpening helps.
tempting: the likeliest first token (a guess) has many poor futures; sharpening tokens hurts, whole responses helps.
hard: the most likely draft holds a misconception; no sharpening helps, only checking steps does (refine, cascade)."""

COLOURS = {
    "log-probability": BY_METHOD["best-of-N"], "log p per token": BY_METHOD["best-of-N, per token"],
    "majority vote": BY_METHOD["majority"], "any right (pass@N)": BY_METHOD["pass@N"],
}  # fmt: skip
LINES = {"greedy": (BY_METHOD["greedy"], "--"), "temperature 1/4": (BY_METHOD["low temperature"], ":")}


def draw(result: dict):
    figure, axes = plt.subplots(1, 4, figsize=(14, 4), sharey=True, layout="constrained")
    for axis, group in zip(axes, ("all", *KINDS)):
        for name, points in result["curves"][group].items():
            mean, low, high = np.array(points).T
            axis.fill_between(SIZES, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
            axis.plot(SIZES, mean, "o-", color=COLOURS[name], markersize=4, label=name)
        for row in result["rows"]:
            if row["method"] in LINES:
                colour, style = LINES[row["method"]]
                level = row["accuracy" if group == "all" else group][0]
                axis.axhline(level, color=colour, linestyle=style, linewidth=1.2, label=row["method"])
        count = result["problems"] if group == "all" else result["counts"][group]
        axis.set(
            title=f"{group} ({count} problems)", xscale="log", xlabel="N, responses drawn per problem", ylim=(0, 1.03)
        )
        axis.set_xticks(SIZES, SIZES)
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("accuracy (95 % interval)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle("Best-of-N by self-reward on the relay task: sharpening helps where the model's mode is right")
    return figure
