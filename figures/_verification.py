"""What the demo shows of distillation: what it has come to, from the committed result."""

from __future__ import annotations

import json

from figures.__main__ import RESULTS


def committed() -> str:
    """One line for each student of figures/results/distillation.json that says what learning from a filter gives."""
    result = json.loads((RESULTS / "distillation.json").read_text())
    wanted = {"before": result["base"], **{f"after, {name}": result["rows"][name] for name in ("no filter", "cascade")}}
    lines = [f"self-verified distillation, {result['questions']} unlabeled questions, {len(result['seeds'])} seeds "
             "(committed; one response each, temperature 1)"]  # fmt: skip
    for name, row in wanted.items():
        mean, low, high = row["accuracy"]["all"]
        plain, tempting, hard = (row["accuracy"][kind][0] for kind in ("plain", "tempting", "hard"))
        lines.append(f"{name:36}{mean:9.3f} [{low:.3f}, {high:.3f}]{plain:6.2f}{tempting:9.2f}{hard:6.2f}")
    return "\n".join(lines)
