"""The command line: every command on tiny checkpoints of all families and on the toy model, in this process.

What a method returned is checked by what is known of it anyway: log-probabilities are scored anew from the JSON, chat
prompts are those of transformers, options are the fields of the settings.
"""

import inspect
import io
import json
import re
import resource
import shutil
import subprocess
import sys
import typing
from dataclasses import dataclass, is_dataclass, replace

import pytest
import torch

import reference.__main__ as command
from reference.checkpoints import NAMED
from reference.cli import asking, listing, methods
from reference.cli.asking import Asked, Checkpoint, Input
from reference.cli.command_line import load, options_of, parse, read_docstring, rules
from reference.evaluation.tasks import Task
from reference.power_sampling import PowerConfig
from reference.text.text_model import TextModel
from reference.text.tokenizer import Tokenizer
from reference.transformer import Transformer
from tests.conftest import ROOT
from tests.reference.text.test_tokenizer import SENTENCES, TEMPLATES, byte_level
from toy.relay import make_problems

transformers = pytest.importorskip("transformers", reason="transformers writes the checkpoints")

SIZES = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "bos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {"qwen2": "qwen25", "qwen3": "qwen3", "llama": "llama3", "mistral": "mistral", "phi3": "phi3"}  # templates
FEW = ["--max-new-tokens", "6"]
METHODS = {  # options with which each takes a moment
    "sample": ["-n", "2", "--temperature", "0.7", "--top-k", "40", "--top-p", "0.9"],
    "best-of-n": ["-n", "3"],
    "power": ["--steps", "2", "--block", "4", "-n", "2"],
    "smc": ["--particles", "3"],
    "temper": ["--rungs", "2", "--steps", "2", "--block", "4"],
    "multiple-try": ["--tries", "2", "--steps", "2", "--block", "4"],
    "lookahead": ["--candidates", "2", "--rollouts", "2"],
    "refine": ["--drafts", "2", "--workspace", "24", "-n", "2"],
    "verify": ["-n", "2", "--votes", "2", "--cascade-tokens", "6"],
}
TOY = NAMED["toy"][0]
QUESTIONS = ["3 + 4 x 2 + 5 x 7 + 1", "4 + 10 + 9 x 7 x 7 x 2"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """family -> a folder of a random checkpoint with a chat template, all of it written by transformers."""
    made = {}

    def make(family: str) -> str:
        if family not in made:
            torch.manual_seed([*FAMILIES].index(family))  # whatever the order of tests
            folder = made[family] = tmp_path_factory.mktemp(family)
            backend = byte_level()
            sizes = {**SIZES, "eos_token_id": backend.token_to_id("</s>"), "head_dim": 8}
            config = transformers.AutoConfig.for_model(family, **sizes)
            model = transformers.AutoModelForCausalLM.from_config(config)
            for weight in (weight for weight in model.parameters() if weight.dim() > 1):
                weight.data.normal_(0, 0.3)
            model.save_pretrained(folder)
            words = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATES[FAMILIES[family]]}
            transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **words).save_pretrained(folder)
        return str(made[family])

    return make


@pytest.fixture
def run(capsys):
    """A command's output; whatever it says on stderr is of one line each."""

    def call(*arguments: object, code: int = 0) -> str:
        assert command.main([str(argument) for argument in arguments]) == code, capsys.readouterr().err
        said = capsys.readouterr()
        call.err = said.err
        return said.out

    return call


@pytest.fixture
def task(tmp_path):
    """Ten problems of the toy world."""
    file = tmp_path / "relay.jsonl"
    problems = [{"id": p.id, "question": p.question, "answer": p.answer} for p in make_problems(10, seed=1000)]
    file.write_text("\n".join(map(json.dumps, problems)))
    return file


@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "questions.txt"
    file.write_text("\n".join(QUESTIONS) + "\n")
    return file


