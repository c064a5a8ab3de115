"""The ledger: every call that an algorithm makes for a problem, and the two budgets of 2510.01123 that follow from it.

    B_total = Σ over all calls (in + out)                  what is paid for
    B_seq   = Σ over the accepted path (in + out)          what is waited for, if whatever may run side by side does

in: prompt tokens; out: response tokens, thinking and stop token included. A *step* is what is asked side by side for a
problem; a step waits for the one before, and puts one call on the accepted path. The paper does not say which of a
parallel round's calls that is: the longest (`max`) is what is waited for, and the mean is reported beside it.

Algorithms that compose prompts in words ask through a ledger. It numbers the steps, derives each step's seed, and gives
each of a problem's prompts in a step its own address, so that what is drawn depends neither on the other problems nor
on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import Tensor

from reference.interface import Cost, Samples
from reference.sampling import child_seed, key_of
from reference.text.text_model import Stage, TextModel

Prompts = Sequence[Sequence[Sequence[int]]]  # [problem][prompt]: ids
Text = tuple[Sequence[int], Tensor]  # a call's prompt and response: ids


@dataclass(frozen=True)
class Call:
    """One call: what it was for, and its tokens."""

    step: int
    role: str
    prompt: int  # tokens in
    response: int  # tokens out

    @property
    def tokens(self) -> int:
        return self.prompt + self.response


class Ledger:
    """Asks a `TextModel` on behalf of problems, and keeps account of it."""

    def __init__(
        self,
        speaker: TextModel,
        questions: Sequence[str],
        seed: int = 0,
        keys: Sequence[int | str] | None = None,
        **settings: Any,
    ):
        """keys: what addresses a problem's randomness (default: its index). settings: for all calls, as for `generate`.

        ValueError: no question, or another number of keys.
        """
        if not questions or (keys is not None and len(keys) != len(questions)):
            given = "no keys" if keys is None else f"{len(keys)} keys"
            raise ValueError(f"{len(questions)} questions with {given}; give at least one question, and a key for each")
        self.speaker, self.questions, self.seed, self.settings = speaker, list(questions), seed, settings
        self.keys = [key_of(key) for key in (keys if keys is not None else range(len(questions)))]
        self.calls: list[list[Call]] = [[] for _ in questions]  # per problem
        self.texts: list[list[Text]] = [[] for _ in questions]  # per problem, of each call: ids, to be trained on
        self.costs = [Cost()] * len(questions)  # per problem, as counted by the decoder
        self.steps = 0
        self.samples: Samples  # of the last step that asked anything

    def ask(self, role: str, prompts: Prompts, **settings: Any) -> list[list[list[str]]]:
        """One step: texts[problem][prompt][sample] of the replies to each problem's prompts (there may be none).

        settings: those of `generate`, without seed and keys. ValueError: what `generate` refuses.
        """
        self.steps += 1
        owners = [i for i, own in enumerate(prompts) for _ in own]
        if not owners:
            return [[] for _ in prompts]
        # A problem's only prompt has the problem's own key, so that a first step draws what `generate` draws
        keys = [child_seed(key, j) if j else key for key, own in zip(self.keys, prompts) for j in range(len(own))]
        flat = [prompt for own in prompts for prompt in own]
        seed = child_seed(self.seed, self.steps)
        texts, out = self.speaker.reply(flat, seed=seed, keys=keys, **self.settings, **settings)
        replies: list[list[list[str]]] = [[] for _ in prompts]
        shares: list[list[Cost]] = [[] for _ in prompts]
        responses = zip(out.samples.tokens, out.samples.lengths.tolist())
        for i, prompt, each, (tokens, lengths), cost in zip(owners, flat, texts, responses, out.costs):
            replies[i].append(each)
            shares[i].append(cost)
            self.calls[i] += [Call(self.steps, role, len(prompt), length) for length in lengths]
            self.texts[i] += [(prompt, row[:length]) for row, length in zip(tokens, lengths)]
        self.costs = [cost + Cost.parallel(share) for cost, share in zip(self.costs, shares)]
        self.samples = out.samples
        return replies

    def hold(self, name: str, stage: Stage, candidates: Sequence[Sequence[str]], **settings: Any) -> list[list[Any]]:
        """The stage's verdict on each problem's candidates, which take its turns side by side; a step for each turn."""
        cases = [(question, each) for question, own in zip(self.questions, candidates) for each in own]

        def ask(turn: int, prompts: list[list[Sequence[int]]]) -> list[list[str]]:
            waiting = iter(prompts)
            texts = self.ask(
                name, [[prompt for _ in own for prompt in next(waiting)] for own in candidates], **settings
            )
            said = (reply for own in texts for (reply,) in own)
            return [[next(said) for _ in own] for own in prompts]

        verdicts = iter(stage.judge(cases, ask))
        return [[next(verdicts) for _ in own] for own in candidates]

    def b_total(self) -> list[int]:
        """B_total of each problem."""
        return [sum(call.tokens for call in calls) for calls in self.calls]

    def b_seq(self, branch: Callable = max) -> list[float]:
        """B_seq of each problem; `branch` (max, or fmean for the mean) says what a step's calls count together."""
        steps = range(1, self.steps + 1)
        by_step = [[[call.tokens for call in calls if call.step == step] for step in steps] for calls in self.calls]
        return [sum(branch(tokens) for tokens in problem if tokens) for problem in by_step]

    def budgets(self) -> dict[str, float]:
        """Means over the problems."""
        return {"B_seq": fmean(self.b_seq()), "B_seq, mean branch": fmean(self.b_seq(fmean)),
                "B_total": fmean(self.b_total())}  # fmt: skip

    def longest_prompt(self) -> list[int]:
        """The longest prompt of each step, in tokens: the context that it needs, besides its response."""
        longest = [0] * self.steps
        for call in (call for calls in self.calls for call in calls):
            longest[call.step - 1] = max(longest[call.step - 1], call.prompt)
        return longest
