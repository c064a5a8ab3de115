"""Training as commands: `train_sft` is `sharpen train sft`. Each writes a folder in Hugging Face's format, and its log;
the same command goes on from where it was, and under torchrun the processes share the work."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from reference.checkpoints import write_whole
from reference.cli.asking import Asked, Grading
from reference.evaluation.evaluate import until
from reference.evaluation.formats import FORMATS, Problem, answer_of
from reference.evaluation.graders import make_grader
from reference.grpo import GRPOConfig, RewardFunction, grpo
from reference.interface import Samples
from reference.policy_gradient import PolicyGradientConfig, policy_gradient
from reference.power_distillation import PowerDistillationConfig, power_distill
from reference.rlhf_sharpening import RLHFConfig, dpo_sharpen, xpo_rounds
from reference.self_verified_distillation import SVDConfig, self_verified_distillation
from reference.sft_sharpening import SFTConfig, sft_sharpen
from reference.text.identity import digest
from reference.training.distributed import Processes, processes, sample
from reference.training.loop import FitConfig, Trainer, train
from reference.training.lora import LoRAConfig, add_lora
from reference.training.run_folder import RunFolder, in_blocks

GRPO_FIT = FitConfig(batch=1024, rate=1e-6, save_every=1)  # DeepSeekMath's; a round takes long to draw
RL_FIT = FitConfig(batch=128, rate=1e-5, schedule="constant", weight_decay=0.0, clip=1.0, save_every=1)
SVD_FIT = FitConfig(batch=64, rate=2e-5, schedule="cosine", clip=0.2)  # 2605.26132's, for 4B


@dataclass(frozen=True)
class Training:
    out: str  # folder for the trained model; the same command goes on from what is there
    lora: bool = True  # train small additions to frozen layers, rather than all weights
    adapters: LoRAConfig = field(default_factory=LoRAConfig)

    def adapt(self, model: Any) -> Any:
        return add_lora(model, self.adapters) if self.lora else model

    def run(self, asked: Asked, learn: Callable[[Processes, Path], dict[str, Any]], **depends: Any) -> None:
        """Train the model that is asked, and write it to the folder with what `learn` gives, training's log.

        depends: what the result depends on besides the model and its prompts: all settings, answers."""
        if asked.stop:
            raise ValueError("--stop cuts what is shown, and training learns whole responses; drop it")
        command = learn.__qualname__.partition(".")[0].replace("train_", "train ")
        identity = asked.identity(command, **depends, lora=self.lora, adapters=self.adapters if self.lora else None)
        with (
            processes() as here,
            RunFolder(self.out, identity) if here.rank == 0 else nullcontext(Path(self.out)) as folder,
        ):
            log = learn(here, folder / "training.pt")
            if here.rank == 0:
                asked.speaker.save_pretrained(folder)
                write_whole(folder / "log.json", lambda part: part.write_text(json.dumps(log) + "\n"))
                print(f"the trained model is in {folder}; ask it with --model {folder}")


class Forecast:
    """Says, before it begins, how many tokens a training draws at most; after the first block and the first steps, how
    long the rest will take. On stderr, in the first process."""

    def __init__(self, here: Processes, most: int) -> None:
        self.here, self.begin, self.told, self.first = here, time.perf_counter(), set[str](), (0, 0.0)
        self.tell("most", f"at most {most:,} tokens are drawn")

    def tell(self, what: str, line: str) -> None:
        if self.here.rank == 0 and what not in self.told:
            print(line, file=sys.stderr)
        self.told.add(what)

    def drew(self, prompts: int, left: int, tokens: int) -> None:
        """After each block."""
        seconds = time.perf_counter() - self.begin
        if left:
            end = until(left * seconds / prompts)
            self.tell("drew", f"{tokens / seconds:.0f} tokens per second; {left} prompts are left to draw, {end}")

    def rounds(self, done: int, of: int) -> None:
        """After each of several that grow."""
        seconds = time.perf_counter() - self.begin
        if done < of:
            each = f"{seconds / done:.2g} s for round {done} of {of}"
            self.tell("rounds", f"{each}; later ones, of more pairs, take longer")

    def minimiser(self, log: dict[str, Any], fitting: FitConfig, state: Path) -> Callable[[Any, Any], Any]:
        """minimise(loss, policy): `train`, which goes on from `state` and puts its log into `log`."""

        def minimise(loss: Any, policy: Any) -> Any:
            tuned = train(policy, loss, fitting, state=state, trainer=self.here.trainer, after=self.trained)
            log.update(tuned.log)
            return tuned.model

        return minimise

    def trained(self, run: Trainer) -> None:
        """After each step, or round."""
        now, (step, at) = time.perf_counter(), self.first
        if not 0 < step < run.step:
            self.first = run.step, now
        elif left := run.steps - run.step:
            each = (now - at) / (run.step - step)
            self.tell("trained", f"{each:.2g} s a step; {left:,} are left, {until(left * each)}")


def train_sft(asked: Asked, config: SFTConfig, fitting: FitConfig, training: Training) -> None:
    """SFT-Sharpening: learn the best of N own responses to each prompt (2412.01951).

    Example: sharpen train sft --file problems.txt --out runs/sft -n 32 --no-lora --epochs 3 --rate 1e-3 --clip 1
    Page: sft_sharpening
    """

    def learn(here: Processes, state: Path) -> dict[str, Any]:
        model, log = training.adapt(asked.speaker.model), dict[str, Any]()
        forecast = Forecast(here, len(asked.prompts) * config.n * config.max_new_tokens)
        sharp = sft_sharpen(model, model, asked.prompts, config, minimise=forecast.minimiser(log, fitting, state),
                            sample=in_blocks(sample, state.parent, after=forecast.drew), **asked.drawing)  # fmt: skip
        return {**log, "draws": sharp.chosen.draws.flatten().tolist(), "cost": asdict(sharp.cost)}

    training.run(asked, learn, config=config, fitting=fitting)


def train_power(asked: Asked, config: PowerDistillationConfig, fitting: FitConfig, training: Training) -> None:
    """Power self-distillation: learn what power sampling draws (2605.04542).

    Example: sharpen train power --file problems.txt --out runs/power -n 4 --steps 10 --no-lora --epochs 3 --rate 1e-3
    Page: power_distillation, power_sampling
    """

    def learn(here: Processes, state: Path) -> dict[str, Any]:
        model, log = training.adapt(asked.speaker.model), dict[str, Any]()
        power = config.power
        horizons = [min(power.block * (k + 1), power.max_new_tokens) for k in range(power.stages)]
        most = power.max_new_tokens + power.steps * sum(horizons)
        forecast = Forecast(here, len(asked.prompts) * config.n * most)
        distilled = power_distill(
            model, model, asked.prompts, config, minimise=forecast.minimiser(log, fitting, state),
            sample=in_blocks(sample, state.parent, after=forecast.drew), **asked.drawing,
        )  # fmt: skip
        return {**log, "acceptance": distilled.drawn.acceptance, "cost": asdict(distilled.cost)}

    training.run(asked, learn, config=config, fitting=fitting)


def train_dpo(asked: Asked, config: RLHFConfig, fitting: FitConfig, training: Training) -> None:
    """RLHF-Sharpening, offline: regression to differences of the self-reward (2412.01951, DPO).

    Example: sharpen train dpo --file problems.txt --out runs/dpo --pairs 4 --no-lora --epochs 3 --rate 1e-4
    Page: rlhf_sharpening
    """

    def learn(here: Processes, state: Path) -> dict[str, Any]:
        log = dict[str, Any]()
        model = training.adapt(asked.speaker.model)  # its additions are 0 until trained: it is the base too
        forecast = Forecast(here, len(asked.prompts) * 2 * config.pairs * config.max_new_tokens)
        trained = dpo_sharpen(model, model, asked.prompts, config, minimise=forecast.minimiser(log, fitting, state),
                              sample=in_blocks(sample, state.parent, after=forecast.drew), **asked.drawing)  # fmt: skip
        return {**log, "cost": asdict(trained.cost)}

    training.run(asked, learn, config=config, fitting=fitting)


def train_xpo(asked: Asked, config: RLHFConfig, fitting: FitConfig, training: Training) -> None:
    """RLHF-Sharpening, online: XPO, with optimistic exploration; the last iterate is kept (2412.01951, Algorithm 1).

    Every round fits the policy to all pairs so far, from where the last round left it.
    Example: sharpen train xpo --file problems.txt --out runs/xpo --rounds 20 --no-lora --epochs 3 --rate 1e-4
    Page: rlhf_sharpening
    """

    def learn(here: Processes, state: Path) -> dict[str, Any]:
        base, losses = copy.deepcopy(asked.speaker.model), list[float]()
        policy = training.adapt(asked.speaker.model)
        forecast = Forecast(here, config.rounds * config.prompts * 2 * config.pairs * config.max_new_tokens)

        def minimise(loss: Any, policy: Any) -> Any:
            place = state.with_name(f"training-{len(losses) + 1}.pt")
            tuned = train(policy, loss, fitting, state=place, trainer=here.trainer)
            losses.append(tuned.log["loss"][-1])
            forecast.rounds(len(losses), config.rounds)
            return tuned.model

        settings = {**asked.drawing, "keys": None}  # a prompt may come several times
        rounds = xpo_rounds(
            base, policy, asked.prompts, config, minimise=minimise, sample=in_blocks(sample, state.parent), **settings
        )  # fmt: skip
        costs = [cost for _, _, cost in rounds]
        return {"loss": losses, "cost": asdict(sum(costs[1:], costs[0]))}

    training.run(asked, learn, config=config, fitting=fitting)


def _graded(asked: Asked, grading: Grading) -> tuple[str, RewardFunction, str]:
    """The grader's name, the reward by it of what is asked, and a digest of the answers. ValueError: no answers."""
    named = grading.grader or FORMATS[asked.input.format or "plain"].grader
    if named == "none":
        raise ValueError("grader 'none' judges nothing, so there is no reward; name another by --grader")
    grade = make_grader(named, grading.allow_code_execution)
    problems = [Problem(**line) for line in asked.lines] if asked.input.format else []
    for i, line in enumerate(asked.lines if not asked.input.format else []):
        try:
            problems.append(Problem(asked.keys[i], line["prompt"], answer_of(line), line.get("begin", "")))
        except KeyError as error:
            raise ValueError(f"prompt {i + 1} needs {error.args[0]}; give a --file of JSON lines that have one, "
                             "or a --format") from None  # fmt: skip
        if not isinstance(problems[-1].begin, str):
            raise ValueError(f'prompt {i + 1} has {problems[-1].begin!r} as "begin"; it must be a text')
    for problem in problems:
        grade(problem, "")  # what it cannot grade is found before a token is drawn

    def reward(index: list[int], samples: Samples) -> torch.Tensor:
        decode = asked.speaker.tokenizer.decode
        return torch.tensor([[float(grade(problems[i], decode(one.tokens)).right) for one in own]
                             for i, own in zip(index, samples)])  # fmt: skip

    answers = digest([[problem.answer, problem.begin, problem.grader] for problem in problems])
    return named, reward, answers


