"""Every setting has an effect: for each field of each config a second value, and the output that must differ.

A field without a row fails, so that a setting that nobody reads cannot be added, nor one forgotten on its way.
"""

import dataclasses
import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import reference
from reference.best_of_n import AdaptiveConfig, BestOfNConfig, adaptive_best_of_n, best_of_n
from reference.cascade import CascadeConfig, verify
from reference.cli.asking import Asked, AskedOften, Input, Output
from reference.cli.methods import BestConfig, CloudConfig, RefineConfig, SampleConfig, VerifyConfig, refine, sample, smc
from reference.cli.methods import best_of_n as best_command
from reference.cli.methods import verify as verify_command
from reference.grpo import GRPOConfig, grpo
from reference.lookahead import LookaheadConfig, lookahead
from reference.multiple_try import MultipleTryConfig, multiple_try
from reference.operator_rl import OperatorConfig, operator_rl
from reference.parallel_distill_refine import PDRConfig, parallel_distill_refine
from reference.parallel_tempering import TemperingConfig, parallel_tempering
from reference.policy_gradient import PolicyGradientConfig, policy_gradient
from reference.power_distillation import PowerDistillationConfig, power_distill
from reference.power_sampling import PowerConfig, power_sample
from reference.power_smc import SMCConfig, power_smc
from reference.rlhf_sharpening import RLHFConfig, xpo
from reference.sampling import GenerateConfig, generate
from reference.self_reward import length_normalized
from reference.self_verified_distillation import SVDConfig, self_verified_distillation
from reference.sft_sharpening import SFTConfig, sft_sharpen
from reference.text.text_model import TextModel
from reference.training.loop import FitConfig, Trainer, fit
from reference.training.lora import LoRAConfig, add_lora
from toy import relay
from toy.pretrain import CHECKPOINT
from toy.tabular import TabularLM

PROMPTS, STOPS = [[1], [2, 3]], [0]
QUESTIONS = ["3 + 4 x 2 + 5 x 7 + 1", "9 x 7 + 5 x 4 + 2 + 8"]
SEEDS = [problem.question for problem in relay.make_problems(14, split="seeds")]
MODELS = {"Config"}  # what a config.json says has its effects in tests/reference/test_checkpoints.py


class With(NamedTuple):
    """A value that has an effect together with others."""

    value: Any
    others: dict[str, Any]


class Row(NamedTuple):
    base: dict[str, Any]  # the settings that one is changed of
    run: Callable[[Any], Any]  # config -> output
    values: dict[str, Any]  # for each field another value than the base's, or the default's


@cache
def table() -> TabularLM:
    probs = np.random.default_rng(4).dirichlet(np.full(5, 0.8), size=5)
    return TabularLM.markov(probs, torch.float64)


def speaker() -> TextModel:
    return TextModel.from_pretrained(CHECKPOINT)


spoken = cache(speaker)  # where it is not trained


def drawn(sampler: Callable[..., Any]) -> Callable[[Any], Any]:
    """Tokens and costs: what saves work changes the costs alone."""

    def run(config: Any) -> Any:
        found = sampler(table(), PROMPTS, config, stop_ids=STOPS, seed=5)
        return found.samples.tokens.tolist(), found.samples.logq.tolist(), found.costs

    return run


def votes(config: CascadeConfig) -> Any:
    candidates = [["+ 1 2 + 1 3 = 3 .", "+ 1 2 + 1 4 = 4 .", "= 3 .", "nothing"]]
    record = verify(spoken(), ["1 + 1 + 1"], candidates, config, seed=3)
    return record.stages, record.votes.tolist(), record.passed().tolist(), record.tokens.tolist(), record.costs


def refined(config: PDRConfig) -> Any:
    said = parallel_distill_refine(spoken(), QUESTIONS, config, seed=2)
    return said.texts, said.rounds, said.workspaces, said.costs


class Counting(Trainer):
    saves = 0

    def save(self, path: Any) -> None:
        Counting.saves += 1


def trained(config: FitConfig) -> Any:
    model, calls, Counting.saves = speaker().model, [], 0
    model.register_forward_hook(lambda *_: calls.append(1))
    examples = [([3, 4, 5], [i, i + 1, 7][: 1 + i % 3]) for i in range(2, 8)]
    found = fit(model, examples, config, trainer=Counting)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there may be no GPU here
        computes_in = config.autocast(torch.device("cuda"))
    return found.log, len(calls), Counting.saves, config.bf16 and computes_in.fast_dtype


