"""Scalable power sampling (claims P19, P20): the estimators of the look-ahead, and both weights of its chunks."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from tests.theory.test_markov_chain import Measured, World, ignore, world, world_with_zeros
from theory import lookahead, power
from theory.importance import share
from theory.lookahead import Futures
from theory.markov_chain import total_variation
from theory.power import Law, Record

SAME = 1e-12


def worlds() -> list[World]:
    return [world(0, 3, 3), world(1, 3, 3), world(5, 3, 3), world(2, 3, 3, ()), world(3, 2, 5), world_with_zeros()]


def enumerated(w: World, alpha: float, prefix: Record, m: int, law: str, jackknife: bool, clip: bool) -> Law:
    """E[p̂] at a prefix by a sum over the rollouts of all tokens, as the paper's Algorithm 1 reads."""
    table = w.conditionals if law == "p" else power.tempered(w.conditionals, 1 / alpha)
    zeta = power.zeta(w.conditionals, alpha)
    tokens = np.flatnonzero(w.conditionals[prefix] > -np.inf)
    ways: list[list[tuple[float, Law]]] = []  # for each token: probability and F̂ of each rollout
    for v in tokens:
        text = (*prefix, int(v))
        found = []
        for record in {record for record in w.records if record[: len(text)] == text}:
            steps = range(len(text), len(record))
            chance = float(np.exp(sum(table[record[:t]][record[t]] for t in steps)))
            if law == "p":
                weight = chance ** (alpha - 1)
            else:
                weight = float(np.exp(sum(zeta[record[:t]] for t in steps)))
            found.append((chance, weight))
        ways.append(found)
    mass = np.exp(alpha * w.conditionals[prefix][tokens])
    expected = np.zeros(len(w.conditionals[prefix]))
    for rows in itertools.product(*(itertools.product(found, repeat=m) for found in ways)):
        chance = float(np.prod([c for row in rows for c, _ in row]))
        f = np.array([[weight for _, weight in row] for row in rows])  # [tokens, M]
        estimate = mass * f.mean(1) / (mass @ f.mean(1))
        if jackknife and m > 1:
            left = []
            for s in range(m):
                rest = np.delete(f, s, axis=1).mean(1)
                left.append(mass * rest / (mass @ rest))
            estimate = m * estimate - (m - 1) * np.mean(left, axis=0)
        if clip:
            estimate = np.maximum(estimate, 0) / np.maximum(estimate, 0).sum()
        expected[tokens] += chance * estimate
    return expected


TokenLaw = Callable[..., Law]


def assert_token_law(law_of: TokenLaw, measured: Measured = ignore) -> None:
    """The exact law of the next token under each estimator is the sum over all rollouts."""
    worst = 0.0
    cases = [(w, prefix) for w, prefix in ((world(2, 3, 2), ()), (world(1, 3, 3), (1,)), (world_with_zeros(), (1, 2)))]
    for (w, prefix), law, m in itertools.product(cases, ("p", "g"), (1, 2, 3)):
        for name, jackknife, clip in (("plug_in", 0, 0), ("jackknife", 1, 0), ("clipped", 1, 1)):
            exact = enumerated(w, 4.0, prefix, m, law, bool(jackknife), bool(clip))
            ours = law_of(
                w.conditionals, prefix, horizon=w.horizon, alpha=4.0, rollouts=m, rollout_law=law, estimator=name
            )
            worst = max(worst, float(np.abs(ours - exact).max()))
            assert worst < SAME
    measured("E[p̂] - enumeration", worst, SAME)


@pytest.mark.claim("P19")
def test_token_law(measured: Measured) -> None:
    assert_token_law(lookahead.token_law, measured)


def with_setting(**change: object) -> TokenLaw:
    return lambda *args, **settings: lookahead.token_law(*args, **(settings | change))  # type: ignore[arg-type]


@pytest.mark.claim("P19")
@pytest.mark.parametrize("change", [{"estimator": "plug_in"}, {"estimator": "jackknife"}, {"rollout_law": "p"}])
def test_token_law_mutants(change: dict) -> None:
    with pytest.raises(AssertionError):
        assert_token_law(with_setting(**change))


