"""The plots of a run."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colorbar import Colorbar
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedmr_flwr.config.loading import load_recorded
from fedmr_flwr.report import figures
from fedmr_flwr.report.figures import AREAS, COLOURS
from fedmr_flwr.report.lineage import STRATEGIES, History, RunSpec, history, trace
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.runs.rows import accuracy_of, loss_of, scored_on

_MOST_NUMBERED_SLOTS = 20

Metrics = Sequence[Mapping[str, Any]]


def draw(folder: RunFolder, form: str = "png", to: Path | None = None) -> list[Path]:
    """Draw all plots that a run's metrics allow, also of an incomplete run.

    Args:
        folder: of the run.
        form: of the files: png, svg or pdf.
        to: where they are written; None: to the folder of the run.

    Returns:
        The files: curves.png, and for an algorithm with a population diversity.png and lineage.png.

    Raises:
        ConfigError: the folder's configuration cannot be read.
        RunFolderError: a file cannot be written.
    """
    rows, manifest = folder.read_rows(), folder.read_manifest()
    strategy, units = manifest.get("strategy", {}), manifest.get("units", [])
    title = manifest.get("title", strategy.get("name", ""))
    drawn: list[Path] = []
    to = to or folder.path
    if any(accuracy_of(row) is not None or "train-loss" in row for row in rows):
        drawn.append(to / f"curves.{form}")
        curves(rows, title, drawn[-1])
    if units and any("spread" in row for row in rows):
        drawn.append(to / f"diversity.{form}")
        diversity(rows, units, title, drawn[-1])
    if units and strategy.get("name") in STRATEGIES and any("slots" in row for row in rows):
        # Read only here, because it imports the algorithm, and the other plots do not need it.
        settings = load_recorded(folder.config)
        slots = strategy.get("population") or settings.clients_per_round
        first_stage = strategy.get("first-stage-rounds", 0)
        run = RunSpec(strategy["name"], settings.seed, first_stage, len(units), slots, settings.clients)
        drawn.append(to / f"lineage.{form}")
        lineage(history(rows, run), units, title, drawn[-1])
    return drawn


@figures.styled
def curves(rows: Metrics, title: str, path: Path) -> None:
    """Plot accuracy and loss over the rounds.

    Args:
        rows: the metrics of all rounds; with "slot-accuracies" their range is drawn, too.
        title: of the plot.
        path: the file to write.
    """
    scored = [row for row in rows if accuracy_of(row) is not None]
    rounds, part = [row["round"] for row in scored], scored_on(rows)
    figure, (left, right) = figures.new(10, 4.2, columns=2)
    accuracies = 100 * np.array([accuracy_of(row) for row in scored], dtype=float)
    left.plot(rounds, accuracies, **figures.marks(rounds), label="global model")
    by_slot = {row["round"]: 100 * np.array(row["slot-accuracies"]) for row in rows if "slot-accuracies" in row}
    if by_slot:
        ends = np.array([[of.min(), of.max()] for of in by_slot.values()])
        figures.band(left, list(by_slot), ends, color=COLOURS[0], label="slots, lowest to highest")
        left.legend()
    if not scored:
        left.text(0.5, 0.5, "not evaluated yet", ha="center", transform=left.transAxes)
    left.set_ylabel(f"{part} accuracy (%)")
    right.plot(rounds, np.array([loss_of(row) for row in scored], dtype=float), **figures.marks(rounds), label=part)
    trained = [row for row in rows if "train-loss" in row]
    right.plot(
        [row["round"] for row in trained],
        [row["train-loss"] for row in trained],
        linewidth=1,
        alpha=0.6,
        label="training, mean over the round's clients",
    )
    right.set_ylabel("cross-entropy")
    right.legend()
    figures.over_rounds(left, right)
    figures.save(figure, "Accuracy and loss of the global model by round", title, path)


@figures.styled
def clients(counts: NDArray[np.int64], title: str, path: Path) -> None:
    """Plot the number of examples of each class at each client.

    Args:
        counts: [clients, classes].
        title: of the plot.
        path: the file to write.
    """
    number, classes = counts.shape
    figure, (axes,) = figures.new(min(24.0, max(8.0, 0.13 * number + 2)), 4.7)
    named = classes <= len(AREAS)
    colours: Any = AREAS if named else colormaps["viridis"](np.linspace(0, 1, classes))
    # One collection per class: a bar object for each client and class takes minutes for a thousand clients.
    left, right = np.arange(number) - 0.45, np.arange(number) + 0.45
    tops = np.vstack([np.zeros(number), np.cumsum(counts, axis=1).T])
    for label, (low, high) in enumerate(pairwise(tops)):
        corners = np.stack([[left, right, right, left], [low, low, high, high]]).T
        axes.add_collection(
            PolyCollection(
                corners[counts[:, label] > 0],  # type: ignore[arg-type]  # an array is much faster than a list
                facecolor=colours[label],
                edgecolor="none",
                antialiased=False,
                label=str(label),
            )
        )
    axes.set_ylim(0, 1.05 * tops[-1].max())
    axes.set_xlim(-0.7, number - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=25, integer=True))
    axes.set_xlabel("client")
    axes.set_ylabel("training examples")
    if named:
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], title="class", loc="outside right center")
    else:
        _gradient(figure, axes, colours, "class")
    figures.save(figure, "Training examples of each class at each client", title, path)


@figures.styled
def diversity(rows: Metrics, units: Sequence[str], title: str, path: Path) -> None:
    """Plot the similarity of a population's models, and their spread unit by unit.

    Args:
        rows: the metrics of all rounds; those with "similarity" and "spread" are drawn, at least one.
        units: the names of the units, in the order of "spread".
        title: of the plot.
        path: the file to write.
    """
    good = [row for row in rows if "spread" in row]
    rounds = [row["round"] for row in good]
    spreads = np.array([row["spread"] for row in good], np.float64)
    figure, (left, right) = figures.new(12, 4.7, columns=2)
    left.plot(rounds, [row["similarity"] for row in good], **figures.marks(good))
    left.set_ylabel("cosine similarity, mean over pairs of models")
    named = _extremes(spreads[-1])
    for unit in sorted(set(range(len(units))) - set(named)):
        right.plot(rounds, spreads[:, unit], color=figures.GREY, linewidth=0.9, zorder=1)
    for unit, colour in zip(named, COLOURS, strict=False):
        right.plot(rounds, spreads[:, unit], color=colour, label=_short(units[unit]), **figures.marks(good))
    right.set_ylabel("spread: standard deviation across models")
    _scale(right, spreads)
    heading = "unit" if len(named) == len(units) else f"units of largest and\nsmallest spread, of {len(units)}"
    figure.legend(title=heading, loc="outside right center")
    figures.over_rounds(left, right)
    figures.save(figure, "How different the models of the population are, by round", title, path)


@figures.styled
def lineage(past: History, units: Sequence[str], title: str, path: Path) -> None:
    """Plot the path of the units of slot 0's model, and the number of clients that have trained a unit and a model.

    Args:
        past: the lineage, with at least one step.
        units: the names of the units.
        title: of the plot.
        path: the file to write. Of many units, some are drawn, evenly chosen.
    """
    height = min(9.0, max(5.0, 0.55 * past.run.slots + 2))
    figure, (left, right) = figures.new(14, height, columns=2, width_ratios=[2.2, 1])
    chosen = np.linspace(0, len(units) - 1, min(len(units), figures.MOST_LINES)).round().astype(int)
    _trace(left, past, chosen, [_short(units[unit], 22) for unit in chosen])
    heading = "unit" if len(chosen) == len(units) else f"unit ({len(chosen)} of {len(units)})"
    _legend_below(figure, left, heading, "outside lower left", 4)
    for counts, name, colour, width, style in (
        (past.by_unit, "one unit of a slot's model", COLOURS[0], 3, "-"),
        (past.by_model, "any unit of a slot's model", COLOURS[2], 1.5, "--"),
    ):
        figures.band(right, past.rounds, counts[:, [0, 2]], color=colour)
        (line,) = right.plot(past.rounds, counts[:, 1], label=name, **figures.marks(past.rounds))
        line.set(color=colour, linewidth=width, linestyle=style)
    _legend_below(figure, right, "clients that have trained (mean, fewest to most)", "outside lower right", 1)
    right.set_ylabel(f"distinct clients, of {past.run.clients}")
    right.set_ylim(0, 1.05 * min(past.run.clients, 1.5 * past.by_model[:, 2].max()))
    right.yaxis.set_major_locator(MaxNLocator(integer=True))
    figures.over_rounds(left, right)
    figures.save(figure, "Whose data the layers of a model have passed through", title, path)


def _trace(axes: Axes, past: History, chosen: NDArray[np.int64], names: Sequence[str]) -> None:
    """Plot one line for each chosen unit through the slots of the latest steps."""
    slots, paths = past.run.slots, trace(past.steps, past.run.units)[:, chosen]
    # From the latest mean on: before it a unit has no single source.
    first = int(np.argmax(paths[:, 0] >= 0))
    steps, paths = past.steps[first:], paths[first:]
    rounds = [step.round for step in steps]
    trained = np.array([[slot in step.trained for slot in path] for step, path in zip(steps, paths, strict=True)])
    # Beside each other within the slot, below the client's number: lines on the same path would hide each other.
    offsets = np.linspace(-0.15, 0.4, len(chosen)) if len(chosen) > 1 else np.zeros(1)
    for at, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        axes.plot(rounds, paths[:, at] + offsets[at], color=colour, label=name)
        faces = np.where(trained[:, at], colour, "white")
        axes.scatter(rounds, paths[:, at] + offsets[at], 16, faces, edgecolors=colour, zorder=3)
    numbered = slots <= _MOST_NUMBERED_SLOTS
    if numbered:
        for step, path in zip(steps, paths, strict=True):
            for slot in sorted(set(path.tolist()) & set(step.trained)):
                _note(axes, step.round, slot - 0.33, str(step.trained[slot]))
        for slot in range(0, slots, 2):
            axes.axhspan(slot - 0.5, slot + 0.5, color="0.95", zorder=0)
    middle = slots / 2 - 0.5
    for gap in sorted(set(range(rounds[0], rounds[-1])) - set(rounds)):
        _note(axes, gap, middle, "bad round: nothing changed", rotation=90)
    if steps[0].sources is None:
        origin = "the initial model" if first == 0 and past.begins else "the mean of all slots"
        axes.axvline(rounds[0] - 0.5, color="0.3", linestyle=":")
        _note(axes, rounds[0] - 0.7, middle, origin, rotation=90)
    axes.set_xlim(rounds[0] - 1, rounds[-1] + 0.5)
    # Slot 0 at the top, like the first row of a table.
    axes.set_ylim(slots - 0.5, -0.5)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=20, integer=True, min_n_ticks=1))
    axes.set_ylabel("slot")
    what = "number: the client; hollow: not trained" if numbered else "hollow: not trained"
    axes.set_title(f"where the units of slot 0's model were trained ({what})", fontsize=10)


def _note(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Add small text with a white outline, so that lines do not hide it."""
    halo = [withStroke(linewidth=2.5, foreground="white")]
    axes.text(x, y, text, fontsize=8, ha="center", va="center", zorder=4, path_effects=halo, **style)


