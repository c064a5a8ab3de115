"""The wrong samplers in circulation, as code: each has exactly the law that theory says, and it is not p^α.

Every number here is a sum over all paths of a step or page (`theory/exact_law.py`): nothing is drawn.
"""

import json
from functools import cache

import numpy as np
import pytest
import torch

import figures.power_convergence as figure
from figures.__main__ import RESULTS
from reference.lookahead import LookaheadConfig, lookahead_page
from reference.power_sampling import PowerConfig, power_sampling_page, step
from tests.wrong_samplers import PAGES, STEPS
from theory import markov_chain as mc
from theory.exact_law import exact_law, kernel
from theory.lookahead import lookahead_law
from theory.power import power_law, tempered
from toy.tabular import Memo, TabularLM, enumerate_law

SAME = 1e-12  # two float64 computations of one number of order 1
FAR = 1e-3
PROMPT, STOPS, ALPHA = [1], [0], 2.0


class World:
    """A model, its records, and p^α from their probabilities alone."""

    def __init__(self, model, horizon):
        self.model, self.horizon, self.whole = Memo(model), horizon, model
        self.records, self.logp, self.conditionals = enumerate_law(model, PROMPT, horizon, STOPS)
        self.target = np.exp(ALPHA * self.logp) / np.exp(ALPHA * self.logp).sum()

    def texts(self, tau):
        """All texts that the proposal can draw, open ones too."""
        return mc.all_texts(self.conditionals, tempered(self.conditionals, tau or 1 / ALPHA), self.horizon)


@cache
def world(vocab=3, horizon=3, seed=139):
    """Where the proposal at temperature 1/α is 0.34 away from p^α, and half of what it changes is accepted."""
    return World(TabularLM.random(vocab, horizon, seed=seed, dtype=torch.float64), horizon)


def config_of(horizon, cut, tau=None, block=None):
    return PowerConfig(ALPHA, tau, block or horizon, 1, horizon, cut, entropy_power=1.0, entropy_floor=0.1)


def setting_of(config, rule):
    cut = mc.EntropyCut(config.entropy_power, config.entropy_floor) if config.cut == "entropy" else config.cut
    return {"horizon": config.max_new_tokens, "alpha": config.alpha, "tau": config.proposal_temperature,
            "block": config.block, "steps": config.steps, "cut": cut, "rule": rule}  # fmt: skip


@cache
def kernels(name, rule, cut, tau=None, block=None):
    """(the states, the kernel [n, n] of a step as code, that of a rule in theory)."""
    w, config = world(), config_of(world().horizon, cut, tau, block)
    texts = w.texts(tau)
    states = texts.only(texts.length > 0 if rule == "authors" else texts.are_records(w.horizon), w.horizon)
    transition = STEPS.get(name, step)

    def once(x, chance):
        return transition(w.model, PROMPT, x, config, w.horizon, 1, stop_ids=STOPS, chance=chance)[0]

    setting = mc.Setting(**setting_of(config, rule))
    theorys = mc.suffix_mh(states, ALPHA, cut=setting.cut, rule=rule, cuts=setting.cuts(w.horizon))
    return states, kernel(once, states.texts), theorys


def assert_kernel(name, rule, cut, tau=None, block=None, measured=lambda *_: None):
    _, code, theorys = kernels(name, rule, cut, tau, block)
    error = np.abs(code - theorys).max()
    measured("K of the step as code - theory's", error, SAME)
    assert error < SAME, "another kernel"


def residual(name, rule, cut, tau=None, block=None, target=None):
    """max |π K − π|, π = p^α unless another one is given."""
    w, (states, code, _) = world(), kernels(name, rule, cut, tau, block)
    if target is None:
        mass = dict(zip(w.records, w.target))
        target = np.array([mass.get(text, 0.0) for text in states.texts])
    return np.abs(target @ code - target).max()


