"""Clients in lockstep: the same models as in lanes of their own, and lanes where they cannot be.

Without a GPU the kernels run in Triton's interpreter, which is slow: the network is tiny.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedmr_flwr.gpu import graphs
from fedmr_flwr.gpu.grid import GpuGrid, GraphStack
from fedmr_flwr.gpu.lanes import ResidentLane
from fedmr_flwr.gpu.stack import StackLane
from fedmr_flwr.models import MODELS, layers
from fedmr_flwr.models.cnn import CNN
from tests.support.runs import digest, run

CPU = torch.device("cpu")


class Tiny(CNN):
    """A network so small that Triton's interpreter trains it in seconds."""

    stackable = True

    def __init__(self, shape, classes):
        super().__init__(shape, classes, kernel=3, padding=1, channels=(2, 3), hidden=(5,))


class Inheriting(Tiny):
    """A network that does not say that it may be stacked: what it inherits from does."""


@pytest.fixture
def lockstep(toy, tmp_path, monkeypatch):
    """Return a function that makes settings of a run whose clients can train in lockstep, by kernels of our own."""
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(layers, "missing", lambda device: None)
    monkeypatch.setitem(MODELS, "tiny", Tiny)
    monkeypatch.setitem(MODELS, "inheriting", Inheriting)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 4, 4), dtype=np.uint8), np.arange(40) % 3
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x[:4], y_test=y[:4])
    # Of different sizes, so that some finish before others and have smaller last batches.
    data = [f"data.name=npz:{tmp_path / 'data.npz'}", "partition.name=quantity", "training.batch-size=8"]
    settings = ["model.name=tiny", "clients=3", "rounds=1", *data, "training.local-epochs=1"]
    return lambda *more, run="a": toy(*settings, *more, run=run)


@pytest.fixture
def captured(monkeypatch):
    """Let lanes for CUDA train on a CPU, with replays that are counted; return these."""
    stream, replays = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None), []
    monkeypatch.setattr(graphs, "_unused_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)

    def capture(lane, size):
        def replay():
            replays.append(size)
            lane._train_batch(size)

        return SimpleNamespace(replay=replay)

    monkeypatch.setattr(GraphStack, "_capture", capture)
    return replays


# With a momentum of 0.5, by which a product is exact: on a CPU the bits of others depend on how tensors are divided.
@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        "rounds=2 training.work=stragglers:0.5 training.local-epochs=2",
        "training.local-epochs=null training.local-steps=3",
    ],
)
def test_clients_in_lockstep_equal_lanes_of_their_own(lockstep, captured, recipe):
    settings = [lockstep(*recipe.split(), run=name) for name in "ab"]
    expected = run(settings[0])
    out = run(settings[1], grid=GpuGrid(settings[1], device=CPU, lane=ResidentLane, stack=GraphStack))
    assert digest(out) == digest(expected)
    rows = list(zip(out.read_rows(), expected.read_rows(), strict=True))
    assert all(ours["train-loss"] == pytest.approx(theirs["train-loss"], rel=1e-6) for ours, theirs in rows)
    assert captured


@pytest.mark.parametrize(
    "option",
    [
        "strategy.local-rule=fedprox", "training.clip-norm=1", "training.label-smoothing=0.1",
        "training.augment=true", "evaluation.forgetting=true", "model.name=inheriting",
    ],
)  # fmt: skip
def test_others_have_lanes_of_their_own(lockstep, option):
    def refuse(**arguments):
        raise AssertionError("they would train in lockstep")

    settings = lockstep("training.local-epochs=null", "training.local-steps=1", option)
    out = run(settings, grid=GpuGrid(settings, device=CPU, lane=ResidentLane, stack=refuse))
    assert out.read_rows()[0]["failures"] == 0


@pytest.mark.slow
def test_without_memory_for_lockstep_each_has_a_lane(lockstep):
    class Large(StackLane):
        def _train_batch(self, size):
            raise torch.OutOfMemoryError("CUDA out of memory")

    settings, reported = [lockstep(run=name) for name in "ab"], []
    expected = run(settings[0])
    out = run(settings[1], grid=GpuGrid(settings[1], reported.append, CPU, ResidentLane, Large))
    assert digest(out) == digest(expected)
    assert out.read_rows()[0]["failures"] == 0
    (line,) = reported
    assert "cannot train in lockstep, and have lanes of their own: OutOfMemoryError: CUDA out of memory" in line


class Drawing(Tiny):
    """A network that says what is not true."""

    stackable = True

    def features(self, images):
        return torch.nn.functional.dropout(super().features(images), 0.5, self.training)


@pytest.mark.slow
def test_random_numbers_are_not_drawn_in_lockstep(lockstep, monkeypatch):
    monkeypatch.setitem(MODELS, "drawing", Drawing)
    settings, reported = [lockstep("model.name=drawing", run=name) for name in "ab"], []
    expected = run(settings[0])
    out = run(settings[1], grid=GpuGrid(settings[1], reported.append, CPU, ResidentLane, StackLane))
    assert digest(out) == digest(expected)
    (line,) = reported
    assert line.endswith(
        "have lanes of their own: ConfigError: Drawing is declared stackable, but draws random numbers"
    )
