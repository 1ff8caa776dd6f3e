"""SuperLink and SuperNodes as `fedmr deploy` starts them, each a process of its own, with TLS and keys."""

import re
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import yaml
from tools import BIN, left, manifest

from fedmr_flwr import config
from fedmr_flwr.data import datasets, partitions

CLIENTS = 4
CONF = {
    "rounds": 2, "clients": CLIENTS, "clients-per-round": 3, "device": "cpu",
    "partition": {"name": "dirichlet", "alpha": 0.5}, "training": {"local-epochs": 1, "batch-size": 20, "lr": 0.05},
}  # fmt: skip

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def free_ports(count):
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def fedmr(env, folder, *arguments, **more):
    return subprocess.run(
        [BIN / "fedmr", *map(str, arguments)], cwd=folder, env=env | more, capture_output=True, text=True, timeout=240
    )


@contextmanager
def started(env, folder, kind, name):
    """A part of a deployment in the background; yields its log."""
    log = folder / f"{kind}-{name.replace('/', '-')}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [BIN / "fedmr", "deploy", kind, name],
            cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
        )  # fmt: skip
        try:
            yield log
        finally:
            process.terminate()
            process.wait(30)


def until(log, words, seconds=60):
    deadline = time.monotonic() + seconds
    while not re.search(words, log.read_text(errors="replace")):
        assert time.monotonic() < deadline, log.read_text(errors="replace")
        time.sleep(0.2)


def settle(folder, **values):
    """Change the settings in a folder of a deployment."""
    (path,) = folder.glob("*.yaml")
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))


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


def test_four_nodes_with_data_of_their_own_train_the_model_of_one_process_and_strangers_stay_out(deployment, env):
    folder = deployment
    done = fedmr(env, folder, "run", "conf.yaml", "run-dir=reference", "--engine", "in-process")
    assert done.returncode == 0, done.stderr
    # A node of another deployment with this one's certificate, and one with its own.
    fedmr(env, folder, "deploy", "init", "other", "--host", "localhost", "--nodes", 2)
    own = yaml.safe_load((folder / "dep/node-0/node.yaml").read_text())
    for stranger, port in zip(("other/node-0", "other/node-1"), free_ports(2), strict=True):
        settle(folder / stranger, **(own | {"local-port": port}))
    shutil.copy(folder / "dep/node-0/ca.crt", folder / "other/node-0/ca.crt")
    with ExitStack() as stack:
        log = stack.enter_context(started(env, folder, "server", "dep/server"))
        until(log, "ready for nodes")
        assert "4 nodes may connect, 4 of them are new" in log.read_text()
        unknown, distrustful = (
            stack.enter_context(started(env, folder, "node", name)) for name in ("other/node-0", "other/node-1")
        )
        for client in range(CLIENTS):
            stack.enter_context(started(env, folder, "node", f"dep/node-{client}"))
        done = fedmr(
            env, folder, "run", "conf.yaml", "run-dir=run", "partition.name=nodes", "--federation", "deployment",
            FLWR_HOME=str(folder / "dep/server/flower"),
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        for refused in (unknown, distrustful):
            assert "train message" not in refused.read_text(errors="replace")
    assert manifest(folder / "run")["model-sha256"] == manifest(folder / "reference")["model-sha256"]
    assert not (folder / "run/partition.npz").exists()
    assert "round 2/2" in done.stdout
    assert left(env) == []
