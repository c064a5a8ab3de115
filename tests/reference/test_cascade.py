"""The cascade on a table whose votes have known probabilities: laws, early exit, addresses, records; and chat judges.

The table's world: a candidate is one token, right, wrong or unreadable. Stage "cycle" takes two turns (which question
is it? was it that?), the others one; a judge says yes with a probability that depends on the stage and the candidate.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

import reference.cascade as C
from reference.best_of_n import select
from reference.cascade import UNASKED, CascadeConfig, Judge, verify
from reference.sampling import generate
from reference.self_reward import model_as_judge
from reference.text.chat_templates import chat_analyst, chat_templates, read_verdict
from reference.text.text_model import Role, Stage, Templates, TextModel
from tests.assertions import assert_frequency
from tests.reference.text.test_text_model import CHAT, make_tokenizer
from toy.tabular import TabularLM

SOLVE, RIGHT, WRONG, JUNK, INFER, YES, NO = range(7)
STAGES = ("cycle", "facts", "correct")
COMPARE, FACTS, CORRECT = 7, 8, 9
FIRST_WORD = {"cycle": COMPARE, "facts": FACTS, "correct": CORRECT}
WORDS, TRUE = 10, 0.4
INFERRED = {RIGHT: 0.9, WRONG: 0.5}  # that the inferred question is the right one
YESES = {("facts", RIGHT): 0.9, ("facts", WRONG): 0.3, ("correct", RIGHT): 0.8, ("correct", WRONG): 0.2}
SAME = {RIGHT: 0.95, WRONG: 0.1}  # that the comparison says yes, given the inferred question
Q = {**YESES, **{("cycle", y): p * SAME[RIGHT] + (1 - p) * SAME[WRONG] for y, p in INFERRED.items()}}


class Words:
    """All that a `TextModel` needs of a tokenizer here: ids as decimal numbers."""

    def decode(self, ids):
        return " ".join(map(str, ids.tolist()))


def law(**chances):
    law = np.zeros(WORDS)
    for name, p in chances.items():
        law[globals()[name]] = p
    return law


def table():
    laws = {(SOLVE,): law(RIGHT=TRUE, WRONG=0.9 - TRUE, JUNK=0.1), (INFER,): np.full(WORDS, 0.1)}
    laws |= {(word,): np.full(WORDS, 0.1) for word in FIRST_WORD.values()}
    laws |= {(INFER, y): law(RIGHT=p, WRONG=1 - p) for y, p in INFERRED.items()}
    laws |= {(COMPARE, y): law(YES=p, NO=1 - p) for y, p in SAME.items()}
    laws |= {(FIRST_WORD[stage], y): law(YES=p, NO=1 - p) for (stage, y), p in YESES.items()}
    return TabularLM.tree(laws, WORDS)


def judge_stage(name):
    return Stage((lambda q, y, replies: [[FIRST_WORD[name], int(y)]],), says_yes)


def says_yes(question, candidate, replies):
    return replies[-1][0] == str(YES)


CYCLE = Stage(
    (lambda q, y, replies: [[INFER, int(y)]], lambda q, y, replies: [[COMPARE, int(replies[0][0])]]), says_yes
)
AUTHOR = Role(lambda question: [SOLVE], lambda text: text if text in (str(RIGHT), str(WRONG)) else None)
SPEAKER = TextModel(table(), Words(), frozenset(), Templates(
    "table", {"author": AUTHOR}, {"cycle": CYCLE, "facts": judge_stage("facts"), "correct": judge_stage("correct")}
))  # fmt: skip
PLAIN = CascadeConfig(votes=3, max_new_tokens=1, temperature=1.0, top_p=None, exit="none")


def drafts(questions, n, seed=1):
    texts, _ = SPEAKER.ask("author", [{"question": "x"}] * questions, samples_per_prompt=n, max_new_tokens=1, seed=seed)
    return texts


def record(config=PLAIN, questions=40, n=4, seed=0, **settings):
    return verify(SPEAKER, ["x"] * questions, drafts(questions, n), config, seed=seed, **settings)


# ---------------------------------------------------------------------------------------------------------------------
# The law of its votes


RUNS = 2000


def assert_votes(stages, votes, wanted, policy="unanimous", exit="vote"):
    config = replace(PLAIN, stages=stages, votes=votes, policy=policy, exit=exit)
    found = verify(SPEAKER, ["x"] * RUNS, [[str(RIGHT)]] * RUNS, config, seed=3, slots=4096)
    return assert_frequency(int(found.accepted().sum()), RUNS, wanted, detect=0.13, seed=3)


def test_unanimous_votes_multiply_for_one_candidate():
    """Given the candidate, votes are independent: q^v in each stage, and the product over stages."""
    assert_votes(("cycle",), 1, Q["cycle", RIGHT])
    assert_votes(("correct",), 4, 0.8**4)
    assert_votes(None, 3, float(np.prod([Q[stage, RIGHT] ** 3 for stage in STAGES])))


def test_majority_votes():
    q = 0.8
    assert_votes(("correct",), 3, q**3 + 3 * q**2 * (1 - q), "majority")
    assert_votes(("correct",), 4, q**4 + 4 * q**3 * (1 - q), "majority")  # half is not more than half


@pytest.mark.parametrize("mutant", ["one address for all votes", "half is a majority"])
def test_vote_mutants_are_caught(mutant, monkeypatch):
    if mutant == "one address for all votes":
        cast = Judge.vote
        monkeypatch.setattr(Judge, "vote", lambda judge, name, cases, *label: cast(judge, name, cases))
        how = (("correct",), 4, 0.8**4)
    else:
        monkeypatch.setattr(C, "needed", lambda v, policy: v // 2)
        how = (("correct",), 4, 0.8**4 + 4 * 0.8**3 * 0.2, "majority")
    with pytest.raises(AssertionError):
        assert_votes(*how)


# ---------------------------------------------------------------------------------------------------------------------
# Early exit, addresses, and what a record can answer


@pytest.mark.parametrize(("votes", "policy"), [(1, "unanimous"), (3, "unanimous"), (3, "majority"), (4, "majority")])
def test_early_exit_casts_the_votes_of_the_full_record(votes, policy):
    config = replace(PLAIN, votes=votes, policy=policy)
    full, calls = record(config), []
    assert (full.votes[full.static] >= 0).all() and (full.votes[~full.static] == UNASKED).all()
    assert 0 < full.accepted().sum() < full.static.sum() < full.static.numel()
    for exit in ("stage", "vote"):
        short = record(replace(config, exit=exit))
        cast = short.votes != UNASKED
        assert torch.equal(short.votes[cast], full.votes[cast]) and torch.equal(short.accepted(), full.accepted())
        assert short.rejections() == full.rejections()
        calls.append(int(short.calls.sum()))
    assert calls[1] < calls[0] < full.calls.sum() or (votes == 1 and calls[1] == calls[0] < full.calls.sum())


def test_an_exit_with_other_random_numbers_is_caught(monkeypatch):
    """The same comparison sees votes that are addressed by what else is asked."""
    monkeypatch.setattr(C, "child_seed", lambda seed, *labels: hash((seed, *labels, next(counter))) >> 1)
    counter = iter(range(10**6))
    full, short = record(), record(replace(PLAIN, exit="vote"))
    cast = short.votes != UNASKED
    with pytest.raises(AssertionError):
        assert torch.equal(short.votes[cast], full.votes[cast])


def test_a_stage_stops_when_it_is_decided():
    """Unanimous: at the first dissent; majority: when either side has enough."""
    for policy, over in (("unanimous", lambda own: 0 in own), ("majority", lambda own: own.count(1) == 2)):
        short = record(replace(PLAIN, policy=policy, exit="vote"))
        seen = set()
        for own in short.votes.flatten(0, 2).tolist():
            said = tuple(vote for vote in own if vote != UNASKED)
            assert not any(over(said[:j]) for j in range(len(said)))  # no vote is cast after the stage was decided
            seen.add(said)
        assert {(), (0,) if policy == "unanimous" else (0, 0), (1, 0, 1)} - {(1, 0, 1)} <= seen


def test_votes_depend_on_their_own_address_alone():
    whole = record()
    texts = drafts(40, 4)
    part = verify(SPEAKER, ["x"] * 3, texts[7:10], PLAIN, keys=[7, 8, 9], slots=2)
    assert torch.equal(part.votes, whole.votes[7:10])
    fewer = record(replace(PLAIN, votes=2, stages=("correct",)))
    assert torch.equal(fewer.votes[:, :, 0], whole.votes[:, :, 2, :2])
    assert not torch.equal(record(seed=1).votes, whole.votes)
    named = verify(SPEAKER, ["x"] * 2, texts[:2], PLAIN, keys=["a", "b"])
    assert not torch.equal(named.votes, whole.votes[:2])


def test_one_record_answers_for_every_n_v_policy_and_choice_of_stages():
    full = record(replace(PLAIN, votes=4))
    for votes, policy, stages in product((1, 2, 4), C.POLICIES, (None, ("facts",), ("cycle", "correct"))):
        again = record(replace(PLAIN, votes=votes, policy=policy, stages=stages, exit="vote"))
        assert torch.equal(full.accepted(votes, policy, stages), again.accepted())
    first = full.first_valid(votes=1)
    for own, i in zip(full.accepted(votes=1).tolist(), first.tolist()):
        assert i == (own.index(True) if True in own else -1)
    assert torch.equal(record(replace(PLAIN, stages=())).accepted(), full.static)  # no stage: no filter
    counts = full.rejections()
    assert list(counts) == ["static", *STAGES]
    assert sum(counts.values()) + int(full.accepted().sum()) == full.static.numel()


def test_calls_and_tokens_are_counted():
    """A vote costs a call for each turn that asks: cycle two, the others one, each one token out."""
    full = record(replace(PLAIN, exit="vote"))
    cast = (full.votes != UNASKED).sum(-1)
    assert torch.equal(full.calls, cast * torch.tensor([2, 1, 1]))
    assert torch.equal(full.tokens, full.calls * 3)  # prompts of two
    assert sum(cost.calls for cost in full.costs) == full.calls.sum()


def test_transcripts_are_what_the_judge_saw_and_said():
    said = []
    full = record(questions=3, transcripts=said)
    assert len(said) == full.calls.sum() and {call.stage for call in said} == {*STAGES}
    assert all(len(call.reply) == 1 and call.prompt[0] in (INFER, COMPARE, FACTS, CORRECT) for call in said)


def test_a_model_as_its_own_judge_is_a_reward():
    prompts = [[SOLVE]] * 30
    drawn = generate(SPEAKER.model, prompts, samples_per_prompt=4, max_new_tokens=1, stop_ids=())
    rewards = model_as_judge(SPEAKER, ["x"] * 30, replace(PLAIN, exit="vote"))(drawn.samples)
    texts = [[SPEAKER.tokenizer.decode(sample.tokens) for sample in own] for own in drawn.samples]
    full = verify(SPEAKER, ["x"] * 30, texts, PLAIN)
    assert torch.equal(rewards, (full.votes == 1).double().mean((-2, -1)))
    assert (rewards[~full.static] == 0).all()
    best = select(drawn.samples, rewards).tokens[:, 0, 0]
    assert (best == RIGHT).float().mean() > (drawn.samples.tokens == RIGHT).float().mean() + 0.2


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be read


def test_a_reply_that_was_cut_is_empty():
    heard = []
    stage = Stage((lambda q, y, replies: [[FACTS, int(y)]],), lambda q, y, replies: heard.extend(replies[0]))
    for stop_ids in (frozenset(), frozenset({YES}), frozenset({YES, NO})):
        speaker = replace(SPEAKER, stop_ids=stop_ids, templates=Templates("one", {"author": AUTHOR}, {"facts": stage}))
        verify(speaker, ["x"] * 50, [[str(RIGHT)]] * 50, replace(PLAIN, votes=1))
    assert "" not in heard[:50] and str(NO) in heard[:50]  # no stop ids: nothing ends by itself
    assert {*heard[50:100]} == {str(YES), ""} and {*heard[100:]} == {str(YES), str(NO)}


def test_every_call_of_a_judge_has_an_address_of_its_own():
    transcripts = []
    verify(
        SPEAKER,
        ["x", "y"],
        [[str(RIGHT), str(RIGHT)]] * 2,
        replace(PLAIN, votes=3, exit="none"),
        transcripts=transcripts,
    )
    assert len(transcripts) == len({each.key for each in transcripts}) > 12


def test_the_static_check():
    speaker = replace(SPEAKER, templates=chat_templates(make_tokenizer(CHAT)))
    for text, plain, thinks in (
        (r"\boxed{4}", True, False), (r"<think>hm</think>\boxed{4}", True, True), ("4", False, False),
        (r"<think>hm \boxed{4}", False, False), (r"<think>\boxed{4}</think> so", False, False),
        (r"hm</think> \boxed{4}", True, True),
    ):  # fmt: skip
        assert (C.static_check(speaker, text), C.static_check(speaker, text, True)) == (plain, thinks), text


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("It holds. [[Y]]", True), ("[[Y]] no, wait: [[N]]", False), ("<think>[[Y]]</think> [[N]]", False),
        ("<think>[[Y]]", None), ("[[Y]]</think>", None), ("Verdict: N", False), ("YES", True), ("no doubt", None),
        ("it is YES, no doubt", None), ("X or Y? N", None), ("", None), ("[[ Y ]]", True), ("[[M]]", None),
        ("[[N]] as in Y", False), ("NOTHING. NO", None), ("[[N/Y]]", None), ("NO. Option Y is wrong", None),
        ("[[Yes]]", True), ("[[no]]", False), ("verdict: yes", True), ("The verdict is **No**.", False),
        ("So,\nYes.", True), ("No, there is an error.", False), ("Yes, but no", None), ("The answer is y = 5", None),
        ("verdict: yes/no", None),
        ("Verdict: Y or N", None), ("The answer is no more than 5.", None), ("The answer is correct.", None),
    ],
)  # fmt: skip
def test_the_last_verdict_after_the_thinking_counts(text, verdict):
    assert read_verdict(text) is verdict


def test_chat_stages_show_solutions_without_thinking():
    tokenizer, seen = make_tokenizer(CHAT), []
    tokenizer.chat_prompt = lambda messages: seen.append(messages[0]["content"]) or [1]
    chat = chat_templates(tokenizer)
    assert list(chat.stages) == ["cycle", "facts", "correct"]
    candidate, question = r"<think>SECRET</think> It is \boxed{4}.", "What is 2 + 2?"
    for name in ("facts", "correct"):
        (turn,) = chat.stage(name).turns
        assert turn(question, candidate, ()) == [[1]]
        assert question in seen[-1] and r"\boxed{4}" in seen[-1] and "[[Y]]" in seen[-1]
    infer, compare = chat.stage("cycle").turns
    assert infer(question, candidate, ()) and question not in seen[-1] and r"\boxed{4}" in seen[-1]
    assert compare(question, candidate, [["<think>SECRET</think>What is twice 2?"]])
    assert question in seen[-1] and "What is twice 2?" in seen[-1] and r"\boxed" not in seen[-1]
    chat_analyst(tokenizer).turns[0](question, candidate, ())
    assert not any("SECRET" in content or "{" in content.replace(r"\boxed{", "") for content in seen)
    cycle = chat.stage("cycle")
    assert compare(question, candidate, [["<think>hm"]]) == [] and not cycle.verdict(question, candidate, [["x"], []])
    assert cycle.verdict(question, candidate, [["x"], ["[[Y]]"]]) is True
    assert cycle.verdict(question, candidate, [["x"], ["perhaps"]]) is None


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"votes": 0}, "votes is 0; it must be at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"policy": "most"}, "policy is 'most'; it must be one of 'unanimous', 'majority'"),
        ({"exit": "early"}, "exit is 'early'; it must be one of 'vote', 'stage', 'none'"),
        ({"stages": ("facts", "facts")}, "name each once"),
        ({"stages": ("facts", "taste")}, "'table' has no stage 'taste', only: cycle, facts, correct"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        record(replace(PLAIN, **settings))


def test_bad_input():
    for questions, solutions in (([], []), (["x"], []), (["x"], [[]]), (["x", "y"], [["1"], ["1", "2"]])):
        with pytest.raises(ValueError, match="the same number of solutions"):
            verify(SPEAKER, questions, solutions, PLAIN)
    with pytest.raises(ValueError, match="1 questions with 2 keys"):
        verify(SPEAKER, ["x"], [["1"]], PLAIN, keys=[1, 2])
    with pytest.raises(ValueError, match="the template set 'none' has no stages"):
        verify(replace(SPEAKER, templates=Templates()), ["x"], [["1"]], PLAIN)
    with pytest.raises(ValueError, match="no role 'author'"):
        verify(replace(SPEAKER, templates=Templates("s", {}, {"facts": judge_stage("facts")})), ["x"], [["1"]], PLAIN)
    short = record(replace(PLAIN, exit="vote"))
    for how, message in (
        ({"stages": ("correct",)}, "too few votes to say; make the record with exit='none'"),
        ({"policy": "majority"}, "too few votes"),
        ({"votes": 4}, r"votes is 4; the record has 1..3"),
        ({"votes": 0}, r"votes is 0; the record has 1..3"),
    ):
        with pytest.raises(ValueError, match=message):
            short.accepted(**how)
