"""Our strategies in other people's apps: what holds for Flower's FedAvg with the same clients."""

import dataclasses
import inspect
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower

import fedmr_flwr
from fedmr_flwr import FedAvg, FedCross, FedMR, Indep, Scaffold
from fedmr_flwr.algorithms.fedasam import FedASAM
from fedmr_flwr.algorithms.fedexp import FedExP
from fedmr_flwr.algorithms.fedmut import FedMut
from fedmr_flwr.algorithms.fedprox import FedProx
from fedmr_flwr.algorithms.moon import Moon
from fedmr_flwr.errors import ConfigError, RecordError
from fedmr_flwr.wire.grids.in_process import InProcessGrid

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "your-flower-app.md"
OURS = [FedMR, Indep, FedCross, FedAvg, FedExP, FedMut]
NAMES = ("conv.weight", "conv.bias", "fc.weight", "fc.bias")


def model(dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = {name: (3, 2) if "weight" in name else (2,) for name in NAMES}
    return ArrayRecord({name: Array(rng.normal(size=shape).astype(dtype)) for name, shape in shapes.items()})


def plus(arrays, step):
    """A model with a number added to every value, in its own types."""
    return ArrayRecord({name: Array((a.numpy() + step).astype(a.dtype)) for name, a in arrays.items()})


def answer(arrays, **metrics):
    """The content of a reply."""
    return RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1} | metrics)})


def number_of(context):
    return context.node_config["partition-id"]


def federation(train=None, evaluate=None, clients=4):
    """A Grid of clients as in Flower's templates: they add their partition's number and 1 to all values."""
    app = ClientApp()

    @app.train()
    def _train(message, context):
        client = number_of(context)
        if train:
            return Message(train(message.content, client), reply_to=message)
        metrics = {"train_loss": 1 / (client + 1), "curve": [1.0, float(client)], "num-examples": 10 * client + 10}
        content = answer(plus(message.content["arrays"], client + 1), **metrics)
        return Message(content, reply_to=message)

    @app.evaluate()
    def _evaluate(message, context):
        client = number_of(context)
        if evaluate:
            return Message(evaluate(message.content, client), reply_to=message)
        first = float(next(iter(message.content["arrays"].values())).numpy().flat[0])
        metrics = MetricRecord({"first": first, "mine": client, "round": message.content["config"]["server-round"]})
        metrics["num-examples"] = client + 1
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return InProcessGrid(app, clients)


def flat(arrays):
    return np.concatenate([array.numpy().ravel() for array in arrays.values()])


def scored(number, arrays):
    return MetricRecord({"acc": 0.1 * number, "sum": float(flat(arrays).sum())})


# The arguments.


def test_flowers_arguments_are_ours():
    theirs = inspect.signature(flower.FedAvg).parameters
    own = inspect.signature(FedMR).parameters
    assert theirs.keys() <= own.keys(), "a new argument of Flower's: take it, and describe it in the guide"
    for name, parameter in theirs.items():
        assert own[name].default == (None if name == "min_available_nodes" else parameter.default), name
    given = FedMR(**{name: parameter.default for name, parameter in theirs.items()})
    assert isinstance(given, flower.FedAvg)
    assert (given.fraction_train, given.min_available_nodes, given.weighted_by_key) == (1.0, 2, "num-examples")


def test_guide_has_a_row_for_everything_of_flowers():
    text = GUIDE.read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `(\w+)` \| (?:same|differs)", text, re.MULTILINE))
    wanted = {
        *inspect.signature(flower.FedAvg).parameters,
        *inspect.signature(flower.FedAvg.start).parameters,
        "should_stop",  # of Flower from 1.43 on, and of ours with any
        *(field.name for field in dataclasses.fields(flower.Result)),
    }
    assert wanted - {"self"} - rows == set(), "describe what is new in Flower"
    assert rows - wanted == set(), "it is no longer in Flower"


def test_flowers_start_is_ours():
    theirs = dict(inspect.signature(flower.FedAvg.start).parameters)
    own = dict(inspect.signature(FedMR.start).parameters)
    stop = own.pop("should_stop")
    assert (stop.default, theirs.pop("should_stop", stop)) == (None, stop)
    assert own == theirs
    assert FedMR.summary is flower.FedAvg.summary


