"""The server of sealed recombination: it deals units that it cannot read, as FedMR or Indep deals theirs.

Recombination only moves units, so the server needs no key. Who is drawn, for which slot, and where each unit goes
follow from the seed, as in the run that is not sealed; a client computes the same, and so notices a unit that does
not come from where it should. What needs arithmetic, the mean and its scores, is for those who have the key.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedmr_flwr.algorithms.contract import StateArrays
from fedmr_flwr.algorithms.metrics import mean_metrics, plain_numbers
from fedmr_flwr.core.dealing import Dealing
from fedmr_flwr.core.recombination import Sources, gather
from fedmr_flwr.wire.checks import Judged, judge
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.grids.roster import drawable_nodes, known_examples
from fedmr_flwr.wire.messages import ARRAYS, CONFIG, EXAMPLES, LOST_STATE, METRICS, ROUND
from fedmr_flwr.wire.sealed import (
    DEALT,
    SEALED,
    SKIPPED,
    START,
    WEIGHTS,
    Piece,
    SealedCodec,
    has_untrained,
    hash_initial,
)
from fedmr_flwr.wire.sealing import Origin, origin_of
from fedmr_flwr.wire.strategy import ServerStrategy


@dataclass(frozen=True)
class SealedPopulation:
    """K models of sealed units.

    Attributes:
        models: [K][U], the units of each slot.
        examples: [K], the number of examples that each slot was last trained on; 0 for one that never was.
        dealt: the latest round that counted.
        skipped: the rounds before it that did not: their deals have moved nothing.
    """

    models: Sequence[Sequence[Piece]]
    examples: NDArray[np.float64]
    dealt: int = 0
    skipped: tuple[int, ...] = ()

    def skipped_before(self, number: int) -> tuple[int, ...]:
        """Return the rounds before a round that moved nothing."""
        return (*self.skipped, *range(self.dealt + 1, number))

    def arrays(self) -> StateArrays:
        """Return its contents by name."""
        arrays: dict[str, NDArray[Any]] = {
            "examples": self.examples,
            "dealt": np.array(self.dealt),
            "skipped": np.array(self.skipped, np.int64),
        }
        return arrays | {f"{slot}.sealed": np.concatenate(model) for slot, model in enumerate(self.models)}

    @classmethod
    def from_arrays(cls, arrays: StateArrays, codec: SealedCodec) -> Self:
        """Restore it from the result of `arrays`."""
        examples = arrays["examples"]
        models = [model for slot in range(len(examples)) for model in codec.split(arrays[f"{slot}.sealed"])]
        return cls(models, examples, int(arrays["dealt"]), tuple(arrays["skipped"].tolist()))


@dataclass(frozen=True)
class SealedReply:
    """A client's good reply, still sealed."""

    model: Sequence[Piece]
    examples: float
    metrics: Mapping[str, float | list[float]]


@dataclass(frozen=True)
class _Dealt:
    """A round between its messages and its replies.

    Attributes:
        number: of the round.
        initial: the initial model.
        deal: the source of each unit; None if they stay.
        models: [K][U], the units that each slot was dealt.
        slots: by the client that trains it.
    """

    number: int
    initial: ArrayRecord
    deal: Sources | None
    models: Sequence[Sequence[Piece]]
    slots: Mapping[int, int]


