"""The pages of the cascade and of UQ-TTC, run for every vote: what they accept, answer and cost is theory's."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom

from reference.cascade import CascadeConfig, cascade_page
from reference.interface import ACCEPT, CHOICE
from reference.uq_ttc import uq_ttc_page
from tests.reference.small_worlds import EXACT, assert_same, mutated
from theory import verification as V
from theory.exact_law import expectation

# --- The cascade -----------------------------------------------------------------------------------------------------

Q = {"facts": 0.7, "correct": 0.4, "cycle": 0.9}  # what a vote of each stage says yes with


def voter(chance, q=Q):
    """Votes on one candidate, each at an address of its own."""
    return lambda stage, j: chance.happens(math.log(q[stage]), ACCEPT, step=[*q].index(stage), position=j)


def votes_of_a_stage(q, v, policy, early):
    """How many are cast in a stage that is reached: until neither the outcome nor its contrary is out of reach."""
    need = v if policy == "unanimous" else v // 2 + 1
    open_after = [sum(binom.pmf(s, j, q) for s in range(j + 1) if s < need and j - s <= v - need) for j in range(v)]
    return float(sum(open_after)) if early else float(v)


def assert_cascade(votes, policy, end, stages=2, page=cascade_page):
    """What is accepted, and how many votes are cast."""
    q = dict([*Q.items()][:stages])
    config = CascadeConfig(votes=votes, policy=policy, exit=end)

    def outcome(chance):
        verdict = page(voter(chance, q), [*q], config)
        return [float(verdict.accepted), sum(map(len, verdict.votes))]

    accepted, cast = expectation(outcome)
    off = assert_same(accepted, V.acceptance([[*q.values()]], votes, policy)[0])
    passed = V.pass_probability([*q.values()], votes, policy)
    reached = np.append(1.0, passed.cumprod()[:-1]) if end != "none" else np.ones(stages)
    each = [votes_of_a_stage(p, votes, policy, end == "vote") for p in q.values()]
    if policy == "unanimous":
        assert_same(reached @ each, V.expected_calls([[*q.values()]], votes, np.ones(stages), end)[0])
    return max(off, assert_same(cast, reached @ each)), float(cast)


@pytest.mark.parametrize("end", ["vote", "stage", "none"])
@pytest.mark.parametrize("policy", ["unanimous", "majority"])
@pytest.mark.parametrize(("votes", "stages"), [(1, 3), (2, 3), (3, 3), (4, 2), (5, 1)])
def test_the_cascade_accepts_and_costs_what_theory_says(votes, policy, end, stages):
    assert_cascade(votes, policy, end, stages)


@pytest.mark.parametrize("end", ["vote", "stage"])
@pytest.mark.parametrize("policy", ["unanimous", "majority"])
def test_early_exits_accept_what_the_full_record_does(policy, end):
    """Vote by vote, not only in the mean: all have the same votes at the same addresses."""
    for said in itertools.product([True, False], repeat=6):
        verdicts = [cascade_page(lambda stage, j, said=said: said[3 * int(stage) + j], ["0", "1"],
                                 CascadeConfig(votes=3, policy=policy, exit=e)) for e in (end, "none")]  # fmt: skip
        assert verdicts[0].accepted == verdicts[1].accepted
        assert [[*own] for own in verdicts[0].votes] == [
            [*own[: len(mine)]] for mine, own in zip(verdicts[0].votes, verdicts[1].votes)
        ]


@pytest.mark.parametrize(("right", "wrong", "end"), [
    ("needed(config.votes, config.policy)", "config.votes // 2 + 1", "vote"),
    ("accepted and said.count(True) >= need", "said.count(True) >= need", "none"),
    ("(accepted or config.exit", "(True or config.exit", "stage"),
    ("said.count(False) > v - need", "said.count(False) > v", "vote"),
    ('config.exit == "vote" and decided', "False", "vote"), ('config.exit == "vote" and decided', "decided", "stage"),
    ("vote(stage, len(said))", "vote(stages[-1], len(said))", "vote"),
])  # fmt: skip
def test_other_cascades_are_caught(right, wrong, end):
    page = mutated(cascade_page, right, wrong)
    with pytest.raises((AssertionError, ValueError)) as found:
        assert_cascade(3, "unanimous", end, page=page)
    assert found.type is AssertionError or "asked twice" in str(found.value)


# --- UQ-TTC ----------------------------------------------------------------------------------------------------------

RIGHT, WRONG = {"facts": 0.8, "correct": 0.9}, {"facts": 0.5, "correct": 0.3}  # a vote's yes on right and wrong ones
P_RIGHT = 0.35


def assert_uq_ttc(n, votes=2, page=uq_ttc_page):
    """n candidates, each right with probability p: accuracy, precision, coverage and calls are the formulas'."""
    config = CascadeConfig(votes=votes)

    def outcome(chance):
        streams = [chance.child(i) for i in range(n)]
        right = [own.happens(math.log(P_RIGHT), CHOICE) for own in streams]
        ballots = [voter(own, RIGHT if good else WRONG) for own, good in zip(streams, right)]
        answer = page(ballots, [*RIGHT], config)
        calls = sum(len(own) for verdict in answer.verdicts for own in verdict.votes)
        assert answer.answer == max(answer.valid, 0)
        covered = answer.valid >= 0
        return [right[answer.answer], covered, covered and right[answer.valid], calls]

    accuracy, coverage, covered_right, calls = expectation(outcome)
    T, F = (float(V.acceptance([[*q.values()]], votes)[0]) for q in (RIGHT, WRONG))
    a = float(V.accepted(P_RIGHT, T, F))
    each = [float(V.expected_calls([[*q.values()]], votes, np.ones(2), "vote")[0]) for q in (RIGHT, WRONG)]
    asked = (1 - (1 - a) ** n) / a  # candidates, one after another until the first valid one
    return max(
        assert_same(accuracy, V.uq_ttc_accuracy(P_RIGHT, T, F, n)),
        assert_same(coverage, V.coverage(a, n)),
        assert_same(covered_right / coverage, V.precision(P_RIGHT, T, F)),
        assert_same(calls, asked * (P_RIGHT * each[0] + (1 - P_RIGHT) * each[1])),
    )


@pytest.mark.claim("V14")
@pytest.mark.claim("V16")
@pytest.mark.parametrize(("n", "votes"), [(1, 2), (2, 2), (3, 1), (3, 2), (2, 3)])
def test_uq_ttc_answers_and_costs_what_theory_says(n, votes, measured):
    measured("max |mean - formula|", assert_uq_ttc(n, votes), EXACT)


@pytest.mark.claim("V14")
@pytest.mark.claim("V16")
@pytest.mark.parametrize(("right", "wrong"), [
    ("return Answer(0, -1,", "return Answer(len(votes) - 1, -1,"),
    ("if verdicts[-1].accepted", "if verdicts[0].accepted"),
    ("return Answer(i, i,", "return Answer(0, i,"), ("if verdicts[-1].accepted", "if i > 0 and verdicts[-1].accepted"),
    ("cascade_page(vote, stages, config)", "cascade_page(vote, stages[:1], config)"),
])  # fmt: skip
def test_other_answers_are_caught(right, wrong):
    with pytest.raises(AssertionError):
        assert_uq_ttc(3, page=mutated(uq_ttc_page, right, wrong))
