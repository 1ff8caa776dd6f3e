import re
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedmr_flwr.errors import AbsentClientsError
from fedmr_flwr.wire.flower.nodes import NodeInfo
from fedmr_flwr.wire.grids import attendance
from fedmr_flwr.wire.grids.attendance import Attendance, Session
from fedmr_flwr.wire.grids.roster import RosterGrid

MODEL = ArrayRecord({"w": Array(np.zeros(3, np.float32))})


@pytest.fixture
def away(grid_of, answer, monkeypatch):
    """A Grid of four clients of whom those in `away.gone` are not connected; sends nothing to them.

    `away.since` has the time when a node connected again.
    """
    grid = grid_of(lambda message, client: answer(MODEL), clients=4, stated=True)
    numbers, send = grid._numbers, grid.send_and_receive
    grid.gone, grid.since = set(), {}

    def present():
        return [node for node in numbers if numbers[node] not in grid.gone]

    def nodes():
        return [NodeInfo(node_id=node, last_activated_at=grid.since.get(node, "")) for node in present()]

    def strict(messages, **more):
        messages = list(messages)
        assert {message.metadata.dst_node_id for message in messages} <= set(present())
        return send(messages, **more)

    monkeypatch.setattr(grid, "get_node_ids", present)
    monkeypatch.setattr(grid, "get_nodes", nodes)
    monkeypatch.setattr(grid, "send_and_receive", strict)
    monkeypatch.setattr(attendance, "_REMOTE_POLL_SECONDS", 0.01)
    return grid


def train(roster):
    content = [RecordDict({"arrays": MODEL, "config": ConfigRecord()}) for _ in range(4)]
    nodes = roster.get_node_ids()
    return roster.exchange([Message(own, node, "train") for own, node in zip(content, nodes, strict=True)])


def test_starts_with_the_least_number(away):
    away.gone = {1, 2}
    roster = RosterGrid(away, 4, min_clients=2, patience=0.1)
    assert roster.examples is None
    exchange = train(roster)
    assert len(exchange.replies) == 2
    assert exchange.offline == {1, 2}
    assert exchange.bytes_down == {"arrays": 2 * len(MODEL["w"].data)}
    away.gone = {0}
    roster.await_clients(1)
    exchange = train(roster)
    assert len(exchange.replies) == 3
    assert exchange.offline == {0}
    assert roster.examples.tolist() == [1, 2, 3, 4]


def test_gives_up_on_too_few_clients(away):
    away.gone = {0, 2, 3}
    reported = []
    with pytest.raises(
        AbsentClientsError, match=r"after 0\.1 s 1 of the 2 clients .* start the others, or raise deployment.join"
    ):
        Attendance(away, 4, least=2, patience=0.1, report=reported.append)
    assert reported == ["waiting: 1 of the 2 clients needed are connected"]


def test_reports_how_many_are_missing(away, monkeypatch):
    away.gone = {0, 1, 2, 3}
    reported = []

    def report(line):
        reported.append(line)
        away.gone = set(range(len(reported), 4)) if len(reported) < 3 else set()

    Attendance(away, 4, least=3, patience=10, report=report)
    assert reported == [f"waiting: {count} of the 3 clients needed are connected" for count in (0, 1, 2)] + [""]


def test_waits_when_all_are_gone(away):
    roster = RosterGrid(away, 4, min_clients=4, patience=0.05)
    away.gone = {0, 1, 2, 3}
    assert roster.lacks_clients(1)
    with pytest.raises(AbsentClientsError) as caught:
        roster.await_clients(1)
    assert caught.value.final
    away.gone = {1, 2, 3}
    assert not roster.lacks_clients(1)
    roster.await_clients(1)


def test_client_may_return_as_another_node(away, monkeypatch):
    roster = RosterGrid(away, 4, min_clients=4, patience=0.1)
    old = roster.get_node_ids()[2]
    new = 4711
    del away._numbers[old]
    away._numbers[new] = 2
    roster.await_clients(1)
    assert roster.get_node_ids()[2] == new
    assert len(train(roster).replies) == 4


