"""Cuts at entropy jumps and multiple tries as exact matrices (claims P15, P16), against their descriptions."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from tests.theory.test_markov_chain import (
    LIMIT,
    SAME,
    SETTINGS,
    ChainOf,
    Measured,
    Procedure,
    World,
    ignore,
    residual,
    with_rule,
    world,
    world_with_zeros,
    worlds,
)
from theory import markov_chain as mc
from theory import power
from theory.importance import inverse_mean
from theory.markov_chain import EntropyCut
from theory.power import Law, Record
from theory.suffix_mh import cut_weights, tried
from toy.tabular import TabularLM, enumerate_law

CUTS = [EntropyCut(), EntropyCut(1.0), EntropyCut(4.0, 0.1), EntropyCut(0.5, 1.0)]


def cut_law(w: World, x: Record, cut: mc.Cut) -> Law:
    """c_x(r), r = 1..H, as printed: normalised over the record, or uniform on 1..H."""
    if cut == "horizon":
        return np.full(w.horizon, 1 / w.horizon)
    weight = np.zeros(w.horizon)
    before = 0.0
    for t in range(len(x)):
        p = np.exp(w.conditionals[x[:t]])
        entropy = -sum(mass * np.log(mass) for mass in p if mass > 0)
        weight[t] = 1.0 if cut == "record" else cut.floor + max(0.0, entropy - before) ** cut.beta  # type: ignore[union-attr]
        before = entropy
    return weight / weight.sum() if weight.any() else weight


Accept = Callable[[Law, int], float]  # weights w_j = A(x, y_j) of the tries, the pick -> the chance to accept it


def published(weights: Law, pick: int) -> float:
    return min(1.0, weights.sum() / (weights.sum() - weights[pick] + 1))


def literal(w: World, alpha: float, cut: mc.Cut, tries: int, accept: Accept = published, pick: bool = True) -> Law:
    """The kernel by a sum over all cuts and all tuples of proposals; `pick`: in proportion to w_j, else evenly."""
    told = Procedure(w, alpha, None, "horizon", "exact", w.horizon)
    index = {record: i for i, record in enumerate(w.records)}
    kernel = np.zeros((len(w.records), len(w.records)))
    for i, x in enumerate(w.records):
        chosen = cut_law(w, x, cut)
        for r in range(1, w.horizon + 1):
            if r > len(x):
                kernel[i, i] += chosen[r - 1]
                continue
            fibre = told.continuations(x[: r - 1], w.horizon)
            factor = [cut_law(w, y, cut)[r - 1] for y, _ in fibre]
            ratio = np.array([told.ratio(x, y, r) * c for (y, _), c in zip(fibre, factor)]) / (chosen[r - 1] or 1)
            for tuples in itertools.product(range(len(fibre)), repeat=tries):
                weights = ratio[list(tuples)]
                mass = chosen[r - 1] * np.prod([fibre[j][1] for j in tuples])
                if not mass:
                    continue
                for j, t in enumerate(tuples):
                    moved = mass * (weights[j] / weights.sum() if pick else 1 / tries)
                    kernel[i, index[fibre[t][0]]] += moved * accept(weights, j)
                    kernel[i, i] += moved * (1 - accept(weights, j))
    return kernel


def small_worlds() -> list[World]:
    return [world(0, 2, 3), world(1, 3, 2), world(2, 2, 2, ()), world(3, 3, 2, (0, 2))]


# --- P15: entropy cuts -----------------------------------------------------------------------------------------------


def assert_entropy_cut(chain_of: ChainOf, measured: Measured = ignore) -> None:
    """In detailed balance with p^α, and irreducible, with a floor and without; the printed factor c_y(r)/c_x(r) is
    C(x)/C(y) at every cut: the kernel is the one of the description, entry by entry."""
    worst, gap = 0.0, 1.0
    for w in worlds():
        for (alpha, tau), cut in itertools.product(((4.0, None), (4.0, 0.5), (0.5, 1.0)), CUTS):
            chain = chain_of(w.conditionals, horizon=w.horizon, alpha=alpha, tau=tau, cut=cut)
            worst = max(worst, residual(chain.kernel, w.law(alpha)))
            assert worst < SAME, "detailed balance"
            assert chain.kernel.min() >= -SAME and np.abs(chain.kernel.sum(1) - 1).max() < SAME
            gap = min(gap, mc.spectral_gap(chain.kernel))
    measured("detailed balance", worst, SAME)
    assert gap > LIMIT, "irreducible"
    worst = 0.0
    for w, cut in itertools.product([*small_worlds(), world_with_zeros()], CUTS):
        chain = chain_of(w.conditionals, horizon=w.horizon, alpha=4.0, cut=cut)
        worst = max(worst, float(np.abs(chain.kernel - literal(w, 4.0, cut, 1, lambda a, j: min(1.0, a[j]))).max()))
    measured("kernel - description", worst, SAME)
    assert worst < SAME, "kernel"


@pytest.mark.claim("P15")
def test_entropy_cut(measured: Measured) -> None:
    assert_entropy_cut(mc.chain, measured)


WeightsOf = Callable[[mc.Texts, EntropyCut, range], Law]


def assert_shared_cuts(weights_of: WeightsOf, measured: Measured = ignore) -> None:
    """Two records that share x_<r give the cut r the same weight, so none is 0 one way only; and c_y(r)/c_x(r), from
    the printed c, is C(x)/C(y) whatever r, though it is not 1."""
    worst, largest, zeros = 0.0, 0.0, 0
    for w, cut in itertools.product([*small_worlds(), world_with_zeros(), decisions({1, 3}, 5)], CUTS):
        texts = mc.Setting(horizon=w.horizon, alpha=4.0).texts(w.conditionals)
        states = texts.only(texts.are_records(w.horizon), w.horizon)
        weights = weights_of(states, cut, range(1, w.horizon + 1))
        total, printed = weights.sum(1), np.array([cut_law(w, x, cut) for x in states.texts])
        for i, j in itertools.permutations(range(len(states.texts)), 2):
            for r in range(min(states.shared[i, j] + 1, states.length[i], states.length[j])):
                assert (printed[i, r] > 0) == (printed[j, r] > 0) and weights[i, r] == weights[j, r], "weights"
                zeros += printed[i, r] == 0
                if printed[i, r] > 0:
                    worst = max(worst, abs(printed[j, r] / printed[i, r] / (total[i] / total[j]) - 1))
                    largest = max(largest, total[i] / total[j])
    measured("factor / (C(x)/C(y)) - 1", worst, SAME)
    measured("factor, greatest", largest, 1)
    assert worst < SAME, "factor"
    assert largest > 2 and zeros


@pytest.mark.claim("P15")
def test_shared_cuts(measured: Measured) -> None:
    assert_shared_cuts(cut_weights, measured)


@pytest.mark.claim("P15")
def test_shared_cuts_mutants() -> None:
    """Weights by the entropy behind the cut, and every cut alike."""

    def behind(states: mc.Texts, cut: EntropyCut, cuts: range) -> Law:
        later = replace(states, entropy=np.roll(states.entropy, -1, axis=1))
        return cut_weights(later, cut, cuts)

    with pytest.raises(AssertionError, match="weights"):
        assert_shared_cuts(behind)
    with pytest.raises(AssertionError, match="factor"):
        assert_shared_cuts(lambda states, cut, cuts: cut_weights(states, "record", cuts))


def counts_positions(conditionals: power.Conditionals, *, cut: EntropyCut, **settings: float) -> mc.Chain:
    """Cuts at entropy jumps with the factor |x|/|y| of cuts that are uniform on the record."""
    s = mc.Setting(**settings, cut=cut)  # type: ignore[arg-type]
    states = s.texts(conditionals).only(s.texts(conditionals).are_records(s.horizon), s.horizon)
    cuts = range(1, s.horizon + 1)
    accept = np.exp(np.minimum(mc.log_ratio(states, s.alpha, "record", "exact", cuts), 0))
    kernel = mc.with_rejections(mc.proposed(states, cut, cuts) * accept)
    return mc.Chain(states.texts, states.suffix[:, 0], kernel, power.power_law(states.logp.sum(1), s.alpha))


@pytest.mark.claim("P15")
@pytest.mark.parametrize("mutant", [with_rule("no_length_factor"), counts_positions, with_rule("no_proposal")])
def test_entropy_cut_mutants(mutant: ChainOf) -> None:
    with pytest.raises(AssertionError, match="balance"):
        assert_entropy_cut(mutant)


def test_entropy_cut_of_equal_weights_is_the_uniform_one() -> None:
    for w in worlds():
        for alpha, tau in SETTINGS:
            equal, record = (
                mc.chain(w.conditionals, horizon=w.horizon, alpha=alpha, tau=tau, cut=cut).kernel
                for cut in (EntropyCut(beta=0.0), "record")
            )  # fmt: skip
            assert np.abs(equal - record).max() < SAME


@pytest.mark.claim("P15")
def test_entropy_cut_without_its_factor_has_another_limit(measured: Measured) -> None:
    biases = []
    for w, (alpha, tau) in itertools.product(worlds(), SETTINGS):
        settings = {"horizon": w.horizon, "alpha": alpha, "tau": tau, "cut": EntropyCut()}
        chain = mc.chain(w.conditionals, **settings, rule="no_length_factor")
        biases.append(mc.total_variation(mc.stationary(chain.kernel), chain.target))
    measured("TV to p^α, least", min(biases), 0)
    measured("TV to p^α, mean", float(np.mean(biases)), 0)
    measured("TV to p^α, greatest", max(biases), 1)
    assert min(biases) > LIMIT and max(biases) > 0.2


@pytest.mark.claim("P15")
def test_gaps_of_entropy_cuts(measured: Measured) -> None:
    """No order in general: against the record's cut the gap is larger in some worlds and smaller in others."""
    for name, cut in (("β = 4", EntropyCut()), ("β = 1", EntropyCut(1.0)), ("β = 4, floor 0.1", EntropyCut(4.0, 0.1))):
        ratios = []
        for w in worlds():
            chains = [mc.chain(w.conditionals, horizon=w.horizon, alpha=4.0, cut=c) for c in (cut, "record")]  # type: ignore[arg-type]
            entropy, record = (mc.spectral_gap(chain.kernel) for chain in chains)
            ratios.append(entropy / record)
        measured(f"gap / gap of the record's cut, {name}, least", min(ratios), 1)
        measured(f"gap / gap of the record's cut, {name}, greatest", max(ratios), 1)
        assert min(ratios) < 1 < max(ratios)


