"""Training: one loop for every loss, batches that are a function of (seed, step), exact resuming.

    g = ∇_θ Σ_{i∈batch} loss_i(θ) / size(batch),   ‖g‖ clipped,   θ ← AdamW(θ, g, rate·schedule(step))

A loss is a sum over examples, `loss(model, rows)`, of which there are `len(loss)`; it is divided by `loss.size(rows)`,
or by the number of rows if it has no such method. So `Completions` here, the regressions of
`reference/rlhf_sharpening.py` and `reference/grpo.py` share this loop. A model is any `LanguageModel` with parameters.

Contracts.
- The rows of a step are a pure function of (seed, step): each epoch is shuffled anew by addressed randomness.
- A checkpoint holds all that a run needs to go on: trained weights, optimiser, step. A run that was killed at any
  moment ends, on the same machine with the same torch and number of threads, in the same weights to the bit.
- A step whose loss or gradient is not finite is not taken.
"""

from __future__ import annotations

import copy
import hashlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from reference.randomness import CHOICE, uniform
from reference.sampling import Cost, Generation, LanguageModel, check_prompts, check_settings, generate
from reference.text.identity import first_difference, flat
from reference.training.lora import lora_layers
from reference.transformer import write_whole

Ids = Sequence[int] | Tensor
Loss = Callable[[Any, Tensor], Tensor]  # (model, rows) -> the sum over these examples, with gradient; and len(loss)


@dataclass(frozen=True)
class FitConfig:
    """How to train. The defaults are SFT-Sharpening's recipe for Phi-3.5-mini on MATH (2412.01951, App. A)."""

    epochs: float = 30  # passes over the data (grpo counts rounds instead); Mistral-7B: 10
    batch: int = 4  # examples per optimiser step; Mistral-7B: 1
    micro: int | None = None  # examples per forward pass, the rest by accumulation; None: the whole batch
    rate: float = 3e-4  # largest learning rate
    warmup: int = 0  # steps of linear warm-up
    schedule: str = "linear"  # after it: "linear" or "cosine" to 0, or "constant"
    weight_decay: float = 0.1  # AdamW's; by task and model 0, 0.1, 0.5 or 1
    betas: tuple[float, float] = (0.9, 0.999)  # AdamW's
    clip: float = 0.1  # largest norm of the gradient; inf: never clipped
    bf16: bool = True  # on a GPU, compute in bfloat16 (autocast); the weights stay as they are
    save_every: int = 100  # steps (grpo: rounds) between checkpoints, if there is a file for them
    seed: int = 0  # of the data's order

    def __post_init__(self) -> None:
        """ValueError: a setting out of range."""
        least = {"batch": 1, "micro": 1, "save_every": 1, "warmup": 0, "weight_decay": 0}
        schedules = ("linear", "cosine", "constant")
        check_settings(self, positive=("epochs", "rate"), least=least, among={"schedule": schedules})
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}; give two numbers from 0 to below 1, such as 0.9, 0.999")
        if not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; it must be above 0 (inf: never clipped)")

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bf16 and device.type == "cuda")


@dataclass(frozen=True)
class Fitted:
    """What training gives."""

    model: Any  # the model that was given, trained in place
    log: dict[str, list[float]]  # by name, one number per step (or per round): "loss", ...


def fit(model: LanguageModel, examples: Sequence[tuple[Ids, Ids]], config: FitConfig, **settings) -> Fitted:
    """Maximum likelihood of responses given prompts: examples are (prompt ids, response ids); settings as for `train`.

    ValueError: no examples, an empty or impossible text, one longer than the model's maximum."""
    return train(model, Completions(model, examples), config, **settings)


