import inspect
import logging

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.common import (
    Code,
    EvaluateRes,
    FitRes,
    GetParametersRes,
    Parameters,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server.client_manager import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.server import Server
from flwr.server.strategy import FedAvg as FlowersFedAvg
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmr_flwr.algorithms import classic
from fedmr_flwr.algorithms.classic import ClassicStrategy, FedMR
from fedmr_flwr.config import registry
from fedmr_flwr.core.layout import Layout
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.core.units import units
from fedmr_flwr.errors import ConfigError, RecordError, RunError
from fedmr_flwr.wire.grids.roster import RosterGrid

ARRAYS = {
    "conv.weight": np.zeros((2, 2), np.float32),
    "conv.bias": np.zeros(2, np.float32),
    "bn.weight": np.zeros(3, np.float32),
    "bn.running_mean": np.zeros(3, np.float32),
    "bn.num_batches_tracked": np.zeros((), np.int64),
    "out.weight": np.zeros(4, np.float32),
}
KEYS = list(ARRAYS)
LAYOUT = Layout.of(ARRAYS)
BUFFERS = ["bn.running_mean", "bn.num_batches_tracked"]
K, CLIENTS = 5, 8
CLASSIC = "fedmr_flwr.algorithms.classic"


def model(value):
    """A model whose every number is `value`."""
    return ndarrays_to_parameters([np.full_like(array, value) for array in ARRAYS.values()])


def tensors(parameters):
    return dict(zip(KEYS, parameters_to_ndarrays(parameters), strict=True))


def values(parameters):
    """The number that each tensor is filled with."""
    found = {}
    for name, array in tensors(parameters).items():
        assert (array == array.flat[0]).all()
        found[name] = float(array.flat[0])
    return found


def result(parameters, examples=10, code=Code.OK, **metrics):
    return FitRes(Status(code, "message"), parameters, examples, metrics)


class Client(ClientProxy):
    """A client that adds 1 to every number."""

    def fit(self, ins, timeout, group_id):
        return result(ndarrays_to_parameters([array + 1 for array in parameters_to_ndarrays(ins.parameters)]))

    def get_parameters(self, ins, timeout, group_id):
        return GetParametersRes(Status(Code.OK, ""), model(7))

    def get_properties(self, ins, timeout, group_id):
        raise NotImplementedError

    evaluate = reconnect = get_properties


def manager_of(count):
    manager = SimpleClientManager()
    for client in range(count):
        manager.register(Client(str(client)))
    return manager


class Experiment:
    """Clients that return a model filled with a number of their own: 100 * round + client.

    `bad(round, client)` gives the result or the failure that takes the place of that, `MISSING` for none at all.
    """

    MISSING = object()

    def __init__(self, clients=CLIENTS, bad=lambda server_round, client: None, **options):
        self.strategy = FedMR(**{"clients_per_round": K, "keys": KEYS} | options)
        self.manager, self.bad = manager_of(clients), bad
        self.parameters = model(0)

    def round(self, number):
        """Run a round; return what was sent, by the draw."""
        orders = self.strategy.configure_fit(number, self.parameters, self.manager)
        results, failures, self.trained = [], [], []
        for proxy, _ in reversed(orders):  # as Flower does: in any order
            other = self.bad(number, int(proxy.cid))
            if other is None:
                self.trained.append(100 * number + int(proxy.cid))
                results.append((proxy, result(model(self.trained[-1]), loss=1.0)))
            elif isinstance(other, BaseException):
                failures.append(other)
            elif other is not self.MISSING:
                (results if other.status.code == Code.OK else failures).append((proxy, other))
        self.clients = [int(proxy.cid) for proxy, _ in orders]
        parameters, self.metrics = self.strategy.aggregate_fit(number, results, failures)
        if parameters:
            self.parameters = parameters
        return [ins.parameters for _, ins in orders]

    @property
    def population(self):
        return population(self.strategy)


def population(strategy):
    """The floats of every slot."""
    return [model.floats for model in strategy.algorithm.state.models]


def test_round_1_sends_the_initial_model():
    strategy = FedMR(clients_per_round=K, keys=KEYS, on_fit_config_fn=lambda server_round: {"lr": 1 / server_round})
    sent = [ins for _, ins in strategy.configure_fit(2, model(3), manager_of(CLIENTS))]
    assert [ins.parameters for ins in sent] == [model(3)] * K
    assert [ins.config for ins in sent] == [{"lr": 0.5}] * K
    sent[0].parameters.tensors.pop()
    sent[0].config.clear()
    assert sent[1].parameters == model(3)
    assert sent[1].config == {"lr": 0.5}


@pytest.mark.parametrize("unit", ["tensor", "layer", "block", "fraction:0.4", ["weight", "."]])
def test_units_are_permuted_independently(unit):
    experiment = Experiment(unit=unit)
    experiment.round(1)
    trained = sorted(experiment.trained)
    mixed = [values(parameters) for parameters in experiment.round(2)]
    orders = set()
    for part in units(LAYOUT, unit):
        assert all(len({row[name] for name in part.keys}) == 1 for row in mixed), "a unit comes from one slot"
        order = tuple(row[part.keys[0]] for row in mixed)
        assert sorted(order) == trained, "each slot gives the unit once"
        orders.add(order)
    assert len(orders) > 1, "the units are shuffled independently"


def test_averaged_buffers_are_global():
    experiment = Experiment(buffers="average")
    experiment.round(1)
    center = values(experiment.parameters)
    assert center["bn.running_mean"] == np.float32(np.mean(experiment.trained))
    assert center["bn.num_batches_tracked"] == max(experiment.trained), "integer buffers take the maximum"
    trained = sorted(experiment.trained)
    mixed = [values(parameters) for parameters in experiment.round(2)]
    for name in KEYS:
        if name in BUFFERS:
            assert {row[name] for row in mixed} == {center[name]}
        else:
            assert sorted(row[name] for row in mixed) == trained


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), slots=st.integers(1, 6), unit=st.sampled_from(["tensor", "layer"]))
def test_recombination_keeps_the_mean(seed, slots, unit):
    rng = np.random.default_rng(seed)
    strategy = FedMR(clients_per_round=slots, keys=KEYS, unit=unit, seed=seed)
    manager = manager_of(slots)

    def trained():
        return result(
            ndarrays_to_parameters([np.asarray(rng.normal(size=a.shape), a.dtype) for a in ARRAYS.values()])
        )

    orders = strategy.configure_fit(1, model(0), manager)
    center, _ = strategy.aggregate_fit(1, [(client, trained()) for client, _ in orders], [])
    before = np.array(population(strategy))
    sent = [tensors(ins.parameters) for _, ins in strategy.configure_fit(2, center, manager)]
    after = np.array([LAYOUT.pack(row).floats for row in sent])
    np.testing.assert_array_equal(np.sort(after, axis=0), np.sort(before, axis=0))
    np.testing.assert_allclose(after.mean(axis=0), LAYOUT.pack(tensors(center)).floats, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_first_stage_averages(stage):
    experiment = Experiment(first_stage_rounds=stage)
    for number in range(1, 6):
        before = experiment.parameters
        averaged = all(sent == before for sent in experiment.round(number))
        assert averaged == (number <= stage + 1), number  # round 1 sends the initial model in any case


def broken(change):
    """A result with one tensor changed."""
    parameters = model(5)
    change(parameters.tensors)
    return result(parameters)


def put(array, at=0):
    def change(tensors):
        tensors[at] = ndarrays_to_parameters([array]).tensors[0]

    return broken(change)


def put_bytes(change):
    return broken(lambda tensors: tensors.__setitem__(0, change(tensors[0])))


HUGE = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }".ljust(127) + b"\n"
BAD = {
    "status": (lambda: result(model(5), code=Code.FIT_NOT_IMPLEMENTED), "FIT_NOT_IMPLEMENTED: message"),
    "count": (lambda: broken(lambda tensors: tensors.pop()), "the model has 5 tensors, expected 6"),
    "nothing": (lambda: result(Parameters([], "")), "the model has 0 tensors, expected 6"),
    "shape": (lambda: put(np.zeros((4, 1), np.float32)), "'conv.weight' is float32[4, 1], expected float32[2, 2]"),
    "dtype": (lambda: put(np.full((2, 2), 1e300)), "the model has NaN or infinite values"),
    "integer": (lambda: put(np.array(np.nan), at=4), "'bn.num_batches_tracked' is float64[], expected int64[]"),
    "NaN": (lambda: put(np.full((2, 2), np.nan, np.float32)), "the model has NaN or infinite values"),
    "infinite": (lambda: put(np.array([[0, 1], [2, -np.inf]], np.float32)), "the model has NaN or infinite values"),
    "no examples": (lambda: result(model(5), 0), "the client trained on 0 examples"),
    "fewer": (lambda: result(model(5), -3), "the client trained on -3 examples"),
    "odd examples": (lambda: result(model(5), float("nan")), "the client trained on nan examples"),
    "endless examples": (lambda: result(model(5), float("inf")), "the client trained on inf examples"),
    "list of examples": (lambda: result(model(5), [1]), "the client trained on [1] examples"),
    "short": (lambda: put_bytes(lambda data: data[:-1]), "an array is damaged"),
    "empty": (lambda: put_bytes(lambda data: b""), "an array is damaged"),
    "pickle": (lambda: put_bytes(lambda data: data.replace(b"<f4", b"|O8")), "an array is damaged"),
    "huge": (lambda: put_bytes(lambda data: HUGE % 10**30), "an array is damaged"),
    "exception": (lambda: ValueError("it\nbroke"), "it broke"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_result_keeps_the_slots_model(kind, caplog):
    make, reason = BAD[kind]
    experiment = Experiment(clients=K, bad=lambda number, client: make() if (number, client) == (2, 3) else None)
    experiment.round(1)
    caplog.clear()
    sent = experiment.round(2)
    slot = experiment.clients.index(3)
    for at, row in enumerate(experiment.population):
        if at == slot:
            np.testing.assert_array_equal(row, LAYOUT.pack(tensors(sent[at])).floats)
        else:
            assert (row == 200 + experiment.clients[at]).all()
    np.testing.assert_allclose(
        LAYOUT.pack(tensors(experiment.parameters)).floats, np.mean(experiment.population, axis=0), rtol=1e-6
    )
    (record,) = [record for record in caplog.records if record.name == CLASSIC]
    assert (record.levelno, record.getMessage().count("\n")) == (logging.WARNING, 0)
    assert record.getMessage().startswith("client 3: ")
    assert reason in record.getMessage()


def test_a_model_may_be_in_fortran_order():
    array = np.asfortranarray(np.arange(4, dtype=np.float32).reshape(2, 2))
    assert b"'fortran_order': True" in put(array).parameters.tensors[0]
    experiment = Experiment(clients=1, clients_per_round=1, bad=lambda *_: put(array))
    experiment.round(1)
    assert tensors(experiment.parameters)["conv.weight"].tolist() == [[0, 1], [2, 3]]


def test_exception_names_missing_clients(caplog):
    bad = {1: RuntimeError("first"), 3: RuntimeError()}
    Experiment(clients=K, bad=lambda number, client: bad.get(client)).round(1)
    logged = [record.getMessage() for record in caplog.records if record.name == CLASSIC]
    assert sorted(logged) == ["client 1 or 3: RuntimeError", "client 1 or 3: first"]


def test_unasked_answers_do_not_count(caplog):
    strategy = FedMR(clients_per_round=2, keys=KEYS)
    (first, _), (second, _) = strategy.configure_fit(1, model(0), manager_of(2))
    answers = [(first, result(model(1))), (Client("99"), result(model(50))), (second, result(model(3)))]
    parameters, _ = strategy.aggregate_fit(1, [*answers, (first, result(model(50)))], [])
    assert [row[0] for row in population(strategy)] == [1, 3]
    assert values(parameters)["out.weight"] == 2
    logged = [record.getMessage() for record in caplog.records if record.name == CLASSIC]
    assert logged == [f"client {who}: it was not drawn, or has replied before" for who in ("99", first.cid)]


def test_a_bad_round_changes_nothing():
    experiment = Experiment(clients=K, bad=lambda number, client: result(model(9), 0) if number == 2 else None)
    experiment.round(1)
    before, parameters = [row.copy() for row in experiment.population], experiment.parameters
    sent = experiment.round(2)
    assert experiment.metrics == {"replies": 0, "failures": K}
    assert experiment.parameters is parameters
    np.testing.assert_array_equal(experiment.population, before)
    again = experiment.round(3)
    assert sorted(values(row)["out.weight"] for row in again) == sorted(values(row)["out.weight"] for row in sent)


def test_a_bad_first_round_starts_again():
    experiment = Experiment(bad=lambda number, client: Experiment.MISSING if number == 1 else None)
    experiment.round(1)
    assert experiment.strategy.algorithm.state.models is None
    assert experiment.round(2) == [model(0)] * K


def test_slots_not_drawn_keep_their_models():
    slots, experiment = 7, Experiment(clients_per_round=3, population=7, unit="layer", seed=4)
    experiment.round(1)
    drawn = sorted(stream(4, "slots", 1).choice(slots, 3, replace=False).tolist())
    assert [row[0] for row in experiment.population] == [
        experiment.clients[drawn.index(slot)] + 100 if slot in drawn else 0 for slot in range(slots)
    ]
    touched = set(drawn)
    for number in range(2, 9):
        before = np.array(experiment.population)
        center = experiment.parameters
        sent = experiment.round(number)
        drawn = sorted(stream(4, "slots", number).choice(slots, 3, replace=False).tolist())
        kept = [row for slot, row in enumerate(experiment.population) if slot not in drawn]
        everything = np.array([*kept, *(LAYOUT.pack(tensors(parameters)).floats for parameters in sent)])
        np.testing.assert_array_equal(np.sort(everything, axis=0), np.sort(before, axis=0))
        assert sorted(experiment.trained) == sorted(
            row[0] for slot, row in enumerate(experiment.population) if slot in drawn
        )
        assert experiment.parameters != center
        touched |= set(drawn)
    assert touched == set(range(slots)), "every slot has its turn"


def test_slots_may_weigh_by_last_examples():
    def reply(number, client):
        if number == 2 and client == 0:
            return Experiment.MISSING
        return result(model(10 * number + client), examples=1 + 3 * client)

    experiment = Experiment(clients=2, clients_per_round=2, weighting="examples", unit="fraction:1", bad=reply)
    experiment.round(1)  # 10 of 1 example, 11 of 4
    assert values(experiment.parameters)["out.weight"] == np.float32((10 + 4 * 11) / 5)
    first = experiment.clients
    experiment.round(2)  # client 0's slot keeps the model that it was sent, and the examples of whoever had it before
    kept = [1, 4][first[experiment.clients.index(0)]]
    possible = [(kept * sent + 4 * 21) / (kept + 4) for sent in (10, 11)]
    found = values(experiment.parameters)["out.weight"]
    assert any(found == pytest.approx(expected, rel=1e-6) for expected in possible)


def test_metrics_are_weighted_by_examples():
    answers = {
        0: result(model(1), 1, loss=1.0, accuracy=0, note="text", own=3.0),
        1: result(model(3), 3, loss=2.0, accuracy=1),
        2: result(model(9), 0, loss=50.0),
    }
    experiment = Experiment(clients=3, clients_per_round=3, bad=lambda number, client: answers[client])
    experiment.round(1)
    assert experiment.metrics == {
        "replies": 2, "failures": 1, "loss": 1.75, "accuracy": 0.75, "own": 3, "similarity": pytest.approx(2 / 3 / 2)
    }  # fmt: skip
    # Of the three pairs only that of slots 1 and 3 is alike; the initial model of zeros is orthogonal to both.


def test_reports_similarity():
    def reply(number, client):  # unit vectors at 0, 10, 20 degrees
        arrays = [array.copy() for array in ARRAYS.values()]
        arrays[1][:] = np.cos(np.radians(10 * client)), np.sin(np.radians(10 * client))
        return result(ndarrays_to_parameters(arrays))

    experiment = Experiment(clients=3, clients_per_round=3, bad=reply)
    experiment.round(1)
    expected = np.mean(np.cos(np.radians([10, 10, 20])))
    assert experiment.metrics == {"similarity": pytest.approx(expected, rel=1e-5)}


def test_every_strategy_has_a_twin():
    kinds = ClassicStrategy.__subclasses__()
    assert {kind.__name__ for kind in kinds} >= {"FedAvg", "FedCross", "FedExP", "FedMR", "FedMut", "Indep"}
    assert all(kind.Kind is registry.find(kind.__name__.lower()) for kind in kinds)


TWINS = [
    *((kind, {}) for kind in ClassicStrategy.__subclasses__()),
    (FedMR, {"unit": "tensor", "seed": 3}),
    (FedMR, {"first_stage_rounds": 2}),
    (FedMR, {"unit": "tensor", "buffers": "average"}),
    (FedMR, {"population": 7, "weighting": "examples"}),
    (classic.FedAvg, {"weighting": "uniform"}),
    (classic.FedCross, {"collaborator": "in-order", "population": 6, "alpha": 0.75}),
]


def noisy(arrays, number, client):
    """What a client makes of a model."""
    old = LAYOUT.pack(dict(zip(KEYS, arrays, strict=True)))
    noise = np.random.default_rng([number, client]).normal(size=LAYOUT.size).astype(np.float32)
    new = old._replace(floats=old.floats * np.float32(0.9) + noise, ints=old.ints + 1 + client)
    return list(LAYOUT.unpack(new).values())


def silent(number, client):
    return number > 2 and (number + client) % 4 == 0


@pytest.mark.parametrize(("kind", "options"), TWINS, ids=lambda value: getattr(value, "__name__", None))
def test_a_twin_computes_the_same_bits(kind, options, grid_of, answer):
    def reply(message, client):
        number = message.content["config"]["server-round"]
        if silent(number, client):
            raise RuntimeError("silent")
        arrays = noisy([array.numpy() for array in message.content["arrays"].values()], number, client)
        record = ArrayRecord({name: Array(np.asarray(array)) for name, array in zip(KEYS, arrays, strict=True)})
        return answer(record, examples=client + 1, loss=float(client))

    def fit(ins, number, client):
        trained = ndarrays_to_parameters(noisy(parameters_to_ndarrays(ins.parameters), number, client))
        return result(trained, examples=client + 1, loss=float(client))

    twin, grid = kind.Kind(clients_per_round=K, **options), RosterGrid(grid_of(reply, CLIENTS), CLIENTS)
    strategy, manager = kind(clients_per_round=K, keys=KEYS, **options), manager_of(CLIENTS)
    arrays, parameters = ArrayRecord({name: Array(array) for name, array in ARRAYS.items()}), model(0)
    missing = 0
    for number in range(1, 7):
        messages = twin.configure_train(number, arrays, ConfigRecord(), grid)
        orders = strategy.configure_fit(number, parameters, manager)
        for message, (_, ins) in zip(messages, orders, strict=True):
            assert [array.data for array in message.content["arrays"].values()] == ins.parameters.tensors
        arrays, expected = twin.aggregate_train(number, grid.send_and_receive(messages))
        results = [
            (client, fit(ins, number, int(client.cid)))
            for client, ins in reversed(orders)
            if not silent(number, int(client.cid))
        ]
        missing += K - len(results)
        parameters, metrics = strategy.aggregate_fit(number, results, [])
        assert [array.data for array in arrays.values()] == parameters.tensors
        assert metrics == dict(expected)
    assert missing > 0


def test_clients_are_drawn_in_sorted_order():
    strategy = FedMR(clients_per_round=3, keys=KEYS, seed=5)
    manager = SimpleClientManager()
    for cid in ("30", "4", "111", "20"):
        manager.register(Client(cid))
    rounds = [[client.cid for client, _ in strategy.configure_fit(n, model(0), manager)] for n in range(1, 30)]
    for number, cids in enumerate(rounds, start=1):
        drawn = stream(5, "select", number).choice(4, 3, replace=False)
        assert cids == [["111", "20", "30", "4"][at] for at in drawn]
    assert len({tuple(cids) for cids in rounds}) > 10


def test_waits_for_clients_as_flower_does(caplog):
    manager, waits = manager_of(3), []

    def later(count, timeout):
        waits.append((count, timeout))
        manager.register(Client("3"))
        manager.register(Client("4"))

    manager.wait_for = later
    assert len(FedMR(clients_per_round=5, keys=KEYS).configure_fit(1, model(0), manager)) == 5
    assert waits == [(5, 86400)]
    (line,) = caplog.messages
    assert line.startswith("Waiting for clients to connect: 3 connected (minimum required: 5); start the others, or")
    assert line.endswith("'num-supernodes=5'")


def test_too_few_clients_end_the_run():
    manager = manager_of(3)
    manager.wait_for = lambda count, timeout: False
    with pytest.raises(RunError, match="3 of 5 clients are connected after 86400 s"):
        FedMR(clients_per_round=5, keys=KEYS).configure_fit(1, model(0), manager)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "blocks"}, "unknown unit 'blocks'; choose one of"),
        ({"clients_per_round": 0}, "clients_per_round: it is 0, but must be a whole number from 1"),
        ({"clients_per_round": 5, "population": 4}, "population: 4 is less than the 5 clients of a round"),
        ({"first_stage_rounds": -1}, "first.stage.rounds = -1"),
        ({"buffers": "drop"}, "buffers = 'drop'.*'move' or 'average'"),
        ({"weighting": "loss"}, "weighting = 'loss'.*'examples' or 'uniform'"),
        ({"alpha": 0.5}, "unknown argument .alpha"),
    ],
)
def test_options_are_checked_at_once(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        FedMR(keys=KEYS, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"unit": "block:2"},
            r"unit 'block:2' needs the names .* pass keys=list\(model.state_dict\(\)\), or choose unit='layer'",
        ),
        ({"unit": "tensor", "buffers": "average"}, "buffers: 'average' needs the names"),
    ],
)
def test_named_units_need_keys(options, message):
    strategy = FedMR(clients_per_round=1, **options)
    with pytest.raises(ConfigError, match=message) as caught:
        strategy.configure_fit(1, model(0), manager_of(1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "initial", "error", "message"),
    [
        (KEYS[:-1], model(0), ConfigError, "the first model has 6 tensors, but keys has 5 names"),
        ([*KEYS[:-1], KEYS[0]], model(0), ConfigError, "the first model has 6 tensors, but keys has 5 names"),
        (KEYS, Parameters([], ""), ConfigError, "the first model has 0 tensors, but keys has 6 names; pass initial_"),
        (["a"], ndarrays_to_parameters([np.zeros(2, "c8")]), RecordError, "an array is damaged"),
        (["a"], ndarrays_to_parameters([np.zeros(2, "u8")]), ConfigError, r"'a' is uint64; .*; convert .*float32"),
        (["a"], Parameters([b"noise"], ""), RecordError, "an array is damaged"),
    ],
)
def test_the_first_model_is_checked(keys, initial, error, message):
    with pytest.raises(error, match=message):
        FedMR(clients_per_round=1, keys=keys, unit="tensor").configure_fit(1, initial, manager_of(1))


