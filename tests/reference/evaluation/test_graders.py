"""Graders: what is read from a response, and whether it is right."""

import json
import os
import subprocess
import textwrap
import time
from pathlib import Path

import pytest

from reference.evaluation import code_grader
from reference.evaluation.code_grader import CodeLimits, confinement, find_program, namespaces, run_program
from reference.evaluation.formats import Problem
from reference.evaluation.graders import GRADERS, Verdict, make_grader

CASES = [json.loads(line) for line in Path(__file__).with_name("answers.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["exact", "numeric", "choice", "math", "truth"])
def test_answers_are_read_and_compared(name):
    grade = make_grader(name)
    cases = [case for case in CASES if case["grader"] == name]
    assert len(cases) > 10
    for case in cases:
        assert grade(Problem(0, "?", case["answer"]), case["text"]) == Verdict(case["right"], case["read"]), case


@pytest.mark.parametrize("text", [
    "The answer is " * 16_000, "\\" * 80_000, "1" * 80_000, "$" * 80_000, "-" * 80_000, "\\boxed{" * 20_000,
    "####" * 20_000,
    "$a" * 40_000, "$\\frac" * 20_000, "1,2" * 30_000, "answer: A" * 20_000, "\\(" * 40_000, "<think>" * 20_000,
    "\\boxed{" + "((" * 400 + "}", "\\boxed{" + "x^" * 400 + "}", "\\boxed{9^{9^{9^{9^{9^9}}}}}",
])  # fmt: skip
def test_hostile_texts_take_seconds_at_most(text):
    begin = time.process_time()
    for name, answer in (("exact", "x y"), ("numeric", "7"), ("choice", "A"), ("math", "7")):
        assert not make_grader(name)(Problem(1, "q", answer), text).right or "A" in text
    assert time.process_time() - begin < 8


def test_bad_graders_are_refused():
    with pytest.raises(ValueError, match=f"grader is 'x'.*{', '.join(GRADERS)}"):
        make_grader("x")
    with pytest.raises(ValueError, match=r"--allow-code-execution.*no security boundary"):
        make_grader("code")
    with pytest.raises(ValueError, match="'two' is no number"):
        make_grader("numeric")(Problem(0, "?", "two"), "2")
    with pytest.raises(ValueError, match="'two' is no letter"):
        make_grader("choice")(Problem(0, "?", "two"), "A")
    with pytest.raises(ValueError, match="seconds is 0"):
        run_program("", CodeLimits(seconds=0))


# ---------------------------------------------------------------------------------------------------------------------
# Code

BEGIN = "from typing import List\n\ndef helper(x):\n    return x\n\ndef total(xs: List[int]) -> int:\n    '''Sum.'''\n"
CODE = Problem(0, "", "def check(f):\n    assert f([1, 2]) == 3\n\ncheck(total)\n", BEGIN)


@pytest.mark.parametrize(("text", "right"), [
    ("Here:\n```python\ndef total(xs: List[int]) -> int:\n    return helper(sum(xs))\n```\nDone.", True),
    ("```\nwrong(\n```\nBetter:\n```python\n    return sum(xs)\n```", True),  # the last block, which goes on
    ("```python\ndef total(xs):\n    return sum(xs)\n```\nFor example:\n```python\n>>> total([])\n```", True),
    ("    return sum(xs)\n\ndef other(:", True),  # of a base model, which goes on for ever
    ("    return 4\n", False),
    ("", False),
])  # fmt: skip
def test_programs_are_found_and_run(text, right, capsys):
    verdict = make_grader("code", True, CodeLimits(seconds=5))(CODE, text)
    assert "no security boundary" in capsys.readouterr().err
    assert verdict.right == right and (verdict.answer is None) == (not text)


def test_what_is_no_program_is_none():
    assert find_program("no code") is None and find_program("", BEGIN) is None
    assert find_program("```python\nx = 1") == "x = 1"  # cut before its fence


LIMITS = CodeLimits(seconds=1.5, memory=2**28, processes=8, file_size=2**16)
NAUGHTY = {
    "runs for ever": ("while True: pass", "still running after 1.5 s"),
    "sleeps": ("import time; time.sleep(60)", "still running"),
    "eats memory": ("x = bytearray(2**29)", "MemoryError"),
    "leaves early": ("import os; os._exit(0)", "left before its tests had ended"),
    "leaves politely": ("raise SystemExit(0)", "SystemExit"),
    "fills a file": ("open('x', 'w').write('x' * 2**20)", "File too large"),
    "recurses": ("f = lambda: f()\nf()", "RecursionError"),
    "is no Python": ("def", "SyntaxError"),
    "is no text": ("x = '\udc80'\nassert x != '?'", "AssertionError"),
    "forks": (
        """
        import os, time
        made = 0
        for _ in range(40):
            try:
                if os.fork() == 0:
                    time.sleep(60)
            except OSError:
                break
            made += 1
        raise Exception(made < 8)
        """,
        "Exception: True",
    ),
}


@pytest.mark.parametrize("name", NAUGHTY)
def test_naughty_programs_end_and_are_wrong(name):
    source, why = NAUGHTY[name]
    begin = time.perf_counter()
    outcome = run_program(textwrap.dedent(source), LIMITS)
    assert not outcome.right and why in outcome.why
    assert time.perf_counter() - begin < 6


def test_a_program_that_prints_a_lot_is_not_wrong_for_it():
    assert run_program("for _ in range(100): print('x' * 10**5)", LIMITS).right


def test_a_program_starts_in_an_empty_folder_without_our_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET", "1")
    outcome = run_program("import os; raise Exception(os.getcwd(), os.listdir(), sorted(os.environ))", LIMITS)
    assert "SECRET" not in outcome.why and ", []," in outcome.why
    folder = outcome.why.split("'")[1]
    assert Path(folder).parent.name.startswith("sharpen-code-") and not Path(folder).parent.exists()


@pytest.mark.parametrize("readable", [True, False])
def test_writing_outside_its_folder_is_prevented_only_where_it_becomes_another_user(readable, tmp_path, monkeypatch):
    monkeypatch.setattr(code_grader, "readable_by_all", lambda: readable)
    if readable and os.geteuid() != 0:
        pytest.skip("only root can become another user")
    outcome = run_program(f"open({str(tmp_path / 'x')!r}, 'w').write('x')", LIMITS)
    assert outcome.right == (tmp_path / "x").exists() == (not readable)
    assert "PermissionError" in outcome.why or not readable
    assert "no security boundary" in confinement()


def test_there_is_no_network_where_the_system_allows_that():
    source = """
    import socket
    server = socket.socket()
    server.bind(('127.0.0.1', 0))
    server.listen()
    socket.create_connection(server.getsockname(), 1)
    """
    if "no network" not in namespaces()[1]:
        assert "open" in confinement()
        pytest.skip(f"here {namespaces()[1]}")
    assert "unreachable" in run_program(textwrap.dedent(source), LIMITS).why


def test_no_process_outlives_the_program_where_the_system_allows_that():
    if "outlives" not in namespaces()[1]:
        pytest.skip(f"here {namespaces()[1]}")
    mark = f"left-over-{time.time_ns()}"
    source = f"""
    import os, sys, time
    if os.fork() == 0:
        os.setsid()  # out of the process group
        os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(30)', {mark!r}])
    time.sleep(0.3)
    """
    assert run_program(textwrap.dedent(source), LIMITS).right
    time.sleep(0.1)
    alive = [line for line in subprocess.run(["ps", "ax"], capture_output=True, text=True).stdout.splitlines()
             if mark in line]  # fmt: skip
    assert not alive


def test_without_unshare_the_limits_hold(monkeypatch):
    monkeypatch.setattr(code_grader, "namespaces", lambda: ((), "the network is open"))
    assert run_program("import time", LIMITS).right
    for name in ("runs for ever", "eats memory", "fills a file"):
        assert not run_program(NAUGHTY[name][0], LIMITS).right
