"""Power-SMC: the exact law of its cloud, an unbiased normaliser, p^α in the limit; one particle is `generate`."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import reference.power_smc as P
from reference.engine.particles import Clouds
from reference.power_sampling import PowerConfig
from reference.power_smc import SMCConfig, power_smc, steps_enough
from reference.sampling import generate
from tests.assertions import assert_categorical, assert_close, assert_mean, assert_same_samples
from tests.reference.test_power_sampling import PROMPTS, STOPS, WORLD, counts
from theory.particles import cloud
from theory.power import power_law
from toy.tabular import enumerate_law

CONFIG = SMCConfig(alpha=2.0, particles=2, max_new_tokens=3, ess_threshold=2.0, resampling="multinomial")


def draw(config, n, name="table", slots=32768, prompts=PROMPTS[:1], seed=2):
    return power_smc(
        WORLD[name](), prompts, config, stop_ids=STOPS, samples_per_prompt=n, slots=slots, seed=seed
    )  # fmt: skip


def enumerated(config, name="table"):
    return enumerate_law(WORLD[name](), PROMPTS[0], config.max_new_tokens, STOPS)


def assert_unbiased(change, n=20_000, detect=0.02):
    """E[Ẑ] = Σ p^α, and E[Ẑ Σ_{i: x_i is short} W_i / Σ W_i] = Σ_{x short} p^α: texts of one token.
    (Every ω_t here is at most 1.)"""
    config = dataclasses.replace(CONFIG, **change)
    records, logp, _ = enumerated(config)
    mass = np.exp(config.alpha * np.asarray(logp))
    short = np.array([len(record) == 1 for record in records])
    result = draw(config, n)
    z = result.log_normalizer[0].exp()
    is_short = (result.particles.lengths[0] == 1).view(n, config.particles)
    part = z * (result.log_weights[0].softmax(1) * is_short).sum(1)
    return [
        assert_mean(values.numpy(), mean, 0, 1, detect=detect, seed=2)
        for values, mean in ((z, mass.sum()), (part, mass[short].sum()))
    ]


@pytest.mark.claim("P18")
@pytest.mark.parametrize("change", [{}, {"resampling": "systematic", "particles": 4, "ramp": 3}])
def test_the_normalizer_is_unbiased(change, measured):
    for statistic, bound in assert_unbiased(change):
        measured(f"|mean - Σ p^α|, {change}", statistic, bound)


def assert_exact(change, n=100_000, detect=0.02, name="table"):
    """The returned particle has the law that the sum over every outcome of the cloud gives."""
    config = dataclasses.replace(CONFIG, **change)
    records, _, conditionals = enumerated(config, name)
    exact = cloud(
        conditionals, horizon=config.max_new_tokens, alpha=config.alpha, particles=config.particles,
        tau=config.proposal_temperature, kappa=config.ess_threshold, resampling=config.resampling,
    )  # fmt: skip
    law = exact.returned / exact.returned.sum()
    result = draw(config, n, name)
    return assert_categorical(counts(result.samples, 0, records), law, detect=detect, seed=2)


FAR = {"alpha": 4.0, "proposal_temperature": 1.0, "ess_threshold": 0.9, "resampling": "systematic"}


@pytest.mark.claim("P18")
def test_the_law_of_the_returned_particle_is_exact(measured):
    """Where the proposal is at TV .455 from p^α and the returned one of two particles at .15 from p^α and .3 from the
    proposal, many times what the test can tell: 0.02."""
    measured(f"G of draws, {FAR}", *assert_exact(FAR))
    _, logp, conditionals = enumerated(CONFIG)
    one, two = (
        cloud(conditionals, horizon=3, alpha=4.0, particles=n, tau=1.0, kappa=0.9, resampling="systematic").returned
        for n in (1, 2)
    )  # fmt: skip
    target = power_law(np.asarray(logp), 4.0)
    away = [np.abs(a - b).sum() / 2 for a, b in ((one, target), (two, target), (one, two))]
    measured("TV of the proposal to p^α", away[0], 0.3)
    assert away[0] > 0.3 and min(away[1:]) > 0.1


def weights_kept(self, clouds, share):
    weight = self.slots.log_weight.clone()
    RESAMPLE(self, clouds, share)
    self.slots.log_weight = weight


def mean_of_logs(log_weight):
    return log_weight.mean(1)


RESAMPLE = Clouds.resample


@pytest.mark.claim("P18")
@pytest.mark.parametrize(("where", "name", "mutant", "change"), [
    (Clouds, "resample", weights_kept, {}),
    (P, "log_mean", mean_of_logs, {"ess_threshold": 0.0, "particles": 4, "proposal_temperature": 1.0}),
])  # fmt: skip
def test_wrong_normalizers_are_caught(where, name, mutant, change, monkeypatch):
    monkeypatch.setattr(where, name, mutant)
    with pytest.raises(AssertionError):
        assert_unbiased(change)


@pytest.mark.claim("P18")
def test_a_wrong_law_is_caught(monkeypatch):
    monkeypatch.setattr(Clouds, "resample", weights_kept)
    with pytest.raises(AssertionError):
        assert_exact(FAR)


@pytest.mark.parametrize("name", WORLD)
def test_one_particle_is_low_temperature_sampling(name):
    common = {"stop_ids": STOPS, "samples_per_prompt": 5, "slots": 7, "seed": 3}
    plain = generate(WORLD[name](), PROMPTS, max_new_tokens=6, temperature=0.25, **common)
    one = power_smc(WORLD[name](), PROMPTS, SMCConfig(alpha=4.0, particles=1, max_new_tokens=6), **common)
    assert_same_samples(one.samples, plain.samples)
    assert plain.costs == one.costs


@pytest.mark.parametrize("name", WORLD)
def test_a_cloud_depends_neither_on_the_batch_nor_on_the_slots(name):
    config = SMCConfig(alpha=4.0, particles=4, max_new_tokens=6, ess_threshold=0.9, ramp=3)
    common = {"stop_ids": STOPS, "samples_per_prompt": 3, "seed": 3}
    whole = power_smc(WORLD[name](), PROMPTS, config, **common, keys=["a", "b", "c"])
    assert whole.resampled.any()
    for slots in (4, 11):
        again = power_smc(WORLD[name](), PROMPTS, config, **common, slots=slots, keys=["a", "b", "c"])
        assert_same_samples(again.samples, whole.samples)
        assert_same_samples(again.particles, whole.particles)
        assert torch.equal(again.resampled, whole.resampled) and again.costs == whole.costs
        assert_close(again.log_weights, whole.log_weights)
    alone = power_smc(WORLD[name](), PROMPTS[1:2], config, **common, keys=["b"])
    assert_same_samples(alone.samples, whole.samples.rows(torch.tensor([1])))


@pytest.mark.parametrize("name", WORLD)
def test_scores_and_weights_follow_their_particles(name):
    """After any resampling each particle's log p and log q are those of its own text, which nothing follows its end."""
    config = SMCConfig(alpha=2.0, particles=4, max_new_tokens=6, ess_threshold=2.0)
    result = power_smc(WORLD[name](), PROMPTS[:1], config, stop_ids=STOPS, samples_per_prompt=20, seed=3)
    records, logp, _ = enumerated(config, name)
    of = dict(zip(records, logp))
    for particle in result.particles[0]:
        text = particle.tokens.tolist()
        assert float(particle.logp.double().sum()) == pytest.approx(of[tuple(text)], abs=1e-4)
        assert particle.finished == (text[-1] in STOPS) and not set(text[:-1]) & set(STOPS)
    assert (result.ess[result.ess > 0] >= 1 - 1e-9).all() and (result.ess <= 4 + 1e-9).all()
    assert result.cost.decoded_tokens <= 4 * 20 * 6 and result.cost.sequential_tokens <= 6


