"""Numbers that are worth reporting: pass@k, intervals, answers. Runs of the toy checkpoint that are killed, resumed,
sharded and merged."""

import dataclasses
import itertools
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from reference.evaluation.answers import number_of, same_number, same_text
from reference.evaluation.evaluate import evaluate
from reference.evaluation.graders import make_grader
from reference.evaluation.report import report
from reference.evaluation.results import Results, merge
from reference.evaluation.statistics import accuracy, pass_at_k, win_rate
from reference.evaluation.tasks import Task, parse_shard
from reference.power_sampling import PowerConfig, power_sample
from reference.text.text_model import TextModel
from tests.conftest import ROOT
from theory.best_of_n import best_of_n_law
from toy.relay import make_problems


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    for n, correct in ((5, 0), (5, 2), (6, 3), (4, 4)):
        for k in range(1, n + 1):
            subsets = list(itertools.combinations([1] * correct + [0] * (n - correct), k))
            assert pass_at_k(n, correct, k) == pytest.approx(np.mean([any(subset) for subset in subsets]), abs=1e-15)
    for n, correct, k in ((5, 2, 6), (5, 6, 1), (5, 2, 0)):
        with pytest.raises(ValueError, match="needs 1 <= k <= n"):
            pass_at_k(n, correct, k)


@pytest.mark.parametrize(("k", "n"), [(0, 7), (7, 7), (3, 10), (130, 200), (1999, 2000)])
def test_right_or_wrong_scores_get_the_exact_binomial_interval(k, n):
    mean, low, high = accuracy([1.0] * k + [0.0] * (n - k))
    exact = binomtest(k, n).proportion_ci(0.95, "exact")
    assert (mean, low, high) == pytest.approx((k / n, exact.low, exact.high), abs=1e-9)


def test_shares_get_an_interval_of_their_mean():
    scores = np.random.default_rng(0).beta(2, 3, 400)
    mean, low, high = accuracy(scores)
    width = 1.96 * scores.std() / 20
    assert mean == pytest.approx(scores.mean())
    assert (low, high) == pytest.approx((mean - width, mean + width), abs=0.15 * width)
    with pytest.raises(ValueError, match="at least one score"):
        accuracy([])
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        accuracy([0.5, 2.0])


def test_a_win_rate_counts_ties_half():
    assert win_rate([[1.0, 3.0], [0.0]], [[2.0], [0.0, 1.0, -1.0]]) == 0.5 * (0.5 + 0.5)
    assert win_rate([[1.0]], [[1.0 + 1e-7]]) == 0.5 and win_rate([[1.0]], [[1.0 + 1e-5]]) == 0.0
    for ours, base in (([], []), ([[1.0]], []), ([[]], [[1.0]])):
        with pytest.raises(ValueError, match="a win rate needs"):
            win_rate(ours, base)


@pytest.mark.parametrize("n", [1, 2, 5, 50])
def test_best_of_n_wins_as_often_as_its_law_says(n):
    """Σ π_N(y) (F(r_y−) + π{r = r_y}/2), from its exact law; below N/(N + 1), nearly met without large ties."""
    rng = np.random.default_rng(n)
    rates = []
    for k in (3, 8, 400):
        probs = rng.dirichlet(np.full(k, 5.0))
        rewards = np.log(probs)
        law = best_of_n_law(probs, rewards, n)
        wins = np.array([[win_rate([[a]], [[b]]) for b in rewards] for a in rewards]) if k < 100 else (
            (rewards[:, None] > rewards) + 0.5 * (rewards[:, None] == rewards))  # fmt: skip
        rates.append(float(law @ wins @ probs))
        assert rates[-1] <= n / (n + 1) + 1e-12
    assert rates[-1] >= 0.98 * n / (n + 1)


