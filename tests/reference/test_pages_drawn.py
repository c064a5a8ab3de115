"""The engine returns the tokens of the pages: every batched function against its page, over random configurations.

A configuration is drawn from its number alone: a world (a third are tables, a third tables with impossible and forced
tokens, a third two-layer transformers), prompts, keys, a seed, a number of slots, and a value for every field of the
config. Tokens and decisions must be equal, numbers within 1e-5. The engine computes in float32 and the page in float64,
so a random number within 1e-5 of where a decision turns may turn it: where the two differ, the page is drawn again with
all random numbers moved up and down by 1e-5. If that changes it too, the comparison stops there, and is counted.
"""

import dataclasses
import math
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from reference.interface import Drawn
from reference.pages import PAGES
from reference.self_reward import length_normalized, log_probability
from tests.conftest import ROOT
from tests.reference.test_sampling import HashModel, tiny_transformer
from toy.tabular import Memo, TabularLM

NEAR = 1e-5  # as near may a random number be to where a decision turns
STOPS = 10_000  # at most one comparison in so many may stop at such a decision
MODELS = ("power_sampling", "multiple_try", "parallel_tempering", "power_smc", "lookahead", "best_of_n",
          "adaptive_best_of_n", "generate")  # fmt: skip
FAST, ALL = 50, 500  # configurations of each sampler in `make test`, and in `make test-all`
CHUNK = 10  # configurations in one test


# -- what is drawn -----------------------------------------------------------------------------------------------------

LAW = {"temperature": [1.0, 0.6, 1.7, 0.0], "top_k": [None, None, 1, 2], "top_p": [None, None, 0.5, 0.9]}
CHAIN = {
    "alpha": [1.0, 2.0, 4.0, 0.5, 2.7], "proposal_temperature": [None, None, 0.4, 1.3], "block": [1, 2, 3, 5, 9],
    "steps": [0, 1, 2, 3, 5], "max_new_tokens": [1, 2, 4, 5, 7], "cut": ["record", "horizon", "entropy"],
    "entropy_power": [4.0, 1.0, 0.5], "entropy_floor": [0.0, 0.1], "first_divergence_skip": [True, True, False],
    "early_reject": [True, True, False], "prefetch": [0, 0, 1, 3], "anneal": [None],
}  # fmt: skip
VALUES = {  # of every field of every config
    "generate": {"max_new_tokens": [1, 3, 7, 12], **LAW},
    "best_of_n": {"n": [1, 2, 5], "max_new_tokens": [1, 3, 6], **LAW, "reward": [log_probability, length_normalized]},
    "adaptive_best_of_n": {"mu": [0.2, 1.0, 3.0], "max_draws": [1, 4, 12], "max_new_tokens": [1, 3, 6], **LAW},
    "power_sampling": {**CHAIN, "alpha": [*CHAIN["alpha"], math.inf], "anneal": [None, None, 0.5, 1.0]},
    "multiple_try": {**CHAIN, "prefetch": [0], "tries": [1, 2, 3]},
    "parallel_tempering": {
        **CHAIN, "proposal_temperature": [None], "prefetch": [0], "alpha": [2.0, 4.0, 8.0], "rungs": [1, 2, 3, 4],
        "ladder": [None, None, "low", "even"],
    },
    "power_smc": {
        "alpha": [1.0, 2.0, 4.0, 0.5], "particles": [1, 2, 3, 6], "proposal_temperature": [None, None, 0.5, 1.4],
        "max_new_tokens": [1, 3, 5, 8], "ess_threshold": [0.0, 0.5, 0.8, 1.0, 2.0],
        "resampling": ["systematic", "multinomial", "chopthin"], "ramp": [0, 0, 1, 3], "eta": [4.0, 5.8],
    },
    "lookahead": {
        "alpha": [1.0, 2.0, 4.0, 0.5], "max_new_tokens": [1, 2, 4, 6], "candidates": [None, 1, 2, 3],
        "rollouts": [1, 2, 3], "rollout_law": ["p", "g"], "estimator": ["plug_in", "jackknife"],
        "chunk": [None, None, 1, 2, 3],
        "chunk_law": ["p", "g"], "weight": ["exact", "published"],
    },
}  # fmt: skip


