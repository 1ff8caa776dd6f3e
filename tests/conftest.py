"""Fixtures that several tests share."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedmr_flwr import config
from fedmr_flwr.config import Settings
from fedmr_flwr.engines.in_process import InProcessGrid

CONF = Path(__file__).parent.parent / "conf"

# A small federation on real digits: a round takes a tenth of a second.
TOY = [
    "rounds=3",
    "clients=6",
    "clients-per-round=3",
    "training.local-epochs=1",
    "partition.name=dirichlet",
    "partition.alpha=1.0",
    "device=cpu",
    "engine=in-process",
]


@pytest.fixture(scope="session", autouse=True)
def _task() -> None:
    """Give the process Flower's task identity, without which no message can be made."""
    InProcessGrid(ClientApp(), 1)


@pytest.fixture
def toy(tmp_path: Path) -> Callable[..., Settings]:
    """Return a function that makes the settings of a toy run: toy("rounds=2", run="a")."""

    def make(*overrides: str, run: str = "run") -> Settings:
        return config.load(CONF / "quickstart.yaml", [*TOY, f"run-dir={tmp_path / run}", *overrides])

    return make


@pytest.fixture
def grid_of() -> Callable[..., Grid]:
    """Return a function that makes a Grid whose clients answer training messages with `reply(message, client)`."""

    def make(reply: Callable[[Message, int], RecordDict], clients: int = 5, numbered: bool = True) -> Grid:
        app = ClientApp()

        @app.train()
        def train(message: Message, context) -> Message:
            return Message(reply(message, context.node_config["partition-id"]), reply_to=message)

        if numbered:

            @app.query()
            def query(message: Message, context) -> Message:
                number = MetricRecord({"client": context.node_config["partition-id"]})
                return Message(RecordDict({"metrics": number}), reply_to=message)

        return InProcessGrid(app, clients)

    return make


@pytest.fixture
def answer() -> Callable[..., RecordDict]:
    """Return a function that makes the content of a good reply."""

    def make(arrays: ArrayRecord, examples: float = 10, **metrics: float) -> RecordDict:
        return RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": examples, **metrics})})

    return make


@pytest.fixture(scope="session")
def write_fashion_mnist() -> Callable[..., dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Return a function that writes a small Fashion-MNIST in its true format: write(folder, packed=True)."""

    def write_idx(path: Path, array: np.ndarray, packed: bool) -> None:
        content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
        if packed:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
        else:
            path.write_bytes(content)

    def write(folder: Path, packed: bool, seed: int = 0, train: int = 40, test: int = 20):
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        arrays = {}
        for part, count in {"train": train, "t10k": test}.items():
            images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
            arrays[part] = images, rng.integers(0, 10, count, dtype=np.uint8)
            write_idx(folder / f"{part}-images-idx3-ubyte", images, packed)
            write_idx(folder / f"{part}-labels-idx1-ubyte", arrays[part][1], packed)
        return arrays

    return write
