"""Look-ahead sampling has the exact law of its estimator, right and as published; its decoding is `generate`'s."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import reference.engine.decisions as D
from reference.lookahead import LookaheadConfig, estimate, lookahead
from reference.sampling import generate, score
from tests.assertions import assert_categorical, assert_close, assert_same_samples
from tests.reference.test_power_sampling import PROMPTS, STOPS, WORLD, counts
from theory.lookahead import lookahead_law
from theory.power import power_law
from toy.tabular import TabularLM, enumerate_law

BY_TOKEN = LookaheadConfig(alpha=4.0, max_new_tokens=3, candidates=None, rollouts=2, estimator="plug_in")
BY_CHUNK = dataclasses.replace(BY_TOKEN, chunk=2, candidates=3)


def draw(model, config, n, slots=16384, prompts=PROMPTS, seed=2):
    return lookahead(model, prompts, config, stop_ids=STOPS, samples_per_prompt=n, slots=slots, seed=seed)


def exact_law(conditionals, c):
    """(records, their probabilities) that the settings of a sampler give."""
    settings = {"horizon": c.max_new_tokens, "alpha": c.alpha, "rollouts": c.rollouts, "rollout_law": c.rollout_law}
    if c.chunk is None:
        settings |= {"estimator": {"jackknife": "clipped"}.get(c.estimator, c.estimator), "candidates": c.candidates}
    else:
        settings |= {"chunk": c.chunk, "draws": c.candidates, "proposal": c.chunk_law, "weight": c.weight}
    law = lookahead_law(conditionals, **settings)
    return [*law], np.array([*law.values()])


def assert_law(model, config, runs=None, n=110_000, detect=0.02, target=None):
    """The output of one prompt has the exact law of its settings, or p^α itself; `runs`: the settings that it has."""
    result = draw(model, runs or config, n, prompts=PROMPTS[:1])
    _, logp, conditionals = enumerate_law(model, PROMPTS[0], config.max_new_tokens, STOPS)
    records, law = exact_law(conditionals, config)
    if target == "p^α":
        assert np.abs(power_law(logp, config.alpha) - law).max() < 1e-9
    return assert_categorical(counts(result.samples, 0, records), law / law.sum(), detect=detect, seed=2)


@pytest.mark.claim("P19")
@pytest.mark.parametrize("change", [{"estimator": "jackknife", "candidates": 2}])
def test_tokens_have_the_law_of_their_estimator(change, measured):
    statistic, bound = assert_law(WORLD["table"](), dataclasses.replace(BY_TOKEN, **change))
    measured(f"G of draws, {change}", statistic, bound)


@pytest.mark.claim("P20")
@pytest.mark.parametrize("change", [{}])
def test_chunks_have_the_law_of_their_weight(change, measured):
    statistic, bound = assert_law(WORLD["table"](), dataclasses.replace(BY_CHUNK, **change))
    measured(f"G of draws, {change}", statistic, bound)


def shared(self, branches, rows, slots, step):
    """All rollouts of a candidate have the same random numbers."""
    return roll(self, branches, rows, slots, step // self.rollouts.shape[1])


roll = D.Lookahead.roll
MUTANTS = {"rollouts that are one": (D.Lookahead, "roll", shared)}


@pytest.mark.claim("P19")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_wrong_tokens_are_caught(mutant, monkeypatch):
    monkeypatch.setattr(*MUTANTS[mutant])
    with pytest.raises(AssertionError):
        assert_law(WORLD["table"](), dataclasses.replace(BY_TOKEN, alpha=2.0), n=20_000, detect=0.05)


@pytest.mark.claim("P20")
@pytest.mark.parametrize("weight", ["exact", "published"])
def test_the_other_weight_is_caught(weight):
    config, other = (
        dataclasses.replace(BY_CHUNK, weight=w) for w in (weight, {"exact": "published"}.get(weight, "exact"))
    )
    with pytest.raises(AssertionError):
        assert_law(WORLD["table"](), config, runs=other, n=20_000, detect=0.05)


# --- Decoding --------------------------------------------------------------------------------------------------------

CONFIGS = {
    "tokens": dataclasses.replace(BY_TOKEN, max_new_tokens=5, candidates=2, estimator="jackknife"),
    "chunks": dataclasses.replace(BY_CHUNK, max_new_tokens=5, rollout_law="g", estimator="jackknife"),
}


@pytest.mark.parametrize("name", WORLD)
@pytest.mark.parametrize("mode", CONFIGS)
def test_a_response_depends_neither_on_the_batch_nor_on_the_slots(name, mode):
    model, config = WORLD[name](), CONFIGS[mode]
    common = {"stop_ids": STOPS, "seed": 5}
    whole = lookahead(model, PROMPTS, config, samples_per_prompt=5, slots=15, keys=["a", "b", "c"], **common)
    for order, slots in (([2, 0, 1], 1), ([1], 4), ([1, 2], 3)):
        keys, prompts = ["abc"[i] for i in order], [PROMPTS[i] for i in order]
        part = lookahead(model, prompts, config, samples_per_prompt=5, slots=slots, keys=keys, **common)
        assert_same_samples(part.samples, whole.samples.rows(torch.tensor(order)))
        for row, i in enumerate(order):
            assert part.costs[row].decoded_tokens == whole.costs[i].decoded_tokens
            assert part.costs[row].sequential_tokens == whole.costs[i].sequential_tokens


@pytest.mark.parametrize("name", WORLD)
@pytest.mark.parametrize("mode", CONFIGS)
def test_log_probabilities_are_the_models(name, mode):
    """So every row's cache held its own text: a rollout's tokens left in the response's would show here."""
    model = WORLD[name]()
    samples = draw(model, CONFIGS[mode], 6).samples
    for i, prompt in enumerate(PROMPTS):
        scored = score(model, [prompt] * 6, [sample.tokens for sample in samples[i]])
        for sample, logp in zip(samples[i], scored):
            assert_close(sample.logp, logp)
            assert sample.finished == (int(sample.tokens[-1]) in STOPS)
            assert sample.finished or len(sample.tokens) == 5


