"""UQ-TTC on the table of test_cascade.py: its law, its price, and the validators as combinators."""

from dataclasses import replace

import pytest
import torch

from reference.cascade import verify
from reference.self_verified_distillation import SVDConfig
from reference.text.text_model import Stage, Templates
from reference.uq_ttc import majority, reflect, repeat, sequential, unanimous, uq_ttc, validate, vote
from tests.assertions import assert_frequency
from tests.reference.test_cascade import JUNK, NO, PLAIN, RIGHT, SPEAKER, STAGES, TRUE, YES, Q, drafts

RUNS, N = 2500, 3
ONE = replace(PLAIN, votes=2, stages=("correct",), exit="vote")
CONFIG = SVDConfig(n=N, max_new_tokens=1, temperature=1.0, top_p=None, cascade=ONE)


def exact(n=N):
    """P(right): the first valid candidate is, or none is valid and candidate 0, rejected, is right all the same."""
    T, F = Q["correct", RIGHT] ** 2, 0.2**2
    A = TRUE * T + (0.9 - TRUE) * F  # a tenth cannot be read, and is never valid
    return (1 - (1 - A) ** n) * TRUE * T / A + (1 - A) ** n * TRUE * (1 - T) / (1 - A)


def assert_law(law, config=CONFIG):
    found = uq_ttc(SPEAKER, ["x"] * RUNS, config, seed=4, slots=4096)
    return assert_frequency(sum(answer == str(RIGHT) for answer in found.answers), RUNS, law, detect=0.11, seed=4)


def test_its_answers_have_their_law():
    assert TRUE + 0.2 < exact() < exact(8)
    assert_law(exact())


def test_mutants_are_caught(monkeypatch):
    for mutant in (
        lambda record: torch.full((RUNS,), -1),  # verifies, and answers with candidate 0 in any case
        lambda record: torch.where(record.accepted().any(-1), N - 1, -1),  # the last candidate, valid or not
    ):
        monkeypatch.setattr("reference.cascade.Verification.first_valid", mutant)
        with pytest.raises(AssertionError):
            assert_law(exact())


def test_the_first_valid_candidate_or_the_first():
    found = uq_ttc(SPEAKER, ["x"] * 60, CONFIG, seed=4, keys=range(100, 160))
    accepted = found.verification.accepted()
    assert {-1, 0, 1} <= {*found.valid.tolist()}
    for i, own in enumerate(accepted.tolist()):
        chosen = own.index(True) if True in own else 0
        assert int(found.valid[i]) == (chosen if True in own else -1)
        assert torch.equal(found.samples[i][0].tokens, found.pool[i][chosen].tokens)
        assert found.texts[i] == SPEAKER.tokenizer.decode(found.pool[i][chosen].tokens)
        assert found.answers[i] == (None if found.texts[i] == str(JUNK) else found.texts[i])


def test_what_it_costs():
    """Counted by the decoder, and by the record; lazily, what comes after the first valid candidate is not asked."""
    found = uq_ttc(SPEAKER, ["x"] * 60, CONFIG, seed=4)
    assert [cost.calls for cost in found.costs] == found.calls().tolist()
    spent = [cost.prompt_tokens + cost.decoded_tokens for cost in found.costs]
    assert spent == found.tokens().tolist()
    calls, lazy = found.calls(), found.calls(lazy=True)
    each = 1 + found.verification.calls.sum(-1)
    for i, valid in enumerate(found.valid.tolist()):
        assert lazy[i] == each[i][: valid + 1 if valid >= 0 else N].sum()
    assert lazy.sum() < calls.sum() and (found.tokens(lazy=True) <= found.tokens()).all()


def test_at_most_168_calls():
    """The paper's maximum, n + 4nv at n = 8, v = 5: three stages, the first of two turns, and no dissent."""
    agreeable = {name: replace(SPEAKER.templates.stage(name), verdict=lambda *_: True) for name in STAGES}
    roles = {"author": replace(SPEAKER.templates.role("author"), parse=str)}
    speaker = replace(SPEAKER, templates=Templates("agreeable", roles, agreeable))
    config = replace(CONFIG, n=8, cascade=replace(PLAIN, votes=5, exit="vote"))
    found = uq_ttc(speaker, ["x"], config)
    assert int(found.calls()) == 168 and int(found.calls(lazy=True)) == 21 and int(found.valid) == 0


