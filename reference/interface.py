"""What algorithms and engine both stand on: the model, what is asked of it, and chance.

A *model* is anything that maps tokens to next-token logits (`LanguageModel`). A *chance* answers every question that an
algorithm leaves open, each asked at an address of its own (purpose, step, position). So an algorithm's code is a
function of a model and of a chance, and is read in two ways besides by a person:

    Drawn(seed, key, sample)    the inverse CDF of the random number at the address (`reference/randomness.py`): one
                                outcome, which the batched engine returns too, token by token
    theory/exact_law.py         every answer in turn, with its probability: the exact distribution of the outcome
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from reference.randomness import (
    ACCEPT,
    CHOICE,
    CUT,
    RESAMPLE,
    RESAMPLING,
    SWAP,
    TOKEN,
    TOLERANCE,
    child_seed,
    inverse_cdf,
    key_of,
    log_law,
    uniform,
)  # fmt: skip

__all__ = [
    "ACCEPT", "CHOICE", "CUT", "RESAMPLE", "RESAMPLING", "SWAP", "TOKEN", "TOLERANCE", "Cache", "Chance", "Cost",
    "Drawn", "Generation", "LanguageModel", "Sample", "Samples", "check_count", "check_horizons", "check_keys",
    "check_prompts", "check_stop_ids", "child_seed", "inverse_cdf", "key_of", "log_law", "next_logits", "shown",
    "uniform",
]  # fmt: skip

POSITIONS_PER_CALL = 1 << 11  # how many positions prefilling and scoring compute at a time


# ---------------------------------------------------------------------------------------------------------------------
# The model


class Cache(Protocol):
    """The memory of `rows` texts of up to `capacity` positions. It never forgets: positions decide what is visible."""

    rows: int
    capacity: int

    def copy_rows(self, source: Tensor, target: Tensor, other: Cache | None = None, length: int | None = None) -> None:
        """Copy rows `source` of `other` (default: itself) into rows `target`, the first `length` slots (default: all
        that fit). int64 [n] each; every source is read before any target is written."""


class LanguageModel(Protocol):
    """Anything that maps tokens to next-token logits: the Transformer, a table, a linear softmax model."""

    vocab_size: int

    @property
    def device(self) -> torch.device: ...

    @property
    def max_length(self) -> int | None: ...  # positions it may use; None = unbounded

    def new_cache(self, rows: int, capacity: int) -> Any: ...  # a Cache

    def __call__(
        self, tokens: Tensor, positions: Tensor | None = None, cache: Any = None, *, logits: bool = True
    ) -> Tensor:
        """tokens, positions int64 [rows, time] -> logits [rows, time, vocab], float32 (float64 if the model is);
        `logits=False` only fills the cache and gives None. Without a cache rows are whole texts, positions None."""


@torch.no_grad()
def next_logits(
    model: LanguageModel, prompt: Sequence[int], response: Sequence[int], first: int | None = None
) -> Tensor:
    """The logits of the token after prompt and response, float64 [vocab]; or, from position `first` of the response on,
    those of every token of it, float64 [|response| − first, vocab]. The model reads the whole text: no cache.

    ValueError: they are NaN or +inf."""
    text = torch.tensor([[*prompt, *response]], dtype=torch.int64, device=model.device)
    last = len(prompt) - 1
    if first is None:
        logits = model(text)[0, -1].double().cpu()
    else:
        logits = model(text)[0, last + first : last + len(response)].double().cpu()
    if not (logits < math.inf).all():
        raise ValueError(f"the model's logits are not finite after {len(response)} response tokens")
    return logits


# ---------------------------------------------------------------------------------------------------------------------
# What algorithms return: responses in padded tensors, and what they cost in tokens


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
    logq: Tensor  # float32 [length]: under the distribution that it was drawn from
    finished: bool  # ended by a stop id (else cut at the horizon)


class Kept(NamedTuple):
    """Keys and values of responses: which row of a cache has those of each, int64 [prompts, n]."""

    cache: Any
    rows: Tensor


class Samples(Sequence):
    """Responses in padded tensors, shown as `samples[prompt][i]`; a `Sample` is made when it is looked at."""

    def __init__(
        self, tokens: Tensor, logp: Tensor, logq: Tensor, lengths: Tensor, finished: Tensor, *, kept: Kept | None = None
    ):
        """tokens int64, logp, logq [prompts, n, horizon]; lengths int64, finished bool [prompts, n]; kept: their keys
        and values, if `generate` was told to keep them."""
        self.tokens, self.logp, self.logq, self.lengths, self.finished = tokens, logp, logq, lengths, finished
        self.kept = kept

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
        kept = self.kept and Kept(self.kept.cache, self.kept.rows[prompts])
        return Samples(*(tensor[prompts] for tensor in self.tensors()), kept=kept)

    def take(self, index: Tensor) -> Samples:
        """Each prompt's responses index[prompt] (int64 [prompts, k])."""
        own = torch.arange(len(self), device=index.device)[:, None]
        kept = self.kept and Kept(self.kept.cache, self.kept.rows[own, index])
        return Samples(*(tensor[own, index] for tensor in self.tensors()), kept=kept)

    @classmethod
    def cat(cls, several: Sequence[Samples]) -> Samples:
        """The responses of all of them to the same prompts, side by side: [prompts, Σ n]; of one horizon. Keys and
        values stay kept where all of them lie in one cache."""
        caches = [samples.kept.cache if samples.kept else None for samples in several]
        rows = [samples.kept.rows for samples in several if samples.kept and samples.kept.cache is caches[0]]
        kept = Kept(caches[0], torch.cat(rows, 1)) if len(rows) == len(several) else None
        return cls(*(torch.cat(parts, 1) for parts in zip(*(samples.tensors() for samples in several))), kept=kept)

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


