"""A shared copy of each data set for all processes of a machine: one memory-mapped file beside the data.

Processes that map the file use the same pages of memory and have no copies of their own.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedmr_flwr.data.base import DatasetArrays
from fedmr_flwr.files import hash_tensors

_log = logging.getLogger(__name__)
# To be raised whenever the same files would give a different copy.
_FORMAT = 4
# The blocks of each array that are compared whenever a copy is opened, and the bytes of one.
_BLOCKS, _BLOCK = 64, 4096
# Errors that prevent reading or writing a copy, such as a full disk, or a path that is not valid Unicode.
_UNUSABLE = (OSError, SafetensorError, UnicodeError)
# Seconds after which a temporary file must be from a writer that was killed.
_ABANDONED = 3600


def shared(name: str, files: list[Path], read: Callable[[], DatasetArrays]) -> dict[str, torch.Tensor]:
    """Return a data set's arrays, mapped from its copy, which is written first if necessary.

    Args:
        name: of the data set.
        files: its files; a copy is used only while their sizes and times are unchanged.
        read: reads them.

    Returns:
        The arrays as tensors, which must not be changed.
    """
    folder = folder_of(files)
    stamp = _stamp(files, folder)
    # Beside the data first: there the processes of all users share it. The home is for data that are read-only.
    places = [folder, *_home(folder)]
    for place in places:
        if found := _map(place / f".{name}.safetensors", stamp):
            return found
    arrays = read()
    for place in places:
        path = place / f".{name}.safetensors"
        with suppress(*_UNUSABLE):
            place.mkdir(parents=True, exist_ok=True)
            _write(path, arrays, stamp, files[0].stat().st_mode | 0o200)
            if found := _map(path, stamp):
                return found
    shown = str(folder).encode(errors="replace").decode()  # a path may have bytes that no terminal can show
    _log.warning("cannot write a shared copy of %s to %s: every process keeps its own in memory", name, shown)
    return {key: torch.tensor(array) for key, array in arrays.items()}


def find(name: str, files: list[Path]) -> Path | None:
    """Return where the shared copy of a data set lies; None if it could not be written."""
    folder = folder_of(files)
    paths = [place / f".{name}.safetensors" for place in [folder, *_home(folder)]]
    return next((path for path in paths if _map(path, _stamp(files, folder))), None)


def folder_of(files: list[Path]) -> Path:
    """Return the innermost folder that contains all of these files."""
    return Path(os.path.commonpath([file.parent for file in files]))


def _home(folder: Path) -> list[Path]:
    """Return the folder for the copy of data in a read-only folder; an empty list if the user has no home."""
    try:
        return [Path.home() / ".cache" / "fedmr_flwr" / hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]]
    except RuntimeError:
        return []


def _stamp(files: list[Path], folder: Path) -> str:
    """Return the hash of the sizes and times of the files, independent of the path by which the folder is reached."""
    # Not a hash of the contents: reading gigabytes at every start would cost what the copy saves. The time of the
    # last change of any kind, too, which no program can set: archives and builds date all of their files alike.
    known = [(str(file.relative_to(folder)), file.stat()) for file in files]
    text = json.dumps([_FORMAT, *((name, at.st_size, at.st_mtime_ns, at.st_ctime_ns) for name, at in known)])
    return hashlib.sha256(text.encode()).hexdigest()  # short, also for a hundred thousand images


def _map(path: Path, stamp: str) -> dict[str, torch.Tensor] | None:
    """Map a copy; return None if it is missing, of other files or, as far as a sample shows, damaged."""
    try:
        with safe_open(path, "pt") as file:
            # Both in one entry: safetensors writes several in a random order, and equal copies are equal files.
            of_files, sample = json.loads((file.metadata() or {}).get("stamp", "[null, null]"))
            if of_files == stamp:
                found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is not a mapping
                if _sample({key: tensor.numpy() for key, tensor in found.items()}) == sample:
                    return found
    except Exception:  # a damaged file raises many kinds of errors
        pass
    return None


def _sample(arrays: DatasetArrays) -> str:
    """Return the SHA-256 of the names, types, shapes and some blocks of arrays: all of them if they are small."""
    sha = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        sha.update(f"{name} {array.dtype} {array.shape}\n".encode())
        content = array.reshape(-1).view(np.uint8)
        # Evenly from the first byte to the last.
        for start in np.linspace(0, max(0, len(content) - _BLOCK), _BLOCKS, dtype=np.int64):
            sha.update(content[start : start + _BLOCK].data)
    return sha.hexdigest()


def _write(path: Path, arrays: DatasetArrays, stamp: str, mode: int) -> None:
    """Write a copy atomically: processes that have mapped the old one keep it, and two writers do not mix."""
    for left in path.parent.glob(f"{path.name}.*"):
        with suppress(OSError):
            if left.stat().st_mtime < time.time() - _ABANDONED:
                shutil.rmtree(left)
    # In a folder of its own, because safetensors may also write temporary files.
    with tempfile.TemporaryDirectory(prefix=f"{path.name}.", dir=path.parent, ignore_cleanup_errors=True) as folder:
        aside = Path(folder, "copy")
        save_file(arrays, aside, {"stamp": json.dumps([stamp, _sample(arrays)])})
        with safe_open(aside, "np") as written:
            if hash_tensors({name: written.get_tensor(name) for name in arrays}) != hash_tensors(arrays):
                raise OSError(f"{aside} was not written as it was meant")
        aside.chmod(mode)  # readable for all who may read the data
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
