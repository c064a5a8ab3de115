"""The formats of the benchmarks that the four papers name: a line becomes a prompt, an answer and its grader."""

import base64
import json
import pickle
import zlib

import pytest

import reference.__main__ as command
from reference.evaluation.answers import truth_of
from reference.evaluation.code_grader import CodeLimits
from reference.evaluation.formats import FORMATS, reaches_24
from reference.evaluation.graders import make_grader
from reference.evaluation.tasks import Task


def read(format, *rows, folder):
    (file := folder / "task.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return list(Task(file, format))


def grade(format, problem, text):
    name = FORMATS[format].grader
    return make_grader(name, allow_code_execution=True, limits=CodeLimits(seconds=20)).__call__(problem, text).right


@pytest.mark.parametrize(
    ("format", "row", "answer", "right", "wrong"),
    [
        (
            "hmmt",
            {"problem_idx": 7, "problem": "q", "answer": "\\frac{1}{2}"},
            "\\frac{1}{2}",
            "\\boxed{0.5}",
            "\\boxed{2}",
        ),
        (
            "mmlu",
            {"question": "q", "subject": "anatomy", "choices": list("wxyz"), "answer": 2},
            "C",
            "\\boxed{C}",
            "\\boxed{B}",
        ),
        (
            "mmlu",
            {"question": "q", "choices": ["1", "2"], "answer": "B"},
            "B",
            "The answer is (B).",
            "The answer is (A).",
        ),
        (
            "prontoqa",
            {
                "id": "P",
                "context": "Every cat is a pet. Max is a cat.",
                "answer": "B",
                "options": ["A) True", "B) False"],
                "question": "Is the following statement true or false? Max is not a pet.",
            },
            "False",
            "\\boxed{False}",
            "\\boxed{True}",
        ),
        (
            "prontoqa",
            {
                "question": "Every cat is a pet. Max is a cat.",
                "query": "True or false: Max is a pet.",
                "answer": "True",
            },
            "True",
            "so it is \\boxed{\\text{true}}",
            "\\boxed{False}",
        ),
        (
            "prontoqa",
            {"context": "c", "question": "q", "options": ["A) False", "B) True"], "answer": "B"},
            "True",
            "**Answer: True**",
            "It is true or false.\nAnswer: False",
        ),
        (
            "prontoqa",
            {"question": "c", "query": "Prove: q", "answer": "False"},
            "False",
            "The answer is false, since cats are no dogs.",
            "The answer is true or false.",
        ),
        ("plain", {"question": "q", "answer": 1e-05}, "0.00001", "0.00001", "1"),
        ("plain", {"question": "q", "answer": 1e16}, "10000000000000000", "10,000,000,000,000,000", "116"),
        ("mmlu", {"question": "q", "choices": ["0", "1", "2"], "answer": 0}, "A", "\\boxed{A}", "\\boxed{B}"),
        (
            "game24",
            {"numbers": [4, 5, 6, 10]},
            "4 5 6 10",
            "\\boxed{(10 - 4) \\times 5 - 6 = 24}",
            "\\boxed{4 \\times 6}",
        ),
        ("game24", {"Puzzles": "1 5 5 5"}, "1 5 5 5", "Answer: 5 * (5 - 1/5) = 24", "\\boxed{5 * 5 - 1}"),
        (
            "hle",
            {"id": "h", "question": "q", "image": "", "answer_type": "multipleChoice", "answer": "D"},
            "D",
            "\\boxed{D}",
            "\\boxed{A}",
        ),
        (
            "hle",
            {"id": "h", "question": "q", "answer_type": "exactMatch", "answer": "$2^n$"},
            "$2^n$",
            "\\boxed{2^n}",
            "\\boxed{2}",
        ),
    ],
)
def test_a_line_and_what_is_right(format, row, answer, right, wrong, tmp_path):
    (problem,) = read(format, row, folder=tmp_path)
    assert problem.answer == answer and grade(format, problem, right) and not grade(format, problem, wrong)
    assert format == "plain" or ("\\boxed{}" in problem.prompt and "step by step" in problem.prompt)


def test_prompts_say_what_is_asked(tmp_path):
    row = {"question": "Which?", "choices": ["cat", "dog"], "answer": 1}
    assert "Which?\n\nA. cat\nB. dog\n" in read("mmlu", row, folder=tmp_path)[0].prompt  # in their order
    (problem,) = read("game24", {"numbers": [1, 2, 3, 4]}, folder=tmp_path)
    assert "1, 2, 3 and 4" in problem.prompt and "24" in problem.prompt
    facts = {"question": "Every cat is a pet.", "query": "True or false: A cat is a pet.", "answer": "True"}
    assert read("prontoqa", facts, folder=tmp_path)[0].prompt.startswith("Every cat is a pet.\n\nA cat is a pet.\n\n")
    assert read("alpacaeval", {"instruction": "Write."}, folder=tmp_path)[0].prompt == "Write."


def test_questions_with_a_picture_are_left_out(tmp_path):
    rows = [
        {"id": i, "question": "q", "answer_type": "exactMatch", "answer": "1", "image": image}
        for i, image in enumerate(("", "data:image/png;base64,AAAA", None))
    ]
    assert [problem.id for problem in read("hle", *rows, folder=tmp_path)] == [0, 2]
    assert Task(tmp_path / "task.jsonl", "hle").check() == 2


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{\\text{True}}", "True"), ("So it is false.\nFalse.", "False"), ("The answer is: **true**.", "True"),
        ("Answer: true/false", None), ("The answer is True or False", None), ("\\boxed{True and False}", None),
        ("It is true.", "True"), ("", None), ("False alarm, so nobody knows.", None), ("<think>Answer: True", None),
        ("Answer: True\n\\boxed{False}", "False"), ("Answer: trueish", None),
    ],
)  # fmt: skip
def test_one_of_two_answers(text, answer):
    assert truth_of(text) == answer


