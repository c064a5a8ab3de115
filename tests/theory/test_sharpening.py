"""Sharpening and its deterministic steps (claims T1-T5, T14, T16, T27, T28), enumerated and on extreme instances.

Each claim is an `assert_...` that takes the implementation; the mutants give it a wrong one.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from reference.sampling import generate
from theory import best_of_n as bon
from theory import sharpening as sharp
from theory.power import Conditionals, Record, power_conditionals, power_law, record_logps, tempered
from theory.sample_complexity import KAPPA
from theory.sharpening import Array, Mask
from toy.tabular import TabularLM, enumerate_law

Measured = Callable[..., None]
SAME = 1e-9  # the list's tolerance for identities


def ignore(*_: object) -> None:
    """What mutants measure is of no interest."""


def laws(seed: int, count: int, ties: bool = True) -> Iterator[tuple[Array, Array, np.random.Generator]]:
    """(prompts [X], log base [X, K], generator): flat to concentrated bases, some with tied or impossible responses."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        x, k = rng.integers(1, 6), rng.integers(2, 30)
        base = rng.dirichlet(np.full(k, rng.choice([0.3, 1.0, 20.0])), size=x)
        if ties and rng.random() < 0.5:
            base[:, rng.integers(k)] = base.max(-1)
        if ties and k > 3 and rng.random() < 0.5:
            base[np.arange(x), base.argmin(-1)] = 0
        with np.errstate(divide="ignore"):
            yield rng.dirichlet(np.ones(x)), np.log(base / base.sum(-1, keepdims=True)), rng


# --- T1, T2: greedy decoding, and ties -------------------------------------------------------------------------------


def two_branches(eta: float) -> TabularLM:
    """Prompt 0. Token 0 with 1/2 + η, then a fair coin; token 1 with 1/2 - η, then 0 for sure: y* = (1, 0)."""
    laws = {(0,): (0.5 + eta, 0.5 - eta), (0, 0): (0.5, 0.5), (0, 1): (1, 0)}
    return TabularLM.tree(laws, 2, torch.float64)


Decode = Callable[[TabularLM, Conditionals, int], Record]


def by_table(model: TabularLM, conditionals: Conditionals, horizon: int) -> Record:
    return sharp.greedy(conditionals, horizon)


def by_decoder(model: TabularLM, conditionals: Conditionals, horizon: int) -> Record:
    """The reference's decoding loop at temperature 0."""
    out = generate(model, [[0]], max_new_tokens=horizon, stop_ids=(), temperature=0)
    return tuple(out.samples.tokens[0, 0].tolist())


def assert_greedy_finds_the_mode(
    decode: Decode, least: float = 0.5, worlds: int = 150, measured: Measured = ignore
) -> None:
    """Wherever π(y*) > `least`, greedy decoding returns y*: Dirichlet trees of 3 tokens, horizons 3..5, and the tight
    instance."""
    models = [(two_branches(eta), 2) for eta in (-0.3, -0.01, 0.01, 0.04)]
    for seed in range(worlds):
        horizon = 3 + seed % 3
        models.append((TabularLM.random(3, horizon, concentration=0.1, seed=seed, dtype=torch.float64), horizon))
    cases, wrong, smallest = 0, 0, 1.0
    for model, horizon in models:
        records, logp, conditionals = enumerate_law(model, [0], horizon, ())
        best = records[int(np.argmax(logp))]
        if logp.max() > np.log(least):
            cases += 1
            wrong += decode(model, conditionals, horizon) != best
            smallest = min(smallest, *(float(np.exp(conditionals[best[:h]][best[h]])) for h in range(horizon)))
    assert cases > worlds / 10
    measured("smallest conditional of a y* of mass > 1/2 (at least)", smallest, 0.5)
    measured(f"worlds where greedy misses it, of {cases}", wrong, 0)
    assert wrong == 0


@pytest.mark.claim("T1")
def test_greedy_finds_a_mode_of_mass_above_half(measured: Measured) -> None:
    assert_greedy_finds_the_mode(by_table, measured=measured)
    assert_greedy_finds_the_mode(by_decoder, worlds=30)


@pytest.mark.claim("T1")
@pytest.mark.parametrize("least", [0.45, 0.3])
def test_half_is_tight(least: float) -> None:
    with pytest.raises(AssertionError):
        assert_greedy_finds_the_mode(by_table, least)


