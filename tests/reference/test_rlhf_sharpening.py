"""DPO by regression (T15), XPO on the needle (T18, T19, T20), on the hypercube (T21), with two arms (T32)."""

import itertools
import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch

import reference.rlhf_sharpening as R
from reference.randomness import child_seed
from reference.rlhf_sharpening import RLHFConfig, dpo_loss, dpo_sharpen, estimate_objective, xpo, xpo_loss, xpo_rounds
from reference.sampling import Samples, generate
from reference.self_reward import log_probability
from reference.sft_sharpening import Descend, Enumerate, FiniteClass, log_likelihood, score_responses
from reference.training.loop import Batches, FitConfig
from tests.assertions import assert_categorical, assert_cdf
from tests.reference.test_sft_sharpening import small_transformer
from theory import exploration as ex
from theory.best_of_n import failure
from toy.linear_softmax import LinearSoftmax, needle_class, per_response
from toy.tabular import TabularLM, enumerate_law

Measured = Callable[..., None]
DELTA = 0.01


def ignore(*_: object) -> None:
    """What mutants measure is of no interest."""


# --- T15: the regression ---------------------------------------------------------------------------------------------

HORIZON, STOP, PROMPTS, BETA = 3, [0], [[1], [2, 1]], 0.4


def every_pair(base: TabularLM, reward=log_probability):
    """All pairs (y, y') of records of each prompt."""
    pairs = []
    for prompt in PROMPTS:
        records, logp, _ = enumerate_law(base, prompt, HORIZON, STOP)
        i, j = np.indices((len(records), len(records))).reshape(2, -1)
        tokens = torch.zeros(1, len(records), HORIZON, dtype=torch.int64)
        for row, record in enumerate(records):
            tokens[0, row, : len(record)] = torch.tensor(record)
        lengths = torch.tensor([[len(record) for record in records]])
        blank = torch.zeros(tokens.shape)
        data = score_responses(base, [prompt], Samples(tokens, blank, blank, lengths, lengths > 0), reward)
        np.testing.assert_allclose(data.base, logp, atol=1e-12)
        pairs.append((data[i], data[j]))
    return pairs[0][0] + pairs[1][0], pairs[0][1] + pairs[1][1]


def tabular(seed: int) -> TabularLM:
    """A law of its own after every text, float64: any law at all is in the class."""
    return TabularLM.random(3, 4, seed=seed, dtype=torch.float64)


def target_of(base: TabularLM, beta: float) -> TabularLM:
    """π*_β of both prompts as a table: its conditionals, from the enumerated power law."""
    laws = {(2,): np.ones(3) / 3}  # on the way to the second prompt; any law
    for prompt in PROMPTS:
        records, logp, conditionals = enumerate_law(base, prompt, HORIZON, STOP)
        power = np.exp((1 + 1 / beta) * (logp - logp.max()))
        for prefix in conditionals:
            below = [power[i] * np.eye(3)[r[len(prefix)]] for i, r in enumerate(records) if r[: len(prefix)] == prefix
                     and len(r) > len(prefix)]  # fmt: skip
            laws[(*prompt, *prefix)] = np.sum(below, axis=0) / np.sum(below)
    return TabularLM.tree(laws, 3, torch.float64)


def assert_regression(loss: Callable, measured: Measured = ignore) -> None:
    """Loss 0 at π*_β; elsewhere more; and it does not see a constant added to a prompt's rewards."""
    for seed in range(3):
        base = tabular(seed)
        first, second = every_pair(base)
        at_target = float(loss(target_of(base, BETA), first, second, BETA))
        elsewhere = min(float(loss(policy, first, second, BETA)) for policy in (base, tabular(seed + 50)))
        shift = 7.0 * first.start  # the prompts have different lengths, so different constants
        moved = [R.Responses(**{**vars(part), "reward": part.reward + shift}) for part in (first, second)]
        constant = float(loss(base, *moved, BETA) - loss(base, first, second, BETA))
        measured("loss at the target", at_target, 1e-18)
        measured("change by a constant", constant, 1e-9)
        assert at_target <= 1e-18 and elsewhere > 1 and abs(constant) <= 1e-9


@pytest.mark.claim("T15")
def test_the_loss_vanishes_at_the_target(measured: Measured) -> None:
    assert_regression(dpo_loss, measured)


def test_the_bonus_is_on_every_response_of_the_base():
    """What XPO adds to the squares is α Σ log π(y'), of all pairs, and y' is the second of each."""
    base, policy = tabular(0), tabular(50)
    first, second = (part[torch.arange(3, 40)] for part in every_pair(base))
    plain, alpha = float(dpo_loss(policy, first, second, BETA)), 0.7
    added = float(xpo_loss(policy, first, second, BETA, alpha)) - plain
    assert added == pytest.approx(alpha * float(log_likelihood(policy, second).sum()), abs=1e-9)
    assert abs(added - alpha * float(log_likelihood(policy, first).sum())) > 1  # it matters which


