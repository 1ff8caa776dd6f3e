"""The base of all algorithms: which clients are drawn, which models they get, and how the trained ones are combined.

An algorithm sees vectors and numbers. The conversion of models to messages, the assignment of replies to slots, and
the methods that Flower requires of a strategy are in this file.
"""

import inspect
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedmr_flwr.algorithms.contract import Combined, NoState, Reply, Round, S, Slot, StateArrays
from fedmr_flwr.algorithms.evaluation import ClientEvaluation, mean_records
from fedmr_flwr.algorithms.metrics import mean_metrics, plain_numbers
from fedmr_flwr.algorithms.plan import Plan
from fedmr_flwr.algorithms.wrappers import refuse_unfit
from fedmr_flwr.config import options as own_options
from fedmr_flwr.config.sections import Section
from fedmr_flwr.core.drawing import draw_clients, draw_slots
from fedmr_flwr.core.layout import Floats, Layout, Packed
from fedmr_flwr.core.recombination import Parts
from fedmr_flwr.errors import ConfigError, OptionError
from fedmr_flwr.training.rules import LocalRule
from fedmr_flwr.wire.checks import Judged, without_outliers
from fedmr_flwr.wire.checks import judge as judge_replies
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.flower.simulation import is_simulation
from fedmr_flwr.wire.foreign import judge_foreign
from fedmr_flwr.wire.grids.roster import RosterGrid, await_nodes, known_examples
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

# How much further than models the vectors beside them may differ: those of honest clients with few examples are
# twenty times as long as the median.
_VECTORS = 10
# What a global model is encoded as: a record, or the classic API's parameters.
E = TypeVar("E")
MetricsFn = Callable[[list[RecordDict], str], MetricRecord]
# In a saved state, besides the algorithm's own: the completed rounds, and the clients of a round.
_ROUNDS, _CLIENTS = "strategy.rounds", "strategy.clients"
# Flower's, which shows lines at this level.
_log = logging.getLogger("flwr")


