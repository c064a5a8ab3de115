"""Precision and coverage of the cascade against votes and candidates: independent votes, a mixture, and measured.

The base writes 8 candidates of each problem and casts 10 votes of each stage on each. One half of the problems gives
what is predicted for the other: the share of right candidates, and of right and of wrong ones how often all stages say
yes at once, which is a vote R of the cascade as a whole. Then come E[R^v] as

    independent    (E R)^v: every candidate alike
    beta           the beta distribution of the same E[R] and E[R²], that is, fitted to two votes, taken to v
    mixture        the unbiased moments C(s, v)/C(10, v), no form assumed

and, over problems, coverage of n candidates, E[1 − (1−a)^n], from C(8−k, n)/C(8, n), k accepted among 8; independent:
1 − (1 − E a)^n. Judge calls are counted in a second run, which stops early, and predicted from the first one's other
five votes (theory/verification.py). Intervals hold the middle 95 % of 1,000 resamplings of problems.
"""

from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from figures._distillation import CASCADE, right
from reference.cascade import verify
from reference.text.text_model import TextModel
from theory.verification import beta_moment, expected_calls, moment_estimate, precision
from toy import relay
from toy.pretrain import CHECKPOINT

DEPENDS = (
    "reference/interface.py", "reference/cascade.py", "reference/sampling.py", "reference/engine",
    "reference/text/text_model.py", "reference/transformer.py", "theory/verification.py", "toy/relay.py",
    "toy/checkpoint", "figures/_distillation.py", "figures/verification_votes.py",
)  # fmt: skip
PROBLEMS, N, V, SEED = 1000, 8, 10, 5  # calls to within 1 %
VOTES, CANDIDATES, RESAMPLED = (1, 2, 3, 5, 8), (1, 2, 4, 8), 1000


def compute() -> dict:
    """Five minutes on one core."""
    speaker = TextModel.from_pretrained(CHECKPOINT)
    problems = relay.make_problems(PROBLEMS, SEED + 4000)
    questions = [problem.question for problem in problems]
    texts, _ = speaker.ask("author", [{"question": question} for question in questions], samples_per_prompt=N,
                           max_new_tokens=CASCADE.max_new_tokens, seed=SEED)  # fmt: skip
    full = verify(speaker, questions, texts, replace(CASCADE, votes=V), seed=SEED)
    truth, votes = right(problems, texts), (full.votes == 1).numpy()  # [problems, N], [problems, N, stages, V]
    each = full.calls.numpy() / V  # [problems, N, stages]: of one vote
    calls = {}
    for exit in ("stage", "vote"):
        short = verify(speaker, questions, texts, replace(CASCADE, exit=exit), seed=SEED)
        calls[exit] = {
            "measured": float(short.calls.sum(-1).double().mean()),
            "mixture": predicted_calls(votes[..., CASCADE.votes :], each, exit),
            "independent": float(expected_calls(votes.mean((0, 1, 3)), CASCADE.votes, each.mean((0, 1)), exit)),
        }
    calls["none"] = {"measured": float(each.sum(-1).mean() * CASCADE.votes)}
    fit, held = np.arange(PROBLEMS) % 2 == 0, np.arange(PROBLEMS) % 2 == 1
    return {
        "problems": PROBLEMS, "n": N, "votes": V, "calls": calls,
        "predicted": resampled(predict, truth[fit], votes[fit]),
        "measured": resampled(measure, truth[held], votes[held]),
        "single": {name: resampled(measure, truth, votes[:, :, [s]]) for s, name in enumerate(full.stages)},
        "cascade": resampled(measure, truth, votes),
    }  # fmt: skip


def predicted_calls(votes: np.ndarray, each: np.ndarray, exit: str) -> float:
    """Calls on a candidate, from as many votes of it: every power of q replaced by its unbiased estimate."""
    v = votes.shape[-1]
    powers = np.stack([moment_estimate(votes.sum(-1), v, j) if j else np.ones(votes.shape[:-1]) for j in range(v + 1)])
    passed = powers[v]
    reached = np.concatenate((np.ones_like(passed[..., :1]), passed.cumprod(-1)[..., :-1]), -1)
    cast = powers[:v].sum(0) if exit == "vote" else float(v)
    return float((reached * cast * each).sum(-1).mean())


def measure(truth: np.ndarray, votes: np.ndarray) -> dict:
    """By the first v votes: rates of acceptance, precision of what is accepted; coverage by the first n candidates, and
    precision of the first valid one."""
    taken = {v: np.asarray(votes[..., :v].all((-1, -2))) for v in VOTES}
    first = {
        v: [(accepted[:, :n] & (accepted[:, :n].cumsum(1) == 1)) for n in CANDIDATES] for v, accepted in taken.items()
    }
    return {
        "right": [a[truth].mean() for a in taken.values()], "wrong": [a[~truth].mean() for a in taken.values()],
        "precision": [share(truth[a]) for a in taken.values()],
        **{f"coverage, v = {v}": [own.any(1).mean() for own in first[v]] for v in VOTES},
        **{f"first valid, v = {v}": [share(truth[:, :n][own]) for n, own in zip(CANDIDATES, first[v])] for v in VOTES},
    }  # fmt: skip


