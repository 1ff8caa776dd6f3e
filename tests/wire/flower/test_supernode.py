"""The SuperNode with shorter waits: what is replaced in Flower is what Flower uses."""

import time

import pytest
from flwr.supernode import start_client_internal as loop

from fedmr_flwr.wire.flower import parts, supernode


@pytest.fixture
def replaced(monkeypatch):
    for name in ("time", "pull_objects"):
        monkeypatch.setattr(loop, name, getattr(loop, name))  # put back at the end
    supernode.apply()


def test_waits_are_a_sixth(replaced, monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    loop.time.sleep(3)
    assert slept == [0.5]
    assert "time" in loop.start_client_internal.__code__.co_names, "and Flower uses it"


def test_parts_are_pulled_sooner(replaced):
    assert loop.pull_objects is parts.pull_soon
    assert "pull_objects" in loop._pull_and_store_message.__code__.co_names, "and Flower uses it"


def test_supernode_runs_after_apply(monkeypatch):
    called = []
    monkeypatch.setattr(supernode, "apply", lambda: called.append("apply"))
    monkeypatch.setattr(supernode, "flower_supernode", lambda: called.append("run"))
    supernode.main()
    assert called == ["apply", "run"]