def objects(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


# ---------------------------------------------------------------------------------------------------------------------
# Every method, on every family and on the toy model


@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_runs_on_every_family(family, checkpoint, run, tmp_path, questions):
    model = ["--model", checkpoint(family)]
    for method, options in METHODS.items():
        found = objects(run(method, *model, *FEW, *options, "--file", questions, "--json"))
        assert [line["prompt"] for line in found] == QUESTIONS
        assert all(len(own["tokens"]) <= 6 for line in found for own in line["responses"])
        assert all(line["cost"]["decoded_tokens"] > 0 for line in found)
        if method in ("refine", "verify"):
            continue  # their prompts are their own
        written = tmp_path / "written.jsonl"
        written.write_text("\n".join(map(json.dumps, found)))
        scored = objects(run("score", *model, "--file", written, "--json"))
        told = [own for line in found for own in line["responses"]]
        assert [line["tokens"] for line in scored] == [own["tokens"] for own in told]
        for ours, theirs in zip(told, scored):
            assert ours["logp"] == pytest.approx(theirs["logp"], abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_on_the_toy_model(method, run, questions):
    found = objects(run(method, *METHODS[method], "--max-new-tokens", 24, "--file", questions, "--json"))
    assert [line["prompt"] for line in found] == QUESTIONS
    assert all(set(own["text"].split()) & {"=", "."} for line in found for own in line["responses"])
    text = run(method, *METHODS[method], "--max-new-tokens", 24, QUESTIONS[0])
    assert found[0]["responses"][0]["text"] in text  # the same tokens, alone or with others, as text or as JSON
    assert " decoded (" in run.err and run.err.count("\n") == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_question_is_the_users_turn_of_the_chat_template(family, checkpoint):
    folder = checkpoint(family)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    asked = Asked(Input(QUESTIONS[0]), checkpoint=Checkpoint(folder))
    if family == "llama":  # its template writes the day
        expected = theirs.apply_chat_template(
            [{"role": "user", "content": QUESTIONS[0]}], add_generation_prompt=True, return_dict=False,
            date_string="26 Jul 2024",
        )  # fmt: skip
    else:
        messages = [{"role": "user", "content": QUESTIONS[0]}]
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert asked.prompts == [expected]
    raw = Asked(Input(QUESTIONS[0], raw=True), checkpoint=Checkpoint(folder))
    assert raw.prompts == [theirs.encode(QUESTIONS[0])] != asked.prompts


def test_templates_are_told_to_think_or_not(checkpoint, tmp_path, run):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("llama"), folder)
    turn = "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking is false %} no{% endif %} <think>"
    (folder / "chat_template.jinja").write_text(turn)
    spoken = {}
    for named in ({}, {"thinking": True}, {"no_thinking": True}):
        asked = Asked(Input("so"), checkpoint=Checkpoint(str(folder), **named))
        spoken[asked.speaker.tokenizer.decode(asked.prompts[0])] = asked.checkpoint.identity().get("enable_thinking")
        spoken_in_roles = asked.speaker.tokenizer.decode(asked.speaker.prompt("author", question="so"))
        assert spoken_in_roles.endswith(" no <think>") == ("no_thinking" in named)  # roles are told too
    assert spoken == {"so <think>": True, "so no <think>": False}
    few = ("--max-new-tokens", 2, "--model", folder)
    assert run("sample", "so", *few) == run("sample", "so", *few, "--thinking")
    assert run("sample", "so", *few, "--no-thinking", "--json") != run("sample", "so", *few, "--json")
    run("sample", "so", "--no-thinking", "--model", checkpoint("llama"), code=2)
    assert "no chat template reads enable_thinking; leave it out" in run.err
    run("sample", "so", "--no-thinking", "--thinking", code=2)
    assert "give one of them" in run.err


def test_composed_methods_ask_for_programs(checkpoint, tmp_path, run):
    stub = {
        "task_id": "a",
        "prompt": "def one():\n",
        "test": "def check(f):\n    assert f() == 1",
        "entry_point": "one",
    }
    (file := tmp_path / "he.jsonl").write_text(json.dumps(stub))
    model = checkpoint("llama")
    asked = Asked(Input(file=str(file), format="humaneval"), checkpoint=Checkpoint(model))
    content = asked.speaker.tokenizer.decode(asked.speaker.prompt("author", question=asked.questions[0]))
    assert "code block" in content and "boxed" not in content
    assert asked.identity("refine")["templates"] == "reference.text.chat_templates:code_templates"
    named = Asked(asked.input, checkpoint=Checkpoint(model, templates="reference.text.chat_templates:chat_templates"))
    assert named.checkpoint.templates == "reference.text.chat_templates:chat_templates"  # as the user says
    toy = Asked(asked.input, checkpoint=Checkpoint("toy"))
    assert toy.checkpoint.templates is None  # as its folder says
    few = ("--drafts", 2, "--max-new-tokens", 4, "--workspace", 4)
    out = tmp_path / "out.jsonl"
    run("evaluate", "refine", "--task", file, "--format", "humaneval", "--allow-code-execution", *few, "--out", out,
        "--model", model)  # fmt: skip
    assert json.loads(out.read_text().splitlines()[0])["settings"]["templates"].endswith(":code_templates")


def test_input_is_an_argument_a_file_or_stdin(run, questions, tmp_path, monkeypatch):
    alone = run("sample", QUESTIONS[1], "--seed", 3)
    assert run("sample", "--file", questions, "--seed", 3).splitlines()[1] != alone  # another key, other numbers
    lines = tmp_path / "lines.jsonl"
    lines.write_text('\n{"question": "1 + 1 + 1"}\n' + json.dumps({"problem": QUESTIONS[1], "id": 0}) + "\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO(QUESTIONS[1] + "\n"))
    assert run("sample", "--seed", 3) == alone
    assert run("sample", "--seed", 3, "--file", lines).splitlines()[3] + "\n" == alone  # the id addresses the numbers
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines.read_text()))
    assert run("sample", "--seed", 3).splitlines()[3] + "\n" == alone
    assert run("sample", "--raw", "solve 1 + 1 + 1 :", "--json", "-o", tmp_path / "out.jsonl") == ""
    (line,) = objects((tmp_path / "out.jsonl").read_text())
    assert line["responses"][0]["text"] == run("sample", "1 + 1 + 1").strip()


@pytest.mark.parametrize("how", ["--reward length-normalized", "--reward majority", "--reward judge", "--mu 1"])
def test_other_ways_to_choose_the_best(how, run, questions):
    found = objects(run("best-of-n", "-n", 6, "--max-new-tokens", 24, *how.split(), "--file", questions, "--json"))
    assert all(1 <= line["draws"][0] <= 6 and len(line["rewards"]) == 1 for line in found)


