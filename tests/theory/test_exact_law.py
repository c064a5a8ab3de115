"""The enumerator: what it refuses, and that its five answers have the probabilities that `Drawn` gives them."""

import itertools
import math

import numpy as np
import pytest
import torch

from reference.interface import ACCEPT, CHOICE, CUT, RESAMPLE, Drawn, inverse_cdf
from theory.exact_law import TOKEN, Enumerated, exact_law, expectation, kernel, main, power_chain, power_step, runs
from theory.particles import ancestors as ancestors_of

EXACT = 1e-12
COIN = math.log(0.5)


# --- Laws, and what is no law ----------------------------------------------------------------------------------------


def two_tokens(chance, p=(0.2, 0.0, 0.8)):
    return tuple(chance.token(np.log(np.maximum(p, 1e-300)), position=t) for t in range(2))


def test_outcomes_have_the_product_of_their_answers():
    law = exact_law(two_tokens)
    assert sum(law.values()) == pytest.approx(1, abs=EXACT)
    assert law[0, 2] == pytest.approx(0.16, abs=EXACT) and law[2, 2] == pytest.approx(0.64, abs=EXACT)


def test_paths_with_one_outcome_are_added():
    law = exact_law(lambda chance: sum(chance.index(3, CUT, step=n) for n in range(2)))
    assert law == pytest.approx({0: 1 / 9, 1: 2 / 9, 2: 3 / 9, 3: 2 / 9, 4: 1 / 9}, abs=EXACT)


def test_a_branch_may_ask_what_another_does_not():
    def program(chance):
        return chance.index(2, CUT, step=1) if chance.happens(COIN, ACCEPT) else 7

    assert exact_law(program) == pytest.approx({7: 0.5, 0: 0.25, 1: 0.25}, abs=EXACT)


@pytest.mark.parametrize("ask", [
    lambda chance: chance.token(torch.tensor([-math.inf, 0.0, -math.inf]), position=0) == 1,
    lambda chance: chance.weighted([0.0, 2.0, 0.0], CHOICE) == 1,
    lambda chance: chance.happens(0.0, ACCEPT) is True,
    lambda chance: chance.happens(-math.inf, ACCEPT) is False,
    lambda chance: chance.ancestors([0.0, 3.0], "multinomial", position=1) == [1, 1],
    lambda chance: chance.ancestors([0.0, 3.0], "systematic", position=1) == [1, 1],
])  # fmt: skip
def test_what_has_probability_0_is_never_taken(ask):
    assert [outcome for outcome, _ in runs(ask)] == [True]


def test_expectations():
    def counts(chance):
        return [chance.index(2, CUT, position=t) for t in range(2)]

    assert expectation(counts) == pytest.approx([0.5, 0.5], abs=EXACT)
    assert float(expectation(lambda chance: chance.index(4, CUT))) == pytest.approx(1.5, abs=EXACT)


def test_the_kernel_of_a_chain():
    p, texts = (0.6, 0.4), list(itertools.product(range(2), repeat=2))
    matrix = kernel(lambda x, chance: power_step(x, chance, p, 2.0), texts)
    pi = np.array([(p[a] * p[b]) ** 2 for a, b in texts])
    assert np.abs(matrix.sum(1) - 1).max() <= EXACT and np.abs(pi @ matrix - pi).max() <= EXACT
    start = np.array([p[a] * p[b] for a, b in texts])
    law = exact_law(power_chain(p, 2.0, 2))
    assert np.abs([law[text] for text in texts] - start @ matrix @ matrix).max() <= EXACT


def test_a_chain_that_leaves_its_states_is_refused():
    with pytest.raises(KeyError):
        kernel(lambda x, chance: x + chance.index(2, CUT), [0, 1])


@pytest.mark.parametrize("ask", [
    lambda chance: (chance.index(2, CUT), chance.index(2, CUT)),
    lambda chance: (chance.child("a").index(2, CUT), chance.child("a").index(2, CUT)),
    lambda chance: (chance.index(2, CUT), chance.sample(0, of=3).index(2, CUT)),  # the number of sample 0 is the same
    lambda chance: (chance.sample(1, of=2).sample(0, of=3).index(2, CUT), chance.sample(3).index(2, CUT)),
    lambda chance: (chance.token(torch.zeros(1), position=1), chance.index(2, TOKEN, position=1)),
    lambda chance: (chance.ancestors([1, 1], "systematic", position=1), chance.index(2, RESAMPLE, position=1)),
])  # fmt: skip
def test_an_address_asked_twice_is_refused_as_it_is_by_drawn(ask):
    with pytest.raises(ValueError, match="twice"):
        exact_law(ask)
    with pytest.raises(ValueError, match="twice"):
        ask(Drawn(3, 4, asked=set()))


