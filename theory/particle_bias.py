"""The bias of the particle that sequential Monte Carlo returns: its first order in 1/N, and bounds for every N.

In a cloud of N particles (theory/particles.py) the estimates γ̂(f) = Ẑ Σ W f/Σ W are without bias: E γ̂(f) = Z π(f),
π ∝ p^α. The returned particle has the law r(f) = E[γ̂(f)/γ̂(1)], whose denominator varies; hence its bias. Cut the H
tokens into *stretches* at the resamplings; let m_b be the distribution in which a particle stands at the end t_b of
stretch b when N is infinite, π_b that of the first t_b tokens of a draw of π, and

    u_b(x) = π_b(x_<=t_b)/m_b(x_<=t_b),        E_π u_b = 1 + χ²(π_b | m_b).

First order (multinomial).   N (r(x) - π(x)) → -π(x) Σ_b (u_b(x) - E_π u_b)                                claim P29

    With f' = f - π(f), E γ̂(f') = 0, so r(f') = E[γ̂(f') (1/γ̂(1) - 1/Z)] = -E[γ̂(f') γ̂(1)]/Z² + O(1/N²), third central
    moments being O(1/N²). Two lineages, traced back, meet at the end of stretch b with probability 1/N (the recursion
    B of theory/particles.py, with f' and 1 at its end). To first order they meet once; then the pair is worth
    Z² Σ_g m_b(g) u_b(g)² E_π[f'|g] = Z² E_π[u_b f'], and where they do not meet π(f') π(1) = 0. With κN as threshold
    the effective sample size over N tends to (E W)²/E W²; unless that is κ itself, a finite cloud resamples elsewhere
    with a probability that falls exponentially, and the stretches are those of the limit.

So TV(r, π) ~ C/N, C = ½ E_π|Σ_b (u_b - E_π u_b)|, and N = C/ε particles bring the bias to ε. Without resampling the one
stretch has u = π/q, for H independent tokens a product of H ratios, whose spread grows exponentially in H; resampled at
each token there are H terms, each the ratio of one token: C grows like √H. Where weights do not tell
what comes, resampling raises C.

Every N, κ, ramp and resampling.    KL(π | r) <= log(E[Ẑ²]/Z²) <= Var[Ẑ]/Z²                                 claim P29

    Under the measure with density γ̂(x)/(Z π(x)), Jensen's inequality for 1/z: r(x) = Z π(x) E_x[1/Ẑ] >= Z π(x)/E_x[Ẑ].
    So π(x)/r(x) <= E[γ̂(x) Ẑ]/(Z² π(x)), whose mean under π is E[Ẑ²]/Z²; take logarithms and Jensen again.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import inf

import numpy as np
from scipy.special import gammaln, xlogy

from theory import power
from theory.particles import TOLERANCE, Growth
from theory.power import Conditionals, Law, Record


def is_resampled(mass: Law, weights: Law, kappa: float, is_open: bool) -> bool:
    """Whether particles of these shares [k] and weights [k] are drawn anew before the last token, as in `cloud`."""
    ess = (mass @ weights) ** 2 / (mass @ weights**2)
    return bool(ess < kappa * (1 - TOLERANCE)) and (is_open or kappa == inf)


def ratios(
    conditionals: Conditionals,
    *,
    horizon: int,
    alpha: float,
    tau: float | None = None,
    kappa: float = inf,
    ramp: Sequence[float] | None = None,
) -> tuple[Law, Law]:
    """π [n] and u [stretches, n] over the records of the horizon, in lexicographic order."""
    growth = Growth.of(conditionals, horizon, alpha, tau, ramp)
    records, logps = power.record_logps(conditionals, horizon)
    target = power.power_law(logps, alpha)
    cloud: dict[Record, tuple[float, float, float]] = {(): (0.0, 1.0, 0.0)}  # text: log p, mass, log W
    found = []
    for t in range(1, horizon + 1):
        cloud = {
            y: (logp_y, mass * q, log_w + log_omega)
            for x, (logp, mass, log_w) in cloud.items()
            for y, logp_y, q, log_omega in growth.options(x, logp, t)
        }
        logp, mass, log_w = np.array([*cloud.values()]).T
        is_open = any(len(text) == t and text in conditionals for text in cloud)
        if t == horizon or is_resampled(mass, np.exp(log_w), kappa, is_open):
            wanted: dict[Record, float] = defaultdict(float)
            for record, chance in zip(records, target):
                wanted[record[:t]] += chance
            found.append([wanted[record[:t]] / cloud[record[:t]][1] for record in records])
            mass = mass * np.exp(log_w)
            cloud = {text: (s, m, 0.0) for text, s, m in zip(cloud, logp, mass / mass.sum())}
    return target, np.array(found)


def first_order(target: Law, u: Law) -> Law:
    """lim N (r - π) [n], from π [n] and u [stretches, n]."""
    return -target * (u.sum(0) - u.sum(0) @ target)


# --- The law itself, for more particles than `cloud` can list --------------------------------------------------------


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """The ways to share `total` among `parts`."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in compositions(total - first, parts - 1):
            yield (first, *rest)


