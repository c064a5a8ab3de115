"""Self-rewards: scores of a model's own responses that need nothing but the model.

    r(y|x) = log π(y|x)                                          log-probability of the whole response
    r(y|x) = log π(y|x) / |y|                                    length-normalised, |y| in tokens
    r(y|x) = Σ π(y'|x) over the y' with ans(y') = ans(y)         majority vote, estimated by the share of the samples
    r(y|x) = P(a vote on y says yes), over all stages            model as judge, estimated by the share of the votes

(2412.01951, §2 and Appendix A.2; the theory is about the first.) Each maps `Samples` to float64 [prompts, n].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reference.cascade import CascadeConfig, verify
from reference.sampling import Samples
from reference.text.text_model import TextModel


def log_probability(samples: Samples) -> Tensor:
    """log π(y|x) of each response, its stop token included."""
    return samples.total_logp()


def length_normalized(samples: Samples) -> Tensor:
    """log π(y|x) / |y|: does not prefer a response for being short."""
    return samples.total_logp() / samples.lengths


def majority_vote(answers: Sequence[Sequence[Hashable | None]]) -> Tensor:
    """The share of a prompt's n responses that give the same answer. answers[prompt][i]: what response i answers, None
    if nothing (reward 0, but counted among the n). Answers are equal if they compare equal: normalise them first."""
    rewards = []
    for given in answers:
        votes = Counter(answer for answer in given if answer is not None)
        rewards.append([votes[answer] / len(given) for answer in given])
    return torch.tensor(rewards, dtype=torch.float64)


def model_as_judge(
    speaker: TextModel, questions: Sequence[str], config: CascadeConfig | None = None, *, seed: int = 0,
    keys: Sequence[int | str] | None = None, **settings: Any,
) -> Callable[[Samples], Tensor]:  # fmt: skip
    """A reward for the questions' samples: the share of all votes of all stages that accept the response; 0 if it fails
    the static check. Arguments as for `reference.cascade.verify`; every vote is cast."""
    config = replace(config or CascadeConfig(), exit="none")

    def reward(samples: Samples) -> Tensor:
        record = verify(speaker, questions, speaker.texts(samples), config, seed=seed, keys=keys, **settings)
        return (record.votes == 1).double().mean((-2, -1)).to(samples.tokens.device)

    return reward
