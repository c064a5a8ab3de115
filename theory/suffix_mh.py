"""Suffix Metropolis-Hastings for p^α as exact matrices: one step, by every rule, right or wrong.

A step at record x cuts at r, keeps x_<r, draws y_>=r from the proposal q, and accepts with probability
min(1, A). Given r this is Metropolis-Hastings for π ∝ p^α:   A = p^α(y) q(x_>=r) / (p^α(x) q(y_>=r)) = w(y)/w(x),
w = p^α/q, because the kept prefix cancels. A mixture over cuts that are drawn without looking at x keeps π:

    cut="horizon":  r uniform on 1..h; a cut behind the end of x leaves x as it is
    cut="record":   r uniform on 1..|x|, and A = w(y) |x| / (w(x) |y|)

    K(x, y) = min(1, A) Σ_{r <= lcp(x,y)+1} q(y_>=r | x_<r) / #cuts(x)    for y ≠ x, lcp = length of the common prefix.

More generally the cut r in 1..|x| may have any weight that depends on x_<r alone, as in `EntropyCut` (2605.30327); 1 in
"record". Then x and y, which share x_<r, have the same weight there, and the factor c_y(r)/c_x(r) of the normalised
weights c is C(x)/C(y) at every r, C the sum of the weights over a record; it takes the place of |x|/|y|.

Multiple tries (independent, 2606.09926): K draws y_1..y_K of the ending after one cut, one picked in proportion to
w_j = A(x, y_j), accepted with probability min(1, W/(W - w_j + 1)), W = Σ w_j. In absolute weights v = w/C the pick has
chance v(y_j)/V, so with S the sum of the K-1 other v,

    K_r(x, y) = K q(y) v(y) E[1/(S + v(y)) min(1, (S + v(y))/(S + v(x)))] = K q(y) v(y) E[1/(S + max(v(x), v(y)))],

and π(x) c_x(r) K_r(x, y) is symmetric in x and y: for this the 1 in the denominator is needed.            claim P16

`rule` names what public implementations do instead (facts and sources: 2510.14901 §4 and its code; 2605.30327; PPT):

    wrong_sign        A = p^α(y) q(y)/(p^α(x) q(x)): the sign of the proposal term is reversed; keeps p^α q^2
    no_proposal       A = p^α(y)/p^α(x); keeps p^α q
    no_length_factor  cut="record" without |x|/|y|, or an entropy cut without C(x)/C(y)
    literal           the paper's Algorithm 1 to the letter: the first token is never cut; reducible
    nested            only the last block is cut; tends to Π_k p^α(block k | prefix), normalised block by block
    early_exit        a record that has ended after a stage is returned
    authors           early_exit; cuts uniform on the length, no factor; proposals no longer than x; A compares
                      y with x truncated to |y|. Its states include open texts shorter than the horizon.
Ignoring the end during refinement is the exact rule on conditionals enumerated without stop ids, then `trim`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from theory import power
from theory.importance import inverse_mean
from theory.power import Conditionals, Law, Record


@dataclass(frozen=True)
class EntropyCut:
    """The cut r in 1..|x| has weight floor + max(0, H_r - H_{r-1})^beta, H_r the entropy of p(.|x_<r), H_0 = 0.

    All weights are 0 only where nothing is left to chance, and the first cut before which all is certain is the same
    for all records: so the chain is irreducible without a floor.
    """

    beta: float = 4.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.beta < 0 or self.floor < 0:
            raise ValueError(f"an entropy cut needs beta >= 0 and floor >= 0, not {self.beta}, {self.floor}")


Cut = Literal["horizon", "record"] | EntropyCut
Rule = Literal["exact", "wrong_sign", "no_proposal", "no_length_factor", "literal", "nested", "early_exit", "authors"]
PROPOSAL_TERM = {"wrong_sign": 1.0, "no_proposal": 0.0}  # times log q in the log weight; -1 is right


@dataclass(frozen=True)
class Texts:
    """Texts that the proposal can draw, in lexicographic order: n of them, at most `horizon` tokens each."""

    horizon: int
    texts: list[Record]
    ended: NDArray[np.bool_]  # [n]; at the horizon itself all are taken for ended
    logp: Law  # [n, horizon]: log-probability of each token, 0 behind the end
    logq: Law  # [n, horizon]: the same under the proposal
    entropy: Law  # [n, horizon]: of p(.|x_<r), in nats

    @cached_property
    def length(self) -> NDArray[np.int64]:
        """[n]"""
        return np.array([len(text) for text in self.texts])

    @cached_property
    def shared(self) -> NDArray[np.int64]:
        """[n, n]: the length of the common prefix."""
        tokens = np.array([[*text, *[-1] * (self.horizon - len(text))] for text in self.texts])
        same = np.cumprod(tokens[:, None] == tokens, axis=2).sum(2)
        return np.minimum(same, np.minimum(self.length[:, None], self.length))

    @cached_property
    def suffix(self) -> Law:
        """[n, horizon + 1]: column r - 1 is q(x_>=r | x_<r), the chance to draw the rest after a cut at r."""
        log_suffix = np.cumsum(self.logq[:, ::-1], axis=1)[:, ::-1]
        return np.exp(np.pad(log_suffix, ((0, 0), (0, 1))))

    def are_records(self, horizon: int | NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which are records of a horizon, [n]; of each of several horizons [m, 1], [m, n]."""
        return (self.length == horizon) | (self.ended & (self.length < horizon))

    def only(self, chosen: NDArray[np.bool_], horizon: int) -> "Texts":
        """The chosen [n] texts, of at most `horizon` tokens."""
        texts = [text for text, keep in zip(self.texts, chosen) if keep]
        per_token = (table[chosen, :horizon] for table in (self.logp, self.logq, self.entropy))
        return Texts(horizon, texts, self.ended[chosen], *per_token)


