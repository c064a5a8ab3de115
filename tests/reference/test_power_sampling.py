"""Power sampling has the exact law of its chain, before convergence and after; its savings change no token."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from reference.engine.chains import Chains
from reference.engine.decoder import Decoder
from reference.power_sampling import PowerConfig, power_sample
from reference.sampling import generate
from tests.assertions import assert_categorical, assert_mean, assert_same_samples
from tests.reference.test_sampling import HashModel, tiny_transformer
from theory.cost import expected_tokens
from theory.markov_chain import EntropyCut, blocked_law
from theory.power import power_law
from toy.tabular import TabularLM, enumerate_law

STOPS = [0]
PROMPTS = [[1, 2], [2], [1, 1, 2]]
WORLD = {"table": lambda: TabularLM.random(3, 9, seed=8), "transformer": lambda: tiny_transformer(vocab=3, seed=3),
         "another implementation": HashModel}  # fmt: skip


def draw(model, config, n, slots=4096, prompts=PROMPTS, seed=2):
    return power_sample(model, prompts, config, stop_ids=STOPS, samples_per_prompt=n, slots=slots, seed=seed)


def setting(config):
    """The settings of theory.markov_chain for those of a chain."""
    cut = EntropyCut(config.entropy_power, config.entropy_floor) if config.cut == "entropy" else config.cut
    return {"horizon": config.max_new_tokens, "alpha": config.alpha, "tau": config.temperature, "block": config.block,
            "steps": config.steps, "cut": cut, "tries": getattr(config, "tries", 1)}  # fmt: skip


def counts(samples, prompt, records):
    index = {record: i for i, record in enumerate(records)}
    found = [
        index[tuple(row[:length])]
        for row, length in zip(samples.tokens[prompt].tolist(), samples.lengths[prompt].tolist())
    ]
    return np.bincount(found, minlength=len(records))


def assert_law(model, config, n=90_000, prompts=PROMPTS[:2], detect=0.02, slots=8192, draw=draw):
    """The output of each prompt's chains has the law g K^N of the blocked schedule, from the model's conditionals."""
    result = draw(model, config, n, slots, prompts)
    shown = {}
    for i, prompt in enumerate(prompts):
        _, _, conditionals = enumerate_law(model, prompt, config.max_new_tokens, STOPS)
        records, law = blocked_law(conditionals, **setting(config))
        shown[i] = assert_categorical(counts(result.samples, i, records), law / law.sum(), detect=detect, seed=2)
    return result, shown


CONFIG = PowerConfig(alpha=4.0, block=3, steps=2, max_new_tokens=3)


HARD = PowerConfig(
    alpha=4.0, block=2, steps=2, max_new_tokens=4
)  # in the table: TV(g, p^α) = .41, a third of the steps move


@pytest.mark.claim("P5")
def test_the_law_before_convergence_is_exact(measured):
    shown = assert_law(WORLD["table"](), HARD, n=110_000, prompts=PROMPTS[:1])[1]
    measured("G of the engine's draws", *shown[0])


@pytest.mark.claim("P4")
def test_converged_chains_draw_from_the_power_law(measured):
    """The exact law after N steps is within 1e-3 of p^α; the draws are compared with p^α itself."""
    model, config = WORLD["table"](), PowerConfig(alpha=2.0, block=3, steps=40, max_new_tokens=3)
    result = draw(model, config, 50_000, prompts=PROMPTS[:1])
    records, logp, conditionals = enumerate_law(model, PROMPTS[0], 3, STOPS)
    target = power_law(logp, 2.0)
    exact = blocked_law(conditionals, **setting(config))[1]
    assert np.abs(exact - target).sum() / 2 < 1e-3
    statistic, bound = assert_categorical(counts(result.samples, 0, records), target, detect=0.03, seed=2)
    measured("G of draws", statistic, bound)


def no_cut_factor(self, texts):
    return texts.weight.gather(1, texts.length[:, None])[:, 0]


def cache_stays(self, rows, steps, j=0):
    """A lane goes on from the keys and values of the proposal before, not from the record's."""
    copy_rows = self.decoder.cache.copy_rows
    self.decoder.cache.copy_rows = lambda source, target, other, length: (
        copy_rows(source, target, other, length) if (steps.step == 0).any() else None
    )
    begin(self, rows, steps, j)
    self.decoder.cache.copy_rows = copy_rows


begin = Chains.begin
MUTANTS = {
    "no length factor": ("value", no_cut_factor, {"alpha": 2.0, "steps": 8}),
    "the cache of a rejected proposal": ("begin", cache_stays, {"alpha": 2.0, "steps": 8}),
}