@pytest.mark.claim("T15")
def test_loss_mutants() -> None:
    def without_base(policy, first, second, beta):  # β log π for β log π/π_base
        ratio = log_likelihood(policy, first) - log_likelihood(policy, second)
        return (beta * ratio - first.reward + second.reward).square().sum()

    def one_response(policy, first, second, beta):  # no y': the constant matters
        return (beta * (log_likelihood(policy, first) - first.base) - first.reward).square().sum()

    def logistic(policy, first, second, beta):  # DPO's own loss, y chosen if it has more reward
        delta = beta * (log_likelihood(policy, first) - first.base - log_likelihood(policy, second) + second.base)
        return -torch.nn.functional.logsigmoid(delta * (first.reward - second.reward).sign()).sum()

    for mutant in (without_base, one_response, logistic):
        with pytest.raises(AssertionError):
            assert_regression(mutant)


def logistic_loss(policy, first, second, beta):
    return dpo_loss(policy, first, second, beta, "logistic")


def assert_logistic(loss: Callable, measured: Measured = ignore) -> None:
    """The KL of Bernoulli σ(r − r') from σ(β log π/π_base(y) − ..(y')), summed by hand; 0 at π*_β, and descending on it
    from an even policy ends there."""
    base, even = tabular(0), TabularLM(torch.zeros_like(tabular(0).logits), tabular(0).transition, 4)
    first, second = every_pair(base)
    for policy in (even, tabular(50)):
        h = BETA * (log_likelihood(policy, first) - first.base - log_likelihood(policy, second) + second.base).numpy()
        p, q = (1 / (1 + np.exp(-x)) for x in ((first.reward - second.reward).numpy(), h))
        by_hand = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum()
        assert float(loss(policy, first, second, BETA)) == pytest.approx(by_hand, rel=1e-9) and by_hand > 0.1
    at_target = float(loss(target_of(base, BETA), first, second, BETA))
    minimise = Descend(400, 1e-12)
    found = minimise(R.Loss(lambda policy, y, other: loss(policy, y, other, BETA), (first, second)), [even])
    far = 0.0
    for prompt in PROMPTS:
        laws = [np.exp(enumerate_law(model, prompt, HORIZON, STOP)[1]) for model in (found, target_of(base, BETA))]
        far = max(far, float(np.abs(laws[0] - laws[1]).sum() / 2))
    measured("logistic loss at the target", at_target, 1e-12)
    measured("TV of where descending on it ends to π*_β", far, 1e-6)
    assert abs(at_target) <= 1e-12 and far < 1e-6


@pytest.mark.claim("T37")
def test_the_logistic_loss_is_least_at_the_target(measured: Measured) -> None:
    assert_logistic(logistic_loss, measured)


@pytest.mark.claim("T37")
def test_logistic_loss_mutants() -> None:
    """The likelier response always chosen; and a preference of other size."""

    def chosen(policy, first, second, beta):
        delta = beta * (log_likelihood(policy, first) - first.base - log_likelihood(policy, second) + second.base)
        return -torch.nn.functional.logsigmoid(delta * (first.reward - second.reward).sign()).sum()

    for wrong in (chosen, lambda policy, y, other, beta: logistic_loss(policy, y, other, 2 * beta)):
        with pytest.raises(AssertionError):
            assert_logistic(wrong)


def test_what_is_impossible_loses_by_preferences_too():
    base, target, fixed = deterministic_and_not()
    drawn = generate(base, [[0]] * 40, samples_per_prompt=2, max_new_tokens=1, stop_ids=[])
    data = score_responses(base, [[0]] * 40, drawn.samples, log_probability)
    first, second = data[0::2], data[1::2]
    assert dpo_loss(fixed, first, second, 0.5, "logistic") == math.inf
    assert xpo_loss(fixed, first, second, 0.5, 1e-3, "logistic") == math.inf
    sure = R.Responses(**{**vars(first), "reward": first.reward + 2000.0})  # σ is 1 and 0: 0 · ∞ is no number
    assert dpo_loss(fixed, sure, second, 0.5, "logistic") == math.inf
    config = RLHFConfig(beta=0.5, rounds=8, pairs=4, max_new_tokens=1, loss="logistic")
    run = xpo(base, FiniteClass([fixed, base, target]), [[0]], config, stop_ids=[], seed=1)
    assert run.last is target


def assert_gradient(loss: Callable, measured: Measured = ignore) -> None:
    """Autograd against 2 Σ Δ β (∂ log π(y) − ∂ log π(y')), where ∂ log π of a token is (one-hot − law) of its state."""
    base, policy = tabular(0), tabular(1)
    first, second = every_pair(base)
    policy.logits.requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(policy, first, second, BETA), policy.logits)
    laws = policy.logits.detach().softmax(-1)

    def score_function(data):  # [n, states, vocab]
        total = torch.zeros(len(data), *laws.shape, dtype=torch.float64)
        for row, (tokens, start, end) in enumerate(zip(data.tokens.tolist(), data.start.tolist(), data.end.tolist())):
            state = 0
            for t, token in enumerate(tokens[:end]):
                if t >= start:
                    total[row, state] -= laws[state]
                    total[row, state, token] += 1
                state = int(policy.transition[state, token])
        return total

    ratio = log_likelihood(policy, first) - first.base - log_likelihood(policy, second) + second.base
    delta = (BETA * ratio - first.reward + second.reward).detach()
    exact = 2 * BETA * torch.einsum("n,nsv->sv", delta, score_function(first) - score_function(second))
    worst = float((gradient - exact).abs().max() / exact.abs().max())
    measured("relative error of the gradient", worst, 1e-12)
    assert worst <= 1e-12


