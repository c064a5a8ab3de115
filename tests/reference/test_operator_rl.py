"""Operator-consistent RL: CISPO against derivatives by hand, the bookkeeping of its rollouts, exact resuming (D19)."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from reference.operator_rl import KINDS, CISPOLoss, OperatorConfig, Rollouts, operator_rl, play
from reference.parallel_distill_refine import PDRConfig
from reference.sampling import Cost
from reference.text.text_model import TextModel
from reference.training.loop import FitConfig, Trainer
from tests.reference.test_grpo import PROMPTS, RESPONSES, REWARDS, Killed, markov
from tests.reference.test_parallel_distill_refine import (
    COUNT,
    DISTILL,
    NONE,
    RIGHT,
    SOLVE,
    SPEAKER,
    TINY,
    M,
    result_of,
    table,
)
from toy import relay
from toy.pretrain import CHECKPOINT

FIT = FitConfig(batch=16, rate=0.05, schedule="constant", weight_decay=0.0, clip=1.0, save_every=2)
CISPO = OperatorConfig(kinds=("trace",), low=0.1, high=0.25, alpha=0.0)

# Rollouts of two calls: the response to a prompt, and the same response to another one
TEXTS = [
    [(prompt, torch.tensor(y)), (PROMPTS[0], torch.tensor(y))] for prompt, row in zip(PROMPTS, RESPONSES) for y in row
]


def make_loss(old, config, texts=TEXTS, rewards=REWARDS) -> CISPOLoss:
    return CISPOLoss(Trainer(old, FIT, 1), [Rollouts(texts, rewards, Cost())], config)


def gradient_of(loss, seed=2) -> np.ndarray:
    policy = markov(seed)
    policy.requires_grad_(True)
    loss(policy, torch.arange(len(loss))).backward()
    return policy.logits.grad.numpy()


def by_hand(policy, old, config, clipped_learn=True) -> tuple[np.ndarray, int]:
    """∂loss/∂logits of a Markov chain, token by token, and how many tokens are beyond the clip: d/dz log π(y|s) is
    e_y − π(·|s) in the row of s, with the weight ρ̂ A G/Σ|o|, and α n/(n₊ |o|) more if the rollout is right.

    clipped_learn=False: PPO's clip, which takes a token's gradient away where its ratio is beyond the clip already and
    A would drive it on."""
    p, q = (model.logits.detach().softmax(-1).numpy() for model in (policy, old))
    gradient, beyond, rewards = np.zeros_like(p), 0, REWARDS.numpy()
    for row, r in enumerate(rewards):
        rollouts = TEXTS[3 * row : 3 * row + 3]
        total = sum(len(y) for calls in rollouts for _, y in calls)
        for i, calls in enumerate(rollouts):
            A, length = (r[i] - r.mean()) / (r.std() + 1e-6), sum(len(y) for _, y in calls)
            imitated = config.alpha * (r[i] > 0) * rewards.size / (rewards > 0).sum() / length
            for prompt, y in calls:
                state = int(prompt[-1]) + 1
                for token in y.tolist():
                    ratio = p[state, token] / q[state, token]
                    weight = min(max(ratio, 1 - config.low), 1 + config.high) * A * 3 / total
                    stopped = ratio > 1 + config.high if A > 0 else ratio < 1 - config.low
                    beyond += stopped
                    if stopped and not clipped_learn:
                        weight = 0.0
                    gradient[state] -= (weight + imitated) * (np.eye(4)[token] - p[state])
                    state = token + 1
    return gradient, beyond


def assert_gradient(found, expected, measured=lambda *_: None):
    error = np.abs(found - expected).max()
    measured("largest error of the gradient", error, 1e-12)
    assert error <= 1e-12


@pytest.mark.claim("D19")
@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_the_gradient_is_the_one_derived_by_hand(alpha, measured):
    config = replace(CISPO, alpha=alpha)
    expected, beyond = by_hand(markov(2), markov(0), config)
    assert beyond >= 6  # the clip is at work
    assert_gradient(gradient_of(make_loss(markov(0), config)), expected, measured)


@pytest.mark.claim("D19")
def test_gradient_mutants_are_caught(monkeypatch):
    """PPO's clip, by hand and as code; a ratio that carries gradient; no clip; the SFT term on wrong rollouts too."""
    config = replace(CISPO, alpha=0.1)
    expected, _ = by_hand(markov(2), markov(0), config)
    found = gradient_of(make_loss(markov(0), config))
    with pytest.raises(AssertionError):
        assert_gradient(found, by_hand(markov(2), markov(0), config, clipped_learn=False)[0])
    for mutant in (ppo, with_gradient_through_the_ratio):
        with monkeypatch.context() as patch:
            patch.setattr(CISPOLoss, "__call__", mutant)
            wrong = gradient_of(make_loss(markov(0), config))
        with pytest.raises(AssertionError):
            assert_gradient(wrong, expected)
    for changed in (replace(config, high=math.inf, low=math.inf), replace(config, alpha=0.0)):
        with pytest.raises(AssertionError):
            assert_gradient(gradient_of(make_loss(markov(0), changed)), expected)
    lenient = make_loss(markov(0), config)
    lenient.imitated = lenient.imitated.max().expand_as(lenient.imitated)
    with pytest.raises(AssertionError):
        assert_gradient(gradient_of(lenient), expected)


