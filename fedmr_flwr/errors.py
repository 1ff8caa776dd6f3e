"""Errors that a user or the network can cause: each is one line that states what is wrong, where, and the remedy."""

import sysconfig
import traceback
from pathlib import Path
from unicodedata import category

_PACKAGE = Path(__file__).parent
_LIBRARIES = tuple({Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def own_place(error: BaseException) -> str:
    """Return where an exception passed through code of the user's own that this package called; empty if nowhere.

    Args:
        error: as it was caught.

    Returns:
        File, line and function; the innermost, if it was in several.
    """
    place, called = "", False
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(_PACKAGE):
            called |= path.name != "bugs.py"  # which is around everything, and calls nothing itself
        elif called and path.is_absolute() and not any(map(path.is_relative_to, _LIBRARIES)):
            place = f"{path}, line {frame.lineno}, in {frame.name}"
    return place


def describe(error: BaseException) -> str:
    """Return an exception in one line: its type and message, and its place if that is in code of the user's own."""
    says_it_all = isinstance(error, (ImportError, OwnCodeError))
    kind = "" if says_it_all else f"{type(error).__name__}: "
    line = " ".join(f"{kind}{error}".split()).removesuffix(":")
    place = own_place(error)
    return f"{line} ({place})" if place else line


def printable(text: str) -> str:
    """Return a text without what a terminal obeys: control characters but line breaks, and marks of direction."""
    return "".join(char for char in text if char in "\n\t" or category(char) not in ("Cc", "Cf"))


class FedmrError(Exception):
    """The base of every error that is reported as one line, without a traceback.

    Args:
        line: the message; breaks in it, as names in a user's files may have, become spaces, and what is not
            `printable` is left out.
    """

    def __init__(self, line: str = "") -> None:
        super().__init__(printable(" ".join(line.splitlines())))


class ConfigError(FedmrError):
    """The configuration is wrong: a key, a type or a value."""


class OptionError(ConfigError):
    """An option of an algorithm does not fit the model or the other arguments.

    Args:
        option: its Python name.
        problem: what is wrong with it.
    """

    def __init__(self, option: str, problem: str) -> None:
        super().__init__(f"{option}: {problem}")
        self.option = option
        self.problem = problem


class DataError(FedmrError):
    """A data file is missing, unreadable or damaged."""


class PartitionError(FedmrError):
    """The data cannot be divided among the clients as configured."""


class DeviceError(FedmrError):
    """The requested device does not exist, or its memory is too small."""


class RunFolderError(FedmrError):
    """The run folder cannot be used."""


class RunError(FedmrError):
    """The clients do not match the configuration, too few of them reply, or runs of a comparison failed."""


class BadRoundError(RunError):
    """Too few clients gave a good reply in a round.

    Args:
        reason: one line.
        absent: whether every failed client is disconnected, and so many are that the next round waits for them.

    Attributes:
        final: whether no further round can be good.
    """

    # On the class and not an argument: it depends on the kind of error alone.
    final = False

    def __init__(self, reason: str, absent: bool = False) -> None:
        super().__init__(reason)
        self.absent = absent


class LostActorError(BadRoundError):
    """A process of Flower's simulation died; Flower still assigns clients to it, and all of them fail."""

    final = True


class AbsentClientsError(BadRoundError):
    """Clients did not connect in time."""

    final = True


class EngineError(FedmrError):
    """The engine could not be started or failed while it ran."""


class RecordError(FedmrError):
    """A received record is damaged or has unexpected contents."""


class SealError(RecordError):
    """A sealed unit of a model cannot be opened, or is not the one that it should be."""


class SystemRefusal(FedmrError):
    """The operating system refused memory, a file or a process, in a place where no better error is raised."""


class OwnCodeError(FedmrError):
    """Code of the user's own, such as a model or an algorithm, failed; its cause is the original exception."""


class UnexpectedError(FedmrError):
    """A fault of this project; its cause is the original exception."""
