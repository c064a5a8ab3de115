"""Public functions given what is no setting, prompt, id, key or count: one line, or what was asked.

Every field of every config, and every argument of the samplers, is each of WRONG in turn.
"""

import dataclasses
import traceback
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from reference.best_of_n import AdaptiveConfig, BestOfNConfig, adaptive_best_of_n, best_of_n
from reference.cascade import CascadeConfig
from reference.grpo import GRPOConfig
from reference.lookahead import LookaheadConfig, lookahead
from reference.multiple_try import MultipleTryConfig, multiple_try
from reference.operator_rl import OperatorConfig
from reference.parallel_distill_refine import PDRConfig
from reference.parallel_tempering import TemperingConfig, parallel_tempering
from reference.policy_gradient import PolicyGradientConfig
from reference.power_distillation import PowerDistillationConfig
from reference.power_sampling import PowerConfig, power_sample
from reference.power_smc import SMCConfig, power_smc
from reference.rlhf_sharpening import RLHFConfig, dpo_sharpen, xpo
from reference.sampling import GenerateConfig, generate
from reference.self_verified_distillation import SVDConfig
from reference.sft_sharpening import FiniteClass, SFTConfig, sft_sharpen
from reference.training.loop import FitConfig
from reference.training.lora import LoRAConfig
from tests.conftest import ROOT
from toy.tabular import TabularLM

MODEL = TabularLM.random(3, 3, seed=1)
WRONG = [
    None, True, -1, 0, 1.5, np.nan, np.inf, 10**20, 2**63, "3", "", b"3", "\u2028", [], [1], (1, 2), {}, {"a": 1},
    [None], [[1], [2]], np.float64(2), np.int32(2), torch.tensor(2), torch.tensor(2.5), torch.zeros(2), object(),
    1e-300, 1e300,
]  # fmt: skip
FEW = {"max_new_tokens": 3}
CHAIN = {"alpha": 2.0, "block": 2, "steps": 2, **FEW}
SAMPLERS = {
    generate: (GenerateConfig, FEW), best_of_n: (BestOfNConfig, {"n": 2, **FEW}),
    adaptive_best_of_n: (AdaptiveConfig, {"mu": 1.0, "max_draws": 3, **FEW}), power_sample: (PowerConfig, CHAIN),
    power_smc: (SMCConfig, {"alpha": 2.0, "particles": 2, **FEW}), multiple_try: (MultipleTryConfig, CHAIN),
    parallel_tempering: (TemperingConfig, CHAIN),
    lookahead: (LookaheadConfig, {"alpha": 2.0, "candidates": 2, "rollouts": 1, **FEW}),
}  # fmt: skip
LEARNERS = {
    sft_sharpen: (SFTConfig, {"n": 2, **FEW}), dpo_sharpen: (RLHFConfig, FEW), xpo: (RLHFConfig, {"rounds": 2, **FEW}),
}  # fmt: skip
ALONE = (
    FitConfig, LoRAConfig, SVDConfig, CascadeConfig, PDRConfig, GRPOConfig, OperatorConfig, PolicyGradientConfig,
    PowerDistillationConfig,
)  # fmt: skip
ARGUMENTS = {"prompts": [[1], [2, 1]], "stop_ids": [0], "seed": 0, "keys": None, "slots": None, "samples_per_prompt": 1}


def refused_or_done(call, *told):
    """In one line of ours, or not at all."""
    try:
        call()
    except ValueError as error:
        assert "\n" not in str(error), told
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        assert Path(last).is_relative_to(ROOT), (*told, last, error)
    except Exception as error:
        raise AssertionError(told) from error


def wrong_settings(kind, right):
    """(what is wrong, how it is made) of every field and every wrong value."""
    for wrong in WRONG:
        for field in dataclasses.fields(kind):
            yield (field.name, wrong), partial(kind, **{**right, field.name: wrong})


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.__name__)
def test_a_sampler_refuses_wrong_settings_and_arguments(sampler):
    kind, right = SAMPLERS[sampler]
    for told, make in wrong_settings(kind, right):
        refused_or_done(lambda make=make: sampler(MODEL, [[1], [2, 1]], make(), stop_ids=[0]), *told)
    for wrong in WRONG:
        for name in ARGUMENTS:
            told = {**ARGUMENTS, name: wrong}
            refused_or_done(partial(sampler, MODEL, told.pop("prompts"), kind(**right), **told), name, wrong)


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: learner.__name__)
def test_a_learner_refuses_wrong_settings(learner):
    kind, right = LEARNERS[learner]
    for told, make in wrong_settings(kind, right):
        refused_or_done(lambda make=make: learner(MODEL, FiniteClass([MODEL]), [[1]], make(), stop_ids=[0]), *told)


@pytest.mark.parametrize("kind", ALONE)
def test_a_config_refuses_wrong_settings(kind):
    for told, make in wrong_settings(kind, {}):
        refused_or_done(make, *told)


@pytest.mark.parametrize(
    "prompt", [[1.5], torch.tensor([1.0]), torch.tensor([True]), [True], [True, 2], np.array([1.5]), "1", 1, [[1]]]
)
def test_what_is_no_list_of_ids_is_no_prompt(prompt):
    with pytest.raises(ValueError, match=r"prompt 0 .* ids"):
        generate(MODEL, [prompt], max_new_tokens=2, stop_ids=[0])


@pytest.mark.parametrize(
    "prompt", [(1, 2), np.array([1, 2]), torch.tensor([1, 2]), torch.tensor([1, 2], dtype=torch.int32)]
)
def test_ids_may_come_in_any_integers(prompt):
    drawn = generate(MODEL, [prompt], max_new_tokens=2, stop_ids=[0], keys=[np.int64(4)], seed=np.int32(5)).samples
    assert torch.equal(
        drawn.tokens, generate(MODEL, [[1, 2]], max_new_tokens=2, stop_ids=[0], keys=[4], seed=5).samples.tokens
    )


def test_settings_are_kept_as_they_are_declared():
    fit = FitConfig(batch=np.int64(3), rate=np.float32(0.5), betas=[0.5, 0.75])
    assert (
        (fit.batch, fit.rate, fit.betas) == (3, 0.5, (0.5, 0.75)) and type(fit.batch) is int and type(fit.rate) is float
    )
    for name, wrong, message in (
        ("batch", True, "batch is True; it must be a whole number"), ("rate", "1", "rate is '1'; it must be a number"),
        ("betas", "ab", r"betas is 'ab'; it must be of the type tuple"), ("bf16", 1, "it must be true or false"),
        ("schedule", 3, "it must be a word"), ("batch", 2**50, "no machine can hold so many"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            FitConfig(**{name: wrong})
