"""What is behind exploration: XPO's regret identity (T17), SEC and its bounds (T22), the elliptic potential (T23) and
coverability (T24). Each claim is one function `assert_...` of the implementation, as in test_best_of_n.py."""

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from reference.rlhf_sharpening import RLHFConfig, xpo
from reference.sft_sharpening import Descend
from theory import exploration as ex
from theory.exploration import World
from toy.linear_softmax import LinearSoftmax, greedy_packing

Measured = Callable[..., None]
SAME = 1e-12  # two float64 computations of one number of order 1


def ignore(*_: object) -> None:
    """What mutants measure is of no interest."""


def log_dirichlet(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return np.log(rng.dirichlet(np.ones(shape[-1]), size=shape[:-1]))


def random_worlds(policies: int = 5) -> Iterator[tuple[World, np.ndarray]]:
    """3 prompts, 5 responses; any rewards or the base's score; β from 0.1 to 3; one response may be impossible."""
    rng = np.random.default_rng(0)
    for seed, beta in itertools.product(range(20), (0.1, 0.5, 3.0)):
        base, laws = log_dirichlet(rng, 3, 5), log_dirichlet(rng, policies, 3, 5)
        if seed % 3 == 0:
            base[0, 0], laws[:, 0, 0] = -np.inf, -np.inf
            base, laws = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (base, laws))
        reward = base if seed % 2 else rng.normal(size=base.shape)
        yield World(rng.dirichlet(np.ones(3)), base, reward, beta), laws


# --- T17: the regret identity ----------------------------------------------------------------------------------------


def assert_regret_identity(identity: Callable, measured: Measured = ignore) -> None:
    """The regret is the sum of the two terms, and, from its definition, β KL(π ‖ π*_β)."""
    worst = 0.0
    for world, policies in random_worlds():
        regret, optimism, error = identity(world, policies)
        with np.errstate(invalid="ignore"):  # 0 · −inf where the base has no mass
            terms = np.exp(policies) * (policies - world.target)
        kl = world.beta * np.nansum(terms, axis=-1) @ world.prompts
        worst = max(worst, float(np.abs(regret - optimism - error).max()), float(np.abs(regret - kl).max()))
    measured("both sides", worst, 100 * SAME)
    assert worst <= 100 * SAME


@pytest.mark.claim("T17")
def test_regret_identity(measured: Measured) -> None:
    assert_regret_identity(ex.regret_identity, measured)


def bonus_under_the_policy(world: World, policies: np.ndarray):
    """E_π for E_{π_base} in the bonus: XPO on its own samples."""
    regret, _, error = ex.regret_identity(world, policies)
    ratio = world.log_ratio(policies, world.target)
    return regret, world.beta * np.einsum("x,pxy,pxy->p", world.prompts, np.exp(policies), ratio), error


@pytest.mark.claim("T17")
def test_regret_identity_mutants() -> None:
    for mutant in (
        bonus_under_the_policy,
        lambda w, p: (lambda regret, optimism, error: (regret, -optimism, error))(*ex.regret_identity(w, p)),
        lambda w, p: (lambda regret, optimism, error: (regret, optimism, 0 * error))(
            *ex.regret_identity(w, p)
        ),  # y' ~ π
    ):
        with pytest.raises(AssertionError):
            assert_regret_identity(mutant)


# --- T22: SEC --------------------------------------------------------------------------------------------------------