@pytest.mark.claim("T1")
def test_greedy_from_the_second_likeliest_token_fails() -> None:
    def second(model: TabularLM, conditionals: Conditionals, horizon: int) -> Record:
        record = sharp.greedy(conditionals, horizon)
        return (int(np.argsort(conditionals[()])[-2]), *record[1:])

    with pytest.raises(AssertionError):
        assert_greedy_finds_the_mode(second)


def assert_ties_are_found(top_set: Callable[[Array], Mask], measured: Measured = ignore) -> None:
    """The 24 responses that multiply the same four probabilities in another order tie in exact arithmetic, though not
    in float64; their mass is that of all 24."""
    missing = 0
    for q in ((0.1, 0.2, 0.3, 0.7), (0.9, 0.6, 0.35, 0.11)):
        orders = np.log(list(itertools.permutations(q)))
        tied = np.add.reduce([orders[:, h] for h in range(4)])
        rest = np.log((1 - np.exp(tied).sum()) / 3000)
        logp = np.concatenate([tied, np.full(3000, rest)])[None]
        assert len(set(tied.tolist())) > 1 and rest < tied.min() - 0.1
        found = top_set(logp)
        missing += int(24 - found[:, :24].sum() + found[:, 24:].sum())
        assert sharp.set_mass(logp, found) == pytest.approx(24 * np.prod(q), abs=1e-12)
    measured("tied responses missed", missing, 0)


@pytest.mark.claim("T2")
def test_the_arg_max_is_a_set(measured: Measured) -> None:
    assert_ties_are_found(sharp.top_set, measured)
    prompts, base = np.array([0.5, 0.5]), np.log([[0.4, 0.4, 0.2], [0.9, 0.05, 0.05]])
    policy, top = np.log([[0.45, 0.45, 0.1], [0.8, 0.1, 0.1]]), sharp.top_set(base)
    assert sharp.failure_share(prompts, policy, top, 0.1) == 0.5  # 0.9 on the set is no failure, 0.8 is one
    assert sharp.is_sharpened(prompts, policy, top, 0.5, 0.1)
    assert not sharp.is_sharpened(prompts, policy, top, 0.4, 0.1)
    assert sharp.c_cov_single(prompts, base) == pytest.approx(0.5 / 0.4 + 0.5 / 0.9)


@pytest.mark.claim("T2")
@pytest.mark.parametrize(
    "wrong",
    [lambda logp: logp == logp.max(-1, keepdims=True), lambda logp: np.eye(logp.shape[-1])[logp.argmax(-1)] > 0],
)
def test_exact_comparison_misses_ties(wrong: Callable[[Array], Mask]) -> None:
    with pytest.raises(AssertionError):
        assert_ties_are_found(wrong)


@pytest.mark.claim("T2")
def test_greedy_needs_a_unique_mode() -> None:
    """Proposition 3.1 for the mass of the set: y* = {(1, 0), (2, 0)} has mass 0.6, greedy decoding goes to token 0."""
    laws = {(0,): (0.4, 0.3, 0.3), (0, 0): (0.5, 0.5, 0), (0, 1): (1, 0, 0), (0, 2): (1, 0, 0)}
    records, logp, conditionals = enumerate_law(TabularLM.tree(laws, 3, torch.float64), [0], 2, ())
    top = sharp.top_set(logp)
    best = [record for record, tied in zip(records, top) if tied]
    assert best == [(1, 0), (2, 0)] and np.exp(logp)[top].sum() == pytest.approx(0.6)
    with pytest.raises(AssertionError):
        assert sharp.greedy(conditionals, 2) in best


# --- T3: the KL-regularised target -----------------------------------------------------------------------------------

TargetOf = Callable[[Array, float], Array]
BETAS = (1e-3, 0.03, 0.3, 1.0, 10.0)


