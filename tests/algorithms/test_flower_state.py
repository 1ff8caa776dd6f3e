"""Flower's own strategies, stopped after a round and taken up from the disk, continue bit for bit."""

import gc

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedmr_flwr.algorithms.flower import restore, state_of
from fedmr_flwr.core.recombination import Parts
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.runs import checkpoint
from fedmr_flwr.runs.checkpoint import Checkpoint
from fedmr_flwr.wire.codec import Codec, restore_dtypes
from fedmr_flwr.wire.grids.roster import RosterGrid

ROUNDS, STOP, CLIENTS = 5, 3, 7
# More than ten, so that "10" must not come before "2"; a name that looks like a moment's; a tensor without a shape.
NAMES = [f"layer.{at}.weight" for at in range(11)] + ["m_t.v_t.weight"]
ALL = {"fraction_train": 1.0, "fraction_evaluate": 0.0}
MOMENTS = {"eta": 0.3, "tau": 0.01}

STRATEGIES = {
    "FedAdam": lambda: flower.FedAdam(**ALL, **MOMENTS, beta_1=0.8, beta_2=0.9),
    "FedAdagrad": lambda: flower.FedAdagrad(**ALL, **MOMENTS),
    "FedYogi": lambda: flower.FedYogi(**ALL, **MOMENTS, beta_1=0.8, beta_2=0.9),
    "FedAvgM": lambda: flower.FedAvgM(**ALL, server_learning_rate=0.7, server_momentum=0.6),
    "FedAvgM without momentum": lambda: flower.FedAvgM(**ALL, server_learning_rate=0.7),
    "FedAvg": lambda: flower.FedAvg(**ALL),
    "FedProx": lambda: flower.FedProx(**ALL, proximal_mu=0.1),
    "FedMedian": lambda: flower.FedMedian(**ALL),
    "FedTrimmedAvg": lambda: flower.FedTrimmedAvg(**ALL, beta=0.2),
    "Krum": lambda: flower.Krum(**ALL, num_malicious_nodes=1),
    "MultiKrum": lambda: flower.MultiKrum(**ALL, num_malicious_nodes=1, num_nodes_to_select=3),
    "Bulyan": lambda: flower.Bulyan(**ALL, num_malicious_nodes=1),
    "QFedAvg": lambda: flower.QFedAvg(client_learning_rate=0.1, q=0.2, **ALL),
}
every_strategy = pytest.mark.parametrize("name", STRATEGIES)
WHOLE = {}


@pytest.fixture(autouse=True, scope="module")
def _few_objects():
    """Some of Flower's strategies collect garbage hundreds of times, which takes long with all of PyTorch loaded."""
    gc.freeze()
    yield
    gc.unfreeze()


def start():
    rng = np.random.default_rng(0)
    shapes = [*[(2, 3)] * 10, (), (4,)]
    return ArrayRecord(
        {
            name: Array(np.asarray(rng.normal(size=shape), np.float32))
            for name, shape in zip(NAMES, shapes, strict=True)
        }
    )


@pytest.fixture
def run_rounds(grid_of, answer):
    """Run some rounds of a strategy; return the final model."""

    def reply(message, client):
        number = message.content["config"]["server-round"]
        rng = np.random.default_rng([number, client])
        arrays = {
            name: Array(np.asarray(array.numpy() * 0.9 + rng.normal(size=array.shape), np.float32))
            for name, array in message.content["arrays"].items()
        }
        return answer(ArrayRecord(arrays), examples=client + 1, train_loss=1.0 + client)

    def run(strategy, rounds, arrays=None):
        grid = RosterGrid(grid_of(reply, CLIENTS), CLIENTS)
        order = grid.get_node_ids()
        arrays = arrays or start()
        for number in rounds:
            messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
            # Flower draws from the global generator; all clients are drawn, and this undoes the order.
            messages = sorted(messages, key=lambda message: order.index(message.metadata.dst_node_id))
            assert len(messages) == CLIENTS
            combined, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
            arrays = restore_dtypes(combined, arrays)
        return arrays

    return run


@pytest.fixture
def whole(run_rounds):
    """Return a function that gives the final model of an uninterrupted run, which several tests compare with."""

    def run(name):
        if name not in WHOLE:
            WHOLE[name] = run_rounds(STRATEGIES[name](), range(1, ROUNDS + 1))
        return WHOLE[name]

    return run


