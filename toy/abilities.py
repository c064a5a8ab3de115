"""What a checkpoint of the relay task can do, measured on held-out problems: its model card.

    python -m toy.abilities                    the shipped checkpoint -> toy/checkpoint/{abilities.json,README.md}
    python -m toy.abilities FOLDER --world W --results FILE      another one -> its numbers alone

The author's accuracy by class of problem and way of choosing, what its samples are, what each stage of the reviewer
makes of them, and the roles that build on something; beside them what the demonstrators themselves would reach.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch

from reference.evaluation.statistics import accuracy
from reference.parallel_distill_refine import PDRConfig, parallel_distill_refine
from reference.sampling import child_seed
from reference.text.text_model import TextModel
from reference.transformer import Transformer, write_whole
from toy import relay
from toy.pretrain import CHECKPOINT
from toy.relay import NOTHING, World

RESULTS = Path(__file__).parent / "results"  # of the runs whose weights are not shipped
NULL = ("careless", "plurality", "misguided")
CLASSES = ("all", "plain", "tempting", "hard")


def by_class(right: np.ndarray, kinds: np.ndarray) -> dict[str, list[float]]:
    """[rate, low, high] for each problem class: accuracy with its 95 % interval over problems. right bool [n], or
    [n, samples] for several samples of each problem."""
    scores = right if right.ndim == 1 else right.mean(1)
    return {name: list(accuracy((scores if name == "all" else scores[kinds == name]).tolist())) for name in CLASSES}


def rows_of(samples) -> np.ndarray:
    """The responses of `generate`, ids [prompts, n, horizon], filled up with NOTHING."""
    tokens = samples.tokens.cpu().numpy()
    beyond = np.arange(tokens.shape[-1]) >= samples.lengths.cpu().numpy()[..., None]
    return np.where(beyond, NOTHING, tokens)


def profile(world: World, questions: np.ndarray, draw) -> dict[str, dict[str, list[float]]]:
    """Accuracy by class of every way to choose one response. draw(temperature, n) -> drafts [questions, n, time],
    log-probabilities [questions, n]."""
    truth, kinds = relay.solve(world, questions)[:, -1], relay.problem_class(world, questions)
    every = np.arange(len(questions))

    def right(drafts):
        answers = relay.answers_of(world, drafts.reshape(-1, drafts.shape[-1])).reshape(drafts.shape[:-1])
        return answers == truth[:, None]

    drafts, logp = draw(1.0, 32)
    correct = right(drafts)
    answers = relay.answers_of(world, drafts.reshape(-1, drafts.shape[-1])).reshape(logp.shape)
    table = {"temperature 1": by_class(correct, kinds)}
    for name, temperature in (("temperature 1/4", 0.25), ("greedy", 0.0)):
        table[name] = by_class(right(draw(temperature, 1)[0])[:, 0], kinds)
    for n in (4, 8, 32):
        table[f"best-of-{n} by log-probability"] = by_class(correct[every, logp[:, :n].argmax(1)], kinds)
    table["majority of 16"] = by_class(relay.most_frequent(world, answers[:, :16]) == truth, kinds)
    table["pass@16"] = by_class(correct[:, :16].any(1), kinds)
    return table


def measure(world: World, folder: Path, n: int = 2000, seed: int = 0, log=print) -> dict:
    """What the checkpoint in `folder` can do on n held-out problems of its world."""
    speaker = TextModel.from_pretrained(folder)
    questions = relay.split_questions(world, n, seed)
    texts = [world.decode(q) for q in questions]
    truth, kinds = relay.solve(world, questions)[:, -1], relay.problem_class(world, questions)
    horizon, rng = world.draft_length, np.random.default_rng(seed)
    results: dict = {"n": n, "seed": seed, "shares": {name: float((kinds == name).mean()) for name in CLASSES[1:]}}
    kept = {}

    def ask(role, fields, temperature=1.0, samples=1, purpose=""):
        _, out = speaker.ask(role, fields, max_new_tokens=horizon, temperature=temperature, samples_per_prompt=samples,
                             seed=child_seed(seed, role, purpose))  # fmt: skip
        return out.samples

    def draw(temperature, samples):
        out = ask("author", [{"question": text} for text in texts], temperature, samples, str(temperature))
        kept[temperature] = rows_of(out), out.total_logp().numpy()
        log(f"drawn {samples} at temperature {temperature}")
        return kept[temperature]

    def demonstrators(temperature, samples):
        drafts, logp = relay.sample_author_law(world, questions.repeat(samples, 0), rng, temperature)
        return drafts.reshape(n, samples, -1), logp.reshape(n, samples)

    results["profile"] = profile(world, questions, draw)
    results["demonstrators"] = profile(world, questions, demonstrators)

    drafts, _ = kept[1.0]
    classes = relay.classify(world, questions.repeat(32, 0), drafts.reshape(-1, drafts.shape[-1])).reshape(n, 32)
    results["classes"] = {
        name: {error: float((classes[part] == i).mean()) for i, error in enumerate(relay.ERRORS)}
        for name in CLASSES for part in [np.full(n, True) if name == "all" else kinds == name]
    }  # fmt: skip

    # Each stage's verdict on drafts of every class, one vote.
    results["stages"] = {}
    for i, error in enumerate(relay.ERRORS[:-1]):
        where = np.argwhere(classes == i)
        where = where[rng.permutation(len(where))[:400]]
        candidates = [world.decode(drafts[a, b]) for a, b in where]
        results["stages"][error] = {
            name: list(accuracy(votes))
            for name, stage in speaker.templates.stages.items()
            for votes in [verdicts(speaker, stage, [texts[a] for a, _ in where], candidates, child_seed(seed, name))]
        }
        log(f"reviewed {len(where)} drafts of class {error!r}")

    # Roles that build on something.
    def play(role, fields, purpose):
        rows = rows_of(ask(role, fields, purpose=purpose))[:, 0]
        return rows, by_class(relay.answers_of(world, rows) == truth, kinds)

    def question_with(**lists):
        return [{"question": text, **dict(zip(lists, each))} for text, each in zip(texts, zip(*lists.values()))]

    roles = results["roles"] = {}
    alone = [{"question": text} for text in texts]
    _, roles["solve"] = play("author", alone, "alone")
    _, roles["review"] = play("reviewer", alone, "alone")
    _, roles["refine, empty workspace"] = play("refiner", alone, "empty")
    oracle = [world.decode(row) for row in relay.solve(world, questions)]
    _, roles["refine, true workspace"] = play("refiner", question_with(workspace=oracle), "oracle")
    earlier = drafts[:, 0]
    for r in (1, 2, 3):
        earlier, roles[f"revise, {r} rounds"] = play(
            "reviser", question_with(draft=[world.decode(row) for row in earlier]), f"revise {r}"
        )
    for schedule in ((4,), (4, 4)):
        config = PDRConfig(drafts=schedule, workspace=horizon, max_new_tokens=horizon)
        name = f"parallel-distill-refine {(*schedule, 1)}"
        refined = parallel_distill_refine(speaker, texts, config, seed=child_seed(seed, name))
        roles[name] = by_class(relay.answers_of(world, rows_of(refined.samples)[:, 0]) == truth, kinds)
        log(f"refined {(*schedule, 1)}")
    results["demonstrator_roles"] = demonstrator_roles(world, questions, rng)
    return results


def demonstrator_roles(world: World, q: np.ndarray, rng: np.random.Generator) -> dict[str, dict[str, list[float]]]:
    """The accuracies of `measure`'s roles if the demonstrators themselves played them."""
    truth, kinds = relay.solve(world, q), relay.problem_class(world, q)
    table = {}

    def enter(name, drafts):
        table[name] = by_class(relay.answers_of(world, drafts) == truth[:, -1], kinds)
        return drafts

    earlier = enter("solve", relay.author_drafts(world, q, rng))
    enter("review", relay.review_drafts(world, q, rng))
    empty = np.full_like(truth, world.id("?"))
    enter("refine, empty workspace", relay.refine_drafts(world, q, empty, rng))
    enter("refine, true workspace", relay.refine_drafts(world, q, truth, rng))
    for r in (1, 2, 3):
        earlier = enter(f"revise, {r} rounds", relay.revise_drafts(world, q, relay.values_of(world, earlier), rng))
    workspace = empty
    for schedule in ("(4, 1)", "(4, 4, 1)"):
        four = [relay.values_of(world, relay.refine_drafts(world, q, workspace, rng)) for _ in range(4)]
        workspace = relay.distill_values(world, q, np.stack(four, 1), rng)
        enter(f"parallel-distill-refine {schedule}", relay.refine_drafts(world, q, workspace, rng))
    return table


