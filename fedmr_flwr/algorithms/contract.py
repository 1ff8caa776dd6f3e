"""What passes between an algorithm and the base of all algorithms: a round, its slots, what is made of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedmr_flwr.core.layout import Floats, Layout, Packed
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.core.recombination import Parts
from fedmr_flwr.wire.checks import Judged
from fedmr_flwr.wire.codec import Codec

StateArrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Round:
    """What an algorithm may know of a round before its clients train.

    Attributes:
        number: 1 for the first.
        seed: the seed of the run.
        layout: of the models.
        num_clients: N, the clients that can be drawn.
        examples: [N] the examples of each client; None if not all of them have stated theirs.
        global_model: the model after the round before.
    """

    number: int
    seed: int
    layout: Layout
    num_clients: int
    examples: NDArray[np.int64] | None
    decode: Callable[[], Packed] = field(repr=False)

    @cached_property
    def global_model(self) -> Packed:
        """Decoded when it is first read; returned unchanged, it goes out as the record that it came in."""
        return self.decode()

    def stream(self, purpose: str) -> np.random.Generator:
        """Return the round's random stream for a purpose."""
        return stream(self.seed, purpose, self.number)


@dataclass(frozen=True)
class Reply:
    """A client's good reply.

    Attributes:
        model: what it trained.
        examples: on how many examples.
        metrics: its numbers by name.
        vectors: what else it returned, by name: those that `Algorithm.returns` names.
    """

    model: Packed
    examples: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    vectors: Mapping[str, Floats] = field(default_factory=dict)


@dataclass(frozen=True)
class Slot:
    """One of the K models in a round.

    Attributes:
        client: who trained it; None if nobody did in this round.
        reply: what came back; None if nothing good did.
        sent: the model as the client decodes it, with the rounding of the wire.
    """

    client: int | None
    reply: Reply | None
    decode: Callable[[], Packed] = field(repr=False)

    @cached_property
    def sent(self) -> Packed:
        """Decoded when it is first read."""
        return self.decode()


class State(Protocol):
    """What an algorithm keeps from round to round: a small frozen dataclass."""

    def arrays(self) -> StateArrays:
        """Return everything in it by name; nothing for a state from before the first round."""

    @classmethod
    def from_arrays(cls, arrays: StateArrays) -> Self:
        """Make the state again of what `arrays` returned."""


@dataclass(frozen=True)
class NoState:
    """The state of an algorithm that keeps nothing."""

    def arrays(self) -> StateArrays:
        """Return nothing."""
        return {}

    @classmethod
    def from_arrays(cls, arrays: StateArrays) -> Self:
        """Make it again."""
        return cls()


S = TypeVar("S", bound=State)


@dataclass(frozen=True)
class Combined(Generic[S]):
    """What an algorithm makes of a round.

    Attributes:
        model: the new global model.
        state: what it keeps.
        diagnostics: what is worth knowing of the round, by name, as JSON has it.
    """

    model: Packed
    state: S
    diagnostics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A round as an algorithm wants it.

    Attributes:
        round: its number and what else is known.
        clients: who trains each of the K slots; None: nobody in this round.
        models: the model of each slot.
    """

    round: Round
    clients: tuple[int | None, ...]
    models: Sequence[Packed | Parts]

    def results(self, replies: Mapping[int, Reply], decode: Callable[[int], Packed]) -> list[Slot]:
        """Return the slots after training.

        Args:
            replies: the good ones by client.
            decode: returns the model of a slot as its client decoded it.
        """

        def slot(at: int, client: int | None) -> Slot:
            return Slot(client, None if client is None else replies.get(client), lambda: decode(at))

        return [slot(at, client) for at, client in enumerate(self.clients)]


T = TypeVar("T")


class ServerStrategy(Protocol[T]):
    """What the server's loop asks of a strategy: the steps of a round one by one, and what survives the process."""

    @property
    def codec(self) -> Codec:
        """How models become records."""

    @property
    def slots(self) -> int:
        """K, the number of models."""

    @property
    def accepts_device_models(self) -> bool:
        """Whether it computes with models that lie on a GPU."""

    @property
    def diagnostics(self) -> Mapping[str, Any]:
        """What is worth knowing of the latest round."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return the messages of a round, one to a client."""

    def judge(self, replies: Iterable[Message]) -> Judged[T]:
        """Sort the good replies to them from the others."""

    def aggregate(self, server_round: int, judged: Judged[T]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Make the new global model of the good replies."""

    def reset_clients(self) -> bool:
        """Reset the state, if it is only right together with every client's; return whether it was."""

    def save(self) -> StateArrays:
        """Return what must be kept between rounds."""

    def restore(self, arrays: StateArrays) -> None:
        """Continue from what an earlier `save` returned."""
