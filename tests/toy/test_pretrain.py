"""Pre-training: batches by (seed, step), resuming, checkpoints, and the shipped model with its card."""

import numpy as np
import pytest
import torch

from reference.text.text_model import TextModel
from reference.transformer import Transformer
from toy import relay
from toy.abilities import rows_of
from toy.pretrain import CHECKPOINT, Settings, make_batches, train
from toy.relay import NOTHING, World

WORLD = World()
TINY = Settings(steps=6, warmup=2, hidden=16, layers=1, heads=2, mlp=16, early=0.3, middle=0.5,
                texts=((("solve", 4), ("check", 3)), (("distill", 2),)),
                later=((("solve", 4),), (("distill", 3),)), turn=0.8)  # fmt: skip


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
