"""The Grid of a SuperLink: fetches replies as soon as they are there, and sends again what was lost on the way."""

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
# Between looks for replies, which cost the SuperLink a query of its database; and for nodes that were restarted.
_REPLY_SECONDS, _NODE_SECONDS = 0.4, 2.0
# Until a silent node is asked whether it is idle, and between such questions; and how long a question stays open, so
# that a node that trains for longer never sees it.
_SILENT_SECONDS, _QUESTION_SECONDS = 60.0, 30.0
# How often a message is sent again whose reply is incomplete at the SuperLink.
_TRIES = 3


class SuperLinkGrid(WrappedGrid):
    """Wraps the Grid that Flower gives a ServerApp whose clients are machines of their own.

    Flower's own looks for replies every three seconds, and waits without end for two kinds of messages:

    - A node that is restarted has forgotten its message; here the message comes back with an error.
    - If a connection breaks at the wrong moment, the SuperLink takes a message for delivered that never arrived, or
      a reply stays incomplete. As a node answers one message after the other, a question that it answers while
      the reply is still missing shows that it is idle. Then the message is sent again.

    `fedmr_flwr.wire.flower.serverapp.apply` shortens the waits for a reply that is still being uploaded.

    Args:
        grid: Flower's.
    """

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return the replies in the order in which they came.

        Args:
            messages: what to send.
            timeout: seconds to wait for replies; None waits for all.
        """
        pending = _Pending(self._grid, list(messages))
        start = looked = asked = time.monotonic()
        while pending.waiting:
            # Nodes first: what a node sent before it was restarted is then among the replies.
            restarted: set[int] = set()
            if time.monotonic() - looked > _NODE_SECONDS:
                restarted, looked = pending.restarted(), time.monotonic()
            pending.pull()
            pending.give_up(restarted)
            if time.monotonic() - asked > _SILENT_SECONDS:
                pending.ask()
                asked = time.monotonic()
            if timeout is not None and time.monotonic() - start > timeout:
                break
            if pending.waiting:
                time.sleep(_REPLY_SECONDS)
        return pending.replies


class _Pending:
    """Messages that are sent and not yet answered.

    Args:
        grid: of the SuperLink.
        messages: what to send.

    Attributes:
        waiting: messages without a reply, by the identifiers under which they were sent.
        replies: in the order in which they came.
    """

    def __init__(self, grid: Grid, messages: Sequence[Message]) -> None:
        self._grid = grid
        self._activated_before = self._activations()
        self.waiting = self._push(messages)
        self.replies: list[Message] = []
        self._questions: dict[str, Message] = {}
        self._incomplete: Counter[int] = Counter()

    def pull(self) -> None:
        """Take the replies that are there, and send again what was lost."""
        idle = set()
        for reply in self._grid.pull_messages({*self.waiting, *self._questions}):
            number = reply.metadata.reply_to_message_id
            from_superlink = not reply.has_content() and reply.error.code in NOT_A_NODES
            if question := self._questions.pop(number, None):
                if not from_superlink:
                    idle.add(question.metadata.dst_node_id)
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
        """Answer for nodes that have forgotten their messages with an error."""
        error = Error(ErrorCode.NODE_UNAVAILABLE, "its node was restarted and has forgotten the message")
        for message in self._waiting_for(nodes):
            self._finish(message, Message(error, reply_to=message))

    def ask(self) -> None:
        """Send the nodes that are waited for a question, which an idle one answers at once."""
        nodes = {message.metadata.dst_node_id for message in self.waiting.values()}
        questions = [Message(RecordDict(), node, MessageType.QUERY, ttl=_QUESTION_SECONDS) for node in sorted(nodes)]
        self._questions |= self._push(questions)

    def restarted(self) -> set[int]:
        """Return the nodes that have connected again since the messages were sent."""
        before, now = self._activated_before, self._activations()
        return {node for node in now.keys() & before.keys() if now[node] != before[node]}

    def _activations(self) -> dict[int, str]:
        return {node.node_id: node.last_activated_at for node in self._grid.get_nodes()}

    def _push(self, messages: Sequence[Message]) -> dict[str, Message]:
        """Send messages; return those that the SuperLink took, by identifier."""
        taken = set(self._grid.push_messages(messages))
        return {message.metadata.message_id: message for message in messages if message.metadata.message_id in taken}

    def _push_again(self, message: Message) -> None:
        """Send a message once more, which needs a new one."""
        node = message.metadata.dst_node_id
        _log.warning("node %d: a message or its reply was lost on the way; it is sent again", node)
        self.waiting |= dict.fromkeys(
            self._push([Message(message.content, node, message.metadata.message_type)]), message
        )

    def _waiting_for(self, nodes: set[int]) -> list[Message]:
        """Return the messages that these nodes have not answered, each once."""
        found = {id(message): message for message in self.waiting.values() if message.metadata.dst_node_id in nodes}
        return list(found.values())

    def _finish(self, message: Message, reply: Message) -> None:
        """Count a reply as the one to the message that was sent first."""
        set_reply_to(reply, message)
        self.replies.append(reply)
        self.waiting = {number: other for number, other in self.waiting.items() if other is not message}
