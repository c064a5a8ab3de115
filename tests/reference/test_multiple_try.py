"""Multiple-try Metropolis has the exact law of its chain, before convergence and after; one try is power sampling."""

import dataclasses

import pytest
import torch

from reference.engine.decoder import Decoder
from reference.multiple_try import MultipleTryConfig, multiple_try
from reference.power_sampling import PowerConfig, power_sample
from tests.assertions import assert_same_samples
from tests.reference.engine.test_prefetching import CASES, assert_same_chains
from tests.reference.test_power_sampling import PROMPTS, STOPS, WORLD, assert_law

CONFIG = MultipleTryConfig(alpha=4.0, block=2, steps=2, max_new_tokens=4, tries=3)  # TV(g, p^α) = .41 in the table


def draw(model, config, n, slots=4096, prompts=PROMPTS, seed=2):
    return multiple_try(model, prompts, config, stop_ids=STOPS, samples_per_prompt=n, slots=slots, seed=seed)


@pytest.mark.parametrize(("name", "change"), CASES)
def test_one_try_is_power_sampling(name, change):
    settings = {"alpha": 4.0, "block": 3, "steps": 9, "max_new_tokens": 6, **change}
    common = {"stop_ids": STOPS, "samples_per_prompt": 4, "slots": 7, "seed": 3}
    chain = power_sample(WORLD[name](), PROMPTS, PowerConfig(**settings), **common)
    tries = multiple_try(WORLD[name](), PROMPTS, MultipleTryConfig(**settings, tries=1), **common)
    assert_same_chains(tries, chain)
    assert tries.costs == chain.costs


def assert_exact(change, name="table", n=90_000):
    config = dataclasses.replace(CONFIG, **change)
    return assert_law(WORLD[name](), config, n, prompts=PROMPTS[:1], draw=draw)[1]


@pytest.mark.claim("P16")
def test_the_law_before_convergence_is_exact(measured):
    for statistic, bound in assert_exact({}, n=110_000).values():
        measured("G of the engine's draws", statistic, bound)


def picked_weight(log_w, pick):
    """Plain Metropolis-Hastings with the weight of the picked try."""
    return log_w.gather(1, pick)[:, 0]


@pytest.mark.claim("P16")
def test_wrong_acceptances_are_caught(monkeypatch):
    monkeypatch.setattr("reference.multiple_try.log_ratio", picked_weight)
    with pytest.raises(AssertionError):
        assert_exact({})


def test_alpha_one_accepts_everything():
    assert draw(
        WORLD["table"](), dataclasses.replace(CONFIG, alpha=1.0, max_new_tokens=6, cut="horizon"), 50
    ).accepted.all()


@pytest.mark.parametrize("name", WORLD)
@pytest.mark.parametrize("change", [{}, {"cut": "record", "block": 2}, {"cut": "entropy"}])
def test_the_skip_changes_no_token(name, change):
    config = dataclasses.replace(CONFIG, **{"steps": 6, "max_new_tokens": 5, "block": 5, **change})
    plain = draw(WORLD[name](), dataclasses.replace(config, first_divergence_skip=False), 10, slots=12)
    saving = draw(WORLD[name](), config, 10, slots=12)
    assert_same_samples(saving.samples, plain.samples)
    assert torch.equal(saving.cuts, plain.cuts)
    assert saving.cost.decoded_tokens < plain.cost.decoded_tokens


@pytest.mark.parametrize("name", WORLD)
def test_a_chain_depends_neither_on_the_batch_nor_on_the_slots(name):
    model, config = WORLD[name](), dataclasses.replace(CONFIG, max_new_tokens=4, block=2)
    common = {"stop_ids": STOPS, "seed": 5, "samples_per_prompt": 6}
    whole = multiple_try(model, PROMPTS, config, slots=18, keys=["a", "b", "c"], **common)
    for order, slots in (([2, 0, 1], 1), ([1], 4), ([1, 2], 5)):
        keys, prompts = ["abc"[i] for i in order], [PROMPTS[i] for i in order]
        part = multiple_try(model, prompts, config, slots=slots, keys=keys, **common)
        assert_same_samples(part.samples, whole.samples.rows(torch.tensor(order)))
        for row, i in enumerate(order):
            assert part.costs[row].decoded_tokens == whole.costs[i].decoded_tokens
            assert part.costs[row].sequential_tokens == whole.costs[i].sequential_tokens


def test_costs_are_counts(monkeypatch):
    """One chain: it waits for the calls of the model, and decodes what its tries decode in them."""
    rows = []
    advance = Decoder.advance

    def counted(self):
        rows.append(int(self.rows.active.sum()))
        return advance(self)

    monkeypatch.setattr(Decoder, "advance", counted)
    config = dataclasses.replace(CONFIG, steps=20, max_new_tokens=6, first_divergence_skip=False)
    cost = draw(WORLD["another implementation"](), config, 1, prompts=PROMPTS[:1]).cost
    assert cost.sequential_tokens == len(rows) and min(rows) >= 1
    assert cost.decoded_tokens == sum(rows) and max(rows) == CONFIG.tries


@pytest.mark.parametrize(
    ("change", "message"),
    [({"tries": 0}, "tries is 0"), ({"prefetch": 2}, "prefetch is 2"), ({"alpha": -1.0}, "alpha is -1.0")],
)
def test_bad_settings_are_refused_in_one_clear_line(change, message):
    with pytest.raises(ValueError, match=message) as raised:
        multiple_try(WORLD["table"](), [[1, 2]], dataclasses.replace(CONFIG, **change), stop_ids=STOPS)
    assert "\n" not in str(raised.value)
