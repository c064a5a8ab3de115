"""Self-verified distillation on the toy checkpoint: a small run end to end without any answer, resuming, and its parts.

What the cascade does is in test_cascade.py; what distillation is worth is measured by figures/distillation.py.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

import reference.self_verified_distillation as S
from reference.cascade import CascadeConfig, Transcript
from reference.self_verified_distillation import SVDConfig, examples, kept_cases, replayed, self_verified_distillation
from reference.text.text_model import Stage, Templates, TextModel
from reference.training.loop import FitConfig
from reference.training.lora import LoRAConfig
from toy import relay
from toy.pretrain import CHECKPOINT

JUDGE = CascadeConfig(votes=2, max_new_tokens=20, temperature=1.0, top_p=None)
CONFIG = SVDConfig(n=4, max_new_tokens=20, temperature=1.0, top_p=None, cascade=JUDGE, block=40)
TRAINING = FitConfig(epochs=20, batch=16, rate=1e-3, clip=1.0, weight_decay=0.0, schedule="cosine")
SHORT = replace(TRAINING, epochs=2)
SEEDS = relay.make_problems(80, split="seeds")
FEW = [problem.question for problem in SEEDS[:14]]
GRADERS = ("solve", "classify", "problem_class", "answers_of", "make_problems", "split_questions")


@pytest.fixture(scope="module")
def speaker():
    return TextModel.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def heldout():
    return relay.make_problems(300)


class Sealed:
    """A problem whose answer nobody may look at."""

    def __init__(self, problem):
        self.question = problem.question

    @property
    def answer(self):
        raise PermissionError("somebody looked at an answer")


def grades(speaker, problems):
    texts, _ = speaker.ask("author", [{"question": p.question} for p in problems], max_new_tokens=20, seed=9)
    return np.array([relay.answer(own[0]) == p.answer for p, own in zip(problems, texts)], float)


def weights(speaker):
    return {name: weight.detach().clone() for name, weight in speaker.model.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------------------------------------------------------------
# End to end


@pytest.fixture(scope="module")
def run(speaker):
    """One round from 80 unlabeled questions, with every grader of the world sealed."""
    with pytest.MonkeyPatch.context() as patch:
        for name in GRADERS:
            patch.setattr(relay, name, lambda *_, **__: pytest.fail("a grader was called"))
        problems = [Sealed(problem) for problem in SEEDS]
        with pytest.raises(PermissionError):
            problems[0].answer  # noqa: B018
        before = weights(speaker)
        (found,) = self_verified_distillation(speaker, [p.question for p in problems], CONFIG, TRAINING)
        assert same(weights(speaker), before)  # the base is as it was
    return found


def assert_gain(student, speaker, problems, least=0.15):
    """The gain, paired by problem, is above `least` by four standard errors."""
    gain = grades(student, problems) - grades(speaker, problems)
    assert gain.mean() - 4 * gain.std() / len(gain) ** 0.5 > least


def test_it_learns_from_unlabeled_questions_alone(speaker, run, heldout):
    kept = [SEEDS[i].answer == relay.answer(run.candidates.texts[i][c]) for i, c in run.kept]
    assert 20 <= len(kept) < 80 and np.mean(kept) >= 0.95
    assert_gain(run.student, speaker, heldout)
    assert run.log["loss"][-1] < 0.3 * run.log["loss"][0]


def test_what_it_learns_is_what_was_drawn(speaker, run):
    record, samples = run.candidates.verification, run.candidates.samples
    assert run.kept == [(i, c) for i, c in enumerate(record.first_valid().tolist()) if c >= 0]
    data = examples(speaker, [p.question for p in SEEDS], samples, run.kept)
    for (i, c), (prompt, response) in zip(run.kept, data):
        assert prompt == speaker.prompt("author", question=SEEDS[i].question)
        assert torch.equal(response, samples[i][c].tokens) and int(response[-1]) in speaker.stop_ids
    assert run.candidates.cost.calls == samples.tokens.shape[0] * 4 + int(record.calls.sum())


def test_a_round_draws_anew_and_trains_the_base(speaker, monkeypatch):
    """Of two rounds: other seeds, and the second student is the base trained on the second round's solutions alone."""
    seeds, draw = [], S.draw_candidates

    def listen(*given, seed, **more):
        seeds.append(seed)
        return draw(*given, seed=seed, **more)

    monkeypatch.setattr(S, "draw_candidates", listen)
    _, second = self_verified_distillation(speaker, FEW, replace(CONFIG, rounds=2), SHORT)
    assert len({*seeds}) == len(seeds) == 2
    expected, _ = S.train_from(speaker, examples(speaker, FEW, second.candidates.samples, second.kept), SHORT)
    assert same(weights(second.student), weights(expected))


