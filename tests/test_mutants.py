"""The list of mistakes is well-formed, and the runner that plants them tells a caught one from the others."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

from tests import mutants
from tests.conftest import ROOT

MODULE = "def double(x):\n    return 2 * x\n\n\ndef one():\n    return 1\n"
TESTS = """import pytest
from module import double

def test_double():
    assert double(3) == 6

@pytest.mark.parametrize("x", [0, 2])
def test_weak(x):
    assert double(x) == x + x

def test_broken():
    assert double(3) == 7
"""


def entry(wrong: str = "3 * x", test: str = "test_module.py::test_double", text: str = "2 * x", **other: str) -> str:
    """One [[mutant]] of the tiny project."""
    row = {"file": "module.py", "text": text, "wrong": wrong, "why": f"{wrong} for {text}", **other}
    lines = [f"{name} = {value!r}" for name, value in row.items()]
    return "\n".join(["[[mutant]]", *lines, f"tests = [{test!r}]", ""])


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "tests").mkdir()
    (tmp_path / "module.py").write_text(MODULE)
    (tmp_path / "test_module.py").write_text(TESTS)
    (tmp_path / "test_uncollectable.py").write_text("import no_such_module\n")
    return tmp_path


def planted(project: Path, *entries: str, only: tuple[str, ...] = ()) -> int:
    """The runner's exit status; it must leave the project as it was."""
    (project / mutants.LIST).write_text("\n".join(entries))
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    status = mutants.main(["--jobs", "2", *(("--only", *only) if only else ())], project)
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before
    return status


def test_all_caught(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [entry(), entry("4 * x", "test_module.py::test_weak[2]"), entry("x * 2")]
    assert planted(project, *entries, only=("3 *", "4 *")) == 0  # in turn on one copy or on two
    out = capsys.readouterr().out
    assert out.count("caught   ") == 2 and out.endswith("2 planted, 2 caught, 0 survived\n")
    assert "module.py: 3 * x for 2 * x" in out


def test_what_is_not_caught(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert planted(project, entry(), entry("x * 2"), entry("2 * * x")) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines[:3]) == ["BROKEN", "SURVIVED", "caught"]
    assert "SURVIVED: module.py: '2 * x' -> 'x * 2': 1 passed" in "\n".join(lines[3:])
    assert lines[-1] == "3 planted, 1 caught, 1 survived, 1 broken"


def test_a_test_that_is_too_slow(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mutants, "LIMIT", 0.1)
    monkeypatch.setattr(mutants, "SLOW", 0.05)
    assert planted(project, entry()) == 1
    assert capsys.readouterr().out.endswith("1 planted, 0 caught, 0 survived, 1 slow\n")


@pytest.mark.parametrize(
    ("tests", "told"),
    [
        (["test_module.py::test_double", "test_module.py::test_broken"], "FAILED test_module.py::test_broken"),
        (["test_uncollectable.py"], "ERROR test_uncollectable.py"),
        (["test_module.py::test_missing"], "test_module.py::test_missing"),
    ],
)
def test_a_test_that_fails_anyway(
    project: Path, capsys: pytest.CaptureFixture[str], tests: list[str], told: str
) -> None:
    assert planted(project, *(entry(f"{i} + x", test) for i, test in enumerate(tests))) == 2
    out = capsys.readouterr().out
    assert told in out and "test_double" not in out and "planted" not in out


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (entry(text="return "), "entry 2 (module.py, '3 * x for return '): its text occurs 2 times in the file"),
        (entry(text="5 * x"), "its text occurs 0 times in the file, not once: '5 * x'"),
        (entry("2 * x"), "wrong must differ from it"),
        (entry(file="none.py"), "there is no file 'none.py'"),
        (entry(test="none.py::test_double"), "there is no file 'none.py'"),
        (entry(why=""), "why must be one line"),
        (entry().replace("why", "because"), "its fields are file, text, wrong, because, tests; they must be file"),
        (entry().replace("['test_module.py::test_double']", "[3]"), "and all else a string"),
        (entry().replace("['test_module.py::test_double']", "[]"), "tests must be a list of at least one"),
        ("[[mutant", "tests/mutants.toml: "),
    ],
)
def test_bad_input_is_one_line(project: Path, capsys: pytest.CaptureFixture[str], wrong: str, told: str) -> None:
    assert planted(project, entry(), wrong) == 2
    captured = capsys.readouterr()
    assert told in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_nothing_to_plant(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert planted(project, entry(), only=("no such word",)) == 2
    assert capsys.readouterr().err == "0 entries and 2 jobs; there must be at least one of each\n"


def test_the_copy_has_what_git_has_or_would_have(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (project / ".venv").mkdir()
    (project / ".venv" / "big").touch()
    (project / "ignored").touch()
    (project / ".gitignore").write_text("ignored\n.venv/\n")
    everything = {"module.py", "test_module.py", "test_uncollectable.py", ".gitignore"}
    for name, files in (("plain", everything | {"ignored"}), ("git", everything)):
        if name == "git":
            subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
        copy = tmp_path_factory.mktemp("copies") / name
        mutants.copy_tree(project, copy)
        assert {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()} == files


# ---------------------------------------------------------------------------------------------------------------------
# The list


def test_every_entry_is_well_formed() -> None:
    """As `load` sees to it; and no two are the same, the wrong text compiles, and the tests exist."""
    listed = mutants.load()
    assert len({(mutant.file, mutant.text, mutant.wrong) for mutant in listed}) == len(listed) > 0
    for mutant in listed:
        if mutant.file.endswith(".py"):
            source = (ROOT / mutant.file).read_text(encoding="utf-8").replace(mutant.text, mutant.wrong)
            compile(source, mutant.file, "exec")
        for test in mutant.tests:
            file, _, name = test.partition("[")[0].partition("::")
            assert not name or name in functions(file), f"{mutant.file}, {mutant.why}: there is no {test}"


@functools.cache
def functions(file: str) -> set[str]:
    """The names of its test functions. (No test of this repository is in a class.)"""
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_it_runs_from_the_command_line() -> None:
    command = [sys.executable, "-m", "tests.mutants", "--only", "no such word"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("0 entries"), done