class Algorithm(ServerStrategy[Reply], ClientEvaluation, Generic[S]):
    """A Flower strategy that sends one of its K models to each of M clients in every round.

    The i-th slot of a round is sent to the i-th drawn client, and clients are drawn in random order, so the pairing
    of slots and clients is random. A subclass returns the models to send and combines the trained ones; it
    assigns only attributes that can be computed again from the layout.

    Args:
        clients_per_round: M, the number of clients drawn in a round; None: `fraction_train` of those that are
            connected before the first round, and at least `min_train_nodes`. M then stays.
        seed: the seed of the run.
        layout: of the models, if they are sent packed; None for records with one array per tensor, such as
            `ArrayRecord(model.state_dict())`, from which the layout is then derived.
        wire: the type in which packed floats are sent, see `Codec`.
        guard: reject a trained model that moved more than `guard` times as far as the round's median, in its
            trainable parameters or in its buffers, each by its own measure, or that has a negative variance; None
            accepts all.
        fraction_train: see `clients_per_round`; this and the following are those of Flower's FedAvg.
        fraction_evaluate: the share of the clients that evaluate the global model after a round.
        min_train_nodes: see `clients_per_round`.
        min_evaluate_nodes: the least number of clients that evaluate, if so many are connected.
        min_available_nodes: the number of clients to wait for before each round; None: 2, or `clients_per_round` if
            that is 1.
        weighted_by_key: the metric by which a client's reply is weighted.
        arrayrecord_key: the name of the model's record in messages.
        configrecord_key: the name of the configuration's record in messages.
        train_metrics_aggr_fn: combines the metrics of training; None: their weighted means.
        evaluate_metrics_aggr_fn: combines the metrics of evaluation; None: their weighted means.
        **options: the algorithm's own options: the fields of the type of its attribute `options`.

    Attributes:
        options: the algorithm's own, with all defaults. A subclass declares their type: `options: FedMROptions`.
        state: kept from round to round; set before the first one.
        diagnostics: of the latest round.

    Raises:
        ConfigError: an argument is unknown, its value is wrong, or the model cannot be used.

    `Rule` is the local rule of its clients; `averages_one_model` is whether all clients train the global model and
    the new one is the mean of theirs; `guarded` are the vectors of `returns` whose length the guard limits, to ten
    times what it accepts of a model; `accepts_device_models` is whether `models` and `combine` accept models on a
    GPU, as in the one-GPU engine. Otherwise they get NumPy vectors.
    """

    options: Section
    Rule: ClassVar[type[LocalRule]] = LocalRule
    averages_one_model: ClassVar[bool] = True
    guarded: ClassVar[tuple[str, ...]] = ()
    # Shown by `help`: the constructor itself has only **options.
    __signature__: ClassVar[inspect.Signature]

    state: S

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        # Set for each class, because `inspect` reads it there; the options differ between algorithms.
        cls.__signature__ = own_options.signature(cls, cls.__init__, Algorithm.__init__)

    def __init__(
        self,
        *positional: Any,
        clients_per_round: int | None = None,
        seed: int = 0,
        layout: Layout | None = None,
        wire: str = "float32",
        guard: float | None = None,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int | None = None,
        weighted_by_key: str = EXAMPLES,
        arrayrecord_key: str = ARRAYS,
        configrecord_key: str = CONFIG,
        train_metrics_aggr_fn: MetricsFn | None = None,
        evaluate_metrics_aggr_fn: MetricsFn | None = None,
        **options: Any,
    ) -> None:
        if positional:  # the constructor that Python would name is that of a base
            name = type(self).__name__
            raise TypeError(f"{name} takes its arguments by name, such as {name}(clients_per_round=10)")
        if clients_per_round is not None and not (isinstance(clients_per_round, int) and clients_per_round > 0):
            raise OptionError("clients_per_round", f"it is {clients_per_round}, but must be a whole number from 1")
        for name, share in (("fraction_train", fraction_train), ("fraction_evaluate", fraction_evaluate)):
            if not 0 <= share <= 1:
                raise OptionError(name, f"it is {share}, but must be from 0 to 1")
        if wire not in ("float32", "float16"):
            raise OptionError("wire", f"it is {wire!r}, but must be float32 or float16")
        if wire != "float32" and layout is None:
            raise OptionError("wire", f"it is {wire!r}, but only packed models are converted; pass their layout, too")
        if guard is not None and not guard > 1:
            raise OptionError("guard", f"it is {guard}, but must be greater than 1")
        ClientEvaluation.__init__(
            self,
            fraction_train=fraction_train,
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=min_train_nodes,
            min_evaluate_nodes=min_evaluate_nodes,
            min_available_nodes=min(2, clients_per_round or 2)
            if min_available_nodes is None
            else min_available_nodes,
            weighted_by_key=weighted_by_key,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
            train_metrics_aggr_fn=train_metrics_aggr_fn or mean_records,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn or mean_records,
        )
        self._given_clients = self._clients_per_round = clients_per_round
        self.seed = seed
        self.guard = guard
        self.options = own_options.validate_arguments(type(self), options)
        self.diagnostics = {}
        self._codec: Codec | None = None
        self._infers_layout = layout is None
        self._plan: Plan | None = None
        self._records: Sequence[ArrayRecord] = ()  # of the slots
        self._sent: dict[int, Message] = {}  # by client
        self._contents: dict[int, RecordDict] = {}  # of the good replies, by client
        self._completed = self._offset = 0  # rounds, and those before the latest `start`
        self._latest: ArrayRecord | None = None  # the latest global model
        self._restored: StateArrays | None = None  # to continue from when the layout is known
        self._continues = False  # whether the next first round continues from a restored state
        if layout is not None:
            self._codec = Codec(layout, wire=wire)
            if clients_per_round is not None:
                self.begin(layout)

    @property
    def clients_per_round(self) -> int:
        """M, the number of clients drawn in a round.

        Raises:
            ConfigError: it follows from the connected clients, and no round has begun.
        """
        if self._clients_per_round is None:
            raise ConfigError("the clients of a round are known when the first one begins; pass clients_per_round")
        return self._clients_per_round

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
        count = min(self.clients_per_round, round.num_clients)
        return draw_clients(round.number, self.seed, round.num_clients, count)

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
        for slot, client in zip(draw_slots(round.number, round.seed, self.slots, len(drawn)), drawn, strict=True):
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

    def settle(self, clients: int) -> None:
        """Fix M, if it follows from the number of connected clients."""
        self._clients_per_round = clients

    def begin(self, layout: Layout) -> None:
        """Prepare the first round of models with a layout; forget the state of an earlier run."""
        self._completed = self._offset = 0
        self.state = self.init(layout, self.slots)

    # The state in checkpoints.

    def save(self) -> StateArrays:
        """Return the state by name, without the global model.

        It can be written with `np.savez`, and leads on with `restore` in another object.
        """
        arrays = self.state.arrays()
        if not self._infers_layout:  # the round loop knows the rest
            return arrays
        return {**arrays, _ROUNDS: np.array(self._completed), _CLIENTS: np.array(self.clients_per_round)}

    def restore(self, arrays: StateArrays) -> None:
        """Continue from the result of an earlier `save`."""
        own = dict(arrays)
        self._continues = True
        if not self._infers_layout:
            self._continue_from(own)
            return
        self._completed = int(own.pop(_ROUNDS))
        clients = int(own.pop(_CLIENTS))
        if self._given_clients is None:
            self.settle(clients)
        self._codec, self._restored = None, own  # until the global model states the layout

    def _continue_from(self, arrays: StateArrays) -> None:
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

    def nodes(self, grid: Grid, least: int, first: bool = False) -> list[int]:
        """Wait until at least `least` nodes are connected, and return them in a stable order."""
        return await_nodes(grid, least, first)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Draw the round's clients and build a new message for each of them."""
        if not self.averages_one_model or self.Rule.exchanges:
            refuse_unfit(self)
        self._plan, self._records, self._sent, self._contents = None, (), {}, {}  # frees M models
        if self._given_clients is None and self.fraction_train == 0.0:
            return []
        # Under another loop than ours the first model is the only source of the layout.
        begins = self._codec is None or server_round == 1
        least = (self._given_clients or self.min_train_nodes) if begins else 0
        nodes = self.nodes(grid, max(least, self.min_available_nodes), begins)
        if begins:
            self._begin_round(server_round, arrays, len(nodes))
            if self._infers_layout and not _is_numbered(grid):
                _log.info(
                    "the seed fixes which client trains which model, by the order in which the nodes registered; a "
                    "SuperLink that is started again may have another order"
                )
        examples = grid.examples if isinstance(grid, RosterGrid) else None
        self._stated, self._counted = known_examples(grid)
        number = server_round + self._offset
        self._plan = plan = self.plan(
            Round(number, self.seed, self.codec.layout, len(nodes), examples, lambda: self._decode(arrays))
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
        told = ConfigRecord({**config, ROUND: server_round})
        common: dict[str, ArrayRecord | ConfigRecord] = {self.configrecord_key: told}
        common |= {name: vector_record(values) for name, values in self.sends().items()}
        if returns := self.returns():
            common[RETURNS] = ConfigRecord({**returns})
        for client, record in zip(plan.clients, self._records, strict=True):
            if client is not None and client not in self._sent:
                content = RecordDict({self.arrayrecord_key: record, **common})
                self._sent[client] = Message(content, nodes[client], MessageType.TRAIN)
        if self._infers_layout:  # as Flower does; `fedmr run` shows its rounds in its own way
            _log.info("configure_train: Sampled %s nodes (out of %s)", len(self._sent), len(nodes))
        return list(self._sent.values())

    def judge(self, replies: Iterable[Message]) -> Judged[Reply]:
        """Check the replies to the latest messages, and decode the good ones."""
        judged: Judged[Reply]
        if self._infers_layout:
            found = judge_foreign(self._sent, replies, self.arrayrecord_key, self.weighted_by_key)
            self._contents = {client: answer.original for client, answer in found.good.items()}
            good = {client: self._read(client, answer.content) for client, answer in found.good.items()}
            judged = Judged(good, found.failures, found.lost_state)
        else:
            packed = judge_replies(self._sent, replies, self._stated)
            self._contents = {client: message.content for client, message in packed.good.items()}
            good = {client: self._read(client, message.content) for client, message in packed.good.items()}
            judged = Judged(good, packed.failures, packed.lost_state)
        if self.guard is not None:
            for name in self.guarded:
                vectors_of = [reply.vectors[name].astype(float) for reply in judged.good.values()]
                lengths = [float(np.linalg.norm(vector)) for vector in vectors_of]
                judged = without_outliers(judged, lengths, _VECTORS * self.guard, f"its '{name}' is")
        return self._screen(judged, lambda reply: reply.model)

    def aggregate(self, server_round: int, judged: Judged[Reply]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the good replies to the latest messages; (None, None) if there is none."""
        plan, records, contents = self._plan, self._records, self._contents
        self._plan, self._records, self._sent, self._contents = None, (), {}, {}  # frees M models
        if plan is None or not judged.good:
            return None, None
        # Decoded from the record that was sent: a slot without a reply keeps the rounding of the wire.
        slots = plan.results(judged.good, lambda slot: self._decode(records[slot]))
        encoded = self.finish(plan, slots, self.codec.encode)
        self._completed = plan.round.number
        if self._infers_layout:
            self._latest = encoded
        if self.train_metrics_aggr_fn is mean_records:
            means = mean_metrics((reply.examples, reply.metrics) for reply in judged.good.values())
            metrics = MetricRecord({**means})
        else:
            metrics = self.train_metrics_aggr_fn([contents[client] for client in judged.good], self.weighted_by_key)
        # A client's own metric of such a name is the one that its author looks for.
        numbers = {name: value for name, value in self.diagnostics.items() if isinstance(value, float)}
        return encoded, MetricRecord({**numbers, **metrics})

    def _begin_round(self, server_round: int, arrays: ArrayRecord, nodes: int) -> None:
        """Prepare the first round of a `start`, which begins a training or continues one."""
        continues, self._continues = self._continues or self._is_latest(arrays), False
        if self._infers_layout:
            self._codec = Codec.infer(arrays)
            # Without what a rule exchanges, replies are refused, with the reason.
            if self.Rule is not LocalRule and not self.Rule.exchanges:
                _log.warning(
                    "clients of %s train by a rule of its own, %s, which only `fedmr run` gives them: those of this "
                    "app must have it themselves, or train as under FedAvg",
                    type(self).__name__, self.Rule.__name__,
                )  # fmt: skip
        if not continues:
            if self._given_clients is None:
                self.settle(min(max(int(nodes * self.fraction_train), self.min_train_nodes), nodes))
                _log.info(
                    "configure_train: %s clients and %s models in each round", self.clients_per_round, self.slots
                )
            self.begin(self.codec.layout)
            return
        if self._restored is not None:
            self._continue_from(self._restored)
            self._restored = None
        # The round's number in all of the training: with it, clients and permutations are drawn.
        self._offset = self._completed + 1 - server_round
        _log.info("configure_train: the training continues after %s rounds", self._completed)

    def _is_latest(self, arrays: ArrayRecord) -> bool:
        """Return whether a global model is the result of the latest round."""
        return self._latest is not None and dict(self._latest) == dict(arrays)

    def _decode(self, record: ArrayRecord) -> Packed:
        model = self.codec.decode(record)
        return model if self.accepts_device_models else model.on_host()

    def _read(self, client: int, content: RecordDict) -> Reply:
        metrics = plain_numbers(content.metric_records[METRICS])
        weight = metrics.pop(self.weighted_by_key)
        assert isinstance(weight, float)
        model = self._decode(content.array_records[ARRAYS])
        # A flag for the server, not a metric to average.
        metrics.pop(LOST_STATE, None)
        return Reply(model, float(self._counted.get(client, weight)), metrics, vectors(content, self.returns()))


def _is_numbered(grid: Grid) -> bool:
    """Return whether the order of a Grid's nodes is that of their partitions."""
    return is_simulation(grid) or (isinstance(grid, RosterGrid) and grid.numbered)