def test_without_the_filter_it_learns_nothing(speaker, run, heldout):
    """The same training on each question's first candidate, valid or not: the mutant of the test above."""
    questions = [p.question for p in SEEDS]
    first = kept_cases(run.candidates.verification.static, "first")
    assert len(first) == len(SEEDS)
    data = examples(speaker, questions, run.candidates.samples, first)
    student, _ = S.train_from(speaker, data, replace(TRAINING, epochs=4))
    with pytest.raises(AssertionError):
        assert_gain(student, speaker, heldout)


# ---------------------------------------------------------------------------------------------------------------------
# Resuming


def test_a_killed_run_goes_on_to_the_same_student(speaker, tmp_path, monkeypatch):
    """Killed twice, in blocks of 8 questions; the run that was not has one block, which must not matter either."""
    config = replace(CONFIG, n=2, rounds=2, replay=1.0)
    whole = self_verified_distillation(speaker, FEW, config, SHORT)
    verify, calls = S.verify, []

    def dies(*args, **how):
        calls.append(1)
        if len(calls) in (2, 5):  # in round 1, then in round 2
            raise KeyboardInterrupt
        return verify(*args, **how)

    def resumed():
        return self_verified_distillation(speaker, FEW, replace(config, block=8), SHORT, folder=tmp_path / "run")

    monkeypatch.setattr(S, "verify", dies)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            resumed()
    again = resumed()
    assert len(calls) == 4 + 2  # two rounds of two blocks, and the two that were cut short
    monkeypatch.setattr(S, "verify", None)
    for found in (again, resumed()):  # the second time all is there
        assert [each.kept for each in found] == [each.kept for each in whole]
        assert same(weights(found[-1].student), weights(whole[-1].student))
        assert [each.candidates.cost.calls for each in found] == [each.candidates.cost.calls for each in whole]


