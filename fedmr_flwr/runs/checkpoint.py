"""Checkpoints: the server's whole state after a round, as tensors and a note that vouches for them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as read_tensors

from fedmr_flwr.core.layout import Packed
from fedmr_flwr.errors import RunFolderError
from fedmr_flwr.files import write_aside, write_tensors, writing

# How many checkpoints of a run are kept.
KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """The server after a round.

    Attributes:
        round: the round that was completed.
        model: the global model.
        state: of the strategy, by name.
    """

    round: int
    model: Packed
    state: Mapping[str, NDArray[Any]]


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and remove all but the latest few.

    First the tensors, then the note with their hash: a checkpoint without its note does not count.

    Args:
        folder: of the run's checkpoints; made if missing.
        checkpoint: what to write.

    Returns:
        The note, round-N.json; the tensors lie beside it.

    Raises:
        RunFolderError: the disk refuses it; the checkpoints before it are untouched.
    """
    with writing(folder):
        folder.mkdir(exist_ok=True)
    note = folder / f"round-{checkpoint.round:06d}.json"
    tensors: dict[str, NDArray[Any]] = {f"state.{name}": array for name, array in checkpoint.state.items()}
    tensors |= {"model.floats": checkpoint.model.floats, "model.ints": checkpoint.model.ints}
    digest = write_tensors(_tensors(note), tensors)
    write_aside(note, json.dumps({"round": checkpoint.round, "sha256": digest}).encode())
    _keep(folder, _notes(folder)[-KEPT:])
    return note


def oldest(server_round: int, every: int) -> int:
    """Return the round of the oldest checkpoint that may be there when a round begins, 0 before the first few.

    Args:
        server_round: which begins.
        every: rounds between checkpoints.
    """
    return max(0, ((server_round - 1) // every - (KEPT - 1)) * every)


def load(note: Path) -> Checkpoint:
    """Read a checkpoint.

    Args:
        note: what `save` returned.

    Raises:
        RunFolderError: it is missing or damaged.
    """
    try:
        facts = json.loads(note.read_text(encoding="utf-8"))
        content = _tensors(note).read_bytes()
        if hashlib.sha256(content).hexdigest() != facts["sha256"]:
            raise ValueError("its checksum is wrong")
        tensors = read_tensors(content)
        model = Packed(tensors.pop("model.floats"), tensors.pop("model.ints"))
        completed = int(facts["round"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"the checkpoint {note.with_suffix('')} is damaged: {error}") from None
    return Checkpoint(completed, model, {name.removeprefix("state."): value for name, value in tensors.items()})


def forget_after(folder: Path, completed: int) -> None:
    """Remove the checkpoints of later rounds, which are damaged, and what was left of unfinished ones."""
    if folder.exists():
        _keep(folder, [note for note in _notes(folder) if note.stem <= f"round-{completed:06d}"])


def latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Read the newest checkpoint that is not damaged.

    Args:
        folder: of the run's checkpoints.

    Returns:
        The checkpoint, None if not one was written; and what is wrong with newer ones, a line each.

    Raises:
        RunFolderError: there are checkpoints, and all of them are damaged.
    """
    problems: list[str] = []
    for note in reversed(_notes(folder)):
        try:
            return load(note), problems
        except RunFolderError as error:
            problems.append(str(error))
    if problems:
        raise RunFolderError(f"no checkpoint in {folder} can be read: {problems[0]}; start the run anew")
    return None, []


def _keep(folder: Path, notes: Sequence[Path]) -> None:
    """Remove all files but these notes and their tensors."""
    kept = {*notes, *map(_tensors, notes)}
    with writing(folder):
        # The notes first: what is left of a checkpoint without its note does not count.
        for path in sorted(folder.iterdir(), key=lambda path: path.suffix != ".json"):
            if path not in kept:
                path.unlink()


def _notes(folder: Path) -> list[Path]:
    return sorted(folder.glob("round-*.json"))


def _tensors(note: Path) -> Path:
    return note.with_suffix(".safetensors")