def test_children_samples_steps_positions_and_purposes_are_separate():
    def program(chance):
        streams = [chance, chance.child("a"), chance.child("b", 1), chance.child("a").child("a"), chance.sample(1),
                   chance.sample(2).child("a")]  # fmt: skip
        answers = [stream.index(2, CUT) for stream in streams]
        return (*answers, chance.index(2, CUT, step=1), chance.index(2, CUT, position=1), chance.index(2, CHOICE))

    law = exact_law(program)
    assert len(law) == 2**9 and {*law.values()} == {2.0**-9}
    program(Drawn(3, 4, asked=set()))


def hidden_state():
    """A program that remembers what it did on other paths."""
    calls = itertools.count()
    return lambda chance: (chance.index(2, CUT), chance.index(2 + next(calls), CUT, step=1))


def fewer_questions():
    calls = itertools.count()
    return lambda chance: next(calls) or (chance.index(2, CUT), chance.index(2, CUT, step=1))


def other_addresses():
    calls = itertools.count()
    return lambda chance: (chance.index(2, CUT, step=next(calls)), chance.index(2, CUT, position=1))


@pytest.mark.parametrize("program", [hidden_state, fewer_questions, other_addresses])
def test_a_program_that_replays_differently_is_refused(program):
    with pytest.raises(ValueError, match="replayed"):
        exact_law(program())


def test_more_paths_than_the_limit_are_refused_and_none_is_dropped():
    def program(chance):
        return [chance.index(2, CUT, step=n) for n in range(4)]

    assert len(list(runs(program, 16))) == 16
    with pytest.raises(ValueError, match="more than 15 paths"):
        list(runs(program, 15))


@pytest.mark.parametrize("law", [(0.5, 0.4), (1.5, -0.5), (math.nan, 1.0)])
def test_what_is_no_law_is_refused(law):
    with pytest.raises(ValueError, match="sum to 1"):
        exact_law(lambda chance: chance.run.choose(("here",), "ab", law))


@pytest.mark.parametrize("ask", [
    lambda chance: chance.token([math.nan, 0.0], position=0),
    lambda chance: chance.weighted([math.nan, 1.0], CHOICE),
    lambda chance: chance.happens(math.nan, ACCEPT),
])  # fmt: skip
def test_what_is_no_number_is_refused(ask):
    with pytest.raises(ValueError, match="sum to 1"):
        exact_law(ask)


def test_paths_that_lose_mass_are_refused(monkeypatch):
    """A question may be off by 1e-9, for the sake of whoever computes in float32; the total mass may not."""
    monkeypatch.setattr(Enumerated, "index", lambda self, n, *at: self.run.choose(at, range(n), [(1 - 1e-10) / n] * n))
    with pytest.raises(ValueError, match="not to 1"):
        exact_law(lambda chance: chance.index(2, CUT))


def test_the_demonstration(capsys):
    main()
    shown = capsys.readouterr().out
    assert "32. " not in shown and "31. token 1 (0.4)" in shown and "→  (1, 1), probability 0.032" in shown
    assert "(0, 0)   0.3600   0.4288         0.4793" in shown


# --- The answers agree -----------------------------------------------------------------------------------------------