def all_texts(conditionals: Conditionals, proposal: Conditionals, horizon: int) -> Texts:
    """Every text of 0..horizon tokens, ended or open, to which `proposal` gives positive probability."""
    texts = sorted({record[:n] for record in power.record_logps(proposal, horizon)[0] for n in range(len(record) + 1)})
    logp, logq, entropy = np.zeros((3, len(texts), horizon))
    of = {prefix: float(entr(np.exp(law)).sum()) for prefix, law in conditionals.items()}
    for i, text in enumerate(texts):
        for t, token in enumerate(text):
            logp[i, t], logq[i, t] = conditionals[text[:t]][token], proposal[text[:t]][token]
            entropy[i, t] = of[text[:t]]
    ended = np.array([len(text) == horizon or text not in conditionals for text in texts])
    return Texts(horizon, texts, ended, logp, logq, entropy)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The keyword arguments of `chain`, `schedule`, `blocked_law` and cost.expected_tokens."""

    horizon: int
    alpha: float
    tau: float | None = None  # temperature of the proposal; None: 1/alpha
    block: int | None = None  # B; None: the horizon
    steps: int = 0  # N, in each stage
    cut: Cut = "horizon"
    rule: Rule = "exact"
    top_k: int | None = None  # the proposal is restricted to so many tokens, after the temperature
    tries: int = 1  # K, proposals in each step

    def __post_init__(self) -> None:
        for name, least in (("horizon", 1), ("block", 1), ("steps", 0), ("top_k", 1), ("tries", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"a setting needs {name} >= {least}, not {value}")
        if not isinstance(self.cut, EntropyCut) and self.cut not in ("horizon", "record"):
            raise ValueError(f"a setting needs cut 'horizon', 'record' or an EntropyCut, not {self.cut!r}")
        if self.alpha <= 0 or (self.tau is not None and self.tau <= 0):
            raise ValueError(f"a setting needs alpha > 0 and tau > 0, not {self.alpha}, {self.tau}")

    def texts(self, conditionals: Conditionals) -> Texts:
        proposal: Conditionals = power.tempered(conditionals, self.tau or 1 / self.alpha)
        if self.top_k is not None:
            proposal = power.top_k(proposal, self.top_k)
        return all_texts(conditionals, proposal, self.horizon)

    def cuts(self, h: int) -> range:
        """Of a stage with horizon h."""
        if self.rule == "literal":
            return range(2, h + 2)  # m in 1..h of tokens that count from 0: h itself cuts nothing
        if self.rule == "nested":
            block = self.block or self.horizon
            return range((h - 1) // block * block + 1, h + 1)
        return range(1, h + 1)


def cut_weights(states: Texts, cut: Cut, cuts: range) -> Law:
    """[n, horizon]: the weight of each cut of `cuts` at each state, 0 behind its end."""
    r = np.arange(1, states.horizon + 1)
    inside = ((r >= cuts[0]) & (r <= np.minimum(states.length[:, None], cuts[-1]))).astype(np.float64)
    if isinstance(cut, str):
        return inside
    return inside * (cut.floor + np.maximum(np.diff(states.entropy, axis=1, prepend=0), 0) ** cut.beta)


def cut_counts(states: Texts, cut: Cut, cuts: range) -> Law:
    """The weight of all cuts at each state, [n]; a state that has none stays (and counts as 1)."""
    if cut == "horizon":
        return np.full(len(states.texts), float(len(cuts)))
    total = cut_weights(states, cut, cuts).sum(1)
    return np.where(total > 0, total, 1.0)


def proposed(states: Texts, cut: Cut, cuts: range) -> Law:
    """[n, n]: the probability that a step at x proposes y ≠ x, over all cuts; 0 on the diagonal."""
    reach = np.cumsum(states.suffix[:, :-1] * cut_weights(states, cut, cuts), axis=1)  # [y, lcp]: Σ_{r <= lcp+1}
    here = np.arange(len(states.texts))
    chance = reach[here, np.minimum(states.shared, states.horizon - 1)] / cut_counts(states, cut, cuts)[:, None]
    chance[here, here] = 0
    return chance


def log_weight(states: Texts, alpha: float, cut: Cut, rule: Rule, cuts: range) -> Law:
    """log v [n], whose differences are log A by all rules but the authors'."""
    log_w = (alpha * states.logp + PROPOSAL_TERM.get(rule, -1.0) * states.logq).sum(1)
    return log_w if rule == "no_length_factor" else log_w - np.log(cut_counts(states, cut, cuts))