@pytest.mark.parametrize("kind", OURS)
def test_training_may_stop_early(kind):
    def enough(number, result):
        return result.evaluate_metrics_serverapp[number]["sum"] > flat(model()).sum() + 2 * flat(model()).size

    strategy = kind(seed=3)
    result = strategy.start(federation(), model(), num_rounds=20, evaluate_fn=scored, should_stop=enough)
    rounds = len(result.train_metrics_clientapp)
    assert 0 < rounds < 20
    whole = kind(seed=3).start(federation(), model(), num_rounds=rounds, evaluate_fn=scored)
    assert flat(result.arrays).tobytes() == flat(whole.arrays).tobytes()
    assert list(result.evaluate_metrics_serverapp) == list(whole.evaluate_metrics_serverapp)
    again = strategy.start(federation(), result.arrays, num_rounds=2)
    longer = kind(seed=3).start(federation(), model(), num_rounds=rounds + 2)
    assert flat(again.arrays).tobytes() == flat(longer.arrays).tobytes(), "it continues where it stopped"


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("clients", [2, 4])
def test_trains_with_the_clients_that_are_there(kind, clients):
    strategy = kind()
    result = strategy.start(federation(clients=clients), model(), num_rounds=2)
    assert (strategy.clients_per_round, strategy.slots) == (clients, clients)
    assert list(result.train_metrics_clientapp) == list(result.evaluate_metrics_clientapp) == [1, 2]


@pytest.mark.parametrize(
    ("options", "clients", "models"),
    [
        ({"fraction_train": 0.5}, 5, 5),
        ({"fraction_train": 0.5, "min_train_nodes": 7}, 7, 7),
        ({"fraction_train": 0.0, "min_train_nodes": 3, "clients_per_round": 4}, 4, 4),
        ({"population": 12}, 10, 12),
        ({"population": 3}, 3, 3),
        ({"clients_per_round": 2, "population": 5}, 2, 5),
    ],
)
def test_clients_follow_from_the_arguments(options, clients, models):
    strategy = FedMR(**options)
    messages = strategy.configure_train(1, model(), ConfigRecord(), federation(clients=10))
    assert (len(messages), strategy.slots) == (clients, models)


def test_clients_are_unknown_before_the_first_round():
    with pytest.raises(ConfigError, match="pass clients_per_round"):
        _ = FedMR().slots


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_wrong_shares_are_refused(share):
    with pytest.raises(ConfigError, match=f"fraction_train: it is {share}, but must be from 0 to 1"):
        FedMR(fraction_train=share)


def test_no_training_on_request():
    strategy = FedMR(fraction_train=0.0)
    result = strategy.start(federation(), model(), num_rounds=2)
    assert result.train_metrics_clientapp == {}
    assert list(result.evaluate_metrics_clientapp) == [1, 2]


def test_clients_stay_as_many_as_in_the_first_round(monkeypatch):
    grid, strategy = federation(clients=6), FedMR()
    connected = grid.get_node_ids()
    monkeypatch.setattr(grid, "get_node_ids", lambda: connected)
    arrays, sizes = model(), []
    for number, count in enumerate((4, 6, 3), 1):
        connected = [*grid._numbers][:count]
        messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        sizes.append(len(messages))
        arrays, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
    assert sizes == [4, 4, 3]
    assert strategy.slots == 4


def test_waits_for_nodes_as_flower_does(monkeypatch, caplog):
    caplog.set_level("INFO")
    grid = federation(clients=5)
    nodes, looks = grid.get_node_ids(), []
    monkeypatch.setattr(grid, "get_node_ids", lambda: looks.append(1) or nodes[: len(looks)])
    assert len(FedMR(min_available_nodes=4).configure_train(1, model(), ConfigRecord(), grid)) == 4
    assert "Waiting for nodes to connect: 1 connected (minimum required: 4)." in caplog.messages


# The results.


@pytest.mark.parametrize("kind", OURS)
def test_results_have_what_flowers_have(kind):
    theirs = flower.FedAvg().start(federation(), model(), num_rounds=2, evaluate_fn=scored)
    ours = kind().start(federation(), model(), num_rounds=2, evaluate_fn=scored)
    assert list(ours.arrays) == list(theirs.arrays)
    for number in (1, 2):
        expected = theirs.train_metrics_clientapp[number]
        found = ours.train_metrics_clientapp[number]
        assert {name: found[name] for name in expected} == {
            name: pytest.approx(value) for name, value in expected.items()
        }
        evaluated = ours.evaluate_metrics_clientapp[number]
        assert dict(evaluated) == {
            "first": pytest.approx(ours.arrays["conv.weight"].numpy()[0, 0] if number == 2 else evaluated["first"]),
            "mine": pytest.approx(2.0), "round": number,
        }  # fmt: skip
    assert list(ours.evaluate_metrics_serverapp) == [0, 1, 2]
    assert ours.evaluate_metrics_serverapp[0] == theirs.evaluate_metrics_serverapp[0]


