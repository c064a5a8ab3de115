"""Parallel tempering: the exact law of its rungs, before convergence and after; one rung is power sampling."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

import reference.parallel_tempering as T
from reference.engine.ladders import Ladders
from reference.parallel_tempering import TemperingConfig, parallel_tempering, tune_ladder
from reference.power_sampling import PowerConfig, power_sample
from tests.assertions import assert_categorical, assert_same_samples
from tests.reference.test_power_sampling import PROMPTS, STOPS, WORLD, counts
from theory import tempering
from toy.tabular import enumerate_law

CONFIG = TemperingConfig(alpha=4.0, ladder=(1.0, 4.0), rungs=2, block=3, steps=2, max_new_tokens=3)


def draw(config, n, name="table", slots=32768, prompts=PROMPTS[:1], seed=2):
    return parallel_tempering(
        WORLD[name](), prompts, config, stop_ids=STOPS, samples_per_prompt=n, slots=slots, seed=seed
    )  # fmt: skip


@pytest.mark.claim("P17")
@pytest.mark.parametrize("name", WORLD)
@pytest.mark.parametrize("change", [{}, {"block": 2, "steps": 3}, {"first_divergence_skip": False, "alpha": 0.5}])
def test_one_rung_is_power_sampling(name, change):
    settings = {"alpha": 4.0, "block": 6, "steps": 9, "max_new_tokens": 6, **change}
    common = {"stop_ids": STOPS, "samples_per_prompt": 4, "slots": 7, "seed": 3}
    chain = power_sample(WORLD[name](), PROMPTS, PowerConfig(**settings), **common)
    ladder = parallel_tempering(WORLD[name](), PROMPTS, TemperingConfig(**settings, rungs=1), **common)
    assert_same_samples(ladder.samples, chain.samples)
    assert torch.equal(chain.accepted, ladder.accepted[:, :, 0])
    assert torch.equal(chain.divergences, ladder.divergences[:, :, 0])
    assert chain.costs == ladder.costs


def assert_law(change, n=100_000, detect=0.02, name="table"):
    """After the rounds each rung has its marginal of the exact joint law."""
    config = dataclasses.replace(CONFIG, **change)
    records, logp, conditionals = enumerate_law(WORLD[name](), PROMPTS[0], config.max_new_tokens, STOPS)
    chains = tempering.rungs(conditionals, config.alphas, horizon=config.max_new_tokens, cut=config.cut)
    joint = next(itertools.islice(tempering.rounds(chains, np.asarray(logp), config.alphas), config.steps, None))
    result, shown = draw(config, n, name), []
    for rung in range(config.rungs):
        law = tempering.marginal(joint, rung)
        samples = result.rungs.take(torch.arange(rung, n * config.rungs, config.rungs)[None])
        shown.append(assert_categorical(counts(samples, 0, records), law / law.sum(), detect=detect, seed=2))
    return shown


@pytest.mark.claim("P17")
@pytest.mark.parametrize("change", [
    {"max_new_tokens": 4, "block": 4},
    {"steps": 3, "ladder": (1.0, 2.0, 4.0), "rungs": 3, "max_new_tokens": 2, "block": 2},
])  # fmt: skip
def test_the_law_before_convergence_is_exact(change, measured):
    for rung, (statistic, bound) in enumerate(assert_law(change)):
        measured(f"G of rung {rung + 1}, {change}", statistic, bound)


def wrong_sign(low, high, logp_low, logp_high):
    return (high - low) * (logp_high - logp_low)


def weights_not_swapped(self, chains, slots):
    chains.records.texts.low[slots] = 1.0


@pytest.mark.claim("P17")
@pytest.mark.parametrize(("where", "name", "mutant"), [
    (T, "swap_log_ratio", wrong_sign), (Ladders, "reweigh", weights_not_swapped),
])  # fmt: skip
def test_wrong_ladders_are_caught(where, name, mutant, monkeypatch):
    monkeypatch.setattr(where, name, mutant)
    with pytest.raises(AssertionError):
        assert_law({"steps": 5})


@pytest.mark.parametrize("name", WORLD)
def test_a_ladder_depends_neither_on_the_batch_nor_on_the_slots_nor_on_the_savings(name):
    config = TemperingConfig(alpha=4.0, rungs=3, block=3, steps=4, max_new_tokens=6)
    common = {"stop_ids": STOPS, "samples_per_prompt": 3, "seed": 3}
    whole = parallel_tempering(WORLD[name](), PROMPTS, config, **common, keys=["a", "b", "c"])
    assert whole.swapped.any() and not whole.swapped.all()
    for slots in (3, 11):
        again = parallel_tempering(WORLD[name](), PROMPTS, config, **common, slots=slots, keys=["a", "b", "c"])
        assert_same_samples(again.rungs, whole.rungs)
        assert torch.equal(again.swapped, whole.swapped) and torch.equal(again.accepted, whole.accepted)
        assert torch.equal(again.divergences, whole.divergences) and again.costs == whole.costs
    alone = parallel_tempering(WORLD[name](), PROMPTS[1:2], config, **common, keys=["b"])
    assert_same_samples(alone.samples, whole.samples.rows(torch.tensor([1])))
    plain = dataclasses.replace(config, first_divergence_skip=False, early_reject=False)
    plainly = parallel_tempering(WORLD[name](), PROMPTS, plain, **common, keys=["a", "b", "c"])
    assert_same_samples(plainly.rungs, whole.rungs)
    assert torch.equal(plainly.swapped, whole.swapped)
    assert plainly.cost.decoded_tokens > whole.cost.decoded_tokens


def test_the_default_ladder_is_geometric():
    assert TemperingConfig(alpha=8.0, rungs=4).alphas == pytest.approx((1.0, 2.0, 4.0, 8.0))


def test_acceptance_is_counted_over_what_differs():
    result = draw(CONFIG, 1)
    divergences, accepted = torch.tensor([[[[0, 2], [3, 1]]]]), torch.tensor([[[[True, False], [True, True]]]])
    result = dataclasses.replace(result, divergences=divergences, accepted=accepted)
    assert result.acceptance == [0.0, 1.0]


def test_a_tuned_ladder_swaps_equally_often():
    alphas = (1.0, 1.2, 1.5, 8.0)
    config = TemperingConfig(alpha=8.0, ladder=alphas, rungs=4, block=3, steps=20, max_new_tokens=3)
    pilot = draw(config, 400)
    tuned, swaps = alphas, pilot.swap_acceptance
    for _ in range(2):
        tuned = tune_ladder(tuned, swaps)
        assert tuned[0] == 1.0 and tuned[-1] == 8.0 and len(tuned) == 4
        swaps = draw(dataclasses.replace(config, ladder=tuned), 400).swap_acceptance
    assert np.ptp(swaps) < 0.5 * np.ptp(pilot.swap_acceptance)
    assert tune_ladder((1.0, 3.0, 4.0), [0.5, 0.5]) == pytest.approx((1.0, 3.0, 4.0))
    assert tune_ladder((4.0,), []) == (4.0,) and tune_ladder((1.0, 4.0), [0.2]) == (1.0, 4.0)


@pytest.mark.parametrize(("change", "message"), [
    ({"rungs": 0, "ladder": None}, "rungs is 0"), ({"ladder": (1.0, 3.0)}, "the last of them 4.0"),
    ({"ladder": (4.0,)}, "it must have 2 rungs"), ({"rungs": 3, "ladder": (2.0, 1.0, 4.0)}, "it must rise"),
    ({"ladder": (0.0, 4.0)}, "it must rise"), ({"ladder": None, "alpha": 0.5}, "it must rise"),
    ({"cut": "middle"}, "cut is 'middle'"), ({"proposal_temperature": 0.5}, "proposal_temperature is 0.5"),
    ({"prefetch": 1}, "prefetch is 1"), ({"steps": -1}, "steps is -1"),
])  # fmt: skip
def test_bad_settings_are_refused_in_one_clear_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        draw(dataclasses.replace(CONFIG, **change), 1)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="slots is 1; it must be at least 2"):
        draw(CONFIG, 1, slots=1)
