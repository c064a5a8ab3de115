"""What power sampling costs (claims P21, P22, and the tokens of P26): formulas against enumeration.

Each claim is one function `assert_...` of the implementation; the mutants give it a wrong one.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from tests.theory.test_markov_chain import LawOf, Procedure, World, world, world_with_zeros
from theory import cost, power
from theory import markov_chain as mc
from theory.power import Record

Measured = Callable[..., None]
SAME = 1e-12  # two float64 computations of one number of order 1
PAPER = {"block": 192, "steps": 10}  # of the paper's runs; answers of 679 tokens on MATH500
Formula = Callable[[int, int, int], float]  # T, B, N


def ignore(*_: object) -> None:
    """What mutants measure is of no interest."""


# --- P21: decoded tokens ---------------------------------------------------------------------------------------------


def over_all_cuts(length: int, block: int, steps: int, price: Callable[[int, int], float]) -> float:
    """The mean of the sum of price(r, h) over all sequences of cuts of all stages, each equally likely."""
    total = 0.0
    for h in mc.horizons(length, block):
        sequences = list(itertools.product(range(1, h + 1), repeat=steps))
        total += sum(price(r, h) for cuts in sequences for r in cuts) / len(sequences)
    return total


GRID = [(1, 1, 2), (4, 2, 2), (5, 2, 2), (7, 3, 1), (6, 6, 3), (9, 4, 2), (12, 1, 1)]  # T, B, N


def assert_tokens(formula: Formula, measured: Measured = ignore) -> None:
    """Where no text ends: over all cuts; and from the laws of the chain. More than N T^2/(4B) for any T, B, N >= 1."""
    worst = 0.0
    for length, block, steps in GRID:
        counted = length + over_all_cuts(length, block, steps, lambda r, h: h - r + 1)
        worst = max(worst, abs(formula(length, block, steps) / counted - 1))
        assert worst < SAME, "cuts"
    endless = world(0, 3, 4, ())
    for block, steps, tau in itertools.product((1, 2, 3, 4), (0, 1, 3), (None, 1.0)):
        for cut in ("horizon", "record"):
            followed = cost.expected_tokens(
                endless.conditionals, horizon=4, alpha=4.0, tau=tau, block=block, steps=steps, cut=cut  # type: ignore[arg-type]
            )  # fmt: skip
            worst = max(worst, abs(formula(4, block, steps) / followed - 1))
            assert worst < SAME, "chain"
    measured("formula / enumeration - 1", worst, SAME)
    for length, block, steps in itertools.product((1, 10, 191, 192, 193, 1000), (1, 7, 192, 500), (1, 10, 1000)):
        assert formula(length, block, steps) > cost.paper_tokens(length, block, steps)


@pytest.mark.claim("P21")
def test_tokens(measured: Measured) -> None:
    assert_tokens(cost.tokens, measured)


@pytest.mark.claim("P21")
@pytest.mark.parametrize(
    "mutant",
    [
        cost.paper_tokens,
        cost.paper_token_sum,
        lambda t, b, n: t + cost.paper_tokens(t, b, n),
        lambda t, b, n: cost.tokens(t, b, n) - t,
        lambda t, b, n: t + n * sum(h / 2 for h in mc.horizons(t, b)),
        lambda t, b, n: t + n * sum((k * b + 1) / 2 for k in range(1, -(-t // b) + 1)),
    ],
    ids=["Eq. 12", "sum of Eq. 12", "Eq. 12 + T", "without the draw", "h/2", "last stage full"],
)
def test_tokens_mutants(mutant: Formula) -> None:
    with pytest.raises(AssertionError, match="cuts"):
        assert_tokens(mutant)


def assert_multipliers(formula: Formula, measured: Measured = ignore) -> None:
    """Tokens for each token returned, in the paper's setting: 14.5 at T = 679, where the paper says 8.84; more where
    lengths vary (lognormal of mean 679, cut at 3072). A run that was measured elsewhere: 15.7 at a mean of 628."""
    for length, expected in ((600, 15.63), (628, 15.20), (679, 14.51), (3072, 43.53)):
        assert formula(length, **PAPER) / length == pytest.approx(expected, abs=0.006)
    measured("T = 679: tokens/T", formula(679, **PAPER) / 679, 14.5)
    measured("the paper's", cost.paper_tokens(679, **PAPER) / 679, 8.84)
    assert cost.paper_tokens(679, **PAPER) / 679 == pytest.approx(8.84, abs=0.005)
    lengths = np.arange(1, 3073)
    counts = np.array([formula(int(length), **PAPER) for length in lengths])
    for variation, expected in ((0.5, 16.93), (0.8, 19.57), (1.0, 21.05)):
        shape = np.sqrt(np.log(1 + variation**2))
        law = stats.lognorm(shape, scale=679 * np.exp(-(shape**2) / 2))
        weight = np.diff(law.cdf(lengths - 0.5), append=1.0)
        assert weight @ counts / (weight @ lengths) == pytest.approx(expected, abs=0.01)
        measured(f"lengths of coefficient of variation {variation}", weight @ counts / (weight @ lengths), expected)


@pytest.mark.claim("P21")
def test_multipliers(measured: Measured) -> None:
    assert_multipliers(cost.tokens, measured)


@pytest.mark.claim("P21")
@pytest.mark.parametrize("mutant", [cost.paper_tokens, cost.paper_token_sum])
def test_multipliers_mutants(mutant: Formula) -> None:
    with pytest.raises(AssertionError):
        assert_multipliers(mutant)


class Counting(Procedure):
    """Counts the tokens that a step decodes, as a sampler would: with a U, token by token, then averaged over U."""

    def factors(self, text: Record) -> np.ndarray:
        """p(y_t)^α/q(y_t) of each token."""
        prefixes = [(text[:t], v) for t, v in enumerate(text)]
        return np.array([self.p[prefix][v] ** self.alpha / self.q[prefix][v] for prefix, v in prefixes])

    def bounds(self, x: Record, y: Record, r: int) -> list[float]:
        """What U is compared with behind y_r, .., y_(end - 1)."""
        own, found = (
            self.factors(x)[r - 1 :].prod(),
            self.factors(y)[r - 1 :].cumprod()[:-1] / self.factors(x)[r - 1 :].prod(),
        )
        assert own > 0
        if self.cut == "record":
            found = found * len(x) / np.arange(r, len(y))
        return [float(b) for b in found]

    def count(self, x: Record, y: Record, r: int, skip: bool, early: bool) -> float:
        known = next((t for t, (a, b) in enumerate(zip(x, y)) if a != b), len(y)) if skip else r - 1
        bounds = self.bounds(x, y, r) if early else []
        ends = sorted({0.0, 1.0, *(b for b in bounds if b < 1)})
        mean = 0.0
        for low, high in itertools.pairwise(ends):
            u, decoded = (low + high) / 2, 0
            for t in range(r, len(y) + 1):  # position t
                decoded += t > known
                if t < len(y) and early and u > bounds[t - r]:
                    break
            mean += (high - low) * decoded
        return mean

    def tokens_of_step(self, x: Record, h: int, skip: bool, early: bool) -> float:
        cuts = self.cuts(x, h)
        return sum(
            chance * self.count(x, y, r, skip, early) / len(cuts)
            for r in cuts
            if r <= len(x)
            for y, chance in self.continuations(x[: r - 1], h)
        )

    def tokens(self, steps: int, skip: bool, early: bool) -> float:
        law, total = {(): 1.0}, 0.0
        for h in mc.horizons(self.world.horizon, self.block):
            after: dict[Record, float] = defaultdict(float)
            for x, mass in law.items():
                for y, chance in self.continuations(x, h):
                    after[y] += mass * chance
                    total += mass * chance * (len(y) - len(x))
            law = after
            for _ in range(steps):
                total += sum(mass * self.tokens_of_step(x, h, skip, early) for x, mass in law.items())
                after = defaultdict(float)
                for x, mass in law.items():
                    for y, chance in self.step(x, h).items():
                        after[y] += mass * chance
                law = after
        return total


SMALL = [world(0, 3, 3), world(11, 4, 2, (1, 3)), world(21, 2, 4), world_with_zeros()]
TokensOf = Callable[..., float]  # like cost.expected_tokens


def assert_expected_tokens(tokens_of: TokensOf, measured: Measured = ignore, *, skip: bool, early: bool) -> None:
    """Against the procedure that counts; records end at different lengths."""
    worst = 0.0
    for w in SMALL:
        for alpha, tau, block, steps in (
            (4.0, None, 2, 1),
            (1.5, 1.0, w.horizon, 2),
            (4.0, 0.5, 1, 1),
            (2.0, None, 3, 0),
        ):
            for cut in ("horizon", "record"):
                counted = Counting(w, alpha, tau, cut, "exact", block).tokens(steps, skip, early)  # type: ignore[arg-type]
                expected = tokens_of(
                    w.conditionals, horizon=w.horizon, alpha=alpha, tau=tau, block=block, steps=steps, cut=cut,
                    first_divergence_skip=skip, early_reject=early,
                )  # fmt: skip
                worst = max(worst, abs(expected / counted - 1))
                assert worst < SAME
    measured("expected tokens / counted - 1", worst, SAME)


@pytest.mark.claim("P21")
def test_expected_tokens(measured: Measured) -> None:
    assert_expected_tokens(cost.expected_tokens, measured, skip=False, early=False)


@pytest.mark.claim("P21")
@pytest.mark.parametrize(
    "mutant",
    [
        lambda *args, horizon, block, steps, **_: cost.tokens(horizon, block, steps),
        lambda *args, **settings: cost.expected_tokens(*args, **(settings | {"first_divergence_skip": True})),
        lambda *args, **settings: cost.expected_tokens(*args, **(settings | {"tau": 1.0})),
        lambda *args, **settings: cost.expected_tokens(*args, **(settings | {"cut": "horizon"})),
    ],
    ids=["as if nothing ended", "with the skip", "another proposal", "the other cut"],
)
def test_expected_tokens_mutants(mutant: TokensOf) -> None:
    with pytest.raises(AssertionError):
        assert_expected_tokens(mutant, skip=False, early=False)


@pytest.mark.claim("P26")
@pytest.mark.parametrize(("skip", "early"), [(True, False), (False, True), (True, True)])
def test_expected_tokens_with_savings(skip: bool, early: bool, measured: Measured) -> None:
    assert_expected_tokens(cost.expected_tokens, measured, skip=skip, early=early)


@pytest.mark.claim("P26")
@pytest.mark.parametrize(("skip", "early"), [(True, False), (False, True), (True, True)])
def test_savings_mutants(skip: bool, early: bool) -> None:
    """Without either saving the count is another."""
    with pytest.raises(AssertionError):
        assert_expected_tokens(
            lambda *args, first_divergence_skip, early_reject, **settings: cost.expected_tokens(*args, **settings),
            skip=skip,
            early=early,
        )


@pytest.mark.claim("P26")
def test_savings_save(measured: Measured) -> None:
    """Share of the tokens of all steps that is left, over worlds of horizon 5 at α = 4, B = H: never more than 1."""
    left: dict[str, list[float]] = defaultdict(list)
    for seed in range(6):
        w = world(100 + seed, 3, 5)
        texts = mc.all_texts(w.conditionals, power.tempered(w.conditionals, 0.25), 5)
        states = texts.only(texts.are_records(5), 5)
        whole = cost.tokens_per_step(states, 4.0)
        for name, saving in (
            ("skip", {"first_divergence_skip": True}),
            ("early reject", {"early_reject": True}),
            ("both", {"first_divergence_skip": True, "early_reject": True}),
        ):
            with_saving = cost.tokens_per_step(states, 4.0, **saving)
            assert np.all(with_saving <= whole * (1 + SAME))
            left[name].append(float(w.law(4.0) @ with_saving / (w.law(4.0) @ whole)))
    for name, shares in left.items():
        measured(f"left with {name}, mean", float(np.mean(shares)), 1)
        assert max(shares) < 1


def assert_attention(formula: Formula, limit: Formula, measured: Measured = ignore) -> None:
    """A step at horizon n attends (1/n) Σ_r Σ_{t>=r} t positions; the sum tends to N T^3/(9B)."""
    for length, block, steps in GRID:
        counted = over_all_cuts(length, block, steps, lambda r, h: sum(range(r, h + 1)))
        assert formula(length, block, steps) == pytest.approx(counted, rel=SAME), "cuts"
    for scale in (10, 100, 1000):  # B = scale, T = scale^2
        ratio = formula(scale**2, scale, 7) / limit(scale**2, scale, 7)
        assert abs(ratio - 1) < 4 / scale, "limit"
        measured("N Σ (h+1)(2h+1)/6 / limit, T/B = 1000", ratio, 1)
    for length, exact, rounded in ((768, 12.5, 8.89), (679, 14.1, 7.86), (3072, 39.0, 35.6)):
        direct = length * (length + 1) / 2
        assert formula(length, **PAPER) / direct == pytest.approx(exact, abs=0.06)
        assert limit(length, **PAPER) / (length**2 / 2) == pytest.approx(rounded, abs=0.06)


@pytest.mark.claim("P21")
def test_attention(measured: Measured) -> None:
    assert_attention(cost.attention, cost.attention_limit, measured)


@pytest.mark.claim("P21")
@pytest.mark.parametrize(
    ("formula", "limit", "where"),
    [
        (cost.seed_attention, cost.attention_limit, "cuts"),
        (cost.attention, cost.seed_attention_limit, "limit"),
        (lambda t, b, n: n * sum(h**2 / 3 for h in mc.horizons(t, b)), cost.attention_limit, "cuts"),
    ],
    ids=["seed: n^3/3 a step", "seed: N T^2/(9B)", "n^2/3 a step"],
)
def test_attention_mutants(formula: Formula, limit: Formula, where: str) -> None:
    with pytest.raises(AssertionError, match=where):
        assert_attention(formula, limit)


# --- P22: how often the first token is cut ---------------------------------------------------------------------------

RedrawsOf = Callable[[int, int, int, int], float]


def assert_redraws(redraws: RedrawsOf, measured: Measured = ignore) -> None:
    """Over all cuts; (N/B)(1 + 1/2 + .. + B/T) at the first token if B divides T; the paper's setting."""
    worst = 0.0
    for length, block, steps in GRID:
        for position in range(1, length + 1):
            counted = over_all_cuts(length, block, steps, lambda r, h, t=position: float(r <= t <= h))  # type: ignore[misc]
            worst = max(worst, abs(redraws(position, length, block, steps) - counted))
            assert worst < SAME, "cuts"
    measured("formula - enumeration", worst, SAME)
    for stages in (1, 4, 16):
        harmonic = 10 / 192 * sum(1 / k for k in range(1, stages + 1))
        assert redraws(1, 192 * stages, **PAPER) == pytest.approx(harmonic, rel=SAME)
    for position, stages, expected in (
        (1, 4, 0.11),
        (1, 16, 0.18),
        (10, 4, 1.1),
        (10, 16, 1.8),
        (192, 4, 21),
        (192, 16, 34),
    ):
        assert redraws(position, 192 * stages, **PAPER) == pytest.approx(expected, rel=0.05)
    measured("cuts of the first token, T = 679", redraws(1, 679, **PAPER), 0.11)
    measured("T = 3072", redraws(1, 3072, **PAPER), 0.18)


