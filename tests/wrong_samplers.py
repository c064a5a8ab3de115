"""Wrong samplers of p^α in circulation: each the right page, copied, with what is wrong in it marked.

`# WRONG:` stands above every line that is not as in `reference/power_sampling.py`, and says what that line should be.
The functions take the arguments of the right ones, so `theory/exact_law.py` enumerates them in the same way: see
tests/reference/test_wrong_samplers.py, where each has exactly the law that theory says, which is not p^α. They go by
the names that they have in theory (`theory/suffix_mh.py`):

    authors            the code released with 2510.14901: the ratio compares y with x truncated to |y|, proposals are no
                       longer than x, the length factor is missing, and an ended record is returned
    early_exit         a record that has ended after a block is returned
    nested             cuts in the last block only
    no_proposal        no proposal term: the chain keeps p^α q
    wrong_sign         the proposal term with its sign reversed, as in maxzuo/mh-llm: the chain keeps p^α q²
    no_length_factor   cuts drawn from the record's own length, or by its entropies, without the factor for it
    literal            Algorithm 1 as it is printed: the first token is never cut
    published          look-ahead by chunks with the weight of Algorithm 2 of 2601.21590: tends to p^(α+1) F
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from reference.interface import ACCEPT, CUT, Chance, LanguageModel
from reference.lookahead import LookaheadConfig, Response, lookahead_page
from reference.power_sampling import (
    Chain,
    PowerConfig,
    Record,
    first_difference,
    init,
    power_sampling_page,
    step,
    weigh,
)
from reference.sampling import extend, log_probs

# ---------------------------------------------------------------------------------------------------------------------
# Steps


def authors_step(
    model: LanguageModel, prompt: Sequence[int], x: Record, config: PowerConfig, horizon: int, n: int, *,
    stop_ids: Collection[int], chance: Chance,
) -> tuple[Record, int, int, bool]:  # fmt: skip
    """For cut="record". No proposal is longer than x, and open texts shorter than the horizon become states."""
    w_x, e_x = weigh(model, prompt, x, config, horizon)
    r = chance.index(len(e_x), CUT, step=n)
    # WRONG: y = extend(model, prompt, x[:r], horizon, ...)
    y = extend(model, prompt, x[:r], len(x), config.temperature, step=n, stop_ids=stop_ids, chance=chance)
    w_y, _ = weigh(model, prompt, y, config, horizon)
    # WRONG: log_ratio = sum(w_y[r:]) - sum(w_x[r:]) + math.log(sum(e_x) / sum(e_y))
    log_ratio = sum(w_y[r:]) - sum(w_x[r : len(y)])
    accepted = chance.happens(log_ratio, ACCEPT, step=n)
    return y if accepted else x, r + 1, first_difference(x, y), accepted


def nested_step(
    model: LanguageModel, prompt: Sequence[int], x: Record, config: PowerConfig, horizon: int, n: int, *,
    stop_ids: Collection[int], chance: Chance,
) -> tuple[Record, int, int, bool]:  # fmt: skip
    """For cut="horizon": earlier blocks are never revised."""
    w_x, e_x = weigh(model, prompt, x, config, horizon)
    # WRONG: r = chance.index(len(e_x), CUT, step=n)
    last = (horizon - 1) // config.block * config.block
    r = last + chance.index(len(e_x) - last, CUT, step=n)
    y = extend(model, prompt, x[:r], horizon, config.temperature, step=n, stop_ids=stop_ids, chance=chance)
    w_y, e_y = weigh(model, prompt, y, config, horizon)
    log_ratio = sum(w_y[r:]) - sum(w_x[r:]) + math.log(sum(e_x) / sum(e_y))
    accepted = chance.happens(log_ratio, ACCEPT, step=n)
    return y if accepted else x, r + 1, first_difference(x, y), accepted


def literal_step(
    model: LanguageModel, prompt: Sequence[int], x: Record, config: PowerConfig, horizon: int, n: int, *,
    stop_ids: Collection[int], chance: Chance,
) -> tuple[Record, int, int, bool]:  # fmt: skip
    """For cut="horizon". m is drawn from 1 .. kB and x_0 .. x_{m−1} are kept, where x_0 is the first token."""
    w_x, e_x = weigh(model, prompt, x, config, horizon)
    # WRONG: r = chance.index(len(e_x), CUT, step=n)
    r = 1 + chance.index(len(e_x), CUT, step=n)
    y = extend(model, prompt, x[:r], horizon, config.temperature, step=n, stop_ids=stop_ids, chance=chance)
    w_y, e_y = weigh(model, prompt, y, config, horizon)
    log_ratio = sum(w_y[r:]) - sum(w_x[r:]) + math.log(sum(e_x) / sum(e_y))
    accepted = chance.happens(log_ratio, ACCEPT, step=n)
    return y if accepted else x, r + 1, first_difference(x, y), accepted


def no_length_factor_step(
    model: LanguageModel, prompt: Sequence[int], x: Record, config: PowerConfig, horizon: int, n: int, *,
    stop_ids: Collection[int], chance: Chance,
) -> tuple[Record, int, int, bool]:  # fmt: skip
    """For cut="record" or "entropy". (With cut="horizon" there is no factor.)"""
    w_x, e_x = weigh(model, prompt, x, config, horizon)
    r = chance.index(len(e_x), CUT, step=n) if config.cut != "entropy" else chance.weighted(e_x, CUT, step=n)
    y = extend(model, prompt, x[:r], horizon, config.temperature, step=n, stop_ids=stop_ids, chance=chance)
    w_y, _ = weigh(model, prompt, y, config, horizon)
    # WRONG: log_ratio = sum(w_y[r:]) - sum(w_x[r:]) + math.log(sum(e_x) / sum(e_y))
    log_ratio = sum(w_y[r:]) - sum(w_x[r:])
    accepted = chance.happens(log_ratio, ACCEPT, step=n)
    return y if accepted else x, r + 1, first_difference(x, y), accepted


def no_proposal_step(
    model: LanguageModel, prompt: Sequence[int], x: Record, config: PowerConfig, horizon: int, n: int, *,
    stop_ids: Collection[int], chance: Chance,
) -> tuple[Record, int, int, bool]:  # fmt: skip
    """For every cut: A = p^α(y) / p^α(x), as if proposals came from both sides alike."""
    w_x, e_x = weigh_without_proposal(model, prompt, x, config, horizon)  # WRONG: weigh(...)
    r = chance.index(len(e_x), CUT, step=n) if config.cut != "entropy" else chance.weighted(e_x, CUT, step=n)
    y = extend(model, prompt, x[:r], horizon, config.temperature, step=n, stop_ids=stop_ids, chance=chance)
    w_y, e_y = weigh_without_proposal(model, prompt, y, config, horizon)  # WRONG: weigh(...)
    log_ratio = sum(w_y[r:]) - sum(w_x[r:]) + math.log(sum(e_x) / sum(e_y))
    accepted = chance.happens(log_ratio, ACCEPT, step=n)
    return y if accepted else x, r + 1, first_difference(x, y), accepted


def weigh_without_proposal(
    model: LanguageModel, prompt: Sequence[int], x: Record, config: PowerConfig, horizon: int
) -> tuple[list[float], list[float]]:
    logp, _ = log_probs(model, prompt, x, config.temperature)
    # WRONG: (config.alpha * logp - logq).tolist()
    return (config.alpha * logp).tolist(), weigh(model, prompt, x, config, horizon)[1]


def wrong_sign_step(
    model: LanguageModel, prompt: Sequence[int], x: Record, config: PowerConfig, horizon: int, n: int, *,
    stop_ids: Collection[int], chance: Chance,
) -> tuple[Record, int, int, bool]:  # fmt: skip
    """For every cut: A = p^α(y) q(y) / (p^α(x) q(x))."""
    w_x, e_x = weigh_with_wrong_sign(model, prompt, x, config, horizon)  # WRONG: weigh(...)
    r = chance.index(len(e_x), CUT, step=n) if config.cut != "entropy" else chance.weighted(e_x, CUT, step=n)
    y = extend(model, prompt, x[:r], horizon, config.temperature, step=n, stop_ids=stop_ids, chance=chance)
    w_y, e_y = weigh_with_wrong_sign(model, prompt, y, config, horizon)  # WRONG: weigh(...)
    log_ratio = sum(w_y[r:]) - sum(w_x[r:]) + math.log(sum(e_x) / sum(e_y))
    accepted = chance.happens(log_ratio, ACCEPT, step=n)
    return y if accepted else x, r + 1, first_difference(x, y), accepted


def weigh_with_wrong_sign(
    model: LanguageModel, prompt: Sequence[int], x: Record, config: PowerConfig, horizon: int
) -> tuple[list[float], list[float]]:
    logp, logq = log_probs(model, prompt, x, config.temperature)
    # WRONG: (config.alpha * logp - logq).tolist()
    return (config.alpha * logp + logq).tolist(), weigh(model, prompt, x, config, horizon)[1]


# ---------------------------------------------------------------------------------------------------------------------
# Pages


def early_exit_page(
    model: LanguageModel, prompt: Sequence[int], config: PowerConfig, *, stop_ids: Collection[int], chance: Chance,
    transition: Callable[..., tuple[Record, int, int, bool]] = step,
) -> Chain:  # fmt: skip
    """Short records are returned before the longer ones that they should compete with are states at all."""
    x, moves = init(model, prompt, config, stop_ids=stop_ids, chance=chance), []
    for block in range(config.stages):
        first, horizon = block * (config.steps + 1), min((block + 1) * config.block, config.max_new_tokens)
        if block > 0:
            x = extend(model, prompt, x, horizon, config.temperature, step=first, stop_ids=stop_ids, chance=chance)
        for n in range(first + 1, first + 1 + config.steps):
            x, *move = transition(model, prompt, x, config, horizon, n, stop_ids=stop_ids, chance=chance)
            moves.append(move)
        # WRONG: an ended record is a state like any other; go on
        if x[-1] in stop_ids:
            break
    return Chain(x, *(zip(*moves) if moves else ((), (), ())))


def authors_page(
    model: LanguageModel, prompt: Sequence[int], config: PowerConfig, *, stop_ids: Collection[int], chance: Chance,
    transition: Callable[..., tuple[Record, int, int, bool]] = authors_step,  # WRONG: step
) -> Chain:  # fmt: skip
    """What is returned may be an open text that is shorter than the horizon."""
    x, moves = init(model, prompt, config, stop_ids=stop_ids, chance=chance), []
    for block in range(config.stages):
        first = block * (config.steps + 1)
        # WRONG: horizon = min((block + 1) * config.block, config.horizon)
        horizon = min(config.block if block == 0 else len(x) + config.block, config.max_new_tokens)
        if block > 0:
            x = extend(model, prompt, x, horizon, config.temperature, step=first, stop_ids=stop_ids, chance=chance)
        for n in range(first + 1, first + 1 + config.steps):
            x, *move = transition(model, prompt, x, config, horizon, n, stop_ids=stop_ids, chance=chance)
            moves.append(move)
        # WRONG: an ended record is a state like any other; go on
        if x[-1] in stop_ids:
            break
    return Chain(x, *(zip(*moves) if moves else ((), (), ())))


def published_page(
    model: LanguageModel, prompt: Sequence[int], config: LookaheadConfig, *, stop_ids: Collection[int], chance: Chance
) -> Response:
    """Chunks are drawn from p and then weighed by p^α F̂, as if they had been listed."""
    # WRONG: weight="exact", p^α F̂ / q
    config = replace(config, weight="published")
    return lookahead_page(model, prompt, config, stop_ids=stop_ids, chance=chance)


# ---------------------------------------------------------------------------------------------------------------------

STEPS: dict[str, Callable[..., tuple[Record, int, int, bool]]] = {
    "authors": authors_step,
    "nested": nested_step,
    "literal": literal_step,
    "no_length_factor": no_length_factor_step,
    "no_proposal": no_proposal_step,
    "wrong_sign": wrong_sign_step,
}
PAGES: dict[str, Callable[..., Any]] = {
    **{name: partial(power_sampling_page, transition=wrong) for name, wrong in STEPS.items()},
    "authors": authors_page,
    "early_exit": early_exit_page,
    "published": published_page,
}
