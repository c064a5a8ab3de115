"""Training: the mask, the order, one step against the formulas, accumulation, LoRA, resuming, and what goes wrong."""

import errno
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import reference.training.loop as training
from reference.rlhf_sharpening import RLHFConfig, dpo_sharpen, xpo
from reference.sampling import generate, score
from reference.self_reward import log_probability
from reference.sft_sharpening import Loss as DataLoss
from reference.sft_sharpening import SFTConfig, score_responses, sft_loss, sft_sharpen
from reference.text.text_model import TextModel
from reference.training.loop import (
    Batches,
    Completions,
    FitConfig,
    Trainer,
    batch_rows,
    fit,
    response_logp,
    schedule,
    train,
)
from reference.training.lora import LoRAConfig, LoRALinear, add_lora, lora_layers, merge_lora, without_lora
from reference.transformer import Config, Transformer
from tests.assertions import assert_close
from toy.pretrain import CHECKPOINT
from toy.tabular import TabularLM

SMALL = {
    "model_type": "qwen2", "vocab_size": 23, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 24,
}  # fmt: skip
EXAMPLES = [
    ([1, 2, 3], [4, 5, 0]), ([7], [8, 0]), ([2, 9, 9, 1], [3, 3, 3, 3, 0]), ([5, 6], [0]), ([4], [4, 4, 0]),
    ([10, 11], [12, 13, 14, 15, 16, 17, 0]), ([3, 2, 1], [1, 0]),
]  # fmt: skip
CONFIG = FitConfig(epochs=2, batch=3, rate=1e-2, warmup=1, schedule="cosine", clip=1.0, save_every=2, seed=5)


class Killed(Exception):
    pass


def new_model(seed: int = 0, **changes) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(Config.from_dict({**SMALL, **changes}))
    for weight in model.parameters():
        weight.data.add_(0.1 * torch.randn_like(weight))  # so that the logits say something
    return model.requires_grad_(False)


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


# ---------------------------------------------------------------------------------------------------------------------
# Data


@pytest.mark.parametrize("model", [new_model(), TabularLM.random(23, 0, seed=1)], ids=["transformer", "table"])
def test_response_logp_is_score(model):
    """Prompts and responses of many lengths: each token's log-probability is that of `score`, and 0 in the padding."""
    if isinstance(model, TabularLM):
        model.max_length = None
    prompts, responses = (list(map(torch.tensor, part)) for part in zip(*EXAMPLES))
    logp, mask = response_logp(model, prompts, responses)
    assert mask.sum(1).tolist() == [len(response) for response in responses]
    assert logp.shape == mask.shape and not logp[~mask].any()
    for row, kept, exact in zip(logp, mask, score(model, prompts, responses)):
        assert_close(row[kept], exact)


def test_only_responses_are_learned():
    """The gradient of the loss in the logits is softmax − onehot where a response token is predicted, and else 0."""
    model, seen = new_model(), []

    class Spy:
        device = model.device

        def __call__(self, tokens):
            seen.append(model(tokens).requires_grad_())
            return seen[-1]

    data = Completions(model, EXAMPLES)
    data(Spy(), torch.arange(len(data))).backward()
    logits = seen[0]
    expected = torch.zeros_like(logits)
    for row, (prompt, response) in enumerate(EXAMPLES):
        for t, token in enumerate(response):
            at = len(prompt) - 1 + t
            expected[row, at] = logits[row, at].detach().softmax(-1) - F.one_hot(torch.tensor(token), 23)
    torch.testing.assert_close(logits.grad, expected, atol=1e-6, rtol=0)
    assert data.size(torch.tensor([0, 3])) == 4


