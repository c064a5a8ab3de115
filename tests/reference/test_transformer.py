"""The transformer is the real thing: its logits are transformers' (eager attention) on small random checkpoints.

Norm weights and biases are random too: at their initial values (1 and 0) half of the mistakes below are invisible.
Every mistake is a mutant that the parity assertion catches.
"""

import copy
import json
import math
import zlib
from types import SimpleNamespace

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from safetensors.torch import load_file, save_file

import reference.transformer as T
from reference.engine.requests import choose_slots
from reference.sampling import generate
from reference.training.lora import LoRAConfig, add_lora, lora_layers
from reference.transformer import Config, Transformer

transformers = pytest.importorskip("transformers", reason="transformers is the oracle for parity")

BASE = {
    "vocab_size": 67, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
LONGROPE = {
    "type": "longrope", "short_factor": [1 + 0.1 * i for i in range(6)], "long_factor": [2 + 0.4 * i for i in range(6)],
}  # fmt: skip
PHI3 = {"model_type": "phi3", "pad_token_id": 0, "eos_token_id": 1}
LONG = {**PHI3, "rope_scaling": LONGROPE, "original_max_position_embeddings": 16}
CONFIGS = {
    "qwen2": {"model_type": "qwen2", "rope_theta": 1e6},
    "qwen2 tied": {"model_type": "qwen2", "rope_theta": 1e4, "tie_word_embeddings": True},
    "qwen2 window": {
        "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 20, "rope_theta": 1e6},
    "qwen3 tied bias": {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True, "attention_bias": True},
    "llama": {"model_type": "llama", "rope_theta": 1e4, "rope_scaling": LLAMA3, "tie_word_embeddings": True},
    "llama biases": {"model_type": "llama", "head_dim": 20, "attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "sliding_window": None, "head_dim": 20},
    "mistral window": {"model_type": "mistral", "sliding_window": 5, "num_key_value_heads": 1},
    "phi3": {**PHI3, "num_key_value_heads": 4},
    "phi3 window": {**PHI3, "sliding_window": 7},
    "phi3 long side": LONG,
    "phi3 short side": {**LONG, "original_max_position_embeddings": 40},
    "phi3 partial": {
        **PHI3, "partial_rotary_factor": 0.5, "original_max_position_embeddings": 16,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.5, 2.0], "long_factor": [2.0, 3.0, 5.0]},
    },
}  # fmt: skip
TEXT = 36  # tokens: beyond every window, and between the two longrope boundaries


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """name, weights' scale, dtype -> the folder of a random checkpoint written by transformers; each is made once."""
    made = {}

    def make(name: str, scale: float = 0.15, dtype: torch.dtype = torch.float32):
        if (name, scale, dtype) not in made:
            torch.manual_seed(zlib.crc32(f"{name} {scale} {dtype}".encode()))  # whatever the order of tests
            source = copy.deepcopy({**BASE, **CONFIGS[name]})  # transformers writes into it
            config = transformers.AutoConfig.for_model(source.pop("model_type"), **source)
            model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
            for weight in model.parameters():
                if weight.dim() == 1:
                    weight.data.add_(torch.randn_like(weight) * 0.3)
                else:
                    weight.data.normal_(0, scale)
            made[name, scale, dtype] = tmp_path_factory.mktemp("checkpoint")
            model.save_pretrained(made[name, scale, dtype])
        return made[name, scale, dtype]

    return make


def oracle(folder, dtype=torch.float32):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model.eval()


def declared_length(name: str) -> int:
    """transformers picks longrope's factors by the text; we by the declared length. Here both mean the same side."""
    return 40 if name == "phi3 short side" else 64


def tokens(rows=3, seed=0):
    return torch.randint(0, BASE["vocab_size"], (rows, TEXT), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def assert_parity(folder, name, dtype=torch.float32, mutate=None):
    ids = tokens()
    model = Transformer.from_pretrained(folder, max_length=declared_length(name))
    if mutate is not None:
        model = mutate(model) or model
    ours, theirs = model(ids), oracle(folder, dtype)(ids).logits.float()
    assert ours.dtype == torch.float32
    if dtype == torch.bfloat16:
        assert torch.equal(ours, theirs)
    else:
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(checkpoint, name):
    assert_parity(checkpoint(name), name)
    assert_parity(checkpoint(name, scale=0.02), name)


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_logits_are_bit_equal(checkpoint, name):
    assert_parity(checkpoint(name, dtype=torch.bfloat16), name, torch.bfloat16)


# -- the mistakes that a port makes, each caught -----------------------------------------------------------------------


def reconfigured(**changes):
    """The model with another configuration and the same weights."""

    def mutate(model):
        source = {**model.config.source, **changes}
        changed = Transformer(Config.from_dict(source), model.max_length)
        changed.load_state_dict(model.state_dict())
        return changed

    return mutate


def norm_weight_before_the_cast(model):
    def forward(self, x, weight=None):
        precise = x.float()
        precise = precise * torch.rsqrt(precise.square().mean(-1, keepdim=True) + self.eps)
        return (precise * (self.weight if weight is None else weight).float()).to(x.dtype)

    for module in model.modules():
        if isinstance(module, T.RMSNorm):
            module.forward = forward.__get__(module)


def drop_biases(model):
    for layer in model.layers:
        layer.self_attn.k_proj.bias.data.zero_()
        layer.self_attn.v_proj.bias.data.zero_()


def swap(first, second):
    def mutate(model):
        for layer in model.layers:
            a, b = layer.get_submodule(first), layer.get_submodule(second)
            a.weight.data, b.weight.data = b.weight.data, a.weight.data

    return mutate


def eps_ten_times_smaller(model):
    for module in model.modules():
        if isinstance(module, T.RMSNorm):
            module.eps /= 10


def no_attention_factor(model):
    model.rope_factor = 1.0


def other_side(model):
    model.frequencies, _ = T.rope_frequencies(model.config, 8)


def even_odd_pairs(model):
    def rotate(x, cos, sin):
        half = cos.shape[-1] // 2
        c, s = cos[..., :half], sin[..., half:]
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * c - odd * s, even * s + odd * c), -1).flatten(-2)

    return rotate


