"""The Grid of a SuperLink: fetches replies as soon as they are there, and knows what has got lost on the way."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flwr.app import Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError, pull_objects
from flwr.superlink.grid import http_grid

from fedmr_flwr.wire.checks import NOT_A_NODES
from fedmr_flwr.wire.grids.wrapped import WrappedGrid

_log = logging.getLogger(__name__)
# Between looks for replies, which cost the SuperLink a query of its database; and for nodes that began anew.
_REPLY_SECONDS, _NODE_SECONDS = 0.4, 2.0
# Until a part of a message that is still being uploaded is asked for again; each time it is twice as long.
PART_SECONDS = 0.1
# Until a silent node is asked whether it is idle, between such questions, and until a reply is given up of which no
# part comes any more; and how long a question stays open, so that a node that trains for longer never sees it.
_SILENT_SECONDS, _QUESTION_SECONDS = 60.0, 30.0
# How often a message is sent again whose reply the SuperLink has not got whole.
_TRIES = 3


class SuperLinkGrid(WrappedGrid):
    """Wraps the Grid that Flower gives a ServerApp whose clients are machines of their own.

    Flower's looks for replies every three seconds, and waits a second and more if one is still being uploaded then.
    And it waits in vain for two kinds of messages.

    - A node that is stopped and started again has forgotten its message; here it comes back with an error.
    - If a connection breaks at the wrong moment, the SuperLink takes a message for delivered that never arrived, or
      a reply stays incomplete. As a node answers one message after the other, a question that it answers while
      the reply is still missing shows that it is idle. Then the message is sent again.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        # It has no setting for this.
        vars(http_grid)["pull_objects"] = pull_parts

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return the replies in the order in which they came.

        Args:
            messages: what to send.
            timeout: seconds to wait for replies; None waits for all.
        """
        exchange = _Exchange(self._grid, list(messages))
        start = looked = asked = time.monotonic()
        while exchange.waiting:
            # Nodes first: what a node sent before it began anew is then among the replies.
            begun_anew: set[int] = set()
            if time.monotonic() - looked > _NODE_SECONDS:
                begun_anew, looked = exchange.begun_anew(), time.monotonic()
            exchange.pull()
            exchange.give_up(begun_anew)
            if time.monotonic() - asked > _SILENT_SECONDS:
                exchange.ask()
                asked = time.monotonic()
            if timeout is not None and time.monotonic() - start > timeout:
                break
            if exchange.waiting:
                time.sleep(_REPLY_SECONDS)
        return exchange.replies


def pull_parts(object_ids: list[str], pull_object_fn: Callable[[str], bytes], **options: Any) -> dict[str, bytes]:
    """Fetch the parts of a reply, as Flower's `pull_objects`, soon and not for ever.

    If the connection breaks while a node announces a reply, it may believe that all of it has arrived. Flower waits
    three minutes for parts that no one sends. The names are Flower's.

    Args:
        object_ids: of the parts.
        pull_object_fn: fetches one, or raises `ObjectUnavailableError` if it is not there yet.
        **options: of `pull_objects`.

    Raises:
        ObjectPullError: for a minute no part has come.
    """
    last = time.monotonic()

    def one(part: str) -> bytes:
        nonlocal last
        try:
            content = pull_object_fn(part)
        except ObjectUnavailableError:
            if time.monotonic() - last > _SILENT_SECONDS:
                raise ObjectPullError(part, f"nothing has come for {_SILENT_SECONDS:g} s") from None
            raise
        last = time.monotonic()
        return content

    return pull_objects(object_ids, one, initial_backoff=PART_SECONDS, **options)


class _Exchange:
    """Messages on their way.

    Args:
        grid: of the SuperLink.
        messages: what to send.

    Attributes:
        waiting: messages without a reply, by the identifiers under which they were sent.
        replies: in the order in which they came.
    """

    def __init__(self, grid: Grid, messages: Sequence[Message]) -> None:
        self._grid = grid
        self._began = self._activations()
        self.waiting = self._push(messages)
        self.replies: list[Message] = []
        self._questions: dict[str, Message] = {}
        self._incomplete: Counter[int] = Counter()

    def pull(self) -> None:
        """Take the replies that are there, and send again what got lost."""
        idle = set()
        for reply in self._grid.pull_messages({*self.waiting, *self._questions}):
            number = reply.metadata.reply_to_message_id
            unsaid = not reply.has_content() and reply.error.code in NOT_A_NODES
            if question := self._questions.pop(number, None):
                if not unsaid:
                    idle.add(question.metadata.dst_node_id)
            elif message := self.waiting.pop(number, None):
                away = unsaid and reply.error.code == ErrorCode.NODE_UNAVAILABLE
                if unsaid and not away and self._incomplete[id(message)] < _TRIES:
                    self._incomplete[id(message)] += 1
                    self._push_again(message)
                else:
                    self._finish(message, reply)
        for message in self._waiting_for(idle):
            self._push_again(message)

    def give_up(self, nodes: set[int]) -> None:
        """Answer for nodes that have forgotten their messages."""
        error = Error(ErrorCode.NODE_UNAVAILABLE, "its node was started again and has forgotten the message")
        for message in self._waiting_for(nodes):
            self._finish(message, Message(error, reply_to=message))

    def ask(self) -> None:
        """Ask the nodes that are waited for something that each answers at once, if it is not busy."""
        nodes = {message.metadata.dst_node_id for message in self.waiting.values()}
        questions = [Message(RecordDict(), node, MessageType.QUERY, ttl=_QUESTION_SECONDS) for node in sorted(nodes)]
        self._questions |= self._push(questions)

    def begun_anew(self) -> set[int]:
        """Return the nodes that have connected again since the messages were sent."""
        now = self._activations()
        return {node for node in now.keys() & self._began.keys() if now[node] != self._began[node]}

    def _activations(self) -> dict[int, str]:
        return {node.node_id: node.last_activated_at for node in self._grid.get_nodes()}

    def _push(self, messages: Sequence[Message]) -> dict[str, Message]:
        """Send messages; return those that the SuperLink took, by identifier."""
        taken = set(self._grid.push_messages(messages))
        return {message.metadata.message_id: message for message in messages if message.metadata.message_id in taken}

    def _push_again(self, message: Message) -> None:
        """Send a message once more, which needs a new one."""
        node = message.metadata.dst_node_id
        _log.warning("node %d: a message or its reply got lost on the way; it is sent again", node)
        self.waiting |= dict.fromkeys(
            self._push([Message(message.content, node, message.metadata.message_type)]), message
        )

    def _waiting_for(self, nodes: set[int]) -> list[Message]:
        """Return the messages that these nodes have not answered, each once."""
        found = {id(message): message for message in self.waiting.values() if message.metadata.dst_node_id in nodes}
        return list(found.values())

    def _finish(self, message: Message, reply: Message) -> None:
        """Count a reply as the one to the message that was sent first."""
        reply.metadata.__dict__["_reply_to_message_id"] = message.metadata.message_id
        self.replies.append(reply)
        self.waiting = {number: other for number, other in self.waiting.items() if other is not message}
