import io
import shutil
from collections import namedtuple

import numpy as np
import psutil
import pytest
from rich.console import Console

from fedmr_flwr.client.state import ClientState
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.launch import engines
from fedmr_flwr.report.display import Display
from fedmr_flwr.runs.checkpoint import KEPT, oldest
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.server import resources
from fedmr_flwr.server.experiment import Experiment

MACHINE = psutil.virtual_memory().total


@pytest.fixture
def machine(monkeypatch):
    """Give the machine as many bytes of memory, and as many free ones on the disk."""

    def make(memory=10**12, disk=10**12):
        Usage = namedtuple("Usage", "total used free")
        monkeypatch.setattr(resources, "memory", lambda: memory)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(disk, 0, disk))

    return make


def group(root, line, limits):
    """Write what Linux says about a process's control group: its line, and limits by file."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(line + "\n")
    for name, limit in limits.items():
        path = root / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{limit}\n")
    return root


@pytest.mark.parametrize(
    ("line", "limits", "expected"),
    [
        ("0::/", {"memory.max": 4096}, 4096),
        ("0::/", {"memory.max": "max"}, MACHINE),
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": 4096}, 4096),
        ("0::/a/b", {"a/b/memory.max": 512, "a/memory.max": 4096}, 512),
        ("0::/not/in/the/container", {"memory.max": 4096}, 4096),
        ("3:cpu,memory:/a", {"memory/a/memory.limit_in_bytes": 4096}, 4096),
        ("3:cpu:/a", {"memory/a/memory.limit_in_bytes": 4096}, MACHINE),
        ("4:memory:/a", {"memory/memory.limit_in_bytes": 2**63 - 4096}, MACHINE),
        ("0::/", {}, MACHINE),
    ],
)
def test_containers_have_less_memory(tmp_path, line, limits, expected):
    assert resources.memory(group(tmp_path, line, limits)) == expected


def test_machine_without_groups_has_all(tmp_path):
    assert resources.memory(tmp_path) == MACHINE
    assert 0 < resources.memory() <= MACHINE


def size_of(layout):
    return layout.size * 4


def test_small_states_are_not_said(toy, machine):
    machine()
    assert Experiment(toy("strategy.name=clusamp")).notices == []


def test_large_states_are_said_in_one_line(toy, machine):
    plain = Experiment(toy())
    need = 3 * 6 * size_of(plain.layout)  # the updates of 6 clients, and two copies of them
    machine(memory=5 * need)
    (line,) = Experiment(toy("strategy.name=clusamp")).notices
    assert line.startswith(f"what clusamp keeps between rounds will need up to {need / 1e6:.1f} MB of memory on")
    assert "\n" not in line and "choose a smaller model, fewer clients" in line


def test_too_much_memory_is_refused(toy, machine):
    need = 3 * 6 * size_of(Experiment(toy()).layout)
    machine(memory=need)
    Experiment(toy("strategy.name=clusamp"))
    machine(memory=need - 1)
    with pytest.raises(ConfigError, match="what clusamp keeps between .* which has .*; choose"):
        Experiment(toy("strategy.name=clusamp"))
    Experiment(toy("strategy.name=fedavg"))


def test_clients_that_never_take_part_count_not(toy, machine):
    machine(memory=3 * 3 * size_of(Experiment(toy()).layout))
    Experiment(toy("strategy.name=clusamp", "rounds=1"))  # three of the six
    with pytest.raises(ConfigError):
        Experiment(toy("strategy.name=clusamp", "rounds=2"))


def test_refused_runs_leave_no_folder(toy, machine):
    machine(memory=1)
    settings = toy("strategy.name=clusamp")
    with pytest.raises(ConfigError, match="strategy.name: what clusamp keeps"):
        engines.run(settings, Display(3, Console(file=io.StringIO())))
    assert not settings.run_dir.exists()


@pytest.mark.parametrize("name", ["scaffold", "moon"])
def test_client_files_need_disk(toy, machine, name):
    model = size_of(Experiment(toy()).layout)
    # Three checkpoints of the model, and nine files: rounds are fewer than those since the oldest checkpoint.
    machine(disk=(3 + 9) * model)
    Experiment(toy(f"strategy.name={name}"))
    machine(disk=(3 + 9) * model - 1)
    with pytest.raises(ConfigError, match="MB of disk in the run folder.*a lower checkpoint-every"):
        Experiment(toy(f"strategy.name={name}"))
    Experiment(toy(f"strategy.name={name}", "engine=deployment"))  # there the nodes keep them


def test_older_client_files_are_removed(toy, machine):
    model = size_of(Experiment(toy()).layout)
    # A file of each of the 6 clients, and those of 2 x 1 rounds with 3 clients.
    machine(disk=(3 + 6 + 2 * 3) * model)
    Experiment(toy("strategy.name=scaffold", "rounds=1000", "checkpoint-every=1"))
    with pytest.raises(ConfigError):
        Experiment(toy("strategy.name=scaffold", "rounds=1000", "checkpoint-every=2"))


def test_resumed_runs_have_their_own_files(toy, machine):
    settings = toy("strategy.name=scaffold")
    machine(disk=0)
    with pytest.raises(ConfigError):
        Experiment(settings)
    layout = Experiment(toy("strategy.name=scaffold").model_copy(update={"run_dir": None})).layout
    kept = RunFolder(settings.run_dir).client_state / "client-000000"
    kept.mkdir(parents=True)
    (kept / "round-000001.safetensors").write_bytes(bytes(12 * size_of(layout)))
    Experiment(settings)


def test_files_never_exceed_what_was_said(tmp_path):
    """A client in every round: the files that its state leaves are those that the check counts."""
    state, most = ClientState(tmp_path), 0
    for number in range(1, 40):
        state.keep({"x": np.zeros(1, np.float32)}, number, number - 1, oldest(number, 5))
        most = max(most, len([*tmp_path.glob("*.safetensors")]))
    assert most <= 1 + KEPT * 5