def ignore_the_head(model):
    model.lm_head = None


def no_window(model):
    object.__setattr__(model.config, "windows", (None,) * len(model.layers))


MISTAKES = {
    "norm weight before the cast": ("qwen3", norm_weight_before_the_cast, torch.bfloat16),
    "biases dropped": ("qwen2", drop_biases),
    "query and key norms swapped": ("qwen3", swap("self_attn.q_norm", "self_attn.k_norm")),
    "input and post-attention norms swapped": ("llama", swap("input_layernorm", "post_attention_layernorm")),
    "eps": ("llama", eps_ten_times_smaller),
    "window one too wide": ("mistral window", reconfigured(sliding_window=6)),
    "window ignored": ("phi3 window", no_window),
    "window on every layer": ("qwen2 window", reconfigured(layer_types=["sliding_attention"] * 3)),
    "no longrope attention factor": ("phi3 long side", no_attention_factor),
    "short factors on the long side": ("phi3 long side", other_side),
    "no llama3 scaling": ("llama", reconfigured(rope_scaling=None, rope_parameters=None, rope_theta=1e4)),
    "theta": ("qwen2", reconfigured(rope_scaling=None, rope_parameters=None, rope_theta=1e4)),
    "gate and up swapped": ("mistral", swap("mlp.gate_proj", "mlp.up_proj")),
    "head ignored": ("llama biases", ignore_the_head),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_caught(checkpoint, mistake):
    name, mutate, *dtype = MISTAKES[mistake]
    dtype = dtype[0] if dtype else torch.float32
    with pytest.raises(AssertionError):
        assert_parity(checkpoint(name, dtype=dtype), name, dtype, mutate)


def test_even_odd_rope_pairs_are_caught(checkpoint, monkeypatch):
    monkeypatch.setattr(T, "rotate", even_odd_pairs(None))
    with pytest.raises(AssertionError):
        assert_parity(checkpoint("qwen3"), "qwen3")


# -- RoPE's tables, alone and exactly ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen2", "llama", "phi3 short side", "phi3 partial"])
def test_rope_frequencies_are_equal(checkpoint, name):
    folder = checkpoint(name)
    rotary = oracle(folder).model.rotary_emb
    frequencies, factor = T.rope_frequencies(Config.from_json(folder / "config.json"), 8)
    assert torch.equal(frequencies, rotary.inv_freq)
    assert factor == rotary.attention_scaling


def test_both_spellings_of_rope_are_read():
    old = {**BASE, "model_type": "llama", "rope_theta": 5e5, "rope_scaling": LLAMA3}
    new = {**BASE, "model_type": "llama", "rope_parameters": {**LLAMA3, "rope_theta": 5e5}}
    assert Config.from_dict(old) == Config.from_dict(new)


def test_phi35_attention_factor():
    source = {**BASE, **LONG, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096}
    _, factor = T.rope_frequencies(Config.from_dict(source), 131072)
    assert factor == math.sqrt(17 / 12)  # s = 32, L = 4096: sqrt(1 + ln 32 / ln 4096)


# -- the cache ---------------------------------------------------------------------------------------------------------


class CachedDecoding(RuleBasedStateMachine):
    """Any sequence of appends of ragged lengths, rewinds, forks and permutations leaves each row's next logits what a
    fresh forward over its whole text gives."""

    configs = ("qwen3", "mistral window", "phi3 partial")
    rows, capacity = 4, 40

    @initialize(name=st.sampled_from(configs), seed=st.integers(0, 99))
    def start(self, name, seed):
        torch.manual_seed(seed)
        self.model = Transformer(Config.from_dict({**BASE, **CONFIGS[name]})).requires_grad_(False)
        for weight in self.model.parameters():
            weight.data.normal_(1 if weight.dim() == 1 else 0, 0.15)
        self.cache = self.model.new_cache(self.rows, self.capacity)
        self.texts = [[] for _ in range(self.rows)]

    @rule(lengths=st.lists(st.integers(1, 5), min_size=4, max_size=4), seed=st.integers(0, 99))
    def append(self, lengths, seed):
        time = max(lengths)
        if max(len(text) for text in self.texts) + time > self.capacity:
            return
        new = torch.randint(0, BASE["vocab_size"], (self.rows, time), generator=torch.Generator().manual_seed(seed))
        first = torch.tensor([len(text) for text in self.texts])
        logits = self.model(new, first[:, None] + torch.arange(time), self.cache)
        for row, length in enumerate(lengths):  # what is beyond `length` is padding, to be overwritten
            self.texts[row] += new[row, :length].tolist()
            expected = self.model(torch.tensor([self.texts[row]]))[0, -1]
            torch.testing.assert_close(logits[row, length - 1], expected, atol=1e-5, rtol=1e-5)

    @rule(keep=st.lists(st.floats(0, 1), min_size=4, max_size=4))
    def rewind(self, keep):
        self.texts = [text[: int(len(text) * share)] for text, share in zip(self.texts, keep)]

    @rule(source=st.lists(st.integers(0, 3), min_size=4, max_size=4))
    def copy(self, source):
        self.cache.copy_rows(torch.tensor(source), torch.arange(self.rows))
        self.texts = [list(self.texts[i]) for i in source]

    @rule(row=st.integers(0, 3))
    def through_another_cache(self, row):
        other = self.model.new_cache(1, max(1, len(self.texts[row])))
        other.copy_rows(torch.tensor([row]), torch.tensor([0]), other=self.cache)
        self.cache.copy_rows(torch.tensor([0]), torch.tensor([(row + 1) % self.rows]), other=other)
        self.texts[(row + 1) % self.rows] = list(self.texts[row])


CachedDecoding.TestCase.settings = settings(max_examples=12, stateful_step_count=10, deadline=None, derandomize=True)
TestCachedDecoding = CachedDecoding.TestCase


def test_a_stale_cache_is_seen():
    """The mutant of the test above: a cache that forgets to write is caught."""
    machine = CachedDecoding()
    machine.start(name="qwen3", seed=0)
    machine.append(lengths=[3, 1, 2, 3], seed=0)
    machine.cache.k.zero_()
    with pytest.raises(AssertionError):
        machine.append(lengths=[1, 1, 1, 1], seed=1)


@torch.no_grad()
def test_bfloat16_cached_decoding_is_within_rounding(checkpoint):
    """Its attention is another kernel, so its roundings are others; they must not be larger: the distance to the same
    weights in float32 is that of the uncached forward, which is transformers' to the bit."""
    folder = checkpoint("qwen3", dtype=torch.bfloat16)
    model, exact = Transformer.from_pretrained(folder), Transformer.from_pretrained(folder, dtype=torch.float32)
    ids, cache = tokens(), model.new_cache(3, TEXT)
    steps = [model(ids[:, t : t + 1], torch.full((3, 1), t), cache) for t in range(TEXT)]
    cached, whole = ((logits - exact(ids)).square().mean().sqrt() for logits in (torch.cat(steps, 1), model(ids)))
    assert cached < 1.2 * whole


@torch.no_grad()
def test_adapters_add_to_the_layers_they_replace(checkpoint):
    """A layer with an adapter has the weight of the layer that it replaced, but is more than that."""
    model = add_lora(Transformer.from_pretrained(checkpoint("qwen2")), LoRAConfig(rank=2))
    before = model(tokens())
    for layer in lora_layers(model):
        layer.lora_b.normal_()
    assert not torch.allclose(model(tokens()), before, atol=1e-3)
    with torch.enable_grad():
        learning = model(tokens())
    torch.testing.assert_close(model(tokens()), learning, atol=1e-5, rtol=1e-4)


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen3", "qwen2 tied", "phi3 partial"])
def test_what_we_save_transformers_loads(checkpoint, tmp_path, name):
    folder = checkpoint(name)
    Transformer.from_pretrained(folder).save_pretrained(tmp_path)
    assert sorted(load_file(tmp_path / "model.safetensors")) == sorted(load_file(folder / "model.safetensors"))
    with torch.no_grad():
        assert torch.equal(oracle(tmp_path)(tokens()).logits, oracle(folder)(tokens()).logits)
    assert not list(tmp_path.glob("*.part"))


def shard(folder, target):
    """Split a checkpoint in two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, target / f"model-{i}.safetensors")
        weight_map |= dict.fromkeys(part, f"model-{i}.safetensors")
    (target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (target / "config.json").write_text((folder / "config.json").read_text())


@torch.no_grad()
def test_a_sharded_checkpoint_is_the_same_model(checkpoint, tmp_path):
    folder = checkpoint("qwen2")
    shard(folder, tmp_path)
    assert torch.equal(Transformer.from_pretrained(tmp_path)(tokens()), Transformer.from_pretrained(folder)(tokens()))


def edit(folder, target, change):
    """A copy of a checkpoint with its tensors changed by `change(tensors)`."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors")
    (target / "config.json").write_text((folder / "config.json").read_text())
    return target


