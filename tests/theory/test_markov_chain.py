"""Suffix Metropolis-Hastings as exact matrices (claims P4-P14, P24, P26, P27): right chains and wrong ones.

The oracle is `Procedure`: it follows a step as the sampler's description reads, token by token, and adds up the
probabilities of its outcomes. Each claim is one function `assert_...` of the implementation, as in test_best_of_n.py.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch

from theory import markov_chain as mc
from theory import power
from theory.markov_chain import Chain
from theory.power import Law, Record
from toy.tabular import TabularLM, enumerate_law

Measured = Callable[..., None]
SAME = 1e-12  # two float64 computations of one number of order 1
LIMIT = 1e-9  # the same after squaring a matrix fifty times


def ignore(*_: object) -> None:
    """What mutants measure is of no interest."""


@dataclass(frozen=True)
class World:
    """A model with a law of its own after every prefix; its records, and which of them ended."""

    records: list[Record]
    logp: Law
    conditionals: dict[Record, Law]
    horizon: int
    stops: tuple[int, ...]

    @property
    def ended(self) -> np.ndarray:
        return np.array([record[-1] in self.stops for record in self.records])

    def law(self, alpha: float) -> Law:
        return power.power_law(self.logp, alpha)


@cache
def world(seed: int, vocab: int, horizon: int, stops: tuple[int, ...] = (0,), concentration: float = 1.0) -> World:
    model = TabularLM.random(vocab, horizon, concentration=concentration, seed=seed, dtype=torch.float64)
    return World(*enumerate_law(model, [0], horizon, stops), horizon, stops)


@cache
def world_with_zeros() -> World:
    """Not every token may follow every other one; the first token never ends the text."""
    table = [[0.3, 0.3, 0.4], [0.0, 0.4, 0.6], [0.5, 0.2, 0.3]]
    model = TabularLM.markov(table, torch.float64)
    return World(*enumerate_law(model, [1], 4, [0]), 4, (0,))


def worlds() -> Iterator[World]:
    """Random worlds of 16 to 81 records, EOS likely, lengths varying; two stop ids; none; and impossible tokens."""
    for seed in range(3):
        yield world(seed, 3, 4)
        yield world(10 + seed, 4, 3, (1, 3))
        yield world(20 + seed, 2, 5)
        yield world(30 + seed, 3, 4, (2,), 0.5)
    yield world(40, 3, 4, ())
    yield world_with_zeros()


# --- The oracle ------------------------------------------------------------------------------------------------------


class Procedure:
    """One step and the blocked schedule, as described, over all outcomes."""

    def __init__(self, world: World, alpha: float, tau: float | None, cut: mc.Cut, rule: mc.Rule, block: int):
        self.world, self.alpha, self.cut, self.rule, self.block = world, alpha, cut, rule, block
        self.p = {prefix: np.exp(law) for prefix, law in world.conditionals.items()}
        scaled = {prefix: law ** (1 / (tau or 1 / alpha)) for prefix, law in self.p.items()}
        self.q = {prefix: law / law.sum() for prefix, law in scaled.items()}
        self.continued: dict[tuple[Record, int], list[tuple[Record, float]]] = {}

    def is_open(self, text: Record) -> bool:
        return not text or text[-1] not in self.world.stops

    def continuations(self, prefix: Record, until: int) -> list[tuple[Record, float]]:
        """All ways to continue an open prefix by q to a stop or to `until` tokens, with their probabilities."""
        key = prefix, until
        if key not in self.continued:
            found = [(prefix, 1.0)]
            if len(prefix) < until and self.is_open(prefix):
                found = [
                    (text, float(self.q[prefix][v]) * chance)
                    for v in np.flatnonzero(self.q[prefix])
                    for text, chance in self.continuations((*prefix, int(v)), until)
                ]
            self.continued[key] = found
        return self.continued[key]

    def product(self, laws: dict[Record, Law], text: Record, r: int) -> float:
        return float(np.prod([laws[text[:t]][text[t]] for t in range(r - 1, len(text))]))

    def cuts(self, x: Record, h: int) -> list[int]:
        end = h if self.cut == "horizon" and self.rule != "authors" else len(x)
        if self.rule == "literal":  # m uniform on 1..end, tokens count from 0; with cut="record" up to the last token
            return [m + 1 for m in range(1, end + 1 if self.cut == "horizon" else end)]
        first = (h - 1) // self.block * self.block + 1 if self.rule == "nested" else 1
        return list(range(first, end + 1))

    def ratio(self, x: Record, y: Record, r: int) -> float:
        if self.rule == "authors":
            x = x[: len(y)]
        (p_x, q_x), (p_y, q_y) = ((self.product(self.p, z, r), self.product(self.q, z, r)) for z in (x, y))
        target = (p_y / p_x) ** self.alpha
        factor = 1.0
        if self.cut == "record" and self.rule not in ("authors", "no_length_factor"):
            factor = len(self.cuts(x, self.world.horizon)) / len(self.cuts(y, self.world.horizon))
        if self.rule == "wrong_sign":
            return target * q_y / q_x * factor
        if self.rule == "no_proposal":
            return target * factor
        return target * q_x / q_y * factor

    @cache  # noqa: B019  (the object lives as long as one comparison)
    def step(self, x: Record, h: int) -> dict[Record, float]:
        law: dict[Record, float] = defaultdict(float)
        cuts = self.cuts(x, h)
        if not cuts:
            return {x: 1.0}
        for r in cuts:
            if r > len(x):
                law[x] += 1 / len(cuts)
                continue
            for y, chance in self.continuations(x[: r - 1], len(x) if self.rule == "authors" else h):
                accept = min(1.0, self.ratio(x, y, r))
                law[y] += chance * accept / len(cuts)
                law[x] += chance * (1 - accept) / len(cuts)
        return law

    def blocked(self, steps: int) -> dict[Record, float]:
        law, returned = {(): 1.0}, defaultdict(float)
        for h in range(self.block, self.world.horizon + self.block, self.block):
            h = min(h, self.world.horizon)
            after: dict[Record, float] = defaultdict(float)
            for x, mass in law.items():
                until = min(len(x) + self.block, self.world.horizon)
                for y, chance in self.continuations(x, until) if self.is_open(x) else [(x, 1.0)]:
                    after[y] += mass * chance
            law = after
            for _ in range(steps):
                after = defaultdict(float)
                for x, mass in law.items():
                    for y, chance in self.step(x, h).items():
                        after[y] += mass * chance
                law = after
            if self.rule in ("early_exit", "authors"):
                for x in [x for x in law if not self.is_open(x)]:
                    returned[x] += law.pop(x)
        return {x: law.get(x, 0.0) + returned.get(x, 0.0) for x in {*law, *returned}}


RULES: list[tuple[mc.Cut, mc.Rule]] = [
    *(("horizon", rule) for rule in ("exact", "wrong_sign", "no_proposal", "literal", "nested", "early_exit")),
    *(("record", rule) for rule in ("exact", "wrong_sign", "no_proposal", "no_length_factor", "early_exit", "authors")),
]  # type: ignore[assignment]


@pytest.mark.parametrize(("cut", "rule"), RULES)
def test_blocked_law_is_the_procedure(cut: mc.Cut, rule: mc.Rule) -> None:
    """The law after 0, 1 and 2 steps a stage, blocks that divide the horizon and not, τ = 1/α and not."""
    for w in (world(0, 3, 4), world(11, 4, 3, (1, 3)), world_with_zeros()):
        for alpha, tau, block in ((4.0, None, 2), (1.5, 0.5, 3), (2.0, None, w.horizon), (2.0, 1.0, 1)):
            procedure = Procedure(w, alpha, tau, cut, rule, block)
            for steps in (0, 1, 2):
                expected = procedure.blocked(steps)
                records, law = mc.blocked_law(
                    w.conditionals,
                    **{"horizon": w.horizon, "alpha": alpha, "tau": tau, "block": block, "steps": steps},
                    **{"cut": cut, "rule": rule},
                )
                assert rule == "authors" or records == w.records
                assert records == sorted(records) and {*expected} <= {*records}
                assert np.abs(law - [expected.get(record, 0.0) for record in records]).max() < SAME
                assert law.sum() == pytest.approx(1, abs=SAME)


# --- P4, P5: detailed balance ----------------------------------------------------------------------------------------

ChainOf = Callable[..., Chain]  # like mc.chain


def residual(kernel: Law, target: Law) -> float:
    """The greatest violation of detailed balance."""
    flow = target[:, None] * kernel
    return float(np.abs(flow - flow.T).max())


SETTINGS = [(1.0, 1.0), (1.5, None), (4.0, None), (4.0, 0.5), (0.5, 1.0)]  # α, τ


def assert_reversible(chain_of: ChainOf, cut: mc.Cut, measured: Measured = ignore) -> None:
    """The mixture and each K_r: a transition matrix, in detailed balance with p^α."""
    worst = 0.0
    for w in worlds():
        for alpha, tau in SETTINGS:
            mixture = chain_of(w.conditionals, horizon=w.horizon, alpha=alpha, tau=tau, cut=cut)
            assert mixture.records == w.records
            kernels = [mixture.kernel]
            if cut == "horizon":
                for r in range(1, w.horizon + 1):
                    one = chain_of(w.conditionals, horizon=w.horizon, alpha=alpha, tau=tau, cuts=range(r, r + 1))
                    kernels.append(one.kernel)
            for kernel in kernels:
                assert kernel.min() >= -SAME and np.abs(kernel.sum(1) - 1).max() < SAME
                worst = max(worst, residual(kernel, w.law(alpha)))
                assert worst < SAME, "detailed balance"
            if cut == "horizon":
                assert np.abs(np.mean(kernels[1:], axis=0) - kernels[0]).max() < SAME, "not the mixture of the K_r"
    measured("detailed balance", worst, SAME)


@pytest.mark.claim("P4")
def test_horizon_cut_is_reversible(measured: Measured) -> None:
    assert_reversible(mc.chain, "horizon", measured)


def with_rule(rule: mc.Rule) -> ChainOf:
    return lambda conditionals, **settings: mc.chain(conditionals, **settings, rule=rule)


def state_dependent_cut(conditionals: power.Conditionals, **settings: object) -> Chain:
    """Cuts drawn by looking at the record, without the factor."""
    return mc.chain(conditionals, **(settings | {"cut": "record"}), rule="no_length_factor")  # type: ignore[arg-type]


def accepts_everything(conditionals: power.Conditionals, *, alpha: float, **settings: object) -> Chain:
    """Targets the proposal law instead of p^α."""
    chain = mc.chain(conditionals, alpha=1.0, **(settings | {"tau": settings.get("tau") or 1 / alpha}))  # type: ignore[arg-type]
    return chain


@pytest.mark.claim("P4")
@pytest.mark.parametrize(
    "mutant", [with_rule("wrong_sign"), with_rule("no_proposal"), state_dependent_cut, accepts_everything]
)
def test_horizon_cut_mutants(mutant: ChainOf) -> None:
    with pytest.raises(AssertionError, match="detailed balance"):
        assert_reversible(mutant, "horizon")


@pytest.mark.claim("P5")
def test_record_cut_is_reversible(measured: Measured) -> None:
    assert_reversible(mc.chain, "record", measured)


@pytest.mark.claim("P5")
@pytest.mark.parametrize("rule", ["no_length_factor", "wrong_sign", "no_proposal"])
def test_record_cut_mutants(rule: mc.Rule) -> None:
    with pytest.raises(AssertionError, match="detailed balance"):
        assert_reversible(with_rule(rule), "record")


def assert_record_cut_dominates(chain_of: ChainOf, measured: Measured = ignore) -> None:
    """Every move is at least as likely as with the horizon's cut (Peskun's order), so the gap is at least as large:
    π(x) K(x,y) = Σ_r min(π(x) q(y_>=r)/|x|, π(y) q(x_>=r)/|y|), and with the other cut H stands for |x| and |y|."""
    ratios = []
    for w in worlds():
        for alpha, tau in SETTINGS:
            horizon = mc.chain(w.conditionals, horizon=w.horizon, alpha=alpha, tau=tau, cut="horizon")
            record = chain_of(w.conditionals, horizon=w.horizon, alpha=alpha, tau=tau, cut="record")
            assert residual(record.kernel, w.law(alpha)) < SAME, "detailed balance"
            off = ~np.eye(len(w.records), dtype=bool)
            assert np.all(record.kernel[off] >= horizon.kernel[off] * (1 - SAME)), "Peskun order"
            ratios.append(mc.spectral_gap(record.kernel) / mc.spectral_gap(horizon.kernel))
            assert 1 - LIMIT <= ratios[-1] <= w.horizon * (1 + LIMIT)
    measured("gap(record)/gap(horizon), least", min(ratios), 1)
    measured("greatest", max(ratios), 5)
    assert max(ratios) > 1.5


@pytest.mark.claim("P5")
def test_record_cut_dominates(measured: Measured) -> None:
    assert_record_cut_dominates(mc.chain, measured)


@pytest.mark.claim("P5")
@pytest.mark.parametrize("mutant", [with_rule("no_length_factor"), lambda c, **s: mc.chain(c, **(s | {"tau": 1.0}))])
def test_record_cut_dominates_mutants(mutant: ChainOf) -> None:
    """Without the factor there is no balance; and a chain with another proposal is not comparable."""
    with pytest.raises(AssertionError, match=r"balance|Peskun"):
        assert_record_cut_dominates(mutant)


@pytest.mark.claim("P5")
def test_missing_length_factor_has_another_limit(measured: Measured) -> None:
    """TV between what the chain without the factor keeps and p^α: zero only where all records have one length."""
    biases = []
    for w in worlds():
        chain = mc.chain(w.conditionals, horizon=w.horizon, alpha=4.0, cut="record", rule="no_length_factor")
        kept = mc.stationary(chain.kernel)
        assert np.abs(kept @ chain.kernel - kept).max() < SAME
        bias = mc.total_variation(kept, chain.target)
        if w.stops:
            biases.append(bias)
        else:
            assert bias < SAME
    measured("TV to p^α, least", min(biases), 0)
    measured("TV to p^α, greatest", max(biases), 1)
    assert min(biases) > LIMIT and max(biases) > 0.05


# --- P6-P8: spectrum and convergence ---------------------------------------------------------------------------------


def first_cut(w: World, alpha: float, tau: float | None) -> Chain:
    """The independence sampler: every step proposes a whole new record."""
    return mc.chain(w.conditionals, horizon=w.horizon, alpha=alpha, tau=tau, cuts=range(1, 2))


def assert_independence_spectrum(spectrum_of: Callable[[Law, Law], Law], measured: Measured = ignore) -> None:
    worst = 0.0
    for w in worlds():
        for alpha, tau in SETTINGS:
            chain = first_cut(w, alpha, tau)
            expected = mc.spectrum(chain.kernel)
            assert expected.min() > -SAME
            formula = np.sort(spectrum_of(chain.initial, chain.target))[::-1]
            worst = max(worst, float(np.abs(formula - expected).max()))
            assert worst < SAME
            assert formula[1] == pytest.approx(1 - 1 / (chain.target / chain.initial).max(), abs=SAME)
    measured("formula - eigenvalues", worst, SAME)


@pytest.mark.claim("P6")
def test_independence_spectrum(measured: Measured) -> None:
    assert_independence_spectrum(mc.independence_spectrum, measured)


def unsorted_states(proposal: Law, target: Law) -> Law:
    tail = [(proposal[k:] - target[k:] * proposal[k] / target[k]).sum() for k in range(len(proposal) - 1)]
    return np.append(1.0, tail)


@pytest.mark.claim("P6")
@pytest.mark.parametrize("mutant", [unsorted_states, lambda g, pi: mc.independence_spectrum(pi, g)])
def test_independence_spectrum_mutants(mutant: Callable[[Law, Law], Law]) -> None:
    with pytest.raises(AssertionError):
        assert_independence_spectrum(mutant)


def assert_exact_decay(start_of: Callable[[Law], int], measured: Measured = ignore) -> None:
    """From x* = argmax w the independence sampler has TV = (1 - 1/w*)^n (1 - π(x*)) after n steps, exactly."""
    worst = 0.0
    for w in worlds():
        chain = first_cut(w, 4.0, None)
        weight = chain.target / chain.initial
        start = start_of(weight)
        curve = mc.tv_curve(np.eye(len(weight))[start], chain.kernel, chain.target, 50)
        exact = (1 - 1 / weight.max()) ** np.arange(51) * (1 - chain.target[start])
        worst = max(worst, float(np.abs(curve - exact).max()))
        assert worst < SAME
    measured("TV - closed form, 50 steps", worst, SAME)


@pytest.mark.claim("P6")
def test_exact_decay_from_the_worst_record(measured: Measured) -> None:
    assert_exact_decay(lambda weight: int(weight.argmax()), measured)


@pytest.mark.claim("P6")
def test_exact_decay_mutant() -> None:
    with pytest.raises(AssertionError):
        assert_exact_decay(lambda weight: int(weight.argmin()))


GapBound = Callable[[Law, Law, int], float]  # initial, target, horizon -> lower bound of the gap


def gap_bound(initial: Law, target: Law, horizon: int) -> float:
    return 1 / (horizon * float((target / initial).max()))


def assert_gap(bound: GapBound, measured: Measured = ignore, *, always_equal: bool = False) -> None:
    """gap >= 1/(H w*), with equality where a text may end at once (α >= 1, τ = 1/α): see the claim's proof below.

    K = (1/H) Σ_r K_r with every K_r positive semidefinite on L2(π), so gap(K) >= gap(K_1)/H = 1/(H w*). With τ = 1/α,
    w ∝ Π_t exp ζ(x_<t) and ζ <= 0, so w is greatest at x* = (EOS); only the cut at 1 moves to or from x*, so
    δ_x* K = (1 - a) δ_x* + a π with a = 1/(H w*), and δ_x* - π is an eigenvector of eigenvalue 1 - a.
    """
    equal, least, seen = 0.0, np.inf, 0
    for w in worlds():
        for alpha, tau in SETTINGS:
            chain = mc.chain(w.conditionals, horizon=w.horizon, alpha=alpha, tau=tau)
            gap, low = mc.spectral_gap(chain.kernel), bound(chain.initial, chain.target, w.horizon)
            least = min(least, gap / low)
            assert gap >= low - SAME, "bound"
            at_once = any(len(record) == 1 for record in w.records)
            if always_equal or (at_once and alpha >= 1 and tau in (None, 1 / alpha)):
                seen += 1
                equal = max(equal, abs(gap - low))
                assert equal < SAME, "equality"
    assert seen
    measured("gap · H w*, least", least, 1)
    measured("gap - 1/(H w*) where EOS may come first", equal, SAME)


@pytest.mark.claim("P7")
def test_gap(measured: Measured) -> None:
    assert_gap(gap_bound, measured)


@pytest.mark.claim("P7")
@pytest.mark.parametrize(
    "mutant",
    [
        lambda g, pi, h: h * gap_bound(g, pi, h),
        lambda g, pi, h: gap_bound(pi, g, h),
        lambda g, pi, h: 0.99 * gap_bound(g, pi, h),
    ],
    ids=["without H", "1/w", "loose"],
)
def test_gap_mutants(mutant: GapBound) -> None:
    with pytest.raises(AssertionError, match=r"bound|equality"):
        assert_gap(mutant)


@pytest.mark.claim("P7")
def test_gap_is_larger_where_no_text_ends_at_once() -> None:
    """The condition of the equality is needed."""
    with pytest.raises(AssertionError, match="equality"):
        assert_gap(gap_bound, always_equal=True)


def assert_decay(rate_of: Callable[[Law], float], measured: Measured = ignore) -> None:
    """½ |<g, f>| λ2^n / max|f| <= TV(g K^n, π) <= ½ λ2^n χ(g, π) for every n, f the second eigenfunction; so
    log(TV)/n -> log λ2. `rate_of` picks λ2 out of the spectrum."""
    tight = 0.0
    for w in worlds():
        for cut in ("horizon", "record"):
            chain = mc.chain(w.conditionals, horizon=w.horizon, alpha=4.0, cut=cut)  # type: ignore[arg-type]
            rate, pi = rate_of(mc.spectrum(chain.kernel)), chain.target
            symmetric = np.sqrt(chain.kernel * chain.kernel.T)
            f = np.linalg.eigh(symmetric)[1][:, -2] / np.sqrt(pi)
            chi = float(np.sqrt(np.sum((chain.initial - pi) ** 2 / pi)))
            n = np.arange(2001)
            curve = mc.tv_curve(chain.initial, chain.kernel, pi, 2000)
            upper = rate**n * chi / 2
            lower = rate**n * abs(chain.initial @ f) / np.abs(f).max() / 2
            seen = curve > 1e-10  # behind it there are only rounding errors
            assert np.all(curve[seen] <= upper[seen] * (1 + LIMIT)), "upper"
            assert np.all(curve[seen] >= lower[seen] * (1 - LIMIT)), "lower"
            tight = max(tight, float((curve[seen] / upper[seen]).max()))
    measured("TV / (½ λ2^n χ)", tight, 1)


@pytest.mark.claim("P8")
def test_decay(measured: Measured) -> None:
    assert_decay(lambda eigenvalues: eigenvalues[1], measured)


@pytest.mark.claim("P8")
@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_decay_mutants(factor: float) -> None:
    """A tenth of the gap is seen."""
    with pytest.raises(AssertionError, match=r"upper|lower"):
        assert_decay(lambda eigenvalues: 1 - (1 - eigenvalues[1]) / factor)


# --- P9-P11, P13, P14, P24, P27: what the wrong samplers sample ------------------------------------------------------

LONG = 2**50  # steps a stage that stand for infinitely many

LawOf = Callable[..., tuple[list[Record], Law]]  # like mc.blocked_law


def early_exit_limit(w: World, alpha: float, block: int) -> dict[Record, float]:
    """Σ_k (Π_{j<k} (1 - e_j)) π_k restricted to ended records, e_j = π_j(ended), and all of π_K for the last stage."""
    alive, law = 1.0, dict[Record, float]()
    for h in mc.horizons(w.horizon, block):
        records, logp = power.record_logps(w.conditionals, h)
        for record, mass in zip(records, power.power_law(logp, alpha)):
            if record[-1] in w.stops or h == w.horizon:
                law[record] = law.get(record, 0.0) + alive * mass
        ended = np.array([record[-1] in w.stops for record in records])
        alive *= 1 - power.power_law(logp, alpha)[ended].sum()
    return law


def nested_limit(w: World, alpha: float, block: int) -> dict[Record, float]:
    """Π_k p^α(block k | prefix)/Z(prefix), Z(prefix) the sum over all blocks that may follow."""
    law = {(): 1.0}
    for h in mc.horizons(w.horizon, block):
        records, logp = power.record_logps(w.conditionals, h)
        weight = np.exp(alpha * logp)
        start = (h - 1) // block * block
        total: dict[Record, float] = defaultdict(float)
        for record, mass in zip(records, weight):
            total[record[:start]] += mass
        law = {
            record: law[record] if len(record) <= start else law[record[:start]] * mass / total[record[:start]]
            for record, mass in zip(records, weight)
        }
    return law


LIMITS = {"early_exit": early_exit_limit, "nested": nested_limit}


def assert_limit(law_of: LawOf, rule: str, measured: Measured = ignore) -> dict[int, list[float]]:
    """The law after many steps is the closed form. Returns the distances of the limit from p^α by block."""
    worst, biases = 0.0, defaultdict(list)
    for w in worlds():
        for alpha in (1.5, 4.0):
            for block in range(1, w.horizon + 1):
                limit = LIMITS[rule](w, alpha, block)
                records, law = law_of(
                    w.conditionals, horizon=w.horizon, alpha=alpha, block=block, steps=LONG, cut="horizon", rule=rule
                )
                expected = np.array([limit.get(record, 0.0) for record in records])
                assert expected.sum() == pytest.approx(1, abs=SAME)
                worst = max(worst, mc.total_variation(law, expected))
                assert worst < LIMIT, "limit"
                if w.stops and w.horizon == 4:
                    biases[block].append(mc.total_variation(expected, w.law(alpha)))
                if rule == "nested" and block == 1:
                    low_temperature = power.record_logps(power.tempered(w.conditionals, 1 / alpha), w.horizon)[1]
                    assert np.abs(expected - np.exp(low_temperature)).max() < SAME
    measured("TV to the closed form", worst, LIMIT)
    assert max(biases[4]) < SAME < 1e-3 < min(biases[1])
    for block in (1, 2, 3):
        measured(f"TV of the limit to p^α, B = {block} of 4, mean", float(np.mean(biases[block])), 0)
    return biases


@pytest.mark.claim("P9")
def test_early_exit_limit(measured: Measured) -> None:
    assert_limit(mc.blocked_law, "early_exit", measured)


@pytest.mark.claim("P10")
def test_nested_limit(measured: Measured) -> None:
    """B = 1 is low temperature, B = H exact, and the bias need not shrink as B grows."""
    biases = assert_limit(mc.blocked_law, "nested", measured)
    assert any(two > one for one, two in zip(biases[1], biases[2]))
    assert any(two < one for one, two in zip(biases[1], biases[2]))


def of_rule(replacement: mc.Rule, **changes: object) -> LawOf:
    return lambda conditionals, rule, **settings: mc.blocked_law(conditionals, rule=replacement, **(settings | changes))  # type: ignore[arg-type]


@pytest.mark.claim("P9")
@pytest.mark.parametrize("mutant", [of_rule("exact"), of_rule("nested"), of_rule("early_exit", steps=30)])
def test_early_exit_mutants(mutant: LawOf) -> None:
    with pytest.raises(AssertionError, match="limit"):
        assert_limit(mutant, "early_exit")


@pytest.mark.claim("P10")
@pytest.mark.parametrize("mutant", [of_rule("exact"), of_rule("early_exit"), of_rule("nested", tau=1.0, steps=3)])
def test_nested_mutants(mutant: LawOf) -> None:
    with pytest.raises(AssertionError, match="limit"):
        assert_limit(mutant, "nested")


def assert_exact_in_the_limit(law_of: LawOf, measured: Measured = ignore) -> None:
    """The right chain, blocks or none, either cut: after many steps it is at p^α."""
    worst = 0.0
    for w in worlds():
        for block, cut in ((1, "horizon"), (2, "record"), (w.horizon, "horizon")):
            records, law = law_of(
                w.conditionals, horizon=w.horizon, alpha=4.0, block=block, steps=LONG, cut=cut, rule="exact"
            )
            target = dict(zip(w.records, w.law(4.0)))
            worst = max(worst, mc.total_variation(law, [target.get(record, 0.0) for record in records]))
            assert worst < LIMIT, "limit"
    measured("TV to p^α", worst, LIMIT)


@pytest.mark.claim("P4")
def test_blocked_chain_tends_to_the_power_law(measured: Measured) -> None:
    assert_exact_in_the_limit(mc.blocked_law, measured)


@pytest.mark.claim("P4")
@pytest.mark.parametrize("rule", ["authors", "literal", "nested", "early_exit", "wrong_sign", "no_proposal"])
def test_wrong_samplers_do_not_tend_to_the_power_law(rule: mc.Rule) -> None:
    with pytest.raises(AssertionError, match="limit"):
        assert_exact_in_the_limit(of_rule(rule))


def toy() -> World:
    """The example of PPT, §3.2: tokens e = 0 and a = 1 of probability 1/2, horizon 2."""
    model = TabularLM.iid([0.5, 0.5], torch.float64)
    return World(*enumerate_law(model, [1], 2, [0]), 2, (0,))


def steps_from(w: World, rule: mc.Rule, steps: int) -> float:
    """TV to p^2 after some steps from the record (a, e) of the toy, over all texts of one or two tokens."""
    texts = mc.all_texts(w.conditionals, power.tempered(w.conditionals, 0.5), 2)
    states = texts.only(texts.length > 0 if rule == "authors" else texts.are_records(2), 2)
    law = mc.run(
        np.array([float(text == (1, 0)) for text in states.texts]), mc.suffix_mh(states, 2.0, rule=rule), steps
    )
    target = dict(zip(w.records, w.law(2.0)))
    return mc.total_variation(law, [target.get(text, 0.0) for text in states.texts])


def assert_toy(right: mc.Rule, authors: mc.Rule, measured: Measured = ignore) -> None:
    """After N >= 1 steps from (a, e): TV = (2/3)(5/8)^N for the right chain; for the authors' it falls, rises, and
    tends to 1/2."""
    w = toy()
    assert w.law(2.0).tolist() == pytest.approx([2 / 3, 1 / 6, 1 / 6])
    worst = max(abs(steps_from(w, right, n) - 2 / 3 * (5 / 8) ** n) for n in range(1, 60))
    measured("toy: TV - (2/3)(5/8)^N", worst, SAME)
    assert worst < SAME
    seen = [steps_from(w, authors, n) for n in (1, 2, 5, 10, 20, 40)]
    assert seen == pytest.approx([0.4167, 0.3542, 0.3418, 0.4625, 0.4979, 0.49999], abs=6e-5)
    measured("toy: authors' TV after 200 steps", steps_from(w, authors, 200), 0.5)
    assert steps_from(w, authors, 200) == pytest.approx(0.5, abs=SAME)


@pytest.mark.claim("P11")
def test_authors_rule_on_the_toy(measured: Measured) -> None:
    assert_toy("exact", "authors", measured)


@pytest.mark.claim("P11")
@pytest.mark.parametrize(
    ("right", "authors"), [("exact", "exact"), ("authors", "authors"), ("wrong_sign", "authors"), ("exact", "nested")]
)
def test_authors_rule_on_the_toy_mutants(right: mc.Rule, authors: mc.Rule) -> None:
    with pytest.raises(AssertionError):
        assert_toy(right, authors)


def assert_authors_limit(law_of: LawOf, measured: Measured = ignore) -> None:
    """Lengths only shrink within a stage, so where a text may end at its first token each stage ends at length one,
    with the low-temperature law g of the first token. With e = g(stop), after K stages: the text (v) has probability
    g(v) (1 - (1-e)^K)/e if v is a stop id, g(v) (1-e)^(K-1) if not. No text of two tokens is left."""
    worst, floor, short = 0.0, 1.0, 1.0
    for w in worlds():
        if min(map(len, w.records)) > 1:
            continue
        for alpha, tau, block in ((1.5, None, 1), (4.0, None, 2), (2.0, 1.0, w.horizon)):
            settings = {"horizon": w.horizon, "alpha": alpha, "tau": tau, "block": block, "cut": "horizon"}
            first = power.power_law(w.conditionals[()], alpha)
            end, stages = first[list(w.stops)].sum(), len(mc.horizons(w.horizon, block))
            limit = {
                (v,): mass * ((1 - (1 - end) ** stages) / end if v in w.stops else (1 - end) ** (stages - 1))
                for v, mass in enumerate(first)
            }
            records, law = law_of(w.conditionals, steps=LONG, rule="authors", **settings)
            worst = max(worst, mc.total_variation(law, [limit.get(record, 0.0) for record in records]))
            assert worst < LIMIT, "limit"
            target = dict(zip(w.records, w.law(alpha)))
            bias = mc.total_variation(law, [target.get(record, 0.0) for record in records])
            longer = sum(mass for record, mass in target.items() if len(record) > 1)
            assert bias >= longer - LIMIT, "floor"
            floor = min(floor, bias - longer)
            records, law = law_of(w.conditionals, steps=10, rule="authors", **settings)
            open_short = [record[-1] not in w.stops and len(record) < w.horizon for record in records]
            short = min(short, float(law[open_short].sum()))
            assert short > 0, "truncated texts"
    measured("TV to the closed form", worst, LIMIT)
    measured("TV to p^α minus p^α(length > 1), least", floor, 0)
    measured("mass of truncated texts at N = 10, least", short, 0)


@pytest.mark.claim("P11")
def test_authors_limit_is_one_token(measured: Measured) -> None:
    assert_authors_limit(mc.blocked_law, measured)


@pytest.mark.claim("P11")
@pytest.mark.parametrize("mutant", [of_rule("exact"), of_rule("early_exit"), of_rule("no_length_factor", cut="record")])
def test_authors_limit_mutants(mutant: LawOf) -> None:
    with pytest.raises(AssertionError, match="limit"):
        assert_authors_limit(mutant)


@pytest.mark.claim("P11")
def test_authors_lengths_never_grow() -> None:
    """...while those of the right chain do."""

    def assert_never_grows(rule: mc.Rule) -> None:
        for w in worlds():
            texts = mc.all_texts(w.conditionals, power.tempered(w.conditionals, 0.25), w.horizon)
            states = texts.only(texts.length > 0 if rule == "authors" else texts.are_records(w.horizon), w.horizon)
            kernel = mc.suffix_mh(states, 4.0, rule=rule)
            assert kernel.min() >= -SAME and np.abs(kernel.sum(1) - 1).max() < SAME
            assert np.all(kernel[states.length[:, None] < states.length] == 0), "grows"

    assert_never_grows("authors")
    with pytest.raises(AssertionError, match="grows"):
        assert_never_grows("exact")


def assert_keeps(chain_of: ChainOf, times_q: int, measured: Measured = ignore) -> None:
    """The law that the kernel keeps is p^α q^m, m = `times_q`, at either cut."""
    worst, far = 0.0, 0.0
    for w in worlds():
        for alpha, tau in ((1.5, None), (4.0, 0.5)):
            logq = power.record_logps(power.tempered(w.conditionals, tau or 1 / alpha), w.horizon)[1]
            expected = power.power_law(alpha * w.logp + times_q * logq, 1.0)
            for cut in ("horizon", "record"):
                chain = chain_of(w.conditionals, horizon=w.horizon, alpha=alpha, tau=tau, cut=cut)
                worst = max(worst, residual(chain.kernel, expected))
                assert worst < SAME
                kept = mc.stationary(chain.kernel)
                assert mc.total_variation(kept, expected) < LIMIT
                far = max(far, mc.total_variation(kept, w.law(alpha)))
    measured(f"detailed balance with p^α q^{times_q}", worst, SAME)
    measured(f"TV of p^α q^{times_q} to p^α, greatest", far, 1)
    assert far > 0.1


@pytest.mark.claim("P13")
@pytest.mark.parametrize(("rule", "times_q"), [("wrong_sign", 2), ("no_proposal", 1)])
def test_wrong_proposal_terms(rule: mc.Rule, times_q: int, measured: Measured) -> None:
    assert_keeps(with_rule(rule), times_q, measured)


@pytest.mark.claim("P13")
@pytest.mark.parametrize(("rule", "times_q"), [("wrong_sign", 1), ("no_proposal", 2), ("exact", 1), ("exact", 2)])
def test_wrong_proposal_term_mutants(rule: mc.Rule, times_q: int) -> None:
    with pytest.raises(AssertionError):
        assert_keeps(with_rule(rule), times_q)


def assert_top_k(chain_of: ChainOf, measured: Measured = ignore) -> None:
    """With a top-k proposal the chain keeps p^α restricted to the records all of whose tokens are in the top k."""
    worst, lost = 0.0, 0.0
    for w in worlds():
        for cut, k in (("horizon", 2), ("record", 1), ("horizon", 3)):
            chain = chain_of(w.conditionals, horizon=w.horizon, alpha=4.0, cut=cut, top_k=k)

            def allowed(prefix: Record, token: int, k: int = k, w: World = w) -> bool:
                law = w.conditionals[prefix]
                return sum(law > law[token]) < k

            inside = [all(allowed(record[:t], v) for t, v in enumerate(record)) for record in w.records]
            assert chain.records == [record for record, keep in zip(w.records, inside) if keep]
            expected = w.law(4.0)[inside] / w.law(4.0)[inside].sum()
            worst = max(worst, residual(chain.kernel, expected), float(np.abs(expected - chain.target).max()))
            assert worst < SAME
            lost = max(lost, 1 - w.law(4.0)[inside].sum())
    measured("detailed balance", worst, SAME)
    measured("mass of p^α that is lost, greatest", lost, 1)
    assert lost > 0.01


@pytest.mark.claim("P14")
def test_top_k_proposal(measured: Measured) -> None:
    assert_top_k(mc.chain, measured)


def unfiltered_ratio(conditionals: power.Conditionals, *, horizon: int, alpha: float, cut: mc.Cut, top_k: int) -> Chain:
    """Draws from the top k, but computes the acceptance ratio with the whole proposal law."""
    whole = power.tempered(conditionals, 1 / alpha)
    texts = mc.all_texts(conditionals, power.top_k(whole, top_k), horizon)
    states = texts.only(texts.are_records(horizon), horizon)
    scored = mc.all_texts(conditionals, whole, horizon)
    keep = np.array([text in set(states.texts) for text in scored.texts])
    cuts = range(1, horizon + 1)
    accept = np.exp(np.minimum(mc.log_ratio(scored.only(keep, horizon), alpha, cut, "exact", cuts), 0))
    kernel = mc.with_rejections(mc.proposed(states, cut, cuts) * accept)
    return Chain(states.texts, states.suffix[:, 0], kernel, power.power_law(states.logp.sum(1), alpha))


@pytest.mark.claim("P14")
@pytest.mark.parametrize("mutant", [unfiltered_ratio, lambda c, top_k, **s: mc.chain(c, **s), with_rule("no_proposal")])
def test_top_k_mutants(mutant: ChainOf) -> None:
    with pytest.raises(AssertionError):
        assert_top_k(mutant)


def assert_ignoring_the_end(law_of: LawOf, measured: Measured = ignore) -> None:
    """Refining all H tokens and trimming behind the first stop gives p^α(x) F(x), F(x) = Σ p(rest|x)^α over everything
    that the model would say after its end."""
    worst, biases = 0.0, []
    for seed, vocab, horizon, stops in ((0, 3, 4, (0,)), (11, 4, 3, (1, 3)), (20, 2, 5, (0,)), (1, 3, 4, (0,))):
        w, endless = world(seed, vocab, horizon, stops), world(seed, vocab, horizon, ())
        assert set(w.conditionals) < set(endless.conditionals)
        for alpha in (1.5, 4.0):
            log_f = power.future(endless.conditionals, alpha, horizon)
            garbage = np.array([log_f.get(record, 0.0) for record in w.records])
            expected = power.power_law(alpha * w.logp + garbage, 1.0)
            records, law = law_of(endless.conditionals, horizon=horizon, alpha=alpha, block=2, steps=LONG, rule="exact")
            trimmed = mc.trim(records, law, stops)
            assert [*trimmed] == w.records
            worst = max(worst, mc.total_variation([*trimmed.values()], expected))
            assert worst < LIMIT
            biases.append(mc.total_variation(expected, w.law(alpha)))
    measured("TV to the closed form", worst, LIMIT)
    measured("TV of it to p^α, greatest", max(biases), 1)
    assert min(biases) > LIMIT and max(biases) > 0.05


@pytest.mark.claim("P24")
def test_ignoring_the_end(measured: Measured) -> None:
    assert_ignoring_the_end(mc.blocked_law, measured)


def respects_the_end(conditionals: power.Conditionals, rule: mc.Rule, **settings: object) -> tuple[list[Record], Law]:
    """The law without garbage: p^α on whole texts would be right only if what follows an end weighed 1."""
    records, law = mc.blocked_law(conditionals, rule=rule, **settings)  # type: ignore[arg-type]
    log_f = power.future(conditionals, settings["alpha"], settings["horizon"])  # type: ignore[arg-type]
    end = [min((t + 1 for t, v in enumerate(record) if v == 0), default=len(record)) for record in records]
    law = law / np.exp([log_f.get(record[:t], 0.0) for record, t in zip(records, end)])
    return records, law / law.sum()


@pytest.mark.claim("P24")
@pytest.mark.parametrize("mutant", [respects_the_end, of_rule("nested"), of_rule("exact", steps=5)])
def test_ignoring_the_end_mutants(mutant: LawOf) -> None:
    with pytest.raises(AssertionError):
        assert_ignoring_the_end(mutant)


def assert_reducible(chain_of: ChainOf, measured: Measured = ignore) -> None:
    """Algorithm 1 with tokens that count from 0 never moves between first tokens: eigenvalue 1 once for each."""
    between = 0.0
    for w in worlds():
        for cut in ("horizon", "record"):
            chain = chain_of(w.conditionals, horizon=w.horizon, alpha=4.0, cut=cut)
            first = np.array([record[0] for record in chain.records])
            between = max(between, float(np.abs(chain.kernel[first[:, None] != first]).max()))
            assert between == 0, "moves"
            assert int(np.sum(mc.spectrum(chain.kernel) > 1 - SAME)) == len(set(first.tolist()))
            assert residual(chain.kernel, chain.target) < SAME
    measured("moves between first tokens", between, 0)


@pytest.mark.claim("P27")
def test_literal_algorithm_is_reducible(measured: Measured) -> None:
    assert_reducible(with_rule("literal"), measured)


@pytest.mark.claim("P27")
def test_literal_algorithm_mutant() -> None:
    with pytest.raises(AssertionError, match="moves"):
        assert_reducible(mc.chain)


# --- P26: exact savings ----------------------------------------------------------------------------------------------


class Skipping(Procedure):
    """A step that first draws, from the known probabilities of x's tokens, where the proposal leaves x."""

    exclude = True

    @cache  # noqa: B019
    def step(self, x: Record, h: int) -> dict[Record, float]:
        law: dict[Record, float] = defaultdict(float)
        cuts = self.cuts(x, h)
        for r in cuts:
            repeated = 1 / len(cuts)  # the chance of this cut and that x is drawn again so far
            for d in range(r, len(x) + 1):
                known = self.q[x[: d - 1]]
                miss, repeated = repeated * (1 - known[x[d - 1]]), repeated * known[x[d - 1]]
                first = known.copy()
                if self.exclude:
                    first[x[d - 1]] = 0
                if miss == 0 or not first.any():
                    continue
                for v in np.flatnonzero(first):
                    for y, chance in self.continuations((*x[: d - 1], int(v)), h):
                        moved = miss * first[v] / first.sum() * chance
                        accept = min(1.0, self.ratio(x, y, r))
                        law[y] += moved * accept
                        law[x] += moved * (1 - accept)
            law[x] += repeated
        return law


