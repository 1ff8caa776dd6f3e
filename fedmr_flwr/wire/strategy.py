"""What the server's loop requires of a strategy, ours or an adapted one of Flower's."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedmr_flwr.core.layout import Columns, Packed
from fedmr_flwr.core.population import distance
from fedmr_flwr.wire.checks import Judged, log_failures, rejecting, without_outliers
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.messages import ARRAYS

T = TypeVar("T")
# Flower's, which shows lines at this level.
_log = logging.getLogger("flwr")


class ServerStrategy(Strategy, Generic[T]):
    """A strategy of Flower's with the steps of a round one by one, and a state that can be saved.

    `T` is what a good reply is decoded to.

    Attributes:
        accepts_device_models: whether it accepts models on a GPU.
        arrayrecord_key: the name of the model's record in messages.
        diagnostics: numbers and lists for the metrics of the latest round.
        notice: a line for the user about what the strategy does with this model; None if there is nothing to say.
        guard: reject a trained model that moved more than `guard` times as far as the round's median, in its
            trainable parameters or in its buffers, each by its own measure, or that has a negative variance; None
            accepts all.
    """

    accepts_device_models: ClassVar[bool] = False
    arrayrecord_key: str = ARRAYS
    diagnostics: Mapping[str, Any] = {}
    notice: str | None = None
    guard: float | None = None
    _sent: Mapping[int, Message]
    # The number of examples of each client, as far as known: what it stated first, and how much of that counts.
    _stated: Mapping[int, int] = {}
    _counted: Mapping[int, int] = {}
    _measure_round: Callable[[], Mapping[int, float]] | None = None

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

    def _screen(self, judged: Judged[T], trained: Callable[[T], Packed]) -> Judged[T]:
        """Reject models that no honest training gives, if there is a guard.

        Args:
            judged: the replies to the latest messages.
            trained: returns the model of a good reply.
        """
        if self.guard is not None and judged.good:
            judged = self._without_outliers(judged, trained, self.guard)
        # Measured only if somebody asks: it takes as long as averaging. The messages stay until then.
        sent = self._sent
        self._measure_round = lambda: self._measure(judged, sent, trained, self.codec.layout.parameters)
        return judged

    def update_lengths(self) -> Mapping[int, float]:
        """Return how far each client's model moved in the latest round, over trainable parameters, if it was good."""
        return self._measure_round() if self._measure_round else {}

    def forget_replies(self) -> None:
        """Release the replies to the latest messages, which `update_lengths` reads, before others come in."""
        self._measure_round = None

    def _without_outliers(self, judged: Judged[T], trained: Callable[[T], Packed], guard: float) -> Judged[T]:
        layout = self.codec.layout
        if layout.variances:
            negative = {
                client: "a running variance is negative"
                for client, reply in judged.good.items()
                if min(float(trained(reply).on_host().floats[columns].min()) for columns in layout.variances) < 0
            }
            judged = rejecting(judged, negative)
        # Buffers by themselves: BatchNorm's statistics are long beside the weights, which would be lost in the sum.
        # Frozen weights with the others: no honest training moves them at all.
        weights = layout.parameters + layout.frozen
        for what, columns in (("its update is", weights), ("the update of its buffers is", layout.buffers)):
            if columns:
                lengths = self._measure(judged, self._sent, trained, columns)
                judged = without_outliers(judged, [*lengths.values()], guard, what)
        return judged

    def _measure(
        self, judged: Judged[T], sent: Mapping[int, Message], trained: Callable[[T], Packed], columns: Columns
    ) -> dict[int, float]:
        """Return how far each client's model has moved in some columns."""
        lengths = {}
        for client, reply in judged.good.items():
            # From the model that this client was sent: with a population they differ.
            record = sent[client].content.array_records[self.arrayrecord_key]
            start = self.codec.decode(record).on_host().floats
            lengths[client] = distance(trained(reply).on_host().floats, start, columns)
        return lengths

    @abstractmethod
    def aggregate(self, server_round: int, judged: Judged[T]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the good replies into the new global model; (None, None) if there is none."""

    @abstractmethod
    def reset_clients(self) -> bool:
        """Reset the state if the algorithm requires it after a loss of client state; return whether it did."""

    @abstractmethod
    def save(self) -> Mapping[str, NDArray[Any]]:
        """Return the state by name, without the global model."""

    def state_bytes(self, clients: int) -> int:
        """Return the bytes of the part of the state that grows with the number of clients or of models.

        Args:
            clients: that have taken part so far.
        """
        return 0

    @abstractmethod
    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Continue from the result of an earlier `save`."""

    # What Flower's own loop calls besides `configure_train`.

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the replies, log the rejected ones, and combine the good ones.

        Returns:
            The new global model, None if no reply is good; and the metrics, with the numbers of "replies" and
            "failures" if there are failures.
        """
        judged = self.judge(replies)
        good, failed = len(judged.good), len(judged.failures)
        _log.info("aggregate_train: Received %s results and %s failures", good, failed)
        log_failures(judged.failures)
        arrays, metrics = self.aggregate(server_round, judged)
        self.forget_replies()
        if failed:
            metrics = MetricRecord({"replies": good, "failures": failed, **(metrics or {})})
        return arrays, metrics
