"""A study from its runs to its tables and curves."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedmr_flwr.analysis.flatness import records
from fedmr_flwr.analysis.studies import curves, jobs, results, tables, terminal
from fedmr_flwr.analysis.studies.earlier import Metrics, find_earlier_run, rows_of
from fedmr_flwr.analysis.studies.plan import Planned, Train
from fedmr_flwr.errors import FedmrError, RunError, RunFolderError
from fedmr_flwr.files import write_aside
from fedmr_flwr.report.display import format_partition
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.runs.versions import changed_versions


def run(
    planned: Sequence[Planned],
    at_a_time: int,
    target: float | None,
    out: Path,
    console: Console,
    train: Train,
    form: str = "png",
    command: str = "",
) -> None:
    """Run what is not complete yet, write and show the tables, and draw the curves.

    Args:
        planned: the runs.
        at_a_time: the number of runs side by side.
        target: the accuracy to reach; None: in each cell one that all runs reach.
        out: the folder of the results.
        console: for the progress and the tables.
        train: for runs in this process.
        form: of the picture: png, svg or pdf.
        command: how the study was called, to be kept in command.txt.

    Raises:
        RunError: some runs failed; the others are in the tables.
        RunFolderError: the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"cannot use {out}: {error.strerror}; choose another folder with --out") from None
    write_aside(out / "command.txt", f"{command}\n".encode())
    cells = list(dict.fromkeys(run.cell.label for run in planned))
    strategies = list(dict.fromkeys(run.variant.label for run in planned))
    found: dict[str, dict[str, list[Metrics]]] = {cell: {name: [] for name in strategies} for cell in cells}
    by_run: dict[results.RunKey, Metrics] = {}
    folders: dict[results.RunKey, RunFolder] = {}
    for line, number in _changed_versions(planned).items():
        _print(console, f"{line} for {number} of the runs: their results may differ in their last digits")
    for ended in jobs.run_all(planned, at_a_time, console, train):
        key = results.RunKey(ended.run.cell.label, ended.run.variant.label, ended.run.settings.seed)
        try:
            if ended.folder is None:
                raise RunError(ended.error)
            by_run[key], folders[key] = rows_of(ended.folder), ended.folder
            found[key.cell][key.strategy].append(by_run[key])
        except FedmrError as error:
            _print(console, f"  failed: {error}")
    measured = zip(folders, records.at_the_latest(folders.values()), strict=True)
    numbers = results.collect(by_run, target, {key: own for key, own in measured if own})
    table = tables.statistics(numbers, cells, strategies, len(planned) // (len(cells) * len(strategies)))
    written = tables.write(table, numbers, out)
    picture = out / f"comparison.{form}"
    curves.draw(found, _title(planned), picture)
    text, names, caption = tables.details(table), ["strategy"], tables.CAPTION
    if len(cells) > 1:
        text, names, caption = tables.by_cell(table, numbers), ["cell"], tables.CELLS_CAPTION
    terminal.show(text, names, caption.format(planned[0].settings.data.scored_on), console)
    for path in [*written, picture]:
        _print(console, str(path))
    if failed := len(planned) - len(by_run):
        raise RunError(f"{failed} of {len(planned)} runs failed and are not in the table; see their lines above")


def _changed_versions(planned: Sequence[Planned]) -> Counter[str]:
    """Return how many earlier runs have another version of each package."""
    earlier = [find_earlier_run(run.settings) for run in planned]
    versions = [folder.read_manifest().get("versions", {}) for folder in earlier if folder]
    return Counter(line for before in versions for line in changed_versions(before))


def _title(planned: Sequence[Planned]) -> str:
    """Return what all runs have in common."""
    settings = [run.settings for run in planned]
    named = [
        {format_partition(own) for own in settings},
        {f"{own.clients_per_round} a round" for own in settings},
        {own.model.name for own in settings},
    ]
    if len(named[0]) > 1:
        named[:1] = {own.data.name for own in settings}, {f"{own.clients} clients" for own in settings}
    return ", ".join(next(iter(values)) for values in named if len(values) == 1)


def _print(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False)