def assert_target_is_optimal(
    target: TargetOf,
    divergence: Callable[[Array, Array, Array], float],
    best: Callable[[Array, Array, float], float],
    measured: Measured = ignore,
) -> None:
    """J(π*) is the closed form and J(π*) - J(π) = β KL(π || π*), π random or near π*; relative to 1 + |J|."""
    worst = 0.0
    for (prompts, base, rng), beta in itertools.product(laws(0, 40), BETAS):
        optimum = target(base, beta)
        value = sharp.objective(prompts, optimum, base, beta)
        worst = max(worst, abs(value - best(prompts, base, beta)) / (1 + abs(value)))
        for spread in (0.1, 3.0):
            noise = np.clip(rng.normal(size=base.shape) * spread, -20, 20)
            policy = log_softmax((optimum if spread < 1 else np.where(base > -np.inf, 0.0, -np.inf)) + noise, axis=-1)
            gap = value - sharp.objective(prompts, policy, base, beta)
            worst = max(worst, abs(gap - beta * divergence(prompts, policy, optimum)) / (1 + abs(gap)))
        assert worst <= SAME
    measured("identities of J_β", worst, SAME)


@pytest.mark.claim("T3")
def test_target(measured: Measured) -> None:
    assert_target_is_optimal(sharp.target, sharp.divergence, sharp.best_objective, measured)
    base = np.log([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2]])
    assert np.exp(sharp.target(base, 1e-3)) == pytest.approx(np.exp(sharp.target(base, 0)), abs=1e-50)
    assert np.exp(sharp.target(base, 0)).tolist() == [[1, 0, 0], [0.5, 0.5, 0]]
    assert sharp.target(base, 2.0) == pytest.approx(np.log([power_law(row, 1.5) for row in base]))


def printed_j1(prompts: Array, base: Array, beta: float) -> float:
    """log E_π_base exp(r), as the paper prints it: without β."""
    return sharp.best_objective(prompts, base, 1.0)


@pytest.mark.claim("T3")
@pytest.mark.parametrize(
    ("target", "divergence", "best"),
    [
        (lambda base, beta: log_softmax(base / beta, axis=-1), sharp.divergence, sharp.best_objective),
        (lambda base, beta: log_softmax(base * (1 + beta), axis=-1), sharp.divergence, sharp.best_objective),
        (sharp.target, lambda prompts, p, q: sharp.divergence(prompts, q, p), sharp.best_objective),
        (sharp.target, sharp.divergence, printed_j1),
    ],
    ids=["power 1/β", "power 1+β", "reversed KL", "J.1 as printed"],
)
def test_target_mutants(target: TargetOf, divergence: Callable, best: Callable) -> None:
    with pytest.raises(AssertionError):
        assert_target_is_optimal(target, divergence, best)


# --- T4: how small β must be -----------------------------------------------------------------------------------------


def with_margin(gamma: float, k: int) -> Array:
    """The base with the least mass on y* at that margin: one best response, all others (1+γ) times less likely."""
    return np.log(np.append(1 + gamma, np.ones(k - 1)) / (k + gamma))[None]


def assert_threshold_suffices(threshold: Callable[[float, int, float], float], measured: Measured = ignore) -> None:
    """π*_β(y*) >= 1 - δ/2 at the threshold and below, and it rises as β falls."""
    bases = [base for _, base, _ in laws(1, 60) if sharp.margin(base) < np.inf]
    bases += [with_margin(gamma, k) for gamma in (1e-3, 0.1, 0.5, 1.0, 3.0, 100.0) for k in (2, 3, 1000)]
    worst = 0.0
    for base, delta in itertools.product(bases, (0.5, 0.1, 1e-3)):
        beta, top = threshold(sharp.margin(base), base.shape[1], delta), sharp.top_set(base)
        masses = [sharp.set_mass(sharp.target(base, b), ~top).max() for b in (beta, beta / 2, beta / 10)]
        worst = max(worst, masses[0] / (delta / 2))
        assert masses[0] >= masses[1] >= masses[2]
    measured("π*_β(not y*) / (δ/2)", worst, 1)
    assert worst <= 1 + SAME


@pytest.mark.claim("T4")
def test_beta_threshold(measured: Measured) -> None:
    assert_threshold_suffices(sharp.beta_threshold, measured)
    with pytest.raises(ValueError, match="margin above 0"):
        sharp.beta_threshold(0.0, 3, 0.1)


@pytest.mark.claim("T4")
@pytest.mark.parametrize(
    "threshold",
    [
        lambda gamma, k, delta: 50 * sharp.beta_threshold(gamma, k, delta),
        lambda gamma, k, delta: 3 * sharp.beta_threshold(gamma, k, delta),
        lambda gamma, k, delta: gamma / (2 * np.log(2 * k / delta)),  # the paper's form needs γ < 1
        lambda gamma, k, delta: min(gamma, 1) / (2 * np.log(2 / delta)),  # without |Y|
    ],
    ids=["50 β", "3 β", "γ above 1", "no |Y|"],
)
def test_threshold_mutants(threshold: Callable) -> None:
    with pytest.raises(AssertionError):
        assert_threshold_suffices(threshold)


