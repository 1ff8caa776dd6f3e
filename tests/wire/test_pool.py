"""A simulation with another number of nodes than clients."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedmr_flwr.wire.checks import judge
from fedmr_flwr.wire.grids.in_process import InProcessGrid
from fedmr_flwr.wire.grids.pool import PoolGrid
from fedmr_flwr.wire.grids.roster import RosterGrid

MODEL = ArrayRecord({"floats": Array(np.zeros(3, np.float32))})


@pytest.fixture
def nodes():
    """A simulation of two nodes, whose reply is the client that a message names; client 3 fails."""
    app = ClientApp()

    def reply(message, context):
        client = message.content["config"]["client"]
        if client == 3 and message.metadata.message_type == "train":
            raise RuntimeError("no data")
        metrics = MetricRecord({"client": client, "num-examples": client + 1})
        content = {"metrics": metrics, **dict(message.content.array_records)}
        return Message(RecordDict(content), reply_to=message)

    app.query()(reply)
    app.train()(reply)
    return InProcessGrid(app, 2)


def train_messages(grid, clients):
    nodes = grid.get_node_ids()
    content = [RecordDict({"arrays": MODEL, "config": ConfigRecord({"x": 1})}) for _ in clients]
    return {client: Message(own, nodes[client], "train") for client, own in zip(clients, content, strict=True)}


def test_two_nodes_answer_for_five_clients(nodes):
    grid = RosterGrid(PoolGrid(nodes, 5), 5)
    sent = train_messages(grid, [4, 0, 2])
    judged = judge(sent, grid.send_and_receive(sent.values()))
    assert {client: reply.content["metrics"]["client"] for client, reply in judged.good.items()} == {4: 4, 0: 0, 2: 2}
    assert judged.failures == ()


def test_clients_state_their_examples(nodes):
    assert RosterGrid(PoolGrid(nodes, 5), 5).examples.tolist() == [1, 2, 3, 4, 5]


def test_a_failure_is_that_of_its_client(nodes):
    grid = RosterGrid(PoolGrid(nodes, 5), 5)
    sent = train_messages(grid, [1, 3])  # both by the second node
    judged = judge(sent, grid.send_and_receive(sent.values()))
    assert [*judged.good] == [1]
    told = [(failure.client, failure.reason.partition(" (")[0]) for failure in judged.failures]
    assert told == [(3, "RuntimeError: no data")]


def test_shared_messages_stay_unchanged(nodes):
    grid = PoolGrid(nodes, 5)
    sent = train_messages(grid, [0])
    grid.send_and_receive(sent.values())
    assert dict(sent[0].content["config"]) == {"x": 1}


def test_replies_can_be_pulled_later(nodes):
    grid = PoolGrid(nodes, 5)
    sent = train_messages(grid, [4, 2])
    first, second = grid.push_messages(sent.values())
    (reply,) = grid.pull_messages([second])
    assert (reply.metadata.src_node_id, reply.content["metrics"]["client"]) == (3, 2)
    (reply,) = grid.pull_messages([first, second])
    assert reply.metadata.reply_to_message_id == first
