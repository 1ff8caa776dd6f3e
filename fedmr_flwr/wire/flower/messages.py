"""What Flower fills in when a message travels: its identifier, the message that it answers, and codes of errors."""

from uuid import uuid4

from flwr.app import Message
from flwr.common.constant import ErrorCode

__all__ = ["ErrorCode", "assign_id", "set_reply_to"]


def assign_id(message: Message) -> Message:
    """Give a message an identifier of its own, and return it."""
    message.metadata.__dict__["_message_id"] = str(uuid4())
    return message


def set_reply_to(reply: Message, message: Message) -> None:
    """Make a reply that of another message and its node, for example of the message whose second copy it answers."""
    reply.metadata.__dict__["_reply_to_message_id"] = message.metadata.message_id
    reply.metadata.__dict__["_src_node_id"] = message.metadata.dst_node_id
