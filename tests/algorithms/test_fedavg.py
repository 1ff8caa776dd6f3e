import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord

from fedmr_flwr import FedAvg
from fedmr_flwr.core.layout import Layout
from fedmr_flwr.core.recombination import Parts
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.grids.roster import RosterGrid

LAYOUT = Layout.of({"w": np.zeros(2, np.float32), "n": np.zeros(1, np.int64)})
CODEC = Codec(LAYOUT)
START = CODEC.encode(Parts([np.zeros(2, np.float32)], [np.zeros(1, np.int64)]))


def one_round(grid_of, answer, weighting):
    """Client c returns [c, 10 c] and the counter c after training on 1, 2 or 3 examples."""

    def reply(message, client):
        floats, ints = np.array([client, 10 * client], np.float32), np.array([client])
        return answer(CODEC.encode(Parts([floats], [ints])), examples=client + 1, loss=client)

    grid = RosterGrid(grid_of(reply, clients=3), clients=3)
    strategy = FedAvg(clients_per_round=3, layout=LAYOUT, weighting=weighting)
    replies = grid.send_and_receive(strategy.configure_train(1, START, ConfigRecord(), grid))
    arrays, metrics = strategy.aggregate_train(1, replies)
    return CODEC.decode(arrays), metrics


def test_average_weighted_by_examples(grid_of, answer):
    model, metrics = one_round(grid_of, answer, "examples")
    np.testing.assert_allclose(model.floats, [8 / 6, 80 / 6], rtol=1e-6)  # (0*1 + 1*2 + 2*3) / 6
    assert metrics["loss"] == pytest.approx(8 / 6)


def test_uniform_average(grid_of, answer):
    model, _ = one_round(grid_of, answer, "uniform")
    assert model.floats.tolist() == [1, 10]


def test_integers_take_the_maximum(grid_of, answer):
    model, _ = one_round(grid_of, answer, "examples")
    assert model.ints.tolist() == [2]
    assert model.ints.dtype == np.int64


def test_wrong_options_are_refused():
    with pytest.raises(ConfigError, match=r"FedAvg: unknown argument 'weigting'; did you mean 'weighting'\?"):
        FedAvg(weigting="uniform")
    with pytest.raises(ConfigError, match=r"FedAvg: weighting = 'size'"):
        FedAvg(weighting="size")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"clients_per_round": 0}, "clients_per_round: it is 0, but must be a whole number from 1"),
        ({"wire": "float8"}, "wire: it is 'float8', but must be float32 or float16"),
        ({"wire": "float16"}, "wire: it is 'float16', but only packed models are converted"),
        ({"guard": 1.0}, "guard: it is 1.0, but must be greater than 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        FedAvg(**arguments)


def test_missing_model_is_named(grid_of, answer):
    class Short(FedAvg):
        def models(self, round):
            return super().models(round)[:-1]

    grid = RosterGrid(grid_of(lambda message, client: answer(START), clients=3), clients=3)
    with pytest.raises(ConfigError, match=r"Short.models returned 2 models, expected 3"):
        Short(clients_per_round=3, layout=LAYOUT).configure_train(1, START, ConfigRecord(), grid)


def test_each_run_infers_its_layout(grid_of, answer):
    strategy = FedAvg(clients_per_round=2)
    for length in 2, 5:
        start = ArrayRecord({"w": Array(np.ones(length, np.float32))})
        grid = grid_of(lambda message, client: answer(message.content["arrays"]), clients=4, numbered=False)
        assert strategy.start(grid, start, num_rounds=2).arrays["w"].shape == (length,)


def test_runs_in_flowers_own_loop(grid_of, answer):
    start = ArrayRecord({"w": Array(np.zeros(2, np.float32)), "n": Array(np.zeros((), np.int64))})

    def reply(message, client):
        tensors = {name: array.numpy() for name, array in message.content["arrays"].items()}
        return answer(ArrayRecord({name: Array(np.asarray(value + 1)) for name, value in tensors.items()}))

    result = FedAvg(clients_per_round=2).start(grid_of(reply, clients=4, numbered=False), start, num_rounds=3)
    assert result.arrays["w"].numpy().tolist() == [3, 3]
    assert result.arrays["n"].numpy() == 3