def ppo(self, policy, rows):
    logp = self.logp(policy, rows)
    ratio, weight = (logp - self.old[rows, : logp.shape[1]]).exp(), self.weight[rows]
    clipped = ratio.clamp(1 - self.config.low, 1 + self.config.high)
    return -(torch.minimum(ratio * weight, clipped * weight) + self.imitated[rows] * logp).sum()


def with_gradient_through_the_ratio(self, policy, rows):
    logp = self.logp(policy, rows)
    ratio = (logp - self.old[rows, : logp.shape[1]]).exp().clamp(1 - self.config.low, 1 + self.config.high)
    return -((ratio * self.weight[rows] + self.imitated[rows]) * logp).sum()


def one_token(loss_of) -> float:
    """The gradient of log π(y) at a token whose ratio is far beyond the clip, and which A wants likelier still."""
    old = markov(0)
    loss = make_loss(old, CISPO, [[(torch.tensor([1]), torch.tensor([2]))], [(torch.tensor([1]), torch.tensor([0]))]],
                     torch.tensor([[1.0, 0.0]], dtype=torch.float64))  # fmt: skip
    policy = markov(0)
    with torch.no_grad():
        policy.logits[2, 2] += 3.0
    policy.requires_grad_(True)
    loss_of(loss, policy, torch.tensor([0])).backward()
    return float(policy.logits.grad[2, 2])


def assert_clipped_tokens_learn(gradient, measured=lambda *_: None):
    measured("|gradient| of a clipped token", abs(gradient), 0)
    assert gradient < -1e-3


@pytest.mark.claim("D19")
def test_clipped_tokens_learn(measured):
    assert_clipped_tokens_learn(one_token(CISPOLoss.__call__), measured)


@pytest.mark.claim("D19")
def test_ppos_clipped_tokens_do_not():
    assert one_token(ppo) == 0.0
    with pytest.raises(AssertionError):
        assert_clipped_tokens_learn(one_token(ppo))


def test_the_loss_is_a_sum_over_rows():
    loss, policy = make_loss(markov(0), replace(CISPO, alpha=0.1)), markov(2)
    parts = sum(float(loss(policy, torch.tensor(rows))) for rows in ([0, 5], [4], [1, 2, 3]))
    assert float(loss(policy, torch.arange(6))) == pytest.approx(parts, abs=1e-12)


def test_nothing_is_learned_from_equal_rewards_but_by_imitation():
    assert not gradient_of(make_loss(markov(0), CISPO, rewards=torch.ones(2, 3, dtype=torch.float64))).any()
    wrong = torch.zeros(2, 3, dtype=torch.float64)
    assert not gradient_of(make_loss(markov(0), replace(CISPO, alpha=1.0), rewards=wrong)).any()


# ---------------------------------------------------------------------------------------------------------------------
# Rollouts


def right_is(i, text):
    return text == str(RIGHT)


def play_one(kind, carries="answer", speaker=SPEAKER):
    config = OperatorConfig(prompts=4, group=3, carries=carries, pdr=TINY)
    return play(kind, speaker, ["x", "y", "z"], [2, 0], right_is, config, 7, {})


def test_a_trace_is_an_authors_draft():
    half = play_one("trace", "all")
    assert [[prompt for prompt, _ in own] for own in half.texts] == [[[SOLVE]]] * 6 and half.rewards.shape == (2, 3)
    assert [[float(int(y[0]) == RIGHT) for _, y in own] for own in half.texts] == half.rewards.view(-1, 1).tolist()
    assert half.cost.decoded_tokens == half.cost.calls == 6


