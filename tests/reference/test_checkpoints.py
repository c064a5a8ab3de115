"""Checkpoints as people have them: what loads elsewhere loads here, equally, and what cannot is refused in one line."""

import json
import os
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from reference.checkpoints import NAMED, find_folder, stored_dtype
from reference.checkpoints.config import Config
from reference.transformer import Transformer

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8,
}  # fmt: skip
ROPES = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn, betas": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8, "beta_fast": 4.0,
                    "beta_slow": 2.0, "attention_factor": 1.25},
    "yarn, mscale": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 0.7,
                     "mscale_all_dim": 0.5, "truncate": False},
}  # fmt: skip


def theirs(folder, kind="Llama", **changes):
    """A small model of transformers, saved."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **changes})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval().float()
    model.save_pretrained(folder)
    return model


def edited(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Mistral"])
@pytest.mark.parametrize("name", ROPES)
def test_rope_types_are_those_of_transformers(name, kind, tmp_path):
    length = 200 if name == "dynamic" else 60  # dynamic: beyond the model's positions, for texts of the declared length
    model = theirs(tmp_path, kind, rope_parameters={"rope_theta": 10_000.0, **ROPES[name]})
    ids = torch.randint(64, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(ids).logits
    ours = Transformer.from_pretrained(tmp_path, max_length=length)(ids)
    assert (ours - expected).abs().max() < 1e-5 < expected.abs().max()
    plain = Transformer.from_pretrained(edited(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 1e4}))
    assert length > 64 or (plain(ids) - expected).abs().max() > 1e-4  # the type has an effect


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Olmo2", {}), ("Olmo2", {"attention_bias": True, "rope_parameters": {"rope_theta": 5e5, **ROPES["yarn"]}}),
        ("SmolLM3", {}), ("SmolLM3", {"no_rope_layers": [0, 1, 1, 0, 1]}), ("SmolLM3", {"no_rope_layer_interval": 2}),
        ("SmolLM3", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
        ("SmolLM3", {"use_sliding_window": True, "sliding_window": 4}),
    ],
)  # fmt: skip
def test_two_more_families_are_those_of_transformers(kind, changes, tmp_path):
    model = theirs(tmp_path, kind, num_hidden_layers=5, pad_token_id=0, **changes)
    for weight in model.parameters():  # norms too, and biases
        weight.data.normal_(0, 0.3) if weight.dim() > 1 else weight.data.uniform_(0.5, 1.5)
    model.save_pretrained(tmp_path)
    ids = torch.randint(64, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(ids).logits
    ours = Transformer.from_pretrained(tmp_path)
    assert (ours(ids) - expected).abs().max() < 1e-5 * expected.abs().max()
    cache = ours.new_cache(2, 40)  # a step at a time, and what the last layer keeps when nobody reads
    ours(ids[:, :30], torch.arange(30).expand(2, 30), cache, logits=False)
    for t in range(30, 40):
        step = ours(ids[:, t : t + 1], torch.full((2, 1), t), cache)
        assert (step[:, 0] - expected[:, t]).abs().max() < 1e-4 * expected.abs().max()
    ours.save_pretrained(tmp_path / "saved")
    again = getattr(transformers, f"{kind}ForCausalLM").from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again(ids).logits, expected)
    old = json.loads((tmp_path / "config.json").read_text())
    derived = {key: None for key in ("layer_types", "no_rope_layers") if key in old and key not in changes}
    assert torch.equal(Transformer.from_pretrained(edited(tmp_path, **derived))(ids), ours(ids))
    if "rope_parameters" in old and old["rope_parameters"]["rope_type"] == "default":  # transformers 4's spelling
        theta = old.pop("rope_parameters")["rope_theta"]
        (tmp_path / "config.json").write_text(json.dumps({**old, "rope_theta": theta}))
        assert torch.equal(Transformer.from_pretrained(tmp_path)(ids), ours(ids))


def test_dynamic_is_the_plain_one_within_the_model_s_positions(tmp_path):
    model = theirs(tmp_path, rope_parameters={"rope_theta": 1e4, **ROPES["dynamic"]})
    ids = torch.arange(64)[None]
    with torch.no_grad():
        assert (Transformer.from_pretrained(tmp_path)(ids) - model(ids).logits).abs().max() < 1e-5
    with pytest.raises(ValueError, match=r"max_length 257 is outside 1\.\.256"):
        Transformer.from_pretrained(tmp_path, max_length=257)


@pytest.mark.parametrize("kind", ["Llama", "Mistral"])
def test_keys_that_change_nothing_are_read_past(kind, tmp_path):
    more = {} if kind == "Llama" else {"sliding_window": None}
    model = theirs(tmp_path, kind, **more)
    edited(tmp_path, is_llama_config=True, layer_types=["full_attention"] * 2, my_notes="hm", moe=None, use_bias=False)
    ids = torch.arange(20)[None]
    with pytest.warns(UserWarning, match=r"keys that nobody here knows or reads: 'is_llama_config', 'my_notes'"):
        ours = Transformer.from_pretrained(tmp_path)
    with torch.no_grad():
        assert (ours(ids) - model(ids).logits).abs().max() < 1e-5
    assert ours.config.unknown == ("is_llama_config", "my_notes")


@pytest.mark.parametrize(("change", "message"), [
    ({"num_experts": 8}, "'num_experts' = 8"), ({"attn_logit_softcapping": 50.0}, "softcapping"),
    ({"layer_types": ["sliding_attention"] * 2}, "layer_types"), ({"quantization_config": {"bits": 4}}, "quantization"),
    ({"residual_multiplier": 0.2}, "residual_multiplier"), ({"sliding_window": 16}, "sliding_window"),
    ({"use_qk_norm": True}, "use_qk_norm"), ({"qk_layernorm": True}, "qk_layernorm"), ({"clip_qkv": 8}, "clip_qkv"),
    ({"logits_scaling": 2.0}, "logits_scaling"), ({"no_rope_layers": [1, 0]}, "no_rope_layers"),
    ({"num_hidden_layers": "2"}, "num_hidden_layers is '2'; it must be a positive whole number"),
    ({"num_hidden_layers": -1}, "num_hidden_layers is '-1'"), ({"num_attention_heads": [4]}, "num_attention_heads is"),
    ({"hidden_size": 0}, "hidden_size is '0'"), ({"vocab_size": 2.5}, "vocab_size is '2.5'"),
    ({"head_dim": True}, "head_dim is 'True'"), ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is"), ({"rope_theta": -1.0}, "rope_theta is"),
    ({"rope_parameters": [1]}, "rope_parameters is"), ({"rope_parameters": {"rope_type": "ntk"}}, "rope_type 'ntk'"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "needs the key 'factor'"),
    ({"num_hidden_layers": 10**9}, r"num_hidden_layers 1000000000, .* takes [\d,]+ GB at least, and there are \d+"),
    ({"head_dim": 10**9}, r"hidden_size 32, 4,000,000,048 across\) takes"), ({"vocab_size": 10**13}, "GB at least"),
    ({"model_type": "smollm3", "no_rope_layers": [1]}, "a 1 or a 0 for each of 2 layers"),
    ({"model_type": "smollm3", "no_rope_layers": "10"}, "a 1 or a 0 for each of 2 layers"),
    ({"layer_types": 5}, "layer_types is '5'; it must be a list of texts"),
    ({"rms_norm_eps": float("inf")}, "rms_norm_eps is 'inf'"), ({"rope_theta": 10**400}, "rope_theta is"),
    ({"rope_parameters": {"rope_type": ["yarn"]}}, "RoPE's rope_type is .* must be a text"),
    ({"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "RoPE's factor is '2'; it must be a positive number"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, "RoPE's rope_theta is 'x'"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2, "beta_fast": "x"}}, "RoPE's beta_fast is 'x'"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2, "truncate": 1}}, "RoPE's truncate is '1'"),
    ({"rope_parameters": {"rope_type": "longrope", "short_factor": 5, "long_factor": [1]}}, "RoPE's short_factor is"),
])  # fmt: skip
def test_what_cannot_be_is_refused_by_its_key(change, message, tmp_path):
    theirs(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        Transformer.from_pretrained(edited(tmp_path, **change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["[1]", "3", "null", '"llama"'])
def test_a_config_that_is_no_object(content, tmp_path):
    theirs(tmp_path)
    (tmp_path / "config.json").write_text(content)
    for read in (Transformer.from_pretrained, lambda folder: Config.from_json(folder / "config.json")):
        with pytest.raises(ValueError, match=r"a config\.json holds an object"):
            read(tmp_path)


def test_mixed_dtypes_become_one(tmp_path):
    theirs(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = {name: w if "norm" in name else w.bfloat16() for name, w in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    for said, found in (("bfloat16", torch.bfloat16), ("float32", torch.float32), ("float16", torch.bfloat16)):
        with pytest.warns(UserWarning, match=f"its weights are bfloat16 and float32; all become {str(found)[6:]}"):
            model = Transformer.from_pretrained(edited(tmp_path, dtype=said, torch_dtype=None))
        assert {weight.dtype for weight in model.parameters()} == {found} and stored_dtype(tmp_path) == found
        assert model(torch.arange(5)[None]).isfinite().all()


def test_the_file_is_right_about_its_dtype(tmp_path):
    theirs(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({name: w.bfloat16() for name, w in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"config\.json says float32, but its weights are bfloat16, and stay so"):
        assert Transformer.from_pretrained(edited(tmp_path, dtype="float32")).dtype == torch.bfloat16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Transformer.from_pretrained(edited(tmp_path, dtype="bfloat16")).dtype == torch.bfloat16


def test_an_adapter_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(FileNotFoundError, match="holds an adapter of PEFT, not a model; merge it"):
        Transformer.from_pretrained(tmp_path)


def test_only_the_files_that_the_index_names_are_fetched(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(repository, allow_patterns):
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
    )
    find_folder("someone/model")
    assert asked[0] == ["*.json", "*.jinja"] and asked[1][2:] == ["model-1.safetensors", "model-2.safetensors"]
    os.remove(tmp_path / "model.safetensors.index.json")
    find_folder("someone/model")
    assert asked[3][2:] == ["model.safetensors"]


def test_the_toy_has_nothing_unknown():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Transformer.from_pretrained(NAMED["toy"][0]).config.unknown == ()


@pytest.mark.parametrize("file", ["", "..", ".", "../model.safetensors", 3])
def test_an_index_names_files_beside_it(file, tmp_path):
    theirs(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": file}}))
    with pytest.raises(ValueError, match="has no weight_map from tensors to files beside it"):
        Transformer.from_pretrained(tmp_path)


def test_an_index_that_was_left_behind(tmp_path):
    model, ids = theirs(tmp_path), torch.arange(9)[None]
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with torch.no_grad():
        assert (Transformer.from_pretrained(tmp_path)(ids) - model(ids).logits).abs().max() < 1e-5


def test_json_that_is_too_deep(tmp_path):
    theirs(tmp_path)
    (tmp_path / "config.json").write_text("[" * 99_999)
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        Transformer.from_pretrained(tmp_path)
