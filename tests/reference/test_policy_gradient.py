"""The policy gradient of J_β: its expected step is ∇J_β, enumerated from the page; the batched step is the page's."""

import copy
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch

import reference.policy_gradient as module
from reference.grpo import advantages
from reference.interface import Drawn
from reference.policy_gradient import PolicyGradientConfig, leave_one_out, policy_gradient, policy_gradient_page
from reference.randomness import child_seed
from reference.training.loop import FitConfig, Trainer, response_logp
from reference.training.lora import LoRAConfig, add_lora
from tests.reference.test_sft_sharpening import small_transformer
from theory.exact_law import expectation
from theory.power import objective, power_law
from toy.tabular import Memo, TabularLM, enumerate_law

STOP, HORIZON, PROMPT, BETA = [0], 2, [1], 0.5
BASE, POLICY = (TabularLM.random(3, 3, seed=seed, concentration=0.7, dtype=torch.float64) for seed in (3, 8))
FIT = FitConfig(batch=8, rate=0.05, schedule="constant", weight_decay=0.0, clip=1.0, save_every=1)


def derivative(model: TabularLM, text: tuple[int, ...]) -> np.ndarray:
    """∇log π(text), by the logits of all states."""
    own = copy.deepcopy(model).requires_grad_(True)
    response_logp(own, [torch.tensor(PROMPT)], [torch.tensor(text)])[0].sum().backward()
    return own.logits.grad.flatten().numpy()


TEXTS, LOGQ, _ = enumerate_law(POLICY, PROMPT, HORIZON, STOP)
SLOPES = {text: derivative(POLICY, text) for text in TEXTS}
LOGP = enumerate_law(BASE, PROMPT, HORIZON, STOP)[1]


def exact_gradient(beta: float = BETA) -> np.ndarray:
    """∇J_β = Σ_y ∇π(y) (log p(y) − β log π(y)/p(y) − β)."""
    weights = np.exp(LOGQ) * (LOGP - beta * (LOGQ - LOGP) - beta)
    return np.array([SLOPES[text] for text in TEXTS]).T @ weights


def expected_step(k: int, advantage=None, beta: float = BETA) -> np.ndarray:
    """E[1/k Σ_i A_i ∇log π(y_i)] over all groups that the page can draw."""
    config = PolicyGradientConfig(beta=beta, group=k, max_new_tokens=HORIZON)
    base, policy = Memo(BASE), Memo(POLICY)

    def step(chance):
        drawn = policy_gradient_page(policy, base, PROMPT, config, stop_ids=STOP, chance=chance)
        return sum(A * SLOPES[text] for text, A in drawn) / k

    kept = module.leave_one_out
    module.leave_one_out = advantage or kept
    try:
        return expectation(step)
    finally:
        module.leave_one_out = kept


def test_the_slope_is_that_of_the_objective():
    """By differences of J_β, so that nothing here is the code's own word for it."""
    found, h = exact_gradient(), 1e-5

    def J(logits):
        logq = enumerate_law(TabularLM(logits, POLICY.transition, POLICY.max_length), PROMPT, HORIZON, STOP)[1]
        return np.exp(logq) @ (LOGP - BETA * (logq - LOGP))

    for i in range(POLICY.logits.numel()):
        shift = torch.zeros(POLICY.logits.numel(), dtype=torch.float64)
        shift[i] = h
        ahead, behind = (J(POLICY.logits.detach() + sign * shift.view_as(POLICY.logits)) for sign in (1, -1))
        assert abs((ahead - behind) / (2 * h) - found[i]) < 1e-8
    assert abs(objective(power_law(LOGP, 1 + 1 / BETA), LOGP, BETA) - BETA * np.log(np.exp(3 * LOGP).sum())) < 1e-12


def assert_gradient(step):
    off = np.abs(step - exact_gradient()).max()
    assert off < 1e-12
    return off


