"""Sampling from a language model.

    x_t ~ q(· | prompt, x_<t),   q = top-p ∘ top-k ∘ softmax(log p / temperature),   until a stop id or the horizon

Randomness is addressed, not streamed (`reference/randomness.py`): a token is the inverse CDF of its address's number,
in float64 and in id order. So a request's tokens depend neither on the batch that it shares nor on the slot it falls
into, runs resume exactly, and two procedures that should be the same can be tested for equal tokens, not equal
distributions.

The model's own generation defaults (repetition penalty, top-p, ...) are never applied: they would change the
distribution.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reference.interface import (
    POSITIONS_PER_CALL,
    TOKEN,
    Cache,
    Chance,
    Cost,
    Drawn,
    Generation,
    LanguageModel,
    Sample,
    Samples,
    check_count,
    check_horizons,
    check_prompts,
    check_stop_ids,
    child_seed,
    inverse_cdf,
    key_of,
    log_law,
    next_logits,
    shown,
    uniform,
)

__all__ = [
    "TOKEN", "Cache", "Chance", "Cost", "Drawn", "GenerateConfig", "Generation", "LanguageModel", "Sample", "Samples",
    "check_horizons", "check_prompts", "check_settings", "check_stop_ids", "check_token_settings", "child_seed",
    "extend", "generate", "generate_page", "inverse_cdf", "key_of", "log_law", "log_probs", "next_logits", "score",
    "stream", "uniform",
]  # fmt: skip


MOST = 1 << 40  # of anything that is counted
LARGEST = 1e15  # of other numbers: float32 holds its products with another such
UNBOUNDED = ("clip", "low", "high")  # of what is clipped: inf is never
COLDEST = 1e-6  # temperature above 0: below it float32 cannot tell logits apart


def check_settings(
    settings: Any, *, positive: Collection[str] = (), least: Mapping[str, float] | None = None,
    among: Mapping[str, Collection] | None = None,
) -> None:  # fmt: skip
    """ValueError: a setting of another type than its annotation's, or a number that is not finite and above 0, or below
    its least value, or more than any machine can hold, or none of the known words. None passes where it may be."""
    for field in fields(settings):
        kind, *others = str(field.type).split(" | ")
        if (value := getattr(settings, field.name)) is not None or "None" not in others:
            value = as_declared(field.name, value, kind if others in ([], ["None"]) else "any")
            object.__setattr__(settings, field.name, value)
    for name in positive:
        if (value := getattr(settings, name)) is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; it must be a positive number")
    for name, low in (least or {}).items():
        if (value := getattr(settings, name)) is not None and not value >= low:
            raise ValueError(f"{name} is {value}; it must be at least {low}")
        if value == math.inf and name not in UNBOUNDED:
            raise ValueError(f"{name} is inf; it must be a finite number")
    for name, known in (among or {}).items():
        if (value := getattr(settings, name)) not in known:
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, known))}")


def as_declared(name: str, value: Any, kind: str) -> Any:
    """A setting as its annotation says: numbers of numpy and torch become Python's, lists tuples."""
    words = {"float": "a number", "bool": "true or false", "str": "a word"}
    if kind.startswith("tuple[") and isinstance(value, list | tuple):
        return tuple(as_declared(name, each, kind[6:].partition(",")[0].split(" ")[0]) for each in value)
    if kind == "int":
        value = check_count(name, value)
    elif kind == "float" and getattr(value, "shape", ()) == () and hasattr(value, "__float__"):
        value = value if isinstance(value, bool | int) else float(value)
    known = kind in words or kind.startswith("tuple[") or kind.endswith("Config")
    if known and type(value).__name__ != kind and not (kind == "float" and type(value) is int):
        raise ValueError(f"{name} is {shown(value)}; it must be {words.get(kind, 'of the type ' + kind)}")
    if type(value) is int and abs(value) > MOST and name != "seed":
        raise ValueError(f"{name} is {value}; no machine can hold so many, {MOST} at most")
    if type(value) is float and LARGEST < abs(value) < math.inf:
        raise ValueError(f"{name} is {value}; it must be at most {LARGEST:g}")
    return value


def check_token_settings(settings: Any) -> None:
    """ValueError: max_new_tokens (one number, or one for each prompt), temperature, top_k or top_p out of range."""
    check_settings(settings)
    most, temperature, top_p = settings.max_new_tokens, settings.temperature, settings.top_p
    several = isinstance(most, list | tuple | range) or getattr(most, "shape", ()) != ()
    counts = [check_count("max_new_tokens", tokens) for tokens in (most if several else [most])]
    if wrong := [tokens for tokens in counts if not 1 <= tokens <= MOST]:
        raise ValueError(f"max_new_tokens is {wrong[0]}; it must be at least 1")
    object.__setattr__(settings, "max_new_tokens", counts if several else counts[0])
    if not (temperature == 0 or COLDEST <= temperature < math.inf):
        raise ValueError(
            f"temperature is {temperature}; it must be 0 (greedy) or a positive number, at least {COLDEST}"
        )
    if (top_k := getattr(settings, "top_k", None)) is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; it must be at least 1, or None to keep every id")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be in (0, 1], or None to keep every id")