# ---------------------------------------------------------------------------------------------------------------------
# Streaming


class Speaker:
    """A LanguageModel that says a given text: which token comes at which position is known."""

    vocab_size, device, max_length = 320, torch.device("cpu"), 500

    def __init__(self, start: int, ids: list[int]):
        self.start, self.ids = start, ids

    def new_cache(self, rows, capacity):
        return self

    def copy_rows(self, source, target, other=None, length=None):
        pass

    def __call__(self, tokens, positions=None, cache=None, *, logits=True):
        token = torch.tensor([self.ids[min(max(0, at - self.start), len(self.ids) - 1)] for at in positions[:, -1]])
        return 80.0 * torch.nn.functional.one_hot(token, self.vocab_size).float()[:, None]


class Pieces(io.StringIO):
    def __init__(self):
        super().__init__()
        self.pieces = []

    def write(self, text):
        self.pieces.append(text)
        return super().write(text)


def test_a_stream_never_splits_a_character(checkpoint, monkeypatch):
    tokenizer = Tokenizer.from_pretrained(checkpoint("qwen2"))
    text = " ".join(SENTENCES)
    ids = tokenizer.encode(text, special_tokens=False)
    prompt = tokenizer.chat_prompt([{"role": "user", "content": "hi"}])
    model = TextModel(Speaker(len(prompt) - 1, [*ids, *tokenizer.stop_ids]), tokenizer, tokenizer.stop_ids)
    monkeypatch.setattr(Checkpoint, "load", lambda self: model)
    out = Pieces()
    monkeypatch.setattr(sys, "stdout", out)
    assert command.main(["sample", "hi", "--stream", "--model", checkpoint("qwen2"), "--max-new-tokens", "400"]) == 0
    assert "".join(out.pieces) == text + "\n"
    assert not any("\ufffd" in piece for piece in out.pieces)
    assert out.pieces.count("") > 20 and sum(map(bool, out.pieces)) > 50  # characters of several tokens; many pieces
    naive = [tokenizer.decode([i]) for i in ids]  # the mutant: each token as it comes
    assert any("\ufffd" in piece for piece in naive)


@pytest.mark.parametrize("family", [*FAMILIES, "toy"])
def test_a_stream_has_the_tokens_of_generate(family, checkpoint, run):
    model = ["--model", family if family == "toy" else checkpoint(family), "--max-new-tokens", 20, "--seed", 5]
    law = ["--temperature", 0.8, "--top-k", 30]
    assert run("sample", QUESTIONS[0], *model, *law, "--stream") == run("sample", QUESTIONS[0], *model, *law)


# ---------------------------------------------------------------------------------------------------------------------
# Training, and what is neither


TRAIN = {  # GRPO without its KL: to itself it is 0 but for rounding, of which Adam would make steps
    "grpo": ["--rounds", 1, "--prompts", 2, "--group", 2, "--beta", 0, "--grader", "exact", *FEW],
    "sft": ["-n", 3, *FEW],
    "dpo": ["--pairs", 1, *FEW],
    "xpo": ["--rounds", 2, *FEW],
}
SHORTLY = ["--epochs", 1, "--batch", 4, "--lora-rank", 2, "--lora-targets", "q_proj,up_proj"]


@pytest.mark.parametrize("family", FAMILIES)
def test_training_writes_a_checkpoint_that_is_another_model(family, checkpoint, run, tmp_path):
    file, out = tmp_path / "problems.jsonl", tmp_path / "trained"
    file.write_text("\n".join(json.dumps({"prompt": question, "answer": "no such text"}) for question in QUESTIONS))
    before = Transformer.from_pretrained(checkpoint(family)).state_dict()
    for kind, options in TRAIN.items():
        said = run("train", kind, "--model", checkpoint(family), "--file", file, "-o", out / kind, *options, *SHORTLY)
        assert str(out / kind) in said
        after = Transformer.from_pretrained(out / kind).state_dict()
        assert before.keys() == after.keys() and all(weight.isfinite().all() for weight in after.values())
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        right = kind != "grpo"  # a random model gets nothing right, so there is nothing to learn
        assert {name.split(".")[-2] for name in changed} == ({"q_proj", "up_proj"} if right else set())
        assert all(loss == loss for loss in json.loads((out / kind / "log.json").read_text())["loss"])
    assert transformers.AutoModelForCausalLM.from_pretrained(out / "sft").config.model_type == family
    assert objects(run("sample", "--model", out / "sft", QUESTIONS[0], *FEW, "--json"))[0]["responses"]


def test_grpo_learns_from_a_grader(run, task, tmp_path):
    few = ["--rounds", 2, "--prompts", 4, "--group", 4, "--max-new-tokens", 24, "--batch", 16, "--rate", "1e-3"]
    run("train", "grpo", "--file", task, "--format", "plain", "-o", tmp_path / "out", "--no-lora", *few)
    log = json.loads((tmp_path / "out" / "log.json").read_text())
    assert len(log["reward"]) == 2 and 0 < sum(log["reward"]) < 2  # some right, some wrong
    new, old = (Transformer.from_pretrained(folder).state_dict() for folder in (tmp_path / "out", TOY))
    assert any(not torch.equal(new[name], old[name]) for name in new)


