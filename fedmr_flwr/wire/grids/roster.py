"""`RosterGrid`: a Flower Grid with a stable order of clients and counts of the bytes that it sends and receives."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedmr_flwr.errors import ConfigError
from fedmr_flwr.wire.checks import UNKNOWN_CLIENT
from fedmr_flwr.wire.flower.nodes import in_order_of_registration
from fedmr_flwr.wire.flower.simulation import is_simulation
from fedmr_flwr.wire.grids.attendance import Attendance, wait_for_nodes
from fedmr_flwr.wire.grids.wrapped import WrappedGrid
from fedmr_flwr.wire.npy import size

# Seconds until a simulation has started its nodes, and until one of them is followed by the next.
_SIMULATION_SECONDS, _STARTING_SECONDS = 120.0, 0.2


@dataclass(frozen=True)
class Exchange:
    """The messages and replies of a round, before the replies are checked.

    Attributes:
        replies: in the order of the messages; replies to other messages are last.
        clients: the number of each message's client.
        offline: the clients whose nodes are not connected, to which nothing was sent.
        bytes_down: bytes of all arrays that were sent, by the name of their record.
        bytes_up: bytes of all arrays that were received, including those of rejected replies.
    """

    replies: tuple[Message, ...]
    clients: tuple[int, ...]
    offline: frozenset[int]
    bytes_down: Mapping[str, int]
    bytes_up: Mapping[str, int]


class RosterGrid(WrappedGrid):
    """Wraps any Grid and returns its nodes in a stable order.

    Node identifiers are random in every run of Flower; here nodes are in the order of the clients' numbers, so that
    the same seed draws the same clients.

    Args:
        grid: the Grid that sends the messages.
        clients: the number of clients; the Grid waits for them and queries their numbers, which must be
            0..clients-1. None: the nodes that are connected at any time, in the order of their registration.
        at_least: the number of nodes to wait for if `clients` is None.
        min_clients: the number of clients that must be connected before the first round; None if all connect and
            stay, as in a simulation.
        patience: seconds to wait for nodes.
        query: sent when the clients' numbers are queried, so that clients can check that they have everything
            the run needs.
        report: called with a line while clients are missing.

    Raises:
        RunError: the clients do not connect in time, or do not have the numbers 0..clients-1.
    """

    def __init__(
        self,
        grid: Grid,
        clients: int | None = None,
        *,
        at_least: int = 1,
        min_clients: int | None = None,
        patience: float = 120.0,
        query: ConfigRecord | None = None,
        report: Callable[[str], None] = lambda _: None,
        sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(grid)
        self._at_least = at_least
        self._patience = patience
        self._attendance = (
            None if clients is None else Attendance(grid, clients, min_clients, patience, query, report, sizes)
        )
        self._clients: dict[int, int] = {}  # by node
        if self._attendance:
            self._number(self._attendance.nodes)

    @property
    def numbered(self) -> bool:
        """Whether the nodes are known by the numbers of their clients."""
        return self._attendance is not None

    @property
    def evaluators(self) -> list[int]:
        """The connected nodes that are no clients and only score models."""
        return self._attendance.evaluators if self._attendance else []

    @property
    def examples(self) -> NDArray[np.int64] | None:
        """The number of examples that count of each client, in their order, if all have stated theirs."""
        return self._attendance.examples if self._attendance else None

    @property
    def stated_examples(self) -> Mapping[int, int]:
        """The number of examples of each client that has stated one before the first round."""
        return self._attendance.stated if self._attendance else {}

    @property
    def counted_examples(self) -> Mapping[int, int]:
        """The number of examples of each client by which means are weighted; see `numbers.counted_examples`."""
        return self._attendance.counted if self._attendance else {}

    @property
    def limited_examples(self) -> dict[int, tuple[int, int]]:
        """The number of examples that a client stated, and how many of them count, where these differ."""
        stated, counted = self.stated_examples, self.counted_examples
        return {client: (stated[client], count) for client, count in counted.items() if count != stated[client]}

    @property
    def refused(self) -> list[str]:
        """Why nodes that are connected do not take part."""
        return self._attendance.refused() if self._attendance else []

    def get_node_ids(self) -> list[int]:
        """Return the nodes in the order of their clients' numbers, including those that are not connected now.

        Raises:
            RunError: `clients` is None, and too few nodes connected.
        """
        if self._attendance:
            return self._number(self._attendance.nodes)
        nodes = wait_for_nodes(self._grid, self._at_least, self._patience)
        return self._number(in_order_of_registration(self._grid, nodes))

    def await_clients(self, count: int) -> None:
        """Wait until enough clients are connected.

        Raises:
            AbsentClientsError: they did not return in time.
        """
        if self._attendance:
            self._attendance.gather(count)

    def lacks_clients(self, count: int) -> bool:
        """Return whether `await_clients` would wait now."""
        return bool(self._attendance and self._attendance.present() < count)

    def exchange(self, messages: Iterable[Message], *, timeout: float | None = None) -> Exchange:
        """Send messages to the clients that are connected, and wait for their replies.

        Args:
            messages: to send.
            timeout: seconds to wait for replies; None waits for all.
        """
        # A list, because it is used several times and Flower allows any iterable.
        sent = list(messages)
        absent = self._absent(sent)
        present = [message for message in sent if message.metadata.dst_node_id not in absent]
        bytes_down = _array_bytes(present)  # before they are sent: an in-process client may change its message
        replies = list(self._grid.send_and_receive(present, timeout=timeout)) if present else []
        # Sorted, because sums of floats depend on their order, and replies arrive in a random one.
        places = {message.metadata.message_id: place for place, message in enumerate(sent)}
        replies.sort(key=lambda reply: places.get(reply.metadata.reply_to_message_id, len(sent)))
        return Exchange(
            tuple(replies),
            tuple(self.client_of(message.metadata.dst_node_id) for message in sent),
            frozenset(map(self.client_of, absent)),
            bytes_down,
            _array_bytes(replies),
        )

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return the replies, in the order of the messages.

        Args:
            messages: to send.
            timeout: seconds to wait for replies; None waits for all.
        """
        return list(self.exchange(messages, timeout=timeout).replies)

    def client_of(self, node: int) -> int:
        """Return the number of a node's client, -1 if unknown."""
        return self._clients.get(node, UNKNOWN_CLIENT)

    def _absent(self, messages: list[Message]) -> set[int]:
        """Return the nodes of messages that are not connected."""
        # Nothing is sent to them: the round would wait for their replies until its timeout.
        nodes = {message.metadata.dst_node_id for message in messages}
        return nodes - self._attendance.connected() if self._attendance else set()

    def _number(self, nodes: list[int]) -> list[int]:
        """Number the nodes in this order."""
        self._clients = {node: client for client, node in enumerate(nodes)}
        return nodes


