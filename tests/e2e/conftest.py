"""Fixtures of the end-to-end tests."""

import os
from uuid import uuid4

import numpy as np
import pytest
import yaml
from tools import BIN, family, fedmr, free_ports, settle

from fedmr_flwr import config
from fedmr_flwr.data import datasets, partitions

# A deployment: four nodes, each with its part of the digits in an npz file of its own.
CLIENTS = 4
CONF = {
    "rounds": 2, "clients": CLIENTS, "clients-per-round": 3, "device": "cpu",
    "partition": {"name": "dirichlet", "alpha": 0.5}, "training": {"local-epochs": 1, "batch-size": 20, "lr": 0.05},
}  # fmt: skip


@pytest.fixture
def env():
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("FLWR_", "RAY_"))}
    marked = clean | {"PATH": f"{BIN}{os.pathsep}{clean['PATH']}", "FEDMR_TEST": uuid4().hex}
    yield marked
    for process in family(marked):
        process.kill()


@pytest.fixture
def deployment(tmp_path, env):
    """A folder with a deployment of four nodes on free ports, each with examples of its own in an npz file."""
    done = fedmr(env, tmp_path, "deploy", "init", "dep", "--host", "localhost", "--nodes", CLIENTS)
    assert done.returncode == 0, done.stderr
    ports = free_ports(2 + CLIENTS)
    reach = {"fleet-port": ports[0], "port": ports[1]}
    settle(tmp_path / "dep/server", listen="127.0.0.1", **reach)
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump(CONF))
    settings = config.load(tmp_path / "conf.yaml")
    dataset = datasets.load(settings.data, None)
    for client, part in enumerate(partitions.split(dataset, CLIENTS, settings.partition, settings.seed)):
        path = tmp_path / f"own{client}.npz"
        np.savez(path, x_train=dataset.train.inputs[part].numpy(), y_train=dataset.train.labels[part].numpy())
        settle(tmp_path / f"dep/node-{client}", data=str(path), **{"local-port": ports[2 + client]}, **reach)
    return tmp_path
