"""Sample complexity (claims T9, T10, T12, T13, T14's sample bound, T31): bounds against laws, enumeration, and draws.

Each claim is an `assert_...` that takes the implementation; the mutants give it a wrong one.
"""

import itertools
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from reference.evaluation.statistics import pass_at_k
from reference.sft_sharpening import FiniteClass, SFTConfig, sft_sharpen
from theory import best_of_n as bon
from theory import sample_complexity as sc
from theory import sharpening as sharp
from theory.sample_complexity import Array
from toy.tabular import TabularLM, enumerate_law

Measured = Callable[..., None]
SAME = 1e-9


def ignore(*_: object) -> None:
    """What mutants measure is of no interest."""


def upper_limit(failures: int, runs: int, alpha: float = 1e-6) -> float:
    """Clopper-Pearson: the true rate is above this with probability alpha at most."""
    return float(stats.beta.isf(alpha, failures + 1, runs - failures)) if failures < runs else 1.0


def maximum_likelihood(counts: Array, policies: Array) -> Array:
    """The member of the class [P, cells] (joint laws of prompt and response) that fits counts [runs, cells] best."""
    with np.errstate(divide="ignore"):
        logs = np.log(policies)
    return (counts @ np.maximum(logs, -1e9).T).argmax(1)


# --- T9: the error of maximum likelihood -----------------------------------------------------------------------------

RHO, PAIRS, RUNS = 0.1, 400, 4000


def near_and_far() -> Array:
    """401 laws on 2 prompts of 32 responses, the truth first: 200 at 0.6 of the bound and 200 at 1.05 of it, in random
    directions, so that their likelihood ratios are nearly independent and the union bound is nearly tight."""
    rng, truth = np.random.default_rng(0), np.full(64, 1 / 64)
    members = [truth]
    for share in (0.6, 1.05):
        goal = share * sc.mle_bound(np.log(401), PAIRS, RHO)
        for _ in range(200):
            signs = np.concatenate([rng.permutation(np.repeat([1, -1], 16)) for _ in range(2)])  # no prompt likelier
            size = np.sqrt(1 - (1 - goal / 2) ** 2)  # D_H² of 1 ± 2s√(1-s²) is 2 - 2√(1-s²)
            members.append(truth * (1 + signs * 2 * size * np.sqrt(1 - size**2)))
    return np.array(members)


def assert_mle_is_within(
    bound: Callable[[float, float, float], float],
    estimate: Callable[[Array, Array], Array] = maximum_likelihood,
    measured: Measured = ignore,
) -> None:
    """In at most a share ρ of runs, at confidence 1 - 1e-6, D_H²(π̂, truth) exceeds the bound."""
    members = near_and_far()
    distance = sc.hellinger(members, members[0])
    counts = np.random.default_rng(1).multinomial(PAIRS, members[0], size=RUNS).astype(float)
    chosen = distance[estimate(counts, members)]
    failures = int((chosen > bound(np.log(len(members)), PAIRS, RHO)).sum())
    limit = upper_limit(failures, RUNS)
    measured(f"rate of D_H² above its bound, 1e-6 upper limit, {RUNS} runs", limit, RHO)
    assert limit <= RHO


@pytest.mark.claim("T9")
def test_maximum_likelihood(measured: Measured) -> None:
    assert_mle_is_within(sc.mle_bound, measured=measured)
    distance = sc.hellinger(near_and_far(), near_and_far()[0])
    reach = sc.mle_bound(np.log(401), PAIRS, RHO)
    assert distance[1:201] == pytest.approx(0.6 * reach) and distance[201:] == pytest.approx(1.05 * reach)
    assert sc.hellinger([1.0, 0.0], [0.0, 1.0]) == 2  # un-normalised


