"""The power distribution (claims P1-P3, P23, P25): conditionals, pivotal tokens, the zeta identity, slopes in α.

Each claim is one function `assert_...` of the implementation; the mutants give it a wrong one.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from theory import power
from theory.power import Conditionals, GeometricLM, Law, Record
from toy.tabular import TabularLM, enumerate_law

Measured = Callable[..., None]
SAME = 1e-12  # two float64 computations of one number of order 1


def ignore(*_: object) -> None:
    """What mutants measure is of no interest."""


World = tuple[list[Record], Law, dict[Record, Law], int]  # enumerate_law's answer, horizon


def worlds() -> Iterator[World]:
    """Random laws with a law of their own after every prefix, and a Markov chain with impossible tokens."""
    for seed, (vocab, horizon, stops) in enumerate([(2, 5, [0]), (3, 4, [0]), (4, 3, [1, 3]), (3, 4, []), (4, 4, [2])]):
        for concentration in (0.4, 1.0):
            model = TabularLM.random(vocab, horizon, concentration=concentration, seed=seed, dtype=torch.float64)
            yield *enumerate_law(model, [0], horizon, stops), horizon
    table = [[0.3, 0.3, 0.4], [0.0, 0.4, 0.6], [0.5, 0.2, 0.3]]
    yield *enumerate_law(TabularLM.markov(table, torch.float64), [1], 4, [0]), 4


ALPHAS = (0.5, 1.0, 1.5, 4.0)


def test_records_are_the_enumerated_ones() -> None:
    for records, logp, conditionals, horizon in worlds():
        listed, sums = power.record_logps(conditionals, horizon)
        assert listed == records
        assert np.abs(sums - logp).max() < SAME
        shorter, sums = power.record_logps(conditionals, horizon - 1)  # open texts lose what follows
        assert shorter == sorted({record[: horizon - 1] for record in records})
        assert np.exp(sums).sum() == pytest.approx(1, abs=SAME)


# --- P1: pivotal tokens ----------------------------------------------------------------------------------------------

OddsOf = Callable[[float, float, int, float], tuple[float, float]]


def pivotal_tree(epsilon: float, epsilon_spread: float, futures: int) -> Conditionals:
    """Token 0 has probability ε and is followed by 0; token 1 has ε' and `futures` even futures; token 2, followed by
    0, has the rest."""
    vocab = max(3, futures)
    first, certain, spread = np.zeros((3, vocab))
    first[:3] = epsilon, epsilon_spread, 1 - epsilon - epsilon_spread
    certain[0], spread[:futures] = 1, 1 / futures
    with np.errstate(divide="ignore"):
        return {(): np.log(first), (0,): np.log(certain), (1,): np.log(spread), (2,): np.log(certain)}


def enumerated_odds(epsilon: float, epsilon_spread: float, futures: int, alpha: float) -> tuple[float, float]:
    """By summing over the records of the tree: under p^α, and under low temperature."""
    tree = pivotal_tree(epsilon, epsilon_spread, futures)
    odds = []
    for table, exponent in ((tree, alpha), (power.tempered(tree, 1 / alpha), 1.0)):
        records, logp = power.record_logps(table, 2)
        law = power.power_law(logp, exponent)
        odds.append([law[[record[0] == token for record in records]].sum() for token in (0, 1)])
    return tuple(float(np.log(a / b)) for a, b in odds)  # type: ignore[return-value]


def assert_pivotal(
    odds_of: OddsOf, threshold: Callable[[float, int, float], float], measured: Measured = ignore
) -> None:
    """The closed form of the odds is the enumerated one; the odds under p^α change sign at the threshold."""
    worst = 0.0
    for spread, futures, alpha in itertools.product((0.05, 0.3, 0.45), (1, 2, 7, 40), (1.0, 1.5, 2.0, 4.0)):
        where = threshold(spread, futures, alpha)
        for factor in (0.5, 1 - 1e-6, 1.0, 1 + 1e-6, 1.2):
            if spread + factor * where >= 1:
                continue
            exact = enumerated_odds(factor * where, spread, futures, alpha)
            worst = max(worst, float(np.abs(np.subtract(odds_of(factor * where, spread, futures, alpha), exact)).max()))
            assert worst < SAME, "odds"
            assert (abs(exact[0]) < SAME) if factor == 1 else (np.sign(exact[0]) == np.sign(factor - 1)), "threshold"
            between = factor > 1 and factor * where < spread  # the two samplers disagree here, and only here
            assert ((exact[0] > SAME) and (exact[1] < -SAME)) == between, "proposition 3"
            assert between <= (alpha > 1 and futures > 1)
    measured("odds - enumeration", worst, SAME)


@pytest.mark.claim("P1")
def test_pivotal_tokens(measured: Measured) -> None:
    assert_pivotal(power.pivotal_log_odds, power.pivotal_threshold, measured)


@pytest.mark.claim("P1")
@pytest.mark.parametrize(
    ("odds", "threshold"),
    [
        (power.pivotal_log_odds, lambda spread, futures, alpha: spread / futures),
        (power.pivotal_log_odds, lambda spread, futures, alpha: spread / futures ** (1 / alpha)),
        (lambda *args: power.pivotal_log_odds(*args)[::-1], power.pivotal_threshold),
        (lambda e, spread, n, alpha: power.pivotal_log_odds(e, spread / n, n, alpha), power.pivotal_threshold),
    ],
    ids=["ε'/N", "ε'/N^(1/α)", "the two swapped", "ε' of one future"],
)
def test_pivotal_mutants(odds: OddsOf, threshold: Callable[[float, int, float], float]) -> None:
    with pytest.raises(AssertionError, match=r"odds|threshold"):
        assert_pivotal(odds, threshold)


Pair = Callable[[Law, float], tuple[float, float]]  # p(aa), p(ab), p(ba), p(bb); α -> P(a) under p^α, low temperature


def two_letters(mass: Law, alpha: float) -> tuple[float, float]:
    table = np.asarray(mass).reshape(2, 2) / np.sum(mass)
    with np.errstate(divide="ignore"):
        tree = {
            (): np.log(table.sum(1)),
            (0,): np.log(table[0] / table[0].sum()),
            (1,): np.log(table[1] / table[1].sum()),
        }
    look_ahead = power.power_conditionals(tree, alpha, 2)[()]
    return float(np.exp(look_ahead[0])), float(np.exp(power.tempered(tree, 1 / alpha)[()][0]))


def assert_example_1(pair: Pair, measured: Measured = ignore) -> None:
    """p(aa), p(ab), p(ba), p(bb) = 0, .40, .25, .25 and α = 2: weights .160 : .125 under p^α, .160 : .250 under low
    temperature. As printed they sum to .90; so p is taken up to a factor, which changes no ratio."""
    with_ahead, without = pair(np.array([0, 0.40, 0.25, 0.25]), 2.0)
    measured("P_pow(a)", with_ahead, 0.160 / 0.285)
    measured("P_temp(a)", without, 0.160 / 0.410)
    assert with_ahead == pytest.approx(0.160 / 0.285, abs=SAME) and without == pytest.approx(0.160 / 0.410, abs=SAME)


@pytest.mark.claim("P1")
def test_example_1(measured: Measured) -> None:
    assert_example_1(two_letters, measured)
    assert sum((0, 0.40, 0.25, 0.25)) == pytest.approx(0.90)  # the misprint


@pytest.mark.claim("P1")
@pytest.mark.parametrize(
    "mutant",
    [
        lambda mass, alpha: two_letters(mass, alpha)[::-1],
        lambda mass, alpha: two_letters(mass, alpha + 1),
        lambda mass, alpha: two_letters(mass + np.array([0.1, 0, 0, 0]), alpha),  # the sum mended at p(aa)
    ],
)
def test_example_1_mutants(mutant: Pair) -> None:
    with pytest.raises(AssertionError):
        assert_example_1(mutant)


# --- P2, P3: conditionals and zeta -----------------------------------------------------------------------------------

ConditionalsOf = Callable[[Conditionals, float, int], dict[Record, Law]]


def assert_conditionals(conditionals_of: ConditionalsOf, measured: Measured = ignore) -> None:
    """At every open prefix, those of the enumerated p^α; at the last position, low temperature's."""
    worst = 0.0
    for (records, logp, conditionals, horizon), alpha in itertools.product(worlds(), ALPHAS):
        law, computed = power.power_law(logp, alpha), conditionals_of(conditionals, alpha, horizon)
        assert {*computed} == {*conditionals}
        low_temperature = power.tempered(conditionals, 1 / alpha)
        mass: dict[Record, float] = {}
        for record, weight in zip(records, law):
            for t in range(len(record) + 1):
                mass[record[:t]] = mass.get(record[:t], 0.0) + weight
        for prefix, table in computed.items():
            exact = np.array([mass.get((*prefix, v), 0.0) for v in range(len(table))]) / mass[prefix]
            worst = max(worst, float(np.abs(np.exp(table) - exact).max()))
            assert worst < SAME
            if len(prefix) == horizon - 1:
                assert np.abs(np.exp(low_temperature[prefix]) - exact).max() < SAME
        assert np.abs(power.record_logps(computed, horizon)[1] - np.log(law)).max() < 1e-10
    measured("recursion - enumeration", worst, SAME)


