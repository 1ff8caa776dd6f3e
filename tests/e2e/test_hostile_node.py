"""An admitted node that answers with what nobody asked for, through a real SuperLink."""

from contextlib import suppress

import numpy as np
import psutil
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from fedmr_flwr.deployment import commands, folders
from fedmr_flwr.runs.folder import RunFolder
from tests.support.hostile import answer_all
from tests.support.tools import Part, deploy, family, free_ports, in_the_background, left, server, settle

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

REPLIES, FIRST = 50, 5
MEGABYTES = 8
CONF = {
    "rounds": REPLIES, "clients": 1, "clients-per-round": 1, "device": "cpu", "evaluate-every": REPLIES,
    "max-bad-rounds": REPLIES, "checkpoint-every": REPLIES, "partition": {"name": "nodes"},
    "training": {"local-epochs": 1, "batch-size": 20},
}  # fmt: skip


def megabytes(env):
    """The memory of SuperLink and ServerApp."""
    found = {}
    for process in family(env):
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())
            for word, name in (("flower.superlink", "SuperLink"), ("flwr-serverapp", "ServerApp")):
                if word in command:
                    found[name] = max(found.get(name, 0), process.memory_info().rss / 1e6)
    return found


def unwanted(kind, seed):
    """What a reply holds besides what was asked for."""
    values = np.random.default_rng(seed).integers(0, 256, MEGABYTES << 20, np.uint8)
    if kind == "a record":
        return {"more": ArrayRecord({"x": Array(values)})}
    if kind == "parts of a record":
        return {"more": ArrayRecord({f"x{at}": Array(part) for at, part in enumerate(np.array_split(values, 10))})}
    return {"metrics": MetricRecord({"num-examples": 10, "big": values[: MEGABYTES << 17].astype(float).tolist()})}


def test_memory_survives_fifty_replies_that_nobody_asked_for(tmp_path, env):
    deploy(env, tmp_path, CONF | {"partition": {"name": "iid"}}, "localhost", 1)
    (port, control, local) = free_ports(3)
    settle(tmp_path / "dep/server", listen="127.0.0.1", **{"fleet-port": port, "port": control})
    settle(tmp_path / "dep/node-0", **{"fleet-port": port, "port": control, "local-port": local})
    there = env | {"FLWR_HOME": str(tmp_path / "dep/server/flower")}
    seen = []

    def train(message):
        seen.append(megabytes(env))
        kind = ("a record", "parts of a record", "a metric")[len(seen) % 3]
        honest = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 10})}
        return RecordDict(honest | unwanted(kind, len(seen)))

    home = tmp_path / "dep/node-0"
    commands.configure_node(home)
    node = commands.supernode(home, folders.read_node(home))  # without the process that starts its clients
    with server(env, tmp_path), Part(env, tmp_path, "node", node):
        run = in_the_background(
            there, tmp_path, "run", "conf.yaml", "run-dir=run", "partition.name=nodes", "--superlink", "deployment"
        )
        answer_all(local, (home / "flower/superexec.key").read_bytes(), train, lambda: run.poll() is not None)
        output, error = run.communicate(timeout=60)
    rows = RunFolder(tmp_path / "run").read_rows()
    assert len(rows) == len(seen) == REPLIES, output + error
    assert [failed["kind"] for row in rows for failed in row["failed"]] == ["malformed"] * REPLIES
    assert {failed["client"] for row in rows for failed in row["failed"]} == {0}
    kept = (REPLIES - FIRST) * MEGABYTES  # what memory would grow by
    for name in seen[FIRST]:
        values = [memory[name] for memory in seen]
        assert max(values[FIRST:]) < max(values[: FIRST + 1]) + kept / 4, values
    assert left(env) == []
