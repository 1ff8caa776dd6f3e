"""What a user or the network can get wrong: each error is one line that says what, where and what to do."""


class FedmrError(Exception):
    """The base of every error that is reported as one line, without a traceback."""


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
    """The data cannot be divided among the clients as asked."""


class DeviceError(FedmrError):
    """The device asked for is not there, or too small."""


class RunFolderError(FedmrError):
    """The run folder cannot be used."""


class RunError(FedmrError):
    """The federation does not fit the configuration, or stopped answering."""


class BadRoundError(RunError):
    """Too few clients gave a good reply in a round.

    Args:
        reason: one line.
        absent: whether all who failed are not connected or have gone, and so many that the next round waits.

    Attributes:
        final: whether no further round can be good.
    """

    final = False

    def __init__(self, reason: str, absent: bool = False) -> None:
        super().__init__(reason)
        self.absent = absent


class LostActorError(BadRoundError):
    """A process of Flower's simulation died; Flower sends it clients all the same, and all of them fail."""

    final = True


class AbsentClientsError(BadRoundError):
    """Clients were waited for and did not come."""

    final = True


class EngineError(FedmrError):
    """The engine could not be started or failed while it ran."""


class RecordError(FedmrError):
    """A record that came over the wire does not hold what it should."""
