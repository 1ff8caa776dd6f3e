"""The SuperNode with shorter waits: what it replaces in Flower is what Flower uses."""

import subprocess
import sys
import time

from flwr.superlink.grid import http_grid
from flwr.supernode import start_client_internal as loop

from fedmr_flwr.deployment import supernode


def test_flowers_waits_are_a_sixth_parts_of_messages_are_asked_for_soon_and_clients_are_forked(monkeypatch):
    for name in ("time", "subprocess", "pull_objects"):
        monkeypatch.setitem(vars(loop), name, vars(loop)[name])  # put back at the end
    slept, started = [], []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(supernode, "flower_supernode", lambda: started.append(True))
    supernode.main()
    loop.time.sleep(3)
    assert (slept, started) == ([0.5], [True])
    commands = []
    monkeypatch.setattr(subprocess, "Popen", commands.append)
    loop.subprocess.Popen(["flower-superexec", "--insecure"])
    assert commands == [
        [sys.executable, "-c", "from fedmr_flwr.deployment.superexec import main; main()", "--insecure"]
    ]
    tries = []

    def part(identifier):
        tries.append(identifier)
        return b"whole"

    assert loop.pull_objects(["a"], part) == {"a": b"whole"}
    assert loop.pull_objects.keywords == {"initial_backoff": 0.1}


def test_flower_still_uses_the_names_that_are_replaced():
    assert "subprocess" in loop.start_client_internal.__code__.co_names
    assert "time" in loop.start_client_internal.__code__.co_names
    assert "pull_objects" in loop._pull_and_store_message.__code__.co_names
    assert "pull_objects" in http_grid.HttpGrid.pull_messages.__code__.co_names
