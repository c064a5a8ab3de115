"""Trains the toy transformer from scratch on an endless corpus written by the demonstrators of `toy/relay.py`.

    python -m toy.pretrain                    20 minutes on one CPU core -> toy/checkpoint/{early,middle,}
    python -m toy.pretrain --world careless   another world of toy/relay.py -> runs/careless-0

Maximum likelihood of the responses, given the prompts, of all roles at once; Muon for the layers' matrices (on this
task it learns the distiller and the question inference in half of AdamW's steps), AdamW for the rest. Every batch is a
pure function of (seed, step), and the state is written whole or not at all, so a run that was stopped goes on as if it
had not been. `toy/abilities.py` measures what came out.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers

from reference.transformer import Config, Transformer, write_whole
from toy import relay
from toy.relay import NOTHING, World

CHECKPOINT = Path(__file__).parent / "checkpoint"


Texts = tuple[tuple[tuple[str, int], ...], ...]


@dataclass(frozen=True)
class Settings:
    """One pre-training run."""

    seed: int = 0
    steps: int = 3500  # optimiser steps
    rate: float = 1e-2  # largest learning rate of both optimisers (Muon's matched to AdamW's); cosine to a hundredth
    warmup: int = 100  # steps of linear warm-up
    weight_decay: float = 0.01
    clip: float = 1.0  # largest gradient norm
    early: float = 0.1  # the early and middle checkpoints, as fractions of the run
    middle: float = 0.25
    hidden: int = 64
    layers: int = 4
    heads: int = 4
    mlp: int = 192  # width of the gated MLP
    # Texts of each role per step; roles of like length share a batch. Once the arithmetic is learned, the distiller,
    # who is the last to learn, gets the room of those who have.
    texts: Texts = (
        (("solve", 36), ("review", 20), ("ask", 36), ("check", 16)),
        (("refine", 28), ("revise", 12), ("distill", 36)),
    )
    later: Texts = (
        (("solve", 36), ("review", 12), ("ask", 12), ("check", 12)),
        (("refine", 28), ("revise", 10), ("distill", 72)),
    )
    turn: float = 0.3  # of the run comes before `later`


# Other sizes than the toy's, by world
SETTINGS = {
    "large": Settings(
        steps=20_000, rate=3e-3, warmup=500, hidden=384, layers=8, heads=6, mlp=1152,
        texts=((("solve", 96), ("review", 64), ("ask", 64), ("check", 128)),
               (("refine", 64), ("revise", 48), ("distill", 96))),
        later=((("solve", 96), ("review", 32), ("ask", 32), ("check", 32)),
               (("refine", 64), ("revise", 32), ("distill", 192))),
    )
}  # fmt: skip


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
        for group, roles in enumerate(s.texts if step < s.turn * s.steps else s.later)
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Training


def learning_rate(s: Settings, step: int) -> float:
    progress = max(0.0, (step - s.warmup) / max(1, s.steps - s.warmup))
    return s.rate * min(1, (step + 1) / max(1, s.warmup)) * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


class Muon(torch.optim.Optimizer):
    """Momentum whose every update is made orthogonal (Jordan et al. 2024), scaled to the size of AdamW's.

    torch.optim.Muon does the same in bfloat16: eight times slower where the processor has no such instructions.
    """

    def __init__(self, matrices, weight_decay: float, momentum: float = 0.95):
        super().__init__(matrices, {"lr": 0.0, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            rate, mu = group["lr"], group["momentum"]
            for w in group["params"]:
                mean = self.state[w].setdefault("mean", torch.zeros_like(w)).lerp_(w.grad, 1 - mu)
                w.mul_(1 - rate * group["weight_decay"])
                w.sub_(orthogonal(w.grad.lerp(mean, mu)), alpha=rate * 0.2 * max(w.shape) ** 0.5)


def orthogonal(x: torch.Tensor) -> torch.Tensor:
    """U Vᵀ of x = U S Vᵀ, nearly: five Newton-Schulz iterations, whose constants bring S between 0.7 and 1.2."""
    if len(x) > x.shape[1]:
        return orthogonal(x.T).T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def train(
    world: World, s: Settings, out: Path, state: Path, *, seconds: float = math.inf, save_every: int = 500,
    report_every: int = 100, device: str = "cpu", compiled: bool = False, log=print,
) -> Transformer:  # fmt: skip
    """Train to the end, or for `seconds`; checkpoints go to `out`, what is needed to go on to the file `state`."""
    model = new_model(world, s).to(device)
    inner = [w for w in model.layers.parameters() if w.dim() == 2]
    rest = [w for w in model.parameters() if all(w is not other for other in inner)]
    optimisers: list[torch.optim.Optimizer] = [
        Muon(inner, s.weight_decay),
        torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    forward = torch.compile(model, dynamic=False) if compiled else model
    step, began = 0, time.monotonic()
    if state.exists():
        saved = torch.load(state, weights_only=True, map_location=device)
        if saved["run"] != repr((world, s)):
            raise ValueError(f"{state} belongs to another run ({saved['run']}); remove it, or give another --state")
        model.load_state_dict(saved["model"])
        for optimiser, kept in zip(optimisers, saved["optimisers"]):
            optimiser.load_state_dict(kept)
        step = saved["step"]
        log(f"going on from step {step}")

    def save():
        state.parent.mkdir(parents=True, exist_ok=True)
        everything = {"run": repr((world, s)), "step": step, "model": model.state_dict(),
                      "optimisers": [optimiser.state_dict() for optimiser in optimisers]}  # fmt: skip
        write_whole(state, lambda file: torch.save(everything, file))

    saves = {round(s.early * s.steps): out / "early", round(s.middle * s.steps): out / "middle"}
    total = torch.zeros(2)
    while step < s.steps and time.monotonic() - began < seconds:
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(s, step)
        batches = [(tokens.to(device), targets.to(device)) for tokens, targets in make_batches(world, s, step)]
        count = sum(int((targets != -100).sum()) for _, targets in batches)
        model.zero_grad(set_to_none=True)
        for tokens, targets in batches:
            loss = F.cross_entropy(forward(tokens).flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
            (loss / count).backward()
            total += torch.tensor([loss.item(), int((targets != -100).sum())])
        torch.nn.utils.clip_grad_norm_(model.parameters(), s.clip)
        for optimiser in optimisers:
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
        text = json.dumps({**asdict(s), "torch": torch.__version__}, indent=1) + "\n"
        write_whole(out / "run.json", lambda file: file.write_text(text))
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
        tokens, targets = (part.to(model.device) for part in pack([role_texts(world, role, n, rng, "heldout")]))
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m toy.pretrain", description=__doc__.split("\n")[0])
    parser.add_argument("--world", choices=relay.WORLDS, default="relay", help="see toy/relay.py (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder (default: toy/checkpoint, or runs/WORLD-SEED)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after so long; run again to go on")
    parser.add_argument("--threads", type=int, default=1, help="more pay on an idle machine only (%(default)s)")
    parser.add_argument("--device", default="cpu", help="(%(default)s)")
    parser.add_argument("--eager", action="store_true", help="no torch.compile, which is used where a C++ compiler is")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shipped = (args.world, args.seed) == ("relay", 0)
    runs = Path("runs")
    train(
        relay.WORLDS[args.world], replace(SETTINGS.get(args.world, Settings()), seed=args.seed),
        args.out or (CHECKPOINT if shipped else runs / f"{args.world}-{args.seed}"),
        runs / f"pretrain-{args.world}-{args.seed}.pt", seconds=args.seconds, device=args.device,
        compiled=shutil.which("c++") is not None and not args.eager, log=lambda line: print(line, flush=True),
    )  # fmt: skip


if __name__ == "__main__":
    main()