def verdicts(speaker: TextModel, stage, questions: list[str], candidates: list[str], seed: int) -> list[bool]:
    """One vote of a one-turn stage on each candidate."""
    prompts = [stage.turns[0](q, c, ()) for q, c in zip(questions, candidates)]
    flat = [prompt for each in prompts for prompt in each]
    texts = iter(speaker.reply(flat, max_new_tokens=32, seed=seed)[0] if flat else [])
    replies = [[[next(texts)[0] for _ in each]] for each in prompts]
    return [stage.verdict(q, c, r) for q, c, r in zip(questions, candidates, replies)]


CARD = """# The toy model: a language model of imperfect people

**The gap between generating and verifying is put into this model's corpus on purpose.** Its demonstrators are authors
who err often and reviewers who err less, because that is what the papers on self-improvement assume of language models.
What is shown with this model is what the methods make of such a gap; that large language models have one is not shown.

{parameters} parameters, Qwen3 architecture, trained from scratch by `python -m toy.pretrain --seed {seed}`
({steps} steps) on texts of the *relay task*: a running value modulo 11 and five operations.
`toy/relay.py` says what the roles, the classes of problems and the rates of error are. Ground truth enters only through
the demonstrators, who do not write labels: nobody here is told which draft is right. `early/` and `middle/` are the
same run after {early} and {middle} steps. A transcript of the author, and of what a reviewer makes of one step:

    {transcript}

Everything below is measured on {n} held-out problems ({shares}) and written by
`make card`; percentages, with 95 % intervals.

## The author

Three classes of problems, three lessons. On *plain* ones any sharpening helps. On *tempting* ones most authors guess at
once, so sharpening token by token is worse than plain sampling, and only the sharpening of whole responses helps. On
*hard* ones a misconception is the most likely response, and sharpening of any kind hurts.

{profile}

The demonstrators' own distribution, simulated with the same problems (what a perfect student would do):

{demonstrators}

What its samples at temperature 1 are, by their first error:

{classes}

## The reviewer

How often each stage accepts drafts of each class (one vote; up to 400 drafts of the author each). The misconception is
one that reviewers share, less often.

{stages}

## Roles that build on something

An empty workspace must leave the author; a true one shows what copying can reach.

{roles}

The same roles played by the demonstrators themselves. Where the model is below them, it has not learned all that its
corpus has to teach; it is no property of the methods.

{demonstrator_roles}

## A second seed

The same, from scratch with seed {second_seed}.

{second_profile}

{second_stages}

{second_roles}

## Null worlds

Models trained the same way in worlds where a method must lose its effect if it has it for the reason that it says:
*careless*, reviewers err as often as authors; *plurality*, distillers write each step's most frequent value and check
nothing; *misguided*, reviewers hold the misconception more often than authors. (M, ..., 1) is parallel-distill-refine.

{null}

## Limits

One task, {words} words, questions of five operations only: this model knows nothing else. Texts longer than 64 tokens
never occurred in training. Rates are the demonstrators' and say nothing about people.
"""


