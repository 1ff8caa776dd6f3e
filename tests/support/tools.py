"""What the end-to-end tests share: Flower's own commands, and processes that are found and stopped."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import psutil
import yaml

from fedmr_flwr.config.loading import load
from fedmr_flwr.data import datasets, partitions
from fedmr_flwr.deployment import commands, folders

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def manifest(out):
    return json.loads((out / "manifest.json").read_text())


def family(env):
    """The processes that a test started, and theirs: they all inherit its mark."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get("FEDMR_TEST") == env["FEDMR_TEST"]:
                found.append(process)
    return found


def left(env, seconds=20):
    """Wait for the test's processes to end; return the command lines of those that do not."""
    _, alive = psutil.wait_procs(family(env), timeout=seconds)
    return [" ".join(process.cmdline()) for process in alive]


def flwr(env, *arguments):
    done = subprocess.run(
        [BIN / "flwr", *arguments, "--format", "json"],
        env=env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout[done.stdout.index("{") :])


def wait_for_end(env, run_id, seconds=240, at="local", done=lambda: True):
    """Wait until Flower has ended a run; `done` and the pauses save calls of a command that computes for a second."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        look = time.monotonic() + 20
        while not done() and time.monotonic() < look:
            time.sleep(0.2)
        time.sleep(5)
        (run,) = flwr(env, "list", at, "--run-id", run_id)["runs"]
        if run["status"].startswith("finished"):
            return run["status"], run.get("status-details")
    raise TimeoutError


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


class Part:
    """A part of a deployment in the background, and its output."""

    def __init__(self, env, folder, name, command):
        self._log = folder / f"{name.replace('/', '-')}.log"
        with self._log.open("ab") as file:
            self._start = file.tell()  # the output of an earlier part of this name is not its own
            self.process = psutil.Popen(
                command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(120)

    def output(self):
        return self._log.read_bytes()[self._start :].decode(errors="replace")

    def until(self, words, seconds=60):
        deadline = time.monotonic() + seconds
        while not re.search(words, self.output()):
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.2)

    def kill(self):
        """SIGKILL to all of its processes, as if the machine had lost its power."""
        for process in [self.process, *self.process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


def npz(path, examples, part):
    """Write a node's own examples; return the setting that names them."""
    np.savez(f"{path}.npz", x_train=examples.inputs[part].numpy(), y_train=examples.labels[part].numpy())
    return f"{path}.npz"


def deploy(env, folder, conf, host, count, write=npz):
    """Make a deployment in `dep` and the configuration `conf.yaml`; each node has its own part of the examples."""
    done = fedmr(env, folder, "deploy", "init", "dep", "--host", host, "--nodes", count)
    assert done.returncode == 0, done.stderr
    (folder / "conf.yaml").write_text(yaml.safe_dump(conf))
    settings = load(folder / "conf.yaml")
    dataset = datasets.load(settings.data, None, settings.seed)
    for client, part in enumerate(partitions.split(dataset, count, settings.partition, settings.seed)):
        settle(folder / f"dep/node-{client}", data=write(folder / f"own{client}", dataset.train, part))


def deploy_here(env, folder, conf, count, write=npz):
    """Make a deployment on free ports of this machine; return the environment of commands to its SuperLink."""
    deploy(env, folder, conf, "localhost", count, write)
    ports = free_ports(2 + count)
    reach = {"fleet-port": ports[0], "port": ports[1]}
    settle(folder / "dep/server", listen="127.0.0.1", **reach)
    for client in range(count):
        settle(folder / f"dep/node-{client}", **{"local-port": ports[2 + client]}, **reach)
    return commanding(env, folder)


def commanding(env, folder):
    """The environment of commands to a deployment's SuperLink."""
    return env | {"FLWR_HOME": str(folder / "dep/server/flower")}


def settle(folder, **values):
    """Change the settings in a folder of a deployment."""
    (path,) = folder.glob("*.yaml")
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))


def server(env, folder, within=()):
    """The server of a deployment, in the background, ready for nodes.

    `within` stands before a command: `ip netns exec NAME` puts it on another host.
    """
    part = Part(env, folder, "server", [*within, BIN / "fedmr", "deploy", "server", "dep/server", "--allow-root"])
    part.until("ready for nodes")
    return part


def node(env, folder, name, *options, within=()):
    """A node, in the background."""
    return Part(env, folder, name, [*within, BIN / "fedmr", "deploy", "node", name, "--allow-root", *options])


def supernode(env, folder, name, insecure=False):
    """A node's SuperNode, in the background, without what starts its clients."""
    home = folder / name
    own = commands.configure_node(home)
    command = commands.supernode(home, folders.read_node(home), insecure)
    return Part(env | {"FLWR_HOME": own["FLWR_HOME"]}, folder, name, command)


def until_one_trains(*nodes):
    """Wait until one of these nodes is given one more model to train."""
    _until_trained(nodes, any)


def until_all_train(*nodes):
    """Wait until all of these nodes are given one more model to train."""
    _until_trained(nodes, all)


def _until_trained(nodes, enough):
    def given():
        return [node.output().count("Receiving: train message") for node in nodes]

    before, deadline = given(), time.monotonic() + 90
    while not enough(now > then for now, then in zip(given(), before, strict=True)):
        assert time.monotonic() < deadline, nodes[0].output()
        time.sleep(0.05)


def in_the_background(env, folder, *arguments, within=()):
    """Start a `fedmr` command that hears Ctrl-C; its `communicate` returns its output."""
    return subprocess.Popen(
        [*within, BIN / "fedmr", *map(str, arguments)],
        cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Tests that a shell runs in the background ignore it, and would hand that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def wait_for_rounds(out, count, run=None, seconds=300):
    """Wait until a run has finished so many rounds, which it must outlive; return the last one's metrics."""
    deadline = time.monotonic() + seconds
    while len(rows := out.read_rows()) < count:
        assert run is None or run.poll() is None, run.communicate()
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.05)
    return rows[count - 1]
