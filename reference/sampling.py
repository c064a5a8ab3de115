"""Sampling from a language model: the interface, the one decoding loop, `generate`, `score`, and what they cost.

    x_t ~ q(· | prompt, x_<t),   q = top-p ∘ top-k ∘ softmax(log p / temperature),   until a stop id or the horizon

Every algorithm here speaks to a model through `LanguageModel` and decodes through `Decoder`. It has S *slots*: rows
of one cache, each decoding its own request at its own position. A slot whose request has ended takes the next one at
once, so nobody waits for the longest; the samples of one prompt share its prefill.

Randomness is addressed, not streamed (`reference/randomness.py`): a token is the inverse CDF of its address's number,
in float64 and in id order. So a request's tokens depend neither on the batch that it shares nor on the slot it falls
into, runs resume exactly, and two procedures that should be the same can be tested for equal tokens, not equal laws.

The model's own generation defaults (repetition penalty, top-p, ...) are never applied: they would change the law.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from reference.randomness import TOKEN, absorb, address, child_seed, key_of, uniform, unit
from reference.samples import Cost, Generation, Sample, Samples

__all__ = [
    "Cache", "Cost", "Decoder", "Generation", "LanguageModel", "Requests", "Sample", "Samples", "child_seed",
    "generate", "generate_naive", "inverse_cdf", "log_law", "score", "uniform",
]  # fmt: skip


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


# ---------------------------------------------------------------------------------------------------------------------
# The law of one token


def log_law(
    logits: Tensor, temperature: float | Tensor = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """The proposal law, log q [rows, vocab], of logits [rows, vocab]; -inf where a filter has cut.

    Order of filters: temperature; top-k, exactly k ids, ties to the smaller id; top-p on the renormalised law: sorted
    by (-q, id), an id stays iff the mass before it is < top_p. Temperature 0 is all mass on the first arg max.
    Temperatures [rows] > 0 give each row its own.
    """
    if isinstance(temperature, Tensor):
        logits = (logits - logits.amax(-1, keepdim=True)) / temperature[:, None].to(logits.dtype)
    elif temperature == 0:
        best = torch.full_like(logits, -math.inf)
        return best.scatter_(-1, logits.argmax(-1, keepdim=True), 0.0)
    elif temperature != 1:
        logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # the largest is 0: nothing overflows
    logq = logits.log_softmax(-1)
    if top_k is not None and top_k < logits.shape[-1]:
        logq = keep_best(logq, lambda mass: torch.arange(mass.shape[-1], device=mass.device) < top_k)
    if top_p is not None and top_p < 1:
        logq = keep_best(logq, lambda mass: mass.cumsum(-1) - mass < top_p)
    return logq


def keep_best(logq: Tensor, keep: Callable[[Tensor], Tensor]) -> Tensor:
    """Cut a law to the ids that `keep` (float64 masses in falling order -> bool) keeps, and renormalise it."""
    ranked, ids = logq.sort(dim=-1, descending=True, stable=True)  # stable: ties keep the order of ids
    cut = ~keep(ranked.double().exp())
    return logq.scatter(-1, ids, ranked.masked_fill(cut, -math.inf)).log_softmax(-1)


def inverse_cdf(logq: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The ids that u in [0, 1), float64 [rows], draws from laws log q [rows, vocab]: int64 [rows], and for each the
    interval low <= u < high, float64 [rows], of the numbers that draw it.

    In float64 (at 152k ids float32's cumulative sum has steps wider than many probabilities), and never an id of
    probability 0: the cumulative sum, divided by its last entry, reaches 1 at the last id that has any mass.
    """
    cdf = logq.double().exp().cumsum(-1)
    cdf = cdf / cdf[:, -1:]
    token = torch.searchsorted(cdf, u[:, None], right=True)
    token = token.clamp(max=logq.shape[-1] - 1)  # a law of NaNs is reported later, by `check_finite`
    low = cdf.gather(1, (token - 1).clamp(min=0)).masked_fill(token == 0, 0.0)
    return token[:, 0], low[:, 0], cdf.gather(1, token)[:, 0]


