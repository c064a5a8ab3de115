"""Verification by votes: what a cascade accepts, keeps and costs, as moments of per-item acceptance probabilities.

An item is a question with a candidate. A vote of stage s on it says yes with probability Q_s, and given the item votes
are independent. So the cascade accepts it with probability

    A = Π_s Q_s^v   (unanimous),     A = Π_s P(Bin(v, Q_s) > v/2)   (majority)

Over items Q is a random number, and what is measured are means over items, E[Q^v]: moments of a mixture. By Jensen
E[Q^v] ≥ (E Q)^v, with equality only where all items are alike: to multiply the mean's votes as if they were independent
is wrong, by a factor that grows with v. If Q is beta, with mean m and correlation ρ of two votes on one item,

    E[Q^v] = Π_{i<v} (m + i r) / (1 + i r),   r = ρ/(1−ρ);      ~ v^(−b), b = (1−m)/r: a power of v           claim V12

C(s, v)/C(V, v) estimates an item's Q^v without bias from s yes among V ≥ v votes.

With T = E[A | right], F = E[A | wrong], p the share of right candidates: precision pT/(pT + (1−p)F), the odds of being
right times T/F. A further stage raises precision iff it accepts, of what the others accept, right ones the more; stages
that are blind to different errors so need each other                                                       claim V13

One question, right with probability p, a candidate accepted with probability a = pT + (1−p)F. The first valid of n is
right with probability pT/a, whatever n is; n buys coverage 1 − (1−a)^n, at the questions with small a, so the precision
of the whole falls with n if these are the worse ones                                                       claim V14

The student that fits the kept set exactly has p′ = pT/a: its odds are multiplied by T/F (a replicator step). T = F, no
filter, is a fixed point. At test time, with candidate 0 where none is valid (UQ-TTC),

    accuracy_n = (1 − (1−a)^n) pT/a + (1−a)^n p(1−T)/(1−a)   →   pT/a

so distillation amortises n → ∞; it can be better only by what one question teaches of another     claims V15, V16

A misconception held with odds o by authors is what the student's most likely answer is iff o·F/T ≥ 1, F of the
misconception: whether reviewers hold it less often, not how often, decides whether rounds mend it.

Sources: 2605.26132 (cascade, first valid, call counts), 2508.17580 (validators, Table S7); the rest is derived here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import comb
from scipy.stats import binom

Array = NDArray[np.float64]


def check_probabilities(name: str, values: ArrayLike) -> Array:
    """ValueError: not in [0, 1]."""
    found = np.asarray(values, dtype=np.float64)
    if not np.all((found >= 0) & (found <= 1)):
        raise ValueError(f"{name} is {values!r}; it must lie in [0, 1]")
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Votes


def pass_probability(q: ArrayLike, votes: int, policy: str = "unanimous") -> Array:
    """That v votes, each yes with probability q, pass a stage; of the shape of q."""
    q = check_probabilities("q", q)
    if votes < 1 or policy not in ("unanimous", "majority"):
        raise ValueError(f"votes is {votes} and policy {policy!r}; give at least 1, and 'unanimous' or 'majority'")
    return q**votes if policy == "unanimous" else binom.sf(votes // 2, votes, q)


def acceptance(q: ArrayLike, votes: int, policy: str = "unanimous") -> Array:
    """A of each item, [items], of its vote probabilities [items, stages]."""
    return pass_probability(q, votes, policy).prod(-1)


def moment_estimate(yes: ArrayLike, cast: int, votes: int) -> Array:
    """The unbiased estimate C(s, v)/C(V, v) of Q^v, from s = yes of V = cast votes."""
    if not 1 <= votes <= cast:
        raise ValueError(f"votes is {votes}; it must lie in 1..{cast}, the votes that were cast")
    return np.asarray(comb(np.asarray(yes), votes) / comb(cast, votes), dtype=np.float64)


def beta_moment(mean: float, rho: float, votes: int) -> float:
    """E[Q^v] of a beta distribution with this mean and Corr(two votes on an item) = rho in [0, 1); 0: all items
    alike."""
    check_probabilities("mean", mean)
    if not 0 <= rho < 1:
        raise ValueError(f"rho is {rho}; it must lie in [0, 1)")
    i, r = np.arange(votes), rho / (1 - rho)
    return float(np.prod((mean + i * r) / (1 + i * r)))


def fit_rho(mean: float, unanimous: float, votes: int) -> float:
    """The rho at which E[Q^v] is `unanimous`. ValueError: no beta distribution does that: it must lie in [mean^v,
    mean)."""
    if not mean**votes <= unanimous < mean or votes < 2:
        raise ValueError(
            f"{votes} unanimous votes pass with probability {unanimous}; with mean {mean} it must lie in "
            f"[{mean**votes}, {mean}), and votes must be at least 2"
        )
    return float(brentq(lambda rho: beta_moment(mean, rho, votes) - unanimous, 0.0, 1 - 1e-12, xtol=1e-14))


# ---------------------------------------------------------------------------------------------------------------------
# Questions


def precision(p: ArrayLike, right: ArrayLike, wrong: ArrayLike) -> Array:
    """pT/(pT + (1−p)F): that an accepted candidate is right; T, F are the acceptance of right and wrong ones. It is
    also the exact-fit student's p′, and does not depend on how many candidates the first valid one was chosen from. NaN
    where nothing is accepted."""
    p, right, wrong = (check_probabilities(*each) for each in (("p", p), ("right", right), ("wrong", wrong)))
    with np.errstate(invalid="ignore"):
        return np.asarray(p * right / accepted(p, right, wrong))


def accepted(p: ArrayLike, right: ArrayLike, wrong: ArrayLike) -> Array:
    """a = pT + (1−p)F."""
    p = np.asarray(p, dtype=np.float64)
    return np.asarray(p * right + (1 - p) * wrong)


def coverage(a: ArrayLike, n: int) -> Array:
    """That one of n candidates is accepted."""
    return 1 - (1 - check_probabilities("a", a)) ** n


def kept(a: ArrayLike, n: int, keep: str = "first") -> Array:
    """How many candidates of each question are learned, in the mean: at most one ("first"), or "all" valid ones. The
    latter weighs questions by n·a, so easy ones more (claim V18)."""
    if keep not in ("first", "all"):
        raise ValueError(f"keep is {keep!r}; it must be 'first' or 'all'")
    return coverage(a, n) if keep == "first" else n * check_probabilities("a", a)


def mean_precision(p: ArrayLike, right: ArrayLike, wrong: ArrayLike, n: int, keep: str = "first") -> float:
    """The share of right ones among all that is learned, over questions of equal weight."""
    share = kept(accepted(p, right, wrong), n, keep)
    return float((share * precision(p, right, wrong)).sum() / share.sum())


def uq_ttc_accuracy(p: ArrayLike, right: ArrayLike, wrong: ArrayLike, n: int) -> Array:
    """UQ-TTC's: the first valid of n candidates; without one, candidate 0, which is known to be rejected."""
    p, right, a = np.asarray(p), np.asarray(right), accepted(p, right, wrong)
    none = (1 - a) ** n
    rejected = np.divide(p * (1 - right), 1 - a, out=np.zeros_like(a), where=a < 1)
    return (1 - none) * precision(p, right, wrong) + none * rejected