def table(head: str, rows: dict[str, dict[str, list[float]]]) -> str:
    """Markdown of rates with intervals, in percent."""
    columns = list(next(iter(rows.values())))
    lines = ["| " + " | ".join([head, *columns]) + " |", "|---" + "|---:" * len(columns) + "|"]
    for name, row in rows.items():
        cells = [f"{100 * c[0]:.1f} ({100 * c[1]:.1f}–{100 * c[2]:.1f})" if isinstance(c, list) else f"{100 * c:.1f}"
                 for c in row.values()]  # fmt: skip
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def write_results(world: World, folder: Path, file: Path, n: int = 2000, log=print) -> None:
    """Measure the checkpoint in `folder`; write the numbers, what they were measured on, and of which run."""
    results = measure(world, folder, n, log=log)
    results["weights"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    results["run"] = json.loads((folder / "run.json").read_text())
    text = json.dumps(rounded(results), indent=1) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda part: part.write_text(text))


def write_card(folder: Path) -> None:
    """The model card: abilities.json in words, and beside them a second seed's and the null worlds' (RESULTS)."""
    results = json.loads((folder / "abilities.json").read_text())
    second = json.loads((RESULTS / "second_seed.json").read_text())
    null = {name: json.loads(file.read_text()) for name in NULL if (file := RESULTS / f"{name}.json").exists()}
    speaker, run = TextModel.from_pretrained(folder), results["run"]
    text = CARD.format(
        parameters=f"{Transformer.from_pretrained(folder).num_parameters():,}", seed=run["seed"], steps=run["steps"],
        early=round(run["early"] * run["steps"]), middle=round(run["middle"] * run["steps"]), n=results["n"],
        words=speaker.tokenizer.vocab_size, transcript=transcript(speaker),
        shares=", ".join(f"{100 * share:.0f} % {name}" for name, share in results["shares"].items()),
        profile=table("accuracy", results["profile"]), demonstrators=table("accuracy", results["demonstrators"]),
        classes=table("problems", results["classes"]), stages=table("draft", results["stages"]),
        roles=table("accuracy", results["roles"]), demonstrator_roles=table("accuracy", results["demonstrator_roles"]),
        second_seed=second["run"]["seed"], second_profile=table("accuracy", second["profile"]),
        second_stages=table("draft", second["stages"]), second_roles=table("accuracy", second["roles"]),
        null=table("world", {name: contrast(found) for name, found in {"relay": results, **null}.items()}),
    )  # fmt: skip
    write_whole(folder / "README.md", lambda part: part.write_text(text))