def pair_moments(world: World, policies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E^(i)[f_k] and E^(i)[f_k²] by summing over x, y and y'."""
    base, laws = np.exp(world.base), np.exp(policies)
    with np.errstate(invalid="ignore"):  # −inf + inf where the base has no mass
        ratio = np.nan_to_num(world.beta * (policies - world.base) - world.reward, nan=0.0)
    f = ratio[..., :, None] - ratio[..., None, :]  # [k, x, y, y']
    weight = world.prompts[:, None, None] * laws[..., :, None] * base[:, None, :]  # [i, x, y, y']
    return np.einsum("ixyz,kxyz->ik", weight, f), np.einsum("ixyz,kxyz->ik", weight, f**2)


def assert_moments(moments: Callable) -> None:
    for world, policies in random_worlds():
        for value, exact in zip(moments(world, policies), pair_moments(world, policies)):
            np.testing.assert_allclose(value, exact, atol=1e-10)


def assert_sum(sec: Callable) -> None:
    """The definition, term by term."""
    for world, policies in itertools.islice(random_worlds(), 6):
        first, second = ex.moments(world, policies)
        for sequence in ((0,), (2, 1), (0, 0, 3, 1, 0, 4, 4)):
            terms = [
                first[k, k] ** 2 / max(0.3, sum(second[i, k] for i in sequence[:t])) for t, k in enumerate(sequence)
            ]
            np.testing.assert_allclose(sec(first, second, sequence, 0.3), terms, rtol=1e-12)


@pytest.mark.claim("T22")
def test_sec_is_its_definition() -> None:
    assert_moments(ex.moments)
    assert_sum(ex.sec)


def y_of_the_policy_twice(world: World, policies: np.ndarray):
    """y' from the past policy and not from the base."""
    g, laws = world.gap(policies), np.exp(policies)
    mean, square = (np.einsum("ixy,kxy->ikx", laws, power) for power in (g, g**2))
    return (0 * mean) @ world.prompts, (2 * square - 2 * mean**2) @ world.prompts


def squares_of_means(first: np.ndarray, second: np.ndarray, sequence, regulariser: float) -> np.ndarray:
    """Squares of means where the definition has means of squares, in the denominator too."""
    return ex.sec(first, first**2, sequence, regulariser)


def the_present_counts(first: np.ndarray, second: np.ndarray, sequence, regulariser: float) -> np.ndarray:
    """Σ_{i<=t} for Σ_{i<t}."""
    spent = np.cumsum(second[np.ix_(sequence, sequence)], axis=0).diagonal()
    return first[sequence, sequence] ** 2 / np.maximum(spent, regulariser)


@pytest.mark.claim("T22")
def test_sec_definition_mutants() -> None:
    with pytest.raises(AssertionError):
        assert_moments(y_of_the_policy_twice)
    for mutant in (squares_of_means, the_present_counts):
        with pytest.raises(AssertionError):
            assert_sum(mutant)


def linear_world(points: np.ndarray, seed: int = 0, policies: int = 60):
    """A self-rewarded world of points on the sphere, θ* the first of them, δ = ¼, B as Theorem J.3 asks; policies in
    the ball, on its rim and along θ*; the features, the least λ that the a-priori bound allows, and B."""
    n, d = points.shape
    scores = points @ points[0]
    base = scores - np.log(np.exp(scores).sum())
    gamma = math.expm1(np.sort(scores)[-1] - np.sort(scores)[-2])
    size = math.log(2 * n / 0.25)
    beta, ball = gamma / (2 * size), max(1.0, 3 * size / gamma)
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(policies, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    theta = np.concatenate((directions * ball * rng.choice([0.1, 0.5, 1.0], size=(policies, 1)), points[:1] * ball))
    logits = theta @ points.T
    laws = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True)) - logits.max(
        1, keepdims=True
    )  # fmt: skip
    world = World(np.ones(1), base[None], base[None], beta)
    return world, laws[:, None], points[None], (beta * ball + 1 + beta) ** 2, ball


def hypercube_points(d: int) -> np.ndarray:
    return 2 * (np.arange(2**d)[:, None] >> np.arange(d) & 1) / math.sqrt(d) - 1 / math.sqrt(d)


def assert_sec_bounds(
    sec: Callable = ex.sec, linear: Callable = ex.linear_bound, path: Callable = ex.path_bound,
    measured: Measured = ignore, rounds: int = 2000,
) -> None:  # fmt: skip
    """Greedy adversaries on hypercubes and on packings of different sizes in the same dimension, at every round."""
    worlds = [hypercube_points(d) for d in (3, 5, 8)]
    worlds += [greedy_packing(3, distance, 2000).numpy() for distance in (1.0, 0.5, 0.25)]
    for points in worlds:
        n, d = points.shape
        world, policies, features, regulariser, _ = linear_world(points)
        first, second = ex.moments(world, policies)
        sequence = ex.greedy_sequence(first, second, rounds, regulariser)
        total = np.cumsum(sec(first, second, sequence, regulariser))
        by_path = path(ex.difference_moment(world, policies, features)[sequence], 4.0)
        by_dimension = np.array([linear(d, t, 4.0) for t in range(1, rounds + 1)])
        assert (total <= by_path).all() and (by_path <= by_dimension + 1e-9).all()
        slope = np.polyfit(np.log(np.arange(20, rounds + 1)), total[19:], 1)[0]
        assert slope <= 2 * 4 / math.log1p(4) * d
        measured(f"d = {d}, {n} responses, T = {rounds}", total[-1], by_path[-1])
        measured(f"path-wise, d = {d}, {n} responses", by_path[-1], by_dimension[-1])


@pytest.mark.claim("T22")
def test_sec_bounds_of_linear_classes(measured: Measured) -> None:
    assert_sec_bounds(measured=measured)