def test_an_operators_rollout_is_one_round_and_its_last_call_is_what_counts():
    every, last = play_one("operator", "all"), play_one("operator")
    assert torch.equal(every.rewards, last.rewards) and every.cost == last.cost and every.cost.calls == 6 * (M + 2)
    for own, (answer,), reward in zip(every.texts, last.texts, last.rewards.flatten()):
        *drafts, report, refined = own
        assert [prompt for prompt, _ in drafts] == [[SOLVE]] * M
        assert report[0] == [DISTILL, *(int(y[0]) for _, y in drafts), NONE]  # what stood there was read
        assert refined[0] == [int(report[1][0])] and torch.equal(refined[1], answer[1])
        assert float(int(answer[1][0]) == RIGHT) == reward
    assert len({tuple(int(y[0]) for _, y in own[:-2]) for own in every.texts}) > 1  # drafts of their own


def test_rollouts_are_graded_as_answers_to_their_own_questions():
    asked = []
    config = OperatorConfig(prompts=4, group=3, pdr=TINY)
    play("operator", SPEAKER, ["x", "y", "z"], [2, 0], lambda i, text: bool(asked.append(i)), config, 7, {})
    assert asked == [2, 2, 2, 0, 0, 0]


def carrying(kind, carries):
    """Which rows of the table get gradient: the last tokens of the prompts of what carries it."""
    speaker = replace(SPEAKER, model=table())
    half = play_one(kind, carries, speaker)
    config = OperatorConfig(carries=carries, alpha=1.0, pdr=TINY)
    loss = CISPOLoss(Trainer(speaker.model, FIT, 1), [half], config)
    speaker.model.requires_grad_(True)
    loss(speaker.model, torch.arange(len(loss))).backward()
    moved = {state for state in range(len(speaker.model.logits)) if speaker.model.logits.grad[state].any()}
    wanted = set()
    for own in half.texts:
        for prompt, _ in own:
            state = torch.tensor([prompt])
            out = speaker.model(state)  # the row that an empty response reads, found by its gradient
            (g,) = torch.autograd.grad(out[0, -1, 0], speaker.model.logits)
            wanted.add(int(g.any(-1).nonzero()))
    return moved, wanted


def assert_only_responses(moved, wanted, measured=lambda *_: None):
    measured("states with gradient that no response begins from", len(moved - wanted), 0)
    assert moved and moved <= wanted


@pytest.mark.claim("D19")
@pytest.mark.parametrize(("kind", "carries"), [("trace", "answer"), ("operator", "answer"), ("operator", "all")])
def test_only_responses_carry_gradient(kind, carries, measured):
    """Prompts, drafts and reports as a prompt shows them get none: no state but those that a response begins from."""
    assert_only_responses(*carrying(kind, carries), measured)


@pytest.mark.claim("D19")
def test_gradient_for_drafts_is_caught():
    (moved, _), (_, wanted) = carrying("operator", "all"), carrying("operator", "answer")
    with pytest.raises(AssertionError):
        assert_only_responses(moved, wanted)


