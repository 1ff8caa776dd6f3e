"""FedMR's theory on toy problems: what recombination keeps, and what it reduces to at its edges.

Weights are small whole numbers where a statement is exact, so that sums are exact in float64.
"""

import numpy as np
import pytest
from flwr.app import ConfigRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmr_flwr import FedAvg, FedMR, Indep
from fedmr_flwr.algorithms.contract import Round
from fedmr_flwr.algorithms.multi_model import Population
from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.core.population import average, mean, spread
from fedmr_flwr.core.recombination import Recombination, sources
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.grids.roster import RosterGrid
from tests.support.rounds import whole


def floats(*shape):
    return np.zeros(shape, np.float32)


LAYOUT = Layout.of(
    {
        "stem.0.conv.weight": floats(2, 3),
        "stem.0.bn.weight": floats(2),
        "stem.0.bn.running_mean": floats(2),
        "stem.0.bn.running_var": floats(2),
        "stem.0.bn.num_batches_tracked": np.zeros((), np.int64),
        "blocks.0.weight": floats(2, 2),
        "blocks.0.bn.running_mean": floats(2),
        "blocks.0.bn.num_batches_tracked": np.zeros((), np.int64),
        "blocks.1.weight": floats(2, 2),
        "blocks.1.index": np.zeros(2, np.int64),  # whole numbers that are no buffer
        "head.weight": floats(3, 2),
        "head.bias": floats(3),
    },
    blocks=("blocks.0", "blocks.1"),
)
CODEC = Codec(LAYOUT)
KINDS = ["tensor", "layer", "block", "block:2", "fraction:0.4", "fraction:1", ("bn", "weight|bias", ".*")]
every_unit = pytest.mark.parametrize("unit", KINDS, ids=str)
seeds = st.integers(0, 2**32 - 1)
FEWER = settings(max_examples=40)  # for each of the seven units
populations = st.tuples(st.integers(1, 9), seeds)


def whole_numbers(k, seed):
    """K models of small whole numbers, all different."""
    rng = np.random.default_rng(seed)
    return [Packed(rng.integers(-50, 51, LAYOUT.size).astype(np.float32), np.array([1, 2, 3, 4]) + 9 * slot)
            for slot in range(k)]  # fmt: skip


def recombined(population, unit, seed, buffers="move"):
    """Recombine once; return the models, the units and where each came from."""
    step = Recombination(LAYOUT, unit, buffers)
    drawn = sources(seed, 2, 0, len(step.units), len(population))
    return [whole(model) for model in step.gather(population, average(population), drawn)], step.units, drawn


def piece(model, unit):
    """The values of one unit as bytes, whole numbers and others."""
    return b"".join(model.floats[c].tobytes() for c in unit.floats), b"".join(
        model.ints[c].tobytes() for c in unit.ints
    )


def matrix(models):
    """[K, P] int64: exact for models of whole numbers."""
    return np.array([model.floats for model in models]).astype(np.int64)


# What recombination keeps


@every_unit
@FEWER
@given(population=populations, x=seeds)
def test_squared_distances_keep_their_sum(unit, population, x):
    before = whole_numbers(*population)
    after, _, _ = recombined(before, unit, population[1])
    point = np.random.default_rng(x).integers(-99, 100, LAYOUT.size)
    assert ((matrix(after) - point) ** 2).sum() == ((matrix(before) - point) ** 2).sum()
    # The variance around the mean, times K^3 to stay whole.
    k = len(before)
    old, new = matrix(before), matrix(after)
    assert ((k * new - new.sum(0)) ** 2).sum() == ((k * old - old.sum(0)) ** 2).sum()


@every_unit
@FEWER
@given(population=populations)
def test_each_unit_comes_from_its_source(unit, population):
    k, seed = population
    rng = np.random.default_rng(seed)
    before = [Packed(rng.normal(size=LAYOUT.size).astype(np.float32), rng.integers(0, 99, 4)) for _ in range(k)]
    after, units, drawn = recombined(before, unit, seed)
    for number, part in enumerate(units):
        assert [piece(model, part) for model in after] == [piece(before[at], part) for at in drawn[number]]
        assert sorted(piece(model, part) for model in after) == sorted(piece(model, part) for model in before)
    assert all(model.ints.dtype == np.int64 and model.floats.dtype == np.float32 for model in after)


@every_unit
@FEWER
@given(population=populations)
def test_the_uniform_mean_stays(unit, population):
    before = whole_numbers(*population)
    after, _, _ = recombined(before, unit, population[1])
    np.testing.assert_array_equal(mean([m.floats for m in after]), mean([m.floats for m in before]))