class SkippingWithRepeats(Skipping):
    """The first new token is drawn from the whole law, the token that was just missed included."""

    exclude = False


def assert_same_kernel(procedure: type[Procedure], measured: Measured = ignore) -> None:
    worst = 0.0
    for w in (world(0, 3, 4), world(11, 4, 3, (1, 3)), world(21, 2, 5), world(31, 3, 4, (2,), 0.5), world_with_zeros()):
        for alpha, tau in ((4.0, None), (1.5, 1.0)):
            for cut in ("horizon", "record"):
                chain = mc.chain(w.conditionals, horizon=w.horizon, alpha=alpha, tau=tau, cut=cut)  # type: ignore[arg-type]
                skipping = procedure(w, alpha, tau, cut, "exact", w.horizon)  # type: ignore[arg-type]
                rows = [skipping.step(record, w.horizon) for record in w.records]
                kernel = np.array([[row.get(record, 0.0) for record in w.records] for row in rows])
                worst = max(worst, float(np.abs(kernel - chain.kernel).max()))
                assert worst < SAME
    measured("K with the skip - K", worst, SAME)


@pytest.mark.claim("P26")
def test_first_divergence_skip_keeps_the_kernel(measured: Measured) -> None:
    assert_same_kernel(Skipping, measured)


@pytest.mark.claim("P26")
def test_first_divergence_skip_mutant() -> None:
    with pytest.raises(AssertionError):
        assert_same_kernel(SkippingWithRepeats)


