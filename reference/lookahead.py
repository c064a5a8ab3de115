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
from functools import partial

import torch
from torch import Tensor

from reference.randomness import CHOICE, child_seed, uniform
from reference.rollouts import Branches
from reference.samples import Generation
from reference.sampling import (
    LanguageModel,
    Requests,
    check_horizons,
    check_law,
    check_prompts,
    choose_slots,
    decode_all,
    inverse_cdf,
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


class Lookahead(Branches):
    """A decoder whose requests are responses, and `advance` one decision. `lanes` has the rollouts, in rows [response,
    candidate, rollout], `heads` the chunks that are drawn, in rows [response, candidate]."""

    per_slot = (*Branches.per_slot, "request", "key", "sample")

    def __init__(
        self, model: LanguageModel, prompts: Sequence[Tensor], slots: int, config: LookaheadConfig, requests: Requests,
        stop_ids: list[int], seed: int,
    ):  # fmt: skip
        c = self.config = config
        K = c.candidates or model.vocab_size
        branches = partial(Branches, model, prompts, slots, c.horizon, stop_ids=stop_ids)
        measure = partial(likeliest, k=K) if c.chunk is None else None
        super().__init__(model, prompts, slots, c.horizon, stop_ids=stop_ids, seed=seed, measure=measure)
        rollout_seed = child_seed(seed, "rollouts")
        self.lanes = branches(shape=(K, c.rollouts), temperature=c.temperature(c.rollout_law), seed=rollout_seed)
        self.heads = (
            self if c.chunk is None else branches(shape=(K,), temperature=c.temperature(c.chunk_law), seed=seed)
        )
        self.request, self.key, self.sample = torch.zeros((3, slots), dtype=torch.int64, device=model.device)
        self.decisions, self.clipped, self.waited = torch.zeros_like(requests.index).repeat(3, 1)

    def keep(self, slots: Tensor) -> None:
        for branches in {self.lanes, self.heads} - {self}:
            branches.keep(branches.rows(slots).flatten())
        super().keep(slots)

    def load(self, slots: Tensor, requests: Requests) -> None:
        super().load(slots, requests)
        self.request[slots], self.key[slots], self.sample[slots] = requests.index, requests.key, requests.sample

    def advance(self) -> Tensor:
        """One token or chunk for every response; bool [S]: those that it has ended."""
        c, lanes, running = self.config, self.lanes, self.active.clone()
        slots = running.nonzero()[:, 0]
        at, request, rows = self.length[slots], self.request[slots], lanes.rows(slots)  # [n], [n], [n, K, M]
        log_mass = (self.list_tokens if c.chunk is None else self.draw_chunks)(slots, at, rows)  # [n, K]
        ends = lanes.length[rows]  # of the candidates
        size = rows[0].numel()
        self.roll(lanes, rows, slots, at[:, None, None] * size + rows % size)
        law, clipped = estimate(log_mass[..., None] + lanes.log_weight(rows, ends, c.alpha), c.estimator)
        self.decisions[request] += 1
        self.clipped[request] += clipped

        u = self.uniforms[slots, at]  # a token's, as in `generate`: α = 1, or a horizon of 1, draws the same tokens
        if c.chunk is not None:
            u = uniform(self.seed, self.key[slots], self.sample[slots], 0, at, CHOICE)
        here, pick = torch.arange(len(slots), device=slots.device), inverse_cdf(law.log(), u)[0]
        self.fork(slots, lanes, rows[here, pick, 0], ends[here, pick, 0])
        if c.chunk is None:
            self.logq[slots, at] = law[here, pick].log().float()
        return running & ~self.active

    def list_tokens(self, slots: Tensor, at: Tensor, rows: Tensor) -> Tensor:
        """Begin rows with the likeliest tokens; log p^α of each, [n, K]."""
        (K, M), lanes = self.lanes.shape, self.lanes
        super().advance()  # for its law; the token that it draws is overwritten
        self.waited[self.request[slots]] += 1
        ids, logp = self.measures[slots, at].split(K, 1)
        here = at.repeat_interleave(K * M)
        lanes.fork(rows, self, slots.repeat_interleave(K * M), here + 1)
        lanes.tokens[rows.flatten(), here] = ids.long().flatten().repeat_interleave(M)
        lanes.logp[rows.flatten(), here] = logp.float().flatten().repeat_interleave(M)
        lanes.resume(rows.flatten(), here + 1)
        lanes.active[rows] &= logp[..., None] > -math.inf  # what cannot be has no future
        return self.config.alpha * logp

    def draw_chunks(self, slots: Tensor, at: Tensor, rows: Tensor) -> Tensor:
        """Draw chunks, and begin rows with each; their log weights without F, [n, L]."""
        c, heads = self.config, self.heads
        drawn, of = heads.rows(slots), slots[:, None]
        heads.limit[drawn] = (at[:, None] + (c.chunk or 1)).clamp(max=c.horizon)
        heads.fork(drawn, self, of.expand_as(drawn), at[:, None].expand_as(drawn))
        self.roll(heads, drawn, slots, drawn % drawn.shape[1])  # the same steps each time: the positions differ
        of = drawn[..., None].expand_as(rows)
        self.lanes.fork(rows, heads, of, heads.length[of])
        return heads.log_weight(drawn, at[:, None], c.alpha, of_law=1.0 if c.weight == "exact" else 0.0)

    def roll(self, branches: Branches, rows: Tensor, slots: Tensor, step: Tensor) -> None:
        """Decode rows of some slots to their ends, and count it."""
        decoded = branches.finish(rows, self.key[slots], self.sample[slots], step).flatten(1)
        self.decoded[slots] += decoded.sum(1)
        self.waited[self.request[slots]] += decoded.amax(1)


def likeliest(logits: Tensor, k: int) -> Tensor:
    """The k likeliest ids in their order (ties to the smaller), and their log-probabilities: float64 [rows, 2k]."""
    logp = logits.log_softmax(-1)
    ids = logp.sort(dim=-1, descending=True, stable=True)[1][:, :k].sort(-1)[0]
    return torch.cat((ids.double(), logp.gather(1, ids).double()), 1)


def estimate(log_x: Tensor, estimator: str) -> tuple[Tensor, Tensor]:
    """(p̂ float64 [n, K], whether an entry was negative bool [n]) of what M rollouts say, log X_r [n, K, M]."""
    M = log_x.shape[2]
    law = log_x.logsumexp(2).softmax(1)
    if estimator == "jackknife" and M > 1:
        others = [[r for r in range(M) if r != s] for s in range(M)]
        law = M * law - (M - 1) * torch.stack([log_x[..., o].logsumexp(2).softmax(1) for o in others]).mean(0)
    kept = law.clamp(min=0)
    return kept / kept.sum(1, keepdim=True), (law < 0).any(1)


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
