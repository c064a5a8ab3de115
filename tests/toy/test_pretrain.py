"""Pre-training: batches by (seed, step), resuming, checkpoints, and the shipped model with its card."""

import hashlib
import json

import numpy as np
import pytest
import torch

from reference.text_model import TextModel
from reference.transformer import Transformer
from toy import relay
from toy.pretrain import CHECKPOINT, CLASSES, Settings, by_class, make_batches, rows_of, train
from toy.relay import NOTHING, World

WORLD = World()
TINY = Settings(steps=6, warmup=2, hidden=16, layers=1, heads=2, mlp=16, early=0.3, middle=0.5,
                texts=((("solve", 4), ("check", 3)), (("distill", 2),)))  # fmt: skip


class Killed(Exception):
    pass


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def test_batches_are_a_function_of_seed_and_step():
    for (a, b), (c, d) in zip(make_batches(WORLD, TINY, 5), make_batches(WORLD, TINY, 5)):
        assert torch.equal(a, c) and torch.equal(b, d)
    assert not torch.equal(make_batches(WORLD, TINY, 5)[0][0], make_batches(WORLD, TINY, 6)[0][0])


def test_only_responses_are_learned():
    for tokens, targets in make_batches(WORLD, Settings(), 0):
        for text, target in zip(tokens.tolist(), targets.tolist()):
            at = [i for i, t in enumerate(target) if t != -100]
            assert at == list(range(at[0], at[-1] + 1)) and target[at[-1]] == WORLD.id(".")
            assert text[at[0]] == WORLD.id(":")  # the first is predicted at the prompt's end
            assert text[at[0] + 1 : at[-1] + 1] == target[at[0] : at[-1]]  # and each from the ones before it
            assert text.count(WORLD.id(":")) == 1 and set(text[at[-1] + 2 :]) <= {0}


def test_corpus_has_no_question_of_another_split():
    tokens, _ = make_batches(WORLD, Settings(), 0)[0]
    solved = tokens[tokens[:, 0] == WORLD.id("solve"), 1:12].numpy()
    assert len(solved) > 20 and np.isin(relay.split_of(solved), relay.SPLITS["pretrain"]).all()


def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path):
    whole = train(WORLD, TINY, tmp_path / "a", tmp_path / "a.pt", report_every=5, log=lambda line: None)

    def kill(line):
        if line.startswith("step 5/"):
            raise Killed

    with pytest.raises(Killed):
        train(WORLD, TINY, tmp_path / "b", tmp_path / "b.pt", save_every=2, report_every=5, log=kill)
    assert torch.load(tmp_path / "b.pt", weights_only=True)["step"] == 4
    lines: list[str] = []
    resumed = train(WORLD, TINY, tmp_path / "b", tmp_path / "b.pt", save_every=2, report_every=5, log=lines.append)
    assert lines[0] == "going on from step 4" and len(lines) == 3
    assert torch.equal(weights(whole), weights(resumed))
    for part in ("early", "middle", "."):
        loaded = (Transformer.from_pretrained(tmp_path / run / part) for run in "ab")
        assert torch.equal(*map(weights, loaded))
    assert torch.equal(weights(Transformer.from_pretrained(tmp_path / "a")), weights(whole))
    assert not list(tmp_path.rglob("*.part"))

    with pytest.raises(ValueError, match="belongs to another run"):
        train(World(p=13), TINY, tmp_path / "b", tmp_path / "b.pt")
    stopped = train(WORLD, TINY, tmp_path / "c", tmp_path / "c.pt", seconds=0, log=lambda line: None)
    assert torch.load(tmp_path / "c.pt", weights_only=True)["step"] == 0
    assert not torch.equal(weights(stopped), weights(whole))


def test_accuracy_by_class():
    kinds = np.array(["plain", "plain", "hard", "tempting"])
    rates = by_class(np.array([[1, 0], [1, 1], [0, 0], [0, 1]], bool), kinds)
    assert [rates[kind][0] for kind in CLASSES] == [0.5, 0.75, 0.5, 0.0]
    assert all(low <= rate <= high for rate, low, high in rates.values())


# ---------------------------------------------------------------------------------------------------------------------
# The shipped checkpoint

shipped = pytest.mark.skipif(not (CHECKPOINT / "model.safetensors").exists(), reason="no checkpoint: run `make toy`")