@dataclass(frozen=True)
class GenerateConfig:
    """Settings: how long a response may be, and the distribution of a token."""

    max_new_tokens: int | Sequence[int]  # the horizon: most response tokens; one for all prompts, or one for each
    temperature: float = 1.0  # 0 is greedy decoding
    top_k: int | None = None  # keep the k likeliest ids
    top_p: float | None = None  # keep the likeliest ids up to this mass

    def __post_init__(self) -> None:
        """ValueError: a setting out of range."""
        check_token_settings(self)


# ---------------------------------------------------------------------------------------------------------------------
# The page


class Response(NamedTuple):
    tokens: tuple[int, ...]


def generate_page(
    model: LanguageModel, prompt: Sequence[int], config: GenerateConfig, *, stop_ids: Collection[int], chance: Chance
) -> Response:
    """One response to one prompt."""
    if not isinstance(config.max_new_tokens, int):
        raise ValueError(f"max_new_tokens is {config.max_new_tokens}; it must be one number for one prompt")
    law = config.temperature, config.top_k, config.top_p
    return Response(extend(model, prompt, (), config.max_new_tokens, *law, stop_ids=stop_ids, chance=chance))


def extend(
    model: LanguageModel, prompt: Sequence[int], x: Sequence[int], horizon: int, temperature: float = 1.0,
    top_k: int | None = None, top_p: float | None = None, *, step: int = 0, stop_ids: Collection[int], chance: Chance,
) -> tuple[int, ...]:  # fmt: skip
    """The response x, open or ended, continued until a stop id or a length of `horizon`."""
    x = tuple(x)
    while len(x) < horizon and not (x and x[-1] in stop_ids):
        logq = log_law(next_logits(model, prompt, x), temperature, top_k, top_p)
        x = (*x, chance.token(logq, step=step, position=len(x)))
    return x


def log_probs(
    model: LanguageModel, prompt: Sequence[int], x: Sequence[int], temperature: float = 1.0, top_k: int | None = None,
    top_p: float | None = None, *, first: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """log p and log q of each token of the response x from position `first` on: float64 [|x| − first] each."""
    logits, here = next_logits(model, prompt, x, first), torch.tensor(x[first:], dtype=torch.int64)[:, None]
    laws = logits.log_softmax(-1), log_law(logits, temperature, top_k, top_p)
    return laws[0].gather(1, here)[:, 0], laws[1].gather(1, here)[:, 0]


# ---------------------------------------------------------------------------------------------------------------------
# Many at a time


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int] | Tensor],
    config: GenerateConfig | None = None,
    *,
    stop_ids: Iterable[int],
    samples_per_prompt: int = 1,
    first_sample: int | Sequence[int] = 0,
    slots: int | None = None,
    seed: int = 0,
    keys: Sequence[int | str] | None = None,
    continuing: Samples | None = None,
    keep_cache: bool = False,
    **settings,
) -> Generation:
    """Draw `samples_per_prompt` independent responses to each prompt.

    prompts: token ids, of any lengths. config: or its fields as settings, `max_new_tokens=64`. stop_ids: ids that end a
    response and belong to it; may be empty. first_sample: the number of each prompt's first sample (one, or one for
    each prompt), so that more can be drawn later. slots: requests decoded at a time (None: as many as fit the memory);
    it changes the speed, not the tokens. keys: what addresses a prompt's randomness (default: its index), so that the
    same prompt draws the same in any batch. continuing: responses [prompts, samples_per_prompt] that are to go on; with
    the same seed and keys the tokens are those of one longer draw. keep_cache: keep the keys and values of each
    response (`samples.kept`, also through `take`, `rows` and `cat`), so that it goes on without being prefilled again.

    ValueError: an empty prompt, an id outside the vocabulary, a text beyond the model's maximum, a setting out of
    range, logits that are not finite.
    """
    from reference.engine.continuing import Continuing
    from reference.engine.decoder import Decoder, filtered
    from reference.engine.loop import run
    from reference.engine.requests import make_plan

    if config is None:
        config = GenerateConfig(**settings)
    elif settings:
        raise TypeError(f"give the settings {', '.join(settings)} in the config, or no config")
    plan = make_plan(
        model, prompts, config.max_new_tokens, stop_ids=stop_ids, samples_per_prompt=samples_per_prompt, slots=slots,
        seed=seed, keys=keys, first_sample=first_sample, longest_first=True,
    )  # fmt: skip
    distribution, order = filtered(config.temperature, config.top_k, config.top_p), torch.tensor(plan.order)
    if continuing is not None:
        continuing = continuing.rows(order.to(model.device)) if len(continuing) == len(order) else continuing
        check_continuing(continuing, plan.requests.limit.view(len(order), -1))
    plain = continuing is None and not keep_cache
    decoder = Decoder(plan, distribution) if plain else Continuing(plan, distribution, continuing, keep_cache)
    drawn, back = run(decoder, plan, "generate"), order.argsort().to(model.device)  # in the caller's order
    samples, costs = drawn.samples.rows(back), [drawn.costs[i] for i in back.tolist()]
    samples.kept = decoder.rows_kept(back, plan.each) if isinstance(decoder, Continuing) else None
    return Generation(samples, costs)


