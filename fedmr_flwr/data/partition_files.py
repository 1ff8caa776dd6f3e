"""Divisions of a training set as files, and their hashes."""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmr_flwr.data.base import Indices
from fedmr_flwr.errors import PartitionError
from fedmr_flwr.files import reading, write_aside


def save(parts: Sequence[Indices], path: Path) -> None:
    """Write a division to a file.

    Raises:
        RunFolderError: it cannot be written.
    """
    edges, indices = _flat(parts)
    file = io.BytesIO()
    np.savez(file, edges=edges, indices=indices)
    write_aside(path, file.getvalue())


def read(path: Path) -> list[Indices]:
    """Read a file that `save` wrote.

    Raises:
        PartitionError: the file is missing or damaged.
    """
    # Opened here, because NumPy does not close a damaged file.
    with (
        reading(path, PartitionError, "it must be a file that `fedmr partition` wrote"),
        path.open("rb") as content,
        np.load(content, allow_pickle=False) as file,
    ):
        indices, edges = (_whole_numbers(file[name]) for name in ("indices", "edges"))
        if (np.diff(edges, prepend=0) < 0).any() or (edges[-1] if len(edges) else 0) != len(indices):
            raise ValueError("'edges' does not divide 'indices'")
        return np.split(indices, edges[:-1]) if len(edges) else []


def sha256(parts: Sequence[Indices]) -> str:
    """Return the SHA-256 of a division, equal for equal divisions."""
    edges, indices = _flat(parts)
    return hashlib.sha256(edges.tobytes() + indices.tobytes()).hexdigest()


def read_for(path: Path, examples: int, clients: int) -> list[Indices]:
    """Read a division of a data set from a file that `save` wrote, or from a JSON file of FedMR's published code.

    Args:
        path: of the file.
        examples: the number of the data set's training examples.
        clients: the number of clients.

    Raises:
        PartitionError: the file is missing or damaged, or divides something else.
    """
    parts = [np.sort(part) for part in (_read_json(path) if path.suffix == ".json" else read(path))]
    if len(parts) != clients:
        raise PartitionError(f"{path} divides among {len(parts)} clients; set clients={len(parts)}")
    every = np.concatenate(parts) if parts else np.empty(0, np.int64)
    if not all(map(len, parts)) or every.min() < 0 or every.max() >= examples or len(np.unique(every)) != len(every):
        raise PartitionError(
            f"{path} does not match the {examples} examples: each client needs at least one, and each example has "
            "at most one client; use the data set that the file was written for"
        )
    return parts


def _flat(parts: Sequence[Indices]) -> tuple[Indices, Indices]:
    return np.cumsum([len(part) for part in parts]), np.concatenate(list(parts))


def _read_json(path: Path) -> Iterator[Indices]:
    with reading(path, PartitionError, 'it must contain {"train_data": {"0": [indices], ...}}'):
        train = json.loads(path.read_text(encoding="utf-8"))["train_data"]
        if isinstance(train, list):
            train = {str(client): part for client, part in enumerate(train)}
        return iter(
            [_whole_numbers(np.array(train[str(client)] or np.empty(0, int))) for client in range(len(train))]
        )


def _whole_numbers(values: NDArray[Any]) -> Indices:
    """Return a vector of integers as int64.

    Raises:
        ValueError: it is something else.
    """
    if values.ndim != 1 or values.dtype.kind not in "iu" or (values.size and values.max() >= 2**63):
        raise ValueError(f"expected a list of whole numbers, found {values.dtype} in {values.ndim} dimensions")
    return values.astype(np.int64)