def test_fedavg_is_flowers():
    theirs = flower.FedAvg().start(federation(), model(), num_rounds=3)
    ours = FedAvg().start(federation(), model(), num_rounds=3)
    np.testing.assert_allclose(flat(ours.arrays), flat(theirs.arrays), rtol=1e-6)


def test_flowers_log_is_ours(caplog):
    caplog.set_level("INFO")

    def lines(strategy):
        caplog.clear()
        strategy.start(federation(), model(), num_rounds=2, evaluate_fn=scored)
        plain = [re.sub(r"FedAvg|FedMR|[\d.]+s$|\{.*\}", "", line) for line in caplog.messages]
        return [line for line in plain if "Final results" not in line][:-40]

    theirs, ours = lines(flower.FedAvg()), lines(FedMR())
    assert [line for line in theirs if line not in ours] == []


def test_metrics_of_some_clients_are_their_mean():
    def reply(content, client):
        metrics = {"num-examples": client + 1, "loss": client} | ({"own": 7.0} if client == 2 else {})
        return RecordDict({"arrays": content["arrays"], "metrics": MetricRecord(metrics)})

    result = FedMR().start(federation(reply, reply), model(), num_rounds=1)
    for found in (result.train_metrics_clientapp[1], result.evaluate_metrics_clientapp[1]):
        assert (found["own"], found["loss"]) == (7, pytest.approx((2 + 6 + 12) / 10))


def test_lists_of_other_lengths_are_left_out(caplog):
    def reply(content, client):
        metrics = MetricRecord({"num-examples": 1, "curve": [1.0] * (client + 1)})
        return RecordDict({"arrays": content["arrays"], "metrics": metrics})

    result = FedMR(fraction_evaluate=0.0).start(federation(reply), model(), num_rounds=1)
    assert "curve" not in result.train_metrics_clientapp[1]
    assert "metric 'curve': left out, because clients return lists of different lengths" in caplog.messages


def test_clients_may_name_their_records():
    def reply(content, client):
        metrics = MetricRecord({"num-examples": 1, "loss": 2.0, "similarity": 42.0})
        return RecordDict(
            {"updated": plus(content["arrays"], 1), "my_metrics": metrics, "more": ConfigRecord({"a": 1})}
        )

    result = FedMR().start(federation(reply, reply), model(), num_rounds=1)
    assert dict(result.train_metrics_clientapp[1]) == {"loss": 2.0, "similarity": 42.0}, "a client's own metric stays"
    assert dict(result.evaluate_metrics_clientapp[1]) == {"loss": 2.0, "similarity": 42.0}
    np.testing.assert_allclose(flat(result.arrays), flat(model()) + 1, rtol=1e-6)


def test_servers_may_name_their_records():
    def reply(content, client):
        assert set(content) == {"weights", "settings"}
        metrics = MetricRecord({"num-examples": 1, "round": content["settings"]["server-round"]})
        return RecordDict({"weights": content["weights"], "metrics": metrics})

    strategy = FedMR(arrayrecord_key="weights", configrecord_key="settings", guard=3)
    result = strategy.start(federation(reply, reply), model(), num_rounds=2)
    assert [metrics["round"] for metrics in result.train_metrics_clientapp.values()] == [1, 2]
    assert [metrics["round"] for metrics in result.evaluate_metrics_clientapp.values()] == [1, 2]


def test_clients_may_be_weighted_by_another_metric(caplog):
    def reply(content, client):
        metrics = {"loss": client, "num-examples": 100 * client} | (
            {} if client == 3 else {"batches": 0.1 * (client + 1)}
        )
        return RecordDict({"arrays": plus(content["arrays"], client), "metrics": MetricRecord(metrics)})

    strategy = FedAvg(weighted_by_key="batches")
    result = strategy.start(federation(reply, reply), model(), num_rounds=1)
    np.testing.assert_allclose(flat(result.arrays) - flat(model()), (2 + 6) / 6, rtol=1e-6)
    expected = pytest.approx((2 + 6) / 6)
    assert result.train_metrics_clientapp[1]["loss"] == expected
    assert result.evaluate_metrics_clientapp[1]["loss"] == expected
    assert result.train_metrics_clientapp[1]["num-examples"] == pytest.approx(100 * 8 / 6)
    assert caplog.text.count("malformed: the reply has no positive number 'batches' in its metrics") == 2


