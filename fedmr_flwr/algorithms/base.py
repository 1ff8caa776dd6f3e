"""What every algorithm of this project shares: drawing clients, one fresh message per slot, replies by slot."""

import inspect
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray

from fedmr_flwr.algorithms.wrappers import refuse_unfit
from fedmr_flwr.config import options as own_options
from fedmr_flwr.config.sections import Section
from fedmr_flwr.core.layout import Floats, Layout, Packed
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.errors import ConfigError, OptionError, RecordError
from fedmr_flwr.training.rules import LocalRule
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.grids.roster import RosterGrid
from fedmr_flwr.wire.messages import ARRAYS, CONFIG, EXAMPLES, METRICS, RETURNS, ROUND, vector_record, vectors


@dataclass(frozen=True)
class Trained:
    """A client's good reply.

    Attributes:
        model: what it trained.
        examples: on how many examples.
        metrics: its numbers by name.
        vectors: what else it returned, by name: those that `Algorithm.returns` names.
    """

    model: Packed
    examples: float
    metrics: dict[str, float]
    vectors: Mapping[str, Floats] = field(default_factory=dict)


class Algorithm(Strategy):
    """A Flower strategy whose server sends one of its K models to each of M clients a round.

    The i-th slot of a round goes to the i-th drawn client, and clients are drawn in random order, so the pairing
    of slots and clients is random. A subclass says which models to send and what to make of the trained ones.

    Args:
        clients_per_round: M, the clients drawn in a round.
        seed: the seed of the run.
        layout: of the models, if they travel packed; None for records with one array per tensor, such as
            `ArrayRecord(model.state_dict())`, from which the layout is then taken.
        wire: in which type packed floats travel, as `Codec` has it.
        **options: the algorithm's own, as the type of its attribute `options` names them.

    Attributes:
        options: the algorithm's own, with every default. A subclass declares their type: `options: FedMROptions`.
        federation: N, the clients that were there in the latest round.
        trained_slots: the slots that were sent out in the latest round, in the order of the messages.
        diagnosis: what `diagnostics` said after the latest round.

    Raises:
        ConfigError: an argument is unknown or its value wrong.

    `Rule` is what its clients change in local training; `individual` says whether they get models that differ;
    `on_gpu` whether the server's part takes models that lie on a GPU, as the one-GPU engine has them. Otherwise
    `combine` gets them as NumPy vectors.
    """

    options: Section
    Rule: ClassVar[type[LocalRule]] = LocalRule
    individual: ClassVar[bool] = False
    on_gpu: ClassVar[bool] = False
    # What `help` shows.
    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.__signature__ = own_options.signature(cls, cls.__init__, Algorithm.__init__)

    def __init__(
        self,
        *,
        clients_per_round: int = 10,
        seed: int = 0,
        layout: Layout | None = None,
        wire: str = "float32",
        **options: Any,
    ) -> None:
        if clients_per_round < 1:
            raise OptionError("clients_per_round", f"it is {clients_per_round} and must be at least 1")
        self.clients_per_round = clients_per_round
        self.seed = seed
        self.options = own_options.validate_arguments(type(self), options)
        self._codec = None if layout is None else Codec(layout, wire=wire)
        self.federation = 0
        self.trained_slots: list[int] = []
        self.diagnosis: dict[str, Any] = {}
        self._sent: list[Message] = []

    @abstractmethod
    def models(self, server_round: int, arrays: ArrayRecord) -> Sequence[ArrayRecord]:
        """Return the model of every slot.

        Args:
            server_round: 1 for the first.
            arrays: the global model.
        """

    @abstractmethod
    def combine(self, server_round: int, trained: Sequence[Trained | None]) -> ArrayRecord:
        """Return the new global model.

        Args:
            server_round: 1 for the first.
            trained: by slot; None where no good reply came. At least one is there.
        """

    @property
    def slots(self) -> int:
        """K, the number of models: one for each client of a round."""
        return self.clients_per_round

    @property
    def codec(self) -> Codec:
        """How models become records; known once the first model is."""
        assert self._codec is not None
        return self._codec

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Draw the round's clients and build a fresh message for each slot."""
        if self.individual:
            refuse_unfit(self)
        if self._codec is None:
            self._codec = Codec.infer(arrays)
        nodes = list(grid.get_node_ids())
        if len(nodes) < self.clients_per_round:
            raise ConfigError(
                f"clients-per-round is {self.clients_per_round} but only {len(nodes)} clients are connected; "
                "lower clients-per-round or start more clients"
            )
        self.federation = len(nodes)
        drawn = self._draw_clients(server_round, grid)
        models = self.models(server_round, arrays)
        self.trained_slots = self._draw_slots(server_round)[: len(drawn)]
        common: dict[str, ArrayRecord | ConfigRecord] = {CONFIG: ConfigRecord({**config, ROUND: server_round})}
        common |= {name: vector_record(values) for name, values in self.sends().items()}
        if returns := self.returns():
            common[RETURNS] = ConfigRecord({**returns})
        self._sent = [
            Message(RecordDict({ARRAYS: models[slot], **common}), nodes[client], MessageType.TRAIN)
            for client, slot in zip(drawn, self.trained_slots, strict=True)
        ]
        return self._sent

    def _draw_clients(self, server_round: int, grid: Grid) -> list[int]:
        """Draw the numbers of the clients that train in a round, at most M."""
        rng = stream(self.seed, "select", server_round)
        return [int(client) for client in rng.choice(self.federation, self.clients_per_round, replace=False)]

    def _draw_slots(self, server_round: int) -> list[int]:
        """Draw which slots are trained, where there are more of them than clients in a round."""
        if self.slots == self.clients_per_round:
            return list(range(self.slots))
        rng = stream(self.seed, "slots", server_round)
        return sorted(rng.choice(self.slots, self.clients_per_round, replace=False).tolist())

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Sort the replies by slot and combine them; (None, None) if not one is good."""
        answers = {reply.metadata.reply_to_message_id: reply for reply in replies}
        trained: list[Trained | None] = [None] * self.slots
        for slot, message in zip(self.trained_slots, self._sent, strict=True):
            trained[slot] = self._read(answers.get(message.metadata.message_id))
        self._sent = []  # M models that nobody needs any more
        if not any(trained):
            return None, None
        arrays = self.combine(server_round, trained)
        self.diagnosis = self.diagnostics()
        numbers = {name: value for name, value in self.diagnosis.items() if isinstance(value, float)}
        return arrays, MetricRecord({**mean_metrics([reply for reply in trained if reply]), **numbers})

    def sends(self) -> Mapping[str, Floats]:
        """Return the vectors that go to every client of a round besides the model, by name."""
        return {}

    def returns(self) -> Mapping[str, int]:
        """Return the names and lengths of the vectors that every client must return besides the model."""
        return {}

    def begins_anew(self) -> bool:
        """Begin anew, because some clients have lost what they kept, and tell whether all others must do so, too.

        For a server whose own state is only right together with that of every client.
        """
        return False

    def diagnostics(self) -> dict[str, Any]:
        """Return what is worth knowing of the server's state after a round, by name, as JSON has it."""
        return {}

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what the server must keep between rounds, besides the global model, by name."""
        return {}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what an earlier `state` returned."""
        assert not state

    def _read(self, reply: Message | None) -> Trained | None:
        """Decode a reply; None if there is none or it is bad."""
        if reply is None or not reply.has_content():
            return None
        try:
            arrays, numbers = reply.content[ARRAYS], reply.content[METRICS]
            assert isinstance(arrays, ArrayRecord) and isinstance(numbers, MetricRecord)
            model = self.codec.decode(arrays) if self.on_gpu else self.codec.decode(arrays).on_host()
            metrics = plain_numbers(numbers)
            return Trained(model, metrics.pop(EXAMPLES), metrics, vectors(reply.content, self.returns()))
        except (RecordError, KeyError):
            return None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Send nothing: the server evaluates."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Return nothing: the server evaluates."""

    def summary(self) -> None:
        """Log nothing: the run folder states the configuration."""

    def start(self, grid: Grid, *args: Any, **kwargs: Any) -> Result:
        """Run the strategy on a grid, as Flower's `Strategy.start`, with stable clients and checked replies."""
        if not isinstance(grid, RosterGrid):
            grid = RosterGrid(grid, at_least=self.clients_per_round)
        return super().start(grid, *args, **kwargs)


def plain_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return those metrics that are a single number; an integer of more than 64 bits is none."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
    }


def mean_metrics(trained: Sequence[Trained]) -> dict[str, float]:
    """Average the metrics that all clients returned, weighted by their examples."""
    weights = np.array([reply.examples for reply in trained])
    names = sorted(set.intersection(*(set(reply.metrics) for reply in trained)))
    with np.errstate(all="ignore"):  # a client may send any number, and it is the client's to say what it means
        return {
            name: float(np.array([reply.metrics[name] for reply in trained]) @ weights / weights.sum())
            for name in names
        }