@pytest.mark.claim("P2")
def test_power_conditionals(measured: Measured) -> None:
    assert_conditionals(power.power_conditionals, measured)


def future_under_p(conditionals: Conditionals, alpha: float, horizon: int) -> dict[Record, Law]:
    """Looks ahead with Σ p(rest)^(α+1), the extra power of p of 2601.21590's Algorithm 2."""
    log_f = power.future(conditionals, alpha + 1, horizon)
    ahead = {
        prefix: alpha * law + [log_f.get((*prefix, v), 0.0) for v in range(len(law))]
        for prefix, law in conditionals.items()
    }
    return {prefix: law - np.logaddexp.reduce(law) for prefix, law in ahead.items()}


@pytest.mark.claim("P2")
@pytest.mark.parametrize(
    "mutant",
    [
        lambda conditionals, alpha, horizon: power.tempered(conditionals, 1 / alpha),
        lambda conditionals, alpha, horizon: power.power_conditionals(conditionals, alpha + 0.01, horizon),
        future_under_p,
    ],
    ids=["low temperature", "α + 0.01", "one power of p too many"],
)
def test_power_conditionals_mutants(mutant: ConditionalsOf) -> None:
    with pytest.raises(AssertionError):
        assert_conditionals(mutant)


def test_low_temperature_is_not_the_power_law() -> None:
    """Proposition 1: the two differ in every world here in which α is not 1."""
    for (records, logp, conditionals, horizon), alpha in itertools.product(worlds(), ALPHAS):
        low_temperature = np.exp(power.record_logps(power.tempered(conditionals, 1 / alpha), horizon)[1])
        distance = np.abs(low_temperature - power.power_law(logp, alpha)).sum() / 2
        assert (distance > SAME) == (alpha != 1), (len(records), alpha, distance)


