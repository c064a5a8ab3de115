"""Trains the toy transformer from scratch on an endless corpus written by the demonstrators of `toy/relay.py`.

    python -m toy.pretrain                   about 20 minutes on 2 CPU cores -> toy/checkpoint/{early,middle,}
    python -m toy.pretrain --card            measures the abilities of a checkpoint and writes its model card

Maximum likelihood of the responses, given the prompts, of all roles at once. Every batch is a pure function of
(seed, step), and the state is written whole or not at all, so a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers

from reference.evaluation import accuracy
from reference.sampling import child_seed
from reference.text_model import TextModel
from reference.transformer import Config, Transformer, write_whole
from toy import relay
from toy.relay import NOTHING, World

CHECKPOINT = Path(__file__).parent / "checkpoint"


@dataclass(frozen=True)
class Settings:
    """One pre-training run."""

    seed: int = 0
    steps: int = 4000  # optimiser steps
    rate: float = 3e-3  # AdamW's largest learning rate; cosine to a hundredth of it
    warmup: int = 100  # steps of linear warm-up
    weight_decay: float = 0.01
    clip: float = 1.0  # largest gradient norm
    early: float = 0.1  # the early and middle checkpoints, as fractions of the run
    middle: float = 0.25
    hidden: int = 64
    layers: int = 4
    heads: int = 4
    mlp: int = 192  # width of the gated MLP
    # Texts of each role per step. Roles of like length share a batch.
    texts: tuple[tuple[tuple[str, int], ...], ...] = (
        (("solve", 36), ("review", 20), ("ask", 36), ("check", 16)),
        (("refine", 28), ("revise", 12), ("distill", 36)),
    )


def new_model(world: World, s: Settings) -> Transformer:
    """An untrained Qwen3, its weights a function of the seed."""
    torch.manual_seed(s.seed)
    config = {
        "model_type": "qwen3", "vocab_size": len(world.words), "hidden_size": s.hidden, "intermediate_size": s.mlp,
        "num_hidden_layers": s.layers, "num_attention_heads": s.heads, "num_key_value_heads": s.heads,
        "head_dim": s.hidden // s.heads, "rms_norm_eps": 1e-6, "max_position_embeddings": 128, "rope_theta": 1e4,
        "tie_word_embeddings": True, "attention_bias": False, "hidden_act": "silu",
        "eos_token_id": world.id("."), "bos_token_id": None, "templates": "toy.relay:TEMPLATES",
    }  # fmt: skip
    return Transformer(Config.from_dict(config))


# ---------------------------------------------------------------------------------------------------------------------
# The corpus


def role_texts(
    world: World, role: str, n: int, rng: np.random.Generator, split: str = "pretrain"
) -> tuple[np.ndarray, np.ndarray]:
    """n (prompt, response) pairs of one role: ids [n, prompt length] and [n, response length], NOTHING in gaps."""
    _, _, equals, unknown, end, colon, bar = world.signs
    q = relay.make_questions(world, n, rng, split)

    def prompt(*parts):
        parts = (world.id(role), *parts, colon)
        return np.concatenate([np.full((n, 1), x) if np.isscalar(x) else x.reshape(n, -1) for x in parts], 1)

    if role == "solve":
        return prompt(q), relay.author_drafts(world, q, rng)
    if role == "review":
        return prompt(q), relay.review_drafts(world, q, rng)
    if role == "check":
        x = rng.integers(0, world.p, n)
        value = relay.check_steps(world, q[:, 1], q[:, 2], x, rng)
        return prompt(x, q[:, 1:3]), np.stack((value, np.full(n, end)), 1)
    if role == "ask":
        drafts = relay.write_drafts(world, q, relay.author_habits(world.rates), rng)
        silent = rng.random(n) < 0.1  # as few as will do to learn that nothing can be inferred from a guess
        drafts[silent] = relay.guess_answers(world, drafts[silent], rng)
        return prompt(drafts), relay.infer_questions(world, drafts, rng)
    if role == "revise":
        earlier = relay.author_drafts(world, q, rng)
        values, final = relay.values_of(world, earlier), relay.final_of(world, earlier)
        return prompt(q, bar, values, equals, final), relay.revise_drafts(world, q, values, rng)
    values = draft_values(world, q, rng)
    if role == "distill":
        separated = np.insert(values, 0, bar, axis=2)
        workspace = relay.distill_values(world, q, values, rng)
        return prompt(q, separated), np.concatenate((workspace, np.full((n, 1), end)), 1)
    # Refiners see every kind of workspace: empty, distilled, one draft's values, the truth with gaps.
    workspace = relay.distill_values(world, q, values, rng)
    kind = rng.integers(0, 4, n)
    workspace[kind == 0] = unknown
    workspace[kind == 1] = values[kind == 1, 0]
    truth = np.where(rng.random(workspace.shape) < rng.random((n, 1)), relay.solve(world, q), unknown)
    workspace[kind == 2] = truth[kind == 2]
    return prompt(q, bar, workspace), relay.refine_drafts(world, q, workspace, rng)


def draft_values(world: World, q: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The values [n, M, L] of M drafts of each question: half by authors, half by refiners of the authors' workspace,
    as in later rounds."""

    def values(write):
        return np.stack([relay.values_of(world, write()) for _ in range(world.drafts)], 1)

    first = values(lambda: relay.author_drafts(world, q, rng))
    workspace = relay.distill_values(world, q, first, rng)
    second = values(lambda: relay.refine_drafts(world, q, workspace, rng))
    return np.where((rng.random(len(q)) < 0.5)[:, None, None], first, second)


