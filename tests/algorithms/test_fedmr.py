import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedmr_flwr import FedCross, FedMR, Indep
from fedmr_flwr.core.layout import Layout
from fedmr_flwr.core.recombination import Parts
from fedmr_flwr.core.units import units
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.grids.roster import RosterGrid
from tests.support.rounds import round_of

ARRAYS = {
    "conv.weight": np.zeros((2, 2), np.float32),
    "conv.bias": np.zeros(2, np.float32),
    "bn.weight": np.zeros(3, np.float32),
    "bn.count": np.zeros((), np.int64),
    "out.weight": np.zeros(4, np.float32),
}
LAYOUT = Layout.of(ARRAYS)
CODEC = Codec(LAYOUT)
K = 5


def model(value):
    return CODEC.encode(Parts([np.full(LAYOUT.size, value, np.float32)], [np.full(LAYOUT.counters, int(value))]))


def decode(messages):
    return [CODEC.decode(message.content["arrays"]) for message in messages]


class Experiment:
    """Clients that return a model filled with a number of their own: 100 * round + client."""

    def __init__(self, grid_of, answer, clients=8, silent=(), **options):
        self.sent, self.silent = [], set(silent)
        self.answer = answer
        self.grid = RosterGrid(grid_of(self.reply, clients), clients)
        self.strategy = FedMR(clients_per_round=K, layout=LAYOUT, **options)
        self.arrays = model(0)

    def reply(self, message, client):
        server_round = message.content["config"]["server-round"]
        if (server_round, client) in self.silent:
            raise RuntimeError("silent")
        return self.answer(model(100 * server_round + client), loss=1.0)

    def round(self, number):
        messages = self.strategy.configure_train(number, self.arrays, ConfigRecord(), self.grid)
        self.sent.append(decode(messages))
        replies = self.grid.send_and_receive(messages)
        self.trained = [CODEC.decode(reply.content["arrays"]) for reply in replies if reply.has_content()]
        self.arrays, self.metrics = self.strategy.aggregate_train(number, replies)
        return self.sent[-1]


def test_round_1_sends_the_initial_model(grid_of, answer):
    experiment = Experiment(grid_of, answer)
    assert all((sent.floats == 0).all() for sent in experiment.round(1))


@pytest.mark.parametrize("unit", ["tensor", "layer"])
def test_recombines_unit_by_unit(grid_of, answer, unit):
    experiment = Experiment(grid_of, answer, unit=unit)
    experiment.round(1)
    values = sorted(trained.floats[0] for trained in experiment.trained)
    mixed = experiment.round(2)
    orders = set()
    for part in units(LAYOUT, unit):
        columns = [
            np.concatenate([*(m.floats[c] for c in part.floats), *(m.ints[c] for c in part.ints)]) for m in mixed
        ]
        assert all((column == column[0]).all() for column in columns), "a unit comes from one slot"
        assert sorted(column[0] for column in columns) == values, "each slot gives the unit once"
        orders.add(tuple(column[0] for column in columns))
    assert len(orders) > 1, "the units are shuffled independently"


def test_global_model_is_the_uniform_mean(grid_of, answer):
    experiment = Experiment(grid_of, answer)
    experiment.round(1)
    global_model = CODEC.decode(experiment.arrays)
    values = [trained.floats[0] for trained in experiment.trained]
    np.testing.assert_allclose(global_model.floats, np.mean(values))
    assert global_model.ints.tolist() == [max(values)]


def test_recombination_keeps_the_mean(grid_of, answer):
    experiment = Experiment(grid_of, answer)
    experiment.round(1)
    before = CODEC.decode(experiment.arrays).floats
    mixed = experiment.round(2)
    np.testing.assert_allclose(np.mean([sent.floats for sent in mixed], axis=0), before, rtol=1e-6)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_first_stage_averages(grid_of, answer, stage):
    experiment = Experiment(grid_of, answer, first_stage_rounds=stage)
    for number in range(1, 6):
        before = CODEC.decode(experiment.arrays).floats
        sent = experiment.round(number)
        averaged = all((row.floats == before).all() for row in sent)
        assert averaged == (number <= stage + 1), number  # round 1 sends the initial model in any case


def test_failed_slots_keep_their_model(grid_of, answer):
    experiment = Experiment(grid_of, answer, silent=[(2, client) for client in range(4)])
    experiment.round(1)
    sent = experiment.round(2)
    state = experiment.strategy.state.models
    kept = [slot for slot in range(K) if (state[slot].floats == sent[slot].floats).all()]
    assert len(kept) == K - len(experiment.trained) > 0
    np.testing.assert_allclose(
        CODEC.decode(experiment.arrays).floats, np.mean([m.floats for m in state], axis=0), rtol=1e-6
    )


