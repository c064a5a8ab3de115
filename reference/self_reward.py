"""Self-rewards: scores of a model's own responses that need nothing but the model.

    r(y|x) = log π(y|x)                                          log-probability of the whole response
    r(y|x) = log π(y|x) / |y|                                    length-normalised, |y| in tokens
    r(y|x) = Σ π(y'|x) over the y' with ans(y') = ans(y)         majority vote, estimated by the share of the samples

(2412.01951, §2 and Appendix A.2; the theory is about the first.) Each maps `Samples` to float64 [prompts, n].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from reference.sampling import Samples


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
