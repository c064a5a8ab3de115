"""No algorithm lets a tensor of the CPU meet one of the model's device, and none computes anything else there.

Every algorithm runs twice, with its model on the CPU and on a pretended second device (`tests/elsewhere.py`); results
are equal to the bit. On a real GPU: the tests marked `gpu`.
"""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from reference.best_of_n import adaptive_best_of_n, best_of_n
from reference.cascade import CascadeConfig, verify
from reference.grpo import GRPOConfig, grpo
from reference.interface import Samples
from reference.operator_rl import OperatorConfig, operator_rl
from reference.parallel_distill_refine import PDRConfig, parallel_distill_refine
from reference.rlhf_sharpening import RLHFConfig, dpo_sharpen, xpo
from reference.sampling import generate, score
from reference.self_reward import length_normalized, model_as_judge
from reference.self_verified_distillation import SVDConfig, self_verified_distillation
from reference.sequential_refinement import independent_drafts, long_chain_of_thought, sequential_refinement
from reference.sft_sharpening import SFTConfig, sft_sharpen
from reference.text.text_model import TextModel
from reference.training.loop import Batches, FitConfig, fit
from reference.training.lora import LoRAConfig, add_lora
from tests.assertions import assert_same_samples
from tests.elsewhere import DEVICE, Elsewhere, elsewhere, here, move
from tests.reference.engine.test_captured_step import PROMPTS, RUNS, SETTINGS, random_model
from toy.pretrain import CHECKPOINT
from toy.relay import make_problems

QUESTIONS = [problem.question for problem in make_problems(4, seed=5)]
FIT = FitConfig(epochs=2, batch=4, rate=1e-3)
PDR = PDRConfig((2, 1), max_new_tokens=20, workspace=8)
CASCADE = CascadeConfig(votes=2, max_new_tokens=30)
SVD = SVDConfig(n=4, max_new_tokens=24, temperature=1.0, cascade=CASCADE)


class Speaker:
    """The toy model, and how the runs below ask it."""

    def __init__(self):
        self.text = TextModel.from_pretrained(CHECKPOINT)
        self.model = self.text.model
        self.prompts = [self.text.prompt("author", question=question) for question in QUESTIONS]
        self.horizon = {"max_new_tokens": 12, "stop_ids": self.text.stop_ids}
        self.stop = {"stop_ids": self.text.stop_ids}

    def weights(self, model=None) -> torch.Tensor:
        return torch.cat([here(weight).flatten() for weight in (model or self.model).parameters()])

    def learned(self, model) -> torch.Tensor:
        return self.weights(fit(model, [(prompt, [5, 6, 7]) for prompt in self.prompts], FIT).model)


def with_adapters(s: Speaker):
    add_lora(s.model, LoRAConfig(rank=2))
    return s.learned(s.model)


def reinforced(s: Speaker):
    config = GRPOConfig(rounds=2, prompts=2, group=4, max_new_tokens=12)
    grpo(s.model, s.prompts, lambda _, samples: here(samples.lengths).double(), config, FIT, **s.stop)
    return s.weights()


def operated(s: Speaker):
    config = OperatorConfig(rounds=1, prompts=2, group=4, pdr=PDR)
    operator_rl(s.text, QUESTIONS, lambda _, text: len(text) % 2 == 0, config, FIT)
    return s.weights()


