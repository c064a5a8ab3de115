"""Nothing lost, nothing mixed, nothing overwritten: runs that are cut off, and what may go on with them."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading

import pytest

import reference.__main__ as command
from reference.checkpoints import NAMED, write_whole
from reference.text.identity import digest, file_digest, files_digest, first_difference, flat
from reference.training.loop import Trainer
from reference.training.run_folder import RunFolder
from reference.transformer import Transformer
from tests.assertions import assert_close
from tests.conftest import ROOT
from toy.relay import make_problems

TOY = NAMED["toy"][0]
COMMON = ("--max-new-tokens", 24, "--no-lora", "--epochs", 4, "--batch", 1, "--save-every", 1)
KINDS = {
    "sft": ("-n", 2), "dpo": ("--pairs", 1), "xpo": ("--rounds", 2),
    "grpo": ("--rounds", 4, "--prompts", 2, "--group", 2, "--grader", "numeric"),
}  # fmt: skip


@pytest.fixture
def run(capsys):
    def call(*arguments, code=0):
        assert command.main([str(argument) for argument in arguments]) == code, capsys.readouterr().err
        said = capsys.readouterr()
        call.err = said.err
        return said.out

    return call


@pytest.fixture
def problems(tmp_path):
    file = tmp_path / "problems.jsonl"
    rows = [{"id": p.id, "question": p.question, "answer": p.answer} for p in make_problems(4, seed=1000)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture
def model(tmp_path):
    """A copy of the toy model, that may be changed."""
    return shutil.copytree(TOY, tmp_path / "model")


@pytest.fixture
def cut_off(monkeypatch):
    """Training ends after five steps, as if by Ctrl-C, until it is told to go on."""
    update = Trainer.update

    def killed(self, *args):
        if self.step == 5:
            raise KeyboardInterrupt
        return update(self, *args)

    monkeypatch.setattr(Trainer, "update", killed)
    return lambda: monkeypatch.setattr(Trainer, "update", update)


def other_answers(file, model):
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("\n".join(json.dumps({**row, "answer": str(int(row["answer"]) + 1)}) for row in rows))


def other_prompts(file, model):
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("\n".join(json.dumps({**row, "question": "1 + 1 + 1"}) for row in rows))


def other_weights(file, model):
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.01
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def other_stop_ids(file, model):
    (model / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')


CHANGES = [
    ("dpo", ("--beta", 1), None, "config.beta = 0.1, and now config.beta is 1.0"),
    ("sft", ("--rate", "1e-4"), None, "fitting.rate = 0.0003, and now fitting.rate is 0.0001"),
    ("sft", ("--mu", 1), None, "config.mu = null, and now config.mu is 1.0"),
    ("xpo", ("--alpha", 1), None, "config.alpha = 1e-06, and now config.alpha is 1.0"),
    ("grpo", ("--beta", 1), None, "config.beta = 0.04, and now config.beta is 1.0"),
    ("sft", ("--seed", 3), None, "seed = 0, and now"),
    ("sft", ("--dtype", "float64"), None, 'dtype = "float32", and now dtype is "float64"'),
    ("sft", ("--lora",), None, "lora = false, and now lora is true"),
    ("grpo", (), other_answers, "answers = "),
    ("dpo", (), other_prompts, "prompts = "),
    ("grpo", (), other_weights, "weights = "),
    ("sft", (), other_weights, "weights = "),
    ("sft", (), other_stop_ids, "tokenizer and stop ids = "),
]


@pytest.mark.parametrize(("kind", "options", "change", "message"), CHANGES)
def test_another_run_does_not_go_on_with_a_folder(kind, options, change, message, run, problems, model, cut_off):
    out = problems.with_name("out")
    given = ("train", kind, "--model", model, "--file", problems, "-o", out, *COMMON, *KINDS[kind])
    run(*given, code=130)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    if change:
        change(problems, model)
    run(*given, *options, code=2)
    assert message in run.err and str(out) in run.err and run.err.count("\n") == 1
    assert before == {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_command_goes_on_and_keeps_what_was_drawn(kind, run, problems, cut_off, monkeypatch):
    given = ("train", kind, "--file", problems, *COMMON, *KINDS[kind])
    whole, broken = problems.with_name("whole"), problems.with_name("broken")
    run(*given, "-o", broken, code=130)
    cut_off()
    run(*given, "-o", whole)
    if kind in ("sft", "dpo"):
        monkeypatch.setattr("reference.training.distributed.generate", None)
        monkeypatch.setattr("reference.cli.training.sample", None)  # nothing is drawn again
    run(*given, "-o", broken)
    assert (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()
    run(*given, "--dtype", "float64", "-o", whole, code=2)
    assert "dtype = " in run.err


def test_a_training_says_what_it_will_take(run, problems, monkeypatch):
    monkeypatch.setattr("reference.training.run_folder.BLOCK", 2)
    monkeypatch.setattr("reference.training.run_folder.in_blocks.__defaults__", (2, None))
    said = {}
    for kind, options in KINDS.items():
        run("train", kind, "--file", problems, *COMMON, *options, "-o", problems.with_name(kind))
        said[kind] = run.err
    most = {"sft": 4 * 2 * 24, "dpo": 4 * 2 * 24, "xpo": 2 * 2 * 24, "grpo": 4 * 2 * 2 * 24}
    for kind, tokens in most.items():
        assert said[kind].startswith(f"at most {tokens} tokens are drawn\n")
    for kind in ("sft", "dpo"):
        assert re.search(
            r"^[1-9]\d* tokens per second; 2 prompts are left to draw, until \d\d:\d\d on \w+$", said[kind], re.M
        )
        assert re.search(r"^\S+ s a step; \d+ are left, until \d\d:\d\d on \w+$", said[kind], re.M)
    assert re.search(r"^\S+ s for round 1 of 2; ", said["xpo"], re.M)
    assert re.search(r"^\S+ s a step; \d+ are left", said["grpo"], re.M)
    run("train", "sft", "--file", problems, *COMMON, *KINDS["sft"], "-o", problems.with_name("sft"))
    assert "tokens per second" not in run.err  # nothing was drawn


@pytest.mark.distributed
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_what_one_does(kind, problems):
    """Under torchrun: the same draws, in the same files, and the same model up to the order of additions."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    folders = {}
    for name, launch in (("one", ()), ("two", ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"))):
        folders[name] = out = problems.with_name(name)
        command = [sys.executable, *launch, "-m", "reference", "train", kind, "--file", problems, "-o", out]
        given = [str(word) for word in (*command, *COMMON, *KINDS[kind])]
        for _ in range(2):  # the second time finds everything there
            done = subprocess.run(
                given, timeout=200, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
    draws = [sorted(path.name for path in folder.glob("draws/*")) for folder in folders.values()]
    assert draws[0] == draws[1] and (draws[0] or kind == "grpo")
    one, two = (Transformer.from_pretrained(folder).state_dict() for folder in folders.values())
    for name, weight in one.items():
        assert_close(weight, two[name])
    assert not list(problems.parent.rglob("*.part"))


def test_a_folder_with_something_else_is_left_alone(run, problems, model):
    given = ("train", "sft", "--file", problems, *COMMON, *KINDS["sft"])
    before = {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
    for more in ((), ("--model", model)):
        run(*given, "-o", model, *more, code=2)
        assert "is not empty, and what it holds is no run of this command" in run.err
    assert before == {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
    empty = problems.with_name("empty")
    empty.mkdir()
    run(*given, "-o", empty)
    run("train", "dpo", "--file", problems, *COMMON, *KINDS["dpo"], "-o", empty, code=2)
    assert 'command = "train sft", and now command is "train dpo"' in run.err


def test_two_trainings_in_one_folder(run, problems):
    out = problems.with_name("out")
    with RunFolder(out, {"a": 1}):
        run("train", "sft", "--file", problems, "-o", out, *COMMON, code=2)
        assert "is being written by another process" in run.err


@pytest.mark.parametrize("wrong", [("--lora", "--lora-targets", "nothing"), ("--model", "./nowhere"), ("-n", 0)])
def test_a_start_that_fails_leaves_nothing(wrong, run, problems):
    out = problems.with_name("out")
    run("train", "sft", "--file", problems, "-o", out, *COMMON, *wrong, code=2)
    assert not out.exists()


def test_an_ungradable_answer_is_found_before_a_token_is_drawn(run, problems, monkeypatch):
    monkeypatch.setattr("reference.training.loop.generate", None)
    file = problems.with_name("more.jsonl")
    file.write_text(problems.read_text() + "\n" + json.dumps({"question": "1 + 1 + 1", "answer": "two", "id": "z"}))
    run("train", "grpo", "--file", file, "-o", problems.with_name("out"), *COMMON, *KINDS["grpo"], code=2)
    assert "problem 'z': the answer 'two' is no number" in run.err and not problems.with_name("out").exists()


@pytest.mark.parametrize(("change", "message"), [(other_weights, "weights = "), (other_stop_ids, "stop ids = ")])
def test_results_belong_to_one_model(change, message, run, problems, model):
    out = problems.with_name("results.jsonl")
    given = ("evaluate", "sample", "--model", model, "--task", problems, "--grader", "numeric", "--out", out)
    run(*given)
    before = out.read_bytes()
    change(problems, model)
    run(*given, code=2)
    assert message in run.err and out.read_bytes() == before


@pytest.mark.parametrize("value", ["nan", "-1", "inf"])
def test_no_results_are_begun_with_settings_that_are_refused(value, run, problems):
    out = problems.with_name("results.jsonl")
    run("evaluate", "sample", "--temperature", value, "--task", problems, "--out", out, code=2)
    assert "temperature is" in run.err and not out.exists()


# ---------------------------------------------------------------------------------------------------------------------
# Outputs


def test_links_are_followed_and_pipes_written_to(run, tmp_path):
    target, link, pipe = tmp_path / "target.txt", tmp_path / "link.txt", tmp_path / "pipe"
    target.write_text("before")
    link.symlink_to(target)
    run("sample", "1 + 1 + 1", "-o", link)
    assert link.is_symlink() and target.read_text() not in ("", "before")
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    run("sample", "1 + 1 + 1", "-o", pipe)
    reader.join(10)
    assert read == [target.read_text()] and pipe.is_fifo()
    run("sample", "1 + 1 + 1", "-o", "/dev/null")
    assert not os.path.isfile("/dev/null") and not os.path.exists("/dev/null.part")


def test_what_is_read_is_never_written(run, problems, tmp_path):
    first, second, times = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.times.jsonl"))
    shutil.copy(problems, times)
    evaluation = ("evaluate", "sample", "--grader", "numeric", "--max-new-tokens", 4)
    for i, out in enumerate((first, second)):
        run(*evaluation, "--task", problems, "--shard", f"{i}/2", "--batch", 2, "--out", out)
    link = tmp_path / "link"
    link.symlink_to(problems)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for given in (
        ("sample", "--file", problems, "--out", problems), ("sample", "--file", problems, "--out", link),
        ("score", "--file", problems, "--out", problems), (*evaluation, "--task", problems, "--out", problems),
        (*evaluation, "--task", times, "--out", tmp_path / "c.jsonl"), ("report", first, second, "--merge", first),
        ("report", first, "--picture", first),
        ("report", first, "--merge", tmp_path / "x", "--picture", tmp_path / "x"),
    ):  # fmt: skip
        run(*given, code=2)
        assert "read or written by this command already" in run.err and run.err.count("\n") == 1
    run("report", first, second, "--merge", problems, code=2)
    assert "problems.jsonl is no file of results" in run.err
    for given in (
        ("sample", "1 + 1", "--out", first), ("report", first, "--alpaca-eval", second),
    ):  # fmt: skip
        run(*given, code=2)
        assert "holds results of an evaluation" in run.err and run.err.count("\n") == 1
    run("report", first, "--alpaca-eval", tmp_path / "outputs.json", code=2)
    assert "these are 0/2" in run.err
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_dangling_link_stays_one(run, tmp_path):
    target, link = tmp_path / "target.txt", tmp_path / "link"
    link.symlink_to(target)
    run("sample", "1 + 1", "--max-new-tokens", 2, "--out", link)
    assert link.is_symlink() and target.read_text()


def test_a_link_to_nowhere_makes_its_file(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "made")
    write_whole(link, lambda part: part.write_text("x"))
    assert link.is_symlink() and (tmp_path / "made").read_text() == "x"


# ---------------------------------------------------------------------------------------------------------------------
# Text


@pytest.mark.parametrize("blank", ["\u2028", "\x85", "\x0c", "\x0b", "\x1c"])
def test_only_a_newline_ends_a_line(blank, run, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(f"1 + 1{blank}+ 1\n2 + 2 + 2\r\n", encoding="utf-8")
    run("sample", "--file", file, "--json", "--raw", code=2 if blank == "\u2028" else 0) if False else None
    from reference.cli.asking import Input

    assert [line["prompt"] for line in Input(file=str(file)).lines()] == [f"1 + 1{blank}+ 1", "2 + 2 + 2"]


def test_json_is_known_by_its_look(run, tmp_path, monkeypatch):
    from reference.cli.asking import Input

    text = ' \n  { "prompt": "1 + 1 + 1"}\n'
    for name, content in (("a.JSONL", text), ("b.jsonl", "\ufeff" + text.strip())):
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert Input(file=str(tmp_path / name)).lines() == [{"prompt": "1 + 1 + 1"}]
    marked = tmp_path / "marked.txt"
    marked.write_text("\ufeff1 + 1 + 1\n", encoding="utf-8")
    assert Input(file=str(marked)).lines() == [{"prompt": "1 + 1 + 1"}]


def test_json_survives_a_locale_without_utf_8():
    environment = {**os.environ, "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "reference", "sample", "--raw", "solve 1 + 1 :", "--json", "--max-new-tokens", "4"],
        capture_output=True, cwd=ROOT, env=environment, check=True, timeout=60,
    )  # fmt: skip
    assert json.loads(done.stdout)["prompt"] == "solve 1 + 1 :" and done.stdout.isascii()


# ---------------------------------------------------------------------------------------------------------------------
# Identity


def test_every_field_of_every_setting_is_part_of_the_identity():
    from dataclasses import fields, is_dataclass

    from reference.grpo import GRPOConfig
    from reference.self_verified_distillation import SVDConfig
    from reference.training.loop import FitConfig

    for config in (GRPOConfig(), SVDConfig(), FitConfig()):
        known = flat(config)
        for field in fields(config):
            value = getattr(config, field.name)
            names = [field.name] if not is_dataclass(value) else [f"{field.name}.{each.name}" for each in fields(value)]
            assert {*names} <= known.keys()
    assert flat(FitConfig(clip=float("inf")))["clip"] == "inf" and json.dumps(flat(SVDConfig()))


def test_differences_are_named():
    assert first_difference({"a": 1, "b": None}, {"a": 1, "b": None}) is None
    assert first_difference({"a": 1}, {"a": 1.5}) == "a = 1, and now a is 1.5"
    assert first_difference({"a": 1, "old": 2}, {"a": 1}) == "old = 2, and now old is null"
    assert digest(["a", "b"]) != digest(["ab"]) == digest(["ab"])


def test_a_changed_template_set_is_another_run(run, problems, tmp_path, monkeypatch):
    module = tmp_path / "own_templates.py"
    module.write_text("from toy.relay import TEMPLATES\n")
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "results.jsonl"
    given = ("evaluate", "sample", "--task", problems, "--grader", "numeric", "--max-new-tokens", 4, "--out", out)
    run(*given, "--templates", "own_templates:TEMPLATES")
    module.write_text("from toy.relay import TEMPLATES  # other words\n")
    run(*given, "--templates", "own_templates:TEMPLATES", code=2)
    assert "the templates' module = " in run.err


def test_large_files_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr("reference.text.identity.CACHE", tmp_path / "cache" / "digests.json")
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x" * (1 << 20))
    first = file_digest(file)
    monkeypatch.setattr("hashlib.file_digest", None)
    assert file_digest(file) == first
    monkeypatch.undo()
    monkeypatch.setattr("reference.text.identity.CACHE", tmp_path / "cache" / "digests.json")
    times = os.stat(file)
    with open(file, "r+b") as same:  # in place, of the same size, and with the old time put back
        same.write(b"y" * (1 << 20))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file_digest(file) != first
    (tmp_path / "small.json").write_text("{}")
    assert files_digest(tmp_path, ["model.safetensors"]) != files_digest(tmp_path, ["small.json"])


@pytest.mark.parametrize("broken", ["[]", "3", "{", '{"a": 3}', "[[1, 2]]"])
def test_a_broken_memory_of_digests_is_made_anew(broken, tmp_path, monkeypatch):
    monkeypatch.setattr("reference.text.identity.CACHE", tmp_path / "digests.json")
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x" * (1 << 20))
    (tmp_path / "digests.json").write_text(broken.replace("a", str(file)))
    first = file_digest(file)
    monkeypatch.setattr("hashlib.file_digest", None)
    assert file_digest(file) == first


def test_only_what_is_read_belongs_to_a_model(run, problems, model):
    """A stray file changes nothing; a shard that the index names does."""
    arguments = ("evaluate", "sample", "--max-new-tokens", 4, "--task", problems, "--model", model)
    run(*arguments, "-o", problems.parent / "a.jsonl", "--batch", 2)
    for name in ("notes.json", "model.old.safetensors", "trainer_state.json"):
        (model / name).write_text("{}")
    shutil.copytree(model, problems.parent / "copy")
    run(*arguments, "-o", problems.parent / "a.jsonl", "--batch", 2)
    run(*arguments[:-1], problems.parent / "copy", "-o", problems.parent / "a.jsonl", "--batch", 2)


def test_a_resumed_grpo_knows_what_all_of_it_cost(run, problems, cut_off, monkeypatch):
    arguments = ("train", "grpo", *KINDS["grpo"], *COMMON, "--file", problems)
    run(*arguments, "-o", problems.parent / "cut", code=130)
    cut_off()
    run(*arguments, "-o", problems.parent / "cut")
    run(*arguments, "-o", problems.parent / "whole")
    costs = [json.loads((problems.parent / name / "log.json").read_text())["cost"] for name in ("cut", "whole")]
    assert costs[0] == costs[1]
    run(*arguments, "-o", problems.parent / "whole")  # nothing is left to do
    assert json.loads((problems.parent / "whole" / "log.json").read_text())["cost"] == costs[1]


def test_how_a_program_begins_belongs_to_a_run_of_grpo(run, problems, cut_off):
    arguments = ("train", "grpo", *KINDS["grpo"], *COMMON, "--file", problems, "-o", problems.parent / "out")
    run(*arguments, code=130)
    rows = [json.loads(line) for line in problems.read_text().splitlines()]
    problems.write_text("\n".join(json.dumps({**row, "begin": "def f():"}) for row in rows))
    run(*arguments, code=2)
    assert "answers = " in run.err


@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04"])
def test_broken_draws_are_named(content, run, problems, cut_off):
    arguments = ("train", "sft", *KINDS["sft"], *COMMON, "--file", problems, "-o", problems.parent / "out")
    run(*arguments, code=130)
    (draws,) = (problems.parent / "out" / "draws").iterdir()
    draws.write_bytes(content)
    run(*arguments, code=2)
    assert f"{draws} holds no draws" in run.err and "remove it, and they are drawn again" in run.err
    draws.unlink()
    cut_off()
    run(*arguments, "--slots", 3)  # how many at a time does not matter
    assert len(list(draws.parent.iterdir())) == 1


def test_a_failed_start_leaves_no_folder_of_its_path(run, problems, tmp_path):
    (tmp_path / "there").mkdir()
    run("train", "sft", "--file", problems, "-o", tmp_path / "there" / "a" / "b", "--model", tmp_path, code=2)
    assert list((tmp_path / "there").iterdir()) == []
    with pytest.raises(KeyError), RunFolder(tmp_path / "there" / "a" / "b", {}):
        raise KeyError
    assert list((tmp_path / "there").iterdir()) == []


def test_a_record_that_cannot_be_read_locks_nobody_out(tmp_path):
    (tmp_path / "training.json").write_text("[")
    for _ in range(2):  # the second is not told that the first still writes
        with pytest.raises(ValueError, match="is no record of a run"), RunFolder(tmp_path, {}):
            pass


def test_parts_are_ones_own(tmp_path):
    """Two writers of one file write into files of their own, and a user's x.part stays."""
    (tmp_path / "x.part").write_text("a user's")
    names = []

    def first(part):
        names.append(part.name)
        part.write_text("first")
        subprocess.run([sys.executable, "-c", f"""
from pathlib import Path
from reference.checkpoints import write_whole
write_whole(Path({str(tmp_path / "x")!r}), lambda part: part.write_text("second"))
"""], check=True, cwd=ROOT)  # fmt: skip

    write_whole(tmp_path / "x", first)
    assert (tmp_path / "x").read_text() == "first" and (tmp_path / "x.part").read_text() == "a user's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "x.part"] and names[0].endswith(".part")


def test_what_is_written_can_be_read_by_whom_the_umask_lets(tmp_path):
    def private(part):
        part.write_text("x")
        part.chmod(0o600)  # as safetensors does

    old = os.umask(0o022)
    try:
        write_whole(tmp_path / "x", private)
        assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644
        (tmp_path / "x").chmod(0o640)
        write_whole(tmp_path / "x", private)
        assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(old)


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams(closed, problems, tmp_path):
    shell = (
        f"{sys.executable} -m reference evaluate sample --max-new-tokens 4 --task {problems} -o {tmp_path}/a {closed}"
    )
    done = subprocess.run(shell, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr + done.stdout
    assert len((tmp_path / "a").read_text().splitlines()) == 5


def test_grpo_grades_each_problem_as_evaluate_does(run, tmp_path, monkeypatch):
    """By its own grader, and with what it is tested on."""
    from reference.cli import training
    from reference.evaluation.tasks import Task

    asked = []

    def spy(*_):
        return lambda problem, text: asked.append(problem)

    def stop(*_, **__):
        raise ValueError("enough")

    monkeypatch.setattr(training, "make_grader", spy)
    monkeypatch.setattr(training.Training, "run", stop)
    tests = '[{"input": "1", "output": "1"}]'
    rows = {"hle": {"question": "1 + 1", "answer_type": "multipleChoice", "answer": "B"},
            "livecodebench": {"question_content": "1 + 1", "public_test_cases": tests}}  # fmt: skip
    for format, row in rows.items():
        (tmp_path / "task.jsonl").write_text(json.dumps({**row, "id": "a"}))
        asked.clear()
        run("train", "grpo", "--file", tmp_path / "task.jsonl", "--format", format, "-o", tmp_path / "x", code=2)
        assert asked == list(Task(tmp_path / "task.jsonl", format)) and (asked[0].grader or asked[0].stdin)


def test_what_judges_nothing_is_no_reward(run, tmp_path):
    (tmp_path / "task.jsonl").write_text('{"instruction": "1 + 1"}')
    arguments = ("train", "grpo", "--file", tmp_path / "task.jsonl", "--format", "alpacaeval", "-o", tmp_path / "x")
    run(*arguments, code=2)
    assert "grader 'none' judges nothing" in run.err and not (tmp_path / "x").exists()


def test_only_parts_of_our_own_are_removed(tmp_path):
    with RunFolder(tmp_path / "run", {"a": 1}) as folder:
        (folder / "weights").write_text("")
    for name in (".weights.12345.part", ".mine.part"):
        (tmp_path / "run" / name).write_text("")
    with RunFolder(tmp_path / "run", {"a": 1}):
        assert sorted(path.name for path in folder.iterdir()) == [".mine.part", "training.json", "weights"]
