"""Numbers that are worth reporting: pass@k, intervals, answers."""

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest

from reference.evaluation import accuracy, equal, extract, pass_at_k


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    for n, correct in ((5, 0), (5, 2), (6, 3), (4, 4)):
        for k in range(1, n + 1):
            subsets = list(itertools.combinations([1] * correct + [0] * (n - correct), k))
            assert pass_at_k(n, correct, k) == pytest.approx(np.mean([any(subset) for subset in subsets]), abs=1e-15)
    for n, correct, k in ((5, 2, 6), (5, 6, 1), (5, 2, 0)):
        with pytest.raises(ValueError, match="needs 1 <= k <= n"):
            pass_at_k(n, correct, k)


@pytest.mark.parametrize(("k", "n"), [(0, 7), (7, 7), (3, 10), (130, 200), (1999, 2000)])
def test_right_or_wrong_scores_get_the_exact_binomial_interval(k, n):
    mean, low, high = accuracy([1.0] * k + [0.0] * (n - k))
    exact = binomtest(k, n).proportion_ci(0.95, "exact")
    assert (mean, low, high) == pytest.approx((k / n, exact.low, exact.high), abs=1e-9)


def test_shares_get_an_interval_of_their_mean():
    scores = np.random.default_rng(0).beta(2, 3, 400)
    mean, low, high = accuracy(scores)
    width = 1.96 * scores.std() / 20
    assert mean == pytest.approx(scores.mean())
    assert (low, high) == pytest.approx((mean - width, mean + width), abs=0.15 * width)
    with pytest.raises(ValueError, match="at least one score"):
        accuracy([])
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        accuracy([0.5, 2.0])


def test_answers_are_found_and_compared():
    assert extract(r"so 4, no: \boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    assert extract("first 3 and then -1,234.5.") == "-1,234.5"
    assert extract("none") is None
    for given, answer in (("1,000", "1000.0"), ("1/2", "0.5"), (" $x + 1$ ", "X+1."), ("-3", "-3.0")):
        assert equal(given, answer)
    for given, answer in ((None, "1"), ("12", "1.2"), ("x", "y"), ("1/0", "1"), ("", "0")):
        assert not equal(given, answer)
