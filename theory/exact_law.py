"""The exact distribution of a program that leaves things to chance, by running it once for every way they can go.

A program is a function of a `chance`: it asks questions (`reference/interface.py`: token, index, weighted, happens,
ancestors) and returns something hashable. Each run follows a script of answers; where the script ends the first
possible answer is taken, and for every other one a longer script is put aside. A path has the product of its answers'
probabilities, and

    Pr[outcome] = Σ over the paths that end in it

is exact for the code as it is written. `python -m theory.exact_law` shows it at work. Refused by ValueError: a question
asked twice at one address, a replayed run that meets other options, more paths than allowed (none is dropped).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from theory.particles import ancestors

Program = Callable[["Enumerated"], Hashable]
TOKEN, CUT, ACCEPT, RESAMPLE, SWAP, CHOICE = range(6)  # purposes, as in reference/randomness.py
NAMES = ("token", "cut", "accept", "resample", "swap", "choice")


class Run:
    """One run along a script, a list of (address, options, the answer's place among them)."""

    def __init__(self, script: list[tuple]) -> None:
        self.script, self.fresh = script, len(script)
        self.asked: dict[tuple, None] = {}
        self.probability = 1.0

    def choose(self, address: tuple, answers: Sequence[Any], probabilities: ArrayLike) -> Any:
        options = tuple(np.asarray(probabilities, dtype=np.float64).tolist())
        if not all(p >= 0 for p in options) or abs(sum(options) - 1) > 1e-9:
            raise ValueError(f"the options at {address} have probabilities {options}; they must be >= 0 and sum to 1")
        if address in self.asked:
            raise ValueError(f"address {address} (labels, sample, purpose, step, position) is asked twice on one path")
        at = len(self.asked)
        self.asked[address] = None
        if at < self.fresh:
            if self.script[at][:2] != (address, options):
                raise ValueError(f"a replayed run met {address}: {options} where it had met {self.script[at][:2]}")
        else:
            self.script.append((address, options, next(i for i, p in enumerate(options) if p > 0)))
        place = self.script[at][2]
        self.probability *= options[place]
        return answers[place]

    def others(self) -> Iterable[list[tuple]]:
        """The scripts that leave this one at one of its fresh answers."""
        for at in range(self.fresh, len(self.script)):
            address, options, taken = self.script[at]
            for place in range(taken + 1, len(options)):
                if options[place] > 0:
                    yield [*self.script[:at], (address, options, place)]


class Enumerated:
    """A chance whose answers follow the script of a run. Children are told apart by their labels and samples by their
    numbers, as in `Drawn`: what shares a random number there is one address here, and refused if it is asked twice."""

    def __init__(self, run: Run, labels: tuple = (), number: int = 0) -> None:
        self.run, self.labels, self.number = run, labels, number

    def choose(self, answers: Sequence[Any], law: ArrayLike, *address: int) -> Any:
        return self.run.choose((self.labels, self.number, *address), answers, law)

    def token(self, log_probabilities: ArrayLike, *, step: int = 0, position: int) -> int:
        law = np.exp(np.asarray(log_probabilities, dtype=np.float64))
        return self.choose(range(len(law)), law / law.sum(), TOKEN, step, position)

    def index(self, n: int, purpose: int, *, step: int = 0, position: int = 0) -> int:
        return self.choose(range(n), np.full(n, 1 / n), purpose, step, position)

    def weighted(self, weights: ArrayLike, purpose: int, *, step: int = 0, position: int = 0) -> int:
        w = np.asarray(weights, dtype=np.float64)
        return self.choose(range(len(w)), w / w.sum(), purpose, step, position)

    def happens(self, log_probability: float, purpose: int, *, step: int = 0, position: int = 0) -> bool:
        p = float(np.exp(np.minimum(0.0, log_probability)))
        return self.choose((True, False), (p, 1 - p), purpose, step, position)

    def ancestors(self, weights: ArrayLike, scheme: str, *, position: int) -> list[int]:
        options = list(ancestors(np.asarray(weights, dtype=np.float64), scheme))  # type: ignore[arg-type]
        chosen, law = zip(*options)
        return list(self.choose(chosen, law, RESAMPLE, 0, position))

    def child(self, *labels: int | str) -> Enumerated:
        return Enumerated(self.run, (*self.labels, labels), self.number)

    def sample(self, i: int, of: int = 1) -> Enumerated:
        return Enumerated(self.run, self.labels, self.number * of + i)


def runs(program: Program, limit: int = 200_000) -> Iterable[tuple[Hashable, Run]]:
    """Every path: what the program returned, and the run. ValueError: there are more than `limit`."""
    waiting: list[list[tuple]] = [[]]
    count = 0
    while waiting:
        count += 1
        if count > limit:
            raise ValueError(f"the program has more than {limit} paths; choose a smaller world, or raise limit")
        run = Run(waiting.pop())
        outcome = program(Enumerated(run))
        if len(run.asked) < len(run.script):
            raise ValueError(f"a replayed run asked {len(run.asked)} questions where it had asked {len(run.script)}")
        waiting += run.others()
        yield outcome, run


def exact_law(program: Program, limit: int = 200_000) -> dict[Hashable, float]:
    """{outcome: probability}. ValueError: as above, or the total mass is not 1 to 1e-12."""
    law: dict[Hashable, float] = {}
    for outcome, run in runs(program, limit):
        law[outcome] = law.get(outcome, 0.0) + run.probability
    if abs(sum(law.values()) - 1) > 1e-12:
        raise ValueError(f"the outcomes' probabilities sum to {sum(law.values())}, not to 1")
    return law


def expectation(program: Callable[[Enumerated], Any], limit: int = 200_000) -> NDArray[np.float64]:
    """E[program], of a number or an array of numbers."""
    return np.asarray(sum(run.probability * np.asarray(value, dtype=np.float64) for value, run in runs(program, limit)))


def kernel(
    step: Callable[[Any, Enumerated], Hashable], states: Sequence[Hashable], limit: int = 200_000
) -> NDArray[np.float64]:
    """K [n, n] of a chain's step(state, chance): row x is its exact distribution from x. KeyError: it left the
    states."""
    column = {state: j for j, state in enumerate(states)}
    matrix = np.zeros((len(states), len(states)))
    for i, state in enumerate(states):
        for after, mass in exact_law(partial(step, state), limit).items():
            matrix[i, column[after]] += mass
    return matrix


# --- The demonstration -----------------------------------------------------------------------------------------------


def power_step(x: Any, chance: Enumerated, p: Sequence[float], alpha: float, n: int = 1) -> Hashable:
    """Metropolis-Hastings for p^α on texts of two tokens: cut at 1 or 2, draw the rest from p, accept by the ratio."""
    r = chance.index(2, CUT, step=n)
    y = (*x[:r], *(chance.token(np.log(p), step=n, position=t) for t in range(r, 2)))
    log_ratio = (alpha - 1) * float(np.log([p[v] for v in y]).sum() - np.log([p[v] for v in x]).sum())
    return y if chance.happens(log_ratio, ACCEPT, step=n) else x


def power_chain(p: Sequence[float], alpha: float, steps: int) -> Program:
    def program(chance: Enumerated) -> Hashable:
        x: Any = tuple(chance.token(np.log(p), position=t) for t in range(2))
        for n in range(1, steps + 1):
            x = power_step(x, chance, p, alpha, n)
        return x

    return program


def main() -> None:
    p, alpha = (0.6, 0.4), 2.0
    program = power_chain(p, alpha, 1)
    print(f"A model of two tokens, p(0) = {p[0]} and p(1) = {p[1]}, and texts of two of them. The program draws a text")
    print(f"from p and makes one Metropolis-Hastings step towards p^{alpha:g}. Every path it can take:\n")
    for number, (outcome, run) in enumerate(runs(program), 1):
        answers = [
            f"{NAMES[purpose]} {place if purpose != ACCEPT else ('yes', 'no')[place]} ({options[place]:.3g})"
            for (*_, purpose, _, _), options, place in run.script
        ]
        print(f"{number:3}. {' · '.join(answers)}  →  {outcome}, probability {run.probability:.4g}")
    target = {(a, b): (p[a] * p[b]) ** alpha for a in (0, 1) for b in (0, 1)}
    total = sum(target.values())
    laws = [exact_law(power_chain(p, alpha, n)) for n in (0, 1)]
    K = kernel(lambda x, chance: power_step(x, chance, p, alpha), list(target))
    pi = np.array(list(target.values())) / total
    print("\nA path's probability is the product of what stands in brackets; those of one outcome add up:\n")
    print("text     drawn    after 1 step   p^α")
    for text, mass in target.items():
        print(f"{text}   {laws[0][text]:.4f}   {laws[1][text]:.4f}         {mass / total:.4f}")
    print(
        f"\nThe exact distribution of one step from every text is K; max |π K − π| = {np.abs(pi @ K - pi).max():.1e}."
    )


if __name__ == "__main__":
    main()