ZetaOf = Callable[[Conditionals, float], dict[Record, float]]


def assert_zeta(
    zeta_of: ZetaOf, measured: Measured = ignore, *, tau: Callable[[float], float] = lambda a: 1 / a
) -> None:
    """α log p(x) - log q(x) = Σ_t ζ(x_<t) for every record; so the log acceptance ratio of a move from x to y that
    keeps x_<r is the sum of ζ over t >= r at y minus that at x. ζ = (1-α) times the Rényi entropy."""
    worst = 0.0
    for (records, logp, conditionals, horizon), alpha in itertools.product(worlds(), ALPHAS):
        zeta = zeta_of(conditionals, alpha)
        logq = power.record_logps(power.tempered(conditionals, tau(alpha)), horizon)[1]
        sums = np.array([sum(zeta[record[:t]] for t in range(len(record))) for record in records])
        worst = max(worst, float(np.abs(alpha * logp - logq - sums).max()))
        assert worst < SAME, "identity"
        if alpha >= 1:
            assert max(zeta.values()) < SAME, "sign"
        else:
            assert min(zeta.values()) > -SAME and max(zeta.values()) > SAME, "sign"
        for prefix, value in zeta.items():
            renyi = np.log(np.sum(np.exp(conditionals[prefix]) ** alpha)) / (1 - alpha) if alpha != 1 else 0.0
            assert value == pytest.approx((1 - alpha) * renyi, abs=SAME)
    measured("α log p - log q - Σ ζ", worst, SAME)