@pytest.mark.parametrize(
    ("expression", "right"),
    [
        ("(10 - 4) * 5 - 6", True),
        ("(10-4)×5−6", True),
        ("5 \\cdot (10 - 4) - 6", True),
        ("[10 - 4] * 5 - 6 = 24", True),
        ("\\frac{6}{1}", False),
        ("24", False),
        ("24 = (10 - 4) * 5 - 6", True),
        (r"\left(10 - 4\right)\left(5\right) - 6 = 24", True),
        ("5(10 - 4) - 6", True),
        ("24 = 24", False),
        ("4 * 6", False),
        ("4 + 5 + 6 + 10", False),
        ("(10 - 4) * 5 - 6 + 0", False),
        ("10 ** 4", False),
        ("(10 - 4) * 5 - -6", False),
        ("__import__('os')", False),
        ("(" * 150, False),
        ("", False),
        ("10 / (5 - 5) + 4 + 6", False),
        ("(10 - 4) * 5 - 6 = 25", True),  # what stands behind "=" is not read
        ("1065 - 4", False),
    ],
)
def test_who_makes_24(expression, right):
    assert reaches_24(expression, "4 5 6 10") is right


def cases(*pairs, kind="stdin"):
    return json.dumps([{"input": a, "output": b, "testtype": kind} for a, b in pairs])


def packed(text):
    return base64.b64encode(zlib.compress(pickle.dumps(text))).decode()


SUM = {
    "question_content": "Add.",
    "question_id": "abc",
    "starter_code": "",
    "metadata": "{}",
    "public_test_cases": cases(("1 2\n", "3\n")),
    "private_test_cases": packed(cases(("5 6\n", "11\n"), ("0 0\n", "0"))),
}
TWICE = {
    "question_content": "Double.",
    "question_id": "t",
    "starter_code": "class Solution:\n    def twice(self, xs):",
    "metadata": '{"func_name": "twice"}',
    "private_test_cases": "[]",
    "public_test_cases": cases(("[1, 2]", "[2, 4]"), ("[]", "[]"), kind="functional"),
}


