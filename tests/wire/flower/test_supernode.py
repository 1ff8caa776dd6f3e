"""The SuperNode with shorter waits: what is replaced in Flower is what Flower uses."""

import hashlib
import os
import sys
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.fab import Fab
from flwr.supernode import start_client_internal as loop

from fedmr_flwr.wire.flower import parts, supernode


@pytest.fixture
def replaced(monkeypatch):
    for name in ("time", "pull_objects"):
        monkeypatch.setattr(loop, name, getattr(loop, name))  # put back at the end
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
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


@pytest.mark.parametrize(("error", "ended"), [(ValueError("full"), [(os.getpid(), 9)]), (SystemExit(1), [])])
def test_dead_thread_ends_the_supernode(replaced, monkeypatch, error, ended, capsys):
    def fails():
        raise error

    found = []
    monkeypatch.setattr(os, "kill", lambda *signal: found.append(signal))
    thread = threading.Thread(target=fails)
    thread.start()
    thread.join()
    assert found == ended
    assert ("ValueError: full" in capsys.readouterr().err) == bool(ended)


def test_supernode_runs_after_apply(monkeypatch):
    called = []
    monkeypatch.setattr(supernode, "apply", lambda: called.append("apply"))
    monkeypatch.setattr(supernode, "flower_supernode", lambda: called.append("run"))
    supernode.main()
    assert called == ["apply", "run"]


APP = Fab("what the server says", b"an app", {})
SHA256 = hashlib.sha256(b"an app").hexdigest()


@pytest.fixture
def pinned(replaced, monkeypatch):
    """Let the SuperNode pull a message of a run with an app, if its hash is the pinned one; return what it stored."""
    for name in ("_pull_and_store_message", "_verify_fab", "FAB_VERIFICATION_ERROR"):
        monkeypatch.setattr(loop, name, getattr(loop, name))

    def pull(sha256):
        stored = []
        monkeypatch.setattr(loop, "_insert_message", lambda reply, *_: stored.append(reply.error.reason))
        monkeypatch.setattr(loop, "get_fused_config_from_fab", lambda content, _: stored.append(content) or {})
        message = Message(RecordDict(), 1, "train")
        run = SimpleNamespace(fab_hash="", series_id=0)
        state = SimpleNamespace(get_run=lambda _: None, get_node_id=lambda: 1, get_run_series_context=stop)
        supernode.pin(sha256)
        with suppress(Stop):
            loop._pull_and_store_message(
                state=state, object_store=None, node_config={}, receive=lambda: (message, None),
                get_run=lambda _: run, get_fab=lambda *_: APP, pull_object=None, confirm_message_received=None,
                trusted_entities=None,
            )  # fmt: skip
        return stored

    return pull


class Stop(Exception):
    pass


def stop(_):
    raise Stop


def test_app_of_the_pinned_hash_is_run(pinned):
    assert pinned(SHA256) == [b"an app"]


def test_app_of_another_hash_is_refused(pinned):
    (reason,) = pinned("0" * 64)
    assert "the app of this run is not the one that the node allows" in reason


def test_pin_is_the_first_argument(monkeypatch):
    called = []
    monkeypatch.setattr(supernode, "apply", lambda: None)
    monkeypatch.setattr(supernode, "pin", called.append)
    monkeypatch.setattr(supernode, "flower_supernode", lambda: called.append(sys.argv[1:]))
    monkeypatch.setattr(sys, "argv", ["x", "--app-sha256", SHA256, "--superlink", "y"])
    supernode.main()
    assert called == [SHA256, ["--superlink", "y"]]
