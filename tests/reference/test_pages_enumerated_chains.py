"""The pages that are chains, run for every outcome: their kernels are theory's and keep p^α, which no formula gave.

Power sampling and multiple try. Also the whole pages, their acceptance and the tokens they draw.
"""

import math

import numpy as np
import pytest

from reference import multiple_try as M
from reference import power_sampling as P
from reference.multiple_try import MultipleTryConfig, multiple_try_page
from reference.power_sampling import PowerConfig, power_sampling_page
from reference.sampling import log_probs
from tests.reference.small_worlds import EXACT, WORLDS, as_array, assert_same, gap
from theory import power
from theory.blocked_chain import blocked_law
from theory.cost import expected_tokens, redraws, tokens_per_step, untouched
from theory.exact_law import TOKEN, Enumerated, expectation, kernel
from theory.markov_chain import EntropyCut, Setting, chain, independence_spectrum, proposed, spectrum, tv_curve

pytestmark = pytest.mark.usefixtures("remember")

CUTS = [
    {"cut": "record"}, {"cut": "horizon"}, {"cut": "entropy"},
    {"cut": "entropy", "entropy_power": 1.0, "entropy_floor": 0.05},
    {"cut": "entropy", "entropy_power": 2.5},
]  # fmt: skip


def settings(world, kind=PowerConfig, **change):
    """The settings of a page in a world, in one block and with one step."""
    block = {"block": world.horizon, "max_new_tokens": world.horizon, "steps": 1}
    return kind(**{"alpha": world.alpha, **block, **change})


def theorys(config):
    """The settings of theory.markov_chain for those of a page."""
    cut = EntropyCut(config.entropy_power, config.entropy_floor) if config.cut == "entropy" else config.cut
    return {"horizon": config.max_new_tokens, "alpha": config.alpha,
            "tau": config.proposal_temperature, "block": config.block,
            "steps": config.steps, "cut": cut, "tries": getattr(config, "tries", 1)}  # fmt: skip


def step_of(config):
    return M.step if isinstance(config, MultipleTryConfig) else P.step


def page_of(config):
    return multiple_try_page if isinstance(config, MultipleTryConfig) else power_sampling_page


def take_step(world, config, x, chance, horizon=None):
    at = (x, config, horizon or config.max_new_tokens, 1)
    return step_of(config)(world.model, world.prompt, *at, stop_ids=world.stops, chance=chance)


def page_kernel(world, config, chance=lambda chance: chance):
    """K of the page's step, on the records of the horizon; `chance` may put another in place of the enumerator's."""
    return kernel(lambda x, own: take_step(world, config, x, chance(own))[0], world.law[0])


def assert_kernel(world, config):
    """The kernel of the page is theory's, keeps p^α, and is in detailed balance with it. Returns how far it is off."""
    records, _, conditionals = world.law
    K, theory = page_kernel(world, config), chain(conditionals, **theorys(config))
    assert theory.records == records
    target = world.target(config.alpha)
    flow = target[:, None] * K
    off = [assert_same(K.sum(1), np.ones(len(records))), assert_same(target @ K, target), assert_same(flow, flow.T)]
    return max([*off, assert_same(K, theory.kernel)])


def unsure(logits):
    """A cut weight of one's own: how unsure the model is of its likeliest token; 0 where it is certain."""
    return 1 - logits.softmax(-1).amax(-1)


@pytest.mark.parametrize("name", ["ties", "short"])
def test_a_cut_of_ones_own_keeps_the_target(name):
    """π K = π and detailed balance, of which theory knows nothing; and the cut is not that of the records."""
    world = WORLDS[name]
    own, records = (page_kernel(world, settings(world, cut=cut)) for cut in (unsure, "record"))
    target = world.target(world.alpha)
    assert_same(own.sum(1), np.ones(len(own)))
    assert_same(target @ own, target)
    assert_same(target[:, None] * own, (target[:, None] * own).T)
    assert np.abs(own - records).max() > 0.01


