"""Decoding, sampling, scoring and training against what the machine can do at most, both measured in one run.

    seconds of a step ≥ max((W + B·c·κ) / bandwidth, B·f(c) / arithmetic)

with W the bytes of the weights that a step reads, κ those of a position's keys and values, f(c) the operations for one
token at context c, and B rows. Bandwidth: the fastest of a sum over and a product with a matrix that fits no cache;
arithmetic: of square matrix products. Scoring reads W once for all its positions; training is three times scoring.
Power sampling (no savings) and SMC (16 particles) are held to the limit of the tokens that they decode, all of one
length. The shipped toy model, and random weights in the shapes of Qwen2.5-0.5B and, on a GPU, 1.5B and 7B as far as the
memory goes; bfloat16 where the processor has it. On a GPU also the eager step beside the captured one, and a slice of
power sampling as MATH500 asks it of a 7B model: 256 chains, prompts of 150 tokens, α = 4, B = 192, N = 10.
"""

import statistics
import time

import matplotlib.pyplot as plt
import torch

from figures.bench_decode import CHECKPOINT, HALF_BILLION, has_bfloat16
from reference.engine.decoder import Decoder, filtered
from reference.engine.requests import make_plan
from reference.power_sampling import PowerConfig, power_sample
from reference.power_smc import SMCConfig, power_smc
from reference.sampling import score
from reference.training.loop import response_logp
from reference.transformer import Config, Transformer
from theory.cost import tokens

DEPENDS = (
    "reference/interface.py", "reference/sampling.py", "reference/engine", "reference/randomness.py",
    "reference/transformer.py", "reference/training/loop.py", "reference/power_sampling.py", "reference/power_smc.py",
    "figures/bench_limits.py",
)  # fmt: skip
SHAPES = {
    "0.5B": HALF_BILLION,
    "1.5B": {
        **HALF_BILLION, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12,
    },
    "7B": {
        **HALF_BILLION, "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
}  # fmt: skip
BATCHES = (1, 16, 64, 256)
CONTEXT, STEPS, TEXTS = 64, 5, 4  # prompt tokens; timed steps, after two that are not; texts that are scored
ANSWER = 128 if torch.cuda.is_available() else 8  # tokens of a sampler's answers, if the model has so many positions
PROPOSALS, PARTICLES = 2, 16  # Metropolis-Hastings steps; SMC's particles


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work, runs: int) -> list[float]:
    times = []
    for _ in range(runs):
        synchronise()
        begin = time.perf_counter()
        work()
        synchronise()
        times.append(time.perf_counter() - begin)
    return times