@pytest.mark.parametrize(
    ("row", "program", "right"),
    [
        (SUM, "a, b = map(int, input().split())\nprint(a + b)", True),
        (
            SUM,
            "import sys\nif __name__ == '__main__':\n    print(sum(map(int, sys.stdin.read().split())))\n    exit()",
            True,
        ),
        (SUM, "import sys\nsys.stdout.buffer.write(b'%d\\n' % sum(map(int, sys.stdin.buffer.read().split())))", True),
        (SUM, "a, b = map(int, input().split())\nprint(float(a + b))", True),  # equal as numbers
        (SUM, "print(3)", False),
        (SUM, "a, b = map(int, input().split())\nprint(a + b)\nprint()\nprint(1)", False),
        (SUM, "input(); input()", False),
        (SUM, "def run(given):\n    return '3'", False),
        (SUM, "raise SystemExit", False),
        (SUM, "print(sum(map(int, open(0).read().split())))", True),
        (SUM, "import os\nprint(sum(map(int, os.read(0, 99).split())), flush=True)\nos._exit(0)", True),
        (SUM, "import os\nos.write(1, b'%d' % sum(map(int, input().split())))", True),
        (SUM, "print(sum(map(int, input().split())), flush=True)\n1 / 0", False),
        (SUM, "print(sum(map(int, sys.stdin.readline().split())))", True),  # sys is lent
        (SUM, "from __future__ import annotations\nprint(reduce(operator.add, map(int, input().split())))", True),
        (SUM, "print(pow(sum(map(int, input().split())), 1, 99))", True),  # Python's own pow, not math's
        (SUM, "import os\nfor i in range(3, 64):\n    try: os.write(i, b'x' * 99)\n    except OSError: pass", False),
        (
            TWICE,
            "class Solution:\n    def twice(self, xs: List[int]) -> List[int]:\n        return [2 * x for x in xs]",
            True,
        ),
        (SUM, "import os\nos._exit(0)", False),
        (TWICE, "class Solution:\n    def twice(self, xs):\n        return [2 * x for x in xs]", True),
        (TWICE, "class Solution:\n    def twice(self, xs):\n        return tuple(2 * x for x in xs)", True),
        (TWICE, "class Solution:\n    def twice(self, xs):\n        return xs + xs", False),
        (TWICE, "print(1)", False),
    ],
)
def test_programs_of_livecodebench(row, program, right, tmp_path):
    (problem,) = read("livecodebench", row, folder=tmp_path)
    assert problem.id == row["question_id"] and row["starter_code"] in problem.prompt
    assert grade("livecodebench", problem, f"Here it is.\n```python\n{program}\n```") is right


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("format", "row", "message"),
    [
        (
            "livecodebench",
            {**SUM, "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()},
            "to be tests",
        ),
        ("livecodebench", {**SUM, "private_test_cases": "@@"}, "to be tests"),
        ("livecodebench", {**SUM, "private_test_cases": "", "public_test_cases": ""}, "with a test"),
        ("livecodebench", {**TWICE, "metadata": "{}"}, "func_name"),
        ("livecodebench", {**TWICE, "metadata": "["}, "func_name"),
        ("livecodebench", {**TWICE, "metadata": '{"func_name": "f(); import os"}'}, "func_name"),
        ("game24", {"numbers": [1, 2]}, "needs four whole numbers"),
        ("game24", {"numbers": [1.5, 2, 3, 4]}, "needs four whole numbers"),
        ("game24", {"numbers": [-4, 2, 3, 4]}, "needs four whole numbers"),
        ("game24", {"puzzle": "1.5 2 3"}, "needs four whole numbers"),
        ("mmlu", {"question": "q", "choices": [3, 2, 1], "answer": 1}, "may mean several"),
        ("mmlu", {"question": "q", "choices": ["B", "C", "A"], "answer": "A"}, "may mean several"),
        ("mmlu", {"question": "q", "choices": ["a", "b"], "answer": True}, "to be one of the choices"),
        ("plain", {"question": "q", "answer": float("nan")}, "answer"),
        ("livecodebench", {**SUM, "public_test_cases": TWICE["public_test_cases"]}, "functional and stdin"),
        ("livecodebench", {**TWICE, "public_test_cases": cases(("[" * 9999, "1"), kind="functional")}, "func_name"),
        ("livecodebench", {**SUM, "private_test_cases": "[" * 99999}, "to be tests"),
        (
            "livecodebench",
            {**SUM, "private_test_cases": base64.b64encode(zlib.compress(b"\x80\x04\x8a\xff" + b"9" * 9)).decode()},
            "to be tests",
        ),
        ("prontoqa", {"context": "c", "question": "q", "answer": "C"}, "to be True or False"),
        ("mmlu", {"question": "q", "choices": ["a"], "answer": 0}, "of them"),
        ("mmlu", {"question": "q", "choices": ["a", "b"], "answer": 2}, "to be one of the choices"),
        ("hle", {"question": "q", "answer": "1"}, "answer_type"),
        ("alpacaeval", {"prompt": "q"}, "instruction"),
    ],
)
def test_what_is_missing_is_named(format, row, message, tmp_path, capsys):
    with pytest.raises(ValueError, match=message):
        read(format, row, folder=tmp_path)
    assert "run" not in capsys.readouterr().out


