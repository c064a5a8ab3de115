"""Sampling: the random numbers are uniform and independent, the output law is the enumerated one, a request's tokens
depend on nothing but the request, and costs are counts."""

import math

import numpy as np
import pytest
import torch

import reference.engine.decoder as DECODER
import reference.randomness as R
from reference.engine.decoder import Decoder, Prompts
from reference.sampling import (
    Cost,
    Drawn,
    GenerateConfig,
    child_seed,
    generate,
    generate_page,
    inverse_cdf,
    log_law,
    score,
    uniform,
)
from reference.transformer import Config, Transformer
from tests.assertions import assert_categorical, assert_cdf, assert_close, assert_same_samples
from toy.tabular import TabularLM, enumerate_law

SETTINGS = [
    {},
    {"temperature": 0.4},
    {"temperature": 2.5},
    {"top_k": 2},
    {"top_p": 0.7},
    {"temperature": 1.7, "top_k": 3, "top_p": 0.8},
]
PROMPTS = [[1, 2], [3], [2, 0, 1]]


def tiny_transformer(vocab=4, seed=0, family="qwen3"):
    torch.manual_seed(seed)
    source = {
        "model_type": family, "vocab_size": vocab, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64,
    }  # fmt: skip
    model = Transformer(Config.from_dict(source)).requires_grad_(False)
    for weight in model.parameters():
        weight.data.normal_(1 if weight.dim() == 1 else 0, 0.4)
    return model


class HashModel:
    """Another implementation of the interface, with a law of the whole text, which holds the caller to its contracts.

    Its cache keeps the tokens; the logits after a text are a hash of all of it, so a wrong token anywhere shows."""

    vocab_size, max_length, device = 4, 32, torch.device("cpu")

    class Cache:
        def __init__(self, rows, capacity):
            self.rows, self.capacity = rows, capacity
            self.tokens = torch.full((rows, capacity), -1)

        def copy_rows(self, source, target, other=None, length=None):
            other = self if other is None else other
            length = min(self.capacity, other.capacity) if length is None else length
            assert len(target.unique()) == len(target) and length <= min(self.capacity, other.capacity)
            self.tokens[target, :length] = other.tokens[source, :length]

    def new_cache(self, rows, capacity):
        return self.Cache(rows, capacity)

    def __call__(self, tokens, positions=None, cache=None, *, logits=True):
        rows, time = tokens.shape
        if cache is None:
            assert positions is None
            positions, cache = torch.arange(time).expand(rows, time), self.new_cache(rows, time)
        assert rows == cache.rows and positions.shape == tokens.shape and positions.max() < cache.capacity
        assert (positions.diff(dim=1) > 0).all()
        cache.tokens[torch.arange(rows)[:, None], positions] = tokens
        if not logits:
            return None
        seen = torch.arange(cache.capacity) <= positions[..., None]  # [rows, time, capacity]
        text = torch.where(seen, cache.tokens[:, None] + 1, 0)
        assert (text > 0).sum(-1).eq(positions + 1).all(), "a visible slot was never written"
        code = (text * 7 ** torch.arange(cache.capacity).clamp(max=20)).sum(-1) % 1009
        return torch.sin(code[..., None] * torch.tensor([1.0, 2.0, 3.0, 4.0])) * 1.5


MODELS = {
    "table": lambda: TabularLM.random(4, 7, seed=5, concentration=0.7),
    "transformer": tiny_transformer,
    "another implementation": HashModel,
}


# -- randomness --------------------------------------------------------------------------------------------------------

GRID = torch.arange(100_000)
ADDRESS = {"seed": 3, "key": 5, "sample": 7, "step": 11, "position": 13, "purpose": R.ACCEPT}


def draw(**varied):
    """The uniforms at ADDRESS with some fields replaced by tensors."""
    fields = {**ADDRESS, **varied}
    shape = torch.zeros_like(GRID)
    return uniform(fields.pop("seed"), **{k: v if k == "purpose" else shape + v for k, v in fields.items()}).numpy()


def assert_fair(a, b):
    """a, b [n] are uniform, and independent of each other on an 8 x 8 grid."""
    assert_cdf(a, lambda x: x, detect=0.02, seed=ADDRESS)
    cells = (a * 8).astype(int) * 8 + (b * 8).astype(int)
    assert_categorical(np.bincount(cells, minlength=64), np.full(64, 1 / 64), detect=0.03, seed=ADDRESS)


