"""Language models given by a table, and the enumeration of any model's distribution.

A `TabularLM` is a finite automaton: reading a token moves it from state to state, and each state has its own
distribution of the next token, p(v | text) = softmax(logits[state(text)])[v]. With one state it is an i.i.d. model,
with a state per token a Markov chain, with a state per prefix (a tree) any autoregressive distribution at all. It
implements `reference.sampling.LanguageModel`, so the algorithms that run on a transformer run on it unchanged, and
their output distribution is compared with `enumerate_law`, which lists the records of *any* model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reference.sampling import LanguageModel, check_prompts

Record = tuple[int, ...]


class StateCache:
    """The automaton's state after each position: int64 [rows, capacity]."""

    def __init__(self, rows: int, capacity: int, device: torch.device):
        self.rows, self.capacity = rows, capacity
        self.states = torch.zeros((rows, capacity), dtype=torch.int64, device=device)

    def copy_rows(self, source: Tensor, target: Tensor, other: StateCache | None = None, length: int | None = None):
        other = self if other is None else other
        length = min(self.capacity, other.capacity) if length is None else length
        self.states[target, :length] = other.states[source, :length]


class TabularLM(nn.Module):
    """logits [states, vocab] (float32, or float64 for exact work; -inf for probability 0), trainable if asked;
    transition int64 [states, vocab]: the state after a token. Every text starts in state 0."""

    def __init__(self, logits: Tensor, transition: Tensor, max_length: int | None = None):
        super().__init__()
        if logits.shape != transition.shape or transition.min() < 0 or transition.max() >= len(logits):
            raise ValueError(
                f"a table of logits {list(logits.shape)} needs transitions of that shape to states 0..{len(logits) - 1}"
            )
        self.logits = nn.Parameter(logits, requires_grad=False)
        self.transition: Tensor
        self.register_buffer("transition", transition)
        self.vocab_size, self.max_length = logits.shape[1], max_length

    @property
    def device(self) -> torch.device:
        return self.logits.device

    def new_cache(self, rows: int, capacity: int) -> StateCache:
        return StateCache(rows, capacity, self.device)

    def forward(
        self, tokens: Tensor, positions: Tensor | None = None, cache: StateCache | None = None, *, logits: bool = True
    ) -> Tensor | None:
        rows, time = tokens.shape
        here = torch.arange(rows, device=tokens.device)
        state = torch.zeros(rows, dtype=torch.int64, device=tokens.device)
        if cache is not None:
            assert positions is not None  # the interface: with a cache come positions
            first = positions[:, 0]
            state = torch.where(first > 0, cache.states[here, first - 1], state)
        states = []
        for t in range(time):
            state = self.transition[state, tokens[:, t]]
            states.append(state)
        visited = torch.stack(states, 1)  # [rows, time]
        if cache is not None:
            cache.states[here[:, None], positions] = visited
        return self.logits[visited] if logits else None

    # -- the usual tables ---------------------------------------------------------------------------------------------

    @classmethod
    def iid(cls, probs: Sequence[float], dtype: torch.dtype = torch.float32) -> TabularLM:
        """Every token drawn from `probs` [vocab], whatever came before."""
        logits = as_logits(np.asarray(probs)[None], dtype)
        return cls(logits, torch.zeros(logits.shape, dtype=torch.int64))

    @classmethod
    def markov(cls, probs: Sequence[Sequence[float]], dtype: torch.dtype = torch.float32) -> TabularLM:
        """A Markov chain: probs[v] is the distribution of the token after v."""
        table = np.asarray(probs)
        logits = as_logits(np.concatenate((np.full_like(table[:1], 1 / len(table)), table)), dtype)  # state v + 1
        return cls(logits, torch.arange(1, len(table) + 1).expand(logits.shape).contiguous())

    @classmethod
    def tree(
        cls, laws: Mapping[Record, Sequence[float] | np.ndarray], vocab_size: int, dtype: torch.dtype = torch.float32
    ):
        """Any distribution by hand: distributions[text] is the distribution of the token after a text (prompt
        included). A text that is not listed has the uniform distribution, and so has everything after it."""
        known = [text for text in sorted(laws, key=len) if text]
        state = {text: i + 1 for i, text in enumerate(known)}  # 0: the empty text
        lost = len(state) + 1
        table = np.full((lost + 1, vocab_size), 1 / vocab_size)
        transition = np.full((lost + 1, vocab_size), lost)
        for text, i in ((), 0), *state.items():
            table[i] = laws.get(text, table[i])
            for token in range(vocab_size):
                transition[i, token] = state.get((*text, token), lost)
        return cls(as_logits(table, dtype), torch.from_numpy(transition))

    @classmethod
    def random(
        cls, vocab_size: int, depth: int, *, concentration: float = 1.0, seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> TabularLM:  # fmt: skip
        """A Dirichlet(concentration) distribution after every text of up to `depth` tokens: vocab^(depth+1) numbers."""
        states = sum(vocab_size**d for d in range(depth + 1))
        table = np.random.default_rng(seed).dirichlet(np.full(vocab_size, concentration), size=states)
        children = np.arange(states)[:, None] * vocab_size + 1 + np.arange(vocab_size)  # a complete tree, by level
        transition = np.where(children < states, children, 0)  # the deepest texts have no children: see max_length
        return cls(as_logits(table, dtype), torch.from_numpy(transition), max_length=depth + 1)


class Memo:
    """A model that remembers the logits of whole texts: an enumeration asks for the same few of them on every path."""

    def __init__(self, model: LanguageModel):
        self.model, self.vocab_size, self.max_length = model, model.vocab_size, model.max_length
        self.device, self.new_cache = model.device, model.new_cache
        self.known: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def __call__(self, tokens: Tensor, positions: Tensor | None = None, cache: Any = None, *, logits: bool = True):
        if cache is not None or len(tokens) != 1:
            return self.model(tokens, positions, cache, logits=logits)
        text = tuple(tokens[0].tolist())
        if text not in self.known:
            self.known[text] = self.model(tokens)
        return self.known[text]


def as_logits(probs: np.ndarray, dtype: torch.dtype) -> Tensor:
    """log p, after checking that each row is a distribution."""
    if (probs < 0).any() or not np.allclose(probs.sum(-1), 1, atol=1e-9):
        raise ValueError("every row of a table of distributions must be non-negative and sum to 1")
    with np.errstate(divide="ignore"):
        return torch.from_numpy(np.log(probs)).to(dtype)


@torch.no_grad()
def enumerate_law(
    model: LanguageModel, prompt: Sequence[int], horizon: int, stop_ids: Sequence[int]
) -> tuple[list[Record], np.ndarray, dict[Record, np.ndarray]]:
    """All records of a prompt: responses ended by a stop id, or open at the horizon, of positive probability.

    Returns (records in lexicographic order, their log-probabilities float64 [n], conditionals: for each open prefix of
    a record its next-token log-probabilities float64 [vocab]). The model is called without a cache, on whole texts.
    """
    (prompt_ids,) = check_prompts(model, [prompt])
    stops = set(stop_ids)
    records: dict[Record, float] = {}
    conditionals: dict[Record, np.ndarray] = {}
    level: dict[Record, float] = {(): 0.0}
    for depth in range(horizon):
        prefixes = torch.tensor(list(level), dtype=torch.int64, device=model.device).view(len(level), depth)
        texts = torch.cat((prompt_ids.expand(len(level), -1), prefixes), 1)
        logits = model(texts)[:, -1].double().log_softmax(-1).cpu().numpy()
        following: dict[Record, float] = {}
        for (prefix, logp), law in zip(level.items(), logits):
            conditionals[prefix] = law
            for token in np.flatnonzero(law > -np.inf):
                text = (*prefix, int(token))
                ends = token in stops or depth == horizon - 1
                (records if ends else following)[text] = logp + law[token]
        if not (level := following):
            break
    ordered = sorted(records)
    return ordered, np.array([records[record] for record in ordered]), conditionals
