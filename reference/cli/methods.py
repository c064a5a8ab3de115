"""The methods as commands: one function each, and nothing else has to be written to add one.

The first line of its docstring is what it does, "Example:" a command line, "Page:" the file whose docstring is its
page. It answers the prompts that it is `Asked`; its result is shown or written as JSON; and `evaluate` runs it on a
task, with its `config`. The fields of what it is given are its options (`reference/cli/command_line.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from torch import Tensor
from tyro.conf import arg

from reference import sampling
from reference.best_of_n import adaptive_best_of_n
from reference.best_of_n import best_of_n as best_of
from reference.cascade import CascadeConfig
from reference.cascade import verify as cast_votes
from reference.cli.asking import Answers, Asked, AskedOften, Output
from reference.interface import Samples
from reference.lookahead import LookaheadConfig
from reference.lookahead import lookahead as look_ahead
from reference.multiple_try import MultipleTryConfig
from reference.multiple_try import multiple_try as try_often
from reference.parallel_distill_refine import PDRConfig, parallel_distill_refine
from reference.parallel_tempering import TemperingConfig, parallel_tempering
from reference.power_sampling import PowerConfig, power_sample
from reference.power_smc import SMCConfig, power_smc, steps_enough
from reference.self_reward import consensus, length_normalized, log_probability, majority_vote, model_as_judge
from reference.self_verified_distillation import SVDConfig
from reference.sequential_refinement import sequential_refinement
from reference.text.tokenizer import StreamDecoder
from reference.uq_ttc import uq_ttc


@dataclass(frozen=True)
class SampleConfig:
    max_new_tokens: int = 512  # most response tokens
    temperature: float = 1.0  # 0: greedy decoding
    top_k: int | None = None  # draw from the k likeliest tokens; none: from all
    top_p: float | None = None  # draw from the likeliest tokens of this mass; none: from all

    def __post_init__(self) -> None:
        sampling.GenerateConfig(self.max_new_tokens, self.temperature, self.top_k, self.top_p)


def sample(
    asked: AskedOften,
    config: SampleConfig,
    output: Output,
    stream: Annotated[bool, arg(help="print while it decodes")] = False,
) -> Answers | None:
    """Decode: sampling at a temperature, top-k, top-p; greedy at temperature 0.

    Example: sharpen sample "3 + 4 x 2 + 5 x 7 + 1" --temperature 0.25 --num-samples 4
    Page: sampling
    """
    if not stream:
        return asked.draw(sampling.generate, samples_per_prompt=asked.n, **vars(config))
    if output.json or output.out or asked.n > 1 or asked.stop:
        raise ValueError(
            "--stream prints one response to each prompt as text; drop --json, --out, --stop and --num-samples"
        )
    for prompt, key in zip(asked.prompts, asked.keys):
        for piece in _stream(asked, prompt, key, **vars(config)):
            print(piece, end="", flush=True)
        print()
    return None


def _stream(asked: Asked, prompt: list[int], key: int | str, **settings: Any) -> Iterator[str]:
    """The pieces of one response as soon as they are whole characters: the tokens are those of `generate`."""
    speaker, config = asked.speaker, sampling.GenerateConfig(**settings)
    shown = StreamDecoder(speaker.tokenizer)
    tokens = sampling.stream(speaker.model, prompt, config, stop_ids=speaker.stop_ids, seed=asked.seed, key=key)
    yield from map(shown.push, tokens)
    yield shown.flush()


@dataclass(frozen=True)
class BestConfig(SampleConfig):
    temperature: float = 1.0  # of the draws
    n: int = 50  # N, draws for each prompt; with --mu the most that it takes
    reward: str = "log-probability"  # or length-normalized, majority, judge: what chooses
    mu: float | None = None  # the adaptive rule's constant, ln(2/δ); none: N draws for every prompt


def best_of_n(asked: Asked, config: BestConfig) -> Answers:
    """Draw N responses and keep the one that the model itself scores highest (2412.01951).

    Example: sharpen best-of-n "4 + 10 + 9 x 7 x 7 x 2" -n 32
    Page: best_of_n
    """
    rewards, settings = _rewards(asked), dict(vars(config))
    n, reward, mu = (settings.pop(name) for name in ("n", "reward", "mu"))
    if reward not in rewards:
        raise ValueError(f"reward is {reward!r}; it must be one of {', '.join(rewards)}")
    if mu is None:
        return asked.draw(best_of, n=n, reward=rewards[reward], **settings)
    if reward != "log-probability":
        raise ValueError(f"mu is {mu}: the adaptive rule scores by log-probability; drop --mu or --reward {reward}")
    return asked.draw(adaptive_best_of_n, mu=mu, max_draws=n, **settings)


def _answers(asked: Asked, samples: Samples) -> list[list[Any]]:
    """What each response answers, [prompts][n]; None: nothing that can be read."""
    speaker = asked.speaker
    return [[speaker.parse("author", text) for text in own] for own in speaker.texts(samples)]


def _rewards(asked: Asked) -> dict[str, Callable[[Samples], Tensor]]:
    def majority(samples: Samples) -> Tensor:
        return majority_vote(_answers(asked, samples))

    def judge(samples: Samples) -> Tensor:
        most = CascadeConfig(max_new_tokens=min(CascadeConfig.max_new_tokens, asked.checkpoint.room()))
        told = model_as_judge(asked.speaker, asked.questions, most, seed=asked.seed, keys=asked.keys, slots=asked.slots)
        return told(samples)

    return {"log-probability": log_probability, "length-normalized": length_normalized, "majority": majority,
            "judge": judge}  # fmt: skip


def power(
    asked: AskedOften,
    config: PowerConfig,
    certify: Annotated[bool, arg(help="draw nothing; say how many steps a block are enough on each prompt")] = False,
) -> Answers | None:
    """Draw from p^α by Metropolis-Hastings, with no training (2510.14901).

    Example: sharpen power "4 + 10 + 9 x 7 x 7 x 2" --alpha 4 --block 24 --steps 400 --max-new-tokens 24
    Example: sharpen power "4 + 10 + 9 x 7 x 7 x 2" --alpha inf --proposal-temperature 0.5 --max-new-tokens 24
    Page: power_sampling
    """
    if not certify:
        return asked.draw(power_sample, config, samples_per_prompt=asked.n)
    for i, steps in enumerate(_steps_enough(asked, config), 1):
        promise = f"nothing can be promised below {MANY_STEPS:,} steps a block"
        if steps <= MANY_STEPS:
            promise = f"{steps:,.0f} steps a block are enough for a total variation of .05 to p^{config.alpha:g}"
        print(f"prompt {i}: {promise} (confidence .95)")
    return None


MANY_STEPS = 10**9  # that nobody will make


def _steps_enough(asked: Asked, config: PowerConfig) -> list[float]:
    """For each prompt, by five clouds of 64 particles."""
    model, first = asked.speaker.model, [sampling.next_logits(asked.speaker.model, p, ()) for p in asked.prompts]
    steps_enough(torch.zeros(1), first[0].log_softmax(-1), config)  # to refuse before anything is drawn
    cloud = SMCConfig(config.alpha, 64, config.proposal_temperature, config.max_new_tokens)
    log_z = power_smc(model, asked.prompts, cloud, samples_per_prompt=5, **asked.drawing).log_normalizer
    return [steps_enough(z, logits.log_softmax(-1), config) for z, logits in zip(log_z, first)]


@dataclass(frozen=True)
class CloudConfig(SMCConfig):
    consensus: bool = False  # answer by the vote of all particles, by weight; otherwise by one, drawn by weight


def smc(asked: AskedOften, config: CloudConfig) -> Answers:
    """Draw from p^α by particles that grow token by token and are resampled (2602.10273).

    Example: sharpen smc "4 + 10 + 9 x 7 x 7 x 2" --alpha 4 --particles 32
    Example: sharpen smc "4 + 10 + 9 x 7 x 7 x 2" --alpha 2 --particles 32 --consensus
    Page: power_smc
    """
    found = asked.draw(power_smc, config, samples_per_prompt=asked.n)
    if not config.consensus:
        return found
    n, N = found.log_weights.shape[1:]
    answers = [own[i * N : (i + 1) * N] for own in _answers(asked, found.particles) for i in range(n)]
    heaviest = consensus(answers, found.log_weights.flatten(0, 1)).view(-1, n)
    first = torch.arange(0, n * N, N, device=heaviest.device)  # of each cloud
    return replace(found, samples=found.particles.take(heaviest + first))


def temper(asked: AskedOften, config: TemperingConfig) -> Answers:
    """Draw from p^α by a ladder of chains that swap places (parallel tempering).

    Example: sharpen temper "4 + 10 + 9 x 7 x 7 x 2" --rungs 3 --steps 50 --block 24 --max-new-tokens 24
    Page: parallel_tempering
    """
    return asked.draw(parallel_tempering, config, samples_per_prompt=asked.n)


def multiple_try(asked: AskedOften, config: MultipleTryConfig) -> Answers:
    """Draw from p^α by chains with several proposals in each step (2606.09926).

    Example: sharpen multiple-try "4 + 10 + 9 x 7 x 7 x 2" --tries 4 --steps 100 --block 24 --max-new-tokens 24
    Page: multiple_try
    """
    return asked.draw(try_often, config, samples_per_prompt=asked.n)


def lookahead(asked: AskedOften, config: LookaheadConfig) -> Answers:
    """Draw from p^α token by token or chunk by chunk, looking ahead by rollouts (2601.21590).

    Example: sharpen lookahead "4 + 10 + 9 x 7 x 7 x 2" --chunk 4 --candidates 4 --rollouts 2 --rollout-law g
    Page: lookahead
    """
    return asked.draw(look_ahead, config, samples_per_prompt=asked.n)


@dataclass(frozen=True)
class RefineConfig(PDRConfig):
    rounds: int | None = None  # revise one draft so many times (sequential refinement) instead


def refine(asked: AskedOften, config: RefineConfig) -> Answers:
    """Draft in parallel, distill, refine (2510.01123); with --rounds, one draft revised again and again.

    The toy model's distiller reads at most 4 drafts.
    Example: sharpen refine "9 x 7 + 5 x 4 + 2 + 8" --drafts 4
    Page: parallel_distill_refine, sequential_refinement
    """
    if config.rounds is None:
        return asked.discuss(parallel_distill_refine, config)
    return asked.discuss(sequential_refinement, config.rounds, config)


@dataclass(frozen=True)
class VerifyConfig:
    n: int = 8  # candidates of each question
    temperature: float = 0.7  # of the candidates
    top_p: float | None = 0.95  # of the candidates
    max_new_tokens: int = 32768  # most tokens of a candidate
    cascade: CascadeConfig = field(default_factory=CascadeConfig)

    def __post_init__(self) -> None:
        SVDConfig(**vars(self))


def verify(
    asked: Asked,
    config: VerifyConfig,
    output: Output,
    candidate: Annotated[str | None, arg(help="verify this answer instead of drawing any, and show the votes")] = None,
) -> Answers | None:
    """Draw candidates and answer with the first that the model's own checks accept (2605.26132, UQ-TTC).

    Example: sharpen verify "3 + 4 x 2 + 5 x 7 + 1" -n 8 --votes 3
    Example: sharpen verify "1 + 1 + 1" --candidate "+ 1 2 + 1 3 = 3 ."
    Page: uq_ttc, cascade
    """
    if candidate is None:
        return asked.discuss(uq_ttc, SVDConfig(**vars(config)))
    lines = []
    for i, question in enumerate(asked.questions):
        one = asked.about([question], asked.keys[i : i + 1])
        record = one.discuss(cast_votes, [[candidate]], config.cascade)
        votes = {name: own.tolist() for name, own in zip(record.stages, record.votes[0, 0])}
        static, accepted = bool(record.static[0, 0]), bool(record.accepted()[0, 0])
        if output.json:
            known = {"id": asked.keys[i], "prompt": question, "static": static, "votes": votes,
                     "unread": record.unread[0, 0].tolist(), "accepted": accepted}  # fmt: skip
            lines.append(json.dumps(known))
            continue
        said = {1: "yes", 0: "no"}
        lines += [question, f"  static check: {'passed' if static else 'failed: no answer can be read'}"]
        lines += [f"  {name}: {' '.join(said.get(vote, '-') for vote in own)}" for name, own in votes.items()]
        lines.append(f"  {'accepted' if accepted else 'rejected'}; {record.remark}")
    output.write("\n".join(lines))
    return None