def student_odds(odds: ArrayLike, right: ArrayLike, wrong: ArrayLike, rounds: int = 1) -> Array:
    """Odds of being right after rounds of exact fit with one judge: times (T/F)^rounds. An answer that authors give
    with odds > 1 against the right one is overturned iff these odds end above 1."""
    return np.asarray(odds) * (np.asarray(right) / np.asarray(wrong)) ** rounds


# ---------------------------------------------------------------------------------------------------------------------
# Calls


def expected_calls(q: ArrayLike, votes: int, calls: ArrayLike, exit: str = "vote") -> Array:
    """The judge's calls on a candidate, unanimous votes: [items] of q [items, stages], calls [stages] of one vote.

    exit: "none", every vote; "stage", v votes of each stage that is reached; "vote", until the first dissent. A stage
    is reached with probability Π_{s' < s} Q_s'^v, and its vote j cast with Q_s^(j−1).
    """
    q, calls = check_probabilities("q", q), np.asarray(calls, dtype=np.float64)
    passed = q**votes
    reached = np.concatenate((np.ones_like(q[..., :1]), passed.cumprod(-1)[..., :-1]), -1)
    if exit == "none":
        return np.full(q.shape[:-1], votes * calls.sum())
    if exit == "stage":
        cast: Array = np.full_like(q, votes)
    elif exit == "vote":
        cast = (q[..., None] ** np.arange(votes)).sum(-1)
    else:
        raise ValueError(f"exit is {exit!r}; it must be 'none', 'stage' or 'vote'")
    return np.asarray((reached * cast * calls).sum(-1))


def most_calls(n: int, votes: int, calls: ArrayLike) -> int:
    """Of UQ-TTC: n candidates, and every vote on each. The paper's: 8 + 8·5·(2 + 1 + 1) = 168."""
    return int(n + n * votes * np.sum(calls))
