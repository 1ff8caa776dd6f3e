"""Flower's own strategies, with this project's reproducible clients, checked replies and checkpoints.

Source: the classes of `flwr.serverapp.strategy`; see their documentation for papers and arguments.
"""

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from pydantic import Field

from fedmr_flwr.algorithms import wrappers
from fedmr_flwr.algorithms.contract import StateArrays
from fedmr_flwr.config import options as own_options
from fedmr_flwr.config.registry import FLOWER
from fedmr_flwr.config.sections import Section
from fedmr_flwr.core.drawing import draw_clients
from fedmr_flwr.core.layout import Floats, Layout, Packed
from fedmr_flwr.core.population import mean
from fedmr_flwr.errors import BadRoundError, ConfigError, OptionError
from fedmr_flwr.training.rules import LocalRule
from fedmr_flwr.wire.checks import Judged, judge
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.grids.roster import drawable_nodes, known_examples
from fedmr_flwr.wire.messages import ARRAYS, EXAMPLES, FLOATS, METRICS
from fedmr_flwr.wire.npy import view
from fedmr_flwr.wire.strategy import ServerStrategy

# Strategies that cannot work here, and the reason.
_UNFIT = {
    "FedProx": "it has only the server's half; use strategy.name=fedprox",
    "FedXgbBagging": "it combines trees",
    "FedXgbCyclic": "it combines trees",
    "Strategy": "it is abstract",
}
# Exactly these, not their subclasses: a user's subclass may keep more.
_WITHOUT_STATE = (
    flower.FedAvg, flower.FedProx, flower.FedMedian, flower.FedTrimmedAvg, flower.Krum, flower.MultiKrum,
    flower.Bulyan, flower.QFedAvg,
)  # fmt: skip
# How many clients Flower's own loop would draw, wait for, and let evaluate.
_UNUSED = {
    "fraction_train", "fraction_evaluate", "min_train_nodes", "min_evaluate_nodes", "min_available_nodes",
}  # fmt: skip
_WITH_MOMENTS = (flower.FedAdam, flower.FedAdagrad, flower.FedYogi)
_MOMENTS = ("m_t", "v_t")
_MOMENTUM = "momentum_vector"
# They go further than the mean of the trained models, or in another direction.
_EXTRAPOLATING = (flower.FedAvgM, flower.FedAdam, flower.FedAdagrad, flower.FedYogi, flower.QFedAvg)


class FlowerOptions(Section):
    """Options of one of Flower's strategies.

    Attributes:
        options: the keyword arguments of its class, by name: `strategy.options.eta=0.01`.
    """

    options: dict[str, Any] = Field(default_factory=dict)


