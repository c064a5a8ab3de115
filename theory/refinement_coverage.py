"""Refinement and coverage: what rounds do to pass@k and to E[1/p], and when they are worth more than drafts.

Problems x have drafts that are right with probability p each; M of them, j right, make an answer that is right with
probability g_M(j), so a round takes p to f(p) = Σ_j Binom(j; M, p) g(j) (theory/refinement.py). k answers are right
with probability c_k(q) = 1 − (1−q)^k if each is with q, so after a round, E over problems,                   claim D20

    pass@k = E c_k(f(p))      each answer from drafts of its own
           = E B_M[c_k∘g](p)  all from one workspace: less, as c_k is concave and E c_k(g(J)) ≤ c_k(E g(J))

B_M[φ](p) = Σ_j Binom(j; M, p) φ(j). If g(0) = 0, g ≤ 1{j ≥ 1}, of which both are increasing functions, so that

    pass@k ≤ pass@kM of the drafts;  of one workspace ≤ pass@M, for every k;  E[1/f(p)] ≥ E[1/p]/M

(f(p) ≤ 1 − (1−p)^M ≤ M p), attained by the oracle g = 1{j ≥ 1}, the last as p → 0: what no draft holds is not refined
out of them. If g > 0, E[1/f] ≤ 1/min g, even where E[1/p] = ∞. With g(0) = 0, s = M g(1) > 0 and p ~ Beta(a, b),

    (1 − pass@k after)/(1 − pass@k before) → s^(−a),  k → ∞

as only p near 0 matter, where f(p) = s p + O(p²) (f > 0 elsewhere, if g(M) > 0): pass@k at large k falls iff s < 1,
the threshold at which a small p dies (claim D11), also where pass@1 rises.

Rounds or drafts. In R rounds, each with one workspace, value(p; M_1, ..) = B_{M_1}[value(·; M_2, ..)∘g_{M_1}](p), and
value(p; none) = p. Let g depend on the share of right drafts, g_M(j) = h(j/M), and rise. If h is concave

    value rises in every M_r, to h(h(.. p)) as all grow, and is at most what rounds without shared workspaces give

and if h is convex it falls in every M_r and is at least that. Proof for a concave h. Of M + 1 drafts, J of them right,
drop one at random: the right ones left are Binom(M, p), their share has mean J/(M+1), so B_M φ ≤ B_{M+1} φ for concave
φ (Jensen). B_M φ is concave and rises if φ does, as its derivatives are mixtures of φ's differences. By induction from
the last round on, value(·; M_r, ..) is concave and rises, and so is it after h. The last part is Jensen once a round:
E value(h(J/M)) ≤ value(E h(J/M)). With c_k for value(p; none) the same holds of pass@k, for concave h.

Drafts of one length cost no B_seq, so for concave h more of them never hurt at equal B_seq. But one round is worth at
most h(p), its limit: more rounds beat any number of drafts if their value exceeds h(p), and enough drafts beat them if
it is below. At equal B_total `best_schedule` compares exactly. For h that is neither both happen: more drafts of a
majority hurt where p < 1/2.

Sources: 2510.01123 (the operators, the budgets); monotonicity of B_M is Temple's (1954); the rest is derived here.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from theory.refinement import budgets, operator

Array = NDArray[np.float64]
Response = Callable[[int], Array]  # M -> g_M(0), .., g_M(M)
Schedule = tuple[int, ...]  # M_1, .., M_{R−1}; the last round's single draft is implied


def of_share(h: Callable[[Array], Array]) -> Response:
    """g_M(j) = h(j/M): what matters is the share of right drafts."""
    return lambda m: np.asarray(h(np.arange(m + 1) / m), dtype=np.float64)


def pass_at(k: int, q: ArrayLike) -> Array:
    """c_k(q) = 1 − (1−q)^k, of the shape of q. ValueError: k < 1."""
    if k < 1:
        raise ValueError(f"k is {k}; pass@k needs at least one answer")
    with np.errstate(divide="ignore"):
        return np.asarray(-np.expm1(k * np.log1p(-np.asarray(q, dtype=np.float64))))


def inverse_mass(weights: ArrayLike, q: ArrayLike) -> float:
    """E[1/q] over problems, C_cov of the set of right answers; infinite where no answer is right. [problems] each."""
    with np.errstate(divide="ignore"):
        return float(np.asarray(weights) @ (1 / np.asarray(q, dtype=np.float64)))


def shared(p: ArrayLike, drafts: Schedule, response: Response, k: int = 1) -> Array:
    """pass@k of the last round, of the shape of p: every round's drafts, and the k answers, have one workspace."""
    if not drafts:
        return pass_at(k, p)
    return operator(p, shared(response(drafts[0]), drafts[1:], response, k))


def branching(p: ArrayLike, drafts: Schedule, response: Response, k: int = 1) -> Array:
    """The same if every draft and every answer has drafts of its own behind it: f_{M_{R−1}}(.. f_{M_1}(p))."""
    q = np.asarray(p, dtype=np.float64)
    for m in drafts:
        q = operator(q, response(m))
    return pass_at(k, q)


def tail_ratio(g: ArrayLike, a: float) -> float:
    """s^(−a), s = M g(1): what one round with g(0) = 0 makes of 1 − pass@k at large k if p ~ Beta(a, b).

    ValueError: g(0) > 0, which leaves nothing of such a tail; g(1) = 0; or g(M) = 0, where p near 1 matter, too."""
    g = np.asarray(g, dtype=np.float64)
    if g[0] > 0 or g[1] <= 0 or g[-1] <= 0:
        raise ValueError(f"g begins with {g[0]}, {g[1]} and ends with {g[-1]}; give g(0) = 0 < g(1) and g(M) > 0")
    return float(((len(g) - 1) * g[1]) ** -a)


def schedules(total: float, draft: int, distill: int, most_rounds: int = 4) -> Iterator[Schedule]:
    """All that cost at most `total` tokens, B_total, each draft `draft` and each report `distill`; () is one draft."""

    def extend(before: Schedule) -> Iterator[Schedule]:
        if before and budgets(before, [draft] * (len(before) + 1), [distill] * len(before))[1] > total:
            return
        yield before
        if len(before) < most_rounds:
            for m in range(1, int(total // draft)):
                yield from extend((*before, m))

    if draft <= total:
        yield from extend(())


def best_schedule(
    weights: ArrayLike, p: ArrayLike, response: Response, some: Sequence[Schedule], k: int = 1
) -> tuple[Schedule, float]:
    """Of some schedules the one of greatest pass@k over problems, workspaces shared; the first, if several are."""
    values = [float(np.asarray(weights) @ shared(p, drafts, response, k)) for drafts in some]
    best = int(np.argmax(values))
    return some[best], values[best]