def decisions(at: set[int], horizon: int) -> World:
    """Tokens are decided at the positions `at` (from 0), each by a permutation of one law, and certain elsewhere."""
    laws: dict[Record, list[float]] = {}
    for t in range(horizon):
        for text in itertools.product(range(3), repeat=t):
            law = [0.6, 0.3, 0.1] if t in at else [1.0, 0.0, 0.0]
            turn = sum(text) % 3 if t in at else 0
            laws[(0, *text)] = law[turn:] + law[:turn]
    return World(*enumerate_law(TabularLM.tree(laws, 3, torch.float64), [0], horizon, []), horizon, ())


GapsOf = Callable[[World, mc.Cut], float]


def gap_of(w: World, cut: mc.Cut) -> float:
    return mc.spectral_gap(mc.chain(w.conditionals, horizon=w.horizon, alpha=4.0, cut=cut).kernel)


def assert_decisions(gap_of: GapsOf, measured: Measured = ignore) -> None:
    """k decisions by permutations of one distribution, no two adjacent, among T tokens, the first at r_1: every
    proposal is accepted, and the first decision is drawn anew with chance 1/k, by the uniform cut r_1/T. A decision
    right after another is no jump of the entropy: of adjacent ones the first alone is cut, and counts."""
    for at, horizon, jumps in (
        ({0, 3}, 6, 2), ({1, 3, 5}, 6, 3), ({2}, 5, 1), ({0}, 6, 1), ({0, 2, 4}, 6, 3),
        ({0, 1}, 5, 1), ({1, 2, 4}, 6, 2),
    ):  # fmt: skip
        w = decisions(at, horizon)
        ours, uniform = gap_of(w, EntropyCut()), gap_of(w, "record")
        measured("gap · number of jumps", ours * jumps, 1)
        measured("uniform cut: gap · T / r_1", uniform * horizon / (min(at) + 1), 1)
        assert ours == pytest.approx(1 / jumps, abs=LIMIT), "jumps"
        assert uniform == pytest.approx((min(at) + 1) / horizon, abs=LIMIT), "uniform"


