"""Scalable power sampling: p^α token by token, looking ahead by rollouts (2601.21590, Theorem 3.1 and Algorithms 1, 2).

The conditionals of p^α weigh what a token leads to, on responses that end by a stop id or at the horizon:

    π(v|h) ∝ p(v|h)^α F(h,v),    F(h,v) = Σ_rest p(rest|h,v)^α, 1 where nothing follows.

F is a mean over rollouts, p(rest)^(α−1) over those from the model and Π_t Z_α(h_t), Z_α = Σ_u p(u|·)^α, over those from
g ∝ p^α, token by token: in both cases the mean of Π p^α/q over rollouts from q. With M of them for each candidate,

    X_v = p(v|h)^α Σ_r w_{v,r},   plug-in: p̂ = X / Σ_u X_u,   jackknife: M p̂ − ((M−1)/M) Σ_s p̂_{−s}

where p̂_{−s} leaves out every candidate's rollout s. Their biases are O(1/M) and O(1/M²), the latter once M exceeds the
relative variance of w. The jackknife may have negative entries (the paper does not say what then): here they are set to
0 and the rest renormalised. Candidates are the K likeliest tokens, without repeats; all of them if K is None, and then
the law tends to p^α as M grows.

With `chunk` = B, L = `candidates` chunks of B tokens are drawn from q (the model, or g) and one is picked by weight:

    weight="exact"       p^α(chunk) F̂ / q(chunk): tends to p^α as L and M grow
    weight="published"   p^α(chunk) F̂, as in Algorithm 2, though its chunks are already drawn from p: tends to p^(α+1) F

(The paper also keeps only the likeliest of the drawn chunks; with repeats among them, that tends to greedy decoding.)

A response is a slot of the one decoding loop, and its rollouts are K·M rows of a second one. They begin with copies of
its cache row, so nothing is prefilled twice. A decision waits for the longest rollout of all responses in the slots.
What the output's law is, for any M and L, is known exactly: `theory/lookahead.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reference.decisions import Lookahead
from reference.samples import Generation
from reference.sampling import (
    LanguageModel,
    check_horizons,
    check_law,
    check_prompts,
    choose_slots,
    decode_all,
    make_requests,
)


@dataclass(frozen=True)
class LookaheadConfig:
    """Settings. (The paper's runs: 8 kept of 32 chunks of 192 tokens, 8 rollouts of 192 tokens, published weight.)"""

    alpha: float = 4.0  # the power
    horizon: int = 3072  # most response tokens; rollouts go to it
    candidates: int | None = 8  # K, the likeliest tokens (None: all); or L, chunks drawn
    rollouts: int = 8  # M, for each candidate
    rollout_law: str = "p"  # or "g": temperature 1/α
    estimator: str = "jackknife"  # or "plug_in"
    chunk: int | None = None  # B, tokens decided on at a time; None: one, of enumerated candidates
    chunk_law: str = "p"  # or "g"
    weight: str = "exact"  # or "published": of chunks

    def temperature(self, law: str) -> float:
        return 1.0 if law == "p" else 1 / self.alpha

    def check(self) -> None:
        """ValueError: a setting out of range."""
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha is {self.alpha}; it must be a positive number")
        for name in ("horizon", "candidates", "rollouts", "chunk"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        for name, words in (
            ("rollout_law", ("p", "g")), ("chunk_law", ("p", "g")), ("estimator", ("plug_in", "jackknife")),
            ("weight", ("exact", "published")),
        ):  # fmt: skip
            if getattr(self, name) not in words:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {words[0]!r} or {words[1]!r}")
        if self.chunk is None and self.weight == "published":
            raise ValueError("weight is 'published', which is a weight of chunks; set chunk, or weight to 'exact'")
        if self.chunk is not None and self.candidates is None:
            raise ValueError("candidates is None, but chunks cannot be enumerated; set how many are drawn")


@dataclass(frozen=True)
class LookaheadSamples(Generation):
    """`samples` have as `logq` the estimated law that a token was drawn from; of chunks, the law that they were."""

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
    c, stop_ids = config or LookaheadConfig(), list(stop_ids)
    c.check()
    texts, n = check_prompts(model, prompts), samples_per_prompt
    horizons = check_horizons(model, texts, c.horizon)
    check_law(model, stop_ids, c.temperature("g"), None, None)
    K = c.candidates or model.vocab_size
    c = replace(c, candidates=min(K, model.vocab_size) if c.chunk is None else K)
    requests = make_requests(model, texts, horizons, n, keys)
    rows = 1 + K * (c.rollouts + (c.chunk is not None))  # for each response
    slots = choose_slots(slots, model, len(requests), max(map(len, texts)) + c.horizon, caches=rows)
    decoder = Lookahead(model, texts, slots, c, requests, stop_ids, seed)
    drawn = decode_all(decoder, requests, n, keys, "look-ahead")
    decisions, clipped, waited = (x.view(len(texts), n) for x in (decoder.decisions, decoder.clipped, decoder.waited))
    costs = [replace(cost, sequential_tokens=w) for cost, w in zip(drawn.costs, waited.amax(1).tolist())]
    return LookaheadSamples(drawn.samples, costs, decisions, clipped)
