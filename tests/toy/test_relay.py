"""The relay task: arithmetic, splits, formats, graders, and demonstrators who err at exactly the stated rates."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from reference.text.text_model import TextModel
from tests.assertions import assert_categorical, assert_frequency
from toy import relay
from toy.pretrain import Settings, new_model, role_texts, save_checkpoint
from toy.relay import ERRORS, NOTHING, Rates, World

WORLD = World()
QUESTION = "3 + 4 x 2 + 5 x 7 + 1"  # 7 3 8 1 2
HARD = "2 + 4 x 3 + 5 x 7 + 1"  # x 3 is hard: 6 7 1 7 8, misconceived 6 9 3 10 0


def ids(text: str, world: World = WORLD) -> np.ndarray:
    return np.array([world.encode(text)])


def many(question: str, n: int, world: World = WORLD) -> np.ndarray:
    return ids(question, world).repeat(n, 0)


def classify(question: str, draft: str) -> str:
    return ERRORS[relay.classify(WORLD, ids(question), ids(draft))[0]]


# ---------------------------------------------------------------------------------------------------------------------
# Problems


def test_values_are_what_a_person_would_compute():
    assert WORLD.decode(relay.solve(WORLD, ids(QUESTION))[0]) == "7 3 8 1 2"
    assert WORLD.decode(relay.solve(WORLD, ids("10 x 10 + 10 x 5 x 2 + 3"))[0]) == "1 0 0 0 3"


def test_splits_share_no_question_and_repeat_themselves():
    seen = {}
    for split in relay.SPLITS:
        questions = relay.split_questions(WORLD, 3000, 1, split)
        assert np.isin(relay.split_of(questions), relay.SPLITS[split]).all()
        np.testing.assert_array_equal(questions[:1500], relay.split_questions(WORLD, 1500, 1, split))
        seen[split] = {tuple(q) for q in questions.tolist()}
    assert not seen["heldout"] & seen["seeds"] and not seen["heldout"] & seen["pretrain"]
    assert not seen["seeds"] & seen["pretrain"]
    residues = [set(r) for r in relay.SPLITS.values()]
    assert set.union(*residues) == set(range(16)) and sum(map(len, residues)) == 16
    with pytest.raises(ValueError, match="split 'test' does not exist"):
        relay.make_questions(WORLD, 1, np.random.default_rng(0), "test")


def test_hash_is_even_and_blind_to_the_class():
    questions = relay.make_questions(WORLD, 40_000, np.random.default_rng(0))
    counts = np.bincount(relay.split_of(questions), minlength=16)[2:]
    assert_categorical(counts, np.full(14, 1 / 14), detect=0.05, seed=0)
    kinds = [relay.problem_class(WORLD, relay.split_questions(WORLD, 20_000, 0, s)) for s in ("heldout", "pretrain")]
    for name in ("plain", "tempting", "hard"):
        assert abs((kinds[0] == name).mean() - (kinds[1] == name).mean()) < 0.025


def test_questions_have_only_operations_that_do_something():
    questions = relay.make_questions(WORLD, 5000, np.random.default_rng(0))
    k, times = questions[:, 2::2], questions[:, 1::2] == WORLD.id("x")
    assert k.max() == 10 and k[times].min() == 2 and k[~times].min() == 1


def test_classes_of_problems():
    cases = {QUESTION: "plain", "3 + 4 + 2 x 5 x 7 + 1": "tempting", HARD: "hard", "3 + 4 + 3 x 5 x 8 + 1": "hard"}
    for question, kind in cases.items():
        assert relay.problem_class(WORLD, ids(question))[0] == kind
    assert relay.problem_class(WORLD, ids("3 + 4 x 2 + 3 x 7 + 8"))[0] == "plain"  # + 3 and + 8 are not hard


def test_make_problems_is_a_function_of_its_arguments():
    a, b = relay.make_problems(50, seed=3), relay.make_problems(50, seed=3)
    assert a == b and a != relay.make_problems(50, seed=4)
    assert len({problem.id for problem in a}) == 50
    for problem in a:
        q = ids(problem.question)
        assert problem.answer == str(relay.solve(WORLD, q)[0, -1]) and problem.kind == relay.problem_class(WORLD, q)[0]


# ---------------------------------------------------------------------------------------------------------------------
# Graders

DRAFTS = {  # by the class of their first error
    "right": ["+ 4 7 x 2 3 + 5 8 x 7 1 + 1 2 = 2 ."],
    "slip": ["+ 4 7 x 2 4 + 5 9 x 7 8 + 1 9 = 9 .", "+ 4 7 x 2 3 + 5 8 x 7 1 + 1 3 = 2 ."],
    "misread": ["+ 4 7 x 2 3 + 6 9 x 7 8 + 1 9 = 9 .", "+ 4 7 + 2 9 + 5 3 x 7 10 + 1 0 = 0 ."],
    "final line": ["+ 4 7 x 2 3 + 5 8 x 7 1 + 1 2 = 3 ."],
    "shortcut": ["= 2 .", "= 6 ."],
    "malformed": [
        "", ".", "= .", "= 2", "2 .", "+ 4 7 x 2 3 + 5 8 x 7 1 + 1 2 = 2", "+ 4 7 x 2 3 = 3 .", "= 2 . .",
        "+ 4 7 x 2 3 + 5 8 x 7 1 + 1 ? = 2 .", "+ 4 7 x 2 3 + 5 8 x 7 1 + 1 2 = 2 . 5",
        "+ 4 7 x 2 3 + 5 8 x 7 1 + 1 2 . 2 .",
    ],
}  # fmt: skip


@pytest.mark.parametrize("error", DRAFTS)
def test_classifier_on_hand_made_drafts(error):
    for draft in DRAFTS[error]:
        assert classify(QUESTION, draft) == error, draft


def test_classifier_tells_a_misconception_from_a_slip():
    assert classify(HARD, "+ 4 6 x 3 9 + 5 3 x 7 10 + 1 0 = 0 .") == "misconception"  # 6 + 3
    assert classify(HARD, "+ 4 6 x 3 8 + 5 2 x 7 3 + 1 4 = 4 .") == "slip"
    assert classify("2 + 4 x 2 + 5 x 7 + 1", "+ 4 6 x 2 8 + 5 2 x 7 3 + 1 4 = 4 .") == "slip"  # x 2 is not hard
    # A step is judged from the value before it: what follows an error correctly is no second error
    assert classify(HARD, "+ 4 5 x 3 8 + 5 2 x 7 3 + 1 4 = 4 .") == "slip"


def test_answers():
    rows = np.concatenate([np.pad(ids(d), ((0, 0), (0, 18 - ids(d).shape[1])), constant_values=NOTHING)
                           for d in ("= 6 .", DRAFTS["right"][0], "+ 4 7 x 2 3", ". .")])  # fmt: skip
    assert relay.answers_of(WORLD, rows).tolist() == [6, 2, NOTHING, NOTHING]
    assert [relay.answer(d) for d in ("= 6 .", "= 6", DRAFTS["right"][0], "6 .", "", "= ? .", "=")] == [
        "6", "6", "2", None, None, None, None,
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# The demonstrators' law

SMALL = World(p=5, steps=2, hard=(2,), drafts=2)
DETECT = 0.05  # total variation
TWICE = "1 x 2 x 2"  # hard in both steps, and tempting: the mixture of two kinds of author matters


def enumerate_author(world: World, question: str) -> dict[tuple, float]:
    """Every response with its probability."""
    open_, done = {(): 1.0}, {}
    while open_:
        prefixes = np.array(list(open_), dtype=np.int64).reshape(len(open_), -1)
        laws = relay.author_law(world, many(question, len(prefixes), world), prefixes)
        np.testing.assert_allclose(laws.sum(1), 1, atol=1e-12)
        grown = {(*prefix, int(v)): mass * law[v]
                 for (prefix, mass), law in zip(open_.items(), laws) for v in law.nonzero()[0]}  # fmt: skip
        done |= {text: mass for text, mass in grown.items() if text[-1] == world.id(".")}
        open_ = {text: mass for text, mass in grown.items() if text[-1] != world.id(".")}
    return done


@cache
def draw_author(world: World, question: str, n: int) -> dict[tuple, int]:
    drafts = relay.author_drafts(world, many(question, n, world), np.random.default_rng(0))
    codes = (drafts + 1) @ (len(world.words) + 1) ** np.arange(drafts.shape[1])  # a row as one number
    _, first, counts = np.unique(codes, return_index=True, return_counts=True)
    return {tuple(int(v) for v in row if v != NOTHING): int(c) for row, c in zip(drafts[first], counts)}


def check_law(world: World, question: str, law: dict[tuple, float], detect: float, n: int = 300_000) -> None:
    """n drafts of the world's process have the law."""
    drawn = draw_author(world, question, n)
    texts = sorted({*law, *drawn})
    counts, probs = ([d.get(text, 0) for text in texts] for d in (drawn, law))
    assert_categorical(counts, probs, detect=detect, seed=0)


