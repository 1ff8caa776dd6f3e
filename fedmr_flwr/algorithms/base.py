"""The base of all algorithms: which clients are drawn, which models they get, and how the trained ones are combined.

An algorithm sees vectors and numbers. The conversion of models to messages, the assignment of replies to slots, and
the methods that Flower requires of a strategy are in this file.
"""

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fedmr_flwr.algorithms.contract import Combined, NoState, Plan, Reply, Round, S, Slot, StateArrays
from fedmr_flwr.algorithms.metrics import mean_metrics, plain_numbers
from fedmr_flwr.algorithms.wrappers import refuse_unfit
from fedmr_flwr.config import options as own_options
from fedmr_flwr.config.sections import Section
from fedmr_flwr.core.layout import Floats, Layout, Packed
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.core.recombination import Parts
from fedmr_flwr.errors import ConfigError, OptionError
from fedmr_flwr.training.rules import LocalRule
from fedmr_flwr.wire.checks import Judged
from fedmr_flwr.wire.checks import judge as judge_replies
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.grids.roster import RosterGrid, known_examples
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
from fedmr_flwr.wire.strategy import ServerStrategy

# What a global model is encoded as: a record, or the classic API's parameters.
E = TypeVar("E")


class Algorithm(ServerStrategy[Reply], Generic[S]):
    """A Flower strategy that sends one of its K models to each of M clients in every round.

    The i-th slot of a round is sent to the i-th drawn client, and clients are drawn in random order, so the pairing
    of slots and clients is random. A subclass returns the models to send and combines the trained ones; it
    assigns only attributes that can be computed again from the layout.

    Args:
        clients_per_round: M, the number of clients drawn in a round.
        seed: the seed of the run.
        layout: of the models, if they are sent packed; None for records with one array per tensor, such as
            `ArrayRecord(model.state_dict())`, from which the layout is then derived.
        wire: the type in which packed floats are sent, see `Codec`.
        guard: reject a trained model that moved more than `guard` times as far as the round's median, in its
            trainable parameters or in its buffers, each by its own measure, or that has a negative variance; None
            accepts all.
        **options: the algorithm's own options: the fields of the type of its attribute `options`.

    Attributes:
        options: the algorithm's own, with all defaults. A subclass declares their type: `options: FedMROptions`.
        state: kept from round to round; set before the first one.
        diagnostics: of the latest round.

    Raises:
        ConfigError: an argument is unknown, its value is wrong, or the model cannot be used.

    `Rule` is the local rule of its clients; `averages_one_model` is whether all clients train the global model and
    the new one is the mean of theirs; `accepts_device_models` is whether `models` and `combine` accept models on a
    GPU, as in the one-GPU engine. Otherwise they get NumPy vectors.
    """

    options: Section
    Rule: ClassVar[type[LocalRule]] = LocalRule
    averages_one_model: ClassVar[bool] = True
    # Shown by `help`: the constructor itself has only **options.
    __signature__: ClassVar[inspect.Signature]

    state: S

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        # Set for each class, because `inspect` reads it there; the options differ between algorithms.
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
            raise OptionError("clients_per_round", f"it is {clients_per_round}, but must be at least 1")
        if wire not in ("float32", "float16"):
            raise OptionError("wire", f"it is {wire!r}, but must be float32 or float16")
        if wire != "float32" and layout is None:
            raise OptionError("wire", f"it is {wire!r}, but only packed models are converted; pass their layout, too")
        if guard is not None and not guard > 1:
            raise OptionError("guard", f"it is {guard}, but must be greater than 1")
        self.clients_per_round = clients_per_round
        self.seed = seed
        self.guard = guard
        self.options = own_options.validate_arguments(type(self), options)
        self.diagnostics = {}
        self._codec: Codec | None = None
        self._infers_layout = layout is None
        self._plan: Plan | None = None
        self._records: Sequence[ArrayRecord] = ()  # of the slots
        self._sent: dict[int, Message] = {}  # by client
        if layout is not None:
            self._codec = Codec(layout, wire=wire)
            self.begin(layout)

    @property
    def slots(self) -> int:
        """K, the number of models: by default one for each client of a round."""
        return self.clients_per_round

    @property
    def codec(self) -> Codec:
        """The conversion of models to records; known as soon as the first model is."""
        assert self._codec is not None
        return self._codec

    # The contract: methods that an algorithm overrides.

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

        A client that is drawn twice trains once, and its reply is used for both slots.
        """
        return draw_clients(round.number, self.seed, round.num_clients, self.clients_per_round)

    @abstractmethod
    def models(self, round: Round) -> Sequence[Packed | Parts]:
        """Return the model of every slot; the same object in several slots is encoded once."""

    @abstractmethod
    def combine(self, round: Round, slots: Sequence[Slot]) -> Combined[S]:
        """Return the new global model and state; at least one slot has a good reply."""

    def sends(self) -> Mapping[str, Floats]:
        """Return the vectors to send to every client of a round besides the model, by name."""
        return {}

    def returns(self) -> Mapping[str, int]:
        """Return the names and lengths of the vectors that every client must return besides the model."""
        return {}

    def reset(self) -> S | None:
        """Return the state to use once all clients have restarted from zero.

        Called when some clients have lost their state. None: the others can continue with theirs.
        """
        return None

    # The two halves of a round without messages: the classic API uses them, too.

    def plan(self, round: Round) -> Plan:
        """Draw a round's clients and slots, and compute the models."""
        drawn = self.clients(round)
        clients: list[int | None] = [None] * self.slots
        # Not strict: an algorithm may draw fewer clients than it has slots.
        for slot, client in zip(self._draw_slots(round), drawn, strict=False):
            clients[slot] = client
        models = tuple(self.models(round))
        if len(models) != self.slots:
            raise ConfigError(f"{type(self).__name__}.models returned {len(models)} models, expected {self.slots}")
        return Plan(round, tuple(clients), models)

    def finish(self, plan: Plan, slots: Sequence[Slot], encode: Callable[[Packed], E]) -> E:
        """Combine a round's slots, keep the state, and return the global model, encoded."""
        combined = self.combine(plan.round, slots)
        # First of all: after an error the state is still that of the round before.
        encoded = encode(combined.model)
        self.state, self.diagnostics = combined.state, combined.diagnostics
        return encoded

    def _draw_slots(self, round: Round) -> list[int]:
        """Draw the slots to train, if there are more of them than clients in a round."""
        if self.slots == self.clients_per_round:
            return list(range(self.slots))
        drawn = round.stream("slots").choice(self.slots, self.clients_per_round, replace=False)
        # Sorted, because the order of the clients is already random.
        return sorted(drawn.tolist())

    def begin(self, layout: Layout) -> None:
        """Prepare the first round of models with a layout; forget the state of an earlier run."""
        self.state = self.init(layout, self.slots)

    # The state in checkpoints.

    def save(self) -> StateArrays:
        """Return the state by name, without the global model."""
        return self.state.arrays()

    def restore(self, arrays: StateArrays) -> None:
        """Continue from the result of an earlier `save`."""
        # Also for a stored state, because `init` computes what the algorithm needs of the layout.
        fresh = self.init(self.codec.layout, self.slots)
        self.state = fresh.from_arrays(arrays) if arrays else fresh

    def reset_clients(self) -> bool:
        """Reset the state if the algorithm requires it after a loss of client state; return whether it did."""
        state = self.reset()
        if state is None:
            return False
        self.state = state
        return True

    # Flower's methods.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Draw the round's clients and build a new message for each of them."""
        if not self.averages_one_model or self.Rule.exchanges:
            refuse_unfit(self)
        self._plan, self._records, self._sent = None, (), {}  # frees M models
        # An object may be used for several runs: each begins without the state of the one before.
        if self._codec is None or server_round == 1:
            # Under another loop than ours the first model is the only source of the layout.
            if self._infers_layout:
                self._codec = Codec.infer(arrays)
            self.begin(self.codec.layout)
        nodes = drawable_nodes(grid, self.clients_per_round)
        examples = grid.examples if isinstance(grid, RosterGrid) else None
        self._stated, self._counted = known_examples(grid)
        self._plan = plan = self.plan(
            Round(server_round, self.seed, self.codec.layout, len(nodes), examples, lambda: self._decode(arrays))
        )
        # By identity: comparing models by value would read all of them.
        encoded: dict[int, ArrayRecord] = {}
        if "global_model" in vars(plan.round):
            # An unchanged global model is sent as the record that it came in.
            encoded[id(plan.round.global_model)] = arrays
        for model in plan.models:
            if id(model) not in encoded:
                encoded[id(model)] = self.codec.encode(model)
        self._records = [encoded[id(model)] for model in plan.models]
        common: dict[str, ArrayRecord | ConfigRecord] = {CONFIG: ConfigRecord({**config, ROUND: server_round})}
        common |= {name: vector_record(values) for name, values in self.sends().items()}
        if returns := self.returns():
            common[RETURNS] = ConfigRecord({**returns})
        for client, record in zip(plan.clients, self._records, strict=True):
            if client is not None and client not in self._sent:
                content = RecordDict({ARRAYS: record, **common})
                self._sent[client] = Message(content, nodes[client], MessageType.TRAIN)
        return list(self._sent.values())

    def judge(self, replies: Iterable[Message]) -> Judged[Reply]:
        """Check the replies to the latest messages, and decode the good ones."""
        judged = judge_replies(self._sent, replies, self._stated)
        good = {client: self._read(client, message.content) for client, message in judged.good.items()}
        return self._screen(Judged(good, judged.failures, judged.lost_state), lambda reply: reply.model)

    def aggregate(self, server_round: int, judged: Judged[Reply]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the good replies to the latest messages; (None, None) if there is none."""
        plan, records = self._plan, self._records
        self._plan, self._records, self._sent = None, (), {}  # frees M models
        if plan is None or not judged.good:
            return None, None
        # Decoded from the record that was sent: a slot without a reply keeps the rounding of the wire.
        slots = plan.results(judged.good, lambda slot: self._decode(records[slot]))
        encoded = self.finish(plan, slots, self.codec.encode)
        numbers = {name: value for name, value in self.diagnostics.items() if isinstance(value, float)}
        return encoded, MetricRecord({**mean_metrics(judged.good.values()), **numbers})

    def start(self, grid: Grid, *args: Any, **kwargs: Any) -> Result:
        """Run the strategy on a grid, as Flower's `Strategy.start`, with clients in a stable order."""
        if not isinstance(grid, RosterGrid):
            # Flower's own Grid returns its nodes from a set, in an order that differs between runs.
            grid = RosterGrid(grid, at_least=self.clients_per_round)
        return super().start(grid, *args, **kwargs)

    def _decode(self, record: ArrayRecord) -> Packed:
        model = self.codec.decode(record)
        return model if self.accepts_device_models else model.on_host()

    def _read(self, client: int, content: RecordDict) -> Reply:
        metrics = plain_numbers(content.metric_records[METRICS])
        model = self._decode(content.array_records[ARRAYS])
        # A flag for the server, not a metric to average.
        metrics.pop(LOST_STATE, None)
        stated = metrics.pop(EXAMPLES)
        return Reply(model, self._counted.get(client, stated), metrics, vectors(content, self.returns()))


def draw_clients(round_: int, seed: int, num_clients: int, count: int) -> list[int]:
    """Draw distinct clients; each set and order of them is equally likely.

    Args:
        round_: the round.
        seed: the seed of the run.
        num_clients: the number of clients.
        count: the number to draw.
    """
    return [int(client) for client in stream(seed, "select", round_).choice(num_clients, count, replace=False)]


def drawable_nodes(grid: Grid, count: int) -> list[int]:
    """Return the nodes from which clients are drawn, in a stable order.

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
