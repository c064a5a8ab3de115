"""The blocked schedule of power sampling: the exact distribution of its output, by every rule of theory/suffix_mh.py.

Stage k = 1..ceil(H/B) has horizon h_k = min(kB, H). Stage 1 starts from a draw of q; each stage makes N steps
on the records of its horizon; then open records are extended by q, ended ones stay and are refined like any other.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from theory.power import Conditionals, Law, Record
from theory.suffix_mh import Setting, Texts, suffix_mh


def run(law: Law, kernel: Law, steps: int) -> Law:
    """law K^steps, [n]. Many steps go by squaring K; its rows are made to sum to 1 each time, so no error adds up."""
    if steps <= 200:
        for _ in range(steps):
            law = law @ kernel
        return law
    while steps:
        if steps % 2:
            law = law @ kernel
        kernel = kernel @ kernel
        kernel /= kernel.sum(1, keepdims=True)
        steps //= 2
    return law


@dataclass(frozen=True)
class Stage:
    """One stage of the blocked schedule. Distributions are over `states` and sum to less than 1 once some mass was
    returned."""

    states: Texts
    kernel: Law  # [n, n]
    start: Law  # [n]: when the stage has extended the texts and made no step
    end: Law  # [n]: after its steps
    returned: dict[Record, float]  # by an early exit before this stage


def horizons(horizon: int, block: int) -> list[int]:
    """h_k = min(kB, H), k = 1..ceil(H/B)."""
    return [min(start + block, horizon) for start in range(0, horizon, block)]


def extended(texts: Texts, law: Law, block: int) -> Law:
    """The distribution [n] of all texts after every open one of `law` [n] is continued by at most `block` tokens."""
    length = texts.length[:, None]
    until = np.minimum(length + block, texts.horizon)
    continues = (texts.shared == length) & texts.are_records(until) & ~texts.ended[:, None]
    moves = np.where(continues, texts.suffix[np.arange(len(law)), length], 0.0)  # [x, y]: q(y_>|x| given x)
    return np.where(texts.ended, law, 0.0) + law @ moves


def schedule(conditionals: Conditionals, **setting: Any) -> Iterator[Stage]:
    """The stages in order, each with its distribution before and after its steps."""
    s = Setting(**setting)
    block = s.block or s.horizon
    texts = s.texts(conditionals)
    law = np.array([float(text == ()) for text in texts.texts])
    returned: dict[Record, float] = {}
    for h in horizons(s.horizon, block):
        law = extended(texts, law, block)
        here = (texts.length > 0) & (texts.length <= h) if s.rule == "authors" else texts.are_records(h)
        states = texts.only(here, h)
        kernel = suffix_mh(states, s.alpha, cut=s.cut, rule=s.rule, cuts=s.cuts(h), tries=s.tries)
        end = run(law[here], kernel, s.steps)
        yield Stage(states, kernel, law[here], end, dict(returned))
        law = np.zeros(len(texts.texts))
        law[here] = end
        if s.rule in ("early_exit", "authors"):
            for i in np.flatnonzero(texts.ended & (law > 0)):
                returned[texts.texts[i]] = returned.get(texts.texts[i], 0.0) + law[i]
            law[texts.ended] = 0


def blocked_law(conditionals: Conditionals, **setting: Any) -> tuple[list[Record], Law]:
    """(records in lexicographic order, their probabilities [n]): the exact distribution of the output, for a `Setting`.

    `conditionals` must reach the horizon: enumerate_law(model, prompt, horizon, stop_ids)[2]. Under rule="authors"
    open texts that are shorter than the horizon are among the records.
    """
    *_, last = schedule(conditionals, **setting)
    law = last.end + np.array([last.returned.get(text, 0.0) for text in last.states.texts])
    return last.states.texts, law


def trim(records: Iterable[Record], law: Law, stop_ids: Iterable[int]) -> dict[Record, float]:
    """The distribution of records that are cut off behind their first stop id."""
    stops, trimmed = set(stop_ids), dict[Record, float]()
    for record, mass in zip(records, law):
        end = next((t + 1 for t, token in enumerate(record) if token in stops), len(record))
        trimmed[record[:end]] = trimmed.get(record[:end], 0.0) + float(mass)
    return dict(sorted(trimmed.items()))