# --- T5: Lemma 4.1 ---------------------------------------------------------------------------------------------------


def assert_lemma_4_1(power: Callable[[float, float], float], measured: Measured = ignore) -> None:
    """C_{π*_β} <= (1-γ)^-power C_cov,γ (power irrelevant at γ = 0), E_π_base (π_base/π*_β)^β <= responses."""
    plateau = np.log(np.append(1.0, np.full(99, 0.71)) / (1 + 99 * 0.71))[None]  # y*_0.3 is everything, C_cov,0.3 = 1
    needle = np.log(np.append(1 - 1e-9, np.full(99, 1e-9 / 99)))[None]
    worst = np.zeros(2)
    for prompts, base, _ in [*laws(2, 60), (np.ones(1), plateau, None), (np.ones(1), needle, None)]:
        for beta, gamma in itertools.product(BETAS, (0.0, 0.3, 0.9)):
            policy = sharp.target(base, beta)
            ratio = sharp.concentrability(prompts, policy, base) / bon.c_cov(prompts, [*np.exp(base)], gamma=gamma)
            worst[0] = max(worst[0], ratio * (1 - gamma) ** power(beta, gamma))
            worst[1] = max(worst[1], sharp.concentrability(prompts, base, policy, beta) / base.shape[1])
    measured("C_{π*} / C_cov,γ (1-γ)^(-1/β)", worst[0], 1)
    measured("E_base (π_base/π*)^β / |Y|", worst[1], 1)
    assert worst.max() <= 1 + SAME


def one_over_beta(beta: float, gamma: float) -> float:
    return 1 / beta


@pytest.mark.claim("T5")
def test_lemma_4_1(measured: Measured) -> None:
    assert_lemma_4_1(one_over_beta, measured)


@pytest.mark.claim("T5")
def test_lemma_4_1_with_the_notes_power_of_1_minus_gamma_fails() -> None:
    """(1-γ)^-1: on a plateau just inside y*_γ the target still finds the one peak as β → 0, so C_{π*} → 1/max."""
    with pytest.raises(AssertionError):
        assert_lemma_4_1(lambda beta, gamma: 1.0)


@pytest.mark.claim("T5")
def test_lemma_4_1_with_another_target_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharp, "target", lambda base, beta: log_softmax(base * (1 + 2 / beta), axis=-1))
    with pytest.raises(AssertionError):
        assert_lemma_4_1(one_over_beta)


# --- T14: from the regression loss to sharpening ---------------------------------------------------------------------

Side = Callable[[Array, Array, Array, float], float]  # prompts, policy, base, δ or β


def assert_chain(lower: Side, upper: Side, measured: Measured = ignore) -> None:
    """δ log(1+γ) Pr[fail] <= J_0(π†) - J_0(π) <= the bound by the residual; π random, near π*_β, and lying about y*."""
    two = np.log([[0.3, 0.3, 0.299, 0.101]])  # the set {0, 1} is twice as likely as its rival, which it nearly ties
    worst = np.zeros(2)
    for prompts, base, rng in [(np.ones(1), two, np.random.default_rng(0)), *laws(3, 25)]:
        top = sharp.top_set(base)
        if top.all(-1).any():
            continue
        possible = np.where(base > -np.inf, 0.0, -np.inf)
        outside = sharp.restricted(base, ~top)
        for beta, spread in itertools.product((0.01, 0.1, 1.0), (0.0, 0.1, 3.0)):
            noise = spread * rng.normal(size=base.shape) + possible
            for centre in (possible, sharp.target(base, beta), np.where(top, base - 30, outside)):
                policy = log_softmax(centre + noise, axis=-1)
                gap = -sharp.mean(prompts, policy, sharp.log_ratio(base, base.max(-1, keepdims=True) + possible))
                worst[1] = max(worst[1], gap / upper(prompts, policy, base, beta))
                for delta in (0.05, 0.5, 0.95):
                    worst[0] = max(worst[0], lower(prompts, policy, base, delta) / max(gap, 1e-300))
        assert worst.max() <= 1 + SAME
    measured("δ log(1+γ) Pr[fail] / regret", worst[0], 1)
    measured("regret / bound by the residual", worst[1], 1)


