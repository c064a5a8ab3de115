"""Worlds that are small enough for a page to be run once for everything that can happen in it, and hard enough to tell.

What a page returns has an exact distribution (`theory/exact_law.py`), and it must be theory's, to 1e-12. So a world has
what could hide a mistake: responses of several lengths, prefixes that are worth more than their tokens look (so that
low temperature is far from p^α), ties, tokens that cannot come and tokens that must.
"""

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from theory.exact_law import exact_law
from theory.power import Conditionals, Record, power_law
from toy.tabular import Memo, TabularLM, enumerate_law

EXACT = 1e-12


class World(NamedTuple):
    """A model that remembers its logits, a prompt, and at which power it is asked."""

    model: Memo
    horizon: int
    stops: tuple[int, ...]
    alpha: float
    prompt: tuple[int, ...] = (1,)

    @property
    def law(self) -> tuple[list[Record], NDArray[np.float64], Conditionals]:
        """Records, their log-probabilities and the conditionals: by listing every text, with no formula."""
        return enumerate_law(self.model, self.prompt, self.horizon, self.stops)

    def target(self, alpha: float | None = None) -> NDArray[np.float64]:
        """p^α of every record."""
        return power_law(self.law[1], self.alpha if alpha is None else alpha)

    def run(self, page: Callable[..., Any], config: Any, chance: Any) -> Any:
        return page(self.model, self.prompt, config, stop_ids=self.stops, chance=chance)

    def page_law(self, page: Callable[..., Any], config: Any, of: Callable[[Any], Hashable] = lambda r: r.tokens):
        """{what `of` sees of the page's result: its probability}."""
        return exact_law(lambda chance: of(self.run(page, config, chance)))


def tree(laws: Mapping[Record, Sequence[float]], vocab: int) -> Memo:
    return Memo(TabularLM.tree({(1, *text): law for text, law in laws.items()}, vocab, torch.float64))


def table(vocab: int, depth: int, seed: int) -> Memo:
    return Memo(TabularLM.random(vocab, depth, seed=seed, concentration=0.7, dtype=torch.float64))


WORLDS = {
    # Token 1 looks worse than token 2, but what follows it is nearly certain: H = 3, 15 records
    "pivot": World(tree({
        (): (0.15, 0.4, 0.45), (1,): (0.08, 0.22, 0.7), (2,): (0.3, 0.36, 0.34), (1, 1): (0.5, 0.3, 0.2),
        (1, 2): (0.88, 0.05, 0.07), (2, 1): (0.2, 0.45, 0.35), (2, 2): (0.41, 0.32, 0.27),
    }, 3), 3, (0,), 3.0),
    # 7 records
    "short": World(table(3, 2, 265), 2, (0,), 3.0),
    # 5 records: token 1 leads to itself, token 2 to anything
    "fork": World(tree({(): (0.2, 0.35, 0.45), (1,): (0, 1, 0), (2,): (0.3, 0.36, 0.34)}, 3), 2, (0,), 3.0),
    # Two ids end a response
    "two stops": World(table(4, 2, 131), 2, (0, 3), 2.0),
    # Equal probabilities, impossible and forced tokens
    "ties": World(tree({
        (): (0.25, 0.25, 0.5), (1,): (0, 0.5, 0.5), (2,): (0.5, 0.25, 0.25), (1, 1): (0, 1, 0), (1, 2): (0.5, 0.5, 0),
        (2, 1): (0.25, 0.25, 0.5), (2, 2): (0.5, 0, 0.5),
    }, 3), 3, (0,), 3.0),
}  # fmt: skip


def mutated(function: Callable[..., Any], right: str, wrong: str) -> Any:
    """The function with a mistake planted in its source: `right`, which occurs once, is `wrong`."""
    source = inspect.getsource(function)
    if source.count(right) != 1:
        raise ValueError(f"{right!r} occurs {source.count(right)} times in {function.__name__}, not once")
    planted: dict[str, Any] = {}
    exec(source.replace(right, wrong), function.__globals__, planted)
    return planted[function.__name__]


def as_array(law: Mapping[Record, float], records: Sequence[Record]) -> NDArray[np.float64]:
    """[n] of a law of records, which has no mass elsewhere."""
    assert {*law} <= {*records}, f"{ {*law} - {*records} } are no records"
    return np.array([law.get(record, 0.0) for record in records])


def gap(found: Any, expected: Any) -> float:
    """The largest difference of two arrays of one shape."""
    found, expected = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max())


def assert_same(found: Any, expected: Any) -> float:
    """Equal up to rounding; the largest difference."""
    difference = gap(found, expected)
    assert difference <= EXACT, f"they differ by {difference}"
    return difference