class FlowerStrategy(ServerStrategy[Message]):
    """One of Flower's strategies, with clients that are drawn from the run's seed.

    Args:
        clients_per_round: the number of clients drawn in a round.
        seed: the seed of the run.
        layout: of the models, which are sent packed.
        wire: the type in which their floats are sent; Flower's strategies compute in it.
        guard: see `Algorithm`.
        options: keyword arguments of the strategy's class.

    Attributes:
        inner: Flower's strategy.
    """

    options: FlowerOptions
    Rule: ClassVar[type[LocalRule]] = LocalRule
    Kind: ClassVar[type[Strategy]]

    inner: Any

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
        self.clients_per_round = clients_per_round
        self.seed = seed
        self.guard = guard
        self._codec = Codec(layout, wire=wire)
        validated = own_options.validate_arguments(type(self), options)
        assert isinstance(validated, FlowerOptions)
        self.options = validated
        if unused := sorted(self.options.options.keys() & _UNUSED):
            raise OptionError(
                "options", f"'{unused[0]}' has no effect: clients-per-round are drawn, and wait for none"
            )
        try:
            # Their constructors check the arguments; which ones exist depends on the version of Flower.
            self.inner = self.Kind(**self.options.options)
        except (TypeError, ValueError) as error:
            raise OptionError("options", str(error)) from None
        # All drawn clients take part; with its defaults the strategy would wait for more.
        self.inner.fraction_train, self.inner.min_train_nodes, self.inner.min_available_nodes = 1.0, 0, 0
        self._sent: dict[int, Message] = {}  # by client

    @property
    def slots(self) -> int:
        """One for each client of a round."""
        return self.clients_per_round

    @property
    def codec(self) -> Codec:
        """The conversion of models to records."""
        return self._codec

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Build the strategy's messages, a new one for each drawn client."""
        nodes = drawable_nodes(grid, self.clients_per_round)
        self._stated, self._counted = known_examples(grid)
        clients = draw_clients(server_round, self.seed, len(nodes), self.clients_per_round)
        drawn = [nodes[client] for client in clients]
        # It would sample from the global generator, so it sees only the drawn nodes.
        drawn_only = cast(Grid, SimpleNamespace(get_node_ids=lambda: drawn))
        # A copy of the configuration, because Flower's strategies add the round to it.
        theirs = self.inner.configure_train(server_round, arrays, ConfigRecord({**config}), drawn_only)
        content = {message.metadata.dst_node_id: message.content for message in theirs}
        self._sent = {
            client: Message(RecordDict({**content[node]}), node, MessageType.TRAIN)
            for client, node in zip(clients, drawn, strict=True)
        }
        return list(self._sent.values())

    def judge(self, replies: Iterable[Message]) -> Judged[Message]:
        """Divide the replies to the latest messages into good and rejected ones."""
        judged = judge(self._sent, replies, self._stated)
        for client, reply in judged.good.items():
            if client in self._counted:
                reply.content.metric_records[METRICS][EXAMPLES] = self._counted[client]
        return self._screen(judged, self._trained)

    def aggregate(self, server_round: int, judged: Judged[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Pass the good replies to the strategy, in the order of the messages; (None, None) if there is none."""
        self._sent = {}
        if not judged.good:
            return None, None
        replies = list(judged.good.values())
        averaged = self._averaged_buffers(replies)  # before some strategies empty the replies
        try:
            arrays, metrics = self.inner.aggregate_train(server_round, replies)
        except Exception as error:  # some strategies need more replies than there are
            raise BadRoundError(
                f"{self.Kind.__name__} could not combine {len(judged.good)} replies: {type(error).__name__}: {error}"
            ) from error
        if arrays is None:
            raise BadRoundError(f"{self.Kind.__name__} returned no model for {len(judged.good)} replies")
        if averaged:
            # A copy, because the strategy may keep its own.
            floats = view(arrays[FLOATS]).copy()
            for columns, values in averaged:
                floats[columns] = values
            arrays = ArrayRecord({**arrays, FLOATS: Array(floats)})
        return arrays, metrics

    # Not asked for by the round loop: the server evaluates.

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Leave the evaluation by clients to the strategy."""
        return cast(Iterable[Message], self.inner.configure_evaluate(server_round, arrays, config, grid))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Leave the evaluation by clients to the strategy."""
        return cast(MetricRecord | None, self.inner.aggregate_evaluate(server_round, replies))

    def summary(self) -> None:
        """Log the strategy's own configuration."""
        self.inner.summary()

    def save(self) -> StateArrays:
        """Return the strategy's state by name."""
        return state_of(self.inner)

    def restore(self, arrays: StateArrays) -> None:
        """Restore the state that `save` returned."""
        restore(self.inner, arrays)

    def reset_clients(self) -> bool:
        """Return False: none of Flower's strategies depends on the state of clients."""
        return False

    def _averaged_buffers(self, replies: Sequence[Message]) -> list[tuple[slice, Floats]]:
        """Return the clients' mean of each buffer, if the strategy may go further: a variance may become negative."""
        if not isinstance(self.inner, _EXTRAPOLATING):
            return []
        models = [self._trained(reply).floats for reply in replies]
        examples = [cast(float, reply.content.metric_records[METRICS][EXAMPLES]) for reply in replies]
        return [
            (columns, mean([model[columns] for model in models], examples)) for columns in self._codec.layout.buffers
        ]

    def _trained(self, reply: Message) -> Packed:
        return self._codec.decode(reply.content.array_records[ARRAYS]).on_host()


def state_of(strategy: Strategy) -> dict[str, NDArray[Any]]:
    """Return the state of one of Flower's strategies by name, without the global model.

    Args:
        strategy: any; for an unknown kind the state is empty, and `restore` raises an error.
    """
    if isinstance(strategy, _WITH_MOMENTS):
        return {
            f"{moment}.{name}": np.asarray(values)  # Flower converts 0-d arrays to NumPy scalars
            for moment in _MOMENTS
            for name, values in (getattr(strategy, moment) or {}).items()
        }
    if isinstance(strategy, flower.FedAvgM):
        return {f"{_MOMENTUM}.{at}": np.asarray(values) for at, values in enumerate(strategy.momentum_vector or [])}
    return {}


def restore(strategy: Strategy, state: StateArrays) -> None:
    """Restore the state of one of Flower's strategies.

    Raises:
        ConfigError: the strategy's state is unknown.
    """
    if type(strategy) in _WITH_MOMENTS:
        for moment in _MOMENTS:
            setattr(strategy, moment, _without_prefix(state, f"{moment}.") or None)
    elif type(strategy) is flower.FedAvgM:
        strategy.momentum_vector = [state[f"{_MOMENTUM}.{at}"].copy() for at in range(len(state))] or None
        strategy.current_arrays = None  # set from the global model in the next round
    elif type(strategy) not in _WITHOUT_STATE:
        raise ConfigError(
            f"a run with {type(strategy).__name__} cannot be resumed, because its state between rounds is unknown; "
            "derive it from fedmr_flwr.algorithms.base.Algorithm and give it a state"
        )


def _without_prefix(arrays: StateArrays, prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): values.copy() for name, values in arrays.items() if name.startswith(prefix)}


def flower_strategy(name: str) -> type[FlowerStrategy]:
    """Return the class for a name such as "flwr:FedAdam".

    Raises:
        ConfigError: the strategy is unknown, or cannot work here.
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
    # A class for each strategy, so that the registry treats it like any other algorithm.
    return type(short, (FlowerStrategy,), {"Kind": getattr(flower, short)})
