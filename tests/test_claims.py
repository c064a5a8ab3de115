"""The list of claims, the markers on the tests, and CLAIMS.md say the same; and the machinery that sees to it works."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CLAIMS_MD, ROOT, Claim, cells, distance, load_claims, parse, show


def marked_tests(path: Path, root: Path = ROOT) -> dict[str, tuple[set[str], bool]]:
    """Node id -> (ids of its claim markers, whether it shows an AssertionError being raised) of each test in a file.

    By parsing, so that the answer does not depend on which tests a run selects. Markers must therefore be decorators
    with a literal id; any other use of `mark.claim` raises ValueError.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: dict[str, tuple[set[str], bool]] = {}
    uses = sum(isinstance(node, ast.Attribute) and ast.unparse(node).endswith("mark.claim") for node in ast.walk(tree))
    scopes = [(path.relative_to(root).as_posix(), tree)]
    scopes += [(f"{scopes[0][0]}::{node.name}", node) for node in tree.body if isinstance(node, ast.ClassDef)]
    for prefix, scope in scopes:
        for test in scope.body:
            if not (isinstance(test, ast.FunctionDef) and test.name.startswith("test_")):
                continue
            ids = [re.fullmatch(r"pytest\.mark\.claim\('(\w+)'\)", ast.unparse(node)) for node in test.decorator_list]
            claims = [match[1] for match in ids if match]
            uses -= len(claims)
            found[f"{prefix}::{test.name}"] = (set(claims), "pytest.raises(AssertionError" in ast.unparse(test))
    if uses:
        raise ValueError(f'{path}: write each claim as a decorator @pytest.mark.claim("T6") of a test function')
    return found


def all_marked_tests() -> dict[str, tuple[set[str], bool]]:
    return {k: v for path in sorted((ROOT / "tests").rglob("test_*.py")) for k, v in marked_tests(path).items()}


def mismatches(claims: list[Claim], tests: dict[str, tuple[set[str], bool]]) -> list[str]:
    """What the list and the markers disagree on, one sentence each."""
    problems = [f"{claim.id} is listed twice" for claim in claims if sum(claim.id == c.id for c in claims) > 1]
    listed: dict[str, set[str]] = {}
    for claim in claims:
        problems += [f"{claim.id} has no {name}" for name, value in vars(claim).items() if not value]
        for test in {*claim.tests, *claim.mutants}:
            listed.setdefault(test, set()).add(claim.id)
            if test not in tests:
                problems.append(f"{claim.id} lists {test}, which does not exist")
            elif claim.id not in tests[test][0]:
                problems.append(f"{claim.id} lists {test}, which does not carry its marker")
        problems += [
            f"{claim.id} lists the mutant {test}, which has no pytest.raises(AssertionError)"
            for test in claim.mutants
            if test in tests and not tests[test][1]
        ]
    for test, (marks, _) in tests.items():
        unlisted = sorted(marks - listed.get(test, set()))
        problems += [f"{test} is marked {mark}, which does not list it" for mark in unlisted]
    return problems


def stale(text: str, claims: list[Claim]) -> list[str]:
    """The ids whose row in CLAIMS.md is missing, out of place, superfluous, or unlike the list."""

    def fixed(row: list[str]) -> tuple[str, ...]:  # all but what is measured, and the status
        return (*row[:4], *row[5:7])

    rows, expected = [fixed(row) for row in parse(text)], [fixed(cells(claim, {}, "")) for claim in claims]
    if rows == expected:
        return []
    return sorted({row[0] for row in {*rows} ^ {*expected}}) or ["order"]


def test_list_and_markers_agree() -> None:
    claims, tests = load_claims(), all_marked_tests()
    assert claims and any(marks for marks, _ in tests.values())
    assert mismatches(claims, tests) == []


def test_claims_md_is_the_list() -> None:
    assert CLAIMS_MD.exists(), "run `make claims`"
    assert stale(CLAIMS_MD.read_text(encoding="utf-8"), load_claims()) == [], "run `make claims`"


GOOD = Claim("T1", "a ≤ b", "paper", "proved", ["tests/test_a.py::test_x"], ["tests/test_a.py::test_y"])
GOOD_TESTS = {"tests/test_a.py::test_x": ({"T1"}, False), "tests/test_a.py::test_y": ({"T1"}, True)}


@pytest.mark.parametrize(
    ("change", "tests", "problem"),
    [
        ({}, {**GOOD_TESTS, "tests/test_a.py::test_z": ({"T9"}, False)}, "test_z is marked T9, which does not list it"),
        ({}, {**GOOD_TESTS, "tests/test_a.py::test_x": (set(), False)}, "test_x, which does not carry its marker"),
        ({}, {"tests/test_a.py::test_y": ({"T1"}, True)}, "test_x, which does not exist"),
        ({}, {**GOOD_TESTS, "tests/test_a.py::test_y": ({"T1"}, False)}, "no pytest.raises"),
        ({"mutants": []}, GOOD_TESTS, "has no mutants"),
        ({"tests": []}, GOOD_TESTS, "has no tests"),
        ({"statement": ""}, GOOD_TESTS, "has no statement"),
    ],
)
def test_every_mismatch_is_found(change: dict, tests: dict, problem: str) -> None:
    assert mismatches([GOOD], GOOD_TESTS) == []
    assert any(problem in found for found in mismatches([Claim(**{**vars(GOOD), **change})], tests))
    assert mismatches([GOOD, GOOD], GOOD_TESTS)  # listed twice


