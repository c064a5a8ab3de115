"""Programs in responses: how they are found, that their tests judge them, and that they cannot judge themselves."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from reference.evaluation import code_grader
from reference.evaluation.code_grader import CodeLimits, confinement, find_program, run_program
from reference.evaluation.formats import Problem
from reference.evaluation.graders import make_grader
from tests.conftest import ROOT

BEGIN = "def add(a, b):\n    '''Sum.'''\n"
TESTS = "def check(f):\n    assert f(1, 2) == 3\n    assert f(-1, 1) == 0\n\ncheck(add)\n"
LIMITS = CodeLimits(seconds=4)
RESPONSES = {
    case["name"]: case for case in map(json.loads, Path(__file__).with_name("programs.jsonl").read_text().splitlines())
}
SOURCES = [*map(json.loads, Path(__file__).with_name("sources.jsonl").read_text().splitlines())]
CALLS = [tuple(json.loads(line).values()) for line in Path(__file__).with_name("calls.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", RESPONSES)
def test_a_program_is_found_and_judged(name):
    case = RESPONSES[name]
    assert make_grader("code", True, LIMITS)(Problem(1, "", TESTS, BEGIN), case["text"]).right == case["right"]


@pytest.mark.parametrize(("source", "tests"), CALLS)
def test_tests_may_call_whatever_a_program_defines(source, tests):
    assert run_program(source, LIMITS, tests).right
    assert not run_program(source, LIMITS, tests + "\nassert False").right


FORGERIES = [name for name, case in RESPONSES.items() if not case["right"]]


@pytest.mark.parametrize("confined", ["no namespaces", "root without privileges"])
def test_no_verdict_is_forged_where_there_is_less_confinement(confined, monkeypatch):
    if confined == "no namespaces":
        monkeypatch.setattr(code_grader, "namespaces", lambda: ((), "the network is open"))
    else:
        monkeypatch.setattr(code_grader, "readable_by_all", lambda: False)
    for name in FORGERIES:
        test_a_program_is_found_and_judged(name)


def test_a_program_that_is_too_long_is_not_run():
    outcome = run_program("x" * 200_000)
    assert not outcome.right and outcome.why == "the program has 200,000 characters; at most 100,000 are run"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to lose")
def test_root_loses_its_privileges_for_good(monkeypatch):
    monkeypatch.setattr(code_grader, "readable_by_all", lambda: False)
    source = """
import subprocess, sys
code = "print(open('/proc/self/status').read())"
status = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
assert int(lines["CapEff"], 16) == int(lines["CapBnd"], 16) == 0 and int(lines["NoNewPrivs"]) == 1, lines
"""
    assert run_program(source, CodeLimits(seconds=10)).right
    assert "cannot regain" in confinement()


def test_a_program_ends_with_the_evaluation_and_its_folder_is_swept(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    mark = f"mark_{time.time_ns()}"
    code = (
        f"from reference.evaluation.code_grader import *; run_program('{mark} = 1\\nwhile True: pass', CodeLimits(60))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    for _ in range(200):
        if any(tmp_path.glob("sharpen-code-*/work")):
            break
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)
    listed = subprocess.run(["ps", "axww", "-o", "pid,args"], capture_output=True, text=True, check=True).stdout
    assert "code_runner" not in listed and str(tmp_path) not in listed
    assert not [line for line in listed.splitlines() if "PR_SET_PDEATHSIG" in line]
    assert any(tmp_path.glob("sharpen-code-*"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    code_grader.sweep.cache_clear()
    assert run_program("", LIMITS).right and not any(tmp_path.glob("sharpen-code-*"))
    code_grader.sweep.cache_clear()


def of_kind(kind):
    found = [tuple(each.values())[1:] for each in SOURCES if each["kind"] == kind]
    return found if len(found[0]) > 1 else [text for (text,) in found]


@pytest.mark.parametrize(("source", "tests"), of_kind("forged"))
def test_what_a_program_calls_by_python_s_own_names_tests_do_not_see(source, tests):
    assert not run_program(source, LIMITS, tests).right


@pytest.mark.parametrize(("source", "tests"), of_kind("right"))
def test_programs_may_hold_anything(source, tests):
    outcome = run_program(source, LIMITS, tests)
    assert outcome.right, outcome.why


@pytest.mark.parametrize("text", of_kind("add"))
def test_blocks_as_people_write_them(text):
    program = find_program(text, "def add(a, b):\n")
    assert program is not None and run_program(program, LIMITS, "assert add(1, 2) == 3").right


@pytest.mark.parametrize("text", of_kind("solution"))
def test_programs_without_a_beginning(text):
    program = find_program(text)
    assert program is not None and run_program(program, LIMITS, "assert Solution().f(1) == 2").right


@pytest.mark.parametrize("answer", ["7", "", "Paris", "x +", "'assert'"])
def test_an_answer_that_tests_nothing_is_refused(answer):
    with pytest.raises(ValueError, match="grader 'code' needs tests, which fail where a program is wrong"):
        make_grader("code", True)(Problem(0, "?", answer), "```python\nx = 1\n```")