def settle(name, drawn):
    """Values that go together, out of values drawn one by one."""
    if name == "parallel_tempering" and drawn["ladder"]:
        low, alpha, K = 0.5 if drawn["ladder"] == "low" else 1.0, drawn["alpha"], drawn["rungs"]
        drawn["ladder"] = tuple(np.linspace(low, alpha, K)) if K > 1 else (alpha,)
    if name == "power_sampling" and drawn["alpha"] == math.inf:
        drawn["proposal_temperature"] = drawn["proposal_temperature"] or 0.7
    if name == "power_sampling" and drawn["anneal"]:
        drawn["anneal"] = min(drawn["anneal"], drawn["alpha"])
    if name == "power_smc":
        drawn["ramp"] = min(drawn["ramp"], drawn["max_new_tokens"])
    if name == "lookahead" and drawn["chunk"] is None:
        drawn["weight"] = "exact"
    if name == "lookahead" and drawn["chunk"] is not None:
        drawn["candidates"] = drawn["candidates"] or 2
    return drawn


def automaton(rng, impossible):
    """A table of random states and transitions; with impossible tokens, and states in which one token is certain."""
    states, vocab = 7, int(rng.integers(3, 6))
    table = rng.dirichlet(np.full(vocab, rng.choice([0.4, 1.0])), states)
    if impossible:
        table[rng.random(table.shape) < 0.3] = 0.0
        table[np.arange(states), rng.integers(vocab, size=states)] += 0.3
        forced = rng.random(states) < 0.3
        table[forced] = np.eye(vocab)[rng.integers(vocab, size=forced.sum())]
        table /= table.sum(1, keepdims=True)
    if rng.random() < 0.3:
        table = np.round(table * 8 + 0.01) / np.round(table * 8 + 0.01).sum(1, keepdims=True)  # ties
    with np.errstate(divide="ignore"):
        logits = torch.from_numpy(np.log(table)).float()
    return TabularLM(logits, torch.from_numpy(rng.integers(states, size=(states, vocab))))


