"""Draw docs/recombination.png: a population before and after recombination.

.venv/bin/python docs/recombination.py
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from fedmr_flwr.core.randomness import stream
from fedmr_flwr.core.recombination import draw_permutations
from fedmr_flwr.report import figures

LAYERS = ("conv1", "conv2", "hidden", "classifier")
COLOURS = (figures.AREAS[0], figures.AREAS[6], figures.AREAS[4], figures.AREAS[8])


def draw(axes: Axes, sources: np.ndarray, title: str, below: str) -> None:
    """Draw one column of boxes per model; the colour tells which model a layer was trained in."""
    for layer, row in enumerate(sources):
        for slot, source in enumerate(row):
            axes.barh(-layer, 0.86, 0.78, left=slot - 0.43, color=COLOURS[source])
            axes.text(slot, -layer, str(source + 1), ha="center", va="center", color="white", fontsize=11)
    axes.set_title(title)
    axes.set_xticks(range(len(COLOURS)), [f"{below} {slot + 1}" for slot in range(len(COLOURS))])
    axes.set_yticks([-layer for layer in range(len(LAYERS))], LAYERS)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


@figures.styled
def main() -> None:
    """Draw the picture."""
    before = np.tile(np.arange(len(COLOURS)), (len(LAYERS), 1))
    after = draw_permutations(len(LAYERS), len(COLOURS), stream(4, "figure"))
    figure, (left, right) = figures.new(9, 2.9, columns=2)
    draw(left, before, "the K models that came back", "model")
    draw(right, after, "the K models of the next round", "model")
    figures.write(figure, Path(__file__).with_suffix(".png"))


if __name__ == "__main__":
    main()