BiasLimit = Callable[[list[Futures]], Law]
COUNTS = [1, 2, 4, 16, 64, 256, 1024]


def biases(w: World, alpha: float, law: str) -> tuple[list[Futures], Law, Law]:
    """(the candidates of the first token, the bias of the plug-in, that of the jackknife) for COUNTS, [counts, V]."""
    found = lookahead.of_tokens(w.conditionals, alpha, w.horizon, (), law)  # type: ignore[arg-type]
    exact = np.exp(power.power_conditionals(w.conditionals, alpha, w.horizon)[()])
    plug_in = np.array([share(found, m) - exact for m in COUNTS])
    jackknife = np.array([lookahead.jackknife(lambda m: share(found, m), m) - exact for m in COUNTS])
    return found, plug_in, jackknife


def assert_rates(limit_of: BiasLimit, measured: Measured = ignore) -> None:
    """M·bias of the plug-in tends to its limit, with a remainder of order 1/M; M²·bias of the jackknife is bounded,
    and it settles: the same at M = 256 and 1024 to a tenth."""
    worst, bound = 0.0, 0.0
    for w, alpha, law in itertools.product(worlds(), (2.0, 4.0), ("p", "g")):
        found, plug_in, jackknife = biases(w, alpha, law)
        limit = limit_of(found)
        far, near = (np.abs(COUNTS[i] * plug_in[i] - limit).max() for i in (-2, -1))
        scale = max(np.abs(limit).max(), 1e-9)
        worst = max(worst, float(near / scale))
        assert near < 0.3 * far + 1e-9 and near < 0.05 * scale + 1e-9, "limit"
        rate = [COUNTS[i] ** 2 * np.abs(jackknife[i]).max() for i in (-2, -1)]
        assert abs(rate[1] - rate[0]) <= 0.1 * rate[0] + 1e-6, "order of the jackknife"
        bound = max(bound, *(float(m**2 * np.abs(bias).max()) for m, bias in zip(COUNTS, jackknife)))
        assert np.abs(plug_in).sum() == 0 or np.abs(plug_in.sum(1)).max() < SAME  # it is a law
    measured("M·bias of the plug-in at M = 1024 / its limit - 1, greatest", worst, 0)
    measured("M²·bias of the jackknife, greatest", bound, 1)


@pytest.mark.claim("P19")
def test_rates(measured: Measured) -> None:
    assert_rates(lookahead.plug_in_bias, measured)


@pytest.mark.claim("P19")
@pytest.mark.parametrize(
    "mutant",
    [
        lambda found: 1.1 * lookahead.plug_in_bias(found),
        lambda found: -lookahead.plug_in_bias(found),
        lambda found: np.zeros(len(found)),
    ],
)
def test_rates_mutants(mutant: BiasLimit) -> None:
    with pytest.raises(AssertionError, match="limit"):
        assert_rates(mutant)


@pytest.mark.claim("P19")
def test_jackknife_can_be_worse(measured: Measured) -> None:
    """At few rollouts of large relative variance the jackknife's bias exceeds the plug-in's, and entries are negative;
    with many it is the smaller by far."""
    few = many = 0.0
    for w in worlds()[:4]:
        _, plug_in, jackknife = biases(w, 4.0, "p")
        few = max(few, float(np.abs(jackknife[1]).max() / np.abs(plug_in[1]).max()))
        many = max(many, float(np.abs(jackknife[-1]).max() / np.abs(plug_in[-1]).max()))
    measured("bias of the jackknife / of the plug-in, M = 2, greatest", few, 1)
    measured("M = 1024, greatest", many, 0)
    assert few > 1 > 0.05 > many
    w = world(0, 3, 3)
    found = lookahead.of_tokens(w.conditionals, 4.0, 3, (), "p")
    for m in (2, 3):
        law, negative = lookahead.clipped(found, m)
        measured(f"P(a negative entry), M = {m}", negative, 1)
        assert 0 < negative < 1 and law.sum() == pytest.approx(1, abs=SAME)


