"""Decoding, scoring and training against what the machine can do at most, both measured in one run.

    seconds of a step ≥ max((W + B·c·κ) / bandwidth, B·f(c) / arithmetic)

with W the bytes of the weights that a step reads, κ those of a position's keys and values, f(c) the operations for one
token at context c, and B rows. Bandwidth: the fastest of a sum over and a product with a matrix that fits no cache;
arithmetic: of square matrix products. Scoring reads W once for all its positions; training is three times scoring.
The shipped toy model, and random weights in the shapes of Qwen2.5-0.5B and, on a GPU, 1.5B and 7B as far as the memory
goes; bfloat16 where the processor has it.
"""

import statistics
import time

import matplotlib.pyplot as plt
import torch

from figures.bench_decode import CHECKPOINT, HALF_BILLION
from reference.sampling import Decoder, Requests, score
from reference.training import response_logp
from reference.transformer import Config, Transformer

DEPENDS = (
    "reference/sampling.py", "reference/token_law.py", "reference/scoring.py", "reference/randomness.py",
    "reference/transformer.py", "reference/training.py", "figures/bench_limits.py",
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
    """Bytes per second read, and operations per second, at best."""
    matrix = torch.ones((mebibytes * 2**20 // (dtype.itemsize * 4096), 4096), dtype=dtype, device=device)
    vector, square = matrix[0].clone(), torch.ones((side, side), dtype=dtype, device=device)
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
    device = model.device
    prompt = torch.arange(CONTEXT, device=device) % model.vocab_size
    decoder = Decoder(model, [prompt], rows, STEPS + 3, stop_ids=[])
    slots = torch.arange(rows, device=device)
    horizons = torch.full((1,), STEPS + 3, device=device)
    decoder.load(slots, Requests.of(torch.zeros_like(horizons), rows, horizons))
    return seconds(decoder.advance, STEPS + 2)[2:]


def measure(model: Transformer, batches: tuple[int, ...], ceiling: dict[str, float]) -> dict:
    rows: list[dict] = []
    for batch in batches:
        times = decode(model, batch)
        rows.append(
            {"what": "decode", "tokens": batch, "seconds": times, "limit": limit(model, ceiling, batch, CONTEXT)}
        )
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
    return {"ceiling": ceiling, "rows": rows}


def compute() -> dict:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kinds = {"float32": torch.float32}
    if device == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported():  # elsewhere it is emulated, 50 times slower
        kinds["bfloat16"] = torch.bfloat16
    ceiling = {name: ceilings(device, dtype) for name, dtype in kinds.items()}
    toy = Transformer.from_pretrained(CHECKPOINT, device=device)
    models = {"toy float32": measure(toy, BATCHES, ceiling["float32"])}
    for shape in SHAPES if device == "cuda" else ["0.5B"]:
        for name, dtype in kinds.items():
            with torch.device("meta"):
                model = Transformer(Config.from_dict(SHAPES[shape])).to(dtype).requires_grad_(False)
            needed = 2 * sum(weight.nbytes for weight in model.parameters())  # with their gradients
            if device == "cuda" and needed > torch.cuda.mem_get_info()[0] // 2:
                continue
            model = model.to_empty(device=device)
            for weight in model.parameters():
                weight.data.normal_(1 if weight.dim() == 1 else 0, 0.02)
            models[f"{shape} {name}"] = measure(model, BATCHES, ceiling[name])
            del model
    return {"context": CONTEXT, "models": models}


def table(result: dict) -> str:
    lines = [f"{'':16}{'':>8}{'tokens':>8}{'ms':>10}{'tokens/s':>11}{'of the limit':>14}"]
    for name, measured in result["models"].items():
        for row in measured["rows"]:
            middle = statistics.median(row["seconds"])
            speed, share = row["tokens"] / middle, row["limit"] / middle
            lines.append(
                f"{name:16}{row['what']:>8}{row['tokens']:8}{1e3 * middle:10.1f}{speed:11.0f}{100 * share:12.0f} %"
            )
        kept = measured["ceiling"]
        lines.append(f"{'':16}{kept['bandwidth'] / 1e9:8.1f} GB/s read, {kept['arithmetic'] / 1e9:.0f} Gflop/s at most")
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
        middle = [row["tokens"] / statistics.median(row["seconds"]) for row in rows]
        axis.plot(batch, middle, "o-", color="#0072B2", label="measured")
        axis.set(xscale="log", yscale="log", xlabel="rows that decode", title=name)
        axis.set_xticks(batch, batch)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("tokens per second")
    axes[0, 0].legend()
    figure.suptitle(f"Decoding at context {result['context']} against bandwidth and arithmetic of the same run")
    return figure
