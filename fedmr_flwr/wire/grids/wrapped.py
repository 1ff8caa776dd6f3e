"""`WrappedGrid`: the base of Grids that extend another Grid."""

from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedmr_flwr.wire.flower.nodes import NodeInfo
from fedmr_flwr.wire.flower.tasks import Run


class WrappedGrid(Grid):
    """Passes every call on to another Grid; a subclass overrides some.

    Args:
        grid: the wrapped Grid.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

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

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes of the wrapped Grid."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return what the wrapped Grid knows of this Grid's nodes."""
        known = {node.node_id: node for node in self._grid.get_nodes()}
        return [known.get(node, NodeInfo(node_id=node)) for node in self.get_node_ids()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages with the wrapped Grid."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Fetch replies from the wrapped Grid, unchecked."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages with the wrapped Grid and return the replies."""
        return self._grid.send_and_receive(messages, timeout=timeout)
