"""The pages of `generate`, of best-of-N and of its adaptive rule, run for every outcome: they have theory's laws."""

import math

import numpy as np
import pytest

from reference import best_of_n as B
from reference import sampling as G
from reference.best_of_n import AdaptiveConfig, BestOfNConfig, adaptive_best_of_n_page, best_of_n_page
from reference.evaluation.statistics import pass_at_k
from reference.sampling import GenerateConfig, generate_page
from reference.self_reward import length_normalized
from tests.reference.small_worlds import EXACT, WORLDS, World, as_array, assert_same, mutated, tree
from theory import power
from theory.best_of_n import adaptive_law, argmax_set, best_of_n_law, failure, failure_bound
from theory.exact_law import expectation, runs

pytestmark = pytest.mark.usefixtures("remember")

# 0 and (2, 1) are equally likely, but for how their log-probabilities are rounded: both have the best reward
ROUNDED = World(tree({(): (0.44, 0, 0.56), (2,): (1 - 0.44 / 0.56, 0.44 / 0.56, 0)}, 3), 2, (0,), 3.0)
ALL = {**WORLDS, "rounded": ROUNDED}


# --- generate --------------------------------------------------------------------------------------------------------


def filtered(law, temperature, top_k, top_p):
    """log q of one token: what the settings make of log p, by their definition."""
    if temperature == 0:
        return np.where(np.arange(len(law)) == law.argmax(), 0.0, -np.inf)
    q = np.exp(law / temperature)
    q /= q.sum()
    rank = np.argsort(np.argsort(-q, kind="stable"))
    q = np.where(rank < (top_k or len(q)), q, 0.0) / q[rank < (top_k or len(q))].sum()
    before = np.array([q[rank < own].sum() for own in rank])
    q = np.where(before < (top_p or 2.0) * (1 - 1e-6), q, 0.0)
    q /= q.sum()
    with np.errstate(divide="ignore"):
        return np.log(q)


LAWS = [
    {}, {"temperature": 0.5}, {"temperature": 1.7}, {"temperature": 0.0}, {"top_k": 1}, {"top_k": 2}, {"top_p": 0.5},
    {"top_p": 0.9}, {"top_p": 1e-9}, {"temperature": 0.6, "top_k": 2, "top_p": 0.8}, {"top_k": 3, "top_p": 0.75},
]  # fmt: skip


def assert_generates(world, setting, page=generate_page):
    """A response has the product of its conditionals' q."""
    law = {"temperature": 1.0, "top_k": None, "top_p": None, **setting}
    conditionals = {prefix: filtered(each, **law) for prefix, each in world.law[2].items()}
    records, logq = power.record_logps(conditionals, world.horizon)
    found = world.page_law(page, GenerateConfig(world.horizon, **setting))
    return assert_same(as_array(found, records), np.exp(logq))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("setting", LAWS)
def test_generate_draws_the_product_of_its_conditionals(name, setting):
    assert_generates(ALL[name], setting)


@pytest.mark.parametrize(("right", "wrong", "setting"), [
    ("log_law(next_logits(model, prompt, x), temperature, top_k, top_p)", "next_logits(model, prompt, x)",
     {"temperature": 0.5}),
    ("next_logits(model, prompt, x)", "next_logits(model, prompt, x[:1])", {}),
    ("len(x) < horizon and not", "len(x) < horizon - 1 and not", {}), (" and not (x and x[-1] in stop_ids)", "", {}),
    ("temperature, top_k, top_p)\n        x", "temperature, top_k)\n        x", {"top_p": 0.5}),
    ("temperature, top_k, top_p)\n        x", "temperature, None, top_p)\n        x", {"top_k": 2}),
])  # fmt: skip
def test_other_responses_are_caught(right, wrong, setting, monkeypatch):
    monkeypatch.setattr(G, "extend", mutated(G.extend, right, wrong))
    with pytest.raises(AssertionError):
        assert_generates(WORLDS["ties"], setting)


# --- Best-of-N -------------------------------------------------------------------------------------------------------


def best(world, n, **change):
    return BestOfNConfig(n=n, max_new_tokens=world.horizon, **change)


def assert_best_of_n(world, config, page=best_of_n_page):
    """π_N of the law that is drawn from and of the reward, rewards within 1e-6 of each other being equal."""
    records, logp, conditionals = world.law
    drawn = power.tempered(conditionals, config.temperature)
    if config.top_k:
        drawn = power.top_k(drawn, config.top_k)
    q = as_array(dict(zip(*(part for part in power.record_logps(drawn, world.horizon)))), records)
    possible = [record in {*power.record_logps(drawn, world.horizon)[0]} for record in records]
    rewards = logp / ([len(record) for record in records] if config.reward is length_normalized else 1)
    law = best_of_n_law(np.where(possible, np.exp(q), 0.0), rewards, config.n)
    return assert_same(as_array(world.page_law(page, config), records), law)