def test_order_is_a_function_of_seed_and_step():
    n, batch = 7, 3
    rows = torch.cat([batch_rows(n, batch, 4, step) for step in range(14)])
    epochs = rows.view(6, n)  # batches may straddle two epochs
    assert all(sorted(epoch.tolist()) == list(range(n)) for epoch in epochs)
    assert (
        len({tuple(epoch.tolist()) for epoch in epochs}) == 6
    )  # by chance not: below 6²/7! = 0.7 %; the seed is fixed
    assert torch.equal(batch_rows(n, batch, 4, 9), rows[27:30])
    assert not torch.equal(batch_rows(100, 50, 4, 0), batch_rows(100, 50, 5, 0))
    assert batch_rows(2, 5, 0, 1).sort().values.tolist() in ([0, 0, 0, 1, 1], [0, 0, 1, 1, 1])  # more than there are


# ---------------------------------------------------------------------------------------------------------------------
# The loop


def test_a_run_is_the_plain_loop():
    """The same weights, but for rounding, as ten lines of PyTorch that anyone would write."""
    ours, plain = new_model(), new_model().requires_grad_(True)
    log = fit(ours, EXAMPLES, CONFIG).log["loss"]
    optimiser = torch.optim.AdamW(plain.parameters(), betas=CONFIG.betas, weight_decay=CONFIG.weight_decay)
    losses = []
    for step in range(5):
        optimiser.param_groups[0]["lr"] = CONFIG.rate * schedule(CONFIG, step, 5)
        chosen = [EXAMPLES[i] for i in batch_rows(len(EXAMPLES), 3, CONFIG.seed, step)]
        width = max(len(x) + len(y) for x, y in chosen)
        tokens = torch.tensor([x + y + [0] * (width - len(x) - len(y)) for x, y in chosen])
        targets = torch.tensor([[-100] * len(x) + y + [-100] * (width - len(x) - len(y)) for x, y in chosen])
        loss = F.cross_entropy(plain(tokens[:, :-1]).flatten(0, 1), targets[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), CONFIG.clip)
        optimiser.step()
        losses.append(loss.item())
    assert len(log) == 5
    assert_close(log, losses)
    assert_close(weights(ours), weights(plain))
    assert (weights(ours) - weights(new_model())).abs().max() > 1e-2


def test_schedules():
    linear = FitConfig(warmup=2)
    assert [schedule(linear, step, 6) for step in range(6)] == [0.5, 1, 1, 0.75, 0.5, 0.25]
    cosine = [schedule(replace(linear, schedule="cosine"), step, 6) for step in (2, 4, 6)]
    assert cosine == pytest.approx([1, 0.5, 0], abs=1e-12)
    assert schedule(replace(linear, schedule="constant"), 5, 6) == 1


def test_accumulation_is_the_big_batch():
    """In float64, to 1e-12; the micro-batches have different numbers of response tokens, so a mean of means is not."""
    whole, parts = new_model().double(), new_model().double()
    config = replace(CONFIG, batch=6)
    a, b = fit(whole, EXAMPLES, config), fit(parts, EXAMPLES, replace(config, micro=2))
    assert a.log["loss"] == pytest.approx(b.log["loss"], abs=1e-12)
    torch.testing.assert_close(weights(whole), weights(parts), atol=1e-12, rtol=0)


def test_accumulation_in_float32():
    def gradient(micro):
        model = new_model()
        run = Trainer(model, replace(CONFIG, micro=micro, clip=math.inf), 5)
        run.update(Completions(model, EXAMPLES), torch.arange(6))
        return torch.cat([weight.grad.flatten() for weight in model.parameters()])

    assert_close(gradient(None), gradient(2))


def test_clipping_bounds_the_gradient():
    for clip, bound in ((0.1, 0.1), (math.inf, None)):
        model = new_model()
        Trainer(model, replace(CONFIG, clip=clip), 5).update(Completions(model, EXAMPLES), torch.arange(7))
        norm = torch.cat([weight.grad.flatten() for weight in model.parameters()]).norm().item()
        assert norm == pytest.approx(bound, abs=1e-5) if bound else norm > 1


