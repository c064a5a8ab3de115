"""The constants of the bounds, each at numbers that can be worked out by hand; whether a bound holds, and how tight it
is, the claims' own tests say."""

import math

import numpy as np
import pytest

from theory import best_of_n as bon
from theory import exploration as ex
from theory import pessimism as pe
from theory import sample_complexity as sc
from theory import sharpening as sh

SAME = 1e-12
LOG_CLASS, N, RHO, DELTA = math.log(100), 200, 0.05, 0.1  # |Π|/ρ = 2000


def near(value, right):
    assert value == pytest.approx(right, rel=SAME)


def test_sec_of_a_linear_class():
    """In one direction Σ = K, one round: log det(1 + K) = log(1 + K), so both bounds are 2K; more rounds add logs."""
    for k in (0.5, 2.0, 30.0):
        near(ex.linear_bound(1, 1, k), 2 * k)
        near(ex.path_bound(np.array([[[k]]]), k)[0], 2 * k)
        near(ex.linear_bound(1, 7, k), 2 * k * math.log(1 + 7 * k) / math.log(1 + k))
        near(ex.linear_bound(3, 9, k), 6 * k * math.log(1 + 3 * k) / math.log(1 + k))
    two = np.array([np.diag([3.0, 0.0]), np.diag([0.0, 3.0])])  # two directions, each once: 2K each
    assert np.allclose(ex.path_bound(two, 3.0), [6, 12], rtol=SAME)


def test_sec_by_coverability():
    """4C f²/λ + 2C log2 T."""
    near(ex.coverability_bound(1.0, 1.0, 1, 1.0), 4)
    near(ex.coverability_bound(3.0, 1.0, 1, 1.0), 12)
    near(ex.coverability_bound(1.0, 5.0, 1, 2.0), 50)
    near(ex.coverability_bound(1.0, 0.0, 8, 1.0), 6)
    near(ex.coverability_bound(2.5, 3.0, 32, 0.5), 2.5 * (72 + 10))


def test_elliptic_potential():
    """One dimension, K = λ: d (K/λ)/log(1 + K/λ) log(1 + T) = log(1 + T)/log 2; as printed log(T + 1)/log 2."""
    near(ex.elliptic_bound(1, 2.0, 2.0, 7), 3)
    near(ex.elliptic_bound(2, 6.0, 2.0, 2), 2 * 3 / math.log(4) * math.log(4))
    near(ex.printed_elliptic_bound(1, 2.0, 2.0, 7), 3)
    near(ex.printed_elliptic_bound(2, 6.0, 2.0, 3), 2 * 3 / math.log(4) * math.log(12))
    near(ex.elliptic_sum(np.array([[[1.0]], [[1.0]], [[2.0]]]), 2.0), 1 / 2 + 1 / 3 + 2 / 4)


def test_closed_forms_of_the_two_worlds():
    near(ex.hypercube_coverage(2), (1 + math.exp(-1)) ** 2)
    near(ex.hypercube_coverage(2, 3.0), (1 + math.exp(-3)) ** 2)
    near(ex.hypercube_margin(4, 2.0), math.e - 1)
    near(ex.draws_for(0.75, 2.0), 2)
    near(ex.needle_log_coverage(3, math.log(5.5)), math.log(6))  # Z = 5.5 + 4 + 2.5 = 12
    near(ex.any_informative(3, math.log(6.5), 1.0), 1 - 0.5**2)  # p = 1/2
    near(ex.any_informative(3, math.log(6.5), 2.0), 1 - 0.5**4)


def test_sizes_of_sft():
    near(sc.KAPPA, (math.sqrt(0.2) - math.sqrt(0.1)) ** 2 / 0.2)  # (√δ − √(δ/2))²/δ at any δ
    mle = 2 * math.log(2000) / 200
    near(sc.mle_bound(LOG_CLASS, N, RHO), mle)
    near(sc.hellinger([1.0, 0.0], [0.0, 1.0]), 2)
    near(sc.sft_failure_bound(LOG_CLASS, N, RHO, DELTA), mle / (1.5 - math.sqrt(2)) / 0.1)
    with_draws = sc.sft_failure_bound(LOG_CLASS, N, RHO, DELTA, n_star=50, coverage=8)
    near(with_draws - sc.sft_failure_bound(LOG_CLASS, N, RHO, DELTA), 8 / 50)
    assert sc.sft_draws(10, 2 * math.exp(-3)) == 30 and sc.sft_draws(10, 2 * math.exp(-3.01)) == 31
    n, draws = sc.sft_sizes(LOG_CLASS, 0.2, RHO, DELTA, 4.0)
    half = 2 * math.log(2000) / ((1.5 - math.sqrt(2)) * 0.1)  # n times the first term
    assert n == math.ceil(half / 0.1) and draws == math.ceil(40 * math.log(20))
    n, pairs = sc.adaptive_sizes(LOG_CLASS, 0.2, RHO, DELTA, 4.0)
    assert n == math.ceil(half / 0.2)
    near(pairs, n * (1 + math.log(20)) * 4)


def test_sizes_of_pairs():
    near(sc.pair_loss_bound(LOG_CLASS, N, RHO, 1.0), math.log(2000) / 200)
    near(sc.pair_loss_bound(LOG_CLASS, N, RHO, 3.0), 9 * math.log(2000) / 200)
    how = {"reach": 3.0, "beta": 0.5, "gamma_margin": math.e - 1, "coverage": 4.0, "concentration": 9.0}
    regret = (2 + 3) * 3 * math.sqrt(math.log(2000) / 200) + 0.5 * math.log(4)
    near(sc.dpo_failure_bound(LOG_CLASS, N, RHO, DELTA, **how), regret / 0.1)
    near(sc.dpo_failure_bound(LOG_CLASS, N, RHO, DELTA, **{**how, "gamma_margin": math.e**2 - 1}), regret / 0.2)