@pytest.mark.parametrize("carries", ["answer", "all"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path, carries):
    config = OperatorConfig(rounds=5, prompts=4, group=4, carries=carries, pdr=TINY, passes=2, seed=3)
    fit = replace(FIT, batch=8, micro=3)

    def run(state=None, after=None):
        speaker = replace(SPEAKER, model=table())
        return operator_rl(speaker, ["x", "y", "z"], right_is, config, fit, state=state, after=after)

    def kill(trainer):
        if len(trainer.log["tokens"]) == 3:
            raise Killed

    whole = run()
    assert len(whole.log["loss"]) == 5 * 4 and {len(whole.log[f"{kind} reward"]) for kind in KINDS} == {5}
    assert sum(whole.log["tokens"]) == whole.cost.decoded_tokens == 5 * 8 * (1 + M + 2)
    with pytest.raises(Killed):
        run(tmp_path / "state.pt", kill)
    resumed = run(tmp_path / "state.pt")
    assert resumed.log == whole.log and resumed.cost == whole.cost
    assert torch.equal(resumed.model.logits, whole.model.logits)
    with pytest.raises(ValueError, match="belongs to another run"):
        config = replace(config, high=0.5)
        run(tmp_path / "state.pt")


@pytest.mark.parametrize(("kinds", "state"), [(("trace",), SOLVE), (("operator",), COUNT + 1)])
def test_it_learns_what_it_is_trained_as(kinds, state):
    """An author becomes right more often by traces; a refiner, given a report of one right draft, by rollouts."""
    speaker = replace(SPEAKER, model=table(g=(0.2, 0.5, 0.5, 0.5)))

    def chance():
        return float(speaker.model(torch.tensor([[state]])).detach().softmax(-1)[0, -1, RIGHT])

    before = chance()
    config = OperatorConfig(rounds=15, prompts=2, group=16, kinds=kinds, pdr=TINY)
    operator_rl(speaker, ["x", "y"], right_is, config, replace(FIT, batch=32, rate=0.1))
    assert chance() > before + 0.2


def test_a_round_on_the_relay_task():
    speaker, problems = TextModel.from_pretrained(CHECKPOINT), relay.make_problems(8)
    config = OperatorConfig(
        rounds=1, prompts=8, group=4, carries="all", pdr=PDRConfig((4,), workspace=8, max_new_tokens=20)
    )
    out = operator_rl(
        speaker, [problem.question for problem in problems],
        lambda i, text: relay.answer(text) == problems[i].answer, config, replace(FIT, rate=1e-4),
    )  # fmt: skip
    assert len(out.log["loss"]) == 2 and out.log["operator reward"][0] > out.log["trace reward"][0] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kinds": ()}, "kinds are"),
        ({"kinds": ("draft",)}, "kinds are"),
        ({"carries": "some"}, "carries is 'some'"),
        ({"group": 1}, "group is 1; it must be at least 2"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"pdr": PDRConfig(temperature=0.7)}, "temperature is 0.7; it must be 1"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        OperatorConfig(**change)


def test_what_cannot_be_shared_out_evenly():
    with pytest.raises(ValueError, match="prompts is 3; it must be a multiple of 2"):
        operator_rl(SPEAKER, ["x"], right_is, OperatorConfig(prompts=3, pdr=TINY), FIT)
    with pytest.raises(ValueError, match="batch is 5; it must be a multiple of 2"):
        operator_rl(SPEAKER, ["x"], right_is, OperatorConfig(prompts=2, pdr=TINY), replace(FIT, batch=5))


# ---------------------------------------------------------------------------------------------------------------------
# What was seen with the toy model


@pytest.fixture
def seen():
    return result_of("refinement_rl")


def rate(arm, way, when="after"):
    return arm[when][way]["all"][0]


def assert_learns(arm, measured=lambda *_: None, when="after"):
    """10 points more alone, and 10 as an operator."""
    for way in ("single pass", "(4, 1)"):
        gain = rate(arm, way, when) - rate(arm, way, "before")
        measured(f"gain, {way}", gain, 0.1)
        assert gain >= 0.1


@pytest.mark.claim("D19")
@pytest.mark.parametrize("arm", ["operator, refiner", "operator, all calls"])
def test_operator_rl_learns(seen, arm, measured):
    assert_learns(seen["arms"][arm], measured)


@pytest.mark.claim("D19")
def test_without_training_nothing_is_learned(seen):
    with pytest.raises(AssertionError):
        assert_learns(seen["arms"]["operator, refiner"], when="before")


def assert_ordinary_rl_is_not_beaten(minus, measured=lambda *_: None):
    """The interval of the lead over ordinary RL under (4, 1) ends below the 2 points that were expected of it."""
    high = minus["(4, 1)"]["all"][2]
    measured("lead over ordinary RL under (4, 1), upper end of the interval", high, 0.02)
    assert high < 0.02


@pytest.mark.claim("D19")
@pytest.mark.parametrize("arm", ["operator, refiner", "operator, all calls"])
def test_ordinary_rl_is_not_beaten(seen, arm, measured):
    assert_ordinary_rl_is_not_beaten(seen["minus ordinary"][arm], measured)
    assert seen["arms"][arm]["tokens"][-1] > 2 * seen["arms"]["ordinary"]["tokens"][-1]


@pytest.mark.claim("D19")
def test_ordinary_rl_that_does_not_learn_would_be(seen):
    """The same comparison with the model before training in place of ordinary RL."""
    for name in seen["minus ordinary"]:
        lead = rate(seen["arms"][name], "(4, 1)") - rate(seen["arms"]["ordinary"], "(4, 1)", "before")
        with pytest.raises(AssertionError):
            assert_ordinary_rl_is_not_beaten({"(4, 1)": {"all": [lead, lead, lead]}})


def test_both_halves_are_trained_on_in_an_order_of_the_round(monkeypatch):
    seen, update = [], Trainer.update

    def listen(self, loss, rows):
        seen.append(rows.tolist())
        return update(self, loss, rows)

    monkeypatch.setattr(Trainer, "update", listen)
    config = OperatorConfig(rounds=2, prompts=2, group=8, pdr=PDRConfig((2,), "summary", 1, 12, 12))
    speaker = TextModel.from_pretrained(CHECKPOINT)
    operator_rl(speaker, ["1 + 1 + 1", "2 + 2 + 3"], lambda i, text: len(text) % 2 == 0, config, replace(FIT, batch=8))
    first, second = ([row for rows in seen[at : at + 2] for row in rows] for at in (0, 2))
    assert sorted(first) == sorted(second) == [*range(16)] and first != second
    assert all(sum(row >= 8 for row in rows) == 4 for rows in seen)  # as many of each kind