@every_unit
def test_recombination_is_not_the_identity(unit):
    before = whole_numbers(6, 0)
    moved = [recombined(before, unit, seed)[0] for seed in range(3)]
    assert all((matrix(models) != matrix(before)).any() for models in moved)
    assert len({matrix(models).tobytes() for models in moved}) == 3


@every_unit
@FEWER
@given(seed=seeds, k=st.integers(1, 9))
def test_equal_models_stay_as_they_are(unit, seed, k):
    (one,) = whole_numbers(1, seed)
    after, _, _ = recombined([one] * k, unit, seed)
    for model in after:
        np.testing.assert_array_equal(model.floats, one.floats, strict=True)
        np.testing.assert_array_equal(model.ints, one.ints, strict=True)


# Buffers

BUFFERS = [entry for entry in LAYOUT.entries if entry.buffer]


@every_unit
@FEWER
@given(population=populations)
def test_averaged_buffers_are_global(unit, population):
    k, seed = population
    before = whole_numbers(k, seed)
    center = average(before)
    after, units, drawn = recombined(before, unit, seed, "average")
    for model in after:
        assert (model.floats.dtype, model.ints.dtype) == (np.float32, np.int64)
        for entry in BUFFERS:
            own, its = (model.ints, center.ints) if entry.integer else (model.floats, center.floats)
            np.testing.assert_array_equal(own[entry.columns], its[entry.columns])
    for number, part in enumerate(units):
        for entry in LAYOUT.entries:
            if entry.name in part.keys and not entry.buffer:
                vector = "ints" if entry.integer else "floats"
                found = [getattr(model, vector)[entry.columns].tolist() for model in after]
                assert found == [getattr(before[at], vector)[entry.columns].tolist() for at in drawn[number]]


def test_counters_are_never_averaged():
    before = whole_numbers(3, 0)  # their first counters are 1, 10 and 19
    assert average(before).ints.tolist() == [19, 20, 21, 22]
    after, _, _ = recombined(before, "layer", 0, "average")
    assert all(model.ints[:2].tolist() == [19, 20] for model in after), "the counters of BatchNorm"
    assert sorted(model.ints[2] for model in after) == [3, 12, 21], "other whole numbers move"
    after, _, _ = recombined(before, "layer", 0)
    assert sorted(model.ints[0] for model in after) == [1, 10, 19]


# Whole rounds


class Experiment:
    """Runs rounds and keeps what happened: every slot's model before and after, and who trained which."""

    def __init__(self, grid_of, answer, kind, update, clients=9, m=4, **options):
        def reply(message, client):
            old = CODEC.decode(message.content["arrays"])
            new = update(old, client, message.content["config"]["server-round"])
            return answer(CODEC.encode(new), examples=client + 1, loss=client)

        self.grid = RosterGrid(grid_of(reply, clients), clients)
        self.strategy, self.num_clients = kind(clients_per_round=m, layout=LAYOUT, **options), clients
        self.arrays = CODEC.encode(Packed(floats(LAYOUT.size), np.zeros(4, np.int64)))

    def start_from(self, models):
        self.strategy.restore(Population(models, np.zeros(len(models))).arrays())

    def round(self, number):
        before = self.model
        plan = self.strategy.plan(Round(number, self.strategy.seed, LAYOUT, self.num_clients, None, lambda: before))
        self.dispatched = [whole(model) for model in plan.models]
        self.slots = [slot for slot, client in enumerate(plan.clients) if client is not None]
        messages = self.strategy.configure_train(number, self.arrays, ConfigRecord(), self.grid)
        self.sent = [CODEC.decode(message.content["arrays"]) for message in messages]
        exchange = self.grid.exchange(messages)
        self.clients = exchange.clients
        self.trained = [CODEC.decode(reply.content["arrays"]) for reply in exchange.replies]
        self.arrays, self.metrics = self.strategy.aggregate_train(number, exchange.replies)
        return self

    @property
    def population(self):
        return self.strategy.state.models

    @property
    def model(self):
        return CODEC.decode(self.arrays)

    @property
    def bytes(self):
        return {name: array.data for name, array in self.arrays.items()}


@pytest.fixture
def experiment_of(grid_of, answer):
    def make(kind, update, **options):
        return Experiment(grid_of, answer, kind, update, **options)

    return make


def by_client(old, client, number):
    """An update that depends on everything and is not linear, so that it matters which client met which model."""
    rng = np.random.default_rng([client, number])
    scale = np.float32(0.5 + client / 16)
    return Packed(
        old.floats * scale + np.abs(old.floats) * np.float32(0.25) + rng.normal(size=LAYOUT.size).astype(np.float32),
        old.ints + client % 3,
    )


def by_round(old, client, number):
    """The same for every client, and one-to-one."""
    return Packed(old.floats * np.float32(0.75) + np.float32(number), old.ints + 1)


