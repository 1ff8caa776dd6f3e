"""Errors that a user or the network can cause: each is one line that states what is wrong, where, and the remedy."""


class FedmrError(Exception):
    """The base of every error that is reported as one line, without a traceback.

    Args:
        line: the message; breaks in it, as names in a user's files may have, become spaces.
    """

    def __init__(self, line: str = "") -> None:
        super().__init__(" ".join(line.splitlines()))


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


class SystemRefusal(FedmrError):
    """The operating system refused memory, a file or a process, in a place where no better error is raised."""


class UnexpectedError(FedmrError):
    """A fault of this project; its cause is the original exception."""
