"""Sequential refinement, and what parallel-distill-refine has to be compared with (2510.01123).

    s_0 ~ M(· | x),   s_{t+1} ~ M(· | x, s_t)              carries the last draft only, not how it came about
                      s_{t+1} ~ M(· | x, A(x, s_t))        with error analysis: what an analyst A leaves of the draft

Sequential refinement has B_seq = B_total. The baselines spend the same tokens otherwise: a long chain of thought the
same B_seq; the majority of independent drafts, or the most likely one of them, the same B_total (`draws_for`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from statistics import fmean

from reference.best_of_n import first_best
from reference.parallel_distill_refine import PDRConfig, Refinement, draft, finish
from reference.self_reward import log_probability, majority_vote
from reference.text.ledger import Ledger
from reference.text.text_model import Stage, TextModel


def sequential_refinement(
    speaker: TextModel,
    questions: Sequence[str],
    rounds: int,
    config: PDRConfig | None = None,
    *,
    analyst: Stage | None = None,
    seed: int = 0,
    keys: Sequence[int | str] | None = None,
    **settings,
) -> Refinement:
    """One draft, refined `rounds` times. Of config only tokens and temperature matter.

    analyst: error analysis. A stage whose verdict on a draft is a workspace, what may be kept of it or what is wrong
    with it, which the role "refiner" is given instead of the draft. ValueError: as for parallel-distill-refine.
    """
    config = config or PDRConfig()
    if rounds < 0:
        raise ValueError(f"rounds is {rounds}; it must be at least 0")
    ledger = Ledger(speaker, questions, seed, keys, temperature=config.temperature, **settings)
    history = [draft(ledger, [[None]] * len(questions), 1, config)]
    for _ in range(rounds):
        if analyst:
            workspaces = ledger.hold("analyse", analyst, history[-1], max_new_tokens=config.max_new_tokens)
            history.append(draft(ledger, workspaces, 1, config))
        else:
            carried = zip(questions, history[-1])
            prompts = [[speaker.prompt("reviser", question=question, draft=own[0])] for question, own in carried]
            history.append([own[0] for own in ledger.ask("revise", prompts, max_new_tokens=config.max_new_tokens)])
    return finish(ledger, history)


def long_chain_of_thought(
    speaker: TextModel, questions: Sequence[str], b_seq: Sequence[float], *, temperature: float = 1.0, seed: int = 0,
    keys: Sequence[int | str] | None = None, **settings,
) -> Refinement:  # fmt: skip
    """One draft of each problem, as long as b_seq tokens allow, prompt included. (It may still stop by itself.)"""
    ledger = Ledger(speaker, questions, seed, keys, temperature=temperature, **settings)
    prompts = [[speaker.prompt("author", question=question)] for question in questions]
    horizons = [int(most) - len(prompt) for most, (prompt,) in zip(b_seq, prompts)]
    return finish(ledger, [[own[0] for own in ledger.ask("draft", prompts, max_new_tokens=horizons)]])


def independent_drafts(
    speaker: TextModel, questions: Sequence[str], n: int, config: PDRConfig | None = None, *,
    choice: str = "majority", seed: int = 0, keys: Sequence[int | str] | None = None, **settings,
) -> Refinement:  # fmt: skip
    """n drafts from nothing, of which the "majority" or the greatest "log-probability" is kept; for what a budget buys,
    see `draws_for`. (Greedy decoding is n = 1 at temperature 0.)"""
    if choice not in ("majority", "log-probability"):
        raise ValueError(f"choice is {choice!r}; it must be 'majority' or 'log-probability'")
    config = config or PDRConfig()
    ledger = Ledger(speaker, questions, seed, keys, temperature=config.temperature, **settings)
    pool = draft(ledger, [[None]] * len(questions), n, config)
    if choice == "majority":
        rewards = majority_vote([[speaker.parse("author", text) for text in own] for own in pool])
    else:
        rewards = log_probability(ledger.samples)
    best = first_best(rewards)[:, None]
    final = [[own[i]] for own, (i,) in zip(pool, best.tolist())]
    return replace(finish(ledger, [pool, final]), samples=ledger.samples.take(best.to(ledger.samples.tokens.device)))


def draws_for(ledger: Ledger) -> int:
    """How many independent drafts the mean B_total of a ledger would have bought, rounded up in their favour."""
    first = [call.tokens for calls in ledger.calls for call in calls if call.step == 1]
    return ceil(fmean(ledger.b_total()) / fmean(first))
