"""What judge calls buy: more candidates or more votes, at one budget, when the votes on a candidate are correlated.

A question's candidates are right with probability p. A vote says yes with probability Q, a random number of its own
distribution for right and for wrong candidates; all v votes on a candidate must say yes. With T_v = E[Q^v | right] and
F_v = E[Q^v | wrong], for n candidates (no early exit: b = n v calls)                                      claim V19

    a_v = p T_v + (1−p) F_v        a candidate is kept         π_v = p T_v/a_v                precision, for every n
    1 − (1−a_v)^n                  coverage                    m questions, nothing kept: Π_q (1 − a_v,q)^n

An exact-fit student answers a covered question as the kept set does and the others as before, so its error is

    1 − p − (1 − (1−a_v)^n) (π_v − p)

Coverage falls with v at a fixed b: Q^(v+1) ≤ Q^v, and n = ⌊b/v⌋ falls. So {v: coverage ≥ c} is 1 .. v_max, and the most
precise split is the v ≤ v_max of greatest π_v. The error falls with n iff π_v > p, that is iff T_v > F_v; so the least
error is at n = ⌊b/v⌋ of some v, if T_v > F_v for any, and else no filter is best.

One more vote multiplies the odds of π_v by t_v/f_v, where t_v = T_(v+1)/T_v and f_v are the chances that it says yes,
too. They never fall in v (Cauchy-Schwarz: T_(v+1)² ≤ T_v T_(v+2)). For beta distributions of means m and correlations ρ
of two votes, with r = ρ/(1−ρ), they are (m + v r)/(1 + v r), so

    t_v > f_v   iff   (m_R − m_W) + v (r_R (1−m_W) − r_W (1−m_R)) > 0

(multiply out; v² r_R r_W cancels). The left side is linear in v: precision has at most one turn. If m_R > m_W it rises
for ever iff d_R ≤ d_W, d = (1−m)/r (T_v ~ v^(−d_R), F_v ~ v^(−d_W)); else judges agree on wrong candidates so much more
than on right ones, say by a misconception that they share, that from some v on further votes lower it.

With d_R < d_W and coverage c, v_max ~ b^(1/(1+d_R)), so the odds of a kept candidate to be wrong fall like
b^(−(d_W−d_R)/(1+d_R)): a power of the calls, where independent votes on right candidates that always pass would give an
exponential.

Sources: 2605.26132 and 2508.17580 for the votes; the rest is derived here. Arrays over v are [V], v = 1 .. V.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from theory.verification import accepted, check_probabilities, coverage, precision

Array = NDArray[np.float64]
Judge = tuple[float, float]  # (mean, correlation of two votes on one candidate) of a beta distribution of Q


@dataclass(frozen=True)
class Split:
    """A budget of judge calls on one question: n candidates with v votes each, and what they give."""

    n: int
    votes: int
    precision: float
    coverage: float
    error: float  # of the exact-fit student


def excess(judge: Judge) -> float:
    """r = ρ/(1−ρ). ValueError: not a beta distribution's mean and correlation."""
    mean, rho = judge
    if not (0 <= mean <= 1 and 0 <= rho < 1):
        raise ValueError(f"judge is {judge}; give a mean in [0, 1] and a correlation in [0, 1)")
    return rho / (1 - rho)


def moments(judge: Judge, most: int) -> Array:
    """E[Q^v], v = 1 .. most, [most], by the chance of another yes after v: (m + v r)/(1 + v r)."""
    v, r = np.arange(most), excess(judge)
    return np.asarray(np.cumprod((judge[0] + v * r) / (1 + v * r)), dtype=np.float64)


def another_vote(right: Judge, wrong: Judge, votes: ArrayLike) -> Array:
    """Its sign is that of the change of precision from v to v + 1 votes; of the shape of votes."""
    slope = excess(right) * (1 - wrong[0]) - excess(wrong) * (1 - right[0])
    return np.asarray(right[0] - wrong[0] + np.asarray(votes, dtype=np.float64) * slope)


def exponent(right: Judge, wrong: Judge) -> float:
    """(d_W − d_R)/(1 + d_R): at fixed coverage, (1 − π)/π of the best split falls like b to this power, negated.

    ValueError: d_R ≥ d_W, where precision does not tend to 1, or a judge without correlation."""
    if not excess(right) or not excess(wrong):
        raise ValueError(f"judges are {right}, {wrong}; without correlation moments do not fall like a power")
    good, bad = ((1 - judge[0]) / excess(judge) for judge in (right, wrong))
    if good >= bad:
        raise ValueError(f"d is {good} for right candidates and {bad} for wrong ones; the first must be less")
    return (bad - good) / (1 + good)


def splits(budget: int, p: float, right: ArrayLike, wrong: ArrayLike) -> list[Split]:
    """n = ⌊budget/v⌋ for v = 1 .. budget, of T_v and F_v [≥ budget]. ValueError: fewer moments; not probabilities."""
    right, wrong = check_probabilities("right", right), check_probabilities("wrong", wrong)
    if not 1 <= budget <= min(len(right), len(wrong)):
        given = f"{len(right)} and {len(wrong)} moments"
        raise ValueError(f"budget is {budget} with {given}; give at least one call and as many moments")
    n = budget // np.arange(1, budget + 1)
    kept, sure = accepted(p, right[:budget], wrong[:budget]), precision(p, right[:budget], wrong[:budget])
    sure = np.where(kept > 0, sure, p)  # nothing is ever kept: the student is the base
    covered = coverage(kept, n)  # type: ignore[arg-type]
    error = 1 - p - covered * (sure - p)
    return [Split(int(m), v, *map(float, rest)) for v, (m, *rest) in enumerate(zip(n, sure, covered, error), 1)]


def most_precise(budget: int, p: float, right: ArrayLike, wrong: ArrayLike, least: float) -> Split:
    """The split of greatest precision among those of coverage ≥ least, the fewest votes if several are. ValueError:
    none has it, as one vote has not."""
    enough = [split for split in splits(budget, p, right, wrong) if split.coverage >= least]
    if not enough:
        raise ValueError(f"coverage {least} is out of reach of {budget} calls, even with one vote on a candidate")
    return max(enough, key=lambda split: split.precision)


def least_error(budget: int, p: float, right: ArrayLike, wrong: ArrayLike) -> Split:
    """The split that gives the exact-fit student the least error. ValueError: every filter makes it worse."""
    best = min(splits(budget, p, right, wrong), key=lambda split: split.error)
    if best.error >= 1 - p:
        raise ValueError(f"no votes up to {budget} accept right candidates more often than wrong ones; use no filter")
    return best


def nothing_kept(a: ArrayLike, n: int) -> float:
    """Π_q (1 − a_q)^n: that of n candidates of each question not one is kept. a [questions]."""
    with np.errstate(divide="ignore"):
        return float(np.exp(n * np.log1p(-check_probabilities("a", a)).sum()))


def starving(budget: int, p: float, right: ArrayLike, wrong: ArrayLike, questions: int, least: float) -> int | None:
    """The fewest votes at which fewer than `least` of the questions are kept in the mean, questions·coverage; all above
    starve, too, as coverage falls with v. None: not even `budget` votes are too many."""
    some = splits(budget, p, right, wrong)
    return next((split.votes for split in some if questions * split.coverage < least), None)
