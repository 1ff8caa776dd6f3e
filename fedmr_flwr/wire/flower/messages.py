"""Metadata that Flower sets when a message is sent: its identifier, the message it replies to, and error codes."""

from uuid import uuid4

from flwr.app import Message
from flwr.common.constant import ErrorCode

__all__ = ["REFUSED", "ErrorCode", "assign_id", "set_reply_to"]

# A code of our own, for a reply that is refused before it is decoded.
REFUSED = 1000


def assign_id(message: Message) -> Message:
    """Set a new identifier for a message, and return the message."""
    # Flower has no public setter: its own Grid sets the identifier when it sends the message.
    message.metadata.__dict__["_message_id"] = str(uuid4())
    return message


def set_reply_to(reply: Message, message: Message) -> None:
    """Set the message that a reply belongs to, and its node: for example the original of a message sent again."""
    reply.metadata.__dict__["_reply_to_message_id"] = message.metadata.message_id
    reply.metadata.__dict__["_src_node_id"] = message.metadata.dst_node_id
