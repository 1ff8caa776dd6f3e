"""Files that are complete or not there: written aside, flushed to the disk, then renamed."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from fedmr_flwr.errors import RunFolderError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses inside the block into one line.

    Raises:
        RunFolderError: the disk is full, a limit is reached, or the like.
    """
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"cannot write {path}: {error.strerror or error}; make room or name another place; "
            "a run goes on with `fedmr resume`"
        ) from None


def write_aside(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole, with its old content, or not at all, whenever the machine stops.

    Raises:
        RunFolderError: it cannot be written; the old content is untouched.
    """
    aside = path.with_name(f"{path.name}.tmp")
    with writing(path):
        try:
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except OSError:
            with suppress(OSError):
                aside.unlink()
            raise
        _flush_folder(path.parent)


def write_new(path: Path, content: bytes) -> None:
    """Write a file as `write_aside` does, but never over another one.

    Raises:
        FileExistsError: it is there already.
        RunFolderError: it cannot be written.
    """
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    write_aside(aside, content)
    try:
        os.link(aside, path)  # of two processes at the same moment one wins
    finally:
        aside.unlink()
    _flush_folder(path.parent)


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]], facts: Mapping[str, str] | None = None) -> str:
    """Write tensors to a safetensors file, as `write_aside` does.

    Args:
        path: the file.
        tensors: by name.
        facts: what else the file is to say.

    Returns:
        The SHA-256 of the file.
    """
    # safetensors writes the memory as it lies, and a model's is in another order on the CPU (channels last).
    ordered = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    content = save(ordered, dict(facts) if facts else None)
    write_aside(path, content)
    return hashlib.sha256(content).hexdigest()


def hash_tensors(tensors: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of named tensors."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        sha.update(np.asarray(tensor, order="C").reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def _flush_folder(folder: Path) -> None:
    """Make a rename outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
