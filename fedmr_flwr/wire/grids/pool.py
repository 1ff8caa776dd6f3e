"""The Grid of a simulation: any of Flower's nodes trains any client."""

from collections.abc import Iterable, Mapping

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedmr_flwr.wire.flower.messages import assign_id, set_reply_to
from fedmr_flwr.wire.grids.attendance import wait_for_nodes
from fedmr_flwr.wire.grids.wrapped import WrappedGrid
from fedmr_flwr.wire.messages import CLIENT, CONFIG


class PoolGrid(WrappedGrid):
    """Wraps the Grid of Flower's simulation: one node for each client, however many nodes the simulation has.

    All processes of a simulation read the same data, so a message can name the client that it is for. That is why
    `flwr run .` trains any number of clients with the nodes of Flower's default configuration.

    Args:
        grid: of the simulation.
        clients: N; the nodes of this Grid are 1 to N.
        patience: seconds to wait for the first node of the simulation.
    """

    def __init__(self, grid: Grid, clients: int, patience: float = 120.0) -> None:
        super().__init__(grid)
        self._clients = clients
        self._patience = patience
        self._carried: dict[str, Message] = {}  # by the identifier of the message that carries it

    def get_node_ids(self) -> list[int]:
        """Return 1 to N."""
        return list(range(1, self._clients + 1))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages, and return their identifiers."""
        sent = [assign_id(message) for message in messages]
        carriers = self._carriers(sent)
        self._grid.push_messages(carriers)
        self._carried |= {
            carrier.metadata.message_id: message for carrier, message in zip(carriers, sent, strict=True)
        }
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have arrived."""
        wanted = set(message_ids)
        carriers = [carrier for carrier, message in self._carried.items() if message.metadata.message_id in wanted]
        replies = _replies(list(self._grid.pull_messages(carriers)), self._carried)
        answered = {reply.metadata.reply_to_message_id for reply in replies}
        self._carried = {
            carrier: message
            for carrier, message in self._carried.items()
            if message.metadata.message_id not in answered
        }
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return the replies."""
        sent = [assign_id(message) for message in messages]
        carriers = self._carriers(sent)
        replies = list(self._grid.send_and_receive(carriers, timeout=timeout))
        carried = {carrier.metadata.message_id: message for carrier, message in zip(carriers, sent, strict=True)}
        return _replies(replies, carried)

    def _carriers(self, messages: list[Message]) -> list[Message]:
        """Return the messages to the nodes of the simulation that carry these."""
        nodes = sorted(wait_for_nodes(self._grid, 1, self._patience))
        return [_carrier(message, nodes) for message in messages]


def _replies(replies: list[Message], carried: Mapping[str, Message]) -> list[Message]:
    """Make replies to the carriers those to the messages that they carried."""
    for reply in replies:
        if message := carried.get(reply.metadata.reply_to_message_id):
            set_reply_to(reply, message)
    return replies


def _carrier(message: Message, nodes: list[int]) -> Message:
    client = message.metadata.dst_node_id - 1
    config = message.content.config_records.get(CONFIG, ConfigRecord())
    content = RecordDict({**message.content, CONFIG: ConfigRecord({**config, CLIENT: client})})
    facts = message.metadata
    node = nodes[client % len(nodes)]
    return Message(content, node, facts.message_type, ttl=facts.ttl, group_id=facts.group_id)