def assert_keeps(*step, measured=lambda *_: None):
    measured("max |π K − π|", residual(*step), SAME)
    assert residual(*step) < SAME, "does not keep p^α"


def test_the_world_is_hard():
    states, code, _ = kernels("exact", "exact", "record")
    proposal, off = states.suffix[:, 0], ~np.eye(len(code), dtype=bool)
    assert mc.total_variation(proposal, world().target) > 0.3
    moves, tries = ((world().target @ (k * off)).sum() for k in (code, mc.proposed(states, "record", range(1, 4))))
    assert 0.4 < moves / tries < 0.6
    assert len({len(record) for record in world().records}) == 3


@pytest.mark.claim("P4")
@pytest.mark.claim("P5")
@pytest.mark.claim("P15")
@pytest.mark.parametrize("tau", [None, 0.8])
@pytest.mark.parametrize("cut", ["horizon", "record", "entropy"])
def test_the_right_step_keeps_the_power_law(cut, tau, measured):
    assert_kernel("exact", "exact", cut, tau, measured=measured)
    assert_keeps("exact", "exact", cut, tau, measured=measured)


WRONG_RATIOS = [
    ("no_proposal", "horizon"), ("no_proposal", "record"), ("wrong_sign", "horizon"), ("wrong_sign", "record"),
    ("no_length_factor", "record"), ("no_length_factor", "entropy"),
]  # fmt: skip


@pytest.mark.claim("P5")
@pytest.mark.claim("P13")
@pytest.mark.claim("P15")
@pytest.mark.parametrize("tau", [None, 0.8])
@pytest.mark.parametrize(("rule", "cut"), WRONG_RATIOS)
def test_wrong_ratios_keep_another_law(rule, cut, tau, measured):
    assert_kernel(rule, rule, cut, tau, measured=measured)
    measured("max |π K − π| of wrong ratios, least", residual(rule, rule, cut, tau), FAR)
    assert residual(rule, rule, cut, tau) > FAR
    if rule != "no_length_factor":
        states = kernels(rule, rule, cut, tau)[0]
        kept = world().target * states.suffix[:, 0] ** {"no_proposal": 1, "wrong_sign": 2}[rule]
        assert residual(rule, rule, cut, tau, target=kept / kept.sum()) < SAME


@pytest.mark.claim("P4")
@pytest.mark.claim("P5")
@pytest.mark.claim("P13")
@pytest.mark.claim("P15")
@pytest.mark.parametrize(("rule", "cut"), WRONG_RATIOS)
def test_wrong_ratios_are_caught(rule, cut):
    """They do not keep p^α, which the right step does; and the right step has none of their kernels."""
    with pytest.raises(AssertionError, match="does not keep"):
        assert_keeps(rule, rule, cut)
    with pytest.raises(AssertionError, match="another kernel"):
        assert_kernel("exact", rule, cut)


def law_without_end(code, start):
    """start K^∞, [n]."""
    return mc.run(start, code, 2**50)


@pytest.mark.claim("P10")
@pytest.mark.claim("P27")
@pytest.mark.parametrize(("rule", "block"), [("literal", None), ("nested", 2)])
def test_steps_that_leave_something_out_do_not_reach_the_power_law(rule, block, measured):
    """They keep p^α, as every K_r does, but from the proposal they never get there; and the right step does."""
    assert_kernel(rule, rule, "horizon", None, block, measured=measured)
    states, code, _ = kernels(rule, rule, "horizon", None, block)
    never_cut = [text[: 1 if rule == "literal" else 2] for text in states.texts]
    assert code[[[x != y for y in never_cut] for x in never_cut]].max() == 0
    assert residual(rule, rule, "horizon", None, block) < SAME
    distance = mc.total_variation(law_without_end(code, states.suffix[:, 0]), world().target)
    measured("TV to p^α after endless steps, least", distance, FAR)
    assert distance > FAR
    right = kernels("exact", "exact", "horizon")[1]
    assert mc.total_variation(law_without_end(right, states.suffix[:, 0]), world().target) < 1e-9