def test_markers_that_parsing_would_miss_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "test_a.py"
    path.write_text('@pytest.mark.claim("T1")\n@pytest.mark.claim("T2")\ndef test_x(): pass\ndef test_y(): pass\n')
    assert marked_tests(path, tmp_path) == {
        "test_a.py::test_x": ({"T1", "T2"}, False),
        "test_a.py::test_y": (set(), False),
    }
    for source in ('pytestmark = pytest.mark.claim("T1")', "@pytest.mark.claim(ID)\ndef test_x(): pass"):
        path.write_text(source)
        with pytest.raises(ValueError, match="decorator"):
            marked_tests(path, tmp_path)


def test_stale_rows_are_found() -> None:
    def text(*claims: Claim) -> str:
        return "\n".join("| " + " | ".join(cells(claim, {}, "holds")) + " |" for claim in claims)

    other = Claim(**{**vars(GOOD), "id": "T2", "statement": "KL(p|q) ≥ 0"})  # a cell with the table's own separator
    assert stale(text(GOOD, other), [GOOD, other]) == []
    assert stale(text(GOOD), [GOOD, other]) == ["T2"]
    assert stale(text(GOOD, other), [GOOD]) == ["T2"]
    assert stale(text(other, GOOD), [GOOD, other]) == ["order"]
    for change in ({"statement": "a < b"}, {"source": "other"}, {"kind": "trained"}, {"tests": []}, {"mutants": []}):
        assert stale(text(GOOD), [Claim(**{**vars(GOOD), **change})]) == ["T1"]


def test_numbers_do_not_depend_on_the_machine() -> None:
    assert [show(x) for x in (0.0, -3e-17, 9.9e-12, 1.004e-11, 0.123456, 82955, 1234567.8)] == [
        "< 1e-11", "< 1e-11", "< 1e-11", "1e-11", "0.123", "82955", "1.23e+06",
    ]  # fmt: skip
    assert distance(0.9, 1) < distance(1.2, 1) < distance(0.1, 1)
    assert distance(1e-13, 0) > distance(1e-16, 0)


WORLD = """
import pytest

@pytest.mark.claim("T1")
@pytest.mark.parametrize("x", [0.25, 0.5, 0.125])
def test_x(x, measured):
    measured("distance", x, 1.0)
    measured(3, 4)
    assert x <= 1

@pytest.mark.claim("T1")
def test_y():
    with pytest.raises(AssertionError):
        assert 2 <= 1

@pytest.mark.claim("T2")
def test_fails(): assert {two_holds}

@pytest.mark.claim("T3")
def test_skipped(): pytest.skip("no tool | here")

@pytest.mark.claim("P1")
@pytest.mark.slow
def test_slow(): pass

def test_without_a_claim(measured): measured(1, 2)
"""

LIST = "".join(
    f'[[claim]]\nid = "{id}"\nstatement = "s"\nsource = "p"\nkind = "proved"\n'
    f"tests = ['tests/test_a.py::{test}']\nmutants = ['tests/test_a.py::{mutant}']\n"
    for id, test, mutant in [
        ("P1", "test_slow", "test_slow"),
        ("T3", "test_skipped", "test_y"),
        ("T2", "test_fails", "test_fails"),
        ("T1", "test_x", "test_y"),
    ]
)


def test_a_run_writes_what_happened_or_nothing(tmp_path: Path) -> None:
    """The machinery as a whole, on a copy of conftest.py with four claims: one holds, one fails, two do not run."""
    for folder in ("tests", "theory"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests")
    (tmp_path / "theory" / "claims.toml").write_text(LIST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  claim\n  slow\n")
    target = tmp_path / "CLAIMS.md"

    def run(*args: str, two_holds: bool = False) -> tuple[int, str]:
        (tmp_path / "tests" / "test_a.py").write_text(WORLD.format(two_holds=two_holds))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", *args]
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # plugins take most of the time
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout

    code, output = run("-m", "claim and not slow", "--write-claims", "--deselect", "tests/test_a.py::test_x[0.5]")
    assert code != 0 and not target.exists() and "T1: tests/test_a.py::test_x[0.5]" in output
    code, output = run("-m", "claim and not slow", "--write-claims", "tests/test_a.py::test_x")
    assert code != 0 and not target.exists()

    code, output = run("-m", "claim and not slow", "--write-claims")
    assert code == 1 and "CLAIMS.md written: 4 claims" in output
    rows = {row[0]: row for row in parse(target.read_text())}
    assert [*rows] == ["T1", "T2", "T3", "P1"]
    assert rows["T1"][4] == "distance: 0.5 (bound 1)<br>3 (bound 4)"  # the case nearest its bound
    assert [row[7] for row in rows.values()] == [
        "holds",
        "FAILS",
        "holds where run; not run (test_skipped: no tool \\| here)",
        "not run (test_slow: marked slow)",
    ]
    assert list(tmp_path.glob("*.tmp")) == []

    run("-m", "claim", "--write-claims", two_holds=True)
    assert [row[7] for row in parse(target.read_text())][1::2] == ["holds", "holds"]
    code, output = run("-k", "without_a_claim")
    assert code == 1 and "carries no @pytest.mark.claim" in output