def test_a_killed_training_goes_on_to_the_same_weights(run, questions, tmp_path, monkeypatch):
    from reference.training.loop import Trainer

    options = ["train", "sft", "--file", questions, "-n", 2, "--max-new-tokens", 24, "--no-lora", "--epochs", 4,
               "--batch", 1, "--save-every", 2]  # fmt: skip
    run(*options, "-o", tmp_path / "whole")
    update = Trainer.update

    def killed(self, *args):
        if self.step == 5:
            raise KeyboardInterrupt
        return update(self, *args)

    monkeypatch.setattr(Trainer, "update", killed)
    run(*options, "-o", tmp_path / "broken", code=130)
    assert "the same command goes on" in run.err
    monkeypatch.setattr(Trainer, "update", update)
    run(*options, "-o", tmp_path / "broken")
    whole, broken = (tmp_path / name / "model.safetensors" for name in ("whole", "broken"))
    assert whole.read_bytes() == broken.read_bytes() != (TOY / "model.safetensors").read_bytes()
    run(*options[:-1], 3, "-o", tmp_path / "broken", code=2)
    assert "fitting.save_every = 2, and now fitting.save_every is 3" in run.err


def test_svd_trains_the_toy_model(run, tmp_path):
    file = tmp_path / "problems.jsonl"
    file.write_text("\n".join(json.dumps({"question": p.question}) for p in make_problems(12, split="seeds")))
    law = ["--max-new-tokens", 24, "--cascade-temperature", 1, "--cascade-top-p", "none", "--votes", 1]
    how = ["--no-lora", "--epochs", 1, "--batch", 4, "--rate", "1e-3"]
    run("train", "svd", "--file", file, "-o", tmp_path / "out", "-n", 4, *law, *how)
    log = json.loads((tmp_path / "out" / "log.json").read_text())
    assert 0 < log["kept"][0] <= 12 and set(log["rejected"][0]) == {"static", "cycle", "facts", "correct"}
    new, old = (Transformer.from_pretrained(folder).state_dict() for folder in (tmp_path / "out", TOY))
    assert any(not torch.equal(new[name], old[name]) for name in new)


@pytest.mark.parametrize("family", FAMILIES)
def test_svd_says_who_rejected_the_answers_of_a_random_model(family, checkpoint, run, questions, tmp_path):
    few = ["-n", "2", "--max-new-tokens", "4", "--cascade-tokens", "4"]
    run("train", "svd", "--model", checkpoint(family), "--file", questions, "-o", tmp_path / "out", *few, code=2)
    assert "no candidate was accepted: of 4 the static check rejected" in run.err


@pytest.mark.parametrize("family", FAMILIES)
def test_info_counts_what_transformers_counts(family, checkpoint, run):
    said = run("info", "--model", checkpoint(family))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(checkpoint(family))
    assert f"{family}, {theirs.num_parameters():,} parameters, float32" in said
    read = theirs.num_parameters() - theirs.get_input_embeddings().weight.numel()  # the head is not tied
    assert f"one decoding step reads {4 * read:,} bytes of weights" in said
    assert f"one decoding step reads {2 * read:,} bytes" in run(
        "info", "--model", checkpoint(family), "--dtype", "float16"
    )
    assert "'</s>'" in said and "chat templates: default" in said
    unusual = {
        "qwen2": "biases on queries", "qwen3": "RMSNorm on queries and keys", "mistral": "a window of 4096",
        "llama": "320 rows of the embedding", "phi3": "320 rows of the embedding",
    }  # fmt: skip
    assert f"unusual: {unusual[family]}" in said or unusual[family] in said


def test_score_adds_up(run):
    (line,) = objects(run("score", "1 + 1 + 1", "--response", "+ 1 2 + 1 3 = 3 .", "--no-ended", "--json"))
    (again,) = objects(run("score", "1 + 1 + 1", "--response", "+ 1 2 + 1 3 = 3", "--json"))
    assert line["tokens"] == again["tokens"] and line["total"] == pytest.approx(sum(line["logp"]), abs=1e-4)
    assert f"log p {line['total']:.4f}, 9 tokens" in run("score", "1 + 1 + 1", "--response", "+ 1 2 + 1 3 = 3")


def test_the_demo_is_that_of_the_figures(run, monkeypatch):
    called = []

    def call(arguments, cwd, check):
        called.append((arguments[1:], cwd))
        return subprocess.CompletedProcess(arguments, len(called) - 1)

    monkeypatch.setattr(subprocess, "run", call)
    run("demo")
    assert called == [(["-m", "figures", "demo"], ROOT)]
    run("demo", code=2)
    assert "the demo ended with code 1" in run.err