def test_any_loss_and_any_model():
    """The sharpening algorithms' losses on a transformer, through `train`; a table, through `fit`."""
    base = new_model()
    common = {"stop_ids": [0], "minimise": BATCHES}
    prompts = [prompt for prompt, _ in EXAMPLES]
    sharp = sft_sharpen(base, base, prompts, SFTConfig(n=4, max_new_tokens=6), **common)
    rewards = score(sharp.policy, prompts, [s[0].tokens for s in sharp.chosen.samples])
    assert sum(map(torch.sum, rewards)) > sharp.chosen.rewards.sum() + 1  # what was learned has become likelier
    trained = dpo_sharpen(base, base, prompts, RLHFConfig(beta=1.0, max_new_tokens=4), **common)
    assert not torch.equal(weights(trained.policy), weights(base))

    table = TabularLM.iid([0.5, 0.3, 0.2], torch.float64)
    fit(table, [([1], [0]), ([2], [2]), ([1], [2])], FitConfig(epochs=300, batch=3, rate=0.05, weight_decay=0, clip=9))
    assert table.logits.softmax(-1)[0].tolist() == pytest.approx([1 / 3, 0, 2 / 3], abs=0.01)


BATCHES = Batches(replace(CONFIG, epochs=4, clip=10.0))


def test_the_base_stays_as_it_is():
    base, before = new_model(), weights(new_model())
    prompts = [prompt for prompt, _ in EXAMPLES]
    out = xpo(base, base, prompts, RLHFConfig(1.0, rounds=2, prompts=3, max_new_tokens=4), stop_ids=[0],
              minimise=BATCHES, objective=lambda policy: 0.0)  # fmt: skip
    assert torch.equal(weights(base), before) and out.policies[0] is base
    assert all(not torch.equal(weights(a), weights(b)) for a, b in zip(out.policies, out.policies[1:]))
    assert len(out.pairs[0]) == 6  # three prompts in each round, with one pair


