"""What algorithms return: responses in padded tensors, and what they cost in tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cost:
    """What a computation really used, in tokens. `a + b` composes in series, `Cost.parallel` side by side."""

    prompt_tokens: int = 0  # as a caller would be charged: each request's whole prompt
    prefilled_tokens: int = 0  # prompt positions computed; a shared prompt once
    decoded_tokens: int = 0  # response tokens, stop tokens included
    sequential_tokens: int = 0  # decoded along the longest dependent path
    calls: int = 0  # requests

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @staticmethod
    def parallel(costs: Iterable[Cost]) -> Cost:
        """Costs of computations that do not wait for each other: sums, and the longest sequential path."""
        costs = list(costs)
        total = sum(costs, Cost())
        longest = max((cost.sequential_tokens for cost in costs), default=0)
        return Cost(total.prompt_tokens, total.prefilled_tokens, total.decoded_tokens, longest, total.calls)


@dataclass(frozen=True)
class Sample:
    """One response. Sums over it are float64: `sample.logp.double().sum()`."""

    tokens: Tensor  # int64 [length], the stop token included
    logp: Tensor  # float32 [length]: log-probability of each token under the model at temperature 1
    logq: Tensor  # float32 [length]: under the law that it was drawn from
    finished: bool  # ended by a stop id (else cut at the horizon)


class Samples(Sequence):
    """Responses in padded tensors, shown as `samples[prompt][i]`; a `Sample` is made when it is looked at."""

    def __init__(self, tokens: Tensor, logp: Tensor, logq: Tensor, lengths: Tensor, finished: Tensor):
        """tokens int64, logp, logq [prompts, n, horizon]; lengths int64, finished bool [prompts, n]."""
        self.tokens, self.logp, self.logq, self.lengths, self.finished = tokens, logp, logq, lengths, finished

    @classmethod
    def empty(cls, prompts: int, n: int, horizon: int, device: torch.device) -> Samples:
        tokens = torch.zeros((prompts, n, horizon), dtype=torch.int64, device=device)
        logp, logq = torch.zeros((2, prompts, n, horizon), device=device)
        return cls(tokens, logp, logq, torch.zeros_like(tokens[..., 0]), torch.zeros_like(tokens[..., 0]).bool())

    @classmethod
    def of(
        cls, tokens: Sequence[Sequence[int]], logp: Sequence[Tensor], logq: Sequence[Tensor], stop_ids: Collection[int],
        horizon: int,
    ) -> Samples:  # fmt: skip
        """One prompt's responses, from their ids and the log-probabilities of these, [length] each."""
        samples = cls.empty(1, len(tokens), horizon, torch.device("cpu"))
        samples.logp, samples.logq = samples.logp.double(), samples.logq.double()
        for i, (ids, p, q) in enumerate(zip(tokens, logp, logq)):
            samples.tokens[0, i, : len(ids)] = torch.tensor(ids)
            samples.logp[0, i, : len(ids)], samples.logq[0, i, : len(ids)] = p, q
            samples.lengths[0, i], samples.finished[0, i] = len(ids), ids[-1] in stop_ids
        return samples

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __getitem__(self, prompt):
        return [self.sample(prompt, i) for i in range(self.tokens.shape[1])]

    def sample(self, prompt: int, i: int) -> Sample:
        n = int(self.lengths[prompt, i])
        tokens, logp, logq = (tensor[prompt, i, :n] for tensor in (self.tokens, self.logp, self.logq))
        return Sample(tokens, logp, logq, bool(self.finished[prompt, i]))

    def rows(self, prompts: Tensor) -> Samples:
        """Those of some prompts: int64 indices or a bool mask."""
        return Samples(*(tensor[prompts] for tensor in self.tensors()))

    def take(self, index: Tensor) -> Samples:
        """Each prompt's responses index[prompt] (int64 [prompts, k])."""
        return Samples(
            *(tensor[torch.arange(len(self), device=index.device)[:, None], index] for tensor in self.tensors())
        )

    def put(self, prompts: Tensor, others: Samples) -> None:
        """Replace the responses of `prompts` (int64 indices) by those of `others`."""
        for mine, theirs in zip(self.tensors(), others.tensors()):
            mine[prompts] = theirs

    def tensors(self) -> tuple[Tensor, ...]:
        return self.tokens, self.logp, self.logq, self.lengths, self.finished

    def total_logp(self) -> Tensor:
        """Log-probability of each response under the model, float64 [prompts, n]."""
        return self.logp.double().sum(-1)  # the padding is 0


@dataclass(frozen=True)
class Generation:
    """What `generate` returns."""

    samples: Samples
    costs: list[Cost]  # per prompt

    @property
    def cost(self) -> Cost:
        """Of the whole, the prompts side by side."""
        return Cost.parallel(self.costs)