@pytest.mark.claim("P4")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_wrong_chains_are_caught(mutant, monkeypatch):
    name, function, change = MUTANTS[mutant]
    monkeypatch.setattr(Chains, name, function)
    with pytest.raises(AssertionError):
        assert_law(WORLD["table"](), dataclasses.replace(HARD, **change), n=110_000, prompts=PROMPTS[:1])


def assert_alpha_one(model):
    result = draw(model, PowerConfig(alpha=1.0, block=2, steps=3, max_new_tokens=3, cut="horizon"), 10_000)
    assert result.accepted.all() and result.acceptance == 1.0
    return result


@pytest.mark.claim("P12")
@pytest.mark.parametrize("name", WORLD)
def test_alpha_one_accepts_everything(name, measured):
    """α = τ = 1: every weight is exactly 0, whatever the logits' rounding."""
    result = assert_alpha_one(WORLD[name]())
    measured("proposals rejected", int((~result.accepted).sum()), 0)


@pytest.mark.claim("P12")
def test_rejections_at_alpha_one_are_caught(monkeypatch):
    """Scores that do not belong to the law that was drawn from show up as rejections."""
    advance = Decoder.advance

    def scores_of_another_kernel(self):
        ended = advance(self)
        at = (self.texts.length - 1).clamp(min=0)[:, None]
        self.texts.logp.scatter_(1, at, self.texts.logp.gather(1, at) * (1 + 1e-3))
        return ended

    monkeypatch.setattr(Decoder, "advance", scores_of_another_kernel)
    with pytest.raises(AssertionError):
        assert_alpha_one(WORLD["table"]())


def assert_savings_change_no_token(model, change):
    """Returns the share of the tokens that is still decoded with both savings."""
    config = dataclasses.replace(CONFIG, **{"steps": 6, "max_new_tokens": 5, "block": 5, **change})
    plain = draw(model, dataclasses.replace(config, first_divergence_skip=False, early_reject=False), 40, slots=64)
    for skip, reject in ((True, False), (False, True), (True, True)):
        saving = dataclasses.replace(config, first_divergence_skip=skip, early_reject=reject)
        result = draw(model, saving, 40, slots=64)
        assert_same_samples(result.samples, plain.samples)
        assert torch.equal(result.cuts, plain.cuts)
    return result.cost.decoded_tokens / plain.cost.decoded_tokens


@pytest.mark.claim("P26")
@pytest.mark.parametrize("name", WORLD)
@pytest.mark.parametrize("change", [
    {}, {"cut": "record", "block": 2}, {"cut": "entropy"}, {"alpha": 1.5}, {"proposal_temperature": 0.5},
])  # fmt: skip
def test_savings_change_no_token(name, change, measured):
    share = assert_savings_change_no_token(WORLD[name](), change)
    assert share < 1
    measured("share of tokens still decoded", share, 1.0)


@pytest.mark.claim("P26")
def test_a_wrong_skip_is_caught(monkeypatch):
    """Intervals that are a little too wide skip tokens that would have changed."""
    advance = Decoder.advance

    def wide(self):
        ended = advance(self)
        at = (self.texts.length - 1).clamp(min=0)[:, None]
        self.texts.high.scatter_(1, at, self.texts.high.gather(1, at) + 1e-2)
        return ended

    monkeypatch.setattr(Decoder, "advance", wide)
    with pytest.raises(AssertionError):
        assert_savings_change_no_token(WORLD["table"](), {"alpha": 1.5})


@pytest.mark.claim("P21")
@pytest.mark.parametrize("change", [
    {"first_divergence_skip": False, "early_reject": False, "cut": "horizon"}, {},
])  # fmt: skip
def test_counted_tokens_are_the_expected_ones(change, measured):
    """The mean count of decoded tokens over chains, with and without the savings, against its exact expectation."""
    assert_token_cost(dataclasses.replace(CONFIG, **{"block": 2, "steps": 4, **change}), measured=measured)


def assert_token_cost(config, runs=None, measured=None, n=20_000):
    """`runs`: the settings that the chains really have (default: the ones that the expectation is for)."""
    model, prompt = WORLD["table"](), PROMPTS[0]
    result = power_sample(model, [prompt] * n, runs or config, stop_ids=STOPS, slots=4096, seed=2)
    decoded = [cost.decoded_tokens for cost in result.costs]  # one chain for each copy of the prompt
    expected = expected_tokens(
        enumerate_law(model, prompt, config.max_new_tokens, STOPS)[2],
        horizon=config.max_new_tokens, alpha=config.alpha, block=config.block,
        steps=config.steps, cut=config.cut, first_divergence_skip=config.first_divergence_skip,
        early_reject=config.early_reject,
    )  # fmt: skip
    most = config.stages * (config.steps + 1) * config.max_new_tokens
    deviation, bound = assert_mean(decoded, expected, 0, most, detect=0.03 * most, seed=2)
    if measured:
        measured("mean count - expectation", deviation, bound)


