"""The statistical assertions have the error rates that they declare, refuse without power, and say what they saw."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import gammaln, xlogy

from reference.interface import Samples
from tests import assertions
from tests.assertions import (
    assert_categorical,
    assert_cdf,
    assert_close,
    assert_equivalent,
    assert_frequency,
    assert_mean,
    assert_same_samples,
)

REFUSED = pytest.fail.Exception


def bernoulli_cdf(p: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: (1 - p) * (x >= 0) + p * (x >= 1)


def zeros_and_ones(k: int, n: int) -> np.ndarray:
    return np.arange(n) < k


# The four assertions on the same experiment, k ones in n Bernoulli(p) draws, where every error rate is a finite sum.
ON_BERNOULLI: dict[str, Callable[..., tuple[float, float]]] = {
    "frequency": lambda k, n, p, **options: assert_frequency(k, n, p, **options),
    "categorical": lambda k, n, p, **options: assert_categorical([k, n - k], [p, 1 - p], **options),
    "cdf": lambda k, n, p, **options: assert_cdf(zeros_and_ones(k, n), bernoulli_cdf(p), **options),
    "mean": lambda k, n, p, **options: assert_mean(zeros_and_ones(k, n), p, 0, 1, **options),
}


def outcome(check: Callable[..., tuple[float, float]], *args: object, **options: object) -> str:
    try:
        statistic, bound = check(*args, **options)
    except AssertionError:
        return "fails"
    except REFUSED:
        return "refused"
    assert statistic <= bound
    return "passes"


def needed(check: Callable[..., tuple[float, float]], *args: object, **options: object) -> int:
    """The n that the refusal of an underpowered test names."""
    with pytest.raises(REFUSED) as refusal:
        check(*args, **options)
    found = re.search(r"needs n = (\d+)", str(refusal.value))
    assert found, refusal.value
    return int(found[1])


@pytest.mark.parametrize("p", [0.5, 0.1])
@pytest.mark.parametrize("name", ON_BERNOULLI)
def test_error_rates_by_enumeration(name: str, p: float) -> None:
    check, alpha, detect, n = ON_BERNOULLI[name], 1e-2, 0.45, 60
    k = np.arange(n + 1)
    verdict = np.array([outcome(check, i, n, p, alpha=alpha, detect=detect, seed=None) for i in k])
    assert "refused" not in verdict
    false_alarm = stats.binom.pmf(k, n, p)[verdict == "fails"].sum()
    assert 0 < false_alarm <= alpha
    for q in (p - detect, p + detect):
        if q >= 0:
            assert stats.binom.pmf(k, n, q)[verdict == "passes"].sum() <= alpha


@pytest.mark.parametrize("p", [0.3, 0.7])
def test_frequency_is_exact(p: float) -> None:
    """Each tail of the acceptance region has at most alpha/2 and would have more with one value more. The n that a
    refusal names is the first at which the miss rate at p - detect and at p + detect is at most alpha."""
    alpha, detect = 1e-2, 0.25

    def accepted(n: int) -> tuple[int, int]:
        verdict = [outcome(assert_frequency, k, n, p, alpha=alpha, detect=0.6, seed=0) for k in range(n + 1)]
        passes = [k for k in range(n + 1) if verdict[k] == "passes"]
        assert passes == list(range(passes[0], passes[-1] + 1))
        return passes[0], passes[-1]

    def missed(n: int) -> float:
        lo, hi = accepted(n)
        return max(stats.binom.cdf(hi, n, q) - stats.binom.cdf(lo - 1, n, q) for q in (p - detect, p + detect))

    n = needed(assert_frequency, 1, 2, p, alpha=alpha, detect=detect, seed=0)
    lo, hi = accepted(n)
    assert stats.binom.cdf(lo - 1, n, p) <= alpha / 2 < stats.binom.cdf(lo, n, p)
    assert stats.binom.sf(hi, n, p) <= alpha / 2 < stats.binom.sf(hi - 1, n, p)
    assert missed(n) <= alpha < missed(n - 1)


def test_frequency_sees_nothing_where_no_outcome_is_rejected() -> None:
    assert outcome(assert_frequency, 1, 2, 0.5, detect=0.5, seed=0) == "refused"  # not even a coin with two heads
    # No coin has success probability 0.9 + 0.6: only the lower side counts.
    assert outcome(assert_frequency, 27, 30, 0.9, detect=0.8, seed=0) == "passes"


def test_categorical_asks_for_what_the_least_favourable_law_needs() -> None:
    """Mass moves between two halves: the exact miss rate, at the n that a refusal names, is alpha to a factor of 3."""
    alpha, detect = 1e-6, 0.1
    n = needed(assert_categorical, [1, 1], [0.5, 0.5], detect=detect, seed=0)
    k, cell = np.arange(n + 1), np.arange(2)
    bound, _ = assertions._g_bound(np.array([0.5, 0.5]), cell, n, alpha)
    passes = assertions._g_statistic(np.stack([k, n - k], axis=1), np.array([0.5, 0.5]), cell) <= bound
    assert alpha / 3 < stats.binom.pmf(k, n, 0.5 + detect)[passes].sum() <= alpha


def test_mean_error_rates_where_bernstein_rules() -> None:
    """3e5 Bernoulli(0.02) draws: the exact error rates again, with the variance term the larger one by far."""
    p, n, alpha, detect = 0.02, 300_000, 1e-2, 2e-3

    def passes(k: int) -> bool:
        return outcome(assert_mean, zeros_and_ones(k, n), p, 0, 1, alpha=alpha, detect=detect, seed=0) == "passes"

    def last_pass(direction: int) -> int:
        inside, outside = 0, int(n * detect)
        assert passes(round(n * p)) and not passes(round(n * p) + direction * outside)
        while outside - inside > 1:
            middle = (inside + outside) // 2
            inside, outside = (middle, outside) if passes(round(n * p) + direction * middle) else (inside, middle)
        return round(n * p) + direction * inside

    lo, hi = last_pass(-1), last_pass(1)
    assert stats.binom.cdf(lo - 1, n, p) + stats.binom.sf(hi, n, p) <= alpha
    assert stats.binom.cdf(hi, n, p + detect) <= alpha and stats.binom.sf(lo - 1, n, p - detect) <= alpha
    assert hi - n * p < 5 * np.sqrt(n * p * (1 - p))  # it is not a bound of any size


def test_williams_correction_is_the_mean_of_g() -> None:
    """128 cells that expect 10 draws each: G exceeds its degrees of freedom by what its bound is stretched by."""
    p = np.full(128, 1 / 128)
    cell, n = assertions._join_rare_cells(p, 1280), 1280
    bound, df = assertions._g_bound(p, cell, n, 1e-6)
    assert df == 127
    g = assertions._g_statistic(np.random.default_rng(0).multinomial(n, p, size=10_000), p, cell)
    excess = df * (bound / stats.chi2.isf(1e-6, df) - 1)
    error = g.std() / 100
    assert abs(g.mean() - (df + excess)) < 5 * error < 0.5 * excess


def compositions(n: int) -> np.ndarray:
    """All counts of three cells with sum n, [rows, 3]."""
    first, second = (axis.ravel() for axis in np.indices((n + 1, n + 1)))
    inside = first + second <= n
    return np.stack([first, second, n - first - second], axis=1)[inside]


def move_mass(probs: np.ndarray, where: list[int], mass: float) -> np.ndarray:
    """The law that moves `mass` into the cells `where` from the others, keeping proportions on both sides."""
    inside = np.isin(np.arange(len(probs)), where)
    share = probs[inside].sum()
    return np.where(inside, probs * (share + mass) / share, probs * (1 - share - mass) / (1 - share))


@pytest.mark.parametrize(
    "probs",
    [[1 / 3, 1 / 3, 1 / 3], [0.25, 0.25, 0.5], [0.043, 0.043, 0.914], [0.01, 0.4, 0.59], [1e-5, 0.4, 0.59999]],
    ids=["even", "half", "skewed", "rare", "rarer"],
)
def test_g_has_its_declared_errors(probs: list[float]) -> None:
    """The exact law of G by summing over all counts of three cells, at the alpha that the suite uses."""
    p, n, alpha = np.array(probs), 300, 1e-6
    cell = assertions._join_rare_cells(p, n)
    assert cell.tolist() == [0, 1, 2]
    bound, df = assertions._g_bound(p, cell, n, alpha)
    distance = np.sqrt(assertions._missed_noncentrality(bound, df, alpha) / (4 * n))
    counts = compositions(n)
    fails = assertions._g_statistic(counts, p, cell) > bound

    def mass(law: np.ndarray, where: np.ndarray) -> float:
        log_pmf = gammaln(n + 1) - gammaln(counts + 1).sum(1) + xlogy(counts, law).sum(1)
        return float(np.exp(log_pmf)[where].sum())

    assert mass(p, np.ones(len(counts), dtype=bool)) == pytest.approx(1, abs=1e-9)
    assert mass(p, fails) <= 2 * alpha
    tried = 0
    for where in ([0], [1], [2], [0, 1], [0, 2], [1, 2]):
        if p[where].sum() + distance < 1:
            assert mass(move_mass(p, where, distance), ~fails) <= alpha
            tried += 1
    assert tried


# Laws with even, geometric, mostly rare, and impossible cells; the geometric one needs joining at any n.
LAWS = {
    "even": np.ones(16) / 16,
    "geometric": 0.5 ** np.arange(1, 41) / (1 - 0.5**40),
    "one rare": np.array([1e-7, 0.2, 0.8 - 1e-7]),
    "impossible": np.array([0.0, 0.5, 0.0, 0.25, 0.25]),
}


@pytest.mark.parametrize("name", LAWS)
def test_categorical_sees_exactly_what_it_declares(name: str) -> None:
    probs, detect = LAWS[name], 0.05
    n = needed(assert_categorical, np.eye(len(probs), dtype=int)[-1], probs, detect=detect, seed=0)
    rng = np.random.default_rng(0)
    half = [int(np.argmax(probs))] if probs.max() >= 0.5 else list(range(0, len(probs), 2))
    wrong = {"least favourable": move_mass(probs, half, detect)}
    wrong["back"] = move_mass(probs, half, -detect)
    if 0 in probs:  # an unlikely sliver on the impossible cells, the rest elsewhere
        sliver = np.where(probs == 0, 1e-5, 0)
        wrong["impossible cells"] = move_mass(probs, half, detect - sliver.sum()) * (1 - sliver.sum()) + sliver
    for law in wrong.values():
        distance = 0.5 * np.abs(law - probs).sum()
        assert distance == pytest.approx(detect, rel=1e-3)
        for counts in rng.multinomial(n, law, size=20):
            with pytest.raises(AssertionError):
                assert_categorical(counts, probs, detect=detect, seed=0)
    for counts in rng.multinomial(n, probs, size=20):
        assert_categorical(counts, probs, detect=detect, seed=0)


def test_a_rare_cell_costs_no_power() -> None:
    two, three = ([0.2, 0.8], [1e-7, 0.2, 0.8 - 1e-7])
    n = [needed(assert_categorical, np.ones(len(law), dtype=int), law, detect=0.02, seed=0) for law in (two, three)]
    assert n[1] < 1.1 * n[0]


def test_categorical_never_lets_an_impossible_cell_pass() -> None:
    counts = np.array([50_000, 49_999, 0])
    assert_categorical(counts, [0.5, 0.5, 0], detect=0.03, seed=0)
    with pytest.raises(AssertionError, match=r"probability 0 were drawn: \{2: 1\}"):
        assert_categorical(np.add(counts, [0, 0, 1]), [0.5, 0.5, 0], detect=0.03, seed=0)
    # A law on one outcome has no other test than this one, and its power is a single number.
    n = needed(assert_categorical, [0, 1], [0, 1], detect=0.02, seed=0)
    assert 0.98**n <= 1e-6 < 0.98 ** (n - 1)
    assert_categorical([0, 1000], [0, 1], detect=0.02, seed=0)
    with pytest.raises(AssertionError):
        assert_categorical([1, 999], [0, 1], detect=0.02, seed=0)


def test_categorical_counts_what_joining_hides() -> None:
    """2,000 rare cells hold half the mass: until most of them expect 10 draws, that half could be permuted unseen."""
    probs = np.concatenate([np.full(2000, 0.5 / 2000), [0.5]])
    counts = np.concatenate([np.full(2000, 12), [24_000]])
    with pytest.raises(REFUSED):
        assert_categorical(counts // 2, probs, detect=0.3, seed=0)
    assert_categorical(counts, probs, detect=0.3, seed=0)
    swapped = counts.copy()
    swapped[:2000:2], swapped[1:2000:2] = 24, 0
    with pytest.raises(AssertionError):
        assert_categorical(swapped, probs, detect=0.3, seed=0)


def test_cdf_sees_exactly_what_it_declares() -> None:
    rng, detect = np.random.default_rng(0), 0.05

    def uniform(x: np.ndarray) -> np.ndarray:
        return np.clip(x, 0, 1)

    n = needed(assert_cdf, [0.5], uniform, detect=detect, seed=0)
    bound, miss = np.sqrt(np.log(2e6) / (2 * n)), np.exp(-2 * n * (detect - np.sqrt(np.log(2e6) / (2 * n))) ** 2)
    assert bound < detect and 0.99e-6 < miss <= 1e-6  # not more draws than Hoeffding's inequality asks for
    for _ in range(20):
        x = rng.random(n)
        assert_cdf(x, uniform, detect=detect, seed=0)
        with pytest.raises(AssertionError):
            assert_cdf(np.where(x < detect, 1.0, x), uniform, detect=detect, seed=0)  # sup |G - F| = detect
        with pytest.raises(AssertionError):
            assert_cdf(np.where(x > 1 - detect, 0.0, x), uniform, detect=detect, seed=0)


def test_cdf_at_atoms_is_the_exact_supremum() -> None:
    """The law on {0, 1, 2}: between its atoms F_n and F are flat; just below an atom only the left limit sees F."""

    def staircase(x: np.ndarray) -> np.ndarray:
        return np.select([x < 0, x < 1, x < 2], [0, 0.2, 0.7], 1.0)

    samples = np.repeat([0.0, 1.0, 2.0], [210, 480, 310])
    statistic, _ = assert_cdf(samples, staircase, detect=0.2, seed=0)
    assert statistic == pytest.approx(0.01, abs=1e-12)
    # Draws that arrive just below the atom at 1 instead of at it: F_n(1-) = 0.69 against F(1-) = 0.2.
    with pytest.raises(AssertionError, match=r"= 0\.49,"):
        assert_cdf(np.where(samples == 1, 1 - 1e-9, samples), staircase, detect=0.2, seed=0)


@pytest.mark.parametrize("mean", [0.5, 0.002])
def test_mean_sees_exactly_what_it_declares(mean: float) -> None:
    rng, detect = np.random.default_rng(0), 0.4 * mean
    pilot = rng.random(20_000) < mean  # its variance is about right, so 1.1 of what it asks for is about enough
    n = int(1.1 * needed(assert_mean, pilot[: int(100 / mean)], mean, 0, 1, detect=detect, seed=0))
    hoeffding = (np.sqrt(np.log(4e6) / 2) + np.sqrt(np.log(2e6) / 2)) ** 2 / detect**2
    assert n < 1.2 * hoeffding if mean == 0.5 else n < 0.05 * hoeffding  # empirical Bernstein is what makes it cheap
    for _ in range(5):
        draws = rng.random(n)
        assert_mean(draws < mean, mean, 0, 1, detect=detect, seed=0)
        for wrong in (mean - detect, mean + detect):
            assert outcome(assert_mean, draws < wrong, mean, 0, 1, detect=detect, seed=0) != "passes"
        with pytest.raises(AssertionError):
            assert_mean(draws < mean - detect, mean, 0, 1, detect=detect, seed=0)


def test_mean_rejects_values_outside_its_range() -> None:
    samples = np.append(np.full(10_000, 0.5), 1.01)
    with pytest.raises(AssertionError, match="leave"):
        assert_mean(samples, 0.5, 0, 1, detect=0.1, seed=0)


@pytest.mark.parametrize("name", ON_BERNOULLI)
def test_refusal_is_not_a_failure_and_names_a_sufficient_n(name: str) -> None:
    """A mutant's pytest.raises(AssertionError) must not be satisfied by a test that had no power."""
    check, p, detect = ON_BERNOULLI[name], 0.3, 0.1
    n = needed(check, 30, 100, p, detect=detect, seed=0)
    assert not issubclass(REFUSED, AssertionError)
    assert outcome(check, round(n * p), n, p, detect=detect, seed=0) == "passes"
    assert outcome(check, round(0.9 * n * p), round(0.9 * n), p, detect=detect, seed=0) == "refused"
    assert outcome(check, 0, 100, p, detect=detect, seed=0) == "refused" or name == "mean"  # whatever the data


