"""Linear softmax worlds are what they say: their laws, coverage and margin by enumeration (claim T21)."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from reference.sampling import generate, score
from theory import exploration as ex
from theory.best_of_n import c_cov
from toy.linear_softmax import LinearSoftmax, greedy_packing, needle_class, per_response
from toy.tabular import enumerate_law

Measured = Callable[..., None]


def ignore(*_: object) -> None:
    """What mutants measure is of no interest."""


def corners(d: int, star: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The records of the hypercube as signs [2^d, d], and their log-probabilities, by enumeration of the model."""
    records, logp, _ = enumerate_law(LinearSoftmax.hypercube(star), [0], d, [])
    return 2 * np.array(records) - 1, logp


def random_corner(d: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(d).choice([-1.0, 1.0], d) / math.sqrt(d))


def assert_hypercube(coverage: Callable, margin: Callable, measured: Measured = ignore) -> None:
    """C_cov, margin and Theorem J.3's norm condition, of the enumerated law at θ = y*."""
    worst, growth, norms = 0.0, math.inf, 0.0
    for d in (1, 2, 4, 6, 8, 10):
        star = random_corner(d)
        signs, logp = corners(d, star)
        scores = signs @ star.numpy() / math.sqrt(d)
        np.testing.assert_allclose(logp, scores - np.log(np.exp(scores).sum()), atol=1e-12)  # exp⟨φ, θ⟩ indeed
        assert (signs[logp.argmax()] == np.sign(star.numpy())).all()
        exact, second = c_cov([1.0], [np.exp(logp)]), np.sort(logp)[-2]
        worst = max(worst, abs(coverage(d) / exact - 1), abs(margin(d) / math.expm1(logp.max() - second) - 1))
        growth = min(growth, exact / (2**d / math.e))
        size = math.log(2 * 2**d / 0.25)
        beta, ball = margin(d) / (2 * size), 3 * size / margin(d)
        if margin(d) <= 1:  # as the theorem asks; from d = 3 on
            norms = max(norms, (1 + 1 / beta) / ball)  # ‖θ*‖ = 1
    assert worst <= 1e-10 and growth >= 1 >= norms
    measured("(1 + 1/β)‖θ*‖/B", norms, 1.0)
    measured("relative error of C_cov and margin", worst, 1e-10)
    measured("C_cov / (2^d/e)", growth, 1.0)


@pytest.mark.claim("T21")
def test_hypercube(measured: Measured) -> None:
    assert_hypercube(ex.hypercube_coverage, ex.hypercube_margin, measured)


@pytest.mark.claim("T21")
def test_hypercube_mutants() -> None:
    for coverage, margin in (
        (lambda d: 2.0**d / math.e, ex.hypercube_margin),  # the limit for the number
        (lambda d: (1 + math.exp(-2 / math.sqrt(d))) ** d, ex.hypercube_margin),  # bits of logit 2/√d
        (ex.hypercube_coverage, lambda d: math.expm1(1 / d)),  # half the distance between neighbours
    ):
        with pytest.raises(AssertionError):
            assert_hypercube(coverage, margin)


@pytest.mark.claim("T21")
def test_best_of_n_on_the_hypercube_of_64_bits(measured: Measured) -> None:
    """By closed form, where no enumeration reaches: the number of draws for ¾ is C_cov log 4."""
    model = LinearSoftmax.hypercube(star := random_corner(64))
    (logp,) = score(model, [[0]], [(star > 0).long()])
    assert float(logp.sum()) == pytest.approx(-math.log(ex.hypercube_coverage(64)), abs=1e-4)
    assert ex.hypercube_coverage(64) > 2**64 / math.e > 6e18
    ratio = ex.draws_for(0.75, ex.hypercube_coverage(64)) / ex.hypercube_coverage(64)
    assert ratio == pytest.approx(math.log(4), rel=1e-9)
    measured("draws for ¾ over C_cov, d = 64", ratio, math.log(4))


def test_prompts_share_theta_through_their_signs():
    theta, signs = torch.randn(4, dtype=torch.float64), torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [-1, -1, 1, 1]])
    model = LinearSoftmax.hypercube(theta, signs)
    for x in range(3):
        alone = LinearSoftmax.hypercube(signs[x] * theta)
        records, logp, _ = enumerate_law(model, [x], 4, [])
        assert records == list(itertools.product((0, 1), repeat=4))
        np.testing.assert_allclose(logp, enumerate_law(alone, [0], 4, [])[1], atol=1e-12)