@shipped
def test_shipped_checkpoint_is_small_and_speaks():
    sizes = {part: (CHECKPOINT / part / "model.safetensors").stat().st_size for part in (".", "early", "middle")}
    assert sizes["."] <= 2e6 and sizes["early"] + sizes["middle"] <= 2e6
    speaker = TextModel.from_pretrained(CHECKPOINT)
    assert speaker.stop_ids == {WORLD.id(".")} and speaker.templates.name == "relay"
    problems = relay.make_problems(100)
    _, out = speaker.ask("author", [{"question": p.question} for p in problems], max_new_tokens=18, temperature=0)
    assert bool(out.samples.finished.all())
    answers = relay.answers_of(WORLD, rows_of(out.samples)[:, 0]).astype(str)
    plain = [a == p.answer for a, p in zip(answers, problems) if p.kind == "plain"]
    assert np.mean(plain) > 0.8  # 0.95 and more, on 2000; about 27 problems here
    assert (rows_of(out.samples) != NOTHING).any()


@shipped
def test_transformers_reads_the_shipped_checkpoint():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(CHECKPOINT, attn_implementation="eager")
    ours, tokenizer = Transformer.from_pretrained(CHECKPOINT), AutoTokenizer.from_pretrained(CHECKPOINT)
    for tokens, _ in make_batches(WORLD, Settings(), 0):
        with torch.no_grad():
            assert (theirs(tokens).logits - ours(tokens)).abs().max() < 1e-5
    text = "distill 3 + 4 x 2 + 5 x 7 + 1 | 7 3 ? ? 2 | 7 3 8 1 10 : 7 3 8 1 ? ."
    assert tokenizer(text)["input_ids"] == WORLD.encode(text) and tokenizer.decode(WORLD.encode(text)) == text
    assert theirs.generation_config.eos_token_id == WORLD.id(".")


@pytest.fixture(scope="module")
def abilities() -> dict:
    file = CHECKPOINT / "abilities.json"
    if not file.exists():
        pytest.skip("no measured abilities: run `python -m toy.pretrain --card`")
    return json.loads(file.read_text())


@shipped
def test_measured_abilities_are_of_the_shipped_weights(abilities):
    assert abilities["weights"] == hashlib.sha256((CHECKPOINT / "model.safetensors").read_bytes()).hexdigest()
    assert abilities["n"] >= 2000
    for table in (abilities["profile"], abilities["roles"]):
        for row in table.values():
            assert list(row) == list(CLASSES) and all(low <= rate <= high for rate, low, high in row.values())


@shipped
def test_profile_is_the_demonstrators(abilities):
    """Issue 3's bars. Within 0.07 of the authors' own law at temperature 1; elsewhere the three lessons."""
    rate = {way: {kind: cell[0] for kind, cell in row.items()} for way, row in abilities["profile"].items()}
    law = abilities["demonstrators"]["temperature 1"]
    one, cold, greedy = rate["temperature 1"], rate["temperature 1/4"], rate["greedy"]
    best = rate["best-of-32 by log-probability"]
    for kind in CLASSES:
        assert abs(one[kind] - law[kind][0]) <= 0.07, kind
    assert min(cold["plain"], greedy["plain"]) >= 0.9
    assert max(cold["tempting"], greedy["tempting"]) < one["tempting"] and best["tempting"] >= 0.85
    assert best["hard"] < one["hard"] and rate["pass@16"]["hard"] >= 0.85
    assert best["all"] >= cold["all"] + 0.15


@shipped
def test_reviewers_tell_errors_apart(abilities):
    stages = abilities["stages"]
    assert all(cell[0] >= 0.8 for cell in stages["right"].values())
    for error in ("slip", "misread", "final line", "shortcut"):
        assert min(cell[0] for cell in stages[error].values()) < 0.15, error


@shipped
def test_refiners_build_on_workspaces(abilities):
    roles = {name: row["all"] for name, row in abilities["roles"].items()}
    solve, empty = abilities["roles"]["solve"]["all"], roles["refine, empty workspace"]
    error = np.hypot(solve[2] - solve[1], empty[2] - empty[1]) / (2 * 1.96)
    assert abs(solve[0] - empty[0]) <= 3 * error
    assert roles["refine, true workspace"][0] >= 0.8
    assert roles["parallel-distill-refine (4, 1)"][0] >= abilities["profile"]["temperature 1"]["all"][0] + 0.15