@pytest.mark.claim("T9")
@pytest.mark.parametrize(
    ("bound", "estimate"),
    [
        (lambda log_class, n, rho: sc.mle_bound(log_class, n, rho) / 2, maximum_likelihood),  # D_H² with its own 1/2
        (lambda log_class, n, rho: sc.mle_bound(0, n, rho), maximum_likelihood),  # without the union bound
        (sc.mle_bound, lambda counts, policies: maximum_likelihood(counts, 1 / policies)),
    ],
    ids=["normalised D_H²", "no log|Π|", "least likely"],
)
def test_maximum_likelihood_mutants(bound: Callable, estimate: Callable) -> None:
    with pytest.raises(AssertionError):
        assert_mle_is_within(bound, estimate)


# --- T10: SFT-Sharpening ---------------------------------------------------------------------------------------------

DELTA = 0.25
PROMPTS = np.array([0.4, 0.3, 0.2, 0.1])
BASES = np.array([[0.5, 0.3, 0.1, 0.1], [0.3, 0.3, 0.2, 0.2], [0.4, 0.35, 0.2, 0.05], [0.26, 0.25, 0.25, 0.24]])


def best_of_n_policy(n: int) -> Array:
    return np.array([bon.best_of_n_law(base, np.log(base), n) for base in BASES])


def sft_class(realised: Array) -> Array:
    """[P, X, K]: the best-of-N law and, for each prompt, its mixtures with the base and with the worst response."""
    members = []
    for x, share in itertools.product(range(4), (0.1, 0.2, 0.27, 0.3, 0.5, 1.0)):
        for other in (BASES[x], np.eye(4)[3]):
            policy = realised.copy()
            policy[x] = (1 - share) * policy[x] + share * other
            members.append(policy)
    return np.array([*members, realised])  # last, so that ties go to the wrong ones


def assert_sft_sharpens(
    bound: Callable[..., float], draws: Callable[[float, float], int], measured: Measured = ignore
) -> None:
    """In at most a share ρ of runs the share of prompts that π̂ fails exceeds the bound: labels by the exact best-of-N
    law, π̂ of maximum likelihood among 49 policies. In turn the bound's first
    term is vacuous, the second is, as N* is too small for the labels to be sharp, and both are small."""
    top, coverage = sharp.top_set(np.log(BASES)), bon.c_cov(PROMPTS, [*BASES])
    rng, worst = np.random.default_rng(2), 0.0
    for n, factor in ((20, 20.0), (40_000, 0.5), (8000, 20.0)):
        n_star = factor * coverage
        realised = best_of_n_policy(draws(n_star, DELTA))
        members = sft_class(realised)
        limit = bound(np.log(len(members)), n, RHO, DELTA, n_star, coverage)
        joint = (PROMPTS[:, None] * members).reshape(len(members), -1)
        counts = rng.multinomial(n, joint[-1] / joint[-1].sum(), size=2000).astype(float)
        with np.errstate(divide="ignore"):
            shares = np.array([sharp.failure_share(PROMPTS, np.log(policy), top, DELTA) for policy in members])
        failures = int((shares[maximum_likelihood(counts, joint)] > limit).sum())
        worst = max(worst, upper_limit(failures, 2000))
    assert limit < 0.2
    measured("rate of failing shares above the bound, 1e-6 upper limit", worst, RHO)
    assert worst <= RHO


@pytest.mark.claim("T10")
def test_sft_sharpens(measured: Measured) -> None:
    assert_sft_sharpens(sc.sft_failure_bound, sc.sft_draws, measured)


@pytest.mark.claim("T10")
@pytest.mark.parametrize(
    ("bound", "draws"),
    [(sc.sft_failure_bound, lambda n_star, delta: 1), (lambda *args: sc.sft_failure_bound(*args[:4]), sc.sft_draws)],
    ids=["one draw", "no C_cov/N*"],
)
def test_sft_mutants(bound: Callable, draws: Callable) -> None:
    with pytest.raises(AssertionError):
        assert_sft_sharpens(bound, draws)