@pytest.mark.claim("P3")
def test_zeta(measured: Measured) -> None:
    assert_zeta(power.zeta, measured)


@pytest.mark.claim("P3")
@pytest.mark.parametrize(
    "mutant",
    [
        lambda conditionals, alpha: power.zeta(conditionals, 1 / alpha),
        lambda conditionals, alpha: {h: value / alpha for h, value in power.zeta(conditionals, alpha).items()},
        lambda conditionals, alpha: power.zeta(power.top_k(conditionals, 2), alpha),
    ],
    ids=["1/α", "ζ/α", "of the filtered law"],
)  # fmt: skip
def test_zeta_mutants(mutant: ZetaOf) -> None:
    with pytest.raises(AssertionError, match="identity"):
        assert_zeta(mutant)


@pytest.mark.claim("P3")
def test_zeta_needs_its_temperature() -> None:
    with pytest.raises(AssertionError, match="identity"):
        assert_zeta(power.zeta, tau=lambda alpha: 0.5)


def assert_suffix_ratio(first: int, measured: Measured = ignore) -> None:
    """The same for suffixes, by their own products: x, y with a common prefix of r - 1 tokens, ζ summed from r."""
    worst = 0.0
    for (records, _, conditionals, _), alpha in itertools.product(worlds(), (1.5, 4.0)):
        zeta, q = power.zeta(conditionals, alpha), power.tempered(conditionals, 1 / alpha)
        for x, y in itertools.product(records[::3], records[::2]):
            for r in range(1, min(len(x), len(y)) + 1):
                if x[: r - 1] != y[: r - 1]:
                    break
                log_ratio = 0.0
                for text, sign in ((y, 1), (x, -1)):
                    for t in range(r - 1, len(text)):
                        prefix, token = text[:t], text[t]
                        log_ratio += sign * (alpha * conditionals[prefix][token] - q[prefix][token])
                of_zeta = sum(zeta[y[:t]] for t in range(r - first, len(y)))
                of_zeta -= sum(zeta[x[:t]] for t in range(r, len(x))) + zeta[x[: r - 1]]
                worst = max(worst, abs(log_ratio - of_zeta))
                assert worst < SAME
    measured("log ratio - Σ Δζ", worst, SAME)


@pytest.mark.claim("P3")
def test_suffix_ratio(measured: Measured) -> None:
    assert_suffix_ratio(1, measured)


@pytest.mark.claim("P3")
def test_suffix_ratio_mutant() -> None:
    """The proposal's sum begins one token late."""
    with pytest.raises(AssertionError):
        assert_suffix_ratio(0)


# --- P23: independent tokens -----------------------------------------------------------------------------------------

Geometric = Callable[[float, int], GeometricLM]
GRID = list(itertools.product((0.05, 0.3, 0.6), (1, 2, 3), (1.0, 1.5, 4.0)))  # e, V, α