def assert_relative_variance(variance_of: Callable[[Futures], float], measured: Measured = ignore) -> None:
    """Var/F² of one rollout: Σ p^(2α-1)/F² - 1 from p, Σ p^α Π exp ζ/F² - 1 from g, of the same mean F, and 0 from g
    where one token is left. Mostly g's is smaller; not always."""
    ratios, worst = [], 0.0
    for w, alpha in itertools.product(worlds(), (2.0, 4.0)):
        log_f = power.future(w.conditionals, alpha, w.horizon)
        for prefix in w.conditionals:
            rolls = [lookahead.futures(w.conditionals, alpha, w.horizon, prefix, law) for law in ("p", "g")]  # type: ignore[arg-type]
            for probs, weights in rolls:
                assert probs.sum() == pytest.approx(1, abs=SAME)
                worst = max(worst, abs(float(probs @ weights) / np.exp(log_f[prefix]) - 1))
                assert worst < SAME, "unbiased"
            from_p, from_g = map(variance_of, rolls)
            logp = np.log(rolls[0][0])
            assert from_p == pytest.approx(
                np.exp((2 * alpha - 1) * logp).sum() / np.exp(2 * log_f[prefix]) - 1, abs=1e-9
            )
            if len(prefix) == w.horizon - 1:
                assert abs(from_g) < SAME
            elif from_p > 1e-6:
                ratios.append(from_p / from_g)
    measured("E[F̂]/F - 1", worst, SAME)
    measured("relative variance from p / from g: least", min(ratios), 1)
    measured("median", float(np.median(ratios)), 1)
    assert min(ratios) < 1 < np.median(ratios)


@pytest.mark.claim("P19")
def test_relative_variance(measured: Measured) -> None:
    assert_relative_variance(lookahead.relative_variance, measured)


@pytest.mark.claim("P19")
def test_relative_variance_mutant() -> None:
    """E[F̂²] - E[F̂]², not relative to anything."""
    with pytest.raises(AssertionError):
        assert_relative_variance(lambda law: float(law[0] @ law[1] ** 2 - (law[0] @ law[1]) ** 2))


RecordLaw = Callable[..., dict[Record, float]]


def assert_consistent(law_of: RecordLaw, measured: Measured = ignore) -> None:
    """The law of whole records tends to p^α as M grows, for both rollout laws and both estimators; where one token is
    left nothing is estimated, so horizon 1 is exact."""
    worst = 0.0
    settings = (("p", "plug_in"), ("g", "jackknife"))
    for w, (law, estimator) in itertools.product(worlds(), settings):
        setting = {"alpha": 4.0, "rollout_law": law, "estimator": estimator}
        curve = []
        for m in (1, 64, 4096):
            records = law_of(w.conditionals, horizon=w.horizon, rollouts=m, **setting)
            assert [*records] == w.records
            curve.append(total_variation([*records.values()], w.law(4.0)))
        worst = max(worst, curve[-1])
        assert curve[-1] < 1e-3 and curve[-1] <= curve[0] + SAME, "limit"
        first = law_of(w.conditionals, horizon=1, rollouts=1, **setting)
        low = power.power_law(power.record_logps(w.conditionals, 1)[1], 4.0)
        assert np.abs(np.array([*first.values()]) - low).max() < SAME, "one token"
    measured("TV to p^α at M = 4096", worst, 1e-3)


@pytest.mark.claim("P19")
def test_consistent(measured: Measured) -> None:
    assert_consistent(lookahead.lookahead_law, measured)


@pytest.mark.claim("P19")
@pytest.mark.parametrize(
    "mutant",
    [
        lambda c, **s: lookahead.lookahead_law(c, **(s | {"rollouts": min(s["rollouts"], 2)})),
        lambda c, **s: lookahead.lookahead_law(c, **(s | {"alpha": 5.0})),
    ],
    ids=["two rollouts", "one power of p too many"],
)
def test_consistent_mutants(mutant: RecordLaw) -> None:
    with pytest.raises(AssertionError, match=r"limit|token"):
        assert_consistent(mutant)


# --- P20: chunks -----------------------------------------------------------------------------------------------------


