"""The commands that are neither a method nor training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from tyro.conf import Positional, arg

from reference import sampling
from reference.checkpoints import read_json, write_whole
from reference.cli.asking import Asked, Checkpoint, Grading, Input, Method, Output, check_writable, records
from reference.evaluation.evaluate import evaluate as run_evaluation
from reference.evaluation.graders import make_grader
from reference.evaluation.report import report as make_report
from reference.evaluation.results import Results, all_results, is_results, without_times
from reference.evaluation.results import merge as merge_results
from reference.evaluation.tasks import FORMATS, Task, parse_shard
from reference.sampling import check_settings
from reference.text.identity import VERSION
from reference.text.tokenizer import Tokenizer
from reference.transformer import Config, Transformer

PICTURES = ("", ".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp", ".eps", ".ps", ".tif", ".tiff")


@dataclass(frozen=True)
class Evaluation(Grading):
    batch: int = 16  # problems at a time, after which results are written
    shard: str | None = None  # i/n: every n-th batch from the i-th on; none: all, or what torchrun gives this process

    def __post_init__(self) -> None:
        check_settings(self, least={"batch": 1})


def evaluate(
    method: Method,
    asked: Asked,
    task: Task,
    evaluation: Evaluation,
    out: Annotated[str, arg(help="the file of results; the same command goes on from what is there")],
) -> None:
    """Any method on a task: accuracy with its interval, tokens, and every response in a file.

    sharpen evaluate METHOD --help shows the method's own settings too. Under torchrun each process takes a shard, and
    writes a file of its own; `sharpen report` takes them together.
    A task is a file of JSON lines, such as one of a public benchmark; `python -m toy.questions products > task.jsonl`
    makes a small one for smollm2.
    Example: sharpen evaluate power --model smollm2 --task task.jsonl --grader numeric --out runs/power.jsonl
    """
    own, shard = evaluation, evaluation.shard
    if asked.input.raw and "bare" in FORMATS[task.format].styles:
        task = replace(task, prompt_style="bare")
    if task.prompt_style == "bare" and not asked.stop:
        asked = replace(asked, stop=FORMATS[task.format].stop)
    named = own.grader or FORMATS[task.format].grader
    grade = make_grader(named, own.allow_code_execution)
    if named == "code":
        asked = replace(asked, checkpoint=asked.checkpoint.for_programs())
    checkpoint = asked.checkpoint
    ranks = f"{os.environ.get('RANK', 0)}/{os.environ.get('WORLD_SIZE', 1)}"  # torchrun's
    at = parse_shard(shard or ranks, "shard" if shard else "RANK/WORLD_SIZE in the environment")
    place = Path(out) if shard or at[1] == 1 else Path(out).with_suffix(f".{at[0]}of{at[1]}{Path(out).suffix}")
    settings = {
        "version": VERSION, **method.settings, "model": checkpoint.model, **checkpoint.identity(),
        "raw": asked.input.raw, "seed": asked.seed, "stop": list(asked.stop), "samples": asked.n,
        "grader": named, "batch": own.batch, **task.settings,
    }  # fmt: skip
    check_writable(place, results=True)
    with Results(place, settings, at) as results:

        def answer(questions: list[str], keys: list[int | str]) -> list[dict[str, Any]]:
            now = asked.about(questions, keys)
            return records(now, method(now))

        run_evaluation(answer, task, grade, results, batch=own.batch)
    if at[1] == 1:
        print(make_report([place]))
    else:
        every = place if shard else place.with_name(f"{Path(out).stem}.*of{at[1]}{place.suffix}")
        print(f"shard {at[0]} of {at[1]} is in {place}; when all are done: sharpen report {every}"
              + " and the others' files" * bool(shard))  # fmt: skip


def report(
    files: Annotated[Positional[list[str]], arg(help="of results; shards of one run count as one")],
    picture: Annotated[str | None, arg(help="a file for the picture, such as report.png")] = None,
    merge: Annotated[str | None, arg(help="a file for the shards as one")] = None,
    alpaca_eval: Annotated[str | None, arg(help="a file for what AlpacaEval's judge reads")] = None,
) -> None:
    """What files of results say, as a table: accuracy with its interval, pass@k, tokens, lift over greedy decoding.

    Example: sharpen report runs/*.jsonl --picture runs/report.png
    Page: evaluation/statistics
    """
    places = [Path(file) for file in files]
    others = [place for place in places if len(places) > 1 and not is_results(place)]
    for other in others:
        print(f"sharpen: {other} is no file of results; passed over", file=sys.stderr)
    places = [place for place in places if place not in others] or places
    if picture is not None and Path(picture).suffix.lower() not in PICTURES:
        raise ValueError(f"{picture} is no picture that can be drawn; name one of {', '.join(PICTURES)}")
    for place in (picture, alpaca_eval):
        if place is not None:
            check_writable(place)
    if merge is not None:
        check_writable(merge, results=True)
        merge_results(places, Path(merge))
        places = [Path(merge)]
    made = make_report(places)
    print(made)
    if alpaca_eval is not None:
        if len(made.rows) > 1:
            raise ValueError(f"{len(made.rows)} runs were given, and --alpaca-eval writes one's; name one run's files")
        name = f"{made.rows[0]['model']} {made.rows[0]['name']}"
        outputs = [{"instruction": result["prompt"], "output": result["responses"][0]["text"], "generator": name}
                   for result in all_results(without_times(places))]  # fmt: skip
        write_whole(Path(alpaca_eval), lambda part: part.write_text(json.dumps(outputs, indent=1) + "\n"))
    if picture is not None:
        made.draw(picture)


def score(
    given: Input,
    checkpoint: Checkpoint,
    output: Output,
    response: Annotated[str | None, arg(help="to a prompt; none: the lines' own responses")] = None,
    ended: Annotated[bool, arg(help="count the stop token after a response that is given as text")] = True,
) -> None:
    """Log-probabilities of responses at temperature 1: of a text, or of what a method has written by --json.

    A line of --file has "response", a text, or "responses", whose "tokens" are taken as they are. (Those of refine and
    verify were given to other prompts, of their own.)
    Example: sharpen score "1 + 1 + 1" --response "+ 1 2 + 1 3 = 3 ." --no-ended
    Example: sharpen power "1 + 1 + 1" --json | sharpen score
    Page: sampling
    """
    asked = Asked(given, checkpoint=checkpoint)
    speaker, stop = asked.speaker, sorted(asked.speaker.stop_ids)[:1] if ended else []
    texts: list[tuple[int, list[int]]] = []  # which line, and the response's ids
    for i, line in enumerate(asked.lines):
        text = line.get("response", response)
        try:
            if isinstance(text, str):
                texts.append((i, speaker.tokenizer.encode(text, special_tokens=False) + stop))
            else:
                found = [own["tokens"] for own in line["responses"]]
                whole = (isinstance(ids, list) and ids and all(type(x) is int for x in ids) for ids in found)
                if not found or not all(whole):
                    raise TypeError
                texts += [(i, ids) for ids in found]
        except (KeyError, TypeError):
            raise ValueError(
                f'prompt {i + 1} has no response; give --response, or lines with "responses" that have "tokens"'
            ) from None
    found = sampling.score(speaker.model, [asked.prompts[i] for i, _ in texts], [ids for _, ids in texts])
    lines = []
    for (i, ids), logp in zip(texts, found):
        total = float(logp.double().sum())
        if output.json:
            known = {"tokens": ids, "logp": [round(x, 6) for x in logp.tolist()], "total": total}
            lines.append(json.dumps({"id": asked.keys[i], "prompt": asked.questions[i], **known}))
        else:
            lines.append(f"log p {total:.4f}, {len(ids)} tokens, {total / len(ids):.4f} per token: "
                         f"{speaker.tokenizer.decode(ids)}")  # fmt: skip
    output.write("\n".join(lines))


def info(checkpoint: Checkpoint) -> None:
    """Say what a checkpoint is: sizes, bytes per decoding step, stop set, chat template, and what is unusual in it.

    Example: sharpen info --model Qwen/Qwen2.5-Math-7B --dtype bfloat16
    Page: transformer
    """
    folder = checkpoint.folder
    config = Config.from_json(folder / "config.json")
    dtype = checkpoint.stored_dtype()
    with torch.device("meta"):
        model = Transformer(config, checkpoint.max_length).to(dtype)
    c, said = config, read_json(folder / "config.json")
    print(f"{folder}: {c.model_type}, {model.num_parameters():,} parameters, {str(dtype).removeprefix('torch.')}")
    if name := said.get("_name_or_path"):
        print(f"  {name}")
    print(f"  {c.num_hidden_layers} layers of width {c.hidden_size} and {c.intermediate_size}, {c.vocab_size:,} ids")
    print(f"  {c.num_attention_heads} heads on {c.num_key_value_heads} keys and values, of {c.head_dim} dimensions")
    print(f"  context {model.max_length:,} positions; {model.kv_bytes_per_token():,} bytes of cache a token")
    print(f"  one decoding step reads {model.bytes_per_step():,} bytes of weights")
    try:
        tokenizer = Tokenizer.from_pretrained(folder)
    except FileNotFoundError as error:
        print(f"  no tokenizer: {error}")
        return
    stops = [f"{i} {tokenizer.decode([i], skip_special_tokens=False)!r}" for i in sorted(tokenizer.stop_ids)]
    print(f"  stop set: {', '.join(stops) or 'empty: responses end at the horizon'}")
    print(f"  chat templates: {', '.join(sorted(tokenizer.chat_templates)) or 'none'}")
    print(
        f"  roles: {checkpoint.templates or said.get('templates') or ('chat' if tokenizer.chat_templates else 'none')}"
    )
    if config.unknown:
        print(f"  not read, since nobody here knows them: {', '.join(config.unknown)}")
    for line in _unusual(config, tokenizer):
        print(f"  unusual: {line}")


def lm_eval(arguments: list[str]) -> None:
    """lm-evaluation-harness's own command with any method here: its tasks, its graders, its options.

    --model_args takes pretrained, method and the method's settings, and also seed, slots, dtype and templates. It needs
    the package lm_eval: pip install 'sharpening[lm-eval]'.
    Example: sharpen lm-eval --model_args pretrained=smollm2,method=power,alpha=4 --tasks gsm8k --limit 20
    Page: cli/harness
    """
    try:
        from lm_eval._cli.harness import HarnessCLI
        from lm_eval.utils import setup_logging

        import reference.cli.harness  # noqa: F401 (it registers the model)
    except ImportError as error:
        raise ImportError(f"lm_eval is not installed here ({error}); pip install 'lm_eval==0.4.13'") from None
    words = arguments[1:] if arguments[:1] == ["run"] else list(arguments)
    if not words or words[0].startswith("-"):
        named = any(word.partition("=")[0] in ("--model", "-M", "--config", "-C") for word in words)
        words = ["run", *([] if named else ["--model", "sharpening"]), *words]
    setup_logging()
    given, sys.argv = sys.argv, ["lm-eval", *words]  # where its parser looks
    try:
        parser = HarnessCLI()
        parser.execute(parser.parse_args())
    finally:
        sys.argv = given


def demo() -> None:
    """One small model, several ways to ask it, and what each costs: a table, and a picture in runs/demo.png.

    Example: sharpen demo
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "Makefile").exists():
        raise FileNotFoundError(f"{root} is not a clone of the repository; run the demo in one")
    done = subprocess.run([sys.executable, "-m", "figures", "demo"], cwd=root, check=False)
    if done.returncode:
        raise ValueError(f"the demo ended with code {done.returncode}; what it said stands above")


def _unusual(config: Config, tokenizer: Tokenizer) -> Iterator[str]:
    """What a reader of a config.json may overlook."""
    windowed = [w for w in config.windows if w is not None]
    if windowed:
        yield f"{len(windowed)} of {len(config.windows)} layers see a window of {windowed[0]} positions"
    if config.tie_word_embeddings:
        yield "the head is the embedding matrix"
    for name, has in (("queries, keys and values", config.qkv_bias), ("attention's output", config.o_bias),
                      ("the MLP", config.mlp_bias)):  # fmt: skip
        if has:
            yield f"biases on {name}"
    if config.qk_norm:
        yield f"RMSNorm on queries and keys, over {config.qk_norm} {'head' if config.qk_norm == 'each' else 'heads'}"
    if config.norm_after:
        yield "RMSNorm behind attention and MLP, not before them"
    if not all(config.turned):
        yield f"{config.turned.count(False)} of {len(config.turned)} layers have no RoPE"
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        yield f"heads of {config.head_dim} do not add up to the hidden size"
    rope = config.rope
    if rope["rope_type"] != "default" or rope["partial_rotary_factor"] != 1:
        yield (f"RoPE is {rope['rope_type']}, on {rope['partial_rotary_factor']:g} of each head, made for "
               f"{rope['original_max_position_embeddings']} positions and extended")  # fmt: skip
    if config.vocab_size != tokenizer.vocab_size:
        yield f"{config.vocab_size} rows of the embedding for {tokenizer.vocab_size} ids of the tokenizer"
    if len(tokenizer.stop_ids) != 1:
        yield f"{len(tokenizer.stop_ids)} stop ids"
    applied = ("temperature", "top_k", "top_p", "repetition_penalty", "do_sample", "min_p")
    ignored = {name: x for name, x in tokenizer.read_json("generation_config.json").items() if name in applied}
    if ignored:
        yield f"generation_config.json asks for {ignored}, which is never applied: it would change the law"
