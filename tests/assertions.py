"""Four assertions for code that draws random numbers. Each states its two error rates and proves that it has them.

    assert_frequency     a success probability      exact binomial                              detect: |q - p|
    assert_categorical   a law on finitely many     G (likelihood ratio) against chi-square     detect: total variation
    assert_cdf           a law on the line          Dvoretzky-Kiefer-Wolfowitz-Massart          detect: sup |G - F|
    assert_mean          a mean of bounded values   Hoeffding or empirical Bernstein            detect: |m - mean|

`alpha` is both error rates: a right sampler fails with probability at most alpha, and a sampler whose discrepancy is
at least `detect` passes with probability at most alpha. For frequency, cdf and mean both are theorems at any n; for
categorical both are asymptotic (its docstring says how good). Draws must be independent: use one draw per chain.

Without the power to see `detect` the test is refused, whatever the data. A refusal is `pytest.fail`, which is not an
AssertionError, so `pytest.raises(AssertionError)` around a mutant cannot take a lack of power for a detection.
Input that no sampler could have produced (a law that does not sum to 1, a NaN) raises ValueError.

Each returns (statistic, bound), in that order, with statistic <= bound exactly when the test passes.

Two more, for what was computed twice, in batches of different shapes (other prompts beside it, other slots, another
order, another share of the work):

    assert_close         numbers                                                            within 1e-5
    assert_same_samples  tokens, lengths and ends equal; log-probabilities                  within 1e-5

And one for findings that nothing differs, "no gain", "no worse", from a committed estimate and its standard error:

    assert_equivalent    a difference       two one-sided t-tests, at 5 %       margin: from which on it would matter
"""

from collections.abc import Callable
from functools import cache
from typing import NoReturn

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats
from scipy.special import xlogy

from reference.interface import Samples

MIN_EXPECTED = 10.0  # expected draws per cell of the G test; see `assert_categorical`
MAX_DRAWS = 2**40  # where the search for the n that a refused test needs gives up
ROUNDING = 1e-5  # by how much a float32 number may differ in a batch of another shape
# Accuracies of the toy model that differ by less count as equal: it is what D7 asks of a prediction, and less than a
# tenth of what refinement (29 points) and distillation (48) gain, so nothing said of these would change
MARGIN = 0.03


def assert_frequency(
    successes: int, n: int, p: float, *, alpha: float = 1e-6, detect: float, seed: object
) -> tuple[float, float]:
    """`successes` of `n` independent trials are Binomial(n, p). Returns (|successes/n - p|, the bound on that side).

    Fails outside lo..hi, where P(K < lo) and P(K > hi) are at most alpha/2. Power: P(lo <= K <= hi) <= alpha at success
    probability p + detect and p - detect, where these exist; farther away it is smaller still, because that
    probability is unimodal in the success probability.
    """
    successes, n, p = int(successes), int(n), float(p)
    if not (0 <= successes <= n and n > 0 and 0 <= p <= 1):
        raise ValueError(f"assert_frequency: {successes} successes of {n} at p = {p} cannot be")
    _check_detect("assert_frequency", detect, max(p, 1 - p))

    smallest = _require_power("assert_frequency", lambda n: _binomial_detectable(n, p, alpha), n, detect)
    lo, hi = _binomial_region(n, p, alpha)
    statistic = abs(successes - n * p) / n
    bound = (hi - n * p) / n if successes > n * p else (n * p - lo) / n
    _verdict("assert_frequency: |k/n - p|", lo <= successes <= hi, statistic, bound, n, seed, smallest)
    return statistic, bound


