"""The vote of particles (claim P32): what it tends to, and how surely."""

import itertools
from collections.abc import Callable, Hashable

import numpy as np
import pytest

from tests.theory.test_markov_chain import SAME, Measured, ignore
from theory import consensus, power
from theory.consensus import answer_masses, vote_law, wrong_vote_bound
from theory.power import Law

P = np.array([0.32, 0.2, 0.19, 0.18, 0.11])  # five responses
ANSWERS = ["one", "two", "two", "two", None]
LOGP = np.log(P)
ALPHAS = (1.0, 1.5, 2.0, 4.0)


def cloud(alpha: float, tau: float) -> tuple[Law, Law]:
    """q at temperature tau on the five responses, and the weights p^α/q."""
    q = power.power_law(LOGP, 1 / tau)
    return q, P**alpha / q


@pytest.mark.claim("P32")
def test_the_answer_of_most_mass_is_not_that_of_the_likeliest() -> None:
    """At α = 1 and 1.5 the many responses that answer "two" outweigh the likeliest, at 4 they do not."""
    winners = []
    for alpha in ALPHAS:
        masses = answer_masses(LOGP, alpha, ANSWERS)
        assert masses == pytest.approx({"one": 0.32**alpha, "two": (P[1:4] ** alpha).sum()})
        winners.append(max(masses, key=lambda answer: masses[answer]))
    assert winners == ["two", "two", "two", "one"] and ANSWERS[int(P.argmax())] == "one"


def by_hand(q: Law, weights: Law, answers: list, n: int) -> dict[Hashable | None, float]:
    """Particle by particle."""
    law: dict[Hashable | None, float] = {}
    for drawn in itertools.product(range(len(q)), repeat=n):
        share: dict[Hashable | None, float] = {}
        for i in drawn:
            share[answers[i]] = share.get(answers[i], 0.0) + (weights[i] if answers[i] is not None else 0.0)
        most = max(share.values())
        tied = [i for i in drawn if share[answers[i]] >= most - 1e-6 * sum(weights[list(drawn)])]
        winner = answers[max(tied, key=lambda i: round(weights[i], 12))]  # the first of the heaviest
        law[winner] = law.get(winner, 0.0) + float(np.prod(q[list(drawn)]))
    return law


def test_the_law_of_the_vote_is_the_procedure() -> None:
    for alpha, tau, n in itertools.product(ALPHAS, (1.0, 0.5), (1, 2, 3, 4)):
        q, weights = cloud(alpha, tau)
        found, expected = vote_law(q, weights, ANSWERS, n), by_hand(q, weights, ANSWERS, n)
        assert {*found} == {*expected} and sum(found.values()) == pytest.approx(1, abs=SAME)
        assert all(abs(found[answer] - mass) < SAME for answer, mass in expected.items())
    equal = np.full(5, 0.2), np.ones(5)
    assert vote_law(*equal, ANSWERS, 2)["one"] == pytest.approx(by_hand(*equal, ANSWERS, 2)["one"])  # ties


VoteOf = Callable[[Law, Law, list, int], dict]


def assert_consistent(vote_of: VoteOf, measured: Measured = ignore) -> None:
    """The chance of another answer than that of most mass is under Hoeffding's bound, and tends to 0."""
    nearest, last = 0.0, 0.0
    for alpha, tau in itertools.product(ALPHAS, (1.0, 0.5, 100.0)):
        q, weights = cloud(alpha, tau)
        masses = answer_masses(LOGP, alpha, ANSWERS)
        best = max(masses, key=lambda answer: masses[answer])
        wrong = []
        for n in (1, 2, 4, 8, 20):
            wrong.append(1 - vote_of(q, weights, ANSWERS, n).get(best, 0.0))
            most = wrong_vote_bound(masses, float(weights.max()), n)
            assert wrong[-1] <= most + SAME, "bound"
            nearest = max(nearest, wrong[-1] / most)
        share = masses[best] / sum(masses.values())
        if share > 0.6 and tau <= 1:
            assert wrong[-1] < wrong[2] and wrong[-1] < 0.16, "consistent"
            last = max(last, wrong[-1])
    assert nearest > 0.8, "nearly attained"
    measured("Pr[another answer] / bound, greatest", nearest, 1.0)
    measured("Pr[another answer] of 20 particles, where P_α(a*) is above 0.6 of both, greatest", last, 0.16)


@pytest.mark.claim("P32")
def test_the_vote_tends_to_the_answer_of_most_mass(measured: Measured) -> None:
    assert_consistent(vote_law, measured)


def likeliest(q: Law, weights: Law, answers: list, n: int) -> dict:
    """The answer of the likeliest particle: best-of-N."""
    law: dict = {}
    for drawn in consensus.counts(len(q), n):
        chance = np.exp(
            consensus.lgamma(n + 1) - sum(consensus.lgamma(k + 1) for k in drawn) + np.array(drawn) @ np.log(q)
        )
        first = answers[next(i for i, k in enumerate(drawn) if k)]  # P falls
        law[first] = law.get(first, 0.0) + float(chance)
    return law


@pytest.mark.claim("P32")
@pytest.mark.parametrize(
    "vote",
    [
        lambda q, w, answers, n: vote_law(q, np.ones_like(w), answers, n),  # of q, not of p^α
        lambda q, w, answers, n: vote_law(q, w * q, answers, n),  # weights p^α, without the proposal's
        likeliest,
    ],
    ids=["equal weights", "no proposal term", "the likeliest"],
)
def test_other_votes_are_caught(vote: VoteOf) -> None:
    with pytest.raises(AssertionError, match=r"bound|consistent"):
        assert_consistent(vote)
