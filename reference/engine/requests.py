"""What is asked of the engine: requests with their addresses, in a plan that every sampler makes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reference.engine.records import Table
from reference.interface import LanguageModel, check_count, check_horizons, check_keys, check_prompts, check_stop_ids
from reference.randomness import key_of

BYTES_PER_TOKEN = 24  # of a response: its token, log p, log q, random number


@dataclass
class Requests(Table):
    """n requests, as int64 tensors [n]."""

    prompt: Tensor  # index into the plan's prompts
    key: Tensor  # the address of its random numbers: the prompt's key,
    sample: Tensor  # and which of the prompt's samples
    limit: Tensor  # most response tokens
    index: Tensor  # 0 .. n−1


@dataclass(frozen=True)
class Plan:
    """Everything that a loop needs to know; `requests` in the order in which they are begun."""

    model: LanguageModel
    prompts: list[Tensor]  # int64 ids
    stop_ids: list[int]
    requests: Requests
    each: int  # requests for each prompt
    slots: int  # requests decoded at a time
    horizon: int  # the longest limit
    seed: int
    names: Sequence[int | str] | None  # the caller's keys, for messages
    order: list[int]  # prompt i of the plan is the caller's prompt order[i]

    def check_finite(self, logp: Tensor, logq: Tensor, request: Tensor) -> None:
        """ValueError: NaN or infinite logits, which make a token's log-probability NaN, or its proposal's, in responses
        that have ended. logp, logq [n, horizon]; request int64 [n]: theirs."""
        if (bad := logp.isnan() | logq.isnan()).any():
            row, position = bad.nonzero()[0].tolist()
            prompt, sample = divmod(int(request[row]), self.each)
            prompt = self.order[prompt]
            name = f" (key {self.names[prompt]!r})" if self.names is not None else ""
            raise ValueError(
                f"the model's logits are not finite for prompt {prompt}{name}, sample {sample}, at "
                f"response position {position}; {why_not_finite(self.model)}"
            )


def why_not_finite(model: LanguageModel) -> str:
    """What a user can do about logits that are not finite."""
    weights = list(getattr(model, "parameters", list)())
    if not all(bool(weight.isfinite().all()) for weight in weights):
        return "its weights hold NaN or infinity, so the checkpoint is broken; take another"
    if any(weight.dtype in (torch.float16, torch.bfloat16) for weight in weights):
        return "try float32 weights"
    return "its weights are finite, so they overflow in the forward pass"


def make_plan(
    model: LanguageModel, prompts: Sequence[Sequence[int] | Tensor], max_new_tokens: int | Sequence[int], *,
    stop_ids: Iterable[int], samples_per_prompt: int, slots: int | None, seed: int, keys: Sequence[int | str] | None,
    group: int = 1, caches: int = 1, first_sample: int | Sequence[int] = 0, longest_first: bool = False,
) -> Plan:  # fmt: skip
    """Check what is asked, and number it.

    group: requests that begin and end together, `samples_per_prompt` groups for each prompt. caches: rows of keys and
    values for each slot. first_sample: the number of each prompt's first sample (one, or one for each prompt).
    longest_first: begin with the longest, so that the last to end are short; prompts of like lengths are prefilled
    together. ValueError: what `generate` refuses.
    """
    stops, texts = check_stop_ids(model, stop_ids), check_prompts(model, prompts)
    horizons = check_horizons(model, texts, max_new_tokens)
    samples_per_prompt = check_count("samples_per_prompt", samples_per_prompt, least=1)
    keys = None if keys is None else check_keys(keys, len(texts))
    seed, slots = check_count("seed", seed), None if slots is None else check_count("slots", slots)
    order, n, device = list(range(len(texts))), samples_per_prompt * group, model.device
    check_memory(model, len(texts) * n, group * caches, max(horizons), max(map(len, texts)))
    if longest_first:
        order.sort(key=lambda i: (-horizons[i], -len(texts[i])))
    names = order if keys is None else [keys[i] for i in order]
    first = [first_sample] * len(order) if isinstance(first_sample, int) else [first_sample[i] for i in order]

    def of_prompts(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=device)[index // n]

    index = torch.arange(len(texts) * n, device=device)
    requests = Requests(
        prompt=index // n, key=of_prompts([key_of(name) for name in names]), sample=index % n + of_prompts(first),
        limit=of_prompts([horizons[i] for i in order]), index=index,
    )  # fmt: skip
    capacity = max(map(len, texts)) + max(horizons)
    return Plan(
        model, [texts[i] for i in order], stops, requests, n,
        choose_slots(slots, model, len(requests), capacity, caches, group), max(horizons), seed, keys, order,
    )  # fmt: skip


def check_memory(model: LanguageModel, requests: int, rows: int, horizon: int, longest: int) -> None:
    """ValueError: the responses, or the keys and values of rows that go on together, do not fit this machine."""
    cached = getattr(model, "kv_bytes_per_token", lambda: 0)() * (longest + horizon)
    need = requests * horizon * BYTES_PER_TOKEN + rows * (cached + 32 * model.vocab_size)
    have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if model.device.type == "cuda":
        have = max(have, torch.cuda.get_device_properties(model.device).total_memory)
    if need > have:
        raise ValueError(
            f"{requests:,} responses of up to {horizon:,} tokens, {rows:,} rows at a time, take {need / 1e9:,.0f} GB, "
            f"and there are {have / 1e9:,.0f}; ask for fewer"
        )


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
        logits = 32 * model.vocab_size  # and logits in float32, their cumulative sums in float64
        per_slot = caches * (capacity * bytes_of() + logits)
        slots = max(1, min(256, free * 3 // 4 // per_slot))
    return min(max(slots, group) // group * group, requests)
