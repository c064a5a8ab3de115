"""One decision after another: the machine of `reference/lookahead.py`.

A response is a slot, its row of a decoder the *trunk*. A decision lists candidates, rolls out what may follow each,
estimates the distribution of the candidates and draws one; the trunk goes on with a copy of the row that begins with
it. Rollouts, and chunks, grow in *branches*: rows of decoders of their own, that begin as copies of a text and of its
cache row, so nothing is prefilled again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reference.engine.decoder import Decoder, Distribution
from reference.engine.records import Store, Table
from reference.engine.requests import Plan, Requests
from reference.interface import Samples, inverse_cdf
from reference.randomness import CHOICE, uniform


class Branches(Decoder):
    """A decoder with rows [slot, *shape]."""

    def __init__(
        self, plan: Plan, shape: tuple[int, ...], distribution: Distribution, seed: int, trunk: Decoder
    ) -> None:
        super().__init__(plan, distribution, rows=plan.slots * math.prod(shape), prompts=trunk.prompts)
        self.shape, self.seed = shape, seed
        self.rows.limit[:] = plan.horizon

    def rows_of(self, slots: Tensor) -> Tensor:
        """Those of some slots, int64 [n, *shape]."""
        size = math.prod(self.shape)
        return (slots[:, None] * size + torch.arange(size, device=slots.device)).view(-1, *self.shape)

    def fork(self, rows: Tensor, source: Store, of: Tensor, length: Tensor) -> None:
        """Continue the first `length` tokens of rows `of` of another store in `rows`; all int64, of one shape."""
        self.take(rows.flatten(), source, of.flatten(), length.flatten())
        self.resume(rows.flatten(), length.flatten())

    def finish(self, rows: Tensor, key: Tensor, sample: Tensor, step: Tensor) -> Tensor:
        """Decode `rows` [n, *shape] to their ends, with the random numbers of keys and samples [n] and steps [n,
        *shape]; how many tokens each took, [n, *shape]."""
        times = math.prod(self.shape)
        addresses = key.repeat_interleave(times), sample.repeat_interleave(times), step.flatten()
        self.rows.uniforms[rows.flatten()] = self.numbers(*addresses)
        self.rows.decoded[rows] = 0
        while self.rows.active.any():
            self.advance()
        return self.rows.decoded[rows]

    def log_weight(self, rows: Tensor, start: Tensor, alpha: float, of_proposal: float = 1.0) -> Tensor:
        """Σ α log p − `of_proposal` · log q over the tokens from `start` on: float64, of the rows' shape."""
        texts = self.texts
        w = alpha * texts.logp[rows].double() - of_proposal * texts.logq[rows].double()
        inside = (self.columns >= start[..., None]) & (self.columns < texts.length[rows][..., None])
        return w.masked_fill(~inside, 0).sum(-1)


@dataclass
class Slots(Table):
    """What is known of each response, int64 [S]."""

    request: Tensor
    key: Tensor
    sample: Tensor
    waited: Tensor  # tokens that waited for each other