def through_the_disk(folder, arrays, state):
    """Save a model and a state, read them back."""
    codec = Codec.infer(arrays)
    saved = checkpoint.load(checkpoint.save(folder, Checkpoint(STOP, codec.decode(arrays), state)))
    return codec.encode(Parts([saved.model.floats], [saved.model.ints])), saved.state


def values(arrays):
    return {name: (array.dtype, tuple(array.shape), array.data) for name, array in arrays.items()}


@pytest.mark.slow
@every_strategy
def test_restored_strategy_continues_exactly(run_rounds, whole, tmp_path, name):
    before = STRATEGIES[name]()
    half = run_rounds(before, range(1, STOP + 1))
    arrays, state = through_the_disk(tmp_path, half, state_of(before))
    assert values(arrays) == values(half)
    after = STRATEGIES[name]()
    restore(after, state)
    rest = run_rounds(after, range(STOP + 1, ROUNDS + 1), arrays)
    assert values(rest) == values(whole(name))
    assert values(rest) != values(half)


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("FedAdam", "m_t."), ("FedAdam", "v_t."), ("FedAdagrad", "v_t."), ("FedYogi", "m_t."), ("FedYogi", "v_t."),
        ("FedAvgM", "momentum_vector."),
    ],
)  # fmt: skip
def test_every_part_of_state_matters(run_rounds, whole, name, lost):
    before, after = STRATEGIES[name](), STRATEGIES[name]()
    half = run_rounds(before, range(1, STOP + 1))
    kept = {key: array for key, array in state_of(before).items() if not key.startswith(lost)}
    assert len(kept) < len(state_of(before))
    restore(after, kept)
    assert values(run_rounds(after, range(STOP + 1, ROUNDS + 1), half)) != values(whole(name))


@every_strategy
def test_empty_state_resets(run_rounds, whole, tmp_path, name):
    assert state_of(STRATEGIES[name]()) == {}
    arrays, state = through_the_disk(tmp_path, start(), {})
    used = STRATEGIES[name]()
    run_rounds(used, range(1, 3))
    restore(used, state)
    if isinstance(used, flower.FedAvgM | flower.FedAdam | flower.FedAdagrad | flower.FedYogi):
        assert state_of(used) == {}, "what it held before is gone"
    assert values(run_rounds(used, range(1, ROUNDS + 1), arrays)) == values(whole(name))


@pytest.mark.parametrize("name", ["FedAdam", "FedAdagrad", "FedYogi", "FedAvgM"])
def test_state_is_copied(run_rounds, name):
    before, after = STRATEGIES[name](), STRATEGIES[name]()
    run_rounds(before, range(1, STOP + 1))
    state = state_of(before)
    restore(after, state)
    for key, array in state_of(after).items():
        np.testing.assert_array_equal(array, state[key], strict=True)
        assert not np.shares_memory(array, state[key])


class Derived(flower.FedAdam):
    """Keeps who knows what."""


class Own(Strategy):
    def configure_train(self, server_round, arrays, config, grid):
        return []

    def aggregate_train(self, server_round, replies):
        return None, None

    def configure_evaluate(self, server_round, arrays, config, grid):
        return []

    def aggregate_evaluate(self, server_round, replies):
        return None

    def summary(self):
        pass


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (Derived, "Derived"),
        (Own, "Own"),
        (type("Mine", (flower.FedAvgM,), {}), "Mine"),
        (type("Plain", (flower.FedAvg,), {}), "Plain"),
        (lambda: flower.FedXgbBagging(), "FedXgbBagging"),
        (
            lambda: flower.DifferentialPrivacyServerSideAdaptiveClipping(flower.FedAvg(), 1.0, 100),
            "DifferentialPrivacyServerSideAdaptiveClipping",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("state", [{}, {"m_t.w": np.zeros(2)}])
def test_unknown_strategies_cannot_resume(make, name, state):
    strategy = make()
    state_of(strategy)
    with pytest.raises(
        ConfigError, match=f"^a run with {name} cannot be resumed, because .* derive it from"
    ) as caught:
        restore(strategy, state)
    assert "\n" not in str(caught.value)
