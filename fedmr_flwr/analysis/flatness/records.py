"""flatness.json in a run folder: what was measured, by round."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedmr_flwr.errors import RunFolderError
from fedmr_flwr.files import reading, write_aside
from fedmr_flwr.runs.folder import RunFolder

Measured = dict[str, Any]

_NAME = "flatness.json"


def read(folder: RunFolder) -> dict[int, Measured]:
    """Return what was measured of a run, by round; empty if nothing was.

    Raises:
        RunFolderError: the file is damaged.
    """
    path = folder.path / _NAME
    if not path.exists():
        return {}
    with reading(path, RunFolderError, "delete it to measure again"):
        return {int(number): dict(measured) for number, measured in json.loads(path.read_text("utf-8")).items()}


def save(measured: Measured, number: int, folder: RunFolder) -> Path:
    """Add the measurements of a round to a run folder's flatness.json.

    Args:
        measured: the result of `Flatness.measure`.
        number: the round.
        folder: of the run.

    Returns:
        The path of the file.
    """
    path = folder.path / _NAME
    write_aside(path, (json.dumps(read(folder) | {number: measured}, indent=1) + "\n").encode())
    return path


def at_the_latest(folders: Iterable[RunFolder]) -> list[Measured | None]:
    """Return what was measured of each run after the latest round that all measured ones have in common.

    Args:
        folders: of the runs.

    Returns:
        The measurements of each global model, and "round", the round; None of a run without any, and of all if they
        have no round in common.

    Raises:
        RunFolderError: a file is damaged.
    """
    found = [read(folder) for folder in folders]
    common = set.intersection(*(set(own) for own in found if own)) if any(found) else set()
    return [{**own[max(common)]["global"], "round": max(common)} if own and common else None for own in found]