def test_the_loss_of_a_response_is_that_of_its_tokens():
    """`sft_loss` and `Completions` have one sum: prompts and padding are masked in both."""
    model, prompts = new_model(), [prompt for prompt, _ in EXAMPLES]
    drawn = generate(model, prompts, max_new_tokens=6, stop_ids=range(8), samples_per_prompt=2).samples
    data = score_responses(model, prompts, drawn, log_probability)
    pairs = [(prompts[i // 2], sample.tokens) for i, sample in enumerate(s for own in drawn for s in own)]
    rows = torch.tensor([0, 3, 11])
    assert len({len(tokens) for _, tokens in pairs}) > 1
    whole = float(DataLoss(sft_loss, (data,))(model, rows))
    assert whole == pytest.approx(float(Completions(model, pairs)(model, rows)), abs=1e-4)


@pytest.mark.parametrize("algorithm", [sft_sharpen, dpo_sharpen, xpo])
def test_algorithms_go_on_from_their_checkpoints(tmp_path, algorithm):
    """Stopped in the middle, called again: the same weights to the bit. Other draws are another run."""
    config = SFTConfig(3, max_new_tokens=4) if algorithm is sft_sharpen else RLHFConfig(1.0, rounds=2, prompts=4,
                                                                                        max_new_tokens=4)  # fmt: skip
    settings = {"objective": lambda policy: 0.0} if algorithm is xpo else {}

    def run(state=None, after=None, seed=0):
        prompts = [prompt for prompt, _ in EXAMPLES]
        out = algorithm(new_model(), new_model(), prompts, config, stop_ids=[0], seed=seed,
                        minimise=Batches(replace(CONFIG, epochs=3), state, after), **settings)  # fmt: skip
        return weights(out.last if algorithm is xpo else out.policy)

    def stop(trainer):
        if trainer.step == 3:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "state.pt", stop)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("state-") and torch.load(left, weights_only=True)["step"] == 2
    with pytest.raises(ValueError, match="belongs to another run"):
        run(tmp_path / "state.pt", seed=1)
    assert torch.equal(run(tmp_path / "state.pt"), run())


def test_bad_losses_stop_the_algorithms():
    """A reward that is not finite: the step is named, nothing is trained."""
    base = new_model()
    with pytest.raises(ValueError, match="step 1: the loss is nan"):
        dpo_sharpen(base, base, [[1], [2]], RLHFConfig(1.0, max_new_tokens=4), stop_ids=[0], minimise=BATCHES,
                    reward=lambda samples: torch.full(samples.lengths.shape, math.nan))  # fmt: skip
    with pytest.raises(ValueError, match="prompts is 0; it must be at least 1"):
        dpo_sharpen(base, base, [[1]], RLHFConfig(prompts=0), stop_ids=[0], minimise=BATCHES)
    assert torch.equal(weights(base), weights(new_model()))


def test_the_shipped_model_trains_and_decodes_with_its_new_weights():
    speaker = TextModel.from_pretrained(CHECKPOINT)
    model = speaker.model
    prompt = speaker.prompt("author", question="3 + 4 x 2 + 5 x 7 + 1")
    settings = {"max_new_tokens": 18, "stop_ids": speaker.stop_ids, "temperature": 0}
    before = generate(model, [prompt], **settings).samples[0][0].tokens.tolist()
    wanted = [*prompt[1:4], speaker.tokenizer.encode(".")[-1]]
    fit(model, [(prompt, wanted)], FitConfig(epochs=40, batch=1, rate=3e-3, clip=1.0))
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())
    after = generate(model, [prompt], **settings).samples[0][0]
    assert before != wanted and after.tokens.tolist() == wanted
    logp, _ = response_logp(model, [torch.tensor(prompt)], [after.tokens])  # cached and uncached agree
    assert_close(after.logp, logp[0])


@pytest.mark.gpu
def test_bfloat16_on_a_gpu():
    model, exact = new_model().cuda(), new_model().cuda()
    log = fit(model, EXAMPLES, CONFIG).log["loss"]
    close = fit(exact, EXAMPLES, replace(CONFIG, bf16=False)).log["loss"]
    assert model.dtype == torch.float32 and log == pytest.approx(close, rel=0.02) and log != close


@pytest.mark.slow
def test_throughput_is_that_of_a_plain_loop():
    """At least 1 / 1.1 of it: the medians of 7 alternating runs of 10 steps on the shipped model, batch 64."""
    prompt, response, steps = list(range(12)), list(range(18)), 10
    config = FitConfig(epochs=steps, batch=64, clip=1.0)

    def ours(model):
        fit(model, [(prompt, response)] * 64, config)

    def plain(model):
        model.requires_grad_(True)
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1)
        tokens = torch.tensor([prompt + response] * 64)
        targets = torch.tensor([[-100] * 11 + response] * 64)
        for _ in range(steps):
            optimiser.zero_grad()
            F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), targets.flatten()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()

    seconds = {ours: [], plain: []}
    for _ in range(7):
        for run, times in seconds.items():
            model = Transformer.from_pretrained(CHECKPOINT)
            begin = time.process_time()
            run(model)
            times.append(time.process_time() - begin)
    ratio = statistics.median(seconds[ours]) / statistics.median(seconds[plain])
    print(f"fit / plain loop: {ratio:.3f}")
    assert ratio <= 1.1


# ---------------------------------------------------------------------------------------------------------------------
# LoRA


def randomise(model):
    """Adapters that change something."""
    generator = torch.Generator().manual_seed(1)
    for layer in lora_layers(model):
        layer.lora_b.data.copy_(0.1 * torch.randn(layer.lora_b.shape, generator=generator))
    return model