def assert_the_reference_sharpens(draws: int, runs: int, measured: Measured = ignore) -> None:
    """The same bound for `reference.sft_sharpening.sft_sharpen` on tabular models: two prompts, n = 1000 labels by
    best-of-N, nine policies, δ = 1/2; the bound, 0.36, is below what one failing prompt costs."""
    prompts, delta, n, n_star = np.array([0.5, 0.5]), 0.5, 1000, 16.0
    bases = [np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.45, 0.35, 0.1, 0.1])]
    rows = [(bon.best_of_n_law(p, np.log(p), sc.sft_draws(n_star, delta)), p, np.eye(4)[3] / 2 + p / 2) for p in bases]
    policies = [TabularLM.tree({(0,): p, (1,): q}, 4) for p, q in itertools.product(*rows)]
    limit = sc.sft_failure_bound(np.log(9), n, RHO, delta, n_star, bon.c_cov(prompts, bases))
    assert limit < 0.4
    base, rng, failures = TabularLM.tree({(0,): bases[0], (1,): bases[1]}, 4), np.random.default_rng(4), 0
    for seed in range(runs):
        drawn = [[int(x)] for x in rng.choice(2, size=n, p=prompts)]
        config = SFTConfig(n=draws, max_new_tokens=1)
        policy = sft_sharpen(base, FiniteClass(policies), drawn, config, stop_ids=(), seed=seed).policy
        top = [np.exp(enumerate_law(policy, [x], 1, ())[1][0]) for x in (0, 1)]  # y* is token 0
        failures += prompts @ (np.array(top) < 1 - delta) > limit
    measured(f"the same for sft_sharpen, {runs} runs", upper_limit(failures, runs), RHO)
    assert upper_limit(failures, runs) <= RHO


@pytest.mark.claim("T10")
@pytest.mark.slow
def test_the_reference_sharpens(measured: Measured) -> None:
    assert_the_reference_sharpens(sc.sft_draws(16.0, 0.5), 150, measured)


@pytest.mark.claim("T10")
@pytest.mark.slow
def test_the_reference_with_one_draw_does_not() -> None:
    with pytest.raises(AssertionError):
        assert_the_reference_sharpens(1, 150)


def assert_labels_are_sharp(draws: Callable[[float, float], int], measured: Measured = ignore) -> None:
    """Best-of-N labels hit y*_γ with at least 1-δ/2 where N* >= 1/π_base(y*_γ); other prompts have μ <= C_cov,γ/N*."""
    rng, worst = np.random.default_rng(3), np.zeros(2)
    for _ in range(200):
        prompts, bases = rng.dirichlet(np.ones(8)), rng.dirichlet(np.full(30, rng.choice([0.2, 2.0])), size=8)
        bases[0] = 1 / 30
        for gamma, delta, n_star in itertools.product((0.0, 0.3), (0.5, 0.01), (2.0, 30.0)):
            masses = sharp.set_mass(np.log(bases), sharp.top_set(np.log(bases), gamma))
            good = n_star * masses >= 1 - 1e-12
            missed = bon.failure(masses[good], draws(n_star, delta))
            coverage = bon.c_cov(prompts, [*bases], gamma=gamma)
            worst[0] = max(worst[0], missed.max(initial=0) / (delta / 2))
            worst[1] = max(worst[1], prompts[~good].sum() * n_star / coverage)
    measured("miss of a label at a good prompt / (δ/2)", worst[0], 1)
    measured("bad prompts · N* / C_cov,γ", worst[1], 1)
    assert worst.max() <= 1 + SAME


@pytest.mark.claim("T10")
def test_labels_are_sharp(measured: Measured) -> None:
    assert_labels_are_sharp(sc.sft_draws, measured)


