"""Fixtures that several tests share."""

import gzip
import hashlib
import json
import os
import pickle
import shutil
import struct
import sys
import tarfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

# The tests share their cores with others; threads that wait for each other take several times as long. PyTorch reads
# this when it is imported, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Each of a node's clients would compile its app again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from hypothesis import HealthCheck, settings

from fedmr_flwr import cli
from fedmr_flwr.config.loading import load
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.wire.grids.in_process import InProcessGrid

# Without a GPU, Triton's kernels run in its interpreter. Triton reads this when it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# No example is timed: the cores may be busy.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

CONF = Path(__file__).parent.parent / "conf"

# A small run on real digits: a round takes a twentieth of a second.
TOY = [
    "rounds=3",
    "clients=6",
    "clients-per-round=3",
    "training.local-epochs=1",
    "training.batch-size=50",
    "partition.name=dirichlet",
    "partition.alpha=1.0",
    "device=cpu",
    "engine=in-process",
]


@pytest.hookimpl(trylast=True)  # of what -m has left
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let workers begin with the longest tests, all but one with those that start Flower.

    pytest-xdist gives each an equal piece of the list; who has finished takes from the end of another's. While
    Flower's processes wait for each other, the last worker's tests use the cores.
    """
    items.sort(key=lambda item: [item.get_closest_marker(name) is None for name in ("e2e", "slow")])
    shares: list[list[pytest.Item]] = [[] for _ in range(int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)))]
    ends = shares[:-1] or shares
    groups: dict[object, int] = {}
    for item in items:
        if item.get_closest_marker("e2e"):
            # Those of a file that talk to a local SuperLink, or to a running deployment, have it in common.
            shared = {"local", "running"}.intersection(getattr(item, "fixturenames", ()))
            group = item.path if shared else item
            share = ends[groups.setdefault(group, len(groups)) % len(ends)]
        else:
            share = min(shares, key=len)
        share.append(item)
    items[:] = chain.from_iterable(sorted(shares, key=len))


@pytest.fixture(scope="session", autouse=True)
def _task() -> None:
    """Give the process Flower's task identity, without which no message can be made."""
    InProcessGrid(ClientApp(), 1)


@pytest.fixture
def settings_of(tmp_path: Path) -> Callable[..., Settings]:
    """Return a function that makes the settings of a toy run: settings_of("rounds=2", run="a")."""

    def make(*overrides: str, run: str = "run") -> Settings:
        return load(CONF / "quickstart.yaml", [*TOY, f"run-dir={tmp_path / run}"], overrides)

    return make


@pytest.fixture
def no_pictures() -> Iterator[None]:
    """Let runs draw nothing, which takes most of a short run's time."""
    from fedmr_flwr.report import plots

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "draw", lambda *_: [])
        patch.setattr(plots, "clients", lambda *_: None)
        yield


@pytest.fixture
def toy(settings_of: Callable[..., Settings], no_pictures: None) -> Callable[..., Settings]:
    """Return `settings_of` for runs without pictures."""
    return settings_of


@pytest.fixture
def fedmr(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run the command `fedmr` in a folder of its own; return exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    conf = tmp_path / "run.yaml"
    conf.write_text("data: {name: digits}\n")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedmr", *arguments])
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        out, err = capfd.readouterr()
        return status, out, err

    return call


@pytest.fixture
def grid_of() -> Callable[..., Grid]:
    """Return a function that makes a Grid whose clients answer training messages with `reply(message, client)`.

    If they state their number of examples, it is one more than their own number, or as `stated` returns.
    """

    def make(
        reply: Callable[[Message, int], RecordDict],
        clients: int = 5,
        numbered: bool = True,
        stated: bool | Callable[[int], int] = False,
    ) -> Grid:
        examples_of = stated if callable(stated) else lambda client: client + 1
        app = ClientApp()

        @app.train()
        def train(message: Message, context) -> Message:
            return Message(reply(message, context.node_config["partition-id"]), reply_to=message)

        if numbered:

            @app.query()
            def query(message: Message, context) -> Message:
                client = context.node_config["partition-id"]
                known = MetricRecord({"client": client} | ({"num-examples": examples_of(client)} if stated else {}))
                return Message(RecordDict({"metrics": known}), reply_to=message)

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


@pytest.fixture
def write_cifar(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, dict[str, Any]]]:
    """Return a function that writes a small CIFAR in its true format: write(folder, "CIFAR10", packed=True).

    Its MD5 sums take the place of the published ones; `instead` is what files really hold.
    """
    from torchvision import datasets

    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes()).hexdigest()

    def write(
        folder: Path, name: str, packed: bool = False, count: int = 60, instead: dict[str, bytes] | None = None
    ) -> dict[str, dict[str, Any]]:
        known = getattr(datasets, name)
        inner = folder / known.base_folder
        inner.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(len(name))
        batches = {}
        for file, _ in [*known.train_list, *known.test_list]:
            rows = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
            kinds = {"labels": 10} if name == "CIFAR10" else {"fine_labels": 100, "coarse_labels": 20}
            labels = {kind: rng.integers(0, classes, count).tolist() for kind, classes in kinds.items()}
            batches[file] = {"batch_label": file, "filenames": ["x.png"] * count, "data": rows, **labels}
            (inner / file).write_bytes(pickle.dumps(batches[file], protocol=2))
        meta = known.meta["filename"]
        (inner / meta).write_bytes(pickle.dumps({known.meta["key"]: [str(at) for at in range(100)]}, protocol=2))
        for part in ("train_list", "test_list"):
            sums = [[file, md5(inner / file)] for file, _ in getattr(known, part)]
            monkeypatch.setattr(known, part, sums)
        monkeypatch.setattr(known, "meta", known.meta | {"md5": md5(inner / meta)})
        for file, content in (instead or {}).items():
            (inner / file).write_bytes(content)
        if packed:
            with tarfile.open(folder / known.filename, "w:gz") as tar:
                tar.add(inner, known.base_folder)
            shutil.rmtree(inner)
        return batches

    return write


@pytest.fixture(scope="session")
def write_femnist() -> Callable[..., None]:
    """Return a function that writes a small FEMNIST as LEAF does: write(folder, writers=3)."""

    def write(folder: Path, writers: int, count: int = 12) -> None:
        rng = np.random.default_rng(0)
        for part in ("train", "test"):
            (folder / part).mkdir(parents=True, exist_ok=True)
            users = {
                f"f{writer:04}": {
                    "x": (rng.integers(0, 256, (count, 784)) / 255).tolist(),
                    "y": rng.integers(0, 62, count).tolist(),
                }
                for writer in range(writers)
            }
            content = {"users": [*users], "num_samples": [count] * writers, "user_data": users}
            (folder / part / "all_data_0.json").write_text(json.dumps(content))

    return write


@pytest.fixture(scope="session")
def write_shakespeare() -> Callable[..., None]:
    """Return a function that writes a small Shakespeare as LEAF does: write(folder, roles=3)."""

    def write(folder: Path, roles: int, count: int = 12) -> None:
        text = "To be, or not to be: that is the question. " * 4
        for part in ("train", "test"):
            (folder / part).mkdir(parents=True, exist_ok=True)
            users = {
                f"ROLE{role}": {
                    "x": [text[at : at + 80] for at in range(role, role + count)],
                    "y": [text[at + 80] for at in range(role, role + count)],
                }
                for role in range(roles)
            }
            content = {"users": [*users], "num_samples": [count] * roles, "user_data": users}
            (folder / part / "all_data_0.json").write_text(json.dumps(content))

    return write