def pack(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    """One batch of prompts and responses: tokens int64 [rows, time] and targets [rows, time], -100 where nothing is to
    be learned."""
    width = max(p.shape[1] + r.shape[1] for p, r in pairs)
    texts = np.full((sum(len(p) for p, _ in pairs), width), NOTHING)
    targets = np.full_like(texts, NOTHING)  # the responses, at their place in the texts
    row = 0
    for p, r in pairs:
        rows, start, stop = slice(row, row + len(p)), p.shape[1], p.shape[1] + r.shape[1]
        texts[rows, :start], texts[rows, start:stop], targets[rows, start:stop] = p, r, r
        row += len(p)
    order = np.argsort(texts == NOTHING, axis=1, kind="stable")  # short drafts leave gaps: close them
    texts, targets = np.take_along_axis(texts, order, 1), np.take_along_axis(targets, order, 1)
    targets = np.where(targets == NOTHING, -100, targets)
    return torch.from_numpy(np.maximum(texts, 0)[:, :-1]), torch.from_numpy(targets[:, 1:])


def make_batches(world: World, s: Settings, step: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The step's batches, one for each group of roles; see `pack`."""
    return [
        pack([role_texts(world, role, n, np.random.default_rng([s.seed, step, group, i]))
              for i, (role, n) in enumerate(roles) if n])
        for group, roles in enumerate(s.texts)
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Training


def learning_rate(s: Settings, step: int) -> float:
    progress = max(0.0, (step - s.warmup) / max(1, s.steps - s.warmup))
    return s.rate * min(1, (step + 1) / max(1, s.warmup)) * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


def train(
    world: World, s: Settings, out: Path, state: Path, *, seconds: float = math.inf, save_every: int = 500,
    report_every: int = 100, compiled: bool = False, log=print,
) -> Transformer:  # fmt: skip
    """Train to the end, or for `seconds`; checkpoints go to `out`, what is needed to go on to the file `state`."""
    model = new_model(world, s)
    decayed = [w for w in model.parameters() if w.dim() == 2]
    others = [w for w in model.parameters() if w.dim() != 2]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": s.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=s.rate, betas=(0.9, 0.98),
    )  # fmt: skip
    forward = torch.compile(model, dynamic=False) if compiled else model
    step, began = 0, time.monotonic()
    if state.exists():
        saved = torch.load(state, weights_only=True)
        if saved["run"] != repr((world, s)):
            raise ValueError(f"{state} belongs to another run ({saved['run']}); remove it, or give another --state")
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        step = saved["step"]
        log(f"going on from step {step}")

    def save():
        state.parent.mkdir(parents=True, exist_ok=True)
        everything = {"run": repr((world, s)), "step": step, "model": model.state_dict(),
                      "optimiser": optimiser.state_dict()}  # fmt: skip
        write_whole(state, lambda file: torch.save(everything, file))

    saves = {round(s.early * s.steps): out / "early", round(s.middle * s.steps): out / "middle"}
    total = torch.zeros(2)
    while step < s.steps and time.monotonic() - began < seconds:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(s, step)
        batches = make_batches(world, s, step)
        count = sum(int((targets != -100).sum()) for _, targets in batches)
        optimiser.zero_grad(set_to_none=True)
        for tokens, targets in batches:
            loss = F.cross_entropy(forward(tokens).flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
            (loss / count).backward()
            total += torch.tensor([loss.item(), int((targets != -100).sum())])
        torch.nn.utils.clip_grad_norm_(model.parameters(), s.clip)
        optimiser.step()
        step += 1
        if step % report_every == 0 or step == s.steps:
            spent = time.monotonic() - began
            log(f"step {step}/{s.steps}  loss {total[0] / total[1]:.4f}  {spent:.0f} s  " + progress(world, s, model))
            total.zero_()
        if step in saves:
            save_checkpoint(world, model, saves[step])
        if step % save_every == 0 or step == s.steps:
            save()
    if step == s.steps:
        save_checkpoint(world, model, out)
    else:
        save()
    return model


@torch.no_grad()
def progress(world: World, s: Settings, model: Transformer, n: int = 64) -> str:
    """Held-out texts of each role: mean log-probability per response token, and how often the likeliest token is
    the written one."""
    words = []
    for i, role in enumerate(role for group in s.texts for role, _ in group):
        rng = np.random.default_rng([2**31, i])
        tokens, targets = pack([role_texts(world, role, n, rng, "heldout")])
        logits = model(tokens)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        right = (logits.argmax(-1) == targets)[targets != -100].float().mean()
        words.append(f"{role} {loss:.3f}/{right:.2f}")
    return "  ".join(words)


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints in Hugging Face format


def save_checkpoint(world: World, model: Transformer, folder: Path) -> None:
    """config.json, model.safetensors, tokenizer.json, tokenizer_config.json and generation_config.json."""
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(world.words)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # decoding joins words by spaces
    files = {
        "tokenizer.json": json.loads(tokenizer.to_str()),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": ".", "model_max_length": model.max_length,
            "clean_up_tokenization_spaces": False,
        },
        "generation_config.json": {"eos_token_id": world.id(".")},
    }  # fmt: skip
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_whole(folder / name, lambda file, text=text: file.write_text(text))


# ---------------------------------------------------------------------------------------------------------------------
# Measured abilities: the model card

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
    four = drafts[:, :4]
    for schedule in ("(4, 1)", "(4, 4, 1)"):
        pool = [[world.decode(row) for row in rows] for rows in four]
        replies, _ = speaker.ask("distiller", question_with(drafts=pool), max_new_tokens=horizon,
                                 seed=child_seed(seed, "distiller", schedule))  # fmt: skip
        workspaces = [speaker.parse("distiller", reply[0]) for reply in replies]
        fields = question_with(workspace=workspaces)
        _, roles[f"parallel-distill-refine {schedule}"] = play("refiner", fields, schedule)
        four = rows_of(ask("refiner", fields, samples=4, purpose="second round"))
        log(f"refined {schedule}")
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
(with --compile --threads 1; {steps} steps) on texts of the *relay task*: a running value modulo 11 and five operations.
`toy/relay.py` says what the roles, the classes of problems and the rates of error are. Ground truth enters only through
the demonstrators, who do not write labels: nobody here is told which draft is right. `early/` and `middle/` are the
same run after {early} and {middle} steps. A transcript of the author, and of what a reviewer makes of one step:

    {transcript}

Everything below is measured on {n} held-out problems ({shares}) and written by
`python -m toy.pretrain --card`; percentages, with 95 % intervals.

## The author

Three classes of problems, three lessons. On *plain* ones any sharpening helps. On *tempting* ones most authors guess at
once, so sharpening token by token is worse than plain sampling, and only the sharpening of whole responses helps. On
*hard* ones a misconception is the most likely response, and sharpening of any kind hurts.

{profile}

The demonstrators' own law, simulated with the same problems (what a perfect student would do):

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
{second}
## Limits

One task, {words} words, questions of five operations only: this model knows nothing else. Texts longer than 64 tokens
never occurred in training. How much of the distiller and the reviser a run has learned by its end depends on the seed;
compare the tables. Rates are the demonstrators' and say nothing about people.
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


def write_card(world: World, s: Settings, folder: Path, n: int = 2000, log=print) -> None:
    """Measure the checkpoint in `folder`; write abilities.json and README.md beside it."""
    results = measure(world, folder, n, log=log)
    results["weights"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    results["settings"] = {"seed": s.seed, "steps": s.steps}
    text = json.dumps(rounded(results), indent=1) + "\n"
    write_whole(folder / "abilities.json", lambda file: file.write_text(text))
    write_readme(s, folder)


def write_readme(s: Settings, folder: Path) -> None:
    """The card in words, from abilities.json and, if it is there, second_seed.json: abilities of another seed's run."""
    results = json.loads((folder / "abilities.json").read_text())
    second = ""
    if (other := folder / "second_seed.json").exists():
        found = json.loads(other.read_text())
        second = (f"\n## A second seed\n\nThe same, from scratch with seed {found['settings']['seed']}.\n\n"
                  f"{table('accuracy', found['profile'])}\n\n{table('draft', found['stages'])}\n\n"
                  f"{table('accuracy', found['roles'])}\n")  # fmt: skip
    speaker, parameters = TextModel.from_pretrained(folder), Transformer.from_pretrained(folder).num_parameters()
    text = CARD.format(
        parameters=f"{parameters:,}", seed=s.seed, steps=s.steps, early=round(s.early * s.steps),
        middle=round(s.middle * s.steps), n=results["n"], second=second,
        words=speaker.tokenizer.vocab_size, transcript=transcript(speaker),
        shares=", ".join(f"{100 * share:.0f} % {name}" for name, share in results["shares"].items()),
        profile=table("accuracy", results["profile"]), demonstrators=table("accuracy", results["demonstrators"]),
        classes=table("problems", results["classes"]), stages=table("draft", results["stages"]),
        roles=table("accuracy", results["roles"]), demonstrator_roles=table("accuracy", results["demonstrator_roles"]),
    )  # fmt: skip
    write_whole(folder / "README.md", lambda file: file.write_text(text))


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
    parser = argparse.ArgumentParser(prog="python -m toy.pretrain", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="folder of the checkpoint (%(default)s)")
    parser.add_argument("--state", type=Path, help="file to go on from (default: runs/pretrain-WORLD-SEED.pt)")
    parser.add_argument("--world", choices=relay.WORLDS, default="relay", help="see toy/relay.py (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after so long; run again to go on")
    parser.add_argument("--compile", action="store_true", help="through torch.compile; needs a C++ compiler")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--card", action="store_true", help="train nothing: measure OUT and write its model card")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    world, settings = relay.WORLDS[args.world], Settings(seed=args.seed, steps=args.steps)
    if args.card:
        write_card(world, settings, args.out)
        return
    state = args.state or Path("runs") / f"pretrain-{args.world}-{args.seed}.pt"
    train(world, settings, args.out, state, seconds=args.seconds, compiled=args.compile,
          log=lambda line: print(line, flush=True))  # fmt: skip


if __name__ == "__main__":
    main()