@pytest.mark.claim("T10")
@pytest.mark.parametrize(
    "draws", [lambda n_star, delta: int(np.ceil(n_star)), lambda n_star, delta: int(n_star * np.log(1 / delta))]
)
def test_label_mutants(draws: Callable[[float, float], int]) -> None:
    """N = N*, and N = N* log(1/δ)."""
    with pytest.raises(AssertionError):
        assert_labels_are_sharp(draws)


def assert_constants_are_reached(
    bound: Callable[..., float] = sc.sft_failure_bound, draws: Callable[[float, float], int] = sc.sft_draws,
    measured: Measured = ignore,
) -> None:  # fmt: skip
    """Each term where it is nearly attained: two responses whose label law has just δ/2 and whose policy just δ outside
    y*; a prompt of mass just below 1/N* that is nearly all; a label at a prompt of mass 1/N*."""
    delta, n_star = 1e-3, 200.0
    label, policy = np.array([1 - delta / 2, delta / 2]), np.array([1 - delta, delta])
    failing = (
        sc.hellinger(policy, label) * 0.3
    )  # E D_H² of a policy that fails on .3 of the prompts and is right on others
    told = bound(0.0, 2 * 1.0 / failing, np.exp(-1.0), delta)  # with the n at which Lemma F.1 says just that
    masses, prompts = np.array([0.999 / n_star, 1.0]), np.array([0.99, 0.01])
    coverage = float((prompts / masses).sum())
    rest = bound(0.0, np.inf, 0.5, delta, n_star, coverage)
    missed = (1 - 1 / n_star) ** draws(n_star, delta)
    for name, value, most in (("failing prompts / the first term", 0.3, told), ("bad prompts / C_cov/N*", 0.99, rest),
                              ("a label's miss / (δ/2)", missed, delta / 2)):  # fmt: skip
        measured(name, value / most, 1)
        assert 0.95 < value / most <= 1 + SAME


@pytest.mark.claim("T10")
def test_the_constants_of_sft_are_reached(measured: Measured) -> None:
    assert_constants_are_reached(measured=measured)


@pytest.mark.claim("T10")
@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 2.0])
def test_constants_of_sft_mutants(factor: float) -> None:
    for mutant in (
        {"bound": lambda *told: factor * sc.sft_failure_bound(*told)},
        {"bound": lambda *told: sc.sft_failure_bound(*told[:5], *(factor * c for c in told[5:]))},
        {"draws": lambda n_star, delta: int(factor * sc.sft_draws(n_star, delta))},
    ):
        with pytest.raises(AssertionError):
            assert_constants_are_reached(**mutant)


def test_sizes_meet_their_bounds() -> None:
    for epsilon, delta in itertools.product((0.3, 0.01), (0.5, 0.05)):
        n, draws = sc.sft_sizes(3.0, epsilon, 0.1, delta, 7.0)
        assert sc.sft_failure_bound(3.0, n, 0.1, delta, draws / np.log(2 / delta), 7.0) <= epsilon + SAME
        fewer, pairs = sc.adaptive_sizes(3.0, epsilon, 0.1, delta, 7.0)
        assert sc.sft_failure_bound(3.0, fewer, 0.1, delta) <= epsilon
        assert pairs == pytest.approx(fewer * (1 + np.log(2 / delta)) * 7)
    with pytest.raises(ValueError, match="delta must be in"):
        sc.sft_draws(3.0, 1.0)
    with pytest.raises(ValueError, match="M is 1"):
        sc.hidden_law(1, 0)


# --- T14: what n noise-free pairs leave ------------------------------------------------------------------------------