def ceilings(device: str, dtype: torch.dtype, mebibytes: int = 256, side: int = 2048) -> dict[str, float]:
    """Bytes per second read, and operations per second, at best (on a GPU of matrices that take milliseconds)."""
    if device == "cuda":
        mebibytes, side = 16 * mebibytes, 4 * side
    shape = (mebibytes * 2**20 // (dtype.itemsize * 4096), 4096)
    matrix, square = (torch.randn(size, dtype=dtype, device=device) for size in (shape, (side, side)))
    vector = matrix[0].clone()
    read = min(seconds(lambda: matrix @ vector, 8) + seconds(matrix.sum, 8))
    return {"bandwidth": matrix.nbytes / read, "arithmetic": 2 * side**3 / min(seconds(lambda: square @ square, 5))}


def limit(model: Transformer, ceiling: dict[str, float], rows: int, context: float, share: float = 1.0) -> float:
    """The least seconds for `rows` tokens at a context; `share` of them keep keys and values of their own."""
    read = model.bytes_per_step() + rows * share * context * model.kv_bytes_per_token()
    work = rows * model.flops_per_token(round(context))
    return max(read / ceiling["bandwidth"], work / ceiling["arithmetic"])


@torch.no_grad()
def decode(model: Transformer, rows: int) -> list[float]:
    """Seconds of each decoding step of so many rows, draws included."""
    prompt = torch.arange(CONTEXT, device=model.device) % model.vocab_size
    plan = make_plan(model, [prompt], STEPS + 3, stop_ids=[], samples_per_prompt=rows, slots=rows, seed=0, keys=None)
    decoder = Decoder(plan, filtered())
    decoder.load(plan.requests.index, plan.requests)
    return seconds(decoder.advance, STEPS + 2)[2:]


def sample(model: Transformer, rows: int, answer: int) -> dict[str, tuple[list[float], int]]:
    """Seconds of power sampling and of SMC in so many rows, and how many tokens each decoded."""
    prompt = torch.arange(CONTEXT) % model.vocab_size
    power = PowerConfig(
        block=answer, steps=PROPOSALS, max_new_tokens=answer, first_divergence_skip=False, early_reject=False
    )
    cloud = SMCConfig(particles=PARTICLES, max_new_tokens=answer)
    runs = {
        "power": lambda: power_sample(model, [prompt], power, stop_ids=[], samples_per_prompt=rows, slots=rows),
        "smc": lambda: power_smc(
            model, [prompt], cloud, stop_ids=[], samples_per_prompt=rows // PARTICLES, slots=rows
        ),
    }  # fmt: skip
    out = {}
    for name, run in runs.items():
        if rows >= PARTICLES:
            kept: list[int] = []
            times = seconds(lambda run=run, kept=kept: kept.append(run().cost.decoded_tokens), 3)[1:]
            out[name] = times, kept[-1]
    return out


def math500(model: Transformer, answer: int = 384, chains: int = 256) -> dict[str, float]:
    """Power sampling's seconds for some chains of so long answers, and those of 500 answers of 679 tokens at its speed,
    a token at 679 taken to cost what it does at `answer`."""
    prompts = [torch.arange(150) % model.vocab_size + i for i in range(chains)]
    config = PowerConfig(block=192, steps=10, max_new_tokens=answer)
    begin = time.perf_counter()
    out = power_sample(model, prompts, config, stop_ids=[], slots=chains)
    synchronise()
    spent = time.perf_counter() - begin
    share = out.cost.decoded_tokens / (chains * tokens(answer, 192, 10))  # what the savings leave
    return {"seconds": spent, "all": spent / out.cost.decoded_tokens * share * 500 * tokens(679, 192, 10)}


def measure(model: Transformer, batches: tuple[int, ...], ceiling: dict[str, float]) -> dict:
    rows: list[dict] = []
    answer = min(ANSWER, model.max_length - CONTEXT)
    for batch in batches:
        least = limit(model, ceiling, batch, CONTEXT)
        for name in ("decode", "eager") if model.device.type == "cuda" else ("decode",):
            model.capture = name == "decode"
            rows.append({"what": name, "tokens": batch, "seconds": decode(model, batch), "limit": least})
        model.capture = True
        for name, (times, decoded) in sample(model, batch, answer).items():
            rows.append({"what": name, "rows": batch, "tokens": decoded, "seconds": times,
                         "limit": decoded / batch * limit(model, ceiling, batch, CONTEXT + answer / 2)})  # fmt: skip
    texts = [torch.arange(i, i + CONTEXT + 1) % model.vocab_size for i in range(TEXTS)]
    firsts, rests = [text[:1] for text in texts], [text[1:] for text in texts]
    least = limit(model, ceiling, TEXTS * CONTEXT, CONTEXT / 2, share=2 / CONTEXT)  # a text's keys are read once
    times = seconds(lambda: score(model, firsts, rests), 3)[1:]
    rows.append({"what": "score", "tokens": TEXTS * CONTEXT, "seconds": times, "limit": least})

    def backward():
        model.zero_grad()
        response_logp(model, firsts, rests)[0].sum().backward()

    model.requires_grad_(True)
    times = seconds(backward, 3)[1:]
    model.requires_grad_(False).zero_grad()
    rows.append({"what": "train", "tokens": TEXTS * CONTEXT, "seconds": times, "limit": 3 * least})
    result = {"ceiling": ceiling, "rows": rows}
    if model.device.type == "cuda" and model.num_parameters() > 5e9:
        result["math500"] = math500(model)
    return result


def compute() -> dict:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kinds = {"float32": torch.float32}
    if device == "cuda" or has_bfloat16():
        kinds["bfloat16"] = torch.bfloat16
    ceiling = {name: ceilings(device, dtype) for name, dtype in kinds.items()}
    toy = Transformer.from_pretrained(CHECKPOINT, device=device)
    models = {"toy float32": measure(toy, BATCHES, ceiling["float32"])}
    for shape in SHAPES if device == "cuda" else ["0.5B"]:
        for name, dtype in kinds.items():
            with torch.device("meta"):
                model = Transformer(Config.from_dict(SHAPES[shape])).to(dtype).requires_grad_(False)
            torch.cuda.empty_cache()
            needed = 2 * sum(weight.nbytes for weight in model.parameters())  # with their gradients
            if device == "cuda" and (needed > torch.cuda.mem_get_info()[0] // 2 or (shape, name) == ("7B", "float32")):
                continue  # 7B in float32 would fit an H200, but not its 256 chains
            model = model.to_empty(device=device)
            for weight in model.parameters():
                weight.data.normal_(1 if weight.dim() == 1 else 0, 0.02)
            models[f"{shape} {name}"] = measure(model, BATCHES if device == "cuda" else BATCHES[:3], ceiling[name])
            del model
    return {"context": CONTEXT, "models": models}


def table(result: dict) -> str:
    lines = [f"{'':16}{'':>8}{'rows':>6}{'tokens':>8}{'ms':>10}{'tokens/s':>11}{'of the limit':>14}"]
    for name, measured in result["models"].items():
        for row in measured["rows"]:
            middle = statistics.median(row["seconds"])
            speed, share = row["tokens"] / middle, 100 * row["limit"] / middle
            rows = row.get("rows", row["tokens"] if row["what"] in ("decode", "eager") else TEXTS)
            lines.append(
                f"{name:16}{row['what']:>8}{rows:6}{row['tokens']:8}{1e3 * middle:10.1f}{speed:11.0f}{share:12.1f} %"
            )
        kept = measured["ceiling"]
        lines.append(f"{'':16}{kept['bandwidth'] / 1e9:8.1f} GB/s read, {kept['arithmetic'] / 1e9:.0f} Gflop/s at most")
        if "math500" in measured:
            slice_, whole = (measured["math500"][key] for key in ("seconds", "all"))
            lines.append(f"{'':16}MATH500: {whole / 60:.1f} minutes, from a slice of {slice_:.0f} s")
    return "\n".join(lines)


def draw(result: dict):
    count = len(result["models"])
    figure, axes = plt.subplots(1, count, figsize=(3.7 * count, 3.6), layout="constrained", squeeze=False)
    for axis, (name, measured) in zip(axes[0], result["models"].items()):
        rows = [row for row in measured["rows"] if row["what"] == "decode"]
        batch = [row["tokens"] for row in rows]
        axis.plot(batch, [row["tokens"] / row["limit"] for row in rows], "--", color="#999999", label="limit")
        for row in rows:
            speeds = [row["tokens"] / each for each in row["seconds"]]
            axis.plot([row["tokens"]] * len(speeds), speeds, ".", color="#0072B2", alpha=0.5)
        for what, colour in zip(("decode", "eager", "power", "smc"), ("#0072B2", "#56B4E9", "#D55E00", "#009E73")):
            if kind := [row for row in measured["rows"] if row["what"] == what]:
                middle = [row["tokens"] / statistics.median(row["seconds"]) for row in kind]
                axis.plot([row.get("rows", row["tokens"]) for row in kind], middle, "o-", color=colour, label=what)
        axis.set(xscale="log", yscale="log", xlabel="rows that decode", title=name)
        axis.set_xticks(batch, batch)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("tokens per second")
    axes[0, 0].legend()
    figure.suptitle(f"Decoding at context {result['context']} against bandwidth and arithmetic of the same run")
    return figure