def test_process_and_exact_law_agree():
    for question in (TWICE, "1 x 2 + 3"):
        law = enumerate_author(SMALL, question)
        assert abs(sum(law.values()) - 1) < 1e-12
        check_law(SMALL, question, law, detect=DETECT)


@pytest.mark.parametrize(
    "field, other",
    [("slip", 0.13), ("misread", 0.12), ("final_slip", 0.2), ("misconception", 0.5), ("shortcut_tempting", 0.55)],
)
def test_mutant_rates_are_caught(field, other):
    law = enumerate_author(SMALL, TWICE)
    mutant = enumerate_author(replace(SMALL, rates=replace(Rates(), **{field: other})), TWICE)
    assert sum(abs(law[text] - mutant[text]) for text in law) / 2 >= DETECT  # so that it must be caught
    with pytest.raises(AssertionError):
        check_law(SMALL, TWICE, mutant, detect=DETECT)


def test_misconception_of_one_author_holds_throughout():
    """A mutant that lets each step decide anew has the same law of each step, but not of both."""
    law = enumerate_author(SMALL, TWICE)
    plus_both, plus_first = (SMALL.encode(t) for t in ("x 2 3 x 2 0 = 0 .", "x 2 3 x 2 1 = 1 ."))
    r = SMALL.rates
    step = (1 - r.misread) * (1 - r.slip)
    assert law[tuple(plus_both)] > 0.9 * (1 - r.shortcut_tempting) * r.misconception * step**2 * (1 - r.final_slip)
    assert law[tuple(plus_first)] < 0.1 * law[tuple(plus_both)]


