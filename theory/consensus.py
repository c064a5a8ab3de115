"""The vote of particles: which answer a cloud of SMC for p^α agrees on, exactly.

A response x has an answer a(x). The *consensus* of a cloud is the answer of most weight,

    arg max_a Σ_i W_i 1{a(x_i) = a};     of answers that tie, the heaviest particle's.

As E[Ẑ Σ_i W_i f(x_i)/Σ_i W_i] = Σ_x p(x)^α f(x) for every f (claim P18),

    E[Ẑ · share of the weight on a] = P_α(a) := Σ {p(x)^α : a(x) = a}:

the consensus of many particles is the answer of most mass under p^α, a sum over responses. It need not be that of the
likeliest response: as α grows from 1 to ∞ it goes from the model's plurality to the latter's.

Without resampling the N particles are independent draws of q, with weights w(x) = p(x)^α/q(x) in [0, w*]. For a* = arg
max P_α and Δ_b = P_α(a*) − P_α(b) the mean of w (1{a*} − 1{b}) over particles has terms in [−w*, w*] and expectation
Δ_b, so by Hoeffding's inequality and a union bound

    Pr[consensus ≠ a*] ≤ Σ_{b ≠ a*} exp(−N Δ_b² / (2 w*²)).                                                claim P32
"""

from collections.abc import Hashable, Iterator, Sequence
from math import lgamma

import numpy as np

from theory.power import Law

TOLERANCE = 1e-6  # shares of the weight that are nearer tie, as in reference/randomness.py


def answer_masses(logp: Law, alpha: float, answers: Sequence[Hashable | None]) -> dict[Hashable, float]:
    """P_α(a) of each answer but None, of the records' log p [n] and their answers."""
    masses: dict[Hashable, float] = {}
    for mass, answer in zip(np.exp(alpha * logp), answers):
        if answer is not None:
            masses[answer] = masses.get(answer, 0.0) + float(mass)
    return masses


def counts(kinds: int, n: int) -> Iterator[tuple[int, ...]]:
    """Every way to have n particles of so many kinds."""
    if kinds == 1:
        yield (n,)
        return
    for first in range(n + 1):
        for rest in counts(kinds - 1, n - first):
            yield (first, *rest)


def vote_law(q: Law, weights: Law, answers: Sequence[Hashable | None], n: int) -> dict[Hashable | None, float]:
    """The distribution of the consensus of n independent draws of q [k] with these weights [k] and answers: the sum
    over how often each record is drawn."""
    known = sorted({answer for answer in answers if answer is not None}, key=repr)
    of = np.array([[given == answer for given in answers] for answer in known], dtype=np.float64)  # [answers, k]
    law: dict[Hashable | None, float] = {}
    for drawn in counts(len(q), n):
        number = np.array(drawn, dtype=np.float64)
        log_chance = lgamma(n + 1) - sum(lgamma(k + 1) for k in drawn) + float(number @ np.log(q))
        votes = of.T @ (of @ (number * weights)) / (number @ weights)  # [k]: of each record's answer
        ahead = (number > 0) & (votes >= votes[number > 0].max() - TOLERANCE)
        heaviest = ahead & (weights >= weights[ahead].max() * (1 - 1e-12))  # the first particle of these
        for i in np.flatnonzero(heaviest).tolist():
            chance = float(np.exp(log_chance) * number[i] / number[heaviest].sum())
            law[answers[i]] = law.get(answers[i], 0.0) + chance
    return law


def wrong_vote_bound(masses: dict[Hashable, float], greatest_weight: float, n: int) -> float:
    """Σ_b exp(−n Δ_b²/(2 w*²)), of the masses P_α and the greatest weight w*."""
    best = max(masses, key=lambda answer: masses[answer])
    gaps = [masses[best] - mass for answer, mass in masses.items() if answer != best]
    return float(sum(np.exp(-n * gap**2 / (2 * greatest_weight**2)) for gap in gaps))
