"""Which client is which node of Flower, and which of them are connected."""

import time
from collections.abc import Callable, Iterable

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedmr_flwr.errors import AbsentClientsError, FederationError
from fedmr_flwr.records import CONFIG, EXAMPLES, METRICS, MOST_EXAMPLES, one_line

# Under this key a client answers a query with its number.
CLIENT = "client"
_QUERY_SECONDS = 600.0
# Between looks who is there: in a simulation, and on machines of their own.
_LOOK_SECONDS, _LOOK_AFAR_SECONDS = 0.05, 1.0
# Until clients that refused, perhaps because data were missing, are asked again while others are waited for.
_AGAIN_SECONDS = 15.0


class Attendance:
    """Clients by number, each of which was asked for it once.

    Node identifiers are random in every run of Flower. In a simulation all clients are there from the beginning; on
    machines of their own they come late, leave, and come back, perhaps as another node.

    Args:
        grid: carries the messages.
        clients: how many there are; their numbers must be 0..clients-1.
        least: how many must be connected before the first round. None: all, and they stay.
        patience: seconds to wait for them.
        query: sent when they are asked, so that they can see whether they have all that the run needs.
        say: is told who is waited for.

    Attributes:
        examples: of each client, in the order of their numbers, if all of them said so.

    Raises:
        FederationError: the clients do not come, or are not the ones that should.
    """

    def __init__(
        self,
        grid: Grid,
        clients: int,
        least: int | None = None,
        patience: float = 120.0,
        query: ConfigRecord | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._grid = grid
        self._clients = clients
        self._patience = patience
        self._query = query or ConfigRecord()
        self._say = say
        self._stay = least is None
        self._nodes: dict[int, int] = {}  # by client
        self._counts: dict[int, object] = {}
        self._known: set[int] = set()  # nodes that have answered
        self._refusals: dict[int, str] = {}  # by node
        if least is None:
            self._insist_on_all()
        else:
            self.gather(least)

    @property
    def nodes(self) -> list[int]:
        """The node of every client, in the order of their numbers; a made-up one for a client that never came."""
        return [self._nodes.get(client, -1 - client) for client in range(self._clients)]

    @property
    def examples(self) -> NDArray[np.int64] | None:
        """The examples of every client, in the order of their numbers, if all of them said so."""
        counts = [self._counts.get(client) for client in range(self._clients)]
        whole = [count for count in counts if isinstance(count, int) and 0 < count < MOST_EXAMPLES]
        return np.array(whole, np.int64) if len(whole) == self._clients else None

    def connected(self) -> set[int]:
        """Return the nodes to which messages can be sent now."""
        return set(self._nodes.values()) if self._stay else set(self._grid.get_node_ids())

    def gather(self, least: int) -> None:
        """Ask who is new, and wait until enough clients are connected.

        Args:
            least: how many are enough.

        Raises:
            AbsentClientsError: they did not come.
        """
        if self._stay:
            return
        deadline, asked_again, said = time.monotonic() + self._patience, time.monotonic(), None
        while True:
            here = set(self._grid.get_node_ids())
            self._ask(here - self._known - set(self._refusals))
            count = len(here & set(self._nodes.values()))
            if count >= least:
                if said:
                    self._say("")
                return
            refused = [reason for node, reason in self._refusals.items() if node in here]
            status = f"{count} of the {least} clients that are needed are connected"
            status += f"; {len(refused)} refused, the first of them: {refused[0]}" if refused else ""
            if time.monotonic() > deadline:
                raise AbsentClientsError(
                    f"after {self._patience:g} s {status}; start the others, or raise join-timeout"
                )
            if status != said:
                self._say(f"waiting: {status}")
                said = status
            if time.monotonic() - asked_again > _AGAIN_SECONDS:
                self._refusals, asked_again = {}, time.monotonic()
            time.sleep(min(_LOOK_AFAR_SECONDS, self._patience))

    def _insist_on_all(self) -> None:
        """Wait for all clients and ask them."""
        nodes = wait_for_nodes(self._grid, self._clients, self._patience)
        self._ask(nodes)
        if len(nodes) != self._clients:
            raise FederationError(
                f"the configuration has {self._clients} clients, but {len(nodes)} nodes are connected; set clients, "
                f"or in a simulation --federation-config 'num-supernodes={self._clients}'"
            )
        if len(self._nodes) < self._clients:
            silent = self._clients - len(self._known) - len(self._refusals)
            why = f"{silent} said nothing in {_QUERY_SECONDS:.0f} s; are they still reading their data?"
            if self._refusals:
                why = f"{len(self._refusals)} refused, the first of them: {next(iter(self._refusals.values()))}"
            raise FederationError(
                f"only {len(self._nodes)} of the {self._clients} clients 0 to {self._clients - 1} answered; {why}"
            )

    def _ask(self, nodes: Iterable[int]) -> None:
        """Ask nodes for their clients' numbers."""
        queries = [Message(RecordDict({CONFIG: self._query}), node, MessageType.QUERY) for node in sorted(nodes)]
        if not queries:
            return
        here = self.connected()
        for reply in self._grid.send_and_receive(queries, timeout=_QUERY_SECONDS):
            node = reply.metadata.src_node_id
            if not reply.has_content():
                self._refusals[node] = one_line(str(reply.error.reason))
                continue
            metrics = reply.content.get(METRICS)
            number = metrics.get(CLIENT) if isinstance(metrics, MetricRecord) else None
            if not isinstance(number, int) or not (0 <= number < self._clients):
                self._refusals[node] = f"a node is client {number}, not one of 0 to {self._clients - 1}"
            elif self._nodes.get(number) in here:
                self._refusals[node] = f"two nodes are client {number}"
            else:
                self._known.add(node)
                self._nodes[number] = node
                self._counts[number] = metrics.get(EXAMPLES) if isinstance(metrics, MetricRecord) else None


def wait_for_nodes(grid: Grid, count: int, patience: float) -> list[int]:
    """Wait until at least so many nodes are there, and return them.

    Raises:
        FederationError: they did not come in so many seconds.
    """
    deadline = time.monotonic() + patience
    nodes: list[int] = []
    while len(nodes) < count:
        if time.monotonic() > deadline:
            raise FederationError(
                f"{len(nodes)} of {count} clients are connected after {patience:.0f} s; start the others, "
                f"or in a simulation set --federation-config 'num-supernodes={count}'"
            )
        nodes = list(grid.get_node_ids())
        if len(nodes) < count:
            time.sleep(_LOOK_SECONDS)
    return nodes
