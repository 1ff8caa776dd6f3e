"""Flower's own strategies by name."""

import numpy as np
import pytest
from flwr.app import ConfigRecord
from safetensors.numpy import load_file

from fedmr_flwr.algorithms.flower import flower_strategy
from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.core.recombination import Parts
from fedmr_flwr.errors import BadRoundError, ConfigError
from fedmr_flwr.wire.codec import Codec, restore_dtypes
from fedmr_flwr.wire.grids.roster import RosterGrid
from tests.support.runs import run

LAYOUT = Layout.of({"w": np.zeros(3, np.float32), "n": np.zeros(1, np.int64)})
CODEC = Codec(LAYOUT)
START = CODEC.encode(Parts([np.array([1, 2, 3], np.float32)], [np.zeros(1, np.int64)]))


NAMES = {
    "FedAdam": ["strategy.options.eta=0.01", "strategy.options.tau=0.001"],
    "FedMedian": [],
    "Krum": ["strategy.options.num_malicious_nodes=1"],
    "FedAvg": [],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_resumed_run_ends_the_same(toy, name):
    common = [f"strategy.name=flwr:{name}", *NAMES[name], "clients-per-round=4", "checkpoint-every=1"]
    whole, again = (run(toy(*common, run=folder)) for folder in ("a", "b"))
    assert whole.read_manifest()["model-sha256"] == again.read_manifest()["model-sha256"]
    first = run(toy(*common, "rounds=1", run="c"))
    first.config.write_text(first.config.read_text().replace("rounds: 1\n", "rounds: 3\n"))
    settings = toy(*common, run="c")
    done = run(settings, first)
    assert done.read_manifest()["model-sha256"] == whole.read_manifest()["model-sha256"]
    rows = whole.read_rows()
    assert all(row["replies"] == 4 and row["test-accuracy"] > 0 for row in rows)
    assert len({tuple(row["clients"]) for row in rows}) == 3
    assert whole.read_manifest()["title"].startswith(f"flwr:{name}")


@pytest.mark.slow
def test_fedavg_agrees_with_ours(toy):
    ours, theirs = (
        run(toy("rounds=1", f"strategy.name={name}", run=name.replace(":", ""))) for name in ("fedavg", "flwr:FedAvg")
    )
    assert ours.read_rows()[0]["clients"] == theirs.read_rows()[0]["clients"], "the same seed draws the same clients"
    for name, tensor in load_file(ours.model).items():
        np.testing.assert_allclose(load_file(theirs.model)[name], tensor, rtol=1e-5, atol=1e-7)


def strategy(name, count=4, **options):
    return flower_strategy(f"flwr:{name}")(clients_per_round=count, seed=3, layout=LAYOUT, options=options)


@pytest.fixture
def grid(grid_of, answer):
    def reply(message, client):
        if client == 2:
            raise RuntimeError("lost")
        old = CODEC.decode(message.content["arrays"])
        return answer(CODEC.encode(Parts([old.floats + client], [old.ints + 1])), examples=client + 1, loss=client)

    return RosterGrid(grid_of(reply, 5), 5)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_one_fresh_message_per_client(grid, count):
    config = ConfigRecord({"x": 1})
    messages = strategy("FedAvg", count).configure_train(2, START, config, grid)
    ours = [m.metadata.dst_node_id for m in strategy("FedMedian", count).configure_train(2, START, config, grid)]
    assert [message.metadata.dst_node_id for message in messages] == ours
    assert len({id(message.content) for message in messages}) == count
    assert all(message.content["config"] == ConfigRecord({"x": 1, "server-round": 2}) for message in messages)
    assert "server-round" not in config


def test_reply_order_does_not_matter(grid):
    results = []
    for order in (slice(None), slice(None, None, -1)):
        own = strategy("FedAvg", 5)
        replies = grid.send_and_receive(own.configure_train(1, START, ConfigRecord(), grid))
        arrays, metrics = own.aggregate_train(1, replies[order])
        results.append([array.data for array in arrays.values()])
    assert results[0] == results[1]
    # Clients 0, 1, 3, 4 with 1, 2, 4, 5 examples: (0 + 2 + 12 + 20) / 12.
    np.testing.assert_allclose(arrays["floats"].numpy(), np.array([1, 2, 3]) + 34 / 12, rtol=1e-6)
    assert metrics["loss"] == pytest.approx(34 / 12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("FedAvgM", {"server_momentum": 0.9, "server_learning_rate": 3.0}),
        ("FedAdam", {"eta": 0.5}),
        ("FedAdagrad", {"eta": 0.5}),
        ("FedYogi", {"eta": 0.5}),
        ("QFedAvg", {"client_learning_rate": 0.1, "train_loss_key": "loss"}),
        ("FedAvg", {}),
    ],
)
def test_buffers_are_averaged(grid_of, answer, name, options):
    layout = Layout.of({"w": np.zeros(2, np.float32), "bn.running_var": np.zeros(1, np.float32)})
    codec = Codec(layout)

    def reply(message, client):
        old = codec.decode(message.content["arrays"])
        trained = Packed(old.floats * np.array([1, 1, 0.01], np.float32) + client, old.ints)
        return answer(codec.encode(trained), examples=client + 1, loss=1)

    own = flower_strategy(f"flwr:{name}")(clients_per_round=3, seed=3, layout=layout, options=options)
    arrays, grid = codec.encode(Packed(np.array([1, 2, 1], np.float32), np.empty(0, np.int64))), grid_of(reply, 3)
    for number, expected in ((1, 0.01 + 8 / 6), (2, 0.01 * (0.01 + 8 / 6) + 8 / 6)):
        sent = own.configure_train(number, arrays, ConfigRecord(), RosterGrid(grid, 3))
        before = arrays
        arrays = restore_dtypes(own.aggregate_train(number, grid.send_and_receive(sent))[0], before)
        # Clients 0, 1, 2 with 1, 2, 3 examples: (0 + 2 + 6) / 6.
        assert codec.decode(arrays).floats[2] == pytest.approx(expected, rel=1e-5)


def test_error_in_aggregation_is_one_line(grid, monkeypatch):
    own = strategy("FedMedian")
    replies = grid.send_and_receive(own.configure_train(1, START, ConfigRecord(), grid))

    def needs_more(*arguments):
        raise ZeroDivisionError("of nothing")

    monkeypatch.setattr(own.inner, "aggregate_train", needs_more)
    with pytest.raises(BadRoundError, match=r"^FedMedian could not combine \d replies: ZeroDivisionError"):
        own.aggregate_train(1, replies)
    assert strategy("FedMedian").aggregate_train(1, []) == (None, None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("FedAdm", "unknown strategy 'flwr:FedAdm'; choose one of flwr:.*flwr:FedAdam"),
        ("FedProx", "cannot be used, because it has only the server's half; use strategy.name=fedprox"),
        ("FedXgbBagging", "cannot be used, because it combines trees"),
    ],
)
def test_unusable_strategies_are_refused(name, words):
    with pytest.raises(ConfigError, match=words):
        flower_strategy(f"flwr:{name}")


def test_wrong_argument_is_refused():
    with pytest.raises(ConfigError, match=r"^options: .*unexpected keyword argument 'etta'"):
        strategy("FedAdam", etta=1)
    with pytest.raises(ConfigError, match=r"^options: 'fraction_train' has no effect: clients-per-round are drawn"):
        strategy("FedAdam", eta=0.1, fraction_train=0.5)