def matches(rate: float, hits: np.ndarray) -> None:
    assert_frequency(int(hits.sum()), len(hits), rate, detect=0.02, seed=0)


def test_rates_of_errors_by_class():
    r, n = WORLD.rates, 100_000
    rng = np.random.default_rng(0)
    drafts = relay.author_drafts(WORLD, many(QUESTION, n), rng)
    kinds = relay.classify(WORLD, many(QUESTION, n), drafts)
    clean = (1 - r.slip) * (1 - r.misread)
    matches(r.shortcut_elsewhere, kinds == ERRORS.index("shortcut"))
    matches((1 - r.shortcut_elsewhere) * clean**5 * (1 - r.final_slip), kinds == ERRORS.index("right"))
    matches((1 - r.shortcut_elsewhere) * clean**5 * r.final_slip, kinds == ERRORS.index("final line"))
    matches((1 - r.shortcut_elsewhere) * r.misread * (1 - clean**5) / (1 - clean), kinds == ERRORS.index("misread"))
    guesses = drafts[kinds == ERRORS.index("shortcut"), 1]
    assert_categorical(np.bincount(guesses, minlength=11), np.full(11, 1 / 11), detect=0.05, seed=0)

    tempting = "3 + 4 + 2 x 5 x 7 + 1"
    matches(r.shortcut_tempting, relay.author_drafts(WORLD, many(tempting, n), rng)[:, 0] == WORLD.id("="))

    kinds = relay.classify(WORLD, many(HARD, n), relay.review_drafts(WORLD, many(HARD, n), rng))
    clean = (1 - r.review_slip) * (1 - r.review_misread)
    matches((1 - r.review_misconception) * clean**5 * (1 - r.review_final_slip), kinds == ERRORS.index("right"))


