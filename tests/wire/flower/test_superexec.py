"""Clients as forks of a process that has imported what all of them need."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.supercore.superexec import run_superexec

from fedmr_flwr.wire.flower import superexec

ROOT = Path(__file__).parents[3]

PROBE = """
import json, os, sys, time

def run(token, **_):
    path = f"{os.environ['OUT']}/{token}"
    loaded = {name: name in sys.modules for name in ("torch", "flwr.supernode.runtime.run_clientapp", "fedmr_flwr")}
    with open(path + ".part", "w") as file:
        json.dump(loaded | {"pid": os.getpid()}, file)
    os.rename(path + ".part", path)
    time.sleep(600 if token == "long" else 0)
"""

ASK = """
import os, sys, time, psutil
sys.path.insert(0, os.environ["OUT"])
import probe
from fedmr_flwr.wire.flower import superexec
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec
executor = superexec.ForkingExecutor()
superexec.run_clientapp = probe.run
for token in ("short", "long"):
    executor.launch(ExecutionSpec(
        task_type=TaskType.CLIENT_APP, runtime_api_address="127.0.0.1:1", token=token, insecure=True,
        root_certificates_path=None, runtime_dependency_install=False, parent_pid=os.getpid(),
        suppress_output=False, task_id=1, fab_hash=None,
    ))
    while not os.path.exists(f"{os.environ['OUT']}/{token}"):
        time.sleep(0.05)
executor.close()
"""


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    """What two clients find in their processes, the second of which sleeps for ten minutes."""
    out = tmp_path_factory.mktemp("clients")
    (out / "probe.py").write_text(PROBE)
    env = {"OUT": str(out), "PYTHONPATH": str(ROOT)}
    # The time limit shows that the client which sleeps is stopped with the executor.
    subprocess.run([sys.executable, "-c", ASK], env=env, timeout=120, check=True)
    return [json.loads((out / token).read_text()) for token in ("short", "long")]


def test_each_client_has_its_process(clients):
    assert clients[0]["pid"] != clients[1]["pid"]


def test_clients_start_preloaded(clients):
    for found in clients:
        loaded = {name: there for name, there in found.items() if name != "pid"}
        assert loaded == {"torch": True, "flwr.supernode.runtime.run_clientapp": True, "fedmr_flwr": False}


def test_superexec_uses_our_executor(monkeypatch):
    monkeypatch.setattr(run_superexec, "get_executor", run_superexec.get_executor)  # put back at the end
    superexec.apply()
    executor = run_superexec.get_executor("subprocess", executor_config=None)
    assert type(executor) is superexec.ForkingExecutor
    assert "get_executor" in run_superexec.run_superexec.__code__.co_names, "and Flower uses it"


def test_superexec_runs_after_apply(monkeypatch):
    called = []
    monkeypatch.setattr(superexec, "apply", lambda: called.append("apply"))
    monkeypatch.setattr(superexec, "flower_superexec", lambda: called.append("run"))
    superexec.main()
    assert called == ["apply", "run"]
