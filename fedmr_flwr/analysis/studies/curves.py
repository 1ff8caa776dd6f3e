"""The curves of a study: small multiples, one panel for each cell."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedmr_flwr.analysis.studies.earlier import Metrics
from fedmr_flwr.report import figures
from fedmr_flwr.report.summary import numbers
from fedmr_flwr.runs.rows import accuracy_of, scored_on

_PANEL = (4.2, 3.2)
_MOST_COLUMNS = 4

# The metrics of each strategy's runs, one for each seed.
Runs = Mapping[str, Sequence[Metrics]]


@figures.styled
def draw(found: Mapping[str, Runs], title: str, path: Path) -> None:
    """Plot the accuracy of several strategies over the rounds.

    For several seeds the mean is drawn, and a band from the lowest to the highest. One cell of many strategies has a
    panel for each strategy, before the others in grey. In several cells of many strategies the first one and those
    that end best have a colour.

    Args:
        found: by cell.
        title: of the picture.
        path: the file to write.
    """
    if len(found) == 1:
        ((_, runs),) = found.items()
        if len(runs) > figures.MOST_LINES:
            _highlighted(runs, title, path)
            return
    figure, panels = _panels(len(found), single=(10, 5))
    strategies = list(next(iter(found.values())))
    colours = dict(zip(_foremost(found, strategies), figures.COLOURS, strict=False))
    for axes, (cell, runs) in zip(panels, found.items(), strict=True):
        for label, by_seed in runs.items():
            if label in colours:
                _line(axes, by_seed, colours[label], label)
            else:
                _line(axes, by_seed, figures.GREY, "others", behind=True)
        if len(found) > 1:
            axes.set_title(figures.plain(cell))
    handles = {line.get_label(): line for axes in panels for line in axes.lines}
    names = [*(figures.plain(label) for label in strategies if label in colours), "others"]
    shown = [name for name in names if name in handles]
    figure.legend([handles[name] for name in shown], shown, title="strategy", loc="outside right center")
    figures.save(figure, _what(found.values()), title, path)


def _what(cells: Iterable[Runs]) -> str:
    part = scored_on(row for runs in cells for by_seed in runs.values() for rows in by_seed for row in rows)
    return f"{part.capitalize()} accuracy of the global model by round"


def _foremost(found: Mapping[str, Runs], strategies: Sequence[str]) -> list[str]:
    """Return the strategies that have a colour: all, or the first and those that end best over all cells."""
    ends: dict[str, list[float]] = {label: [] for label in strategies}
    for runs in found.values():
        for label, by_seed in runs.items():
            ends[label] += [end for rows in by_seed if not math.isnan(end := numbers(rows, None)["late"])]
    first, *others = strategies
    others.sort(key=lambda label: -float(np.mean(ends[label] or 0)))
    chosen = {first, *others[: figures.MOST_LINES - 1]}
    return [label for label in strategies if label in chosen]


def _highlighted(runs: Runs, title: str, path: Path) -> None:
    """Plot a panel for each strategy, with all others in grey behind it."""
    figure, panels = _panels(len(runs))
    for axes, (label, by_seed) in zip(panels, runs.items(), strict=True):
        for other, others in runs.items():
            if other != label:
                _line(axes, others, figures.GREY, "", behind=True)
        # One colour for all: a panel's title names its strategy, and some colours are hard to see before grey.
        _line(axes, by_seed, figures.COLOURS[0], label)
        axes.set_title(figures.plain(label))
    figures.save(figure, _what([runs]), title, path)


def _panels(number: int, single: tuple[float, float] | None = None) -> tuple[Figure, list[Axes]]:
    """Return a figure of so many panels with common axes."""
    columns = min(_MOST_COLUMNS, math.ceil(math.sqrt(number)))
    rows = math.ceil(number / columns)
    size = (max(8, _PANEL[0] * columns + 2), _PANEL[1] * rows + 0.8)
    figure, panels = figures.new(*(single if single and number == 1 else size), rows, columns, sharey=True)
    for axes in panels[number:]:
        axes.remove()
    for axes in panels[::columns]:
        axes.set_ylabel("accuracy (%)")
    figures.over_rounds(*panels[:number])
    return figure, panels[:number]


def _line(axes: Axes, by_seed: Sequence[Metrics], colour: str, label: str, behind: bool = False) -> None:
    """Plot the mean over seeds and, unless it is behind the others, the band from lowest to highest.

    Nothing is drawn without an evaluated round.
    """
    scores = [{row["round"]: score for row in rows if (score := accuracy_of(row)) is not None} for rows in by_seed]
    # Only rounds that all seeds have: a mean over some of them would jump.
    rounds = sorted(set.intersection(*map(set, scores))) if scores else []
    if not rounds:
        return
    accuracy = 100 * np.array([[of_seed[number] for number in rounds] for of_seed in scores])
    axes.plot(
        rounds,
        accuracy.mean(0),
        color=colour,
        zorder=1 if behind else 2,
        label=figures.plain(label),
        **({} if behind else figures.marks(rounds)),
    )
    if not behind and len(by_seed) > 1:
        figures.band(axes, rounds, np.stack([accuracy.min(0), accuracy.max(0)], axis=1), color=colour)