def share(good: np.ndarray) -> float:
    return float(good.mean()) if len(good) else np.nan


def predict(truth: np.ndarray, votes: np.ndarray) -> dict:
    """The same rates as `measure`, of other problems, in three ways; "law": rates."""
    out: dict[str, Any] = {}
    whole, p = votes.all(-2).sum(-1), truth.mean()  # [problems, N]: of V votes of the cascade as a whole
    for name, law in (("independent", alike), ("beta", beta), ("mixture", moments)):
        rates = {kind: [law(whole[mask], v) for v in VOTES] for kind, mask in (("right", truth), ("wrong", ~truth))}
        out |= {f"{kind}, {name}": rates[kind] for kind in rates}
        out[f"precision, {name}"] = precision(p, rates["right"], rates["wrong"])
    for v in VOTES:
        accepted = votes[..., :v].all((-1, -2)).sum(1)  # [problems], of N
        out[f"coverage, v = {v}, independent"] = [1 - (1 - accepted.mean() / N) ** n for n in CANDIDATES]
        out[f"coverage, v = {v}, mixture"] = [1 - moment_estimate(N - accepted, N, n).mean() for n in CANDIDATES]
    return out


def alike(yes: np.ndarray, v: int) -> float:
    return float((yes.mean() / V) ** v)


def moments(yes: np.ndarray, v: int) -> float:
    return float(moment_estimate(yes, V, v).mean())


def beta(yes: np.ndarray, v: int) -> float:
    mean, second = moments(yes, 1), moments(yes, 2)
    rho = (second - mean**2) / (mean * (1 - mean)) if 0 < mean < 1 else 0.0
    return beta_moment(mean, float(np.clip(rho, 0, 1 - 1e-9)), v)


def resampled(function, truth: np.ndarray, votes: np.ndarray) -> dict:
    """Each number with the middle 95 % of resamplings of problems: [.., 3] lists of [value, low, high]."""
    rng, found = np.random.default_rng(0), function(truth, votes)
    draws = [function(truth[i], votes[i]) for i in rng.integers(0, len(truth), (RESAMPLED, len(truth)))]
    spread = {name: np.nanquantile([draw[name] for draw in draws], (0.025, 0.975), axis=0) for name in found}
    return {name: np.stack((value, *spread[name]), -1).tolist() for name, value in found.items()}


STYLES = {"independent": ("#D55E00", "--"), "beta": ("#0072B2", "-."), "mixture": ("#009E73", "-")}  # Okabe-Ito


def draw(result: dict):
    figure, axes = plt.subplots(1, 4, figsize=(17, 4.6), layout="constrained")
    measured, predicted = result["measured"], result["predicted"]

    def points(axis, x, found, marker="o", **how):
        value, low, high = np.array(found).T
        axis.errorbar(x, value, (value - low, high - value), fmt=marker, color="black", capsize=3, **how)

    for axis, name, title in zip(axes, ("right", "precision"), ("Right candidates accepted (TPR)", "Precision")):
        for law, (colour, line) in STYLES.items():
            value, low, high = np.array(predicted[f"{name}, {law}"]).T
            axis.plot(VOTES, value, line, color=colour, label=law)
            axis.fill_between(VOTES, low, high, color=colour, alpha=0.12, linewidth=0)
        points(axis, VOTES, measured[name], label="measured, other problems")
        axis.set(title=title, xlabel="unanimous votes v of each of 3 stages", ylabel="share", xticks=VOTES)
    axes[0].set_ylim(0, 1)
    axes[0].legend()
    for v, marker in ((1, "o"), (5, "s")):
        for law in ("independent", "mixture"):
            colour, line = STYLES[law]
            axes[2].plot(CANDIDATES, np.array(predicted[f"coverage, v = {v}, {law}"])[:, 0], line, color=colour)
        points(axes[2], CANDIDATES, measured[f"coverage, v = {v}"], marker=marker, label=f"measured, v = {v}")
    axes[2].set(
        title="Questions with a valid candidate", xlabel="candidates n", ylabel="share", xticks=CANDIDATES, ylim=(0, 1)
    )
    axes[2].legend()
    exits = ("none", "stage", "vote")
    counts = [result["calls"][exit] for exit in exits]
    axes[3].bar(range(3), [count["measured"] for count in counts], color="#BBBBBB", width=0.6, label="measured")
    for law, marker in (("independent", "x"), ("mixture", "D")):
        axes[3].plot([1, 2], [count[law] for count in counts[1:]], marker, color=STYLES[law][0], label=law)
    axes[3].set(title="Judge calls on a candidate, v = 5", xlabel="early exit", ylabel="calls")
    axes[3].set_xticks(range(3), ("none", "after a stage", "at a dissent"))
    axes[3].legend()
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure
