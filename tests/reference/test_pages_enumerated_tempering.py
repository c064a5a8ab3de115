"""The page of parallel tempering, run for every outcome: a round is theory's and keeps Π_k p^(α_k)."""

import dataclasses
import itertools

import numpy as np
import pytest

from reference import parallel_tempering as T
from reference import power_sampling as P
from reference.parallel_tempering import TemperingConfig, parallel_tempering_page
from reference.power_sampling import PowerConfig
from reference.sampling import log_probs
from tests.reference.small_worlds import EXACT, WORLDS, as_array, assert_same, mutated
from tests.reference.test_pages_enumerated_chains import CUTS, settings, theorys
from theory import tempering
from theory.blocked_chain import blocked_law
from theory.exact_law import exact_law

pytestmark = pytest.mark.usefixtures("remember")


def ladder(world, **change):
    alphas = {2: (1.0, world.alpha), 3: (0.7, 1.5, world.alpha)}[change.get("rungs", 2)]
    return settings(world, TemperingConfig, **{"rungs": 2, "ladder": alphas, **change})


def as_joint(law, records, rungs):
    """[n, ..., n] of a law of a ladder's records."""
    flat = as_array(law, [*itertools.product(records, repeat=rungs)])
    return flat.reshape((len(records),) * rungs)


def round_law(world, config, xs):
    """The exact law of one round of the page from a ladder's records, as an array [n, ..., n]."""
    records = world.law[0]
    at = (world.model, world.prompt, xs, config, config.max_new_tokens, 1)
    law = exact_law(lambda chance: T.step(*at, stop_ids=world.stops, chance=chance)[0])
    return as_joint(law, records, config.rungs)


def theory_round(world, config, joint):
    """The same for any joint law of the rungs: each rung's own kernel, then swaps upwards."""
    _, logp, conditionals = world.law
    own = {key: value for key, value in theorys(config).items() if key in ("horizon", "cut")}
    chains = tempering.rungs(conditionals, config.alphas, **own)
    joint = tempering.step_all(joint, [rung.kernel for rung in chains])
    for rung in range(config.rungs - 1):
        joint = tempering.swap(joint, logp, config.alphas, rung)
    return joint


def assert_round(world, config, start=None):
    """One round from every ladder of records (or from some): theory's round, and Π_k p^(α_k) is kept."""
    records = world.law[0]
    n, off = len(records), []
    joint = tempering.product([world.target(alpha) for alpha in config.alphas])
    kept = np.zeros_like(joint)
    for at in start or itertools.product(range(n), repeat=config.rungs):
        basis = np.zeros_like(joint)
        basis[at] = 1.0
        found = round_law(world, config, tuple(records[i] for i in at))
        off += [abs(found.sum() - 1), assert_same(found, theory_round(world, config, basis))]
        kept += joint[at] * found
    if start is None:
        off.append(assert_same(kept, joint))
    return max(off)


@pytest.mark.claim("P17")
@pytest.mark.parametrize(("name", "change"), [
    ("short", {"cut": "record"}), ("fork", {"cut": "horizon"}), ("fork", CUTS[3]),
])  # fmt: skip
def test_a_round_keeps_the_product(name, change, measured):
    """K = 2 at H = 2, from every pair of records."""
    measured("max |K - theory|, |π K - π|", assert_round(WORLDS[name], ladder(WORLDS[name], **change)), EXACT)


@pytest.mark.claim("P17")
def test_a_round_of_three_rungs(measured):
    """Swaps go upwards, so that the record of the first rung may come to the last in one round."""
    config = ladder(WORLDS["fork"], rungs=3)
    measured("max |K - theory|", assert_round(WORLDS["fork"], config, [(1, 4, 0)]), EXACT)


def assert_ladder(world, config):
    """The whole page: the joint law of all rungs, and how often neighbours swap."""
    records, logp, conditionals = world.law
    chains = tempering.rungs(conditionals, config.alphas, horizon=config.max_new_tokens, cut=config.cut)
    start = tempering.product([rung.initial for rung in chains])
    joint = theory_round(world, config, start)
    law = world.page_law(parallel_tempering_page, config, lambda run: (run.rungs, run.tokens, run.swapped[0]))
    found, swapped = np.zeros_like(joint), 0.0
    for (rungs, tokens, swaps), mass in law.items():
        assert tokens == rungs[-1]
        found[tuple(records.index(record) for record in rungs)] += mass
        swapped += mass * swaps[0]
    stepped = tempering.step_all(start, [rung.kernel for rung in chains])
    expected = float((stepped * tempering.swap_chance(logp, *config.alphas)).sum())
    return max(assert_same(found, joint), assert_same(swapped, expected))