BEST = [
    ("pivot", 1, {}), ("pivot", 2, {}), ("pivot", 3, {}), ("ties", 2, {}), ("ties", 3, {}), ("two stops", 3, {}),
    ("rounded", 2, {}), ("rounded", 3, {}), ("pivot", 2, {"reward": length_normalized}),
    ("ties", 3, {"reward": length_normalized}), ("pivot", 2, {"temperature": 0.5}), ("ties", 2, {"temperature": 2.0}),
    ("ties", 3, {"top_k": 2}), ("short", 3, {"temperature": 0.7, "top_k": 2}), ("fork", 4, {}),
]  # fmt: skip


@pytest.mark.claim("T6")
@pytest.mark.parametrize(("name", "n", "change"), BEST)
def test_the_best_of_n_has_its_law(name, n, change, measured):
    measured("max |law - theory|", assert_best_of_n(ALL[name], best(ALL[name], n, **change)), EXACT)


def assert_first_wins(world, n, page=best_of_n_page):
    """On every path the first of the draws that tie for the best (draws are exchangeable: the law cannot tell)."""
    records, logp, _ = world.law
    reward, ties = dict(zip(records, logp)), 0

    def watched(chance):
        drawn = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(B, "extend", lambda *a, **k: drawn.append(y := G.extend(*a, **k)) or y)
            result = world.run(page, best(world, n), chance)
        return drawn, result

    for (drawn, result), _ in runs(watched):
        most = max(reward[y] for y in drawn)
        tied = [y for y in drawn if reward[y] > most - 1e-6]
        ties += len({*tied}) > 1
        assert result.tokens == tied[0] and abs(result.rewards - most) <= EXACT and result.draws == n
    assert ties > 0


@pytest.mark.claim("T6")
@pytest.mark.parametrize("name", ["ties", "rounded"])
def test_the_first_of_the_ties_wins(name):
    assert_first_wins(ALL[name], 2)


def last_best(rewards):
    return rewards.shape[-1] - 1 - B_FIRST(rewards.flip(-1))


B_FIRST = B.first_best
CHOICES = {
    "the last of the ties": last_best,
    "exactly the best": lambda rewards: rewards.argmax(-1),
    "the worst": lambda rewards: rewards.argmin(-1),
    "the best but for the last draw": lambda rewards: B_FIRST(rewards[..., :-1]),
    "the first": lambda rewards: rewards.argmin(-1) * 0,
}


@pytest.mark.claim("T6")
@pytest.mark.parametrize("choice", CHOICES)
def test_other_choices_are_caught(choice, monkeypatch):
    monkeypatch.setattr(B, "first_best", CHOICES[choice])
    with pytest.raises(AssertionError):
        assert_first_wins(ROUNDED, 2)
    if choice != "the last of the ties":
        with pytest.raises(AssertionError):
            assert_best_of_n(ROUNDED, best(ROUNDED, 2))


@pytest.mark.claim("T6")
@pytest.mark.parametrize(("right", "wrong"), [
    ("for i in range(config.n)", "for i in range(config.n + 1)"), ("log_probs(model, prompt, y, *law)", "log_probs("
     "model, prompt, y[:1], *law)"), ("(), config.max_new_tokens, *law,", "(), config.max_new_tokens,"),
])  # fmt: skip
def test_other_pools_are_caught(right, wrong):
    with pytest.raises(AssertionError):
        assert_best_of_n(
            WORLDS["ties"], best(WORLDS["ties"], 2, temperature=0.5), mutated(best_of_n_page, right, wrong)
        )


def misses(world, n, gamma):
    """The chance that best-of-N by the page returns none of y*_γ; and π(y*_γ)."""
    records, logp, _ = world.law
    good = argmax_set(np.exp(logp), gamma)
    law = as_array(world.page_law(best_of_n_page, best(world, n)), records)
    return 1 - float(law[good].sum()), float(np.exp(logp)[good].sum())


def assert_coverage_is_enough(n, gamma, of=misses):
    """Over the worlds as prompts: a miss has probability (1 − π(y*_γ))^N, its mean is at most C_cov,γ/(eN)."""
    found = [of(world, n, gamma) for world in ALL.values()]
    for miss, mass in found:
        assert_same(miss, failure(mass, n))
    mean, bound = np.mean([miss for miss, _ in found]), failure_bound(float(np.mean([1 / m for _, m in found])), n)
    assert mean <= bound
    return mean, bound


@pytest.mark.claim("T8")
@pytest.mark.parametrize(("n", "gamma"), [(1, 0.0), (2, 0.0), (2, 0.5), (3, 0.2)])
def test_coverage_is_enough(n, gamma, measured):
    measured("mean chance to miss y*_γ", *assert_coverage_is_enough(n, gamma))


