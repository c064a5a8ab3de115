"""Every committed result has its picture; README shows the numbers of the committed results, and its example runs."""

import json
import re

import pytest

from figures.__main__ import HERE, RESULTS, draw, fingerprint, module, names
from tests.conftest import ROOT

COMMITTED = sorted(path.stem for path in RESULTS.glob("*.json"))


@pytest.mark.parametrize("name", COMMITTED)
def test_every_result_can_be_drawn(name, tmp_path):
    assert (HERE / f"{name}.png").exists()
    draw(name, pictures=tmp_path)
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", COMMITTED)
def test_results_say_what_they_were_computed_with(name):
    about = json.loads((RESULTS / f"{name}.json").read_text())["about"]
    assert {"depends", "seconds", "python", "torch", "numpy", "machine"} <= about.keys()


def test_readme_shows_the_committed_tables():
    readme, shown = (ROOT / "README.md").read_text(), 0
    for name in COMMITTED:
        if f"<!-- table: {name} -->" in readme:
            result = json.loads((RESULTS / f"{name}.json").read_text())
            assert module(name).table(result) in readme, f"run `make results NAME={name}`"
            shown += 1
    assert shown >= 2


@pytest.mark.parametrize(("file", "shows"), [("README.md", "Cost(prompt_tokens="), ("reference/README.md", "(0,) 0.5")])
def test_readmes_python_runs(file, shows, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / file).read_text(), re.DOTALL)
    exec(block.replace("toy/checkpoint", str(ROOT / "toy" / "checkpoint")), {})
    assert shows in capsys.readouterr().out


def test_the_fingerprint_sees_a_changed_file():
    whole = fingerprint(("toy", "reference"))
    assert whole == fingerprint(("toy", "reference")) != fingerprint(("toy",))
    assert {"demo", "bench_decode"} <= set(names())