def test_verify_shows_the_votes_on_a_candidate(run):
    right = run("verify", "3 + 4 x 2 + 5 x 7 + 1", "--candidate", "no answer", "--votes", 2)
    assert "static check: failed" in right and "rejected" in right
    said = run("verify", "3 + 4 x 2 + 5 x 7 + 1", "--candidate", "+ 4 7 x 2 3 + 5 8 x 7 1 + 1 2 = 2 .", "--votes", 2)
    assert "static check: passed" in said and "cycle: yes" in said


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_can_be_evaluated_on_every_family(family, checkpoint, run, task, tmp_path):
    for method in METHODS if family == "qwen3" else ("sample", "power", "verify"):
        out = tmp_path / f"{method}.jsonl"
        options = [*METHODS[method], *FEW, "--task", task, "--limit", 2, "--grader", "exact"]
        said = run("evaluate", method, "--model", checkpoint(family), *options, "--out", out)
        assert f"| {method} | 2 |" in said and len(out.read_text().splitlines()) == 3


def test_an_evaluation_is_interrupted_resumed_sharded_and_merged(run, task, tmp_path, monkeypatch):
    options = [
        "evaluate",
        "power",
        "--task",
        task,
        "--max-new-tokens",
        24,
        "--steps",
        3,
        "--batch",
        3,
        "--grader",
        "numeric",
    ]
    whole, broken, merged = (tmp_path / f"{name}.jsonl" for name in ("whole", "broken", "merged"))
    said = run(*options, "--out", whole)
    draw, calls = methods.power_sample, []

    def interrupted(*args, **settings):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw(*args, **settings)

    monkeypatch.setattr(methods, "power_sample", interrupted)
    run(*options, "--out", broken, code=130)
    assert f"6 of 10 problems are in {broken}; the same command goes on" in run.err
    monkeypatch.setattr(methods, "power_sample", draw)
    run(*options, "--steps", 4, "--out", broken, code=2)
    assert "was written with steps = 3" in run.err
    assert run(*options, "--out", broken) == said
    for i in (0, 1):
        run(*options, "--out", tmp_path / f"{i}.jsonl", "--shard", f"{i}/2")
    table = run(
        "report", tmp_path / "0.jsonl", tmp_path / "1.jsonl", "--merge", merged, "--picture", tmp_path / "x.png"
    )
    assert table == said and (tmp_path / "x.png").stat().st_size > 5000
    assert whole.read_bytes() == broken.read_bytes() == merged.read_bytes()
    first = json.loads(whole.read_text().splitlines()[1])
    alone = run("power", *options[4:8], "--json", "--file", task).splitlines()[0]
    assert json.loads(alone)["responses"][0]["tokens"] == first["responses"][0]["tokens"]  # the method is the command


def test_torchrun_gives_each_process_a_shard_and_a_file(run, task, tmp_path, monkeypatch):
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        run("evaluate", "sample", "--task", task, "--batch", 2, "--grader", "numeric", "--out", tmp_path / "x.jsonl")
    shards = [tmp_path / "x.0of2.jsonl", tmp_path / "x.1of2.jsonl"]
    assert [len(shard.read_text().splitlines()) for shard in shards] == [1 + 6, 1 + 4]
    assert "| sample | 10 |" in run("report", *shards)


def test_the_methods_own_options_are_those_of_the_evaluation(run, task, tmp_path):
    out = tmp_path / "out.jsonl"
    greedy = [
        "evaluate",
        "sample",
        "--temperature",
        0,
        "--task",
        task,
        "--grader",
        "numeric",
        "--out",
        tmp_path / "greedy.jsonl",
    ]
    best = [
        "evaluate",
        "best-of-n",
        "-n",
        5,
        "--mu",
        "none",
        "--seed",
        3,
        "--task",
        task,
        "--grader",
        "numeric",
        "--out",
        out,
    ]
    assert "greedy" in run(*greedy) and "best-of-n" in run(*best)
    settings = json.loads(out.read_text().splitlines()[0])["settings"]
    assert (settings["method"], settings["n"], settings["samples"], settings["mu"]) == ("best-of-n", 5, 1, None)
    assert settings["max_new_tokens"] == 64 and settings["model"] == "toy"
    assert (settings["seed"], settings["task_seed"]) == (3, 0)
    assert "lift over greedy" in run("report", out, tmp_path / "greedy.jsonl")


# ---------------------------------------------------------------------------------------------------------------------
# Options


@dataclass(frozen=True)
class Settings(PowerConfig):
    volume: float | None = 2.0  # how loud; 11 at most
    names: tuple[str, ...] = ("a", "b")  # whose
    times: int = 3  # how often


def shout(asked: asking.AskedOften, config: Settings) -> asking.Answers:
    """Say it loudly.

    Example: sharpen shout hello
    Page: power_sampling
    """
    from reference.sampling import generate

    assert (config.volume, config.names, config.times) == (None, ("c", "d"), 4)
    return asked.draw(generate, max_new_tokens=config.max_new_tokens, samples_per_prompt=asked.n)


def test_a_method_is_one_function(run, tmp_path, monkeypatch, task):
    """Nothing else is written: not a list, not a parser, not a help text; and it can be evaluated."""
    for file in ("methods.py", "training.py", "more.py"):
        (tmp_path / file).write_text((listing.FOLDER / file).read_text())
    with open(tmp_path / "methods.py", "a") as more:
        more.write("\n\n" + inspect.getsource(shout))
    monkeypatch.setattr(listing, "FOLDER", tmp_path)
    monkeypatch.setattr(methods, "shout", shout, raising=False)
    assert "shout        Say it loudly." in run("--help")
    options = ["--volume", "none", "--names", "c,d", "--times", "4", "--max-new-tokens", "24"]
    assert run("shout", QUESTIONS[0], *options) == run("sample", QUESTIONS[0], "--max-new-tokens", "24")
    assert "shout" in run("evaluate", "shout", *options, "--task", task, "-o", tmp_path / "out.jsonl")
    with pytest.raises(SystemExit) as done:
        run("shout", "--help")
    assert done.value.code == 0


