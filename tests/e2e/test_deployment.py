"""SuperLink and SuperNodes as `fedmr deploy` starts them, each a process of its own, with TLS and keys."""

import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from tools import Part, fedmr, flwr, free_ports, left, manifest, settle

from fedmr_flwr.deployment import commands, folders
from fedmr_flwr.runs.folder import RunFolder

IMPOSTOR = Path(__file__).with_name("impostor.py")

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def strangers(folder, env):
    """Start nodes that must not get in; each has all that it needs but one thing."""
    fedmr(env, folder, "deploy", "init", "other", "--host", "localhost", "--nodes", 1)
    own = folder / "dep/node-0"
    for name, port in zip(("unknown", "distrustful", "impostor", "plain"), free_ports(4), strict=True):
        shutil.copytree(own, folder / name)
        settle(folder / name, **{"local-port": port})
    shutil.copy(folder / "other/node-0/node.key", folder / "unknown/node.key")
    shutil.copy(folder / "other/node-0/ca.crt", folder / "distrustful/ca.crt")
    shutil.copy(folder / "other/node-0/node.key", folder / "impostor/node.key")
    for name in ("unknown", "distrustful"):
        yield name, Part(env, folder, "node", name)
    _, *arguments = commands.supernode(folder / "impostor", folders.read_node(folder / "impostor"))
    command = [sys.executable, IMPOSTOR, folder / "dep/server/nodes/node-0.pub"]
    yield "impostor", Part(env, folder, *arguments, command=command)
    yield "plain", Part(env, folder, "node", "plain", "--insecure")


def test_four_nodes_with_data_of_their_own_train_the_model_of_one_process_and_strangers_stay_out(deployment, env):
    folder = deployment
    # The second model is one of 135 MB.
    runs = {"cnn": [], "vgg16": ["model.name=vgg16", "rounds=1", "clients-per-round=2", "training.batch-size=50"]}
    for name, settings in runs.items():
        done = fedmr(
            env, folder, "run", "conf.yaml", *settings, f"run-dir={name}-reference", "--engine", "in-process"
        )
        assert done.returncode == 0, done.stderr
    there = env | {"FLWR_HOME": str(folder / "dep/server/flower")}
    with ExitStack() as stack:
        server = stack.enter_context(Part(env, folder, "server", "dep/server"))
        server.until("ready for nodes")
        assert "4 nodes may connect, 4 of them are new" in server.said()
        for client in range(4):
            stack.enter_context(Part(env, folder, "node", f"dep/node-{client}"))
        outside = {name: stack.enter_context(part) for name, part in strangers(folder, env)}
        for name, settings in runs.items():
            done = fedmr(
                there, folder, "run", "conf.yaml", *settings, f"run-dir={name}", "partition.name=nodes",
                "--federation", "deployment",
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            assert manifest(folder / name)["model-sha256"] == manifest(folder / f"{name}-reference")["model-sha256"]
        assert "round 1/1" in done.stdout
        for name, part in outside.items():
            assert part.said(), name
            assert "SuperNode ID" not in part.said(), f"{name} got in: {part.said()}"
        nodes = flwr(there, "supernode", "list", "deployment")["nodes"]
        assert [node["status"] for node in nodes] == ["online"] * 4
    assert not (folder / "cnn/partition.npz").exists()
    (row,) = RunFolder(folder / "vgg16").read_rows()
    assert min(row["bytes-down"]["arrays"], row["bytes-up"]["arrays"]) > 2 * 134_000_000
    assert left(env) == []
