"""The console on which everything is printed."""

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from fedmr_flwr.errors import printable


class Console(rich.console.Console):
    """Rich's console, in which texts are shown as they are, and cannot command the terminal.

    Names of classes, columns and files, and what is in a run folder, may be other people's.

    Args:
        **options: of Rich's.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render something, with Rich's own control codes and no others."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))