def assert_pairs_identify(bound: Callable[..., float], measured: Measured = ignore) -> None:
    """Σ over the policies with E Δ² above the bound of Pr[loss 0 on n pairs] <= ρ: exact, as it is Pr[Δ = 0]^n.

    The policies differ from π*_β by one response (a tenth of a nat and up to R), which hides if it is not drawn.
    """
    worst = 0.0
    for k, n, size in itertools.product((3, 10, 40), (10, 100, 1000), (0.1, 1.0)):
        base = np.random.default_rng(k).dirichlet(np.ones(k))
        beta = 0.3
        goal = sharp.target(np.log(base)[None], beta)
        shifts = [goal + (sign * size / beta) * (np.arange(k) == j) for j in range(k) for sign in (-1, 1)]
        policies = [shift - np.logaddexp.reduce(shift[0]) for shift in shifts]
        losses = [sharp.squared_residual([1.0], policy, np.log(base)[None], beta) for policy in policies]
        silent = np.repeat((1 - 2 * base * (1 - base)) ** n, 2)  # no pair holds response j just once
        assert losses == pytest.approx(np.repeat(2 * base * (1 - base), 2) * size**2)
        limit = bound(np.log(len(policies)), n, RHO, size)
        worst = max(worst, float(silent[np.array(losses) > limit].sum()))
    measured("Pr[a policy of greater E Δ² fits all pairs]", worst, RHO)
    assert worst <= RHO


@pytest.mark.claim("T14")
def test_pairs_identify_the_target(measured: Measured) -> None:
    assert_pairs_identify(sc.pair_loss_bound, measured)
    limit = sc.dpo_failure_bound(
        2, 1e6, 0.1, 0.5, reach=1, beta=1e-3, gamma_margin=1, coverage=4, concentration=9
    )  # (2 + 3) √((2 + log 10)/1e6) + 1e-3 log 4 over 0.5 log 2
    assert limit == pytest.approx((5 * np.sqrt((2 + np.log(10)) / 1e6) + 1e-3 * np.log(4)) / (0.5 * np.log(2)))


@pytest.mark.claim("T14")
@pytest.mark.parametrize("factor", [0.3, 0.05])
def test_pairs_mutants(factor: float) -> None:
    with pytest.raises(AssertionError):
        assert_pairs_identify(lambda *args: factor * sc.pair_loss_bound(*args))


# --- T12, T13: the hard instance -------------------------------------------------------------------------------------


def assert_instance(law: Callable[..., Array], c_cov: Callable[..., float], measured: Measured = ignore) -> None:
    """P_i is a law whose y*_γ is y_i alone, and C_cov,γ,p is the formula."""
    worst = 0.0
    for m, gamma, p, rare in itertools.product((2, 3, 10, 1000), (0.3, 0.5), (1, 2, 5), (0.01, 0.4)):
        bases = [np.append(1.0, np.zeros(m)), *(np.append(0.0, law(m, i, gamma)) for i in (0, m - 1))]
        worst = max(worst, *(abs(base.sum() - 1) for base in bases))
        assert [np.flatnonzero(bon.argmax_set(base, gamma)).tolist() for base in bases] == [[0], [1], [m]]
        prompts, built = sc.hard_instance([0, m - 1], m, rare, gamma)
        assert built == pytest.approx(np.array(bases)) and prompts == pytest.approx([1 - rare, rare / 2, rare / 2])
        worst = max(worst, abs(c_cov(m, rare, gamma, p) / bon.c_cov(prompts, bases, gamma=gamma, p=p) - 1))
    measured("C_cov,γ,p formula / definition - 1", worst, SAME)
    assert worst <= SAME


@pytest.mark.claim("T13")
def test_hard_instance(measured: Measured) -> None:
    assert_instance(sc.hidden_law, sc.hard_c_cov, measured)


@pytest.mark.claim("T13")
@pytest.mark.parametrize(
    ("law", "c_cov"),
    [
        (lambda m, i, gamma: np.where(np.arange(m) == i, 1 / ((1 - gamma) * m), 1 / m), sc.hard_c_cov),
        (sc.hidden_law, lambda m, rare, gamma, p: 1 - rare + rare * m * (1 - gamma)),
    ],
    ids=["does not sum to 1", "p = 1"],
)
def test_instance_mutants(law: Callable, c_cov: Callable) -> None:
    with pytest.raises(AssertionError):
        assert_instance(law, c_cov)