@pytest.mark.parametrize("unit", ["tensor", "layer", "fraction:0.5", ["^[0-2]$", "."]])
def test_units_without_names_need_no_keys(unit):
    experiment = Experiment(keys=None, unit=unit)
    experiment.round(1)
    mixed = [values(parameters) for parameters in experiment.round(2)]
    orders = [tuple(row[name] for row in mixed) for name in KEYS]
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert len(set(orders)) == {"tensor": len(KEYS), "layer": len(KEYS) - 1}.get(str(unit), 2)
    assert orders[0] == orders[1] or unit == "tensor"


def test_a_float64_model_stays_float64():
    third = np.full(2, 1 / 3)
    strategy = FedMR(clients_per_round=1, keys=["a"], unit="tensor")
    ((client, ins),) = strategy.configure_fit(1, ndarrays_to_parameters([third]), manager_of(1))
    parameters, _ = strategy.aggregate_fit(1, [(client, result(ins.parameters))], [])
    np.testing.assert_array_equal(parameters_to_ndarrays(parameters)[0], third, strict=True)


def test_inputs_are_not_changed():
    experiment = Experiment(clients=K, population=7, weighting="examples")
    experiment.round(1)
    parameters = experiment.parameters
    for number in (2, 3):
        before = list(parameters.tensors)
        orders = experiment.strategy.configure_fit(number, parameters, experiment.manager)
        results = [(client, result(model(number), loss=1.0)) for client, _ in orders]
        experiment.strategy.aggregate_fit(number, results, [])
        assert parameters.tensors == before
        assert [answer for _, answer in results] == [result(model(number), loss=1.0)] * K


