"""What is asked of a decoder: requests, whether they make sense, and how many of them fit at a time.

Bad input is refused here, before anything is computed, by a ValueError whose one line names the thing, the value and
the remedy.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reference.randomness import key_of

if TYPE_CHECKING:
    from reference.sampling import LanguageModel

POSITIONS_PER_CALL = 1 << 11  # how many positions prefilling and scoring compute at a time


@dataclass(frozen=True)
class Requests:
    """n requests, as int64 tensors [n]."""

    prompt: Tensor  # index into the decoder's prompts
    key: Tensor  # the address of its random numbers: the prompt's key,
    sample: Tensor  # and which of the prompt's samples
    horizon: Tensor  # most response tokens
    index: Tensor  # 0 .. n-1

    @classmethod
    def of(cls, keys: Tensor, n: int, horizons: Tensor) -> Requests:
        """n samples of each prompt, from its key and its horizon (int64 [prompts]), in the order of the prompts."""
        index = torch.arange(len(keys) * n, device=keys.device)
        return cls(index // n, keys[index // n], index % n, horizons[index // n], index)

    def __len__(self) -> int:
        return len(self.prompt)

    def __getitem__(self, chosen: Tensor) -> Requests:
        return Requests(*(tensor[chosen] for tensor in vars(self).values()))


def prefill(model: LanguageModel, tokens: Tensor, cache: Any) -> None:
    """Keys and values of tokens [rows, time], which begin their rows, into a cache: so many positions at a time."""
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
    chunk = max(1, POSITIONS_PER_CALL // len(tokens))
    for some, where in zip(tokens.split(chunk, 1), positions.split(chunk, 1)):
        model(some, where, cache, logits=False)


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


def check_finite(
    logp: Tensor, request: Tensor, n: int, keys: Sequence[int | str] | None, order: Sequence[int] | None = None
) -> None:
    """NaN or infinite logits make the token's log-probability NaN: looked for in the requests that have ended."""
    if (bad := logp.isnan()).any():
        row, position = bad.nonzero()[0].tolist()
        prompt, sample = divmod(int(request[row]), n)
        prompt = prompt if order is None else order[prompt]
        name = f" (key {keys[prompt]!r})" if keys is not None else ""
        raise ValueError(
            f"the model's logits are not a law (NaN or infinite) for prompt {prompt}{name}, sample {sample}, at "
            f"response position {position}; try float32 weights"
        )


def make_requests(
    model: LanguageModel, texts: list[Tensor], horizons: list[int], n: int, keys: Sequence[int | str] | None,
    order: Sequence[int] | None = None,
) -> Requests:  # fmt: skip
    """n samples of each text. order: text i is the caller's prompt order[i]; keys are in the caller's order.
    ValueError: n below 1, or another number of keys."""
    if n < 1:
        raise ValueError(f"samples_per_prompt is {n}; it must be at least 1")
    if keys is not None and len(keys) != len(texts):
        raise ValueError(f"{len(keys)} keys for {len(texts)} prompts; give one for each")
    named = [key_of(name) for name in (range(len(texts)) if keys is None else keys)]
    named = named if order is None else [named[i] for i in order]
    return Requests.of(torch.tensor(named, device=model.device), n, torch.tensor(horizons, device=model.device))


def choose_slots(
    slots: int | None, model: LanguageModel, requests: int, capacity: int, caches: int = 1, group: int = 1
) -> int:
    """How many requests to decode at a time: `slots`, but no more than there are; or up to 256, if their caches and
    logits fit three quarters of the free memory. Always a multiple of `group`."""
    if slots is not None and slots < group:
        raise ValueError(f"slots is {slots}; it must be at least {group}")
    if slots is None:
        if model.device.type == "cuda":
            idle = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
            free = torch.cuda.mem_get_info(model.device)[0] + idle  # torch keeps what it has freed
        else:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        bytes_of = getattr(model, "kv_bytes_per_token", lambda: 0)
        laws = 32 * model.vocab_size  # and logits in float32, their cumulative sums in float64
        per_slot = caches * (capacity * bytes_of() + laws)
        slots = max(1, min(256, free * 3 // 4 // per_slot))
    return min(max(slots, group) // group * group, requests)
