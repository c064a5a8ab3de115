"""Tasks: the public files' lines become problems; what is wrong with a file is named by its line."""

import json
import tracemalloc

import pytest

from reference.evaluation.formats import FORMATS
from reference.evaluation.tasks import Task, parse_shard


@pytest.fixture
def write(tmp_path):
    def write(*lines):
        path = tmp_path / "task.jsonl"
        path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), encoding="utf-8")
        return path

    return write


LINES = {  # the public files' own fields -> what is in the prompt, and the answer
    "math500": ({"problem": "What is $1+1$?", "answer": "2", "unique_id": "test/a.json"}, "$1+1$", "2"),
    "gsm8k": ({"question": "How many?", "answer": "3 * 500 = 1500\n#### 1,500"}, "How many?", "1500"),
    "aime": ({"ID": "2024-I-1", "Problem": "Find m+n.", "Answer": 204}, "Find m+n.", "204"),
    "plain": ({"prompt": "Say so.", "answer": "so"}, "Say so.", "so"),
}
GPQA = {"Question": "Which?", "Correct Answer": "right", "Record ID": "rec1", **{
    f"Incorrect Answer {i}": f"wrong {i}" for i in (1, 2, 3)}}  # fmt: skip
HUMANEVAL = {"task_id": "HumanEval/0", "prompt": "def f(x):\n", "test": "def check(f):\n    assert f(1) == 2",
             "entry_point": "f", "canonical_solution": "    return x + 1"}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_public_lines_become_problems(name, write):
    line, words, answer = LINES[name]
    (problem,) = Task(write(line), name)
    assert words in problem.prompt and problem.answer == answer
    assert problem.id == next((line[key] for key in ("unique_id", "ID") if key in line), 0)


def test_choices_are_shuffled_by_seed_and_id(write):
    path = write(*({**GPQA, "Record ID": f"rec{i}"} for i in range(400)))
    letters = [problem.answer for problem in Task(path, "gpqa")]
    assert all(f"{letter}. right" in problem.prompt for letter, problem in zip(letters, Task(path, "gpqa")))
    assert all(70 < letters.count(letter) < 130 for letter in "ABCD")  # 100 each; 3.5 standard deviations
    assert letters != [problem.answer for problem in Task(path, "gpqa", seed=1)]
    turned = write(*({**GPQA, "Record ID": f"rec{i}"} for i in reversed(range(400))))
    assert letters == [problem.answer for problem in Task(turned, "gpqa")][::-1]  # not by place
    for answer in ("b", "B", 1):
        (problem,) = Task(write({"question": "?", "choices": ["a", "b", "c"], "answer": answer}), "gpqa")
        assert f"{problem.answer}. b" in problem.prompt


def test_code_has_its_tests_for_an_answer(write):
    (problem,) = Task(write(HUMANEVAL), "humaneval")
    assert problem.begin == "def f(x):\n" and problem.begin in problem.prompt
    assert problem.answer.startswith("def check") and problem.answer.endswith("check(f)\n")


def test_settings_say_what_the_problems_follow_from(write):
    lines = [{"prompt": f"{i}?", "answer": "1"} for i in range(5)]
    task = Task(write(*lines), limit=3)
    assert task.check() == task.settings["problems"] == 3 and [x.id for x in task] == [0, 1, 2]
    before = task.settings
    assert Task(write(*lines)).settings["task_sha256"] == before["task_sha256"]
    assert Task(write(*lines, {"prompt": "x", "answer": "y"})).settings["task_sha256"] != before["task_sha256"]


GOOD = {"prompt": "a?", "answer": "1"}
BAD = {
    "a broken line": ([GOOD, '{"prompt": "b'], "plain", r"line 2 is not JSON"),
    "no object": ([GOOD, "", "[1]"], "plain", r"line 3 is not an object but a list"),
    "no question": ([{"answer": "1"}], "plain", r"line 1: format 'plain' needs 'prompt' or 'problem' or 'question'"),
    "no answer": ([GOOD, {"prompt": "b?", "answer": None}], "plain", r"line 2: .* needs 'answer' or"),
    "an empty prompt": ([{"prompt": " ", "answer": "1"}], "plain", r"line 1: the prompt is empty"),
    "an id twice": ([{**GOOD, "id": "x"}, GOOD, {**GOOD, "id": "x"}], "plain", r"line 3: the id 'x' was there before"),
    "an id that is none": ([{**GOOD, "id": [1]}], "plain", r"line 1: the id \[1\]"),
    "columns of GPQA": ([GOOD], "gpqa", r"line 1: .*\"choices\""),
    "a wrong choice": ([{"question": "?", "choices": ["a", "b"], "answer": "C"}], "gpqa", r"one of the choices.*'C'"),
    "no tests": ([GOOD], "humaneval", r"line 1: .* needs 'test'"),
    "no problem": ([], "plain", r"has no problem"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named_by_its_line(name, write):
    lines, format, message = BAD[name]
    with pytest.raises(ValueError, match=message) as raised:
        Task(write(*lines), format).check()
    assert "\n" not in str(raised.value)


def test_bad_settings_and_shards_are_refused(tmp_path):
    with pytest.raises(ValueError, match=f"format is 'x'.*{'.*'.join(FORMATS)}"):
        Task("t", "x")
    with pytest.raises(ValueError, match="limit is 0"):
        Task("t", limit=0)
    with pytest.raises(FileNotFoundError):
        Task(tmp_path / "none").check()
    assert parse_shard("1/4") == (1, 4)
    for text in ("2/2", "1", "a/b", "-1/2", "1/", "0/0"):
        with pytest.raises(ValueError, match="i/n with i from 0"):
            parse_shard(text)


def test_ten_thousand_problems_are_streamed(write):
    path = write(*({"prompt": f"{i} " + "long " * 200, "answer": "1"} for i in range(10_000)))
    assert path.stat().st_size > 10e6
    next(iter(Task(path)))
    tracemalloc.start()
    assert sum(1 for _ in Task(path)) == 10_000
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()
