"""The results of a study: one line of numbers for each run, and statistics over seeds."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from fedmr_flwr.analysis.studies.earlier import Metrics

# The mean of the last evaluations varies less than the last one alone.
LAST = 5
# Of so many evaluations the standard deviation tells how steady a curve is at its end.
STEADY = 10
_CONFIDENCE = 0.95
# The numbers of each run that are averaged over seeds. Accuracies are from 0 to 1.
NUMBERS = [
    "last", "best", "late", "steadiness", "rounds_to", "bytes_to", "seconds_to", "bytes_down", "bytes_up", "seconds",
    "client_mean", "client_worst", "tuned_mean", "macro_f1",
]  # fmt: skip


class RunKey(NamedTuple):
    """Which run: its cell, its strategy, its seed."""

    cell: str
    strategy: str
    seed: int


class Interval(NamedTuple):
    """A mean difference and its 95 % confidence interval; infinite ends with fewer than two seeds."""

    mean: float
    low: float
    high: float


def collect(found: Mapping[RunKey, Metrics], target: float | None = None) -> pd.DataFrame:
    """Return a line for each complete run.

    Args:
        found: the metrics of the complete runs.
        target: the accuracy to reach; None: in each cell the highest whole percentage that all runs have reached.

    Returns:
        Columns "cell", "strategy", "seed", "target", and `NUMBERS`: test accuracy after the last round, the best one,
        the mean of the last five, the standard deviation of the last ten; the first evaluated round with the target
        accuracy, and the bytes and the seconds of training until then, infinite if there was none; bytes sent to and
        returned by a client in a round, mean over rounds; seconds of a round, median over rounds; of the last such
        evaluation, NaN if there was none: mean and worst tenth of the accuracies over clients, their mean after
        fine-tuning, macro-F1.
    """
    bests: dict[str, float] = {}
    for key, rows in found.items():
        bests[key.cell] = min(bests.get(key.cell, 1.0), max(_scored(rows)[1]))
    lines = []
    for key, rows in found.items():
        aim = floor_percent(bests[key.cell]) if target is None else target
        lines.append({**key._asdict(), "target": aim, **_numbers(rows, aim)})
    return pd.DataFrame(lines, columns=["cell", "strategy", "seed", "target", *NUMBERS])


def floor_percent(accuracy: float) -> float:
    """Round an accuracy down to a whole percentage; one that is whole stays, although 100 * 0.29 is below 29."""
    return math.floor(round(100 * accuracy, 9)) / 100


def difference(runs: pd.DataFrame, cell: str, strategy: str, other: str, number: str = "late") -> Interval | None:
    """Return how much higher a strategy's number is than another's, over the seeds that both have.

    Args:
        runs: from `collect`.
        cell: the cell.
        strategy: the one.
        other: the one that it is compared to.
        number: the column.

    Returns:
        The mean of the differences of equal seeds with its confidence interval by Student's t; None if no seed is in
        both.
    """
    here = runs[runs["cell"] == cell].pivot(index="seed", columns="strategy", values=number)
    if not {strategy, other} <= set(here.columns):
        return None
    paired = (here[strategy] - here[other]).dropna()
    if paired.empty:
        return None
    mean = float(paired.mean())
    if len(paired) < 2:
        return Interval(mean, -math.inf, math.inf)
    error = float(np.std(paired, ddof=1)) / math.sqrt(len(paired))
    half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, len(paired) - 1)) * error
    return Interval(mean, mean - half, mean + half)


def best_of(runs: pd.DataFrame, cell: str) -> str | None:
    """Return the strategy of a cell that is better than each other one: its intervals are above zero; else None."""
    here = runs[runs["cell"] == cell].groupby("strategy", sort=False)["late"].mean()
    if len(here) < 2:
        return None
    first = str(here.idxmax())
    intervals = [difference(runs, cell, first, str(other)) for other in here.index if other != first]
    return first if all(interval is not None and interval.low > 0 for interval in intervals) else None


def _numbers(rows: Metrics, target: float) -> dict[str, float]:
    rounds, accuracies = _scored(rows)
    reached = np.flatnonzero(accuracies >= target)
    until = rounds[reached[0]] if len(reached) else None
    past = [row for row in rows if until is not None and row["round"] <= until]
    # A round that ended before any client was drawn has sent nothing.
    drawn = [row for row in rows if len(row["clients"])]
    return {
        "last": accuracies[-1],
        "best": accuracies.max(),
        "late": accuracies[-LAST:].mean(),
        # The sample's deviation (ddof=1), here and over seeds: evaluations and seeds are a part of all possible ones.
        "steadiness": float(np.std(accuracies[-STEADY:], ddof=1)) if len(accuracies) > 1 else math.nan,
        "rounds_to": math.inf if until is None else float(until),
        "bytes_to": sum(_bytes(row, "bytes-down") + _bytes(row, "bytes-up") for row in past) if past else math.inf,
        "seconds_to": sum(row["seconds"] for row in past) if past else math.inf,
        "bytes_down": float(np.mean([_bytes(row, "bytes-down") / len(row["clients"]) for row in drawn])),
        "bytes_up": float(np.mean([_bytes(row, "bytes-up") / len(row["clients"]) for row in drawn])),
        # Not the mean: the first round of a process may contain imports and compilation.
        "seconds": float(np.median([row["seconds"] for row in rows])),
        "client_mean": _latest(rows, "client-accuracy", "mean"),
        "client_worst": _latest(rows, "client-accuracy", "worst-tenth"),
        "tuned_mean": _latest(rows, "tuned-accuracy", "mean"),
        "macro_f1": _latest(rows, "macro-f1"),
    }


def _latest(rows: Metrics, name: str, *keys: str) -> float:
    """Return the last number of an evaluation that need not have taken place; NaN if it did not."""
    found = next((row[name] for row in reversed(rows) if name in row), math.nan)
    for key in keys:
        found = found.get(key, math.nan) if isinstance(found, Mapping) else math.nan
    return float(found)


def _scored(rows: Metrics) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the evaluated rounds and their accuracies."""
    scored = [row for row in rows if "test-accuracy" in row]
    return np.array([row["round"] for row in scored]), np.array([row["test-accuracy"] for row in scored])


def _bytes(row: Mapping[str, Any], direction: str) -> float:
    return float(sum(row[direction].values()))
