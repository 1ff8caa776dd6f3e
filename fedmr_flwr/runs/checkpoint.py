"""Checkpoints: the server's whole state after a round, in one safetensors file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from fedmr_flwr.errors import RunFolderError
from fedmr_flwr.layout import Packed
from fedmr_flwr.runs.folder import write_tensors

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

    Args:
        folder: of the run's checkpoints; made if missing.
        checkpoint: what to write.

    Returns:
        The file.
    """
    folder.mkdir(exist_ok=True)
    path = folder / f"round-{checkpoint.round:06d}.safetensors"
    tensors: dict[str, NDArray[Any]] = {f"state.{name}": array for name, array in checkpoint.state.items()}
    tensors |= {"model.floats": checkpoint.model.floats, "model.ints": checkpoint.model.ints}
    write_tensors(path, tensors, {"round": str(checkpoint.round)})
    for old in sorted(folder.glob("round-*.safetensors"))[:-KEPT]:
        old.unlink()
    return path


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        RunFolderError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            completed = int(file.metadata()["round"])
        model = Packed(tensors.pop("model.floats"), tensors.pop("model.ints"))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"cannot read the checkpoint {path}: {error}") from None
    return Checkpoint(completed, model, {name.removeprefix("state."): value for name, value in tensors.items()})
