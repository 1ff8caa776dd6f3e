"""SuperLink and SuperNodes as `fedmr deploy` starts them, each a process of its own, with TLS and keys."""

import shutil
import subprocess
import sys
from contextlib import ExitStack

import httpx
import pytest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from fedmr_flwr.deployment import commands, folders
from fedmr_flwr.launch.python import run as run_here
from fedmr_flwr.runs.folder import RunFolder
from tests.e2e.conftest import CLIENTS
from tests.support.tools import (
    BIN,
    ROOT,
    Part,
    fedmr,
    flwr,
    free_ports,
    left,
    manifest,
    node,
    server,
    settle,
    supernode,
    wait_for_end,
)

IMPOSTOR = ROOT / "tests" / "support" / "impostor.py"

pytestmark = pytest.mark.e2e


# What those say who must not get in, and have all that it needs but one thing.
STRANGERS = {
    "unknown": "Failed to activate SuperNode",
    "distrustful": "CERTIFICATE_VERIFY_FAILED",
    "impostor": "SuperNode terminated gracefully",
    "plain": "Connection attempt failed, retrying",
}


def with_keys_of(folder, env, name, claimed):
    """A node that shows the public key of the node `claimed` and signs with its own private one."""
    _, _, _, *arguments = commands.supernode(folder / name, folders.read_node(folder / name))
    public = folder / f"dep/server/nodes/{claimed}.pub"
    own = commands.configure_node(folder / name)
    return Part(env | {"FLWR_HOME": own["FLWR_HOME"]}, folder, name, [sys.executable, IMPOSTOR, public, *arguments])


def strangers(folder, env):
    """Start those who must not get in."""
    fedmr(env, folder, "deploy", "init", "other", "--host", "localhost", "--nodes", 1)
    for name, port in zip(STRANGERS, free_ports(len(STRANGERS)), strict=True):
        shutil.copytree(folder / "dep/node-0", folder / name)
        settle(folder / name, **{"local-port": port})
    for name, file in {"unknown": "node.key", "distrustful": "ca.crt", "impostor": "node.key"}.items():
        shutil.copy(folder / "other/node-0" / file, folder / name / file)
    return {
        "unknown": supernode(env, folder, "unknown"),
        "distrustful": supernode(env, folder, "distrustful"),
        "impostor": with_keys_of(folder, env, "impostor", claimed="node-0"),
        "plain": supernode(env, folder, "plain", insecure=True),
    }


def other_account(there, folder):
    """Try what another account of this machine can: it knows the addresses and ca.crt, but can read no secret."""
    home, trust = folder / "home", folder / "dep/server/ca.crt"
    shutil.copytree(there["FLWR_HOME"], home, ignore=shutil.ignore_patterns("*.yaml", "*.key"))
    done = subprocess.run(
        [BIN / "flwr", "list", "deployment"], env=there | {"FLWR_HOME": str(home)}, capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    assert (done.returncode, "authentication failed" in said.lower()) == (1, True), said
    node, server = folders.read_node(folder / "dep/node-1"), folders.read_server(folder / "dep/server")
    for port, certificates in ((node.local_port, None), (server.port, trust.read_bytes())):
        asks = RuntimeHttpClient.from_server_address(
            server_address=f"127.0.0.1:{port}", insecure=certificates is None, root_certificates=certificates,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-clientapp")], retry_invoker=None,
        )  # fmt: skip
        with pytest.raises(httpx.HTTPStatusError, match="401 Unauthorized"):
            asks.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP, TaskType.SERVER_APP]))
        asks.close()


# In the first run nodes keep something between rounds and rates fall; the second one has a model of 45 MB, with
# BatchNorm.
RUNS = {
    "cnn": [
        "strategy.name=scaffold",
        "training.schedule=inverse",
        "training.weight-decay=0.001",
        "training.nesterov=true",
    ],
    "resnet18": ["model.name=resnet18", "rounds=1", "clients-per-round=2", "training.batch-size=50"],
}


def test_deployment_equals_in_process(deployment, env, there):
    folder = deployment
    for name, settings in RUNS.items():
        run_here(folder / "conf.yaml", *settings, "engine=in-process", f"run-dir={folder / f'{name}-here'}")
    with ExitStack() as stack:
        output = stack.enter_context(server(env, folder)).output()
        assert f"admitted {CLIENTS} nodes ({CLIENTS} new)" in output
        # The impostor's way works with the right private key, so that it is the key for which it is refused.
        own = stack.enter_context(with_keys_of(folder, env, "dep/node-0", claimed="node-0"))
        its = folder / "dep/node-0"
        clients = commands.supernode_executor(its, folders.read_node(its), own.process.pid)
        stack.enter_context(Part(env, folder, "clients", clients))
        for client in range(1, CLIENTS):
            stack.enter_context(node(env, folder, f"dep/node-{client}"))
        outside = strangers(folder, env)
        for part in outside.values():
            stack.enter_context(part)
        own = [*RUNS["cnn"], "run-dir=cnn", "partition.name=nodes"]
        done = fedmr(there, folder, "run", "conf.yaml", *own, "--superlink", "deployment")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "round 2/2" in done.stdout
        # Plain `flwr run`: that the clients are no simulation follows from its federation.
        own = " ".join([*RUNS["resnet18"], f"run-dir={folder / 'resnet18'}", "partition.name=nodes"])
        config = f"conf='{folder / 'conf.yaml'}' set='{own}'"
        run_id = flwr(there, "run", str(ROOT), "deployment", "--run-config", config)["run-id"]
        assert (
            wait_for_end(
                there, run_id, at="deployment", done=lambda: RunFolder(folder / "resnet18").status == "completed"
            )[0]
            == "finished:completed"
        )
        for name, part in outside.items():
            assert STRANGERS[name] in part.output(), part.output()
            assert "SuperNode ID" not in part.output(), part.output()
        other_account(there, folder)
        nodes = flwr(there, "supernode", "list", "deployment")["nodes"]
        assert [one["status"] for one in nodes] == ["online"] * CLIENTS
    # A key that is taken away opens no more.
    (folder / "dep/server/nodes/node-3.pub").unlink()
    with server(env, folder) as link, supernode(env, folder, "dep/node-3") as former:
        assert f"admitted {CLIENTS - 1} nodes (0 new), revoked 1" in link.output()
        former.until("Failed to activate SuperNode")
        # By itself: Flower may hang for ever if it is stopped while it ends.
        assert former.process.wait(60) != 0
    for name in RUNS:
        assert manifest(folder / name)["engine"] == "deployment"
        assert manifest(folder / name)["model-sha256"] == manifest(folder / f"{name}-here")["model-sha256"]
        assert not (folder / name / "partition.npz").exists()
    (row,) = RunFolder(folder / "resnet18").read_rows()
    assert min(row["bytes-down"]["arrays"], row["bytes-up"]["arrays"]) > 2 * 44_000_000
    assert left(env) == []