def enumerated_error(m: int, k: int) -> float:
    """1 - E max_i posterior of the best guess, over all M^k draws and all hidden i, by fractions.

    The learner sees the draws and their likelihoods: draws with a likelihood of 2/M, or none and the undrawn left.
    """
    low = Fraction(1, m) * (1 - Fraction(1, m - 1))
    right = Fraction(0)
    for draws in itertools.product(range(m), repeat=k):
        joint: dict[tuple, list[Fraction]] = {}
        for i in range(m):
            seen = tuple(y == i for y in draws)  # the likelihoods, as there are but two
            hits = sum(seen)
            joint.setdefault(seen, []).append(Fraction(1, m) * Fraction(2, m) ** hits * low ** (k - hits))
        for undecided in joint.values():
            assert len(set(undecided)) == 1  # the posterior is uniform over those that agree with what was seen
        right += sum(undecided[0] for undecided in joint.values())
    return float(1 - right)


def assert_bayes_error(error: Callable[[int, int], float], measured: Measured = ignore) -> None:
    """Against the enumeration."""
    worst = max(abs(error(m, k) - enumerated_error(m, k)) for m, k in [(3, 4), (4, 3), (5, 4), (6, 3), (5, 0)])
    measured("Bayes error - enumeration", worst, SAME)
    assert worst <= SAME


def first_below(m: int, level: float) -> int:
    return int(np.argmax(sc.bayes_error(m, 2 * m) <= level))


@pytest.mark.claim("T13")
def test_bayes_error(measured: Measured) -> None:
    assert_bayes_error(lambda m, k: sc.bayes_error(m, k)[-1], measured)


@pytest.mark.claim("T13")
@pytest.mark.parametrize(
    "error",
    [
        lambda m, k: (1 - 2 / m) ** k,  # no guess
        lambda m, k: (1 - 2 / m) ** k * (1 - 1 / m),  # a guess among all
        lambda m, k: (1 - 2 / m) ** k * (1 - 1 / max(m - k, 1)),  # as if no draw repeated
    ],
)
def test_bayes_error_mutants(error: Callable[[int, int], float]) -> None:
    with pytest.raises(AssertionError):
        assert_bayes_error(error)


def assert_draws_are_linear_in_the_responses(draws: Callable[[int], float], measured: Measured = ignore) -> None:
    """k/M stays within 5 % of ln(16)/2 = 1.386, to which it tends from below, as a last guess can be right."""
    worst = max(abs(draws(m) / (m * np.log(16) / 2) - 1) for m in (100, 400, 1600))
    measured("draws for error 1/16 per M, relative to ln(16)/2, - 1", worst, 0.05)
    assert worst <= 0.05


@pytest.mark.claim("T13")
def test_draws_are_linear_in_the_responses(measured: Measured) -> None:
    assert_draws_are_linear_in_the_responses(lambda m: first_below(m, 1 / 16), measured)


@pytest.mark.claim("T13")
@pytest.mark.parametrize("draws", [lambda m: first_below(m, 1 / 8), lambda m: 13.86 * m**0.5])
def test_linear_mutants(draws: Callable[[int], float]) -> None:
    with pytest.raises(AssertionError):
        assert_draws_are_linear_in_the_responses(draws)


EPSILONS = (0.02, 0.01, 0.005)


def pairs(epsilon: float, adaptive: bool) -> float:
    """m on the instance with Δ = 4ε and M = 8/ε (C_cov = 17 - 4ε) that leaves the hidden response undrawn w.p. 1/4."""
    responses, rare = round(8 / epsilon), 4 * epsilon
    return sc.adaptive_pairs(responses, rare, 0.25, np.log(20)) if adaptive else sc.fixed_pairs(responses, rare, 0.25)