def fitted(config: SFTConfig) -> Any:
    losses = []

    def minimise(loss: Any, policy: Any) -> Any:
        losses.append(float(loss(policy)))
        return policy

    found = sft_sharpen(table(), table(), PROMPTS, config, stop_ids=STOPS, minimise=minimise)
    return losses, found.chosen.draws.tolist(), found.cost


def explored(config: RLHFConfig) -> Any:
    losses, other = [], TabularLM.markov(np.full((5, 5), 0.2), torch.float64)

    def minimise(loss: Any, policy: Any) -> Any:
        losses.append(float(loss(other)))
        return policy

    found = xpo(table(), table(), PROMPTS, config, stop_ids=STOPS, minimise=minimise, objective=lambda _: 0.0)
    return losses, len(found.policies), found.cost


def adapted(config: LoRAConfig) -> Any:
    model = add_lora(speaker().model, config)
    return {name: weight.double().sum().item() for name, weight in model.named_parameters() if "lora" in name}, [
        layer.scale for layer in model.modules() if hasattr(layer, "scale")
    ]


def reinforced(config: GRPOConfig) -> Any:
    """The reward is the length, so that something is learned."""
    model = speaker().model
    fitting = FitConfig(batch=8, rate=0.01, schedule="constant", clip=1.0)
    found = grpo(
        model, [[3, 4], [5], [6, 3]], lambda _, samples: samples.lengths.double(), config, fitting, stop_ids=[0]
    )
    return found.log, found.cost


def climbed(config: PolicyGradientConfig) -> Any:
    """A grader's reward is the length."""
    fitting = FitConfig(batch=8, rate=0.01, schedule="constant", clip=1.0)
    reward = (lambda _, samples: samples.lengths.double()) if config.reward == "grader" else None
    found = policy_gradient(speaker().model, [[3, 4], [5], [6, 3]], config, fitting, stop_ids=[0], reward=reward)
    return found.log, found.cost


def learned_from_chains(config: PowerDistillationConfig) -> Any:
    losses = []

    def minimise(loss: Any, policy: Any) -> Any:
        losses.append(float(loss(policy)))
        return policy

    return losses, power_distill(table(), table(), PROMPTS, config, stop_ids=STOPS, minimise=minimise).cost


def operated(config: OperatorConfig) -> Any:
    fitting = FitConfig(batch=8, rate=0.01, schedule="constant", clip=1.0)
    found = operator_rl(speaker(), [*QUESTIONS, "1 + 1 + 1"], lambda i, text: len(text) % 2 == 0, config, fitting)
    return found.log, found.cost


def distilled(config: SVDConfig) -> Any:
    fitting = FitConfig(batch=4, rate=0.01, epochs=1)
    blocks = []
    rounds = self_verified_distillation(spoken(), SEEDS, config, fitting, after=lambda *told: blocks.append(told))
    return blocks, [(each.log, [repr(one) for one in each.kept], each.candidates.cost) for each in rounds]


def by_command(function: Callable[..., Any]) -> Callable[[Any], Any]:
    """What a command answers: its settings must reach the algorithm."""

    def run(config: Any) -> Any:
        kind = AskedOften if function in (refine, smc) else Asked
        asked = kind(Input(QUESTIONS[0]), seed=1)
        asked.__dict__["speaker"] = spoken()
        asked = asked.about(QUESTIONS, [0, 1])
        more = {"output": Output()} if "output" in inspect.signature(function).parameters else {}
        found = function(asked, config, **more)
        pool = found.pool.tokens.tolist() if getattr(found, "pool", None) else None
        return found.samples.tokens.tolist(), pool, getattr(found, "workspaces", None), found.costs

    return run


FEW_STEPS = PowerConfig(block=2, steps=2, max_new_tokens=4)
CHAINS = {"alpha": 4.0, "block": 3, "steps": 6, "max_new_tokens": 9}
OF_CHAINS = {
    "alpha": 1.0, "proposal_temperature": 1.0, "block": 9, "steps": 3, "max_new_tokens": 5, "cut": "horizon",
    "entropy_power": With(1.0, {"cut": "entropy"}), "entropy_floor": With(3.0, {"cut": "entropy"}),
    "first_divergence_skip": False, "early_reject": False,
}  # fmt: skip
TOKENS = {"max_new_tokens": 3, "temperature": 0.4, "top_k": 1, "top_p": 0.3}
SHORT = {"max_new_tokens": 12}
DRAFTS = {"drafts": (3, 2), "max_new_tokens": 24, "workspace": 24}
OF_DRAFTS = {"drafts": (3,), "distiller": "random-k", "k": With(1, {"distiller": "random-k", "workspace": 80}),
             "workspace": 3, "max_new_tokens": 6, "temperature": 0.3}  # fmt: skip
