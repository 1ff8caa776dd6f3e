"""What the server's loop requires of a strategy, ours or an adapted one of Flower's."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedmr_flwr.wire.checks import Judged
from fedmr_flwr.wire.codec import Codec

T = TypeVar("T")


# A protocol, because Flower's own strategies are adapted without being algorithms.
class ServerStrategy(Protocol[T]):
    """The methods that the server's loop calls: the steps of a round one by one, and saving and restoring."""

    @property
    def codec(self) -> Codec:
        """The conversion of models to records."""

    @property
    def slots(self) -> int:
        """K, the number of models."""

    @property
    def accepts_device_models(self) -> bool:
        """Whether it accepts models on a GPU."""

    @property
    def diagnostics(self) -> Mapping[str, Any]:
        """Numbers and lists for the metrics of the latest round."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return the messages of a round, one for each client."""

    def judge(self, replies: Iterable[Message]) -> Judged[T]:
        """Divide the replies to these messages into good and rejected ones."""

    def aggregate(self, server_round: int, judged: Judged[T]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the good replies into the new global model."""

    def reset_clients(self) -> bool:
        """Reset the state if the algorithm requires it after a loss of client state; return whether it did."""

    def save(self) -> Mapping[str, NDArray[Any]]:
        """Return the state by name."""

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Continue from the result of an earlier `save`."""