@pytest.mark.claim("T22")
def test_sec_bound_mutants() -> None:
    def forgets_the_past(first, second, sequence, regulariser):
        return first[sequence, sequence] ** 2 / regulariser

    def one_round(differences, k):
        return ex.path_bound(differences[:1], k).repeat(len(differences))

    def no_dimension(dim, rounds, k):
        return ex.linear_bound(1, rounds, k)

    for mutant in ({"sec": forgets_the_past}, {"path": one_round}, {"linear": no_dimension}):
        with pytest.raises(AssertionError):
            assert_sec_bounds(**mutant)


def assert_exact_bounds(bound: Callable = ex.coverability_bound, measured: Measured = ignore) -> None:
    """All 5^5 sequences of tiny classes: greedy <= supremum <= the bound by coverability, λ from 1e-3 f_max² up."""
    for (world, policies), share in zip(itertools.islice(random_worlds(), 8), itertools.cycle((1e-3, 0.1, 1.0))):
        first, second = ex.moments(world, policies)
        gap = world.gap(policies)
        largest = float(np.ptp(gap, axis=-1).max())
        regulariser = share * largest**2
        exact = ex.exact_sec(first, second, 5, regulariser)
        greedy = ex.sec(first, second, ex.greedy_sequence(first, second, 5, regulariser), regulariser).sum()
        coverability = ex.coverability(world.prompts, np.exp(policies))
        limit = bound(coverability, largest, 5, regulariser)
        assert greedy <= exact * (1 + SAME) and exact <= limit
        measured(f"λ = {share:g} f_max²", exact, limit)


def in_turn(dim: int, rounds: int, regulariser: float) -> float:
    """The sum over D policies with orthogonal differences of length 1, f_k constant on its own: visited in turn, the
    n-th visit of each costs 1/λ, 1, 1/2, 1/3, .."""
    return float(ex.sec(np.eye(dim), np.eye(dim), np.arange(rounds) % dim, regulariser).sum())


def assert_reached(linear: Callable = ex.linear_bound, general: Callable = ex.coverability_bound, measured=ignore):
    """The bounds hold there, within a factor 1.6 and 4; a bound without log T does not."""
    for dim, times in itertools.product((1, 2, 10), (1, 2, 5, 200)):
        assert in_turn(dim, dim * times, 1.0) <= linear(dim, dim * times, 1.0)
    nearest = in_turn(10, 20, 1.0) / linear(10, 20, 1.0)
    general_ratio = in_turn(10, 10, 1e-3) / general(10, 1.0, 10, 1e-3)
    measured("D orthogonal directions twice each / the linear bound", nearest, 1)
    measured("D orthogonal directions once each, λ = .001 f_max² / the general bound", general_ratio, 1)
    assert 0.6 < nearest <= 1 and 0.24 < general_ratio <= 1
    for first in (100, 200):  # ten times the rounds cost D ln 10 more
        more = in_turn(5, 10 * first, 1.0) - in_turn(5, first, 1.0)
        assert more == pytest.approx(5 * math.log(10), rel=0.05)


@pytest.mark.claim("T22")
def test_sec_bounds_are_reached(measured: Measured) -> None:
    assert_reached(measured=measured)


@pytest.mark.claim("T22")
def test_sec_bounds_reached_mutants() -> None:
    def no_log(dim, rounds, k):
        return 2 * ex.linear_bound(dim, dim, k)

    def half(dim, rounds, k):
        return ex.linear_bound(dim, rounds, k) / 2

    for mutant in ({"linear": no_log}, {"linear": half}, {"general": lambda *told: ex.coverability_bound(*told) / 5}):
        with pytest.raises(AssertionError):
            assert_reached(**mutant)


@pytest.mark.claim("T22")
def test_coverability_bounds_the_exact_sec(measured: Measured) -> None:
    assert_exact_bounds(measured=measured)


@pytest.mark.claim("T22")
def test_coverability_bound_mutant() -> None:
    """Without its first term, the price of what no round has visited yet, the bound fails where λ is small."""
    with pytest.raises(AssertionError):
        assert_exact_bounds(lambda c, largest, rounds, regulariser: 2 * c * np.log2(rounds))


