"""Arguments that several commands share, the layout of help, and the printing of lines and of progress."""

import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from fedmr_flwr.config.paths import bundled_names
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.report.console import Console

# Arguments are described in the text of each command: Typer up to 0.20, which Flower 1.39 needs, loses their help
# with click 8.5.
Conf = Annotated[str, typer.Argument(hidden=True)]
Overrides = Annotated[list[str] | None, typer.Argument(hidden=True)]
Folder = Annotated[Path, typer.Argument(metavar="RUN", hidden=True)]


class Format(StrEnum):
    """The formats of pictures."""

    png = "png"
    svg = "svg"
    pdf = "pdf"


PictureFormat = Annotated[Format, typer.Option("--format", metavar="NAME", help="Of the pictures: png, svg or pdf.")]
Engine = Annotated[
    str | None, typer.Option(metavar="NAME", help="ray, in-process, gpu or deployment; short for engine=NAME.")
]
Superlink = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="A SuperLink in Flower's configuration; sets engine=deployment."),
]


class Command(TyperCommand):
    """A command whose help is plain text."""

    def get_help(self, ctx: Any) -> str:
        """Return the help without the backslashes that Typer up to 0.20 leaves before brackets."""
        return super().get_help(ctx).replace("\\[", "[")


class ConfCommand(Command):
    """A command whose help ends with the configurations that come with the package."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the names of the configurations."""
        with formatter.section("Configurations"):
            names, indent = ", ".join(bundled_names()), " " * formatter.current_indent
            # Not Click's own way, which breaks names at their hyphens.
            lines = textwrap.wrap(
                names, formatter.width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
            )
            formatter.write("\n".join(lines) + "\n")


def engine_overrides(engine: str | None, superlink: str | None) -> list[str]:
    """Return the overrides for the options `--engine` and `--superlink`."""
    if superlink == "":  # as from an empty variable: it would be run on this machine
        raise ConfigError("--superlink needs the name of a SuperLink in Flower's configuration")
    if superlink:
        return [f"engine={engine or 'deployment'}", f"deployment.superlink={superlink}"]
    return [f"engine={engine}"] if engine else []


def print_line(line: str) -> None:
    """Print a line unchanged, without wrapping."""
    Console().print(line, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def progress(step: str) -> Iterator[Callable[[str], None]]:
    """Show on standard error what a command does that may take long: in place in a terminal, otherwise line by line.

    Args:
        step: the first step.

    Yields:
        What is called with each further step.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(step) as status:
            yield status.update
        return

    def show(step: str) -> None:
        console.print(step, soft_wrap=True, highlight=False, markup=False)

    show(step)
    yield show
