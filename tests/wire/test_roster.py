import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedmr_flwr.errors import BadRoundError, FederationError
from fedmr_flwr.wire.grids.roster import RosterGrid
from fedmr_flwr.wire.npy import view

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


def test_the_bytes_of_all_arrays_are_counted_by_record(grid_of):
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
    grid.send_and_receive([Message(content, node, "train") for content, node in zip(contents, nodes, strict=True)])
    model, more = (sum(len(array.data) for array in record.values()) for record in (MODEL, extra))
    assert grid.exchange.bytes_down == {"arrays": 3 * model, "generator": more}
    assert grid.exchange.bytes_up == {"arrays": 2 * model, "control": 2 * more}


def test_every_message_says_when_its_clients_last_reply_counted(grid_of, answer):
    told = []

    def reply(message, client):
        told.append((client, message.content["config"]["last-round"]))
        if client == 1:
            raise ValueError("lost")
        return answer(MODEL)

    def exchange(grid, number, clients):
        config, nodes = ConfigRecord({"server-round": number}), grid.get_node_ids()
        contents = [RecordDict({"arrays": MODEL, "config": config}) for _ in clients]
        told.clear()
        pairs = zip(contents, clients, strict=True)
        grid.send_and_receive([Message(content, nodes[client], "train") for content, client in pairs])
        assert "last-round" not in config, "strategies send one record to all"
        return sorted(told)

    grid = RosterGrid(grid_of(reply, clients=3), 3)
    assert exchange(grid, 4, [0, 1]) == [(0, 0), (1, 0)]
    grid.settle(4)
    assert exchange(grid, 5, [0, 1, 2]) == [(0, 4), (1, 0), (2, 0)]
    assert exchange(grid, 6, [0, 2]) == [(0, 4), (2, 0)], "a round that was not settled never happened"
    grid.settle(6)
    again = RosterGrid(grid_of(reply, clients=3), 3)
    again.restore(grid.state())
    assert exchange(again, 7, [2, 0, 1]) == [(0, 6), (1, 0), (2, 6)]


def test_the_numbers_of_examples_are_known_if_all_clients_say_theirs(grid_of, answer, monkeypatch):
    inner = grid_of(lambda message, client: answer(MODEL), 4)
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


def test_clients_that_say_nothing_are_counted(grid_of, answer):
    inner = grid_of(lambda message, client: answer(MODEL), clients=4)
    honest = inner.send_and_receive
    inner.send_and_receive = lambda messages, timeout=None: list(honest(messages))[:1]
    with pytest.raises(FederationError, match="only 1 of the 4 .*; 3 said nothing in 600 s; are they still reading"):
        RosterGrid(inner, 4)


def test_clients_that_answer_no_query_keep_the_order_of_their_nodes(grid_of, answer):
    inner = grid_of(lambda message, client: answer(MODEL), clients=4, numbered=False)
    assert RosterGrid(inner).get_node_ids() == sorted(inner.get_node_ids())
    with pytest.raises(
        FederationError, match="only 0 of the 4 clients 0 to 3 answered; 4 refused, the first of them: ValueError"
    ):
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


@pytest.mark.parametrize(("least", "good"), [(2, 2), (3, 2)])
def test_with_fewer_good_replies_than_asked_for_the_exchange_is_an_error(grid_of, answer, least, good):
    def reply(message, client):
        if client >= good:
            raise RuntimeError("no data")
        return answer(MODEL)

    grid = RosterGrid(grid_of(reply, clients=4), clients=4, min_good_replies=least)
    if least <= good:
        assert sum(reply.has_content() for reply in grid.send_and_receive(train_messages(grid))) == good
        return
    with pytest.raises(
        BadRoundError, match=r"2 of 4 clients .*fewer than min-good-replies = 3 \(client 2: client-err"
    ):
        grid.send_and_receive(train_messages(grid))
    assert grid.exchange.by_kind == {"client-error": 2}, "the account is kept"


def test_the_account_says_which_client_got_each_message(grid_of, answer):
    grid = RosterGrid(grid_of(lambda message, client: answer(MODEL), clients=5), clients=5)
    nodes = grid.get_node_ids()
    grid.send_and_receive([Message(RecordDict({"arrays": MODEL}), nodes[at], "train") for at in (3, 0, 4)])
    assert grid.exchange.clients == (3, 0, 4)


def lengths(updates):
    """Clients whose updates have the given lengths, each in a direction of its own."""

    def reply(message, client):
        step = np.zeros(3, np.float32)
        step[client % 3] = updates[client]
        return RecordDict(
            {
                "arrays": ArrayRecord({"floats": Array(view(message.content["arrays"]["floats"]) + step)}),
                "metrics": MetricRecord({"num-examples": 1}),
            }
        )

    return reply


@pytest.mark.parametrize(
    ("updates", "guard", "refused"),
    [
        ([1, 2, 3, 10, 11], 3.5, [4]),  # the median is 3; 10 is 3.33 times as long, 11 is 3.67 times
        ([1, 2, 3, 10, 11], None, []),
        ([1, 2, 3, 10, 11], 2.0, [3, 4]),
        ([0, 0, 0, 5, 5], 2.0, []),  # with a median of zero there is nothing to compare with
        ([1, 1, 1, 3e38, -3e38], 2.0, [3, 4]),  # squares overflow float32
        ([7], 2.0, []),
    ],
)
def test_an_update_far_longer_than_the_median_is_refused(grid_of, updates, guard, refused):
    count = len(updates)
    grid = RosterGrid(grid_of(lengths(updates), clients=count), clients=count, guard=guard)
    start = ArrayRecord({"floats": Array(np.zeros(3, np.float32))})
    messages = [Message(RecordDict({"arrays": start}), node, "train") for node in grid.get_node_ids()]
    replies = grid.send_and_receive(messages)
    assert [at for at, reply in enumerate(replies) if not reply.has_content()] == refused
    assert [(failure.client, failure.kind) for failure in grid.exchange.failures] == [(c, "outlier") for c in refused]


def test_the_guard_says_by_how_much(grid_of):
    grid = RosterGrid(grid_of(lengths([1, 2, 3, 10, 11]), clients=5), clients=5, guard=3.5)
    grid.send_and_receive(train_messages(grid))
    assert grid.exchange.failures[0].reason == (
        "its update is 3.7 times as long as the round's median, more than guard = 3.5"
    )


def test_time_out_and_messages_go_to_the_wrapped_grid(grid_of, answer, monkeypatch):
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
    assert [(f.client, f.kind, f.reason) for f in grid.exchange.failures] == [
        (1, "no-reply", "no reply came in time")
    ]
