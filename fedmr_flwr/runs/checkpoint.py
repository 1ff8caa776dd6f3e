"""Checkpoints: the server's complete state after a round, as tensors and a note with their hash."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as read_tensors

from fedmr_flwr.core.layout import Packed
from fedmr_flwr.errors import RunFolderError
from fedmr_flwr.files import reading, write_aside, write_tensors, writing

# The number of checkpoints of a run that are kept: if the latest is damaged, the run resumes from the one before.
KEPT = 2
_ROUND = "round"
_NOTE, _OURS = re.compile(r"round-\d{6,18}\.json"), re.compile(r"round-\d{6,18}\.(json|safetensors)(\.tmp)?")


@dataclass(frozen=True)
class Checkpoint:
    """The server's state after a round.

    Attributes:
        round: the completed round.
        model: the global model.
        state: of the strategy, by name.
    """

    round: int
    model: Packed
    state: Mapping[str, NDArray[Any]]


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and remove all but the latest `KEPT`.

    The note with the hash is written after the tensors; tensors without a note are not a checkpoint.

    Args:
        folder: of the run's checkpoints; created if missing.
        checkpoint: the state to write.

    Returns:
        The path of the note, round-N.json; the tensors are beside it.

    Raises:
        RunFolderError: it cannot be written; earlier checkpoints are unchanged.
    """
    with writing(folder):
        folder.mkdir(exist_ok=True)
    note = folder / f"{_name(checkpoint.round)}.json"
    tensors: dict[str, NDArray[Any]] = {f"state.{name}": array for name, array in checkpoint.state.items()}
    tensors |= {"model.floats": checkpoint.model.floats, "model.ints": checkpoint.model.ints}
    # Among the tensors, too, so that the hash in the note covers it.
    tensors[_ROUND] = np.array(checkpoint.round)
    sha256 = write_tensors(_tensors(note), tensors)
    write_aside(note, json.dumps({"round": checkpoint.round, "sha256": sha256}).encode())
    _keep(folder, _notes(folder)[-KEPT:])
    return note


def oldest(server_round: int, every: int) -> int:
    """Return the round of the oldest checkpoint that may exist when a round begins; 0 before the first few.

    Args:
        server_round: the round that begins.
        every: rounds between checkpoints.
    """
    return max(0, ((server_round - 1) // every - (KEPT - 1)) * every)


def load(note: Path) -> Checkpoint:
    """Read a checkpoint.

    Args:
        note: the path that `save` returned.

    Raises:
        RunFolderError: it is missing or damaged.
    """
    with reading(note.with_suffix(""), RunFolderError):
        facts = json.loads(note.read_text(encoding="utf-8"))
        # Read once, so that the bytes that are checked are those that are loaded.
        content = _tensors(note).read_bytes()
        if hashlib.sha256(content).hexdigest() != facts["sha256"]:
            raise ValueError("wrong checksum")
        tensors = read_tensors(content)
        completed = int(tensors.pop(_ROUND))
        if facts["round"] != completed or note.stem != _name(completed):
            raise ValueError(f"its tensors are of round {completed}")
        model = Packed(tensors.pop("model.floats"), tensors.pop("model.ints"))
    return Checkpoint(completed, model, {name.removeprefix("state."): value for name, value in tensors.items()})


def forget_after(folder: Path, completed: int) -> None:
    """Remove checkpoints of later rounds, which are damaged, and remains of unfinished ones."""
    if folder.exists():
        _keep(folder, [note for note in _notes(folder) if _round_of(note) <= completed])


def latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Read the newest checkpoint that is not damaged.

    Args:
        folder: of the run's checkpoints.

    Returns:
        The checkpoint, None if none was written; and the errors of newer ones, one line each.

    Raises:
        RunFolderError: there are checkpoints, but all of them are damaged.
    """
    problems: list[str] = []
    for note in reversed(_notes(folder)):
        try:
            return load(note), problems
        except RunFolderError as error:
            problems.append(str(error))
    if problems:
        # Not a fresh start: that would overwrite the results of the rounds that were done.
        raise RunFolderError(f"no checkpoint in {folder} can be read: {problems[0]}; start a new run")
    return None, []


def _keep(folder: Path, notes: Sequence[Path]) -> None:
    """Remove all checkpoints except these notes and their tensors; files of other names are the user's."""
    kept = {*notes, *map(_tensors, notes)}
    with writing(folder):
        # The notes first: if this is interrupted, tensors without a note are ignored.
        for path in sorted(folder.iterdir(), key=lambda path: path.suffix != ".json"):
            if path not in kept and _OURS.fullmatch(path.name):
                path.unlink()


def _notes(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.exists() else ()
    return sorted((path for path in found if _NOTE.fullmatch(path.name)), key=_round_of)


def _name(completed: int) -> str:
    # With leading zeros, so that people see them in the order of the rounds.
    return f"round-{completed:06d}"


def _round_of(note: Path) -> int:
    return int(note.stem.removeprefix("round-"))


def _tensors(note: Path) -> Path:
    return note.with_suffix(".safetensors")