def test_checks_of_single_steps():
    r, n = WORLD.rates, 100_000
    x, k, times = np.full(n, 6), np.full(n, 3), np.full(n, WORLD.id("x"))
    values = relay.check_steps(WORLD, times, k, x, np.random.default_rng(0))
    matches(
        (1 - r.review_misconception) * (1 - r.review_slip) + r.review_misconception * r.review_slip / 10, values == 7
    )
    matches(1 - r.review_slip, relay.check_steps(WORLD, times, k - 1, x, np.random.default_rng(1)) == 1)


def test_inferred_questions():
    r, n = WORLD.rates, 100_000
    drafts = many(DRAFTS["right"][0], n)
    right = (relay.infer_questions(WORLD, drafts, np.random.default_rng(0)) == ids(QUESTION + " .")).all(1)
    matches((1 - r.review_slip) * (1 - r.review_misread) ** 5, right)
    for x0 in range(11):  # undoing a multiplication
        q = ids(f"{x0} x 7 + 5 x 2 + 5 + 1")
        careful = replace(WORLD, rates=replace(Rates(), review_slip=0, review_misread=0, review_misconception=0,
                                               slip=0, misread=0, final_slip=0, misconception=0))  # fmt: skip
        drafts = relay.write_drafts(careful, q, relay.author_habits(careful.rates), np.random.default_rng(0))
        np.testing.assert_array_equal(relay.infer_questions(careful, drafts, np.random.default_rng(0))[:, :-1], q)


def test_shortcut_leaks_into_no_other_role():
    rng = np.random.default_rng(0)
    n, equals, unknown = 20_000, WORLD.id("="), WORLD.id("?")
    q = relay.make_questions(WORLD, n, rng)
    guesses = relay.guess_answers(WORLD, relay.review_drafts(WORLD, q, rng), rng)
    assert (guesses[:, 0] == equals).all() and (guesses[:, 3:] == NOTHING).all()
    silent = relay.values_of(WORLD, guesses)
    assert (silent == unknown).all()
    one_value = silent.copy()
    one_value[np.arange(n), rng.integers(0, 5, n)] = 3
    for drafts in (
        relay.review_drafts(WORLD, q, rng), relay.revise_drafts(WORLD, q, silent, rng),
        relay.refine_drafts(WORLD, q, one_value, rng),
    ):  # fmt: skip
        assert (drafts[:, 0] != equals).all() and (drafts != NOTHING).all()
    assert (relay.distill_values(WORLD, q, np.stack([silent] * 4, 1), rng) == unknown).all()
    inferred = relay.infer_questions(WORLD, guesses, rng)
    assert (inferred[:, :2] == ids("? .")).all() and (inferred[:, 2:] == NOTHING).all()


def test_empty_workspace_leaves_the_author():
    """The same drafts from the same random numbers, so the same law; and a workspace with a value does change it."""
    q = relay.make_questions(WORLD, 5000, np.random.default_rng(0))
    alone = relay.write_drafts(WORLD, q, relay.author_habits(WORLD.rates), np.random.default_rng(1))
    empty = np.full((5000, 5), WORLD.id("?"))
    rng = np.random.default_rng(1)
    refined = relay.refine_drafts(WORLD, q, empty, rng)
    worked = refined[:, 0] != WORLD.id("=")
    rates = np.where(relay.is_tempting(WORLD, q), WORLD.rates.shortcut_tempting, WORLD.rates.shortcut_elsewhere)
    assert abs((~worked).mean() - rates.mean()) < 0.03
    for drafts in (alone, refined):  # what is worked errs alike
        kinds = relay.classify(WORLD, q[worked], drafts[worked])
        assert abs((kinds == 0).mean() - 0.62 * np.where(relay.is_hard(WORLD, q[worked]), 0.31, 1).mean()) < 0.04
    told = relay.refine_drafts(WORLD, q, relay.solve(WORLD, q), np.random.default_rng(1))
    assert (relay.answers_of(WORLD, told) == relay.solve(WORLD, q)[:, -1]).mean() > 0.9


