"""Replies that are fetched in parts: how large they may be, and who they are from."""

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.superlink.grid import HttpGrid

from fedmr_flwr.wire.checks import find_problem
from fedmr_flwr.wire.flower.messages import REFUSED, assign_id
from fedmr_flwr.wire.flower.replies import pull
from fedmr_flwr.wire.flower.tasks import enter_task
from fedmr_flwr.wire.grids.bounded import BoundedGrid, most_bytes

MEGABYTE = 1 << 20
ARRAYS = ArrayRecord({"floats": Array(np.arange(3000, dtype=np.float32))})


def content(**more):
    return RecordDict({"arrays": ARRAYS, "metrics": MetricRecord({"num-examples": 5}), **more})


def zeros(megabytes):
    """An array of equal parts, which travels as one of them."""
    return ArrayRecord({"floats": Array(np.zeros(megabytes * MEGABYTE // 4, np.float32))})


def noise(megabytes):
    return ArrayRecord({"x": Array(np.random.default_rng(0).integers(0, 256, megabytes * MEGABYTE, np.uint8))})


class Link:
    """What a ServerApp sees of a SuperLink."""

    def __init__(self):
        self.replies, self.parts, self.fetched, self.confirmed = [], {}, 0, []

    def upload(self, reply, damage=lambda parts, root: None):
        proto, tree = message_to_proto(reply), get_object_tree(reply)
        parts = {name: part.deflate() for name, part in get_all_nested_objects(reply).items()}
        damage(parts, tree.object_id)
        proto.ClearField("content")
        proto.metadata.message_id = tree.object_id
        self.parts |= parts
        self.replies.append((proto, tree))

    def PullMessages(self, request):
        heads, trees = zip(*self.replies, strict=True)
        return PullAppMessagesResponse(messages_list=heads, message_object_trees=trees)

    def PullObject(self, request):
        part = self.parts[request.object_id]
        self.fetched += len(part)
        return PullObjectResponse(object_found=True, object_available=True, object_content=part)

    def ConfirmMessageReceived(self, request):
        self.confirmed.append(request.message_object_id)


@pytest.fixture
def link():
    return Link()


@pytest.fixture
def grid(link):
    grid = HttpGrid(token="any")
    grid.set_run(enter_task())
    grid._client = link
    return grid


@pytest.fixture
def sent():
    return assign_id(Message(content(), 7, "train"))


def the_reply(grid, most=MEGABYTE):
    (reply,) = pull(grid, [], lambda message: most)
    return reply


def test_good_reply_arrives_as_it_was_sent(link, grid, sent):
    link.upload(Message(content(), reply_to=sent))
    reply = the_reply(grid)
    assert reply.content == content()
    assert (reply.metadata.src_node_id, reply.metadata.reply_to_message_id) == (7, sent.metadata.message_id)
    assert link.confirmed == [reply.metadata.message_id]


def test_asks_for_the_replies_to_the_messages(link, grid, monkeypatch):
    asked = []
    monkeypatch.setattr(link, "PullMessages", lambda request: asked.append(request) or PullAppMessagesResponse())
    assert pull(grid, ["first", "second"], lambda message: MEGABYTE) == []
    assert all(number in str(asked) for number in ("first", "second")), "the field has another name in Flower 1.43"


@pytest.mark.slow
def test_large_reply_is_refused_before_it_is_whole(link, grid, sent):
    link.upload(Message(content(more=noise(40)), reply_to=sent))
    reply = the_reply(grid)
    assert (reply.error.code, reply.error.reason) == (
        REFUSED,
        "the reply has more than the 1,048,576 bytes that were asked for",
    )
    assert link.fetched < 20 * MEGABYTE, "the rest stays where it is"
    assert len(link.confirmed) == 1, "and is forgotten there"
    assert find_problem(reply, sent) == ("malformed", reply.error.reason)


@pytest.mark.slow
def test_reply_that_grows_when_it_is_put_together_is_refused(link, grid, sent):
    link.upload(Message(RecordDict({"arrays": zeros(200)}), reply_to=sent))
    assert the_reply(grid, 11 * MEGABYTE).error.code == REFUSED
    assert link.fetched < 11 * MEGABYTE
    link.replies.clear()
    link.upload(Message(RecordDict({"arrays": zeros(8)}), reply_to=sent))
    assert the_reply(grid, 11 * MEGABYTE).has_content()


@pytest.mark.parametrize("body", [b"", b"{}", json.dumps({"arraychunk_ids": [5]}).encode(), b"[" * 100_000])
def test_reply_that_cannot_be_put_together_is_refused(link, grid, sent, body):
    def damage(parts, root):
        for name, part in parts.items():
            if part.startswith(b"Array "):
                head = part[: part.index(b"\x00")]
                parts[name] = head + b"\x00" + body

    link.upload(Message(content(), reply_to=sent), damage)
    reply = the_reply(grid)
    assert reply.error.code == REFUSED
    assert reply.error.reason.startswith("the reply cannot be read")


def test_part_in_place_of_a_message_is_refused(link, grid, sent):
    def damage(parts, root):
        parts[root] = next(part for part in parts.values() if part.startswith(b"MetricRecord"))

    link.upload(Message(content(), reply_to=sent), damage)
    assert the_reply(grid).error.code == REFUSED


def test_node_cannot_reply_in_the_name_of_another(link, grid, sent):
    other = assign_id(Message(content(), 8, "train"))
    link.upload(Message(content(), reply_to=other))
    link.replies[0][0].metadata.src_node_id = 7  # what the SuperLink knows
    link.replies[0][0].metadata.reply_to_message_id = sent.metadata.message_id
    reply = the_reply(grid)
    assert (reply.metadata.src_node_id, reply.metadata.reply_to_message_id) == (7, sent.metadata.message_id)


def test_error_of_a_node_arrives(link, grid, sent):
    link.upload(Message(Error(2, "no memory"), reply_to=sent))
    assert find_problem(the_reply(grid), sent) == ("client-error", "no memory")


def test_bound_is_what_was_asked_for():
    model = len(ARRAYS["floats"].data)
    assert most_bytes(Message(content(), 7, "query")) == MEGABYTE
    assert most_bytes(Message(content(), 7, "evaluate")) == MEGABYTE
    assert most_bytes(Message(content(), 7, "train")) == MEGABYTE + model
    asked = content(returns=ConfigRecord({"control": 1000}))
    assert most_bytes(Message(asked, 7, "train")) == MEGABYTE + model + 4000


def test_bound_goes_with_the_message(link, grid, monkeypatch):
    bounded = BoundedGrid(grid)
    monkeypatch.setattr(grid, "push_messages", lambda messages: [assign_id(m).metadata.message_id for m in messages])
    large = RecordDict({"arrays": noise(3), "metrics": MetricRecord({"num-examples": 5})})
    messages = [Message(large, 7, "train"), Message(large, 8, "query")]
    bounded.push_messages(messages)
    for message in messages:
        link.upload(Message(large, reply_to=message))
    assert [reply.has_content() for reply in bounded.pull_messages([])] == [True, False]