def test_a_tied_head_that_is_shipped_too_must_be_the_embedding(checkpoint, tmp_path):
    head = "lm_head.weight"
    same = edit(checkpoint("qwen2 tied"), tmp_path, lambda t: t.update({head: t["model.embed_tokens.weight"].clone()}))
    assert_parity(same, "qwen2 tied")
    other = edit(checkpoint("qwen2 tied"), tmp_path, lambda t: t.update({head: torch.zeros(67, 48)}))
    with pytest.raises(ValueError, match=r"'lm_head.weight' differs from the embedding"):
        Transformer.from_pretrained(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "1 tensors are missing, the first is 'norm.weight'"),
        (lambda t: t.update(stray=torch.zeros(1)), "tensor 'stray' has no place in a qwen2 model"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(9)}), r"'model.norm.weight' has shape \[9\], .* \[48\]"),
    ],
)
def test_a_tensor_missing_left_over_or_of_the_wrong_shape(checkpoint, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        Transformer.from_pretrained(edit(checkpoint("qwen2"), tmp_path, change))


def test_a_broken_folder(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder: ./nowhere"):
        Transformer.from_pretrained("./nowhere")
    with pytest.raises(FileNotFoundError, match=r"config.json does not exist"):
        Transformer.from_pretrained(tmp_path)
    folder = checkpoint("qwen2")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match=r"model.safetensors does not exist"):
        Transformer.from_pretrained(tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        Transformer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        Transformer.from_pretrained(tmp_path)


def test_an_index_that_names_a_missing_shard(checkpoint, tmp_path):
    shard(checkpoint("qwen2"), tmp_path)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-1.safetensors does not exist; .* names it"):
        Transformer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"hidden_size": None}, "key 'hidden_size' is missing"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_scaling": {"rope_type": "ntk", "factor": 4.0}}, "rope_type 'ntk'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "needs the key 'low_freq_factor'"),
        ({"rope_scaling": {**LLAMA3, "mscale": 2.0}}, "RoPE key 'mscale' = 2.0"),
        ({"logit_scale": 0.5}, "key 'logit_scale' = 0.5"),
        ({"sliding_window": 8}, "key 'sliding_window' = 8 is not read for llama"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"num_key_value_heads": 3}, "multiple of num_key_value_heads 3"),
    ],
)
def test_a_configuration_that_is_not_understood_fails_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        Config.from_dict({**BASE, "model_type": "llama", **change})


