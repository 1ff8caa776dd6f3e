"""Clients as forks of a process that has imported what all of them need."""

import json
import subprocess
import sys

from flwr.supercore.superexec import run_superexec

from fedmr_flwr.deployment import superexec

PROBE = """
import json, os, sys, time

def run(token, **_):
    path = f"{os.environ['OUT']}/{token}"
    loaded = {name: name in sys.modules for name in ("torch", "flwr.supernode.runtime.run_clientapp", "fedmr_flwr")}
    with open(path + ".part", "w") as file:
        json.dump(loaded | {"pid": os.getpid()}, file)
    os.rename(path + ".part", path)
    time.sleep(60 if token == "long" else 0)
"""

ASK = """
import os, sys, time, psutil
sys.path.insert(0, os.environ["OUT"])
import probe
from fedmr_flwr.deployment import superexec
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


def test_a_clients_process_has_pytorch_and_flower_but_not_the_app_and_is_stopped_with_the_executor(tmp_path):
    (tmp_path / "probe.py").write_text(PROBE)
    # The time limit is the test that the client which sleeps is stopped.
    done = subprocess.run([sys.executable, "-c", ASK], env={"OUT": str(tmp_path)}, timeout=40, check=False)
    assert done.returncode == 0
    found = [json.loads((tmp_path / token).read_text()) for token in ("short", "long")]
    assert found[0].pop("pid") != found[1].pop("pid")
    for loaded in found:
        assert loaded == {"torch": True, "flwr.supernode.runtime.run_clientapp": True, "fedmr_flwr": False}


def test_flowers_superexec_takes_this_executor(monkeypatch):
    monkeypatch.setitem(vars(run_superexec), "get_executor", run_superexec.get_executor)  # put back at the end
    started = []
    monkeypatch.setattr(superexec, "flower_superexec", lambda: started.append(True))
    superexec.main()
    executor = run_superexec.get_executor("subprocess", executor_config=None)
    assert (type(executor), started) == (superexec.ForkingExecutor, [True])
    assert "get_executor" in run_superexec.run_superexec.__code__.co_names
