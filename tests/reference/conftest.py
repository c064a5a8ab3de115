"""What the tests of the pages share: an enumeration runs the same page thousands of times."""

from functools import cache

import pytest

from reference import best_of_n, lookahead, multiple_try, parallel_tempering, power_sampling, power_smc, sampling

PAGES = [best_of_n, lookahead, multiple_try, parallel_tempering, power_sampling, power_smc, sampling]


@pytest.fixture
def remember(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages run with what they compute of a text (its logits, its log-probabilities) remembered: functions without
    chance, which every path calls anew."""
    for name in ("next_logits", "log_probs"):
        remembered = cache(getattr(sampling, name))
        for module in PAGES:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, remembered)