def test_a_run_of_other_settings_is_refused_by_name(speaker, tmp_path):
    folder = tmp_path / "run"
    config = replace(CONFIG, n=2)
    self_verified_distillation(speaker, FEW, config, SHORT, folder=folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for how, training, questions, name in (
        (replace(config, n=3), SHORT, FEW, "config.n = 2, and now config.n is 3"),
        (
            replace(config, cascade=replace(JUDGE, votes=1)),
            SHORT,
            FEW,
            "config.cascade.votes = 2, and now config.cascade.votes is 1",
        ),
        (config, replace(SHORT, rate=2e-3), FEW, "training.rate = 0.001, and now training.rate is 0.002"),
        (config, SHORT, FEW[1:], "questions = "),
    ):
        with pytest.raises(ValueError, match=f"was written with {name}"):
            self_verified_distillation(speaker, questions, how, training, folder=folder)
    with pytest.raises(ValueError, match=r"was written with lora\.rank = null, and now lora\.rank is 2"):
        self_verified_distillation(speaker, FEW, config, SHORT, folder=folder, lora=LoRAConfig(rank=2))
    other = replace(speaker, model=S.train_from(speaker, [([1], [2])], SHORT)[0].model)
    with pytest.raises(ValueError, match="was written with weights = "):
        self_verified_distillation(other, FEW, config, SHORT, folder=folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (folder / "round-1" / "questions-0.pt").write_bytes(b"not a block")
    with pytest.raises(ValueError, match=r"questions-0\.pt is not a block of candidates"):
        self_verified_distillation(speaker, FEW, config, SHORT, folder=folder)


# ---------------------------------------------------------------------------------------------------------------------
# Its parts


def test_first_valid_and_all_valid():
    accepted = torch.tensor([[False, True, True], [False, False, False], [True, False, True]])
    assert kept_cases(accepted, "first") == [(0, 1), (2, 0)]
    assert kept_cases(accepted, "all") == [(0, 1), (0, 2), (2, 0), (2, 2)]


@pytest.mark.parametrize(("judge", "rounds"), [("live", 2), ("frozen", 2)])
def test_who_draws_and_who_judges(speaker, monkeypatch, judge, rounds):
    draw_candidates, seen = S.draw_candidates, []

    def spy(author, judge, *args, **how):
        seen.append((author, judge))
        return draw_candidates(author, judge, *args, **how)

    monkeypatch.setattr(S, "draw_candidates", spy)
    found = self_verified_distillation(speaker, FEW, replace(CONFIG, n=2, rounds=rounds, judge=judge), SHORT)
    student = found[0].student
    assert seen[0] == (speaker, speaker)
    assert seen[1][0] is student and seen[1][1] is (student if judge == "live" else speaker)
    assert not torch.equal(found[0].candidates.samples.tokens, found[1].candidates.samples.tokens)


def test_replay_takes_turns_between_the_stages():
    calls = [Transcript(i, "facts", [i], torch.tensor([i])) for i in range(50)]
    calls += [Transcript(i, "cycle", [i], torch.tensor([i])) for i in range(100, 103)]
    config = replace(CONFIG, replay=0.5)
    chosen = replayed(calls, config, 20, seed=0)
    prompts = [prompt[0] for prompt, _ in chosen]
    assert len(prompts) == 10 and sum(i >= 100 for i in prompts) == 3 and len({*prompts}) == 10
    assert all(torch.equal(reply, torch.tensor(prompt)) for prompt, reply in chosen)
    few = [prompt[0] for prompt, _ in replayed(calls, config, 8, seed=0)]
    assert sum(i >= 100 for i in few) == 2
    assert few != [prompt[0] for prompt, _ in replayed(calls, config, 8, seed=1)]
    assert few == [prompt[0] for prompt, _ in replayed(calls[::-1], config, 8, seed=0)]  # whatever their order
    assert replayed(calls, replace(CONFIG, replay=0.0), 20, seed=0) == []


def test_replay_is_learned_beside_the_solutions(speaker, monkeypatch):
    fit, seen = S.fit, []
    monkeypatch.setattr(S, "fit", lambda model, data, *args, **how: seen.append(data) or fit(model, data, *args, **how))
    (found,) = self_verified_distillation(speaker, FEW, replace(CONFIG, replay=2.0), SHORT)
    (data,) = seen
    kept = len(found.kept)
    assert len(data) == 3 * kept
    first = [speaker.tokenizer.decode(torch.tensor(prompt)).split()[0] for prompt, _ in data]
    assert {*first[:kept]} == {"solve"} and {*first[kept:]} == {"ask", "check", "review"}


def test_adapters_are_merged_and_the_base_is_left_alone(speaker):
    before = weights(speaker)
    (found,) = self_verified_distillation(speaker, FEW, CONFIG, SHORT, lora=LoRAConfig(rank=2))
    after = weights(found.student)
    assert same(weights(speaker), before) and after.keys() == before.keys()
    changed = {name.split(".")[-2] for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "n is 0; it must be at least 1"), ({"rounds": 0}, "rounds is 0"), ({"block": 0}, "block is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"), ({"replay": -1.0}, "replay is -1.0"),
        ({"temperature": -1.0}, "temperature"),
        ({"keep": "best"}, "keep is 'best'; it must be one of 'first', 'all'"),
        ({"judge": "dead"}, "judge is 'dead'; it must be one of 'live', 'frozen'"),
    ],
)  # fmt: skip
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **settings)


def test_bad_input(speaker):
    def distill(speaker, questions):
        self_verified_distillation(speaker, questions, replace(CONFIG, n=2), SHORT)

    with pytest.raises(ValueError, match="there are no questions"):
        distill(speaker, [])
    with pytest.raises(ValueError, match=r"question 2 is question 0 again \('3 \+ 4"):
        distill(speaker, ["3 + 4", "4 + 3", "3 + 4"])
    with pytest.raises(ValueError, match="the template set 'none' has no role 'author'"):
        distill(replace(speaker, templates=Templates()), FEW)
    roles = speaker.templates.roles
    with pytest.raises(ValueError, match="the template set 'mute' has no stages"):
        distill(replace(speaker, templates=Templates("mute", roles)), FEW)
    never = {"cycle": speaker.templates.stage("cycle"), "never": Stage((), lambda question, candidate, replies: False)}
    strict = replace(speaker, templates=Templates("strict", roles, never))
    with pytest.raises(ValueError, match=r"round 1: no candidate was accepted: of 28 the static check rejected 0, then "
                       r"cycle \d+, never \d+ \(unread .*: 0 of \d+\); draw more"):  # fmt: skip
        distill(strict, FEW)