def test_lower_bounds():
    for p, adaptive, power in ((1.0, False, 2), (1.0, True, 1), (2.0, False, 1.5), (2.0, True, 0.5)):
        log = 1 + math.log(8 * 4 ** (1 / p))
        near(sc.lower_bound(3.0, 8.0, 0.25, p, adaptive=adaptive), 8 * 3 * 4**power / log)
    law = sc.hidden_law(5, 2)
    assert np.allclose(law, [0.15, 0.15, 0.4, 0.15, 0.15], rtol=SAME)
    assert np.allclose(sc.hidden_law(5, 0, 0.25), [4 / 15, *[11 / 60] * 4], rtol=SAME)
    prompts, bases = sc.hard_instance([1, 0], 4, 0.2)
    assert np.allclose(prompts, [0.8, 0.1, 0.1]) and bases.shape == (3, 5) and bases[0, 0] == 1
    near(sc.hard_c_cov(8, 0.2), 0.8 + 0.2 * 4)
    near(sc.hard_c_cov(8, 0.2, 0.75, 2.0), math.sqrt(0.8 + 0.2 * 4))


def test_pass_at_k_of_beta_laws():
    near(sc.beta_failure(2.0, 3.0, 1), 3 / 5)
    near(sc.beta_failure(2.0, 3.0, 2), 3 * 4 / (5 * 6))
    near(sc.beta_tail(2.0, 3.0, 10), 12 / 100)
    near(sc.beta_c_cov(3.0, 4.0), 3)
    assert sc.beta_c_cov(1.0, 4.0) == math.inf
    near(sc.plug_in_pass_at_k(4, 1, 2), 1 - (3 / 4) ** 2)


def test_pessimism():
    near(pe.chi_square([1.0, 0.0], [0.25, 0.75]), 1.5)
    near(pe.pessimism_bound(4.0, 0.0, 0.5), 1)
    near(pe.pessimism_bound(4.0, 0.25, 0.5), 1 + 1 + 0.25)
    near(pe.pessimism_bound(9.0, 4.0, 2.0), 6 + 9 + 1)
    near(pe.pessimism_bound(9.0, 4.0, math.sqrt(4 / 9)), 2 * 6)  # at β = √(ε²/C): 2√(Cε²)
    near(pe.mean_square_error([0.25, 0.75], [1.0, 2.0], [0.0, 0.0]), 0.25 + 3)
    law, level = pe.pessimistic([0.5, 0.5], [1.0, 0.0], 1.0)
    near(level, -0.5)
    assert np.allclose(law, [0.75, 0.25], rtol=SAME)
    near(pe.profile_kl_bound(0.3, math.e**2), 0.3 / (1 + math.exp(-2)))
    near(pe.profile_hellinger_bound(0.3, 9.0), 9 / 4 * 0.3)
    assert pe.separating_reward([0.5, 0.5], [0.1, 0.9], 2.5).tolist() == [1, 0]  # .5/.1 = 5 = 2N
    assert pe.separating_reward([0.5, 0.5], [0.1, 0.9], 2.6).tolist() == [0, 0]
    assert pe.coverage_profile([0.5, 0.5], [0.1, 0.9], 5) == 0.5 and pe.coverage_profile([0.5, 0.5], [0.1, 0.9], 6) == 0


def test_best_of_n():
    near(bon.kl_bound(4), math.log(4) - 3 / 4)
    near(bon.coverage_bound(3), 9 / 5)
    near(bon.failure_bound(6.0, 3), 2 / math.e)
    near(bon.kl_gap_bound([0.5, 0.25, 0.25], [0.0, 1.0, 2.0], 3), 6 * (0.25 + 2 / 16))
    assert bon.sufficient_n(0.1, math.exp(-3)) == 30 and bon.sufficient_n(0.1, math.exp(-3.01)) == 31
    near(bon.c_cov([0.5, 0.5], [[0.5, 0.3, 0.2], [0.8, 0.1, 0.1]], p=2.0), math.sqrt((4 + 1.5625) / 2))
    near(bon.failure(0.25, 2), 0.5625)


def test_sharpening():
    near(sh.beta_threshold(0.5, 10, 0.2), 0.5 / (2 * math.log(100)))
    near(sh.beta_threshold(7.0, 10, 0.2), 1 / (2 * math.log(100)))
    near(sh.sharpening_divergence(0.5), 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75))
    logs = np.log([[0.5, 0.25, 0.25]])
    near(sh.margin(logs), 1)
    near(sh.c_cov_single([1.0], logs), 2)
    uniform = np.log([[1 / 3] * 3])
    near(sh.margin_step([1.0], uniform, logs, 0.3), 0.3 * math.log(2))  # 1/3 < .7: the prompt fails
    assert sh.margin_step([1.0], uniform, logs, 0.7) == 0
    near(sh.squared_residual([1.0], uniform, uniform, 1.0), 0)
    near(sh.squared_residual([1.0], logs, logs, 1.0), 2 * math.log(2) ** 2 / 4)  # r is log 2 apart with chance 1/2
    near(sh.hypercube_c_cov(2), (1 + math.exp(-1)) ** 2)