def test_alpacaeval_has_its_judge_s_file(tmp_path, capsys):
    rows = [
        {"instruction": "1 + 1 + 1", "output": "3", "dataset": "d"},
        {"instruction": "2 + 2", "output": "4", "dataset": "d"},
    ]
    (tmp_path / "alpaca_eval.json").write_text(json.dumps(rows))
    task = ["--task", str(tmp_path / "alpaca_eval.json"), "--format", "alpacaeval"]
    assert command.main(["evaluate", "sample", *task, "--max-new-tokens", "8", "-o", str(tmp_path / "a.jsonl")]) == 0
    assert "not graded" in capsys.readouterr().out
    assert command.main(["report", str(tmp_path / "a.jsonl"), "--alpaca-eval", str(tmp_path / "outputs.json")]) == 0
    outputs = json.loads((tmp_path / "outputs.json").read_text())
    assert [each["instruction"] for each in outputs] == ["1 + 1 + 1", "2 + 2"] and all(
        each["output"] for each in outputs
    )
    assert {each["generator"] for each in outputs} == {"toy sample"}


def test_the_paper_s_own_prompts(tmp_path):
    rows = [{"problem": "What is 1 + 1?", "answer": "2", "id": "a"}]
    (tmp_path / "math.jsonl").write_text(json.dumps(rows[0]))
    for format in ("math500", "aime"):
        (problem,) = Task(tmp_path / "math.jsonl", format, prompt_style="paper")
        assert problem.prompt == (
            "Can you solve the following math problem? What is 1 + 1? Please reason step by step, and put your final "
            "answer within \\boxed{{}}."
        )
    row = {
        "Question": "Which?\n\nNow.",
        "Correct Answer": "w",
        "id": "g",
        **{f"Incorrect Answer {i}": "xyz"[i - 1] for i in (1, 2, 3)},
    }
    (tmp_path / "gpqa.jsonl").write_text(json.dumps(row))
    (usual,), (paper,) = (Task(tmp_path / "gpqa.jsonl", "gpqa", prompt_style=style) for style in ("usual", "paper"))
    assert paper.answer == usual.answer and paper.prompt.startswith("Answer the following multiple choice question.")
    assert "'\\boxed{$LETTER}' (without quotes)" in paper.prompt and "\n\nWhich?\n\nNow.\n\nA) " in paper.prompt
    assert f"\n{usual.answer}) w" in paper.prompt and paper.prompt.count(") ") >= 4
    with pytest.raises(ValueError, match="prompt_style is 'paper'; for the format 'gsm8k' it must be usual"):
        Task(tmp_path / "math.jsonl", "gsm8k", prompt_style="paper")


def test_a_stub_is_gone_on_with(tmp_path):
    row = {
        "task_id": "H/0",
        "prompt": "def one():\n",
        "test": "def check(f):\n    assert f() == 1",
        "entry_point": "one",
    }
    (tmp_path / "code.jsonl").write_text(json.dumps(row))
    (problem,) = Task(tmp_path / "code.jsonl", "humaneval", prompt_style="bare")
    assert problem.prompt == problem.begin == "def one():\n"
    assert grade("humaneval", problem, "    return 1\n\ndef two():\n    return 2") and not grade(
        "humaneval", problem, "    pass"
    )
    (chat,) = Task(tmp_path / "code.jsonl", "humaneval", prompt_style="paper")
    assert "Complete this Python function" in chat.prompt
    assert FORMATS["humaneval"].stop == ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


def test_a_choice_may_have_paragraphs(tmp_path):
    row = {"question": "Which?", "choices": ["one\n\nmore", "two"], "answer": 0, "id": "g"}
    (tmp_path / "gpqa.jsonl").write_text(json.dumps(row))
    (paper,) = Task(tmp_path / "gpqa.jsonl", "gpqa", prompt_style="paper")
    first, second = ("one\n\nmore", "two") if paper.answer == "A" else ("two", "one\n\nmore")
    assert paper.prompt.endswith(f"\n\nWhich?\n\nA) {first}\nB) {second}")
