"""Every committed result has its picture; README shows the numbers of the committed results, and its example runs."""

import json
import re

import pytest

from figures.__main__ import HERE, RESULTS, draw, fingerprint, module, names, plt, tables
from tests.conftest import ROOT

COMMITTED = sorted(path.stem for path in RESULTS.glob("*.json"))


@pytest.mark.parametrize("name", COMMITTED)
def test_every_result_can_be_drawn(name, tmp_path):
    draw(name, pictures=tmp_path)
    drawn = {path.name: path.stat().st_size for path in tmp_path.glob("*.png")}
    assert f"{name}.png" in drawn and min(drawn.values()) > 10_000
    gallery = "".join(path.read_text() for path in TEXTS)
    assert all((HERE / picture).exists() and picture in gallery for picture in drawn)


@pytest.mark.parametrize("name", COMMITTED)
def test_no_panel_has_more_than_six_series(name):
    drawn = module(name).draw(json.loads((RESULTS / f"{name}.json").read_text()))
    for figure in drawn.values() if isinstance(drawn, dict) else (drawn,):
        assert all(len({*axis.get_legend_handles_labels()[1]}) <= 6 for axis in figure.axes)
        plt.close(figure)


@pytest.mark.parametrize("name", COMMITTED)
def test_results_say_what_they_were_computed_with(name):
    about = json.loads((RESULTS / f"{name}.json").read_text())["about"]
    assert {"depends", "seconds", "python", "torch", "numpy", "machine"} <= about.keys()


def test_readmes_show_the_committed_tables():
    texts = {path: path.read_text() for path in (ROOT / "README.md", *ROOT.glob("*/README.md"))}
    marks = [(path, mark) for path, text in texts.items() for mark in re.findall("<!-- table: (.*?) -->", text)]
    known = {title: (name, table) for name in COMMITTED
             for title, table in tables(name, json.loads((RESULTS / f"{name}.json").read_text())).items()}  # fmt: skip
    for path, mark in marks:
        name, table = known[mark]
        assert f"<!-- table: {mark} -->\n```\n{table}\n```\n" in texts[path], f"run `make results NAME={name}`"
    assert len(marks) >= 6


TEXTS = [
    path for path in (*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("*/*/*.md")) if "runs" not in path.parts
]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(path):
    targets = re.findall(r"\]\(([^)\s#]+)[^)]*\)", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL))
    missing = [t for t in targets if not re.match("[a-z]+:", t) and not (path.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize(("file", "shows"), [("README.md", "Cost(prompt_tokens="), ("reference/README.md", "(0,) 0.5")])
def test_readmes_python_runs(file, shows, capsys):
    block = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / file).read_text(), re.DOTALL))
    exec(block.replace("toy/checkpoint", str(ROOT / "toy" / "checkpoint")), {})
    assert shows in capsys.readouterr().out


def test_the_fingerprint_sees_a_changed_file():
    whole = fingerprint(("toy", "reference"))
    assert whole == fingerprint(("toy", "reference")) != fingerprint(("toy",))
    assert {"demo", "bench_decode"} <= set(names())
