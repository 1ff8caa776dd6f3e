"""Which client is which node of Flower, and which of them are connected."""

import time
from collections.abc import Callable, Iterable

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedmr_flwr.errors import AbsentClientsError, FederationError
from fedmr_flwr.wire.checks import MOST_EXAMPLES, NOT_A_NODES, one_line
from fedmr_flwr.wire.messages import CLIENT, CONFIG, EXAMPLES, METRICS

_QUERY_SECONDS = 600.0
# Between looks who is there: in a simulation, and on machines of their own.
_POLL_SECONDS, _REMOTE_POLL_SECONDS = 0.05, 1.0
# Until nodes are asked again: those that refused, perhaps because data were missing; and silent ones, which may
# still read their data, or a message got lost.
_REFUSED_SECONDS, _SILENT_SECONDS = 15.0, 120.0


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
        report: is told who is waited for.

    Attributes:
        examples: of each client, in the order of their numbers, if all of them stated theirs.

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
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._grid = grid
        self._clients = clients
        self._patience = patience
        self._query = query or ConfigRecord()
        self._report = report
        self._stay = least is None
        self._nodes: dict[int, int] = {}  # by client
        self._counts: dict[int, object] = {}
        self._known: set[int] = set()  # nodes that have answered
        self._refusals: dict[int, str] = {}  # by node
        self._asked: dict[str, int] = {}  # the node of each question without an answer
        self._ask_after: dict[int, float] = {}  # when a node may be asked again
        if least is None:
            self._await_all()
        else:
            self.gather(least)

    @property
    def nodes(self) -> list[int]:
        """The node of every client, in the order of their numbers; a made-up one for a client that never came."""
        return [self._nodes.get(client, -1 - client) for client in range(self._clients)]

    @property
    def examples(self) -> NDArray[np.int64] | None:
        """The examples of every client, in the order of their numbers, if all of them stated theirs."""
        counts = [self._counts.get(client) for client in range(self._clients)]
        whole = [count for count in counts if isinstance(count, int) and 0 < count < MOST_EXAMPLES]
        return np.array(whole, np.int64) if len(whole) == self._clients else None

    def connected(self) -> set[int]:
        """Return the nodes to which messages can be sent now."""
        return set(self._nodes.values()) if self._stay else set(self._grid.get_node_ids())

    def present(self) -> int:
        """Return how many clients are connected."""
        return len(self.connected() & set(self._nodes.values()))

    def gather(self, least: int) -> None:
        """Ask who is new, and wait until enough clients are connected; nobody's answer is waited for if they are.

        Args:
            least: how many are enough.

        Raises:
            AbsentClientsError: they did not come.
        """
        if self._stay:
            return
        deadline, reported = time.monotonic() + self._patience, None
        while True:
            here = set(self._grid.get_node_ids())
            self._ask_new(here)
            count = len(here & set(self._nodes.values()))
            if count >= least:
                if reported:
                    self._report("")
                return
            refused = [reason for node, reason in self._refusals.items() if node in here]
            status = f"{count} of the {least} clients that are needed are connected"
            status += f"; {len(refused)} refused, the first of them: {refused[0]}" if refused else ""
            if time.monotonic() > deadline:
                raise AbsentClientsError(
                    f"after {self._patience:g} s {status}; start the others, or raise deployment.join-timeout"
                )
            if status != reported:
                self._report(f"waiting: {status}")
                reported = status
            time.sleep(min(_REMOTE_POLL_SECONDS, self._patience))

    def _ask_new(self, here: set[int]) -> None:
        """Ask those nodes whose clients are not known, and take the answers that are there."""
        now = time.monotonic()
        new = [node for node in sorted(here - self._known) if now >= self._ask_after.get(node, 0.0)]
        queries = self._queries(new)
        self._grid.push_messages(queries)
        self._asked |= {query.metadata.message_id: query.metadata.dst_node_id for query in queries}
        self._ask_after |= dict.fromkeys(new, now + _SILENT_SECONDS)
        for reply in self._grid.pull_messages(self._asked) if self._asked else ():
            node = self._asked.pop(reply.metadata.reply_to_message_id)
            self._ask_after[node] = now + _REFUSED_SECONDS
            self._take(node, reply, here)

    def _await_all(self) -> None:
        """Wait for all clients and ask them."""
        nodes = wait_for_nodes(self._grid, self._clients, self._patience)
        for reply in self._grid.send_and_receive(self._queries(sorted(nodes)), timeout=_QUERY_SECONDS):
            self._take(reply.metadata.src_node_id, reply, set(nodes))
        if len(nodes) != self._clients:
            raise FederationError(
                f"the configuration has {self._clients} clients, but {len(nodes)} nodes are connected; set clients, "
                f"or in a simulation --federation-config 'num-supernodes={self._clients}'"
            )
        if len(self._nodes) < self._clients:
            silent = self._clients - len(self._known) - len(self._refusals)
            why = f"{silent} did not reply in {_QUERY_SECONDS:.0f} s; are they still reading their data?"
            if self._refusals:
                why = f"{len(self._refusals)} refused, the first of them: {next(iter(self._refusals.values()))}"
            raise FederationError(
                f"only {len(self._nodes)} of the {self._clients} clients 0 to {self._clients - 1} answered; {why}"
            )

    def _queries(self, nodes: Iterable[int]) -> list[Message]:
        return [Message(RecordDict({CONFIG: self._query}), node, MessageType.QUERY) for node in nodes]

    def _take(self, node: int, reply: Message, here: set[int]) -> None:
        """Learn from a node's answer which client it is."""
        self._refusals.pop(node, None)
        if not reply.has_content():
            if reply.error.code not in NOT_A_NODES:
                self._refusals[node] = one_line(str(reply.error.reason))
            return
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
            time.sleep(_POLL_SECONDS)
    return nodes
