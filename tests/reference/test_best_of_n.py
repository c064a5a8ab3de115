"""Best-of-N, run on tables, has the law that theory/best_of_n.py computes; self-rewards are their formulas."""

import math

import numpy as np
import pytest
import torch

import reference.best_of_n as B
from reference.best_of_n import adaptive_best_of_n, best_of_n
from reference.sampling import Samples, generate
from reference.self_reward import length_normalized, log_probability, majority_vote
from tests.assertions import assert_categorical
from theory.best_of_n import adaptive_law, best_of_n_law
from toy.tabular import TabularLM, enumerate_law

STOP, HORIZON, RUNS = [0], 3, 100_000
PROMPT = [1, 2]
MODEL = TabularLM.random(3, 6, seed=11, concentration=2.0)  # 15 records, the likeliest of probability 0.53
TIES = TabularLM.tree({(1,): [0.25, 0.25, 0.5], (1, 2): [0.5, 0.25, 0.25]}, vocab_size=3)  # log-probabilities tie


def enumerated(model, prompt=PROMPT, horizon=HORIZON):
    """Records, and their probabilities as the sampler sees them: sums of float32 log-probabilities."""
    records, logp, _ = enumerate_law(model, prompt, horizon, STOP)
    return {record: i for i, record in enumerate(records)}, np.exp(logp)


def counts(samples: Samples, index: dict) -> np.ndarray:
    """How often each record was the (only) sample of a prompt."""
    lengths = samples.lengths[:, 0].tolist()
    found = [index[tuple(row[:length])] for row, length in zip(samples.tokens[:, 0].tolist(), lengths)]
    return np.bincount(found, minlength=len(index))


def draw(model, n, reward=log_probability, prompt=PROMPT, horizon=HORIZON, runs=RUNS):
    """`runs` independent best-of-n responses: one for each copy of the prompt."""
    return best_of_n(
        model, [prompt] * runs, n=n, reward=reward, max_new_tokens=horizon, stop_ids=STOP, slots=4096, seed=3
    )  # fmt: skip


def assert_exact_law(model, n, reward=log_probability, prompt=PROMPT, horizon=HORIZON, runs=RUNS, measured=None):
    index, probs = enumerated(model, prompt, horizon)
    rewards = np.log(probs).round(5)  # equal up to the sampler's rounding: they tie
    if reward is length_normalized:
        rewards = (np.log(probs) / [len(record) for record in index]).round(5)
    law = best_of_n_law(probs, rewards, n)
    drawn = draw(model, n, reward, prompt, horizon, runs)
    statistic, bound = assert_categorical(counts(drawn.samples, index), law, detect=0.02, seed=3)
    if measured:
        measured(f"G, N = {n}", statistic, bound)


@pytest.mark.claim("T6")
@pytest.mark.parametrize("n", [5])
def test_sampler_has_the_exact_law(n, measured):
    assert_exact_law(MODEL, n, measured=measured)


@pytest.mark.claim("T6")
def test_sampler_mutants_are_caught(monkeypatch):
    for mutant in (
        lambda rewards: rewards.argmin(-1),  # the worst of N
        lambda rewards: rewards[..., :-1].argmax(-1),  # the best of N - 1
        lambda rewards: rewards.argmax(-1) * 0,  # the first
    ):
        monkeypatch.setattr(B, "first_best", mutant)
        with pytest.raises(AssertionError):
            assert_exact_law(MODEL, 3)


def adaptive(mu, runs):
    return adaptive_best_of_n(
        MODEL, [PROMPT] * runs, mu=mu, max_draws=10_000, max_new_tokens=HORIZON, stop_ids=STOP, slots=4096, seed=5
    )


def assert_exact_adaptive_law(mu, runs=RUNS, measured=None):
    index, probs = enumerated(MODEL)
    law = adaptive_law(probs, mu)
    result = adaptive(mu, runs)
    draws = np.bincount(result.draws.flatten().numpy(), minlength=len(law.stop))
    assert len(draws) == len(law.stop), "a run stopped later than the law allows"
    for name, observed, exact in (
        ("G of N", draws, law.stop),
        ("G of the response", counts(result.samples, index), law.response),
    ):
        statistic, bound = assert_categorical(observed, exact / exact.sum(), detect=0.03, seed=5)
        if measured:
            measured(name, statistic, bound)
    return result.draws, probs


@pytest.mark.claim("T11")
def test_adaptive_sampler_has_the_exact_law(measured):
    mu = 0.5
    draws, probs = assert_exact_adaptive_law(mu, measured=measured)
    assert draws.min() >= math.ceil(mu / probs.max())  # surely, not only on average


@pytest.mark.claim("T11")
def test_adaptive_mutants_are_caught(monkeypatch):
    for mutant in (
        lambda samples: samples.total_logp() - math.log(2),  # stops as if every response were half as likely
        lambda samples: samples.logp[:, :, 0].double(),  # looks at the first token alone
    ):
        monkeypatch.setattr(B, "log_probability", mutant)
        with pytest.raises(AssertionError):
            assert_exact_adaptive_law(0.5, runs=60_000)


def test_the_adaptive_rule_gives_up_at_max_draws_and_counts_what_it_drew():
    result = adaptive_best_of_n(MODEL, [PROMPT, [2]], mu=1e6, max_draws=7, max_new_tokens=HORIZON, stop_ids=STOP)
    assert result.draws.tolist() == [[7], [7]]
    assert result.cost.calls == 14 and result.cost.prompt_tokens == 7 * 3
    for mu, most, named in ((0.0, 5, "mu is 0.0"), (math.nan, 5, "mu is nan"), (1.0, 0, "max_draws is 0")):
        with pytest.raises(ValueError, match=named):
            adaptive_best_of_n(MODEL, [PROMPT], mu=mu, max_draws=most, max_new_tokens=HORIZON, stop_ids=STOP)


def test_what_best_of_n_returns():
    result = best_of_n(MODEL, [PROMPT, [2, 2]], n=6, max_new_tokens=HORIZON, stop_ids=STOP, seed=1)
    pool = generate(MODEL, [PROMPT, [2, 2]], samples_per_prompt=6, max_new_tokens=HORIZON, stop_ids=STOP, seed=1)
    assert result.cost == pool.cost and result.draws.tolist() == [[6], [6]]
    for chosen, drawn, reward in zip(result.samples, pool.samples, result.rewards):
        totals = [float(sample.logp.double().sum()) for sample in drawn]
        best = totals.index(max(totals))
        assert torch.equal(chosen[0].tokens, drawn[best].tokens)
        assert float(reward) == pytest.approx(max(totals))


def test_self_rewards_are_their_formulas():
    pool = generate(MODEL, [PROMPT, [2]], samples_per_prompt=5, max_new_tokens=HORIZON, stop_ids=STOP).samples
    for i, drawn in enumerate(pool):
        for j, sample in enumerate(drawn):
            total = math.fsum(sample.logp.tolist())
            assert float(log_probability(pool)[i, j]) == pytest.approx(total)
            assert float(length_normalized(pool)[i, j]) == pytest.approx(total / len(sample.tokens))


def test_majority_vote_counts_answers_and_not_responses_without_one():
    rewards = majority_vote([["7", "3", None, "7", None], [None] * 5])
    assert rewards.tolist() == [[0.4, 0.2, 0.0, 0.4, 0.0], [0.0] * 5]
