"""The real model: SmolLM2-135M-Instruct, 4-bit weights, dequantised (`make smollm2`, then `make test-real`).

What holds on tiny random checkpoints must hold on the files of a model that people use: transformers is the oracle, the
pages are what the engine must return, and every command runs once.
"""

import json

import pytest
import torch

import reference.__main__ as command
from reference.interface import Drawn
from reference.pages import PAGES
from reference.power_sampling import PowerConfig
from reference.power_smc import SMCConfig
from reference.sampling import GenerateConfig, generate, stream
from reference.text.text_model import TextModel
from reference.text.tokenizer import StreamDecoder
from reference.training.lora import LoRAConfig, add_lora
from tests.reference.text.test_tokenizer import SENTENCES
from toy.questions import questions, read
from toy.smollm2 import SMOLLM2

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (SMOLLM2 / "config.json").exists(), reason="the model is not there; make smollm2"),
]
transformers = pytest.importorskip("transformers")
PROMPTS = ["What is the capital of France?", "Question: What is 7 times 12?\nAnswer:", "def fibonacci(n):"]
CHAT = [{"role": "user", "content": "Name three rivers in Europe."}]
LIMIT = 16


@pytest.fixture(scope="module")
def ours():
    return TextModel.from_pretrained("smollm2")


@pytest.fixture(scope="module")
def theirs():
    model = transformers.AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(SMOLLM2)


@pytest.fixture
def run(capsys):
    def call(*arguments, code=0):
        assert command.main([str(argument) for argument in arguments]) == code, capsys.readouterr().err
        return capsys.readouterr().out

    return call


def test_ids_and_chat_prompts_are_those_of_transformers(ours, theirs):
    for text in (*PROMPTS, *SENTENCES, "3.14159 and 1,000,000", "  two  spaces\n\n\ttab"):
        ids = ours.tokenizer.encode(text)
        assert ids == theirs[1].encode(text) and ours.tokenizer.decode(ids) == text
    for chat in (CHAT, [{"role": "system", "content": "Be brief."}, *CHAT]):
        expected = theirs[1].apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert ours.tokenizer.chat_prompt(chat) == expected
    assert ours.stop_ids == {theirs[1].eos_token_id}


@torch.no_grad()
def test_logits_are_those_of_transformers(ours, theirs):
    for text in (*PROMPTS, *SENTENCES[:3]):
        ids = torch.tensor([ours.tokenizer.encode(text)])
        logits, expected = ours.model(ids), theirs[0](ids).logits
        assert (logits - expected).abs().max() < 1e-4 < expected.abs().max()
        assert torch.equal(logits.argmax(-1), expected.argmax(-1))


def test_greedy_tokens_and_their_stream_are_those_of_transformers(ours, theirs):
    prompts = [ours.tokenizer.chat_prompt(CHAT), *map(ours.tokenizer.encode, PROMPTS)]
    stop = sorted(ours.stop_ids)
    drawn = generate(ours.model, prompts, max_new_tokens=24, temperature=0.0, stop_ids=stop)
    config = GenerateConfig(24, temperature=0.0)
    for prompt, own in zip(prompts, drawn.samples):
        with torch.no_grad():
            out = theirs[0].generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, pad_token_id=stop[0])
        tokens = own[0].tokens.tolist()
        assert tokens == out[0, len(prompt) :].tolist()
        shown = StreamDecoder(ours.tokenizer)
        pieces = [shown.push(token) for token in stream(ours.model, prompt, config, stop_ids=stop)]
        assert "".join([*pieces, shown.flush()]) == ours.tokenizer.decode(tokens)


@pytest.mark.parametrize(("name", "config"), [
    ("generate", GenerateConfig(LIMIT, temperature=0.8, top_k=50)),
    ("power_sampling", PowerConfig(4.0, block=8, steps=2, max_new_tokens=LIMIT)),
    ("power_smc", SMCConfig(4.0, particles=3, max_new_tokens=LIMIT)),
])  # fmt: skip
def test_the_engine_returns_the_pages_tokens(ours, name, config):
    prompts, stop, page = [ours.tokenizer.encode(text) for text in PROMPTS], sorted(ours.stop_ids), PAGES[name]
    drawn = page.batched(
        ours.model, prompts, config, stop_ids=stop, samples_per_prompt=1, slots=8, seed=3, keys=PROMPTS
    )  # fmt: skip
    with torch.no_grad():
        for i, prompt in enumerate(prompts):
            found = page.page(ours.model, prompt, config, stop_ids=stop, chance=Drawn(3, PROMPTS[i], 0))
            assert found.tokens == tuple(drawn.samples.sample(i, 0).tokens.tolist())