def test_adapters_change_nothing_at_first():
    tokens = torch.tensor([[1, 2, 3, 4]])
    adapted = add_lora(new_model(), LoRAConfig(rank=3))
    assert torch.equal(adapted(tokens), new_model()(tokens))
    assert not torch.equal(randomise(adapted)(tokens), new_model()(tokens))
    with without_lora(adapted):
        assert torch.equal(adapted(tokens), new_model()(tokens))
    assert not torch.equal(adapted(tokens), new_model()(tokens))


def test_adapters_begin_as_random_numbers_of_their_own():
    """A ~ U(±1/√in), each layer's from its name; B = 0."""
    layers = lora_layers(add_lora(new_model(), LoRAConfig(rank=8)))
    for layer in layers:
        width = layer.in_features**-0.5
        assert 0.8 * width < layer.lora_a.abs().max() <= width and not layer.lora_b.any()
        assert abs(float(layer.lora_a.square().mean()) / width**2 - 1 / 3) < 0.12
    found = {tuple(layer.lora_a[0, :4].tolist()) for layer in layers}
    assert len(found) == len(layers)


def test_merged_is_unmerged(tmp_path):
    tokens = torch.tensor([[1, 2, 3, 4], [9, 8, 7, 6]])
    adapted = randomise(add_lora(new_model(), LoRAConfig(rank=3)))
    logits = adapted(tokens)
    adapted.save_pretrained(tmp_path)  # under Hugging Face's names, merged, whatever the training state
    loaded = Transformer.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(tokens), logits, atol=1e-5, rtol=0)
    merged = merge_lora(adapted)
    assert not lora_layers(merged) and merged.num_parameters() == new_model().num_parameters()
    assert all(torch.equal(a, b) for a, b in zip(merged.state_dict().values(), loaded.state_dict().values()))
    torch.testing.assert_close(merged(tokens), logits, atol=1e-5, rtol=0)
    cached = generate(loaded, [[1, 2]], max_new_tokens=4, stop_ids=[]).samples[0][0].tokens
    assert torch.equal(cached, generate(merged, [[1, 2]], max_new_tokens=4, stop_ids=[]).samples[0][0].tokens)


def test_only_adapters_are_trained():
    model = add_lora(new_model(), LoRAConfig(rank=3, targets=("q_proj", "down_proj")))
    frozen = {name: weight.clone() for name, weight in model.named_parameters() if "lora" not in name}
    fit(model, EXAMPLES, CONFIG)
    count = 0
    for name, weight in model.named_parameters():
        if "lora" in name:
            count += weight.numel()
            assert weight.grad.any()
        else:
            assert weight.grad is None and torch.equal(weight, frozen[name])
    assert count == 2 * 3 * ((16 + 16) + (24 + 16))  # layers · rank · (in + out)
    assert {name.split(".")[-1] for name, m in model.named_modules() if isinstance(m, LoRALinear)} == {
        "q_proj", "down_proj",
    }  # fmt: skip


def test_lora_gradient_is_the_formula():
    """∂/∂B = s·(∂/∂W) Aᵀ and ∂/∂A = s·Bᵀ (∂/∂W), from the gradient of the merged model."""
    data, rows = Completions(new_model(), EXAMPLES), torch.arange(7)
    adapted = randomise(add_lora(new_model().double(), LoRAConfig(rank=3, alpha=6.0)))
    adapted.requires_grad_(True)
    data(adapted, rows).backward()
    merged = new_model().double()
    merged.load_state_dict(adapted.state_dict())
    merged.requires_grad_(True)
    data(merged, rows).backward()
    for name, layer in adapted.named_modules():
        if isinstance(layer, LoRALinear):
            gradient = merged.get_submodule(name).weight.grad
            torch.testing.assert_close(layer.lora_b.grad, 2 * gradient @ layer.lora_a.T)
            torch.testing.assert_close(layer.lora_a.grad, 2 * layer.lora_b.T @ gradient)


