"""SuperLink and SuperNodes as `fedmr deploy` starts them, each a process of its own, with TLS and keys."""

import shutil
from contextlib import ExitStack

import pytest
import yaml
from tools import Part, fedmr, free_ports, left, manifest, settle

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


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
        server = stack.enter_context(Part(env, folder, "server", "dep/server"))
        server.until("ready for nodes")
        assert "4 nodes may connect, 4 of them are new" in server.said()
        strangers = [
            stack.enter_context(Part(env, folder, "node", name)) for name in ("other/node-0", "other/node-1")
        ]
        for client in range(4):
            stack.enter_context(Part(env, folder, "node", f"dep/node-{client}"))
        done = fedmr(
            env, folder, "run", "conf.yaml", "run-dir=run", "partition.name=nodes", "--federation", "deployment",
            FLWR_HOME=str(folder / "dep/server/flower"),
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        for refused in strangers:
            assert "train message" not in refused.said()
    assert manifest(folder / "run")["model-sha256"] == manifest(folder / "reference")["model-sha256"]
    assert not (folder / "run/partition.npz").exists()
    assert "round 2/2" in done.stdout
    assert left(env) == []