def assert_categorical(
    counts: ArrayLike, probs: ArrayLike, *, alpha: float = 1e-6, detect: float, seed: object
) -> tuple[float, float]:
    """`counts` [K] are Multinomial(n, `probs` [K]). Returns (G, its bound). `detect` is a total-variation distance.

    Cells of probability 0 must have count 0. Cells that expect fewer than 10 draws are joined, rarest first, into
    cells that expect 10, but for one last rare cell, which may expect fewer.
    G = 2 sum N log(N / n p) is compared with the chi-square quantile times Williams's (1976) correction. It is G and
    not Pearson's X^2, because X^2 has too heavy a tail for alpha = 1e-6 unless each cell expects hundreds of draws; G
    follows the large deviations of the counts, even in a cell that expects less than one draw.

    Power. Let the true law q be at distance TV(q, p) >= detect, with mass z on the cells of probability 0.
    - If z >= z0 = 1 - alpha^(1/n), such a cell is drawn with probability >= 1 - alpha. Otherwise, given that none is
      drawn, the draws have law q' = q/(1-z), and TV(q', p) >= detect - z0.
    - Joining cells of total mass m and least mass l can hide a distance of m - l, no more.
    - What is left, d = detect - z0 - sum(m - l), is seen by G, which is then noncentral chi-square with noncentrality
      2n KL(q' || p) >= 4 n d^2. This is Pinsker's inequality, so it is the least favourable direction at that distance;
      a law that moves mass d between two halves of equal probability attains it as d -> 0.
    Both laws of G are asymptotic; `test_g_has_its_declared_errors` sums the exact ones.
    """
    counts, probs = np.asarray(counts), np.asarray(probs, dtype=np.float64)
    if counts.ndim != 1 or counts.shape != probs.shape:
        raise ValueError(f"assert_categorical: counts {counts.shape} and probs {probs.shape} must be the same [K]")
    if not (np.all(counts >= 0) and np.all(counts == np.floor(counts))):
        raise ValueError("assert_categorical: counts must be whole numbers >= 0")
    if not (np.all(probs >= 0) and abs(probs.sum() - 1) <= 1e-6) or len(probs) < 2:
        raise ValueError(f"assert_categorical: probs must be >= 0, sum to 1 (not {probs.sum()}) and have >= 2 cells")
    _check_detect("assert_categorical", detect, 1.0)
    n, probs, impossible = int(counts.sum()), probs / probs.sum(), probs == 0

    def detectable(n: int) -> float:
        if n == 0:
            return np.inf
        cell = _join_rare_cells(probs, n)
        least = np.ones(cell.max() + 1)
        np.minimum.at(least, cell[~impossible], probs[~impossible])
        hidden = np.sum(np.bincount(cell, weights=probs) - least)
        unseen = -np.expm1(np.log(alpha) / n) if impossible.any() else 0.0
        bound, df = _g_bound(probs, cell, n, alpha)
        return float(hidden + unseen + np.sqrt(_missed_noncentrality(bound, df, alpha) / (4 * n)))

    smallest = _require_power("assert_categorical", detectable, n, detect)
    drawn = np.flatnonzero(impossible & (counts > 0))
    if drawn.size:
        found = dict(zip(drawn.tolist(), counts[drawn].tolist()))
        raise AssertionError(f"assert_categorical: cells of probability 0 were drawn: {found}, n = {n}, seed = {seed}")
    cell = _join_rare_cells(probs, n)
    statistic = float(_g_statistic(counts, probs, cell))
    bound, _ = _g_bound(probs, cell, n, alpha)
    _verdict("assert_categorical: G", statistic <= bound, statistic, bound, n, seed, smallest)
    return statistic, bound


