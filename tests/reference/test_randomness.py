"""Addresses and the distribution of a token, at values that can be worked out by hand."""

import math

import pytest
import torch

from reference.engine.requests import make_plan
from reference.randomness import child_seed, int64, key_of, log_law, uniform
from toy.tabular import TabularLM


def test_integers_are_taken_modulo_their_64_bits():
    assert int64(2**63) == -(2**63) and int64(2**64 - 1) == -1 and int64(-5) == -5
    assert key_of(2**64 - 1) == -1 and key_of(2**63) == -(2**63) and key_of(7) == 7
    assert torch.tensor([key_of(name) for name in (2**80 + 3, "a", -(2**63))]).dtype == torch.int64


def test_seeds_of_parts_do_not_collide():
    seeds = [child_seed(*labels) for labels in ((1, 23), (12, 3), (1, 2, 3), (123,), (1, "23"), (1, "2", 3), ("1", 23))]
    assert len({*seeds}) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)


def test_every_word_of_an_address_counts():
    key = torch.tensor([5])
    base = {"seed": 1, "key": key, "sample": key * 0, "step": 2, "position": 3, "purpose": 0}
    others = [base | {name: value + 1} for name, value in base.items()]
    drawn = [uniform(**each).item() for each in (base, *others)]
    assert len({*drawn}) == 7 and all(0 <= u < 1 for u in drawn)


@pytest.mark.parametrize("k", range(1, 10))
def test_top_p_keeps_what_reaches_it_and_no_more(k):
    """Ten ids of .1: the mass before id k is k/10 but for rounding, which decides nothing."""
    kept = log_law(torch.zeros(1, 10, dtype=torch.float64), top_p=k / 10).isfinite()[0]
    assert kept.tolist() == [True] * k + [False] * (10 - k)


@pytest.mark.parametrize("k", [1, 5, 999])
def test_ties_go_to_the_smaller_id(k):
    kept = log_law(torch.zeros(1, 1000), top_k=k).isfinite()[0]
    assert kept.tolist() == [True] * k + [False] * (1000 - k)


@pytest.mark.parametrize("spread", [1.0, 3.0, 10.0])
def test_the_log_normaliser_of_a_large_vocabulary(spread):
    logits = torch.randn(4, 151_936, generator=torch.Generator().manual_seed(0)) * spread
    assert (log_law(logits).double() - log_law(logits.double())).abs().max() < 1e-5


@pytest.mark.parametrize("of", ["p", "q"])
def test_a_proposal_that_is_no_number_is_refused_as_the_model_s_is(of):
    """With logits that are infinite twice, the proposal alone may be NaN."""
    logp = torch.tensor([[-1.0, math.nan]]) if of == "p" else torch.tensor([[-1.0, -2.0]])
    logq = torch.tensor([[-1.0, math.nan]]) if of == "q" else torch.tensor([[-1.0, -2.0]])
    model = TabularLM.iid([0.5, 0.5])
    plan = make_plan(model, [[0]], 2, stop_ids=[], samples_per_prompt=1, slots=1, seed=0, keys=["a"])
    with pytest.raises(ValueError, match=r"not finite for prompt 0 \(key 'a'\), sample 0, at response position 1"):
        plan.check_finite(logp, logq, torch.tensor([0]))
