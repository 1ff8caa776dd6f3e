"""SuperLink and SuperNodes as `fedmr deploy` starts them, each a process of its own, with TLS and keys.

All that can be tried on one running deployment.
"""

import shutil
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import pytest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from safetensors.numpy import load_file

from fedmr_flwr.config.loading import load
from fedmr_flwr.deployment import commands, folders
from fedmr_flwr.launch.python import run as run_here
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.server.experiment import Experiment
from tests.e2e.conftest import CLIENTS, CONF, marked
from tests.support.tools import (
    BIN,
    ROOT,
    Part,
    deploy_here,
    family,
    fedmr,
    flwr,
    free_ports,
    in_the_background,
    left,
    manifest,
    node,
    server,
    settle,
    supernode,
    wait_for_end,
    wait_for_rounds,
)
from tests.support.windows import Windows, memory_of

IMPOSTOR = ROOT / "tests" / "support" / "impostor.py"

pytestmark = pytest.mark.e2e


class Running(NamedTuple):
    """A deployment at work.

    Attributes:
        folder: where it is, in `dep`.
        env: the environment of its processes.
        there: the environment of commands to its SuperLink.
    """

    folder: Path
    env: dict[str, str]
    there: dict[str, str]


def with_keys_of(folder, env, name, claimed):
    """A node that shows the public key of the node `claimed` and signs with its own private one."""
    _, _, _, *arguments = commands.supernode(folder / name, folders.read_node(folder / name))
    public = folder / f"dep/server/nodes/{claimed}.pub"
    own = commands.configure_node(folder / name)
    return Part(env | {"FLWR_HOME": own["FLWR_HOME"]}, folder, name, [sys.executable, IMPOSTOR, public, *arguments])


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """Start a server and all nodes; in the end all of their processes must end."""
    folder = tmp_path_factory.mktemp("deployment")
    with marked() as env:
        there = deploy_here(env, folder, CONF, CLIENTS)
        fedmr(env, folder, "deploy", "init", "other", "--host", "localhost", "--nodes", 2)
        # A key that is taken away again.
        former = folder / "dep/server/nodes/former.pub"
        shutil.copy(folder / "other/server/nodes/node-0.pub", former)
        with server(env, folder) as link:
            assert f"admitted {CLIENTS + 1} nodes ({CLIENTS + 1} new)" in link.output()
        former.unlink()
        with ExitStack() as stack:
            link = stack.enter_context(server(env, folder))
            assert f"admitted {CLIENTS} nodes (0 new), revoked 1" in link.output()
            # The impostor's way works with the right private key, so that it is the key for which it is refused.
            own = stack.enter_context(with_keys_of(folder, env, "dep/node-0", claimed="node-0"))
            its = folder / "dep/node-0"
            clients = commands.supernode_executor(its, folders.read_node(its), own.process.pid)
            stack.enter_context(Part(env, folder, "clients", clients))
            others = (node(env, folder, f"dep/node-{client}") for client in range(1, CLIENTS))
            for part in [own, *map(stack.enter_context, others)]:
                part.until("SuperNode ID", 120)
            yield Running(folder, env, there)
        assert left(env) == []


# In the first run nodes keep something between rounds and rates fall; the second one has a model of 45 MB, with
# BatchNorm.
SCAFFOLD = [
    "strategy.name=scaffold", "training.schedule=inverse", "training.weight-decay=0.001", "training.nesterov=true",
]  # fmt: skip
LARGE = ["model.name=resnet18", "rounds=1", "clients-per-round=2", "training.batch-size=50"]


def check_equal(running, name, settings):
    """Compare a run on the deployment with the same run in this process."""
    folder = running.folder
    here = run_here(folder / "conf.yaml", *settings, "engine=in-process", f"run-dir={folder / f'{name}-here'}").folder
    assert manifest(folder / name)["engine"] == "deployment"
    assert manifest(folder / name)["model-sha256"] == manifest(here.path)["model-sha256"]
    assert not (folder / name / "partition.npz").exists()


def test_fedmr_run_equals_in_process(running):
    own = [*SCAFFOLD, "run-dir=cnn", "partition.name=nodes"]
    done = fedmr(running.there, running.folder, "run", "conf.yaml", *own, "--superlink", "deployment")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 2/2" in done.stdout
    check_equal(running, "cnn", SCAFFOLD)


def test_plain_flwr_run_of_a_large_model_equals_in_process(running):
    # That the clients are no simulation follows from its federation.
    folder, there = running.folder, running.there
    own = " ".join([*LARGE, f"run-dir={folder / 'resnet18'}", "partition.name=nodes"])
    config = f"conf='{folder / 'conf.yaml'}' set='{own}'"
    run_id = flwr(there, "run", str(ROOT), "deployment", "--run-config", config)["run-id"]
    out = RunFolder(folder / "resnet18")
    status, _ = wait_for_end(there, run_id, at="deployment", done=lambda: out.status == "completed")
    assert status == "finished:completed"
    check_equal(running, "resnet18", LARGE)
    (row,) = out.read_rows()
    assert min(row["bytes-down"]["arrays"], row["bytes-up"]["arrays"]) > 2 * 44_000_000


ROUNDS = 5
RUN = [f"rounds={ROUNDS}", "checkpoint-every=1", "guard=off"]


def plain_run(folder):
    """The same run in this process, which keeps every model."""
    own = [f"run-dir={folder / 'here'}", "keep-models=every 1", "keep-models-slots=true", "engine=in-process"]
    return run_here(folder / "conf.yaml", *RUN, *own).folder


