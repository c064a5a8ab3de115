"""A real language model, asked forty products twice: sampling makes it better, or worse, by how it is asked.

SmolLM2-135M-Instruct (4-bit weights, dequantised) is asked "What is 7 times 12?" as chat and as "Question: ...", by
greedy decoding, low temperature, its own temperature, best-of-8 by three self-rewards, power sampling and Power-SMC at
α = 4. Six minutes on two cores; what has been drawn is kept in runs/real.
"""

import matplotlib.pyplot as plt
import numpy as np

from figures import _real as R
from figures._style import BY_METHOD, tidy
from reference.evaluation.statistics import accuracy
from reference.power_sampling import PowerConfig, power_sample
from reference.power_smc import SMCConfig, power_smc
from reference.sampling import generate

DEPENDS = (*R.DEPENDS, "reference/power_sampling.py", "reference/power_smc.py", "figures/demo_real.py")
FAMILY, QUESTIONS, N, ALPHA = "products", 40, 8, 4.0
POWER = PowerConfig(ALPHA, block=8, steps=10, max_new_tokens=R.HORIZON)
SMC = SMCConfig(ALPHA, particles=N, max_new_tokens=R.HORIZON)
NAMES = {  # method -> colour
    "greedy": BY_METHOD["greedy"], "temperature 1/4": BY_METHOD["low temperature"],
    "temperature 1": BY_METHOD["one response"], f"best of {N} by log p": BY_METHOD["best-of-N"],
    f"best of {N} by log p per token": BY_METHOD["best-of-N, per token"], f"majority of {N}": BY_METHOD["majority"],
    "power sampling, p^4": BY_METHOD["power"], f"power SMC, {N} particles": BY_METHOD["smc"],
}  # fmt: skip


def answers(asked: R.Asked) -> dict[str, list[dict]]:
    """One response of each method to each question; `decoded` are the tokens that it took."""
    pool = asked.draw("temperature 1", generate, samples_per_prompt=N)
    found = {
        "greedy": asked.draw("greedy", generate, temperature=0.0),
        "temperature 1/4": asked.draw("temperature 1/4", generate, temperature=0.25),
        "temperature 1": [own[:1] for own in pool],
        "power sampling, p^4": asked.draw("power", power_sample, POWER),
        f"power SMC, {N} particles": asked.draw("smc", power_smc, SMC),
    }
    spent = [sum(one["decoded"] for one in own) for own in pool]
    for name, reward in ((f"best of {N} by log p", "log-probability"), (f"best of {N} by log p per token", "per token"),
                         (f"majority of {N}", "majority")):  # fmt: skip
        chosen = R.best(pool, reward, N)
        found[name] = [[{**own[i], "decoded": tokens}] for own, i, tokens in zip(pool, chosen, spent)]
    return {name: [own[0] for own in found[name]] for name in NAMES}


def compute() -> dict:
    speaker, forms = R.speaker(), {}
    for form in R.FORMS:
        asked = R.Asked(speaker, FAMILY, form, QUESTIONS)
        found = answers(asked)
        rows = {name: {"accuracy": accuracy([float(one["right"]) for one in own]),
                       **{key: float(np.mean([one[key] for one in own])) for key in ("decoded", "tokens", "logp")}}
                for name, own in found.items()}  # fmt: skip
        forms[form] = {"rows": rows, "transcripts": transcripts(asked, found)}
    return {"model": R.SOURCE, "family": FAMILY, "questions": QUESTIONS, "seed": R.SEED, "forms": forms}


def transcripts(asked: R.Asked, found: dict[str, list[dict]]) -> list[dict]:
    """The first question that power sampling mends, the first that it spoils, and the first that nothing solves."""
    greedy, power, best = (found[name] for name in ("greedy", "power sampling, p^4", f"best of {N} by log p"))
    wanted = {
        "power sampling mends": [p["right"] and not g["right"] for g, p in zip(greedy, power)],
        "power sampling spoils": [g["right"] and not p["right"] for g, p in zip(greedy, power)],
        "nothing helps": [not (g["right"] or p["right"] or b["right"]) for g, p, b in zip(greedy, power, best)],
    }
    shown = []
    for what, which in wanted.items():
        if any(which):
            i = which.index(True)
            said = {name: {"text": own[i]["text"], "logp": own[i]["logp"], "right": own[i]["right"]}
                    for name, own in (("greedy", greedy), ("power", power), (f"best of {N}", best))}  # fmt: skip
            shown.append({"what": what, "question": asked.questions[i].question, "said": said})
    return shown


def table(result: dict) -> str:
    lines = [
        f'{result["model"]}: {result["questions"]} questions like "What is 7 times 12?"',
        f"{'':33}{'as chat':>22}{'tokens':>8}{'raw':>24}{'tokens':>8}",
    ]
    for name in NAMES:
        line = f"{name:33}"
        for form in R.FORMS:
            row = result["forms"][form]["rows"][name]
            mean, low, high = row["accuracy"]
            line += f"{f'{mean:.2f} [{low:.2f}, {high:.2f}]':>{22 if form == 'chat' else 24}}{row['decoded']:8.0f}"
        lines.append(line)
    lines.append("tokens: decoded per question, all that were spent on it")
    for form in R.FORMS:
        for each in result["forms"][form]["transcripts"]:
            lines += ["", f"{each['what']} ({form}): {each['question']}"]
            for name, said in each["said"].items():
                text = " ".join(said["text"].split())
                lines.append(f"  {name:12}{'right' if said['right'] else 'wrong':7}log p {said['logp']:6.1f}  {text}")
    return "\n".join(lines)


def draw(result: dict):
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.4), sharey=True, layout="constrained")
    for axis, form in zip(axes, R.FORMS):
        rows = result["forms"][form]["rows"]
        for i, (name, colour) in enumerate(NAMES.items()):
            mean, low, high = rows[name]["accuracy"]
            axis.barh(i, mean, 0.65, color=colour, alpha=0.85)
            axis.errorbar(mean, i, xerr=[[mean - low], [high - mean]], fmt="none", ecolor="#444444", capsize=2)
            axis.text(min(high + 0.02, 0.98), i, f"{rows[name]['decoded']:.0f} tokens", va="center", fontsize=8)
        axis.set(title={"chat": "asked as chat", "raw": 'asked as "Question: ... Answer:"'}[form], xlim=(0, 1.1),
                 xlabel="accuracy (95 % interval)")  # fmt: skip
        tidy(axis)
    axes[0].set_yticks(range(len(NAMES)), NAMES)
    axes[0].invert_yaxis()
    figure.suptitle(f"What is a times b? {result['questions']} questions to {result['model']}")
    return figure
