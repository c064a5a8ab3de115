"""How biased the particle is that Power-SMC returns: the coefficient of 1/N, in closed form (claim P29).

Texts h = x_≤t (all of x once it has ended). π_t is the distribution of h under π ∝ p^α, η_t that of h as it is drawn:
its last token by q, the rest by the law that the particles were resampled to, ∝ p^α of the text so far; without any
resampling η is q itself, and only t = H counts. With r_t = π_t/η_t,

    N (Pr[returned = x] − π(x))  →  π(x) Σ_t (E_π r_t − r_t(x_≤t)),         N → ∞,

for multinomial resampling after every token, and with the one term t = H without. (The second-order expansion of a
Feynman-Kac flow, Σ_t η_t[Q_t1 · Q_t(f − πf)], Del Moral 2004, §9.4: Q_t1 = r_t, and Q_t f = r_t E_π[f | h].) A text
that the proposal undervalues, r large, is returned too seldom. For a bias below ε take N above the coefficient's sum of
absolute values, halved, over ε. Resampling adds terms for early tokens; it pays where they are smaller than what they
take from the last: where weights of early tokens are wild, and later ones do not undo them.
"""

import numpy as np

from theory.power import Conditionals, Law, Record, power_law, record_logps, tempered


def ratios(conditionals: Conditionals, alpha: float, horizon: int, tau: float | None, resampled: bool) -> list[Law]:
    """r_t at each record's beginning, [n] for each t: 1..H, or of H alone."""
    records, logp = record_logps(conditionals, horizon)
    target = power_law(logp, alpha)
    p, q = (
        {h: np.exp(law) for h, law in laws.items()} for laws in (conditionals, tempered(conditionals, tau or 1 / alpha))
    )

    def chance(law: dict[Record, Law], text: Record) -> float:
        return float(np.prod([law[text[:i]][v] for i, v in enumerate(text)]))

    found = []
    for t in range(1, horizon + 1) if resampled else [horizon]:
        here: dict[Record, float] = {}
        for record, mass in zip(records, target):
            here[record[:t]] = here.get(record[:t], 0.0) + float(mass)
        drawn = {h: chance(q, h) for h in here}
        if resampled:
            before = {h[: t - 1]: chance(p, h[: t - 1]) ** alpha for h in here}
            total = sum(before.values())
            last = {h: q[h[:-1]][h[-1]] if len(h) == t else 1.0 for h in here}
            drawn = {h: before[h[: t - 1]] / total * last[h] for h in here}
        found.append(np.array([here[record[:t]] / drawn[record[:t]] for record in records]))
    return found


def bias(
    conditionals: Conditionals, alpha: float, horizon: int, *, tau: float | None = None, resampled: bool = True
) -> Law:
    """lim N (Pr[returned] − π), [n] over the records of the horizon in lexicographic order."""
    target = power_law(record_logps(conditionals, horizon)[1], alpha)
    found = ratios(conditionals, alpha, horizon, tau, resampled)
    return target * sum(target @ r - r for r in found)


def particles_enough(coefficient: Law, epsilon: float) -> int:
    """N with a bias of about ε in total variation: half of Σ |coefficient| / ε."""
    return int(np.ceil(np.abs(coefficient).sum() / 2 / epsilon))