@pytest.mark.claim("T14")
def test_chain(measured: Measured) -> None:
    assert_chain(sharp.margin_step, sharp.regret_bound, measured)


def set_mass_margin(prompts: Array, policy: Array, base: Array, delta: float) -> float:
    """Assumption J.2 as printed: the margin of the mass of y* as a set, instead of that of one of its responses."""
    top = sharp.top_set(base)
    best = np.log(sharp.set_mass(base, top))[:, None]
    margin = np.expm1(np.min(best - base, where=~top, initial=np.inf))
    return delta * np.log1p(margin) * sharp.failure_share(prompts, policy, top, delta)


def without_regression(prompts: Array, policy: Array, base: Array, beta: float) -> float:
    return abs(beta * (sharp.divergence(prompts, sharp.restricted(base, sharp.top_set(base)), base)))


def half_of_the_coverage(prompts: Array, policy: Array, base: Array, beta: float) -> float:
    """Only the policy's own concentrability, not that of y*."""
    residual = np.sqrt(sharp.squared_residual(prompts, policy, base, beta))
    dagger = sharp.restricted(base, sharp.top_set(base))
    part = sharp.concentrability(prompts, dagger, base) ** 0.5 * residual
    return sharp.regret_bound(prompts, policy, base, beta) - part


@pytest.mark.claim("T14")
@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        (set_mass_margin, sharp.regret_bound),
        (lambda *args: 2 * sharp.margin_step(*args), sharp.regret_bound),
        (sharp.margin_step, without_regression),
        (sharp.margin_step, half_of_the_coverage),
    ],
    ids=["margin of the set", "twice", "no regression term", "no C_cov"],
)
def test_chain_mutants(lower: Side, upper: Side) -> None:
    with pytest.raises(AssertionError):
        assert_chain(lower, upper)


def assert_near_ties_matter(mass: Callable[[Array, Array], float], measured: Measured = ignore) -> None:
    """As γ_margin → 0 the mass of y* stays above 0.9, for laws made from the base (log [1, 3], γ)."""
    least = min(
        mass(base, sharp.top_set(base))
        for gamma in (0.1, 1e-3, 1e-5)
        for base in [np.log(np.array([[1 + gamma, 1, 1]]) / (3 + gamma))]
    )
    measured("mass of y* in a near-tie (at least)", least, 0.9)
    assert least >= 0.9


@pytest.mark.claim("T14")
def test_near_ties_do_not_hurt_best_of_n(measured: Measured) -> None:
    def best_of_20(base: Array, top: Mask) -> float:
        return float(bon.best_of_n_law(np.exp(base[0]), base[0], 20)[top[0]].sum())

    assert_near_ties_matter(best_of_20, measured)


@pytest.mark.claim("T14")
def test_near_ties_hurt_the_regularised_target() -> None:
    with pytest.raises(AssertionError):
        assert_near_ties_matter(lambda base, top: float(sharp.set_mass(sharp.target(base, 0.01), top)[0]))


# --- T16: regret implies sharpened -----------------------------------------------------------------------------------


def assert_divergence_sharpens(
    cost: Callable[[float], float], beta_factor: float = 1.0, measured: Measured = ignore
) -> None:
    """Pr_x[π(y*) < 1-δ] cost(δ) <= E_x KL(π || π*_β), i.e. KL <= ε cost(δ) makes π (ε, δ)-sharpened.

    π near π*_β, elsewhere, and the nearest policies that fail: π*_β tilted to put just more than δ outside y*.
    """
    bases = [(prompts, base) for prompts, base, _ in laws(4, 60) if not sharp.top_set(base).all(-1).any()]
    bases += [(np.ones(1), with_margin(gamma, k)) for gamma in (0.01, 1.0) for k in (2, 50)]
    rng, worst = np.random.default_rng(5), 0.0
    for (prompts, base), delta in itertools.product(bases, (0.02, 0.3, 0.9)):
        top = sharp.top_set(base)
        beta = beta_factor * sharp.beta_threshold(sharp.margin(base), base.shape[1], delta)
        goal = sharp.target(base, beta)
        inside, outside = sharp.restricted(base, top), sharp.restricted(base, ~top)
        possible = np.where(base > -np.inf, 0.0, -np.inf)
        least = np.where(top, inside + np.log1p(-delta / 2), outside + np.log(delta / 2))  # all that the lemma asks for
        near = np.where(top, inside + np.log1p(-delta - 1e-9), outside + np.log(delta + 1e-9))
        for other in [goal, least][: 1 + (beta_factor == 1)]:
            for policy in (near, other + rng.normal(size=base.shape), possible + rng.normal(size=base.shape)):
                policy = log_softmax(policy, axis=-1)
                share = sharp.failure_share(prompts, policy, top, delta)
                paid = sharp.divergence(prompts, policy, other)
                worst = max(worst, share * cost(delta) / max(paid, 1e-300))
    measured("Pr[fail] cost(δ) / KL", worst, 1)
    assert worst <= 1 + SAME