def draw_case(name, number, fixed=None, requests=None, model=None, stop_ids=None):
    """(model, prompts, config, what both functions are given besides) of a configuration. fixed: values of its fields
    that are not drawn; requests: how many, to one prompt, in a sixth as many slots."""
    rng = np.random.default_rng([sorted(PAGES).index(name), number])
    pick = lambda values: values[rng.integers(len(values))]  # noqa: E731
    world = number % 3
    if model is None and world == 2:
        model = tiny_transformer(vocab=int(rng.integers(3, 9)), seed=int(rng.integers(1000)))
    elif model is None and world == 0 and rng.random() < 0.3:
        model = HashModel()
    elif model is None:
        model = automaton(rng, impossible=world == 1)
    config = PAGES[name].config(
        **settle(name, {field: pick(values) for field, values in VALUES[name].items()} | (fixed or {}))
    )
    prompts = [rng.integers(model.vocab_size, size=rng.integers(1, 5)).tolist() for _ in range(rng.integers(1, 4))]
    keys = [None, [f"q{i}" for i in range(len(prompts))], [-7 - i for i in range(len(prompts))]][rng.integers(3)]
    group = getattr(config, "rungs", getattr(config, "particles", 1))
    slots = pick([None, group, group, max(group, 2), max(group, 5), max(group, 17), max(group, 64)])
    if stop_ids is None:
        stop_ids = sorted({*rng.integers(model.vocab_size, size=rng.integers(3)).tolist()})
    if requests:
        prompts, keys, slots = prompts[:1], ["q"], max(requests // 6, group)
    return model, prompts, config, {
        "stop_ids": stop_ids, "samples_per_prompt": requests or int(rng.integers(1, 4)), "slots": slots, "keys": keys,
        "seed": int(rng.integers(2**40)),
    }  # fmt: skip


def test_every_field_of_every_config_is_varied():
    for name in MODELS:
        fields = {field.name for field in dataclasses.fields(PAGES[name].config)}
        assert fields == {*VALUES[name]}, name
        fixed = {field for field, values in VALUES[name].items() if len({*map(str, values)}) < 2}
        assert fixed <= {"prefetch", "proposal_temperature", "anneal"}, (name, fixed)  # refused by tries and ladders


# -- what is compared --------------------------------------------------------------------------------------------------


class Moved(Drawn):
    """All random numbers moved by so much."""

    by = 0.0

    def number(self, purpose, step, position):
        return (super().number(purpose, step, position) + self.by).clamp(0, 1 - 2.0**-53)

    def child(self, *labels):
        return self.like(super().child(*labels))

    def sample(self, i, of=1):
        return self.like(super().sample(i, of))

    def like(self, other):
        moved = Moved(other.seed, other.key, other.number_of_sample)
        moved.by = self.by
        return moved


def entries(batched, name, prompt, sample):
    """What the batched result says, by the names of the page's fields."""
    K = len(batched.rungs[prompt]) // batched.samples.tokens.shape[1] if name == "parallel_tempering" else 1
    N = batched.log_weights.shape[-1] if name == "power_smc" else 1
    found = {"tokens": tuple(batched.samples.sample(prompt, sample).tokens.tolist())}
    many = {"rungs": K, "particles": N}
    for field in dataclasses.fields(batched):
        if field.name in many:
            own = getattr(batched, field.name)
            texts = [own.sample(prompt, sample * many[field.name] + k) for k in range(many[field.name])]
            found[field.name] = tuple(tuple(text.tokens.tolist()) for text in texts)
        elif isinstance(value := getattr(batched, field.name), torch.Tensor):
            found[field.name] = value[prompt, sample]
    return found


def same(page, batched) -> bool:
    """Whether a page's fields are those of the batched result: decisions exactly, numbers within 1e-5."""
    for name, value in page._asdict().items():
        other = batched[name]
        if not isinstance(other, torch.Tensor):
            if value != other:
                return False
            continue
        mine = torch.as_tensor(value, dtype=other.dtype)
        if other.dim() == 2:
            mine = mine.T if mine.numel() else mine.view(other.shape)  # rounds of rungs: [rungs, rounds]
        if name in ("ess", "resampled"):
            other = other[: len(mine)]
        if mine.shape != other.shape:
            return False
        tolerance = NEAR * (1 + mine.abs()) if mine.is_floating_point() else 0
        if not (
            (mine == other) | ((mine - other).abs() <= tolerance if mine.is_floating_point() else mine == other)
        ).all():
            return False
    return True


def compare(name, numbers, **changes):
    """Compare page and engine on some configurations: how many comparisons there were, and how many stopped."""
    counts = Counter()
    for number in numbers:
        model, prompts, config, given = draw_case(name, number, **changes)
        try:
            batched = PAGES[name].batched(model, prompts, config, **given)
        except ValueError as error:
            raise AssertionError(f"{name} {number}: {config}: {error}") from error
        asked: set = set()
        memo = Memo(model)
        for p, prompt in enumerate(prompts):
            key = p if given["keys"] is None else given["keys"][p]
            for s in range(given["samples_per_prompt"]):

                def draw(chance, prompt=prompt, memo=memo, config=config, given=given):
                    return PAGES[name].page(memo, prompt, config, stop_ids=given["stop_ids"], chance=chance)

                counts["compared"] += 1
                page = draw(Drawn(given["seed"], key, s, asked=asked))
                if same(page, entries(batched, name, p, s)):
                    continue
                moved = [Moved(given["seed"], key, s) for _ in range(2)]
                moved[0].by, moved[1].by = NEAR, -NEAR
                if all(draw(chance) == page for chance in moved):
                    found = entries(batched, name, p, s)
                    raise AssertionError(
                        f"{name} {number}, prompt {p}, sample {s}:\n{config}\n{given}\n{page}\n{found}"
                    )
                counts["stopped"] += 1
        counts["asked"] += len(asked)
    return counts


@pytest.fixture
def shrunk(monkeypatch):
    """The engine's constants made so small that what they cut up is cut up in small worlds too."""
    monkeypatch.setattr("reference.engine.chains.LOOKED_AT", 40)
    monkeypatch.setattr("reference.engine.tries.WAITS", 2)
    for module in ("interface", "engine.decoder"):
        monkeypatch.setattr(f"reference.{module}.POSITIONS_PER_CALL", 5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("part", range(FAST // CHUNK))
def test_the_engine_returns_the_pages_tokens(name, part, request):
    if part % 2:
        request.getfixturevalue("shrunk")
    counts = compare(name, range(part * CHUNK, (part + 1) * CHUNK))
    assert counts["stopped"] * STOPS <= counts["asked"]


@pytest.mark.parametrize("cut", ["record", "horizon", "entropy"])
def test_ties_at_infinity(cut):
    """A table whose probabilities are powers of two: many records are equally likely, and not under the proposal."""
    table = np.array([[0.25, 0.25, 0.5], [0.5, 0.25, 0.25], [0.125, 0.375, 0.5]])
    model = TabularLM.markov(table, torch.float32)
    fixed = {"alpha": math.inf, "proposal_temperature": 0.7, "steps": 9, "cut": cut, "anneal": None, "block": 5,
             "max_new_tokens": 5, "entropy_floor": 0.1}  # fmt: skip
    counts = compare("power_sampling", range(4), fixed=fixed, requests=30, model=model, stop_ids=[0])
    assert counts["stopped"] * STOPS <= counts["asked"]


def test_chopthin_with_uneven_weights():
    """Resampled after every token, from the model itself: particles are thinned and chopped."""
    fixed = {"resampling": "chopthin", "ess_threshold": 2.0, "proposal_temperature": 1.0, "particles": 6, "eta": 4.0,
             "max_new_tokens": 8, "ramp": 0}  # fmt: skip
    counts = compare("power_smc", range(CHUNK), fixed=fixed)
    assert counts["stopped"] * STOPS <= counts["asked"]


def unsure(logits):
    """A cut weight of one's own: how unsure the model is of its likeliest token."""
    return 1 - logits.softmax(-1).amax(-1)


def stratified(u):
    """A resampling rule of one's own: (u_i + i)/n."""
    n = u.shape[-1]
    return (u + torch.arange(n, device=u.device)) / n


CHAINS = ("power_sampling", "multiple_try", "parallel_tempering")
OWN = [
    *[(name, {"cut": unsure, "max_new_tokens": 7}) for name in CHAINS],
    ("power_smc", {"resampling": stratified, "ess_threshold": 0.9, "ramp": 0, "particles": 6, "max_new_tokens": 8}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "own"), OWN)
def test_functions_of_ones_own(name, own):
    counts = compare(name, range(CHUNK), fixed=own)
    assert counts["stopped"] * STOPS <= counts["asked"]


MANY = {"max_new_tokens": 5, "alpha": 2.0, "proposal_temperature": None, "early_reject": True, "tries": 3,
        "cut": "record", "ladder": None}  # fmt: skip
OPEN = {"temperature": 1.0, "top_k": None, "top_p": 0.9, "max_new_tokens": 256}
LONGEST = {
    "generate": OPEN, "best_of_n": {**OPEN, "n": 2}, "adaptive_best_of_n": {**OPEN, "max_draws": 2},
    "power_sampling": {"alpha": 2.0, "max_new_tokens": 256, "block": 100, "steps": 2},
    "multiple_try": {"alpha": 2.0, "max_new_tokens": 256, "block": 256, "steps": 1},
    "power_smc": {"alpha": 2.0, "max_new_tokens": 256, "particles": 3, "ramp": 9},
    "parallel_tempering": {"max_new_tokens": 256, "block": 128, "steps": 1, "rungs": 2, "ladder": None},
    "lookahead": {"max_new_tokens": 256, "chunk": 128, "candidates": 2, "rollouts": 1, "weight": "exact"},
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_many_requests_take_turns_in_the_slots(name):
    """Over 100 requests: slots are refilled, and the last ones are decoded in a smaller batch."""
    fixed = {field: value for field, value in MANY.items() if field in VALUES[name]}
    counts = compare(name, [1], fixed=fixed, requests=102)
    assert counts["compared"] == 102 and counts["stopped"] * STOPS <= counts["asked"]


@pytest.mark.parametrize("name", MODELS)
def test_long_responses(name):
    model = automaton(np.random.default_rng(3), impossible=False)
    counts = compare(name, [0], fixed=LONGEST[name], requests=1, model=model, stop_ids=[])
    assert counts["stopped"] * STOPS <= counts["asked"]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("part", range(10))
def test_the_engine_returns_the_pages_tokens_always(name, part):
    most = (ALL - FAST) // 10
    counts = compare(name, range(FAST + part * most, FAST + (part + 1) * most))
    assert counts["stopped"] * STOPS <= counts["asked"]


COVERAGE = """
[run]
branch = true
source = reference.engine
omit = */captured_step.py
[report]
exclude_also =
    raise ValueError
    if .*isnan
    is_cuda
    device.type == .cuda.
    self.captured
"""


@pytest.mark.slow
def test_these_tests_alone_run_every_branch_of_the_engine(tmp_path):
    """But for refusals, and captured steps, which need a GPU (`tests/reference/engine/test_captured_step.py`)."""
    settings, env = tmp_path / "coveragerc", os.environ | {"COVERAGE_FILE": str(tmp_path / "data")}
    settings.write_text(COVERAGE)
    run = [sys.executable, "-m", "coverage"]
    common = {"cwd": ROOT, "capture_output": True, "text": True, "check": False, "env": env}
    pytests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    tests = subprocess.run([*run, "run", f"--rcfile={settings}", *pytests], **common)
    assert tests.returncode == 0, tests.stdout[-3000:]
    report = subprocess.run([*run, "report", f"--rcfile={settings}", "--show-missing", "--fail-under=100"], **common)
    assert report.returncode == 0, report.stdout