def every_command():
    return [name for kind in listing.commands().values() for name in kind]


def squeezed(text):
    return "".join(char for char in text if char not in "│─╭╮╰╯ \n")


def settings_in(kind):
    """(class, field) of all settings of a command."""
    for name, hint in typing.get_type_hints(kind).items():
        if is_dataclass(hint):
            yield from settings_in(hint)
        else:
            yield kind, name


def test_help_says_what_the_source_says(capsys):
    """Every field of every dataclass, with its comment; the examples; the pages of the method."""
    for name in every_command():
        with pytest.raises(SystemExit):
            command.main([*name.split(), "--help"])
        said = squeezed(capsys.readouterr().out)
        text, example, pages = read_docstring(load(name).__doc__)
        assert squeezed(text)[:40] in said and squeezed(example) in said and squeezed(pages) in said
        assert example and all(line.startswith("  sharpen ") for line in example.splitlines())
        options = options_of(load(name)) if name != "evaluate" else options_of(load(name), methods.sample)
        for kind, field in settings_in(options):
            if kind is options or (field == "seed" and kind not in (Asked, asking.AskedOften, Task)):
                continue
            if name == "evaluate" and kind is Input and field != "raw":
                assert field == "format" or f"--{field}STR" not in said
                continue
            source = [inspect.getsource(base) for base in kind.__mro__[:-1] if is_dataclass(base)]
            found = [re.search(rf"^    {field}\b.*?# (.*)$", text, re.M) for text in source]
            comment = next((each[1] for each in found if each), "")
            assert squeezed(comment)[:30] in said, (name, field)


def parsed(name, line, room=None):
    return parse(options_of(load(name)), name, "", line.split(), rules(room))


def test_options_are_the_settings():
    for name in every_command():
        if name in ("evaluate", "lm-eval"):
            continue
        needed = "-o x" if name.startswith("train") else "x.jsonl" if name == "report" else ""
        built = vars(parsed(name, needed))
        default = inspect.signature(load(name)).parameters
        for each in {"config", "fitting"} & built.keys():
            own = default[each].default
            assert built[each] == (type(built[each])() if own is inspect.Parameter.empty else own), name
    line = "--alpha 2 --proposal-temperature none --cut record --horizon 9 --no-early-reject"
    config = parsed("power", line, 100).config
    assert config == replace(PowerConfig(), alpha=2.0, cut="record", max_new_tokens=9, early_reject=False)
    assert parsed("power", "", 100).config.max_new_tokens == 100  # what the context leaves
    assert parsed("power", "--max-new-tokens 900", 100).config.max_new_tokens == 900  # not against the user's word
    assert parsed("power", "", 5000).config.max_new_tokens == PowerConfig().max_new_tokens
    config = parsed("verify", "--cascade-tokens 7 --tokens 8 --cascade-top-p none --stages a,b", 100).config
    assert (config.max_new_tokens, config.cascade.max_new_tokens) == (8, 7)
    assert config.cascade.top_p is None and config.cascade.stages == ("a", "b")
    training = parsed("train sft", "-o x --no-lora --lora-rank 3 --lora-targets q_proj,up_proj").training
    assert (training.lora, training.adapters.rank, training.adapters.targets) == (False, 3, ("q_proj", "up_proj"))