@pytest.mark.parametrize("name", ON_BERNOULLI)
def test_message_says_what_was_seen(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    check = ON_BERNOULLI[name]
    statistic, bound = check(4990, 10_000, 0.5, detect=0.08, seed="13/7")
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    for part in (f"= {statistic:.4g}", f"bound {bound:.4g}", "n = 10000", "seed = 13/7", "smallest detectable 0.0"):
        assert part in line
    with pytest.raises(AssertionError, match=r"bound .*, n = 10000, seed = 13/7, smallest detectable 0\.0"):
        check(4000, 10_000, 0.5, detect=0.08, seed="13/7")


@pytest.mark.parametrize(
    "call",
    [
        lambda: assert_frequency(3, 2, 0.5, detect=0.1, seed=0),
        lambda: assert_frequency(1, 2, 0.5, detect=0.6, seed=0),  # no probability is 0.6 away from 0.5
        lambda: assert_frequency(1, 2, 0.5, detect=0, seed=0),
        lambda: assert_categorical([1, 2], [0.5, 0.4], detect=0.1, seed=0),
        lambda: assert_categorical([1, 2, 3], [0.5, 0.5], detect=0.1, seed=0),
        lambda: assert_categorical([5], [1.0], detect=0.1, seed=0),  # no other outcome: it could not fail
        lambda: assert_categorical([0.5, 0.5], [0.5, 0.5], detect=0.1, seed=0),
        lambda: assert_cdf([np.nan], lambda x: x, detect=0.1, seed=0),
        lambda: assert_cdf(np.linspace(0, 1, 10**4), lambda x: x * np.nan, detect=0.1, seed=0),
        lambda: assert_mean([0.1, 0.2], 1.5, 0, 1, detect=0.1, seed=0),
        lambda: assert_mean([0.1, np.nan], 0.5, 0, 1, detect=0.1, seed=0),
    ],
)
def test_impossible_input_is_a_value_error(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="assert_"):
        call()


# Equivalence


@pytest.mark.parametrize("freedom", [2, 30, np.inf])
def test_equivalence_has_its_declared_error(freedom: float) -> None:
    """At a true difference of the margin it passes with probability at most alpha, nearly alpha where the margin is
    many standard errors; at 0 it then passes nearly always. By quadrature over the estimate and its error."""
    error, alpha = 0.1, 0.05
    scales = np.sqrt(stats.chi2.ppf((np.arange(50) + 0.5) / 50, freedom) / freedom) if freedom < np.inf else [1.0]
    points = stats.norm.ppf((np.arange(400) + 0.5) / 400)

    def passes(truth: float) -> float:
        def one(difference: float, found: float) -> bool:
            try:
                assert_equivalent(difference, found, margin=1.5, alpha=alpha, freedom=freedom)
            except AssertionError:
                return False
            return True

        return float(np.mean([one(truth + error * x, error * s) for s in scales for x in points]))

    assert 0.8 * alpha < passes(1.5) < 1.06 * alpha and 0.8 * alpha < passes(-1.5) < 1.06 * alpha
    assert passes(0.0) > 0.999


def test_equivalence_is_one_sided_where_asked_and_says_which_end_is_near() -> None:
    assert assert_equivalent(0.2, 0.1, margin=(-0.1, np.inf))[1] == 0.1  # better by any amount is no worse
    end, margin = assert_equivalent(-0.02, 0.1, margin=(-0.2, 0.5))
    assert margin == 0.2 and end == pytest.approx(0.02 + 0.1 * stats.norm.isf(0.05))
    for difference, error, low, high in ((0.1, 0.1, -0.2, 0.2), (-0.1, 0.1, -0.1, np.inf), (0.0, 1.0, -1, 1)):
        with pytest.raises(AssertionError, match="reaches"):
            assert_equivalent(difference, error, margin=(low, high))
    for bad in (lambda: assert_equivalent(0, 0, margin=1), lambda: assert_equivalent(0, 1, margin=-1),
                lambda: assert_equivalent(0, 1, margin=(-np.inf, np.inf))):  # fmt: skip
        with pytest.raises(ValueError, match="low < 0 < high"):
            bad()


# What was computed in two batches


def some_samples() -> Samples:
    tokens = torch.tensor([[[1, 2, 0], [3, 3, 3]]])
    logp = torch.tensor([[[-0.5, -1.5, 0.0], [-20.0, -0.25, -3.0]]])
    return Samples(tokens, logp, 4 * logp, torch.tensor([[2, 3]]), torch.tensor([[True, False]]))


@pytest.mark.parametrize("name", ["logp", "logq"])
@pytest.mark.parametrize(("off", "passes"), [(0.0, True), (5e-6, True), (-5e-6, True), (1e-4, False), (-1e-4, False)])
def test_log_probabilities_of_other_batches_may_differ_by_rounding_alone(name: str, off: float, passes: bool) -> None:
    """Also where they are large: the tolerance is not relative."""
    a, b = some_samples(), some_samples()
    getattr(b, name)[0, 1, 0] += off
    if passes:
        assert_same_samples(a, b)
    else:
        with pytest.raises(AssertionError):
            assert_same_samples(a, b)
        with pytest.raises(AssertionError):
            assert_same_samples(a, b, atol=5e-5)
        assert_same_samples(a, b, atol=2e-4)


@pytest.mark.parametrize("name", ["tokens", "lengths", "finished"])
def test_responses_of_other_batches_must_be_the_same(name: str) -> None:
    """However large the tolerance of numbers is."""
    for at in (0, -1):
        a, b = some_samples(), some_samples()
        tensor = getattr(b, name).view(-1)
        tensor[at] = ~tensor[at] if name == "finished" else tensor[at] + 1
        for atol in (1e-5, 10.0):
            with pytest.raises(AssertionError, match=name):
                assert_same_samples(a, b, atol=atol)


def test_samples_of_another_shape_are_not_the_same() -> None:
    a = some_samples()
    for other in (
        a.rows(torch.tensor([0, 0])),
        a.take(torch.tensor([[0]])),
        a.rows(torch.tensor([], dtype=torch.int64)),
    ):
        with pytest.raises(AssertionError):
            assert_same_samples(a, other)
    with pytest.raises(AssertionError, match="tokens"):
        assert_same_samples(a, a.take(torch.tensor([[1, 0]])))  # nor in another order


def test_close_numbers() -> None:
    for a, b in (
        ([1.0, 200.0], [1.0 + 5e-6, 200.0 - 5e-6]), (3.0, 3.0 + 9e-6), (torch.tensor([1.0]), torch.tensor([1.000005])),
        (np.array([1e9]), np.array([1e9])), ([-np.inf], [-np.inf]), ([], []),
    ):  # fmt: skip
        assert_close(a, b)
        assert_close(b, a)
    for a, b in (
        ([1.0, 200.0], [1.0, 200.0001]), ([0.0], [1e-4]), (1.0, 1.0001), ([1.0], [1.0, 1.0]), ([np.nan], [np.nan]),
        ([np.inf], [1e9]), (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64)),
        (torch.tensor([1.0]), torch.tensor([[1.0]])),
    ):  # fmt: skip
        with pytest.raises(AssertionError):
            assert_close(a, b)
    assert_close([0.0], [1e-4], atol=2e-4)