def test_the_worlds_are_hard():
    """The proposal is far from p^α, and so is the model; responses have several lengths."""
    assert sum(world.model.vocab_size >= 3 for world in WORLDS.values()) >= 2
    for world in WORLDS.values():
        records, logp, conditionals = world.law
        g = np.exp(power.record_logps(power.tempered(conditionals, 1 / world.alpha), world.horizon)[1])
        for law in (g, np.exp(logp)):
            assert np.abs(law - world.target()).sum() / 2 >= 0.3
        assert world.alpha >= 2 and len({len(record) for record in records}) >= 2
    _, logp, conditionals = WORLDS["ties"].law
    laws = [*conditionals.values()]
    assert len({*logp.round(9)}) < len(logp) and any((law == 0).any() for law in laws)
    assert any((law == -np.inf).any() and (law < 0).sum() > 2 for law in laws)


# --- Power sampling --------------------------------------------------------------------------------------------------


@pytest.mark.claim("P4")
@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("change", [
    {"cut": "horizon"}, {"cut": "horizon", "alpha": 0.5}, {"cut": "horizon", "proposal_temperature": 1.0},
    {"cut": "horizon", "proposal_temperature": 0.4}, {"cut": "horizon", "proposal_temperature": 1.7},
])  # fmt: skip
def test_cuts_within_the_horizon_keep_the_power_law(name, change, measured):
    measured("max |K - theory|, |π K - π|", assert_kernel(WORLDS[name], settings(WORLDS[name], **change)), EXACT)


@pytest.mark.claim("P5")
@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("change", [
    {"cut": "record"}, {"cut": "record", "alpha": 1.5}, {"cut": "record", "proposal_temperature": 1.0},
    {"cut": "record", "proposal_temperature": 0.2},
])  # fmt: skip
def test_cuts_within_the_record_keep_the_power_law(name, change, measured):
    measured("max |K - theory|, |π K - π|", assert_kernel(WORLDS[name], settings(WORLDS[name], **change)), EXACT)


@pytest.mark.claim("P15")
@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("change", [*CUTS[2:], {**CUTS[3], "proposal_temperature": 0.7, "alpha": 2.0}])
def test_cuts_by_entropy_keep_the_power_law(name, change, measured):
    measured("max |K - theory|, |π K - π|", assert_kernel(WORLDS[name], settings(WORLDS[name], **change)), EXACT)


def assert_dominates(wider, narrower, horizon):
    """Every move is at least as likely, and at most H times."""
    moves = ~np.eye(len(wider), dtype=bool)
    ratio = wider[moves] / np.where(narrower[moves] > 0, narrower[moves], 1.0)
    assert ((narrower > 0) == (wider > 0))[moves].all()
    possible = ratio[narrower[moves] > 0]
    assert possible.min() >= 1 - EXACT and possible.max() <= horizon + EXACT
    return possible.max() / horizon


@pytest.mark.claim("P5")
@pytest.mark.parametrize("name", WORLDS)
def test_cuts_within_the_record_move_more(name, measured):
    world = WORLDS[name]
    kernels = [page_kernel(world, settings(world, cut=cut)) for cut in ("record", "horizon")]
    measured("the largest ratio over H", assert_dominates(*kernels, world.horizon), 1.0)


@pytest.mark.claim("P5")
def test_cuts_within_the_horizon_do_not():
    world = WORLDS["pivot"]
    with pytest.raises(AssertionError):
        assert_dominates(*(page_kernel(world, settings(world, cut=cut)) for cut in ("horizon", "record")), 3)


@pytest.mark.parametrize("cut", ["record", "horizon", "entropy"])
def test_where_nothing_is_left_to_chance_any_cut_will_do(cut):
    """Every entropy is 0, and so would be every weight of an entropy cut."""
    world = WORLDS["fork"]._replace(prompt=(1, 1), horizon=1, stops=(1,))
    assert world.law[0] == [(1,)]
    assert page_kernel(world, settings(world, cut=cut)).tolist() == [[1.0]]


class First(Enumerated):
    """Cuts at the first token, always."""

    def index(self, n, purpose, *, step=0, position=0):
        return 0


def first_only(chance):
    return First(chance.run, chance.labels, chance.number)


def assert_spectrum(world, chance=first_only):
    """λ_k = Σ_{j≥k} (q_j − π_j/w_k); from the record of largest w the distance falls by 1 − 1/w* a step."""
    config = settings(world, cut="horizon")
    K = page_kernel(world, config, chance)
    _, _, conditionals = world.law
    q = chain(conditionals, **theorys(config)).initial
    pi = world.target()
    off = assert_same(spectrum(K), independence_spectrum(q, pi))
    worst, w = int((pi / q).argmax()), float((pi / q).max())
    curve = (1 - 1 / w) ** np.arange(6) * (1 - pi[worst])
    return max(off, assert_same(tv_curve(np.eye(len(pi))[worst], K, pi, 5), curve))


