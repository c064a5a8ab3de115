"""Prefetching changes no token, no cut and no decision; it shortens the wait, and its waste is counted."""

import dataclasses

import pytest
import torch

from reference.engine.chains import IDLE
from reference.engine.decoder import Decoder
from reference.engine.prefetching import InOrder
from reference.power_sampling import PowerConfig, power_sample
from tests.assertions import assert_same_samples
from tests.reference.test_power_sampling import PROMPTS, STOPS, WORLD

CONFIG = PowerConfig(alpha=4.0, block=3, steps=9, max_new_tokens=6)
CHANGES = [
    {}, {"cut": "record", "block": 2}, {"cut": "entropy", "block": 4}, {"alpha": 1.5, "proposal_temperature": 1.0},
    {"proposal_temperature": 0.5, "early_reject": False, "block": 1}, {"first_divergence_skip": False, "cut": "record"},
    {"first_divergence_skip": False, "early_reject": False}, {"steps": 0},
]  # fmt: skip
CASES = [("another implementation", change) for change in CHANGES] + [
    ("transformer", CHANGES[1]),
    ("table", CHANGES[2]),
]


def draw(model, config, slots=9, prompts=PROMPTS, n=4):
    return power_sample(model, prompts, config, stop_ids=STOPS, samples_per_prompt=n, slots=slots, seed=3)


def assert_same_chains(a, b):
    assert_same_samples(a.samples, b.samples)
    for name in ("cuts", "divergences", "accepted"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def assert_same_with_prefetching(model, change, ahead=(2,)):
    """Returns the tokens that are waited for, without prefetching and with each number of steps ahead."""
    config = dataclasses.replace(CONFIG, **change)
    plain = draw(model, config)
    waits = [sum(cost.sequential_tokens for cost in plain.costs)]
    for k in ahead:
        result = draw(model, dataclasses.replace(config, prefetch=k), slots=7)
        assert_same_chains(result, plain)
        for cost, before in zip(result.costs, plain.costs):
            assert cost.sequential_tokens <= before.sequential_tokens and cost.decoded_tokens >= before.decoded_tokens
            assert (cost.prompt_tokens, cost.calls) == (before.prompt_tokens, before.calls)
        waits.append(sum(cost.sequential_tokens for cost in result.costs))
    return waits


@pytest.mark.parametrize(("name", "change"), CASES)
def test_prefetching_changes_no_token(name, change):
    assert_same_with_prefetching(WORLD[name](), change)


@pytest.mark.parametrize("name", WORLD)
def test_it_shortens_the_wait_where_proposals_are_rejected(name):
    plain, one, four = assert_same_with_prefetching(WORLD[name](), {"cut": "record", "block": 2}, ahead=(1, 4))
    assert plain > one > four


def test_it_saves_nothing_where_all_are_accepted():
    """α = τ = 1, and the skip leaves no step that repeats its record: all that is proposed ahead is thrown away."""
    plain, ahead = assert_same_with_prefetching(WORLD["table"](), {"alpha": 1.0, "cut": "horizon"})
    assert plain == ahead


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_costs_are_counts(prefetch, monkeypatch):
    """One chain: it waits for the calls of the model, and decodes what its rows decode in them."""
    rows = []
    advance = Decoder.advance

    def counted(self):
        rows.append(int(self.rows.active.sum()))
        return advance(self)

    monkeypatch.setattr(Decoder, "advance", counted)
    config = dataclasses.replace(CONFIG, prefetch=prefetch, cut="record", first_divergence_skip=False)
    cost = draw(WORLD["another implementation"](), config, prompts=PROMPTS[:1], n=1).cost
    assert cost.sequential_tokens == len(rows) and min(rows) >= 1
    assert cost.decoded_tokens == sum(rows) and max(rows) == 1 + prefetch
    assert cost.prefilled_tokens == len(PROMPTS[0]) - 1 and cost.calls == 1


def test_stale_proposals_are_caught(monkeypatch):
    """What was proposed from the old record is kept after a change."""
    decide = InOrder.decide

    def keeps_stale_lanes(self, chains, ended):
        steps, active = chains.lanes.step.view(ended.shape).clone(), chains.decoder.rows.active.clone()
        slots = decide(self, chains, ended)
        stale = (steps < IDLE) & (steps > chains.slots.step[:, None])
        chains.lanes.step.view(ended.shape)[stale] = steps[stale]
        chains.decoder.rows.active = torch.where(stale.flatten(), active, chains.decoder.rows.active)
        chains.slots.step = torch.where(stale, steps, chains.slots.step[:, None]).amax(1)
        return slots

    monkeypatch.setattr(InOrder, "decide", keeps_stale_lanes)
    with pytest.raises(AssertionError):
        assert_same_with_prefetching(WORLD["another implementation"](), {"cut": "record"})


def test_steps_decided_out_of_order_are_caught(monkeypatch):
    """A lane that has ended does not wait for the lanes before it."""
    decide = InOrder.decide

    def impatient(self, chains, ended):
        steps, waits = chains.lanes.step.clone(), ~ended.flatten()
        chains.lanes.step[waits] = IDLE  # the others seem to have nothing to do
        slots = decide(self, chains, ended)
        busy = waits & chains.decoder.rows.active
        chains.lanes.step = torch.where(busy, steps, chains.lanes.step)
        return slots

    monkeypatch.setattr(InOrder, "decide", impatient)
    with pytest.raises(AssertionError):
        assert_same_with_prefetching(WORLD["another implementation"](), {"cut": "record", "block": 6}, ahead=(5,))
