"""A number of steps that is enough for a chain on one prompt, from an estimate of Σ p^α (claim P34).

Suffix Metropolis-Hastings on texts of at most H tokens, α ≥ 1, proposal temperature τ with 1 ≤ 1/τ ≤ α, cut uniform on
1..H ("horizon") or on the record ("record"). Write Z = Σ p^α, π = p^α/Z, w = p^α/q with q the proposal of whole texts.

1. Token by token w is a product of factors p^(α−1/τ) Σ_v p(v)^(1/τ), each at most 1. So w ≤ W ≤ 1, where W may be any
   bound on w: 1, or the first token's factor at its greatest, which one look at the model gives.
2. A cut at 1 has probability 1/H, and then K(x, y) ≥ q(y) min(1, w(y)/w(x))/H ≥ q(y) w(y)/(W H) = Z/(W H) π(y).
   On the record it has probability 1/|x|, and the ratio the factor |x|/|y|: q(y) min(1/|x|, w(y)/(w(x) |y|)) is no
   less, since |x|, |y| ≤ H and w(y) ≤ W.
3. So K = δ π + (1 − δ) K' with δ = Z/(W H) (Doeblin), and from any start TV(K^N, π) ≤ (1 − δ)^N. Blocks before the
   last change the start alone: the steps of the last block count.
4. Power-SMC's Ẑ has E Ẑ = Z (claim P18), so Pr[Z < ρ Ẑ] ≤ Pr[Ẑ > Z/ρ] ≤ ρ (Markov), and the least of m independent
   clouds is that large with probability ρ^m at most (claim P37): with probability 1 − ρ^m over the particles
   Z ≥ ρ min Ẑ, and the steps that ρ min Ẑ asks for are enough. At a confidence of .95 one cloud costs a factor 20,
   five cost 1.8.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from theory.power import Law


def rate(log_z: float, horizon: int, log_w: float = 0.0) -> float:
    """δ = Z/(W H): the share of a step that forgets where it was."""
    return min(1.0, math.exp(log_z - log_w) / horizon)


def distance(log_z: float, horizon: int, steps: int, log_w: float = 0.0) -> float:
    """The greatest total variation to p^α after so many steps of the last block."""
    return (1 - rate(log_z, horizon, log_w)) ** steps


def steps_enough(log_z: float, horizon: int, tv: float, log_w: float = 0.0) -> float:
    """The least N with (1 − δ)^N ≤ tv; inf where δ is 0 in float64."""
    forgets = rate(log_z, horizon, log_w)
    if forgets == 0:
        return math.inf
    return 0.0 if tv >= 1 else 1.0 if forgets == 1 else float(math.ceil(math.log(tv) / math.log1p(-forgets)))


def first_factor(p: Law, alpha: float, tau: float | None = None) -> float:
    """log W: the greatest of log p(v)^(α−1/τ) Σ_u p(u)^(1/τ) over first tokens v, from their distribution p."""
    cold = alpha if tau is None else 1 / tau
    kept = p[p > 0]
    return float(np.log((kept**cold).sum()) + (alpha - cold) * np.log(kept.max()))


def with_confidence(log_z: ArrayLike, miss: float) -> NDArray[np.float64]:
    """log ρ min Ẑ, ρ = miss^(1/m), of m clouds' log Ẑ [.., m]: above log Z with probability at most `miss`."""
    clouds = np.atleast_1d(np.asarray(log_z, dtype=np.float64))
    return clouds.min(-1) + math.log(miss) / clouds.shape[-1]