@pytest.mark.claim("T15")
def test_the_gradient(measured: Measured) -> None:
    assert_gradient(dpo_loss, measured)


@pytest.mark.claim("T15")
def test_gradient_mutants() -> None:
    for mutant in (lambda *a: dpo_loss(*a) / 2, lambda policy, y, other, beta: xpo_loss(policy, y, other, beta, 1e-3)):
        with pytest.raises(AssertionError):
            assert_gradient(mutant)


def assert_learns_the_target(beta_of_training: float, measured: Measured = ignore) -> None:
    """`dpo_sharpen` on tables, by gradient: pairs that cover the support leave no other minimum than π*_β."""
    base = tabular(3)
    config = RLHFConfig(beta=beta_of_training, pairs=200, max_new_tokens=HORIZON)
    fitted = dpo_sharpen(base, [base], PROMPTS, config, stop_ids=STOP, minimise=Descend(300, 1e-9), seed=1)
    worst = 0.0
    for prompt in PROMPTS:
        _, logp, _ = enumerate_law(base, prompt, HORIZON, STOP)
        power = (1 + 1 / BETA) * logp
        target = np.exp(power - np.logaddexp.reduce(power))
        worst = max(worst, np.abs(np.exp(enumerate_law(fitted.policy, prompt, HORIZON, STOP)[1]) - target).sum() / 2)
    measured("total variation", worst, 0.01)
    assert worst <= 0.01


@pytest.mark.claim("T15")
def test_dpo_learns_the_target(measured: Measured) -> None:
    assert_learns_the_target(BETA, measured)


@pytest.mark.claim("T15")
def test_another_beta_has_another_target() -> None:
    with pytest.raises(AssertionError):
        assert_learns_the_target(1.2 * BETA)


PAIRS = 1000


