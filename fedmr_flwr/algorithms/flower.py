"""Any of Flower's own strategies, with this project's reproducible clients, checked replies and checkpoints.

Source: the classes of `flwr.serverapp.strategy`; see their documentation for papers and arguments.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid, strategy
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from pydantic import Field

from fedmr_flwr.algorithms import state as kept
from fedmr_flwr.algorithms import wrappers
from fedmr_flwr.algorithms.base import Algorithm, Trained
from fedmr_flwr.config.registry import FLOWER
from fedmr_flwr.config.sections import Section
from fedmr_flwr.errors import ConfigError, FederationError, OptionError

# What cannot work here, and why.
_UNFIT = {
    "FedProx": "it is the server's half only; use strategy.name=fedprox",
    "FedXgbBagging": "it combines trees",
    "FedXgbCyclic": "it combines trees",
    "Strategy": "it is abstract",
}


class FlowerOptions(Section):
    """Options of a strategy of Flower's: the keyword arguments of its class.

    Attributes:
        options: by name.
    """

    options: dict[str, Any] = Field(default_factory=dict)


class FlowerStrategy(Algorithm):
    """One of Flower's strategies: which clients it gets, and in which order, is drawn from the run's seed.

    Args:
        options: keyword arguments of the strategy's class.

    Attributes:
        inner: the strategy.
    """

    options: FlowerOptions
    Kind: ClassVar[type[Strategy]]
    inner: Any

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        try:
            self.inner = self.Kind(**self.options.options)
        except (TypeError, ValueError) as error:
            raise OptionError("options", str(error)) from None
        # All who are drawn here take part; otherwise it would wait for more.
        self.inner.fraction_train, self.inner.min_train_nodes, self.inner.min_available_nodes = 1.0, 0, 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send what the strategy would send, a fresh message to each drawn client."""
        messages = super().configure_train(server_round, arrays, config, grid)
        nodes = [message.metadata.dst_node_id for message in messages]
        # It samples by itself, and from the global generator, so it is shown the drawn nodes alone.
        drawn = cast(Grid, SimpleNamespace(get_node_ids=lambda: nodes))
        theirs = self.inner.configure_train(server_round, arrays, ConfigRecord({**config}), drawn)
        content = {message.metadata.dst_node_id: message.content for message in theirs}
        self._sent = [Message(RecordDict({**content[node]}), node, MessageType.TRAIN) for node in nodes]
        return self._sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Hand the replies on, in the order of the messages."""
        answers = {reply.metadata.reply_to_message_id: reply for reply in replies}
        ordered = [answers[sent.metadata.message_id] for sent in self._sent if sent.metadata.message_id in answers]
        self._sent = []
        if not any(reply.has_content() for reply in ordered):
            return None, None
        try:
            return self.inner.aggregate_train(server_round, ordered)  # type: ignore[no-any-return]
        except Exception as error:  # some strategies need more replies than came
            raise FederationError(
                f"round {server_round}: {self.Kind.__name__} could not combine {len(ordered)} replies: "
                f"{type(error).__name__}: {error}"
            ) from error

    def models(self, server_round: int, arrays: ArrayRecord) -> Sequence[ArrayRecord]:
        """Return the global model for every client."""
        return [arrays] * self.clients_per_round

    def combine(self, server_round: int, trained: Sequence[Trained | None]) -> ArrayRecord:
        """Never called: the strategy combines the replies themselves."""
        raise NotImplementedError

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what the strategy keeps between rounds."""
        return kept.state_of(self.inner)

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Put the strategy into an earlier state."""
        kept.restore(self.inner, state)


def flower_strategy(name: str) -> type[FlowerStrategy]:
    """Return the strategy of a name such as "flwr:FedAdam".

    Raises:
        ConfigError: there is none of this name, or it cannot work here.
    """
    short = name.removeprefix(FLOWER)
    for beginning, why in wrappers.UNFIT.items():
        if short.startswith(beginning):
            raise ConfigError(f"'{name}' wraps another strategy, and {why}")
    wrapping = tuple(wrappers.UNFIT)
    fit = [own for own in strategy.__all__ if own not in _UNFIT and not own.startswith(("Result", *wrapping))]
    if short in _UNFIT:
        raise ConfigError(f"'{name}' cannot be used, because {_UNFIT[short]}")
    if short not in fit:
        raise ConfigError(f"unknown strategy '{name}'; choose one of {', '.join(FLOWER + own for own in fit)}")
    return type(short, (FlowerStrategy,), {"Kind": getattr(strategy, short)})
