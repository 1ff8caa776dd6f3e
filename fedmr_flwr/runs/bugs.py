"""What nobody foresaw: one line for the user, and the traceback in a file for who mends it."""

import errno
import os
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedmr_flwr.errors import FedmrError, OwnCodeError, SystemRefusal, UnexpectedError, describe, own_place
from fedmr_flwr.runs.versions import versions

_FILE = "traceback.txt"
# What the operating system refuses although the program is right.
_REFUSALS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE,
    errno.ENOMEM, errno.EACCES, errno.EPERM, errno.EAGAIN,
}  # fmt: skip


@contextmanager
def in_one_line(folder: Path | None = None) -> Iterator[None]:
    """Raise any unexpected exception inside the block as an error of one line, with its traceback in a file.

    Args:
        folder: of the run; None, or if it cannot be written: the folder of temporary files.

    Raises:
        FedmrError: one was raised inside the block.
        SystemRefusal: the operating system refused something.
        OwnCodeError: code of the user's own raised anything else; it is the cause.
        UnexpectedError: anything else was raised; it is the cause.
    """
    try:
        yield
    except FedmrError:
        raise
    except MemoryError as error:
        raise SystemRefusal(
            "out of memory; lower clients-per-round, or choose a smaller model or data set"
        ) from error
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise _bug(error, folder) from error
        path = f": {error.filename}" if error.filename else ""
        raise SystemRefusal(f"the operating system refused a file or a process: {error.strerror}{path}") from error
    except Exception as error:
        raise _bug(error, folder) from error


def _bug(error: Exception, folder: Path | None) -> OwnCodeError | UnexpectedError:
    if own_place(error):
        return OwnCodeError(f"your own code failed: {describe(error)}; {_keep(error, folder)}")
    return UnexpectedError(
        f"this is a bug in fedmr_flwr: {describe(error)}; {_keep(error, folder)}; please report it"
    )


def _keep(error: Exception, folder: Path | None) -> str:
    """Write a traceback to a file, and return where it is."""
    found = " ".join(f"{name} {version}" for name, version in versions().items())
    text = f"{found}\n\n{''.join(traceback.format_exception(error))}"
    content = text.encode(errors="backslashreplace")
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / _FILE
            path.write_bytes(content)
            return f"the traceback is in {path}"
    except OSError:
        pass
    try:
        descriptor, name = tempfile.mkstemp(f"-{_FILE}", "fedmr-")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        return f"the traceback is in {name}"
    except OSError as refused:
        return f"its traceback cannot be written ({refused.strerror})"