def multinomial(counts: Law, shares: Law) -> Law:
    """The probability [m] of each of the counts [m, k] in as many draws of shares [k]."""
    return np.exp(gammaln(counts.sum(1) + 1) + (xlogy(counts, shares) - gammaln(counts + 1)).sum(1))


def returned(
    conditionals: Conditionals,
    *,
    horizon: int,
    alpha: float,
    particles: int,
    tau: float | None = None,
    kappa: float = inf,
    ramp: Sequence[float] | None = None,
) -> Law:
    """r [n] under multinomial resampling, by sums over how many particles hold each text: for a few texts, N up to some
    fifty. A particle's weight is a function of its text and of when the cloud was last resampled."""
    growth = Growth.of(conditionals, horizon, alpha, tau, ramp)
    texts: dict[Record, float] = {(): 0.0}  # log p
    clouds: dict[tuple[tuple[int, ...], tuple[float, ...]], float] = {((particles,), (0.0,)): 1.0}  # counts, log W
    for t in range(1, horizon + 1):
        options = [growth.options(x, logp, t) for x, logp in texts.items()]
        shares = [np.array([q for _, _, q, _ in found]) for found in options]
        grown: dict[tuple[tuple[int, ...], tuple[float, ...]], float] = defaultdict(float)
        for (counts, log_w), chance in clouds.items():
            split: dict[tuple[int, ...], float] = {(): chance}
            for count, q in zip(counts, shares):
                ways = [*compositions(count, len(q))]
                chances = multinomial(np.array(ways), q)
                split = {(*old, *new): c * d for old, c in split.items() for new, d in zip(ways, chances)}
            after = tuple(w + log_omega for found, w in zip(options, log_w) for _, _, _, log_omega in found)
            for new, c in split.items():
                grown[new, after] += c
        texts = {text: logp for found in options for text, logp, _, _ in found}
        opened = np.array([len(text) == t and text in conditionals for text in texts])
        everyone, flat = np.array([*compositions(particles, len(texts))]), (0.0,) * len(texts)
        clouds, drawn = defaultdict(float), np.zeros(len(everyone))
        law = np.zeros(len(texts))  # of a particle picked by weight after this token
        for (counts, log_w), chance in grown.items():
            mass, weights = np.array(counts) / particles, np.exp(log_w)
            share = mass * weights / (mass @ weights)
            law += chance * share
            if t < horizon and is_resampled(mass, weights, kappa, bool(opened[mass > 0].any())):
                drawn += chance * multinomial(everyone, share)
            else:
                clouds[counts, log_w] += chance
        for new, chance in zip(everyone.tolist(), drawn):
            clouds[tuple(new), flat] += chance
    return np.array([chance for _, chance in sorted(zip(texts, law))])