@pytest.mark.claim("P6")
@pytest.mark.parametrize("name", WORLDS)
def test_the_spectrum_of_cuts_at_the_first_token(name, measured):
    measured("max |eigenvalue - formula|", assert_spectrum(WORLDS[name]), EXACT)


@pytest.mark.claim("P6")
def test_other_cuts_have_another_spectrum():
    with pytest.raises(AssertionError):
        assert_spectrum(WORLDS["pivot"], chance=lambda chance: chance)


# --- Whole pages -----------------------------------------------------------------------------------------------------


def assert_page(world, config):
    """The law of what the whole page returns is that of theory's schedule."""
    records, law = blocked_law(world.law[2], **theorys(config))
    return assert_same(as_array(world.page_law(page_of(config), config), records), law)


@pytest.mark.claim("P4")
@pytest.mark.parametrize(("name", "change"), [
    *[(name, {}) for name in WORLDS], ("short", {"steps": 2}), ("fork", {"steps": 2, "proposal_temperature": 0.8}),
    ("pivot", {"steps": 0}), ("pivot", {"block": 2}), ("ties", {"block": 2}), ("short", {"block": 1, "steps": 1}),
    ("fork", {"block": 1, "steps": 2}),
])  # fmt: skip
def test_the_page_has_the_law_of_its_schedule(name, change, measured):
    off = assert_page(WORLDS[name], settings(WORLDS[name], cut="horizon", **change))
    measured(f"max |law - theory|, {name}, {change}", off, EXACT)


@pytest.mark.parametrize("cut", [CUTS[0], *CUTS[2:]])
@pytest.mark.parametrize(("name", "change"), [("ties", {"block": 2}), ("short", {"steps": 2}), ("two stops", {})])
def test_the_page_has_the_law_of_its_schedule_at_every_cut(name, change, cut):
    assert_page(WORLDS[name], settings(WORLDS[name], **cut, **change))


def test_the_page_of_many_tries_has_the_law_of_its_schedule():
    for change in ({"block": 1}, {}):
        assert_page(WORLDS["fork"], settings(WORLDS["fork"], MultipleTryConfig, tries=2, **change))


def assert_alpha_one(config):
    """Every step accepts, and the law is the model's own."""
    world = WORLDS["short"]
    steps = config.steps * config.stages
    assert {*world.page_law(power_sampling_page, config, lambda run: run.accepted)} == {(True,) * steps}
    records, logp, _ = world.law
    return assert_same(as_array(world.page_law(power_sampling_page, config), records), np.exp(logp))


@pytest.mark.claim("P12")
@pytest.mark.parametrize("change", [{"steps": 2}, {"block": 1}])
def test_alpha_one_is_the_model(change, measured):
    config = settings(WORLDS["short"], alpha=1.0, cut="horizon", **change)
    measured("max |law - p|", assert_alpha_one(config), EXACT)


@pytest.mark.claim("P12")
@pytest.mark.parametrize("change", [{"cut": "record"}, {"proposal_temperature": 0.9}, {"alpha": 1.1}])
def test_other_settings_are_not_the_model(change):
    with pytest.raises(AssertionError):
        assert_alpha_one(settings(WORLDS["short"], **{"alpha": 1.0, "cut": "horizon", **change}))


# --- Acceptance and tokens -------------------------------------------------------------------------------------------


def assert_acceptance(config, name="pivot"):
    """Of a step from a draw of the proposal: Σ_x q(x) Σ_y (chance to propose y − chance to move there) is rejected."""
    world = WORLDS[name]
    s = Setting(**theorys(config))
    texts = s.texts(world.law[2])
    states = texts.only(texts.are_records(s.horizon), s.horizon)
    theory = chain(world.law[2], **theorys(config))
    offered = proposed(states, s.cut, s.cuts(s.horizon))
    refused = offered - theory.kernel * ~np.eye(len(offered), dtype=bool)
    expected = [1 - float(theory.initial @ refused.sum(1)), float(theory.initial @ offered.sum(1))]

    def went(chance):
        run = world.run(power_sampling_page, config, chance)
        return run.accepted[0], run.divergences[0] > 0

    assert_same(expectation(went), expected)
    return expected[0]