# ---------------------------------------------------------------------------------------------------------------------
# Whether a request makes sense: one line that names the thing, the value and the remedy, before anything is computed


def check_prompts(model: LanguageModel, prompts: Sequence, name: str = "prompt") -> list[Tensor]:
    """Token ids as int64 tensors. ValueError: no prompt, an empty one, what is no id or outside the vocabulary."""
    if isinstance(prompts, str | bytes | dict) or not hasattr(prompts, "__len__") or getattr(prompts, "shape", 1) == ():
        raise ValueError(f"{name}s are {shown(prompts)}; give a list of lists of ids")
    if not len(prompts):
        raise ValueError(f"no {name}s were given")
    texts = []
    for i, prompt in enumerate(prompts):
        try:
            ids = torch.as_tensor(prompt)
            truths = {kind.__name__ for kind in {*map(type, prompt)}} & {"bool", "bool_"}
            if truths or (len(ids) and (ids.is_floating_point() or ids.dtype == torch.bool)):
                raise TypeError
            texts.append(ids.to(model.device, torch.int64))
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise ValueError(f"{name} {i} is {shown(prompt)}; give a list of ids, whole numbers") from None
    for i, text in enumerate(texts):
        if text.dim() != 1 or not len(text):
            raise ValueError(f"{name} {i} is empty or not a list of ids; give at least one token (a BOS id, say)")
    flat = torch.cat(texts)
    if flat.min() < 0 or flat.max() >= model.vocab_size:
        i, bad = next((i, t) for i, text in enumerate(texts) for t in text.tolist() if not 0 <= t < model.vocab_size)
        raise ValueError(f"{name} {i} has id {bad}, outside the model's vocabulary 0..{model.vocab_size - 1}")
    return texts


def shown(value: Any) -> str:
    """A value in a message: on one line, and not all of a long one."""
    return " ".join(repr(value).split())[:60]


def check_count(name: str, value: Any, least: int | None = None) -> int:
    """A whole number, numpy's and torch's as well. ValueError: it is none, or too small."""
    try:
        if isinstance(value, bool) or getattr(value, "dtype", None) in (torch.bool, bool):
            raise TypeError
        count = operator.index(value)
    except (TypeError, RuntimeError):
        raise ValueError(f"{name} is {shown(value)}; it must be a whole number") from None
    if least is not None and count < least:
        raise ValueError(f"{name} is {count}; it must be at least {least}")
    return count


def check_keys(keys: Any, prompts: int) -> list[int | str]:
    """What addresses each prompt's randomness; None: its index. ValueError: too few, or what is no key."""
    if keys is None:
        return list(range(prompts))
    if isinstance(keys, str | bytes | dict) or not hasattr(keys, "__len__") or getattr(keys, "shape", 1) == ():
        raise ValueError(f"keys are {shown(keys)}; give a list of numbers or names")
    if len(keys) != prompts:
        raise ValueError(f"{len(keys)} keys for {prompts} prompts; give one for each")
    return [key if isinstance(key, str) else check_count("a key", key) for key in keys]


def check_horizons(model: LanguageModel, texts: list[Tensor], max_new_tokens: int | Sequence[int]) -> list[int]:
    """Each prompt's horizon. ValueError: below 1, or prompt and response together beyond the model's maximum."""
    given = [max_new_tokens] * len(texts) if isinstance(max_new_tokens, int) else max_new_tokens
    horizons = [check_count("max_new_tokens", horizon) for horizon in given]
    if len(horizons) != len(texts):
        raise ValueError(f"{len(horizons)} values of max_new_tokens for {len(texts)} prompts; give one or one for each")
    for i, (text, horizon) in enumerate(zip(texts, horizons)):
        if horizon < 1:
            raise ValueError(f"max_new_tokens is {horizon} for prompt {i}; it must be at least 1")
        if model.max_length is not None and len(text) + horizon > model.max_length:
            raise ValueError(
                f"prompt {i} has {len(text)} tokens and max_new_tokens is {horizon}: {len(text) + horizon} in all, "
                f"more than the model's maximum of {model.max_length}; shorten one of them"
            )
    return horizons


