"""The rounds of a run: what a bad one changes, what is written down, whose strategies run."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord

from fedmr_flwr import FedAvg
from fedmr_flwr.algorithms.flower import flower_strategy
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.core.layout import Layout
from fedmr_flwr.errors import RunError
from fedmr_flwr.server import rounds
from fedmr_flwr.server.ledger import Ledger
from fedmr_flwr.wire.codec import Codec, restore_dtypes
from fedmr_flwr.wire.grids.roster import RosterGrid
from tests.support.rounds import packed

LAYOUT = Layout.of({"w": np.zeros(3, np.float32), "n": np.zeros((), np.int64)})
CODEC = Codec(LAYOUT)


@pytest.fixture
def run(grid_of, answer):
    """Run rounds of clients that halve their model and add their number; return the model and the rows."""

    def make(strategy, fails=lambda number, client: False, ledger=None, told=None, **settings):
        def reply(message, client):
            config = message.content["config"]
            if told is not None:
                told.append((config["server-round"], client, config["last-round"]))
            if fails(config["server-round"], client):
                raise RuntimeError("no data")
            model = CODEC.decode(message.content["arrays"])
            sent = CODEC.encode(packed(model.floats * 0.5 + client, model.ints + 1))
            return answer(sent, examples=client + 1, loss=client)

        settings = Settings(**{"rounds": 4, "clients": 5, "clients_per_round": 5, "engine": "in-process"} | settings)
        rows = []
        arrays = rounds.run(
            settings, strategy, RosterGrid(grid_of(reply, 5), 5), ledger or Ledger(5),
            CODEC.encode(packed([1, 1, 1], [0])), ConfigRecord(), lambda *_: {},
            lambda row, arrays, stops: rows.append(row),
        )  # fmt: skip
        return CODEC.decode(arrays), rows

    return make


@pytest.mark.parametrize("name", ["FedAvg", "FedAdam", "FedAvgM", "FedMedian"])
def test_flowers_strategies_keep_dtypes(run, name):
    model, rows = run(flower_strategy(f"flwr:{name}")(clients_per_round=5, layout=LAYOUT))
    assert [row["replies"] for row in rows] == [5] * 4
    assert np.isfinite(model.floats).all()
    if name == "FedAvg":
        assert model.ints.tolist() == [4], "every client counts one round more"


def average(**options):
    return FedAvg(clients_per_round=5, layout=LAYOUT, **options)


def test_failures_in_message_order(run):
    _, rows = run(average(), lambda number, client: client in (1, 4), rounds=1)
    (row,) = rows
    assert (row["replies"], row["failures"], row["failures-by-kind"]) == (3, 2, {"client-error": 2})
    failed = [failure["client"] for failure in row["failed"]]
    assert failed == [client for client in row["clients"] if client in (1, 4)]


def test_too_few_replies_are_a_bad_round(run):
    message = r"round 1: 2 of 5 clients gave a good reply, fewer than min-good-replies = 3 \(client \d: client-error"
    with pytest.raises(RunError, match=message):
        run(average(), lambda number, client: client > 1, min_good_replies=3)


def test_refused_nodes_are_in_each_row(run, monkeypatch):
    monkeypatch.setattr(RosterGrid, "refused", ["a node has client number 7, expected 0 to 4"])
    _, rows = run(average())
    assert [row["refused"] for row in rows] == [["a node has client number 7, expected 0 to 4"]] * 4


def test_no_good_reply_states_a_reason(run):
    with pytest.raises(RunError, match=r"no client gave a good reply \(client \d: client-error: RuntimeError"):
        run(average(), lambda number, client: True)


def test_bad_round_changes_nothing(run):
    whole, _ = run(average(), rounds=2)
    model, rows = run(average(), lambda number, client: number == 2, rounds=3, max_bad_rounds=1)
    np.testing.assert_array_equal(model.floats, whole.floats)
    assert [row.get("bad", False) for row in rows] == [False, True, False]
    assert (rows[1]["replies"], rows[1]["failures"]) == (0, 5)


@pytest.mark.parametrize("gone", [True, False], ids=["all gone", "enough there"])
def test_offline_round_is_excused_if_waiting(run, monkeypatch, gone):
    honest = RosterGrid.exchange

    def exchange(grid, messages, timeout=None):
        found = honest(grid, messages, timeout=timeout)
        first = messages[0].content["config"]["server-round"] == 1
        return replace(found, replies=(), offline=frozenset(found.clients)) if first else found

    monkeypatch.setattr(RosterGrid, "exchange", exchange)
    monkeypatch.setattr(RosterGrid, "lacks_clients", lambda *_: gone)
    if not gone:
        with pytest.raises(RunError, match=r"no client gave a good reply \(client \d: offline: its node is not"):
            run(average())
        return
    _, rows = run(average())
    assert [row.get("bad", False) for row in rows] == [True, False, False, False]


def test_messages_state_the_last_good_round(run):
    told = []
    run(average(), lambda number, client: client == 1 and number != 2, told=told, rounds=3)
    assert {(number, last) for number, client, last in told if client == 0} == {(1, 0), (2, 1), (3, 2)}
    assert {(number, last) for number, client, last in told if client == 1} == {(1, 0), (2, 0), (3, 2)}


def test_ledger_ignores_bad_rounds(run):
    told = []
    fails = lambda number, client: number == 2 and client > 0  # noqa: E731
    run(average(), fails, told=told, rounds=3, min_good_replies=2, max_bad_rounds=1)
    assert (3, 0, 1) in told


def test_ledger_restores(run):
    ledger, again, told = Ledger(5), Ledger(5), []
    run(average(), ledger=ledger, rounds=2)
    again.restore(ledger.save())
    run(average(), ledger=again, told=told, rounds=1)
    assert {last for _, _, last in told} == {2}


def test_restored_dtypes_round_integers():
    before = ArrayRecord({"w": Array(np.zeros(2, np.float32)), "n": Array(np.array([0, 0]))})
    after = ArrayRecord({"w": Array(np.array([1.5, 2])), "n": Array(np.array([2.6, -1.2])), "new": Array(np.ones(1))})
    found = restore_dtypes(after, before)
    assert found["w"].numpy().tolist() == [1.5, 2]
    assert found["w"].dtype == "float32"
    np.testing.assert_array_equal(found["n"].numpy(), np.array([3, -1]), strict=True)
    assert found["new"].data == after["new"].data


def test_restored_dtypes_avoid_copies():
    record = ArrayRecord({"w": Array(np.zeros(2, np.float32))})
    assert restore_dtypes(record, record)["w"] is record["w"]
