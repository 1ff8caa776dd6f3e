"""Any of Flower's own strategies, with this project's reproducible clients, checked replies and checkpoints.

Source: the classes of `flwr.serverapp.strategy`; see their documentation for papers and arguments.
"""

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from pydantic import Field

from fedmr_flwr.algorithms import wrappers
from fedmr_flwr.algorithms.base import draw_clients, drawable_nodes, update_length
from fedmr_flwr.algorithms.contract import StateArrays
from fedmr_flwr.config import options as own_options
from fedmr_flwr.config.registry import FLOWER
from fedmr_flwr.config.sections import Section
from fedmr_flwr.core.layout import Layout
from fedmr_flwr.errors import ConfigError, OptionError, RunError
from fedmr_flwr.training.rules import LocalRule
from fedmr_flwr.wire.checks import Judged, judge, without_outliers
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.messages import ARRAYS

# What cannot work here, and why.
_UNFIT = {
    "FedProx": "it is the server's half only; use strategy.name=fedprox",
    "FedXgbBagging": "it combines trees",
    "FedXgbCyclic": "it combines trees",
    "Strategy": "it is abstract",
}
# Exactly these, not what users derive from them: a subclass may keep more.
_WITHOUT_STATE = (
    flower.FedAvg, flower.FedProx, flower.FedMedian, flower.FedTrimmedAvg, flower.Krum, flower.MultiKrum,
    flower.Bulyan, flower.QFedAvg,
)  # fmt: skip
_WITH_MOMENTS = (flower.FedAdam, flower.FedAdagrad, flower.FedYogi)
_MOMENTS = ("m_t", "v_t")
_MOMENTUM = "momentum_vector"


class FlowerOptions(Section):
    """Options of a strategy of Flower's: the keyword arguments of its class.

    Attributes:
        options: by name.
    """

    options: dict[str, Any] = Field(default_factory=dict)


class FlowerStrategy(Strategy):
    """One of Flower's strategies: which clients it gets, and in which order, is drawn from the run's seed.

    Args:
        clients_per_round: clients drawn in a round.
        seed: the seed of the run.
        layout: of the models, which travel packed.
        wire: in which type their floats travel; Flower's strategies compute in it.
        guard: as of every algorithm.
        options: keyword arguments of the strategy's class.

    Attributes:
        inner: the strategy.
    """

    options: FlowerOptions
    Rule: ClassVar[type[LocalRule]] = LocalRule
    Kind: ClassVar[type[Strategy]]
    accepts_device_models: ClassVar[bool] = False

    inner: Any
    diagnostics: Mapping[str, Any] = {}

    def __init__(
        self,
        *,
        layout: Layout,
        clients_per_round: int = 10,
        seed: int = 0,
        wire: str = "float32",
        guard: float | None = None,
        **options: Any,
    ) -> None:
        self.clients_per_round = self.slots = clients_per_round
        self.seed = seed
        self.guard = guard
        self.codec = Codec(layout, wire=wire)
        validated = own_options.validate_arguments(type(self), options)
        assert isinstance(validated, FlowerOptions)
        self.options = validated
        try:
            self.inner = self.Kind(**self.options.options)
        except (TypeError, ValueError) as error:
            raise OptionError("options", str(error)) from None
        # All who are drawn here take part; otherwise it would wait for more.
        self.inner.fraction_train, self.inner.min_train_nodes, self.inner.min_available_nodes = 1.0, 0, 0
        self._sent: dict[int, Message] = {}  # by client

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send what the strategy would send, a fresh message to each drawn client."""
        nodes = drawable_nodes(grid, self.clients_per_round)
        clients = draw_clients(server_round, self.seed, len(nodes), self.clients_per_round)
        drawn = [nodes[client] for client in clients]
        # It samples by itself, and from the global generator, so it is shown the drawn nodes alone.
        shown = cast(Grid, SimpleNamespace(get_node_ids=lambda: drawn))
        theirs = self.inner.configure_train(server_round, arrays, ConfigRecord({**config}), shown)
        content = {message.metadata.dst_node_id: message.content for message in theirs}
        self._sent = {
            client: Message(RecordDict({**content[node]}), node, MessageType.TRAIN)
            for client, node in zip(clients, drawn, strict=True)
        }
        return list(self._sent.values())

    def judge(self, replies: Iterable[Message]) -> Judged[Message]:
        """Sort the good replies to the latest messages from the others."""
        judged = judge(self._sent, replies)
        if self.guard is None:
            return judged
        lengths = [self._update_length(client, message) for client, message in judged.good.items()]
        return without_outliers(judged, lengths, self.guard)

    def aggregate(self, server_round: int, judged: Judged[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Hand the good replies on, in the order of the messages; (None, None) if there is none."""
        self._sent = {}
        if not judged.good:
            return None, None
        try:
            arrays, metrics = self.inner.aggregate_train(server_round, list(judged.good.values()))
        except Exception as error:  # some strategies need more replies than came
            raise RunError(
                f"round {server_round}: {self.Kind.__name__} could not combine {len(judged.good)} replies: "
                f"{type(error).__name__}: {error}"
            ) from error
        if arrays is None:
            raise RunError(f"round {server_round}: {self.Kind.__name__} made no model of {len(judged.good)} replies")
        return arrays, metrics

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Judge the replies, and combine the good ones."""
        return self.aggregate(server_round, self.judge(replies))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send nothing: the server evaluates."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Return nothing: the server evaluates."""

    def summary(self) -> None:
        """Log nothing: the run folder states the configuration."""

    def save(self) -> StateArrays:
        """Return what the strategy keeps between rounds."""
        return state_of(self.inner)

    def restore(self, arrays: StateArrays) -> None:
        """Put the strategy into the state that `save` returned."""
        restore(self.inner, arrays)

    def reset_clients(self) -> bool:
        """Return that no client must restart: none of Flower's strategies depends on what clients keep."""
        return False

    def _update_length(self, client: int, reply: Message) -> float:
        before, after = (
            self.codec.decode(message.content.array_records[ARRAYS]).on_host()
            for message in (self._sent[client], reply)
        )
        return update_length(after, before, self.codec.layout)