def test_replaced_node_may_return(away):
    register, reply = Attendance(away, 4, least=1), Message(RecordDict(), 1, "query")
    reply = Message(RecordDict({"metrics": MetricRecord({"client": 0, "num-examples": 1})}), reply_to=reply)
    for node in (91, 92, 91, 91):
        register._register(Session(node), reply, {Session(node)})
        assert register.nodes[0] == node
        assert Session(91 + 92 - node) not in register._known
    assert not register._refusals


def test_node_that_returns_is_asked_again(away):
    roster = RosterGrid(away, 4, min_clients=4, patience=0.1)
    first, second = roster.get_node_ids()[:2]
    away._numbers |= {first: 1, second: 0}  # someone has exchanged their settings
    away.since = {first: "later"}
    assert train(roster).offline == {0}, "not before it is accepted"
    roster.await_clients(1)
    assert train(roster).offline == {0}
    assert roster.refused == ["two nodes have client number 1"]
    away.since[second] = "later"
    roster.await_clients(1)
    assert roster.get_node_ids()[0] == second
    assert train(roster).offline == {1}
    away.since[first] = "later still"
    roster.await_clients(1)
    assert roster.get_node_ids()[:2] == [second, first]
    assert len(train(roster).replies) == 4
    assert roster.refused == []


def test_client_has_one_node_and_a_node_one_client(away):
    roster = RosterGrid(away, 4, min_clients=4, patience=0.1)
    first, second = roster.get_node_ids()[:2]
    away._numbers |= {first: 7, second: 0}
    away.since = {first: "later", second: "later"}
    roster.await_clients(1)
    assert roster.get_node_ids()[0] == second
    assert second not in roster.get_node_ids()[1:]
    assert train(roster).offline == {1}


def test_second_reply_to_a_query_is_ignored(away, monkeypatch):
    pull = away.pull_messages
    monkeypatch.setattr(away, "pull_messages", lambda numbers: 2 * pull(numbers))
    assert Attendance(away, 4, least=4, patience=0.1).present() == 4


def test_refusal_is_one_short_line(away):
    register = Attendance(away, 4, least=4)
    for facts in ({"client": [1] * 10**4}, {"client": 2, "num-examples": [1] * 10**4}):
        reply = Message(RecordDict({"metrics": MetricRecord(facts)}), reply_to=Message(RecordDict(), 1, "query"))
        register._register(Session(91), reply, {Session(91)})
        assert len(register._refusals[Session(91)]) < 310