def test_slots_get_random_clients(grid_of, answer):
    grid = RosterGrid(grid_of(lambda message, client: RecordDict(), 8), 8)
    strategy = FedMR(clients_per_round=K, layout=LAYOUT)
    order = grid.get_node_ids()
    drawn = []
    for number in range(1, 200):
        messages = strategy.configure_train(number, model(0), ConfigRecord(), grid)
        drawn.append([order.index(message.metadata.dst_node_id) for message in messages])
        assert len(set(drawn[-1])) == K
    first = np.bincount([row[0] for row in drawn], minlength=8)
    assert first.min() > 10, "slot 0 goes to every client in turn"
    assert any(row != sorted(row) for row in drawn)


def test_reports_similarity(grid_of, answer):
    experiment = Experiment(grid_of, answer)
    experiment.round(1)
    assert experiment.metrics["similarity"] == pytest.approx(1), "models of one direction"

    def reply(message, client):  # clients 0..7 return vectors at angles of 0, 10, 20 ... degrees
        floats = np.zeros(LAYOUT.size, np.float32)
        floats[:2] = np.cos(np.radians(10 * client)), np.sin(np.radians(10 * client))
        return answer(CODEC.encode(Parts([floats], [np.zeros(1, np.int64)])))

    grid = RosterGrid(grid_of(reply, 3), 3)
    strategy = FedMR(clients_per_round=3, layout=LAYOUT)
    replies = grid.send_and_receive(strategy.configure_train(1, model(0), ConfigRecord(), grid))
    _, metrics = strategy.aggregate_train(1, replies)
    expected = np.mean([np.cos(np.radians(10)), np.cos(np.radians(10)), np.cos(np.radians(20))])
    assert metrics["similarity"] == pytest.approx(expected, rel=1e-5)


def test_permutations_differ_by_round():
    strategy = FedMR(clients_per_round=K, layout=LAYOUT)
    models = [CODEC.decode(model(slot)) for slot in range(K)]
    rounds = [strategy.dispatch(round_of(strategy, number, models[0]), models) for number in range(2, 6)]
    sent = {tuple(np.concatenate(parts.floats).tobytes() for parts in dispatched) for dispatched in rounds}
    assert len(sent) == 4


def test_wrong_options_are_refused():
    with pytest.raises(ConfigError, match="FedMR: unit = 'blocks': unknown unit 'blocks'; choose one of tensor"):
        FedMR(unit="blocks")
    with pytest.raises(ConfigError, match="first_stage_rounds = -1: Input should be greater"):
        FedMR(first_stage_rounds=-1)
    with pytest.raises(ConfigError, match="clients_per_round: it is 0, but must be a whole number from 1"):
        FedMR(clients_per_round=0)


def test_no_replies_change_nothing(grid_of, caplog):
    start = ArrayRecord({name: Array(array) for name, array in ARRAYS.items()})

    def reply(message, client):
        raise RuntimeError("no data")

    strategy = FedMR(clients_per_round=3)
    strategy.start(grid_of(reply, clients=3, numbered=False), start, num_rounds=2)
    assert strategy.state.models is None
    assert caplog.text.count("client-error: RuntimeError: no data") == 6


def test_takes_per_tensor_records(grid_of, answer):
    start = ArrayRecord({name: Array(array) for name, array in ARRAYS.items()})

    def reply(message, client):
        tensors = {name: array.numpy() + 1 + client for name, array in message.content["arrays"].items()}
        return answer(ArrayRecord({name: Array(np.asarray(value)) for name, value in tensors.items()}))

    strategy = FedMR(clients_per_round=3, unit="layer")
    result = strategy.start(grid_of(reply, clients=3, numbered=False), start, num_rounds=2)
    assert list(result.arrays) == list(ARRAYS)
    # Each client adds 1, 2 or 3 to the model of a slot, twice, so the mean is 2 * 2 whatever the permutations.
    np.testing.assert_allclose(result.arrays["conv.weight"].numpy(), 4)
    assert result.arrays["bn.count"].numpy().dtype == np.int64


def test_single_unit_is_said(caplog):
    layout = Layout.of({"net.weight": np.zeros(2, np.float32), "net.bias": np.zeros(1, np.float32)})
    for unit, said in (("layer", True), ("tensor", False), ("fraction:1", True), ((".",), True)):
        caplog.clear()
        strategy = FedMR(clients_per_round=K, layout=layout, unit=unit)
        assert bool(strategy.notice) == bool(caplog.messages) == said, unit
        if said:
            assert strategy.notice.endswith("nothing is recombined; choose another unit, such as 'tensor'")


@pytest.mark.parametrize("kind", [FedMR, FedCross, Indep])
def test_single_model_is_said(kind, caplog):
    kind(clients_per_round=1, layout=LAYOUT)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the population has one model: there is none to mix it with" in caplog.text


def test_units_of_unnamed_arrays_are_said(caplog):
    caplog.set_level("INFO")
    arrays = [np.zeros(shape, np.float32) for shape in ((5, 4), (4,), (4, 3), (3,))]
    strategy = FedMR(clients_per_round=K, layout=Layout.of({str(at): array for at, array in enumerate(arrays)}))
    assert [unit.keys for unit in strategy.units] == [("0", "1"), ("2", "3")]
    assert caplog.messages == [
        "the 4 arrays have no names of modules: each is a unit, a weight with the bias that follows it (2 units)"
    ]
