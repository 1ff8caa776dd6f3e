import numpy as np
import pytest
from flwr.app import ConfigRecord

from fedmr_flwr.algorithms.fedexp import FedExP
from fedmr_flwr.core.layout import Layout
from fedmr_flwr.core.recombination import Parts
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.grids.roster import RosterGrid

LAYOUT = Layout.of(
    {"w": np.zeros(2, np.float32), "bn.running_mean": np.zeros(1, np.float32), "n": np.zeros(1, np.int64)}
)
CODEC = Codec(LAYOUT)
START = CODEC.encode(Parts([np.array([10, 20, 30], np.float32)], [np.zeros(1, np.int64)]))


@pytest.fixture
def rounds(grid_of, answer):
    """Run rounds in which client c adds updates[c]; return the strategy, and what was sent and evaluated."""

    def run(updates, count=1, bad=None, **options):
        def reply(message, client):
            old = CODEC.decode(message.content["arrays"])
            return answer(
                CODEC.encode(Parts([old.floats + np.array(updates[client], np.float32)], [old.ints + 1])), client + 1
            )

        grid = RosterGrid(grid_of(reply, len(updates)), len(updates))
        strategy = FedExP(clients_per_round=len(updates), layout=LAYOUT, **options)
        arrays, sent, evaluated = START, [], []
        for number in range(1, count + 1):
            messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
            sent.append(CODEC.decode(messages[0].content["arrays"]).floats.tolist())
            if number == bad:
                continue
            arrays, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
            evaluated.append(CODEC.decode(arrays).floats.tolist())
        return strategy, sent, evaluated

    return run


def step_of(strategy):
    return strategy.diagnostics["server-step"]


def test_step_by_hand(rounds):
    # Updates (3, 0) and (0, 3): mean (1.5, 1.5) of square 4.5, squares 9 and 9: 18 / (2 * 2 * (4.5 + 0.5)) = 0.9;
    # with (9, 0) and (0, 1): mean (4.5, 0.5) of square 20.5, squares 81 + 1: 82 / (4 * 21) = 0.976...
    assert step_of(rounds([[3, 0, 0], [0, 3, 0]], epsilon=0.5)[0]) == 1.0, "never less than the mean"
    # (3, -1) and (-3, 3): mean (0, 1), squares 10 and 18: 28 / (4 * (1 + 0.5)) = 4.666...
    strategy, _, evaluated = rounds([[3, -1, 0], [-3, 3, 0]], epsilon=0.5)
    assert step_of(strategy) == pytest.approx(28 / 6)
    np.testing.assert_allclose(evaluated[0], [10, 20 + 28 / 6, 30], rtol=1e-6)


def test_weighted_step_by_hand(rounds):
    # Clients with 1 and 2 examples and updates (6, -3) and (-3, 3), whose squares are 45 and 18: mean (0, 1), step
    # (45 + 2 * 18) / (2 * 3 * (1 + 0.5)) = 9.
    strategy, _, evaluated = rounds([[6, -3, 3], [-3, 3, 0]], epsilon=0.5, weighting="examples")
    assert step_of(strategy) == pytest.approx(9)
    np.testing.assert_allclose(evaluated[0], [10, 29, 31], rtol=1e-6)


def test_equal_updates_are_averaged(rounds):
    strategy, _, evaluated = rounds([[2, 4, 6]] * 3)
    assert step_of(strategy) == 1.0
    assert evaluated == [[12, 24, 36]]


def test_buffers_do_not_affect_the_step(rounds):
    plain, _, _ = rounds([[3, -1, 0], [-3, 3, 0]])
    strategy, _, evaluated = rounds([[3, -1, 100], [-3, 3, 200]])
    assert step_of(strategy) == step_of(plain) > 4
    assert evaluated[0][2] == 30 + 150


def test_evaluates_mean_of_last_two_iterates(rounds):
    _, sent, evaluated = rounds([[1, 2, 3]] * 2, count=4)
    assert sent == [[10, 20, 30], [11, 22, 33], [12, 24, 36], [13, 26, 39]]
    assert evaluated == [[11, 22, 33], [11.5, 23, 34.5], [12.5, 25, 37.5], [13.5, 27, 40.5]]


def test_mean_excludes_the_initial_model(rounds):
    _, _, evaluated = rounds([[1, 2, 3]] * 2, count=3, bad=1)
    assert evaluated == [[11, 22, 33], [11.5, 23, 34.5]]