def known_examples(grid: Grid) -> tuple[Mapping[int, int], Mapping[int, int]]:
    """Return how many examples each client stated first, and how many of them count, if a Grid knows them."""
    return (grid.stated_examples, grid.counted_examples) if isinstance(grid, RosterGrid) else ({}, {})


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
    return nodes if isinstance(grid, RosterGrid) else in_order_of_registration(grid, nodes)


def await_nodes(grid: Grid, count: int, first: bool = False) -> list[int]:
    """Wait until enough nodes are connected, and return them in a stable order.

    Args:
        grid: any.
        count: the number of nodes that is enough.
        first: whether to wait, too, until a simulation has all of its nodes: it may still be starting them.

    Raises:
        ConfigError: it is a `RosterGrid`, which waits by itself, and has too few nodes.
        RunError: it is a simulation with too few nodes.
    """
    if isinstance(grid, RosterGrid):
        return drawable_nodes(grid, count)
    # As long as Flower's strategies do: a deployment's nodes may start later than its run. A simulation's are as many
    # as they ever will be.
    nodes = wait_for_nodes(grid, count, _SIMULATION_SECONDS if is_simulation(grid) else math.inf)
    while first and is_simulation(grid):
        time.sleep(_STARTING_SECONDS)
        before, nodes = nodes, list(grid.get_node_ids())
        first = len(nodes) > len(before)
    return in_order_of_registration(grid, nodes)


def _array_bytes(messages: Iterable[Message]) -> dict[str, int]:
    """Add up the bytes of all arrays, by the name of their record."""
    totals: Counter[str] = Counter()
    for message in messages:
        for name, record in message.content.array_records.items() if message.has_content() else ():
            totals[name] += sum(map(size, record.values()))
    return dict(totals)