@pytest.mark.claim("P17")
def test_the_page_of_a_ladder(measured):
    measured("max |law - theory|", assert_ladder(WORLDS["fork"], ladder(WORLDS["fork"], cut="record")), EXACT)


def assert_extended(world, page=parallel_tempering_page):
    """Blocks of one token and no steps: each rung is a draw of its own proposal, which extends its open records."""
    config = ladder(world, block=1, steps=0)
    records = world.law[0]
    chains = tempering.rungs(world.law[2], config.alphas, horizon=config.max_new_tokens)
    found = as_joint(world.page_law(page, config, lambda run: run.rungs), records, config.rungs)
    return assert_same(found, tempering.product([rung.initial for rung in chains]))


@pytest.mark.parametrize("name", WORLDS)
def test_a_block_extends_every_open_rung_by_its_own_proposal(name):
    assert_extended(WORLDS[name])


def test_one_rung_is_power_sampling():
    """Its addresses are those of the chain, its law theory's."""
    world = WORLDS["fork"]
    config = settings(world, TemperingConfig, rungs=1, ladder=(world.alpha,))
    records, law = blocked_law(world.law[2], **theorys(settings(world)))
    assert_same(as_array(world.page_law(parallel_tempering_page, config), records), law)


# --- Mutants ---------------------------------------------------------------------------------------------------------


def downwards(*arguments, **named):
    """The page's round, its swaps made from the last pair to the first."""
    model, prompt, xs, config, horizon, n = arguments
    moves = [
        P.step(model, prompt, x, config.rung(k), horizon, n, **{**named, "chance": T.of_rung(named["chance"], k)})[0]
        for k, x in enumerate(xs)
    ]
    for k in reversed(range(config.rungs - 1)):
        logp = [float(log_probs(model, prompt, x)[0].sum()) for x in moves[k : k + 2]]
        ratio = T.swap_log_ratio(config.alphas[k], config.alphas[k + 1], *logp)
        if named["chance"].happens(ratio, T.SWAP, step=n, position=k):
            moves[k], moves[k + 1] = moves[k + 1], moves[k]
    return tuple(moves), None


LADDER_MUTANTS = {
    "sign of the swap's ratio": ("swap_log_ratio", lambda low, high, p, q: (high - low) * (q - p)),
    "swaps always": ("swap_log_ratio", lambda low, high, p, q: 0.0),
    "swaps by the upper exponent": ("swap_log_ratio", lambda low, high, p, q: high * (p - q)),
    "swaps downwards": ("step", downwards),
}


@pytest.mark.claim("P17")
@pytest.mark.parametrize("mutant", LADDER_MUTANTS)
def test_wrong_rounds_are_caught(mutant, monkeypatch):
    monkeypatch.setattr(T, *LADDER_MUTANTS[mutant])
    with pytest.raises(AssertionError):
        assert_round(WORLDS["fork"], ladder(WORLDS["fork"], rungs=3), [(1, 4, 0)])


@pytest.mark.parametrize(("right", "wrong"), [
    ("1 / a, step=first", "1 / config.alpha, step=first"), ("(block + 1) * config.block", "block * config.block"),
])  # fmt: skip
def test_other_extensions_are_caught(right, wrong):
    with pytest.raises(AssertionError):
        assert_extended(WORLDS["pivot"], mutated(parallel_tempering_page, right, wrong))


@pytest.mark.claim("P17")
def test_rungs_at_one_exponent_are_caught(monkeypatch):
    monkeypatch.setattr(TemperingConfig, "rung", lambda self, k: PowerConfig(**{
        field.name: getattr(self, field.name) for field in dataclasses.fields(PowerConfig)}))  # fmt: skip
    with pytest.raises(AssertionError):
        assert_ladder(WORLDS["fork"], ladder(WORLDS["fork"], cut="record"))