def test_metrics_may_be_combined_by_the_users_function():
    def longest(contents, weighted_by_key):
        assert weighted_by_key == "num-examples"
        return MetricRecord({"longest": max(content["my_metrics"]["loss"] for content in contents)})

    def reply(content, client):
        metrics = MetricRecord({"num-examples": 1, "loss": client})
        return RecordDict({"arrays": content["arrays"], "my_metrics": metrics})

    strategy = FedMR(train_metrics_aggr_fn=longest, evaluate_metrics_aggr_fn=longest)
    result = strategy.start(federation(reply, reply), model(), num_rounds=1)
    assert result.train_metrics_clientapp[1]["longest"] == 3
    assert dict(result.evaluate_metrics_clientapp[1]) == {"longest": 3}


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 6), ({"fraction_evaluate": 0.5}, 3), ({"fraction_evaluate": 0.0}, 0), ({"min_evaluate_nodes": 9}, 6)],
)
def test_some_clients_evaluate(options, count):
    strategy, grid = FedMR(**options), federation(clients=6)
    messages = strategy.configure_evaluate(1, model(), ConfigRecord(), grid)
    assert len({message.metadata.dst_node_id for message in messages}) == count
    assert strategy.aggregate_evaluate(1, []) is None


def test_bad_evaluations_do_not_count(caplog):
    def evaluate(content, client):
        if client == 0:
            raise OSError("no test set")
        metrics = {"acc": 0.1 * client, "num-examples": 0 if client == 1 else 5}
        return RecordDict({"metrics": MetricRecord(metrics)} if client < 3 else {})

    result = FedMR().start(federation(evaluate=evaluate), model(), num_rounds=1)
    assert dict(result.evaluate_metrics_clientapp[1]) == {"acc": pytest.approx(0.2)}
    kinds = [message.split(": ")[1] for message in caplog.messages if message.startswith("client ")]
    assert sorted(kinds) == ["client-error", "malformed", "no-examples"]


# Models of any framework.


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int8", "uint8", "bool"])
@pytest.mark.parametrize("kind", OURS)
def test_types_come_back_as_they_went_out(kind, dtype):
    def reply(content, client):  # what NumPy makes of it
        rng, arrays = np.random.default_rng(client), content["arrays"].to_numpy_ndarrays()
        return answer(ArrayRecord([np.asarray(array + rng.random(array.shape)) for array in arrays]))

    start = [np.ones((3, 2), dtype), np.ones(2, np.float32), np.ones((), dtype), np.ones((0, 4), dtype)]
    result = kind().start(federation(reply), ArrayRecord(start), num_rounds=3)
    assert [(a.dtype, tuple(a.shape)) for a in result.arrays.values()] == [(a.dtype.name, a.shape) for a in start]
    assert list(result.train_metrics_clientapp) == [1, 2, 3]
    assert "failures" not in result.train_metrics_clientapp[3]


@pytest.mark.parametrize("dtype", ["complex64", "uint64", "U1", "V2"])
def test_other_types_are_refused_in_one_line(dtype):
    array = np.zeros(2, dtype)
    with pytest.raises(RecordError) as caught:
        FedMR().start(federation(), ArrayRecord([np.ones(2, np.float32), array]), num_rounds=1)
    assert str(array.dtype) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_replies_of_lists_are_explained(caplog):
    def reply(content, client):
        first, second = content["arrays"].to_numpy_ndarrays()
        arrays = {
            0: [first.astype(np.complex64), second],
            1: [first * np.inf, second],
            2: [first.astype(np.float64) * 1e300, second],
            3: [first, second],
        }[client]
        return RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1})})

    result = FedMR().start(federation(reply), ArrayRecord([np.ones((2, 2), np.float32), np.ones(2, np.int64)]), 1)
    assert result.train_metrics_clientapp[1]["failures"] == 3
    assert "malformed: an array is 'complex64'; only floats" in caplog.text
    assert caplog.text.count("not-finite: '0' has NaN or infinite values") == 2