def check_continuing(given: Samples, limits: Tensor) -> None:
    """ValueError: other responses than those that are to go on, or longer ones than asked for, int64 [prompts, n]."""
    if given.lengths.shape != limits.shape:
        raise ValueError(f"continuing has responses {list(given.lengths.shape)}; it must have {list(limits.shape)}")
    if (width := given.tokens.shape[2]) > limits.max():
        raise ValueError(f"continuing has room for {width} tokens; max_new_tokens must be as many or more")
    if (long := given.lengths > limits).any():
        most, asked = int(given.lengths[long][0]), int(limits[long][0])
        raise ValueError(f"continuing has a response of {most} tokens where max_new_tokens is {asked}; it must be more")


@torch.no_grad()
def stream(
    model: LanguageModel, prompt: Sequence[int] | Tensor, config: GenerateConfig, *, stop_ids: Iterable[int],
    seed: int = 0, key: int | str = 0,
) -> Iterator[int]:  # fmt: skip
    """The tokens of the one response that `generate` draws, each as soon as it is drawn. ValueError as there."""
    from reference.engine.decoder import Decoder, filtered
    from reference.engine.requests import make_plan

    plan = make_plan(
        model, [prompt], config.max_new_tokens, stop_ids=stop_ids, samples_per_prompt=1, slots=1, seed=seed, keys=[key]
    )
    decoder = Decoder(plan, filtered(config.temperature, config.top_k, config.top_p))
    decoder.load(plan.requests.index, plan.requests)
    while decoder.rows.active.any():
        decoder.advance()
        at = decoder.texts.length[0] - 1
        texts = decoder.texts
        plan.check_finite(texts.logp[:, : at + 1], texts.logq[:, : at + 1], plan.requests.index)
        yield int(decoder.texts.tokens[0, at])


# ---------------------------------------------------------------------------------------------------------------------
# Given texts


@torch.no_grad()
def score(
    model: LanguageModel,
    prompts: Sequence[Sequence[int] | Tensor],
    continuations: Sequence[Sequence[int] | Tensor],
    *,
    logits_bytes: int = 1 << 28,
) -> list[Tensor]:
    """Log-probability of each token of continuations[i] after prompts[i], at temperature 1: float32 [length] each.

    Texts of like length share a batch, and both rows and positions are taken in chunks, so that no more than about
    `logits_bytes` of logits exist at a time. ValueError as in `generate`.
    """
    from reference.engine.decoder import prefill

    prompts, continuations = check_prompts(model, prompts), check_prompts(model, continuations, "continuation")
    if len(prompts) != len(continuations):
        raise ValueError(f"{len(prompts)} prompts but {len(continuations)} continuations; give one for each")
    texts = [torch.cat(pair)[:-1] for pair in zip(prompts, continuations)]  # the last token is never fed
    check_horizons(model, prompts, [len(continuation) for continuation in continuations])
    results: list[Tensor] = [torch.empty(0)] * len(texts)
    budget = max(1, logits_bytes // (8 * model.vocab_size))  # positions whose logits, and their sums, fit
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    while order:
        longest = len(texts[order[-1]])
        most = max(1, min(POSITIONS_PER_CALL // longest, budget // 64))
        rows = [order.pop() for _ in range(min(len(order), most))]
        tokens = torch.nn.utils.rnn.pad_sequence([texts[i] for i in rows], batch_first=True).to(model.device)
        targets = tokens.roll(-1, 1)
        for row, i in enumerate(rows):
            targets[row, len(texts[i]) - 1] = continuations[i][-1]
        positions = torch.arange(longest, device=model.device).expand(tokens.shape)
        cache = model.new_cache(len(rows), longest)
        first = min(len(prompts[i]) for i in rows) - 1  # before it nobody's continuation is predicted
        if first:
            prefill(model, tokens[:, :first], cache)
        logp = torch.zeros(tokens.shape, device=model.device)
        for a in range(first, longest, chunk := max(1, budget // len(rows))):
            part = slice(a, a + chunk)
            logits = model(tokens[:, part], positions[:, part], cache)
            chosen = logits.gather(-1, targets[:, part, None])[..., 0]
            logp[:, part] = (chosen - logits.logsumexp(-1)).float()
        for row, i in enumerate(rows):
            results[i] = logp[row, len(prompts[i]) - 1 : len(texts[i])].clone()
    for i, values in enumerate(results):
        if values.isnan().any():
            raise ValueError(f"the model's logits are not finite for prompt {i}")
    return results
