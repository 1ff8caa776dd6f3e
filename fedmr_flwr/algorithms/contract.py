"""The data that an algorithm and its base class exchange: a round, its slots and their combination."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedmr_flwr.core.layout import Floats, Layout, Packed
from fedmr_flwr.core.randomness import stream

StateArrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Round:
    """The information about a round that an algorithm may use before its clients train.

    Attributes:
        number: 1 for the first.
        seed: the seed of the run.
        layout: of the models.
        num_clients: N, the number of clients that can be drawn.
        examples: [N], the number of examples of each client; None if not all clients have stated theirs.
        global_model: the model after the previous round.
    """

    number: int
    seed: int
    layout: Layout
    num_clients: int
    examples: NDArray[np.int64] | None
    # A function, because an algorithm that sends its own models never needs the global one decoded.
    decode: Callable[[], Packed] = field(repr=False)

    # Cached, so that all slots that send it send the same object, which is encoded once.
    @cached_property
    def global_model(self) -> Packed:
        """Decoded when it is first read; returned unchanged, it is sent as the record that it came in."""
        return self.decode()

    def stream(self, purpose: str) -> np.random.Generator:
        """Return the round's random stream of a purpose."""
        return stream(self.seed, purpose, self.number)


@dataclass(frozen=True)
class Reply:
    """A client's good reply.

    Attributes:
        model: the trained model.
        examples: the number of examples that it was trained on, or another weight.
        metrics: the client's numbers and lists of numbers, by name.
        vectors: further vectors, by name: those that `Algorithm.returns` lists.
    """

    model: Packed
    examples: float
    metrics: Mapping[str, float | list[float]] = field(default_factory=dict)
    vectors: Mapping[str, Floats] = field(default_factory=dict)


@dataclass(frozen=True)
class Slot:
    """One of the K models in a round.

    Attributes:
        client: the client that trained it; None if it was not trained in this round.
        reply: the client's good reply; None if there is none.
        sent: the model as the client decoded it, with the rounding of the wire.
    """

    client: int | None
    reply: Reply | None
    decode: Callable[[], Packed] = field(repr=False)

    @cached_property
    def sent(self) -> Packed:
        """Decoded when it is first read."""
        return self.decode()


class State(Protocol):
    """The state that an algorithm keeps from round to round: a small frozen dataclass."""

    def arrays(self) -> StateArrays:
        """Return its contents by name; empty for a state from before the first round."""

    @classmethod
    def from_arrays(cls, arrays: StateArrays) -> Self:
        """Restore the state from the result of `arrays`."""


@dataclass(frozen=True)
class NoState:
    """The state of an algorithm that keeps nothing."""

    def arrays(self) -> StateArrays:
        """Return an empty mapping."""
        return {}

    @classmethod
    def from_arrays(cls, arrays: StateArrays) -> Self:
        """Restore the state."""
        return cls()


S = TypeVar("S", bound=State)


@dataclass(frozen=True)
class Combined(Generic[S]):
    """The result of combining a round's slots.

    Attributes:
        model: the new global model.
        state: the new state.
        diagnostics: numbers and lists for the metrics of the round, by name, in JSON types.
    """

    model: Packed
    state: S
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
