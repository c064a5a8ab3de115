"""The colours of all figures: one for each method, another palette for the classes of problems.

Methods have the colours of Okabe & Ito and lighter or darker neighbours for their variants; classes have three of Tol's
muted ones, which no method has, so that a line's colour says which of the two it is about.
"""

BY_CLASS = {"all": "#444444", "plain": "#999933", "tempting": "#882255", "hard": "#332288"}

BY_METHOD = {
    "one response": "#999999",
    "greedy": "#000000",
    "low temperature": "#000000",
    "best-of-N": "#D55E00",  # by log-probability
    "best-of-N, per token": "#F0A070",
    "majority": "#CC79A7",
    "pass@N": "#BBBBBB",
    # draws from p^α
    "power": "#0072B2",
    "entropy cuts": "#17A5A5",
    "prefetch": "#56B4E9",
    "multiple try": "#009E73",
    "tempering": "#E69F00",
    "smc": "#8C564B",
    "lookahead": "#7B3294",  # rollouts from the proposal
    "lookahead p": "#C2A5CF",
    "chunks": "#8C6D31",
    "chunks, published": "#E7BA52",
    # learned
    "sft": "#E69F00",
    "dpo": "#56B4E9",
    "xpo": "#0072B2",
    "grpo": "#009E73",
    "self-distillation": "#A6761D",
    "policy gradient": "#66A61E",
    # refined
    "sequential": "#009E73",
    "analysis": "#66C2A5",  # sequential refinement with error analysis
    "pdr": "#0072B2",
    "pdr, chosen": "#56B4E9",
    "pdr, each its own": "#8C564B",
    "pdr, random": "#E69F00",
    "consensus": "#E69F00",
    "distilled": "#009E73",
    "uq-ttc": "#E69F00",
}
RIGHT, WRONG = "#009E73", "#D55E00"
GREY, LIGHT, DARK = "#777777", "#BBBBBB", "#444444"  # lines that are no method: axes, bounds, notes


def tidy(*axes) -> None:
    """No frame above and to the right, and a light grid."""
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
