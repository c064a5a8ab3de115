"""The page of look-ahead, by tokens and by chunks, run for every outcome: it has the law of its estimator."""

import pytest

from reference import lookahead as L
from reference.lookahead import LookaheadConfig, lookahead_page
from tests.reference.small_worlds import EXACT, WORLDS, World, as_array, assert_same, mutated, tree
from theory.exact_law import Enumerated
from theory.lookahead import lookahead_law

pytestmark = pytest.mark.usefixtures("remember")

# What follows token 2 is worth much or nothing, so that a jackknife's estimate of the others is often negative
SWING = World(tree({(): (0.2, 0.1, 0.7), (1,): (0.2, 0.5, 0.3), (2,): (0.03, 0.92, 0.05)}, 3), 2, (0,), 3.0)
ALL = {**WORLDS, "swing": SWING}


def ahead(world, **change):
    common = {"candidates": None, "rollouts": 1, "estimator": "plug_in"}
    return LookaheadConfig(**{"alpha": world.alpha, "max_new_tokens": world.horizon, **common, **change})


def assert_lookahead(world, config, page=lookahead_page):
    settings = {"horizon": config.max_new_tokens, "alpha": config.alpha, "rollouts": config.rollouts,
                "rollout_law": config.rollout_law}  # fmt: skip
    if config.chunk is None:
        estimator = {"jackknife": "clipped"}.get(config.estimator, config.estimator)
        settings |= {"estimator": estimator, "candidates": config.candidates}
    else:
        settings |= {"chunk": config.chunk, "draws": config.candidates, "proposal": config.chunk_law,
                     "weight": config.weight}  # fmt: skip
    records = world.law[0]
    exact = as_array(lookahead_law(world.law[2], **settings), records)
    found = as_array(world.page_law(page, config), records)
    return assert_same(found, exact), found


TOKENS = [
    ("pivot", {}), ("pivot", {"rollout_law": "g", "candidates": 2}), ("ties", {"rollout_law": "g"}), ("ties", {}),
    ("ties", {"candidates": 2}), ("short", {"rollouts": 2}), ("short", {"rollouts": 2, "rollout_law": "g"}),
    ("short", {"rollouts": 2, "estimator": "jackknife"}), ("fork", {"rollouts": 3, "estimator": "jackknife"}),
    ("short", {"rollouts": 2, "estimator": "jackknife", "rollout_law": "g", "candidates": 2}),
    ("short", {"rollouts": 1, "estimator": "jackknife"}), ("two stops", {"rollouts": 2, "candidates": 2}),
    ("two stops", {"rollouts": 2, "candidates": 2, "estimator": "jackknife"}), ("fork", {"rollouts": 3}),
    ("swing", {"rollouts": 2, "estimator": "jackknife"}), ("swing", {"rollouts": 2}),
]  # fmt: skip


@pytest.mark.claim("P19")
@pytest.mark.parametrize(("name", "change"), TOKENS)
def test_looking_ahead_by_tokens(name, change, measured):
    measured("max |law - theory|", assert_lookahead(ALL[name], ahead(ALL[name], **change))[0], EXACT)


@pytest.mark.claim("P19")
@pytest.mark.parametrize("name", ["short", "fork", "two stops"])
def test_one_rollout_of_g_is_p_to_the_alpha_where_one_token_is_left(name, measured):
    """At horizon 2 a rollout of g has the weight Z_α whatever it is."""
    world = WORLDS[name]
    _, found = assert_lookahead(world, ahead(world, rollout_law="g"))
    measured("max |law - p^α|", assert_same(found, world.target()), EXACT)


def test_clipped_decisions_are_counted():
    """A negative entry of the jackknife is one; the plug-in has none."""
    world, counted = SWING, {}
    for estimator in ("jackknife", "plug_in"):
        config = ahead(world, rollouts=2, estimator=estimator)
        counted[estimator] = world.page_law(lookahead_page, config, lambda run: (run.clipped, run.decisions))
    assert {clipped for clipped, _ in counted["plug_in"]} == {0}
    assert {decisions for _, decisions in counted["jackknife"]} == {1, 2}
    assert {clipped for clipped, _ in counted["jackknife"]} == {0, 1}