@pytest.mark.claim("T36")
@pytest.mark.parametrize("k", [2, 3])
def test_the_expected_step_is_the_gradient(k, measured):
    measured(f"E step − ∇J, groups of {k}", assert_gradient(expected_step(k)), 1e-12)
    assert np.abs(exact_gradient()).max() > 0.05


@pytest.mark.claim("T36")
@pytest.mark.parametrize("k", [2, 3])
def test_other_baselines_are_no_gradient(k, measured):
    """The group's own mean shrinks it by (k−1)/k; divided by the standard deviation it points elsewhere."""
    right = exact_gradient()
    shrunk = expected_step(k, lambda r: r - r.mean(-1, keepdim=True))
    assert np.abs(shrunk - (k - 1) / k * right).max() < 1e-12
    scaled = expected_step(k, advantages)
    cosine = float(scaled @ right / np.linalg.norm(scaled) / np.linalg.norm(right))
    measured(f"cosine of GRPO's expected step and ∇J, groups of {k}", cosine, 0.999)
    assert cosine < 0.999


@pytest.mark.claim("T36")
def test_gradient_mutants():
    """Another weight of the KL is seen, and a baseline that depends on the response itself."""
    for wrong in (expected_step(2, beta=2 * BETA), expected_step(2, lambda r: r - r.amax(-1, keepdim=True))):
        with pytest.raises(AssertionError):
            assert_gradient(wrong)


class Watched(Trainer):
    """Keeps what each step was made of."""

    steps: ClassVar[list] = []
    prompts: ClassVar[list] = []

    def update(self, loss, rows):
        Watched.prompts.append([tuple(prompt.tolist()) for prompt in loss.prompts])
        Watched.steps.append((loss.responses, loss.advantage.clone(), rows.tolist()))
        return super().update(loss, rows)


def climbed(model, config, fit=FIT, prompts=((1,), (2, 1)), **settings):
    Watched.steps, Watched.prompts = [], []
    return policy_gradient(model, list(prompts), config, fit, stop_ids=STOP, trainer=Watched, **settings)


def test_the_batched_step_is_the_pages():
    config = PolicyGradientConfig(beta=0.7, rounds=1, group=4, max_new_tokens=2, seed=5)
    climbed(copy.deepcopy(POLICY), config, base=BASE)
    (responses, advantage, rows), seed = Watched.steps[0], child_seed(5, "round", 0)
    assert rows == list(range(8))
    pages = []
    for index in ([0, 1], [1, 0]):  # the prompts of a round come in an order of its own
        found = [pair for i, p in enumerate(index) for pair in policy_gradient_page(
            POLICY, BASE, ((1,), (2, 1))[p], config, stop_ids=STOP, chance=Drawn(seed, i))]  # fmt: skip
        pages.append(found)
    tokens = [tuple(each.tolist()) for each in responses]
    page = next(page for page in pages if [text for text, _ in page] == tokens)
    torch.testing.assert_close(advantage, torch.tensor([A for _, A in page], dtype=torch.float64))
    assert advantage.abs().max() > 0.1


def test_it_climbs_to_the_power_distribution():
    """From the base, by the page's own estimate, to where J_β is within 2 % of its greatest."""
    policy = copy.deepcopy(BASE)
    config = PolicyGradientConfig(beta=BETA, rounds=150, group=16, max_new_tokens=HORIZON)
    out = climbed(policy, config, replace(FIT, batch=64, rate=0.1), prompts=[PROMPT])
    logq = enumerate_law(out.model, PROMPT, HORIZON, STOP)[1]
    best, base = (objective(np.exp(law), LOGP, BETA) for law in (np.log(power_law(LOGP, 1 + 1 / BETA)), LOGP))
    assert objective(np.exp(logq), LOGP, BETA) > best - 0.02 * (best - base)
    assert out.log["reward"][-1] > out.log["reward"][0] and out.log["kl"][0] == 0 < out.log["kl"][-1]
    assert out.cost.decoded_tokens > 150 * 64