def test_what_is_switched_off_or_harmless_is_accepted():
    Config.from_dict({**BASE, "model_type": "llama", "new_feature": False, "other": None, "torch_dtype": "bfloat16"})


def test_the_declared_length_is_within_the_model():
    with pytest.raises(ValueError, match=r"max_length 65 is outside 1..64"):
        Transformer(Config.from_dict({**BASE, "model_type": "llama"}), max_length=65)


# -- costs: the published sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "shape", "parameters", "step", "kv"),
    [  # layers, heads, kv heads, head_dim, hidden, ffn, vocabulary, tied; 10^9 parameters, GB per step, KiB per token
        ("qwen2", (24, 14, 2, 64, 896, 4864, 151936, True), 0.494, 0.99, 12),
        ("qwen3", (28, 16, 8, 128, 1024, 3072, 151936, True), 0.596, 1.19, 112),
        ("llama", (16, 32, 8, 64, 2048, 8192, 128256, True), 1.236, 2.47, 32),
        ("phi3", (32, 32, 32, 96, 3072, 8192, 32064, False), 3.821, 7.44, 384),
        ("qwen2", (28, 28, 4, 128, 3584, 18944, 152064, False), 7.616, 14.14, 56),
        ("mistral", (32, 32, 8, 128, 4096, 14336, 32768, False), 7.248, 14.23, 128),
    ],
)
def test_costs_are_those_of_the_published_models(family, shape, parameters, step, kv):
    names = (
        "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size",
        "intermediate_size", "vocab_size", "tie_word_embeddings",
    )  # fmt: skip
    source = {"model_type": family, "max_position_embeddings": 4096, **dict(zip(names, shape))}
    with torch.device("meta"):
        model = Transformer(Config.from_dict(source)).to(torch.bfloat16)
    assert round(model.num_parameters() / 1e9, 3) == parameters
    vectors = sum(weight.numel() for weight in model.parameters() if weight.dim() == 1)
    assert round((model.bytes_per_step() - 2 * vectors) / 1e9, 2) == step  # the table leaves out norms and biases
    assert model.kv_bytes_per_token() == kv * 1024
    assert model.flops_per_token(0) == model.bytes_per_step()  # 2 operations and 2 bytes per weight in bfloat16


