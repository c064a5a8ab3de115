"""Who may import whom (DESIGN §1): read from the source of every file, so that no import has to run to be seen."""

import ast
import inspect
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reference.pages import PAGES
from tests.conftest import ROOT

TORCH_SIDE = {"torch", "numpy", "tokenizers", "safetensors", "jinja2", "tqdm", "huggingface_hub"}
ALLOWED = {  # package -> what its files may import besides the standard library; None = anything
    "theory": {"theory", "numpy", "scipy"},
    "reference": {"reference", *TORCH_SIDE},
    "toy": {"toy", "reference", *TORCH_SIDE},
    "figures": None,
    "tests": None,
}
ROOMS = {"reference/cli": {"tyro", "lm_eval"}}  # what a room may import besides; so the algorithms do without it
LAZY = {
    "reference": {"matplotlib", "math_verify"},
    "toy": {"gguf"},
}  # only inside a function: nobody needs them to import the file
SAMPLING = {"random", "secrets", "default_rng", "rvs"}  # names by which theory, which does not sample, could


def imports(tree: ast.AST) -> Iterator[str]:
    """The full name of every module that a file imports, wherever in it, also by a literal name given to a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:  # a relative import stays in the package
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant))


def violations(package: str, source: str) -> list[str]:
    """What a file of `package` imports, or in theory samples with, although it may not."""
    tree, allowed = ast.parse(source), ALLOWED[package]
    if allowed is None:
        return []
    lazy = [name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for name in imports(node)]
    eager = [name for name in imports(tree) if name not in lazy or name.partition(".")[0] not in LAZY.get(package, ())]
    found = [name for name in eager if name.partition(".")[0] not in {*allowed, *sys.stdlib_module_names}]
    if package == "theory":
        attributes = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        found += [name for name in [*imports(tree), *attributes] if SAMPLING & {*name.split(".")}]
    return found


def test_the_rule_covers_every_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert {name.partition(".")[0] for name in settings["tool"]["setuptools"]["packages"]} | {"tests"} == {*ALLOWED}
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} | {"tests"} == {*ALLOWED}


@pytest.mark.parametrize("package", ["theory", "reference", "toy"])
def test_who_imports_whom(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        allowed = ROOMS.get(path.parent.relative_to(ROOT).as_posix(), set())
        found = [name for name in violations(package, path.read_text("utf-8")) if name.partition(".")[0] not in allowed]
        assert found == [], path.name


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("reference", "import toy"),
        ("reference", "import numpy as np, theory.best_of_n"),
        ("reference", "from toy.tabular import TabularLM"),
        ("reference", "def f():\n    from theory import best_of_n"),
        ("reference", "import matplotlib"),
        ("toy", "def f():\n    import matplotlib"),
        ("reference", "if TYPE_CHECKING:\n    import toy.relay"),
        ("reference", 'importlib.import_module("toy.relay")'),
        ("reference", "import transformers"),
        ("reference", "import scipy"),
        ("reference", "import tyro"),
        ("toy", "from theory.best_of_n import c_cov"),
        ("toy", "import figures"),
        ("toy", "import tests.assertions"),
        ("theory", "import torch"),
        ("theory", "from torch.nn import functional"),
        ("theory", "from reference import sampling"),
        ("theory", "import random"),
        ("theory", "import numpy as np\nnp.random.default_rng(0)"),
        ("theory", "from numpy.random import default_rng"),
        ("theory", "from numpy import random"),
        ("theory", "stats.binom(3, 0.5).rvs()"),
    ],
)
def test_a_broken_rule_is_seen(package: str, source: str) -> None:
    assert violations(package, source)


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("theory", "import numpy as np\nfrom scipy import stats\nfrom theory import best_of_n\nimport math"),
        ("reference", "import torch.nn.functional as F\nfrom . import sampling\nfrom .sampling import Cost\nimport re"),
        ("reference", "def f():\n    from matplotlib.figure import Figure"),
        ("reference", "importlib.import_module(name)"),  # how a checkpoint names its templates
        ("toy", "from reference.sampling import LanguageModel\nimport torch"),
        ("tests", "import toy, theory, reference, transformers"),
    ],
)
def test_what_is_allowed_passes(package: str, source: str) -> None:
    assert violations(package, source) == []


def graph() -> dict[str, set[str]]:
    """module -> modules of this project that it imports: at the top, in functions, and for types alone."""
    paths = [path for package in ALLOWED if package != "tests" for path in (ROOT / package).rglob("*.py")]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths}
    known = {*names.values()}
    found = {}
    for path, name in names.items():
        given = {*imports(ast.parse(path.read_text("utf-8")))}
        found[name] = {each if each in known else each.rpartition(".")[0] for each in given} & known - {name}
    return found


def circles(edges: dict[str, set[str]]) -> set[str]:
    """The modules that import themselves by way of others."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [*edges[start]]
        while waiting:
            if (here := waiting.pop()) not in seen:
                seen.add(here)
                waiting += edges[here]
        return seen

    return {name for name in edges if name in reached(name)}


def test_imports_run_one_way() -> None:
    edges = graph()
    assert "reference.engine.loop" in edges["reference.power_sampling"]  # imported in a function
    assert circles(edges) == set()


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {"b", "c"}


def test_the_first_room_reads_like_a_table_of_contents() -> None:
    assert len([*(ROOT / "reference").glob("*.py")]) <= 26


@pytest.mark.parametrize("path", sorted((ROOT / "reference").rglob("*.py")), ids=lambda path: path.name)
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 400 or path.name == "transformer.py"


# -- the pages ---------------------------------------------------------------------------------------------------------


def functions_of(page: Callable) -> list[ast.FunctionDef]:
    """A page and what it calls in its own file."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(page)))
    known = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    found: dict[str, ast.FunctionDef] = {}
    waiting = [page.__name__]
    while waiting:
        if (name := waiting.pop()) not in found:
            found[name] = known[name]
            waiting += [node.id for node in ast.walk(known[name]) if isinstance(node, ast.Name) and node.id in known]
    return list(found.values())


def code_lines(function: ast.FunctionDef) -> int:
    """Lines without signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return 1 + body[-1].end_lineno - body[0].lineno + 1  # type: ignore[operator]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_short(name: str) -> None:
    """At most 45 lines with all that it calls in its file; a reader sees the algorithm without leaving it."""
    functions = functions_of(PAGES[name].page)
    assert sum(map(code_lines, functions)) <= 45, {function.name: code_lines(function) for function in functions}


def test_the_engine_imports_no_algorithm() -> None:
    """What it shares with the pages it is handed, or finds in the interface."""
    shared = {"interface", "randomness", "engine"}
    for path in sorted((ROOT / "reference" / "engine").glob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        own = {name.split(".")[1] for name in imports(tree) if name.startswith("reference.")}
        assert own <= shared, path.name


def test_pages_and_their_enumeration_run_without_the_engine(tmp_path: Path) -> None:
    for package in ("reference", "theory", "toy", "tests"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.rmtree(tmp_path / "reference" / "engine")
    tests = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/reference/test_pages_enumerated*.py"))
    some = "generate_draws or ties_win or acceptance or one_rung or one_particle or clipped or cascade"  # of each file
    run = [sys.executable, "-m", "pytest", "-q", "-x", "-k", some, *tests]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert tests and done.returncode == 0, done.stdout[-3000:]