def state_of(strategy: Strategy) -> dict[str, NDArray[Any]]:
    """Return what one of Flower's strategies keeps between rounds, besides the global model, by name.

    Args:
        strategy: any; of a kind that is not known nothing is returned, and `restore` refuses it.
    """
    if isinstance(strategy, _WITH_MOMENTS):
        return {
            f"{moment}.{name}": np.asarray(values)  # of a tensor without axes Flower makes a NumPy scalar
            for moment in _MOMENTS
            for name, values in (getattr(strategy, moment) or {}).items()
        }
    if isinstance(strategy, flower.FedAvgM):
        return {f"{_MOMENTUM}.{at}": np.asarray(values) for at, values in enumerate(strategy.momentum_vector or [])}
    return {}


def restore(strategy: Strategy, state: StateArrays) -> None:
    """Put one of Flower's strategies into the state that `state_of` returned.

    Raises:
        ConfigError: it is not known what the strategy keeps.
    """
    if type(strategy) in _WITH_MOMENTS:
        for moment in _MOMENTS:
            setattr(strategy, moment, _without_prefix(state, f"{moment}.") or None)
    elif type(strategy) is flower.FedAvgM:
        strategy.momentum_vector = [state[f"{_MOMENTUM}.{at}"].copy() for at in range(len(state))] or None
        strategy.current_arrays = None  # taken from the global model in the next round
    elif type(strategy) not in _WITHOUT_STATE:
        raise ConfigError(
            f"a run of {type(strategy).__name__} cannot be resumed, because what it keeps between rounds is unknown; "
            "derive it from fedmr_flwr.algorithms.base.Algorithm, with a state of its own"
        )


def _without_prefix(arrays: StateArrays, prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): values.copy() for name, values in arrays.items() if name.startswith(prefix)}


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
    fit = [own for own in flower.__all__ if own not in _UNFIT and not own.startswith(("Result", *wrapping))]
    if short in _UNFIT:
        raise ConfigError(f"'{name}' cannot be used, because {_UNFIT[short]}")
    if short not in fit:
        raise ConfigError(f"unknown strategy '{name}'; choose one of {', '.join(FLOWER + own for own in fit)}")
    return type(short, (FlowerStrategy,), {"Kind": getattr(flower, short)})
