"""`RosterGrid`: a Flower Grid with a stable order of clients, checked replies and an account of failures."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Error, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedmr_flwr.errors import BadRoundError
from fedmr_flwr.wire.checks import Failure, fault, outliers
from fedmr_flwr.wire.grids.attendance import Attendance, wait_for_nodes
from fedmr_flwr.wire.grids.wrapped import WrappedGrid
from fedmr_flwr.wire.messages import ARRAYS, CONFIG, LAST_ROUND, LOST_STATE, METRICS
from fedmr_flwr.wire.npy import size

_log = logging.getLogger(__name__)
# Flower's error code for what it has no code for.
_UNKNOWN = 0
# Failures of clients that are not there, or have gone while they trained.
_ABSENT = {"offline", "node-lost"}


@dataclass(frozen=True)
class Exchange:
    """What came of one `send_and_receive`.

    Attributes:
        replies: number of good replies.
        failures: what went wrong, in the order of the messages.
        clients: the number of the client that each message went to.
        bytes_down: bytes of the arrays that were sent to all clients together, by the name of their record.
        bytes_up: bytes of the arrays that came back, those of refused replies included.
        good: the numbers of the clients whose replies were good.
        lost_state: those of them that should have kept something since their last good reply, and have not.
    """

    replies: int = 0
    failures: tuple[Failure, ...] = ()
    clients: tuple[int, ...] = ()
    bytes_down: Mapping[str, int] = field(default_factory=dict)
    bytes_up: Mapping[str, int] = field(default_factory=dict)
    good: tuple[int, ...] = ()
    lost_state: tuple[int, ...] = ()

    @property
    def by_kind(self) -> dict[str, int]:
        """How many failures there were of each kind."""
        return dict(sorted(Counter(failure.kind for failure in self.failures).items()))


class RosterGrid(WrappedGrid):
    """Wraps any Grid.

    Node identifiers are random in every run of Flower; here they come in the order of the clients'
    numbers, so that the same seed draws the same clients. A reply to a training message that is malformed,
    of the wrong shape, or not finite becomes an error reply, so that no strategy ever sees it.

    Args:
        grid: the Grid that carries the messages.
        clients: how many clients there are; they are waited for and asked for their numbers, which must be
            0..clients-1. None takes the nodes that are there at any time, in the order of their identifiers.
        at_least: how many nodes to wait for if `clients` is None.
        min_clients: how many clients must be connected before the first round, and afterwards `min_good_replies`
            before each; None if all of them are there and stay, as in a simulation.
        patience: seconds to wait for nodes.
        min_good_replies: with fewer good replies to training messages the exchange is an error.
        query: sent when the clients are asked for their numbers, so that they can see whether they have all that
            the run needs.
        guard: refuse a trained model whose update is more than `guard` times as long as the round's median,
            as "outlier"; None refuses none.
        say: is told who is waited for.

    Attributes:
        exchange: the account of the latest exchange of training messages.

    Raises:
        FederationError: the clients do not come, or are not the ones that should.
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
        min_good_replies: int = 1,
        guard: float | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(grid)
        self._at_least = at_least
        self._patience = patience
        self._min_good_replies = min_good_replies
        self._guard = guard
        self.exchange = Exchange()
        self._attendance = None if clients is None else Attendance(grid, clients, min_clients, patience, query, say)
        self._clients: dict[int, int] = {}  # by node
        self._last_rounds = np.zeros(clients or 0, np.int64)
        if self._attendance:
            self._number(self._attendance.nodes)

    @property
    def examples(self) -> NDArray[np.int64] | None:
        """The examples of each client, in the order of their numbers, if all of them said so when they were asked."""
        return self._attendance.examples if self._attendance else None

    def get_node_ids(self) -> list[int]:
        """Return the nodes in the order of their clients' numbers, those that are not connected now included.

        Raises:
            FederationError: without numbers: too few nodes came.
        """
        if self._attendance:
            return self._number(self._attendance.nodes)
        return self._number(sorted(wait_for_nodes(self._grid, self._at_least, self._patience)))

    def await_clients(self) -> None:
        """Wait until enough clients are connected for a round to be good.

        Raises:
            AbsentClientsError: they did not come back.
        """
        self.exchange = Exchange()
        if self._attendance:
            self._attendance.gather(self._min_good_replies)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return the replies, in the order of the messages.

        Args:
            messages: what to send.
            timeout: seconds to wait for replies; None waits for all.

        Returns:
            At most one reply per message; a message without one is counted in `exchange`.

        Raises:
            BadRoundError: training messages were sent, and fewer than `min_good_replies` came back with a good
                reply.
        """
        sent = list(messages)
        self._tell_last_rounds(sent)
        answers: dict[str, list[Message]] = {}
        absent = self._absent(sent)
        present = [message for message in sent if message.metadata.dst_node_id not in absent]
        bytes_down = _array_bytes(present)  # before they are sent: what a client does to its message is not ours
        replies = list(self._grid.send_and_receive(present, timeout=timeout)) if present else []
        for reply in replies:
            answers.setdefault(reply.metadata.reply_to_message_id, []).append(reply)

        found = [answers.pop(message.metadata.message_id, []) for message in sent]
        problems = [
            ("offline", "its node is not connected")
            if message.metadata.dst_node_id in absent
            else _problem(message, group)
            for message, group in zip(sent, found, strict=True)
        ]
        if self._guard is not None:
            good = [at for at, message in enumerate(sent) if not problems[at] and _asks_for_model(message)]
            for at, reason in outliers([(found[at][0], sent[at]) for at in good], self._guard):
                problems[good[at]] = "outlier", reason
        failures = [
            Failure(self._client(message.metadata.dst_node_id), *problem)
            for message, problem in zip(sent, problems, strict=True)
            if problem
        ]
        failures += [
            Failure(self._client(stray.metadata.src_node_id), "unasked", "a reply to a message that was not sent")
            for group in answers.values()
            for stray in group
        ]
        for failure in failures:
            _log.warning("client %s: %s: %s", failure.client, failure.kind, failure.reason)
        if any(message.metadata.message_type == MessageType.TRAIN for message in sent):
            clients = tuple(self._client(message.metadata.dst_node_id) for message in sent)
            good = [at for at, problem in enumerate(problems) if not problem]
            self.exchange = Exchange(
                len(good),
                tuple(failures),
                clients,
                bytes_down,
                _array_bytes(replies),
                tuple(clients[at] for at in good),
                tuple(clients[at] for at in good if _lost_state(found[at][0])),
            )
            self._insist_on_good_replies()
        return [
            _as_error(group[0], message, problem) if problem else group[0]
            for message, group, problem in zip(sent, found, problems, strict=True)
            if group
        ]

    def settle(self, server_round: int) -> None:
        """Count the good replies of the latest exchange: in this round their clients have taken part.

        Args:
            server_round: its number. Without this call the exchange never happened.
        """
        if self._attendance:
            self._last_rounds[list(self.exchange.good)] = server_round

    def forget(self) -> None:
        """Let every client begin as if it had never taken part."""
        self._last_rounds[:] = 0

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what must be kept between rounds: the round of each client's last good reply, 0 for none."""
        return {"last-rounds": self._last_rounds.copy()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what an earlier `state` returned."""
        self._last_rounds = state["last-rounds"].copy()

    def _tell_last_rounds(self, messages: list[Message]) -> None:
        """Write into each message in which round its client's last good reply was."""
        if not self._attendance:
            return
        for message in messages:
            client = self._clients.get(message.metadata.dst_node_id)
            if client is not None and CONFIG in message.content.config_records:
                last = {LAST_ROUND: int(self._last_rounds[client])}
                # A record of its own, because strategies send the same one to all.
                message.content[CONFIG] = ConfigRecord({**message.content.config_records[CONFIG], **last})

    def _insist_on_good_replies(self) -> None:
        count, failures = self.exchange.replies, self.exchange.failures
        if count < self._min_good_replies:
            who = f"{count} of {len(self.exchange.clients)} clients" if count else "no client"
            fewer = f", fewer than min-good-replies = {self._min_good_replies}" if count else ""
            first = f" (client {failures[0].client}: {failures[0].kind}: {failures[0].reason})" if failures else ""
            absent = all(failure.kind in _ABSENT for failure in failures) and self._waits()
            raise BadRoundError(f"{who} gave a good reply{fewer}{first}", absent)

    def _waits(self) -> bool:
        """Tell whether `await_clients` would wait now."""
        return bool(self._attendance and self._attendance.present() < self._min_good_replies)

    def _absent(self, messages: list[Message]) -> set[int]:
        """Return those nodes that are not connected; messages to them would wait in vain."""
        nodes = {message.metadata.dst_node_id for message in messages}
        return nodes - self._attendance.connected() if self._attendance else set()

    def _number(self, nodes: list[int]) -> list[int]:
        """Remember which client each node is, in this order."""
        self._clients = {node: client for client, node in enumerate(nodes)}
        return nodes

    def _client(self, node: int) -> int:
        """Return the number of a node's client, -1 for a stranger."""
        return self._clients.get(node, -1)


def _array_bytes(messages: Iterable[Message]) -> dict[str, int]:
    """Add up the bytes of all arrays, by the name of their record."""
    totals: Counter[str] = Counter()
    for message in messages:
        for name, record in message.content.array_records.items() if message.has_content() else ():
            totals[name] += sum(map(size, record.values()))
    return dict(totals)


def _problem(sent: Message, found: list[Message]) -> tuple[str, str] | None:
    """Tell what is wrong with the replies to one message: none, more than one, or a bad one."""
    if not found:
        return "no-reply", "no reply came in time"
    if len(found) > 1:
        return "duplicate", f"{len(found)} replies came to one message"
    if not found[0].has_content() or _asks_for_model(sent):
        return fault(found[0], sent)
    return None


def _lost_state(reply: Message) -> bool:
    metrics = reply.content.get(METRICS)
    return isinstance(metrics, MetricRecord) and bool(metrics.get(LOST_STATE))


def _asks_for_model(message: Message) -> bool:
    return message.metadata.message_type == MessageType.TRAIN and ARRAYS in message.content


def _as_error(reply: Message, sent: Message, problem: tuple[str, str]) -> Message:
    """Return the reply as an error reply."""
    if not reply.has_content():
        return reply
    return Message(Error(code=_UNKNOWN, reason=": ".join(problem)), reply_to=sent)
