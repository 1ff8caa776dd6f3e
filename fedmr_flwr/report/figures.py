"""What all figures share: colours, titles and the writing of files."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedmr_flwr.files import write_aside

# Ten colours that colour-blind readers tell apart: Petroff 2021, arXiv 2107.02270.
COLOURS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadb"),
)


def plain(text: str) -> str:
    """Escape dollar signs, between which Matplotlib expects a formula."""
    return text.replace("$", r"\$")


def line_colour(at: int) -> str:
    """Return the colour of the line of a number, from 0."""
    return COLOURS[at % len(COLOURS)]


def line_style(at: int) -> str:
    """Return the style of the line of a number, which differs where its colour repeats."""
    return ("-", "--", ":")[at // len(COLOURS) % 3]


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


def save(figure: Figure, title: str, path: Path) -> None:
    """Add a title to a figure, and write it."""
    figure.suptitle(plain(textwrap.fill(title, int(12 * figure.get_figwidth()))), fontsize=11)
    write(figure, path)


def write(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file."""
    # Into memory first, so that the file is written atomically.
    content = io.BytesIO()
    figure.savefig(content, dpi=120, format="png")
    write_aside(path, content.getvalue())