FEW = ("--model", "smollm2", "--max-new-tokens", 12)
COMMANDS = {
    "sample": ("-n", 2, "--temperature", 0.7), "best-of-n": ("-n", 3), "power": ("--steps", 2, "--block", 6),
    "smc": ("--particles", 3), "temper": ("--rungs", 2, "--steps", 1, "--block", 12),
    "multiple-try": ("--tries", 2, "--steps", 1, "--block", 12),
    "lookahead": ("--candidates", 2, "--rollouts", 1, "--max-new-tokens", 4),
    "refine": ("--drafts", 2, "--workspace", 16), "verify": ("-n", 1, "--votes", 1, "--cascade-tokens", 8),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_method_answers_on_the_command_line(name, run):
    (line,) = map(json.loads, run(name, PROMPTS[0], *FEW, *COMMANDS[name], "--json").splitlines())
    assert line["prompt"] == PROMPTS[0] and all(own["tokens"] for own in line["responses"])


def test_what_is_no_method_runs_too(run, tmp_path):
    assert "4-bit weights, dequantised" in run("info", "--model", "smollm2")
    found = json.loads(run("score", PROMPTS[0], "--model", "smollm2", "--response", "Paris.", "--json"))
    assert found["total"] == pytest.approx(sum(found["logp"]), abs=1e-4) and found["total"] < 0


def test_an_evaluation_goes_on_where_it_was_cut_off(run, tmp_path):
    task, whole, cut = tmp_path / "task.jsonl", tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    asked = questions("products", 6, seed=5)
    task.write_text("\n".join(json.dumps(vars(question)) for question in asked))
    options = ("evaluate", "sample", *FEW, "--temperature", 0, "--task", task, "--grader", "numeric", "--batch", 2)
    run(*options, "--out", whole)
    lines = whole.read_bytes().splitlines(keepends=True)
    cut.write_bytes(b"".join(lines[:3]) + lines[3][:40])
    run(*options, "--out", cut)
    ours, theirs = ([json.loads(line) for line in path.read_text().splitlines()[1:]] for path in (cut, whole))
    assert [each["responses"][0]["tokens"] for each in ours] == [each["responses"][0]["tokens"] for each in theirs]
    for question, each in zip(asked, ours):
        assert each["responses"][0]["right"] == (read(question, each["responses"][0]["text"]) == question.answer)


@pytest.mark.parametrize(("kind", "options"), [
    ("sft", ("-n", 2)), ("dpo", ("--pairs", 1)), ("xpo", ("--rounds", 1)),
    ("grpo", ("--rounds", 1, "--prompts", 1, "--group", 2, "--grader", "numeric")),
])  # fmt: skip
def test_training_with_adapters_writes_what_transformers_loads(kind, options, run, tmp_path):
    file, out = tmp_path / "problems.jsonl", tmp_path / "trained"
    file.write_text("\n".join(json.dumps(vars(question)) for question in questions("products", 2, seed=6)))
    quick = ("--epochs", 1, "--batch", 2, "--lora-rank", 2, "--lora-targets", "q_proj", "--rate", "1e-3")
    run("train", kind, *FEW, "--file", file, "-o", out, *options, *quick)
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ids = torch.tensor([[1, 504, 2365]])
    with torch.no_grad():
        ours = TextModel.from_pretrained(out).model(ids)
        assert (ours - model(ids).logits).abs().max() < 1e-4


def test_merged_adapters_are_the_model_that_had_them(ours):
    model = TextModel.from_pretrained("smollm2").model
    ids = torch.tensor([ours.tokenizer.encode(PROMPTS[0])])
    add_lora(model, LoRAConfig(rank=2, targets=("q_proj", "down_proj")))
    with torch.no_grad():
        assert torch.equal(model(ids), ours.model(ids))  # B = 0
