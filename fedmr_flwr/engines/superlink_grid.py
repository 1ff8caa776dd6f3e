"""The Grid of a SuperLink: fetches replies as soon as they are there, and knows what has got lost on the way."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence

from flwr.app import Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode

from fedmr_flwr.grids import WrappedGrid

_log = logging.getLogger(__name__)
# Between looks for replies, which cost the SuperLink a query of its database; and for nodes that began anew.
_REPLY_SECONDS, _NODE_SECONDS = 0.2, 2.0
# Until a silent node is asked whether it is idle, and between such questions; and how long one stays open, so that a
# node that trains for longer never sees it.
_SILENT_SECONDS, _QUESTION_SECONDS = 60.0, 30.0
# Errors that the SuperLink makes itself.
_NOT_A_NODES = {ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE}


class SuperLinkGrid(WrappedGrid):
    """Wraps the Grid that Flower gives a ServerApp whose clients are machines of their own.

    Flower's looks for replies every three seconds, and waits in vain for two kinds of messages.

    - A node that is stopped and started again has forgotten its message; here it comes back with an error.
    - If a connection breaks at the wrong moment, the SuperLink takes a message for delivered that never arrived, or
      the node gives up a reply. As a node answers one message after the other, a question that it answers while the
      reply is still missing shows that it is idle; then the message is sent again.
    """

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return the replies in the order in which they came.

        Args:
            messages: what to send.
            timeout: seconds to wait for replies; None waits for all.
        """
        began = self._activations()
        # By the identifier under which it was sent; a message that was sent again stands under both.
        waiting = self._push(list(messages))
        questions: dict[str, Message] = {}
        replies: list[Message] = []
        start = looked = asked = time.monotonic()
        while waiting:
            # Nodes first: what a node sent before it began anew is then among the replies.
            lost = set()
            if time.monotonic() - looked > _NODE_SECONDS:
                now, looked = self._activations(), time.monotonic()
                lost = {node for node in now.keys() & began.keys() if now[node] != began[node]}
            idle = set()
            for reply in self.pull_messages({*waiting, *questions}):
                number = reply.metadata.reply_to_message_id
                if question := questions.pop(number, None):
                    if reply.has_content() or reply.error.code not in _NOT_A_NODES:
                        idle.add(question.metadata.dst_node_id)
                elif message := waiting.get(number):
                    replies.append(_answering(message, reply))
                    waiting = _without(message, waiting)
            for message in _to(lost, waiting.values()):
                replies.append(_forgotten(message))
                waiting = _without(message, waiting)
            if silent := _to(idle, waiting.values()):
                waiting |= self._push_again(silent)
            if time.monotonic() - asked > _SILENT_SECONDS:
                asked = time.monotonic()
                nodes = {message.metadata.dst_node_id for message in waiting.values()}
                questions |= self._push([_question(node) for node in nodes])
            if timeout is not None and time.monotonic() - start > timeout:
                break
            if waiting:
                time.sleep(_REPLY_SECONDS)
        return replies

    def _push(self, messages: Sequence[Message]) -> dict[str, Message]:
        """Send messages; return those that the SuperLink took, by identifier."""
        taken = set(self.push_messages(messages))
        return {message.metadata.message_id: message for message in messages if message.metadata.message_id in taken}

    def _push_again(self, messages: Sequence[Message]) -> dict[str, Message]:
        """Send messages once more, which needs new ones; return the first ones by the identifier of the new."""
        firsts: dict[str, Message] = {}
        for first in messages:
            node = first.metadata.dst_node_id
            _log.warning("node %d is idle and has not answered: its message got lost and is sent again", node)
            again = Message(first.content, node, first.metadata.message_type)
            firsts |= dict.fromkeys(self._push([again]), first)
        return firsts

    def _activations(self) -> dict[int, str]:
        """Return when each connected node connected."""
        return {node.node_id: node.last_activated_at for node in self._grid.get_nodes()}


def _to(nodes: set[int], messages: Iterable[Message]) -> list[Message]:
    """Return those messages that are for these nodes, each once."""
    return list({id(message): message for message in messages if message.metadata.dst_node_id in nodes}.values())


def _without(message: Message, waiting: Mapping[str, Message]) -> dict[str, Message]:
    return {number: other for number, other in waiting.items() if other is not message}


def _question(node: int) -> Message:
    """Return a message that any client answers at once, if it is not busy with another."""
    return Message(RecordDict(), node, MessageType.QUERY, ttl=_QUESTION_SECONDS)


def _answering(message: Message, reply: Message) -> Message:
    """Return a reply as one to the message that was sent first."""
    reply.metadata.__dict__["_reply_to_message_id"] = message.metadata.message_id
    return reply


def _forgotten(message: Message) -> Message:
    error = Error(ErrorCode.NODE_UNAVAILABLE, "its node was started again and has forgotten the message")
    return Message(error, reply_to=message)
