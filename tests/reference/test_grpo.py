"""GRPO: its loss against derivatives by hand, its advantages, what one step does to a bandit, and exact resuming."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import reference.grpo as grpo_module
from reference.grpo import GRPOConfig, GRPOLoss, advantages, grpo, k3
from reference.interface import Samples
from reference.text.text_model import TextModel
from reference.training.loop import FitConfig, Trainer
from reference.training.lora import LoRAConfig, add_lora
from reference.transformer import Config, Transformer
from toy import relay
from toy.abilities import rows_of
from toy.pretrain import CHECKPOINT
from toy.tabular import TabularLM

FIT = FitConfig(batch=16, rate=0.05, schedule="constant", weight_decay=0.0, clip=1.0, save_every=2)


class Killed(Exception):
    pass


def markov(seed: int, vocab: int = 4) -> TabularLM:
    table = np.random.default_rng(seed).dirichlet(np.full(vocab, 2.0), size=vocab)
    return TabularLM.markov(table, torch.float64)


def make_samples(responses: list[list[list[int]]]) -> Samples:
    out = Samples.empty(
        len(responses), len(responses[0]), max(len(y) for row in responses for y in row), torch.device("cpu")
    )
    for i, row in enumerate(responses):
        for j, y in enumerate(row):
            out.tokens[i, j, : len(y)], out.lengths[i, j] = torch.tensor(y), len(y)
    return out


PROMPTS = [torch.tensor([1]), torch.tensor([2, 3])]
RESPONSES = [[[1, 2, 0], [3, 0], [2, 2, 2, 1]], [[0], [1, 1, 0], [3, 2, 0]]]
REWARDS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]], dtype=torch.float64)


def by_hand(policy, old, base, config) -> tuple[np.ndarray, int]:
    """∂loss/∂logits of a Markov chain, token by token; and how many tokens the clip has stopped.

    d/dz of log π(y|s) is e_y − π(·|s) in the row of s; the clipped ratio has gradient ρ A unless A > 0 and
    ρ > 1 + ε, or A < 0 and ρ < 1 − ε; d k3/d log π = 1 − π_base/π.
    """
    p, q, b = (model.logits.detach().softmax(-1).numpy() for model in (policy, old, base))
    gradient, stopped = np.zeros_like(p), 0
    for prompt, row, rewards in zip(PROMPTS, RESPONSES, REWARDS.numpy()):
        for y, A in zip(row, (rewards - rewards.mean()) / (rewards.std() + 1e-6)):
            state = int(prompt[-1]) + 1
            for token in y:
                ratio = p[state, token] / q[state, token]
                clipped = ratio > 1 + config.clip if A > 0 else ratio < 1 - config.clip
                stopped += clipped
                slope = (0.0 if clipped else ratio * A) - config.beta * (1 - b[state, token] / p[state, token])
                gradient[state] -= slope / len(y) * (np.eye(4)[token] - p[state])
                state = token + 1
    return gradient, stopped


@pytest.mark.parametrize(("beta", "clip"), [(0.0, 0.1), (0.3, 0.1), (0.0, 0.2), (0.0, 0.35), (0.3, 0.5)])
def test_gradient_is_the_one_derived_by_hand(beta, clip):
    config = GRPOConfig(clip=clip, beta=beta)
    old, base, policy = markov(0), markov(1), markov(2)
    loss = GRPOLoss(Trainer(old, FIT, 1), base, PROMPTS, make_samples(RESPONSES), advantages(REWARDS), config)
    policy.requires_grad_(True)
    loss(policy, torch.arange(6)).backward()
    expected, stopped = by_hand(policy, old, base, config)
    assert stopped >= 2  # the clip is at work
    np.testing.assert_allclose(policy.logits.grad.numpy(), expected, atol=1e-12)
    unclipped, _ = by_hand(policy, old, base, replace(config, clip=100.0))
    with pytest.raises(AssertionError):  # and the comparison sees it
        np.testing.assert_allclose(policy.logits.grad.numpy(), unclipped, atol=1e-3)


def test_loss_is_a_sum_over_rows():
    run, given = Trainer(markov(0), FIT, 1), (PROMPTS, make_samples(RESPONSES), advantages(REWARDS), GRPOConfig())
    loss = GRPOLoss(run, markov(1), *given)
    policy = markov(2)
    parts = sum(loss(policy, torch.tensor(rows)) for rows in ([0, 5], [4], [1, 2, 3]))
    assert len(loss) == 6 and loss(policy, torch.arange(6)).item() == pytest.approx(float(parts), abs=1e-12)
    at_home = GRPOLoss(run, run.model, *given)
    assert at_home.k3 == 0
    assert at_home(run.model, torch.arange(6)).item() == pytest.approx(0, abs=1e-6)  # ρ = 1, Σ A = 0


def test_advantages():
    assert not advantages(torch.tensor([[1.0, 1.0], [0.0, 0.0]])).any()
    given = advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64))
    root = 3**0.5
    assert given[0].tolist() == pytest.approx([root, -1 / root, -1 / root, -1 / root], abs=1e-5)


def test_k3_estimates_one_divergence_and_its_gradient_is_of_the_other():
    """E k3 = KL(π‖base) and E ∇k3 = ∇ KL(base‖π), which is not ∇ KL(π‖base): summed over the vocabulary, float64."""
    logits = torch.tensor([0.3, -1.0, 0.5, 1.2], dtype=torch.float64, requires_grad=True)
    base = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    logp = logits.log_softmax(-1)
    p = logp.exp().detach()
    reverse, forward = (logp.exp() * (logp - base)).sum(), (base.exp() * (base - logp)).sum()
    assert (p * k3(logp, base)).sum().item() == pytest.approx(reverse.item(), abs=1e-12)
    assert bool((k3(logp, base) >= 0).all())
    mean, of_reverse, of_forward = (
        torch.autograd.grad(value, logits, retain_graph=True)[0]
        for value in ((p * k3(logp, base)).sum(), reverse, forward)
    )
    torch.testing.assert_close(mean, of_forward, atol=1e-12, rtol=0)
    assert (mean - of_reverse).abs().max() > 0.01


def test_a_round_is_addressed_by_its_number(monkeypatch):
    """Its prompts, its responses, and the order of its steps; the last step of a round takes what is left."""
    seen, orders, shuffle = [], [], grpo_module.batch_rows

    def reward(index, samples):
        seen.append((tuple(index), samples.tokens.tolist()))
        return samples.lengths.double()

    def listen(n, batch, seed, step):
        orders.append((n, batch, seed, step))
        return shuffle(n, batch, seed, step)

    monkeypatch.setattr(grpo_module, "batch_rows", listen)
    config = GRPOConfig(rounds=3, prompts=2, group=3, max_new_tokens=5, beta=0.0)
    out = grpo(markov(3), [[1], [2], [3], [1, 2], [1, 3], [2, 3]], reward, config, replace(FIT, batch=4, rate=1e-9),
               stop_ids=[0])  # fmt: skip
    assert len(out.log["loss"]) == 3 * 2  # 6 responses in steps of 4
    assert sorted(i for index, _ in seen for i in index) == [*range(6)]  # an epoch is every prompt once
    steps = [order for order in orders if order[0] == 6 and order[1] == 4]
    assert len({seed for _, _, seed, _ in steps}) == 3 and [u for *_, u in steps] == [0, 1] * 3
    seen.clear()
    grpo(markov(3), [[1]], reward, replace(config, prompts=1, group=8), replace(FIT, batch=8, rate=1e-9), stop_ids=[0])
    assert len({repr(tokens) for _, tokens in seen}) == 3


def third_arm(index, samples):
    return (samples.tokens[..., 0] == 3).double()


def test_one_step_raises_the_expected_reward():
    """A bandit of four arms: the probability of the rewarded one is the expected reward, exactly. Of several seeds."""
    for seed in range(5):
        bandit = TabularLM.iid([0.4, 0.3, 0.2, 0.1], torch.float64)
        config = GRPOConfig(rounds=1, prompts=1, group=64, max_new_tokens=1, beta=0.0, seed=seed)
        out = grpo(bandit, [[0]], third_arm, config, replace(FIT, batch=64), stop_ids=[])
        assert out.model is bandit and out.log["reward"][0] > 0  # it was seen, or there would be nothing to learn
        law = bandit.logits.softmax(-1)[0]
        assert law[3] > 0.1 and (law[:3] < torch.tensor([0.4, 0.3, 0.2])).all()
        assert out.cost.decoded_tokens == 64


def test_no_step_without_a_difference_of_rewards():
    bandit = TabularLM.iid([0.4, 0.3, 0.2, 0.1], torch.float64)
    before = bandit.logits.clone()
    config = GRPOConfig(rounds=2, prompts=2, group=8, max_new_tokens=1, beta=0.0)
    grpo(bandit, [[0], [1]], lambda index, samples: torch.ones(2, 8), config, FIT, stop_ids=[])
    assert torch.equal(bandit.logits, before)


def test_learns_and_the_kl_holds_it_back():
    def expected_reward(beta):
        bandit = TabularLM.iid([0.4, 0.3, 0.2, 0.1], torch.float64)
        config = GRPOConfig(rounds=40, prompts=1, group=32, max_new_tokens=1, beta=beta)
        grpo(bandit, [[0]], third_arm, config, replace(FIT, batch=32, rate=0.1), stop_ids=[])
        return bandit.logits.softmax(-1)[0, 3].item()

    free, held = expected_reward(0.0), expected_reward(2.0)
    assert free > 0.9 and 0.1 < held < free - 0.1


# ---------------------------------------------------------------------------------------------------------------------
# On transformers


def tiny() -> Transformer:
    torch.manual_seed(0)
    return Transformer(Config.from_dict({
        "model_type": "qwen2", "vocab_size": 6, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 12,
    }))  # fmt: skip


def count_threes(index, samples):
    inside = torch.arange(samples.tokens.shape[-1]) < samples.lengths[..., None]
    return ((samples.tokens == 3) & inside).sum(-1).double()


SMALL = GRPOConfig(rounds=5, prompts=2, group=4, passes=2, max_new_tokens=4, seed=3)
SMALL_FIT = replace(FIT, batch=8, micro=3, rate=1e-2)


@pytest.mark.parametrize("lora", [False, True])
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path, lora):
    def run(state=None, after=None):
        model = add_lora(tiny(), LoRAConfig(rank=2)) if lora else tiny()
        prompts = [[1], [2, 4], [5]]
        return grpo(model, prompts, count_threes, SMALL, SMALL_FIT, stop_ids=[0], state=state, after=after)

    def kill(trainer):
        if len(trainer.log["reward"]) == 3:
            raise Killed

    whole = run()
    assert len(whole.log["loss"]) == 10 and len(whole.log["reward"]) == len(whole.log["k3"]) == 5
    assert whole.log["k3"][0] == 0 < whole.log["k3"][1]  # to the base, which it has left
    with pytest.raises(Killed):
        run(tmp_path / "state.pt", kill)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 4
    resumed = run(tmp_path / "state.pt")
    assert resumed.log == whole.log and resumed.cost == whole.cost
    for a, b in zip(whole.model.parameters(), resumed.model.parameters()):
        assert torch.equal(a, b)


def test_base_may_be_given():
    """The policy as it was, or without its adapters, is what is taken where none is given."""
    for model in (tiny(), add_lora(tiny(), LoRAConfig(rank=2))):
        other = copy.deepcopy(model)
        given, taken = (
            grpo(policy, [[1]], count_threes, replace(SMALL, prompts=1), SMALL_FIT, stop_ids=[0], base=base).log
            for policy, base in ((model, tiny()), (other, None))
        )
        assert given["reward"] == taken["reward"]
        assert given["k3"] == pytest.approx(taken["k3"], abs=1e-6) and given["k3"][-1] > 0


def test_a_round_on_the_relay_task():
    """The task's own grader on the shipped model: one round runs, and its rewards are the share of right answers."""
    world, speaker = relay.World(), TextModel.from_pretrained(CHECKPOINT)
    problems = relay.make_problems(4)
    prompts = [speaker.prompt("author", question=problem.question) for problem in problems]
    seen = []

    def grade(index, samples):
        answers = relay.answers_of(world, rows_of(samples).reshape(-1, samples.tokens.shape[-1])).reshape(
            len(index), -1
        )
        right = answers.astype(str) == np.array([[problems[i].answer] for i in index])
        seen.append(right.mean())
        return torch.from_numpy(right)

    config = GRPOConfig(rounds=1, prompts=4, group=4, max_new_tokens=world.draft_length)
    out = grpo(speaker.model, prompts, grade, config, replace(FIT, rate=1e-4), stop_ids=speaker.stop_ids)
    assert out.log["reward"] == seen and 0 < seen[0] < 1


@pytest.mark.parametrize("change", [{"group": 1}, {"rounds": 0}, {"prompts": 0}, {"passes": 0}, {"beta": -1.0}])
def test_bad_settings(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} is .* must be at least"):
        GRPOConfig(**change)