VOTES = CascadeConfig(votes=2, max_new_tokens=20, temperature=1.0, top_p=None)
ROUND = PDRConfig((2,), "summary", 1, 12, 12)
TABLE: dict[type, Row] = {
    GenerateConfig: Row({"max_new_tokens": 8}, drawn(generate), TOKENS),
    BestOfNConfig: Row({"n": 6, "max_new_tokens": 8}, drawn(best_of_n),
                       {**TOKENS, "n": 2, "reward": length_normalized}),
    AdaptiveConfig: Row({"mu": 2.0, "max_draws": 9, "max_new_tokens": 4}, drawn(adaptive_best_of_n),
                        {**TOKENS, "mu": 0.1, "max_draws": 2}),
    PowerConfig: Row(CHAINS, drawn(power_sample), {**OF_CHAINS, "prefetch": 2, "anneal": 0.5}),
    TemperingConfig: Row({**CHAINS, "rungs": 2}, drawn(parallel_tempering),
                         {**OF_CHAINS, "alpha": 2.0, "rungs": 3, "ladder": (2.0, 4.0), "prefetch": 2, "anneal": 0.5}),
    MultipleTryConfig: Row({**CHAINS, "tries": 3}, drawn(multiple_try),
                           {**OF_CHAINS, "tries": 2, "prefetch": 2, "anneal": 0.5,
                            "early_reject": With(False, {"tries": 1})}),
    SMCConfig: Row({"particles": 6, "max_new_tokens": 8}, drawn(power_smc),
                   {"alpha": 1.5, "particles": 3, "proposal_temperature": 1.0, "max_new_tokens": 4,
                    "ess_threshold": With(1.5, {"ramp": 6}), "resampling": With("multinomial", {"ess_threshold": 1.5}),
                    "ramp": 6,
                    "eta": With(900.0, {"resampling": "chopthin", "ess_threshold": 1.5, "proposal_temperature": 1.0})}),
    CloudConfig: Row({"particles": 6, "max_new_tokens": 12, "alpha": 1.2}, by_command(smc),
                     {"alpha": 4.0, "particles": 3, "proposal_temperature": 0.5, "max_new_tokens": 4,
                      "ess_threshold": 1.5, "resampling": With("multinomial", {"ess_threshold": 1.5}), "ramp": 6,
                      "eta": With(900.0, {"resampling": "chopthin", "ess_threshold": 1.5, "proposal_temperature": 2.0}),
                      "consensus": True}),
    LookaheadConfig: Row({"max_new_tokens": 6, "candidates": 3, "rollouts": 3}, drawn(lookahead),
                         {"alpha": 1.5, "max_new_tokens": 3, "candidates": 2, "rollouts": 2, "rollout_law": "g",
                          "estimator": "plug_in", "chunk": 2, "chunk_law": With("g", {"chunk": 2}),
                          "weight": With("published", {"chunk": 1, "alpha": 1.0, "rollouts": 1})}),
    CascadeConfig: Row({"votes": 3, "exit": "none", "max_new_tokens": 24}, votes,
                       {"votes": 2, "policy": With("majority", {"temperature": 2.0, "top_p": None}),
                        "stages": ("facts",), "exit": "vote",
                        "require_thinking": True, "max_new_tokens": 1, "temperature": 5.0, "top_p": 0.05}),
    PDRConfig: Row(DRAFTS, refined, OF_DRAFTS),
    FitConfig: Row({"epochs": 3, "batch": 3, "rate": 0.01, "save_every": 5}, trained,
                   {"epochs": 2, "batch": 2, "micro": 1, "rate": 0.02, "warmup": 3, "schedule": "cosine",
                    "weight_decay": 0.9, "betas": (0.5, 0.9), "clip": 5.0, "bf16": False, "save_every": 2, "seed": 1}),
    LoRAConfig: Row({}, adapted, {"rank": 4, "alpha": 1.0, "targets": ("q_proj",), "seed": 1}),
    SFTConfig: Row({"n": 6, "max_new_tokens": 6}, fitted, {"n": 3, "mu": With(0.05, {"mu": 3.0}), "max_new_tokens": 3}),
    RLHFConfig: Row({"rounds": 3, "max_new_tokens": 6}, explored,
                    {"beta": 0.5, "alpha": 0.5, "rounds": 2, "prompts": 2, "pairs": 3, "max_new_tokens": 3,
                     "loss": "logistic"}),
    GRPOConfig: Row({"rounds": 2, "prompts": 2, "group": 4, "passes": 2, "max_new_tokens": 6}, reinforced,
                    {"rounds": 3, "prompts": 1, "group": 6, "passes": 3, "clip": 0.001, "beta": 5.0,
                     "max_new_tokens": 3, "seed": 1}),
    PolicyGradientConfig: Row({"rounds": 2, "group": 4, "max_new_tokens": 6}, climbed,
                              {"reward": "grader", "beta": 2.0, "rounds": 3, "group": 2, "max_new_tokens": 3,
                               "seed": 1}),
    PowerDistillationConfig: Row({"n": 2, "power": FEW_STEPS}, learned_from_chains,
                                 {"n": 3, "power": dataclasses.replace(FEW_STEPS, alpha=1.0)}),
    OperatorConfig: Row({"rounds": 2, "prompts": 2, "group": 4, "passes": 2, "pdr": ROUND}, operated,
                        {"rounds": 1, "prompts": 4, "group": 6, "kinds": ("trace",), "carries": "all",
                         "pdr": dataclasses.replace(ROUND, drafts=(3,)), "passes": 3, "low": 0.001, "high": 0.001,
                         "alpha": 2.0, "seed": 1}),
    SVDConfig: Row({"n": 4, "max_new_tokens": 20, "cascade": VOTES, "temperature": 1.0, "top_p": None}, distilled,
                   {"n": 6, "keep": "all", "temperature": 1.5, "top_p": 0.2, "max_new_tokens": 17,
                    "cascade": dataclasses.replace(VOTES, votes=3), "rounds": 2, "judge": With("frozen", {"rounds": 3}),
                    "replay": With(0.5, {"replay": 1.0}), "block": 1, "seed": 3}),
    SampleConfig: Row({"max_new_tokens": 12}, by_command(sample), {**TOKENS, "temperature": 3.0}),
    BestConfig: Row({"max_new_tokens": 12, "n": 4}, by_command(best_command),
                    {**TOKENS, "temperature": 3.0, "n": 2, "reward": "length-normalized", "mu": 0.1}),
    RefineConfig: Row(DRAFTS, by_command(refine), {**OF_DRAFTS, "rounds": 1}),
    VerifyConfig: Row({"max_new_tokens": 24, "n": 3, "cascade": VOTES}, by_command(verify_command),
                      {"n": 2, "temperature": 3.0, "top_p": With(0.1, {"temperature": 3.0}), "max_new_tokens": 6,
                       "cascade": dataclasses.replace(VOTES, votes=3)}),
}  # fmt: skip
FIELDS = [(kind, field.name) for kind in TABLE for field in dataclasses.fields(kind)]


