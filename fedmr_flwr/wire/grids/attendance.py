"""The assignment of clients to Flower's nodes, and which of them are connected."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeGuard

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedmr_flwr.errors import AbsentClientsError, RunError
from fedmr_flwr.wire.checks import NOT_A_NODES, one_line
from fedmr_flwr.wire.messages import CLIENT, CONFIG, EVALUATES, EXAMPLES, KEY, METRICS
from fedmr_flwr.wire.numbers import LARGEST, counted_examples

# Flower's, which shows lines at this level.
_log = logging.getLogger("flwr")
_QUERY_SECONDS = 600.0
# Seconds between polls for nodes: in a simulation, and in a deployment.
_POLL_SECONDS, _REMOTE_POLL_SECONDS = 0.05, 1.0
# Seconds until nodes are queried again: those that refused, perhaps because data were missing; and silent ones,
# which may still be reading their data, or whose message was lost.
_REFUSED_SECONDS, _SILENT_SECONDS = 15.0, 120.0


class Session(NamedTuple):
    """A node from when it connects until it leaves; it may return with other settings and data."""

    node: int
    since: str = ""


class Attendance:
    """The nodes of all clients by number; each node is queried for its number once, and again when it returns.

    Node identifiers are random in every run of Flower. In a simulation all clients are connected from the start; in a
    deployment they may connect late, leave, and return, perhaps as another node.

    Args:
        grid: sends the messages.
        clients: the number of clients; they must be numbered 0..clients-1.
        least: the number of clients that must be connected before the first round; None: all, and they stay.
        patience: seconds to wait for clients.
        query: sent with the queries, so that clients can check that they have everything the run needs.
        report: called with a line while clients are missing.
        sizes: the number of examples of each client, if the server knows it; a client that states another is refused.

    Raises:
        RunError: the clients do not connect in time, or do not have the numbers 0..clients-1.
    """

    def __init__(
        self,
        grid: Grid,
        clients: int,
        least: int | None = None,
        patience: float = 120.0,
        query: ConfigRecord | None = None,
        report: Callable[[str], None] = lambda _: None,
        sizes: Sequence[int] | None = None,
    ) -> None:
        self._grid = grid
        self._clients = clients
        self._sizes = sizes
        self._patience = patience
        self._query = query or ConfigRecord()
        self._report = report
        self._stay = least is None
        self._nodes: dict[int, Session] = {}  # by client
        self._counts: dict[int, object] = {}
        self._keys: dict[int, object] = {}  # the sealing key that each client shows, None without privacy.sealed
        self._known: set[Session] = set()  # those that have replied
        self._evaluators: set[Session] = set()
        self._refusals: dict[Session, str] = {}
        self._open: dict[str, Session] = {}  # whom each query without a reply went to
        self._query_after: dict[Session, float] = {}  # when one may be queried again
        if least is None:
            self._await_all()
        else:
            self.gather(least)

    @property
    def nodes(self) -> list[int]:
        """The node of every client, in the order of their numbers; a placeholder for one that never connected."""
        # Disconnected clients are included: the draw must not depend on who is connected at the moment.
        return [self._nodes.get(client, Session(-1 - client)).node for client in range(self._clients)]

    @property
    def examples(self) -> NDArray[np.int64] | None:
        """The number of examples that count of every client, in their order, if all have stated theirs."""
        counted = self.counted
        return (
            np.array([counted[client] for client in range(self._clients)]) if len(counted) == self._clients else None
        )

    @property
    def stated(self) -> dict[int, int]:
        """The number of examples of each client that has stated a valid one."""
        return {client: count for client, count in self._counts.items() if _is_valid(count)}

    @property
    def counted(self) -> dict[int, int]:
        """The number of examples that count of each client: limited where nobody can verify what a node states."""
        return self.stated if self._stay or self._sizes else counted_examples(self.stated)

    def connected(self) -> set[int]:
        """Return the nodes that are connected now, and have been accepted since they are."""
        accepted = {*self._nodes.values(), *self._evaluators}
        return {session.node for session in (accepted if self._stay else accepted & self._here())}

    @property
    def evaluators(self) -> list[int]:
        """The connected nodes that only score models."""
        return sorted(session.node for session in self._evaluators & self._here()) if self._evaluators else []

    def present(self) -> int:
        """Return how many clients are connected."""
        return len(self._nodes) if self._stay else len(self._here() & set(self._nodes.values()))

    def refused(self) -> list[str]:
        """Return why nodes that are connected do not take part."""
        return [] if self._stay or not self._refusals else self._reasons(self._here())

    def _here(self) -> set[Session]:
        return {Session(node.node_id, node.last_activated_at) for node in self._grid.get_nodes()}

    def _reasons(self, here: set[Session]) -> list[str]:
        return [reason for session, reason in self._refusals.items() if session in here]

    def gather(self, least: int) -> None:
        """Query new nodes, and wait until enough clients are connected; do not wait for replies if they are.

        Args:
            least: the number of clients that is enough.

        Raises:
            AbsentClientsError: they did not connect in time.
        """
        if self._stay:
            return
        deadline, reported = time.monotonic() + self._patience, None
        while True:
            here = self._here()
            self._query_new(here)
            count = len(here & set(self._nodes.values()))
            if count >= least:
                if reported:
                    self._report("")
                return
            refused = self._reasons(here)
            status = f"{count} of the {least} clients needed are connected"
            status += f"; {len(refused)} refused, the first one: {refused[0]}" if refused else ""
            if time.monotonic() > deadline:
                raise AbsentClientsError(
                    f"after {self._patience:g} s {status}; start the others, or raise deployment.join-timeout"
                )
            if status != reported:
                self._report(f"waiting: {status}")
                reported = status
            time.sleep(min(_REMOTE_POLL_SECONDS, self._patience))

    def _query_new(self, here: set[Session]) -> None:
        """Query the nodes whose clients are unknown, and read the replies that have arrived."""
        now = time.monotonic()
        new = [session for session in sorted(here - self._known) if now >= self._query_after.get(session, 0.0)]
        queries = self._queries(session.node for session in new)
        self._grid.push_messages(queries)
        self._open |= {query.metadata.message_id: session for query, session in zip(queries, new, strict=True)}
        self._query_after |= dict.fromkeys(new, now + _SILENT_SECONDS)
        for reply in self._grid.pull_messages(self._open) if self._open else ():
            if session := self._open.pop(reply.metadata.reply_to_message_id, None):  # a node may reply twice
                self._query_after[session] = now + _REFUSED_SECONDS
                self._register(session, reply, here)

    def _await_all(self) -> None:
        """Wait for all clients and query them."""
        nodes = wait_for_nodes(self._grid, self._clients, self._patience)
        for reply in self._grid.send_and_receive(self._queries(sorted(nodes)), timeout=_QUERY_SECONDS):
            self._register(Session(reply.metadata.src_node_id), reply, set(map(Session, nodes)))
        if len(nodes) != self._clients:
            raise RunError(
                f"the configuration has {self._clients} clients, but {len(nodes)} nodes are connected; set clients, "
                f"or in a simulation --federation-config 'num-supernodes={self._clients}'"
            )
        if len(self._nodes) < self._clients:
            missing = self._clients - len(self._known) - len(self._refusals)
            why = (
                f"{missing} did not reply within {_QUERY_SECONDS:.0f} s, perhaps because they are still reading data"
            )
            if self._refusals:
                why = f"{len(self._refusals)} refused, the first one: {next(iter(self._refusals.values()))}"
            raise RunError(
                f"only {len(self._nodes)} of the {self._clients} clients 0 to {self._clients - 1} replied; {why}"
            )

    def _queries(self, nodes: Iterable[int]) -> list[Message]:
        return [Message(RecordDict({CONFIG: self._query}), node, MessageType.QUERY) for node in nodes]

    def _register(self, session: Session, reply: Message, here: set[Session]) -> None:
        """Read a node's reply to a query: its client's number and examples."""
        self._refusals.pop(session, None)
        if problem := self._accept(session, reply, here):
            self._refusals[session] = one_line(problem)

    def _accept(self, session: Session, reply: Message, here: set[Session]) -> str | None:
        """Return why a node cannot take part; remember it if it can."""
        if not reply.has_content():
            return None if reply.error.code in NOT_A_NODES else str(reply.error.reason)
        metrics = reply.content.get(METRICS)
        facts = metrics if isinstance(metrics, MetricRecord) else MetricRecord()
        number, count = facts.get(CLIENT), facts.get(EXAMPLES)
        if facts.get(EVALUATES) == 1:
            # It could open nothing, and the run would have no scores without a reason.
            if others := [client for client, key in self._keys.items() if key != facts.get(KEY)]:
                return f"an evaluator has another sealing key than client {others[0]}"
            self._known.add(session)
            self._evaluators.add(session)
            return None
        if not isinstance(number, int) or not (0 <= number < self._clients):
            return f"a node has client number {number}, expected 0 to {self._clients - 1}"
        # Only a connected one: a client that returns as another node takes its number over.
        if self._nodes.get(number, session) in here - {session}:
            return f"two nodes have client number {number}"
        if self._sizes and count != self._sizes[number]:
            return f"client {number} states {count} examples, but has {self._sizes[number]}"
        # It could open nothing, and nobody could open what it returns.
        if others := [client for client, key in self._keys.items() if client != number and key != facts.get(KEY)]:
            return f"client {number} has another sealing key than client {others[0]}"
        # Of a node that states none no reply could be compared with it.
        if not self._stay and not _is_valid(count):
            return f"client {number} states {count} examples; expected a number from 1"
        # The node that it replaces is queried again if it returns; and it may have had another number itself.
        self._known.discard(self._nodes.get(number, session))
        self._nodes = {client: other for client, other in self._nodes.items() if other.node != session.node}
        self._known.add(session)
        self._nodes[number] = session
        self._keys[number] = facts.get(KEY)
        # The number of the first time: a client must not gain weight by returning with another.
        if not _is_valid(self._counts.get(number)):
            self._counts[number] = count
        return None


def _is_valid(count: object) -> TypeGuard[int]:
    return isinstance(count, int) and 0 < count < LARGEST


def wait_for_nodes(grid: Grid, count: int, patience: float = math.inf) -> list[int]:
    """Wait until at least `count` nodes are connected, and return them.

    Raises:
        RunError: they did not connect within `patience` seconds.
    """
    deadline = time.monotonic() + patience
    reported = None
    while len(nodes := list(grid.get_node_ids())) < count:
        if time.monotonic() > deadline:
            raise RunError(
                f"{len(nodes)} of {count} clients are connected after {patience:.0f} s; start the others, "
                f"or in a simulation set --federation-config 'num-supernodes={count}'"
            )
        if len(nodes) != reported:
            reported = len(nodes)
            # In Flower's own words.
            _log.info("Waiting for nodes to connect: %d connected (minimum required: %d).", reported, count)
        time.sleep(_POLL_SECONDS)
    return nodes
