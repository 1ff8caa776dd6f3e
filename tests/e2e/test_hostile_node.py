"""An admitted node that answers with what nobody asked for, through a real SuperLink."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from fedmr_flwr.deployment import folders
from fedmr_flwr.runs.folder import RunFolder
from tests.support.hostile import answer_all
from tests.support.tools import deploy_here, family, in_the_background, left, server, supernode

pytestmark = pytest.mark.e2e

REPLIES, FIRST = 25, 5
MEGABYTES = 8
CONF = {
    "rounds": REPLIES, "clients": 1, "clients-per-round": 1, "device": "cpu", "evaluate-every": REPLIES,
    "max-bad-rounds": REPLIES, "checkpoint-every": REPLIES, "partition": {"name": "nodes"},
    "training": {"local-epochs": 1, "batch-size": 20},
}  # fmt: skip


def servers(env):
    """The processes of SuperLink and ServerApp."""
    commands = {" ".join(process.cmdline()): process for process in family(env)}
    words = {"SuperLink": "flower.superlink", "ServerApp": "flwr-serverapp"}
    return {name: next(commands[command] for command in commands if word in command) for name, word in words.items()}


def unwanted(kind, seed):
    """What a reply holds besides what was asked for."""
    values = np.random.default_rng(seed).integers(0, 256, MEGABYTES << 20, np.uint8)
    if kind == "a record":
        return {"more": ArrayRecord({"x": Array(values)})}
    if kind == "parts of a record":
        return {"more": ArrayRecord({f"x{at}": Array(part) for at, part in enumerate(np.array_split(values, 10))})}
    return {"metrics": MetricRecord({"num-examples": 10, "big": values[: MEGABYTES << 17].astype(float).tolist()})}


def test_memory_survives_replies_that_nobody_asked_for(tmp_path, env):
    there = deploy_here(env, tmp_path, CONF | {"partition": {"name": "iid"}}, 1)
    home = tmp_path / "dep/node-0"
    seen, processes = [], {}

    def train(message):
        processes.update(processes or servers(env))
        seen.append({name: process.memory_info().rss / 1e6 for name, process in processes.items()})
        kind = ("a record", "parts of a record", "a metric")[len(seen) % 3]
        honest = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 10})}
        return RecordDict(honest | unwanted(kind, len(seen)))

    with server(env, tmp_path), supernode(env, tmp_path, "dep/node-0"):
        run = in_the_background(
            there, tmp_path, "run", "conf.yaml", "run-dir=run", "partition.name=nodes", "--superlink", "deployment"
        )
        answer_all(
            folders.read_node(home).local_port,
            (home / "flower/superexec.key").read_bytes(),
            train,
            lambda: run.poll() is not None,
        )
        output, error = run.communicate(timeout=60)
    rows = RunFolder(tmp_path / "run").read_rows()
    assert len(rows) == len(seen) == REPLIES, output + error
    assert [failed["kind"] for row in rows for failed in row["failed"]] == ["malformed"] * REPLIES
    assert {failed["client"] for row in rows for failed in row["failed"]} == {0}
    kept = (REPLIES - FIRST) * MEGABYTES  # what memory would grow by
    assert seen[FIRST].keys() == {"SuperLink", "ServerApp"}
    for name in seen[FIRST]:
        values = [memory[name] for memory in seen]
        assert max(values[FIRST:]) < max(values[: FIRST + 1]) + kept / 4, values
    assert left(env) == []
