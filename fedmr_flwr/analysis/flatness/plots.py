"""The plots of flatness: the spectrum, the lines between models, and the surface around them."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from fedmr_flwr.analysis.flatness.measure import Surface
from fedmr_flwr.analysis.flatness.objective import Matrix
from fedmr_flwr.report import figures
from fedmr_flwr.report.figures import COLOURS

_LEVELS = 25


@figures.styled
def flatness(measured: dict[str, Any], title: str, path: Path) -> None:
    """Plot the largest eigenvalues, and the loss on the lines between slots.

    Args:
        measured: the result of `Flatness.measure`.
        title: of the plot.
        path: the file to write.
    """
    lines = measured.get("lines")
    figure, panels = figures.new(12 if lines else 6.5, 4.8, columns=2 if lines else 1)
    _spectrum(panels[0], measured)
    if lines:
        _lines(panels[1], lines)
    what = "How flat the minimum is: curvature" + (", and the loss between models" if lines else "")
    figures.save(figure, what, title, path)


def _spectrum(axes: Axes, measured: dict[str, Any]) -> None:
    """Plot the eigenvalues of the global model as bars, those of slots and clients as points."""
    values = measured["global"]["eigenvalues"]
    axes.bar(range(1, len(values) + 1), values, 0.6, color=COLOURS[0], alpha=0.6, label="global model, all clients")
    for group, colour, label in (
        ("slots", COLOURS[1], "each slot's model, all clients"),
        ("clients", COLOURS[2], "global model, one client"),
    ):
        found = [own["eigenvalues"] for own in measured.get(group, [])]
        if found:
            places = np.concatenate([np.arange(1, len(own) + 1) for own in found])
            axes.plot(places, np.concatenate(found), "o", color=colour, markersize=4, alpha=0.7, label=label)
    axes.set_xticks(range(1, len(values) + 1))
    axes.set_xlabel("eigenvalue of the Hessian, largest first")
    axes.set_ylabel("value")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()


def _lines(axes: Axes, lines: dict[str, Any]) -> None:
    for group, colour, label in (
        ("between-slots", COLOURS[1], "from slot to slot"),
        ("slot-to-global", COLOURS[0], "from slot (0) to the global model (1)"),
    ):
        losses = np.transpose(lines[group]["losses"])
        if losses.size:
            drawn = axes.plot(np.linspace(0, 1, len(losses)), losses, color=colour, alpha=0.7, linewidth=1.2)
            drawn[0].set_label(label)
    axes.set_xlabel("place on the line")
    axes.set_ylabel("cross-entropy on training examples")
    axes.grid(alpha=0.3)
    axes.legend()


@figures.styled
def surface(found: Surface, title: str, path: Path) -> None:
    """Plot the loss on a plane, and the places of models in it.

    Args:
        found: the surface; a group of more than one model is drawn as a path if the surface is of paths.
        title: of the plot.
        path: the file to write.
    """
    figure, (axes,) = figures.new(8, 6.7)
    losses = np.clip(found.losses, 1e-6, None)
    # Evenly spaced in the logarithm: beyond the models a loss rises a hundredfold.
    levels = np.geomspace(losses.min(), losses.max() * 1.0001, _LEVELS)
    filled = axes.contourf(found.x, found.y, losses, levels, cmap="viridis", norm=LogNorm())
    bar = figure.colorbar(filled, ax=axes, label="cross-entropy on training examples", format="%.3g")
    bar.set_ticks(list(levels[:: _LEVELS // 6]))
    bar.minorticks_off()
    axes.contour(found.x, found.y, losses, levels, colors="white", linewidths=0.3, norm=LogNorm())
    for at, (name, places) in enumerate(found.places.items()):
        _group(axes, name, places, "#ffffff" if at == 0 else COLOURS[2], found.paths)
    axes.set_xlabel(found.labels[0])
    axes.set_ylabel(found.labels[1])
    axes.set_aspect("equal", adjustable="box")
    figure.legend(loc="outside lower center", ncols=len(found.places))
    what = "The loss along the paths of two runs" if found.paths else "The loss around the global model"
    figures.save(figure, what, title, path)


def _group(axes: Axes, name: str, places: Matrix, colour: str, path: bool) -> None:
    style: dict[str, Any] = {"color": colour, "markeredgecolor": "black", "markeredgewidth": 0.6}
    kind = "o-" if path else "o"
    axes.plot(places[:, 0], places[:, 1], kind, markersize=6, label=figures.plain(name), **style)
    if path:
        axes.plot(*places[-1], "*", markersize=16, **style)
