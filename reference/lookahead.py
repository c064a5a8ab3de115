"""Scalable power sampling: p^α token by token, looking ahead by rollouts (2601.21590, Theorem 3.1 and Algorithms 1, 2).

The conditionals of p^α weigh what a token leads to, on responses that end by a stop id or at the horizon:

    π(v|h) ∝ p(v|h)^α F(h,v),    F(h,v) = Σ_rest p(rest|h,v)^α, 1 where nothing follows.

F is a mean over rollouts, p(rest)^(α−1) over those from the model and Π_t Z_α(h_t), Z_α = Σ_u p(u|·)^α, over those from
g ∝ p^α, token by token: in both cases the mean of Π p^α/q over rollouts from q. With M of them for each candidate,

    X_v = p(v|h)^α Σ_r w_{v,r},   plug-in: p̂ = X / Σ_u X_u,   jackknife: M p̂ − ((M−1)/M) Σ_s p̂_{−s}

where p̂_{−s} leaves out every candidate's rollout s. Their biases are O(1/M) and O(1/M²), the latter once M exceeds the
relative variance of w. The jackknife may have negative entries (the paper does not say what then): here they are set to
0 and the rest renormalised. Candidates are the K likeliest tokens, without repeats; all of them if K is None, and then
the distribution tends to p^α as M grows.

With `chunk` = B, L = `candidates` chunks of B tokens are drawn from q (the model, or g) and one is picked by weight:

    weight="exact"       p^α(chunk) F̂ / q(chunk): tends to p^α as L and M grow
    weight="published"   p^α(chunk) F̂, as in Algorithm 2, though its chunks are already drawn from p: tends to p^(α+1)
                         F

(The paper also keeps only the likeliest of the drawn chunks; with repeats among them, that tends to greedy decoding.)

The page below is one response. `lookahead` decides for many at a time (`reference/engine/decisions.py`): the page's
tokens. What the output's distribution is, for any M and L, is known exactly: `theory/lookahead.py`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from reference.interface import CHOICE, TOLERANCE, Chance, Generation, LanguageModel, child_seed, next_logits
from reference.sampling import check_settings, extend, log_probs


@dataclass(frozen=True)
class LookaheadConfig:
    """Settings. (The paper's runs: 8 kept of 32 chunks of 192 tokens, 8 rollouts of 192 tokens, published weight.)"""

    alpha: float = 4.0  # the power
    max_new_tokens: int = 3072  # H, the horizon: most response tokens; rollouts go to it
    candidates: int | None = 8  # K, the likeliest tokens (None: all); or L, chunks drawn
    rollouts: int = 8  # M, for each candidate
    rollout_law: str = "p"  # or "g": temperature 1/α
    estimator: str = "jackknife"  # or "plug_in"
    chunk: int | None = None  # B, tokens decided on at a time; None: one, of enumerated candidates
    chunk_law: str = "p"  # or "g"
    weight: str = "exact"  # or "published": of chunks

    def temperature(self, law: str) -> float:
        return 1.0 if law == "p" else 1 / self.alpha

    def __post_init__(self) -> None:
        """ValueError: a setting out of range."""
        words = {"rollout_law": ("p", "g"), "chunk_law": ("p", "g"), "estimator": ("plug_in", "jackknife"),
                 "weight": ("exact", "published")}  # fmt: skip
        least = dict.fromkeys(("max_new_tokens", "candidates", "rollouts", "chunk"), 1)
        check_settings(self, positive=("alpha",), least=least, among=words)
        if self.chunk is None and self.weight == "published":
            raise ValueError("weight is 'published', which is a weight of chunks; set chunk, or weight to 'exact'")
        if self.chunk is not None and self.candidates is None:
            raise ValueError("candidates is None, but chunks cannot be enumerated; set how many are drawn")


# ---------------------------------------------------------------------------------------------------------------------
# The page: one response


class Response(NamedTuple):
    """A response, the decisions it took, and how many of these had negative entries."""

    tokens: tuple[int, ...]
    decisions: int
    clipped: int


def lookahead_page(
    model: LanguageModel, prompt: Sequence[int], config: LookaheadConfig, *, stop_ids: Collection[int], chance: Chance
) -> Response:
    """Decision after decision: list candidates, roll out what may follow each, draw one from the estimated
    distribution."""
    y: tuple[int, ...] = ()
    decisions, clipped, M = 0, 0, config.rollouts
    candidates = likeliest_tokens if config.chunk is None else drawn_chunks
    while (at := len(y)) < config.max_new_tokens and not (y and y[-1] in stop_ids):
        texts, log_mass = candidates(model, prompt, y, config, stop_ids=stop_ids, chance=chance)
        log_x = [[mass] * M for mass in log_mass]  # log X_r of every text and rollout
        for c, r in product(range(len(texts)), range(M)):
            if log_mass[c] > -math.inf:  # what cannot be has no future
                step = (at * len(texts) + c) * M + r
                log_x[c][r] += roll_out(model, prompt, texts[c], config, step, stop_ids=stop_ids, chance=chance)
        law, negative = estimate(torch.tensor([log_x], dtype=torch.float64), config.estimator)
        if config.chunk is None:
            y = texts[chance.token(law[0].log(), position=at)]
        else:
            y = texts[chance.weighted(law[0], CHOICE, position=at)]
        decisions, clipped = decisions + 1, clipped + int(negative)
    return Response(y, decisions, clipped)


def roll_out(
    model: LanguageModel, prompt: Sequence[int], y: tuple[int, ...], config: LookaheadConfig, step: int, *,
    stop_ids: Collection[int], chance: Chance,
) -> float:  # fmt: skip
    """Draw what may follow y, up to the horizon; log of its p^α/q."""
    q, own = config.temperature(config.rollout_law), chance.child("rollouts")
    text = extend(model, prompt, y, config.max_new_tokens, q, step=step, stop_ids=stop_ids, chance=own)
    logp, logq = log_probs(model, prompt, text, q, first=len(y))
    return float((config.alpha * logp - logq).sum())


def likeliest_tokens(
    model: LanguageModel, prompt: Sequence[int], y: tuple[int, ...], config: LookaheadConfig, *,
    stop_ids: Collection[int], chance: Chance,
) -> tuple[list[tuple[int, ...]], list[float]]:  # fmt: skip
    """Algorithm 1: y with each of its K likeliest tokens, by id, and the log of p(v|y)^α."""
    logits = next_logits(model, prompt, y)
    ranked = logits.sort(descending=True, stable=True)[1].tolist()  # of equal ones the smaller id first
    ids = sorted(ranked[: config.candidates])
    return [(*y, v) for v in ids], (config.alpha * logits.log_softmax(-1)[ids]).tolist()


def drawn_chunks(
    model: LanguageModel, prompt: Sequence[int], y: tuple[int, ...], config: LookaheadConfig, *,
    stop_ids: Collection[int], chance: Chance,
) -> tuple[list[tuple[int, ...]], list[float]]:  # fmt: skip
    """Algorithm 2: y with each of L chunks drawn from q, and the log of the chunk's p^α/q (as published: p^α)."""
    end, q = min(len(y) + (config.chunk or 1), config.max_new_tokens), config.temperature(config.chunk_law)
    draws, log_mass = range(config.candidates or 1), []
    texts = [extend(model, prompt, y, end, q, step=c, stop_ids=stop_ids, chance=chance) for c in draws]
    for text in texts:
        logp, logq = log_probs(model, prompt, text, q, first=len(y))
        log_mass.append(float((config.alpha * logp - (logq if config.weight == "exact" else 0)).sum()))
    return texts, log_mass


def estimate(log_x: Tensor, estimator: str) -> tuple[Tensor, Tensor]:
    """(p̂ float64 [n, K], whether an entry was negative bool [n]) of what M rollouts say, log X_r [n, K, M]."""
    M = log_x.shape[2]
    law = log_x.logsumexp(2).softmax(1)
    if estimator == "jackknife" and M > 1:
        others = [[r for r in range(M) if r != s] for s in range(M)]
        law = M * law - (M - 1) * torch.stack([log_x[..., o].logsumexp(2).softmax(1) for o in others]).mean(0)
    kept = law.clamp(min=0)
    return kept / kept.sum(1, keepdim=True), (law < -TOLERANCE).any(1)


# ---------------------------------------------------------------------------------------------------------------------
# Many responses at a time


@dataclass(frozen=True)
class LookaheadSamples(Generation):
    """`samples` have as `logq` the estimated distribution that a token was drawn from; of chunks, the distribution that
    they were."""

    decisions: Tensor  # int64 [prompts, n]
    clipped: Tensor  # int64 [prompts, n]: how many of them had negative entries


@torch.no_grad()
def lookahead(
    model: LanguageModel,
    prompts: Sequence[Sequence[int] | Tensor],
    config: LookaheadConfig | None = None,
    *,
    stop_ids: Iterable[int],
    samples_per_prompt: int = 1,
    slots: int | None = None,
    seed: int = 0,
    keys: Sequence[int | str] | None = None,
) -> LookaheadSamples:
    """`samples_per_prompt` responses to each prompt, `slots` of them at a time (None: as many as fit).

    ValueError: a setting out of range, and what `generate` refuses.
    """
    from reference.engine.decisions import Lookahead
    from reference.engine.decoder import filtered
    from reference.engine.loop import run
    from reference.engine.requests import make_plan

    c, n = config or LookaheadConfig(), samples_per_prompt
    K = c.candidates or model.vocab_size
    K = min(K, model.vocab_size) if c.chunk is None else K
    rows = 1 + K * (c.rollouts + (c.chunk is not None))  # for each response
    plan = make_plan(
        model, prompts, c.max_new_tokens, stop_ids=stop_ids, samples_per_prompt=n, slots=slots, seed=seed, keys=keys,
        caches=rows,
    )  # fmt: skip
    machine = Lookahead(
        plan, alpha=c.alpha, candidates=K, rollouts=c.rollouts, chunk=c.chunk, exact=c.weight == "exact",
        rollout_law=filtered(c.temperature(c.rollout_law)), chunk_law=filtered(c.temperature(c.chunk_law)),
        rollout_seed=child_seed(seed, "rollouts"), estimate=lambda log_x: estimate(log_x, c.estimator),
    )  # fmt: skip
    drawn = run(machine, plan, "look-ahead")
    shape = (len(plan.prompts), n)
    return LookaheadSamples(drawn.samples, drawn.costs, machine.decisions.view(shape), machine.clipped.view(shape))