def test_the_seed_is_that_of_all_settings(run, task, tmp_path, monkeypatch):
    from reference.cli import training

    seen = {}
    monkeypatch.setattr(
        training, "grpo", lambda *args, **settings: seen.update(config=args[3], fitting=args[4]) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        run("train", "grpo", "--file", task, "-o", tmp_path / "out", "--seed", 7)
    assert (seen["config"].seed, seen["fitting"].seed) == (7, 7)


def test_the_overview_needs_no_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    (tmp_path / "numpy.py").write_text("raise SystemExit('numpy was imported')")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)

    def call(*arguments):
        environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": ""}
        return subprocess.run([sys.executable, "-m", "reference", *arguments], capture_output=True, text=True,
                              env=environment, cwd=tmp_path, timeout=60)  # fmt: skip

    done = call("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and "best-of-n" in done.stdout and "train sft" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5  # seconds, of the processor
    assert call("sing").returncode == 2  # nor does a command that there is not
    assert "torch was imported" in call("sample").stderr  # the poison works


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes: one line, exit 2, no traceback


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sing"], "there is no command 'sing'; there are sample, best-of-n"),
        (["train"], "there is no command 'train'; there are train sft"),
        (["train", "sing"], "there is no command 'train sing'; there are train sft"),
        (["power", "1 + 1", "--alpha", "x"], "--alpha: could not convert string to float: 'x'"),
        (["power", "1 + 1", "--alpha", "-1"], "alpha is -1.0; it must be a positive number"),
        (["power", "1 + 1", "--alhpa", "2"], "Unrecognized options: --alhpa"),
        (["power", "1 + 1", "--cut", "here"], "cut is 'here'; it must be"),
        (["best-of-n", "1 + 1", "--reward", "luck"], "reward is 'luck'; it must be one of log-probability"),
        (["best-of-n", "1 + 1", "--mu", "1", "--reward", "majority"], "the adaptive rule scores by log-probability"),
        (["refine", "1 + 1", "--distiller", "oracle-right", "--drafts", "4"], "needs a grader"),
        (["refine", "solve 1 + 1", "--raw", "--drafts", "4"], "drop --raw"),
        (["sample", "1 + 1", "--temperature", "-1"], "temperature is -1.0"),
        (["sample", "1 + 1", "--stream", "--json"], "drop --json"),
        (["sample", "1 + 1", "--max-new-tokens", "500"], "more than the model's maximum of 128"),
        (["sample", "1 + 1", "--dtype", "int4"], "dtype is 'int4'"),
        (["sample", "1 + 1", "--device", "abacus"], "device 'abacus' cannot be used here"),
        (["sample", "1 + 1", "--model", "./nowhere"], "no such folder: ./nowhere"),
        (["sample", "1 + 1", "--templates", "nowhere:none"], "templates 'nowhere:none' cannot be found"),
        (["sample", "1 + 1", "--file", "x"], "a prompt and --file were given"),
        (["sample", "--file", "nowhere.txt"], "nowhere.txt: No such file"),
        (["sample", "hello"], "has a word that the relay world has not"),
        (["score", "1 + 1"], "prompt 1 has no response"),
        (["train", "sft", "1 + 1"], "Missing from sharpen train sft: -o STR, --out STR"),
        (["train", "sft", "1 + 1", "--out", "/dev/null/x"], "/dev/null"),
        (["info", "--model", "./nowhere"], "no such folder"),
        (["evaluate"], "give a method first, one of sample"),
        (["evaluate", "sing"], "give a method first, one of sample"),
        (["evaluate", "sample", "--out", "x"], "Missing from sharpen evaluate sample: --task"),
        (["evaluate", "sample", "--out", "{tmp}/x", "--task", "nowhere.jsonl"], "nowhere.jsonl: No such file"),
        (["evaluate", "sample", "--out", "{tmp}/x", "--task", "{task}", "--grader", "luck"], "grader is 'luck'"),
        (["evaluate", "sample", "--out", "{tmp}/x", "--task", "{task}", "--grader", "code"], "--allow-code-execution"),
        (["evaluate", "sample", "--out", "{tmp}/x", "--task", "{task}", "--format", "x"], "format is 'x'"),
        (["evaluate", "sample", "--out", "{tmp}/x", "--task", "{task}", "--shard", "2/2"], "shard is '2/2'"),
        (["evaluate", "sample", "--out", "{tmp}/no/x", "--task", "{task}"], "/no is no folder; make it first"),
        (["evaluate", "sample", "--out", "{tmp}/x", "--task", "{task}", "--stream"], "Unrecognized options: --stream"),
        (["report", "nowhere.jsonl"], "nowhere.jsonl"),
        (["report", "{task}"], "relay.jsonl"),
        (["train", "grpo", "1 + 1", "--out", "{tmp}/x"], "prompt 1 needs 'answer'"),
    ],
)
def test_mistakes_are_one_line(arguments, message, run, tmp_path, task):
    run(*(argument.replace("{tmp}", str(tmp_path)).replace("{task}", str(task)) for argument in arguments), code=2)
    assert message in run.err and run.err.count("\n") == 1 and run.err.startswith("sharpen: ")


def test_broken_input_is_named(run, tmp_path, monkeypatch, checkpoint):
    file = tmp_path / "lines.jsonl"
    for text, message in (
        ('{"prompt": "1 + 1"}\n{"answer": 2}\n', "line 2 is not an object with"),
        ('{"prompt": "1 + 1"}\n[3]\n', "line 2 is not an object"),
        ('{"prompt": "1 + 1"}\n{"prompt": 3}\n', "line 2 is not an object with"),
        ('{"prompt": "1 + 1"}\n\n{"prompt"\n', "line 3 is not JSON"),
        ("\n\n", "has no line"),
    ):
        file.write_text(text)
        run("sample", "--file", file, code=2)
        assert message in run.err and str(file) in run.err
    file.write_text('{"prompt": "1 + 1", "responses": [{"text": "2"}]}')
    run("score", "--file", file, code=2)
    assert "prompt 1 has no response" in run.err
    plain = tmp_path / "plain"
    model = TextModel.from_pretrained(checkpoint("llama"))
    model.save_pretrained(plain)
    (plain / "chat_template.jinja").unlink()
    run("sample", "hi", "--model", plain, *FEW, code=2)
    assert "no chat template" in run.err and "--raw" in run.err
    assert run("sample", "hi", "--model", plain, *FEW, "--raw")
    (plain / "tokenizer.json").unlink()
    run("sample", "hi", "--model", plain, "--raw", code=2)
    assert "tokenizer.json does not exist" in run.err
    assert "no tokenizer" in run("info", "--model", plain)


