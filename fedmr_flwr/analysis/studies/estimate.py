"""What a study would take: hours and disk, from one measured round of each cell and strategy."""

import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from fedmr_flwr.analysis.studies import terminal
from fedmr_flwr.analysis.studies.earlier import find_earlier_run
from fedmr_flwr.analysis.studies.plan import Planned, Train
from fedmr_flwr.config.evaluation import is_due
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.report.display import Display
from fedmr_flwr.runs.folder import RunFolder


@dataclass(frozen=True)
class Cost:
    """What runs take that differ in their seed alone.

    Attributes:
        round_seconds: of a round.
        evaluation_seconds: of an evaluation on the test set.
        further_seconds: of all further evaluations that are configured.
        bytes: of the folder of a complete run.
    """

    round_seconds: float
    evaluation_seconds: float
    further_seconds: float
    bytes: float

    def seconds(self, settings: Settings, done: int) -> float:
        """Return the seconds of the rounds that are left."""
        left = range(done + 1, settings.rounds + 1)
        tests = sum(is_due(settings.evaluate_every, number, settings.rounds) for number in left)
        further = sum(_has_further(settings, number) for number in left)
        return len(left) * self.round_seconds + tests * self.evaluation_seconds + further * self.further_seconds


def _has_further(settings: Settings, number: int) -> bool:
    """Return whether more than the test set is evaluated after a round."""
    wanted = settings.evaluation
    return any(is_due(often, number, settings.rounds) for often in (wanted.train, wanted.classes, wanted.clients))


def _first_further(settings: Settings) -> int:
    """Return the first round, perhaps the last, with further evaluations; 1 if none is configured."""
    return next((number for number in range(1, settings.rounds + 1) if _has_further(settings, number)), 1)


def estimate(planned: Sequence[Planned], console: Console, train: Train) -> Iterator[dict[str, object]]:
    """Yield a line for each cell and strategy: its runs, and the hours and megabytes that are left.

    Rounds of earlier runs are used where there are any, with further evaluations if these are configured; otherwise
    one round is run in a temporary folder, the first time after another one, which contains imports.

    Args:
        planned: the runs.
        console: for what is being measured.
        train: for the measured rounds.
    """
    warm = False
    for (cell, strategy), group in groupby(planned, lambda run: (run.cell.label, run.variant.label)):
        runs = [*group]
        found = [find_earlier_run(run.settings) for run in runs]
        rounds = [0 if folder is None else len(folder.read_rows()) for folder in found]
        complete = [folder is not None and folder.status == "completed" for folder in found]
        seconds = size = 0.0
        if not all(complete):
            needed = _first_further(runs[0].settings)
            measured = [folder for folder, done in zip(found, rounds, strict=True) if folder and done >= needed]
            cost = _cost_of(measured[0], runs[0].settings) if measured else _measure(runs[0], console, train, warm)
            warm = warm or not measured
            for run, done, ended in zip(runs, rounds, complete, strict=True):
                seconds += 0 if ended else cost.seconds(run.settings, done)
                size += 0 if done else cost.bytes
        yield {
            "cell": cell,
            "strategy": strategy,
            "runs": len(runs),
            "done": sum(complete),
            "rounds": sum(run.settings.rounds - done for run, done in zip(runs, rounds, strict=True)),
            "hours": seconds / 3600,
            "MB": size / 1e6,
        }


def show(planned: Sequence[Planned], jobs: int, console: Console, train: Train) -> None:
    """Show the runs, and what is left of them.

    Args:
        planned: the runs.
        jobs: how many would run at a time.
        console: for the table.
        train: for the measured rounds.
    """
    table = pd.DataFrame([*estimate(planned, console, train)])
    hours, size = float(table["hours"].sum()) / jobs, float(table["MB"].sum())
    text = table.assign(
        rounds=table["rounds"].map("{:,}".format),
        hours=table["hours"].map("{:.2f}".format),
        MB=table["MB"].map("{:,.0f}".format),
    ).astype(str)
    names = ["cell", "strategy"] if (text["cell"] != "").any() else ["strategy"]
    side = f", {jobs} at a time" if jobs > 1 else ""
    caption = (
        f"{len(planned)} runs, {table['done'].sum()} complete; left{side}: {hours:.1f} hours, {size / 1e3:.2f} GB"
    )
    shown = text[[*names, "runs", "done", "rounds", "hours", "MB"]]
    terminal.show(shown, names, caption, console)


def _measure(run: Planned, console: Console, train: Train, warm: bool) -> Cost:
    name = run.name.rpartition(",")[0]
    console.print(f"measuring one round: {name}", soft_wrap=True, markup=False, highlight=False)
    with tempfile.TemporaryDirectory(prefix="fedmr-plan-") as scratch:
        # After the last of two rounds everything is evaluated, after the first perhaps less.
        rounds = 1 if warm and not _has_further(run.settings, run.settings.rounds) else 2
        changes = {"rounds": rounds, "evaluate_every": 1, "run_dir": Path(scratch, "run")}
        short = run.settings.model_copy(update=changes)
        folder = train(short, Display(rounds, Console(file=io.StringIO())), None)
        seconds = folder.read_rows()[-1]["seconds"]
        return replace(_cost_of(folder, short), round_seconds=seconds, bytes=_bytes_of(folder, run.settings))


def _cost_of(folder: RunFolder, settings: Settings) -> Cost:
    """Return what a run takes, by the rounds that it has."""
    rows = folder.read_rows()
    evaluations: dict[bool, list[float]] = {False: [], True: []}
    for row in rows:
        if "evaluation-seconds" in row:
            evaluations[_has_further(settings, row["round"])].append(row["evaluation-seconds"])
    tests, every = (float(np.mean(evaluations[further] or [0.0])) for further in (False, True))
    seconds = float(np.median([row["seconds"] for row in rows]))
    return Cost(seconds, tests, max(0.0, every - tests), _bytes_of(folder, settings))


def _bytes_of(folder: RunFolder, settings: Settings) -> float:
    """Return the bytes of a run's folder when it is complete."""
    rows = folder.read_rows()
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    growing = folder.metrics.stat().st_size / len(rows) * settings.rounds
    checkpoints = [path.stat().st_size for path in files if folder.checkpoints in path.parents]
    fixed = sum(path.stat().st_size for path in files if path != folder.metrics) - sum(checkpoints)
    # The last two checkpoints stay; a checkpoint is one file of tensors and a small one.
    kept = sum(map(settings.keeps_models_of, range(1, settings.rounds + 1)))
    models = kept * (1 + settings.clients_per_round * settings.keep_models_slots)
    model = folder.model.stat().st_size if folder.model.exists() else 0
    return float(fixed + growing + 2 * max(checkpoints, default=0) + models * model)