ON_THE_TOY_MODEL = {
    "score": lambda s: torch.cat(score(s.model, s.prompts, [[5, 6, 7]] * 4)),
    "best of n": lambda s: best_of_n(s.model, s.prompts, n=4, reward=length_normalized, **s.horizon).samples.tokens,
    "adaptive best of n": lambda s: (
        adaptive_best_of_n(s.model, s.prompts, mu=1.0, max_draws=5, **s.horizon).samples.tokens
    ),
    "model as judge": lambda s: model_as_judge(s.text, QUESTIONS, CASCADE)(
        generate(s.model, s.prompts, samples_per_prompt=2, **s.horizon).samples
    ),
    "parallel-distill-refine": lambda s: parallel_distill_refine(s.text, QUESTIONS, PDR).texts,
    "shared top k": lambda s: parallel_distill_refine(
        s.text, QUESTIONS, replace(PDR, distiller="shared-top-k", k=1)
    ).texts,
    "random k": lambda s: parallel_distill_refine(s.text, QUESTIONS, replace(PDR, distiller="random-k", k=1)).texts,
    "sequential refinement": lambda s: sequential_refinement(s.text, QUESTIONS, 2, PDR).texts,
    "long chain of thought": lambda s: long_chain_of_thought(s.text, QUESTIONS, [40] * 4).texts,
    "majority vote": lambda s: independent_drafts(s.text, QUESTIONS, 3, PDR).texts,
    "the likeliest draft": lambda s: independent_drafts(s.text, QUESTIONS, 3, PDR, choice="log-probability").texts,
    "cascade": lambda s: verify(s.text, QUESTIONS, [["= 3 .", "= 4 ."]] * 4, CASCADE).accepted(),
    "fit": lambda s: s.learned(s.model),
    "adapters": with_adapters,
    "SFT": lambda s: s.weights(
        sft_sharpen(
            s.model, s.model, s.prompts, SFTConfig(3, max_new_tokens=12), minimise=Batches(FIT), **s.stop
        ).policy
    ),
    "DPO": lambda s: s.weights(
        dpo_sharpen(
            s.model, s.model, s.prompts, RLHFConfig(max_new_tokens=12), minimise=Batches(FIT), **s.stop
        ).policy
    ),
    "XPO": lambda s: s.weights(
        xpo(
            s.model, s.model, s.prompts, RLHFConfig(max_new_tokens=12, rounds=2), minimise=Batches(FIT),
            objective=lambda policy: 0.0, **s.stop,
        ).last
    ),
    "GRPO": reinforced,
    "operator-consistent RL": operated,
    "self-verified distillation": lambda s: s.weights(
        self_verified_distillation(s.text, QUESTIONS, SVD, FIT)[0].student.model
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """What would ask the pretended device for its autocast."""
    monkeypatch.setattr(FitConfig, "autocast", lambda config, device: nullcontext())


@pytest.mark.parametrize("run", ON_THE_TOY_MODEL.values(), ids=ON_THE_TOY_MODEL)
def test_an_algorithm_is_the_same_on_another_device(run):
    wanted, speaker = run(Speaker()), Speaker()
    move(speaker.model)
    with elsewhere():
        found = run(speaker)
    assert torch.equal(here(found), wanted) if isinstance(wanted, torch.Tensor) else found == wanted


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_a_sampler_is_the_same_on_another_device(run):
    wanted, model = run(random_model(), PROMPTS, SETTINGS), move(random_model())
    with elsewhere():
        found = run(model, PROMPTS, SETTINGS)
    assert isinstance(found.samples.tokens, Elsewhere) and found.costs == wanted.costs
    assert_same_samples(Samples(*map(here, found.samples.tensors())), wanted.samples)


def test_a_tensor_left_on_the_cpu_is_found_out(monkeypatch):
    """Mutant: results are gathered on the CPU."""
    empty = Samples.empty.__func__
    monkeypatch.setattr(Samples, "empty", classmethod(lambda cls, p, n, h, device: empty(cls, p, n, h, "cpu")))
    model = move(random_model())
    with elsewhere(), pytest.raises(RuntimeError, match="a tensor of"):
        RUNS["generate"](model, PROMPTS, SETTINGS)


def test_what_two_devices_may_share():
    with elsewhere():
        there, on_cpu = torch.arange(3.0, device=DEVICE), torch.arange(3)
        assert here(there[on_cpu.flip(0)] + torch.tensor(1.0)).tolist() == [3, 2, 1]  # indices, and single numbers
        assert here(on_cpu.to(DEVICE) + there).tolist() == [0, 2, 4] and there.cpu().tolist() == [0, 1, 2]
        for forbidden in (lambda: there + on_cpu, lambda: torch.stack((there, on_cpu)), there.numpy):
            with pytest.raises((RuntimeError, TypeError)):
                forbidden()
