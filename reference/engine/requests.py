"""What is asked of a decoder: requests, and how many of them fit at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reference.interface import LanguageModel
from reference.randomness import key_of


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
    order: Sequence[int] | None = None, first: int | Sequence[int] = 0,
) -> Requests:  # fmt: skip
    """Samples first .. first + n − 1 of each text (first: one, or one for each text).

    order: text i is the caller's prompt order[i]; keys and first are in the caller's order. ValueError: n below 1, or
    another number of keys."""
    if n < 1:
        raise ValueError(f"samples_per_prompt is {n}; it must be at least 1")
    if keys is not None and len(keys) != len(texts):
        raise ValueError(f"{len(keys)} keys for {len(texts)} prompts; give one for each")
    named = [key_of(name) for name in (range(len(texts)) if keys is None else keys)]
    named = named if order is None else [named[i] for i in order]
    requests = Requests.of(torch.tensor(named, device=model.device), n, torch.tensor(horizons, device=model.device))
    if not isinstance(first, int):
        begin = torch.tensor([first[i] for i in order or range(len(texts))], device=model.device)
        return replace(requests, sample=requests.sample + begin[requests.prompt])
    return replace(requests, sample=requests.sample + first)


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