def train(
    model: LanguageModel, loss: Loss, config: FitConfig, *, state: str | Path | None = None,
    after: Callable[[Trainer], None] | None = None, trainer: type[Trainer] | None = None,
) -> Fitted:  # fmt: skip
    """Minimise a loss over the model's adapters, or without any over all of its weights, in place.

    state: a checkpoint file; the run goes on from it if it exists. after(trainer): called after every step, to measure
    or to stop by an exception. ValueError: no examples, a loss that is not finite, another run's checkpoint."""
    if not (n := len(loss)):  # type: ignore[arg-type]
        raise ValueError("the data set is empty; give at least one example")
    steps = max(1, math.ceil(config.epochs * n / config.batch))
    depends = {"data": getattr(loss, "digest", f"{n} examples"), **getattr(loss, "settings", {})}
    run = (trainer or Trainer)(model, config, steps, depends)
    run.resume(state)
    with tqdm(total=steps, initial=run.step, desc="train", unit="step", disable=None, leave=False) as progress:
        while run.step < steps:
            value = run.update(loss, batch_rows(n, config.batch, config.seed, run.step))
            progress.set_postfix(loss=f"{value:.4f}", refresh=False)
            progress.update()
            if after is not None:
                after(run)
            if run.step % config.save_every == 0 or run.step == steps:
                run.save(state)
    return Fitted(run.whole(), run.log)


def train_rounds(
    run: Trainer, rounds: int, updates: int, play: Callable[[int], tuple[Loss, Callable[[int], Tensor], Cost]], *,
    label: str, state: str | Path | None = None, after: Callable[[Trainer], None] | None = None,
) -> Cost:  # fmt: skip
    """Reinforcement learning: each round draws with the model as it is, and then makes `updates` steps.

    play(t): the loss of round t, which rows its u-th step takes, and what drawing cost. The run has been resumed; state
    and after are as for `train`, but per round. Returns what all rounds drew, those before a resumption too."""
    done = run.step // updates
    with tqdm(total=rounds, initial=done, desc=label, unit="round", disable=None, leave=False) as progress:
        for t in range(done, rounds):
            loss, rows, drawn = play(t)
            for u in range(updates):
                run.update(loss, rows(u))
            run.cost += drawn
            progress.update()
            if after is not None:
                after(run)
            if (t + 1) % run.config.save_every == 0 or t + 1 == rounds:
                run.save(state)
    return run.cost


@dataclass(frozen=True)
class Batches:
    """minimise(loss, policy) of `sft_sharpen`, `dpo_sharpen` and `xpo`: `train`, on a copy of the policy that is given.

    So the base may be given as the policy. Every round of XPO has other data, and a checkpoint of its own."""

    config: FitConfig
    state: str | Path | None = None  # as for `train`; "a.pt" becomes "a-N.pt" for N examples
    after: Callable[[Trainer], None] | None = None

    def __call__(self, loss: Loss, policy: LanguageModel) -> Any:
        state = self.state and Path(self.state).with_stem(f"{Path(self.state).stem}-{len(loss)}")  # type: ignore[arg-type]
        return train(copy.deepcopy(policy), loss, self.config, state=state, after=self.after).model


# ---------------------------------------------------------------------------------------------------------------------
# Data


def batch_rows(n: int, batch: int, seed: int, step: int) -> Tensor:
    """The examples of a step, int64 [batch]: the next ones in an endless row of epochs, each in an order of its own."""
    at = torch.arange(step * batch, (step + 1) * batch)
    epochs = range(int(at[0]) // n, int(at[-1]) // n + 1)
    orders = [uniform(seed, torch.arange(n), torch.tensor(epoch), 0, 0, CHOICE).argsort() for epoch in epochs]
    return torch.cat(orders)[at - epochs[0] * n]


def token_logp(model: Any, tokens: Tensor) -> Tensor:
    """log π of each token but the first of whole texts int64 [n, width], with gradient: [n, width - 1]."""
    logits = model(tokens[:, :-1])  # [n, width - 1, vocab]; column t predicts token t + 1
    return logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]