def test_a_graders_reward_takes_the_place_of_log_p():
    config = PolicyGradientConfig(reward="grader", beta=0.5, rounds=1, group=2, max_new_tokens=2)
    one = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    climbed(copy.deepcopy(POLICY), config, replace(FIT, batch=4), reward=lambda index, samples: one)
    assert Watched.steps[0][1].tolist() == [1.0, -1.0, 0.0, 0.0]  # π is p as yet


def test_a_killed_run_goes_on_exactly(tmp_path):
    config = PolicyGradientConfig(rounds=4, group=4, max_new_tokens=3)
    whole = climbed(small_transformer(1).requires_grad_(True), config).model

    def stop(run):
        if run.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        climbed(small_transformer(1).requires_grad_(True), config, state=tmp_path / "a.pt", after=stop)
    second = climbed(small_transformer(1).requires_grad_(True), config, state=tmp_path / "a.pt")
    assert len(Watched.steps) == 3  # what was not saved is done again
    for mine, theirs in zip(whole.parameters(), second.model.parameters()):
        assert torch.equal(mine, theirs)


def test_the_base_of_adapters_is_what_lies_under_them():
    model = add_lora(small_transformer(2), LoRAConfig())
    out = climbed(model, PolicyGradientConfig(rounds=2, group=4, max_new_tokens=3))
    assert out.log["kl"][0] == 0 != out.log["kl"][1]


@pytest.mark.parametrize(
    ("fit", "config", "reward", "message"),
    [
        (replace(FIT, batch=6), {}, None, "batch is 6: each step takes whole groups, so give a multiple of 4"),
        (FIT, {"reward": "grader"}, None, "reward is 'grader'; a reward function goes with 'grader'"),
        (FIT, {}, lambda *_: torch.zeros(2, 4), "reward is 'self'; a reward function goes with 'grader'"),
        (FIT, {"reward": "grader"}, lambda *_: torch.zeros(3), r"the rewards are \[3\]; they must be finite"),
        (FIT, {"reward": "grader"}, lambda *_: torch.full((2, 4), np.nan), "they must be finite numbers"),
    ],
)
def test_what_is_refused(fit, config, reward, message):
    with pytest.raises(ValueError, match=message):
        climbed(copy.deepcopy(POLICY), PolicyGradientConfig(group=4, max_new_tokens=2, **config), fit, reward=reward)


def test_parts_of_a_step_are_the_whole():
    """`FitConfig.micro`: rows of one step, some at a time."""
    config, kept = PolicyGradientConfig(rounds=2, group=4, max_new_tokens=2), []
    for micro in (None, 3):
        kept.append(climbed(copy.deepcopy(POLICY), config, replace(FIT, micro=micro), base=BASE).model.logits)
    torch.testing.assert_close(*kept)
    assert not torch.equal(kept[0], POLICY.logits)


def test_each_round_has_prompts_and_numbers_of_its_own():
    """A policy that hardly moves: what is drawn differs, and both prompts have their turn."""
    still = replace(FIT, batch=8, rate=1e-12)
    climbed(copy.deepcopy(POLICY), PolicyGradientConfig(rounds=3, group=8, max_new_tokens=2), still, prompts=[PROMPT])
    drawn = [[tuple(each.tolist()) for each in responses] for responses, _, _ in Watched.steps]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]
    climbed(copy.deepcopy(POLICY), PolicyGradientConfig(rounds=2, group=8, max_new_tokens=2), still)
    assert {*Watched.prompts[0]} != {*Watched.prompts[1]} and len({*Watched.prompts[0], *Watched.prompts[1]}) == 2


def test_leave_one_out_by_hand():
    assert leave_one_out(torch.tensor([[3.0, 1.0, 2.0]])).tolist() == [[1.5, -1.5, 0.0]]
