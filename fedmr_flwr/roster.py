"""`RosterGrid`: a Flower Grid with a stable order of clients, checked replies and an account of failures."""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import Error, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedmr_flwr.errors import FederationError
from fedmr_flwr.records import ARRAYS, METRICS, Failure, fault

_log = logging.getLogger(__name__)
# Under this key a client answers a query with its number.
CLIENT = "client"
# Flower's error code for what it has no code for.
_UNKNOWN = 0
_QUERY_SECONDS = 600.0


@dataclass(frozen=True)
class Exchange:
    """What came of one `send_and_receive`.

    Attributes:
        replies: number of good replies.
        failures: what went wrong, in the order of the messages.
    """

    replies: int
    failures: tuple[Failure, ...]


class RosterGrid(Grid):
    """Wraps any Grid.

    Node identifiers are random in every run of Flower; here they come in the order of the clients'
    numbers, so that the same seed draws the same clients. A reply to a training message that is malformed,
    of the wrong shape, or not finite becomes an error reply, so that no strategy ever sees it.

    Args:
        grid: the Grid that carries the messages.
        clients: how many clients there are; they are waited for and asked for their numbers, which must be
            0..clients-1. None takes the nodes that are there at any time, in the order of their identifiers.
        at_least: how many nodes to wait for if `clients` is None.
        patience: seconds to wait for nodes.

    Attributes:
        exchange: the account of the latest exchange of training messages.

    Raises:
        FederationError: the clients do not come, or are not the ones that should.
    """

    def __init__(self, grid: Grid, clients: int | None = None, *, at_least: int = 1, patience: float = 120.0) -> None:
        self._grid = grid
        self._at_least = at_least
        self._patience = patience
        self.exchange = Exchange(0, ())
        self._numbered = clients is not None
        self._clients = {} if clients is None else self._ask_numbers(clients)

    def get_node_ids(self) -> list[int]:
        """Return the nodes in the order of their clients' numbers."""
        if not self._numbered:
            nodes = sorted(_wait_for_nodes(self._grid, self._at_least, self._patience))
            self._clients = {node: at for at, node in enumerate(nodes)}
        return sorted(self._clients, key=lambda node: self._clients[node])

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return the replies, in the order of the messages.

        Args:
            messages: what to send.
            timeout: seconds to wait for replies; None waits for all.

        Returns:
            At most one reply per message; a message without one is counted in `exchange`.

        Raises:
            FederationError: training messages were sent, and not one came back with a good reply.
        """
        sent = list(messages)
        answers: dict[str, list[Message]] = {}
        for reply in self._grid.send_and_receive(sent, timeout=timeout):
            answers.setdefault(reply.metadata.reply_to_message_id, []).append(reply)

        replies: list[Message] = []
        failures: list[Failure] = []
        for message in sent:
            found = answers.pop(message.metadata.message_id, [])
            problem = _problem(message, found)
            if problem is None:
                replies.append(found[0])
                continue
            failures.append(Failure(self._clients.get(message.metadata.dst_node_id, -1), *problem))
            replies.extend(_as_error(reply, message, problem) for reply in found[:1])
        for stray in (reply for group in answers.values() for reply in group):
            client = self._clients.get(stray.metadata.src_node_id, -1)
            failures.append(Failure(client, "unasked", "a reply to a message that was not sent"))
        for failure in failures:
            _log.warning("client %s: %s: %s", failure.client, failure.kind, failure.reason)
        if any(message.metadata.message_type == MessageType.TRAIN for message in sent):
            self.exchange = Exchange(sum(reply.has_content() for reply in replies), tuple(failures))
            if not self.exchange.replies:
                first = failures[0]
                raise FederationError(
                    f"no client gave a good reply (client {first.client}: {first.kind}: {first.reason})"
                )
        return replies

    def _ask_numbers(self, clients: int) -> dict[int, int]:
        """Wait for all clients, ask each for its number and insist on 0..clients-1."""
        nodes = _wait_for_nodes(self._grid, clients, self._patience)
        queries = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
        numbers, refusals = {}, []
        for reply in self._grid.send_and_receive(queries, timeout=_QUERY_SECONDS):
            if not reply.has_content():
                refusals.append(" ".join(str(reply.error.reason).split()))
                continue
            metrics = reply.content.get(METRICS)
            number = metrics.get(CLIENT) if isinstance(metrics, MetricRecord) else None
            if isinstance(number, int):
                numbers[reply.metadata.src_node_id] = number
        if len(nodes) != clients:
            raise FederationError(
                f"the configuration has {clients} clients, but {len(nodes)} nodes are connected; set clients, "
                f"or in a simulation --federation-config 'num-supernodes={clients}'"
            )
        if sorted(numbers.values()) != list(range(clients)):
            found = len(set(numbers.values()) & set(range(clients)))
            why = f"one said: {refusals[0]}" if refusals else "each must have a partition-id of its own"
            raise FederationError(f"only {found} of the {clients} clients 0 to {clients - 1} answered; {why}")
        return numbers

    # The rest is the wrapped Grid's.

    @property
    def run(self) -> Run:
        """The run of the wrapped Grid."""
        return self._grid.run

    def set_run(self, run: Run) -> None:
        """Set the run of the wrapped Grid."""
        self._grid.set_run(run)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message with the wrapped Grid."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages with the wrapped Grid."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Fetch replies, unchecked, from the wrapped Grid."""
        return self._grid.pull_messages(message_ids)


def _problem(sent: Message, found: list[Message]) -> tuple[str, str] | None:
    """Tell what is wrong with the replies to one message: none, more than one, or a bad one."""
    if not found:
        return "no-reply", "no reply came in time"
    if len(found) > 1:
        return "duplicate", f"{len(found)} replies came to one message"
    if not found[0].has_content() or (sent.metadata.message_type == MessageType.TRAIN and ARRAYS in sent.content):
        return fault(found[0], sent)
    return None


def _as_error(reply: Message, sent: Message, problem: tuple[str, str]) -> Message:
    """Return the reply as an error reply."""
    if not reply.has_content():
        return reply
    return Message(Error(code=_UNKNOWN, reason=": ".join(problem)), reply_to=sent)


def _wait_for_nodes(grid: Grid, count: int, patience: float) -> list[int]:
    """Wait until at least `count` nodes are there."""
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
            time.sleep(0.05)
    return nodes