def chunk_limit(w: World, alpha: float, chunk: int, published: bool, proposal: str) -> dict[Record, float]:
    """Chunk by chunk q·weight·F normalised: p^α F with the right weight, so p^α in all; q p^α F with the published."""
    table = w.conditionals if proposal == "p" else power.tempered(w.conditionals, 1 / alpha)
    log_f = power.future(w.conditionals, alpha, w.horizon)

    def grow(prefix: Record) -> dict[Record, float]:
        texts = lookahead.continuations(w.conditionals, prefix, min(len(prefix) + chunk, w.horizon))
        weight = [
            alpha * lookahead.total(w.conditionals, text, len(prefix)) + log_f.get(text, 0.0)
            + (lookahead.total(table, text, len(prefix)) if published else 0.0)
            for text in texts
        ]  # fmt: skip
        return dict(zip(texts, power.power_law(weight, 1.0)))

    return lookahead.record_law(grow, w.conditionals, w.horizon)


def assert_chunks(law_of: RecordLaw, weight: str, measured: Measured = ignore) -> None:
    """As L grows, F known. With the right weight p^α; with the published one q p^α F chunk by chunk, which is not."""
    worst, far, wrong = 0.0, np.inf, 0.0
    for w, alpha, chunk, proposal in itertools.product(worlds()[:4], (2.0, 4.0), (1, 2), ("p", "g")):
        setting = {"horizon": w.horizon, "alpha": alpha, "chunk": chunk, "proposal": proposal, "weight": weight}
        limit = chunk_limit(w, alpha, chunk, weight == "published", proposal)
        assert [*limit] == w.records
        law = law_of(w.conditionals, draws=10**6, rollouts=None, **setting)
        worst = max(worst, total_variation([*law.values()], [*limit.values()]))
        assert worst < 1e-4, "limit"
        distance = total_variation([*limit.values()], w.law(alpha))
        if weight == "exact":
            assert distance < SAME, "p^α"
        elif chunk == 2:
            far, wrong = min(far, distance), max(wrong, distance)
    measured(f"{weight} weight: TV to its limit at L = 10^6", worst, 1e-4)
    if weight == "published":
        measured("TV of its limit to p^α, least", far, 0)
        measured("greatest", wrong, 1)
        assert far > 1e-4 and wrong > 0.1


@pytest.mark.claim("P20")
@pytest.mark.parametrize("weight", ["exact", "published"])
def test_chunks(weight: str, measured: Measured) -> None:
    assert_chunks(lookahead.lookahead_law, weight, measured)


@pytest.mark.claim("P20")
@pytest.mark.parametrize(("weight", "used"), [("exact", "published"), ("published", "exact")])
def test_chunk_mutants(weight: str, used: str) -> None:
    with pytest.raises(AssertionError, match="limit"):
        assert_chunks(lambda c, **s: lookahead.lookahead_law(c, **(s | {"weight": used})), weight)


@pytest.mark.claim("P20")
def test_few_draws_and_estimated_futures(measured: Measured) -> None:
    """What L draws and M rollouts leave of it, at the settings of re-implementations in small."""
    for weight, draws in itertools.product(("exact", "published"), (8, 32)):
        distances = []
        for w in worlds()[:3]:
            law = lookahead.lookahead_law(
                w.conditionals, horizon=3, alpha=4.0, chunk=2, draws=draws, rollouts=4, weight=weight
            )
            distances.append(total_variation([*law.values()], w.law(4.0)))
        measured(f"{weight} weight, L = {draws}, M = 4: TV to p^α, greatest", max(distances), 1)
        assert max(distances) < (0.06 if weight == "exact" else 0.2)


@pytest.mark.claim("P20")
def test_top_draws_collapse(measured: Measured) -> None:
    """Keeping the K likeliest of L draws without removing repeats: all are the likeliest chunk with a chance that tends
    to 1 (K of L draws suffice), so the method is greedy in the limit, far from p^α."""
    for w in worlds()[:4]:
        best = float(np.exp(power.record_logps(w.conditionals, 2)[1]).max())
        greedy = [float(binom.sf(7, draws, best)) for draws in (32, 128, 512)]
        assert np.all(np.diff(greedy) >= 0) and greedy[-1] > 1 - 1e-9
        measured("chance that the 8 likeliest of 128 draws are one chunk, least", greedy[1], 1)
