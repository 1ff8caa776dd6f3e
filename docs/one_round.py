"""Draw docs/one_round.png: one round by aggregation and by recombination, with two models of three layers.

.venv/bin/python docs/one_round.py
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from fedmr_flwr.report import figures

LAYERS = ("layer 1", "layer 2", "layer 3")
START, FIRST, SECOND, MEAN = (figures.AREAS[at] for at in (8, 0, 6, 4))
# One number stands for all weights of a layer: what the server sends, and what clients 1 and 2 make of it.
SENT = np.zeros((3, 2))
TRAINED = np.array([[2, 4], [6, 2], [4, 8]])
# Which client's layer each of the next two models gets.
SOURCES = np.array([[0, 1], [1, 0], [1, 0]])


def draw(axes: Axes, values: np.ndarray, colours: list[list[str]], title: str, names: tuple[str, ...]) -> None:
    """Draw a column of boxes for each model, a box for each layer."""
    for layer, row in enumerate(values):
        for model, value in enumerate(row):
            axes.barh(-layer, 0.86, 0.78, left=model - 0.43, color=colours[layer][model])
            axes.text(model, -layer, f"{value:g}", ha="center", va="center", color="white", fontsize=11)
    axes.set_title(title)
    middle = (values.shape[1] - 1) / 2
    axes.set_xlim(middle - 1.1, middle + 1.1)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks([-layer for layer in range(len(LAYERS))], LAYERS)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


@figures.styled
def main() -> None:
    """Draw the picture: a row for each of the two ways."""
    mean = TRAINED.mean(1, keepdims=True)
    recombined = np.take_along_axis(TRAINED, SOURCES, 1)
    own = [[FIRST, SECOND]] * 3
    mixed = [[(FIRST, SECOND)[source] for source in row] for row in SOURCES]
    figure, panels = figures.new(10.5, 4.6, 2, 4)
    ways = [
        ("aggregation (FedAvg)", np.repeat(mean, 2, 1), [[MEAN] * 2] * 3),
        ("recombination (FedMR)", recombined, mixed),
    ]
    for row, (way, after, colours) in enumerate(ways):
        places = panels[4 * row : 4 * row + 4]
        models, clients = ("model 1", "model 2"), ("client 1", "client 2")
        draw(places[0], SENT, [[START] * 2] * 3, "1  the server sends", models)
        draw(places[1], TRAINED, own, "2  the clients train and return", clients)
        draw(places[2], after, colours, "3  the server sends next", models)
        draw(places[3], mean, [[MEAN]] * 3, "4  it evaluates the mean", ("global model",))
        places[0].set_ylabel(way)
        for place in places[1:]:
            place.set_yticks([])
    figures.write(figure, Path(__file__).with_suffix(".png"))


if __name__ == "__main__":
    main()