@cache
def sharpened_transformer(algorithm: Callable):
    """(base, policy) at β = 1, by batches."""
    base = small_transformer(0)
    fitting = FitConfig(epochs=60, batch=200, rate=1e-2, clip=10.0, weight_decay=0.0, schedule="cosine")
    online = algorithm is xpo
    config = RLHFConfig(1.0, rounds=2, prompts=PAIRS // 2, pairs=1 if online else PAIRS, max_new_tokens=HORIZON)
    settings = {"objective": lambda policy: 0.0} if online else {}
    fitted = algorithm(base, base, [[1, 2]], config, stop_ids=STOP, minimise=Batches(fitting), **settings)
    assert len(fitted.pairs[0]) == PAIRS
    return base, fitted.last if online else fitted.policy


def assert_transformer_learns_the_target(algorithm: Callable, beta: float, measured: Measured = ignore) -> None:
    """The regression is free of noise, so that pairs that cover the support leave only what optimising leaves:
    KL(π*_β ‖ π̂) is below what as many draws of π*_β itself would give on average, (records − 1)/2n."""
    base, policy = sharpened_transformer(algorithm)
    records, logp, _ = enumerate_law(base, [1, 2], HORIZON, STOP)
    log_target = (1 + 1 / beta) * logp
    log_target -= np.logaddexp.reduce(log_target)
    kl = float((np.exp(log_target) * (log_target - enumerate_law(policy, [1, 2], HORIZON, STOP)[1])).sum())
    bound = (len(records) - 1) / (2 * PAIRS)
    measured(f"KL(target ‖ transformer), {algorithm.__name__}", kl, bound)
    assert kl <= bound


@pytest.mark.claim("T15")
@pytest.mark.parametrize("algorithm", [dpo_sharpen, pytest.param(xpo, marks=pytest.mark.slow)])
def test_a_transformer_learns_the_target(algorithm: Callable, measured: Measured) -> None:
    assert_transformer_learns_the_target(algorithm, 1.0, measured)


@pytest.mark.claim("T15")
def test_a_transformer_learns_no_other_target() -> None:
    for beta in (0.77, 1.3):
        with pytest.raises(AssertionError):
            assert_transformer_learns_the_target(dpo_sharpen, beta)


def test_pairs_stay_within_a_prompt() -> None:
    """y and y' answer the same prompt, for prompts of many lengths and with several pairs each."""
    prompts = [[1], [2, 1], [1, 1], [2]]
    for algorithm, settings in ((dpo_sharpen, {}), (xpo, {"objective": lambda policy: 0.0})):
        config = RLHFConfig(1.0, rounds=2, prompts=3, pairs=3, max_new_tokens=HORIZON)
        base = tabular(0)
        first, second = algorithm(base, [base], prompts, config, stop_ids=STOP, minimise=Descend(2), **settings).pairs
        asked = [[row[:n].tolist() for row, n in zip(part.tokens, part.start)] for part in (first, second)]
        assert asked[0] == asked[1] and all(asked[0][3 * i] == asked[0][3 * i + 2] for i in range(len(first) // 3))
        assert len(first) == (12 if algorithm is dpo_sharpen else 18) and len({*map(tuple, asked[0])}) > 1


# --- T18, T19, T20: the needle ---------------------------------------------------------------------------------------


def needle(d: int, s: float, seed: int):
    """A needle at a random place: (world, the token y*, its finite class, β of Theorem J.3 at δ)."""
    rng = np.random.default_rng(seed)
    place, sign = int(rng.integers(d)), int(rng.choice([-1, 1]))
    theta = torch.zeros(d, dtype=torch.float64)
    theta[place] = sign * math.log(2)
    world = LinearSoftmax.needle(d, s, theta)
    beta = 1 / (2 * (math.log(2 / DELTA) + np.logaddexp(s, math.log(2 * d))))  # γ_margin = 1
    return world, 1 + place + (d if sign < 0 else 0), FiniteClass(needle_class(world, beta)), beta


def solved(policy: LinearSoftmax, star: int) -> bool:
    return float(policy.law()[star]) >= math.log(1 - DELTA)


def rounds_to_solve(d: int, s: float, seed: int, alpha: float = 1e-6, **settings) -> int | None:
    """After how many rounds XPO's policy is sharpened; None: not after d + 1."""
    world, star, policies, beta = needle(d, s, seed)
    config = RLHFConfig(beta=beta, alpha=alpha, rounds=d + 1, max_new_tokens=1)
    rounds = xpo_rounds(
        world, policies, [[0]], config, stop_ids=[], reward=per_response(world), seed=seed, **settings
    )  # fmt: skip
    for t, (policy, _, _) in enumerate(rounds, 1):
        if solved(policy, star):
            return t
    return None


def exact_rounds(d: int) -> np.ndarray:
    """The law of the number of rounds, 1..d+1, if no sharpened policy ever draws a dull response (7e-6 at s = 10).

    The first round only shows a dull response. Every wrong guess ±e_j rules both its signs out, and −y* gives y* away:
    the guess that first tries the right axis is the k-th with probability 1/d, and of the right sign with ½."""
    return (np.append(np.ones(d), 0) + np.append(0, np.ones(d))) / (2 * d)


def assert_explores(cases: list[tuple[int, float, int]], measured: Measured = ignore) -> dict[int, list[int]]:
    """(d, s, seed): XPO has solved the needle after at most d + 1 rounds, each time. Rounds by d."""
    taken: dict[int, list[int]] = {}
    for d, s, seed in cases:
        rounds = rounds_to_solve(d, s, seed)
        assert rounds is not None and rounds <= d + 1, (d, s, seed)
        taken.setdefault(d, []).append(rounds)
    for d, rounds in taken.items():
        measured(f"most rounds, d = {d}, {len(rounds)} runs", max(rounds), d + 1)
    return taken


SIZES = (10.0, 40.0, 200.0)  # C_cov = 1.1e4, 1.2e17, 3.6e86
QUICK = [(4, SIZES[i % 3], i) for i in range(200)] + [
    (d, s, i) for d, runs in ((8, 8), (16, 5), (32, 3)) for i in range(runs) for s in SIZES[i % 3 : i % 3 + 1]
]


@pytest.mark.claim("T18")
def test_xpo_finds_the_needle(measured: Measured) -> None:
    """And the number of rounds has its exact law (at d = 4)."""
    taken = assert_explores(QUICK, measured)
    statistic, bound = assert_categorical(np.bincount(taken[4], minlength=6)[1:], exact_rounds(4), detect=0.4, seed=0)
    measured("G of the rounds' law, d = 4", statistic, bound)


@pytest.mark.slow
@pytest.mark.claim("T18")
@pytest.mark.claim("T19")
@pytest.mark.parametrize("d", [4, 8, 16, 32])
def test_xpo_finds_the_needle_200_times(d: int, measured: Measured) -> None:
    """Every size on the same 200 seeds: every run of every size, and in as many rounds at each, but for the few runs at
    s = 10 to which the base shows an informative response."""
    taken = [assert_explores([(d, s, seed) for seed in range(200)], measured)[d] for s in SIZES]
    assert taken[1] == taken[2]
    for seed in (seed for seed in range(200) if taken[0][seed] != taken[1][seed]):
        world, *_ = needle(d, SIZES[0], seed)
        seen = generate(world, [[0]] * (d + 1), max_new_tokens=1, stop_ids=[], seed=child_seed(seed, "base")).samples
        assert int(seen.tokens.max()) > 0
    cdf = np.append(0, np.cumsum(exact_rounds(d)))
    statistic, bound = assert_cdf(
        taken[2], lambda t: cdf[np.clip(np.floor(t), 0, d + 1).astype(int)], detect=0.4, seed=0
    )
    measured(f"distance to the rounds' law, d = {d}", statistic, bound)


def assert_rounds_law(rounds: np.ndarray, measured: Measured = ignore) -> None:
    """At d = 4; laws at a total variation of .08 are told apart, both errors 1e-6."""
    statistic, bound = assert_categorical(np.bincount(rounds, minlength=6)[1:], exact_rounds(4), detect=0.08, seed=0)
    measured("G of the rounds' law, d = 4, 4300 runs", statistic, bound)


@pytest.mark.slow
@pytest.mark.claim("T18")
def test_the_rounds_have_their_exact_law(measured: Measured) -> None:
    assert_rounds_law(np.array([rounds_to_solve(4, 40.0, 1000 + seed) for seed in range(4300)]), measured)


@pytest.mark.claim("T18")
@pytest.mark.parametrize("law", [[1, 1, 1, 1, 1], [1, 2, 3, 2, 1], [0, 1, 2, 2, 3], [2, 2, 2, 1, 1]])
def test_rounds_law_mutants(law: list[int]) -> None:
    """Even, triangular, shifted by one (the last round takes what is left), and reversed halves."""
    drawn = np.random.default_rng(0).choice(np.arange(1, 6), size=4300, p=np.array(law) / sum(law))
    with pytest.raises(AssertionError):
        assert_rounds_law(drawn)


def printed_sign(policy, first, second, beta, alpha):
    """Algorithm 1 as printed: a minus before the squares."""
    return alpha * log_likelihood(policy, second).sum() - dpo_loss(policy, first, second, beta)


def reversed_bonus(policy, first, second, beta, alpha):
    return xpo_loss(policy, first, second, beta, -alpha)


@pytest.mark.claim("T18")
@pytest.mark.parametrize("wrong", [printed_sign, reversed_bonus])
def test_wrong_signs_do_not(wrong: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """On no seed is the policy sharpened in the end. (With the printed sign the first guess, which no data guide, is
    right with probability 1/2d; the next minimum then is its negative.)"""
    monkeypatch.setattr(R, "xpo_loss", wrong)
    for d, runs in ((4, 30), (8, 6)):
        for seed in range(runs):
            world, star, policies, beta = needle(d, SIZES[seed % 3], seed)
            config = RLHFConfig(beta=beta, rounds=d + 1, max_new_tokens=1)
            run = xpo(
                world, policies, [[0]], config, stop_ids=[], reward=per_response(world), seed=seed,
                objective=lambda policy: 0.0,
            )  # fmt: skip
            assert not solved(run.last, star)
            assert wrong is printed_sign or not any(solved(policy, star) for policy in run.policies)
    with pytest.raises(AssertionError):
        assert_explores(QUICK[:20])


class TowardsTheBase(Enumerate):
    """Ties go to the policy nearest to the base: what a trainer does that starts from it."""

    def __call__(self, loss, policies):
        losses = policies.losses(loss)
        tied = (losses <= losses.min() + self.tie).nonzero()[:, 0].tolist()
        return policies[min(tied, key=lambda i: float(policies[i].theta.norm()))]


@pytest.mark.claim("T18")
def test_without_a_bonus_nothing_is_explored() -> None:
    """α = 0, ties towards the base: no run moves. (With random ties α = 0 is a random search, and finds needles.)"""
    for seed in range(20):
        assert rounds_to_solve(4, SIZES[seed % 3], seed, alpha=0.0, minimise=TowardsTheBase()) is None
    with pytest.raises(AssertionError):
        assert all(rounds_to_solve(4, 40.0, seed, alpha=0.0) is None for seed in range(20))


def test_solved_stays_solved_and_both_iterates_are_reported():
    world, star, policies, beta = needle(4, 40.0, 0)
    config = RLHFConfig(beta=beta, rounds=9, max_new_tokens=1)
    run = xpo(world, policies, [[0]], config, stop_ids=[], reward=per_response(world), seed=0)
    t = next(t for t, policy in enumerate(run.policies) if solved(policy, star))
    assert run.policies[0] is world and len(run.policies) == len(run.objective) == 10
    assert all(solved(policy, star) for policy in run.policies[t:])
    assert solved(run.best, star) and solved(run.last, star)
    assert int(run.objective.argmax()) == t  # the first of equal ones
    assert run.cost.decoded_tokens == 18 and run.cost.calls == 18 and len(run.pairs[0]) == 9
    assert run.cost.prefilled_tokens == 18  # scored: the prompt's one token each; the response is never fed


def assert_free_of_coverage(rounds: Callable, measured: Measured = ignore) -> None:
    """The same seed takes the same number of rounds whatever the number of dull responses. (At s = 20 a base draw in
    3e7 shows anything else.)"""
    taken = {s: [rounds(d, s, seed) for d, seed in itertools.product((4, 8), range(6))] for s in (20.0, 40.0, 200.0)}
    assert len({tuple(t or 0 for t in row) for row in taken.values()}) == 1
    measured("most rounds at C_cov 3.6e86, d = 4 and 8", max(taken[200.0]), 9)


@pytest.mark.claim("T19")
def test_rounds_do_not_depend_on_coverage(measured: Measured) -> None:
    assert_free_of_coverage(rounds_to_solve, measured)


@pytest.mark.claim("T19")
def test_best_of_n_depends_on_coverage() -> None:
    def draws(d: int, s: float, seed: int) -> float:
        return ex.draws_for(1 - DELTA, math.exp(ex.needle_log_coverage(d, s)))

    with pytest.raises(AssertionError):
        assert_free_of_coverage(draws)


def assert_offline_is_blind(informative: Callable, measured: Measured = ignore) -> None:
    """P(any but dull responses among n base pairs): draws counted at s = 4; tiny at s = 10, 40, 200 with 1e-3 e^s/4d
    pairs. And best-of-N hits y* with 1 − (1 − 2/Z)^N."""
    d, pairs, runs = 4, 2, 4000
    world, star, _, _ = needle(d, 4.0, 0)
    drawn = generate(world, [[0]] * runs, max_new_tokens=1, stop_ids=[], samples_per_prompt=2 * pairs, seed=2).samples
    seen = int((drawn.tokens[..., 0] > 0).any(1).sum())
    exact = np.array([informative(d, 4.0, pairs), 1 - informative(d, 4.0, pairs)])
    statistic, bound = assert_categorical([seen, runs - seen], exact, detect=0.09, seed=2)
    measured("G of informative pairs", statistic, bound)
    hits = int((drawn.tokens[..., 0] == star).any(1).sum())
    miss = float(failure(math.exp(-ex.needle_log_coverage(d, 4.0)), 2 * pairs))
    assert_categorical([hits, runs - hits], [1 - miss, miss], detect=0.09, seed=2)
    for s in SIZES:
        n = 1e-3 * math.exp(s) / (4 * d)
        measured(f"chance of any signal in {n:.0e} pairs", chance := informative(d, s, n), 2e-3)
        assert 0 < chance < 2e-3


@pytest.mark.claim("T20")
def test_offline_pairs_hold_no_signal(measured: Measured) -> None:
    assert_offline_is_blind(ex.any_informative, measured)
    world, _, policies, beta = needle(8, 40.0, 0)
    trained = dpo_sharpen(
        world, policies, [[0]], RLHFConfig(beta=beta, pairs=2000, max_new_tokens=1), stop_ids=[],
        reward=per_response(world),
    )  # fmt: skip
    assert trained.pairs[0].tokens[:, 1].max() == 0 and trained.cost.decoded_tokens == 4000
    losses = policies.losses(R.Loss(lambda policy, y, other: dpo_loss(policy, y, other, beta), trained.pairs))
    measured("largest loss in the class after 2000 pairs", float(losses.max()), 1e-20)
    assert float(losses.max()) <= 1e-20


@pytest.mark.claim("T20")
def test_offline_mutants() -> None:
    for mutant in (
        lambda d, s, n: ex.any_informative(d, s, n / 2),  # n draws for n pairs
        lambda d, s, n: ex.any_informative(2 * d, s, n),
        lambda d, s, n: 2 * n * math.exp(-ex.needle_log_coverage(d, s)),  # only y* informs
    ):
        with pytest.raises(AssertionError):
            assert_offline_is_blind(mutant)


def test_offline_dpo_does_find_a_needle_that_it_sees():
    world, star, policies, beta = needle(4, 4.0, 1)
    config = RLHFConfig(beta=beta, pairs=200, max_new_tokens=1)
    assert solved(dpo_sharpen(world, policies, [[0]], config, stop_ids=[], reward=per_response(world)).policy, star)


# --- T21: the hypercube ----------------------------------------------------------------------------------------------


def hypercube(d: int, seed: int):
    """Theorem J.3's setting at δ = ¼: base at a random corner, one start in the ball."""
    rng = np.random.default_rng(seed)
    star = torch.from_numpy(rng.choice([-1.0, 1.0], d) / math.sqrt(d))
    size = math.log(2 / 0.25) + d * math.log(2)
    beta, ball = ex.hypercube_margin(d) / (2 * size), 3 * size / ex.hypercube_margin(d)
    direction = rng.normal(size=d)
    start = torch.from_numpy(direction / np.linalg.norm(direction) * ball / 2)
    base = LinearSoftmax.hypercube(star)
    return base, base.at(start, ball), beta


def mass(base: LinearSoftmax, policy: LinearSoftmax) -> float:
    """π(y*), in closed form."""
    star = base.theta
    return float(torch.sigmoid(2 * policy.parameter * star.sign() / math.sqrt(len(star))).prod())


def explore_hypercube(d: int, seed: int) -> int | None:
    base, start, beta = hypercube(d, seed)
    config = RLHFConfig(beta=beta, alpha=1e-4, rounds=2 * d, max_new_tokens=d)
    rounds = xpo_rounds(base, [start], [[0]], config, stop_ids=[], minimise=Descend(60), seed=seed)
    return next((t for t, (policy, _, _) in enumerate(rounds, 1) if mass(base, policy) > 0.75), None)


def assert_hypercube_separates(cases: list[tuple[int, int]], explore: Callable, measured: Measured = ignore) -> None:
    for d, seed in cases:
        rounds = explore(d, seed)
        assert rounds is not None and rounds <= 2 * d, (d, seed)
        measured(f"rounds of XPO, d = {d}", rounds, 2 * d)
        if d >= 6:
            assert 2 * rounds < ex.draws_for(0.75, ex.hypercube_coverage(d))  # each round draws two


@pytest.mark.claim("T21")
def test_xpo_needs_at_most_2d_rounds(measured: Measured) -> None:
    assert_hypercube_separates([(4, 0), (4, 1), (4, 2), (6, 0), (6, 1)], explore_hypercube, measured)


@pytest.mark.slow
@pytest.mark.claim("T21")
def test_xpo_needs_at_most_2d_rounds_up_to_10(measured: Measured) -> None:
    cases = [(d, seed) for d in (4, 6, 8, 10) for seed in range(10)]
    assert_hypercube_separates(cases, explore_hypercube, measured)


@pytest.mark.claim("T21")
def test_hypercube_separation_mutants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Best-of-N in place of XPO; and XPO with the printed sign."""

    def best_of_n(d: int, seed: int) -> int:
        return math.ceil(ex.draws_for(0.75, ex.hypercube_coverage(d)))

    with pytest.raises(AssertionError):
        assert_hypercube_separates([(4, 0)], best_of_n)
    monkeypatch.setattr(R, "xpo_loss", printed_sign)
    with pytest.raises(AssertionError):
        assert_hypercube_separates([(4, 0), (4, 1)], explore_hypercube)


@pytest.mark.claim("T21")
def test_offline_dpo_solves_the_hypercube_too(measured: Measured) -> None:
    """Once its pairs span R^d: this instance parts regression from best-of-N, not exploring from not exploring."""
    for d, seed in ((4, 0), (8, 1), (12, 2)):
        base, start, beta = hypercube(d, seed)
        config = RLHFConfig(beta=beta, pairs=3 * d, max_new_tokens=d)
        trained = dpo_sharpen(base, [start], [[0]], config, stop_ids=[], minimise=Descend(300, 1e-9), seed=seed)
        y, other = ((2.0 * part.tokens[:, 1:] - 1) for part in trained.pairs)
        assert int(torch.linalg.matrix_rank(y - other)) == d
        error = float((trained.policy.parameter - (1 + 1 / beta) * base.theta).norm() / (1 + 1 / beta))
        measured(f"‖θ − (1 + 1/β)θ*‖ / (1 + 1/β), {3 * d} pairs, d = {d}", error, 1e-2)
        assert error <= 1e-2 and mass(base, trained.policy) > 0.75


# --- T32: two arms ---------------------------------------------------------------------------------------------------


def two_arms(alpha: float, seed: int, minimise: Callable | None = None, beta: float = 0.02) -> float:
    """The last iterate's mass on the better arm after 6 rounds. r(a) = 1, r(b) = ½, π_ref(a) ≈ e^(−c/β) with c = ¼ and
    β = 0.02: 4e-6. The class: the targets of r(a) = 0, ½ and 1; r(a) = ½ is the base."""
    rewards = torch.tensor([1.0, 0.5], dtype=torch.float64)
    logits = torch.tensor([-0.25 / beta, 0.0], dtype=torch.float64)
    base = LinearSoftmax.atoms(torch.eye(2)[None].double()[..., :1], logits[None], torch.zeros(1))
    policies = FiniteClass([base.at(torch.tensor([(r - 0.5) / beta])) for r in (0.0, 0.5, 1.0)])
    config = RLHFConfig(beta=beta, alpha=alpha, rounds=6, max_new_tokens=1)
    run = xpo(
        base, policies, [[0]], config, stop_ids=[], seed=seed, minimise=minimise, objective=lambda policy: 0.0,
        reward=lambda samples: rewards[samples.tokens[..., 0]],
    )  # fmt: skip
    return float(run.last.law()[0].exp())


def assert_exploring_wins(explore: Callable, passive: Callable, measured: Measured = ignore) -> None:
    exploring, staying = [explore(seed) for seed in range(5)], [passive(seed) for seed in range(5)]
    measured("mass on the better arm, XPO, least of 5", min(exploring), 1.0)
    measured("passive, most of 5", max(staying), 0.0)
    assert min(exploring) > 0.99 and max(staying) < 0.01


@pytest.mark.claim("T32")
def test_two_arms(measured: Measured) -> None:
    """Online, but with no bonus (ties towards the base), training stays where it is; XPO tries the other arm."""
    assert_exploring_wins(
        lambda seed: two_arms(1e-6, seed), lambda seed: two_arms(0.0, seed, TowardsTheBase()), measured
    )


@pytest.mark.claim("T32")
def test_passive_regression_moves_where_the_base_shows_both_arms(measured: Measured) -> None:
    """β = 0.2, so that the better arm has base probability .22 and a pair shows both in a third of the rounds: what
    keeps the passive learner at its arm is coverage."""
    moved = sum(two_arms(0.0, seed, TowardsTheBase(), beta=0.2) > 0.7 for seed in range(30))
    shown = 1 - (1 - 2 * 0.2227 * 0.7773) ** 6  # .92
    measured("runs of 30 in which the passive learner moves, at base probability .22", moved, 30)
    assert moved >= 15 and abs(moved / 30 - shown) < 0.3


@pytest.mark.claim("T32")
def test_two_arms_mutants(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError):
        assert_exploring_wins(
            lambda seed: two_arms(0.0, seed, TowardsTheBase()), lambda seed: two_arms(0.0, seed, TowardsTheBase())
        )
    monkeypatch.setattr(R, "xpo_loss", reversed_bonus)
    with pytest.raises(AssertionError):
        assert_exploring_wins(lambda seed: two_arms(1e-6, seed), lambda seed: two_arms(0.0, seed, TowardsTheBase()))


# --- the rest --------------------------------------------------------------------------------------------------------


def test_data_accumulate_and_y_prime_is_the_bases():
    """y' follow the base's law though the policy has long left it, and each round adds `pairs` pairs to all before."""
    world, _, policies, beta = needle(4, 2.0, 3)
    config = RLHFConfig(beta=beta, rounds=6, pairs=50, max_new_tokens=1)
    before = None
    for t, (_, (y, other), cost) in enumerate(
        xpo_rounds(world, policies, [[0]], config, stop_ids=[], reward=per_response(world), seed=4), 1
    ):
        assert len(y) == len(other) == 50 * t and cost.calls == 100
        if before is not None:
            assert torch.equal(y.tokens[: len(before)], before)
        before = y.tokens
    counts = np.bincount(other.tokens[:, 1], minlength=world.vocab_size)
    assert_categorical(counts, world.law().exp().numpy(), detect=0.5, seed=4)


def test_the_objective_is_estimated():
    base, policy = tabular(0), tabular(7)
    exact = 0.0
    for prompt in PROMPTS:
        (_, logp, _), (_, other, _) = (enumerate_law(model, prompt, HORIZON, STOP) for model in (policy, base))
        exact += float(np.exp(logp) @ (other - BETA * (logp - other))) / len(PROMPTS)
    estimate = estimate_objective(
        base, policy, PROMPTS, BETA, reward=log_probability, samples_per_prompt=20_000, max_new_tokens=HORIZON,
        stop_ids=STOP,
    )  # fmt: skip
    assert estimate == pytest.approx(exact, abs=0.05)


def deterministic_and_not():
    """A base on three ids, one of its targets, and the policy that always says id 1."""
    logits = torch.tensor([[0.0, 1.0, -1.0]], dtype=torch.float64)
    base, target, fixed = (
        TabularLM(values, torch.zeros_like(logits, dtype=torch.int64))
        for values in (logits, 3 * logits, torch.tensor([[-math.inf, 0.0, -math.inf]], dtype=torch.float64))
    )
    return base, target, fixed


@pytest.mark.parametrize("alpha", [0.0, 1e-3])
def test_a_deterministic_policy_loses_where_it_finds_a_response_impossible(alpha):
    """0 log 0 = 0, and log 0 is a loss of +∞, bonus or not: never NaN."""
    base, target, fixed = deterministic_and_not()
    drawn = generate(base, [[0]] * 40, samples_per_prompt=2, max_new_tokens=1, stop_ids=[])
    data = score_responses(base, [[0]] * 40, drawn.samples, log_probability)
    first, second = data[0::2], data[1::2]
    assert xpo_loss(fixed, first, second, 0.5, alpha) == math.inf and xpo_loss(target, first, second, 0.5, alpha) < 1e-2
    same = (data.tokens[0::2, 1] == 1) & (data.tokens[1::2, 1] == 1)
    assert (
        same.any() and xpo_loss(fixed, first[same], second[same], 0.5, alpha) == 0
    )  # nothing in these tells against it
    config = RLHFConfig(beta=0.5, alpha=alpha, rounds=8, pairs=4, max_new_tokens=1)
    run = xpo(base, FiniteClass([fixed, base, target]), [[0]], config, stop_ids=[], seed=1)
    assert run.last is target and run.best is target and run.objective.isfinite().all()
    with pytest.raises(ValueError, match="the least loss of 1 policies is inf: each finds one of the responses imp"):
        xpo(base, FiniteClass([fixed]), [[0]], config, stop_ids=[], seed=1)


def test_several_prompts_are_asked_at_random():
    world = LinearSoftmax.hypercube(torch.randn(3, generator=torch.Generator().manual_seed(0)), torch.eye(3) * 2 - 1)
    config = RLHFConfig(beta=1.0, rounds=30, max_new_tokens=3)
    *_, (_, (y, other), _) = xpo_rounds(world, FiniteClass([world]), [[0], [1], [2]], config, stop_ids=[], seed=0)
    assert torch.equal(y.tokens[:, 0], other.tokens[:, 0]) and set(y.tokens[:, 0].tolist()) == {0, 1, 2}


def test_settings_out_of_range():
    for wrong in ({"beta": 0.0}, {"alpha": -1.0}, {"rounds": 0}, {"pairs": 0}):
        with pytest.raises(ValueError, match="must be"):
            RLHFConfig(**wrong)
