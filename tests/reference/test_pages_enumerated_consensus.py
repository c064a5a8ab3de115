"""The vote of the particles of Power-SMC, run for every outcome of the cloud: its mean and its law are theory's."""

from functools import partial

import numpy as np
import pytest
import torch

from reference.power_smc import SMCConfig, power_smc_page
from reference.self_reward import consensus, majority_vote, weighted_vote
from tests.reference.small_worlds import EXACT, WORLDS, assert_same
from theory import power
from theory.consensus import answer_masses, vote_law
from theory.exact_law import exact_law, runs

pytestmark = pytest.mark.usefixtures("remember")


def answer(record):
    """The first token; a response that ends at once has none."""
    return record[0] if len(record) > 1 else None


def settings(world, **change):
    return SMCConfig(**{"alpha": 1.2, "max_new_tokens": world.horizon, "particles": 2, "ess_threshold": 2.0, **change})


def assert_mean(world, config, vote=weighted_vote):
    """E[Ẑ · share of the weight on an answer] = Σ p^α over the responses that give it."""
    found = {}
    for result, run in runs(partial(world.run, power_smc_page, config)):
        answers = [answer(particle) for particle in result.particles]
        shares = dict(
            zip(answers, vote([answers], torch.tensor([result.log_weights], dtype=torch.float64))[0].tolist())
        )
        for given, share in shares.items():
            found[given] = found.get(given, 0.0) + run.probability * np.exp(result.log_normalizer) * share
    records, logp, _ = world.law
    exact = answer_masses(logp, config.alpha, [answer(record) for record in records])
    assert found.pop(None) == 0.0 and {*found} == {*exact}
    return max(assert_same(found[given], mass) for given, mass in exact.items())


CLOUDS = [
    ("fork", {}), ("pivot", {"resampling": "multinomial"}), ("ties", {"ess_threshold": 0.9}),
    ("fork", {"particles": 3, "proposal_temperature": 1.0}), ("short", {"ramp": 2}), ("short", {"ess_threshold": 0.0}),
]  # fmt: skip


@pytest.mark.claim("P32")
@pytest.mark.parametrize(("name", "change"), CLOUDS)
def test_the_mean_vote_is_the_answers_mass(name, change, measured):
    measured("|E[Ẑ · share] - Σ p^α|", assert_mean(WORLDS[name], settings(WORLDS[name], **change)), EXACT)


@pytest.mark.claim("P32")
@pytest.mark.parametrize("vote", [
    lambda answers, log_weights: majority_vote(answers),  # every particle counts the same
    lambda answers, log_weights: weighted_vote(answers, 2 * log_weights),
    lambda answers, log_weights: weighted_vote(answers, log_weights) / weighted_vote(answers, log_weights).sum(),
])  # fmt: skip
def test_other_votes_have_another_mean(vote):
    with pytest.raises(AssertionError):
        assert_mean(WORLDS["fork"], settings(WORLDS["fork"], proposal_temperature=1.0, ess_threshold=0.0), vote)


def test_without_resampling_the_law_of_the_vote_is_theorys():
    """The likeliest response answers 1; the answer of most mass is 2, and the more particles the surer is the vote."""
    world = WORLDS["fork"]
    records, logp, conditionals = world.law
    answers = [answer(record) for record in records]
    masses = answer_masses(logp, 1.2, answers)
    assert answers[int(logp.argmax())] == 1 and masses[2] > masses[1]
    sure = []
    for n, tau in ((1, 1.0), (2, 1.0), (3, 1.0), (3, 0.5)):
        config = settings(world, particles=n, ess_threshold=0.0, proposal_temperature=tau)

        def voted(chance, config=config):
            result = world.run(power_smc_page, config, chance)
            given = [answer(particle) for particle in result.particles]
            return given[int(consensus([given], torch.tensor([result.log_weights], dtype=torch.float64))[0])]

        logq = power.record_logps(power.tempered(conditionals, tau), world.horizon)[1]
        exact = vote_law(np.exp(logq), np.exp(1.2 * logp - logq), answers, n)
        found = exact_law(voted)
        assert {*found} == {*exact}
        assert_same([found[given] for given in exact], [*exact.values()])
        sure.append(exact[2])
    assert sure[0] < sure[2]


def test_votes_by_equal_weights_are_the_majoritys():
    answers = [["7", "3", None, "7", None], [None] * 5]
    equal = torch.zeros(2, 5)
    assert torch.allclose(weighted_vote(answers, equal), majority_vote(answers))
    assert consensus(answers, equal).tolist() == [0, 0]
    heavy = torch.tensor([[0.0, 1.0, 5.0, 0.5, 0.0], [0.0, 0.0, 2.0, 0.0, 0.0]])
    assert consensus(answers, heavy).tolist() == [1, 2]  # e > 1 + e^½; an unread answer has no vote, but stands alone
    with pytest.raises(ValueError, match="give one for each"):
        weighted_vote([["a"]], torch.zeros(1, 2))