@pytest.mark.claim("T22")
def test_policies_that_xpo_visits_stay_below_the_bound(measured: Measured) -> None:
    d = 4
    world, _, features, regulariser, ball = linear_world(hypercube_points(d))
    star = torch.from_numpy(hypercube_points(d)[0])
    base = LinearSoftmax.hypercube(star)
    direction = torch.randn(d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    starts = [base.at(direction / direction.norm() * ball / 2, radius=ball)]
    config = RLHFConfig(beta=world.beta, alpha=1e-4, rounds=5, max_new_tokens=d)
    run = xpo(base, starts, [[0]], config, stop_ids=[], minimise=Descend(40), objective=lambda policy: 0.0)
    logits = np.stack([features[0] @ policy.parameter.numpy() for policy in run.policies])
    visited = (logits - np.log(np.exp(logits).sum(1, keepdims=True)))[:, None]
    first, second = ex.moments(world, visited)
    total = np.cumsum(ex.sec(first, second, range(len(visited)), regulariser))
    bound = ex.path_bound(ex.difference_moment(world, visited, features), 4.0)
    assert (total <= bound).all()
    measured("visited", total[-1], bound[-1])


# --- T23: the elliptic potential -------------------------------------------------------------------------------------


def assert_elliptic(bound: Callable, measured: Measured = ignore) -> None:
    """Random sequences of traces at most K, of any rank; and K/d·I again and again, which nearly attains the bound."""
    rng, nearest = np.random.default_rng(0), 0.0
    for d, k, regulariser, rounds in itertools.product((1, 3, 6), (0.01, 1.0, 50.0), (0.1, 1.0), (1, 5, 60)):
        sequences = [np.tile(np.eye(d) * k / d, (rounds, 1, 1))]
        for rank in range(1, d + 1):
            roots = rng.normal(size=(rounds, d, rank))
            matrices = roots @ roots.swapaxes(1, 2)
            sequences.append(matrices * (k / np.trace(matrices, axis1=1, axis2=2))[:, None, None])
        for matrices in sequences:
            total, limit = ex.elliptic_sum(matrices, regulariser), bound(d, k, regulariser, rounds)
            assert total <= limit * (1 + 1e-9)
            nearest = max(nearest, total / limit)
    measured("sum / bound", nearest, 1.0)


@pytest.mark.claim("T23")
def test_elliptic_potential(measured: Measured) -> None:
    assert_elliptic(ex.elliptic_bound, measured)


@pytest.mark.claim("T23")
def test_lemma_f2_as_printed_is_false(measured: Measured) -> None:
    with pytest.raises(AssertionError):
        assert_elliptic(ex.printed_elliptic_bound)
    total = ex.elliptic_sum(np.tile(np.eye(3) * 0.01 / 3, (5, 1, 1)), 1.0)
    printed, right = ex.printed_elliptic_bound(3, 0.01, 1.0, 5), ex.elliptic_bound(3, 0.01, 1.0, 5)
    assert printed < -8 < 0 < total <= right <= total * 1.01
    measured("d = 3, K = .01, λ = 1, T = 5: the sum, and the right bound", total, right)
    measured("and the printed one", printed, total)


# --- T24: coverability -----------------------------------------------------------------------------------------------


def assert_coverability(coverability: Callable, measured: Measured = ignore) -> None:
    """The closed form against the definition's linear programme; then the lower-bound class of Theorem 3.1."""
    rng, worst = np.random.default_rng(0), 0.0
    for policies in (1, 2, 7):
        for sparsity in (0.2, 1.0, 5.0):
            prompts, laws = rng.dirichlet(np.ones(3)), rng.dirichlet(np.full(4, sparsity), size=(policies, 3))
            worst = max(worst, abs(coverability(prompts, laws) / ex.coverability_by_lp(prompts, laws) - 1))
    assert worst <= 1e-8
    measured("closed form / linear programme − 1", worst, 1e-8)
    d, m, rare = 3, 24, 0.08
    prompts = np.array([1 - rare, *[rare / d] * d])
    laws = np.exp(
        [[LinearSoftmax.lower_bound([j] * d, m).law(x)[: m + 1] for x in range(d + 1)] for j in range(1, m + 1)]
    )
    sharpened = (laws == laws.max(-1, keepdims=True)).astype(float)
    base_models, both = coverability(prompts, laws), coverability(prompts, np.concatenate((laws, sharpened)))
    assert abs(base_models - (1 + rare)) <= SAME and abs(both - (1 - rare + rare * m)) <= SAME
    measured("lower-bound class: 1 + Δ", base_models, 1 + rare)
    measured("and its sharpened policies: 1 − Δ + ΔM", both, 1 - rare + rare * m)


@pytest.mark.claim("T24")
def test_coverability(measured: Measured) -> None:
    assert_coverability(ex.coverability, measured)


@pytest.mark.claim("T24")
def test_coverability_mutants() -> None:
    for mutant in (
        lambda prompts, laws: float(prompts @ np.mean(laws, axis=0).sum(-1)),  # an average policy: always 1
        lambda prompts, laws: float(np.max(laws, axis=0).sum(-1).max()),  # the worst prompt instead of the mean one
        lambda prompts, laws: float(prompts @ (1 / np.min(laws, axis=0)).max(-1)),  # density ratio to a policy
    ):
        with pytest.raises(AssertionError), np.errstate(divide="ignore"):
            assert_coverability(mutant)
