"""What all figures share: colours, titles and the writing of files."""

import io
import textwrap
from pathlib import Path

from matplotlib.figure import Figure

from fedmr_flwr.files import write_aside

# Ten colours that colour-blind readers tell apart: Petroff 2021, arXiv 2107.02270.
COLOURS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadb"),
)


def plain(text: str) -> str:
    """Escape dollar signs, between which Matplotlib expects a formula."""
    return text.replace("$", r"\$")


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
