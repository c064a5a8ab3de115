"""Sequential Monte Carlo for p^α on tiny models: the distribution of the whole cloud, and the moments of its
normaliser.

N particles grow by one token of a proposal q at a time; ended ones stay. The target of texts of t tokens is p^(α_t),
α_H = α, so a token multiplies a particle's weight by

    ω_t = p(x_<=t)^(α_t) / (p(x_<t)^(α_{t-1}) q(x_t|x_<t)),     α_t constant and q ∝ p^α: ω_t = exp ζ(x_<t).

When the effective sample size (Σ W)²/Σ W² is below κN (1 − 1e-6) the particles are drawn anew in proportion to W, and
W = 1. The estimate of Z = Σ p^α is Ẑ = Π mean W over the resamplings and the end; one particle is returned in
proportion to W.

    E[Ẑ Σ_i W_i f(x_i)/Σ_i W_i] = Σ_x p(x)^α f(x)      for every f, N, κ, and every resampling: no bias      claim P18
    E[Ẑ²] (multinomial, every token): two lineages, traced back, meet at each token with probability 1/N, so
        B_{t-1}(g, h) = (1 - 1/N) Σ q ω q ω B_t(gu, hv) + (1/N) Σ_v q(v|g) ω² B_t(gv, gv),   B_H = 1,   E[Ẑ²] = B_0

Chopthin (Gandy & Lau, 1502.07732) leaves unequal weights. With the mean weight 1, and a such that Σ h(W) = N for

    h(W) = min(W/a, 1) + max(2W/(ηa) − 1, 0),       which falls in a and is between 2W/(ηa) and W/a, so 2/η <= a <= 1,

the numbers of children C_i are drawn systematically, E[C_i] = h(W_i); a child of i has the weight max(W_i, a)/C_i:
    thinned, W < a: a child of weight a with probability W/a; kept, a <= W <= ηa/2: one child, as it was;
    chopped, W > ηa/2: h = 2W/(ηa) > 1 and C is h rounded down or up, so C >= 1 and the children's weights sum to W.
So E[Σ_children w' 1{of i}] = W_i for every i, and Ẑ stays without bias. A chopped child has W/C = (ηa/2) h/C, and h/C
is in (1/2, 2): its weight is in (ηa/4, ηa), and for η >= 4 all weights are in [a, ηa]. Then Σ (w' − a)(ηa − w') >= 0
gives (1 + η) a Σ w' >= Σ w'² + Nηa² >= 2 sqrt(Nηa² Σ w'²): an effective sample size of at least 4ηN/(1 + η)². claim P33

Sources: 2602.10273 (Power-SMC), §3; Cérou, Del Moral & Guyader 2011 for the second moment. The returned particle is
biased, by O(1/N): `cloud` sums over every outcome, for N and H up to three or four.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import inf
from typing import Literal

import numpy as np

from theory import power
from theory.power import Conditionals, Law, Record

TOLERANCE = 1e-6  # an effective sample size of exactly κN must not be resampled because of how it was rounded

Resampling = Literal["multinomial", "systematic", "chopthin"]
Particle = tuple[Record, float]  # text, log W


@dataclass(frozen=True)
class Growth:
    """How texts grow: q(v|h) and the weight of each token, at every exponent."""

    conditionals: Conditionals
    horizon: int
    alphas: Sequence[float]  # [horizon + 1]; the first belongs to the empty text
    tau: float | None  # temperature of the proposal; None: 1/α_t

    @classmethod
    def of(
        cls, conditionals: Conditionals, horizon: int, alpha: float, tau: float | None, ramp: Sequence[float] | None
    ):
        """`ramp`: α_1..α_H; None: alpha throughout."""
        alphas = [alpha] * horizon if ramp is None else list(ramp)
        if len(alphas) != horizon or alphas[-1] != alpha:
            raise ValueError(f"a ramp needs {horizon} exponents, the last of them {alpha}, not {alphas}")
        return cls(conditionals, horizon, [alphas[0], *alphas], tau)

    def options(self, text: Record, logp: float, t: int) -> list[tuple[Record, float, float, float]]:
        """(text, log p, q, log ω) after token t = 1..horizon."""
        before, alpha = self.alphas[t - 1], self.alphas[t]
        if len(text) < t - 1 or text not in self.conditionals:  # ended
            return [(text, logp, 1.0, (alpha - before) * logp)]
        law = self.conditionals[text]
        logq = power.tempered({text: law}, self.tau or 1 / alpha)[text]
        return [
            ((*text, int(v)), logp + law[v], np.exp(logq[v]), alpha * (logp + law[v]) - before * logp - logq[v])
            for v in np.flatnonzero(law > -inf)
        ]


# --- The whole cloud, by enumeration ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cloud:
    """What the particles amount to; distributions over the records of the horizon, in lexicographic order."""

    records: list[Record]
    returned: Law  # [n]: the distribution of the returned particle
    weighted: Law  # [n]: E[Ẑ Σ_i W_i 1{x_i = x}/Σ_i W_i]
    mean: float  # E[Ẑ]
    square: float  # E[Ẑ²]
    resamplings: float  # how many are expected


def ancestors(weights: Law, resampling: Resampling) -> Iterator[tuple[tuple[int, ...], float]]:
    """(the ancestor of each particle, its probability): every outcome of resampling by weights [N]."""
    n, share = len(weights), weights / weights.sum()
    if resampling == "multinomial":
        for chosen in product(range(n), repeat=n):
            yield chosen, float(np.prod(share[list(chosen)]))
        return
    cdf = share.cumsum() / share.cumsum()[-1]  # the points (u + i)/N, i = 0..N-1, of one u uniform on [0, 1)
    ends = np.unique(np.concatenate(([0.0, 1.0], (n * cdf[:-1]) % 1)))
    ends = ends[np.diff(ends, prepend=-1.0) > 1e-14]  # those that only rounding tells apart are one
    for low, high in pairwise(ends):
        points = ((low + high) / 2 + np.arange(n)) / n
        yield tuple(np.searchsorted(cdf, points, side="right").tolist()), float(high - low)


def chopthin(weights: Law, eta: float) -> tuple[Law, Law]:
    """(h, max(W, a)), [N] each, of weights [N] of mean 1: Σ h(W) = N is linear in 1/a between the 1/W and η/(2W)."""

    def expected(b: float) -> Law:
        return np.minimum(weights * b, 1) + np.maximum(2 * weights * b / eta - 1, 0)

    positive, n = weights[weights > 0], len(weights)
    knots = np.sort(np.concatenate(([0.0], 1 / positive, eta / 2 / positive)))
    knots = np.append(knots, 2 * knots[-1])
    total = np.array([expected(b).sum() for b in knots])
    k = int(np.argmax(total >= n - 1e-12)) if total[-1] >= n - 1e-12 else len(knots) - 1
    b = knots[k - 1] + (n - total[k - 1]) * (knots[k] - knots[k - 1]) / (total[k] - total[k - 1])
    return expected(b), np.maximum(weights, 1 / b)


def drawn_anew(
    particles: tuple[Particle, ...], weights: Law, resampling: Resampling, eta: float
) -> Iterator[tuple[tuple[Particle, ...], float]]:
    """(the cloud, its probability): every outcome of resampling, its weights in units of the mean weight."""
    if resampling != "chopthin":
        for parents, chance in ancestors(weights, resampling):
            yield resampled(particles, parents), chance
        return
    h, divided = chopthin(weights / weights.mean(), eta)
    for parents, chance in ancestors(h, "systematic"):
        yield tuple((particles[i][0], round(np.log(divided[i] / parents.count(i)), 12)) for i in parents), chance


def resampled(particles: tuple[Particle, ...], chosen: Sequence[int]) -> tuple[Particle, ...]:
    """Copies of the chosen, of equal weight."""
    return tuple((particles[i][0], 0.0) for i in chosen)


def cloud(
    conditionals: Conditionals,
    *,
    horizon: int,
    alpha: float,
    particles: int,
    tau: float | None = None,
    kappa: float = inf,  # resample when the effective sample size is below kappa·N, while a text is open; inf: always
    resampling: Resampling = "multinomial",
    ramp: Sequence[float] | None = None,
    eta: float = 3 + np.sqrt(8),
) -> Cloud:
    """The exact outcome. No resampling after the last token: it would change neither Ẑ nor the returned distribution.
    (Where all texts have ended before it, resampling would change the latter under a ramp; `inf` does it, as
    `second_moment`.)"""
    growth = Growth.of(conditionals, horizon, alpha, tau, ramp)
    records, logps = power.record_logps(conditionals, horizon)
    logp_of = {(): 0.0, **dict(zip(records, logps))}
    clouds: dict[tuple[Particle, ...], Law] = {(((), 0.0),) * particles: np.array([1.0, 1.0, 1.0])}
    resamplings = 0.0
    for t in range(1, horizon + 1):
        grown: dict[tuple[Particle, ...], Law] = {}
        for before, moments in clouds.items():  # moments: probability, and E[Ẑ], E[Ẑ²] so far on this event
            choices = [[(*o, w) for o in growth.options(text, logp_of[text], t)] for text, w in before]
            for chosen in product(*choices):
                logp_of |= {text: logp for text, logp, *_ in chosen}
                after = tuple((text, round(w + log_omega, 12)) for text, _, _, log_omega, w in chosen)
                add(grown, after, moments * float(np.prod([q for _, _, q, _, _ in chosen])), resampling)
        if t == horizon:
            break
        clouds = {}
        for after, moments in grown.items():
            weights = np.exp([w for _, w in after])
            is_open = any(len(text) == t and text in conditionals for text, _ in after)
            poor = weights.sum() ** 2 / (weights**2).sum() < kappa * particles * (1 - TOLERANCE)
            if poor and (is_open or kappa == inf):
                resamplings += moments[0]
                moments = moments * weights.mean() ** np.arange(3)
                for drawn, chance in drawn_anew(after, weights, resampling, eta):
                    add(clouds, drawn, moments * chance, resampling)
            else:
                add(clouds, after, moments, resampling)
    index = {record: i for i, record in enumerate(records)}
    returned, weighted, z = np.zeros(len(records)), np.zeros(len(records)), np.zeros(3)
    for after, moments in grown.items():
        weights = np.exp([w for _, w in after])
        moments = moments * weights.mean() ** np.arange(3)
        z += moments
        for (text, _), w in zip(after, weights / weights.sum()):
            returned[index[text]] += w * moments[0]
            weighted[index[text]] += w * moments[1]
    return Cloud(records, returned, weighted, float(z[1]), float(z[2]), resamplings)


def add(clouds: dict[tuple[Particle, ...], Law], particles: tuple[Particle, ...], moments: Law, resampling: Resampling):
    """Systematic resampling looks at the order of the particles, multinomial does not."""
    key = tuple(sorted(particles)) if resampling == "multinomial" else particles
    clouds[key] = clouds.get(key, 0.0) + moments


# --- The normaliser for any number of particles ----------------------------------------------------------------------


def second_moment(
    conditionals: Conditionals,
    *,
    horizon: int,
    alpha: float,
    particles: int,
    tau: float | None = None,
    ramp: Sequence[float] | None = None,
) -> float:
    """E[Ẑ²] under multinomial resampling after every token: B_0 of the docstring."""
    growth = Growth.of(conditionals, horizon, alpha, tau, ramp)
    levels: list[tuple[Law, Law]] = []  # for each token: Σ q ω and Σ q ω² from text to text
    texts: dict[Record, float] = {(): 0.0}
    for t in range(1, horizon + 1):
        options = [growth.options(text, logp, t) for text, logp in texts.items()]
        texts = {text: logp for found in options for text, logp, _, _ in found}
        column = {text: j for j, text in enumerate(texts)}
        first, second = np.zeros((2, len(options), len(texts)))
        for i, found in enumerate(options):
            for text, _, q, log_omega in found:
                first[i, column[text]], second[i, column[text]] = q * np.exp(log_omega), q * np.exp(2 * log_omega)
        levels.append((first, second))
    pairs = np.ones((len(texts), len(texts)))
    for first, second in reversed(levels):
        pairs = (1 - 1 / particles) * first @ pairs @ first.T + (second @ np.diag(pairs))[:, None] / particles
    return float(pairs[0, 0])