def _legend_below(
    figure: Figure, axes: Axes, title: str, place: Literal["outside lower left", "outside lower right"], columns: int
) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc=place, title=title, ncols=columns, fontsize="small")


def _gradient(figure: Figure, axes: Axes, colours: Any, label: str) -> tuple[Colorbar, NDArray[np.int64]]:
    """Add a colour bar with five labelled indices; return it with these indices."""
    last = len(colours) - 1
    bar = figure.colorbar(ScalarMappable(Normalize(0, last), ListedColormap(colours)), ax=axes, label=label, pad=0.01)
    at = np.linspace(0, last, 5).round().astype(int)
    bar.set_ticks(list(at))
    return bar, at


def _extremes(values: NDArray[np.float64]) -> list[int]:
    """Return the indices of all values, or of the largest and the smallest, as many as lines can be told apart."""
    if len(values) <= figures.MOST_LINES:
        return list(range(len(values)))
    order, half = np.argsort(values)[::-1].tolist(), figures.MOST_LINES // 2
    return [*order[:half], *order[-half:]]


def _short(name: str, length: int = 28) -> str:
    """Return a unit's name, a path or a pattern, in a form for a legend."""
    cut = name if len(name) <= length else f"{name[: length // 2 - 1]}…{name[-length // 2 :]}"
    # Matplotlib leaves labels that start with "_" out of a legend.
    return figures.plain(f" {cut}" if cut.startswith("_") else cut)


def _scale(axes: Axes, values: NDArray[np.float64]) -> None:
    """Make the y-axis logarithmic if the values differ by more than a factor of 20; zeros are at its bottom."""
    positive = values[values > 0]
    if not positive.size or positive.max() <= 20 * positive.min():
        axes.set_ylim(bottom=0)
    elif (values == 0).any():
        # A logarithmic axis has no zero.
        axes.set_yscale("symlog", linthresh=positive.min(), linscale=0.3)
        axes.set_ylim(bottom=-0.2 * positive.min())
    else:
        axes.set_yscale("log")