@pytest.mark.claim("P22")
def test_redraws(measured: Measured) -> None:
    assert_redraws(cost.redraws, measured)
    assert cost.restarts(679, **PAPER) == cost.redraws(1, 679, **PAPER)


@pytest.mark.claim("P22")
@pytest.mark.parametrize(
    "mutant",
    [
        lambda position, t, b, n: cost.redraws(position + 1, t, b, n),
        lambda position, t, b, n: n * sum(position / h for h in mc.horizons(t, b)),
        lambda position, t, b, n: n * position / t,
    ],
    ids=["one position on", "stages too short for it", "last stage only"],
)
def test_redraws_mutants(mutant: RedrawsOf) -> None:
    with pytest.raises(AssertionError, match="cuts"):
        assert_redraws(mutant)


def first_token(records: list[Record], law: np.ndarray, vocab: int) -> np.ndarray:
    return np.bincount([record[0] for record in records], weights=law, minlength=vocab)


def assert_first_token_is_low_temperature(law_of: LawOf, measured: Measured = ignore) -> None:
    """TV between the first token's law and its low-temperature law <= 1 - Π_k (1 - 1/h_k)^N <= Σ_k N/h_k: until the
    first cut at 1, which comes without looking at the record, the token is the one that was drawn."""
    nearest, gain = 0.0, []
    cases: list[World] = [world(seed, 3, 5) for seed in range(5)] + [world(11, 4, 3, (1, 3)), world_with_zeros()]
    for w in cases:
        low_temperature = np.exp(power.tempered(w.conditionals, 0.25)[()])
        for block, steps in ((1, 1), (2, 1), (2, 3), (w.horizon, 1), (w.horizon, 4)):
            records, law = law_of(
                w.conditionals, horizon=w.horizon, alpha=4.0, block=block, steps=steps, cut="horizon", rule="exact"
            )
            moved = mc.total_variation(first_token(records, law, len(low_temperature)), low_temperature)
            touched = 1 - cost.untouched(w.horizon, block, steps)
            nearest = max(nearest, moved / touched)
            assert nearest <= 1 + SAME
            assert touched <= cost.restarts(w.horizon, block, steps) + SAME
            gain.append(moved)
    measured("TV / (1 - Π (1 - 1/h)^N), greatest", nearest, 1)
    assert max(gain) > 0.05
    measured("1 - Π (1 - 1/h)^N, T = 679, B = 192, N = 10", 1 - cost.untouched(679, **PAPER), 0.11)
    assert 1 - cost.untouched(679, **PAPER) < 0.11


@pytest.mark.claim("P22")
def test_first_token_is_low_temperature(measured: Measured) -> None:
    assert_first_token_is_low_temperature(mc.blocked_law, measured)


@pytest.mark.claim("P22")
@pytest.mark.parametrize("changes", [{"tau": 1.0}, {"steps": 50}])
def test_first_token_mutants(changes: dict) -> None:
    """Another proposal, or more steps than are said."""
    with pytest.raises(AssertionError):
        assert_first_token_is_low_temperature(
            lambda conditionals, **settings: mc.blocked_law(conditionals, **(settings | changes))
        )


@pytest.mark.parametrize("setting", [{"rule": "authors"}, {"tries": 2}, {"cut": mc.EntropyCut()}])
def test_tokens_of_other_kernels_are_refused(setting):
    w = world(0, 3, 3)
    with pytest.raises(ValueError, match="are known, not"):
        cost.expected_tokens(w.conditionals, **({"horizon": w.horizon, "alpha": 4.0, "block": 2, "steps": 1} | setting))