def test_flowers_own_server_runs_it():
    seen = []

    def evaluate(number, arrays, config):
        arrays[0][:] = 0  # may be changed: they are copies
        seen.append((number, arrays[-1].mean()))
        return 1.0, {"accuracy": 0.5}

    strategy = FedMR(clients_per_round=3, keys=KEYS, evaluate_fn=evaluate)
    server = Server(client_manager=manager_of(4), strategy=strategy)
    for _ in range(2):  # the second training starts afresh
        seen.clear()
        history, _ = server.fit(3, timeout=None)
        assert seen == [(0, 7), (1, 8), (2, 9), (3, 10)]  # clients start at 7 and add 1
        assert values(server.parameters)["conv.weight"] == 10
        assert [value for _, value in history.metrics_distributed_fit["similarity"]] == pytest.approx([1, 1, 1])
        assert history.losses_distributed == []


def test_flowers_arguments_are_ours():
    theirs, own = inspect.signature(FlowersFedAvg).parameters, inspect.signature(ClassicStrategy).parameters
    assert theirs.keys() <= own.keys(), "a new argument of Flower's: take it, and describe it in the guide"
    for name, parameter in theirs.items():
        assert own[name].default == (None if name == "min_available_clients" else parameter.default), name


@pytest.mark.parametrize(
    ("options", "clients", "slots"),
    [({}, 8, 8), ({"fraction_fit": 0.5}, 4, 4), ({"fraction_fit": 0.1}, 2, 2), ({"population": 10}, 8, 10),
     ({"population": 5}, 5, 5), ({"fraction_fit": 0.0}, 0, None)],
)  # fmt: skip
def test_clients_follow_from_those_that_are_there(options, clients, slots):
    strategy = FedMR(keys=KEYS, **options)
    assert len(strategy.configure_fit(1, model(0), manager_of(8))) == clients
    if slots:
        assert strategy.algorithm.slots == slots
        assert len(strategy.configure_fit(2, model(0), manager_of(20))) == clients, "as many as in the first round"


