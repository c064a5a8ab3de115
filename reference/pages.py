"""The register of pages: each algorithm as one page of straight code, and the batched function that returns its tokens.

    page(model, prompt, config, *, stop_ids, chance)    one prompt and one chain, cloud, ladder or response: an object
                                                        with `tokens` and what else the algorithm knows, by the names
                                                        that these have in the batched result
    batched(model, prompts, config, *, stop_ids, samples_per_prompt, slots, seed, keys)    many at a time

    page(..., chance=Drawn(seed, key, i))   ==   batched(..., seed=seed, keys=[key]).samples[0][i]

token by token, whatever the batch and the slots. With another chance the same page is enumerated, by
`theory/exact_law.py`. The pages of the cascade and of UQ-TTC take votes, `vote(stage, j) -> bool`, in place of a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from reference.best_of_n import (
    AdaptiveConfig,
    BestOfNConfig,
    adaptive_best_of_n,
    adaptive_best_of_n_page,
    best_of_n,
    best_of_n_page,
)
from reference.cascade import CascadeConfig, cascade_page, verify
from reference.lookahead import LookaheadConfig, lookahead, lookahead_page
from reference.multiple_try import MultipleTryConfig, multiple_try, multiple_try_page
from reference.parallel_tempering import TemperingConfig, parallel_tempering, parallel_tempering_page
from reference.power_sampling import PowerConfig, power_sample, power_sampling_page
from reference.power_smc import SMCConfig, power_smc, power_smc_page
from reference.sampling import GenerateConfig, generate, generate_page
from reference.self_verified_distillation import SVDConfig
from reference.uq_ttc import uq_ttc, uq_ttc_page


@dataclass(frozen=True)
class Page:
    """An algorithm: its page, its batched function, the dataclass of its settings."""

    page: Callable[..., Any]
    batched: Callable[..., Any]
    config: type
    takes: str = "model"  # or "votes"


PAGES = {
    "generate": Page(generate_page, generate, GenerateConfig),
    "best_of_n": Page(best_of_n_page, best_of_n, BestOfNConfig),
    "adaptive_best_of_n": Page(adaptive_best_of_n_page, adaptive_best_of_n, AdaptiveConfig),
    "power_sampling": Page(power_sampling_page, power_sample, PowerConfig),
    "multiple_try": Page(multiple_try_page, multiple_try, MultipleTryConfig),
    "parallel_tempering": Page(parallel_tempering_page, parallel_tempering, TemperingConfig),
    "power_smc": Page(power_smc_page, power_smc, SMCConfig),
    "lookahead": Page(lookahead_page, lookahead, LookaheadConfig),
    "cascade": Page(cascade_page, verify, CascadeConfig, takes="votes"),
    "uq_ttc": Page(uq_ttc_page, uq_ttc, SVDConfig, takes="votes"),
}