GIB = 2**30


def bytes_of_chains(model, chains, length):
    """Weights, and two caches (`engine/chains.py`: the proposals' and the records'), all of them made, on "meta"."""
    caches = [model.new_cache(chains, length) for _ in range(2)]
    weights = sum(weight.nbytes for weight in model.parameters())
    return weights + sum(tensor.nbytes for cache in caches for tensor in (cache.k, cache.v))


def test_256_chains_of_a_7b_fit_in_139_gib(monkeypatch):
    """Qwen2.5-7B in bfloat16, 150-token prompts, 3072 new tokens: 88 GiB of keys and values, 14 of weights."""
    source = {
        "model_type": "qwen2", "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "hidden_size": 3584, "intermediate_size": 18944, "vocab_size": 152064, "max_position_embeddings": 4096,
    }  # fmt: skip
    with torch.device("meta"):
        model = Transformer(Config.from_dict(source)).to(torch.bfloat16)
        needed = bytes_of_chains(model, 256, 150 + 3072)
    assert needed == 2 * model.num_parameters() + 2 * 256 * (150 + 3072) * model.kv_bytes_per_token()
    laws = 256 * 32 * model.vocab_size  # logits and laws in float32, their cumulative sums in float64
    assert round(needed / GIB) == 102 and needed + laws < 139 * GIB
    free = 139 * GIB - 2 * model.num_parameters()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 139 * GIB))
    on_gpu = SimpleNamespace(
        device=torch.device("cuda"), vocab_size=model.vocab_size, kv_bytes_per_token=model.kv_bytes_per_token
    )
    assert choose_slots(None, on_gpu, 500, 150 + 3072, caches=2) == 256  # and so many are decoded at a time, unasked
    few = choose_slots(None, on_gpu, 500, 2 * (150 + 3072), caches=2)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 20 * GIB)  # torch holds it, and nobody uses it
    assert few < choose_slots(None, on_gpu, 500, 2 * (150 + 3072), caches=2) < 256
    with torch.device("meta"):
        assert bytes_of_chains(model.float(), 256, 150 + 3072) > 139 * GIB  # in float32 they do not


