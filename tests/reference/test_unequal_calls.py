"""Budgets where calls have unequal lengths, also within a step: min, mean, max and sum are four numbers (D1, D11).

The world of test_parallel_distill_refine.py with more words: a right draft has two tokens and a wrong one five; a
report on j right drafts has j + 2, and the prompt that shows it j + 1. So a problem's cost says what happened to it.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from statistics import fmean

import numpy as np
import pytest
from scipy.stats import binom

from reference.parallel_distill_refine import PDRConfig, parallel_distill_refine
from reference.text.ledger import Ledger
from reference.text.text_model import Role, Templates, TextModel
from tests.assertions import assert_categorical
from tests.reference.test_parallel_distill_refine import Words
from toy.tabular import TabularLM

M, SOLVE, DISTILL, NONE, FILL, END, RIGHT, WRONG, COUNT = 3, 0, 1, 2, 3, 4, 5, 6, 7
WORDS = COUNT + M + 1
ALONE, G = 0.4, (0.1, 0.6, 0.8, 0.9)
LENGTH = {RIGHT: 2, WRONG: 5}


def table():
    laws = {}

    def says(prefix, *tokens):
        for i, token in enumerate(tokens):
            laws[(*prefix, *tokens[:i])] = np.eye(WORDS)[token]

    def drafts(prefix, p):
        laws[prefix] = p * np.eye(WORDS)[RIGHT] + (1 - p) * np.eye(WORDS)[WRONG]
        for word, length in LENGTH.items():
            says((*prefix, word), *[FILL] * (length - 2), END)

    for j, p in enumerate(G):
        says((), COUNT + j, *[NONE] * j)  # a text is in the tree only if its prefixes are
        drafts((COUNT + j, *[NONE] * j), p)
    drafts((SOLVE,), ALONE)
    for n in range(M + 1):
        for seen in product((RIGHT, WRONG), repeat=n):
            j = seen.count(RIGHT)
            laws[(DISTILL, *seen)] = np.full(WORDS, 1 / WORDS)
            says((DISTILL, *seen, NONE), COUNT + j, *[FILL] * j, END)
    return TabularLM.tree(laws, WORDS)


def first(text):
    return int(text.split()[0])


ROLES = {
    "author": Role(lambda question: [SOLVE], first),
    "distiller": Role(lambda question, drafts: [DISTILL, *map(first, drafts), NONE], first),
    "refiner": Role(lambda question, workspace: [workspace, *[NONE] * (workspace - COUNT)], first),
}
SPEAKER = TextModel(table(), Words(), frozenset({END}), Templates("unequal", ROLES))
TINY = PDRConfig(drafts=(M,), workspace=M + 2, max_new_tokens=5)


def by_step(result):
    """tokens[problem][step] of the calls of each step, counted on the texts that were read and written: rounds of
    drafts and their reports take turns."""
    sizes = [len(result.rounds[0][0])]
    for drafts, workspaces in zip(result.rounds[1:], result.workspaces):
        sizes += [len(workspaces[0]), len(drafts[0])]
    edges = np.cumsum(sizes)
    lengths = [[len(prompt) + len(response) for prompt, response in own] for own in result.ledger.texts]
    assert all(len(own) == edges[-1] for own in lengths)
    return [[own[end - size : end] for size, end in zip(sizes, edges)] for own in lengths]


def assert_budgets(config, measure, measured=lambda *_: None):
    """B_seq = Σ_r (max_i d_ri + max_b D_rb) and B_total = Σ_r (Σ_i d_ri + Σ_b D_rb), to the token."""
    result = parallel_distill_refine(SPEAKER, ["x"] * 40, config, seed=8)
    steps = by_step(result)
    ways = [[sum(way(step) for step in own) for own in steps] for way in (min, fmean, max, sum)]
    assert all(less < more for less, more in pairwise(map(sum, ways)))  # four numbers
    found = measure(result.ledger)
    measured(f"differing problems of 40, {(*config.drafts, 1)}", sum(a != b for a, b in zip(found[0], ways[2])), 0)
    assert found == (ways[2], ways[3], {"B_seq": fmean(ways[2]), "B_seq, mean branch": pytest.approx(fmean(ways[1])),
                                        "B_total": fmean(ways[3])})  # fmt: skip


def both(ledger: Ledger):
    return ledger.b_seq(), ledger.b_total(), ledger.budgets()


CONFIGS = (
    TINY,
    replace(TINY, drafts=(3, 2)),
    replace(TINY, drafts=(2, 3, 3), distiller="random-k", k=2),  # reports side by side
)


@pytest.mark.claim("D1")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: str(config.drafts))
def test_budgets_of_unequal_calls(config, measured):
    assert_budgets(config, both, measured)


@pytest.mark.claim("D1")
@pytest.mark.parametrize("branch", [min, fmean, sum])
def test_other_branches_are_not_waited_for(branch: Callable):
    with pytest.raises(AssertionError):
        assert_budgets(TINY, lambda ledger: (ledger.b_seq(branch), *both(ledger)[1:]))


@pytest.mark.claim("D1")
def test_a_total_of_one_branch_times_their_number_is_not_paid():
    def by_one(way):
        def total(ledger):
            steps = [[[c.tokens for c in own if c.step == s] for s in range(1, 4)] for own in ledger.calls]
            return ledger.b_seq(), [sum(len(step) * way(step) for step in own) for own in steps], ledger.budgets()

        return total

    for way in (min, max):
        with pytest.raises(AssertionError):
            assert_budgets(TINY, by_one(way))
    assert_budgets(TINY, by_one(fmean))  # M d̄ is the sum: what the paper's M_r d_r means where calls are unequal


# ---------------------------------------------------------------------------------------------------------------------
# The distribution of a problem's answer and of its two budgets, of (3, 1)

RUNS = 20_000


def exact() -> dict[tuple[int, int, bool], float]:
    """Pr[(B_seq, B_total, right)]: J ~ Binom(M, p) right drafts, then the answer is right with probability g(J)."""
    law: dict[tuple[int, int, bool], float] = {}
    for j, right in product(range(M + 1), (True, False)):
        drafts = [1 + LENGTH[RIGHT]] * j + [1 + LENGTH[WRONG]] * (M - j)
        rest = (M + 2) + (j + 2) + (1 + j) + LENGTH[RIGHT if right else WRONG]  # the report; the last draft
        case = (max(drafts) + rest, sum(drafts) + rest, right)
        assert case not in law
        law[case] = binom.pmf(j, M, ALONE) * (G[j] if right else 1 - G[j])
    return law


@pytest.fixture(scope="module")
def drawn():
    return parallel_distill_refine(SPEAKER, ["x"] * RUNS, TINY, seed=9, slots=4096)


def assert_law(result, b_seq, law, measured=lambda *_: None):
    cases = list(zip(b_seq, result.ledger.b_total(), (answer == RIGHT for answer in result.answers)))
    assert {*cases} <= {*law}
    counts = [cases.count(case) for case in law]
    measured("G of answers and budgets", *assert_categorical(counts, list(law.values()), detect=0.04, seed=9))


@pytest.mark.claim("D11")
@pytest.mark.claim("D1")
def test_a_rounds_answer_and_budgets_have_their_distribution(drawn, measured):
    assert_law(drawn, drawn.ledger.b_seq(), exact(), measured)


@pytest.mark.claim("D11")
@pytest.mark.claim("D1")
def test_other_distributions_are_caught(drawn):
    for branch in (min, fmean, sum):
        with pytest.raises(AssertionError):
            assert_law(drawn, drawn.ledger.b_seq(branch), exact())
    uniform = dict.fromkeys(exact(), 1 / len(exact()))
    shifted = dict(zip(exact(), [*exact().values()][2:] + [*exact().values()][:2]))  # one right draft less
    for law in (uniform, shifted):
        with pytest.raises(AssertionError):
            assert_law(drawn, drawn.ledger.b_seq(), law)
