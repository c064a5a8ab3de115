"""Several processes: the same scripts under `torchrun`, one process per GPU (or, to test, on CPUs).

    with processes() as here:
        chosen = sample(best_of_n, model, prompts, 50, ...)            each process draws for its share of the prompts
        tuned = fit(model, examples, config, trainer=here.trainer)     each holds its share of the weights (FSDP2)
        if here.rank == 0:
            tuned.model.save_pretrained(folder)                        whole again, in Hugging Face's format

Sampling is data parallel: every process has the whole model (7B fits), so that no token waits for another process.
Training shards weights, gradients and optimiser by `fully_shard`, layer by layer; of each (micro-)batch a process
computes every `world`-th example. A sum over examples is the same however it is divided, and randomness is addressed:
so samples are those of one process, and losses too, up to the order of additions. In one process, without torchrun,
the same lines do what they do without this file.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

from reference.sampling import generate
from reference.training.loop import Loss, Trainer, trainable


@dataclass(frozen=True)
class Processes:
    rank: int  # this process
    world: int  # how many there are
    device: torch.device  # where this process's model belongs
    trainer: type[Trainer]  # for `fit`, `train` and `grpo`


@contextlib.contextmanager
def processes() -> Iterator[Processes]:
    """Join the processes that torchrun has started, and part at the end; alone if there was no torchrun."""
    gpu = torch.cuda.is_available()
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if gpu else "cpu")
    if gpu:
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:
        yield Processes(0, 1, device, Trainer)
        return
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # nobody writes into the logits
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), device, ShardedTrainer)
    finally:
        dist.destroy_process_group()


# ---------------------------------------------------------------------------------------------------------------------
# Sampling


def sample(sampler: Callable[..., Any], model: Any, prompts: Sequence, *args, keys: Sequence | None = None, **settings):
    """sampler(model, prompts, *args, keys=keys, **settings), each process for every `world`-th prompt; all get all.

    sampler: `generate`, `best_of_n` or another whose result is a dataclass of things with one entry per prompt. What it
    raises in one process is raised in all."""
    keys = list(range(len(prompts)) if keys is None else keys)
    if not dist.is_initialized() or not len(prompts):
        return sampler(model, prompts, *args, keys=keys, **settings)
    rank, world = dist.get_rank(), min(dist.get_world_size(), len(prompts))
    mine = slice(rank, None, world) if rank < world else slice(0, 1)  # more processes than prompts: done twice
    horizons = settings.get("max_new_tokens")
    if isinstance(horizons, Sequence):
        settings["max_new_tokens"] = horizons[mine]
    result: Any
    try:
        result = sampler(model, prompts[mine], *args, keys=keys[mine], **settings)
    except ValueError as error:
        result = error.with_traceback(None)  # which would keep the decoder alive
    results = exchange(result, model.device)[:world]
    for part in results:
        if isinstance(part, ValueError):
            raise part
    return join(results, torch.cat([torch.arange(i, len(prompts), world) for i in range(world)]).argsort())


def exchange(mine: Any, device: torch.device) -> list[Any]:
    """What each process has, in the order of their ranks, its tensors brought to this process's device."""
    buffer, buffers = io.BytesIO(), [b""] * dist.get_world_size()
    torch.save(mine, buffer)
    dist.all_gather_object(buffers, buffer.getvalue())
    return [torch.load(io.BytesIO(part), map_location=device, weights_only=False) for part in buffers]


def join(parts: Sequence[Any], order: Tensor) -> Any:
    """One result of several, entry order[i] of their concatenation being the i-th prompt's."""
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, list):
        entries = [entry for part in parts for entry in part]
        return [entries[i] for i in order]
    if isinstance(first, Tensor):
        if first.dim() == 3:  # responses: padded to the longest horizon
            width = max(part.shape[-1] for part in parts)
            parts = [nn.functional.pad(part, (0, width - part.shape[-1])) for part in parts]
        return torch.cat([*parts])[order.to(first.device)]
    return type(first)(**{name: join([vars(part)[name] for part in parts], order) for name in vars(first)})


# ---------------------------------------------------------------------------------------------------------------------
# Training


class ShardedTrainer(Trainer):
    """A `Trainer` whose weights, gradients and optimiser are shared out; the model that was given stays whole."""

    def __init__(self, model: Any, *args):
        self.given, sharded = model, copy.deepcopy(model)
        trainable(sharded)  # before sharding, which takes note of it
        mesh = init_device_mesh(model.device.type, (dist.get_world_size(),))
        for layer in sharded.layers:
            fully_shard(layer, mesh=mesh)
        super().__init__(fully_shard(sharded, mesh=mesh), *args)
        self.writes = dist.get_rank() == 0

    def update(self, loss: Loss, rows: Tensor) -> float:
        return super().update(Share(loss), rows)

    @torch.no_grad()
    def whole(self) -> Any:
        """The given model, with the weights as they are now."""
        given = dict(self.given.named_parameters())
        for name, weight in self.weights.items():
            given[name].copy_(weight.full_tensor())  # type: ignore[attr-defined]
        return self.given

    def generate(self, prompts: Sequence, **settings) -> Any:
        return sample(generate, self.whole(), prompts, **settings)

    @torch.no_grad()
    def values(self, term: Callable[[Tensor], Tensor], n: int) -> Tensor:
        chosen: list[Tensor] = []

        def mine(rows: Tensor) -> Tensor:
            chosen.append(share(rows)[0])
            return term(chosen[-1])

        values = super().values(mine, n)
        rows, parts = zip(*exchange((torch.cat(chosen), values), self.model.device))
        out = values.new_empty(n, *values.shape[1:])
        out[torch.cat(rows)] = torch.cat(parts)
        return out

    def save(self, path: str | Path | None) -> None:
        super().save(path)
        dist.barrier()  # nobody goes on as if it were written

    def gather(self) -> dict[str, Any]:
        def full(tensors: dict[str, Any]) -> dict[str, Any]:
            return {k: x.full_tensor().cpu() if hasattr(x, "full_tensor") else x for k, x in tensors.items()}

        kept = super().gather()
        optimiser = kept["optimiser"]
        states = {i: full(state) for i, state in optimiser["state"].items()}
        return {"weights": full(kept["weights"]), "optimiser": {**optimiser, "state": states}}

    @torch.no_grad()
    def scatter(self, kept: dict[str, Any]) -> None:
        shards = list(self.weights.values())

        def part(full: Tensor, like: Any) -> Tensor:
            return distribute_tensor(full.to(like.device), like.device_mesh, like.placements)

        kept["weights"] = {name: part(kept["weights"][name], like) for name, like in self.weights.items()}
        for i, state in kept["optimiser"]["state"].items():
            state.update({k: part(x, shards[i]) for k, x in state.items() if x.shape == shards[i].shape})
        super().scatter(kept)


def share(rows: Tensor) -> tuple[Tensor, int]:
    """A process's rows of a batch, and 1; with fewer rows than processes some get the first row, and 0: everybody must
    compute something, because the weights are gathered by all."""
    mine = rows[dist.get_rank() :: dist.get_world_size()]
    return (mine, 1) if len(mine) else (rows[:1], 0)


class Share:
    """A loss whose value is the whole batch's, and whose gradient, averaged over processes by FSDP, is too."""

    def __init__(self, loss: Loss):
        self.loss, self.size = loss, getattr(loss, "size", len)

    def __call__(self, model: Any, rows: Tensor) -> Tensor:
        mine, weight = share(rows)
        value = weight * self.loss(model, mine)
        total = value.detach().clone()
        dist.all_reduce(total)
        value = dist.get_world_size() * value
        return value + (total - value.detach())
