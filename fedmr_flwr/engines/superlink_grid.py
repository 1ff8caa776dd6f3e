"""The Grid of a SuperLink: fetches replies as soon as they are there, and knows when none will come."""

import time
from collections.abc import Iterable

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from fedmr_flwr.grids import WrappedGrid

# Between looks for replies, which cost the SuperLink a query of its database; and for nodes that began anew.
_REPLY_SECONDS, _NODE_SECONDS = 0.2, 2.0


class SuperLinkGrid(WrappedGrid):
    """Wraps the Grid that Flower gives a ServerApp whose clients are machines of their own.

    Flower's looks for replies every three seconds. And a node that is stopped and started again between two of its
    looks has forgotten its message, while the SuperLink goes on waiting for the reply; here the message comes back
    with an error.
    """

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return the replies in the order in which they came.

        Args:
            messages: what to send.
            timeout: seconds to wait for replies; None waits for all.
        """
        sent = list(messages)
        began = self._activations()
        pushed = {number for number in self.push_messages(sent) if number}
        waiting = {message.metadata.message_id: message for message in sent if message.metadata.message_id in pushed}
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        looked = time.monotonic()
        while waiting:
            # Nodes first: what a node sent before it began anew is then among the replies.
            lost = set()
            if time.monotonic() - looked > _NODE_SECONDS:
                now, looked = self._activations(), time.monotonic()
                lost = {node for node in now.keys() & began.keys() if now[node] != began[node]}
            for reply in self.pull_messages(set(waiting)):
                waiting.pop(reply.metadata.reply_to_message_id, None)
                replies.append(reply)
            for number in [n for n, message in waiting.items() if message.metadata.dst_node_id in lost]:
                replies.append(_lost(waiting.pop(number)))
            if deadline is not None and time.monotonic() > deadline:
                break
            if waiting:
                time.sleep(_REPLY_SECONDS)
        return replies

    def _activations(self) -> dict[int, str]:
        """Return when each connected node connected."""
        return {node.node_id: node.last_activated_at for node in self._grid.get_nodes()}


def _lost(message: Message) -> Message:
    error = Error(ErrorCode.NODE_UNAVAILABLE, "its node was started again and has forgotten the message")
    return Message(error, reply_to=message)
