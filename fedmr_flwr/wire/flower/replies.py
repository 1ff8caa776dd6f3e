"""Fetching replies from a SuperLink: each no larger than it may be, and none that cannot be put together."""

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Array, Error, Message
from flwr.app.message import make_message
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, inflate_object_from_contents
from flwr.superlink.grid import HttpGrid

from fedmr_flwr.errors import RecordError
from fedmr_flwr.wire.flower.messages import REFUSED, ErrorCode
from fedmr_flwr.wire.flower.parts import pull_or_give_up

__all__ = ["NodeInfo", "pull"]


def pull(grid: Grid, message_ids: Iterable[str], most_bytes: Callable[[str], int]) -> list[Message]:
    """Return the replies that have arrived, as Flower's `pull_messages`, but none that is too large.

    Flower's own fetches whatever a node has uploaded, and puts it together in memory. Here the parts of a reply are
    counted while they are fetched, and as they will be after that: an array may name a part any number of times.

    Args:
        grid: the one that Flower gives the ServerApp of a deployment.
        message_ids: of the messages.
        most_bytes: returns how large the reply to a message may be.

    Returns:
        The replies; instead of one that is too large or damaged an error with the code REFUSED, and instead of one
        that has not arrived whole Flower's error.
    """
    assert isinstance(grid, HttpGrid)
    link, run_id = grid._runtime_client, grid.run.run_id
    fetch = make_pull_object_fn_protobuf(link.PullObject, grid.node, run_id)
    found = link.PullMessages(_request_for(message_ids))
    replies = []
    for head, tree in zip(found.messages_list, found.message_object_trees, strict=True):
        part_ids = [part.object_id for part in iterate_object_tree(tree)]
        most = most_bytes(head.metadata.reply_to_message_id)
        # The SuperLink's own: what a node writes into its reply could name another node's message.
        facts = metadata_from_proto(head.metadata)
        try:
            sent = _whole(tree.object_id, pull_or_give_up(part_ids, _counted(fetch, most)), most)
            content = sent.content if sent.has_content() else None
            reply = make_message(facts, content, None if content is not None else sent.error)
        except ObjectPullError as error:
            reason = f"the reply is incomplete: {error}"
            replies.append(make_message(facts, error=Error(ErrorCode.MESSAGE_UNAVAILABLE, reason)))
            continue
        except RecordError as error:
            reply = make_message(facts, error=Error(REFUSED, str(error)))
        # For a refused one, too: the SuperLink forgets its parts now, and not only when the run ends.
        link.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=grid.node, run_id=run_id, message_object_id=tree.object_id)
        )
        replies.append(reply)
    return replies


def _request_for(message_ids: Iterable[str]) -> PullAppMessagesRequest:
    """Return the request for the replies to messages, with the fields of the installed Flower."""
    if "message_ids" in PullAppMessagesRequest.DESCRIPTOR.fields_by_name:  # up to 1.42
        return PullAppMessagesRequest(message_ids=message_ids)
    newer: dict[str, Any] = {"reply_to_message_ids": {"vals": list(message_ids)}}
    return PullAppMessagesRequest(**newer)


def _counted(fetch: Callable[[str], bytes], most: int) -> Callable[[str], bytes]:
    """Return a function that fetches parts until they are more than `most` bytes."""
    fetched, lock = 0, threading.Lock()

    def fetch_counted(part: str) -> bytes:
        nonlocal fetched
        content = fetch(part)
        with lock:
            fetched += len(content)
            if fetched > most:
                raise _too_large(most)
        return content

    return fetch_counted


def _whole(message_id: str, parts: dict[str, bytes], most: int) -> Message:
    """Return the message that parts make.

    Raises:
        RecordError: they make none, or a larger one than `most` bytes.
    """
    try:
        if _size(parts) > most:
            raise _too_large(most)
        message = inflate_object_from_contents(message_id, parts)
        assert isinstance(message, Message)
    except RecordError:
        raise
    except Exception as error:  # anybody may have written the parts, and Flower's reader fails in many ways
        raise RecordError(f"the reply cannot be read: {type(error).__name__}: {error}") from None
    return message


def _size(parts: Mapping[str, bytes]) -> int:
    """Return the bytes of all arrays once they are put together."""
    size = 0
    for content in parts.values():
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind == Array.__qualname__:
            order: list[int] = json.loads(get_object_body(content, Array))["arraychunk_ids"]
            size += sum(len(parts[children[place]]) for place in order)
    return size


def _too_large(most: int) -> RecordError:
    return RecordError(f"the reply has more than the {most:,} bytes that were asked for")