def test_refused_nodes_are_asked_again(away, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(
        attendance,
        "time",
        SimpleNamespace(
            monotonic=lambda: clock.now, sleep=lambda seconds: setattr(clock, "now", clock.now + seconds)
        ),
    )
    (node,) = [node for node, client in away._numbers.items() if client == 3]
    away._numbers[node] = 7  # no number of a client, until that is mended
    seen = Attendance(away, 4, least=3, patience=5)
    away._numbers[node] = 3
    seen.gather(3)
    assert seen.present() == 3, "not asked again at once"
    clock.now += 16
    seen.gather(3)
    assert (seen.present(), clock.now) == (4, 16)


def test_silent_node_delays_nobody(away, monkeypatch):
    (late,) = [node for node, client in away._numbers.items() if client == 2]
    pull, held = away.pull_messages, []

    def some(numbers):
        replies = pull(numbers)
        held.extend(reply for reply in replies if reply.metadata.src_node_id == late)
        return [reply for reply in replies if reply not in held]

    monkeypatch.setattr(away, "pull_messages", some)
    seen = Attendance(away, 4, least=3, patience=0.1)
    assert seen.present() == 3
    monkeypatch.setattr(away, "pull_messages", lambda numbers: held)
    seen.gather(3)
    assert seen.present() == 4


def test_drawn_clients_may_be_offline(away):
    roster = RosterGrid(away, 4, min_clients=4, patience=0.05)
    away.gone = {0, 1}
    assert train(roster).offline == {0, 1}
    assert not roster.lacks_clients(2)


@pytest.mark.parametrize(
    ("number", "why"), [(1, "two nodes have client number 1"), (7, "a node has client number 7, expected 0 to 3")]
)
def test_impossible_number_is_refused(away, number, why):
    (node,) = [node for node, client in away._numbers.items() if client == 3]
    away._numbers[node] = number
    with pytest.raises(AbsentClientsError, match=f"3 of the 4 clients .*1 refused, the first one: {why}"):
        Attendance(away, 4, least=4, patience=0.1)


@pytest.mark.parametrize("count", [None, 0, -5, 1.5, 10**15])
def test_node_that_states_no_number_of_examples_is_refused(away, count):
    register = Attendance(away, 4, least=4)
    facts = {"client": 2} | ({} if count is None else {"num-examples": count})
    query = Message(RecordDict(), 1, "query")
    site = Session(91)
    register._register(site, Message(RecordDict({"metrics": MetricRecord(facts)}), reply_to=query), {site})
    assert register._refusals[site] == f"client 2 states {count} examples; expected a number from 1"


def test_examples_count_ten_times_the_median_at_most(away):
    register = Attendance(away, 4, least=4)
    assert register.counted == register.stated == {0: 1, 1: 2, 2: 3, 3: 4}
    register._counts[3] = 10**14
    assert register.stated[3] == 10**14
    assert register.examples.tolist() == [1, 2, 3, 20]


def test_known_sizes_are_not_limited(away):
    sizes = [1, 2, 3, 4]
    register = Attendance(away, 4, least=4, sizes=sizes)
    register._counts = dict(enumerate([1, 2, 3, 4000]))
    assert register.examples.tolist() == [1, 2, 3, 4000]


def test_node_with_another_sealing_key_is_refused(away, monkeypatch):
    keys = {0: 5, 1: 6, 2: 5, 3: 5}
    honest = away._app

    def app(message, context):
        reply = honest(message, context)
        reply.content["metrics"]["sealing-key"] = keys[context.node_config["partition-id"]]
        return reply

    monkeypatch.setattr(away, "_app", app)
    reported = []
    away.gone = {1, 2, 3}
    found = Attendance(away, 4, least=1, patience=1)
    away.gone = set()
    monkeypatch.setattr(attendance, "_REFUSED_SECONDS", 0.0)

    def report(line):
        reported.append(line)
        keys[1] = 5  # it gets the right one

    found._report = report
    found.gather(4)
    assert reported[0] == (
        "waiting: 3 of the 4 clients needed are connected; 1 refused, the first one: client 1 has another sealing "
        "key than client 0"
    )
    assert found.present() == 4


def test_evaluator_is_no_client(away, monkeypatch):
    honest = away._app

    def app(message, context):
        reply = honest(message, context)
        if context.node_config["partition-id"] == 3:
            reply.content["metrics"]["evaluates"] = 1
        return reply

    monkeypatch.setattr(away, "_app", app)
    roster = RosterGrid(away, 3, min_clients=3, patience=1)
    (evaluator,) = roster.evaluators
    assert evaluator not in roster.get_node_ids()
    assert len(roster.get_node_ids()) == 3
    away.gone = {3}
    assert roster.evaluators == []


def test_evaluator_with_another_sealing_key_is_refused(away, monkeypatch):
    honest = away._app

    def app(message, context):
        reply = honest(message, context)
        number = context.node_config["partition-id"]
        reply.content["metrics"]["sealing-key"] = 6 if number == 3 else 5
        if number == 3:
            reply.content["metrics"]["evaluates"] = 1
        return reply

    monkeypatch.setattr(away, "_app", app)
    away.gone = {3}
    found = Attendance(away, 3, least=3, patience=1)
    away.gone = set()
    found.gather(3)
    assert found.evaluators == []
    (refusal,) = found._refusals.values()
    assert re.fullmatch("an evaluator has another sealing key than client [012]", refusal)
