"""A Ray cluster of two nodes on this machine, joined with `ray.address`, and the errors where that cannot work."""

import json
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from fedmr_flwr.config.loading import load
from fedmr_flwr.errors import FedmrError
from fedmr_flwr.launch import ray
from fedmr_flwr.launch.python import run as run_here
from tests.support.tools import BIN, ROOT, family, left, manifest

QUICKSTART = ROOT / "conf/quickstart.yaml"
TINY = ["rounds=2", "training.local-epochs=1"]
# Waits until every core is free again, that is, no actor is left.
LOOK = """
import json, time, ray
ray.init(log_to_driver=False, logging_level="ERROR")
deadline = time.monotonic() + 20
while (free := ray.available_resources().get("CPU", 0)) < 2 and time.monotonic() < deadline:
    time.sleep(0.2)
print(json.dumps([free, [node["Alive"] for node in ray.nodes()]]))
"""

pytestmark = pytest.mark.e2e


@pytest.fixture
def two_nodes(env):
    """The address of a cluster with two nodes of one core each, and the environment that marks its processes."""
    marked = env | {"FEDMR_TEST": uuid4().hex, "RAY_USAGE_STATS_ENABLED": "0"}
    address = f"127.0.0.1:{free_port()}"
    ports = [f"--port={address.rpartition(':')[2]}", f"--ray-client-server-port={free_port()}"]
    # The path of a socket must be short, so not in tmp_path.
    with (
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as short,
        node(Path(short, "a"), marked, "--head", *ports, "--include-dashboard=false"),
        node(Path(short, "b"), marked, f"--address={address}"),
    ):
        yield address, marked
    assert left(marked) == []


@contextmanager
def node(folder, env, *arguments, seconds=60):
    """A node of Ray that is up; at the end all that was started with the environment is killed."""
    folder.mkdir()
    log = folder / "log"
    options = ["--block", "--num-cpus=1", "--object-store-memory=100000000", f"--temp-dir={folder}"]
    with (
        log.open("wb") as file,
        subprocess.Popen(
            [BIN / "ray", "start", *arguments, *options], env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        ),
    ):
        try:
            deadline = time.monotonic() + seconds
            while "Ray runtime started" not in log.read_text():
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield
        finally:
            for process in family(env):
                process.kill()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def named(env, word):
    """The processes with a word in their command line, each with its parent's process id."""
    found = {}
    for process in family(env):
        with suppress(psutil.Error):  # it has ended
            if word in " ".join(process.cmdline()):
                found[process.pid] = process.ppid()
    return found


def settings(tmp_path, *overrides):
    return load(QUICKSTART, [f"run-dir={tmp_path / 'run'}", *overrides])


def test_clients_train_on_both_nodes(tmp_path, env, two_nodes):
    address, marked = two_nodes
    run_here(QUICKSTART, *TINY, "engine=in-process", f"run-dir={tmp_path / 'reference'}")
    raylets = set(named(marked, "raylet/raylet"))
    trained_under = set()
    output = tmp_path / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [BIN / "fedmr", "run", QUICKSTART, *TINY, "run-dir=run", f"ray.address={address}"],
            cwd=tmp_path, env=env, stdout=file, stderr=file,
        )  # fmt: skip
        try:
            while process.poll() is None:
                trained_under |= set(named(marked, "ray::ClientAppActor.run").values())
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 0, output.read_text()
    assert manifest(tmp_path / "run")["model-sha256"] == manifest(tmp_path / "reference")["model-sha256"]
    assert len(raylets) == 2
    assert trained_under >= raylets  # and what an actor itself is starting, which has its name for a moment

    assert left(env) == []
    looked = subprocess.run(
        [sys.executable, "-c", LOOK],
        env=marked | {"RAY_ADDRESS": address}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert json.loads(looked.stdout) == [2, [True, True]]
    deadline = time.monotonic() + 20  # the cluster ends a client's processes when it gets round to it
    while named(marked, "ray::ClientAppActor"):
        assert time.monotonic() < deadline
        time.sleep(0.2)

    with pytest.raises(FedmrError, match=r"no node of .* client-cpus=2 and ray.client-gpus=0; they have 1 CPU cores"):
        ray.run(settings(tmp_path / "other", f"ray.address={address}", "client-cpus=2"), None)
    assert not (tmp_path / "other").exists()