def assert_early_reject_is_exact(settings: list[tuple[float, float]], measured: Measured = ignore) -> None:
    """U > bound after some tokens implies U > A: every bound is at least the final ratio, for all x, r, y."""
    worst = -np.inf
    for w in worlds():
        for alpha, tau in settings:
            texts = mc.all_texts(w.conditionals, power.tempered(w.conditionals, tau), w.horizon)
            states = texts.only(texts.are_records(w.horizon), w.horizon)
            log_w = np.cumsum(alpha * states.logp - states.logq, axis=1)  # [y, t]
            for cut in ("horizon", "record"):
                bound = log_w[None] - log_w[:, None, -1:]  # [x, y, t]: after t tokens of y
                if cut == "record":
                    so_far = np.minimum(np.arange(1, w.horizon + 1), states.length[:, None])
                    bound = bound + np.log(states.length)[:, None, None] - np.log(so_far)
                ratio = mc.log_ratio(states, alpha, cut, "exact", range(1, w.horizon + 1))  # type: ignore[arg-type]
                worst = max(worst, float((ratio[..., None] - bound).max()))
                assert worst < SAME, "a proposal is rejected that would be accepted"
    measured("log A - bound, greatest", worst, 0)


@pytest.mark.claim("P26")
def test_early_reject_changes_no_decision(measured: Measured) -> None:
    """1 <= 1/τ <= α, the ends included."""
    assert_early_reject_is_exact([(1.0, 1.0), (4.0, 0.25), (4.0, 0.5), (4.0, 1.0), (1.5, 0.8)], measured)