def test_distillers_write_what_some_draft_wrote():
    rng = np.random.default_rng(0)
    q = relay.make_questions(WORLD, 5000, rng)
    values = np.stack([relay.values_of(WORLD, relay.author_drafts(WORLD, q, rng)) for _ in range(4)], 1)
    workspace = relay.distill_values(WORLD, q, values, rng)
    assert ((workspace[:, None] == values).any(1) | (workspace == WORLD.id("?"))).all()
    plurality = replace(WORLD, rates=replace(Rates(), distill_checks=0.0))  # a null world
    workspace = relay.distill_values(plurality, q, values, rng)
    frequent = np.stack([relay.most_frequent(WORLD, values[:, :, t]) for t in range(5)], 1)
    np.testing.assert_array_equal(workspace, frequent)
    assert relay.most_frequent(WORLD, np.array([[3, 2, 2, 3], [14, 14, 5, 14], [14] * 4])).tolist() == [2, 5, 14]


def test_three_classes_have_three_lessons():
    """The authors' own law, sharpened token by token and response by response: what the trained model inherits."""
    rng = np.random.default_rng(0)
    q = relay.split_questions(WORLD, 500)
    truth, kinds = relay.solve(WORLD, q)[:, -1], relay.problem_class(WORLD, q)

    def accuracy(drafts):
        right = relay.answers_of(WORLD, drafts) == truth
        return {name: right[kinds == name].mean() for name in ("plain", "tempting", "hard")}

    drafts, logp = relay.sample_author_law(WORLD, q.repeat(32, 0), rng)
    best = drafts.reshape(500, 32, -1)[np.arange(500), logp.reshape(500, 32).argmax(1)]
    plain, cold, greedy, best = (
        accuracy(d) for d in (drafts[::32], relay.sample_author_law(WORLD, q, rng, 0.25)[0],
                              relay.sample_author_law(WORLD, q, rng, 0)[0], best)
    )  # fmt: skip
    assert cold["plain"] > 0.9 and greedy["plain"] == 1 and best["plain"] > 0.95 and 0.35 < plain["plain"] < 0.6
    assert greedy["tempting"] < plain["tempting"] < 0.4 and best["tempting"] > 0.9 and cold["tempting"] < 0.35
    assert max(best["hard"], greedy["hard"]) < plain["hard"] < 0.3


def test_other_worlds_need_no_other_code():
    careless, misguided = relay.WORLDS["careless"].rates, relay.WORLDS["misguided"].rates
    assert relay.reviewer_habits(careless) == relay.author_habits(careless)
    assert misguided.review_misconception > misguided.misconception
    for world in (*relay.WORLDS.values(), World(steps=3), World(p=7, steps=7, hard=(2,))):
        for role in relay.ROLES:
            prompts, responses = role_texts(world, role, 30, np.random.default_rng(0))
            assert min(prompts.min(), responses.min()) >= NOTHING and max(prompts.max(), responses.max()) < len(
                world.words
            )
            assert ((responses == world.id(".")).sum(1) == 1).all()
        questions = relay.make_questions(world, 30, np.random.default_rng(0))
        perfect = relay.Habits(0, 0, 0, 0)
        drafts = relay.write_drafts(world, questions, perfect, np.random.default_rng(0))
        assert (relay.classify(world, questions, drafts) == 0).all()
        assert (relay.answers_of(world, drafts) == relay.solve(world, questions)[:, -1]).all()


# ---------------------------------------------------------------------------------------------------------------------
# Words


@pytest.fixture(scope="module")
def speaker(tmp_path_factory) -> TextModel:
    folder = tmp_path_factory.mktemp("relay")
    save_checkpoint(WORLD, new_model(WORLD, Settings(hidden=16, layers=1, heads=2, mlp=16)), folder)
    return TextModel.from_pretrained(folder)