@pytest.mark.parametrize("field", ["key", "sample", "step", "position"])
def test_neighbouring_addresses_are_uniform_and_independent(field):
    assert_fair(draw(**{field: GRID}), draw(**{field: GRID + 1}))
    other = "sample" if field != "sample" else "position"  # the same place on another axis
    assert_fair(draw(**{field: GRID}), draw(**{field: GRID, other: ADDRESS[other] + 1}))
    assert_fair(draw(**{field: GRID}), draw(**{other: GRID}))


def test_seeds_and_purposes_are_independent():
    assert_fair(draw(position=GRID), draw(position=GRID, purpose=R.TOKEN))
    assert_fair(draw(position=GRID), draw(position=GRID, seed=ADDRESS["seed"] + 1))
    assert_fair(draw(position=GRID), draw(position=GRID, seed=child_seed(ADDRESS["seed"], "round", 1)))


def test_a_hash_that_does_not_mix_is_caught(monkeypatch):
    def only_add(state, word):  # a Weyl sequence: uniform, but each number gives away the next
        return state + torch.as_tensor(word + 1) * R.GOLDEN

    monkeypatch.setattr(R, "absorb", only_add)
    with pytest.raises(AssertionError):
        assert_fair(draw(position=GRID), draw(position=GRID + 1))


def test_uniform_is_a_fixed_function():
    """Results that were published with a seed can be drawn again: SplitMix64's own first outputs, and one address."""
    splitmix = [R.absorb(torch.tensor(1234567), position) for position in range(3)]
    assert [int(x) % 2**64 for x in splitmix] == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert float(draw()[0]) == float(draw()[-1]) == 0.5902566645592807
    assert child_seed(0, "draft", 1) == 2087187695114846746
    assert child_seed(0, "draft", 1) != child_seed(0, "draft", 2) != child_seed(1, "draft", 2)


# -- the law of one token ----------------------------------------------------------------------------------------------


def filtered(p, temperature=1.0, top_k=None, top_p=None):
    """The definition of the proposal law, slowly: p [vocab] -> q."""
    q = np.array(p, dtype=np.float64) ** (1 / temperature)
    q /= q.sum()
    ranked = sorted(range(len(q)), key=lambda v: (-q[v], v))
    if top_k is not None:
        q[ranked[top_k:]] = 0
        q /= q.sum()
    if top_p is not None:
        q[[v for i, v in enumerate(ranked) if q[ranked[:i]].sum() >= top_p * (1 - 1e-6)]] = 0
        q /= q.sum()
    return q


@pytest.mark.parametrize("settings", SETTINGS)
def test_log_law_is_the_definition(settings):
    p = np.random.default_rng(0).dirichlet(np.ones(9), 200)
    p[:50] = np.round(p[:50], 1) + 0.05  # ties
    p /= p.sum(1, keepdims=True)
    logq = log_law(torch.from_numpy(p).log(), **settings)
    np.testing.assert_allclose(logq.exp(), [filtered(row, **settings) for row in p], atol=1e-12)


def test_top_k_keeps_k_ids_and_the_smaller_ones_of_a_tie():
    logq = log_law(torch.zeros(1, 6), top_k=2)
    assert torch.isfinite(logq[0]).tolist() == [True, True, False, False, False, False]


def test_top_p_keeps_an_id_while_the_mass_before_it_is_smaller():
    p = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64)
    for top_p, kept in ((0.5, 1), (0.50001, 2), (0.75, 2), (0.875, 3), (0.9, 4), (1e-9, 1), (1.0, 4)):
        assert int(log_law(p.log(), top_p=top_p).isfinite().sum()) == kept, top_p


def test_a_tiny_temperature_does_not_overflow():
    logq = log_law(torch.tensor([[80.0, 79.0, -80.0]]), temperature=1e-38)
    assert logq[0].exp().tolist() == [1.0, 0.0, 0.0]


