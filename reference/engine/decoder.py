"""One token in every row: the step that all samplers share.

    decoder.load(rows, requests)        put requests into rows, with their prompts' keys and values
    ended = decoder.advance()           one token for every active row; bool [S]: the responses that it has ended
    decoder.resume(rows, position)      keep only a row's first `position` response tokens, and go on from there

A token is the inverse CDF of its address's random number (`reference/randomness.py`), so a request's tokens depend
neither on the batch that it shares nor on the row it falls into. Prefilling feeds prompt[:-1]; each first token and
each resumption then feeds the token before it: one code path. Everything is a tensor over rows; nothing loops over
them. A row that is not active decodes on in place, unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reference.engine.captured_step import capture_of
from reference.engine.records import Store, Table, Texts
from reference.engine.requests import Plan, Requests
from reference.interface import POSITIONS_PER_CALL, LanguageModel, Samples, inverse_cdf, log_law
from reference.randomness import absorb, address, unit

Distribution = Callable[[Tensor, Tensor], Tensor]  # (logits, log p) -> log q, all [S, vocab]


def filtered(temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Distribution:
    """The distribution that tokens are drawn from by the filters of `log_law`."""
    if (temperature, top_k, top_p) == (1.0, None, None):
        return lambda logits, logp: logp
    return lambda logits, logp: log_law(logits, temperature, top_k, top_p)


@dataclass
class Rows(Table):
    """What a decoder knows of its rows, [S] where nothing else is said."""

    active: Tensor  # bool: the response is to be continued
    before: Tensor  # int64: the token that is fed next
    limit: Tensor  # int64: most response tokens
    decoded: Tensor  # int64: tokens computed for the request
    uniforms: Tensor  # float64 [S, horizon + 1]: the random number of each position


class Decoder(Store):
    """S rows of texts that grow. It is also the machine of plain sampling (`loop.py`): a row is a slot."""

    group = 1

    def __init__(
        self, plan: Plan, distribution: Distribution, *, rows: int | None = None, prompts: Prompts | None = None,
        measure: Callable[[Tensor], Tensor] | None = None, measures: int = 0, weighed: bool = False,
        massed: bool = False,
    ) -> None:  # fmt: skip
        """measure(logits [S, vocab]) -> [S, measures]: of the step before, in `measured`. weighed, massed: as of chains
        (`Texts`)."""
        rows, model = plan.slots if rows is None else rows, plan.model
        device, wide = model.device, plan.horizon + 1
        texts = Texts.empty(rows, plan.horizon, device, measures * weighed, weighed, massed)
        self.prompts = prompts or Prompts(model, plan.prompts, rows)
        super().__init__(model, texts, self.prompts.longest + plan.horizon)
        self.seed, self.distribution, self.measure = plan.seed, distribution, measure
        self.captured = capture_of(model)
        self.stops = torch.zeros(model.vocab_size, dtype=torch.bool, device=device)
        self.stops[torch.tensor(plan.stop_ids, dtype=torch.int64, device=device)] = True
        self.columns = torch.arange(wide, device=device)
        integers = torch.zeros((3, rows), dtype=torch.int64, device=device)
        self.rows = Rows(
            active=integers[0].bool(), before=integers[0].clone(), limit=integers[1] + 1, decoded=integers[2],
            uniforms=torch.zeros((rows, wide), dtype=torch.float64, device=device),
        )  # fmt: skip
        self.measured = torch.zeros((rows, measures), dtype=torch.float64, device=device)

    def load(self, rows: Tensor, requests: Requests, step: Tensor | int = 0) -> None:
        """Put request i into row rows[i] (int64 [n], distinct); step: of its random numbers (int64 [n])."""
        length = self.place(rows, requests)
        self.rows.limit[rows], self.rows.decoded[rows] = requests.limit, 0
        self.rows.uniforms[rows] = self.numbers(requests.key, requests.sample, step)
        self.resume(rows, length)

    def place(self, rows: Tensor, requests: Requests) -> Tensor:
        """Have the texts that requests begin with in rows; how long their responses are, int64 [n]."""
        self.prompts.fetch(self, rows, requests.prompt)
        return torch.zeros_like(rows)

    def numbers(self, key: Tensor, sample: Tensor, step: Tensor | int) -> Tensor:
        """The random numbers of addresses (int64 [n] each) for all positions: float64 [n, horizon + 1]."""
        return unit(absorb(address(self.seed, key, sample, step)[:, None], self.columns))

    def resume(self, rows: Tensor, position: Tensor) -> None:
        """Keep the first position[i] response tokens of row rows[i]; the next token is drawn after them, unless they
        end the response."""
        texts, now = self.texts, self.rows
        last = texts.tokens[rows, (position - 1).clamp(min=0)]
        now.before[rows] = torch.where(position > 0, last, self.prompts.last(texts.prompt[rows]))
        finished = (position > 0) & self.stops[last]
        texts.length[rows], texts.finished[rows] = position, finished
        now.active[rows] = ~finished & (position < now.limit[rows])

    def advance(self) -> Tensor:
        """Decode one token in every row; bool [S]: the responses that this token has ended."""
        if self.captured is None:
            return self.decode_one()
        return self.captured(self.decode_one, self.cache, self.texts.start + self.texts.length - 1)

    def decode_one(self) -> Tensor:
        """`advance`, as operations on tensors that stay where they are (`captured_step.py`)."""
        texts, now = self.texts, self.rows
        at = texts.start + texts.length - 1  # where the token before stands
        logits = self.model(now.before[:, None], at[:, None], self.cache)[:, -1]
        logp = logits.log_softmax(-1)
        logq = self.distribution(logits, logp)
        here = texts.length[:, None]
        token, low, high = inverse_cdf(logq, now.uniforms.gather(1, here)[:, 0])

        texts.tokens.scatter_(1, here, token[:, None])
        texts.low.scatter_(1, here, low[:, None])
        texts.high.scatter_(1, here, high[:, None])
        texts.logp.scatter_(1, here, logp.gather(1, token[:, None]).float())
        texts.logq.scatter_(1, here, logq.gather(1, token[:, None]).float())
        if self.measure is not None:
            self.measured.copy_(self.measure(logits))

        stopped = now.active & self.stops[token]
        ended = stopped | (now.active & (texts.length + 1 >= now.limit))
        now.before.copy_(torch.where(now.active, token, now.before))
        texts.length += now.active
        now.decoded += now.active
        texts.finished |= stopped
        now.active &= ~ended
        return ended

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        self.rows, self.measured = self.rows[rows], self.measured[rows]
        self.captured = capture_of(self.model)

    # As a machine of `loop.py`.

    def running(self) -> Tensor:
        return self.rows.active

    def result(self, slots: Tensor) -> tuple[Samples, Tensor, Tensor]:
        decoded = self.rows.decoded[slots]
        return self.texts[slots].samples(), decoded, decoded


class Prompts:
    """The prompts, and a shelf on which a run of them stands ready, prefilled, one row each."""

    def __init__(self, model: LanguageModel, prompts: Sequence[Tensor], rows: int) -> None:
        self.model, device = model, model.device
        self.length = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self.longest = int(self.length.max())
        self.ids = torch.nn.utils.rnn.pad_sequence(list(prompts), batch_first=True).to(device)
        self.rows = min(rows, len(prompts), max(1, POSITIONS_PER_CALL // self.longest))
        self.shelf: Any = None  # a Cache
        self.shelved = range(0)
        self.prefilled = torch.zeros_like(self.length)  # positions computed, per prompt

    def last(self, prompt: Tensor) -> Tensor:
        """Each prompt's last token."""
        return self.ids[prompt, self.length[prompt] - 1]

    def fetch(self, store: Store, rows: Tensor, prompt: Tensor) -> None:
        """Have prompt[i] in row rows[i] of a store, with the keys and values of all but its last token. They are copied
        from the shelf, so requests in the order of their prompts prefill each prompt once."""
        store.texts.prompt[rows], store.texts.start[rows] = prompt, self.length[prompt]
        while len(rows):
            first = int(prompt.min())
            if first not in self.shelved:
                self.fill(first)
            here = prompt < self.shelved.stop
            if length := int(self.length[prompt[here]].max()) - 1:
                store.cache.copy_rows(prompt[here] - self.shelved.start, rows[here], other=self.shelf, length=length)
            rows, prompt = rows[~here], prompt[~here]

    def fill(self, first: int) -> None:
        """Prefill the run of prompts that begins with `first`, in one call."""
        self.shelved = range(first, min(first + self.rows, len(self.ids)))
        run = slice(first, self.shelved.stop)
        self.prefilled[run] += self.length[run] - 1
        if length := int(self.length[run].max()) - 1:
            if self.shelf is None:
                self.shelf = self.model.new_cache(self.rows, self.longest - 1)
            tokens = torch.zeros((self.rows, length), dtype=torch.int64, device=self.ids.device)
            tokens[: len(self.shelved)] = self.ids[run, :length]
            prefill(self.model, tokens, self.shelf)


def prefill(model: LanguageModel, tokens: Tensor, cache: Any) -> None:
    """Keys and values of tokens [rows, time], which begin their rows, into a cache: so many positions at a time."""
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
    chunk = max(1, POSITIONS_PER_CALL // len(tokens))
    for some, where in zip(tokens.split(chunk, 1), positions.split(chunk, 1)):
        model(some, where, cache, logits=False)
