"""The in-process engine: a Grid that calls the client app directly, for tests, debugging and small machines."""

import secrets
from collections.abc import Iterable, Sequence
from copy import copy

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedmr_flwr.errors import describe
from fedmr_flwr.wire.flower.messages import ErrorCode, assign_id
from fedmr_flwr.wire.flower.nodes import NodeInfo
from fedmr_flwr.wire.flower.tasks import Run, enter_task


class InProcessGrid(Grid):
    """A Grid whose clients run in this process, one after another.

    Args:
        client_app: the app of every client.
        clients: their number; they are numbered 0..clients-1.
    """

    def __init__(self, client_app: ClientApp, clients: int) -> None:
        self._app = client_app
        self._run = enter_task()
        # Random like Flower's, so that no code comes to rely on identifiers in the order of the clients.
        self._numbers = {secrets.randbits(62) + 1: client for client in range(clients)}
        self._contexts: dict[int, Context] = {}
        self._replies: dict[str, Message] = {}

    @property
    def run(self) -> Run:
        """An empty description of a run."""
        return self._run

    def set_run(self, run: Run) -> None:
        """Set the description of the run."""
        self._run = run

    def get_node_ids(self) -> list[int]:
        """Return the clients' node identifiers."""
        return list(self._numbers)

    def get_nodes(self) -> list[NodeInfo]:
        """Return the nodes, registered in the order of the clients, as in Flower's simulation."""
        return [NodeInfo(node_id=node, registered_at=f"{client:09}") for node, client in self._numbers.items()]

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Call the clients, keep their replies, and return the messages' identifiers."""
        pushed = [assign_id(message) for message in messages]
        for message, reply in zip(pushed, self._handle_all(pushed), strict=True):
            self._replies[message.metadata.message_id] = assign_id(reply)
        return [message.metadata.message_id for message in pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these messages, and forget them."""
        return [self._replies.pop(identifier) for identifier in message_ids if identifier in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Call the clients and return their replies; a direct call never times out."""
        return self.pull_messages(self.push_messages(messages))

    def _handle_all(self, messages: Sequence[Message]) -> list[Message]:
        """Return the replies to these messages, in their order."""
        return [self._handle(message) for message in messages]

    def _handle(self, message: Message) -> Message:
        # Each client gets its own records, so that changes do not reach other clients; the bytes are shared.
        own = copy(message)
        own.content = RecordDict(
            {name: type(record)(dict(record)) for name, record in message.content.items()}  # type: ignore[arg-type]
        )
        try:
            reply = self._call(own)
            if not isinstance(reply, Message):
                raise TypeError(f"the ClientApp returned {type(reply).__name__}, not a Message")
            return reply
        except Exception as error:  # as under Flower, any exception is this client's failure
            return failed(message, describe(error))

    def _call(self, message: Message) -> Message:
        context = self._context_of(message)
        try:
            return self._app(message, context)
        finally:
            if context.state:  # most clients keep nothing, and then cost no memory between messages
                self._contexts[message.metadata.dst_node_id] = context

    def _context_of(self, message: Message) -> Context:
        node = message.metadata.dst_node_id
        return self._contexts.get(node) or self._new_context(self._numbers[node])

    def _new_context(self, client: int) -> Context:
        return Context(
            run_id=self._run.run_id,
            node_id=0,
            node_config={"partition-id": client, "num-partitions": len(self._numbers)},
            state=RecordDict(),
            run_config={},
        )


def failed(message: Message, reason: str) -> Message:
    """Return the reply that reports a client's exception."""
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
