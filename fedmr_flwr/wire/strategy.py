"""What the server's loop requires of a strategy, ours or an adapted one of Flower's."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedmr_flwr.wire.checks import Judged, log_failures
from fedmr_flwr.wire.codec import Codec

T = TypeVar("T")


class ServerStrategy(Strategy, Generic[T]):
    """A strategy of Flower's with the steps of a round one by one, and a state that can be saved.

    `T` is what a good reply is decoded to.

    Attributes:
        accepts_device_models: whether it accepts models on a GPU.
        diagnostics: numbers and lists for the metrics of the latest round.
    """

    accepts_device_models: ClassVar[bool] = False
    diagnostics: Mapping[str, Any] = {}

    @property
    @abstractmethod
    def codec(self) -> Codec:
        """The conversion of models to records."""

    @property
    @abstractmethod
    def slots(self) -> int:
        """K, the number of models."""

    @abstractmethod
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return the messages of a round, one for each client."""

    @abstractmethod
    def judge(self, replies: Iterable[Message]) -> Judged[T]:
        """Divide the replies to the latest messages into good and rejected ones."""

    @abstractmethod
    def aggregate(self, server_round: int, judged: Judged[T]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the good replies into the new global model; (None, None) if there is none."""

    @abstractmethod
    def reset_clients(self) -> bool:
        """Reset the state if the algorithm requires it after a loss of client state; return whether it did."""

    @abstractmethod
    def save(self) -> Mapping[str, NDArray[Any]]:
        """Return the state by name, without the global model."""

    @abstractmethod
    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Continue from the result of an earlier `save`."""

    # What Flower's own loop calls besides `configure_train`.

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the replies, log the rejected ones, and combine the good ones."""
        judged = self.judge(replies)
        log_failures(judged.failures)
        return self.aggregate(server_round, judged)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send nothing: the server evaluates."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Return nothing: the server evaluates."""

    def summary(self) -> None:
        """Log nothing: the run folder states the configuration."""
