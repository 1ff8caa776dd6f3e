"""The pictures of a run."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray


def curves(rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draw test accuracy and loss over the rounds.

    Args:
        rows: the metrics of all rounds.
        title: what was run.
        path: the picture.
    """
    scored = [row for row in rows if "test-accuracy" in row]
    rounds = [row["round"] for row in scored]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    mark = "o" if len(scored) <= 30 else ""
    left.plot(rounds, [100 * row["test-accuracy"] for row in scored], marker=mark, markersize=4)
    left.set_ylabel("test accuracy (%)")
    right.plot(rounds, [row["test-loss"] for row in scored], marker=mark, markersize=4, label="test")
    trained = [row for row in rows if "train-loss" in row]
    right.plot(
        [row["round"] for row in trained],
        [row["train-loss"] for row in trained],
        linewidth=1,
        alpha=0.6,
        label="training, mean over the round's clients",
    )
    right.set_ylabel("cross-entropy")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=120)


def clients(counts: NDArray[np.int64], title: str, path: Path) -> None:
    """Draw how many examples of each class each client holds.

    Args:
        counts: [clients, classes].
        title: which division of which data.
        path: the picture.
    """
    number, classes = counts.shape
    figure = Figure(figsize=(min(24.0, max(8.0, 0.13 * number + 2)), 4.5), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["tab10" if classes <= 10 else "turbo"](np.linspace(0, 1, max(classes, 10)))
    # One collection per class: a bar object per client and class takes minutes for a thousand clients.
    left, right = np.arange(number) - 0.45, np.arange(number) + 0.45
    tops = np.vstack([np.zeros(number), np.cumsum(counts, axis=1).T])
    for label, (low, high) in enumerate(pairwise(tops)):
        corners = np.stack([[left, right, right, left], [low, low, high, high]]).T
        axes.add_collection(
            PolyCollection(
                list(corners), facecolor=colours[label], edgecolor="none", antialiased=False, label=str(label)
            )
        )
    axes.set_ylim(0, 1.05 * tops[-1].max())
    axes.set_xlim(-0.7, number - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=25, integer=True))
    axes.set_xlabel("client")
    axes.set_ylabel("training examples")
    axes.set_title(title, fontsize=11)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1],
        labels[::-1],
        title="class",
        loc="outside right center",
        frameon=False,
        ncols=-(-classes // 20),
    )
    figure.savefig(path, dpi=120)
