"""The captured step is the eager step: recorded once, replayed on other data.

Without a GPU, `Recording` stands in for a CUDA graph: it keeps the operations of one step with the tensors that they
read and wrote, and replays exactly these. So it misses what a graph would miss (a decision in Python, a tensor put in
another's place), and it refuses what capturing refuses (an operation that waits for a value, or sends one).
"""

import time
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reference.engine import decoder
from reference.engine.captured_step import CapturedStep
from reference.lookahead import LookaheadConfig, lookahead
from reference.multiple_try import MultipleTryConfig, multiple_try
from reference.parallel_tempering import TemperingConfig, parallel_tempering
from reference.power_sampling import PowerConfig, power_sample
from reference.power_smc import SMCConfig, power_smc
from reference.sampling import generate
from reference.transformer import Config, KVCache, Transformer

HORIZON = 12
ASKS = {  # what a graph cannot hold: an operation that hands a value, or a shape that depends on one, to the host ..
    "_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "bincount",
    "repeat_interleave", "lift_fresh", "scalar_tensor",  # .. or, the last two, makes a tensor there that is copied over
}  # fmt: skip
POWER = PowerConfig(2.0, block=6, steps=4, max_new_tokens=HORIZON)
RUNS = {
    "generate": lambda model, prompts, kw: generate(
        model, prompts, max_new_tokens=HORIZON, samples_per_prompt=3, temperature=0.7, top_k=9, top_p=0.95, **kw
    ),
    "power sampling": lambda model, prompts, kw: power_sample(model, prompts, POWER, **kw),
    "entropy cuts": lambda model, prompts, kw: power_sample(model, prompts, replace(POWER, cut="entropy"), **kw),
    "prefetching": lambda model, prompts, kw: power_sample(model, prompts, replace(POWER, prefetch=2), **kw),
    "multiple try": lambda model, prompts, kw: multiple_try(
        model, prompts, MultipleTryConfig(2.0, block=6, steps=4, max_new_tokens=HORIZON, tries=2), **kw
    ),
    "tempering": lambda model, prompts, kw: parallel_tempering(
        model, prompts, TemperingConfig(2.0, rungs=3, block=6, steps=3, max_new_tokens=HORIZON), **kw
    ),
    "SMC, ramp": lambda model, prompts, kw: power_smc(
        model, prompts, SMCConfig(2.0, 4, max_new_tokens=HORIZON, ramp=4), **kw
    ),
    "look-ahead": lambda model, prompts, kw: lookahead(
        model, prompts, LookaheadConfig(2.0, max_new_tokens=HORIZON, candidates=2, rollouts=2), **kw
    ),
}
SETTINGS = {"stop_ids": [1], "seed": 3, "slots": 6}
PROMPTS = [[2, 3], [4], [2, 5, 6, 7, 3]]


def random_model(family="qwen3", device="cpu", **changes) -> Transformer:
    torch.manual_seed(0)
    source = {
        "model_type": family, "vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, **changes,
    }  # fmt: skip
    model = Transformer(Config.from_dict(source)).requires_grad_(False)
    for weight in model.parameters():
        weight.data.normal_(1 if weight.dim() == 1 else 0, 0.4)
    return model.to(device)


