"""What the demo shows of verification: the cascade at test time, live, and what distillation has come to, committed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from figures._distillation import QUICK
from reference.uq_ttc import uq_ttc

if TYPE_CHECKING:
    from figures.demo import Row, World


def cascade(world: World) -> Iterator[Row]:
    """The first of 8 candidates that passes all votes of all stages, else the first: no distillation, many calls."""
    from figures.demo import SEED, Row  # the demo imports this file

    begin, keys = time.perf_counter(), [problem.id for problem in world.problems]
    found = uq_ttc(world.text_model, [problem.question for problem in world.problems], QUICK, seed=SEED, keys=keys)
    method = f"first of {QUICK.n} that passes the cascade"
    yield Row(method, found.samples, found.costs, time.perf_counter() - begin)


def committed() -> str:
    """One line for each student of figures/results/distillation.json that says what learning from a filter gives."""
    from figures.__main__ import RESULTS

    result = json.loads((RESULTS / "distillation.json").read_text())
    wanted = {"before": result["base"], **{f"after, {name}": result["rows"][name] for name in ("no filter", "cascade")}}
    lines = [f"self-verified distillation, {result['questions']} unlabeled questions, {len(result['seeds'])} seeds "
             "(committed; one response each, temperature 1)"]  # fmt: skip
    for name, row in wanted.items():
        mean, low, high = row["accuracy"]["all"]
        plain, tempting, hard = (row["accuracy"][kind][0] for kind in ("plain", "tempting", "hard"))
        lines.append(f"{name:36}{mean:9.3f} [{low:.3f}, {high:.3f}]{plain:6.2f}{tempting:9.2f}{hard:6.2f}")
    return "\n".join(lines)