@pytest.mark.claim("P21")
def test_a_wrong_count_is_caught():
    """Chains that decode from their cut although the skip is on cost more than is expected of them."""
    config = dataclasses.replace(CONFIG, block=2, steps=4)
    with pytest.raises(AssertionError):
        assert_token_cost(config, runs=dataclasses.replace(config, first_divergence_skip=False))


@pytest.mark.parametrize("name", WORLD)
def test_a_chain_depends_neither_on_the_batch_nor_on_the_slots(name):
    model, config = WORLD[name](), dataclasses.replace(CONFIG, max_new_tokens=4, block=2)
    common = {"stop_ids": STOPS, "seed": 5}
    whole = power_sample(model, PROMPTS, config, samples_per_prompt=6, slots=18, keys=["a", "b", "c"], **common)
    for order, slots in (([2, 0, 1], 1), ([1], 4), ([1, 2], 5)):
        keys, prompts = ["abc"[i] for i in order], [PROMPTS[i] for i in order]
        part = power_sample(model, prompts, config, samples_per_prompt=6, slots=slots, keys=keys, **common)
        assert_same_samples(part.samples, whole.samples.rows(torch.tensor(order)))
        for row, i in enumerate(order):
            assert part.costs[row].decoded_tokens == whole.costs[i].decoded_tokens


def test_no_steps_are_low_temperature_sampling():
    model = WORLD["table"]()
    config = PowerConfig(alpha=2.0, block=3, steps=0, max_new_tokens=3)
    chain = draw(model, config, 50).samples
    plain = generate(
        model, PROMPTS, max_new_tokens=3, stop_ids=STOPS, temperature=0.5, samples_per_prompt=50, seed=2
    ).samples
    assert torch.equal(chain.tokens, plain.tokens) and torch.equal(chain.finished, plain.finished)


def test_acceptance_is_counted_over_what_differs():
    steps = {"cuts": torch.tensor([[[1, 2, 3]]]), "divergences": torch.tensor([[[0, 2, 3]]])}
    result = draw(WORLD["table"](), dataclasses.replace(CONFIG, steps=3), 1, prompts=PROMPTS[:1])
    result = dataclasses.replace(result, **steps, accepted=torch.tensor([[[True, False, True]]]))
    assert result.acceptance == 0.5


def test_a_run_whose_steps_mostly_lie_behind_the_end_says_so():
    config = PowerConfig(alpha=4.0, block=20, steps=10, max_new_tokens=20, cut="horizon")
    behind = draw(TabularLM.iid([0.8, 0.1, 0.1]), config, 20)
    assert behind.idle > 0.8 and "behind the end of their response" in behind.remark
    assert (behind.behind == (behind.cuts > behind.samples.lengths[..., None])).double().mean() > 0.8
    within = draw(TabularLM.iid([0.8, 0.1, 0.1]), dataclasses.replace(config, cut="record"), 20)
    assert within.idle == 0 and within.remark is None


def test_diagnostics_say_what_happened():
    result = draw(WORLD["table"](), dataclasses.replace(CONFIG, max_new_tokens=6, block=3, steps=4), 40)
    assert result.cuts.shape == result.divergences.shape == result.accepted.shape == (3, 40, 8)
    assert result.cuts[..., :4].max() <= 3 and result.cuts.min() >= 1 and result.cuts.max() == 6
    moved = result.divergences > 0
    assert (result.divergences[moved] >= result.cuts[moved]).all()
    assert result.accepted[~moved].all() and 0 < result.acceptance < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": math.inf}, "proposal_temperature is None"),
        ({"alpha": 2.0, "anneal": 3.0}, "anneal is 3.0"),
        ({"anneal": math.inf}, "anneal is inf"),
        ({"anneal": 0.0}, "anneal is 0.0"),
        ({"proposal_temperature": 0.0}, "proposal_temperature is 0.0"),
        ({"block": 0}, "block is 0"),
        ({"steps": -1}, "steps is -1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"cut": "middle"}, "cut is 'middle'"),
        ({"entropy_power": 0.0}, "entropy_power is 0.0"),
        ({"entropy_floor": -0.1}, "entropy_floor is -0.1"),
        ({"prefetch": -1}, "prefetch is -1"),
        ({"max_new_tokens": 40}, "40: 42 in all, more than the model's maximum of 32"),
    ],
)
def test_bad_settings_are_refused_in_one_clear_line(change, message):
    with pytest.raises(ValueError, match=message) as raised:
        power_sample(HashModel(), [[1, 2]], dataclasses.replace(CONFIG, **change), stop_ids=STOPS)
    assert "\n" not in str(raised.value)
    for prompts in ([], [[]]):
        with pytest.raises(ValueError, match=r"no prompts|is empty"):
            power_sample(HashModel(), prompts, CONFIG, stop_ids=STOPS)
