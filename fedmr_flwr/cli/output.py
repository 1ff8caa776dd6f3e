"""Standard output and standard error that cannot end a command: their reader may go away while it trains."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOBase, TextIOWrapper
from typing import TextIO, cast


class Lasting(TextIOBase):
    """A stream that drops text once it cannot be written any more.

    Args:
        stream: where the text goes.
        report: called once with the reason, in a line for the user.

    Attributes:
        problem: why text was dropped; None if none was.
    """

    def __init__(self, stream: TextIO, report: Callable[[str], None]) -> None:
        self._stream = stream
        self._report = report
        self.problem: OSError | None = None
        if isinstance(stream, TextIOWrapper):
            # What its encoding lacks becomes "?": lines have Greek letters, and names of a user's own.
            stream.reconfigure(errors="replace")

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream: Rich draws tables with what it has."""
        return self._stream.encoding

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return the stream's number."""
        return self._stream.fileno()

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Write what is buffered, or drop it."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        first, self.problem = self.problem is None, error
        # Under the same number, because what is buffered would otherwise raise the error again when Python ends.
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        if first:
            self._report(f"fedmr: the output cannot be written any more ({error.strerror}); continuing without it")


@contextmanager
def lasting_output() -> Iterator[None]:
    """Inside the block, drop what is printed and cannot be written, instead of ending the command.

    Raises:
        SystemExit: with status 1 instead of 0, if output was lost for another reason than that nobody reads it.
    """
    before = sys.stdout, sys.stderr
    # Python has no stream where the shell has closed its number.
    err = sys.stderr and Lasting(sys.stderr, lambda line: None)
    out = sys.stdout and Lasting(sys.stdout, lambda line: print(line, file=sys.stderr))
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield
    except SystemExit as end:
        if not end.code and out and out.problem and out.problem.errno != errno.EPIPE:
            raise SystemExit(1) from None
        raise
    finally:
        sys.stdout, sys.stderr = before
