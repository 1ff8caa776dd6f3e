import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedmr_flwr.errors import RunError
from fedmr_flwr.wire.grids.roster import RosterGrid

MODEL = ArrayRecord({"floats": Array(np.zeros(3, np.float32))})


def train_messages(grid):
    return [Message(RecordDict({"arrays": MODEL}), node, "train") for node in grid.get_node_ids()]


def test_nodes_in_client_order(grid_of, answer):
    # The number travels back as the client's loss, so the order of get_node_ids can be seen.
    inner = grid_of(lambda message, client: answer(MODEL, loss=client), clients=8)
    grid = RosterGrid(inner, clients=8)
    replies = grid.send_and_receive(train_messages(grid))
    assert [reply.content["metrics"]["loss"] for reply in replies] == list(range(8))


def test_replies_in_message_order(grid_of, answer, monkeypatch):
    inner = grid_of(lambda message, client: answer(MODEL, loss=client), clients=6)
    grid = RosterGrid(inner, clients=6)
    honest = inner.send_and_receive
    monkeypatch.setattr(inner, "send_and_receive", lambda *a, **k: honest(*a, **k)[::-1])
    replies = grid.send_and_receive(train_messages(grid))
    assert [reply.content["metrics"]["loss"] for reply in replies] == list(range(6))


def test_stray_replies_come_last(grid_of, answer, monkeypatch):
    inner = grid_of(lambda message, client: answer(MODEL, loss=client), clients=2)
    grid = RosterGrid(inner, clients=2)
    honest = inner.send_and_receive
    stray = Message(RecordDict(), reply_to=Message(RecordDict(), 1, "train"))
    monkeypatch.setattr(inner, "send_and_receive", lambda *a, **k: [stray, *honest(*a, **k)])
    assert grid.send_and_receive(train_messages(grid))[-1] is stray


def test_bytes_are_counted_by_record(grid_of):
    extra = ArrayRecord({"c": Array(np.zeros(5, np.float32)), "d": Array(np.zeros(2, np.int64))})

    def reply(message, client):
        if client == 1:
            raise ValueError("lost")
        metrics = MetricRecord({"num-examples": 1})
        return RecordDict({"arrays": MODEL, "control": extra, "metrics": metrics})

    grid = RosterGrid(grid_of(reply, clients=3), 3)
    contents = [RecordDict({"arrays": MODEL, "config": ConfigRecord({"x": 1})}) for _ in range(3)]
    contents[2]["generator"] = extra
    nodes = grid.get_node_ids()
    exchange = grid.exchange([Message(content, node, "train") for content, node in zip(contents, nodes, strict=True)])
    model, more = (sum(len(array.data) for array in record.values()) for record in (MODEL, extra))
    assert exchange.bytes_down == {"arrays": 3 * model, "generator": more}
    assert exchange.bytes_up == {"arrays": 2 * model, "control": 2 * more}


def test_examples_need_every_client(grid_of, answer, monkeypatch):
    inner = grid_of(lambda message, client: answer(MODEL), 4, stated=True)
    assert RosterGrid(inner, 4).examples.tolist() == [1, 2, 3, 4]
    honest = inner.send_and_receive
    for wrong in (None, 0, -1, 1.5, 10**20):

        def meddle(messages, timeout=None, wrong=wrong):
            replies = honest(messages)
            metrics = replies[2].content["metrics"]
            replies[2].content["metrics"] = MetricRecord(
                {"client": metrics["client"], **({} if wrong is None else {"num-examples": wrong})}
            )
            return replies

        monkeypatch.setattr(inner, "send_and_receive", meddle)
        assert RosterGrid(inner, 4).examples is None


def test_silent_clients_are_counted(grid_of, answer):
    inner = grid_of(lambda message, client: answer(MODEL), clients=4)
    honest = inner.send_and_receive
    inner.send_and_receive = lambda messages, timeout=None: list(honest(messages))[:1]
    with pytest.raises(
        RunError, match="only 1 of the 4 .*; 3 did not reply within 600 s, perhaps because they are still reading"
    ):
        RosterGrid(inner, 4)


