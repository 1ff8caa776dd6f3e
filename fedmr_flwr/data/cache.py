"""A copy of each data set that all processes of a machine share: one memory-mapped file of uint8 beside the data.

A process that maps the file has no copy of its own; the pages of a hundred processes are the same memory.
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

import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedmr_flwr.data.base import DatasetArrays

_log = logging.getLogger(__name__)
# Changes whenever the same files would give another copy.
_FORMAT = 1
# What keeps a copy from being read or written, such as a full disk, or a path that is not valid Unicode.
_UNUSABLE = (OSError, SafetensorError, UnicodeError)
# Seconds after which what a writer has left behind is from one that was killed.
_ABANDONED = 3600


def shared(name: str, files: list[Path], read: Callable[[], DatasetArrays]) -> dict[str, torch.Tensor]:
    """Return a data set's arrays, mapped from its copy; the copy is made first if need be.

    Args:
        name: of the data set.
        files: its files; a copy is used only while their sizes and times are what they were.
        read: reads them.

    Returns:
        The arrays as tensors, which must not be changed.
    """
    folder = folder_of(files)
    stamp = _stamp(files, folder)
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
    shown = str(folder).encode(errors="replace").decode()  # a path may hold bytes that no terminal can show
    _log.warning("no copy of %s could be written to %s: every process holds it in memory", name, shown)
    return {key: torch.tensor(array) for key, array in arrays.items()}


def folder_of(files: list[Path]) -> Path:
    """Return the folder that holds all of these files, perhaps in inner ones."""
    return Path(os.path.commonpath([file.parent for file in files]))


def _home(folder: Path) -> list[Path]:
    """Return where the copy of data in a folder goes that cannot be written to; nowhere if the user has no home."""
    try:
        return [Path.home() / ".cache" / "fedmr_flwr" / hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]]
    except RuntimeError:
        return []


def _stamp(files: list[Path], folder: Path) -> str:
    """Return what tells whether the files are still the same, by whatever path the folder is reached."""
    facts = [(str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return json.dumps([_FORMAT, *facts])


def _map(path: Path, stamp: str) -> dict[str, torch.Tensor] | None:
    """Map a copy; None if there is none of these files, or it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("stamp") == stamp:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no mapping
    except _UNUSABLE:
        pass
    return None


def _write(path: Path, arrays: DatasetArrays, stamp: str, mode: int) -> None:
    """Write a copy aside and rename it: who has mapped the old one keeps it, and of two writers each writes whole."""
    for left in path.parent.glob(f"{path.name}.*"):
        with suppress(OSError):
            if left.stat().st_mtime < time.time() - _ABANDONED:
                shutil.rmtree(left)
    # In a folder of its own, because safetensors may write aside, too.
    with tempfile.TemporaryDirectory(prefix=f"{path.name}.", dir=path.parent, ignore_cleanup_errors=True) as folder:
        aside = Path(folder, "copy")
        save_file(arrays, aside, {"stamp": stamp})
        aside.chmod(mode)  # for everyone who may read the data
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