# ---------------------------------------------------------------------------------------------------------------------
# Validators


def validated(validator, questions=40, n=4):
    return validate(SPEAKER, ["x"] * questions, drafts(questions, n), validator, PLAIN)


def test_the_cascade_is_a_validator():
    """Votes of one label are one vote, however they are combined: the paper's 3-Iter is `verify` with three votes."""
    texts = drafts(40, 4)
    for policy, combine in (("unanimous", unanimous), ("majority", majority)):
        iterated = sequential([combine(repeat(vote(name), 3)) for name in STAGES])
        accepted, judge = validated(iterated)
        record = verify(SPEAKER, ["x"] * 40, texts, replace(PLAIN, policy=policy, exit="stage"))
        assert torch.equal(accepted, record.accepted()) and 0 < accepted.sum() < accepted.numel()
        assert sum(cost.calls for cost in judge.costs) == record.calls.sum()


def test_sequential_asks_less_than_unanimous_and_says_the_same():
    all_of, one_by_one = (validated(combine([vote(name) for name in STAGES])) for combine in (unanimous, sequential))
    assert torch.equal(all_of[0], one_by_one[0])
    calls = [sum(cost.calls for cost in judge.costs) for _, judge in (one_by_one, all_of)]
    assert calls[0] < calls[1]


def test_combinators_on_given_verdicts():
    """yes, yes, no / yes, no, no / ... on cases of which each validator accepts some."""
    judge, cases = None, [(0, c) for c in range(8)]
    bits = [lambda judge, cases, *label, b=b: [bool(c >> b & 1) for _, c in cases] for b in range(3)]
    assert majority(bits)(judge, cases) == [c in (3, 5, 6, 7) for c in range(8)]
    assert majority(bits[:2])(judge, cases) == [c & 3 == 3 for c in range(8)]  # half is not more than half
    assert unanimous(bits)(judge, cases) == sequential(bits)(judge, cases) == [c == 7 for c in range(8)]
    seen = []
    named = repeat(lambda judge, cases, *label: [seen.append(label) or True for _ in cases], 2)
    assert unanimous(repeat(unanimous(named), 2))(judge, cases[:1]) == [True]
    assert seen == [(0, 0), (0, 1), (1, 0), (1, 1)]  # every vote has a label of its own


def test_repeats_are_independent():
    accepted, _ = validated(unanimous(repeat(repeat(vote("correct"), 2)[0], 2)), 400)
    texts = drafts(400, 4)
    hits = [ok for own, said in zip(texts, accepted.tolist()) for text, ok in zip(own, said) if text == str(RIGHT)]
    assert_frequency(sum(hits), len(hits), Q["correct", RIGHT] ** 2, detect=0.2, seed=0)


def test_reflection_asks_again_and_the_last_reply_counts():
    heard = []

    def again(question, candidate, replies):
        heard.append([reply[0] for reply in replies])
        return [[NO]]  # a text that the table does not know

    stage = reflect(SPEAKER.templates.stage("correct"), again, 3)
    assert len(stage.turns) == 3
    assert stage.verdict("x", str(RIGHT), [[str(NO)], [str(NO)], [str(YES)]])
    assert not stage.verdict("x", str(RIGHT), [[str(YES)], [str(YES)], [str(NO)]])
    speaker = replace(SPEAKER, templates=Templates("t", SPEAKER.templates.roles, {"correct": stage}))
    _, judge = validate(speaker, ["x"] * 10, [[str(RIGHT)]] * 10, vote("correct"), PLAIN)
    assert {len(said) for said in heard} == {1, 2} and judge.costs[0].calls == 3
    twice = reflect(Stage((lambda *_: [[0]], lambda *_: [[1]]), lambda q, y, replies: replies), again, 2)
    assert twice.verdict("x", "y", [["a"], ["b"], ["c"]]) == [["a"], ["c"]]  # earlier turns are kept


def test_bad_input():
    with pytest.raises(ValueError, match="no stage 'taste'"):
        validated(vote("taste"))
    with pytest.raises(ValueError, match="no role 'author'"):
        uq_ttc(replace(SPEAKER, templates=Templates("s", {}, SPEAKER.templates.stages)), ["x"], CONFIG)