CHUNKS = [
    ("short", {"chunk": 1, "candidates": 2}), ("short", {"chunk": 1, "candidates": 2, "chunk_law": "g"}),
    ("pivot", {"chunk": 2, "candidates": 2}), ("ties", {"chunk": 2, "candidates": 2, "weight": "published"}),
    ("short", {"chunk": 1, "candidates": 2, "weight": "published", "rollout_law": "g"}),
    ("fork", {"chunk": 1, "candidates": 2, "rollout_law": "g", "chunk_law": "g", "weight": "published"}),
    ("fork", {"chunk": 1, "candidates": 2, "rollouts": 2}), ("short", {"chunk": 2, "candidates": 3}),
    ("fork", {"chunk": 1, "candidates": 2, "rollouts": 2, "rollout_law": "g", "chunk_law": "g"}),
]  # fmt: skip


@pytest.mark.claim("P20")
@pytest.mark.parametrize(("name", "change"), CHUNKS)
def test_looking_ahead_by_chunks(name, change, measured):
    measured("max |law - theory|", assert_lookahead(WORLDS[name], ahead(WORLDS[name], **change))[0], EXACT)


TOKEN_MUTANTS = {
    "jackknife of M + 1": (L.estimate, "law = M * law - (M - 1) *", "law = (M + 1) * law - M *", {}),
    "the plug-in for the jackknife": (L.estimate, 'estimator == "jackknife"', "False", {}),
    "negative entries made positive": (L.estimate, "law.clamp(min=0)", "law.abs()", {}),
    "no rollout is left out": (L.estimate, "if r != s", "", {}),
    "weight p^α of rollouts": (L.roll_out, "config.alpha * logp - logq", "config.alpha * logp", {}),
    "sign of the rollouts' proposal": (L.roll_out, "config.alpha * logp - logq", "config.alpha * logp + logq", {}),
    "the candidate counted twice": (L.roll_out, "first=len(y)", "first=len(y) - 1", {}),
    "rollouts from the other law": (L.roll_out, "max_new_tokens, q,", "max_new_tokens, 1 / config.alpha,", {}),
    "low temperature": (L.roll_out, "return float(", "return 0 * float(", {}),
    "the least likely tokens": (L.likeliest_tokens, "descending=True", "descending=False", {"candidates": 2}),
    "one candidate too many": (L.likeliest_tokens, "[: config.candidates]", "[: config.candidates + 1]",
                               {"candidates": 2}),
    "p for p^α": (L.likeliest_tokens, "config.alpha * logits", "logits", {}),
}  # fmt: skip


@pytest.mark.claim("P19")
@pytest.mark.parametrize("mutant", TOKEN_MUTANTS)
def test_other_looks_ahead_by_tokens_are_caught(mutant, monkeypatch):
    function, right, wrong, change = TOKEN_MUTANTS[mutant]
    monkeypatch.setattr(L, function.__name__, mutated(function, right, wrong))
    with pytest.raises(AssertionError):
        assert_lookahead(SWING, ahead(SWING, **{"rollouts": 2, "estimator": "jackknife", **change}))


CHUNK_MUTANTS = {
    "the published weight": (L.drawn_chunks, 'config.weight == "exact"', "False", {}),
    "the exact weight": (L.drawn_chunks, 'config.weight == "exact"', "True", {"weight": "published"}),
    "sign of the chunk's proposal": (L.drawn_chunks, "(logq if", "(-logq if", {}),
    "one chunk less": (L.drawn_chunks, "range(config.candidates or 1)", "range((config.candidates or 1) - 1)", {}),
    "a token of the chunk left out": (L.drawn_chunks, "first=len(y)", "first=len(y) + 1", {}),
    "a longer chunk": (L.drawn_chunks, "(config.chunk or 1)", "(config.chunk or 1) + 1", {}),
    "the chunk's law for the other": (L.drawn_chunks, "config.chunk_law)", "'g')", {}),
}


@pytest.mark.claim("P20")
@pytest.mark.parametrize("mutant", CHUNK_MUTANTS)
def test_other_looks_ahead_by_chunks_are_caught(mutant, monkeypatch):
    function, right, wrong, change = CHUNK_MUTANTS[mutant]
    monkeypatch.setattr(L, function.__name__, mutated(function, right, wrong))
    world = WORLDS["short"]
    with pytest.raises(AssertionError):
        assert_lookahead(world, ahead(world, **{"chunk": 1, "candidates": 2, **change}))


def test_the_likeliest_of_the_chunks_is_another_law(monkeypatch):
    """Greedy in the weights, as the paper's runs keep the best of their chunks."""
    monkeypatch.setattr(Enumerated, "weighted", lambda self, w, *at, **where: int(w.argmax()))
    with pytest.raises(AssertionError):
        assert_lookahead(WORLDS["short"], ahead(WORLDS["short"], chunk=1, candidates=2))
