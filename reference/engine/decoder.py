"""The one decoding loop: S slots, each decoding its own request at its own position.

A slot whose request has ended takes the next one at once, so nobody waits for the longest; the samples of one prompt
share its prefill. A token is the inverse CDF of its address's random number (`reference/randomness.py`), so a request's
tokens depend neither on the batch that it shares nor on the slot it falls into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from reference.engine.captured_step import capture_of
from reference.engine.requests import Requests, check_finite
from reference.interface import (
    POSITIONS_PER_CALL,
    Cache,
    Cost,
    Generation,
    LanguageModel,
    Samples,
    inverse_cdf,
    log_law,
    prefill,
)
from reference.randomness import absorb, address, unit


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
        self.captured = capture_of(model)
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
            prefill(self.model, tokens, self.shelf)

    def rewind(self, slots: Tensor, position: Tensor) -> None:
        """Keep the first position[i] response tokens of slot slots[i]; the next token is drawn after them."""
        last_of_prompt = self.prompts[self.prompt[slots], self.start[slots] - 1]
        self.length[slots], self.finished[slots], self.active[slots] = position, False, True
        self.before[slots] = torch.where(position > 0, self.tokens[slots, position - 1], last_of_prompt)

    def advance(self) -> Tensor:
        """Decode one token in every slot; bool [S]: the requests that this token has ended."""
        if self.captured is None:
            return self.decode_one()
        return self.captured(self.decode_one, self.cache, self.start + self.length - 1)

    def decode_one(self) -> Tensor:
        """`advance`, as operations on tensors that stay where they are (`reference/engine/captured_step.py`)."""
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
        self.before.copy_(torch.where(self.active, token, self.before))
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
        self.captured = capture_of(self.model)
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


def decode_all(
    decoder: Decoder, requests: Requests, n: int, keys: Sequence[int | str] | None = None, label: str = "generate",
    order: Sequence[int] | None = None,
) -> Generation:  # fmt: skip
    """Run all requests, n for each prompt, through the decoder's slots, refilling those that are free. order: what the
    caller calls each of the decoder's prompts, for messages."""
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
            else:  # the last requests: a smaller batch
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
            check_finite(ended.logp[:, 0], of[free], n, keys, order)
            results.put(of[free], ended)
            decoded[of[free]] = decoder.decoded[free]
            done += count
            progress.update(count)
    P, decoded = R // n, decoded.view(R // n, n)
    samples = Samples(*(tensor.view(P, n, *tensor.shape[2:]) for tensor in results.tensors()))
    charged, calls = decoder.prompt_length * n, torch.full((P,), n, device=device)
    counts = torch.stack((charged, decoder.prefilled, decoded.sum(1), decoded.amax(1), calls), 1).tolist()
    return Generation(samples, [Cost(*count) for count in counts])