def test_inverse_cdf_never_draws_what_has_no_mass():
    p = torch.tensor([0.0, 0.3, 0.0, 0.7, 0.0])
    u = torch.tensor([0.0, 0.3 - 1e-9, 0.3 + 1e-7, 1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(p.log().expand(4, -1), u)[0].tolist() == [1, 1, 3, 3]
    many = torch.randn(64, 50_000, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    many[:, -1000:] = -math.inf
    assert inverse_cdf(many, torch.full((64,), 1 - 2**-53, dtype=torch.float64))[0].max() < 49_000


def test_inverse_cdf_says_which_numbers_draw_the_same():
    law = torch.randn(1, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)
    u = torch.rand(1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    token, low, high = inverse_cdf(law.expand(1000, -1), u)
    assert ((low <= u) & (u < high)).all()
    torch.testing.assert_close(high - low, law[0].exp()[token])
    same = (low[:, None] <= u) & (u < high[:, None])  # [one that was drawn, another number]
    assert torch.equal(same, token[:, None] == token)


@pytest.mark.parametrize("vocab", [4097, 49_152, 50_000])
def test_many_ids_are_inverted_by_blocks(vocab):
    """As by one cumulative sum in float64, but within float32 of an edge; the intervals of neighbours meet."""
    law = (3 * torch.randn(1, vocab, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    law[:, 300:900] = -math.inf  # whole blocks without mass
    law = law.log_softmax(-1)
    cdf = law[0].double().exp().cumsum(0)
    cdf = torch.cat((cdf.new_zeros(1), cdf / cdf[-1]))
    edges = cdf[torch.arange(0, vocab, 97)].clamp(max=1 - 1e-6)
    u = torch.cat((edges + 1e-6, torch.rand(300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)))
    token, low, high = inverse_cdf(law.expand(len(u), -1), u)
    assert ((low <= u) & (u < high)).all() and (law[0, token] > -math.inf).all()
    assert torch.allclose(low, cdf[token], atol=1e-6) and torch.allclose(high, cdf[token + 1], atol=1e-6)
    clear = ((u[:, None] - cdf).abs() > 1e-6).all(1)
    assert clear.sum() > 100
    assert torch.equal(token[clear], torch.searchsorted(cdf, u[clear], right=True) - 1)
    after = inverse_cdf(law.expand(len(u), -1), (high + 1e-12).clamp(max=1 - 2**-53))[0]
    assert ((after > token) | (high > 1 - 1e-12)).all()


# -- the law of a response ---------------------------------------------------------------------------------------------


def exact_law(model, prompt, horizon, stops, **settings):
    """Records and their probabilities under `generate`'s settings, from the model's enumerated conditionals."""
    _, _, conditionals = enumerate_law(model, prompt, horizon, stops)
    laws = {prefix: filtered(np.exp(logp), **settings) for prefix, logp in conditionals.items()}
    law, level = {}, {(): 1.0}
    while level:
        following = {}
        for prefix, mass in level.items():
            for token, q in enumerate(laws[prefix]):
                text = (*prefix, token)
                ended = token in stops or len(text) == horizon
                (law if ended else following)[text] = mass * q
        level = following
    return law


def record_counts(samples, prompt, law):
    """How often each record of `law` was drawn; a record outside it is an error."""
    index = {record: i for i, record in enumerate(law)}
    counts = np.zeros(len(law), dtype=int)
    lengths = samples.lengths[prompt].tolist()
    for row, length in zip(samples.tokens[prompt].tolist(), lengths):
        counts[index[tuple(row[:length])]] += 1
    return counts


def assert_law(model, settings, n=110_000, horizon=3, stops=(0,), prompts=PROMPTS, slots=4096):
    result = generate(
        model, prompts, max_new_tokens=horizon, stop_ids=stops, samples_per_prompt=n, slots=slots, seed=1, **settings
    )
    for i, prompt in enumerate(prompts):
        law = exact_law(model, prompt, horizon, stops, **settings)
        assert_categorical(record_counts(result.samples, i, law), list(law.values()), detect=0.02, seed=1)


@pytest.mark.parametrize("settings", SETTINGS[-1:])
def test_generate_has_the_enumerated_law(settings):
    assert_law(MODELS["table"](), settings)


def test_longer_responses_and_two_stop_ids_have_the_enumerated_law():
    assert_law(TabularLM.random(3, 7, seed=2), {"temperature": 0.8}, horizon=5, stops=(0, 2), prompts=[[1, 2], [0]])


def shifted_prompt(self, store, rows, prompt):
    fetch(self, store, rows, (prompt + 1) % len(self.ids))
    store.texts.prompt[rows], store.texts.start[rows] = prompt, self.length[prompt]


def keeps_the_token_before(self, rows, position):
    before = self.rows.before.clone()
    resume(self, rows, position)
    self.rows.before = before


fetch, resume = Prompts.fetch, Decoder.resume
LAW_MUTANTS = {
    "another request's prompt in the cache": (Prompts, "fetch", shifted_prompt),
    "a slot's last token fed to its next request": (Decoder, "resume", keeps_the_token_before),
    "temperature applied twice": (DECODER, "log_law", lambda logits, t, k, p: log_law(log_law(logits, t, k, p), t)),
    "top-p before top-k": (DECODER, "log_law", lambda logits, t, k, p: log_law(log_law(logits, t, None, p), 1.0, k)),
    "an inverse CDF of the squared law": (DECODER, "inverse_cdf", lambda logq, u: inverse_cdf(2 * logq, u)),
}


@pytest.mark.parametrize("mutant", LAW_MUTANTS)
def test_wrong_laws_are_caught(mutant, monkeypatch):
    monkeypatch.setattr(*LAW_MUTANTS[mutant])
    with pytest.raises(AssertionError):
        assert_law(MODELS["table"](), {"temperature": 0.6, "top_k": 2, "top_p": 0.75})


# -- tokens depend on the request alone --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 3, "top_p": 0.95}, {"temperature": 0.0}])
def test_tokens_are_those_of_the_page(name, settings):
    model, config = MODELS[name](), GenerateConfig(4, **settings)
    result = generate(model, PROMPTS, config, samples_per_prompt=5, slots=4, stop_ids=[0], seed=9)
    for i, prompt in enumerate(PROMPTS):
        for j in range(5):
            page = generate_page(model, prompt, config, stop_ids=[0], chance=Drawn(9, i, j))
            assert tuple(result.samples[i][j].tokens.tolist()) == page.tokens


@pytest.mark.parametrize("name", MODELS)
def test_tokens_depend_neither_on_the_batch_nor_on_the_slots(name):
    model = MODELS[name]()
    prompts, names = [*PROMPTS, [1, 1, 1, 1], [2, 2]], ["a", "b", "c", "d", "e"]
    common = {"max_new_tokens": 4, "stop_ids": [0], "seed": 4}
    whole = generate(model, prompts, keys=names, samples_per_prompt=7, slots=35, **common).samples
    for order, slots, n in (([4, 2, 0, 1, 3], 1, 7), ([3, 1], 3, 5), ([0, 1, 2, 3, 4], 64, 7)):
        keys = [names[i] for i in order]
        part = generate(
            model, [prompts[i] for i in order], keys=keys, samples_per_prompt=n, slots=slots, **common
        ).samples
        assert_same_samples(part, whole.rows(torch.tensor(order)).take(torch.arange(n).expand(len(order), n)))


def test_another_seed_key_or_sample_draws_another_response():
    model = TabularLM.iid([0.05] * 20)
    draws = [
        generate(model, [[1]], max_new_tokens=30, stop_ids=[], seed=seed, keys=[key], samples_per_prompt=2).samples[0][
            i
        ]
        for seed in (0, 1)
        for key in ("a", "b")
        for i in (0, 1)
    ]
    assert len({tuple(sample.tokens.tolist()) for sample in draws}) == 8  # two equal ones: probability < 1e-37


def test_temperature_zero_is_greedy():
    model = tiny_transformer(vocab=5)
    (sample,) = generate(model, [[1, 2]], max_new_tokens=6, stop_ids=[], temperature=0).samples[0]
    text = [1, 2]
    for token, logq in zip(sample.tokens.tolist(), sample.logq.tolist()):
        assert token == int(model(torch.tensor([text]))[0, -1].argmax()) and logq == 0
        text.append(token)


def test_logp_is_the_models_and_logq_the_proposals():
    model = TabularLM.random(4, 7, seed=3)
    result = generate(model, PROMPTS, max_new_tokens=3, stop_ids=[0], samples_per_prompt=20, temperature=0.5, top_k=3)
    _, _, conditionals = enumerate_law(model, PROMPTS[1], 3, [0])
    for sample in result.samples[1]:
        tokens = sample.tokens.tolist()
        for t, token in enumerate(tokens):
            p = np.exp(conditionals[tuple(tokens[:t])])
            assert sample.logp[t] == pytest.approx(np.log(p[token]), abs=1e-6)
            assert sample.logq[t] == pytest.approx(np.log(filtered(p, 0.5, 3)[token]), abs=1e-6)


# -- score -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("logits_bytes", [1 << 28, 600])
def test_score_is_what_generate_reported(name, logits_bytes):
    model = MODELS[name]()
    result = generate(model, PROMPTS, max_new_tokens=4, stop_ids=[0], samples_per_prompt=9, temperature=1.3)
    prompts = [prompt for prompt in PROMPTS for _ in range(9)]
    samples = [sample for i in range(3) for sample in result.samples[i]]
    scores = score(model, prompts, [sample.tokens for sample in samples], logits_bytes=logits_bytes)
    for sample, logp in zip(samples, scores):
        assert logp.dtype == torch.float32 and logp.shape == sample.tokens.shape
        assert_close(logp, sample.logp)


class Widest(HashModel):
    """Keeps the most positions whose logits it was asked for in one call."""

    most = 0

    def __call__(self, tokens, positions=None, cache=None, *, logits=True):
        self.most = max(self.most, tokens.numel() * logits)
        return super().__call__(tokens, positions, cache, logits=logits)


def assert_within_budget(logits_bytes, texts=40):
    model = Widest()
    score(model, [[1]] * texts, [[i % 4 for i in range(1 + t % 30)] for t in range(texts)], logits_bytes=logits_bytes)
    assert 0 < model.most * 2 * 4 * model.vocab_size <= logits_bytes  # the logits and as much again for their sums


@pytest.mark.parametrize("positions", [1, 7, 64, 200])
def test_score_keeps_to_its_budget_of_logits(positions):
    assert_within_budget(positions * 8 * HashModel.vocab_size)


def test_a_score_that_forgets_its_budget_is_caught(monkeypatch):
    monkeypatch.setitem(globals(), "score", lambda *texts, logits_bytes, score=score: score(*texts))
    with pytest.raises(AssertionError):
        assert_within_budget(7 * 8 * HashModel.vocab_size)


def test_float64_models_are_scored_in_float64():
    """1e-9 is lost in a float32 softmax beside 1, so the logits must not be rounded before."""
    p = np.array([1e-9, 1 - 1e-9])
    (logp,) = score(TabularLM.iid(p, dtype=torch.float64), [[0]], [[1]])
    assert float(logp) == pytest.approx(-1e-9, rel=1e-6)


# -- costs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 2, 5, 40])
def test_costs_are_counts(slots):
    model, n = HashModel(), 10
    result = generate(model, PROMPTS, max_new_tokens=[2, 4, 3], stop_ids=[0], samples_per_prompt=n, slots=slots)
    for prompt, samples, cost in zip(PROMPTS, result.samples, result.costs):
        lengths = [len(sample.tokens) for sample in samples]
        assert cost == Cost(n * len(prompt), len(prompt) - 1, sum(lengths), max(lengths), n)
    assert result.cost.sequential_tokens == max(cost.sequential_tokens for cost in result.costs)
    assert result.cost.decoded_tokens == sum(cost.decoded_tokens for cost in result.costs)


def test_longest_first_leaves_the_callers_order():
    """Horizons decide who is decoded first, not where an answer stands, its tokens, or what an error calls it."""
    settings = {"stop_ids": [], "slots": 2}
    alone = [
        generate(HashModel(), [prompt], max_new_tokens=horizon, keys=[key], **settings).samples[0][0].tokens.tolist()
        for key, (prompt, horizon) in enumerate(zip(PROMPTS, (2, 7, 4)))
    ]
    together = generate(HashModel(), PROMPTS, max_new_tokens=[2, 7, 4], **settings)
    assert [own[0].tokens.tolist() for own in together.samples] == alone

    class Broken(HashModel):
        def __call__(self, tokens, positions=None, cache=None, *, logits=True):
            out = super().__call__(tokens, positions, cache, logits=logits)
            return out if out is None else out.masked_fill((positions == 8)[..., None], math.nan)

    with pytest.raises(ValueError, match=r"prompt 2 \(key 'c'\), sample 0, at response position 6"):
        generate(Broken(), PROMPTS, max_new_tokens=[2, 7, 7], keys=["a", "b", "c"], **settings)


def test_the_model_computes_what_the_cost_says():
    """Count positions at the model: prompts once each, then one per decoded token (no slot is idle)."""
    fed = []

    class Counting(HashModel):
        def __call__(self, tokens, positions=None, cache=None, *, logits=True):
            fed.append((tokens.numel(), logits))
            return super().__call__(tokens, positions, cache, logits=logits)

    cost = generate(Counting(), [[1, 2, 3]], max_new_tokens=5, stop_ids=[], samples_per_prompt=12, slots=4).cost
    assert sum(n for n, logits in fed if not logits) == cost.prefilled_tokens == 2
    assert sum(n for n, logits in fed if logits) == cost.decoded_tokens == 60


def test_a_long_prompt_is_prefilled_in_chunks(monkeypatch):
    fed = []

    class Counting(HashModel):
        def __call__(self, tokens, positions=None, cache=None, *, logits=True):
            fed.append(0 if logits else tokens.numel())
            return super().__call__(tokens, positions, cache, logits=logits)

    text = [i % HashModel.vocab_size for i in range(12)]
    results = []
    for at_a_time in (DECODER.POSITIONS_PER_CALL, 5):
        monkeypatch.setattr("reference.interface.POSITIONS_PER_CALL", at_a_time)
        monkeypatch.setattr(DECODER, "POSITIONS_PER_CALL", at_a_time)
        drawn = generate(Counting(), [text], max_new_tokens=3, stop_ids=[])
        results.append((drawn, score(Counting(), [text], [[1, 2]])[0]))
        sizes, fed = [size for size in fed if size], []
    (whole, logp), (chunked, again) = results
    assert sizes == [5, 5, 1, 5, 5, 1] and chunked.cost == whole.cost
    assert_same_samples(chunked.samples, whole.samples)
    assert_close(again, logp)


def test_costs_compose():
    a, b = Cost(1, 2, 3, 4, 5), Cost(10, 20, 30, 40, 50)
    assert a + b == Cost(11, 22, 33, 44, 55)
    assert Cost.parallel([a, b]) == Cost(11, 22, 33, 40, 55)
    assert Cost.parallel([]) == Cost()


# -- bad input ---------------------------------------------------------------------------------------------------------

GOOD = {"prompts": [[1, 2]], "max_new_tokens": 3, "stop_ids": [0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": []}, "no prompts were given"),
        ({"prompts": [[1], []]}, "prompt 1 is empty"),
        ({"prompts": [[1], [2, 4]]}, r"prompt 1 has id 4, outside the model's vocabulary 0\.\.3"),
        ({"prompts": [[1, -1]]}, "prompt 0 has id -1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": [1, 2]}, "2 values of max_new_tokens for 1 prompts"),
        ({"max_new_tokens": 31}, r"prompt 0 has 2 tokens and max_new_tokens is 31: 33 in all, .* maximum of 32"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"stop_ids": [4]}, "stop id 4"),
        ({"samples_per_prompt": 0}, "samples_per_prompt is 0"),
        ({"slots": 0}, "slots is 0"),
        ({"keys": ["a", "b"]}, "2 keys for 1 prompts"),
    ],
)
def test_bad_input_is_refused_in_one_clear_line(change, message):
    arguments = {**GOOD, **change}
    with pytest.raises(ValueError, match=message) as raised:
        generate(HashModel(), arguments.pop("prompts"), **arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
def test_logits_that_are_no_law_name_the_request(broken, temperature):
    class Broken(HashModel):
        def __call__(self, tokens, positions=None, cache=None, *, logits=True):
            result = super().__call__(tokens, positions, cache, logits=logits)
            if logits:
                result[(tokens[:, 0] == 3) & (positions[:, 0] == 2)] = broken  # prompt 1's third token
            return result

    with pytest.raises(ValueError, match=r"prompt 1 \(key 'b'\), sample 0, at response position 0"):
        generate(
            Broken(), [[1, 2], [1, 2, 3]], max_new_tokens=2, stop_ids=[], keys=["a", "b"], temperature=temperature,
        )  # fmt: skip


def test_score_refuses_what_does_not_match():
    with pytest.raises(ValueError, match="1 prompts but 2 continuations"):
        score(HashModel(), [[1]], [[1], [2]])
    with pytest.raises(ValueError, match="continuation 0 is empty"):
        score(HashModel(), [[1]], [[]])
    with pytest.raises(ValueError, match="prompt 0 has 30 tokens"):
        score(HashModel(), [[1] * 30], [[1, 2, 3]])