def test_layers_of_a_list_meet_other_clients_layers():
    """The names make no difference: as many models hold layers of several slots."""
    arrays = [np.zeros(shape, np.float32) for shape in ((4, 3), (4,), (2, 4), (2,))]
    names = ["hidden.weight", "hidden.bias", "out.weight", "out.bias"]
    counts = []
    for record in (ArrayRecord(arrays), ArrayRecord(dict(zip(names, map(Array, arrays), strict=True)))):
        mixed = []

        def reply(content, client, mixed=mixed):
            first, *_, last = (array.numpy().flat[0] for array in content["arrays"].values())
            mixed.append(bool(first != last))
            return RecordDict(
                {"arrays": plus(content["arrays"], 2**client), "metrics": MetricRecord({"num-examples": 1})}
            )

        FedMR(fraction_evaluate=0.0).start(federation(reply), record, num_rounds=6)
        counts.append(sum(mixed))
    assert counts[0] == counts[1] > 8


@pytest.mark.parametrize("unit", ["layer", ["embed|head", "hidden"]])
def test_tied_weights_stay_tied(unit, caplog):
    """Two names of one tensor, as PyTorch's state_dict has them; `hidden` is only initialised alike."""
    torn = []

    def reply(content, client):
        state = content["arrays"].to_torch_state_dict()
        torn.append(not torch.equal(state["embed.weight"], state["head.weight"]))
        net = Tied()
        net.load_state_dict(state)
        with torch.no_grad():
            net.head.weight += client + 1
            net.hidden.weight *= client + 2
        return answer(ArrayRecord(net.state_dict()))

    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.hidden, self.head = (torch.nn.Linear(3, 3, bias=False) for _ in range(3))
            with torch.no_grad():
                self.hidden.weight.copy_(self.embed.weight)
            self.head.weight = self.embed.weight

    result = FedMR(unit=unit, fraction_evaluate=0.0).start(federation(reply), ArrayRecord(Tied().state_dict()), 6)
    assert flat(result.arrays).size == 27, "each name has an array of its own"
    assert np.array_equal(result.arrays["embed.weight"].numpy(), result.arrays["head.weight"].numpy())
    assert any(torn) == (unit == "layer")
    told = [message for message in caplog.messages if "one tied weight" in message]
    assert ["'embed.weight' and 'head.weight' are equal" in line for line in told] == [True] * (unit == "layer")


@pytest.mark.slow
def test_very_many_arrays_are_handled():
    arrays = [np.full((2, 2) if at % 2 == 0 else 2, at, np.float32) for at in range(4000)]
    strategy = FedMR(fraction_evaluate=0.0)
    result = strategy.start(federation(clients=2), ArrayRecord(arrays), num_rounds=2)
    assert len(result.arrays) == 4000
    assert len(strategy.units) == 2000


# Rounds that fail.


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("bad", [1, 3])
def test_a_bad_round_does_not_lose_the_run(kind, bad):
    def reply(content, client):
        if content["config"]["server-round"] == bad:
            raise OSError("data server unreachable")
        metrics = MetricRecord({"loss": 1.0, "num-examples": 3})
        return RecordDict({"arrays": plus(content["arrays"], 1), "metrics": metrics})

    result = kind().start(federation(reply), model(), num_rounds=5)
    assert dict(result.train_metrics_clientapp[bad]) == {"replies": 0, "failures": 4}
    assert [number for number, metrics in result.train_metrics_clientapp.items() if "loss" in metrics] == [
        number for number in range(1, 6) if number != bad
    ]
    assert np.isfinite(flat(result.arrays)).all()


def test_subclass_with_a_loop_of_its_own_has_its_replies_checked():
    def reply(content, client):
        bad = (content["config"]["server-round"], client) == (1, 0)
        arrays = plus(content["arrays"], np.nan if bad else 1)
        return RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 3})})

    class Custom(FedMR):
        def start(self, grid, initial_arrays, num_rounds=3, **_):
            arrays, self.metrics = initial_arrays, []
            for number in range(1, num_rounds + 1):
                replies = grid.send_and_receive(self.configure_train(number, arrays, ConfigRecord(), grid))
                arrays, metrics = self.aggregate_train(number, replies)
                self.metrics.append(metrics)
            return arrays

    strategy = Custom()
    arrays = strategy.start(federation(reply), model(), num_rounds=3)
    assert np.isfinite(flat(arrays)).all()
    assert all(np.isfinite(one.floats).all() for one in strategy.state.models)
    assert [metrics.get("failures", 0) for metrics in strategy.metrics] == [1, 0, 0]


