"""The plots of evaluations: the confusion of classes."""

import io
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedmr_flwr.files import write_aside
from fedmr_flwr.runs.folder import RunFolder

# In more cells than those of so many classes numbers could not be read.
_MOST_NUMBERED = 12


def draw(folder: RunFolder) -> list[Path]:
    """Draw the plots of the evaluations that a run has made.

    Args:
        folder: of the run.

    Returns:
        The files: confusion.png.

    Raises:
        RunFolderError: a file cannot be written.
    """
    title = folder.read_manifest().get("title", "")
    drawn = []
    if folder.classes.exists():
        found = json.loads(folder.classes.read_text(encoding="utf-8"))
        drawn.append(folder.path / "confusion.png")
        confusion(np.array(found["confusion"]), f"{title} · round {found['round']}", drawn[-1])
    return drawn


def confusion(counts: NDArray[np.int64], title: str, path: Path) -> None:
    """Plot a confusion matrix, each row as shares of its label's examples.

    Args:
        counts: [classes, classes], the examples of each label (row) by prediction (column).
        title: of the plot.
        path: of the file.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(counts) <= _MOST_NUMBERED:
        axes.set_xticks(range(len(counts)))
        axes.set_yticks(range(len(counts)))
        for (row, column), share in np.ndenumerate(shares):
            if counts[row, column]:
                colour = "white" if share > 0.5 else "black"
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)
    axes.set(xlabel="predicted label", ylabel="true label")
    figure.colorbar(image, label="share of the label's examples")
    _save(figure, title, path)


def _save(figure: Figure, title: str, path: Path) -> None:
    figure.suptitle(title.replace("$", r"\$"), fontsize=10, wrap=True)
    content = io.BytesIO()
    figure.savefig(content, dpi=120, format="png")
    write_aside(path, content.getvalue())
