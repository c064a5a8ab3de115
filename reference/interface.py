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
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from reference.randomness import (
    ACCEPT,
    CHOICE,
    CUT,
    RESAMPLE,
    SWAP,
    TOKEN,
    absorb,
    address,
    child_seed,
    int64,
    key_of,
    uniform,
    unit,
)
from reference.samples import Cost, Generation, Sample, Samples
from reference.token_law import inverse_cdf, keep_best, log_law

__all__ = [
    "ACCEPT", "CHOICE", "CUT", "RESAMPLE", "SWAP", "TOKEN", "Cache", "Chance", "Cost", "Drawn", "Generation",
    "LanguageModel", "Sample", "Samples", "absorb", "address", "check_horizons", "check_law", "check_prompts",
    "child_seed", "int64", "inverse_cdf", "keep_best", "key_of", "log_law", "next_logits", "prefill", "uniform", "unit",
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
        raise ValueError(f"the model's logits are not a law (NaN or infinite) after {len(response)} response tokens")
    return logits


def prefill(model: LanguageModel, tokens: Tensor, cache: Any) -> None:
    """Keys and values of tokens [rows, time], which begin their rows, into a cache: so many positions at a time."""
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
    chunk = max(1, POSITIONS_PER_CALL // len(tokens))
    for some, where in zip(tokens.split(chunk, 1), positions.split(chunk, 1)):
        model(some, where, cache, logits=False)


# ---------------------------------------------------------------------------------------------------------------------
# Whether a request makes sense: one line that names the thing, the value and the remedy, before anything is computed


def check_prompts(model: LanguageModel, prompts: Sequence, name: str = "prompt") -> list[Tensor]:
    """Token ids as int64 tensors. ValueError: no prompt, an empty one, an id outside the vocabulary."""
    if not len(prompts):
        raise ValueError(f"no {name}s were given")
    texts = [torch.as_tensor(prompt, dtype=torch.int64, device=model.device) for prompt in prompts]
    for i, text in enumerate(texts):
        if text.dim() != 1 or not len(text):
            raise ValueError(f"{name} {i} is empty or not a list of ids; give at least one token (a BOS id, say)")
    flat = torch.cat(texts)
    if flat.min() < 0 or flat.max() >= model.vocab_size:
        i = next(i for i, text in enumerate(texts) if text.min() < 0 or text.max() >= model.vocab_size)
        bad = next(t for t in texts[i].tolist() if not 0 <= t < model.vocab_size)
        raise ValueError(f"{name} {i} has id {bad}, outside the model's vocabulary 0..{model.vocab_size - 1}")
    return texts


def check_horizons(model: LanguageModel, texts: list[Tensor], max_new_tokens: int | Sequence[int]) -> list[int]:
    """Each prompt's horizon. ValueError: below 1, or prompt and response together beyond the model's maximum."""
    given = [max_new_tokens] * len(texts) if isinstance(max_new_tokens, int) else max_new_tokens
    horizons = [int(horizon) for horizon in given]
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


def check_law(model: LanguageModel, stop_ids: list[int], temperature: float, top_k: int | None, top_p: float | None):
    """ValueError: a setting of the proposal law, or a stop id, out of range."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be 0 (greedy) or a positive number")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; it must be at least 1, or None to keep every id")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be in (0, 1], or None to keep every id")
    for stop in stop_ids:
        if not 0 <= stop < model.vocab_size:
            raise ValueError(f"stop id {stop} is outside the model's vocabulary 0..{model.vocab_size - 1}")


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

    def ancestors(self, weights: Sequence[float] | Tensor, scheme: str, *, position: int) -> list[int]:
        """n of 0 .. n−1, each in proportion to weights [n] on average: "multinomial" draws them independently,
        "systematic" takes the points (u + i)/n, i = 0 .. n−1, of a single u."""

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

    def ancestors(self, weights: Sequence[float] | Tensor, scheme: str, *, position: int) -> list[int]:
        n = len(weights)
        if scheme == "systematic":
            u = ((self.number(RESAMPLE, 0, position) + torch.arange(n)) / n).clamp(max=1 - 2.0**-53)
        else:
            u = torch.cat([self.number(RESAMPLE, i, position) for i in range(n)])
        log_weights = torch.as_tensor(weights, dtype=torch.float64).log()
        return inverse_cdf(log_weights.expand(n, n), u)[0].tolist()

    def child(self, *labels: int | str) -> Drawn:
        return Drawn(child_seed(self.seed, *labels), self.key, self.number_of_sample, asked=self.asked)

    def sample(self, i: int, of: int = 1) -> Drawn:
        return Drawn(self.seed, self.key, self.number_of_sample * of + i, asked=self.asked)
