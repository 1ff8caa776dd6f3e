"""What a run has come to, in numbers: its accuracy, and what that cost."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.runs.rows import accuracy_of, scored_on

Metrics = Sequence[Mapping[str, Any]]

# The mean of the last evaluations varies less than the last one alone.
LAST = 5
# Of so many evaluations the standard deviation tells how steady a curve is at its end.
STEADY = 10


def numbers(rows: Metrics, target: float | None) -> dict[str, float]:
    """Return the numbers of a run.

    Args:
        rows: its metrics.
        target: the accuracy to reach, from 0 to 1; None for none.

    Returns:
        Accuracy after the last evaluated round, the best one, the mean of the last five, the standard deviation
        of the last ten; the first evaluated round with the target accuracy, and the bytes and the seconds of training
        until then, infinite if there was none; bytes sent to and returned by a client in a round, mean over rounds;
        seconds of a round, median over rounds; of the last such evaluation: mean and worst tenth of the accuracies
        over clients, their mean after fine-tuning, macro-F1. What was not measured is NaN.
    """
    rounds, accuracies = _scored(rows)
    reached = np.flatnonzero(accuracies >= (math.inf if target is None else target))
    until = rounds[reached[0]] if len(reached) else None
    past = [row for row in rows if until is not None and row["round"] <= until]
    # A round that ended before any client was drawn has sent nothing.
    drawn = [row for row in rows if len(row["clients"])]
    return {
        "last": float(accuracies[-1]) if len(accuracies) else math.nan,
        "best": float(max(accuracies, default=math.nan)),
        "late": _mean(accuracies[-LAST:]),
        # The sample's deviation (ddof=1), here and over seeds: evaluations and seeds are a part of all possible ones.
        "steadiness": float(np.std(accuracies[-STEADY:], ddof=1)) if len(accuracies) > 1 else math.nan,
        "rounds_to": math.inf if until is None else float(until),
        "bytes_to": _bytes(past, "bytes-down") + _bytes(past, "bytes-up") if past else math.inf,
        "seconds_to": sum(row["seconds"] for row in past) if past else math.inf,
        "bytes_down": _mean([_bytes([row], "bytes-down") / len(row["clients"]) for row in drawn]),
        "bytes_up": _mean([_bytes([row], "bytes-up") / len(row["clients"]) for row in drawn]),
        # Not the mean: the first round of a process may contain imports and compilation.
        "seconds": float(np.median([row["seconds"] for row in rows])) if rows else math.nan,
        "client_mean": _latest(rows, "client-accuracy", "mean"),
        "client_worst": _latest(rows, "client-accuracy", "worst-tenth"),
        "tuned_mean": _latest(rows, "tuned-accuracy", "mean"),
        "macro_f1": _latest(rows, "macro-f1"),
    }


def score(folder: RunFolder, seed: int, rounds: int, target: float | None) -> dict[str, Any]:
    """Return what a program wants to know of a run, in the names of its metrics.

    Args:
        folder: of the run, which may be incomplete.
        seed: of its configuration.
        rounds: of its configuration.
        target: the accuracy to reach, from 0 to 1; None for none.

    Returns:
        Values that JSON has, always under the same keys; None for what was not measured or not reached.
    """
    rows, manifest = folder.read_rows(), folder.read_manifest()
    found = numbers(rows, target)
    scored_rounds, accuracies = _scored(rows)
    part = scored_on(rows)
    collapses = [row["round"] for row in rows if "collapse" in row]
    values = {
        "run": str(folder.path),
        "title": manifest.get("title"),
        "strategy": manifest.get("strategy", {}).get("name"),
        "seed": seed,
        "status": folder.status,
        "completed": folder.status == "completed",
        "stopped": manifest.get("stopped"),
        "error": manifest.get("error"),
        "rounds": len(rows),
        "rounds-configured": rounds,
        "rounds-bad": sum(bool(row.get("bad")) for row in rows),
        "failures": sum(row["failures"] for row in rows),
        "collapsed": bool(collapses),
        "collapse-rounds": collapses,
        "test-accuracy": found["last"] if part == "test" else None,
        "test-loss": _latest(rows, "test-loss"),
        "validation-accuracy": found["last"] if part == "validation" else None,
        "validation-loss": _latest(rows, "validation-loss"),
        "train-loss": _latest(rows, "train-loss"),
        "best-accuracy": found["best"],
        "best-round": int(scored_rounds[accuracies.argmax()]) if len(accuracies) else None,
        f"accuracy-last-{LAST}": found["late"],
        f"accuracy-sd-last-{STEADY}": found["steadiness"],
        "client-accuracy": found["client_mean"],
        "client-accuracy-worst-tenth": found["client_worst"],
        "tuned-accuracy": found["tuned_mean"],
        "macro-f1": found["macro_f1"],
        "target": target,
        "rounds-to-target": None if math.isinf(found["rounds_to"]) else int(found["rounds_to"]),
        "bytes-to-target": found["bytes_to"],
        "seconds-to-target": found["seconds_to"],
        "bytes-down": _bytes(rows, "bytes-down"),
        "bytes-up": _bytes(rows, "bytes-up"),
        "seconds": sum(row["seconds"] for row in rows),
        "evaluation-seconds": sum(row.get("evaluation-seconds", 0.0) for row in rows),
        "seconds-per-round": found["seconds"],
    }
    return {name: _plain(value) for name, value in values.items()}


def _scored(rows: Metrics) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the evaluated rounds and their accuracies."""
    scored = {row["round"]: accuracy for row in rows if (accuracy := accuracy_of(row)) is not None}
    return np.array([*scored], int), np.array([*scored.values()], float)


def _latest(rows: Metrics, name: str, *keys: str) -> float:
    """Return the last number of an evaluation that need not have taken place; NaN if it did not."""
    found = next((row[name] for row in reversed(rows) if name in row), math.nan)
    for key in keys:
        found = found.get(key, math.nan) if isinstance(found, Mapping) else math.nan
    return float(found)


def _bytes(rows: Metrics, direction: str) -> int:
    return sum(sum(row[direction].values()) for row in rows)


def _plain(value: Any) -> Any:
    """Return a value that JSON has: no number that is not finite, and no more digits than were measured."""
    if not isinstance(value, float):
        return value
    return round(value, 6) if math.isfinite(value) else None


def _mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
