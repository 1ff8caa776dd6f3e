import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict

from fedmr_flwr.errors import FederationError
from fedmr_flwr.roster import RosterGrid

MODEL = ArrayRecord({"floats": Array(np.zeros(3, np.float32))})


def train_messages(grid):
    return [Message(RecordDict({"arrays": MODEL}), node, "train") for node in grid.get_node_ids()]


def test_nodes_come_in_the_order_of_the_clients_numbers(grid_of, answer):
    # The number travels back as the client's loss, so the order of get_node_ids can be seen.
    inner = grid_of(lambda message, client: answer(MODEL, loss=client), clients=8)
    grid = RosterGrid(inner, clients=8)
    replies = grid.send_and_receive(train_messages(grid))
    assert [reply.content["metrics"]["loss"] for reply in replies] == list(range(8))
    assert grid.exchange.replies == 8
    assert grid.exchange.failures == ()


def test_replies_come_in_the_order_of_the_messages(grid_of, answer, monkeypatch):
    inner = grid_of(lambda message, client: answer(MODEL, loss=client), clients=6)
    grid = RosterGrid(inner, clients=6)
    honest = inner.send_and_receive
    monkeypatch.setattr(inner, "send_and_receive", lambda *a, **k: honest(*a, **k)[::-1])
    replies = grid.send_and_receive(train_messages(grid))
    assert [reply.content["metrics"]["loss"] for reply in replies] == list(range(6))


def test_every_kind_of_bad_reply_is_named_and_becomes_an_error(grid_of, answer, monkeypatch):
    def reply(message, client):
        if client == 1:
            raise RuntimeError("no\nmemory")
        if client == 2:
            return answer(ArrayRecord({"floats": Array(np.array([0, np.nan, 0], np.float32))}))
        return answer(MODEL)

    inner = grid_of(reply, clients=6)
    grid = RosterGrid(inner, clients=6)
    honest = inner.send_and_receive

    def lossy(messages, timeout=None):
        replies = honest(messages)
        stray = Message(RecordDict(), reply_to=Message(RecordDict(), 1, "train"))
        return [*replies[:3], replies[4], replies[4], replies[5], stray]  # 3 is lost, 4 comes twice

    monkeypatch.setattr(inner, "send_and_receive", lossy)
    replies = grid.send_and_receive(train_messages(grid))
    assert [reply.has_content() for reply in replies] == [True, False, False, False, True]
    assert grid.exchange.replies == 2
    found = [(failure.client, failure.kind) for failure in grid.exchange.failures]
    expected = [(1, "client-error"), (2, "not-finite"), (3, "no-reply"), (4, "duplicate"), (-1, "unasked")]
    assert found == expected
    assert grid.exchange.failures[0].reason == "RuntimeError: no memory"


def test_clients_that_answer_no_query_keep_the_order_of_their_nodes(grid_of, answer):
    inner = grid_of(lambda message, client: answer(MODEL), clients=4, numbered=False)
    assert RosterGrid(inner).get_node_ids() == sorted(inner.get_node_ids())
    with pytest.raises(FederationError, match="only 0 of the 4 clients 0 to 3 answered; one said: ValueError"):
        RosterGrid(inner, clients=4)


def test_without_numbers_the_nodes_may_come_one_by_one(grid_of, answer, monkeypatch):
    inner = grid_of(lambda message, client: answer(MODEL), clients=5, numbered=False)
    nodes, looks = inner.get_node_ids(), []
    monkeypatch.setattr(inner, "get_node_ids", lambda: looks.append(1) or nodes[: len(looks)])
    grid = RosterGrid(inner, at_least=3)
    assert len(grid.get_node_ids()) == 3
    assert len(grid.get_node_ids()) == 4, "one more has come meanwhile"


def test_if_not_one_reply_is_good_the_exchange_is_an_error(grid_of):
    def reply(message, client):
        raise RuntimeError("no data")

    grid = RosterGrid(grid_of(reply, clients=3), clients=3)
    with pytest.raises(FederationError, match=r"no client gave a good reply \(client 0: client-error: Runtime"):
        grid.send_and_receive(train_messages(grid))


@pytest.mark.parametrize("nodes", [2, 7])
def test_another_number_of_nodes_than_clients_is_refused_with_the_remedy(grid_of, answer, nodes):
    inner = grid_of(lambda message, client: answer(MODEL), clients=nodes)
    with pytest.raises(FederationError, match="num-supernodes=5"):
        RosterGrid(inner, clients=5, patience=0.2)


def test_it_waits_for_nodes_that_come_late(grid_of, answer, monkeypatch):
    inner = grid_of(lambda message, client: answer(MODEL), clients=3)
    nodes, looks = inner.get_node_ids(), []
    monkeypatch.setattr(inner, "get_node_ids", lambda: looks.append(1) or nodes[: len(looks)])
    assert len(RosterGrid(inner, clients=3).get_node_ids()) == 3


def test_the_rest_is_the_wrapped_grids(grid_of, answer):
    inner = grid_of(lambda message, client: answer(MODEL), clients=2)
    grid = RosterGrid(inner, clients=2)
    assert grid.run == inner.run
    message = grid.create_message(RecordDict({"arrays": MODEL}), "train", grid.get_node_ids()[1], "3")
    (identifier,) = grid.push_messages([message])
    (reply,) = grid.pull_messages([identifier])
    assert reply.metadata.group_id == "3"
    assert reply.has_content()