def test_an_output_that_cannot_be_written_is_found_before_the_model_is_loaded(run, tmp_path, monkeypatch):
    def load(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(TextModel, "from_pretrained", load)
    for out in (tmp_path, tmp_path / "nowhere" / "out.jsonl", "/dev/null/out"):
        run("sample", "1 + 1", "--json", "--out", out, code=2)
        assert str(out) in run.err
    (tmp_path / "file").touch()
    run("train", "sft", "1 + 1", "--out", tmp_path / "file", code=2)
    with pytest.raises(AssertionError, match="the model was loaded"):
        command.main(["sample", "1 + 1", "--out", str(tmp_path / "fine")])
    assert not (tmp_path / "fine").exists()


def test_ctrl_c_is_130(run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("reference.sampling.generate", interrupted)
    run("sample", "1 + 1", code=130)
    assert "interrupted" in run.err and "Traceback" not in run.err


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("shapes")

    monkeypatch.setattr("reference.sampling.generate", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        command.main(["sample", "1 + 1"])
    with pytest.raises(ValueError, match="alpha"):
        command.main(["power", "1 + 1", "--alpha", "-1", "--traceback"])


def test_from_a_shell():
    done = subprocess.run(
        [sys.executable, "-m", "reference", "sample", "--temperature", "0"], input=QUESTIONS[0], capture_output=True,
        text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == "+ 4 7 x 2 3 + 5 8 x 7 1 + 1 2 = 2 .\n"


def test_lm_eval_without_its_package():
    """It says what to install; its help needs nothing."""
    hide = (
        "import sys; sys.modules['lm_eval'] = None; from reference.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    for more, code, said in (
        ("--tasks", 2, "pip install 'lm_eval=="),
        ("--help", 0, "--model_args pretrained=smollm2"),
    ):
        done = subprocess.run([sys.executable, "-c", hide, "lm-eval", more], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == code and said in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_a_response_is_cut_before_a_stop_string(run, tmp_path):
    """Tokens up to the stop string's end count; what was drawn is what would have been drawn without it."""
    question = ["sample", "1 + 1 + 1", "--temperature", 0, "--max-new-tokens", 24]
    (whole,) = objects(run(*question, "--json"))[0]["responses"]
    stop = next(word for word in whole["text"].split() if not whole["text"].startswith(word))
    (cut,) = objects(run(*question, "--json", "--stop", f"nothing,{stop}"))[0]["responses"]
    assert cut["text"] == whole["text"].partition(stop)[0] and cut["finished"] and stop not in cut["text"]
    n = len(cut["tokens"])
    assert whole["tokens"][:n] == cut["tokens"] and whole["logp"][:n] == cut["logp"] and n < len(whole["tokens"])
    decode = TextModel.from_pretrained(TOY).tokenizer.decode
    assert stop in decode(cut["tokens"]) and stop not in decode(cut["tokens"][:-1])
    assert run(*question, "--stop", stop).rstrip("\n") == cut["text"]
    (same,) = objects(run(*question, "--json", "--stop", "no such text"))[0]["responses"]
    assert same == whole
    assert asking.Asked(stop=("\\n\\n",)).stop == ("\n\n",)
    assert "drop" in run(*question, "--stop", "x", "--stream", code=2) or "drop --json" in run.err
    run("train", "sft", "1 + 1", "-o", tmp_path / "x", "--stop", "x", code=2)
    assert "training learns whole responses" in run.err and not (tmp_path / "x").exists()


def test_a_bare_stub_has_its_usual_stops(run, tmp_path):
    row = {"task_id": "H/0", "prompt": "1 + 1 + 1", "test": "def check(f): pass", "entry_point": "f"}
    (tmp_path / "task.jsonl").write_text(json.dumps(row))
    common = ["evaluate", "sample", "--task", tmp_path / "task.jsonl", "--format", "humaneval", "--max-new-tokens", 8]
    for more, stops in (((), ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]), (("--stop", "x"), ["x"])):
        out = tmp_path / f"{len(more)}.jsonl"
        run(*common, "--raw", "--allow-code-execution", *more, "-o", out)
        head, line = map(json.loads, out.read_text().splitlines())
        assert head["settings"]["stop"] == stops and head["settings"]["prompt_style"] == "bare"
        assert line["prompt"] == "1 + 1 + 1"


def test_a_chain_is_certified(run):
    """In one step where nothing is left to chance; in none that anybody makes where texts are long and unlikely."""
    told = run("power", QUESTIONS[0], "--max-new-tokens", "18", "--certify").strip()
    assert re.fullmatch(r"prompt 1: [\d,]+ steps a block are enough for a total variation of .05 to p\^4 .*", told)
    lower = int(re.search(r"1: ([\d,]+)", run("power", QUESTIONS[0], "--max-new-tokens", "18", "--alpha", "2",
                                              "--certify"))[1].replace(",", ""))  # fmt: skip
    assert 100 < lower < int(re.search(r"1: ([\d,]+)", told)[1].replace(",", ""))
    assert "nothing can be promised below 1,000,000,000 steps" in run(
        "power", QUESTIONS[0], "--max-new-tokens", "18", "--alpha", "40", "--certify"
    )
    run("power", QUESTIONS[0], "--max-new-tokens", "18", "--alpha", "0.5", "--certify", code=2)
    assert "a finite alpha of at least 1" in run.err
