"""Files that are complete or absent: written under another name, flushed to the disk, then renamed."""

import errno
import fcntl
import hashlib
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from fedmr_flwr.errors import FedmrError, RunFolderError

# The longest reason of a reader, in characters.
_LONGEST = 300
# What a file system answers that cannot flush a folder.
_UNKNOWN = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Report a failed write inside the block as one line.

    Raises:
        RunFolderError: an operation on files failed, for instance because the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another folder; "
            "`fedmr resume` continues an interrupted run"
        ) from None


@contextmanager
def reading(path: Path | str, kind: type[FedmrError], remedy: str = "") -> Iterator[None]:
    """Report whatever goes wrong inside the block, in which a file is read that may be damaged, as one line.

    Args:
        path: the file, or a place in it.
        kind: of the error.
        remedy: what to do with a damaged file.

    Raises:
        FedmrError: of this kind; one that is raised inside the block stays as it is.
    """
    after = f"; {remedy}" if remedy else ""
    try:
        yield
    except FedmrError:
        raise
    except Exception as error:  # NumPy, zipfile, json and others raise many kinds of errors for damaged files
        if isinstance(error, OSError) and error.strerror:
            raise kind(f"cannot read {path}: {error.strerror}{after}") from None
        named = "" if isinstance(error, ValueError) else type(error).__name__
        reason = " ".join(f"{named} {error}".split())[:_LONGEST].rstrip(".")
        raise kind(f"cannot read {path}: {reason}{after}") from None


def write_aside(path: Path, content: bytes) -> None:
    """Write a file atomically: after a crash it has its new content, its old content, or does not exist.

    Raises:
        RunFolderError: it cannot be written; its old content is kept.
    """
    # In the same folder, because a rename is atomic only within one file system.
    aside = path.with_name(f"{path.name}.tmp")
    with writing(path):
        try:
            with open(aside, "wb", opener=_open_no_link) as file:  # a path takes no opener
                file.write(content)
                file.flush()
                # Before the rename: otherwise a power cut could leave the new name with none of the content.
                os.fsync(file.fileno())
            aside.replace(path)
        except OSError:
            with suppress(OSError):
                aside.unlink()
            raise
        _flush_folder(path.parent)


@contextmanager
def locking(path: Path) -> Iterator[None]:
    """Lock a file, which stands for its folder, against other processes inside the block.

    Raises:
        RunFolderError: another process has locked it, or it cannot be locked.
    """
    with ExitStack() as stack:
        with writing(path):
            # Not through a link: in somebody else's folder it may lead to a file of one's own.
            file = stack.enter_context(open(path, "a+", encoding="utf-8", opener=_open_no_link))
            try:
                # A lock of the kernel, which ends with its process; a file with a process number would outlive a
                # crash.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read() or "another process"
                raise RunFolderError(f"{path.parent} is in use by {holder}; wait for it to end, or stop it") from None
            with suppress(OSError):  # a full disk: the lock holds without a name
                # Written only with the lock, so that it names its present holder.
                file.truncate(0)
                os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


def _open_no_link(path: str, flags: int) -> int:
    # A link of this name was made by somebody else, and leads to a file that must not be overwritten.
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def write_new(path: Path, content: bytes) -> None:
    """Write a file as `write_aside` does, but never over an existing one.

    Raises:
        FileExistsError: it already exists.
        RunFolderError: it cannot be written.
    """
    # Empty at first: of two processes only one can make it. Not with a hard link, which some file systems lack.
    path.open("xb").close()
    try:
        write_aside(path, content)
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read; never over an existing one.

    Raises:
        RunFolderError: it cannot be written.
    """
    # With the mode at its creation: between a plain write and a `chmod` others could read the key.
    with writing(path), os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def write_over(path: Path, content: bytes) -> None:
    """Write a file in its own place, for a disk that is too full for a second copy.

    Raises:
        OSError: there is no room for it; its old content is kept.
    """
    with path.open("r+b") as file:
        # Before the first byte is changed: half of the new content would be worse than the old one.
        os.posix_fallocate(file.fileno(), 0, len(content))
        file.write(content)
        file.truncate(len(content))


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> str:
    """Write tensors to a safetensors file, as `write_aside` does.

    Args:
        path: the file.
        tensors: by name.
        metadata: what else to store in the file's header.

    Returns:
        The SHA-256 of the file.
    """
    # safetensors writes memory as it is, and on the CPU a model's tensors are in another order (channels last).
    ordered = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    content = save(ordered, dict(metadata) if metadata else None)
    write_aside(path, content)
    return hashlib.sha256(content).hexdigest()


def hash_tensors(tensors: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of tensors with their names, types and shapes."""
    sha = hashlib.sha256()
    # Sorted, so that the hash does not depend on the order in which a file or a dictionary lists them.
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        sha.update(np.asarray(tensor, order="C").reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def _flush_folder(folder: Path) -> None:
    """Make a rename in a folder survive a power cut."""
    # The rename changes the folder, not the file: flushing the file alone would not keep the new name.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
    finally:
        os.close(descriptor)