COSTS = {
    "kl(δ || δ/2)": sharp.sharpening_divergence,
    "(1 - 2^-1/2)² δ": lambda delta: KAPPA * delta,
    "δ/12": lambda delta: delta / 12,
}


@pytest.mark.claim("T16")
@pytest.mark.parametrize("name", COSTS)
def test_small_divergence_is_sharpened(name: str, measured: Measured) -> None:
    assert_divergence_sharpens(COSTS[name], measured=lambda _, value, bound: measured(f"at {name}", value, bound))


@pytest.mark.claim("T16")
@pytest.mark.parametrize(
    ("cost", "beta_factor"),
    [(lambda delta: 1.01 * sharp.sharpening_divergence(delta), 1.0), (lambda delta: delta / 12, 50.0)],
    ids=["a greater constant", "β above its threshold"],
)
def test_divergence_mutants(cost: Callable, beta_factor: float) -> None:
    with pytest.raises(AssertionError):
        assert_divergence_sharpens(cost, beta_factor)


# --- T27: the target is not low temperature --------------------------------------------------------------------------


def product(rng: np.random.Generator, horizon: int) -> dict[Record, Array]:
    """Independent tokens, of another law at each position."""
    rows = np.log(rng.dirichlet(np.ones(3), size=horizon))
    return {prefix: rows[h] for h in range(horizon) for prefix in itertools.product(range(3), repeat=h)}


def permuted(rng: np.random.Generator, horizon: int) -> dict[Record, Array]:
    """Dependent tokens, but every conditional of a position holds the same numbers: the normalisers factor."""
    return {prefix: rng.permutation(law) for prefix, law in product(rng, horizon).items()}


def tree(rng: np.random.Generator, horizon: int) -> dict[Record, Array]:
    """Any dependence; from the model that generates, so that its conditionals are those of the interface."""
    model = TabularLM.random(3, horizon, seed=int(rng.integers(2**31)), dtype=torch.float64)
    return enumerate_law(model, [0], horizon, ())[2]


def assert_power_is_low_temperature(world: Callable, count: int = 30, measured: Measured = ignore) -> None:
    """TV between p^α (= π*_β, α = 1 + 1/β) and every conditional to the power α, on records."""
    worst = 0.0
    for i, alpha in itertools.product(range(count), (1.5, 4.0)):
        conditionals = world(np.random.default_rng(i), 3)
        _, logp = record_logps(conditionals, 3)
        _, cold = record_logps(tempered(conditionals, 1 / alpha), 3)
        worst = max(
            worst, 0.5 * float(np.abs(np.exp(sharp.target(logp[None], 1 / (alpha - 1))[0]) - np.exp(cold)).sum())
        )
    measured(f"TV(p^α, low temperature), {world.__name__}", worst, SAME)
    assert worst <= SAME


@pytest.mark.claim("T27")
@pytest.mark.parametrize("world", [product, permuted])
def test_power_is_low_temperature_where_the_normalisers_factor(world: Callable, measured: Measured) -> None:
    assert_power_is_low_temperature(world, measured=measured)


@pytest.mark.claim("T27")
def test_power_is_not_low_temperature_elsewhere() -> None:
    with pytest.raises(AssertionError):
        assert_power_is_low_temperature(tree, 1)