@pytest.mark.claim("T8")
def test_one_draw_less_misses_more():
    with pytest.raises(AssertionError):
        assert_coverage_is_enough(3, 0.2, of=lambda world, n, gamma: misses(world, n - 1, gamma))


def assert_pass_at_k(n, k, estimate=pass_at_k):
    """Its mean over n responses of the page is the chance that one of k is right."""
    world = WORLDS["fork"]
    records, logp, _ = world.law
    right = {records[0], records[2]}

    def estimated(chance):
        drawn = [world.run(generate_page, GenerateConfig(2), chance.sample(i, of=n)).tokens for i in range(n)]
        return estimate(n, sum(y in right for y in drawn), k)

    p = float(sum(np.exp(logp)[[records.index(y) for y in right]]))
    return assert_same(expectation(estimated), 1 - (1 - p) ** k)


@pytest.mark.claim("T31")
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 1), (3, 2), (3, 3), (4, 2)])
def test_pass_at_k_of_what_is_generated(n, k, measured):
    measured("|mean estimate - pass@k|", assert_pass_at_k(n, k), EXACT)


@pytest.mark.claim("T31")
def test_the_plug_in_estimate_of_pass_at_k_is_caught():
    with pytest.raises(AssertionError):
        assert_pass_at_k(3, 2, lambda n, correct, k: 1 - (1 - correct / n) ** k)


# --- The adaptive rule -----------------------------------------------------------------------------------------------


def assert_adaptive(world, mu, page=adaptive_best_of_n_page, most=12):
    """The law of how many are drawn, and that of the response. No path is cut: N_μ ≤ μ / min π."""
    records, logp, _ = world.law
    exact = adaptive_law(np.exp(logp), mu)
    draws, response = np.zeros(most + 1), np.zeros(len(records))
    config = AdaptiveConfig(mu=mu, max_draws=most, max_new_tokens=world.horizon)
    found = world.page_law(page, config, lambda result: (result.tokens, result.draws, round(result.rewards, 9)))
    for (tokens, k, reward), mass in found.items():
        draws[k] += mass
        response[records.index(tokens)] += mass
        assert reward == round(float(logp[records.index(tokens)]), 9)
    assert len(exact.stop) <= most and draws[1:].argmax() >= math.ceil(mu / np.exp(logp).max() - 1e-6) - 1
    off = assert_same(draws, np.pad(exact.stop, (0, most + 1 - len(exact.stop))))
    return max(off, assert_same(response, exact.response)), float(draws @ np.arange(most + 1))


@pytest.mark.claim("T11")
@pytest.mark.parametrize(("name", "mu"), [
    ("fork", 0.5), ("fork", 0.3), ("ties", 0.1), ("rounded", 0.5), ("fork", 0.54), ("rounded", 0.88), ("ties", 0.0625),
])  # fmt: skip
def test_the_adaptive_rule_has_its_law(name, mu, measured):
    """(In the last three cases k max π meets μ exactly, up to rounding.)"""
    off, mean = assert_adaptive(ALL[name], mu)
    _, logp, _ = ALL[name].law
    best_mass, ties = float(np.exp(logp.max())), int(argmax_set(np.exp(logp)).sum())
    measured("max |law - theory|", off, EXACT)
    measured("E[N_μ]", mean, (mu + 1 / ties) / best_mass)
    assert mean <= (mu + 1 / ties) / best_mass


def test_undecided_prompts_get_the_best_of_max_draws():
    world = WORLDS["fork"]
    records, logp, _ = world.law
    config = AdaptiveConfig(mu=100.0, max_draws=3, max_new_tokens=2)
    found = world.page_law(adaptive_best_of_n_page, config, lambda result: (result.tokens, result.draws))
    assert {k for _, k in found} == {3}
    law = {tokens: mass for (tokens, _), mass in found.items()}
    assert_same(as_array(law, records), best_of_n_law(np.exp(logp), logp, 3))


@pytest.mark.claim("T11")
@pytest.mark.parametrize(("right", "wrong", "mu"), [
    ("decided(most, k, config.mu)", "decided(logp, k, config.mu)", 0.5),
    ("decided(most, k, config.mu)", "decided(most, k - 1, config.mu)", 0.5),
    ("decided(most, k, config.mu)", "k * math.exp(most) > config.mu * (1 + 1e-9)", 0.54),
    ("if logp > most + TOLERANCE", "if logp < most or k == 1", 0.5),
    ("best, most = y, logp", "best, most = y, most", 0.5),
    ("float(log_probs(model, prompt, y)[0].sum())", "float(log_probs(model, prompt, y)[0][0])", 0.5),
])  # fmt: skip
def test_other_rules_are_caught(right, wrong, mu):
    with pytest.raises(AssertionError):
        assert_adaptive(WORLDS["fork"], mu, mutated(adaptive_best_of_n_page, right, wrong), most=6)