def log_ratio(states: Texts, alpha: float, cut: Cut, rule: Rule, cuts: range) -> Law:
    """[n, n]: log A of the move from x to y."""
    if rule == "authors":
        weight = np.cumsum(alpha * states.logp - states.logq, axis=1)
        until = np.pad(weight, ((0, 0), (1, 0)))  # [n, length]: log w of the text cut off there
        return until[np.arange(len(until)), states.length] - until[:, states.length]
    log_v = log_weight(states, alpha, cut, rule, cuts)
    return log_v - log_v[:, None]


def with_rejections(moves: Law) -> Law:
    """The chances [n, n] of accepted moves, diagonal 0, completed to a transition matrix."""
    return moves + np.diag(1 - moves.sum(1))


def tried(states: Texts, alpha: float, cut: Cut, rule: Rule, cuts: range, tries: int) -> Law:
    """[n, n]: the chance that a step at x with `tries` tries moves to y ≠ x; 0 on the diagonal."""
    n = len(states.texts)
    log_v = log_weight(states, alpha, cut, rule, cuts)
    v = np.exp(log_v - log_v.max())
    chosen = cut_weights(states, cut, cuts) / cut_counts(states, cut, cuts)[:, None]  # c_x(r), [n, horizon]
    moves = np.zeros((n, n))
    for r in range(1, states.horizon + 1):
        prefixes = [text[: r - 1] if len(text) >= r else None for text in states.texts]
        for prefix in {*prefixes} - {None}:
            group = np.array([i for i in range(n) if prefixes[i] == prefix])
            q = states.suffix[group, r - 1]
            mean = inverse_mean(q, v[group], tries - 1, v[group])  # falls as v rises
            chance = tries * q * v[group] * np.minimum(mean[:, None], mean)
            moves[np.ix_(group, group)] += chosen[group, r - 1, None] * chance
    moves[np.arange(n), np.arange(n)] = 0
    return moves


def suffix_mh(
    states: Texts,
    alpha: float,
    *,
    cut: Cut = "horizon",
    rule: Rule = "exact",
    cuts: range | None = None,
    tries: int = 1,
) -> Law:
    """K(x, y) [n, n] of one step on `states`, which must be closed under the rule. `cuts` (default 1..horizon) are
    those drawn from: range(r, r + 1) gives K_r."""
    cuts = range(1, states.horizon + 1) if cuts is None else cuts
    if rule == "authors":
        moves = proposed(states, "record", cuts) * np.exp(np.minimum(log_ratio(states, alpha, "record", rule, cuts), 0))
        moves = moves * states.are_records(states.length[:, None])  # a proposal stops at the length of x
    elif tries == 1:
        moves = proposed(states, cut, cuts) * np.exp(np.minimum(log_ratio(states, alpha, cut, rule, cuts), 0))
    else:
        moves = tried(states, alpha, cut, rule, cuts, tries)
    return with_rejections(moves)
