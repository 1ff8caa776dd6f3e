"""Ending a run before its last round."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from fedmr_flwr.config.stop import Stop
from fedmr_flwr.runs.rows import accuracy_of, scored_on


class Stopping:
    """Decides after each round whether a run ends there.

    It depends on the rows of the metrics alone, so that a resumed run ends where it would have ended.

    Args:
        stop: what ends the run.
        rows: the metrics of the rounds before, if the run is resumed.

    Attributes:
        reason: why the run ends after the latest round; None if it continues.
    """

    def __init__(self, stop: Stop, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._stop = stop
        self._seconds = 0.0
        self._best = -math.inf
        self._part = "test"
        self._waited = 0  # evaluations since the best one
        self.reason: str | None = None
        for row in rows:
            self.look(row)

    def look(self, row: Mapping[str, Any]) -> bool:
        """Return whether the run ends after a round.

        Args:
            row: its metrics. A run does not end with a bad round, which a resumed run may repeat.
        """
        self._seconds += row["seconds"] + row.get("evaluation-seconds", 0.0)
        accuracy, self._part = accuracy_of(row), scored_on([row])
        if accuracy is not None:
            self._waited = 0 if accuracy > self._best else self._waited + 1
            self._best = max(self._best, accuracy)
        self.reason = None if row.get("bad") else self._reason(accuracy)
        return self.reason is not None

    def _reason(self, accuracy: float | None) -> str | None:
        target, patience, minutes = self._stop.target, self._stop.patience, self._stop.minutes
        if accuracy is not None and target is not None and accuracy >= target:
            return f"{self._part} accuracy {accuracy:.4f} has reached stop.target = {target:g}"
        if accuracy is not None and patience is not None and self._waited >= patience:
            return f"{self._part} accuracy has not passed {self._best:.4f} in stop.patience = {patience} evaluations"
        if minutes is not None and self._seconds >= 60 * minutes:
            return f"its rounds have taken {self._seconds / 60:.1f} minutes, and stop.minutes = {minutes:g}"
        return None