@pytest.mark.claim("P15")
def test_gap_counts_decisions(measured: Measured) -> None:
    assert_decisions(gap_of, measured)


@pytest.mark.claim("P15")
def test_gap_counts_decisions_mutant() -> None:
    """A floor cuts where nothing is decided; the other cut; and the entropy's cut for the uniform one."""
    with pytest.raises(AssertionError, match="jumps"):
        assert_decisions(lambda w, cut: gap_of(w, EntropyCut(floor=0.1) if cut != "record" else cut))
    with pytest.raises(AssertionError, match="jumps"):
        assert_decisions(lambda w, cut: gap_of(w, "record"))
    with pytest.raises(AssertionError, match="uniform"):
        assert_decisions(lambda w, cut: gap_of(w, EntropyCut()))


# --- P16: multiple tries ---------------------------------------------------------------------------------------------

KernelOf = Callable[[World, float, mc.Cut, int], Law]  # world, α, cut, tries


def closed_form(w: World, alpha: float, cut: mc.Cut, tries: int) -> Law:
    return mc.chain(w.conditionals, horizon=w.horizon, alpha=alpha, cut=cut, tries=tries).kernel


def assert_tries(kernel_of: KernelOf, measured: Measured = ignore) -> None:
    """In detailed balance with p^α at any cut; entry by entry the kernel of the description; one try is the chain."""
    worst = difference = 0.0
    for w, alpha in zip(small_worlds(), (4.0, 1.5, 4.0, 4.0)):
        for cut, tries in itertools.product(("horizon", "record", EntropyCut()), (1, 2, 3)):
            kernel = kernel_of(w, alpha, cut, tries)  # type: ignore[arg-type]
            assert kernel.min() >= -SAME and np.abs(kernel.sum(1) - 1).max() < SAME
            worst = max(worst, residual(kernel, w.law(alpha)))
            assert worst < SAME, "detailed balance"
            difference = max(difference, float(np.abs(kernel - literal(w, alpha, cut, tries)).max()))  # type: ignore[arg-type]
            assert difference < SAME, "kernel"
    measured("detailed balance", worst, SAME)
    measured("kernel - description", difference, SAME)


