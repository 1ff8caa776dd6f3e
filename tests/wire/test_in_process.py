import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedmr_flwr.wire.grids.in_process import InProcessGrid

MODEL = ArrayRecord({"floats": Array(np.zeros(3, np.float32))})


def messages(grid):
    return [Message(RecordDict({"arrays": MODEL}), node, "train") for node in grid.get_node_ids()]


def test_every_message_gets_its_reply(grid_of, answer):
    grid = grid_of(lambda message, client: answer(MODEL, loss=client), clients=4)
    sent = messages(grid)
    replies = grid.send_and_receive(sent, timeout=1)
    assert [reply.metadata.reply_to_message_id for reply in replies] == [m.metadata.message_id for m in sent]
    assert len({reply.metadata.message_id for reply in replies}) == 4
    assert sorted(reply.content["metrics"]["loss"] for reply in replies) == [0, 1, 2, 3]


def test_node_identifiers_are_random(grid_of, answer):
    a, b = (grid_of(lambda message, client: answer(MODEL), clients=3) for _ in range(2))
    assert not set(a.get_node_ids()) & set(b.get_node_ids())


def test_exception_becomes_an_error_reply(grid_of):
    def reply(message, client):
        if client == 1:
            raise MemoryError("too large")
        return RecordDict()

    grid = grid_of(reply, clients=3)
    replies = grid.send_and_receive(messages(grid))
    errors = [reply.error for reply in replies if reply.has_error()]
    # After the message the place in the code that failed, as it is none of this package.
    assert [(error.code, error.reason.partition(" (")[0]) for error in errors] == [(2, "MemoryError: too large")]


def test_no_return_is_an_error_reply(grid_of):
    app = ClientApp()
    app.train()(lambda message, context: None)
    (reply,) = (grid := InProcessGrid(app, 1)).send_and_receive(messages(grid))
    assert reply.has_error()


def test_clients_cannot_change_messages(grid_of, answer):
    def reply(message, client):
        value = message.content["arrays"]["floats"].numpy()[0] + 1
        message.content["arrays"]["floats"] = Array(np.full(3, value, np.float32))
        return answer(message.content["arrays"])

    grid = grid_of(reply, clients=3)
    replies = grid.send_and_receive(messages(grid))
    assert [reply.content["arrays"]["floats"].numpy()[0] for reply in replies] == [1, 1, 1]
    assert MODEL["floats"].numpy()[0] == 0


def test_replies_are_pulled_once(grid_of, answer):
    grid = grid_of(lambda message, client: answer(MODEL), clients=1)
    identifiers = grid.push_messages(messages(grid))
    assert len(grid.pull_messages(identifiers)) == 1
    assert grid.pull_messages(identifiers) == []


def test_clients_keep_their_own_context():
    app = ClientApp()

    @app.train()
    def train(message, context):
        seen = context.state.get("seen", MetricRecord({"count": 0}))["count"] + 1
        context.state["seen"] = MetricRecord({"count": seen})
        if seen == 2:
            raise ValueError("the second time")
        client = context.node_config["partition-id"]
        return Message(RecordDict({"metrics": MetricRecord({"seen": seen, "client": client})}), reply_to=message)

    grid = InProcessGrid(app, 3)
    nodes = grid.get_node_ids()

    def ask(*clients):
        messages = [Message(RecordDict(), nodes[client], MessageType.TRAIN) for client in clients]
        replies = grid.send_and_receive(messages)
        return [dict(reply.content["metrics"]) if reply.has_content() else "error" for reply in replies]

    assert ask(0, 1) == [{"seen": 1, "client": 0}, {"seen": 1, "client": 1}]
    assert ask(0, 2) == ["error", {"seen": 1, "client": 2}]
    assert ask(0) == [{"seen": 3, "client": 0}], "what it kept before it failed is there"