def assert_geometric(model_of: Geometric, measured: Measured = ignore) -> None:
    """Lengths, ζ, the low-temperature stop rate, and acceptance against enumeration."""
    worst = 0.0
    for (stop, others, alpha), horizon in itertools.product(GRID, (1, 4)):
        model = model_of(stop, others)
        table = TabularLM.iid([stop, *[(1 - stop) / others] * others], torch.float64)
        records, logp, conditionals = enumerate_law(table, [0], horizon, [0])
        length = np.array([len(record) for record in records])
        law, q = power.power_law(logp, alpha), power.tempered(conditionals, 1 / alpha)
        enumerated = np.bincount(length, weights=law, minlength=horizon + 1)[1:]
        log_w = alpha * logp - power.record_logps(q, horizon)[1]
        claimed = np.array([[model.log_acceptance(alpha, a, b) for b in length] for a in length])
        errors = [
            np.abs(enumerated - model.power_lengths(alpha, horizon)).max(),
            np.abs(np.array([*power.zeta(conditionals, alpha).values()]) - model.zeta(alpha)).max(),
            abs(np.exp(q[()][0]) - model.low_temperature_stop(alpha)),
            np.abs(log_w - log_w[:, None] - claimed).max(),
        ]
        worst = max(worst, *map(float, errors))
        assert worst < SAME
    measured("closed form - enumeration", worst, SAME)


@pytest.mark.claim("P23")
def test_geometric_model(measured: Measured) -> None:
    assert_geometric(GeometricLM, measured)


class RhoOfOneRecord(GeometricLM):
    """Forgets that V^(n-1) records have length n."""

    def rho(self, alpha: float) -> float:
        return ((1 - self.stop) / self.others) ** alpha


class OpenRecordsForgotten(GeometricLM):
    def power_lengths(self, alpha: float, horizon: int) -> Law:
        weight = self.rho(alpha) ** np.arange(horizon)
        return weight / weight.sum()


class AcceptanceReversed(GeometricLM):
    def log_acceptance(self, alpha: float, length: int, proposed: int) -> float:
        return self.zeta(alpha) * (length - proposed)


@pytest.mark.claim("P23")
@pytest.mark.parametrize("mutant", [RhoOfOneRecord, OpenRecordsForgotten, AcceptanceReversed])
def test_geometric_mutants(mutant: Geometric) -> None:
    with pytest.raises(AssertionError):
        assert_geometric(mutant)


def assert_lengths(model_of: Geometric, measured: Measured = ignore) -> None:
    """e = .05, V = 2, α = 4: mean length 20, at low temperature 16 291, under p^α 1.11; p^α never lengthens, low
    temperature does iff e < (1-e)/V; the mean is the limit of a long horizon's."""
    model = model_of(0.05, 2)
    measured("mean length under p^4", model.power_mean_length(4.0), 1.1134)
    measured("at temperature 1/4", 1 / model.low_temperature_stop(4.0), 16291)
    assert model.power_mean_length(4.0) == pytest.approx(1.1134, abs=5e-5)
    assert 1 / model.low_temperature_stop(4.0) == pytest.approx(16291, abs=0.5)
    for stop, others, alpha in GRID:
        model, base = model_of(stop, others), 1 / stop
        horizon = 3000  # (1 - e)^3000 < 1e-60
        mean = model.power_lengths(alpha, horizon) @ np.arange(1, horizon + 1)
        assert model.power_mean_length(alpha) == pytest.approx(mean, rel=SAME)
        if alpha == 1:
            assert mean == pytest.approx(base, rel=SAME)
        else:
            assert mean < base
            assert (1 / model.low_temperature_stop(alpha) > base) == (stop < (1 - stop) / others)


@pytest.mark.claim("P23")
def test_lengths_move_in_opposite_directions(measured: Measured) -> None:
    assert_lengths(GeometricLM, measured)


@pytest.mark.claim("P23")
@pytest.mark.parametrize("mutant", [RhoOfOneRecord, lambda e, v: GeometricLM(e, v + 1)])
def test_lengths_mutants(mutant: Geometric) -> None:
    with pytest.raises(AssertionError):
        assert_lengths(mutant)


# --- P25: what p^α is the optimum of, and how it moves with α --------------------------------------------------------

LawOf = Callable[[Law, float], Law]  # log p, β -> a law