def train_grpo(
    asked: Asked, config: GRPOConfig, grading: Grading, training: Training, fitting: FitConfig = GRPO_FIT
) -> None:
    """GRPO, the RL baseline: the reward is a grader's, so the problems need answers (2402.03300).

    `python -m toy.questions products > problems.jsonl` makes some for smollm2.
    Example: sharpen train grpo --model smollm2 --file problems.jsonl --grader numeric --out runs/grpo --group 8
    Page: grpo
    """
    named, reward, answers = _graded(asked, grading)

    def learn(here: Processes, state: Path) -> dict[str, Any]:
        speaker = asked.speaker
        forecast = Forecast(here, config.rounds * config.prompts * config.group * config.max_new_tokens)
        tuned = grpo(
            training.adapt(speaker.model), asked.prompts, reward, config, fitting, stop_ids=speaker.stop_ids,
            state=state, trainer=here.trainer, after=forecast.trained, slots=asked.slots,
        )  # fmt: skip
        return {**tuned.log, "cost": asdict(tuned.cost)}

    training.run(asked, learn, config=config, fitting=fitting, grader=named, answers=answers)


def train_rl(
    asked: Asked, config: PolicyGradientConfig, grading: Grading, training: Training, fitting: FitConfig = RL_FIT
) -> None:
    """The policy gradient of J_β, on-policy, with a leave-one-out baseline: by the model's own log p, or by a grader.

    Each round draws --batch responses, --group to a prompt, and makes one step with them.
    Example: sharpen train rl --file problems.txt --out runs/rl --reward self --beta 0.5 --no-lora --rate 1e-4
    Page: policy_gradient
    """
    named, reward, answers = _graded(asked, grading) if config.reward == "grader" else (None, None, None)
    if grading.grader and reward is None:
        raise ValueError(f"grader {grading.grader!r} judges nothing where --reward is self; drop one of them")

    def learn(here: Processes, state: Path) -> dict[str, Any]:
        forecast = Forecast(here, config.rounds * fitting.batch * config.max_new_tokens)
        tuned = policy_gradient(
            training.adapt(asked.speaker.model), asked.prompts, config, fitting, stop_ids=asked.speaker.stop_ids,
            reward=reward, state=state, trainer=here.trainer, after=forecast.trained, slots=asked.slots,
        )  # fmt: skip
        return {**tuned.log, "cost": asdict(tuned.cost)}

    training.run(asked, learn, config=config, fitting=fitting, grader=named, answers=answers)