def response_logp(model: Any, prompts: Sequence[Tensor], responses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """log π of each response token, with gradient, [rows, longest response], 0 in the padding; and bool, where not."""
    texts = [torch.cat(pair) for pair in zip(prompts, responses)]
    tokens = nn.utils.rnn.pad_sequence(texts, batch_first=True).to(model.device)
    start, length = (torch.tensor([len(x) for x in part], device=model.device) for part in (prompts, responses))
    logp = token_logp(model, tokens)
    time = torch.arange(int(length.max()), device=model.device)
    mask = time < length[:, None]
    columns = (start[:, None] - 1 + time).clamp(max=logp.shape[1] - 1)
    return logp.gather(1, columns).masked_fill(~mask, 0.0), mask


class Completions:
    """−Σ log π(response|prompt), per response token: the prompts and the padding are not learned."""

    def __init__(self, model: LanguageModel, examples: Sequence[tuple[Ids, Ids]]):
        if not len(examples):
            raise ValueError("the data set is empty; give at least one (prompt, response)")
        self.prompts = check_prompts(model, [prompt for prompt, _ in examples])
        self.responses = check_prompts(model, [response for _, response in examples], "response")
        for i, (prompt, response) in enumerate(zip(self.prompts, self.responses)):
            if model.max_length is not None and len(prompt) + len(response) > model.max_length:
                raise ValueError(
                    f"example {i} has a prompt of {len(prompt)} and a response of {len(response)} tokens, more than "
                    f"the model's maximum of {model.max_length}; shorten or drop it"
                )
        self.digest = digest([(p.tolist(), r.tolist()) for p, r in zip(self.prompts, self.responses)])

    def __len__(self) -> int:
        return len(self.prompts)

    def size(self, rows: Tensor) -> int:
        return sum(len(self.responses[i]) for i in rows.tolist())

    def __call__(self, model: Any, rows: Tensor) -> Tensor:
        chosen = rows.tolist()
        logp, _ = response_logp(model, [self.prompts[i] for i in chosen], [self.responses[i] for i in chosen])
        return -logp.double().sum()


# ---------------------------------------------------------------------------------------------------------------------
# The loop's body, and its checkpoints


class Trainer:
    """A model in training: the weights that are trained, their optimiser, and how far it has come."""

    def __init__(self, model: Any, config: FitConfig, steps: int, depends: Mapping[str, Any] | None = None):
        """steps: where the schedule ends. depends: on what else, besides the settings and the weights that it begins
        with, its result depends."""
        self.model, self.config, self.steps, self.step = model, config, steps, 0
        self.log: dict[str, list[float]] = {"loss": []}
        self.cost = Cost()  # of what was drawn for it, by `train_rounds`
        self.saved, self.writes = "no checkpoint was written", True
        self.weights = trainable(model)
        shapes = {name: tuple(weight.shape) for name, weight in self.weights.items()}
        begin = weights_digest(getattr(self, "given", model))
        self.run = {**flat(config), "steps": steps, **flat(depends or {}), "trained weights": digest(shapes),
                    "weights at the start": begin}  # fmt: skip
        self.optimiser = torch.optim.AdamW(
            self.weights.values(), lr=config.rate, betas=config.betas, weight_decay=config.weight_decay
        )

    def update(self, loss: Loss, rows: Tensor) -> float:
        """One optimiser step on the loss's mean over the examples `rows`, int64 [batch]; returns that mean."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.rate * schedule(self.config, self.step, self.steps)
        size, total = getattr(loss, "size", len)(rows), 0.0
        self.optimiser.zero_grad(set_to_none=True)
        for part in rows.split(self.config.micro or len(rows)):
            with self.config.autocast(self.model.device):
                value = loss(self.model, part) / size
            value.backward()
            total += float(value.detach())
        total_norm: Any = nn.utils.clip_grad_norm_(self.weights.values(), self.config.clip)
        norm = float(total_norm.full_tensor() if hasattr(total_norm, "full_tensor") else total_norm)  # if sharded
        if not math.isfinite(total + norm):
            raise ValueError(
                f"step {self.step + 1}: the loss is {total} and its gradient's norm {norm}, so training stops before "
                f"it; {self.saved}; start anew, in a new folder, with a lower rate or a warm-up, or look at examples "
                f"{rows[:8].tolist()}"
            )
        self.optimiser.step()
        self.step += 1
        self.log["loss"].append(total)
        return total

    # What `reference/training/distributed.py` does in another way.

    def whole(self) -> Any:
        """The model as it is now."""
        return self.model

    def generate(self, prompts: Sequence[Ids], **settings) -> Generation:
        """`generate` with the model as it is now."""
        return generate(self.model, prompts, **settings)

    @torch.no_grad()
    def values(self, term: Callable[[Tensor], Tensor], n: int) -> Tensor:
        """term(rows) of all n examples, [n, ...], without gradient, as many at a time as are trained on."""
        with self.config.autocast(self.model.device):
            return torch.cat([term(rows) for rows in torch.arange(n).split(self.config.micro or self.config.batch)])

    def gather(self) -> dict[str, Any]:
        """The weights and the optimiser's state."""
        weights = {name: weight.detach() for name, weight in self.weights.items()}
        return {"weights": weights, "optimiser": self.optimiser.state_dict()}

    @torch.no_grad()
    def scatter(self, kept: dict[str, Any]) -> None:
        """What `gather` gave, put back."""
        for name, weight in self.weights.items():
            weight.copy_(kept["weights"][name])
        self.optimiser.load_state_dict(kept["optimiser"])

    def save(self, path: str | Path | None) -> None:
        """Write a checkpoint, whole or not at all. OSError: it cannot be written; the one before it is intact.
        ValueError, also without a path: a weight is no number any more."""
        for name, weight in self.weights.items():
            own = weight.to_local() if hasattr(weight, "to_local") else weight  # if sharded
            if own.isnan().any() or (own == torch.inf).any():  # -inf: what a table finds impossible
                raise ValueError(
                    f"step {self.step}: weight {name!r} is no number any more, so nothing is written; {self.saved}; "
                    "start anew, in a new folder, with a lower rate or weight decay"
                )
        if path is None:
            return
        kept = {"run": self.run, "step": self.step, "log": self.log, "cost": asdict(self.cost), **machine(),
                **self.gather()}  # fmt: skip
        try:
            if self.writes:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                write_whole(Path(path), lambda file: torch.save(kept, file))
        except (OSError, RuntimeError) as error:  # torch reports a full disk as either
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise OSError(
                f"step {self.step}: {path} cannot be written ({reason}); free space there; {self.saved}"
            ) from None
        self.saved = f"the checkpoint of step {self.step} is in {path}"

    def resume(self, path: str | Path | None) -> None:
        """Go on from a checkpoint, if there is one. ValueError: it is another run's, or cannot be read."""
        if path is None or not Path(path).exists():
            return
        try:
            kept = torch.load(path, weights_only=True, map_location="cpu")
            run, here = kept["run"], {name: kept[name] for name in machine()}
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"{path} is not a checkpoint of training ({reason}); remove it, or name another") from None
        if difference := first_difference(run if isinstance(run, dict) else {"run": run}, self.run):
            raise ValueError(f"{path} belongs to another run ({difference}); remove it, or name another")
        if here != machine():
            warnings.warn(f"{path} was written with {here}, this is {machine()}: not the same to the bit", stacklevel=2)
        self.scatter(kept)
        self.step, self.log, self.cost = kept["step"], kept["log"], Cost(**kept.get("cost", {}))
        self.saved = f"the checkpoint of step {self.step} is in {path}"


def trainable(model: Any) -> dict[str, nn.Parameter]:
    """The adapters, or without any all weights, by name; they get gradients, and nothing else does."""
    adapters = [weight for layer in lora_layers(model) for weight in (layer.lora_a, layer.lora_b)]
    model.requires_grad_(not adapters)
    for weight in adapters:
        weight.requires_grad_(True)
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def digest(content: Any) -> str:
    """What tells one data set, or one set of weights' shapes, from another in a checkpoint."""
    return hashlib.blake2b(repr(content).encode(), digest_size=8).hexdigest()


def weights_digest(model: Any) -> str:
    """Of all weights of a model, as they are."""
    found = hashlib.blake2b(digest_size=8)
    for name, weight in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def machine() -> dict[str, Any]:
    """What the last bits of a result depend on."""
    return {"torch": str(torch.__version__), "threads": torch.get_num_threads()}


def schedule(config: FitConfig, step: int, steps: int) -> float:
    """The factor on the learning rate: up linearly for `warmup` steps, then down to 0 after the last."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    left = (steps - step) / max(1, steps - config.warmup)
    return {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}[config.schedule]