def assert_optimum(law_of: LawOf, measured: Measured = ignore) -> None:
    """J(π) = E_π log p - β KL(π || p) is β log Σ p^α - β KL(π || p^α) at α = 1 + 1/β, for many laws π; so p^α is its
    one maximum."""
    rng = np.random.default_rng(0)
    worst = 0.0
    for (_, logp, _, _), beta in itertools.product(worlds(), (0.3, 1.0, 4.0)):
        best, target = beta * np.log(np.sum(np.exp((1 + 1 / beta) * logp))), law_of(logp, beta)
        worst = max(worst, abs(power.objective(target, logp, beta) - best))
        assert worst < 1e-10, "maximum"
        for _ in range(5):
            law = rng.dirichlet(np.ones(len(logp)))
            kl = float(np.sum(law * np.log(law / target)))
            assert power.objective(law, logp, beta) == pytest.approx(best - beta * kl, rel=1e-10), "identity"
    measured("J(p^α) - β log Σ p^α", worst, 1e-10)


@pytest.mark.claim("P25")
def test_the_power_law_is_the_optimum(measured: Measured) -> None:
    assert_optimum(lambda logp, beta: power.power_law(logp, 1 + 1 / beta), measured)


@pytest.mark.claim("P25")
@pytest.mark.parametrize(
    "mutant",
    [lambda logp, beta: power.power_law(logp, 1 / beta), lambda logp, beta: power.power_law(logp, 1.01 + 1 / beta)],
)
def test_optimum_mutants(mutant: LawOf) -> None:
    with pytest.raises(AssertionError, match="maximum"):
        assert_optimum(mutant)


SlopeOf = Callable[[Law, float, Law], float]  # log p, α, reward


def derivative(of: Callable[[float], float], at: float, step: float = 0.01) -> float:
    """By central differences, five points: the error is of order step^4."""
    near, far = (of(at + k * step) - of(at - k * step) for k in (1, 2))
    return (8 * near - far) / (12 * step)


def assert_slope(slope_of: SlopeOf, measured: Measured = ignore) -> None:
    """d/dα E[r] = Cov(r, log p) under π_α, for 0-1 rewards P (1-P) δ(α); dδ/dα is the difference of the variances of
    log p; δ(∞) the difference of the best; so more power helps iff the right answers are the likelier ones."""
    worst = 0.0
    rng = np.random.default_rng(1)
    for (_, logp, _, _), alpha in itertools.product(worlds(), ALPHAS):
        correct = rng.permutation(np.arange(len(logp)) % 3 == 0)
        for reward in (correct.astype(float), rng.normal(size=len(logp))):
            seen = derivative(lambda a, r=reward, s=logp: float(power.power_law(s, a) @ r), alpha)  # type: ignore[misc]
            worst = max(worst, abs(seen - slope_of(logp, alpha, reward)))
            assert worst < 1e-5, "slope"
        delta, change = power.separation(logp, alpha, correct)
        p = float(power.power_law(logp, alpha) @ correct)
        assert slope_of(logp, alpha, correct) == pytest.approx(p * (1 - p) * delta, abs=SAME), "P(1-P)δ"
        seen = derivative(lambda a, c=correct, s=logp: power.separation(s, a, c)[0], alpha)  # type: ignore[misc]
        assert seen == pytest.approx(change, abs=1e-5 + 1e-4 * abs(change))
        limit = power.separation(logp, 1e6, correct)[0]
        assert limit == pytest.approx(logp[correct].max() - logp[~correct].max(), abs=1e-4)
    measured("dE[r]/dα by differences - Cov(r, log p)", worst, 1e-5)


@pytest.mark.claim("P25")
def test_slope(measured: Measured) -> None:
    assert_slope(power.slope, measured)


@pytest.mark.claim("P25")
@pytest.mark.parametrize(
    "mutant",
    [
        lambda logp, alpha, reward: power.slope(logp, 1.0, reward),
        lambda logp, alpha, reward: alpha * power.slope(logp, alpha, reward),
        lambda logp, alpha, reward: float(power.power_law(logp, alpha) @ (logp * reward)),
    ],
    ids=["under p", "α Cov", "no centring"],
)
def test_slope_mutants(mutant: SlopeOf) -> None:
    with pytest.raises(AssertionError, match=r"slope|δ"):
        assert_slope(mutant)
