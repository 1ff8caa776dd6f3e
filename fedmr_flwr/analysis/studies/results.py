"""The results of a study: one line of numbers for each run, and statistics over seeds."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from fedmr_flwr.analysis.flatness.records import Measured
from fedmr_flwr.analysis.studies.earlier import Metrics
from fedmr_flwr.report.summary import numbers

_CONFIDENCE = 0.95
# The numbers of each run that are averaged over seeds. Accuracies are from 0 to 1.
NUMBERS = [*numbers([], None), "flatness_round", "lambda1", "trace", "sharpness"]


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


def collect(
    found: Mapping[RunKey, Metrics],
    target: float | None = None,
    flat: Mapping[RunKey, Measured] = MappingProxyType({}),
) -> pd.DataFrame:
    """Return a line for each complete run.

    Args:
        found: the metrics of the complete runs.
        target: the accuracy to reach; None: in each cell the highest whole percentage that all runs have reached.
        flat: how flat the minima of runs are, where it was measured.

    Returns:
        Columns "cell", "strategy", "seed", "target", those of `report.summary.numbers`, and "flatness_round",
        "lambda1", "trace" and "sharpness", NaN if they were not measured.
    """
    bests: dict[str, float] = {}
    for key, rows in found.items():
        bests[key.cell] = min(bests.get(key.cell, 1.0), numbers(rows, None)["best"])
    lines = []
    for key, rows in found.items():
        aim = floor_percent(bests[key.cell]) if target is None else target
        lines.append({**key._asdict(), "target": aim, **numbers(rows, aim), **_flatness(flat.get(key))})
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


def _flatness(measured: Measured | None) -> dict[str, float]:
    if measured is None:
        return {}
    numbers = {name: measured[name] for name in ("trace", "sharpness")}
    return {"flatness_round": measured["round"], "lambda1": measured["eigenvalues"][0], **numbers}
