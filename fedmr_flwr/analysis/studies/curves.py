"""The curves of a study: small multiples, one panel for each cell."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedmr_flwr.analysis.studies.earlier import Metrics
from fedmr_flwr.report import figures

# More lines than that in one panel cannot be told apart.
_MOST_LINES = 6
_PANEL = (4.2, 3.2)
_MOST_COLUMNS = 4
_GREY = "0.8"

# The metrics of each strategy's runs, one for each seed.
Runs = Mapping[str, Sequence[Metrics]]


def draw(found: Mapping[str, Runs], title: str, path: Path) -> None:
    """Plot the test accuracy of several strategies over the rounds.

    For several seeds the mean is drawn, and a band from the lowest to the highest. One cell of many strategies has a
    panel for each strategy, before the others in grey.

    Args:
        found: by cell.
        title: of the picture.
        path: the file to write.
    """
    if len(found) == 1:
        ((_, runs),) = found.items()
        if len(runs) > _MOST_LINES:
            _highlighted(runs, title, path)
            return
    figure, panels = _panels(len(found), single=(10, 5))
    for axes, (cell, runs) in zip(panels, found.items(), strict=True):
        for at, (label, by_seed) in enumerate(runs.items()):
            _line(axes, by_seed, figures.line_colour(at), label, figures.line_style(at))
        if len(found) > 1:
            axes.set_title(figures.plain(cell), fontsize=10)
    handles = {line.get_label(): line for axes in panels for line in axes.lines}
    names = [figures.plain(label) for label in next(iter(found.values()))]
    shown = [name for name in names if name in handles]
    figure.legend(
        [handles[name] for name in shown], shown, title="strategy", loc="outside right center", frameon=False
    )
    figures.save(figure, title, path)


def _highlighted(runs: Runs, title: str, path: Path) -> None:
    """Plot a panel for each strategy, with all others in grey behind it."""
    figure, panels = _panels(len(runs))
    for axes, (label, by_seed) in zip(panels, runs.items(), strict=True):
        for other, others in runs.items():
            if other != label:
                _line(axes, others, _GREY, "", "-", band=False)
        # One colour for all: a panel's title names its strategy, and some colours are hard to see before grey.
        _line(axes, by_seed, figures.line_colour(0), label, "-")
        axes.set_title(figures.plain(label), fontsize=10)
    figures.save(figure, title, path)


def _panels(number: int, single: tuple[float, float] | None = None) -> tuple[Figure, list[Axes]]:
    """Return a figure of so many panels with common axes."""
    columns = min(_MOST_COLUMNS, math.ceil(math.sqrt(number)))
    rows = math.ceil(number / columns)
    size = (max(8, _PANEL[0] * columns + 2), _PANEL[1] * rows + 0.6)
    figure = Figure(figsize=single if single and number == 1 else size, layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for axes in panels[number:]:
        axes.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel("test accuracy (%)")
    figures.over_rounds(*panels[:number])
    return figure, panels[:number]


def _line(axes: Axes, by_seed: Sequence[Metrics], colour: str, label: str, style: str, band: bool = True) -> None:
    """Plot the mean over seeds, and the band from lowest to highest; nothing without an evaluated round."""
    scores = [{row["round"]: row["test-accuracy"] for row in rows if "test-accuracy" in row} for rows in by_seed]
    # Only rounds that all seeds have: a mean over some of them would jump.
    rounds = sorted(set.intersection(*map(set, scores))) if scores else []
    if not rounds:
        return
    accuracy = 100 * np.array([[of_seed[number] for number in rounds] for of_seed in scores])
    front = 2 if band else 1
    axes.plot(
        rounds,
        accuracy.mean(0),
        color=colour,
        linestyle=style,
        zorder=front,
        label=figures.plain(label),
        **figures.marks(rounds),
    )
    if band and len(by_seed) > 1:
        figures.band(axes, rounds, np.stack([accuracy.min(0), accuracy.max(0)], axis=1), color=colour)