def distinct(k):
    """K different models."""
    rng = np.random.default_rng(k)
    return [Packed(rng.normal(size=LAYOUT.size).astype(np.float32), np.arange(4) + slot) for slot in range(k)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("unit", ["tensor", "layer", "fraction:1"])
@pytest.mark.parametrize("population", [None, 9], ids=["K = M", "K > M"])
def test_an_endless_first_stage_is_fedavg(experiment_of, seed, unit, population):
    a = experiment_of(FedMR, by_client, seed=seed, unit=unit, first_stage_rounds=7, population=population)
    b = experiment_of(FedAvg, by_client, seed=seed, weighting="uniform")
    for number in range(1, 9):
        assert a.round(number).bytes == b.round(number).bytes, number
        assert a.clients == b.clients
        assert a.metrics["loss"] == b.metrics["loss"]
    assert a.metrics["similarity"] < 1, "the clients' models differ"


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_later_rounds_differ_from_fedavg(experiment_of, stage):
    a = experiment_of(FedMR, by_client, first_stage_rounds=stage)
    b = experiment_of(FedAvg, by_client, weighting="uniform")
    equal = [a.round(number).bytes == b.round(number).bytes for number in range(1, 6)]
    assert equal == [number <= stage + 1 for number in range(1, 6)]


def content(model):
    return model.floats.tobytes(), model.ints.tobytes()


def contents(models):
    return sorted(map(content, models))


@pytest.mark.parametrize("seed", range(3))
def test_moving_whole_models_is_indep(experiment_of, seed):
    a = experiment_of(FedMR, by_round, seed=seed, unit="fraction:1", m=5)
    b = experiment_of(Indep, by_round, seed=seed, m=5)
    for each in (a, b):
        each.start_from(distinct(5))
    orders = []
    for number in range(2, 9):
        a.round(number), b.round(number)
        assert contents(a.population) == contents(b.population), number
        orders.append([m.floats.tobytes() for m in a.population])
        orders[-1] = [orders[-1].index(m.floats.tobytes()) for m in b.population]
    assert any(order != sorted(order) for order in orders), "the models did move"
    assert len(contents(a.population)) == len(set(contents(a.population))) == 5


@pytest.mark.parametrize("m", [5, 3])
@pytest.mark.parametrize("unit", ["fraction:1", "layer", "tensor"])
def test_a_unit_is_the_work_of_clients_it_met(experiment_of, unit, m):
    k, seed = 5, 2
    experiment = experiment_of(FedMR, by_client, seed=seed, unit=unit, m=m, population=k)
    start, parts = distinct(k), Recombination(LAYOUT, unit).units
    experiment.start_from(start)
    # For each unit and slot: the slot it began in, and the (client, round) pairs it has met.
    chains = [[(slot, ()) for slot in range(k)] for _ in parts]
    for number in range(2, 8):
        experiment.round(number)
        drawn = sources(seed, number, 0, len(parts), k)
        chains = [[chain[at] for at in source] for chain, source in zip(chains, drawn, strict=True)]
        for slot, client in zip(experiment.slots, experiment.clients, strict=True):
            for chain in chains:
                chain[slot] = chain[slot][0], (*chain[slot][1], (client, number))

    for part, chain in zip(parts, chains, strict=True):
        for slot, (first, met) in enumerate(chain):
            model = start[first]
            for client, number in met:
                model = by_client(model, client, number)
            assert piece(experiment.population[slot], part) == piece(model, part), (part.name, slot)
    if unit == "layer":
        assert len({chain[0][1] for chain in chains}) > 1, "the layers of one slot have met different clients"


def test_slots_weigh_by_their_last_examples(experiment_of):
    def whole(old, client, number):
        return Packed(np.full(LAYOUT.size, 10 * number + client, np.float32), old.ints + 1)

    experiment = experiment_of(FedMR, whole, m=3, population=6, weighting="examples")
    examples = np.zeros(6)
    for number in range(1, 9):
        experiment.round(number)
        examples[experiment.slots] = np.array(experiment.clients) + 1
        rows = np.array([model.floats for model in experiment.population], np.float64)
        expected = (rows * examples[:, None]).sum(0) / examples.sum()  # exact until the division
        np.testing.assert_array_equal(experiment.model.floats, expected.astype(np.float32))
        uniform = mean([model.floats for model in experiment.population])
        assert (experiment.model.floats != uniform).any()
    assert (examples > 0).all()


@every_unit
def test_the_mean_ignores_recombination(experiment_of, unit):
    def add(old, client, number):  # whatever model a client gets, it adds the same
        step = np.random.default_rng([client, number]).integers(-9, 10, LAYOUT.size)
        return Packed(old.floats + step.astype(np.float32), old.ints)

    a, b = experiment_of(FedMR, add, unit=unit), experiment_of(Indep, add)
    for number in range(1, 8):
        a.round(number), b.round(number)
        np.testing.assert_array_equal(a.model.floats, b.model.floats)
    assert contents(a.population) != contents(b.population)


def test_averaged_buffers_are_weighted_too(experiment_of):
    experiment = experiment_of(FedMR, by_client, buffers="average", weighting="examples")
    before = experiment.round(1).model
    uniform = mean([model.floats for model in experiment.population])
    for model in experiment.round(2).dispatched:
        for entry in BUFFERS:
            own, its = (model.ints, before.ints) if entry.integer else (model.floats, before.floats)
            np.testing.assert_array_equal(own[entry.columns], its[entry.columns])
            assert entry.integer or (own[entry.columns] != uniform[entry.columns]).any()


# Populations larger than a round


@pytest.mark.parametrize("kind", [FedMR, Indep])
def test_idle_slots_keep_their_model(experiment_of, kind):
    experiment = experiment_of(kind, by_client, clients=10, m=3, population=8)
    counts, units = np.zeros(8, int), Recombination(LAYOUT).units
    for number in range(1, 41):
        before = experiment.population
        experiment.round(number)
        slots, after = experiment.slots, experiment.population
        assert slots == experiment.strategy.diagnostics["slots"]
        assert list(map(content, experiment.sent)) == [content(experiment.dispatched[slot]) for slot in slots]
        assert len(set(slots)) == len(slots) == len(experiment.trained) == 3
        expected = dict(zip(slots, experiment.trained, strict=True))
        for slot in range(8):
            model = expected.get(slot, experiment.dispatched[slot])
            assert content(after[slot]) == content(model), (number, slot)
        if before is not None:  # all eight take part in the recombination
            for unit in units:
                assert sorted(piece(m, unit) for m in before) == sorted(piece(m, unit) for m in experiment.dispatched)
        counts[slots] += 1
    assert counts.sum() == 120
    assert counts.min() >= 8, "each slot is trained about 15 times"
    assert counts.max() <= 23


def test_units_of_untrained_slots_move_too(experiment_of):
    experiment = experiment_of(FedMR, by_client, clients=10, m=2, population=6)
    experiment.start_from(distinct(6))
    before = [m.floats.tobytes() for m in experiment.population]
    experiment.round(2)
    idle = [slot for slot in range(6) if slot not in experiment.slots]
    assert any(experiment.population[slot].floats.tobytes() != before[slot] for slot in idle)


@pytest.mark.parametrize("kind", [FedMR, Indep])
def test_too_small_a_population_is_refused(kind):
    with pytest.raises(ConfigError, match=r"population: 7 is less than the 9 clients of a round; raise"):
        kind(clients_per_round=9, population=7, layout=LAYOUT)
    assert kind(clients_per_round=7, population=7, layout=LAYOUT).slots == 7


# Spread, by hand


def test_spread_is_a_deviation_across_models():
    rows = [np.array([0, 0, 5, 1], np.float32), np.array([2, 4, 5, 7], np.float32)]
    units = [(slice(0, 2),), (slice(2, 3),), (slice(0, 1), slice(3, 4)), (), (slice(1, 1),)]
    center = np.array([1, 2, 5, 4], np.float32)
    # (1 + 4 + 1 + 4) / 4; 0; (1 + 9 + 1 + 9) / 4; nothing; nothing
    assert spread(rows, center, units) == pytest.approx([2.5**0.5, 0, 5**0.5, 0, 0], rel=1e-7)
    # Around another center than the mean, the distance between the two counts as well.
    assert spread(rows, np.zeros(4, np.float32), units[:2]) == pytest.approx([5**0.5, 5], rel=1e-7)


def test_spread_of_large_units():
    p = 70_001
    rows = [np.full(p, value, np.float32) for value in (1, 3)]
    rows[1][-1] = 5
    units = [(slice(0, p - 1),), (slice(p - 1, p),), (slice(0, 40_000), slice(40_000, p))]
    expected = [1, 2, ((2 * (p - 1) + 8) / (2 * p)) ** 0.5]
    center = np.append(np.full(p - 1, 2, np.float32), np.float32(3))
    assert spread(rows, center, units) == pytest.approx(expected, rel=1e-6)


@every_unit
@FEWER
@given(population=populations)
def test_every_units_spread_stays(unit, population):
    before = whole_numbers(*population)
    after, units, _ = recombined(before, unit, population[1])
    center = mean([model.floats for model in before])
    columns = [part.floats for part in units]
    old, new = (spread([model.floats for model in models], center, columns) for models in (before, after))
    assert new == pytest.approx(old, rel=1e-6)
    assert any(value > 0 for value in old) == (len(before) > 1)
