"""Graders: what is read from a response, and whether it is right."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from reference.evaluation import code_grader
from reference.evaluation.code_grader import CodeLimits, confinement, find_program, namespaces, run_program
from reference.evaluation.graders import GRADERS, Verdict, make_grader
from reference.evaluation.tasks import Problem

CASES = {  # grader -> (true answer, response, right, as it was read)
    "exact": [
        ("Paris", "It is Paris, so\nThe answer is:  paris.", True, "paris."),
        ("Paris", r"The answer is London. No: \boxed{Paris}", True, "Paris"),
        ("Paris", "London\nParis\n", True, "Paris"),
        ("Paris", "Paris or London", False, "Paris or London"),
        ("Paris", " \n", False, None),
        ("6", "+ 3 1 x 6 6 = 6 .", True, "6"),  # a number: as numeric
    ],
    "numeric": [
        ("1000", "so 1,000.0 of them", True, "1,000.0"),
        ("0.5", r"\boxed{\frac{1}{2}}", True, "1/2"),
        ("5", r"\boxed{x = 5} and 7 others", True, "5"),
        ("12", "3 + 9 = 12\n#### 12\n", True, "12"),
        ("12", "#### 12 apples of 13\n", False, "13"),
        ("12", "twelve", False, None),
        ("12", r"\boxed{n} of 12", False, None),  # a box without a number is not looked past
    ],
    "choice": [
        ("C", r"\boxed{C}", True, "C"),
        ("C", r"\boxed{\text{(C)}}", True, "C"),
        ("C", r"\boxed{\textbf{C. } 5}", True, "C"),
        ("C", "The answer is B? No, the answer is (C).", True, "C"),
        ("C", "**Answer:** C", True, "C"),
        ("C", r"\boxed{B}", False, "B"),
        ("C", "A clever question. The answer is a cat", False, None),
        ("C", "Cats", False, None),
    ],
    "math": [
        (r"\frac{1}{2}", r"thus \boxed{0.5}", True, "0.5"),
        ("(3, \\frac{\\pi}{2})", r"\boxed{\left( 3, \frac{\pi}{2} \right)}", True, r"\left( 3, \frac{\pi}{2} \right)"),
        ("x^2+2x+1", r"\boxed{(x+1)^2}", True, "(x+1)^2"),
        (r"2\sqrt{3}", r"\boxed{\sqrt{12}}", True, r"\sqrt{12}"),
        (r"\{1, 2\}", r"\boxed{\{2, 1\}}", True, r"\{2, 1\}"),
        (r"\text{Evelyn}", r"\boxed{\text{Evelyn}}", True, r"\text{Evelyn}"),
        ("2", r"\boxed{3}", False, "3"),
        ("2", "I give up", False, None),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_answers_are_read_and_compared(name):
    if name == "math":
        pytest.importorskip("math_verify", reason="the extra [eval] is not installed")
    grade = make_grader(name)
    for answer, text, right, read in CASES[name]:
        assert grade(Problem(0, "?", answer), text) == Verdict(right, read), text


def test_bad_graders_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=f"grader is 'x'.*{', '.join(GRADERS)}"):
        make_grader("x")
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ValueError, match=r"math-verify; pip install 'sharpening\[eval\]'"):
        make_grader("math")
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
