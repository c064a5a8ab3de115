"""Power self-distillation: what its loss is least at, and that what it is fitted to is what power sampling draws."""

import copy

import numpy as np
import pytest
import torch

from reference.interface import Cost
from reference.power_distillation import PowerDistillationConfig, power_distill
from reference.power_sampling import PowerConfig, power_sample
from reference.sft_sharpening import Descend, Loss, log_likelihood, score_responses, sft_loss
from tests.reference.test_sft_sharpening import BASE, HORIZON, PROMPT, START, STOP
from theory.markov_chain import total_variation
from theory.power import power_law
from theory.sample_complexity import hellinger, mle_bound
from toy.tabular import enumerate_law

ALPHA = 3.0
TEXTS, LOGP, _ = enumerate_law(BASE, PROMPT, HORIZON, STOP)
TARGET = power_law(LOGP, ALPHA)


def every_text():
    """All responses as data, in the order of TEXTS."""
    drawn = power_sample(BASE, [PROMPT], PowerConfig(ALPHA, block=HORIZON, steps=0, max_new_tokens=HORIZON),
                         stop_ids=STOP, samples_per_prompt=len(TEXTS))  # fmt: skip
    samples = drawn.samples
    samples.tokens.zero_()
    for i, text in enumerate(TEXTS):
        samples.tokens[0, i, : len(text)], samples.lengths[0, i] = torch.tensor(text), len(text)
    return score_responses(BASE, [PROMPT], samples, lambda kept: kept.logp.sum(-1))


def expected_loss(weights):
    """−E_weights log π, exactly, as a `Loss`."""
    law = torch.from_numpy(np.asarray(weights))
    return Loss(lambda policy, data: -(law * log_likelihood(policy, data)).sum(), (every_text(),))


def policy_law(model):
    return np.exp(enumerate_law(model, PROMPT, HORIZON, STOP)[1])


def assert_ends_at_the_target(loss):
    """Descending from even policies, in float64."""
    found = Descend(steps=400, tolerance=1e-13)(loss, [START])
    far = total_variation(policy_law(found), TARGET)
    assert far < 1e-6
    return found, far


@pytest.mark.claim("T35")
def test_the_exact_loss_is_least_at_the_power_distribution(measured):
    """And everywhere else the loss is larger by KL(p^α ‖ π)."""
    loss = expected_loss(TARGET)
    found, far = assert_ends_at_the_target(loss)
    measured("TV of the minimiser to p^α", far, 1e-6)
    assert total_variation(policy_law(START), TARGET) > 0.3
    entropy = -TARGET @ np.log(TARGET)
    for policy in (START, BASE, found):
        law = policy_law(policy)
        divergence = TARGET @ np.log(TARGET / law)
        assert abs(float(loss(policy)) - entropy - divergence) < 1e-10


@pytest.mark.claim("T35")
def test_a_loss_of_another_power_is_least_elsewhere():
    with pytest.raises(AssertionError):
        assert_ends_at_the_target(expected_loss(power_law(LOGP, ALPHA - 1)))


@pytest.mark.claim("T35")
def test_what_is_learned_from_chains_is_p_to_the_alpha(measured):
    """From n draws: D_H² ≤ 2 log(|Π|/ρ)/n, with the free parameters for log|Π| (claim T9 has it for finite classes)."""
    n, power = 20_000, PowerConfig(ALPHA, block=HORIZON, steps=60, max_new_tokens=HORIZON)
    out = power_distill(BASE, [START], [PROMPT], PowerDistillationConfig(n, power), stop_ids=STOP, slots=4096, seed=1)
    law = policy_law(out.policy)
    off = float(hellinger(law[None], TARGET[None])[0])
    bound = mle_bound(len(TEXTS) * np.log(10), n, 1e-6)
    measured("D_H² of what is learned / its scale", off / bound, 1.0)
    assert off < bound and total_variation(law, TARGET) < 0.02 < total_variation(policy_law(BASE), TARGET)


def test_what_it_is_fitted_to():
    kept, power = [], PowerConfig(2.0, block=2, steps=3, max_new_tokens=HORIZON)

    def minimise(loss, policy):
        kept.append(loss)
        return policy

    config = PowerDistillationConfig(3, power)
    out = power_distill(BASE, START, [PROMPT, [2]], config, stop_ids=STOP, minimise=minimise, seed=4, keys=["a", "b"])
    chains = power_sample(BASE, [PROMPT, [2]], power, stop_ids=STOP, samples_per_prompt=3, seed=4, keys=["a", "b"])
    assert torch.equal(out.drawn.samples.tokens, chains.samples.tokens) and out.policy is START
    (data,) = kept[0].data
    assert len(data) == 6 and kept[0].term is sft_loss
    torch.testing.assert_close(data.base, chains.samples.total_logp().flatten(), atol=1e-6, rtol=0)
    assert out.cost == Cost.parallel(chains.costs) + data.cost


def test_a_policy_that_is_fitted_is_a_copy():
    before = copy.deepcopy(START.logits)
    config = PowerDistillationConfig(2, PowerConfig(2.0, block=2, steps=1, max_new_tokens=HORIZON))
    power_distill(BASE, [START], [PROMPT], config, stop_ids=STOP)
    assert torch.equal(before, START.logits)


def test_no_draws_are_refused():
    with pytest.raises(ValueError, match="n is 0"):
        PowerDistillationConfig(0)