@pytest.mark.claim("P4")
@pytest.mark.parametrize("cut", CUTS)
def test_acceptance(cut, measured):
    accepted = assert_acceptance(settings(WORLDS["pivot"], **cut))
    measured("share of accepted steps, exactly (at most)", accepted, 1.0)
    assert accepted < 1


def drawn_tokens(chance):
    """How many tokens were asked for on this path."""
    return sum(purpose == TOKEN for _, _, purpose, _, _ in chance.run.asked)


def page_tokens(world, config, count=drawn_tokens):
    def spent(chance):
        world.run(power_sampling_page, config, chance)
        return count(chance)

    return float(expectation(spent))


def assert_tokens(world, config, count=drawn_tokens):
    """Every draw of every ending, as the page makes them, is what is expected of a chain without savings."""
    asked = {key: value for key, value in theorys(config).items() if key != "tries"}
    expected = expected_tokens(world.law[2], **asked)
    assert abs(page_tokens(world, config, count) - expected) <= EXACT * 10
    return expected


@pytest.mark.claim("P21")
@pytest.mark.parametrize(("name", "change"), [
    ("pivot", {"cut": "horizon"}), ("pivot", {"cut": "record"}), ("ties", {"cut": "record", "block": 2}),
    ("short", {"cut": "horizon", "steps": 2}), ("two stops", {"cut": "horizon", "block": 1}),
    ("two stops", {"cut": "record", "proposal_temperature": 1.0}),
])  # fmt: skip
def test_the_page_draws_the_expected_number_of_tokens(name, change, measured):
    expected = assert_tokens(WORLDS[name], settings(WORLDS[name], **change))
    measured(f"expected tokens, {name}, {change} (at least)", expected, 1.0)


@pytest.mark.claim("P21")
def test_tokens_of_another_schedule_are_others():
    """Without the extension's, or with a step more, the count is another."""
    world = WORLDS["ties"]
    config = settings(world, cut="record", block=2)
    for count in (
        lambda chance: drawn_tokens(chance) - sum(step == 2 for *_, step, _ in chance.run.asked),
        lambda chance: len(chance.run.asked),
    ):
        with pytest.raises(AssertionError):
            assert_tokens(world, config, count)


def assert_skip(world, cut, first=0):
    """With the first-divergence skip a step decodes what follows the common prefix of record and proposal."""
    config = settings(world, cut=cut)
    records, _, conditionals = world.law
    s = Setting(**theorys(config))
    texts = s.texts(conditionals)
    states = texts.only(texts.are_records(s.horizon), s.horizon)
    saved = tokens_per_step(states, s.alpha, cut=cut, first_divergence_skip=True)

    def decoded(x, chance):
        lengths = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(P, "extend", lambda *a, **k: lengths.append(len(y := EXTEND(*a, **k))) or y)
            _, _, differs, _ = take_step(world, config, x, chance)
        return lengths[0] - differs + 1 + first if differs else 0

    found = [float(expectation(lambda chance, x=x: decoded(x, chance))) for x in records]
    return assert_same(found, saved), float((saved / tokens_per_step(states, s.alpha, cut=cut)).max())


EXTEND = P.extend


@pytest.mark.claim("P26")
@pytest.mark.parametrize("cut", ["horizon", "record"])
@pytest.mark.parametrize("name", ["pivot", "ties"])
def test_what_the_skip_leaves_to_decode(name, cut, measured):
    _, share = assert_skip(WORLDS[name], cut)
    measured("largest share of a step's tokens that is decoded", share, 1.0)


@pytest.mark.claim("P26")
def test_a_skip_that_forgets_a_token_is_caught():
    with pytest.raises(AssertionError):
        assert_skip(WORLDS["pivot"], "record", first=-1)


ENDLESS = WORLDS["pivot"]._replace(stops=(), horizon=2)  # every record has two tokens


