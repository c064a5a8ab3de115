"""The commands. One function is one command, and nothing else has to be written to add one.

The first line of its docstring is what it does, "Example:" a command line, "Page:" the file whose docstring is its
page. What it is given are its options (`reference/cli/command_line.py`). A function that returns `Answers` is a method:
it answers the prompts that it is `Asked`, its result is shown or written as JSON, and `evaluate` can run it on a
task.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from reference import sampling
from reference.best_of_n import adaptive_best_of_n
from reference.best_of_n import best_of_n as best_of
from reference.cascade import CascadeConfig
from reference.cascade import verify as cast_votes
from reference.checkpoints import read_json, write_whole
from reference.cli.asking import Answers, Asked, Checkpoint, Input, Method, Output, check_writable, records
from reference.evaluation.evaluate import evaluate as run_evaluation
from reference.evaluation.graders import make_grader
from reference.evaluation.results import Results
from reference.evaluation.results import merge as merge_results
from reference.evaluation.results import report as make_report
from reference.evaluation.tasks import FORMATS, Problem, Task, parse_shard
from reference.grpo import GRPOConfig, grpo
from reference.interface import Samples
from reference.lookahead import LookaheadConfig
from reference.lookahead import lookahead as look_ahead
from reference.multiple_try import MultipleTryConfig
from reference.multiple_try import multiple_try as try_often
from reference.parallel_distill_refine import PDRConfig, parallel_distill_refine
from reference.parallel_tempering import TemperingConfig, parallel_tempering
from reference.power_sampling import PowerConfig, power_sample
from reference.power_smc import SMCConfig, power_smc
from reference.rlhf_sharpening import RLHFConfig, dpo_sharpen, xpo_rounds
from reference.self_reward import length_normalized, log_probability, majority_vote, model_as_judge
from reference.self_verified_distillation import SVDConfig, self_verified_distillation
from reference.sequential_refinement import sequential_refinement
from reference.sft_sharpening import SFTConfig
from reference.text.tokenizer import StreamDecoder, Tokenizer
from reference.training.distributed import Processes, processes
from reference.training.distributed import sample as sample_shared
from reference.training.loop import FitConfig, fit, train
from reference.training.lora import LoRAConfig, add_lora
from reference.transformer import Config, Transformer
from reference.uq_ttc import uq_ttc

GRPO_FIT = FitConfig(batch=1024, rate=1e-6)  # DeepSeekMath's
SVD_FIT = FitConfig(batch=64, rate=2e-5, schedule="cosine", clip=0.2)  # 2605.26132's, for 4B

# ---------------------------------------------------------------------------------------------------------------------
# Methods


def sample(
    asked: Asked,
    output: Output,
    *,
    max_new_tokens: int = 512,  # most response tokens
    temperature: float = 1.0,  # 0: greedy decoding
    top_k: int | None = None,  # draw from the k likeliest tokens; none: from all
    top_p: float | None = None,  # draw from the likeliest tokens of this mass; none: from all
    stream: bool = False,  # print while it decodes
) -> Answers | None:
    """Decode: sampling at a temperature, top-k, top-p; greedy at temperature 0.

    Example: sharpen sample "3 + 4 x 2 + 5 x 7 + 1" --temperature 0.25 --num-samples 4
    Page: sampling
    """
    law = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "max_new_tokens": max_new_tokens}
    if not stream:
        return asked.draw(sampling.generate, samples_per_prompt=asked.n, **law)
    if output.json or output.out or asked.n > 1:
        raise ValueError("--stream prints one response to each prompt as text; drop --json, --out and --num-samples")
    for prompt, key in zip(asked.prompts, asked.keys):
        for piece in _stream(asked, prompt, key, **law):
            print(piece, end="", flush=True)
        print()
    return None


def best_of_n(
    asked: Asked,
    *,
    n: int = 50,  # N, draws for each prompt; with --mu the most that it takes
    reward: str = "log-probability",  # or length-normalized, majority, judge: what chooses
    mu: float | None = None,  # the adaptive rule's constant, ln(2/δ); none: N draws for every prompt
    max_new_tokens: int = 512,  # most response tokens
    temperature: float = 1.0,
    top_k: int | None = None,  # draw from the k likeliest tokens; none: from all
    top_p: float | None = None,  # draw from the likeliest tokens of this mass; none: from all
) -> Answers:
    """Draw N responses and keep the one that the model itself scores highest (2412.01951).

    Example: sharpen best-of-n "4 + 10 + 9 x 7 x 7 x 2" -n 32
    Page: best_of_n
    """
    law = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "max_new_tokens": max_new_tokens}
    rewards = _rewards(asked)
    if reward not in rewards:
        raise ValueError(f"reward is {reward!r}; it must be one of {', '.join(rewards)}")
    if mu is None:
        return asked.draw(best_of, n=n, reward=rewards[reward], **law)
    if reward != "log-probability":
        raise ValueError(f"mu is {mu}: the adaptive rule scores by log-probability; drop --mu or --reward {reward}")
    return asked.draw(adaptive_best_of_n, mu=mu, max_draws=n, **law)


def power(asked: Asked, config: PowerConfig) -> Answers:
    """Draw from p^α by Metropolis-Hastings, with no training (2510.14901).

    Example: sharpen power "4 + 10 + 9 x 7 x 7 x 2" --alpha 4 --block 24 --steps 400 --max-new-tokens 24
    Page: power_sampling
    """
    return asked.draw(power_sample, config, samples_per_prompt=asked.n)


def smc(asked: Asked, config: SMCConfig) -> Answers:
    """Draw from p^α by particles that grow token by token and are resampled (2602.10273).

    Example: sharpen smc "4 + 10 + 9 x 7 x 7 x 2" --alpha 4 --particles 32
    Page: power_smc
    """
    return asked.draw(power_smc, config, samples_per_prompt=asked.n)


def temper(asked: Asked, config: TemperingConfig) -> Answers:
    """Draw from p^α by a ladder of chains that swap places (parallel tempering).

    Example: sharpen temper "4 + 10 + 9 x 7 x 7 x 2" --rungs 3 --steps 50 --block 24 --max-new-tokens 24
    Page: parallel_tempering
    """
    return asked.draw(parallel_tempering, config, samples_per_prompt=asked.n)


def multiple_try(asked: Asked, config: MultipleTryConfig) -> Answers:
    """Draw from p^α by chains with several proposals in each step (2606.09926).

    Example: sharpen multiple-try "4 + 10 + 9 x 7 x 7 x 2" --tries 4 --steps 100 --block 24 --max-new-tokens 24
    Page: multiple_try
    """
    return asked.draw(try_often, config, samples_per_prompt=asked.n)


def lookahead(asked: Asked, config: LookaheadConfig) -> Answers:
    """Draw from p^α token by token or chunk by chunk, looking ahead by rollouts (2601.21590).

    Example: sharpen lookahead "4 + 10 + 9 x 7 x 7 x 2" --chunk 4 --candidates 4 --rollouts 2 --rollout-law g
    Page: lookahead
    """
    return asked.draw(look_ahead, config, samples_per_prompt=asked.n)


def refine(
    asked: Asked,
    config: PDRConfig,
    *,
    rounds: int | None = None,  # revise one draft so many times (sequential refinement) instead
) -> Answers:
    """Draft in parallel, distill, refine (2510.01123); with --rounds, one draft revised again and again.

    The toy model's distiller reads at most 4 drafts.
    Example: sharpen refine "9 x 7 + 5 x 4 + 2 + 8" --drafts 4
    Page: parallel_distill_refine, sequential_refinement
    """
    if rounds is None:
        return asked.discuss(parallel_distill_refine, config)
    return asked.discuss(sequential_refinement, rounds, config)


def verify(
    asked: Asked,
    *,
    n: int = 8,  # candidates of each question
    temperature: float = 0.7,  # of the candidates
    top_p: float | None = 0.95,  # of the candidates
    max_new_tokens: int = 32768,  # most tokens of a candidate
    candidate: str | None = None,  # verify this answer instead of drawing any, and show the votes
    cascade: CascadeConfig,
) -> Answers | None:
    """Draw candidates and answer with the first that the model's own checks accept (2605.26132, UQ-TTC).

    Example: sharpen verify "3 + 4 x 2 + 5 x 7 + 1" -n 8 --votes 3
    Example: sharpen verify "1 + 1 + 1" --candidate "+ 1 2 + 1 3 = 3 ."
    Page: uq_ttc, cascade
    """
    if candidate is None:
        own = SVDConfig(n=n, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, cascade=cascade)
        return asked.discuss(uq_ttc, own)
    for i, question in enumerate(asked.questions):
        one = asked.about([question], asked.keys[i : i + 1])
        record = one.discuss(cast_votes, [[candidate]], cascade)
        said = {1: "yes", 0: "no"}
        print(f"{question}\n  static check: {'passed' if record.static[0, 0] else 'failed: no answer can be read'}")
        for name, votes in zip(record.stages, record.votes[0, 0].tolist()):
            print(f"  {name}: {' '.join(said.get(vote, '-') for vote in votes)}")
        print(f"  {'accepted' if record.accepted()[0, 0] else 'rejected'}")
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Training


def train_sft(
    asked: Asked,
    out: str,  # folder for the trained model; the same command goes on from what is there
    config: SFTConfig,
    fitting: FitConfig,
    lora: LoRAConfig | None,  # train small additions to frozen layers, rather than all weights
) -> None:
    """SFT-Sharpening: learn the best of N own responses to each prompt (2412.01951).

    Example: sharpen train sft --file problems.txt --out runs/sharper -n 32 --no-lora --epochs 3 --rate 1e-3 --clip 1
    Page: sft_sharpening
    """

    def learn(here: Processes, state: Path) -> dict[str, Any]:
        model, law = asked.speaker.model, {"max_new_tokens": config.max_new_tokens}
        if config.mu is None:
            chosen = asked.draw(_shared(best_of), n=config.n, **law)
        else:
            chosen = asked.draw(_shared(adaptive_best_of_n), mu=config.mu, max_draws=config.n, **law)
        examples = [(prompt, own[0].tokens) for prompt, own in zip(asked.prompts, chosen.samples)]
        _adapt(model, lora)
        tuned = fit(model, examples, fitting, state=state, trainer=here.trainer)
        return {**tuned.log, "draws": chosen.draws.flatten().tolist(), "cost": asdict(chosen.cost)}

    _train(asked, out, learn)


def train_dpo(
    asked: Asked,
    out: str,  # folder for the trained model; the same command goes on from what is there
    config: RLHFConfig,
    fitting: FitConfig,
    lora: LoRAConfig | None,  # train small additions to frozen layers, rather than all weights
) -> None:
    """RLHF-Sharpening, offline: regression to differences of the self-reward (2412.01951, DPO).

    Example: sharpen train dpo --file problems.txt --out runs/sharper --pairs 4 --no-lora --epochs 3 --rate 1e-4
    Page: rlhf_sharpening
    """

    def learn(here: Processes, state: Path) -> dict[str, Any]:
        model = _adapt(asked.speaker.model, lora)  # its additions are 0 until they are trained, so this is the base too
        log: dict[str, Any] = {}

        def minimise(loss: Any, policy: Any) -> Any:
            tuned = train(policy, loss, fitting, state=state, trainer=here.trainer)
            log.update(tuned.log)
            return tuned.model

        trained = dpo_sharpen(
            model, model, asked.prompts, config, stop_ids=asked.speaker.stop_ids, minimise=minimise, seed=asked.seed,
            keys=asked.keys, slots=asked.slots,
        )  # fmt: skip
        return {**log, "cost": asdict(trained.cost)}

    _train(asked, out, learn)


def train_xpo(
    asked: Asked,
    out: str,  # folder for the trained model; the same command goes on from what is there
    config: RLHFConfig,
    fitting: FitConfig,
    lora: LoRAConfig | None,  # train small additions to frozen layers, rather than all weights
) -> None:
    """RLHF-Sharpening, online: XPO, with optimistic exploration; the last iterate is kept (2412.01951, Algorithm 1).

    Every round fits the policy to all pairs so far, from where the last round left it.
    Example: sharpen train xpo --file problems.txt --out runs/sharper --rounds 20 --no-lora --epochs 3 --rate 1e-4
    Page: rlhf_sharpening
    """

    def learn(here: Processes, state: Path) -> dict[str, Any]:
        base = copy.deepcopy(asked.speaker.model)
        policy, log = _adapt(asked.speaker.model, lora), dict[str, list[float]](loss=[])

        def minimise(loss: Any, policy: Any) -> Any:
            place = state.with_name(f"training-{len(log['loss']) + 1}.pt")
            tuned = train(policy, loss, fitting, state=place, trainer=here.trainer)
            log["loss"].append(tuned.log["loss"][-1])
            return tuned.model

        rounds = xpo_rounds(
            base, policy, asked.prompts, config, stop_ids=asked.speaker.stop_ids, minimise=minimise, seed=asked.seed,
            slots=asked.slots,
        )  # fmt: skip
        costs = [cost for _, _, cost in rounds]
        return {**log, "cost": asdict(sum(costs[1:], costs[0]))}

    _train(asked, out, learn)


def train_grpo(
    asked: Asked,
    out: str,  # folder for the trained model; the same command goes on from what is there
    config: GRPOConfig,
    fitting: FitConfig = GRPO_FIT,
    *,
    grader: str | None = None,  # exact, numeric, choice, math or code; none: the format's usual one
    allow_code_execution: bool = False,  # run code that the model wrote, with limits that are no security boundary
    lora: LoRAConfig | None,  # train small additions to frozen layers, rather than all weights
) -> None:
    """GRPO, the RL baseline: the reward is a grader's, so the problems need answers (2402.03300).

    Example: sharpen train grpo --file train.jsonl --format gsm8k --out runs/grpo --prompts 16 --group 8 --batch 128
    Page: grpo
    """
    named = grader or FORMATS[asked.input.format or "plain"].grader
    grade = make_grader(named, allow_code_execution)
    for i, line in enumerate(asked.lines):
        if "answer" not in line:
            raise ValueError(f"prompt {i + 1} has no answer; give a --file of JSON lines that have, or a --format")
    problems = [Problem(line.get("id", i), line["prompt"], str(line["answer"]), line.get("begin", ""))
                for i, line in enumerate(asked.lines)]  # fmt: skip

    def reward(index: list[int], samples: Samples) -> torch.Tensor:
        decode = asked.speaker.tokenizer.decode
        return torch.tensor([[float(grade(problems[i], decode(one.tokens)).right) for one in own]
                             for i, own in zip(index, samples)])  # fmt: skip

    def learn(here: Processes, state: Path) -> dict[str, Any]:
        speaker = asked.speaker
        tuned = grpo(
            _adapt(speaker.model, lora), asked.prompts, reward, config, fitting, stop_ids=speaker.stop_ids, state=state,
            trainer=here.trainer, slots=asked.slots,
        )  # fmt: skip
        return {**tuned.log, "cost": asdict(tuned.cost)}

    _train(asked, out, learn)


def train_svd(
    asked: Asked,
    out: str,  # folder for the trained model; the same command goes on from what is there
    config: SVDConfig,
    fitting: FitConfig = SVD_FIT,
    *,
    lora: LoRAConfig | None,  # train small additions to frozen layers, rather than all weights
) -> None:
    """Self-verified distillation: learn those own solutions that pass the model's own checks (2605.26132).

    Example: sharpen train svd --file problems.txt --out runs/distilled --votes 3 --no-lora --epochs 3 --rate 1e-3
    Page: self_verified_distillation, cascade
    """

    def learn(here: Processes, state: Path) -> dict[str, Any]:
        if here.world > 1:
            raise ValueError(f"self-verified distillation runs in one process, not in {here.world}; drop torchrun")
        rounds = self_verified_distillation(
            asked.speaker, asked.questions, config, fitting, lora=lora, keys=asked.keys, folder=state.parent / "run",
            slots=asked.slots,
        )  # fmt: skip
        policy, student = (cast(Any, each.model) for each in (asked.speaker, rounds[-1].student))
        policy.load_state_dict(student.state_dict())
        return {
            **rounds[-1].log, "kept": [len(each.kept) for each in rounds],
            "rejected": [each.candidates.verification.rejections() for each in rounds],
            "cost": [asdict(each.candidates.cost) for each in rounds],
        }  # fmt: skip

    _train(asked, out, learn)


# ---------------------------------------------------------------------------------------------------------------------
# More


def evaluate(
    method: Method,
    task: Task,
    out: str,  # the file of results; the same command goes on from what is there
    checkpoint: Checkpoint,
    *,
    samples: int = 1,  # responses to each problem
    seed: int = 0,  # what all randomness follows from
    slots: int | None = None,  # requests decoded at a time; none: as many as fit the memory
    batch: int = 16,  # problems at a time, after which results are written
    raw: bool = False,  # continue the problems' text as it is, without role or chat template
    grader: str | None = None,  # exact, numeric, choice, math or code; none: the format's usual one
    allow_code_execution: bool = False,  # run code that the model wrote, with limits that are no security boundary
    shard: str | None = None,  # i/n: every n-th batch from the i-th on; none: all, or what torchrun gives this process
) -> None:
    """Any method on a task: accuracy with its interval, tokens, and every response in a file.

    sharpen evaluate METHOD --help shows the method's own settings too. Under torchrun each process takes a shard, and
    writes a file of its own; `sharpen report` takes them together.
    Example: sharpen evaluate power --task math500.jsonl --format math500 --grader math --out results.jsonl
    """
    named = grader or FORMATS[task.format].grader
    grade = make_grader(named, allow_code_execution)
    at = parse_shard(shard) if shard else (int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    place = Path(out) if shard or at[1] == 1 else Path(out).with_suffix(f".{at[0]}of{at[1]}{Path(out).suffix}")
    settings = {
        **method.settings, "model": checkpoint.model, "dtype": checkpoint.dtype, "templates": checkpoint.templates,
        "max_length": checkpoint.max_length, "raw": raw, "seed": seed, "samples": samples, "grader": named,
        "batch": batch, **task.settings,
    }  # fmt: skip
    with Results(place, settings, at) as results:
        asked = Asked(Input(raw=raw), samples, seed, slots, checkpoint)

        def answer(questions: list[str], keys: list[int | str]) -> list[dict[str, Any]]:
            now = asked.about(questions, keys)
            return records(now, method(now))

        run_evaluation(answer, task, grade, results, batch=batch)
    if at[1] == 1:
        print(make_report([place]))
    else:
        print(f"shard {at[0]} of {at[1]} is in {place}; when all are done: sharpen report {place.parent}/*.jsonl")


def report(
    files: tuple[str, ...],  # of results; shards of one run count as one
    *,
    picture: str | None = None,  # a file for the picture, such as report.png
    merge: str | None = None,  # a file for the shards as one
) -> None:
    """What files of results say, as a table: accuracy with its interval, pass@k, tokens, lift over greedy decoding.

    Example: sharpen report runs/*.jsonl --picture runs/report.png
    Page: evaluation/statistics
    """
    places = [Path(file) for file in files]
    for place in (merge, picture):
        if place is not None:
            check_writable(place)
    if merge is not None:
        merge_results(places, Path(merge))
        places = [Path(merge)]
    made = make_report(places)
    print(made)
    if picture is not None:
        made.draw(picture)


def score(
    given: Input,
    checkpoint: Checkpoint,
    output: Output,
    *,
    response: str | None = None,  # to a prompt; none: the lines' own responses
    ended: bool = True,  # count the stop token after a response that is given as text
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
                texts += [(i, own["tokens"]) for own in line["responses"]]
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
            lines.append(json.dumps({"id": asked.keys[i], "prompt": asked.questions[i], **known}, ensure_ascii=False))
        else:
            lines.append(f"log p {total:.4f}, {len(ids)} tokens, {total / len(ids):.4f} per token: "
                         f"{speaker.tokenizer.decode(ids)}")  # fmt: skip
    output.write("\n".join(lines))


def info(checkpoint: Checkpoint) -> None:
    """Say what a checkpoint is: sizes, bytes per decoding step, stop set, chat template, and what is unusual in it.

    Example: sharpen info --model Qwen/Qwen2.5-Math-7B --dtype bfloat16
    Page: transformer
    """
    folder = checkpoint.folder()
    config = Config.from_json(folder / "config.json")
    dtype = checkpoint.stored_dtype()
    with torch.device("meta"):
        model = Transformer(config, checkpoint.max_length).to(dtype)
    c, said = config, read_json(folder / "config.json")
    print(f"{folder}: {c.model_type}, {model.num_parameters():,} parameters, {str(dtype).removeprefix('torch.')}")
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
    for line in _unusual(config, tokenizer):
        print(f"  unusual: {line}")


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


# ---------------------------------------------------------------------------------------------------------------------
# Helpers


def _stream(asked: Asked, prompt: list[int], key: int | str, **law: Any) -> Iterator[str]:
    """The pieces of one response as soon as they are whole characters: the tokens are those of `generate`."""
    speaker, config = asked.speaker, sampling.GenerateConfig(**law)
    shown = StreamDecoder(speaker.tokenizer)
    tokens = sampling.stream(speaker.model, prompt, config, stop_ids=speaker.stop_ids, seed=asked.seed, key=key)
    yield from map(shown.push, tokens)
    yield shown.flush()


def _rewards(asked: Asked) -> dict[str, Callable[[Samples], torch.Tensor]]:
    def majority(samples: Samples) -> torch.Tensor:
        speaker = asked.speaker
        return majority_vote([[speaker.parse("author", text) for text in own] for own in speaker.texts(samples)])

    def judge(samples: Samples) -> torch.Tensor:
        most = CascadeConfig(max_new_tokens=min(CascadeConfig.max_new_tokens, asked.checkpoint.room()))
        told = model_as_judge(asked.speaker, asked.questions, most, seed=asked.seed, keys=asked.keys, slots=asked.slots)
        return told(samples)

    return {"log-probability": log_probability, "length-normalized": length_normalized, "majority": majority,
            "judge": judge}  # fmt: skip


def _shared(sampler: Callable) -> Callable:
    """The sampler, each process of torchrun for its share of the prompts."""
    return lambda model, prompts, *args, **settings: sample_shared(sampler, model, prompts, *args, **settings)


def _adapt(model: Any, lora: LoRAConfig | None) -> Any:
    return model if lora is None else add_lora(model, lora)


def _train(asked: Asked, out: str, learn: Callable[[Processes, Path], dict[str, Any]]) -> None:
    """Train the model that is asked, and write it to a folder in Hugging Face's format, with training's log."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder / "log.json")
    asked.questions  # noqa: B018 (read before the model is)
    with processes() as here:
        log = learn(here, folder / "training.pt")
        if here.rank == 0:
            asked.speaker.save_pretrained(folder)
            write_whole(folder / "log.json", lambda part: part.write_text(json.dumps(log) + "\n"))
            print(f"the trained model is in {folder}; ask it with --model {folder}")


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
        yield "RMSNorm on queries and keys"
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