def assert_temperature_pays(law: Callable[[Conditionals, float], Conditionals], measured: Measured = ignore) -> None:
    """On trees `law` loses objective, far above rounding: J_β(p^α) - J_β(law) = β KL(law || p^α)."""
    least, worst = np.inf, 0.0
    for i in range(30):
        conditionals = tree(np.random.default_rng(i), 3)
        logp, other = (record_logps(table, 3)[1][None] for table in (conditionals, law(conditionals, 4.0)))
        beta, one = 1 / 3, np.ones(1)
        power = sharp.target(logp, beta)
        lost = sharp.objective(one, power, logp, beta) - sharp.objective(one, other, logp, beta)
        worst = max(worst, abs(lost - beta * sharp.divergence(one, other, power)))
        least = min(least, lost)
    measured("J_β lost to low temperature, β = 1/3 (at least)", least, 1e-6)
    assert worst <= SAME and least > 1e-6


@pytest.mark.claim("T27")
def test_low_temperature_loses_objective(measured: Measured) -> None:
    assert_temperature_pays(lambda table, alpha: tempered(table, 1 / alpha), measured)


@pytest.mark.claim("T27")
def test_the_conditionals_of_the_power_law_lose_nothing() -> None:
    with pytest.raises(AssertionError):
        assert_temperature_pays(lambda table, alpha: power_conditionals(table, alpha, 3))


# --- T28: the relaxation γ -------------------------------------------------------------------------------------------


def assert_hypercube_coverage(c_cov: Callable[[int, float], float], measured: Measured = ignore) -> None:
    """Closed form against the enumeration of all 2^d responses, just below, at, and just above each radius' γ."""
    worst = 0.0
    for d in (1, 4, 8, 12):
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=d)))
        base = np.exp(log_softmax(signs.sum(1) / d))
        edges = 1 - np.exp(-2 * np.arange(d + 1) / d)
        for gamma in np.concatenate([edges, edges[1:] - 1e-6, edges + 1e-6]):
            exact = bon.c_cov([1.0], [base], gamma=gamma)
            worst = max(worst, abs(c_cov(d, gamma) / exact - 1))
    measured("C_cov,γ of the hypercube / enumeration - 1", worst, SAME)
    assert worst <= SAME


def assert_monotone(c_cov: Callable[..., float], measured: Measured = ignore) -> None:
    """C_cov,γ does not rise with γ, is at least 1, and rises with p."""
    rise = 0.0
    for prompts, base, _ in laws(6, 40):
        values = [c_cov(prompts, [*np.exp(base)], gamma=gamma) for gamma in np.linspace(0, 0.999, 50)]
        powers = [c_cov(prompts, [*np.exp(base)], gamma=0.2, p=p) for p in (1, 2, 5, 20)]
        rise = max(rise, float(np.diff(values).max()), float(-np.diff(powers).min()))
        assert min(values) >= 1 - SAME
    measured("rise of C_cov,γ with γ, fall with p", rise, SAME)
    assert rise <= SAME


@pytest.mark.claim("T28")
def test_relaxation(measured: Measured) -> None:
    assert_hypercube_coverage(sharp.hypercube_c_cov, measured)
    assert_monotone(bon.c_cov, measured)
    assert [sharp.hypercube_c_cov(d) for d in (4, 8, 16)] == pytest.approx([6.66, 100.2, 2.49e4], rel=2e-3)


@pytest.mark.claim("T28")
@pytest.mark.parametrize(
    "wrong",
    [
        lambda d, gamma: sharp.hypercube_c_cov(d, 1 - (1 - gamma) ** 0.5),  # half the radius
        lambda d, gamma: 2.0**d / np.e,  # the limit, for C_cov itself
    ],
)
def test_relaxation_mutants(wrong: Callable[[int, float], float]) -> None:
    with pytest.raises(AssertionError):
        assert_hypercube_coverage(wrong)


@pytest.mark.claim("T28")
def test_coverage_of_the_complement_is_not_monotone() -> None:
    def c_cov(prompts: Array, bases: list[Array], *, gamma: float, p: float = 1) -> float:
        return bon.c_cov(prompts, bases, gamma=1 - gamma - 1e-9, p=p)

    with pytest.raises(AssertionError):
        assert_monotone(c_cov)


def test_bad_input_is_named() -> None:
    for call, message in (
        (lambda: sharp.check_logs([[0.5, 0.5]]), "log-probabilities must be"),
        (lambda: sharp.top_set([[0.0]], 1.0), "gamma must be in"),
        (lambda: sharp.target(np.log([[0.5, 0.5]]), -1.0), "beta must be >= 0"),
        (lambda: sharp.hypercube_c_cov(4, -0.1), "gamma must be in"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