@pytest.mark.claim("P16")
def test_tries(measured: Measured) -> None:
    assert_tries(closed_form, measured)


@pytest.mark.claim("P16")
def test_many_tries(measured: Measured) -> None:
    worst = 0.0
    for w in worlds():
        for cut, tries in (("record", 20), (EntropyCut(), 5)):
            kernel = closed_form(w, 4.0, cut, tries)  # type: ignore[arg-type]
            worst = max(worst, residual(kernel, w.law(4.0)))
    measured("detailed balance", worst, SAME)
    assert worst < SAME
    for w, cut in itertools.product(worlds(), ("horizon", "record", EntropyCut())):
        texts = mc.Setting(horizon=w.horizon, alpha=4.0).texts(w.conditionals)
        states = texts.only(texts.are_records(w.horizon), w.horizon)
        one = mc.with_rejections(tried(states, 4.0, cut, "exact", range(1, w.horizon + 1), 1))  # type: ignore[arg-type]
        assert np.abs(one - closed_form(w, 4.0, cut, 1)).max() < SAME  # type: ignore[arg-type]


@pytest.mark.claim("P16")
@pytest.mark.parametrize(
    "mutant",
    [
        partial(literal, accept=lambda weights, pick: 1.0),
        partial(literal, accept=lambda weights, pick: min(1.0, float(weights[pick]))),
        partial(literal, accept=lambda weights, pick: min(1.0, weights.sum() / (weights.sum() + 1))),
        partial(literal, pick=False),
        lambda w, alpha, cut, tries: closed_form(w, alpha, cut, tries + 1),
    ],
    ids=["always", "one try's", "W/(W+1)", "picked evenly", "one try more"],
)
def test_tries_mutants(mutant: KernelOf) -> None:
    with pytest.raises(AssertionError, match=r"balance|kernel"):
        assert_tries(mutant)


GapOf = Callable[[Law, Law, int], float]  # proposal, target, tries


def gap_of_tries(proposal: Law, target: Law, tries: int) -> float:
    """K E[1/(S + w*)], w = target/proposal, S the sum of K - 1 weights of draws of the proposal."""
    w = target / proposal
    return float(tries * inverse_mean(proposal, w, tries - 1, w.max(keepdims=True))[0])


