"""Runs of a study or of a tuning, one after another or side by side in processes of their own."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column

from fedmr_flwr.analysis.studies.earlier import find_earlier_run, is_complete
from fedmr_flwr.analysis.studies.plan import Train
from fedmr_flwr.config.loading import load_recorded, resolve_paths, to_yaml
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.errors import ConfigError, FedmrError
from fedmr_flwr.report.display import Display
from fedmr_flwr.runs.folder import Place, RunFolder
from fedmr_flwr.runs.rows import accuracy_of

# Runs of these engines are one process each; Ray and a SuperLink share out the machine themselves.
SIDE_BY_SIDE = ("in-process", "gpu")
_POLL_SECONDS = 0.2
# Seconds in which a process that was asked to stop writes down that it has stopped.
_STOP_SECONDS = 30.0
_ERROR = "fedmr: error: "


class Job(Protocol):
    """A run that is to be complete. If its folder has an earlier one with fewer rounds, that is continued."""

    @property
    def name(self) -> str:
        """What it is, for people."""

    @property
    def settings(self) -> Settings:
        """Its settings, with its folder."""


J = TypeVar("J", bound=Job)


@dataclass(frozen=True)
class Ended(Generic[J]):
    """How a run ended: `folder` if it is complete, `error` if it failed."""

    run: J
    folder: RunFolder | None = None
    error: str = ""


def check(planned: Sequence[Job], number: int) -> None:
    """Check that runs can be run side by side.

    Raises:
        ConfigError: their engine shares out the machine itself.
    """
    engine = next((run.settings.engine for run in planned if run.settings.engine not in SIDE_BY_SIDE), None)
    if number > 1 and engine:
        raise ConfigError(f"--jobs {number}: engine {engine} uses the whole machine; add --engine in-process")


def run_all(planned: Sequence[J], jobs: int, console: Console, train: Train) -> Iterator[Ended[J]]:
    """Run what is not complete yet, and yield every run when it has ended, complete or not.

    Args:
        planned: the runs.
        jobs: how many run at a time.
        console: for the progress.
        train: for those that run in this process, one after another.
    """
    yield from _in_turn(planned, console, train) if jobs == 1 else _side_by_side(planned, jobs, console)


def _in_turn(planned: Sequence[J], console: Console, train: Train) -> Iterator[Ended[J]]:
    for at, run in enumerate(planned, 1):
        settings = resolve_paths(run.settings)
        console.print(
            f"[{at}/{len(planned)}] {run.name}: {settings.run_dir}", soft_wrap=True, markup=False, highlight=False
        )
        try:
            done = find_earlier_run(settings)
            if done is None or not is_complete(done, settings):
                if done and load_recorded(done.config).rounds < settings.rounds:
                    with done.locked():
                        done.configure(to_yaml(settings))
                done = train(settings, Display(settings.rounds, console), done)
            yield Ended(run, done)
        except FedmrError as error:  # the other runs, which may take hours, continue
            yield Ended(run, error=str(error))


@dataclass
class _Process(Generic[J]):
    """A run in a process of its own: a command `fedmr run` or `fedmr resume`."""

    run: J
    process: "subprocess.Popen[bytes]"
    log: Path
    task: TaskID
    seen: Place = field(default_factory=Place)
    latest: dict[str, Any] = field(default_factory=dict)


def _side_by_side(planned: Sequence[J], jobs: int, console: Console) -> Iterator[Ended[J]]:
    waiting = [*planned]
    running: list[_Process[J]] = []
    with tempfile.TemporaryDirectory(prefix="fedmr-jobs-") as scratch, _progress(console) as bars:
        total = bars.add_task("all runs", total=len(planned), numbers="")
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    run = waiting.pop(0)
                    try:
                        done = find_earlier_run(run.settings)
                    except FedmrError as error:
                        yield _end(bars, total, Ended(run, error=str(error)))
                        continue
                    if done is not None and is_complete(done, run.settings):
                        yield _end(bars, total, Ended(run, done))
                        continue
                    running.append(_start(run, done, Path(scratch, str(len(waiting))), bars))
                time.sleep(_POLL_SECONDS)
                for job in [*running]:
                    _follow(job, bars)
                    if job.process.poll() is not None:
                        running.remove(job)
                        bars.remove_task(job.task)
                        yield _end(bars, total, _ended(job))
        finally:  # after an interrupt, or if the caller has enough
            _stop(running)


def _progress(console: Console) -> Progress:
    whole = Column(no_wrap=True)
    return Progress(
        TextColumn(
            "{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
        MofNCompleteColumn(table_column=whole),
        BarColumn(bar_width=10),
        TextColumn("{task.fields[numbers]}", table_column=whole),
        console=console,
        expand=True,
        # In a log file the bars would be thousands of lines; it gets a line for each run.
        disable=not console.is_terminal,
    )


def _start(run: J, earlier: RunFolder | None, scratch: Path, bars: Progress) -> _Process[J]:
    settings = resolve_paths(run.settings)
    fedmr = [sys.executable, "-m", "fedmr_flwr.cli"]
    if earlier is None:
        conf = scratch.with_suffix(".yaml")
        conf.write_text(to_yaml(settings), encoding="utf-8")
        # Fewer rounds than the file that they come from has may be meant, which only an override says.
        command = [*fedmr, "run", str(conf), f"rounds={settings.rounds}"]
    else:
        command = [*fedmr, "resume", str(earlier.path), f"rounds={settings.rounds}", "--engine", settings.engine]
    log = scratch.with_suffix(".log")
    # One thread each: processes that wait for each other's cores take several times as long.
    environment = os.environ | {"OMP_NUM_THREADS": str(settings.client_cpus)}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
    task = bars.add_task(run.name, total=settings.rounds, numbers="")
    return _Process(run, process, log, task)


def _follow(job: _Process[J], bars: Progress) -> None:
    """Show the rounds that a run has completed since the last call."""
    assert job.run.settings.run_dir is not None
    rows, job.seen = RunFolder(job.run.settings.run_dir).read_new_rows(job.seen)
    for row in rows:
        job.latest |= row
    if rows:
        accuracy = accuracy_of(job.latest)
        numbers = "" if accuracy is None else f"{accuracy:.4f}"
        bars.update(job.task, completed=job.latest["round"], numbers=numbers)


def _ended(job: _Process[J]) -> Ended[J]:
    assert job.run.settings.run_dir is not None
    if job.process.returncode == 0:
        return Ended(job.run, RunFolder.open(job.run.settings.run_dir))
    lines = job.log.read_text(encoding="utf-8", errors="replace").splitlines()
    error = next((line.removeprefix(_ERROR) for line in reversed(lines) if line.startswith(_ERROR)), "")
    return Ended(job.run, error=error or f"its process ended with status {job.process.returncode}")


def _end(bars: Progress, total: TaskID, ended: Ended[J]) -> Ended[J]:
    """Show that a run has ended."""
    bars.advance(total)
    at, of = int(bars.tasks[0].completed), int(bars.tasks[0].total or 0)
    line = f"[{at}/{of}] {ended.run.name}: {ended.run.settings.run_dir}"
    bars.console.print(line, soft_wrap=True, markup=False, highlight=False)
    return ended


def _stop(running: Sequence[_Process[J]]) -> None:
    """Stop processes; each leaves a run that can be resumed."""
    for job in running:
        job.process.terminate()
    for job in running:
        with suppress(subprocess.TimeoutExpired):
            job.process.wait(_STOP_SECONDS)
            continue
        job.process.kill()
        job.process.wait()
