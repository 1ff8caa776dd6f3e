"""The Grid of a SuperLink: fetches replies as soon as they arrive, and sends lost messages again."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from flwr.app import Error, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedmr_flwr.wire.checks import NOT_A_NODES
from fedmr_flwr.wire.flower.messages import ErrorCode, set_reply_to
from fedmr_flwr.wire.grids.wrapped import WrappedGrid

_log = logging.getLogger(__name__)
# Seconds between polls for replies, each of which costs the SuperLink a database query; and for restarted nodes.
_REPLY_SECONDS, _NODE_SECONDS = 0.4, 2.0
# Seconds until a silent node is probed, and between probes; and until a probe expires, so that a node that trains for
# longer never receives it.
_SILENT_SECONDS, _PROBE_SECONDS = 60.0, 30.0
# How often a message is sent again if its reply is incomplete at the SuperLink.
_TRIES = 3


class SuperLinkGrid(WrappedGrid):
    """Wraps the Grid that Flower passes to the ServerApp of a deployment.

    Flower's own Grid polls for replies every three seconds, and waits forever for two kinds of messages:

    - A restarted node has lost its message; here the message gets an error as its reply. So does that of a node that
      is gone, for which the SuperLink itself makes an error only up to Flower 1.42.
    - If a connection breaks at the wrong moment, the SuperLink counts a message as delivered that never arrived, or
      a reply stays incomplete. A node handles one message after another, so a reply to a probe while the reply to
      the message is missing shows that it is idle. Then the message is sent again.

    Args:
        grid: Flower's, or a `BoundedGrid` around it.
    """

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return the replies in the order of arrival.

        Args:
            messages: to send.
            timeout: seconds to wait for replies; None waits for all.
        """
        pending = _Pending(self._grid, list(messages))
        start = nodes_checked = probed = time.monotonic()
        while pending.waiting:
            # Nodes first: a reply that a node sent before its restart is then among the replies.
            lost: set[int] = set()
            if time.monotonic() - nodes_checked > _NODE_SECONDS:
                lost, nodes_checked = pending.lost(), time.monotonic()
            pending.pull()
            pending.give_up(lost)
            if time.monotonic() - probed > _SILENT_SECONDS:
                pending.probe()
                probed = time.monotonic()
            if timeout is not None and time.monotonic() - start > timeout:
                break
            if pending.waiting:
                time.sleep(_REPLY_SECONDS)
        return pending.replies


class _Pending:
    """Messages without a reply.

    Args:
        grid: of the SuperLink.
        messages: to send.

    Attributes:
        waiting: messages without a reply, by the identifiers under which they were sent.
        replies: in the order of arrival.
    """

    def __init__(self, grid: Grid, messages: Sequence[Message]) -> None:
        self._grid = grid
        self._activated_before = self._activations()
        self.waiting = self._push(messages)
        self.replies: list[Message] = []
        self._probes: dict[str, Message] = {}
        self._incomplete: Counter[int] = Counter()

    def pull(self) -> None:
        """Read the replies that have arrived, and send lost messages again."""
        idle = set()
        for reply in self._grid.pull_messages({*self.waiting, *self._probes}):
            number = reply.metadata.reply_to_message_id
            from_superlink = not reply.has_content() and reply.error.code in NOT_A_NODES
            if probe := self._probes.pop(number, None):
                if not from_superlink:
                    idle.add(probe.metadata.dst_node_id)
            elif message := self.waiting.pop(number, None):
                lost_node = from_superlink and reply.error.code == ErrorCode.NODE_UNAVAILABLE
                if from_superlink and not lost_node and self._incomplete[id(message)] < _TRIES:
                    self._incomplete[id(message)] += 1
                    self._push_again(message)
                else:
                    self._finish(message, reply)
        for message in self._waiting_for(idle):
            self._push_again(message)

    def give_up(self, nodes: set[int]) -> None:
        """Record an error as the reply of nodes that have lost their messages."""
        error = Error(ErrorCode.NODE_UNAVAILABLE, "its node is gone or was restarted, and has lost the message")
        for message in self._waiting_for(nodes):
            self._finish(message, Message(error, reply_to=message))

    def probe(self) -> None:
        """Send a probe to the nodes of pending messages; an idle node replies at once."""
        nodes = {message.metadata.dst_node_id for message in self.waiting.values()}
        probes = [Message(RecordDict(), node, MessageType.QUERY, ttl=_PROBE_SECONDS) for node in sorted(nodes)]
        self._probes |= self._push(probes)

    def lost(self) -> set[int]:
        """Return the nodes that were connected when the messages were sent, and are gone or have reconnected."""
        before, now = self._activated_before, self._activations()
        return {node for node in before if now.get(node) != before[node]}

    def _activations(self) -> dict[int, str]:
        return {node.node_id: node.last_activated_at for node in self._grid.get_nodes()}

    def _push(self, messages: Sequence[Message]) -> dict[str, Message]:
        """Send messages; return those that the SuperLink accepted, by identifier."""
        accepted = set(self._grid.push_messages(messages))
        return {
            message.metadata.message_id: message for message in messages if message.metadata.message_id in accepted
        }

    def _push_again(self, message: Message) -> None:
        """Send a message again, as a new message of Flower."""
        node = message.metadata.dst_node_id
        _log.warning("node %d: a message or its reply was lost; sending it again", node)
        # Training is a function of seed, round and client, so a client that trains twice returns the same model.
        self.waiting |= dict.fromkeys(
            self._push([Message(message.content, node, message.metadata.message_type)]), message
        )

    def _waiting_for(self, nodes: set[int]) -> list[Message]:
        """Return the pending messages of these nodes, each once."""
        found = {id(message): message for message in self.waiting.values() if message.metadata.dst_node_id in nodes}
        return list(found.values())

    def _finish(self, message: Message, reply: Message) -> None:
        """Record a reply as that of the message that was sent first."""
        set_reply_to(reply, message)
        self.replies.append(reply)
        self.waiting = {number: other for number, other in self.waiting.items() if other is not message}