def test_large_products_are_the_same_but_for_rounding(monkeypatch):
    """oneDNN's product for a few rows, where this torch has it: logits to 1e-5, and the same tokens."""
    config = Config.from_dict({
        "model_type": "qwen2", "vocab_size": 400, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True,
    })  # fmt: skip
    torch.manual_seed(0)
    model = Transformer(config).requires_grad_(False)
    for weight in model.parameters():
        weight.normal_(0, 0.06) if weight.dim() > 1 else weight.uniform_(0.5, 1.5)
    used, product = [], T.direct_product()

    def counted(*given):
        used.append(1)
        return product(*given)

    monkeypatch.setattr(T, "direct_product", lambda: product and counted)
    prompts, ids = [[5, 6], [7], [8, 9, 10]], torch.arange(20)[None]

    def both():
        cached = model(ids, ids, model.new_cache(1, 20))
        return cached, generate(model, prompts, max_new_tokens=30, stop_ids=[0], samples_per_prompt=4)

    with torch.no_grad():
        logits, drawn = both()
    assert used or product is None
    monkeypatch.setattr(T, "direct_product", lambda: None)
    with torch.no_grad():
        expected, again = both()
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()
    assert torch.equal(drawn.samples.tokens, again.samples.tokens)
    used.clear()
    monkeypatch.setattr(T, "direct_product", lambda: product and counted)
    model.requires_grad_(True)
    model(ids).sum().backward()  # what has a gradient goes another way, and so do whole texts
    with torch.no_grad():
        model(ids)
    assert not used and model.layers[0].mlp.up_proj.weight.grad.any()