def assert_rate(
    m_of: Callable[[float], float], power: int, measured: Measured = ignore, constant: float | None = None
) -> None:
    """m ε^power is constant within 5 % over a factor 4 in ε; and tends to the constant, if there is one."""
    scaled = [m_of(epsilon) * epsilon**power for epsilon in EPSILONS]
    spread = max(scaled) / min(scaled) - 1
    measured(f"spread of m ε^{power}, about {scaled[-1]:.4g}", spread, 0.05)
    assert spread <= 0.05
    if constant is not None:
        limit = scaled[-1] + (scaled[-1] - scaled[-2])  # ε is halved from one to the next: what is linear in it goes
        measured(f"m ε^{power} at ε → 0, against {constant:.4g}: relative error", abs(limit / constant - 1), 0.002)
        assert abs(limit / constant - 1) <= 0.002


FIXED = np.log(4)  # N = 1 is best: a pair hits with Δ · 2/M = ε², and n ε² = ln 4 leaves it undrawn with chance ¼


def adaptive_constant(mu: float = np.log(20)) -> float:
    """Of m ε as ε → 0. A visit at a hidden prompt takes N = tM draws: to t = μ/2 if the hidden response has come by
    then (chance 1 − e^(−μ)), else on until it comes, μ at most, and hits with chance h = 1 − e^(−2μ); any other visit
    takes ⌈μ⌉. Δ M = 32, and n ε = ln 4/(4h) visits are needed."""
    mean = mu / 2 + (np.exp(-mu) - np.exp(-2 * mu)) / 2
    return float(np.log(4) / (4 * (1 - np.exp(-2 * mu))) * (np.ceil(mu) + 32 * mean))


@pytest.mark.claim("T12")
def test_fixed_n_needs_one_over_epsilon_squared(measured: Measured) -> None:
    assert_rate(lambda epsilon: pairs(epsilon, False), 2, measured, FIXED)
    for epsilon in EPSILONS:
        assert sc.hard_c_cov(round(8 / epsilon), 4 * epsilon) == pytest.approx(17 - 4 * epsilon)
    assert_rate(lambda epsilon: sc.lower_bound(1.0, 1e9, epsilon) * (1 + np.log(1e9 / epsilon)), 2)


@pytest.mark.claim("T12")
def test_adaptive_n_needs_one_over_epsilon(measured: Measured) -> None:
    assert_rate(lambda epsilon: pairs(epsilon, True), 1, measured, adaptive_constant())
    assert_rate(lambda epsilon: sc.lower_bound(1.0, 1e9, epsilon, adaptive=True) * (1 + np.log(1e9 / epsilon)), 1)
    assert_rate(lambda epsilon: sc.adaptive_sizes(5.0, epsilon, 0.1, 0.25, 17.0)[1], 1)
    assert_rate(lambda epsilon: np.prod(sc.sft_sizes(5.0, epsilon, 0.1, 0.25, 17.0)), 2)


@pytest.mark.claim("T12")
@pytest.mark.parametrize(("adaptive", "power"), [(False, 1), (True, 2)])
def test_the_rates_are_not_exchanged(adaptive: bool, power: int) -> None:
    """The slides' C_cov/ε² for every algorithm is the case (True, 2)."""
    with pytest.raises(AssertionError):
        assert_rate(lambda epsilon: pairs(epsilon, adaptive), power)
    for factor in (0.5, 0.99, 2):
        with pytest.raises(AssertionError):
            assert_rate(
                lambda epsilon: pairs(epsilon, adaptive), 2 - adaptive,
                constant=factor * (adaptive_constant() if adaptive else FIXED),
            )  # fmt: skip


