"""What every algorithm is: which clients, which models, and what to make of the trained ones.

An algorithm sees vectors and numbers. How models become messages, which reply belongs to which slot, and what
Flower expects of a strategy stands here, once.
"""

import inspect
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedmr_flwr.algorithms.contract import Combined, NoState, Plan, Reply, Round, S, Slot, StateArrays
from fedmr_flwr.algorithms.wrappers import refuse_unfit
from fedmr_flwr.config import options as own_options
from fedmr_flwr.config.sections import Section
from fedmr_flwr.core.layout import Floats, Layout, Packed
from fedmr_flwr.core.population import squared_distance
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.core.recombination import Parts
from fedmr_flwr.errors import ConfigError, OptionError
from fedmr_flwr.training.rules import LocalRule
from fedmr_flwr.wire.checks import Judged, log_failures, without_outliers
from fedmr_flwr.wire.checks import judge as judge_replies
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.grids.roster import RosterGrid
from fedmr_flwr.wire.messages import (
    ARRAYS,
    CONFIG,
    EXAMPLES,
    LOST_STATE,
    METRICS,
    RETURNS,
    ROUND,
    vector_record,
    vectors,
)  # fmt: skip


class Algorithm(Strategy, Generic[S]):
    """A Flower strategy whose server sends one of its K models to each of M clients a round.

    The i-th slot of a round goes to the i-th drawn client, and clients are drawn in random order, so the pairing
    of slots and clients is random. A subclass says which models to send and what to make of the trained ones; it
    assigns nothing but what can be computed again from the layout.

    Args:
        clients_per_round: M, the clients drawn in a round.
        seed: the seed of the run.
        layout: of the models, if they travel packed; None for records with one array per tensor, such as
            `ArrayRecord(model.state_dict())`, from which the layout is then taken.
        wire: in which type packed floats travel, as `Codec` has it.
        guard: refuse a trained model whose update is more than `guard` times as long as the round's median, over
            trainable parameters; None refuses none.
        **options: the algorithm's own, as the type of its attribute `options` names them.

    Attributes:
        options: the algorithm's own, with every default. A subclass declares their type: `options: FedMROptions`.
        state: what it keeps from round to round; set before the first one.
        diagnostics: of the latest round.

    Raises:
        ConfigError: an argument is unknown or its value wrong, or the model cannot be used.

    `Rule` is what its clients change in local training; `sends_individual_models` says whether they get models that
    differ; `accepts_device_models` whether `models` and `combine` take models that lie on a GPU, as the one-GPU
    engine has them. Otherwise they get them as NumPy vectors.
    """

    options: Section
    Rule: ClassVar[type[LocalRule]] = LocalRule
    sends_individual_models: ClassVar[bool] = False
    accepts_device_models: ClassVar[bool] = False
    # What `help` shows.
    __signature__: ClassVar[inspect.Signature]

    state: S

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
        guard: float | None = None,
        **options: Any,
    ) -> None:
        if clients_per_round < 1:
            raise OptionError("clients_per_round", f"it is {clients_per_round} and must be at least 1")
        self.clients_per_round = clients_per_round
        self.seed = seed
        self.guard = guard
        self.options = own_options.validate_arguments(type(self), options)
        self.diagnostics: Mapping[str, Any] = {}
        self._codec: Codec | None = None
        self._plan: Plan | None = None
        self._records: Sequence[ArrayRecord] = ()  # of the slots
        self._sent: dict[int, Message] = {}  # by client
        if layout is not None:
            self.begin(Codec(layout, wire=wire))

    @property
    def slots(self) -> int:
        """K, the number of models: one for each client of a round."""
        return self.clients_per_round

    @property
    def codec(self) -> Codec:
        """How models become records; known once the first model is."""
        assert self._codec is not None
        return self._codec

    # What an algorithm says.

    def init(self, layout: Layout, slots: int) -> S:
        """Return the state before the first round.

        Args:
            layout: of the models.
            slots: K.

        Raises:
            ConfigError: the algorithm cannot use such a model.
        """
        return cast(S, NoState())

    def clients(self, round: Round) -> Sequence[int]:
        """Draw the clients of a round: at most M, in the order of the slots that they train.

        A client that is drawn twice trains once, and its reply fills both slots.
        """
        return draw_clients(round.number, self.seed, round.num_clients, self.clients_per_round)

    @abstractmethod
    def models(self, round: Round) -> Sequence[Packed | Parts]:
        """Return the model of every slot; the same object in several slots is encoded once."""

    @abstractmethod
    def combine(self, round: Round, slots: Sequence[Slot]) -> Combined[S]:
        """Make the new global model, and what is kept, of the slots; at least one has a good reply."""

    def sends(self) -> Mapping[str, Floats]:
        """Return the vectors that go to every client of a round besides the model, by name."""
        return {}

    def returns(self) -> Mapping[str, int]:
        """Return the names and lengths of the vectors that every client must return besides the model."""
        return {}

    def reset(self) -> S | None:
        """Return the state that is right once every client has restarted from zero.

        Asked for when some clients have lost what they kept. None, if the others can continue with what they have.
        """
        return None

    # The two halves of a round, without messages.

    def plan(self, round: Round) -> Plan:
        """Draw a round's clients and slots, and make the models."""
        drawn = self.clients(round)
        clients: list[int | None] = [None] * self.slots
        for slot, client in zip(self._draw_slots(round), drawn, strict=False):
            clients[slot] = client
        return Plan(round, tuple(clients), self.models(round))

    def finish(self, plan: Plan, slots: Sequence[Slot]) -> Packed:
        """Combine a round's slots, keep the state, and return the global model."""
        combined = self.combine(plan.round, slots)
        self.state, self.diagnostics = combined.state, combined.diagnostics
        return combined.model

    def _draw_slots(self, round: Round) -> list[int]:
        """Draw which slots are trained, where there are more of them than clients in a round."""
        if self.slots == self.clients_per_round:
            return list(range(self.slots))
        drawn = round.stream("slots").choice(self.slots, self.clients_per_round, replace=False)
        return sorted(drawn.tolist())

    def begin(self, codec: Codec) -> None:
        """Start with the first round of a kind of model; what was kept of an earlier run is forgotten."""
        self._codec = codec
        self.state = self.init(codec.layout, self.slots)

    # What survives the process.

    def save(self) -> StateArrays:
        """Return what must be kept between rounds, besides the global model, by name."""
        return self.state.arrays()

    def restore(self, arrays: StateArrays) -> None:
        """Continue from what an earlier `save` returned."""
        fresh = self.init(self.codec.layout, self.slots)
        self.state = fresh.from_arrays(arrays) if arrays else fresh

    def reset_clients(self) -> bool:
        """Reset the state, if it is only right together with every client's; return whether it was."""
        state = self.reset()
        if state is None:
            return False
        self.state = state
        return True

    # What Flower calls.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Draw the round's clients and build a fresh message for each of them."""
        if self.sends_individual_models:
            refuse_unfit(self)
        if self._codec is None:
            self.begin(Codec.infer(arrays))
        nodes = drawable_nodes(grid, self.clients_per_round)
        examples = grid.examples if isinstance(grid, RosterGrid) else None
        self._plan = plan = self.plan(
            Round(server_round, self.seed, self.codec.layout, len(nodes), examples, lambda: self._decode(arrays))
        )
        encoded: dict[int, ArrayRecord] = {}
        if "global_model" in vars(plan.round):
            encoded[id(plan.round.global_model)] = arrays
        for model in plan.models:
            if id(model) not in encoded:
                encoded[id(model)] = self.codec.encode(model)
        self._records = [encoded[id(model)] for model in plan.models]
        common: dict[str, ArrayRecord | ConfigRecord] = {CONFIG: ConfigRecord({**config, ROUND: server_round})}
        common |= {name: vector_record(values) for name, values in self.sends().items()}
        if returns := self.returns():
            common[RETURNS] = ConfigRecord({**returns})
        self._sent = {}
        for client, record in zip(plan.clients, self._records, strict=True):
            if client is not None and client not in self._sent:
                content = RecordDict({ARRAYS: record, **common})
                self._sent[client] = Message(content, nodes[client], MessageType.TRAIN)
        return list(self._sent.values())

    def judge(self, replies: Iterable[Message]) -> Judged[Reply]:
        """Decode the good replies to the latest messages, and find out why the others do not count."""
        judged = judge_replies(self._sent, replies)
        good = {client: self._read(message.content) for client, message in judged.good.items()}
        decoded = Judged(good, judged.failures, judged.lost_state)
        if self.guard is None:
            return decoded
        lengths = [self._update_length(client, reply.model) for client, reply in good.items()]
        return without_outliers(decoded, lengths, self.guard)

    def aggregate(self, server_round: int, judged: Judged[Reply]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the good replies to the latest messages; (None, None) if there is none."""
        plan, records = self._plan, self._records
        self._plan, self._records, self._sent = None, (), {}  # M models that nobody needs any more
        if plan is None or not judged.good:
            return None, None
        model = self.finish(plan, plan.results(judged.good, lambda slot: self._decode(records[slot])))
        numbers = {name: value for name, value in self.diagnostics.items() if isinstance(value, float)}
        return self.codec.encode(model), MetricRecord({**mean_metrics(judged.good.values()), **numbers})

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Judge the replies, log the bad ones, and combine the good ones."""
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

    def start(self, grid: Grid, *args: Any, **kwargs: Any) -> Result:
        """Run the strategy on a grid, as Flower's `Strategy.start`, with clients in a stable order."""
        if not isinstance(grid, RosterGrid):
            grid = RosterGrid(grid, at_least=self.clients_per_round)
        if self._codec is not None:
            self.begin(self._codec)
        return super().start(grid, *args, **kwargs)

    def _decode(self, record: ArrayRecord) -> Packed:
        model = self.codec.decode(record)
        return model if self.accepts_device_models else model.on_host()

    def _read(self, content: RecordDict) -> Reply:
        metrics = plain_numbers(content.metric_records[METRICS])
        model = self._decode(content.array_records[ARRAYS])
        metrics.pop(LOST_STATE, None)
        return Reply(model, metrics.pop(EXAMPLES), metrics, vectors(content, self.returns()))

    def _update_length(self, client: int, model: Packed) -> float:
        before = self.codec.decode(self._sent[client].content.array_records[ARRAYS]).on_host()
        return update_length(model.on_host(), before, self.codec.layout)


def update_length(after: Packed, before: Packed, layout: Layout) -> float:
    """Return how far training moved a model: |after - before| over its trainable parameters."""
    return math.sqrt(squared_distance(after.floats, before.floats, layout.parameters))


def draw_clients(round_: int, seed: int, num_clients: int, count: int) -> list[int]:
    """Draw distinct clients, each set and order of them being equally likely.

    Args:
        round_: the round that they are drawn for.
        seed: the seed of the run.
        num_clients: how many there are.
        count: how many are drawn.
    """
    return [int(client) for client in stream(seed, "select", round_).choice(num_clients, count, replace=False)]


def drawable_nodes(grid: Grid, count: int) -> list[int]:
    """Return the nodes that clients can be drawn from, in a stable order.

    Raises:
        ConfigError: there are fewer than `count`.
    """
    nodes = list(grid.get_node_ids())
    if len(nodes) < count:
        raise ConfigError(
            f"clients-per-round is {count} but only {len(nodes)} clients are connected; "
            "lower clients-per-round or start more clients"
        )
    # Flower keeps its nodes in a set; a RosterGrid returns them in the order of their clients' numbers.
    return nodes if isinstance(grid, RosterGrid) else sorted(nodes)


def plain_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return those metrics that are a single number; an integer of more than 64 bits is none."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
    }


def mean_metrics(replies: Iterable[Reply]) -> dict[str, float]:
    """Average the metrics that all clients returned, weighted by their examples."""
    trained = list(replies)
    weights = np.array([reply.examples for reply in trained])
    names = sorted(set.intersection(*(set(reply.metrics) for reply in trained)))
    with np.errstate(all="ignore"):  # a client may send any number, and it is the client's to say what it means
        return {
            name: float(np.array([reply.metrics[name] for reply in trained]) @ weights / weights.sum())
            for name in names
        }
