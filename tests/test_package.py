"""What is installed: a wheel that works outside the repository, and the names that people import."""

import json
import os
import subprocess
import sys

from tests.api import SNAPSHOT, public
from tests.conftest import ROOT

SCRIPT = """
import reference.power_sampling as P
from reference.sampling import Drawn
from reference.text.text_model import TextModel
from theory.exact_law import exact_law
from toy.tabular import TabularLM
from pathlib import Path
import toy

assert str(Path(P.__file__)).startswith(HERE), P.__file__
model, config = TabularLM.random(3, 3, seed=1), P.PowerConfig(alpha=2.0, block=2, steps=1, max_new_tokens=2)
law = exact_law(lambda chance: P.power_sampling_page(model, [1], config, stop_ids={0}, chance=chance).tokens)
assert abs(sum(law.values()) - 1) < 1e-12
page = P.power_sampling_page(model, [1], config, stop_ids={0}, chance=Drawn(seed=7))
assert page.tokens == tuple(P.power_sample(model, [[1]], config, stop_ids={0}, seed=7).samples[0][0].tokens.tolist())
speaker = TextModel.from_pretrained(Path(toy.__file__).parent / "checkpoint")
assert speaker.tokenizer.vocab_size > 10
"""


def run(*command, folder, **more):
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **more},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_works_outside_the_repository(tmp_path):
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    source = tmp_path / "source"
    tracked = run("git", "ls-files", "-z", folder=ROOT).split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run(*pip, "wheel", source, "--no-deps", "--no-build-isolation", "-w", wheels, folder=tmp_path)
    (wheel,) = wheels.glob("*.whl")
    run(*pip, "install", wheel, "--no-deps", "--target", site, folder=tmp_path)
    there = {"PYTHONPATH": str(site)}
    assert "usage: sharpen COMMAND" in run(sys.executable, "-m", "reference", "--help", folder=tmp_path, **there)
    run(sys.executable, "-c", f"HERE = {str(site)!r}\n{SCRIPT}", folder=tmp_path, **there)
    drawn = run(sys.executable, "-m", "reference", "sample", "1 + 1", "--temperature", "0", folder=tmp_path, **there)
    assert drawn.strip()
    assert (site / "reference" / "py.typed").exists()


def test_the_public_names_are_those_of_the_snapshot():
    """A change here is a change for others: `python -m tests.api`, and a line in CHANGELOG.md."""
    assert public() == json.loads(SNAPSHOT.read_text(encoding="utf-8"))