def test_types_come_back_as_they_went_out():
    strategy, manager = FedMR(keys=KEYS), manager_of(3)
    parameters = model(1)
    for number in (1, 2):
        orders = strategy.configure_fit(number, parameters, manager)
        answers = [
            (
                client,
                result(ndarrays_to_parameters([a + np.float64(0.5) for a in parameters_to_ndarrays(ins.parameters)])),
            )
            for client, ins in orders
        ]
        parameters, metrics = strategy.aggregate_fit(number, answers, [])
        assert "failures" not in metrics
    assert [array.dtype for array in parameters_to_ndarrays(parameters)] == [a.dtype for a in ARRAYS.values()]
    assert values(parameters)["conv.weight"] == 2


def test_failures_may_end_a_round():
    strategy = FedMR(keys=KEYS, accept_failures=False)
    (first, _), _ = strategy.configure_fit(1, model(0), manager_of(2))
    assert strategy.aggregate_fit(1, [(first, result(model(1)))], []) == (None, {"replies": 1, "failures": 1})


def test_metrics_may_be_combined_by_the_users_function():
    def notes(results):
        return {"notes": " ".join(f"{examples}{metrics['note']}" for examples, metrics in sorted(results, key=str))}

    answers = {0: result(model(1), 3, note="a"), 1: result(model(1), 5, note="b")}
    experiment = Experiment(
        clients=2, clients_per_round=2, fit_metrics_aggregation_fn=notes, bad=lambda number, client: answers[client]
    )
    experiment.round(1)
    assert experiment.metrics["notes"] == "3a 5b"


