"""The display of a run: a progress bar, or a line for each round."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from fedmr_flwr.runs.rows import accuracy_of, loss_of

if TYPE_CHECKING:
    from fedmr_flwr.config.settings import Settings

# Characters of the progress line: the shortest bar, and the time that is left.
_BAR, _TIME = 5, 7


class Display:
    """Shows the rounds of a run as they are completed.

    On a terminal, a progress bar with the latest accuracy, loss and seconds per round; otherwise, a line
    for each round. Use it in a `with` block.

    Args:
        rounds: the number of rounds of the run.
        console: for the output.
    """

    def __init__(self, rounds: int, console: Console) -> None:
        self._rounds = rounds
        self._console = console
        self._latest: dict[str, Any] = {}
        self._said: set[str] = set()
        self._bar = Progress(
            TextColumn("round"),
            # What must be read whole; of the rest, the bar takes what the numbers leave.
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=2 * len(str(rounds)) + 1)),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=1)),
            TextColumn("{task.fields[numbers]}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=_TIME)),
            console=console,
            # In a log file a progress bar would be thousands of lines.
            disable=not console.is_terminal,
            expand=True,
        )
        self._task = self._bar.add_task("", total=rounds, numbers="starting")

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, row: Mapping[str, Any]) -> None:
        """Show one round.

        Args:
            row: its metrics.
        """
        # The bar keeps the latest accuracy in rounds that are not evaluated.
        self._latest |= row
        if self._console.is_terminal:
            numbers = format_row(self._latest, self._room())
            self._bar.update(self._task, completed=row["round"], numbers=numbers)
        else:
            self.print(f"round {row['round']}/{self._rounds}  {format_row(row)}")
        for client in row.get("lost-state", ()):
            self.print(f"  client {client}: its state from earlier rounds is lost; it restarted from zero")
        for client, (stated, counted) in row.get("limited-examples", {}).items():
            self._print_once(
                f"  client {client}: it states {stated} examples; {counted} count, ten times as many as usual"
            )
        for reason in row.get("refused", ()):
            self._print_once(f"  a node is connected and not used: {reason}")
        if collapse := row.get("collapse"):
            self.print(f"  round {row['round']}: {collapse}")
        for failed in row.get("failed", ()):
            self.print(f"  client {failed['client']}: {failed['kind']}: {failed['reason']}")

    def _room(self) -> int:
        """Return the characters of a line that are free for a round's numbers."""
        # Beside "round 12/50", the bar, the time, and a space between each two of the five columns.
        return self._console.width - (len("round") + 2 * len(str(self._rounds)) + 1 + _BAR + _TIME + 4)

    def show_resumed(self, resumed: Mapping[str, Any]) -> None:
        """Show after which round a run continues.

        Args:
            resumed: the entry of the manifest.
        """
        for problem in resumed["problems"]:
            self.print(f"{problem}; using the checkpoint before it")
        self.print(f"resuming after round {resumed['after-round']}")
        self._bar.update(self._task, completed=resumed["after-round"])

    def _print_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.print(line)

    def print(self, line: str) -> None:
        """Print a line above the progress bar."""
        # No markup: a line may quote a client's text, whose brackets Rich would interpret.
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)


def quiet() -> None:
    """Keep this project's warnings out of standard error: `Display` shows them."""
    # Without any handler Python would print warnings to standard error itself.
    logging.getLogger("fedmr_flwr").addHandler(logging.NullHandler())


def format_row(row: Mapping[str, Any], room: int | None = None) -> str:
    """Return a round's metrics as one line.

    Args:
        row: the metrics.
        room: the most characters; what matters least is left out. None: no limit.
    """
    # What matters most has the lowest number.
    parts = []
    if (accuracy := accuracy_of(row)) is not None:
        parts += [(0, f"accuracy {accuracy:.4f}"), (3, f"loss {loss_of(row):.4f}")]
    if "train-loss" in row:
        parts.append((4, f"train loss {row['train-loss']:.4f}"))
    parts.append((2, f"{row['seconds']:.2f} s/round"))
    if row.get("bad"):
        parts.append((1, "too few good replies, nothing changed"))
    if row["failures"]:
        parts.append((1, f"{row['failures']} failed"))
    while room is not None and len(parts) > 1 and len("  ".join(text for _, text in parts)) > room:
        parts.remove(max(parts))
    return "  ".join(text for _, text in parts)


def format_partition(settings: "Settings") -> str:
    """Return a short description of a run's data and their partition."""
    partition = settings.partition
    detail = ""
    if partition.name in ("dirichlet", "dirichlet-plain", "quantity"):
        detail = f" α = {partition.alpha:g}"
        if partition.fill_up and partition.name != "quantity":
            detail += ", filled up"
    elif partition.name == "shards":
        detail = f" of {partition.shards_per_client}"
    if partition.skew:
        detail += f", {partition.skew} skew {partition.skew_strength:g}"
    if settings.data.validation:
        detail += f", validation share {settings.data.validation:g}"
    return f"{settings.data.name}, {settings.clients} clients, {partition.name}{detail}"
