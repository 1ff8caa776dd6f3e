"""A tuning from its trials to the best one of each strategy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from fedmr_flwr.analysis.studies import jobs, terminal
from fedmr_flwr.analysis.studies.earlier import Metrics, rows_of
from fedmr_flwr.analysis.studies.plan import Train
from fedmr_flwr.analysis.studies.study import with_options
from fedmr_flwr.analysis.tuning.halving import promoted, ranked
from fedmr_flwr.analysis.tuning.space import describe
from fedmr_flwr.analysis.tuning.trials import Trial
from fedmr_flwr.config.evaluation import is_due
from fedmr_flwr.config.loading import read_value
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.config.yaml_text import write_yaml
from fedmr_flwr.errors import FedmrError, RunError, RunFolderError
from fedmr_flwr.files import write_aside
from fedmr_flwr.report.summary import LAST
from fedmr_flwr.runs.rows import accuracy_of

_NO_NUMBER = "–"
_FAILED = -math.inf


@dataclass
class Score:
    """The latest result of a trial.

    Attributes:
        rounds: after which it was compared; 0 if it was not yet.
        accuracy: on the validation part, the mean of the last five evaluations; minus infinity if the trial failed.
        problem: why it did.
    """

    rounds: int = 0
    accuracy: float = math.nan
    problem: str = ""


def run(
    trials: Sequence[Trial], rungs: Sequence[int], at_a_time: int, out: Path, console: Console, train: Train
) -> list[Trial]:
    """Run trials by successive halving, write all of them and their space, and show the best.

    Args:
        trials: of every strategy, in the order of their numbers.
        rungs: the rounds after which they are compared.
        at_a_time: the number of runs side by side.
        out: the folder of the results.
        console: for the progress and the table.
        train: for runs in this process.

    Returns:
        The best trial of each strategy.

    Raises:
        RunError: all trials of a strategy failed.
        RunFolderError: the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"cannot use {out}: {error.strerror}; choose another folder with --out") from None
    defaults = [trial for trial in trials if trial.number == 0]
    space = {trial.variant.label: describe(trial.space, trial.values) for trial in defaults}
    write_aside(out / "space.yaml", write_yaml(space).encode())
    scores = {trial.name: Score() for trial in trials}
    going = [*trials]
    for rounds in rungs:
        _print(console, f"{len(going)} trials until round {rounds} of {rungs[-1]}")
        for ended in jobs.run_all([trial.until(rounds) for trial in going], at_a_time, console, train):
            scores[ended.run.name] = score = _score(ended, rounds)
            if score.problem:
                _print(console, f"  failed: {score.problem}")
            _write_trials(trials, scores, out / "trials.csv")
        of_strategies = [[*own] for _, own in groupby(going, lambda trial: trial.variant)]
        if rounds != rungs[-1]:
            going = [trial for own in of_strategies for trial in _survivors(own, scores)]
    best = [found for own in of_strategies if (found := _best(own, scores))]
    _show(best, scores, console)
    if missing := [trial.variant.label for trial in defaults if trial.variant not in {own.variant for own in best}]:
        raise RunError(f"no trial of {' and '.join(missing)} was completed; see trials.csv in {out}")
    return best


def write_study(best: Sequence[Trial], conf: str, overrides: Sequence[str], path: Path) -> None:
    """Write the best trials as a study that compares them on test data.

    Args:
        best: of each strategy.
        conf: the configuration of the trials.
        overrides: of all trials.
        path: of the file.
    """
    # Without the part for validation, whose examples are for training then.
    given = {key: read_value(text) for key, _, text in (override.partition("=") for override in overrides)}
    cells = {
        "configurations": [str(Path(conf).absolute()) if Path(conf).is_file() else conf],
        "overrides": {**given, "data.validation": 0},
    }
    labels = [with_options(own.variant.label, own.values if own.number else {}) for own in best]
    note = "# The best trial of each strategy; fedmr compare trains them on all examples and scores the test set.\n"
    write_aside(path, (note + write_yaml({"cells": [cells], "strategies": labels})).encode())


def score_of(rows: Metrics, settings: Settings) -> float:
    """Return the mean of the last five evaluations.

    Args:
        rows: the metrics of a trial until its last round.
        settings: with that number of rounds.
    """
    # Only those that are due with so many rounds: a trial that was stopped and continued has others, too.
    due = [row for row in rows if is_due(settings.evaluate_every, row["round"], settings.rounds)]
    return float(np.mean(np.array([accuracy_of(row) for row in due], dtype=float)[-LAST:]))


def _score(ended: "jobs.Ended[Trial]", rounds: int) -> Score:
    try:
        if ended.folder is None:
            raise RunError(ended.error)
        return Score(rounds, score_of(rows_of(ended.folder, rounds), ended.run.settings))
    except FedmrError as error:
        return Score(rounds, _FAILED, str(error))


def _survivors(trials: Sequence[Trial], scores: Mapping[str, Score]) -> list[Trial]:
    """Return those trials of a strategy that continue."""
    numbers = promoted({trial.number: scores[trial.name].accuracy for trial in trials})
    return [trial for trial in trials if trial.number in numbers]


def _best(trials: Sequence[Trial], scores: Mapping[str, Score]) -> Trial | None:
    """Return the best trial of a strategy; None if all failed."""
    by_number = {trial.number: trial for trial in trials if scores[trial.name].accuracy > _FAILED}
    order = ranked({number: scores[trial.name].accuracy for number, trial in by_number.items()})
    return by_number[order[0]] if order else None


def _write_trials(trials: Sequence[Trial], scores: Mapping[str, Score], path: Path) -> None:
    lines = []
    for trial in trials:
        score = scores[trial.name]
        accuracy = score.accuracy if math.isfinite(score.accuracy) else math.nan
        own = {"strategy": trial.variant.label, "trial": trial.number, "rounds": score.rounds}
        lines.append({**own, "validation_accuracy": accuracy, **trial.values, "problem": score.problem})
    table = pd.DataFrame(lines)
    table = table[[*table.columns.drop("problem"), "problem"]]
    write_aside(path, table.to_csv(index=False, lineterminator="\n").encode())


def _show(best: Sequence[Trial], scores: Mapping[str, Score], console: Console) -> None:
    """Print the best trial of each strategy."""
    lines = []
    for trial in best:
        default = scores[f"{trial.variant.label}, trial 0"].accuracy
        numbers = {"default": default, "best": scores[trial.name].accuracy}
        shown = {name: f"{100 * value:.1f}" if value > _FAILED else "failed" for name, value in numbers.items()}
        values = {key.rpartition(".")[2]: str(value) for key, value in trial.values.items()}
        lines.append({"strategy": trial.variant.label, **shown, "trial": str(trial.number), **values})
    if lines:
        caption = f"validation accuracy in %, mean of the last {LAST} evaluations; trial 0 is the default"
        terminal.show(pd.DataFrame(lines).fillna(_NO_NUMBER), ["strategy"], caption, console)


def _print(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False)