def test_unnumbered_clients_in_node_order(grid_of, answer):
    inner = grid_of(lambda message, client: answer(MODEL), clients=4, numbered=False)
    assert RosterGrid(inner).get_node_ids() == [*inner.get_node_ids()], "they registered in this order"
    assert [node.node_id for node in RosterGrid(inner).get_nodes()] == [*inner.get_node_ids()]
    with pytest.raises(
        RunError, match="only 0 of the 4 clients 0 to 3 replied; 4 refused, the first one: ValueError"
    ):
        RosterGrid(inner, clients=4)


def test_unnumbered_nodes_may_come_late(grid_of, answer, monkeypatch):
    inner = grid_of(lambda message, client: answer(MODEL), clients=5, numbered=False)
    nodes, looks = inner.get_node_ids(), []
    monkeypatch.setattr(inner, "get_node_ids", lambda: looks.append(1) or nodes[: len(looks)])
    grid = RosterGrid(inner, at_least=3)
    assert len(grid.get_node_ids()) == 3
    assert len(grid.get_node_ids()) == 4, "one more has come meanwhile"


@pytest.mark.parametrize("nodes", [2, 7])
def test_wrong_node_count_is_refused(grid_of, answer, nodes):
    inner = grid_of(lambda message, client: answer(MODEL), clients=nodes)
    with pytest.raises(RunError, match="num-supernodes=5"):
        RosterGrid(inner, clients=5, patience=0.2)


def test_waits_for_late_nodes(grid_of, answer, monkeypatch):
    inner = grid_of(lambda message, client: answer(MODEL), clients=3)
    nodes, looks = inner.get_node_ids(), []
    monkeypatch.setattr(inner, "get_node_ids", lambda: looks.append(1) or nodes[: len(looks)])
    assert len(RosterGrid(inner, clients=3).get_node_ids()) == 3


def test_delegates_to_the_wrapped_grid(grid_of, answer):
    inner = grid_of(lambda message, client: answer(MODEL), clients=2)
    grid = RosterGrid(inner, clients=2)
    assert grid.run == inner.run
    message = grid.create_message(RecordDict({"arrays": MODEL}), "train", grid.get_node_ids()[1], "3")
    (identifier,) = grid.push_messages([message])
    (reply,) = grid.pull_messages([identifier])
    assert reply.metadata.group_id == "3"
    assert reply.has_content()


def test_states_the_client_of_each_message(grid_of, answer):
    grid = RosterGrid(grid_of(lambda message, client: answer(MODEL), clients=5), clients=5)
    nodes = grid.get_node_ids()
    messages = [Message(RecordDict({"arrays": MODEL}), nodes[at], "train") for at in (3, 0, 4)]
    assert grid.exchange(messages).clients == (3, 0, 4)


def test_hands_on_the_timeout(grid_of, answer, monkeypatch):
    inner = grid_of(lambda message, client: answer(MODEL), clients=2)
    grid = RosterGrid(inner, clients=2)
    waited = []
    honest = inner.send_and_receive
    monkeypatch.setattr(
        inner, "send_and_receive", lambda messages, timeout=None: waited.append(timeout) or honest(messages)[:1]
    )
    replies = grid.send_and_receive(train_messages(grid), timeout=7.5)
    assert waited == [7.5]
    assert len(replies) == 1


def test_client_of_another_size_is_refused(grid_of, answer):
    inner = grid_of(lambda message, client: answer(MODEL), clients=3, stated=True)
    assert RosterGrid(inner, 3, sizes=[1, 2, 3]).stated_examples == {0: 1, 1: 2, 2: 3}
    with pytest.raises(RunError, match="1 refused, the first one: client 2 states 3 examples, but has 600"):
        RosterGrid(inner, 3, sizes=[1, 2, 600])