@pytest.mark.claim("P26")
@pytest.mark.parametrize(("alpha", "tau"), [(4.0, 0.2), (4.0, 1.5), (0.5, 2.0), (0.5, 1.0)])
def test_early_reject_needs_its_condition(alpha: float, tau: float) -> None:
    """1/τ > α or 1/τ < 1: some factor of w exceeds 1."""
    with pytest.raises(AssertionError, match="accepted"):
        assert_early_reject_is_exact([(alpha, tau)])


def assert_alpha_one(alpha: float, rule: mc.Rule, measured: Measured = ignore) -> None:
    """A step draws the rest of the text from the model and keeps it: K_r(x, y) = 1[x_<r = y_<r] p(y)/p(x_<r), and any
    number of blocks and steps gives p."""
    worst = {"|K - the model's own step|": 0.0, "|law after blocks - p|": 0.0}
    for w in worlds():
        p, setting = w.law(1.0), {"alpha": alpha, "tau": 1.0, "rule": rule, "horizon": w.horizon}
        for r in range(1, w.horizon + 1):
            kernel = mc.chain(w.conditionals, **setting, cuts=range(r, r + 1)).kernel  # type: ignore[arg-type]
            same = np.array([[x[: r - 1] == y[: r - 1] for y in w.records] for x in w.records])
            reached = np.array([len(x) >= r for x in w.records])[:, None]  # where it is not, nothing happens
            step = np.where(reached, same * p / (same @ p)[:, None], np.eye(len(p)))
            worst["|K - the model's own step|"] = max(worst["|K - the model's own step|"], np.abs(kernel - step).max())
        _, law = mc.blocked_law(w.conditionals, **setting, block=2, steps=3)  # type: ignore[arg-type]
        worst["|law after blocks - p|"] = max(worst["|law after blocks - p|"], np.abs(law - p).max())
    for name, error in worst.items():
        measured(name, error, SAME)
        assert error <= SAME, name


@pytest.mark.claim("P12")
def test_alpha_one_is_the_model(measured: Measured) -> None:
    assert_alpha_one(1.0, "exact", measured)


@pytest.mark.claim("P12")
@pytest.mark.parametrize(("alpha", "rule"), [(1.001, "exact"), (1.0, "no_proposal")])
def test_alpha_one_mutants(alpha: float, rule: mc.Rule) -> None:
    """A power that is not 1; a ratio without its proposal term."""
    with pytest.raises(AssertionError):
        assert_alpha_one(alpha, rule)


@pytest.mark.parametrize(
    "settings", [{"steps": -1}, {"block": 0}, {"alpha": 0.0}, {"tau": -1.0}, {"horizon": 0}, {"top_k": 0}]
)
def test_bad_input_is_a_value_error(settings: dict) -> None:
    with pytest.raises(ValueError, match="needs"):
        mc.blocked_law(world(0, 3, 4).conditionals, **({"horizon": 4, "alpha": 2.0} | settings))