@pytest.mark.claim("P11")
def test_authors_step(measured):
    """It never lengthens a text, turns records into open texts shorter than the horizon, and does not keep p^α."""
    assert_kernel("authors", "authors", "record", measured=measured)
    states, code, _ = kernels("authors", "authors", "record")
    assert code[states.length[:, None] < states.length].max() == 0
    records = states.are_records(3)
    assert code[np.ix_(records, ~records)].max() > FAR
    assert residual("authors", "authors", "record") > FAR


def assert_toy(name, expected):
    """The example of PPT, §3.2: two tokens of probability ½, horizon 2, α = 2, N steps from (a, e)."""
    model, config = TabularLM.iid([0.5, 0.5], torch.float64), config_of(2, "record" if name == "authors" else "horizon")
    transition, states = STEPS.get(name, step), [(0,), (1,), (1, 0), (1, 1)]
    code = kernel(
        lambda x, chance: transition(model, PROMPT, x, config, 2, 1, stop_ids=STOPS, chance=chance)[0], states
    )
    target, start = np.array([2 / 3, 0, 1 / 6, 1 / 6]), np.array([0.0, 0, 1, 0])
    seen = [mc.total_variation(start @ np.linalg.matrix_power(code, n), target) for n in expected]
    assert seen == pytest.approx([*expected.values()], abs=6e-5)


AUTHORS_TOY = {1: 0.4167, 2: 0.3542, 5: 0.3418, 10: 0.4625, 20: 0.4979, 40: 0.49999}
RIGHT_TOY = {n: 2 / 3 * (5 / 8) ** n for n in AUTHORS_TOY}


@pytest.mark.claim("P11")
def test_authors_step_on_the_toy():
    assert_toy("exact", RIGHT_TOY)
    assert_toy("authors", AUTHORS_TOY)


@pytest.mark.claim("P11")
def test_authors_step_on_the_toy_mutants():
    with pytest.raises(AssertionError):
        assert_toy("authors", RIGHT_TOY)
    with pytest.raises(AssertionError):
        assert_toy("exact", AUTHORS_TOY)


# --- Whole pages -----------------------------------------------------------------------------------------------------


@cache
def page_law(name, cut, vocab, horizon, seed, block):
    w, config = world(vocab, horizon, seed), config_of(horizon, cut, None, block)
    page = PAGES.get(name, power_sampling_page)
    return exact_law(lambda chance: page(w.model, PROMPT, config, stop_ids=STOPS, chance=chance).tokens)


def theorys_law(rule, cut, vocab, horizon, seed, block):
    w, config = world(vocab, horizon, seed), config_of(horizon, cut, None, block)
    return dict(zip(*mc.blocked_law(w.conditionals, **setting_of(config, rule))))


def distance(law, other):
    return sum(abs(law.get(text, 0.0) - other.get(text, 0.0)) for text in {*law, *other}) / 2


def assert_page(name, rule, cut, *size, measured=lambda *_: None):
    far = distance(page_law(name, cut, *size), theorys_law(rule, cut, *size))
    measured("TV of the page as code to theory's law", far, SAME)
    assert far < SAME, "another law"


# vocabulary, horizon, seed of the table, block
THREE_TOKENS, TWO_TOKENS, SHORT = (3, 3, 139, 2), (2, 4, 2, 2), (3, 2, 139, 1)


@pytest.mark.parametrize(("cut", "size"), [
    ("horizon", TWO_TOKENS), ("record", TWO_TOKENS), ("entropy", TWO_TOKENS), ("horizon", SHORT),
    ("record", SHORT),
])  # fmt: skip
def test_the_right_page_has_its_law(cut, size):
    assert_page("exact", "exact", cut, *size)


