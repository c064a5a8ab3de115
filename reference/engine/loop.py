"""The one loop: slots that are refilled as soon as their requests have ended, so that nobody waits for the longest.

A sampler is a *machine*: it knows what to decode next, and what to do when something has ended. The loop knows when to
refill slots and when to go on with fewer.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from reference.engine.decoder import Prompts
from reference.engine.requests import Plan, Requests
from reference.interface import Cost, Generation, Samples

REFILL = 16  # while requests wait, 1 in so many slots may be idle: a stop costs as much as some idle rows
SHRINK = 4  # when none waits, go on with fewer slots as soon as no more than 1 in so many is busy


class Machine(Protocol):
    """S slots, each with a request of its own; neighbours in groups of `group` begin and end together."""

    prompts: Prompts

    @property
    def group(self) -> int: ...

    def load(self, slots: Tensor, requests: Requests) -> None:
        """Begin request i in slot slots[i]."""

    def advance(self) -> Tensor:
        """Decode in every slot that is running; bool [S]: the requests that have just ended."""

    def running(self) -> Tensor:
        """bool [S]: slots whose requests have not ended."""

    def keep(self, slots: Tensor) -> None:
        """Drop all slots but these; they are 0 .. len(slots) − 1 from now on."""

    def result(self, slots: Tensor) -> tuple[Samples, Tensor, Tensor]:
        """The responses of slots whose requests have ended, [n, 1]; for each the tokens that were decoded, and how many
        of them waited for each other, int64 [n]."""


def run(machine: Machine, plan: Plan, label: str) -> Generation:
    """All requests of a plan through a machine's slots: [prompts, requests for each]."""
    requests, S, device = plan.requests, plan.slots, plan.model.device
    R = len(requests)
    results, (decoded, waited) = (
        Samples.empty(R, 1, plan.horizon, device),
        torch.zeros_like(requests.index).repeat(2, 1),
    )
    free = torch.arange(S, device=device)
    of = torch.zeros_like(free)  # the request in each slot
    loaded = done = 0
    with tqdm(total=R, desc=label, unit="response", disable=None, leave=False) as progress:
        while done < R:
            over = free[:0]  # slots whose requests are over as they begin
            if len(free := free[: R - loaded]):
                of[free] = requests.index[loaded : loaded + len(free)]
                machine.load(free, requests[of[free]])
                loaded += len(free)
                over = free[~machine.running()[free]]
            else:  # no request waits
                groups = machine.running().view(-1, machine.group).any(1)
                going = groups.repeat_interleave(machine.group).nonzero()[:, 0]
                machine.keep(going)
                of, S = of[going], len(going)
            enough = max(1, S // REFILL) if loaded < R else max(1, S - S // SHRINK)
            waiting = machine.advance()
            waiting[over] = True
            while (count := int(waiting.sum())) < min(enough, loaded - done):
                waiting |= machine.advance()
            free = waiting.nonzero()[:, 0]
            ended, decoded[of[free]], waited[of[free]] = machine.result(free)
            plan.check_finite(ended.logp[:, 0], ended.logq[:, 0], of[free])
            results.put(of[free], ended)
            done += count
            progress.update(count)
    P, n = R // plan.each, plan.each
    samples = Samples(*(x.view(P, n, *x.shape[2:]) for x in results.tensors()))
    decoded, waited = decoded.view(P, n).sum(1), waited.view(P, n).amax(1)
    charged, calls = machine.prompts.length * n, torch.full((P,), n, device=device)
    counts = torch.stack((charged, machine.prompts.prefilled, decoded, waited, calls), 1)
    return Generation(samples, [Cost(*count) for count in counts.tolist()])