class Recording(TorchDispatchMode):
    """The operations that run while it is entered, to be run again on the same tensors."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        with self:  # in inference mode operations made of others come whole
            made = function.decompose(*args, **(kwargs or {}))
        if made is not NotImplemented:
            return made
        name = function.overloadpacket.__name__
        chosen_by_mask = name.startswith("index") and any(
            isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1])
        )
        if name in ASKS or chosen_by_mask:
            raise RuntimeError(f"{name} cannot be captured: it asks the host")
        made = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, made))
        return made

    @torch.inference_mode()  # it writes into what the model made, which is so made
    def replay(self):
        for function, args, kwargs, made in self.operations:
            for old, new in zip(tree_leaves(made), tree_leaves(function(*args, **kwargs))):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class OnCPU(CapturedStep):
    """Captures as on a GPU, with `Recording` for a graph."""

    replays, buckets = 0, 0

    def record(self, step):
        decoder, recording = step.__self__, Recording()
        OnCPU.buckets = max(OnCPU.buckets, len(self.graphs))
        tables = [*vars(decoder.texts).values(), *vars(decoder.rows).values()]
        state = [*tables, decoder.measured, decoder.cache.k, decoder.cache.v]
        before = [tensor.clone() for tensor in state]
        with recording:
            result = step()
        for tensor, value in zip(state, before):
            tensor.copy_(value)  # a capture runs nothing

        def replay():
            OnCPU.replays += 1
            here = decoder.texts.start + decoder.texts.length - 1
            assert decoder.cache.visible > int(here.max())
            recording.replay()

        return replay, result


@pytest.fixture
def short_reach(monkeypatch):
    """Attention reads multiples of 4 positions, so that a run needs several graphs; the eager step too."""
    monkeypatch.setattr(KVCache, "reach", lambda cache, at: min((int(at.max()) // 4 + 1) * 4, cache.capacity))


@pytest.fixture
def on_cpu(monkeypatch, short_reach):
    """A function, from whose call on steps are captured."""
    return lambda: monkeypatch.setattr(decoder, "capture_of", lambda model: OnCPU(model.device))


def same(one, other):
    assert all(torch.equal(a, b) for a, b in zip(one.samples.tensors(), other.samples.tensors()))
    assert one.costs == other.costs


@pytest.mark.parametrize("family", ["qwen3", "mistral"])
@pytest.mark.parametrize("run", RUNS)
def test_a_replayed_step_is_the_eager_step(run, family, on_cpu):
    model = random_model(family, **({"sliding_window": 5} if family == "mistral" else {}))
    eager = RUNS[run](model, PROMPTS, SETTINGS)
    on_cpu()
    OnCPU.replays = OnCPU.buckets = 0
    same(RUNS[run](model, PROMPTS, SETTINGS), eager)
    assert OnCPU.replays >= 10 and OnCPU.buckets >= 2


@pytest.mark.parametrize("fault", ["moved", "asks", "copies", "frozen"])
def test_a_step_that_cannot_be_captured_is_found_out(fault, on_cpu, monkeypatch):
    """Mutants: a tensor put in another's place, a question to the GPU, numbers of the host that become a tensor there
    (torch.where copies them over), a number of the host that changes."""
    step = decoder.Decoder.decode_one

    def faulty(decoder):
        before, kept = decoder.rows.before, decoder.rows.before.clone()
        ended = step(decoder)
        if fault == "moved":
            decoder.rows.before = before.clone()
            before.copy_(kept)
        elif fault in ("asks", "copies"):
            with torch.inference_mode():  # as in the model
                torch.where(ended, 1.0, 0.0) if fault == "copies" else bool(ended.any())
        elif fault == "frozen":
            decoder.calls = getattr(decoder, "calls", 0) + 1
            decoder.texts.tokens[:, 0].fill_(decoder.calls % 5)
        return ended

    monkeypatch.setattr(decoder.Decoder, "decode_one", faulty)
    eager = RUNS["generate"](random_model(), PROMPTS, SETTINGS)
    on_cpu()
    error, words = (RuntimeError, "captured") if fault in ("asks", "copies") else (AssertionError, None)
    with pytest.raises(error, match=words):
        same(RUNS["generate"](random_model(), PROMPTS, SETTINGS), eager)


@pytest.mark.gpu
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_draws_the_tokens_of_the_eager_step(run, dtype, short_reach):
    model = random_model(device="cuda").to(dtype)
    graphs = RUNS[run](model, PROMPTS, SETTINGS)
    model.capture = False
    same(RUNS[run](model, PROMPTS, SETTINGS), graphs)


@pytest.mark.gpu
def test_a_gpu_draws_the_tokens_of_a_cpu():
    graphs = RUNS["power sampling"](random_model(device="cuda"), PROMPTS, SETTINGS)
    plain = RUNS["power sampling"](random_model(), PROMPTS, SETTINGS)
    assert torch.equal(graphs.samples.tokens.cpu(), plain.samples.tokens)
    torch.testing.assert_close(graphs.samples.logp.cpu(), plain.samples.logp, atol=1e-4, rtol=0)


@pytest.mark.gpu
@pytest.mark.slow
def test_a_captured_step_is_faster():
    """At batch 1 in the shape of a small model: launches, not arithmetic, are what an eager step waits for."""
    shape = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "head_dim": 64}
    model, seconds = random_model(device="cuda", **shape).bfloat16(), {}
    for model.capture in (True, False, True, False):  # what is kept is the second time
        begin = time.perf_counter()
        generate(model, [[2]], max_new_tokens=60, stop_ids=[], slots=1)
        seconds[model.capture] = time.perf_counter() - begin
    assert seconds[False] > 2 * seconds[True]
