"""SFT-Sharpening learns the law of best-of-N, for any model with parameters; and what it shares with the others."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats

from reference.best_of_n import best_of_n
from reference.sampling import generate, score
from reference.self_reward import length_normalized, log_probability
from reference.sft_sharpening import (
    Descend,
    Enumerate,
    FiniteClass,
    Loss,
    SFTConfig,
    log_likelihood,
    score_responses,
    sft_loss,
    sft_sharpen,
)
from reference.text.text_model import TextModel
from reference.training.loop import Batches, FitConfig
from reference.transformer import Config, Transformer
from tests.assertions import assert_categorical, assert_close, assert_frequency
from theory.best_of_n import adaptive_law, best_of_n_law
from toy.linear_softmax import LinearSoftmax, greedy_packing, needle_class, per_response
from toy.pretrain import CHECKPOINT
from toy.tabular import TabularLM, enumerate_law

STOP, HORIZON, PROMPT = [0], 3, [1, 2]
BASE = TabularLM.random(3, 5, seed=11, concentration=2.0, dtype=torch.float64)
START = TabularLM(torch.zeros_like(BASE.logits), BASE.transition, BASE.max_length)  # the class: any law after any text


def responses(base, prompts, n=6, reward=log_probability, **settings):
    drawn = generate(base, prompts, samples_per_prompt=n, **settings)
    return drawn.samples, score_responses(base, prompts, drawn.samples, reward)


def test_collect_is_score_for_tables_and_transformers():
    """Prompts of different lengths, responses that end early and padding: each log-likelihood is that of `score`."""
    speaker = TextModel.from_pretrained(CHECKPOINT)
    asked = [speaker.prompt("author", question=q) for q in ("3 + 4", "5 x 7 + 1 + 2")]
    for base, prompts, settings in (
        (BASE, [PROMPT, [2]], {"max_new_tokens": HORIZON, "stop_ids": STOP}),
        (speaker.model, asked, {"max_new_tokens": 12, "stop_ids": speaker.stop_ids}),
    ):
        samples, data = responses(base, prompts, **settings)
        flat = [sample for row in samples for sample in row]
        scores = score(base, [prompt for prompt in prompts for _ in range(6)], [sample.tokens for sample in flat])
        exact = torch.stack([values.double().sum() for values in scores])
        assert len({len(sample.tokens) for sample in flat}) > 1
        assert_close(data.base, exact, atol=1e-4)
        assert_close(data.reward, exact, atol=1e-4)
        assert_close(log_likelihood(base, data), data.base, atol=1e-4)  # sums of twelve
        both = data[:4] + data[4:]
        assert all(torch.equal(a, b) for a, b in zip(vars(both).values(), vars(data).values()))


def test_the_loss_trains_a_transformer():
    """One step down the gradient of the same loss that tables are fitted by."""
    speaker = TextModel.from_pretrained(CHECKPOINT)
    prompt = speaker.prompt("author", question="3 + 4 x 2")
    _, data = responses(speaker.model, [prompt], max_new_tokens=12, stop_ids=speaker.stop_ids)
    loss = Loss(sft_loss, (data,))
    for parameter in speaker.model.parameters():
        parameter.requires_grad_(True)
    before = loss(speaker.model)
    before.backward()
    with torch.no_grad():
        parts = loss(speaker.model, slice(0, 2)) + loss(speaker.model, slice(2, 6))
        assert float(parts) == pytest.approx(float(before.detach()))
        for parameter in speaker.model.parameters():
            parameter -= 1e-4 * parameter.grad
        assert float(loss(speaker.model)) < float(before.detach()) - 0.01


def test_the_fitted_law_is_best_of_ns():
    """Tabular policies, by gradient: π̂ is the frequency of the chosen responses, whose law is exact."""
    n, prompts = 3, [PROMPT] * 5000
    fitted = sft_sharpen(BASE, [START], prompts, SFTConfig(n, max_new_tokens=HORIZON), stop_ids=STOP, seed=2)
    records, logp, _ = enumerate_law(BASE, PROMPT, HORIZON, STOP)
    chosen = [tuple(row[0].tokens.tolist()) for row in fitted.chosen.samples]
    counts = np.array([chosen.count(record) for record in records])
    law = best_of_n_law(np.exp(logp), logp, n)
    assert_categorical(counts, law, detect=0.08, seed=2)
    learned = dict(zip(*(enumerate_law(fitted.policy, PROMPT, HORIZON, STOP)[i] for i in (0, 1))))
    learned_law = np.exp([learned[record] for record in records])
    np.testing.assert_allclose(learned_law, counts / len(prompts), atol=2e-4)
    assert fitted.cost.calls == n * len(prompts)
    scored = sum(len(PROMPT) + len(record) - 1 for record in chosen)
    assert fitted.cost.prefilled_tokens == fitted.chosen.cost.prefilled_tokens + scored
    assert START.logits.abs().max() == 0  # where it started is as it was


def test_the_adaptive_rule_chooses_n():
    mu, prompts = 0.5, [PROMPT] * 5000
    config = SFTConfig(n=1000, mu=mu, max_new_tokens=HORIZON)
    fitted = sft_sharpen(BASE, [START], prompts, config, stop_ids=STOP, seed=3, slots=2048)
    _, logp, _ = enumerate_law(BASE, PROMPT, HORIZON, STOP)
    law = adaptive_law(np.exp(logp), mu)
    best = int(logp.argmax())
    hit = int(
        (
            log_likelihood(BASE, score_responses(BASE, prompts, fitted.chosen.samples, log_probability))
            > logp[best] - 1e-9
        ).sum()
    )
    assert_frequency(hit, len(prompts), law.response[best], detect=0.05, seed=3)
    assert fitted.cost.calls == int(fitted.chosen.draws.sum())
    with pytest.raises(ValueError, match="drop mu or the reward"):
        sft_sharpen(BASE, [START], prompts, config, stop_ids=STOP, reward=length_normalized)


def test_another_world_another_reward():
    """A packing of the sphere, θ by gradient: with N beyond C_cov the policy is sharp, with N = 2 it is not; by the
    reversed reward it goes to another point."""
    points = greedy_packing(3, 0.6, 3000)
    base = LinearSoftmax.packing(points, points[4], radius=40.0)
    coverage = float(1 / base.law().max().exp())
    masses = []
    for n, reward in (
        (2, log_probability),
        (math.ceil(8 * coverage), log_probability),
        (400, lambda s: -s.total_logp()),
    ):
        config = SFTConfig(n, max_new_tokens=1)
        start = [base.at(torch.zeros(3))]
        fitted = sft_sharpen(base, start, [[0]] * 40, config, stop_ids=[], reward=reward, seed=1)
        masses.append(float(fitted.policy.law()[4].exp()))
    assert masses[0] < 0.5 < 0.95 < masses[1] and masses[2] < 1e-6
    alone = best_of_n(base, [[0]] * 40, n=2, max_new_tokens=1, stop_ids=[], seed=1).samples
    first = sft_sharpen(
        base, [base.at(torch.zeros(3))], [[0]] * 40, SFTConfig(2, max_new_tokens=1), stop_ids=[], seed=1
    )
    assert torch.equal(first.chosen.samples.tokens, alone.tokens)


def test_the_needle_needs_its_coverage():
    """The finite class: with N ≪ C_cov best-of-N is dull and a base model is fitted; with N ≫ C_cov the sharp one."""
    theta = torch.zeros(4, dtype=torch.float64)
    theta[1] = math.log(2)
    base, beta = LinearSoftmax.needle(4, 3.0, theta), 0.05
    policies, star = FiniteClass(needle_class(base, beta)), 2
    for n, sharp in ((1, False), (100, True)):
        fitted = sft_sharpen(
            base, policies, [[0]] * 20, SFTConfig(n, max_new_tokens=1), stop_ids=[], reward=per_response(base)
        )  # fmt: skip
        assert (float(fitted.policy.law()[star].exp()) > 0.99) == sharp


def test_enumeration_is_a_loop_and_breaks_ties_at_random():
    base = LinearSoftmax.packing(torch.eye(3, dtype=torch.float64), torch.zeros(3))
    policies = FiniteClass([base.at(torch.tensor(theta)) for theta in ([1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0])])
    _, data = responses(base, [[0]], n=9, max_new_tokens=1, stop_ids=[])
    loss = Loss(sft_loss, (data,))
    torch.testing.assert_close(policies.losses(loss), torch.stack([loss(policy) for policy in policies]))
    assert Enumerate()(loss, policies) is policies[int(policies.losses(loss).argmin())]
    tied = Loss(lambda policy, data: 0 * sft_loss(policy, data), (data,))
    counts = np.bincount([policies.policies.index(Enumerate(seed)(tied, policies)) for seed in range(600)], minlength=3)
    assert_categorical(counts, np.ones(3) / 3, detect=0.25, seed=0)
    assert len({policies.policies.index(Enumerate(0)(tied, policies)) for _ in range(5)}) == 1  # addressed


def test_descending_keeps_the_best_of_its_starts():
    """A loss with two valleys, one deeper: from either side alone its own, from both the deeper."""
    base = LinearSoftmax.packing(torch.eye(2, dtype=torch.float64), torch.zeros(2))
    _, data = responses(base, [[0]], n=1, max_new_tokens=1, stop_ids=[])

    def valleys(policy, data):
        x = log_likelihood(policy, data).sum()  # falls from 0; valleys at −1 and −4
        return ((x + 1) * (x + 4)).square() + 0.3 * x

    token = int(data.tokens[0, 1])
    near, far = (base.at(sign * torch.eye(2)[token].double() * size) for sign, size in ((1, 0.5), (-1, 5.0)))
    ends = [
        float(log_likelihood(Descend()(Loss(valleys, (data,)), starts), data))
        for starts in ([near], [far], [near, far])
    ]
    assert ends[0] == pytest.approx(-1, abs=0.1) and ends[1] == pytest.approx(-4, abs=0.1) and ends[2] == ends[1]


# ---------------------------------------------------------------------------------------------------------------------
# A transformer small enough to enumerate


def small_transformer(seed: int) -> Transformer:
    config = {
        "model_type": "qwen2", "vocab_size": 3, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16,
    }  # fmt: skip
    torch.manual_seed(seed)
    model = Transformer(Config.from_dict(config))
    for weight in model.parameters():
        weight.data.add_(0.5 * torch.randn_like(weight))
    return model.requires_grad_(False)


LABELS, DRAWS = 4000, 3


@cache
def sharpened_transformer():
    """(base, policy): SFT-Sharpening by batches."""
    base = small_transformer(0)
    fitting = FitConfig(epochs=10, batch=200, rate=1e-2, clip=1.0, weight_decay=0.0, schedule="cosine")
    config = SFTConfig(DRAWS, max_new_tokens=HORIZON)
    fitted = sft_sharpen(base, base, [PROMPT] * LABELS, config, stop_ids=STOP, minimise=Batches(fitting), slots=2048)
    return base, fitted.policy


def assert_learned(law: Callable[[np.ndarray], np.ndarray]) -> None:
    """The policy is the maximum likelihood of draws of law(base's log-probabilities): 2·labels·KL(law ‖ policy) is
    chi-square of as many degrees as the records have less one. Its 1e-6 quantile bounds it."""
    base, policy = sharpened_transformer()
    records, logp, _ = enumerate_law(base, PROMPT, HORIZON, STOP)
    also, learned, _ = enumerate_law(policy, PROMPT, HORIZON, STOP)
    exact = law(logp)
    kl = float((exact * (np.log(exact) - learned)).sum())
    bound = stats.chi2.isf(1e-6, len(records) - 1) / (2 * LABELS)
    print(f"KL(law ‖ policy) = {kl:.2g}, bound {bound:.2g}, {LABELS} labels")
    assert records == also and kl <= bound


def test_a_transformer_learns_the_law_of_best_of_n():
    assert_learned(lambda logp: best_of_n_law(np.exp(logp), logp, DRAWS))


def test_a_transformer_does_not_learn_other_laws():
    """Best-of-(N − 1) or -(N + 1), and the base. (Its power p^3 is at a KL of 0.006, too near for so few labels.)"""
    for wrong in (
        lambda logp: best_of_n_law(np.exp(logp), logp, DRAWS - 1),
        lambda logp: best_of_n_law(np.exp(logp), logp, DRAWS + 1),
        np.exp,
    ):
        with pytest.raises(AssertionError):
            assert_learned(wrong)