def assert_redraws(block, first=0):
    """How often each token is drawn anew by the steps: Σ_{k: h_k ≥ t} N t/h_k."""
    config = settings(ENDLESS, cut="horizon", block=block)

    def counts(chance):
        run = ENDLESS.run(power_sampling_page, config, chance)
        horizons = [min((k + 1) * block, 2) for k in range(config.stages)]
        return [sum(cut <= t + first and t <= h for cut, h in zip(run.cuts, horizons)) for t in (1, 2)]

    return assert_same(expectation(counts), [redraws(t, 2, block, 1) for t in (1, 2)])


@pytest.mark.claim("P22")
@pytest.mark.parametrize("block", [1, 2])
def test_how_often_a_token_is_drawn_anew(block, measured):
    measured("max |mean - formula|", assert_redraws(block), EXACT)


@pytest.mark.claim("P22")
def test_cuts_that_spare_their_own_token_are_caught():
    with pytest.raises(AssertionError):
        assert_redraws(2, first=-1)


@pytest.mark.claim("P22")
def test_the_first_token_stays_near_low_temperature(measured):
    """Its law is within the chance that the first token is cut at all of the law that began it."""
    config = settings(ENDLESS, cut="horizon")
    found = np.zeros(3)
    for tokens, mass in ENDLESS.page_law(power_sampling_page, config).items():
        found[tokens[0]] += mass
    begun = np.exp(power.tempered(ENDLESS.law[2], 1 / config.alpha)[()])
    distance, bound = np.abs(found - begun).sum() / 2, 1 - untouched(2, 2, 1)
    measured("TV of the first token", distance, bound)
    assert 0 < distance <= bound


# --- Multiple try ----------------------------------------------------------------------------------------------------

TRIES = [
    ("pivot", 1, {"cut": "record"}), ("ties", 2, {"cut": "record"}), ("short", 2, {"cut": "horizon"}),
    ("two stops", 2, {"cut": "entropy", "entropy_power": 2.0}), ("ties", 2, CUTS[3]), ("fork", 3, {"cut": "record"}),
    ("fork", 3, {"cut": "horizon", "proposal_temperature": 1.0}), ("short", 2, {"proposal_temperature": 0.6}),
    ("fork", 3, CUTS[3]),
]  # fmt: skip


@pytest.mark.claim("P16")
@pytest.mark.parametrize(("name", "tries", "change"), TRIES)
def test_tries_keep_the_power_law(name, tries, change, measured):
    config = settings(WORLDS[name], MultipleTryConfig, tries=tries, **change)
    measured("max |K - theory|, |π K - π|", assert_kernel(WORLDS[name], config), EXACT)


def test_one_try_is_power_sampling():
    """Path by path, for the pick is no question."""
    world = WORLDS["pivot"]
    one = page_kernel(world, settings(world, MultipleTryConfig, tries=1))
    assert gap(one, page_kernel(world, settings(world))) == 0


# --- Mutants ---------------------------------------------------------------------------------------------------------

weigh, step, PLAIN_INDEX = P.weigh, P.step, Enumerated.index


def weights_of(change):
    """`weigh` with other weights: change(α, log p, log q, e) of a record."""

    def wrong(model, prompt, x, config, horizon):
        logp, logq = log_probs(model, prompt, x, config.temperature)
        return change(config.alpha, logp, logq, weigh(model, prompt, x, config, horizon)[1])

    return lambda patch: [patch.setattr(module, "weigh", wrong) for module in (P, M)]


def spared_first(patch):
    """Cuts m = 1.. of tokens x_0.., as printed: never the first token."""
    patch.setattr(Enumerated, "index", lambda self, n, *at, **where: 1 + PLAIN_INDEX(self, n, *at, **where))


def other_proposal(patch):
    """Endings drawn at the model's own temperature, weighed as if at τ."""
    patch.setattr(P, "extend", lambda model, prompt, x, horizon, tau, **rest: EXTEND(model, prompt, x, horizon, **rest))


def inverted(patch):
    """The ratio upside down."""
    patch.setattr(Enumerated, "happens", lambda self, log_ratio, *at, **where: HAPPENS(self, -log_ratio, *at, **where))