def assert_cdf(
    samples: ArrayLike, cdf: Callable[[NDArray], ArrayLike], *, alpha: float = 1e-6, detect: float, seed: object
) -> tuple[float, float]:
    """`samples` [n] have the distribution function `cdf` (vectorised; it may jump). Returns (sup |F_n - F|, its bound).

    False alarms: P(sup |F_n - F| > e) <= 2 exp(-2 n e^2) (Massart 1990), also for laws with atoms.
    Power: if the true G has |G - F| >= detect at a point, Hoeffding's inequality there gives
    P(sup |F_n - F| <= e) <= exp(-2 n (detect - e)^2).
    """
    samples = np.sort(np.asarray(samples, dtype=np.float64))
    if samples.ndim != 1 or not samples.size or np.isnan(samples).any():
        raise ValueError(f"assert_cdf: samples must be a non-empty [n] without NaN, not of shape {samples.shape}")
    _check_detect("assert_cdf", detect, 1.0)
    n = samples.size

    def width(n: int) -> float:
        return float(np.sqrt(np.log(2 / alpha) / (2 * n)))

    smallest = _require_power("assert_cdf", lambda n: width(n) + float(np.sqrt(np.log(1 / alpha) / (2 * n))), n, detect)
    # Between two samples F_n is flat and F rises, so the supremum is reached at a sample or just below one.
    at, below = np.asarray(cdf(samples)), np.asarray(cdf(np.nextafter(samples, -np.inf)))
    statistic = max(
        float(np.max(np.abs(np.searchsorted(samples, samples, side="right") / n - at))),
        float(np.max(np.abs(np.searchsorted(samples, samples, side="left") / n - below))),
    )
    if np.isnan(statistic):
        raise ValueError("assert_cdf: the distribution function returned NaN")
    bound = width(n)
    _verdict("assert_cdf: sup |F_n - F|", statistic <= bound, statistic, bound, n, seed, smallest)
    return statistic, bound


def assert_mean(
    samples: ArrayLike, mean: float, low: float, high: float, *, alpha: float = 1e-6, detect: float, seed: object
) -> tuple[float, float]:
    """`samples` [n], independent in [low, high], have expectation `mean`. Returns (|sample mean - mean|, its bound).

    The bound is the smaller of Hoeffding's and the empirical Bernstein bound (Maurer & Pontil 2009, Theorem 4), each at
    alpha/2. With V the sample variance and R = high - low, a deviation to one side exceeds
        R sqrt(log(1/t) / 2n)   and   sqrt(2 V log(2/t) / n) + 7 R log(2/t) / (3(n-1))
    with probability at most t each. Power: at a true mean m with |m - mean| >= detect, the test passes without being
    refused only if the sample mean lies detect - bound or more from m, on one known side. It is refused unless
    bound + (the one-sided width at alpha/2 each) <= detect, so this has probability at most alpha. V is the observed
    one in both, hence the guarantee is about "runs and passes" jointly.
    """
    samples = np.asarray(samples, dtype=np.float64)
    n = samples.size
    if samples.ndim != 1 or n < 2 or np.isnan(samples).any():
        raise ValueError(f"assert_mean: samples must be an [n >= 2] without NaN, not of shape {samples.shape}")
    if not low <= mean <= high or low == high:
        raise ValueError(f"assert_mean: the mean {mean} must lie in [low, high] = [{low}, {high}], with low < high")
    _check_detect("assert_mean", detect, max(high - mean, mean - low))
    if samples.min() < low or samples.max() > high:
        reach = f"{samples.min()}..{samples.max()}"
        raise AssertionError(f"assert_mean: samples {reach} leave [{low}, {high}], n = {n}, seed = {seed}")
    length, variance = high - low, float(samples.var(ddof=1))

    def width(n: int, tail: float) -> float:
        hoeffding = length * np.sqrt(np.log(1 / tail) / (2 * n))
        bernstein = np.sqrt(2 * variance * np.log(2 / tail) / n) + 7 * length * np.log(2 / tail) / (3 * (n - 1))
        return float(min(hoeffding, bernstein))

    # Two sides and two inequalities share alpha in the bound; one side and two inequalities share it in the power.
    smallest = _require_power("assert_mean", lambda n: width(n, alpha / 4) + width(n, alpha / 2), n, detect)
    statistic, bound = abs(float(samples.mean()) - mean), width(n, alpha / 4)
    _verdict("assert_mean: |sample mean - mean|", statistic <= bound, statistic, bound, n, seed, smallest)
    return statistic, bound