# ---------------------------------------------------------------------------------------------------------------------
# The one decoding loop


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


class Decoder:
    """S slots, each decoding its own request. Everything is a tensor over slots; nothing loops over them.

        decoder.load(slots, requests)     put requests into slots, with their prompts' keys and values
        ended = decoder.advance()         one token for every slot; bool [S]: its request has just ended
        decoder.rewind(slots, position)   keep only a slot's first `position` response tokens, and go on from there

    Prefill feeds prompt[:-1]; each first token, refill and rewind then feeds the token before it: one code path.
    `tokens`, `logp`, `logq` [S, horizon + 1] and `length` [S] are the responses so far, the last column scratch: a slot
    with no request decodes on in place, unseen. Likewise `low` and `high`, the interval of the random number that each
    token was drawn with, and `measures`, what `measure(logits [S, vocab]) -> [S, k]` says of each position.
    """

    per_slot: tuple[str, ...] = (
        "tokens", "length", "logp", "logq", "low", "high", "uniforms", "measures", "finished", "start", "limit",
        "before", "decoded", "prompt", "active",
    )  # fmt: skip
    group = 1  # neighbouring slots that begin and end together: one, but where a subclass joins them

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Tensor],
        slots: int,
        horizon: int,
        *,
        stop_ids: Iterable[int],
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        measure: Callable[[Tensor], Tensor] | None = None,
    ):
        device = model.device
        self.model, self.seed, self.measure = model, seed, measure
        self.law = (temperature, top_k, top_p)
        self.prompt_length = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self.prompts = torch.nn.utils.rnn.pad_sequence(list(prompts), batch_first=True).to(device)
        self.cache = model.new_cache(slots, int(self.prompt_length.max()) + horizon)
        self.stops = torch.zeros(model.vocab_size, dtype=torch.bool, device=device)
        self.stops[torch.tensor(list(stop_ids), dtype=torch.int64, device=device)] = True

        def integers(*shape, value=0):
            return torch.full((slots, *shape), value, dtype=torch.int64, device=device)

        self.columns = torch.arange(horizon + 1, device=device)
        self.tokens, self.length = integers(horizon + 1), integers()
        self.logp, self.logq = torch.zeros((2, slots, horizon + 1), device=device)
        self.low, self.high, self.uniforms = torch.zeros((3, slots, horizon + 1), dtype=torch.float64, device=device)
        self.measures = torch.zeros((slots, horizon + 1, 0), device=device)
        self.finished = torch.zeros(slots, dtype=torch.bool, device=device)  # ended by a stop id
        self.start, self.limit = integers(value=1), integers(value=1)  # the prompt's length, the request's horizon
        self.before = integers()  # the token that is fed next
        self.decoded = integers()  # tokens computed for the request
        self.prompt = integers()  # which prompt the slot continues
        self.active = torch.zeros(slots, dtype=torch.bool, device=device)
        self.shelf_rows = min(slots, len(prompts), max(1, POSITIONS_PER_CALL // self.prompts.shape[1]))
        self.shelf: Cache | None = None  # prompts that stand ready, prefilled, one row each:
        self.shelved = range(0)  # these
        self.prefilled = torch.zeros(len(prompts), dtype=torch.int64, device=device)  # positions computed, per prompt

    def load(self, slots: Tensor, requests: Requests) -> None:
        """Put request i into slot slots[i] (int64 [n], distinct)."""
        self.fetch_prompts(slots, requests.prompt)
        self.prompt[slots], self.start[slots] = requests.prompt, self.prompt_length[requests.prompt]
        self.limit[slots], self.decoded[slots] = requests.horizon, 0
        self.uniforms[slots] = self.numbers(requests.key, requests.sample, torch.zeros_like(slots))
        self.rewind(slots, torch.zeros_like(slots))

    def numbers(self, key: Tensor, sample: Tensor, step: Tensor) -> Tensor:
        """The random numbers of an address (int64 [n] each) for all positions: float64 [n, horizon + 1]."""
        return unit(absorb(address(self.seed, key, sample, step)[:, None], self.columns))

    def fetch_prompts(self, slots: Tensor, prompt: Tensor) -> None:
        """Have the keys and values of prompt[i][:-1] in slot slots[i]: copied from the shelf, where a run of prompts is
        prefilled in one call. Requests in the order of their prompts thus prefill each prompt once."""
        while len(slots):
            first = int(prompt.min())
            if first not in self.shelved:
                self.fill_shelf(first)
            here = prompt < self.shelved.stop
            length = int(self.prompt_length[prompt[here]].max()) - 1
            if length:
                self.cache.copy_rows(prompt[here] - self.shelved.start, slots[here], other=self.shelf, length=length)
            slots, prompt = slots[~here], prompt[~here]

    def fill_shelf(self, first: int) -> None:
        """Prefill the run of prompts that begins with `first`."""
        self.shelved = range(first, min(first + self.shelf_rows, len(self.prompts)))
        run = slice(first, self.shelved.stop)
        self.prefilled[run] += self.prompt_length[run] - 1
        if length := int(self.prompt_length[run].max()) - 1:
            if self.shelf is None:
                self.shelf = self.model.new_cache(self.shelf_rows, self.prompts.shape[1] - 1)
            tokens = torch.zeros((self.shelf_rows, length), dtype=torch.int64, device=self.prompts.device)
            tokens[: len(self.shelved)] = self.prompts[run, :length]
            positions = torch.arange(length, device=self.prompts.device).expand(tokens.shape)
            self.model(tokens, positions, self.shelf, logits=False)

    def rewind(self, slots: Tensor, position: Tensor) -> None:
        """Keep the first position[i] response tokens of slot slots[i]; the next token is drawn after them."""
        last_of_prompt = self.prompts[self.prompt[slots], self.start[slots] - 1]
        self.length[slots], self.finished[slots], self.active[slots] = position, False, True
        self.before[slots] = torch.where(position > 0, self.tokens[slots, position - 1], last_of_prompt)

    def advance(self) -> Tensor:
        """Decode one token in every slot; bool [S]: the requests that this token has ended."""
        at = self.start + self.length - 1  # where the token before stands
        logits = self.model(self.before[:, None], at[:, None], self.cache)[:, -1]
        logp = logits.log_softmax(-1)
        logq = self.proposal_law(logits, logp)
        here = self.length[:, None]
        token, low, high = inverse_cdf(logq, self.uniforms.gather(1, here)[:, 0])

        self.tokens.scatter_(1, here, token[:, None])
        self.low.scatter_(1, here, low[:, None])
        self.high.scatter_(1, here, high[:, None])
        self.logp.scatter_(1, here, logp.gather(1, token[:, None]).float())
        self.logq.scatter_(1, here, logq.gather(1, token[:, None]).float())
        if self.measure is not None:
            measured = self.measure(logits)
            if not self.measures.shape[-1]:
                self.measures = measured.new_zeros(*self.tokens.shape, measured.shape[-1])
            self.measures.scatter_(1, here[..., None].expand(-1, 1, measured.shape[-1]), measured[:, None])

        stopped = self.active & self.stops[token]
        ended = stopped | (self.active & (self.length + 1 >= self.limit))
        self.before = torch.where(self.active, token, self.before)
        self.length += self.active
        self.decoded += self.active
        self.finished |= stopped
        self.active &= ~ended
        return ended

    def proposal_law(self, logits: Tensor, logp: Tensor) -> Tensor:
        """log q [S, vocab] of the next token."""
        return logp if self.law == (1.0, None, None) else log_law(logits, *self.law)

    def keep(self, slots: Tensor) -> None:
        """Drop all slots but these; they are 0 .. len(slots)-1 from now on."""
        for name in self.per_slot:
            setattr(self, name, getattr(self, name)[slots])
        self.cache = self.smaller(self.cache, slots)

    def smaller(self, cache: Cache, slots: Tensor) -> Cache:
        """A cache of some rows of another."""
        kept = self.model.new_cache(len(slots), cache.capacity)
        kept.copy_rows(slots, torch.arange(len(slots), device=slots.device), other=cache)
        return kept

    def responses(self, slots: Tensor) -> Samples:
        """What stands in some slots, [slots, 1]."""
        beyond = self.columns[:-1] >= self.length[slots, None]
        tokens, logp, logq = (x[slots, :-1].masked_fill(beyond, 0) for x in (self.tokens, self.logp, self.logq))
        length, finished = self.length[slots], self.finished[slots]
        return Samples(tokens[:, None], logp[:, None], logq[:, None], length[:, None], finished[:, None])


POSITIONS_PER_CALL = 1 << 11  # how many positions prefilling and scoring compute at a time


# ---------------------------------------------------------------------------------------------------------------------
# Generate and score


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int] | Tensor],
    *,
    max_new_tokens: int | Sequence[int],
    stop_ids: Iterable[int],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    samples_per_prompt: int = 1,
    slots: int | None = None,
    seed: int = 0,
    keys: Sequence[int | str] | None = None,
) -> Generation:
    """Draw `samples_per_prompt` independent responses to each prompt.

    prompts: token ids, of any lengths. max_new_tokens: the horizon, one or one per prompt. stop_ids: ids that end a
    response and belong to it; may be empty. temperature 0 is greedy decoding; top_k, top_p: see `log_law`. slots:
    requests decoded at a time (None: as many as fit the memory); it changes the speed, not the tokens. keys: what
    addresses a prompt's randomness (default: its index), so that the same prompt draws the same in any batch.
    ValueError: an empty prompt, an id outside the vocabulary, a text beyond the model's maximum, a setting out of
    range, logits that are not a law.
    """
    stop_ids = list(stop_ids)
    texts = check_prompts(model, prompts)
    horizons = check_horizons(model, texts, max_new_tokens)
    check_law(model, stop_ids, temperature, top_k, top_p)
    requests = make_requests(model, texts, horizons, samples_per_prompt, keys)
    decoder = Decoder(
        model,
        texts,
        choose_slots(slots, model, len(requests), max(map(len, texts)) + max(horizons)),
        max(horizons),
        stop_ids=stop_ids,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    return decode_all(decoder, requests, samples_per_prompt, keys)


def decode_all(
    decoder: Decoder, requests: Requests, n: int, keys: Sequence[int | str] | None = None, label: str = "generate"
) -> Generation:
    """Run all requests, n for each prompt, through the decoder's slots, refilling those that are free."""
    R, S, device = len(requests), len(decoder.tokens), requests.index.device
    results = Samples.empty(R, 1, decoder.tokens.shape[1] - 1, device)
    decoded = torch.zeros_like(requests.index)
    free = torch.arange(S, device=device)
    of = torch.zeros_like(free)  # the request in each slot
    loaded, done = 0, 0
    with tqdm(total=R, desc=label, unit="response", disable=None, leave=False) as progress:
        while done < R:
            if len(free := free[: R - loaded]):
                of[free] = requests.index[loaded : loaded + len(free)]
                decoder.load(free, requests[of[free]])
                loaded += len(free)
            elif loaded - done <= S // 4:  # the last requests: a smaller batch
                running = decoder.active.view(-1, decoder.group).any(1)
                going = running.repeat_interleave(decoder.group).nonzero()[:, 0]
                decoder.keep(going)
                of, S = of[going], len(going)
            # Decode until a few slots are free, or in the end until most are: a stop costs as much as some idle rows.
            enough = max(1, S // 16) if loaded < R else max(1, S - S // 4)
            waiting = decoder.advance()
            while (count := int(waiting.sum())) < min(enough, loaded - done):
                waiting |= decoder.advance()
            free = waiting.nonzero()[:, 0]
            ended = decoder.responses(free)
            check_finite(ended.logp[:, 0], of[free], n, keys)
            results.put(of[free], ended)
            decoded[of[free]] = decoder.decoded[free]
            done += count
            progress.update(count)
    P, decoded = R // n, decoded.view(R // n, n)
    samples = Samples(*(tensor.view(P, n, *tensor.shape[2:]) for tensor in results.tensors()))
    charged, calls = decoder.prompt_length * n, torch.full((P,), n, device=device)
    counts = torch.stack((charged, decoder.prefilled, decoded.sum(1), decoded.amax(1), calls), 1).tolist()
    return Generation(samples, [Cost(*count) for count in counts])


@torch.no_grad()
def generate_naive(
    model: LanguageModel, prompt: Sequence[int], *, max_new_tokens: int, stop_ids: Iterable[int],
    temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, sample: int = 0, seed: int = 0,
    key: int = 0,
) -> list[int]:  # fmt: skip
    """`generate` for one sample of one prompt with no cache and no slots, kept to be read and to be tested against."""
    text, address_of = list(prompt), (torch.tensor([key]), torch.tensor([sample]))
    for position in range(max_new_tokens):
        logits = model(torch.tensor([text], device=model.device))[:, -1]
        u = uniform(seed, *address_of, step=0, position=position, purpose=TOKEN).to(model.device)
        text.append(int(inverse_cdf(log_law(logits, temperature, top_k, top_p), u)[0]))
        if text[-1] in set(stop_ids):
            break
    return text[len(prompt) :]


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
            model(tokens[:, :first], positions[:, :first], cache, logits=False)
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
            raise ValueError(f"the model's logits are not a law (NaN or infinite) for prompt {i}")
    return results


# ---------------------------------------------------------------------------------------------------------------------
# Checks and sizes


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


def check_finite(logp: Tensor, request: Tensor, n: int, keys: Sequence[int | str] | None) -> None:
    """NaN or infinite logits make the token's log-probability NaN: looked for in the requests that have ended."""
    if (bad := logp.isnan()).any():
        row, position = bad.nonzero()[0].tolist()
        prompt, sample = divmod(int(request[row]), n)
        name = f" (key {keys[prompt]!r})" if keys is not None else ""
        raise ValueError(
            f"the model's logits are not a law (NaN or infinite) for prompt {prompt}{name}, sample {sample}, at "
            f"response position {position}; try float32 weights"
        )


def make_requests(
    model: LanguageModel, texts: list[Tensor], horizons: list[int], n: int, keys: Sequence[int | str] | None
) -> Requests:
    """n samples of each text. ValueError: n below 1, or another number of keys."""
    if n < 1:
        raise ValueError(f"samples_per_prompt is {n}; it must be at least 1")
    if keys is not None and len(keys) != len(texts):
        raise ValueError(f"{len(keys)} keys for {len(texts)} prompts; give one for each")
    named = [key_of(name) for name in (range(len(texts)) if keys is None else keys)]
    return Requests.of(torch.tensor(named, device=model.device), n, torch.tensor(horizons, device=model.device))


def choose_slots(
    slots: int | None, model: LanguageModel, requests: int, capacity: int, caches: int = 1, group: int = 1
) -> int:
    """How many requests to decode at a time: `slots`, but no more than there are; or up to 256, if their caches and
    logits fit half of the free memory. Always a multiple of `group`."""
    if slots is not None and slots < group:
        raise ValueError(f"slots is {slots}; it must be at least {group}")
    if slots is None:
        if model.device.type == "cuda":
            free = torch.cuda.mem_get_info(model.device)[0]
        else:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        bytes_of = getattr(model, "kv_bytes_per_token", lambda: 0)
        per_slot = caches * capacity * bytes_of() + 32 * model.vocab_size  # logits and laws in float32, CDF in float64
        slots = max(1, min(256, free // 2 // per_slot))
    return min(max(slots, group) // group * group, requests)
