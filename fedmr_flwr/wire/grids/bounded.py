"""`BoundedGrid`: a Grid that fetches no reply that is larger than its message asked for."""

from collections.abc import Iterable

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedmr_flwr.wire.flower import replies
from fedmr_flwr.wire.flower.replies import NodeInfo
from fedmr_flwr.wire.grids.wrapped import WrappedGrid
from fedmr_flwr.wire.messages import ARRAYS, RETURNS
from fedmr_flwr.wire.npy import size

# For everything in a reply but its arrays: names, numbers, and what Flower adds to each array.
_BESIDE_ARRAYS = 1 << 20


class BoundedGrid(WrappedGrid):
    """Wraps the Grid that Flower passes to the ServerApp of a deployment, and limits the size of each reply.

    A node could otherwise fill the server's memory. A larger reply arrives as an error with the code REFUSED.

    Args:
        grid: Flower's.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self._most: dict[str, int] = {}  # bytes of each reply to come, by its message

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the connected nodes."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, and remember how large the reply to each may be."""
        sent = list(messages)
        accepted = self._grid.push_messages(sent)
        self._most |= {message.metadata.message_id: most_bytes(message) for message in sent}
        return accepted

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have arrived."""
        found = replies.pull(self._grid, message_ids, lambda message: self._most.get(message, _BESIDE_ARRAYS))
        for reply in found:
            self._most.pop(reply.metadata.reply_to_message_id, None)
        return found


def most_bytes(message: Message) -> int:
    """Return how many bytes the reply to a message may have.

    A client that trains returns the arrays that it got and the vectors that the message names; others return numbers.
    """
    if message.metadata.message_type != MessageType.TRAIN:
        return _BESIDE_ARRAYS
    lengths = message.content.config_records.get(RETURNS, {}).values()
    vectors = sum(4 * length for length in lengths if isinstance(length, int))
    return _BESIDE_ARRAYS + vectors + sum(map(size, message.content.array_records[ARRAYS].values()))