def test_answers_are_found_and_compared():
    assert number_of(r"so 4, no: \boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    assert number_of("first 3 and then -1,234.5.") == "-1,234.5"
    assert number_of("none") is None
    assert same_text(" $x + 1$ ", "X+1.") and not same_text("x", "y") and not same_text(None, "None")
    for given, answer in (("1,000", "1000.0"), ("1/2", "0.5"), ("-3", "-3.0")):
        assert same_number(given, answer)
    for given, answer in ((None, "1"), ("12", "1.2"), ("1/0", "1"), ("", "0")):
        assert not same_number(given, answer)


# ---------------------------------------------------------------------------------------------------------------------
# Runs of the toy checkpoint, by power sampling. This file is also the program that is killed.

CONFIG = PowerConfig(alpha=4.0, block=12, steps=3, max_new_tokens=24)
PROBLEMS = 50


def run_toy(task, out, shard="0/1", batch=5, pause=0.0):
    speaker = TextModel.from_pretrained(ROOT / "toy" / "checkpoint")

    def power(questions, keys):
        time.sleep(float(pause))
        prompts = [speaker.prompt("author", question=question) for question in questions]
        drawn = power_sample(speaker.model, prompts, CONFIG, stop_ids=speaker.stop_ids, samples_per_prompt=2, keys=keys)
        return [
            {"responses": [{"text": speaker.tokenizer.decode(x.tokens), "tokens": x.tokens.tolist(),
                            "logp": x.logp.tolist(), "finished": x.finished} for x in samples],
             "cost": dataclasses.asdict(cost)} for samples, cost in zip(drawn.samples, drawn.costs)
        ]  # fmt: skip

    settings = {"model": "toy", "method": "power", **dataclasses.asdict(CONFIG), "batch": batch, **Task(task).settings}
    with Results(out, settings, parse_shard(shard)) as results:
        evaluate(power, Task(task), make_grader("numeric"), results, batch=batch)
    return out


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A task, and the results of one uninterrupted run."""
    folder = tmp_path_factory.mktemp("toy")
    task = folder / "task.jsonl"
    lines = [{"id": x.id, "prompt": x.question, "answer": x.answer} for x in make_problems(PROBLEMS, seed=7)]
    task.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return task, run_toy(task, folder / "whole.jsonl")


def assert_same_results(path, whole):
    """Ids, tokens and verdicts are equal, log-probabilities within 1e-5."""
    ours, theirs = ([json.loads(line) for line in x.read_text().splitlines()[1:]] for x in (path, whole))
    assert [x["id"] for x in ours] == [x["id"] for x in theirs] and len(ours) == PROBLEMS
    for a, b in zip(*([r for x in results for r in x["responses"]] for results in (ours, theirs))):
        for name in ("tokens", "answer", "right", "finished", "text"):
            assert a[name] == b[name]
        assert np.allclose(a["logp"], b["logp"], rtol=0, atol=1e-5)


def test_a_killed_and_resumed_run_is_the_uninterrupted_one(toy, tmp_path):
    task, whole = toy
    out = tmp_path / "killed.jsonl"
    module = "tests.reference.evaluation.test_evaluation"
    command = [sys.executable, "-m", module, task, out, "pause=0.2"]  # the pause: for us
    process = subprocess.Popen([*map(str, command)], cwd=ROOT)
    deadline = time.monotonic() + 90
    while not out.exists() or out.read_bytes().count(b"\n") <= 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.6))  # anywhere in a batch
    process.kill()
    assert process.wait() == -9, "it had ended before it was killed"
    assert 5 <= out.read_bytes().count(b"\n") - 1 < PROBLEMS
    assert_same_results(run_toy(task, out), whole)


def test_merged_shards_are_the_uninterrupted_run(toy, tmp_path):
    task, whole = toy
    a, b = (run_toy(task, tmp_path / f"{i}.jsonl", f"{i}/2") for i in (0, 1))
    merge([a, b], tmp_path / "merged.jsonl")
    assert_same_results(tmp_path / "merged.jsonl", whole)
    (row,), (other,) = report([b, a]).rows, report([whole]).rows
    assert {**row, "path": other["path"]} == other
    assert 0.2 < row["accuracy"][0] < 1.0


def test_results_do_not_depend_on_the_batch(toy, tmp_path):
    task, whole = toy
    assert_same_results(run_toy(task, tmp_path / "x.jsonl", batch=16), whole)


def test_other_random_numbers_are_seen(toy, tmp_path, monkeypatch):
    """The mutant: random numbers by place in the batch, as if a resumed run's began anew."""
    task, whole = toy
    monkeypatch.setitem(globals(), "power_sample", lambda *a, keys, **b: power_sample_(*a, **b))
    with pytest.raises(AssertionError):
        assert_same_results(run_toy(task, tmp_path / "x.jsonl"), whole)


power_sample_ = power_sample

if __name__ == "__main__":
    torch.set_num_threads(1)
    run_toy(Path(sys.argv[1]), Path(sys.argv[2]), **dict(argument.split("=") for argument in sys.argv[3:]))