def test_every_config_is_in_the_table():
    found = set()
    for each in pkgutil.walk_packages(reference.__path__, "reference."):
        if each.name.rpartition(".")[2] not in ("harness", "code_runner", "__main__"):  # programs
            module = importlib.import_module(each.name)
            found |= {value for name, value in vars(module).items() if name.endswith("Config") and name not in MODELS}
    assert found == set(TABLE)


@cache
def outcome(kind: type, settings: tuple[tuple[str, Any], ...]) -> str:
    try:
        return repr(TABLE[kind].run(kind(**dict(settings))))
    except ValueError as error:  # what a class inherits it may refuse, by name
        return f"refused: {error}"


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=[f"{kind.__name__}-{name}" for kind, name in FIELDS])
def test_every_setting_has_an_effect(kind, name):
    row = TABLE[kind]
    value = row.values[name]
    base = row.base
    if isinstance(value, With):
        base, value = {**row.base, **value.others}, value.value
    ordered = [tuple(sorted(each.items(), key=str)) for each in (base, {**base, name: value})]
    before, after = (outcome(kind, each) for each in ordered)
    assert not before.startswith("refused") and before != after, f"{name} = {value!r} changes nothing"
    assert not after.startswith("refused") or after.startswith(f"refused: {name} is {value}"), after
