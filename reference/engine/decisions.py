"""One decision after another: how `reference/lookahead.py` picks a token or a chunk by rollouts.

A response is a slot of a decoder, and its rollouts are rows of a second one (`rollouts.py`). A decision lists
candidates, rolls out what may follow each, estimates the law of the candidates and draws one; the response goes on with
a copy of the row that begins with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reference.engine.requests import Requests
from reference.engine.rollouts import Branches
from reference.interface import LanguageModel, inverse_cdf
from reference.randomness import CHOICE, child_seed, uniform

if TYPE_CHECKING:
    from reference.lookahead import LookaheadConfig


class Lookahead(Branches):
    """A decoder whose requests are responses, and `advance` one decision. `lanes` has the rollouts, in rows [response,
    candidate, rollout], `heads` the chunks that are drawn, in rows [response, candidate]."""

    per_slot = (*Branches.per_slot, "request", "key", "sample")

    def __init__(
        self, model: LanguageModel, prompts: Sequence[Tensor], slots: int, config: LookaheadConfig, requests: Requests,
        stop_ids: list[int], seed: int, *, estimate: Callable[[Tensor, str], tuple[Tensor, Tensor]],
    ):  # fmt: skip
        c = self.config = config
        self.estimate = estimate
        K = c.candidates or model.vocab_size
        branches = partial(Branches, model, prompts, slots, c.max_new_tokens, stop_ids=stop_ids)
        measure = partial(likeliest, k=K) if c.chunk is None else None
        super().__init__(model, prompts, slots, c.max_new_tokens, stop_ids=stop_ids, seed=seed, measure=measure)
        rollout_seed = child_seed(seed, "rollouts")
        self.lanes = branches(shape=(K, c.rollouts), temperature=c.temperature(c.rollout_law), seed=rollout_seed)
        self.heads: Any = c.chunk and branches(shape=(K,), temperature=c.temperature(c.chunk_law), seed=seed)
        self.request, self.key, self.sample = torch.zeros((3, slots), dtype=torch.int64, device=model.device)
        self.decisions, self.clipped, self.waited = torch.zeros_like(requests.index).repeat(3, 1)

    def keep(self, slots: Tensor) -> None:
        for branches in (self.lanes, self.heads):
            if branches is not None:
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
        law, clipped = self.estimate(log_mass[..., None] + lanes.log_weight(rows, ends, c.alpha), c.estimator)
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
        heads.limit[drawn] = (at[:, None] + (c.chunk or 1)).clamp(max=c.max_new_tokens)
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
    ids = logits.sort(dim=-1, descending=True, stable=True)[1][:, :k].sort(-1)[0]
    return torch.cat((ids.double(), logp.gather(1, ids).double()), 1)