def test_a_strategy_may_start_again_with_another_model():
    strategy = FedMR()
    strategy.start(federation(), model(), num_rounds=2)
    result = strategy.start(federation(clients=3), ArrayRecord([np.zeros((2, 2)), np.zeros(2)]), num_rounds=2)
    assert list(result.arrays) == ["0", "1"]
    assert strategy.slots == 3
    np.testing.assert_allclose(flat(result.arrays), 2 * 2)


# Going on.


def sent_in(strategy, start, rounds, seen):
    """Run some rounds; return what clients were sent, round by round."""
    seen.clear()
    result = strategy.start(federation(recording(seen)), start, num_rounds=rounds)
    return result.arrays, [seen[at : at + 4] for at in range(0, len(seen), 4)]


def recording(seen):
    def reply(content, client):
        seen.append((client, flat(content["arrays"]).tobytes()))
        metrics = MetricRecord({"num-examples": client + 1})
        return RecordDict({"arrays": plus(content["arrays"], 0.25 * (client + 1)), "metrics": metrics})

    return reply


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("restarted", [False, True])
def test_two_starts_are_as_good_as_one(kind, restarted, tmp_path):
    seen = []
    whole, expected = sent_in(kind(seed=3), model(), 5, seen)
    strategy = kind(seed=3)
    half, first = sent_in(strategy, model(), 2, seen)
    if restarted:
        np.savez(tmp_path / "state.npz", **strategy.save())
        strategy = kind(seed=3)
        strategy.restore(np.load(tmp_path / "state.npz"))
    rest, second = sent_in(strategy, half, 3, seen)
    assert first + second == expected
    assert flat(rest).tobytes() == flat(whole).tobytes()


def test_another_model_restarts_from_zero():
    seen, strategy = [], FedMR(seed=3)
    _, first = sent_in(strategy, model(), 3, seen)
    _, again = sent_in(strategy, model(), 3, seen)
    assert first == again


def test_state_of_other_models_is_refused():
    strategy = FedMR()
    arrays = strategy.start(federation(), model(), num_rounds=1).arrays
    other = FedMR(population=9, clients_per_round=2)
    other.restore(strategy.save())
    with pytest.raises(ConfigError, match="the restored state has 4 models, not 9; set population"):
        other.start(federation(), arrays, num_rounds=1)


# Seeds.


def test_seed_draws_the_same_partitions_in_every_run():
    def drawn():
        seen = []
        FedMR(clients_per_round=3, fraction_evaluate=0.5, seed=1).start(
            federation(recording(seen), clients=8), model(), num_rounds=3
        )
        return seen

    assert drawn() == drawn()


def test_what_a_seed_does_not_fix_is_said(caplog):
    caplog.set_level("INFO")
    FedMR().start(federation(), model(), num_rounds=2)
    assert sum("the seed fixes" in line for line in caplog.messages) == 1


def test_options_of_fedmr_run_are_said(caplog):
    FedMR(evaluate_slots=True)
    assert caplog.messages == ["evaluate_slots: left out, because only `fedmr run` scores the models of a population"]


def test_scaffold_needs_its_own_clients(caplog):
    """Its clients must answer with more than a model; one line says so for each."""
    result = Scaffold().start(federation(), model(), num_rounds=1)
    assert result.train_metrics_clientapp[1]["failures"] == 4
    assert "the reply has no vector" in caplog.text


@pytest.mark.parametrize(("kind", "told"), [(FedProx, 1), (Moon, 1), (FedASAM, 1), (FedAvg, 0), (FedMR, 0)])
def test_what_only_our_clients_do_is_told_once(kind, told, caplog):
    kind().start(federation(), model(), num_rounds=2)
    assert caplog.text.count(f"clients of {kind.__name__} train by a rule of its own") == told


@pytest.mark.parametrize("kind", [FedMR, FedAvg])
def test_arguments_have_names(kind):
    with pytest.raises(TypeError, match=rf"^{kind.__name__} takes its arguments by name, such as {kind.__name__}\("):
        kind(10)


def test_version_is_the_changelogs():
    assert fedmr_flwr.__version__ == version("fedmr-flwr")
    root = Path(__file__).parents[2]
    (named,) = re.findall(r"^version = \"(.+?)(?:\.dev\d+)?\"$", (root / "pyproject.toml").read_text(), re.MULTILINE)
    assert named in (root / "CHANGELOG.md").read_text().partition("\n## ")[2].partition("\n")[0]


def test_public_names_are_completed_before_they_are_used():
    code = "import fedmr_flwr; print(*{'FedMR', 'run', 'classic', '__name__'} - {*dir(fedmr_flwr)})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
