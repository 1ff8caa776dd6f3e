"""What all figures share: colours, titles and the writing of files."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedmr_flwr.errors import printable
from fedmr_flwr.files import write_aside

# Colours that colour-blind readers tell apart (Petroff 2021, arXiv 2107.02270): six for lines, with black in place of
# its grey, which is that of the lines behind; and ten for areas.
COLOURS = ("#5790fc", "#f89c20", "#e42536", "#964a8b", "#7a21dd", "#1b1b1b")
AREAS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadb"),
)
# More lines than that in one panel cannot be told apart: the others are grey.
MOST_LINES = len(COLOURS)
GREY = "0.8"
_STYLE = {
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.grid": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "font.size": 10,
    "legend.frameon": False,
    # Text in a PDF that can be searched and edited, as journals require.
    "pdf.fonttype": 42,
    # The same picture gives the same file.
    "svg.hashsalt": "fedmr",
}
# Around each function that draws: a library must not change the style of its user's other figures.
styled = rc_context(_STYLE)  # type: ignore[arg-type]  # newer stubs name each key


def new(width: float, height: float, rows: int = 1, columns: int = 1, **keywords: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, row by row.

    Args:
        width: in inches.
        height: in inches.
        rows: of panels.
        columns: of panels.
        **keywords: of `Figure.subplots`.
    """
    # Not by pyplot, which keeps every figure alive and chooses a backend that may need a display.
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **keywords).flat)


def plain(text: str) -> str:
    """Escape dollar signs, between which Matplotlib expects a formula, and leave out what cannot be drawn."""
    return printable(text).replace("$", r"\$")


def marks(points: Sequence[Any] | NDArray[Any]) -> dict[str, Any]:
    """Return the style of the markers of a line with these points."""
    # With more points the markers would cover the line.
    return {"marker": "o", "markersize": 4} if len(points) <= 30 else {}


def band(axes: Axes, rounds: Sequence[int] | NDArray[np.int64], ends: NDArray[np.float64], **style: Any) -> None:
    """Fill the band from lowest to highest, [R, 2]."""
    # With an edge, because the fill of a single round has no width.
    axes.fill_between(rounds, ends[:, 0], ends[:, 1], alpha=0.2, linewidth=1, **style)


def over_rounds(*panels: Axes) -> None:
    """Label the axes of panels whose x-axis is the round."""
    for axes in panels:
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)


def save(figure: Figure, what: str, title: str, path: Path) -> None:
    """Write a figure with two lines above it.

    Args:
        figure: the figure.
        what: what it shows.
        title: of the run, or of all runs together.
        path: of the file.
    """
    width = int(12 * figure.get_figwidth())
    text = "\n".join(textwrap.fill(line, width) for line in (what, title) if line)
    figure.suptitle(plain(text), fontsize=11)
    write(figure, path)


def write(figure: Figure, path: Path) -> None:
    """Write a figure; the end of the file's name is its format."""
    # Into memory first, so that the file is written atomically. Without a date, which would differ each time.
    content = io.BytesIO()
    form = path.suffix.removeprefix(".")
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    figure.savefig(content, dpi=120, format=form, metadata=undated.get(form))
    write_aside(path, content.getvalue())