def test_pairs_against_the_law_of_the_draws() -> None:
    """`fixed_pairs` at its best N, by the binomial number of visits instead of the formula."""
    m = sc.fixed_pairs(40, 0.2, 0.25)
    best = np.inf
    for draws in range(1, 160):
        n = np.arange(1, 3000)
        undrawn = np.power(1 - 0.2 + 0.2 * (1 - 2 / 40) ** draws, n)
        best = min(best, draws * int(n[undrawn <= 0.25][0]))
    assert m <= best <= m + 1


# --- T31: pass@k -----------------------------------------------------------------------------------------------------


def assert_unbiased(estimate: Callable[[int, int, int], float], measured: Measured = ignore) -> None:
    """Σ_c Binomial(c; n, p) estimate(n, c, k) = 1 - (1-p)^k."""
    worst = 0.0
    for n, p in itertools.product((1, 5, 30, 100), (0.0, 1e-3, 0.2, 0.9, 1.0)):
        weights = stats.binom.pmf(np.arange(n + 1), n, p)
        for k in {1, 2, n // 2, n} - {0}:
            if k <= n:
                mean = weights @ [estimate(n, c, k) for c in range(n + 1)]
                worst = max(worst, abs(mean - (1 - (1 - p) ** k)))
    measured("E estimate - pass@k", worst, SAME)
    assert worst <= SAME


@pytest.mark.claim("T31")
def test_pass_at_k_is_unbiased(measured: Measured) -> None:
    assert_unbiased(pass_at_k, measured)


@pytest.mark.claim("T31")
@pytest.mark.parametrize("estimate", [sc.plug_in_pass_at_k, lambda n, c, k: float(c >= 1)])
def test_pass_at_k_mutants(estimate: Callable[[int, int, int], float]) -> None:
    with pytest.raises(AssertionError):
        assert_unbiased(estimate)


def assert_power_law(failure: Callable[[float, float, Array], Array], measured: Measured = ignore) -> None:
    """Against quadrature; and k^a · failure tends to Γ(a+b)/Γ(b), so that the log-log slope tends to -a."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    worst, slope = 0.0, 0.0
    for a, b in ((0.3, 1.0), (0.5, 5.0), (1.0, 1.0), (2.5, 3.0)):
        u = (nodes + 1) / 2  # p = u^s smooths the singularity of the density at 0
        s = 4 / a
        p, density = u**s, s * u ** (a * s - 1) / np.exp(sc.betaln(a, b)) * weights / 2
        for k in (0, 1, 10, 300):
            exact = float(np.sum(density * (1 - p) ** (b - 1 + k)))
            worst = max(worst, abs(float(failure(a, b, np.array(k))) / exact - 1))
        ends = np.array([1e6, 1e7])
        slope = max(slope, abs(float(np.diff(np.log(failure(a, b, ends)))[0] / np.log(10)) + a))
        assert failure(a, b, ends) == pytest.approx(sc.beta_tail(a, b, ends), rel=1e-4)
        if a > 1:
            assert sc.beta_c_cov(a, b) == pytest.approx(float(np.sum(density * (1 - p) ** (b - 1) / p)))
            assert np.all(failure(a, b, np.arange(1, 999)) <= sc.beta_c_cov(a, b) / (np.e * np.arange(1, 999)))
        else:
            assert sc.beta_c_cov(a, b) == np.inf
    measured("E(1-p)^k / quadrature - 1", worst, 1e-6)
    measured("log-log slope + a", slope, 1e-5)
    assert worst <= 1e-6 and slope <= 1e-5


@pytest.mark.claim("T31")
def test_power_law(measured: Measured) -> None:
    assert_power_law(sc.beta_failure, measured)


@pytest.mark.claim("T31")
@pytest.mark.parametrize(
    "failure",
    [lambda a, b, k: np.exp(-np.minimum(k * a / (a + b), 700)), lambda a, b, k: sc.beta_failure(b, a, k)],
    ids=["exponential in k", "a and b exchanged"],
)
def test_power_law_mutants(failure: Callable) -> None:
    with pytest.raises(AssertionError):
        assert_power_law(failure)
