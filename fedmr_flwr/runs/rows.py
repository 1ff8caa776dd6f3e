"""The lines of metrics.jsonl: one object for each round."""

import json
import math
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedmr_flwr.errors import RunFolderError

_short = reprlib.Repr()


def _is_number(value: Any) -> bool:
    # JSON has no infinity, but Python reads one, from 1e999, too.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _is_number_or_null(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _counts_by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


def _is_failure(value: Any) -> bool:
    # Client -1 is unknown: the reply was to a message that was not sent in this round.
    whole = isinstance(value, dict) and {"client", "kind", "reason"} <= value.keys()
    return whole and (value["client"] == -1 or _is_count(value["client"]))


# What plots, tables and comparisons compute with. A row may lack any of these but the round.
_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("round", "replies", "failures"), _is_count),
    **dict.fromkeys(("seconds", "evaluation-seconds"), _is_number),
    **dict.fromkeys(
        (f"{part}-{number}" for part in ("test", "validation") for number in ("loss", "accuracy")), _is_number_or_null
    ),
    **dict.fromkeys(("train-loss", "similarity", "macro-f1"), _is_number_or_null),
    **dict.fromkeys(("clients", "slots", "lost-state"), _list_of(_is_count)),
    **dict.fromkeys(("spread", "slot-accuracies"), _list_of(_is_number_or_null)),
    **dict.fromkeys(("bytes-down", "bytes-up", "failures-by-kind"), _counts_by_name),
    "failed": _list_of(_is_failure),
}


def scored_on(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the set on which the models of rows were scored: "test" or, with data.validation, "validation"."""
    return "validation" if any("validation-accuracy" in row for row in rows) else "test"


def accuracy_of(row: Mapping[str, Any]) -> float | None:
    """Return the accuracy of a round's global model on the set of `scored_on`; None if it was not evaluated."""
    accuracy: float | None = row.get("test-accuracy", row.get("validation-accuracy"))
    return accuracy


def loss_of(row: Mapping[str, Any]) -> float | None:
    """Return the loss of a round's global model on the set of `scored_on`; None if it was not evaluated."""
    loss: float | None = row.get("test-loss", row.get("validation-loss"))
    return loss


def to_line(row: Mapping[str, Any]) -> str:
    """Return a row as a line; numbers that are not finite become null, because JSON has none."""
    return json.dumps(_without_nan(row), allow_nan=False) + "\n"


def whole_rows(content: bytes, path: Path, first: int = 1) -> Iterator[dict[str, Any]]:
    """Yield the rows of lines up to an unfinished last one: the server may be writing it, or have been killed.

    Args:
        content: the lines.
        path: of their file, for errors.
        first: the number of the first line.

    Raises:
        RunFolderError: another line is damaged.
    """
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines, first):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not line.endswith(b"\n"):
            if number == first + len(lines) - 1:
                return
            raise _damaged(path, number, "it is not an object")
        if "round" not in row:
            raise _damaged(path, number, "it has no round")
        if wrong := [name for name, check in _CHECKS.items() if name in row and not check(row[name])]:
            raise _damaged(path, number, f"{wrong[0]} = {_short.repr(row[wrong[0]])}")
        yield row


def with_nan(value: Any) -> Any:
    """Return values in which null is NaN again."""
    if value is None:
        return math.nan
    if isinstance(value, dict):
        return {name: with_nan(inner) for name, inner in value.items()}
    return [with_nan(inner) for inner in value] if isinstance(value, list) else value


def _damaged(path: Path, number: int, problem: str) -> RunFolderError:
    return RunFolderError(f"line {number} of {path} is damaged: {problem}; mend or remove the line")


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _without_nan(inner) for name, inner in value.items()}
    return [_without_nan(inner) for inner in value] if isinstance(value, list | tuple) else value