@pytest.mark.claim("P9")
@pytest.mark.claim("P10")
@pytest.mark.claim("P11")
@pytest.mark.claim("P13")
@pytest.mark.claim("P27")
@pytest.mark.parametrize(("rule", "cut", "size"), [
    ("authors", "record", THREE_TOKENS), ("authors", "record", TWO_TOKENS),
    ("early_exit", "horizon", SHORT), ("early_exit", "record", TWO_TOKENS),
    ("nested", "horizon", THREE_TOKENS), ("literal", "horizon", THREE_TOKENS),
    ("no_length_factor", "record", SHORT), ("no_proposal", "record", SHORT),
    ("wrong_sign", "record", SHORT),
])  # fmt: skip
def test_wrong_pages_have_the_law_of_their_rule(rule, cut, size, measured):
    assert_page(rule, rule, cut, *size, measured=measured)
    far = distance(page_law(rule, cut, *size), theorys_law("exact", cut, *size))
    measured("TV to the right page's law, least", far, FAR)
    assert far > FAR


@pytest.mark.claim("P9")
@pytest.mark.claim("P10")
@pytest.mark.claim("P11")
@pytest.mark.claim("P13")
@pytest.mark.claim("P27")
@pytest.mark.parametrize("rule", ["authors", "early_exit", "nested", "literal", "wrong_sign", "no_proposal"])
def test_the_right_page_is_none_of_them(rule):
    with pytest.raises(AssertionError, match="another law"):
        assert_page("exact", rule, "record" if rule == "authors" else "horizon", *SHORT)


# --- Look-ahead ------------------------------------------------------------------------------------------------------


@cache
def chunk_law(page):
    config = LookaheadConfig(ALPHA, max_new_tokens=2, candidates=2, rollouts=1, chunk=1, estimator="plug_in")
    w = world(3, 2)
    return exact_law(lambda chance: page(w.model, PROMPT, config, stop_ids=STOPS, chance=chance).tokens)


def assert_chunks(page, weight):
    setting = {"horizon": 2, "alpha": ALPHA, "chunk": 1, "draws": 2, "rollouts": 1, "weight": weight}
    far = distance(chunk_law(page), lookahead_law(world(3, 2).conditionals, **setting))
    assert far < SAME, "another law"


@pytest.mark.claim("P20")
def test_published_weight(measured):
    assert_chunks(lookahead_page, "exact")
    assert_chunks(PAGES["published"], "published")
    far = distance(chunk_law(lookahead_page), chunk_law(PAGES["published"]))
    measured("TV between the pages' laws, L = 2 chunks", far, FAR)
    assert far > FAR


@pytest.mark.claim("P20")
def test_published_weight_mutants():
    for page, weight in ((lookahead_page, "published"), (PAGES["published"], "exact")):
        with pytest.raises(AssertionError, match="another law"):
            assert_chunks(page, weight)


# --- The figure ------------------------------------------------------------------------------------------------------


def test_the_curves_of_the_figure_are_theorys():
    """figures/power_convergence.py computes them from the kernels of the steps as code."""
    result = json.loads((RESULTS / "power_convergence.json").read_text())
    assert (result["alpha"], result["horizon"]) == (ALPHA, figure.HORIZON)
    model = TabularLM.random(3, figure.HORIZON, seed=2)
    records, logp, conditionals = enumerate_law(model, figure.PROMPT, figure.HORIZON, figure.STOPS)
    target = dict(zip(records, power_law(logp, ALPHA)))
    for panel, (block, rules) in figure.PANELS.items():
        for rule, cut in rules:
            curve = result["panels"][panel][f"{rule}, {cut}"]
            setting = {"horizon": figure.HORIZON, "alpha": ALPHA, "block": block, "rule": rule, "cut": cut}
            for steps, seen in ((1, curve["tv"][1]), (10, curve["tv"][6]), (100_000, curve["floor"])):
                law = dict(zip(*mc.blocked_law(conditionals, **setting, steps=steps)))
                assert distance(law, target) == pytest.approx(seen, abs=1e-9)