def contrast(results: dict) -> dict[str, list[float]]:
    """What tells a null world from the relay world."""
    profile, roles, stages = results["profile"], results["roles"], results["stages"]
    return {
        "temperature 1": profile["temperature 1"]["all"],
        "majority of 16": profile["majority of 16"]["all"],
        "majority, hard": profile["majority of 16"]["hard"],
        "reviewer, hard": roles["review"]["hard"],
        "(4, 1)": roles["parallel-distill-refine (4, 1)"]["all"],
        "(4, 4, 1)": roles["parallel-distill-refine (4, 4, 1)"]["all"],
        "(4, 4, 1), hard": roles["parallel-distill-refine (4, 4, 1)"]["hard"],
        "right, accepted by facts": stages["right"]["facts"],
        "misconception, accepted": stages["misconception"]["facts"],
    }


def transcript(speaker: TextModel) -> str:
    """An author's draft and a reviewer's check of its second step."""
    problem = next(p for p in relay.make_problems(100) if p.kind == "plain")
    prompt = speaker.prompt("author", question=problem.question)
    draft = speaker.reply([prompt], max_new_tokens=32, temperature=0.0)[0][0][0]
    check = speaker.templates.stage("facts").turns[0](problem.question, draft, ())[1]
    reply = speaker.reply([check], max_new_tokens=4, temperature=0.0)[0][0][0]
    return f"{speaker.tokenizer.decode(prompt)} {draft}\n    {speaker.tokenizer.decode(check)} {reply}"


def rounded(value):
    """The same with its floats to 5 digits: what was measured has no more."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return round(value, 5) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m toy.abilities", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=CHECKPOINT, help="the checkpoint (%(default)s)")
    parser.add_argument("--world", choices=relay.WORLDS, default="relay", help="see toy/relay.py (%(default)s)")
    parser.add_argument("--results", type=Path, help="where the numbers go (default: FOLDER/abilities.json)")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    write_results(relay.WORLDS[args.world], args.folder, args.results or args.folder / "abilities.json")
    if args.results is None:
        write_card(args.folder)


if __name__ == "__main__":
    main()
