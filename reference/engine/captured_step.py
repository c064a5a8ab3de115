"""One decoding step as a CUDA graph: the eager function, recorded once and replayed.

    seconds of an eager step ≥ kernels · (5 to 10 µs of the host for each),  of a replayed one ≥ what the kernels take

A step of a transformer is hundreds of small kernels, so at a few rows the GPU waits for the host. A graph is launched
at once. There is no second implementation: `Decoder.decode_one` is recorded as it stands, which asks three things.

    fixed addresses   slots, cache and weights are read and written where they are; nothing is put in their place
    no questions      nothing waits for the GPU, and no shape depends on a value there
    fixed sizes       what the host decides is the number of rows and how many positions attention reads. The latter is
                      rounded up (`KVCache.reach`), also for the eager step, so a few graphs serve and both are equal

The tests check all three without a GPU, by recording and replaying the operations on the CPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], Tensor]


def capture_of(model: Any) -> CapturedStep | None:
    """What captures a model's steps: nothing, unless it says `capture = True` and is on a GPU."""
    return CapturedStep(model.device) if getattr(model, "capture", False) and model.device.type == "cuda" else None


class CapturedStep:
    """Graphs of a step, one for each number of positions that attention reads."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.graphs: dict[int, tuple[Callable[[], Any], Tensor] | None] = {}
        self.pool: Any = None  # memory that the graphs share: they run one after the other and keep nothing in it
        self.stream: Any = None  # where they are recorded; of its own, since libraries keep workspaces by stream

    def __call__(self, step: Step, cache: Any, positions: Tensor) -> Tensor:
        """step(), which calls the model once, on this cache and at these positions."""
        cache.visible = visible = cache.reach(positions)  # the one small read of a step
        try:
            if visible not in self.graphs:  # the first is eager: it makes what is made once, such as library handles
                self.graphs[visible] = None
                return step()
            if (graph := self.graphs[visible]) is None:
                graph = self.graphs[visible] = self.record(step)
            replay, result = graph
            replay()
            return result.clone()  # the next replay writes there again
        finally:
            cache.visible = None

    def record(self, step: Step) -> tuple[Callable[[], Any], Tensor]:
        """Record a step without running it: what runs it, and where its result will stand."""
        self.stream = self.stream or torch.cuda.Stream(self.device)
        collects = gc.isenabled()
        gc.disable()  # an old graph that is collected meanwhile would spoil the new one
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.device(self.device), torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                result = step()
        finally:
            if collects:
                gc.enable()
        self.pool = self.pool or graph.pool()
        return graph.replay, result