def assert_gap_of_tries(gap_of: GapOf, measured: Measured = ignore) -> None:
    """The chain that always cuts at 1 has gap K E[1/(S + w*)], between K/(K - 1 + w*) and K/w*; the cut uniform on 1..H
    has at least 1/H of it, with equality where a text may end at its first token, α >= 1 and τ = 1/α.

    K(x, y) = K π(y) E[1/(S + max(w(x), w(y)))] >= a π(y) with a = K E[1/(S + w*)], and x* = argmax w attains it: so
    δ_x* K = (1-a) δ_x* + a π. min(1/(S + w(x)), 1/(S + w(y))) is positive semidefinite in (x, y), so is K: see P7.
    """
    worst, equal, seen = 0.0, 0.0, 0
    for w, (alpha, tau), tries in itertools.product(worlds(), ((4.0, None), (1.5, 0.5)), (2, 20)):
        settings = {"horizon": w.horizon, "alpha": alpha, "tau": tau, "tries": tries}
        first = mc.chain(w.conditionals, **settings, cuts=range(1, 2))
        top = float((first.target / first.initial).max())
        claimed = gap_of(first.initial, first.target, tries)
        worst = max(worst, abs(mc.spectral_gap(first.kernel) - claimed))
        assert worst < LIMIT, "gap"
        assert tries / (tries - 1 + top) - LIMIT <= claimed <= tries / top + LIMIT, "bounds"
        if tries == 2:
            mixture = mc.spectral_gap(mc.chain(w.conditionals, **settings).kernel)
            assert mixture >= claimed / w.horizon - LIMIT
            if any(len(record) == 1 for record in w.records) and alpha >= 1 and tau in (None, 1 / alpha):
                seen, equal = seen + 1, max(equal, abs(mixture - claimed / w.horizon))
                assert equal < LIMIT, "equality"
    assert seen
    measured("gap - K E[1/(S + w*)]", worst, LIMIT)
    measured("uniform cut: H · gap - K E[1/(S + w*)]", equal, LIMIT)


@pytest.mark.claim("P16")
def test_gap_of_tries(measured: Measured) -> None:
    assert_gap_of_tries(gap_of_tries, measured)


@pytest.mark.claim("P16")
@pytest.mark.parametrize(
    "mutant",
    [
        lambda g, pi, tries: tries / float((pi / g).max()),
        lambda g, pi, tries: tries / (tries - 1 + float((pi / g).max())),
        lambda g, pi, tries: gap_of_tries(pi, g, tries),
    ],
    ids=["K times one try's", "the lower bound", "w and 1/w"],
)
def test_gap_of_tries_mutants(mutant: GapOf) -> None:
    with pytest.raises(AssertionError, match=r"gap|bounds"):
        assert_gap_of_tries(mutant)


@pytest.mark.claim("P16")
def test_tries_multiply_small_gaps(measured: Measured) -> None:
    """K tries multiply the gap of the uniform cut by K w*/(K - 1 + w*) at least and by K at most, where a text may end
    at its first token: the smaller the gap of one try, the more nearly by K."""
    for tries in (2, 4):
        factors = []
        for w in (world(seed, 3, 4) for seed in range(6)):
            chain = mc.chain(w.conditionals, horizon=4, alpha=4.0)
            top = float((chain.target / chain.initial).max())
            one = mc.spectral_gap(chain.kernel)
            factors.append((one, mc.spectral_gap(closed_form(w, 4.0, "horizon", tries)) / one))
            assert tries * top / (tries - 1 + top) - LIMIT <= factors[-1][1] <= tries + LIMIT
        measured(f"gap({tries})/gap(1) where gap(1) is least", min(factors)[1], tries)
        measured(f"gap({tries})/gap(1) where gap(1) is greatest", max(factors)[1], tries)
        assert min(factors)[1] > max(factors)[1]


@pytest.mark.parametrize("settings", [{"tries": 0}, {"cut": "x"}])
def test_bad_input_is_a_value_error(settings: dict) -> None:
    with pytest.raises(ValueError, match="needs"):
        mc.chain(world(0, 3, 4).conditionals, **({"horizon": 4, "alpha": 2.0} | settings))
    with pytest.raises(ValueError, match="needs"):
        EntropyCut(beta=-1.0)
