"""The log-probability of given texts under a model, in batches that keep to a budget of memory.

    log p(y_t | x, y_<t) = logit of y_t after (x, y_<t) − logsumexp of all logits there

The head is applied only where some continuation is predicted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reference.interface import POSITIONS_PER_CALL, LanguageModel, check_horizons, check_prompts, prefill


@torch.no_grad()
def score(
    model: LanguageModel,
    prompts: Sequence[Sequence[int] | Tensor],
    continuations: Sequence[Sequence[int] | Tensor],
    *,
    logits_bytes: int = 1 << 28,
) -> list[Tensor]:
    """Log-probability of each token of continuations[i] after prompts[i], at temperature 1: float32 [length] each.

    Texts of like length share a batch, and both rows and positions are taken in chunks, so that no more than about
    `logits_bytes` of logits exist at a time. ValueError as in `generate`.
    """
    prompts, continuations = check_prompts(model, prompts), check_prompts(model, continuations, "continuation")
    if len(prompts) != len(continuations):
        raise ValueError(f"{len(prompts)} prompts but {len(continuations)} continuations; give one for each")
    texts = [torch.cat(pair)[:-1] for pair in zip(prompts, continuations)]  # the last token is never fed
    check_horizons(model, prompts, [len(continuation) for continuation in continuations])
    results: list[Tensor] = [torch.empty(0)] * len(texts)
    budget = max(1, logits_bytes // (8 * model.vocab_size))  # positions whose logits, and their sums, fit
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    while order:
        longest = len(texts[order[-1]])
        most = max(1, min(POSITIONS_PER_CALL // longest, budget // 64))
        rows = [order.pop() for _ in range(min(len(order), most))]
        tokens = torch.nn.utils.rnn.pad_sequence([texts[i] for i in rows], batch_first=True).to(model.device)
        targets = tokens.roll(-1, 1)
        for row, i in enumerate(rows):
            targets[row, len(texts[i]) - 1] = continuations[i][-1]
        positions = torch.arange(longest, device=model.device).expand(tokens.shape)
        cache = model.new_cache(len(rows), longest)
        first = min(len(prompts[i]) for i in rows) - 1  # before it nobody's continuation is predicted
        if first:
            prefill(model, tokens[:, :first], cache)
        logp = torch.zeros(tokens.shape, device=model.device)
        for a in range(first, longest, chunk := max(1, budget // len(rows))):
            part = slice(a, a + chunk)
            logits = model(tokens[:, part], positions[:, part], cache)
            chosen = logits.gather(-1, targets[:, part, None])[..., 0]
            logp[:, part] = (chosen - logits.logsumexp(-1)).float()
        for row, i in enumerate(rows):
            results[i] = logp[row, len(prompts[i]) - 1 : len(texts[i])].clone()
    for i, values in enumerate(results):
        if values.isnan().any():
            raise ValueError(f"the model's logits are not a law (NaN or infinite) for prompt {i}")
    return results