@pytest.mark.parametrize(("change", "message"), [
    ({"alpha": 0.0}, "alpha is 0.0"), ({"particles": 0}, "particles is 0"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ({"ess_threshold": math.nan}, "ess_threshold is nan"), ({"ramp": 4}, "ramp is 4"),
    ({"resampling": "residual"}, "resampling is 'residual'"), ({"proposal_temperature": -1.0}, "proposal_temperature"),
    ({"particles": 40000}, "slots is 32768; it must be at least 40000"),
])  # fmt: skip
def test_bad_settings_are_refused_in_one_clear_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        draw(dataclasses.replace(CONFIG, **change), 1)
    assert "\n" not in str(error.value)


# -- steps that are enough ---------------------------------------------------------------------------------------------


@pytest.mark.claim("P34")
@pytest.mark.claim("P37")
@pytest.mark.parametrize(("alpha", "tau"), [(1.0, None), (4.0, None), (4.0, 0.5), (2.0, 1.0)])
def test_steps_that_are_enough_are_theorys(alpha, tau):
    from theory import certificate

    first = torch.tensor([0.6, 0.3, 0.1, 0.0], dtype=torch.float64)
    power, log_z = PowerConfig(alpha, tau, max_new_tokens=7), torch.tensor([-2.0, -3.0, -2.5])
    log_w = certificate.first_factor(first.numpy(), alpha, power.temperature)
    wanted = certificate.steps_enough(float(certificate.with_confidence(log_z.numpy(), 0.02)), 7, 0.1, log_w)
    assert steps_enough(log_z, first.log(), power, tv=0.1, miss=0.02) == wanted > 10
    assert steps_enough(torch.tensor([-1e4]), first.log(), power) == math.inf


@pytest.mark.parametrize(
    ("power", "message"),
    [
        (PowerConfig(0.5, max_new_tokens=7), "alpha 0.5 and proposal temperature 2:"),
        (PowerConfig(4.0, 0.2, max_new_tokens=7), "temperatures from 1/alpha to 1"),
        (PowerConfig(4.0, 1.5, max_new_tokens=7), "temperatures from 1/alpha to 1"),
        (PowerConfig(math.inf, 0.5, max_new_tokens=7), "a finite alpha of at least 1"),
        (PowerConfig(4.0, max_new_tokens=7, cut="entropy"), "cut is 'entropy'"),
    ],
)
def test_where_no_number_of_steps_is_known(power, message):
    with pytest.raises(ValueError, match=message):
        steps_enough(torch.tensor([-3.0]), torch.zeros(3), power)
