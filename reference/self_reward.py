"""Self-rewards: scores of a model's own responses that need nothing but the model.

    r(y|x) = log π(y|x)                                          log-probability of the whole response
    r(y|x) = log π(y|x) / |y|                                    length-normalised, |y| in tokens
    r(y|x) = Σ π(y'|x) over the y' with ans(y') = ans(y)         majority vote, estimated by the share of the samples
                                                                 or by the share of the particles' weight (SMC)
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
from reference.interface import TOLERANCE
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


def weighted_vote(answers: Sequence[Sequence[Hashable | None]], log_weights: Tensor) -> Tensor:
    """Majority vote of particles (`reference/power_smc.py`): the share of a cloud's weight that gives the same answer,
    float64 [clouds, N]. answers as for `majority_vote`; log_weights: log W, [clouds, N]. Multiplied by Ẑ it is without
    bias for Σ p(x)^α over the x that answer so (`theory/consensus.py`). ValueError: not an answer for each weight."""
    if [len(given) for given in answers] != [log_weights.shape[-1]] * len(log_weights):
        counts, shape = [*map(len, answers)], list(log_weights.shape)
        raise ValueError(f"{counts} answers for weights of shape {shape}; give one for each")
    rewards = torch.zeros_like(log_weights, dtype=torch.float64)
    for given, shares, reward in zip(answers, log_weights.double().softmax(-1), rewards):
        for answer in {*given} - {None}:
            own = torch.tensor([each == answer for each in given], device=rewards.device)
            reward[own] = shares[own].sum()
    return rewards


def consensus(answers: Sequence[Sequence[Hashable | None]], log_weights: Tensor) -> Tensor:
    """The heaviest particle of each cloud among those with the answer of most weight: its index, int64 [clouds]. Of
    answers that tie it is the heaviest particle's; where none can be read, the heaviest particle. Arguments as above.
    """
    votes = weighted_vote(answers, log_weights)
    behind = votes < votes.amax(-1, keepdim=True) - TOLERANCE
    return log_weights.masked_fill(behind, -torch.inf).argmax(-1)


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