class Fixed(Drawn):
    """`Drawn`, whose random numbers are those that are given, by step."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers = numbers

    def number(self, purpose, step, position):
        return torch.tensor([self.numbers[step]], dtype=torch.float64)


def breakpoints(ask):
    """Where the enumerator has the edges of its intervals, for each number: the sums of its options."""
    ((_, run),) = itertools.islice(runs(ask), 1)
    ((_, options, _),) = run.script
    return np.cumsum(options)


def measures(chance, ask, edges, numbers=1):
    """{outcome: how much of [0, 1)^numbers draws it}, by `chance(numbers)`: constant between the edges or it fails."""
    edges = np.unique(np.clip(np.concatenate([[0.0, 1.0], edges]), 0, 1))
    cells = [(low, high) for low, high in itertools.pairwise(edges) if high - low > EXACT]
    near = EXACT / 10  # an edge that is misplaced by more is seen
    found = {}
    for cell in itertools.product(cells, repeat=numbers):
        ends = [(low + near, 0.7 * low + 0.3 * high, high - near) for low, high in cell]
        outcomes = {ask(chance(probe)) for probe in itertools.product(*ends)}
        assert len(outcomes) == 1, f"in {cell} the draw is one of {outcomes}"
        (outcome,) = outcomes
        found[outcome] = found.get(outcome, 0.0) + float(np.prod([high - low for low, high in cell]))
    return found


def assert_agree(ask, edges=None, chance=Fixed, numbers=1):
    """Every outcome has the same probability as the measure of the numbers that draw it."""
    law = {outcome: mass for outcome, mass in exact_law(ask).items() if mass > EXACT}
    drawn = measures(chance, ask, breakpoints(ask) if edges is None else edges, numbers)
    assert {*law} == {*drawn}, f"{ {*law} ^ {*drawn} } are outcomes of one of them"
    assert max(abs(law[outcome] - mass) for outcome, mass in drawn.items()) <= EXACT


def random_laws(n):
    """Distributions of n: random ones, one with zeros at its ends, forced ones, an even one, one far from even."""
    rng = np.random.default_rng(5)
    cases = [*rng.dirichlet(np.ones(n), size=4), *rng.dirichlet(np.full(n, 0.2), size=2)]
    cases += [np.full(n, 1 / n), np.eye(n)[n - 1], np.eye(n)[0]]
    holes = rng.dirichlet(np.ones(n))
    holes[[0, n - 1]] = 0
    return [law / law.sum() for law in [*cases, holes, 10.0 ** -np.arange(n)] if law.sum()]


LAWS = [law for n in (3, 4, 7) for law in random_laws(n)]


def token(law):
    with np.errstate(divide="ignore"):
        logs = torch.tensor(np.log(law))
    return lambda chance: chance.token(logs, position=0)


def weighted(law):
    return lambda chance: chance.weighted(law.tolist(), CHOICE)


def index(n):
    return lambda chance: chance.index(n, CUT)


def happens(log_probability):
    return lambda chance: chance.happens(log_probability, ACCEPT)


def ancestors(law, scheme):
    return lambda chance: tuple(chance.ancestors(torch.tensor(law), scheme, position=1))


@pytest.mark.parametrize("ask", [token, weighted])
def test_tokens_and_weighted_choices_agree(ask):
    for law in LAWS:
        assert_agree(ask(law))
        assert_agree(ask(3 * law))  # neither needs to be normalised


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 10, 49])
def test_indices_agree(n):
    assert_agree(index(n))


@pytest.mark.parametrize("log_probability", [0.0, 3.0, math.inf, -math.inf, -1e-9, COIN, -0.1, -2.3456, -20.0])
def test_what_happens_agrees(log_probability):
    assert_agree(happens(log_probability))


WEIGHTS = [law for n in (1, 2, 3) for law in random_laws(n)]


def test_systematic_ancestors_agree():
    for law in [*WEIGHTS, *random_laws(5)]:
        assert_agree(ancestors(law, "systematic"))


def test_edges_that_only_rounding_tells_apart_are_one():
    """So no outcome has a probability of 1e-16, or a point that is rounded to 1, where there is no particle."""
    for weights in ([1.0, 1.0 + 4e-16], [1.0, 1.0 - 4e-16], np.full(5, 1 / 5), np.full(49, 1 / 49)):
        options = list(ancestors_of(np.array(weights), "systematic"))
        assert options == [(tuple(range(len(weights))), pytest.approx(1, abs=EXACT))]


def test_multinomial_ancestors_agree():
    for law in WEIGHTS:
        assert_agree(ancestors(law, "multinomial"), np.cumsum(law), numbers=len(law))


# --- and would not agree with another scheme --------------------------------------------------------------------------


class Stratified(Fixed):
    """A number of its own for each of the points (u_i + i)/n."""

    def ancestors(self, weights, scheme, *, position):
        n = len(weights)
        u = torch.cat([(self.number(RESAMPLE, i, position) + i) / n for i in range(n)])
        return inverse_cdf(torch.as_tensor(weights).log().expand(n, n), u)[0].tolist()


def test_stratified_is_not_systematic():
    law = np.array([0.2, 0.5, 0.3])
    edges = (3 * np.cumsum(law)) % 1
    assert_agree(ancestors(law, "systematic"), edges, numbers=3)
    with pytest.raises(AssertionError):
        assert_agree(ancestors(law, "systematic"), edges, Stratified, numbers=3)


class OnePoint(Fixed):
    """Multinomial draws that share a number."""

    def ancestors(self, weights, scheme, *, position):
        u = self.number(RESAMPLE, 0, position).repeat(len(weights))
        return inverse_cdf(torch.as_tensor(weights).log().expand(len(u), len(u)), u)[0].tolist()


class SinglePrecision(Fixed):
    def token(self, log_probabilities, *, step=0, position):
        cdf = log_probabilities.float().exp().cumsum(0)
        return int(torch.searchsorted(cdf / cdf[-1], self.number(0, step, position).float(), right=True)[0])


class Rounded(Fixed):
    def index(self, n, purpose, *, step=0, position=0):
        return round(float(self.number(purpose, step, position)) * (n - 1))


class Inverted(Fixed):
    def happens(self, log_probability, purpose, *, step=0, position=0):
        return bool(self.number(purpose, step, position).log() > log_probability)


@pytest.mark.parametrize(("wrong", "ask", "numbers"), [
    (OnePoint, ancestors(np.array([0.2, 0.8]), "multinomial"), 2), (SinglePrecision, token(np.array([0.2, 0.8])), 1),
    (Rounded, index(4), 1), (Inverted, happens(-0.1), 1),
])  # fmt: skip
def test_wrong_answers_do_not_agree(wrong, ask, numbers):
    edges = [0.2] if wrong is OnePoint else None
    assert_agree(ask, edges, numbers=numbers)
    with pytest.raises(AssertionError):
        assert_agree(ask, edges, wrong, numbers)
