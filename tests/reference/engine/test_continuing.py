"""generate(continuing=...): what goes on from given responses is what one longer draw returns."""

import math
import re
import statistics

import pytest
import torch

from reference.interface import Samples
from reference.sampling import generate
from tests.assertions import assert_same_samples
from tests.conftest import ROOT
from tests.reference.test_sampling import MODELS, PROMPTS
from theory import power
from toy.tabular import TabularLM, enumerate_law

COMMON = {"stop_ids": [0], "samples_per_prompt": 4, "seed": 5, "keys": ["a", "b", "c"], "temperature": 0.9}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("slots", [1, 5, 64])
def test_a_draw_in_parts_is_the_draw_in_one(name, keep, slots):
    model = MODELS[name]()
    whole = generate(model, PROMPTS, max_new_tokens=5, **COMMON)
    part, decoded = None, 0
    for most in (1, 2, 4, 5):
        drawn = generate(model, PROMPTS, max_new_tokens=most, slots=slots, continuing=part, keep_cache=keep, **COMMON)
        if part is not None:
            prefilled = sum(cost.prefilled_tokens for cost in drawn.costs)
            assert (prefilled == 0) if keep else prefilled > 0
        part, decoded = drawn.samples, decoded + drawn.cost.decoded_tokens
    assert_same_samples(part, whole.samples)
    assert decoded == whole.cost.decoded_tokens  # no token is drawn twice


@pytest.mark.parametrize("name", MODELS)
def test_chosen_responses_go_on_with_their_own_keys_and_values(name):
    """Chosen, side by side and in another order; the cache says the same as prefilling anew."""
    model, choice = MODELS[name](), torch.tensor([[2, 0, 2, 1], [3, 3, 3, 3], [0, 1, 2, 3]])
    drawn = generate(model, PROMPTS, max_new_tokens=3, keep_cache=True, **COMMON).samples
    both = Samples.cat([drawn.take(choice[:, :2]), drawn.take(choice[:, 2:])])
    assert torch.equal(both.kept.rows, drawn.kept.rows.gather(1, choice))
    anew = Samples(*both.tensors())
    kept, prefilled = (
        generate(model, PROMPTS, max_new_tokens=5, continuing=given, slots=3, **COMMON) for given in (both, anew)
    )
    assert_same_samples(kept.samples, prefilled.samples)
    assert torch.equal(kept.samples.tokens[..., :3], both.tokens)


def test_what_does_not_fit_is_refused():
    model = MODELS["table"]()
    drawn = generate(model, PROMPTS, max_new_tokens=3, **COMMON).samples
    with pytest.raises(ValueError, match=r"continuing has responses \[3, 4\]; it must have \[3, 2\]"):
        generate(model, PROMPTS, max_new_tokens=4, continuing=drawn, **{**COMMON, "samples_per_prompt": 2})
    with pytest.raises(ValueError, match="room for 3 tokens"):
        generate(model, PROMPTS, max_new_tokens=2, continuing=drawn, **COMMON)
    with pytest.raises(ValueError, match="a response of 3 tokens where max_new_tokens is 2"):
        generate(model, PROMPTS, max_new_tokens=[2, 5, 5], continuing=drawn, **COMMON)


@pytest.mark.parametrize("slots", [3, 64])
def test_each_prompt_pays_for_what_it_prefills(slots):
    model = MODELS["table"]()
    drawn = generate(model, PROMPTS, max_new_tokens=3, **COMMON).samples
    costs = generate(model, PROMPTS, max_new_tokens=5, continuing=drawn, slots=slots, **COMMON).costs
    due = [sum(len(prompt) + int(length) - 1 for length in own) for prompt, own in zip(PROMPTS, drawn.lengths)]
    assert [cost.prefilled_tokens for cost in costs] == due and len({*due}) == 3


def test_responses_that_are_at_their_end_are_returned_as_they_are():
    model = MODELS["table"]()
    drawn = generate(model, PROMPTS, max_new_tokens=3, keep_cache=True, **COMMON).samples
    again = generate(model, PROMPTS, max_new_tokens=3, continuing=drawn, **COMMON)
    assert_same_samples(again.samples, drawn)
    assert again.cost.decoded_tokens == 0


def test_the_worked_example_estimates_the_sum_of_powers_without_bias():
    """Block-wise SMC of reference/README.md: the mean of Ẑ over seeds is Σ p^α."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "reference" / "README.md").read_text(), re.DOTALL)
    (source,) = (block for block in blocks if "def blockwise_smc" in block)
    names = {"torch": torch}
    exec(source[: source.index("\n\n\nprint(")], names)
    model, seeds = TabularLM.random(3, 3, seed=3), 300
    exact = sum(math.exp(2 * logp) for logp in power.record_logps(enumerate_law(model, [1], 3, {0})[2], 3)[1])
    found = [
        math.exp(names["blockwise_smc"](model, [1], 2.0, 2, 3, 3, stop_ids=[0], seed=seed)[1]) for seed in range(seeds)
    ]
    spread = statistics.stdev(found) / seeds**0.5
    assert spread < 0.05 * exact  # a bias of a fifth would be seen
    assert abs(statistics.mean(found) - exact) < 4 * spread
