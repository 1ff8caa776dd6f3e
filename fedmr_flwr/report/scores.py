"""The plots of evaluations: the confusion of classes, and the distribution of accuracies over clients."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmr_flwr.report import figures
from fedmr_flwr.runs.folder import RunFolder

# In more cells than those of so many classes numbers could not be read.
_MOST_NUMBERED = 12


def draw(folder: RunFolder, form: str = "png", to: Path | None = None) -> list[Path]:
    """Draw the plots of the evaluations that a run has made.

    Args:
        folder: of the run.
        form: of the files: png, svg or pdf.
        to: where they are written; None: to the folder of the run.

    Returns:
        The files: confusion.png and client-accuracy.png, as far as there is something to draw.

    Raises:
        RunFolderError: a file cannot be written.
    """
    title = folder.read_manifest().get("title", "")
    drawn: list[Path] = []
    to = to or folder.path
    if folder.classes.exists():
        found = json.loads(folder.classes.read_text(encoding="utf-8"))
        drawn.append(to / f"confusion.{form}")
        confusion(np.array(found["confusion"]), f"{title} · round {found['round']}", drawn[-1])
    if rows := folder.read_client_rows():
        last = [row for row in rows if row["round"] == rows[-1]["round"]]
        drawn.append(to / f"client-accuracy.{form}")
        distribution(last, f"{title} · round {last[0]['round']}", drawn[-1])
    return drawn


@figures.styled
def confusion(counts: NDArray[np.int64], title: str, path: Path) -> None:
    """Plot a confusion matrix, each row as shares of its label's examples.

    Args:
        counts: [classes, classes], the examples of each label (row) by prediction (column).
        title: of the plot.
        path: of the file.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, (axes,) = figures.new(7, 6.2)
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
    figures.save(figure, "Which class the global model takes for which", title, path)


@figures.styled
def distribution(rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Plot which share of the clients has at most a given accuracy on its own examples.

    Args:
        rows: of the run's clients, of one round.
        title: of the plot.
        path: of the file.
    """
    figure, (axes,) = figures.new(8, 5)
    for model in ("global", "slot"):
        for name, what in (("accuracy", "as it is"), ("tuned-accuracy", "fine-tuned")):
            values = np.sort([100 * row[name] for row in rows if row["model"] == model and name in row])
            if len(values):
                label = f"{'global model' if model == 'global' else 'model of a slot'}, {what}"
                shares = 100 * np.arange(1, len(values) + 1) / len(values)
                axes.step([values[0], *values], [0, *shares], where="post", label=label)
    axes.set(xlabel="accuracy on the client's own examples (%)", ylabel="clients with at most this accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend()
    figures.save(figure, "How accurate the model is on the clients' own examples", title, path)