def assert_equivalent(
    difference: float,
    error: float,
    *,
    margin: float | tuple[float, float],
    alpha: float = 0.05,
    freedom: float = np.inf,
) -> tuple[float, float]:
    """The true difference lies within (-margin, margin), or (low, high) if two are given; an infinite one is not asked.
    Returns (the end of the interval that comes nearest to its margin, that margin), both as distances from 0.

    Two one-sided t-tests (Schuirmann 1987), each at level alpha, of "difference >= high" and "difference <= low", from
    an estimate with its standard error and degrees of freedom: both reject iff the 1 - 2 alpha interval lies inside. A
    true difference of the margin or more so passes with probability at most alpha, and lack of data cannot pass for
    equality, as it does where intervals need only overlap. Of several differences all of which must pass, too, each is
    tested at alpha: the chance that a false one passes with the others is no greater (intersection-union).
    """
    low, high = margin if isinstance(margin, tuple) else (-margin, margin)
    if not (low < 0 < high and error > 0 and 0 < alpha < 0.5 and np.isfinite((low, high)).any()):
        given = f"margins {low}, {high}, error {error}, alpha {alpha}"
        raise ValueError(f"assert_equivalent: give low < 0 < high, not both infinite, error > 0, alpha < 1/2: {given}")
    reach = float(stats.t.isf(alpha, freedom)) * error
    sides = [(reach + difference, high), (reach - difference, -low)]
    end, bound = max((side for side in sides if np.isfinite(side[1])), key=lambda side: side[0] / side[1])
    line = f"assert_equivalent: {difference:.4g} ± {reach:.3g} reaches {end:.4g}, margin {bound:.4g}, alpha = {alpha}"
    print(line)
    if not end < bound:
        raise AssertionError(line)
    return end, bound