HAPPENS = Enumerated.happens
STEP_MUTANTS = {
    "sign of the proposal term": weights_of(lambda a, p, q, e: ((a * p + q).tolist(), e)),
    "no proposal term": weights_of(lambda a, p, q, e: ((a * p).tolist(), e)),
    "no factor for the cut": weights_of(lambda a, p, q, e: ((a * p - q).tolist(), [each / sum(e) for each in e])),
    "a weight left out": weights_of(lambda a, p, q, e: ((a * p - q).tolist()[:-1], e)),
    "the factor upside down": weights_of(lambda a, p, q, e: ((a * p - q).tolist(), [each / sum(e) ** 2 for each in e])),
    "another proposal": other_proposal,
    "the ratio upside down": inverted,
}  # fmt: skip


@pytest.mark.claim("P4")
@pytest.mark.claim("P5")
@pytest.mark.claim("P15")
@pytest.mark.parametrize(("mutant", "cut"), [
    (mutant, cut) for mutant in STEP_MUTANTS for cut in (CUTS[0], CUTS[1], CUTS[3])
    if "factor" not in mutant or cut["cut"] != "horizon"  # where there is no factor
])  # fmt: skip
def test_wrong_steps_are_caught(mutant, cut, monkeypatch):
    STEP_MUTANTS[mutant](monkeypatch)
    with pytest.raises(AssertionError):
        assert_kernel(WORLDS["pivot"], settings(WORLDS["pivot"], **cut))


@pytest.mark.claim("P4")
@pytest.mark.claim("P27")
def test_a_first_token_that_is_never_cut_is_caught(monkeypatch):
    """It keeps p^α given the first token, so π K = π holds: what is wrong is that no first token leads to another."""
    world = WORLDS["pivot"]
    config = settings(world, cut="horizon")
    spared_first(monkeypatch)
    K = page_kernel(world, config)
    assert_same(world.target() @ K, world.target())
    eigenvalues = spectrum(K)
    assert (eigenvalues > 1 - 1e-9).sum() == 3  # once for each first token
    assert_same(K, chain(world.law[2], **theorys(config), rule="literal").kernel)
    with pytest.raises(AssertionError):
        assert_kernel(world, config)


def one_step_fewer(*arguments, **named):
    x, *rest = step(*arguments, **named)
    return arguments[2] if arguments[5] == 1 else x, *rest  # type: ignore[misc]


def ended_records_stay(*arguments, **named):
    """Nothing is refined once it has ended."""
    x = arguments[2]
    return (x, 1, 0, True) if x[-1] in named["stop_ids"] else step(*arguments, **named)


@pytest.mark.claim("P4")
@pytest.mark.parametrize("mutant", [one_step_fewer, ended_records_stay])
def test_wrong_pages_are_caught(mutant, monkeypatch):
    monkeypatch.setattr(power_sampling_page, "__kwdefaults__", {"transition": mutant})
    with pytest.raises(AssertionError):
        assert_page(WORLDS["ties"], settings(WORLDS["ties"], cut="horizon", block=2))


def of_the_pick(log_w, pick):
    """Metropolis-Hastings with the weight of the picked try."""
    return log_w.gather(1, pick)[:, 0]


def of_all(log_w, pick):
    """min(1, W): the try of the move back that stands for x is missing."""
    return log_w.logsumexp(1)


def two_for_the_record(log_w, pick):
    return log_w.logsumexp(1) - log_w.scatter(1, pick, math.log(2)).logsumexp(1)


@pytest.mark.claim("P16")
@pytest.mark.parametrize("ratio", [of_the_pick, of_all, two_for_the_record])
def test_wrong_acceptances_of_tries_are_caught(ratio, monkeypatch):
    monkeypatch.setattr(M, "log_ratio", ratio)
    with pytest.raises(AssertionError):
        assert_kernel(WORLDS["fork"], settings(WORLDS["fork"], MultipleTryConfig, tries=3))


@pytest.mark.claim("P16")
def test_a_uniform_pick_is_caught(monkeypatch):
    monkeypatch.setattr(Enumerated, "weighted", lambda self, w, *at, **where: self.index(len(w), *at, **where))
    with pytest.raises(AssertionError):
        assert_kernel(WORLDS["short"], settings(WORLDS["short"], MultipleTryConfig, tries=2))


@pytest.mark.claim("P16")
def test_tries_with_wrong_weights_are_caught(monkeypatch):
    STEP_MUTANTS["sign of the proposal term"](monkeypatch)
    with pytest.raises(AssertionError):
        assert_kernel(WORLDS["short"], settings(WORLDS["short"], MultipleTryConfig, tries=2))