class Sealed(ServerStrategy[SealedReply]):
    """A strategy whose population the server cannot read.

    The global model of the round loop stays the initial one.

    Args:
        dealing: who is drawn, and where each unit goes.
        codec: of the models before they are sealed.
        notice: a line for the user.
        logs: whether every round's metrics contain the source slot of each unit.

    Attributes:
        units: those that are sealed.
        state: the population.
        sealed_codec: of the sealed models.
    """

    def __init__(self, dealing: Dealing, codec: Codec, notice: str | None = None, logs: bool = False) -> None:
        self.units = dealing.units
        self.sealed_codec = SealedCodec(dealing.units, codec.wire)
        self.notice = notice
        self._dealing, self._codec, self._logs = dealing, codec, logs
        self._sent: dict[int, Message] = {}  # by client
        self._dealt: _Dealt | None = None
        self.state = SealedPopulation([self.sealed_codec.untrained()] * self.slots, np.zeros(self.slots))

    @property
    def codec(self) -> Codec:
        """The conversion of the initial model to a record."""
        return self._codec

    @property
    def slots(self) -> int:
        """K, the number of models."""
        return self._dealing.slots

    # A round.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Draw the round's clients, deal the units, and build a message for each client."""
        nodes = drawable_nodes(grid, self._dealing.clients_per_round)
        self._stated, self._counted = known_examples(grid)
        deal, before = self._dealing.sources(server_round), self.state.models
        models = before if deal is None else gather(before, range(len(self.units)), deal)
        slots = {client: at for at, client in enumerate(self._dealing.assign(server_round)) if client is not None}
        self._dealt = _Dealt(server_round, arrays, deal, models, slots)
        told = ConfigRecord({**config, ROUND: server_round, **self._history(arrays, server_round)})
        self._sent = {
            client: Message(
                RecordDict({ARRAYS: self._record([models[slot]], arrays), CONFIG: told}),
                nodes[client],
                MessageType.TRAIN,
            )
            for client, slot in slots.items()
        }
        return list(self._sent.values())

    def judge(self, replies: Iterable[Message]) -> Judged[SealedReply]:
        """Check what can be checked of the replies without the key."""
        assert self._dealt is not None
        number, slots = self._dealt.number, self._dealt.slots
        origins = {id(message): Origin(number, slots[client]) for client, message in self._sent.items()}

        def find_problem(arrays: ArrayRecord, sent: Message) -> tuple[str, str] | None:
            (model,) = self.sealed_codec.split_record(arrays, 1)
            expected = origins[id(sent)]
            if len(arrays) > 1 or any(origin_of(piece.data) != expected for piece in model):
                return "malformed", f"its units are not those of round {expected.round}, slot {expected.slot}, alone"
            return None

        judged = judge(self._sent, replies, self._stated, find_problem)
        good = {client: self._read(client, message.content) for client, message in judged.good.items()}
        return Judged(good, judged.failures, judged.lost_state)

    def aggregate(
        self, server_round: int, judged: Judged[SealedReply]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Put the good replies into the population; the other slots keep the units that they were dealt."""
        dealt, self._dealt, self._sent = self._dealt, None, {}
        if dealt is None or not judged.good:
            return None, None
        models, examples = [*dealt.models], self.state.examples.copy()
        for client, reply in judged.good.items():
            slot = dealt.slots[client]
            models[slot], examples[slot] = reply.model, reply.examples
        self.state = SealedPopulation(models, examples, dealt.number, self.state.skipped_before(dealt.number))
        self.diagnostics = {"slots": sorted(dealt.slots.values())}
        if dealt.deal is not None and self._logs:
            self.diagnostics = {**self.diagnostics, "recombination": dealt.deal.tolist()}
        means = mean_metrics((reply.examples, reply.metrics) for reply in judged.good.values())
        return dealt.initial, MetricRecord({**means})

    def population(self, arrays: ArrayRecord) -> tuple[ArrayRecord, ConfigRecord]:
        """Return all K models, to be scored by who has the key, and what it must know of them.

        Args:
            arrays: the initial model.
        """
        told = {DEALT: self.state.dealt, WEIGHTS: self.state.examples.tolist()}
        return self._record(self.state.models, arrays), ConfigRecord(
            {**self._history(arrays, self.state.dealt), **told}
        )

    def _history(self, arrays: ArrayRecord, number: int) -> dict[str, Any]:
        return {START: hash_initial(arrays), SKIPPED: [*self.state.skipped_before(number)]}

    def _record(self, models: Sequence[Sequence[Piece]], arrays: ArrayRecord) -> ArrayRecord:
        """Return models as a record, with the initial one if some units are still its own."""
        return ArrayRecord({SEALED: self.sealed_codec.join(models), **(arrays if has_untrained(models) else {})})

    def _read(self, client: int, content: RecordDict) -> SealedReply:
        metrics = plain_numbers(content.metric_records[METRICS])
        weight = metrics.pop(EXAMPLES)
        assert isinstance(weight, float)
        metrics.pop(LOST_STATE, None)
        (model,) = self.sealed_codec.split_record(content.array_records[ARRAYS], 1)
        return SealedReply(model, float(self._counted.get(client, weight)), metrics)

    # The rest of a strategy.

    def reset_clients(self) -> bool:
        """Return False: the population does not depend on what clients keep."""
        return False

    def save(self) -> StateArrays:
        """Return the population by name."""
        return self.state.arrays()

    def restore(self, arrays: StateArrays) -> None:
        """Continue from the result of an earlier `save`."""
        self.state = SealedPopulation.from_arrays(arrays, self.sealed_codec)

    def state_bytes(self, clients: int) -> int:
        """Return the bytes of the population."""
        return self.slots * self.sealed_codec.nbytes

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return no message: our own loop asks for scores in its own way."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Return None."""

    def summary(self) -> None:
        """Log nothing: only our own loop, which shows the configuration, uses this strategy."""
