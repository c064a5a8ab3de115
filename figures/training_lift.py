"""What best-of-50 adds to greedy decoding, by length of the problem and stage of pre-training (2412.01951, Fig. 1 a).

The shipped checkpoint and the two that were kept on its way. It was trained on problems of five operations alone.
"""

import matplotlib.pyplot as plt
import numpy as np

from figures import _training as T

DEPENDS = T.DEPENDS


def compute() -> dict:
    return T.compare_stages()


def draw(result: dict):
    cells, classes = result["cells"], ("plain", "tempting", "hard")
    lengths = [name for name in cells["final"] if name.isdecimal()]
    size = max(abs(cell["lift"][0]) for row in cells.values() for cell in row.values())
    figure, axes = plt.subplots(1, 2, figsize=(15, 4.8), layout="constrained", sharey=True, width_ratios=(5, 3))
    for axis, columns in zip(axes, (lengths, classes)):
        lift = 100 * np.array([[row[name]["lift"] for name in columns] for row in cells.values()])  # [stage, column, 3]
        image = axis.imshow(lift[..., 0], cmap="RdBu", vmin=-100 * size, vmax=100 * size, aspect="auto")
        for i, row in enumerate(cells.values()):
            for j, name in enumerate(columns):
                text = "{:+.0f} [{:+.0f}, {:+.0f}]".format(*lift[i, j])
                text += "\n{greedy:.0%} → {best:.0%}".format(**row[name])
                axis.text(
                    j, i, text, ha="center", va="center", color="white" if abs(lift[i, j, 0]) > 70 * size else "k"
                )
        axis.set_yticks(range(len(cells)), list(cells))
    axes[0].set_xticks(range(len(lengths)), [f"{n}\n(as trained)" if n == "5" else n for n in lengths])
    axes[1].set_xticks(range(3), classes)
    axes[0].set(xlabel="operations in the problem", ylabel="checkpoint of pre-training", title="By length")
    axes[1].set(xlabel="class of the problem", title="By class, 5 operations")
    figure.suptitle(
        f"Best-of-{result['n']} minus greedy decoding: points of accuracy [95 % interval]; greedy → best-of-N"
    )
    figure.colorbar(image, ax=axes, label="points of accuracy")
    return figure