def test_the_ball_and_policies_of_one_world():
    model = LinearSoftmax.packing(greedy_packing(3, 0.8, 200), torch.tensor([1.0, 2.0, 2.0]), radius=1.5)
    assert model.parameter.tolist() == pytest.approx([0.5, 1.0, 1.0])
    other = model.at(torch.tensor([0.3, 0.0, 0.0]))
    assert other.parameter.tolist() == pytest.approx([0.3, 0, 0]) and model.theta.tolist() == [1, 2, 2]
    assert other.features is model.features and dict(other.named_parameters()).keys() == {"theta"}
    torch.testing.assert_close(other.law().exp().sum(), torch.tensor(1.0, dtype=torch.float64))


def test_a_sharpened_policy_is_in_the_class():
    """π_θ^α = π_{αθ}: on a packing, and on the hypercube whose bits are independent."""
    star = random_corner(5)
    for model in (LinearSoftmax.packing(greedy_packing(3, 0.8, 200), torch.randn(3)), LinearSoftmax.hypercube(star)):
        horizon = 5 if model.vocab_size == 2 else 1
        logp = enumerate_law(model, [0], horizon, [])[1]
        power = 3.5 * logp - np.logaddexp.reduce(3.5 * logp)
        np.testing.assert_allclose(enumerate_law(model.at(3.5 * model.theta), [0], horizon, [])[1], power, atol=1e-12)


def test_greedy_packing():
    points = greedy_packing(4, 0.25, 400, seed=1)
    distance = torch.cdist(points, points) + 9 * torch.eye(len(points))
    assert float(distance.min()) >= 0.25 and len(points) > 100
    torch.testing.assert_close(points.norm(dim=1), torch.ones(len(points), dtype=torch.float64))
    model = LinearSoftmax.packing(points, points[7])
    logp = model.law()
    assert int(logp.argmax()) == 7
    margin = float((logp.max() - logp.sort().values[-2]).exp() - 1)
    assert margin >= math.expm1(0.25**2 / 2)  # e^(‖y−y*‖²/2) − 1, the paper's 0.0317


def test_the_needles_dull_responses_are_one_atom():
    """Against the world with every dull response written out; then at e^200 of them."""
    d, m = 3, 40
    theta = torch.tensor([0.0, -math.log(2), 0.0], dtype=torch.float64)
    atom = LinearSoftmax.needle(d, math.log(m), theta)
    features = torch.cat((torch.zeros(m, d), torch.eye(d), -torch.eye(d)))[None].double()
    whole = LinearSoftmax.atoms(features, torch.zeros(1, m + 2 * d, dtype=torch.float64), theta)
    torch.testing.assert_close(atom.law()[1:], whole.law()[m:])
    torch.testing.assert_close(atom.law()[0], whole.law()[:m].logsumexp(0))
    drawn = generate(atom, [[0]], max_new_tokens=1, stop_ids=[], samples_per_prompt=200).samples
    torch.testing.assert_close(per_response(atom)(drawn)[0], whole.law()[drawn.tokens[0, :, 0] - 1 + m * 1].where(
        drawn.tokens[0, :, 0] > 0, whole.law()[0]), atol=1e-5, rtol=0)  # fmt: skip
    far = LinearSoftmax.needle(d, 200.0, theta)
    assert float(far.law()[1 + d + 1]) == pytest.approx(-ex.needle_log_coverage(d, 200.0), abs=1e-12)
    assert ex.needle_log_coverage(3, math.log(m)) == pytest.approx(-float(whole.law().max()), abs=1e-12)


def test_the_needles_class_holds_the_base_and_its_target():
    d, s, beta = 4, 10.0, 0.05
    world = LinearSoftmax.needle(d, s, torch.tensor([0, 0, -math.log(2), 0], dtype=torch.float64))
    policies = needle_class(world, beta)
    assert len(policies) == 4 * d
    base, sharp = policies[d + 2], policies[3 * d + 2]
    torch.testing.assert_close(base.law(), world.law())
    single = world.law() - world.offset[1]  # of one response
    target = (1 + 1 / beta) * single + world.offset[1]
    torch.testing.assert_close(sharp.law(), target - target.logsumexp(0))


def test_several_needle_prompts_share_a_direction():
    world = LinearSoftmax.needle(3, 5.0, math.log(2) * torch.eye(3)[0], prompts=2)
    assert (
        int(world.law(0)[1:].argmax()) == 0 and int(world.law(1)[1:].argmax()) == 2
    )  # e_0 is rotated to another token


def test_the_lower_bound_class():
    model = LinearSoftmax.lower_bound([2, 5], 6)
    assert model.law(0)[:7].exp().tolist() == pytest.approx([1, 0, 0, 0, 0, 0, 0])
    assert model.law(2).exp().tolist() == pytest.approx([0, *[(1 - 1 / 5) / 6] * 4, 2 / 6, (1 - 1 / 5) / 6])
    drawn = generate(model, [[0], [1]], max_new_tokens=1, stop_ids=[], samples_per_prompt=50).samples
    assert drawn.tokens[0].max() == 0 < drawn.tokens[1].min()