def test_lora_on_bfloat16_weights_and_bad_targets():
    model = add_lora(new_model().bfloat16(), LoRAConfig(rank=2))
    assert {layer.lora_a.dtype for layer in lora_layers(model)} == {torch.float32}
    assert fit(model, EXAMPLES, CONFIG).model(torch.tensor([[1, 2]])).isfinite().all()
    with pytest.raises(ValueError, match=r"target 'query' is no linear layer of the model; it has \['down_proj'"):
        add_lora(new_model(), LoRAConfig(targets=("query",)))
    with pytest.raises(ValueError, match="rank is 0"):
        add_lora(new_model(), LoRAConfig(rank=0))


# ---------------------------------------------------------------------------------------------------------------------
# Going on


def adapted() -> Transformer:
    return add_lora(new_model(), LoRAConfig(rank=2))


@pytest.mark.parametrize("make", [new_model, adapted])
@pytest.mark.parametrize("at", [1, 4, 5])  # before the first checkpoint, at one, after one
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path, make, at):
    config, state = replace(CONFIG, epochs=3, micro=2), tmp_path / "state.pt"
    whole = fit(make(), EXAMPLES, config)

    def kill(run):
        if run.step == at:
            raise Killed

    with pytest.raises(Killed):
        fit(make(), EXAMPLES, config, state=state, after=kill)
    steps = []
    resumed = fit(make(), EXAMPLES, config, state=state, after=lambda run: steps.append(run.step))
    assert steps == list(range(1 + (at - 1) // 2 * 2, 8))
    assert torch.equal(weights(whole.model), weights(resumed.model)) and whole.log == resumed.log
    again = fit(make(), EXAMPLES, config, state=state)  # finished: nothing is left to do
    assert torch.equal(weights(whole.model), weights(again.model)) and whole.log == again.log
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    kept = torch.load(state, weights_only=True)
    assert kept["torch"] == torch.__version__ and kept["threads"] == torch.get_num_threads()


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from dataclasses import replace
from tests.reference.training.test_training import CONFIG, EXAMPLES, new_model
from reference.training.loop import fit
model = fit(new_model(), EXAMPLES, replace(CONFIG, epochs=20, save_every=1), state=sys.argv[1],
            after=lambda run: print(run.step, flush=True)).model
model.save_pretrained(sys.argv[2])
"""


def test_kill_9_at_any_moment(tmp_path):
    """A process is killed while it writes a checkpoint every step, wherever it happens to be; the next one ends where
    an undisturbed run ends, to the bit."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "state.pt"), str(tmp_path / "resumed")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) == 9:
            time.sleep(0.013)
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "resumed").exists()
    process.stdout.close()
    steps = list(map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()))
    assert steps[0] >= 9 and steps[-1] == 47
    whole = fit(new_model(), EXAMPLES, replace(CONFIG, epochs=20)).model
    assert torch.equal(weights(Transformer.from_pretrained(tmp_path / "resumed")), weights(whole))


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong


def test_bad_data():
    model = new_model()
    with pytest.raises(ValueError, match="data set is empty"):
        fit(model, [], CONFIG)
    with pytest.raises(ValueError, match=r"example 1 has a prompt of 20 and a response of 5 tokens, more than .* 24;"):
        fit(model, [([1], [2]), ([1] * 20, [2] * 5)], CONFIG)
    with pytest.raises(ValueError, match="response 0 is empty"):
        fit(model, [([1], [])], CONFIG)
    with pytest.raises(ValueError, match=r"prompt 0 has id 23, outside the model's vocabulary 0\.\.22"):
        fit(model, [([23], [1])], CONFIG)
    assert torch.equal(weights(model), weights(new_model()))


@pytest.mark.parametrize(
    "change", [{"batch": 0}, {"micro": 0}, {"epochs": 0}, {"rate": -1.0}, {"clip": 0.0}, {"warmup": -1},
               {"schedule": "step"}, {"save_every": 0}, {"weight_decay": -0.1}, {"rate": math.nan}],
)  # fmt: skip
def test_bad_settings(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} is .* must be"):
        replace(CONFIG, **change)


