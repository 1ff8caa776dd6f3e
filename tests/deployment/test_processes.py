"""What a node does when one of its processes has ended."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from fedmr_flwr.deployment import folders, processes
from fedmr_flwr.errors import EngineError


def test_killed_node_connects_again(tmp_path, monkeypatch):
    _, (node,) = folders.create(tmp_path / "dep", ["localhost"], 1)
    ends, clock = [-9, -9, 1], SimpleNamespace(now=0.0)

    @contextmanager
    def running(command, *_):
        supernode = "supernode" in command[2]
        clock.now += 1000.0 * supernode
        status = ends.pop(0) if supernode else None
        yield SimpleNamespace(pid=1, poll=lambda: status)

    monkeypatch.setattr(processes, "_running", running)
    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=lambda _: None))
    said = []
    with pytest.raises(EngineError, match="SuperNode ended with status 1"):
        processes.run_supernode(
            tmp_path / "dep/node-0", node.model_copy(update={"data": "own.npz"}), insecure=False, report=said.append
        )
    assert len(said) == 2 and all("trying again" in line for line in said)