def train_svd(asked: Asked, config: SVDConfig, training: Training, fitting: FitConfig = SVD_FIT) -> None:
    """Self-verified distillation: learn those own solutions that pass the model's own checks (2605.26132).

    Example: sharpen train svd --file problems.txt --out runs/distilled --votes 3 --no-lora --epochs 3 --rate 1e-3
    Page: self_verified_distillation, cascade
    """

    asked.need_words()

    def learn(here: Processes, state: Path) -> dict[str, Any]:
        if here.world > 1:
            raise ValueError(f"self-verified distillation runs in one process, not in {here.world}; drop torchrun")
        drafts, judge = len(asked.questions) * config.n * config.rounds, config.cascade
        turns = sum(len(stage.turns) for stage in asked.speaker.templates.stages.values())
        replies = drafts * judge.votes * turns * judge.max_new_tokens
        forecast = Forecast(here, drafts * config.max_new_tokens + replies)
        rounds = self_verified_distillation(
            asked.speaker, asked.questions, config, fitting, lora=training.adapters if training.lora else None,
            keys=asked.keys, folder=state.parent / "run", after=forecast.drew, slots=asked.slots,
        )  # fmt: skip
        policy, student = (cast(Any, each.model) for each in (asked.speaker, rounds[-1].student))
        policy.load_state_dict(student.state_dict())
        return {
            **rounds[-1].log, "kept": [len(each.kept) for each in rounds],
            "rejected": [each.candidates.verification.rejections() for each in rounds],
            "unread": [each.candidates.verification.remark for each in rounds],
            "cost": [asdict(each.candidates.cost) for each in rounds],
        }  # fmt: skip

    training.run(asked, learn, config=config, fitting=fitting)
