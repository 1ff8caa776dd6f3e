"""Clients as forks of a process that has imported what all of them need."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor import ExecutionSpec

from fedmr_flwr.wire.flower import superexec

ROOT = Path(__file__).parents[3]

PROBE = """
import json, os, sys, time

def run(token, **_):
    path = f"{os.environ['OUT']}/{token}"
    known = ("torch", "flwr.supernode.runtime.run_clientapp", "fedmr_flwr")
    loaded = {name: name in sys.modules for name in known}
    with open(path + ".part", "w") as file:
        json.dump(loaded | {"pid": os.getpid(), "server": os.getppid()}, file)
    os.rename(path + ".part", path)
    time.sleep(600 if token == "long" else 0)
"""

ASK = """
import json, os, signal, sys, time
sys.path.insert(0, os.environ["OUT"])
import probe
from fedmr_flwr.wire.flower import superexec
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec
executor = superexec.ForkingExecutor()
superexec.run_clientapp = probe.run
for token in ("short", "long"):
    executor.reconcile()
    executor.launch(ExecutionSpec(
        task_type=TaskType.CLIENT_APP, runtime_api_address="127.0.0.1:1", token=token, insecure=True,
        root_certificates_path=None, runtime_dependency_install=False, parent_pid=os.getpid(),
        suppress_output=False, task_id=1, fab_hash=None,
    ))
    while not os.path.exists(f"{os.environ['OUT']}/{token}"):
        time.sleep(0.05)
try:
    if victim := os.environ.get("VICTIM"):
        with open(f"{os.environ['OUT']}/long") as file:
            os.kill(json.load(file)[victim], signal.SIGKILL)
        time.sleep(0.5)
        executor.reconcile()
finally:
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


@pytest.mark.slow
def test_each_client_has_its_process(clients):
    assert clients[0]["pid"] != clients[1]["pid"]


@pytest.mark.slow
def test_clients_start_preloaded(clients):
    for found in clients:
        loaded = {name for name, there in found.items() if there and name not in ("pid", "server")}
        assert loaded == {"torch", "flwr.supernode.runtime.run_clientapp"}


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "words"), [("pid", "killed by signal 9"), ("server", "with its fork server")])
def test_killed_client_ends_the_superexec(tmp_path, victim, words):
    (tmp_path / "probe.py").write_text(PROBE)
    env = {"OUT": str(tmp_path), "PYTHONPATH": str(ROOT), "VICTIM": victim}
    done = subprocess.run([sys.executable, "-c", ASK], env=env, timeout=120, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert words in done.stderr


def test_tokens_are_not_on_the_command_line(monkeypatch):
    started = []
    monkeypatch.setattr(superexec.subprocess, "Popen", started.append)
    executor = superexec.PrivateExecutor()
    executor.launch(
        ExecutionSpec(
            task_type=TaskType.SERVER_APP, runtime_api_address="127.0.0.1:1", token="secret", insecure=True,
            root_certificates_path=None, runtime_dependency_install=False, parent_pid=7, suppress_output=True,
            task_id=5, fab_hash=None,
        )
    )  # fmt: skip
    ((program, *options),) = started
    assert program == "flwr-serverapp"
    assert "secret" not in options
    path = Path(options[options.index("--token-file") + 1])
    assert path.read_text() == "secret"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    executor.close()
    assert not path.exists()


@pytest.mark.parametrize("clients", [True, False])
def test_superexec_uses_our_executor(monkeypatch, clients):
    monkeypatch.setattr(run_superexec, "get_executor", run_superexec.get_executor)  # put back at the end
    superexec.apply(clients)
    executor = run_superexec.get_executor("subprocess", executor_config=None)
    assert type(executor) is (superexec.ForkingExecutor if clients else superexec.PrivateExecutor)
    executor.close()
    assert "get_executor" in run_superexec.run_superexec.__code__.co_names, "and Flower uses it"


def test_superexec_runs_after_apply(monkeypatch):
    called = []
    monkeypatch.setattr(superexec, "apply", lambda clients: called.append("apply"))
    monkeypatch.setattr(superexec, "flower_superexec", lambda: called.append("run"))
    superexec.main(clients=True)
    assert called == ["apply", "run"]
