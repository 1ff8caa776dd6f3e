import numpy as np
import pytest
from flwr.app import ConfigRecord

from fedmr_flwr import FedAvg, FedMut
from fedmr_flwr.core.layout import Layout
from fedmr_flwr.core.recombination import Parts
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.grids.roster import RosterGrid
from tests.support.rounds import packed, reply_of, round_of, slots_of

LAYOUT = Layout.of(
    {"a.w": np.zeros(2, np.float32), "b.w": np.zeros(3, np.float32), "b.running_var": np.zeros(1, np.float32)}
)
CODEC = Codec(LAYOUT)
START = CODEC.encode(Parts([np.zeros(6, np.float32)], [np.zeros(0, np.int64)]))


@pytest.fixture
def sent(grid_of, answer):
    """Run rounds in which every client adds 1, 2, ... 6; return what every slot was sent, and the last model."""

    def run(strategy, count=3):
        def reply(message, client):
            old = CODEC.decode(message.content["arrays"])
            return answer(CODEC.encode(Parts([old.floats + np.arange(1, 7, dtype=np.float32)], [old.ints])))

        grid = RosterGrid(grid_of(reply, 8), 8)
        arrays, models = START, []
        for number in range(1, count + 1):
            messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
            models.append([CODEC.decode(message.content["arrays"]).floats for message in messages])
            arrays, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
        return models, CODEC.decode(arrays).floats

    return run


CHANGE = np.arange(1, 7)  # of the global model in the first round


def test_tensors_mutate_in_opposite_pairs(sent):
    models, _ = sent(FedMut(clients_per_round=6, layout=LAYOUT, radius=4, acceleration=0))
    assert all(model.tolist() == [0] * 6 for model in models[0]), "nothing to mutate by in the first round"
    signs = (np.array(models[1]) - CHANGE) / (4 * CHANGE)
    for part in (slice(0, 2), slice(2, 5)):
        assert (signs[:, part] == signs[:, part][:, :1]).all(), "a tensor is mutated as a whole"
        assert sorted(signs[:, part.start]) == [-1, -1, -1, 1, 1, 1]
    assert (signs[:, 5] == 0).all(), "no statistic is mutated"
    np.testing.assert_allclose(np.mean(models[1], 0), CHANGE, rtol=1e-6)


def test_half_the_slots_move_ahead(sent):
    models, _ = sent(FedMut(clients_per_round=4, layout=LAYOUT, radius=2, acceleration=1), count=2)
    # With full acceleration the other half stays where it is.
    assert sorted(model[0] for model in models[1]) == [CHANGE[0]] * 2 + [3 * CHANGE[0]] * 2
    assert sorted(model[3] for model in models[1]) == [CHANGE[3]] * 2 + [3 * CHANGE[3]] * 2


@pytest.mark.parametrize(("options", "expected"), [({}, 5), ({"weighting": "examples"}, 9)])
def test_models_are_averaged_uniformly_by_default(options, expected):
    strategy = FedMut(clients_per_round=2, layout=LAYOUT, **options)
    values = [np.zeros(6, np.float32), np.full(6, 10, np.float32)]
    replies = [reply_of(packed(own), 1 + 8 * at) for at, own in enumerate(values)]
    combined = strategy.combine(round_of(strategy, 1, packed([0] * 6)), slots_of(replies))
    assert combined.model.floats.tolist() == [expected] * 6


def test_signs_are_drawn_independently(sent):
    models, _ = sent(FedMut(clients_per_round=8, layout=LAYOUT, radius=1, acceleration=0), count=6)
    drawn = {tuple(np.sign(np.array(m)[:, at] - np.mean(m, 0)[at])) for m in models[1:] for at in (0, 2)}
    assert len(drawn) > 7, "ten draws of 70 possible ones"


def test_odd_last_slot_is_not_mutated(sent):
    models, _ = sent(FedMut(clients_per_round=5, layout=LAYOUT, radius=3, acceleration=0))
    assert models[1][4].tolist() == CHANGE.tolist()
    np.testing.assert_allclose(np.mean(models[1], 0), CHANGE, rtol=1e-6)


def test_backward_mutations_grow(sent):
    strategy = FedMut(clients_per_round=2, layout=LAYOUT, radius=1, acceleration=0.5, acceleration_rounds=4)
    strategy.restore({"previous": np.full(6, -1, np.float32)})
    for number, back in zip(range(2, 8), (-0.5, -0.625, -0.75, -0.875, -1, -1), strict=True):
        mutated = strategy.models(round_of(strategy, number, packed([0] * 6)))  # the change is 1 everywhere
        assert {float(value) for model in mutated for value in model.floats[:5]} == {back, 1}


def test_zero_radius_is_uniform_fedavg(sent):
    _, mutated = sent(FedMut(clients_per_round=5, layout=LAYOUT, radius=0))
    _, averaged = sent(FedAvg(clients_per_round=5, layout=LAYOUT, weighting="uniform"))
    assert mutated.tobytes() == averaged.tobytes()


def test_bad_round_keeps_last_update(sent, grid_of, answer):
    strategy = FedMut(clients_per_round=4, layout=LAYOUT, radius=2, acceleration=0)
    sent(strategy, count=1)
    grid = RosterGrid(grid_of(lambda message, client: answer(START), 8), 8)
    arrays = CODEC.encode(Parts([CHANGE.astype(np.float32)], [np.zeros(0, np.int64)]))
    first, second = (strategy.configure_train(2, arrays, ConfigRecord(), grid) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        a, b = (CODEC.decode(message.content["arrays"]).floats for message in (one, other))
        assert a.tobytes() == b.tobytes() != CHANGE.astype(np.float32).tobytes()