def test_clients_evaluate_as_flowers():
    strategy = FedMR(keys=KEYS, fraction_evaluate=0.5, on_evaluate_config_fn=lambda number: {"round": number})
    orders = strategy.configure_evaluate(3, model(7), manager_of(8))
    assert len({client.cid for client, _ in orders}) == 4
    assert all(ins.parameters == model(7) and ins.config == {"round": 3} for _, ins in orders)
    done = [
        (client, EvaluateRes(Status(Code.OK, ""), loss, examples, {"acc": loss / 10}))
        for (client, _), (loss, examples) in zip(orders, [(1.0, 1), (4.0, 2), (np.nan, 5), (9.0, 0)], strict=True)
    ]
    assert strategy.aggregate_evaluate(3, done, []) == (3.0, {"acc": pytest.approx(0.3)})


def test_nobody_evaluates_on_request():
    strategy = FedMR(clients_per_round=2, keys=KEYS, initial_parameters=model(1), fraction_evaluate=0.0)
    assert strategy.evaluate(1, model(0)) is None
    assert strategy.configure_evaluate(1, model(0), manager_of(2)) == []
    assert strategy.aggregate_evaluate(1, [], []) == (None, {})
    assert strategy.initialize_parameters(manager_of(2)) == model(1)


def test_a_new_training_forgets_the_last():
    experiment = Experiment(clients=2, clients_per_round=2, population=3, weighting="examples")
    for number in range(1, 6):
        experiment.round(number)
    strategy, manager = experiment.strategy, experiment.manager
    assert strategy.algorithm.state.examples.all()
    strategy.initialize_parameters(manager)
    other = ndarrays_to_parameters([np.zeros(n + 1, np.float32) for n in range(len(KEYS))])
    (first, _), (second, _) = strategy.configure_fit(1, other, manager)
    one = ndarrays_to_parameters([np.ones(n + 1, np.float32) for n in range(len(KEYS))])
    parameters, _ = strategy.aggregate_fit(1, [(first, result(one)), (second, result(other))], [])
    assert values(parameters)["out.weight"] == 0.5, "the slot that was not trained weighs nothing"