class Lookahead:
    """Machine of responses; `advance` is one decision. `rollouts` has rows [response, candidate, rollout], `chunks`
    rows [response, candidate]."""

    group = 1

    def __init__(
        self, plan: Plan, *, alpha: float, candidates: int, rollouts: int, chunk: int | None, exact: bool,
        rollout_law: Distribution, chunk_law: Distribution, rollout_seed: int,
        estimate: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> None:  # fmt: skip
        """chunk: tokens decided on at a time; None: one, of the likeliest. exact: chunks are weighed by p^α/q, not by
        p^α. estimate: log X_r [n, K, M] -> the candidates' distribution [n, K], and where it was clipped, bool [n]."""
        self.alpha, self.chunk, self.exact, self.estimate, self.horizon = alpha, chunk, exact, estimate, plan.horizon
        K = candidates
        measure = (lambda logits: likeliest(logits, K)) if chunk is None else None
        self.trunk = Decoder(plan, lambda logits, logp: logp, measure=measure, measures=2 * K * (chunk is None))
        self.rollouts = Branches(plan, (K, rollouts), rollout_law, rollout_seed, self.trunk)
        self.chunks = Branches(plan, (K,), chunk_law, plan.seed, self.trunk) if chunk else None
        self.prompts = self.trunk.prompts
        self.slots = Slots(*torch.zeros((4, plan.slots), dtype=torch.int64, device=plan.model.device))
        self.decisions, self.clipped = torch.zeros_like(plan.requests.index).repeat(2, 1)

    def load(self, slots: Tensor, requests: Requests) -> None:
        self.trunk.load(slots, requests)
        self.slots.put(slots, Slots(requests.index, requests.key, requests.sample, torch.zeros_like(slots)))

    def advance(self) -> Tensor:
        """One token or chunk for every response; bool [S]: those that it has ended."""
        trunk, rollouts, running = self.trunk, self.rollouts, self.running().clone()
        slots = running.nonzero()[:, 0]
        at, request, rows = trunk.texts.length[slots], self.slots.request[slots], rollouts.rows_of(slots)  # [n, K, M]
        log_mass = (self.list_tokens if self.chunk is None else self.draw_chunks)(slots, at, rows)  # [n, K]
        ends = rollouts.texts.length[rows]  # of the candidates
        size = rows[0].numel()
        self.roll(rollouts, rows, slots, at[:, None, None] * size + rows % size)
        law, clipped = self.estimate(log_mass[..., None] + rollouts.log_weight(rows, ends, self.alpha))
        self.decisions[request] += 1
        self.clipped[request] += clipped

        u = trunk.rows.uniforms[slots, at]  # a token's, as in `generate`: α = 1, or one token, draws the same
        if self.chunk is not None:
            u = uniform(trunk.seed, self.slots.key[slots], self.slots.sample[slots], 0, at, CHOICE)
        here, pick = torch.arange(len(slots), device=slots.device), inverse_cdf(law.log(), u)[0]
        trunk.take(slots, rollouts, rows[here, pick, 0], ends[here, pick, 0])
        trunk.resume(slots, ends[here, pick, 0])
        if self.chunk is None:
            trunk.texts.logq[slots, at] = law[here, pick].log().float()
        return running & ~self.running()

    def list_tokens(self, slots: Tensor, at: Tensor, rows: Tensor) -> Tensor:
        """Begin rows with the likeliest tokens; log p^α of each, [n, K]."""
        (K, M), branches, texts = self.rollouts.shape, self.rollouts, self.rollouts.texts
        self.trunk.advance()  # for its logits; the token that it draws is overwritten
        self.slots.waited[slots] += 1
        ids, logp = self.trunk.measured[slots].split(K, 1)
        rows, here = rows.flatten(), at.repeat_interleave(K * M)
        branches.take(rows, self.trunk, slots.repeat_interleave(K * M), here + 1)
        texts.tokens[rows, here] = ids.long().flatten().repeat_interleave(M)
        texts.logp[rows, here] = logp.float().flatten().repeat_interleave(M)
        branches.resume(rows, here + 1)
        branches.rows.active[rows] &= logp.flatten().repeat_interleave(M) > -math.inf  # what cannot be has no future
        return self.alpha * logp

    def draw_chunks(self, slots: Tensor, at: Tensor, rows: Tensor) -> Tensor:
        """Draw chunks, and begin rows with each; their log weights without what may follow, [n, L]."""
        chunks = self.chunks
        assert chunks is not None and self.chunk is not None
        drawn, of = chunks.rows_of(slots), slots[:, None]
        chunks.rows.limit[drawn] = (at[:, None] + self.chunk).clamp(max=self.horizon)
        chunks.fork(drawn, self.trunk, of.expand_as(drawn), at[:, None].expand_as(drawn))
        self.roll(chunks, drawn, slots, drawn % drawn.shape[1])  # the same steps each time: the positions differ
        of = drawn[..., None].expand_as(rows)
        self.rollouts.fork(rows, chunks, of, chunks.texts.length[of])
        return chunks.log_weight(drawn, at[:, None], self.alpha, of_proposal=float(self.exact))

    def roll(self, branches: Branches, rows: Tensor, slots: Tensor, step: Tensor) -> None:
        """Decode rows of some slots to their ends, and count it."""
        decoded = branches.finish(rows, self.slots.key[slots], self.slots.sample[slots], step).flatten(1)
        self.trunk.rows.decoded[slots] += decoded.sum(1)
        self.slots.waited[slots] += decoded.amax(1)

    def running(self) -> Tensor:
        return self.trunk.rows.active

    def keep(self, slots: Tensor) -> None:
        for branches in (self.rollouts, self.chunks):
            if branches is not None:
                branches.keep(branches.rows_of(slots).flatten())
        self.trunk.keep(slots)
        self.slots = self.slots[slots]

    def result(self, slots: Tensor) -> tuple[Samples, Tensor, Tensor]:
        samples, decoded, _ = self.trunk.result(slots)
        return samples, decoded, self.slots.waited[slots]


def likeliest(logits: Tensor, k: int) -> Tensor:
    """The k likeliest ids in their order (ties to the smaller), and their log-probabilities: float64 [rows, 2k]."""
    logp = logits.log_softmax(-1)
    ids = logits.sort(dim=-1, descending=True, stable=True)[1][:, :k].sort(-1)[0]
    return torch.cat((ids.double(), logp.gather(1, ids).double()), 1)