def windows_of(out):
    """What the clients have trained, but for what is as it was at the start."""
    paths = sorted(out.models.glob("*-slot-*.safetensors"))
    assert len(paths) == ROUNDS * 3
    start = Experiment(load(out.config))
    initial = start.layout.unpack(start.codec.decode(start.arrays))
    return Windows([tensor for path in paths for tensor in load_file(path).values()], initial.values())


def on_the_server(running):
    """The processes of the server: its SuperLink, and what runs the run."""
    found = {}
    for process in family(running.env):
        with suppress(psutil.Error):
            if process.cwd() == str(running.folder / "dep/server"):
                found[process] = " ".join(process.cmdline())
    assert any("superlink" in command for command in found.values()), found
    assert any("serverapp" in command for command in found.values()), found
    return found


def look(running, windows, name, *settings):
    """Run on the deployment; return the programs of the server in whose memory windows are found meanwhile."""
    run = in_the_background(
        running.there, running.folder, "run", "conf.yaml", *RUN, *settings, f"run-dir={name}", "partition.name=nodes",
        "--superlink", "deployment",
    )  # fmt: skip
    wait_for_rounds(RunFolder(running.folder / name), 3, run)
    # Read at once and searched later: the run may end, and must not be stopped for long.
    memories = {command: memory_of(process) for process, command in on_the_server(running).items()}
    found = {
        word
        for command, blocks in memories.items()
        for word in ("superlink", "serverapp")
        if word in command and any(map(windows.found_in, blocks))
    }
    output, error = run.communicate(timeout=240)
    assert run.returncode == 0, output + error
    return found


def test_server_never_has_a_layer_of_a_sealed_run(running):
    folder = running.folder
    plain = plain_run(folder)
    windows = windows_of(plain)
    assert len(windows) > 10_000
    # Before the other run, of which the SuperLink's memory keeps something.
    assert look(running, windows, "sealed", "privacy.sealed=true") == set()
    for place in ("sealed", "dep/server"):
        assert windows.in_files(folder / place) == set()
    assert look(running, windows, "plain") == {"superlink", "serverapp"}, "this test can find them"
    assert any("checkpoints" in path for path in windows.in_files(folder / "plain"))
    assert not windows.found_in((folder / "server.log").read_bytes())
    done = fedmr(running.env, folder, "open", "sealed", "--key", folder / "dep/node-0/sealing.key")
    assert done.returncode == 0, done.stderr
    for name in ("plain", "sealed"):
        assert manifest(folder / name)["model-sha256"] == manifest(plain.path)["model-sha256"]
    assert windows.in_files(folder / "sealed") == set(), "only their mean"


# What those say who must not get in, and have all that it needs but one thing.
STRANGERS = {
    "former": "Failed to activate SuperNode",
    "unknown": "Failed to activate SuperNode",
    "distrustful": "CERTIFICATE_VERIFY_FAILED",
    "impostor": "SuperNode terminated gracefully",
    "insecure": "Connection attempt failed, retrying",
}


def strangers(folder, env):
    """Start those who must not get in."""
    for name, port in zip(STRANGERS, free_ports(len(STRANGERS)), strict=True):
        shutil.copytree(folder / "dep/node-0", folder / name)
        settle(folder / name, **{"local-port": port})
    other = {"former": "node-0/node.key", "unknown": "node-1/node.key", "distrustful": "node-0/ca.crt"}
    for name, file in (other | {"impostor": "node-1/node.key"}).items():
        shutil.copy(folder / "other" / file, folder / name)
    supernodes = {name: supernode(env, folder, name) for name in ("former", "unknown", "distrustful")}
    return supernodes | {
        "impostor": with_keys_of(folder, env, "impostor", claimed="node-0"),
        "insecure": supernode(env, folder, "insecure", insecure=True),
    }


def test_strangers_stay_outside(running):
    with ExitStack() as stack:
        outside = strangers(running.folder, running.env)
        for part in outside.values():
            stack.enter_context(part)
        for name, part in outside.items():
            part.until(STRANGERS[name], 120)
        for name in ("former", "unknown"):
            # By itself: Flower may hang for ever if it is stopped while it ends.
            assert outside[name].process.wait(60) != 0
        nodes = flwr(running.there, "supernode", "list", "deployment")["nodes"]
        assert sorted(one["status"] for one in nodes) == ["online"] * CLIENTS + ["unregistered"]
        for part in outside.values():
            assert "SuperNode ID" not in part.output(), part.output()


def test_other_accounts_of_the_machine_can_do_nothing(running):
    """They know the addresses and ca.crt, but can read no secret."""
    folder, there = running.folder, running.there
    home, trust = folder / "home", folder / "dep/server/ca.crt"
    shutil.copytree(there["FLWR_HOME"], home, ignore=shutil.ignore_patterns("*.yaml", "*.key"))
    done = subprocess.run(
        [BIN / "flwr", "list", "deployment"], env=there | {"FLWR_HOME": str(home)}, capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    assert (done.returncode, "authentication failed" in said.lower()) == (1, True), said
    one, whole = folders.read_node(folder / "dep/node-1"), folders.read_server(folder / "dep/server")
    for port, certificates in ((one.local_port, None), (whole.port, trust.read_bytes())):
        asks = RuntimeHttpClient.from_server_address(
            server_address=f"127.0.0.1:{port}", insecure=certificates is None, root_certificates=certificates,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-clientapp")], retry_invoker=None,
        )  # fmt: skip
        with pytest.raises(httpx.HTTPStatusError, match="401 Unauthorized"):
            asks.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP, TaskType.SERVER_APP]))
        asks.close()
