"""What helps to choose: best-of-N beside p^α (T38), the gap of independent tokens (P35), blocks of equal cost (P36)."""

from functools import cache
from itertools import product

import numpy as np
import pytest
import torch

from theory import choosing as C
from theory.best_of_n import best_of_n_law, kl, kl_bound
from theory.markov_chain import chain, total_variation
from theory.power import GeometricLM, power_law
from toy.tabular import TabularLM, enumerate_law

# --- Best-of-N and p^α at equal divergence ---------------------------------------------------------------------------


def laws():
    """log p [n]: many sizes and spreads, ties among them."""
    rng = np.random.default_rng(0)
    for n, spread in product((2, 5, 40, 400), (0.1, 0.5, 1.0, 3.0)):
        logp = spread * rng.normal(size=n)
        logp[: n // 4] = logp[0]
        yield logp - np.log(np.exp(logp).sum())


def assert_excess(logp, n, alpha_of=C.matched_alpha):
    """KL's are equal, E log p of p^α is ahead by KL(π_N ‖ p^α)/(α−1), and TV is below Pinsker's bound."""
    base, best = np.exp(logp), best_of_n_law(np.exp(logp), logp, n)
    alpha = alpha_of(logp, kl(best, base))
    target = power_law(logp, alpha)
    ahead, apart = C.excess(best, logp, alpha), kl(best, target)
    assert abs(kl(target, base) - kl(best, base)) < 1e-9
    assert abs(ahead - apart / (alpha - 1)) < 1e-9 * max(1, ahead)
    far = total_variation(best, target)
    assert ahead >= -1e-12 and far**2 <= apart / 2 + 1e-12
    return alpha, ahead, far, far / np.sqrt(max(apart, 1e-300) / 2)


@pytest.mark.claim("T38")
def test_best_of_n_is_behind_at_equal_divergence(measured):
    rows = [assert_excess(logp, n) for logp in laws() for n in (2, 4, 16)]
    measured("TV / Pinsker's bound", max(row[3] for row in rows if row[2] > 1e-6), 1)
    farthest = max(row[2] for row in rows)
    measured("TV of best-of-N and p^α of its KL, greatest", farthest, 0.3)
    assert 0.1 < farthest < 0.3 and max(row[3] for row in rows if row[2] > 1e-6) > 0.8


@pytest.mark.claim("T38")
def test_who_wins_more_often(measured):
    """Neither always: the difference of the two win rates against the base has both signs, and stays small."""
    ahead = []
    for logp, n in product(laws(), (2, 4, 16)):
        base, best = np.exp(logp), best_of_n_law(np.exp(logp), logp, n)
        target = power_law(logp, C.matched_alpha(logp, kl(best, base)))
        rates = C.win_rate(best, base, logp), C.win_rate(target, base, logp)
        ahead.append(rates[0] - rates[1])
        assert rates[0] <= n / (n + 1) + 1e-12
    measured("win rate of best-of-N − that of p^α, least", min(ahead), 0)
    measured("the same, greatest", max(ahead), 0.1)
    assert -0.02 < min(ahead) < -0.005 and 0.01 < max(ahead) < 0.1
    fine = 1e-5 * np.arange(4000)  # nearly even, without ties
    fine -= np.log(np.exp(fine).sum())
    assert abs(C.win_rate(best_of_n_law(np.exp(fine), fine, 4), np.exp(fine), fine) - 4 / 5) < 1e-3


@pytest.mark.claim("T38")
@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_which_n_replaces_which_alpha(spread, measured):
    """Rewards that are normal with this spread under the base, on a grid: KL, the α of each N, and win rates."""
    x = np.linspace(-9, 9, 40_001)
    base = np.exp(-(x**2) / 2)
    base /= base.sum()
    for n, alpha in ((2, 1 + 0.6215 / spread), (4, 1 + 1.1280 / spread), (16, 1 + 1.9158 / spread)):
        assert C.normal_alpha(n, spread) == pytest.approx(alpha, abs=1e-4 / spread)
        tilted = base * np.exp((alpha - 1) * spread * x)  # p^α by p, the rest of log p being even
        tilted /= tilted.sum()
        off = abs(kl(tilted, base) - kl_bound(n))
        measured(f"KL of p^α − KL of best of {n}, spread {spread:g}", off, 1e-3)
        assert off < 1e-3
        won = C.win_rate(tilted[::20] / tilted[::20].sum(), base[::20] / base[::20].sum(), x[::20])
        assert won == pytest.approx(C.normal_win_rate(alpha, spread), abs=1e-3)
        assert (won > n / (n + 1)) == (n == 2)


@pytest.mark.claim("T38")
def test_equal_divergence_mutants():
    logp = next(law for law in laws() if len(law) == 40)
    for wrong in (lambda logp, d: 1.5 * C.matched_alpha(logp, d), lambda logp, d: C.matched_alpha(logp, d / 2)):
        with pytest.raises(AssertionError):
            assert_excess(logp, 4, wrong)


def test_a_divergence_that_no_alpha_has():
    with pytest.raises(ValueError, match="stays below 1"):
        C.matched_alpha(np.log([0.5, 0.5]), 1.0)


# --- The gap of independent tokens -----------------------------------------------------------------------------------


def assert_gap(model: GeometricLM, alpha: float, horizon: int, gap=C.geometric_gap) -> float:
    table = TabularLM.iid([model.stop, *[(1 - model.stop) / model.others] * model.others], torch.float64)
    conditionals = enumerate_law(table, [1], horizon, [0])[2]
    kernel = chain(conditionals, horizon=horizon, alpha=alpha, cut="horizon").kernel
    found = 1 - np.sort(np.linalg.eigvals(kernel).real)[-2]
    assert abs(found - gap(model, alpha, horizon)) < 1e-10
    return found


MODELS = [GeometricLM(e, v) for e, v in ((0.05, 2), (0.3, 1), (0.2, 3), (0.6, 2), (0.34, 2), (0.01, 1))]


@pytest.mark.claim("P35")
def test_gap_of_independent_tokens(measured):
    off = [
        abs(assert_gap(model, alpha, horizon) - C.geometric_gap(model, alpha, horizon))
        for model in MODELS for alpha in (1.0, 2.0, 4.0) for horizon in (1, 2, 4)
    ]  # fmt: skip
    measured("eigenvalue − closed form", max(off), 1e-10)


@pytest.mark.claim("P35")
def test_how_the_gap_falls_with_length(measured):
    """H gap is ρ^H and a constant, in proportions that turn where (1−z) ρ^H = e^α: by ρ a token before."""
    off = 0.0
    for model, alpha in product(MODELS, (2.0, 4.0)):
        rho, z, ended = model.rho(alpha), np.exp(model.zeta(alpha)), model.stop**alpha
        for horizon in (1, 2, 5, 20, 1000):
            exact = (ended + (1 - z) * rho**horizon) / ((1 - rho) * z)
            off = max(off, abs(horizon * C.geometric_gap(model, alpha, horizon) / exact - 1))
    measured("H gap / ((e^α + (1−z) ρ^H)/((1−ρ) z)) − 1", off, 1e-10)
    assert off < 1e-10
    model = GeometricLM(1e-6, 2)  # e^4 = 1e-24, ρ = 1/8: open texts outweigh the ended ones up to 26 tokens
    times = [h * C.geometric_gap(model, 4.0, h) for h in range(1, 60)]
    ratio = np.array(times[1:]) / times[:-1]
    assert np.abs(ratio[:20] - model.rho(4.0)).max() < 1e-3 and np.abs(ratio[40:] - 1).max() < 1e-6


def assert_rate(gap_rate=C.geometric_gap_rate) -> tuple[float, float]:
    """log(H gap) − α L in its bracket, where open texts decide (b^H > e) and where ended ones do; how much of each of
    its halves is used."""
    below, above, cases = 0.0, 0.0, {True: 0, False: 0}
    models = (0.05, 2), (0.01, 1), (0.2, 3), (0.02, 3), (0.6, 2), (1e-3, 2), (1 / 3, 2), (0.5, 1)
    for (e, v), horizon in product(models, (1, 2, 3, 10, 400)):
        cases[((1 - e) / v) ** horizon > e] += 1
        for alpha in (1.0, 4.0, 20.0, 60.0):
            off = np.log(horizon * C.geometric_gap(GeometricLM(e, v), alpha, horizon))
            off -= alpha * gap_rate(GeometricLM(e, v), horizon)
            most = np.logaddexp.reduce(np.log(v) * np.arange(horizon + 1))
            assert -np.log(1 + v) - 1e-9 <= off <= most + 1e-9
            below, above = max(below, -off / np.log(1 + v)), max(above, off / most)
    assert min(cases.values()) >= 10
    return below, above


@pytest.mark.claim("P35")
def test_how_the_gap_falls_with_alpha(measured):
    below, above = assert_rate()
    measured("(α L − log(H gap)) / log(1 + V), greatest", below, 1)
    measured("(log(H gap) − α L) / log(1 + V + .. + V^H), greatest", above, 1)
    assert below > 0.99 and above > 0.8
    assert C.geometric_gap(GeometricLM(0.6, 2), 40.0, 50) == pytest.approx(1 / 50, rel=1e-6)
    assert C.geometric_gap_rate(GeometricLM(0.05, 2), 3) == pytest.approx(2 * np.log(0.475))
    assert C.geometric_gap_rate(GeometricLM(0.05, 2), 9) == pytest.approx(np.log(2 / 19))
    for alpha in (3.0, 4.0):  # of the kernel itself, where (e/b)^α would be ten times less in each unit of α
        slow = assert_gap(GeometricLM(0.05, 2), alpha + 1, 2) / assert_gap(GeometricLM(0.05, 2), alpha, 2)
        assert slow > 0.4


@pytest.mark.claim("P35")
def test_gap_rate_mutants():
    """Without the open texts; and with them at whatever stop probability."""
    for wrong in (
        lambda m, h: min(0.0, np.log(m.stop * m.others / (1 - m.stop))),
        lambda m, h: (h - 1) * np.log((1 - m.stop) / m.others),
    ):
        with pytest.raises(AssertionError):
            assert_rate(wrong)


@pytest.mark.claim("P35")
def test_gap_mutants():
    for wrong in (lambda m, a, h: C.geometric_gap(m, a, h + 1), lambda m, a, h: C.geometric_gap(m, a + 1, h)):
        with pytest.raises(AssertionError):
            assert_gap(MODELS[0], 2.0, 3, wrong)


# --- Blocks at equal tokens ------------------------------------------------------------------------------------------

ALPHA, TIMES = 4.0, (2, 4, 8, 16)


@cache
def hard_worlds(vocab: int, horizon: int, concentration: float, count: int = 30):
    """The first seeds' worlds in which low temperature is at least .3 from p^α."""
    found, seed = [], 0
    while len(found) < count:
        model = TabularLM.random(vocab, horizon, concentration=concentration, seed=seed, dtype=torch.float64)
        _, logp, conditionals = enumerate_law(model, [0], horizon, [0])
        start = chain(conditionals, horizon=horizon, alpha=ALPHA, cut="record").initial
        if total_variation(start, power_law(logp, ALPHA)) >= 0.3:
            found.append((conditionals, power_law(logp, ALPHA)))
        seed += 1
    return found


@cache
def distances(vocab: int, horizon: int, concentration: float) -> list[dict[int, float]]:
    """TV by block, for every world and budget, of `times` the tokens of one answer."""
    rows, blocks = [], [b for b in range(1, horizon + 1) if horizon % b == 0]
    for conditionals, target in hard_worlds(vocab, horizon, concentration):
        one = C.expected_tokens(conditionals, steps=0, horizon=horizon, alpha=ALPHA, block=horizon, cut="record")
        for times in TIMES:
            made = {block: C.at_budget(conditionals, times * one, horizon=horizon, alpha=ALPHA, block=block,
                                       cut="record") for block in blocks}  # fmt: skip
            rows.append({block: total_variation(law[1], target) for block, law in made.items() if law})
    return rows


def factors(rows, block) -> np.ndarray:
    """TV of a block, chosen from the blocks of a case, over that of the best."""
    return np.array([row[block(row)] / min(row.values()) for row in rows])


def assert_block_matters_little(rows, block=max) -> np.ndarray:
    """Mostly within a tenth of the best, seldom above half as far again."""
    found = factors(rows, block)
    assert (found <= 1.1).mean() > 0.6 and (found > 1.5).mean() < 0.1
    return found


FAMILIES = [(3, 4, 1.0), (3, 4, 3.0), (2, 6, 1.0)]


@pytest.mark.claim("P36")
def test_blocks_at_equal_tokens(measured):
    """Of 90 worlds and four budgets: which block is nearest, and what it costs to have one block."""
    rows = [row for family in FAMILIES for row in distances(*family)]
    best = [C.best_block(list(row.values()), list(row)) for row in rows]
    whole, single = (np.mean([b == end(row) for b, row in zip(best, rows)]) for end in (max, min))
    measured("share of cases in which one block is best", float(whole), 0.4)
    measured("share in which blocks of one token are", float(single), 0.05)
    found = assert_block_matters_little(rows)
    measured("share in which one block is within 1.1 of the best", float((found <= 1.1).mean()), 0.6)
    measured("share in which it is beyond 1.5 of the best", float((found > 1.5).mean()), 0.1)
    measured("TV of one block / TV of the best, greatest in these cases", float(found.max()), 3)
    assert len(rows) == 360 and 0.2 < whole < 0.4 and single < 0.05 and found.max() < 3
    worst = float(factors(rows, min).max())
    measured("the same of blocks of one token", worst, 10)
    assert worst > 10


@pytest.mark.claim("P36")
def test_blocks_of_one_token_are_not_near():
    with pytest.raises(AssertionError):
        assert_block_matters_little([row for family in FAMILIES for row in distances(*family)], min)


def test_a_budget_is_met_in_expectation():
    """By hand: two even tokens, H = 1: one token for the draw, one for each step."""
    conditionals = enumerate_law(TabularLM.iid([0.5, 0.5], torch.float64), [0], 1, [0])[2]
    assert C.at_budget(conditionals, 0.5, horizon=1, alpha=2.0, block=1) is None
    records, law = C.at_budget(conditionals, 2.5, horizon=1, alpha=2.0, block=1)
    assert records == [(0,), (1,)] and law.tolist() == [0.5, 0.5]
    one, two = (C.expected_tokens(conditionals, steps=n, horizon=1, alpha=2.0, block=1) for n in (1, 2))
    assert (one, two) == (2.0, 3.0)


# --- The win rate of best-of-N ---------------------------------------------------------------------------------------


def assert_wins(rate=C.best_of_n_win_rate, measured=lambda *_: None):
    worst, most = 0.0, 0.0
    for logp, n in product(laws(), (1, 2, 4, 16)):
        base = np.exp(logp)
        found = rate(base, logp, n)
        worst = max(worst, abs(found - C.win_rate(best_of_n_law(base, logp, n), base, logp)))
        most = max(most, found * (n + 1) / n)
        assert found <= n / (n + 1) + 1e-12 and worst < 1e-10
        assert n > 1 or abs(found - 0.5) < 1e-12
    measured("closed form against the distribution", worst, 1e-10)
    measured("win rate / (N/(N+1)), greatest", most, 1)
    assert most > 0.99


@pytest.mark.claim("T40")
def test_win_rate_of_best_of_n(measured):
    assert_wins(measured=measured)


@pytest.mark.claim("T40")
def test_win_rate_mutants():
    for wrong in (
        lambda base, reward, n: n / (n + 1),
        lambda base, reward, n: C.best_of_n_win_rate(base, reward, n + 1),
    ):
        with pytest.raises(AssertionError):
            assert_wins(wrong)