@pytest.mark.parametrize(("config", "same"), [
    (dataclasses.replace(BY_TOKEN, alpha=1.0, max_new_tokens=4), {"temperature": 1.0}),
    (dataclasses.replace(BY_TOKEN, alpha=1.0, max_new_tokens=4, candidates=2), {"top_k": 2}),
    (dataclasses.replace(BY_TOKEN, max_new_tokens=1), {"temperature": 0.25}),
    (dataclasses.replace(BY_CHUNK, candidates=1, max_new_tokens=4, chunk_law="g"), {"temperature": 0.25}),
    (dataclasses.replace(BY_CHUNK, candidates=1, max_new_tokens=4, chunk=3), {}),
])  # fmt: skip
def test_it_is_generate_where_it_should_be(config, same):
    """Equal tokens: no power, nothing to look ahead to, or one chunk to pick from."""
    model = WORLD["transformer"]()
    ours = draw(model, config, 50, slots=40).samples
    plain = generate(
        model, PROMPTS, max_new_tokens=config.max_new_tokens, stop_ids=STOPS, samples_per_prompt=50, seed=2, **same
    )
    assert torch.equal(ours.tokens, plain.samples.tokens) and torch.equal(ours.finished, plain.samples.finished)


def test_costs_are_counted():
    """With no stop id: every rollout of a decision at t goes to the horizon."""
    H, K, M, n = 5, 3, 2, 4
    model = TabularLM.random(K, 9, seed=1)
    for chunk, L in ((None, None), (2, 3)):
        config = LookaheadConfig(max_new_tokens=H, candidates=L, rollouts=M, chunk=chunk)
        result = lookahead(model, [[1, 2]], config, stop_ids=[], samples_per_prompt=n)
        if chunk is None:
            decoded = sum(1 + K * M * (H - t - 1) for t in range(H))
            sequential = sum(1 + (H - t - 1) for t in range(H))
        else:
            decoded = sum(3 * (s + M * (H - t - s)) for t, s in ((0, 2), (2, 2), (4, 1)))
            sequential = sum(H - t for t in (0, 2, 4))
        assert (result.cost.decoded_tokens, result.cost.sequential_tokens) == (n * decoded, sequential)
        assert (result.cost.prefilled_tokens, result.cost.prompt_tokens) == (1, 2 * n)
        assert result.decisions.tolist() == [[H if chunk is None else 3] * n]


def test_clipping_is_reported():
    result = draw(WORLD["table"](), dataclasses.replace(BY_TOKEN, estimator="jackknife"), 200)
    assert 0 < result.clipped.sum() < result.decisions.sum()
    assert draw(WORLD["table"](), BY_TOKEN, 50).clipped.sum() == 0
    law, clipped = estimate(torch.randn(100, 4, 3, dtype=torch.float64) * 300, "jackknife")  # far beyond e^±745
    assert law.isfinite().all() and (law >= 0).all() and torch.allclose(law.sum(1), torch.ones(100).double())
    assert clipped.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": math.inf}, "alpha is inf"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"candidates": 0}, "candidates is 0"),
        ({"rollouts": 0}, "rollouts is 0"),
        ({"chunk": 0}, "chunk is 0"),
        ({"rollout_law": "q"}, "rollout_law is 'q'"),
        ({"chunk_law": "q"}, "chunk_law is 'q'"),
        ({"estimator": "bootstrap"}, "estimator is 'bootstrap'"),
        ({"weight": "right"}, "weight is 'right'"),
        ({"weight": "published"}, "a weight of chunks"),
        ({"chunk": 2}, "candidates is None, but chunks"),
        ({"max_new_tokens": 40}, "40: 42 in all, more than the model's maximum of 32"),
    ],
)
def test_bad_settings_are_refused_in_one_clear_line(change, message):
    model = WORLD["another implementation"]()
    with pytest.raises(ValueError, match=message) as raised:
        lookahead(model, [[1, 2]], dataclasses.replace(BY_TOKEN, **change), stop_ids=STOPS)
    assert "\n" not in str(raised.value)
    for prompts in ([], [[]]):
        with pytest.raises(ValueError, match=r"no prompts|is empty"):
            lookahead(model, prompts, BY_TOKEN, stop_ids=STOPS)