def check_stop_ids(model: LanguageModel, stop_ids: Iterable[int]) -> list[int]:
    """ValueError: one is no id, or outside the vocabulary."""
    if isinstance(stop_ids, str | bytes) or not hasattr(stop_ids, "__iter__") or getattr(stop_ids, "shape", 1) == ():
        raise ValueError(f"stop_ids are {shown(stop_ids)}; give a list of ids, [] for none")
    for stop in (stops := [check_count("a stop id", stop) for stop in stop_ids]):
        if not 0 <= stop < model.vocab_size:
            raise ValueError(f"stop id {stop} is outside the model's vocabulary 0..{model.vocab_size - 1}")
    return stops


# ---------------------------------------------------------------------------------------------------------------------
# Chance


class Chance(Protocol):
    """Everything random that an algorithm does, as five questions. Each is asked at an address: purpose, step and
    position, which no other question of the stream has."""

    def token(self, log_probabilities: Tensor, *, step: int = 0, position: int) -> int:
        """An id from the distribution of log-probabilities [n]."""

    def index(self, n: int, purpose: int, *, step: int = 0, position: int = 0) -> int:
        """One of 0 .. n−1, all equally likely."""

    def weighted(self, weights: Sequence[float] | Tensor, purpose: int, *, step: int = 0, position: int = 0) -> int:
        """One of 0 .. n−1 in proportion to weights ≥ 0, not all 0."""

    def happens(self, log_probability: float, purpose: int, *, step: int = 0, position: int = 0) -> bool:
        """Whether log u < log_probability, u uniform on [0, 1): true with probability min(1, exp(log_probability))."""

    def ancestors(
        self, weights: Sequence[float] | Tensor, scheme: str | Callable[[Tensor], Tensor], *, position: int
    ) -> list[int]:
        """n of 0 .. n−1, each in proportion to weights [n] on average: "multinomial" draws them independently,
        "systematic" takes the points (u + i)/n, i = 0 .. n−1, of a single u; a function makes points of n uniform
        numbers."""

    def child(self, *labels: int | str) -> Chance:
        """Another stream: of a round, a try, a rollout."""

    def sample(self, i: int, of: int = 1) -> Chance:
        """The stream of the i-th of `of` parallel samples, each with the addresses of this stream."""


class Drawn:
    """Answers by the counter-based random numbers of a prompt's key and a sample, as in the engine."""

    def __init__(
        self, seed: int = 0, key: int | str = 0, sample: int = 0, *, asked: set[tuple[int, ...]] | None = None
    ) -> None:
        """asked: if given, gets every address, and one that it holds already raises ValueError. Children and samples
        share it, and one set may serve any number of streams."""
        self.seed, self.key, self.number_of_sample, self.asked = seed, key_of(key), sample, asked

    def number(self, purpose: int, step: int, position: int) -> Tensor:
        """The uniform number of an address: float64 [1]."""
        if self.asked is not None:
            here = (self.seed, self.key, self.number_of_sample, purpose, step, position)
            if here in self.asked:
                raise ValueError(f"address {here} (seed, key, sample, purpose, step, position) is asked twice")
            self.asked.add(here)
        key, sample = torch.tensor([self.key]), torch.tensor([self.number_of_sample])
        return uniform(self.seed, key, sample, step, position, purpose)

    def token(self, log_probabilities: Tensor, *, step: int = 0, position: int) -> int:
        return int(inverse_cdf(log_probabilities[None], self.number(TOKEN, step, position))[0])

    def index(self, n: int, purpose: int, *, step: int = 0, position: int = 0) -> int:
        return int(self.number(purpose, step, position) * n)

    def weighted(self, weights: Sequence[float] | Tensor, purpose: int, *, step: int = 0, position: int = 0) -> int:
        log_weights = torch.as_tensor(weights, dtype=torch.float64).log()
        return int(inverse_cdf(log_weights[None], self.number(purpose, step, position))[0])

    def happens(self, log_probability: float, purpose: int, *, step: int = 0, position: int = 0) -> bool:
        return bool(self.number(purpose, step, position).log() < float(log_probability))

    def ancestors(
        self, weights: Sequence[float] | Tensor, scheme: str | Callable[[Tensor], Tensor], *, position: int
    ) -> list[int]:
        n = len(weights)
        u = torch.cat([self.number(RESAMPLE, i, position) for i in range(1 if scheme == "systematic" else n)])
        u = (scheme if callable(scheme) else RESAMPLING[scheme])(u.expand(n))
        log_weights = torch.as_tensor(weights, dtype=torch.float64).log()
        return inverse_cdf(log_weights.expand(n, n), u)[0].tolist()

    def child(self, *labels: int | str) -> Drawn:
        return Drawn(child_seed(self.seed, *labels), self.key, self.number_of_sample, asked=self.asked)

    def sample(self, i: int, of: int = 1) -> Drawn:
        return Drawn(self.seed, self.key, self.number_of_sample * of + i, asked=self.asked)