class Poisoned(Completions):
    """A loss, or only its gradient, that is NaN when it is asked for the fourth time."""

    calls, where = 0, "loss"

    def __call__(self, model, rows):
        self.calls += 1
        value = super().__call__(model, rows)
        if self.calls == 4:
            value = value * math.nan if self.where == "loss" else value + value.sub(value.detach()).sqrt()
        return value


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_stops_and_the_last_good_checkpoint_stays(tmp_path, where):
    model, state = new_model(), tmp_path / "state.pt"
    loss = Poisoned(model, EXAMPLES)
    loss.where = where
    with pytest.raises(ValueError, match=r"step 4: the loss is .*nan.*checkpoint of step 2 is in .*state\.pt"):
        train(model, loss, CONFIG, state=state)
    assert torch.load(state, weights_only=True)["step"] == 2 and weights(model).isfinite().all()
    resumed = train(new_model(), Poisoned(model, EXAMPLES), CONFIG, state=state)  # cured: it goes on
    assert torch.equal(weights(resumed.model), weights(train(new_model(), unpoisoned(model), CONFIG).model))


def unpoisoned(model):
    loss = Poisoned(model, EXAMPLES)
    loss.calls = 4
    return loss


@pytest.mark.parametrize(
    "other", [{"rate": 2e-2}, {"seed": 6}, {"epochs": 3}, "data", "model", "weights"], ids=lambda other: str(other)
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, other):
    fit(new_model(), EXAMPLES, CONFIG, state=tmp_path / "state.pt")
    before = (tmp_path / "state.pt").read_bytes()
    model = adapted() if other == "model" else new_model()
    if other == "weights":
        next(model.parameters()).data += 1e-3
    examples = [*EXAMPLES[:-1], ([3, 2, 1], [2, 0])] if other == "data" else EXAMPLES
    config = replace(CONFIG, **other) if isinstance(other, dict) else CONFIG
    with pytest.raises(ValueError, match=r"state\.pt belongs to another run .*; remove it, or name another"):
        fit(model, examples, config, state=tmp_path / "state.pt")
    assert (tmp_path / "state.pt").read_bytes() == before


def test_a_broken_or_foreign_checkpoint(tmp_path, monkeypatch):
    state = tmp_path / "state.pt"
    for content in (b"", b"nonsense"):
        state.write_bytes(content)
        with pytest.raises(ValueError, match=r"state\.pt is not a checkpoint of training"):
            fit(new_model(), EXAMPLES, CONFIG, state=state)
    torch.save({"model": {}}, state)
    with pytest.raises(ValueError, match="is not a checkpoint of training"):
        fit(new_model(), EXAMPLES, CONFIG, state=state)
    state.unlink()
    fit(new_model(), EXAMPLES, CONFIG, state=state)
    monkeypatch.setattr(training, "machine", lambda: {"torch": "1.0", "threads": 7})
    with pytest.warns(UserWarning, match="not the same to the bit"):
        fit(new_model(), EXAMPLES, CONFIG, state=state)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("write failed")])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch, error):
    state, save = tmp_path / "state.pt", torch.save

    def save_until_full(kept, file):
        save(kept, file)
        if kept["step"] == 4:
            os.truncate(file, 100)
            raise error

    monkeypatch.setattr(torch, "save", save_until_full)
    with pytest.raises(OSError, match=r"step 4: .*state\.pt cannot be written .*checkpoint of step 2 is in"):
        fit(new_model(), EXAMPLES, CONFIG, state=state)
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    monkeypatch.undo()
    resumed = fit(new_model(), EXAMPLES, CONFIG, state=state)
    assert torch.equal(weights(resumed.model), weights(fit(new_model(), EXAMPLES, CONFIG).model))