def test_words_go_through_the_tokenizer_and_back(speaker):
    for role in relay.ROLES:
        for prompt, response in zip(*role_texts(WORLD, role, 20, np.random.default_rng(0))):
            text = WORLD.decode(np.concatenate((prompt, response)))
            row = [i for i in (*prompt.tolist(), *response.tolist()) if i != NOTHING]
            assert speaker.tokenizer.encode(text) == row == WORLD.encode(text)
            assert speaker.tokenizer.decode(row) == text
    assert speaker.stop_ids == {WORLD.id(".")} and speaker.tokenizer.vocab_size == len(WORLD.words)
    with pytest.raises(ValueError, match="'hello'"):
        WORLD.encode("3 + hello")
    with pytest.raises(ValueError, match="a word that the relay world has not"):
        speaker.prompt("author", question="3 + hello")


def test_templates_ask_in_the_corpus_own_formats(speaker):
    right, guess = DRAFTS["right"][0], DRAFTS["shortcut"][1]
    slip, shown = DRAFTS["slip"][0], "7 3 8 1 2"

    def prompt(role, **fields):
        return WORLD.decode(speaker.prompt(role, question=QUESTION, **fields))

    assert prompt("author") == f"solve {QUESTION} :" and prompt("reviewer") == f"review {QUESTION} :"
    assert prompt("distiller", drafts=[right, guess, slip]) == (
        f"distill {QUESTION} | {shown} | ? ? ? ? ? | 7 4 9 8 9 | ? ? ? ? ? :"
    )
    assert prompt("refiner") == f"refine {QUESTION} | ? ? ? ? ? :"
    assert prompt("refiner", workspace="7 3 ? ? 2") == f"refine {QUESTION} | 7 3 ? ? 2 :"
    assert prompt("reviser", draft=right) == f"revise {QUESTION} | {shown} = 2 :"
    assert prompt("reviser", draft=guess) == f"revise {QUESTION} | ? ? ? ? ? = 6 :"
    for drafts in ([], [right] * 5):
        with pytest.raises(ValueError, match="reads 1 to 4 drafts"):
            prompt("distiller", drafts=drafts)
    for broken in (None, "", "7 3", "7 3 8 1 2 5"):
        assert prompt("refiner", workspace=broken) == f"refine {QUESTION} | ? ? ? ? ? :"
    assert speaker.parse("distiller", "7 = 3 .") is None and speaker.parse("distiller", ".") is None
    assert speaker.parse("author", right) == "2" and speaker.parse("distiller", "7 3 ? ? ? .") == "7 3 ? ? ?"


def test_stages(speaker):
    right, guess, slip = DRAFTS["right"][0], DRAFTS["shortcut"][0], DRAFTS["slip"][0]

    def prompts(stage, draft):
        return [WORLD.decode(p) for p in speaker.templates.stage(stage).turns[0](QUESTION, draft, ())]

    def verdict(stage, draft, *replies):
        return speaker.templates.stage(stage).verdict(QUESTION, draft, [list(replies)])

    assert list(speaker.templates.stages) == ["cycle", "facts", "correct"]
    assert prompts("cycle", right) == [f"ask {right} :"]
    assert verdict("cycle", right, f"{QUESTION} .") and not verdict("cycle", right, "4" + QUESTION[1:] + " .")
    assert not verdict("cycle", guess, "? .")
    assert prompts("facts", slip) == [
        "check 3 + 4 :",
        "check 7 x 2 :",
        "check 4 + 5 :",
        "check 9 x 7 :",
        "check 8 + 1 :",
    ]
    assert verdict("facts", right, "7 .", "3 .", "8 .", "1 .", "2 .")
    assert not verdict("facts", slip, "7 .", "3 .", "9 .", "8 .", "9 .")
    assert prompts("facts", guess) == [] and not verdict("facts", guess)
    assert prompts("correct", right) == [f"review {QUESTION} :"]
    assert (
        verdict("correct", right, right) and not verdict("correct", slip, right) and not verdict("correct", right, "")
    )
    for stage in speaker.templates.stages:  # what cannot be read is asked nothing and rejected
        for draft in ("", "+ 4", "x x x"):
            assert prompts(stage, draft) == [] and not verdict(stage, draft)
