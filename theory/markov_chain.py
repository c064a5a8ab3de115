"""Suffix Metropolis-Hastings for p^α as exact matrices: every kernel, right or wrong, and the blocked schedule's law.

A step at record x cuts at r, keeps x_<r, draws y_>=r from the proposal q, and accepts with probability
min(1, A). Given r this is Metropolis-Hastings for π ∝ p^α:   A = p^α(y) q(x_>=r) / (p^α(x) q(y_>=r)) = w(y)/w(x),
w = p^α/q, because the kept prefix cancels. A mixture over cuts that are drawn without looking at x keeps π:

    cut="horizon":  r uniform on 1..h; a cut behind the end of x leaves x as it is
    cut="record":   r uniform on 1..|x|, and A = w(y) |x| / (w(x) |y|)

    K(x, y) = min(1, A) Σ_{r <= lcp(x,y)+1} q(y_>=r | x_<r) / #cuts(x)    for y ≠ x, lcp = length of the common prefix.

Blocks: stage k = 1..ceil(H/B) has horizon h_k = min(kB, H). Stage 1 starts from a draw of q; each stage makes N steps
on the records of its horizon; then open records are extended by q, ended ones stay and are refined like any other.
`rule` names what public implementations do instead (facts and sources: 2510.14901 §4 and its code; 2605.30327; PPT):

    wrong_sign        A = p^α(y) q(y)/(p^α(x) q(x)): the sign of the proposal term is reversed; keeps p^α q^2
    no_proposal       A = p^α(y)/p^α(x); keeps p^α q
    no_length_factor  cut="record" without |x|/|y|
    literal           the paper's Algorithm 1 to the letter: the first token is never cut; reducible
    nested            only the last block is cut; tends to Π_k p^α(block k | prefix), normalised block by block
    early_exit        a record that has ended after a stage is returned
    authors           early_exit; cuts uniform on the length, no factor; proposals no longer than x; A compares
                      y with x truncated to |y|. Its states include open texts shorter than the horizon.
Ignoring the end during refinement is the exact rule on conditionals enumerated without stop ids, then `trim`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigvalsh

from theory import power
from theory.power import Conditionals, Law, Record

Cut = Literal["horizon", "record"]
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
        return Texts(horizon, texts, self.ended[chosen], self.logp[chosen, :horizon], self.logq[chosen, :horizon])


def all_texts(conditionals: Conditionals, proposal: Conditionals, horizon: int) -> Texts:
    """Every text of 0..horizon tokens, ended or open, to which `proposal` gives positive probability."""
    texts = sorted({record[:n] for record in power.record_logps(proposal, horizon)[0] for n in range(len(record) + 1)})
    logp, logq = np.zeros((2, len(texts), horizon))
    for i, text in enumerate(texts):
        for t, token in enumerate(text):
            logp[i, t], logq[i, t] = conditionals[text[:t]][token], proposal[text[:t]][token]
    ended = np.array([len(text) == horizon or text not in conditionals for text in texts])
    return Texts(horizon, texts, ended, logp, logq)


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

    def __post_init__(self) -> None:
        for name, least in (("horizon", 1), ("block", 1), ("steps", 0), ("top_k", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"a setting needs {name} >= {least}, not {value}")
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


def cut_counts(states: Texts, cut: Cut, cuts: range) -> NDArray[np.int64]:
    """From how many cuts a step at each state draws, [n]; a state that has none stays (and counts as 1)."""
    if cut == "horizon":
        return np.full(len(states.texts), len(cuts))
    return np.maximum(np.minimum(states.length, cuts[-1]) - cuts[0] + 1, 1)


def proposed(states: Texts, cut: Cut, cuts: range) -> Law:
    """[n, n]: the probability that a step at x proposes y ≠ x, over all cuts; 0 on the diagonal."""
    r = np.arange(1, states.horizon + 1)
    reach = np.cumsum(states.suffix[:, :-1] * ((r >= cuts[0]) & (r <= cuts[-1])), axis=1)  # [y, lcp]: Σ_{r <= lcp+1}
    here = np.arange(len(states.texts))
    chance = reach[here, np.minimum(states.shared, states.horizon - 1)] / cut_counts(states, cut, cuts)[:, None]
    chance[here, here] = 0
    return chance


def log_ratio(states: Texts, alpha: float, cut: Cut, rule: Rule, cuts: range) -> Law:
    """[n, n]: log A of the move from x to y."""
    weight = alpha * states.logp + PROPOSAL_TERM.get(rule, -1.0) * states.logq
    if rule == "authors":
        until = np.pad(np.cumsum(weight, axis=1), ((0, 0), (1, 0)))  # [n, length]: log w of the text cut off there
        return until[np.arange(len(until)), states.length] - until[:, states.length]
    log_w = weight.sum(1)
    if rule != "no_length_factor":
        log_w = log_w - np.log(cut_counts(states, cut, cuts))
    return log_w - log_w[:, None]


def with_rejections(moves: Law) -> Law:
    """The chances [n, n] of accepted moves, diagonal 0, completed to a transition matrix."""
    return moves + np.diag(1 - moves.sum(1))


def suffix_mh(
    states: Texts, alpha: float, *, cut: Cut = "horizon", rule: Rule = "exact", cuts: range | None = None
) -> Law:
    """K(x, y) [n, n] of one step on `states`, which must be closed under the rule. `cuts` (default 1..horizon) are
    those drawn from: range(r, r + 1) gives K_r."""
    if rule == "authors":
        cut = "record"
    cuts = range(1, states.horizon + 1) if cuts is None else cuts
    moves = proposed(states, cut, cuts) * np.exp(np.minimum(log_ratio(states, alpha, cut, rule, cuts), 0))
    if rule == "authors":
        moves = moves * states.are_records(states.length[:, None])  # a proposal stops at the length of x
    return with_rejections(moves)


# --- A chain and its convergence -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chain:
    """One block: where the chain starts, its kernel, and what it should converge to."""

    records: list[Record]
    initial: Law  # [n]: q
    kernel: Law  # [n, n]
    target: Law  # [n]: p^α


def chain(conditionals: Conditionals, *, cuts: range | None = None, **setting: Any) -> Chain:
    """The chain on the records of the horizon (all that the proposal can draw), for `cuts` or those of the rule.

    Rules of the schedule, "early_exit" and "authors", do not make sense here.
    """
    s = Setting(**setting)
    texts = s.texts(conditionals)
    states = texts.only(texts.are_records(s.horizon), s.horizon)
    kernel = suffix_mh(states, s.alpha, cut=s.cut, rule=s.rule, cuts=s.cuts(s.horizon) if cuts is None else cuts)
    return Chain(states.texts, states.suffix[:, 0], kernel, power.power_law(states.logp.sum(1), s.alpha))


def run(law: Law, kernel: Law, steps: int) -> Law:
    """law K^steps, [n]. Many steps go by squaring K; its rows are made to sum to 1 each time, so no error adds up."""
    if steps <= 200:
        for _ in range(steps):
            law = law @ kernel
        return law
    while steps:
        if steps % 2:
            law = law @ kernel
        kernel = kernel @ kernel
        kernel /= kernel.sum(1, keepdims=True)
        steps //= 2
    return law


def total_variation(law: ArrayLike, other: ArrayLike) -> float:
    return float(np.abs(np.asarray(law) - np.asarray(other)).sum() / 2)


def tv_curve(law: Law, kernel: Law, target: Law, steps: int) -> Law:
    """TV(law K^n, target) for n = 0..steps, [steps + 1]."""
    curve = [total_variation(law, target)]
    for _ in range(steps):
        law = law @ kernel
        curve.append(total_variation(law, target))
    return np.array(curve)


def stationary(kernel: Law) -> Law:
    """The one law that an irreducible kernel keeps, [n]."""
    n = len(kernel)
    equations = np.vstack((kernel.T - np.eye(n), np.ones(n)))
    return np.linalg.lstsq(equations, np.append(np.zeros(n), 1.0), rcond=None)[0]


def spectrum(kernel: Law) -> Law:
    """The eigenvalues of a reversible kernel, greatest first, [n]: √(K_ij K_ji) is symmetric and similar to K."""
    return eigvalsh(np.sqrt(kernel * kernel.T))[::-1]


def spectral_gap(kernel: Law) -> float:
    """1 - max |λ| over all eigenvalues but the first, of a reversible kernel."""
    return float(1 - np.abs(spectrum(kernel)[1:]).max())


def independence_spectrum(proposal: Law, target: Law) -> Law:
    """Eigenvalues of the kernel that always cuts at 1, greatest first, [n]: 1, and with states sorted by decreasing
    w = target/proposal, λ_k = Σ_{j>=k} (proposal_j - target_j/w_k), k = 1..n-1 (Liu 1996).                claim P6"""
    order = np.argsort(-target / proposal, kind="stable")
    g, pi = proposal[order], target[order]
    tail_g, tail_pi = (np.cumsum(law[::-1])[::-1] for law in (g, pi))
    return np.append(1.0, (tail_g - tail_pi * g / pi)[:-1])


# --- Blocks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """One stage of the blocked schedule. Laws are over `states` and sum to less than 1 once some mass was returned."""

    states: Texts
    kernel: Law  # [n, n]
    start: Law  # [n]: when the stage has extended the texts and made no step
    end: Law  # [n]: after its steps
    returned: dict[Record, float]  # by an early exit before this stage


def horizons(horizon: int, block: int) -> list[int]:
    """h_k = min(kB, H), k = 1..ceil(H/B)."""
    return [min(start + block, horizon) for start in range(0, horizon, block)]


def extended(texts: Texts, law: Law, block: int) -> Law:
    """The law [n] of all texts after every open one of `law` [n] is continued by at most `block` tokens."""
    length = texts.length[:, None]
    until = np.minimum(length + block, texts.horizon)
    continues = (texts.shared == length) & texts.are_records(until) & ~texts.ended[:, None]
    moves = np.where(continues, texts.suffix[np.arange(len(law)), length], 0.0)  # [x, y]: q(y_>|x| given x)
    return np.where(texts.ended, law, 0.0) + law @ moves


def schedule(conditionals: Conditionals, **setting: Any) -> Iterator[Stage]:
    """The stages in order, each with its law before and after its steps."""
    s = Setting(**setting)
    block = s.block or s.horizon
    texts = s.texts(conditionals)
    law = np.array([float(text == ()) for text in texts.texts])
    returned: dict[Record, float] = {}
    for h in horizons(s.horizon, block):
        law = extended(texts, law, block)
        here = (texts.length > 0) & (texts.length <= h) if s.rule == "authors" else texts.are_records(h)
        states = texts.only(here, h)
        kernel = suffix_mh(states, s.alpha, cut=s.cut, rule=s.rule, cuts=s.cuts(h))
        end = run(law[here], kernel, s.steps)
        yield Stage(states, kernel, law[here], end, dict(returned))
        law = np.zeros(len(texts.texts))
        law[here] = end
        if s.rule in ("early_exit", "authors"):
            for i in np.flatnonzero(texts.ended & (law > 0)):
                returned[texts.texts[i]] = returned.get(texts.texts[i], 0.0) + law[i]
            law[texts.ended] = 0


def blocked_law(conditionals: Conditionals, **setting: Any) -> tuple[list[Record], Law]:
    """(records in lexicographic order, their probabilities [n]): the exact law of the output, for a `Setting`.

    `conditionals` must reach the horizon: enumerate_law(model, prompt, horizon, stop_ids)[2]. Under rule="authors"
    open texts that are shorter than the horizon are among the records.
    """
    *_, last = schedule(conditionals, **setting)
    law = last.end + np.array([last.returned.get(text, 0.0) for text in last.states.texts])
    return last.states.texts, law


def trim(records: Iterable[Record], law: Law, stop_ids: Iterable[int]) -> dict[Record, float]:
    """The law of records that are cut off behind their first stop id."""
    stops, trimmed = set(stop_ids), dict[Record, float]()
    for record, mass in zip(records, law):
        end = next((t + 1 for t, token in enumerate(record) if token in stops), len(record))
        trimmed[record[:end]] = trimmed.get(record[:end], 0.0) + float(mass)
    return dict(sorted(trimmed.items()))