def assert_close(a: torch.Tensor | ArrayLike, b: torch.Tensor | ArrayLike, *, atol: float = ROUNDING) -> None:
    """Numbers of one shape, tensors of one dtype, differ by at most `atol`, however large they are.

    Not to the bit, where the two sides come from batches of different shapes: a processor's matrix product and its
    vectorised sum, exp and log choose their kernel, their order of summation and where the scalar rest begins by the
    shape, so the last digits of a row depend on the rows beside it. Whether two shapes agree on one processor says
    nothing about another. (The same call repeated, or gone on with from a checkpoint, has the same shapes: there
    `torch.equal` is right.)"""
    a, b = (x.detach() if isinstance(x, torch.Tensor) else torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def assert_same_samples(a: Samples, b: Samples, *, atol: float = ROUNDING) -> None:
    """The same responses, whatever the batches they were drawn in: tokens, lengths and `finished` are equal, exactly,
    and log p and log q differ by at most `atol`.

    Tokens are decided by comparing a random number with a cumulative sum, which rounding of 1e-7 moves past it once in
    1e7 tokens; that they are equal is what callers are promised. Log-probabilities are numbers: see `assert_close`."""
    for name in ("tokens", "lengths", "finished"):
        one, other, named = getattr(a, name), getattr(b, name), f"{name}: {{}}".format
        torch.testing.assert_close(one, other, atol=0, rtol=0, msg=named)
    for name in ("logp", "logq"):
        assert_close(getattr(a, name), getattr(b, name), atol=atol)


def _check_detect(name: str, detect: float, largest: float) -> None:
    """`detect` must be a discrepancy that some law has."""
    if not 0 < detect <= largest:
        raise ValueError(f"{name}: detect = {detect} must be in (0, {largest}], the discrepancies that a law can have")


def _require_power(name: str, detectable: Callable[[int], float], n: int, detect: float) -> float:
    """The smallest discrepancy that n draws detect; fails the test, naming the n it needs, if that exceeds `detect`."""
    smallest = detectable(n)
    if smallest <= detect:
        return smallest
    enough = 2 * max(n, 1)
    while enough < MAX_DRAWS and detectable(enough) > detect:
        enough *= 2
    if enough >= MAX_DRAWS:
        _refuse(f"{name}: n = {n} draws see no discrepancy below {smallest:.3g}, and no feasible n sees {detect:g}")
    short = max(n, enough // 2)
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if detectable(middle) <= detect else (middle, enough)
    _refuse(f"{name}: n = {n} draws see no discrepancy below {smallest:.3g}; detect = {detect:g} needs n = {enough}")


def _refuse(message: str) -> NoReturn:
    pytest.fail(message, pytrace=False)


def _verdict(what: str, passed: bool, statistic: float, bound: float, n: int, seed: object, smallest: float) -> None:
    line = f"{what} = {statistic:.4g}, bound {bound:.4g}, n = {n}, seed = {seed}, smallest detectable {smallest:.3g}"
    print(line)
    if not passed:  # not an assert statement: python -O must not switch tests off
        raise AssertionError(line)


def _binomial_region(n: int, p: float, alpha: float) -> tuple[int, int]:
    """The narrowest lo..hi with at most alpha/2 of Binomial(n, p) below and above."""
    return int(stats.binom.ppf(alpha / 2, n, p)), int(stats.binom.isf(alpha / 2, n, p))


@cache  # a test with mutants asks again and again
def _binomial_detectable(n: int, p: float, alpha: float) -> float:
    """The least |q - p| from which on Binomial(n, q) stays in the region of p with probability at most alpha."""
    lo, hi = _binomial_region(n, p, alpha)

    def excess(q: float) -> float:
        return float(stats.binom.cdf(hi, n, q) - stats.binom.cdf(lo - 1, n, q)) - alpha

    sides = []
    for end in {0.0, 1.0} - {p}:
        # Where even the farthest law is missed, only distances that no law on that side has are "detected".
        missed = excess(end) > 0
        sides.append(np.nextafter(abs(end - p), 2) if missed else abs(optimize.brentq(excess, p, end) - p))
    return float(max(sides))


def _join_rare_cells(probs: NDArray, n: int) -> NDArray:
    """The cell of the G test that each cell of `probs` [K] joins, [K]; impossible cells join cell 0, with count 0."""
    cell, current, mass = np.zeros(len(probs), dtype=np.int64), 0, 0.0
    order = np.argsort(probs, kind="stable")
    rare = order[(probs[order] > 0) & (probs[order] * n < MIN_EXPECTED)]
    for i in rare:
        cell[i] = current
        mass += probs[i]
        if mass * n >= MIN_EXPECTED:
            current, mass = current + 1, 0.0
    current += mass > 0  # the last rare cell may expect fewer
    common = order[probs[order] * n >= MIN_EXPECTED]
    cell[common] = current + np.arange(len(common))
    return cell


def _g_statistic(counts: NDArray, probs: NDArray, cell: NDArray) -> NDArray:
    """G of `counts` [..., K], whose rows have one sum. [...]"""
    expected = np.bincount(cell, weights=probs) * counts.sum(-1, keepdims=True)
    observed = np.zeros((*counts.shape[:-1], cell.max() + 1))
    np.add.at(observed, (..., cell), counts)
    return 2 * xlogy(observed, observed / expected).sum(-1)


def _g_bound(probs: NDArray, cell: NDArray, n: int, alpha: float) -> tuple[float, int]:
    """(the bound on G, degrees of freedom); with one cell left G is 0 and so is its bound."""
    expected = np.bincount(cell, weights=probs) * n
    df = len(expected) - 1
    if df == 0:
        return 0.0, 0
    # Williams: E[G] = df + (sum 1/expected - 1/n)/6 + ... His series is for common cells: a rare one counts as 1/10.
    correction = 1 + (np.sum(1 / np.maximum(expected, MIN_EXPECTED)) - 1 / n) / (6 * df)
    # An empty cell, an event of probability P, has G >= 2 log 1/P. With one degree of freedom the chi-square quantile
    # is below 2 log 1/alpha: an empty cell that expects 12 would raise six times as many false alarms as declared.
    return float(max(correction * stats.chi2.isf(alpha, df), -2 * np.log(alpha))), df


def _missed_noncentrality(bound: float, df: int, alpha: float) -> float:
    """The noncentrality at which noncentral chi-square stays below `bound` with probability alpha."""
    if df == 0:
        return 0.0
    high = 1.0
    while stats.ncx2.cdf(bound, df, high) > alpha:
        high *= 2
    return float(optimize.brentq(lambda nc: stats.ncx2.cdf(bound, df, nc) - alpha, 0, high, xtol=1e-9 * high))
