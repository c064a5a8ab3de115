"""Two processes do what one does: the same samples, losses, weights and files; a killed run goes on.

Run as a script, this file does the work: alone, or under torchrun with gloo on the CPU.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reference.best_of_n import best_of_n
from reference.grpo import GRPOConfig, grpo
from reference.sampling import generate
from reference.training.distributed import processes, sample
from reference.training.loop import FitConfig, fit
from reference.training.lora import LoRAConfig, add_lora, merge_lora
from reference.transformer import Config, Transformer
from tests.assertions import assert_close
from tests.conftest import ROOT

CONFIG = {
    "model_type": "qwen3", "vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "head_dim": 8, "max_position_embeddings": 16, "tie_word_embeddings": True,
}  # fmt: skip
PROMPTS = [[1, 2], [3], [4, 5, 6], [7], [8, 9]]
EXAMPLES = [([1, 2], [3, 4, 0]), ([5], [6, 0]), ([7, 8, 9], [10, 0]), ([2], [0]), ([3, 3], [5, 5, 5, 5, 0])]
FIT = FitConfig(epochs=4, batch=3, rate=1e-2, clip=1.0, save_every=3)  # a step's examples: 2 here, 1 there
DRAW = {"max_new_tokens": 6, "stop_ids": [0]}


class Killed(Exception):
    pass


def new_model(dtype=torch.float32):
    torch.manual_seed(0)
    return Transformer(Config.from_dict(CONFIG)).to(dtype)


def threes(index, samples):
    return (samples.tokens == 3).sum(-1).double()


def kill(run):
    if run.step == 5:
        raise Killed


def weights(model):
    return torch.cat([weight.detach().float().flatten() for weight in model.parameters()])


def work(out: Path) -> None:
    """Everything that a script may do across processes; rank 0 writes what came out."""
    torch.set_num_threads(1)
    with processes() as here:
        state = {name: out / f"{name}.pt" for name in ("killed", "lora", "grpo")}
        model, results = new_model().to(here.device), {"world": here.world}
        for name, drawn in {
            "generate": sample(generate, model, PROMPTS, samples_per_prompt=3, **DRAW),
            "keys": sample(generate, model, PROMPTS[:1], keys=["one"], **DRAW),  # fewer prompts than processes
            "horizons": sample(generate, model, PROMPTS, **{**DRAW, "max_new_tokens": [1, 6, 2, 3, 4]}),
            "best": sample(best_of_n, model, PROMPTS, 4, **DRAW),
        }.items():
            results[name] = [drawn.samples.tokens, drawn.samples.lengths, [vars(cost) for cost in drawn.costs]]
            results[name + " logp"] = drawn.samples.logp
        results["rewards"] = drawn.rewards
        with pytest.raises(ValueError, match="id 99"):  # one process's error is everybody's
            sample(generate, model, [*PROMPTS[:3], [99]], **DRAW)

        tuned = fit(new_model(), EXAMPLES, FIT, trainer=here.trainer)
        results["loss"], results["weights"] = tuned.log["loss"], weights(tuned.model)
        if here.rank == 0:
            tuned.model.save_pretrained(out / "tuned")
        narrow = replace(FIT, batch=4, micro=1)  # one example at a time: one process has nothing to do
        results["narrow"] = fit(new_model(), EXAMPLES, narrow, trainer=here.trainer).log["loss"]

        with pytest.raises(Killed):
            fit(new_model(), EXAMPLES, FIT, trainer=here.trainer, state=state["killed"], after=kill)
        again = fit(new_model(), EXAMPLES, FIT, trainer=here.trainer, state=state["killed"])
        results["resumed"] = torch.equal(weights(again.model), results["weights"]) and again.log == tuned.log

        for name, dtype in (("lora", torch.float32), ("bfloat16", torch.bfloat16)):
            low = fit(add_lora(new_model(dtype), LoRAConfig(rank=3)), EXAMPLES, FIT, trainer=here.trainer)
            results[name + " loss"], results[name] = low.log["loss"], weights(merge_lora(low.model))

        task = GRPOConfig(rounds=2, prompts=3, group=3, passes=2, max_new_tokens=5)
        learned = grpo(
            new_model(), PROMPTS, threes, task, replace(FIT, batch=7, micro=4), stop_ids=[0], trainer=here.trainer
        )
        results["grpo"], results["grpo weights"] = learned.log, weights(learned.model)
        results["cost"] = vars(learned.cost)
        if here.rank == 0:
            torch.save(results, out / "results.pt")


@pytest.mark.distributed
def test_two_processes_are_one(tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder in (alone, together):
        folder.mkdir()
    work(alone)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, __name__, str(together)], check=True, timeout=300, cwd=ROOT, env=environment)
    one, two = (torch.load(folder / "results.pt") for folder in (alone, together))
    assert one["world"] == 1 and two["world"] == 2
    for name in ("generate", "keys", "horizons", "best"):
        for a, b in zip(one[name], two[name]):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else cost(a) == cost(b)
        assert_close(one[name + " logp"], two[name + " logp"])
    assert_close(one["rewards"], two["rewards"])
    for name in ("loss", "narrow", "lora loss", "weights", "lora"):
        assert_close(one[name], two[name])
    assert two["bfloat16 loss"][0] == pytest.approx(one["bfloat16 loss"][0], abs=1e-6)  # then rounding differs
    assert two["bfloat16 loss"] == pytest.approx(one["bfloat16 loss"], abs=1e-2)
    assert one["resumed"] and two["resumed"]
    assert one["grpo"]["reward"] == two["grpo"]["reward"] and one["cost"] == two["cost"]
    for name in ("loss", "k3"):
        assert_close(one["grpo"][name], two["grpo"][name])
    assert_close(one["grpo weights"], two["grpo weights"])
    for folder in (alone, together):
        saved = weights(Transformer.from_pretrained(folder / "tuned"))
        assert_close(saved, one["weights"])
    assert not list(tmp_path.rglob("*.part"))


def cost(rows):
    """What does not depend on who shared a prefill."""
    return [(row["decoded_tokens"], row["prompt_tokens"], row["calls"]) for row in rows]


def test_alone_nothing_changes():
    with processes() as here:
        assert (here.rank, here.world) == (0, 1)
        model = new_model()
        a, b = sample(generate, model, PROMPTS, seed=4, **DRAW), generate(model, PROMPTS, seed=4, **DRAW)
        assert torch.equal(a.samples.tokens, b.samples.tokens)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
