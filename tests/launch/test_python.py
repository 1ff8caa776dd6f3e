"""Runs from Python."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

import fedmr_flwr
from fedmr_flwr.errors import ConfigError, RunFolderError

SMALL = {"clients": 6, "clients_per_round": 3, "engine": "in-process", "device": "cpu"}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch, no_pictures):
    monkeypatch.chdir(tmp_path)


def test_a_run_returns_its_results(tmp_path):
    results = fedmr_flwr.run("quickstart", "strategy.name=fedavg", rounds=2, run_dir=Path("mine"), **SMALL)
    assert results.folder.path == tmp_path / "mine"
    assert results.config.strategy.name == "fedavg"
    assert list(results.metrics.index) == [1, 2]


def test_a_run_is_that_of_the_command(fedmr):
    results = fedmr_flwr.run("quickstart", rounds=1, **SMALL)
    texts = [f"{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    assert fedmr("run", "quickstart", "rounds=1", "run-dir=other", *texts)[0] == 0
    other = fedmr_flwr.load_run("other")
    assert results.folder.read_manifest()["model-sha256"] == other.folder.read_manifest()["model-sha256"]


def test_a_used_folder_is_refused():
    fedmr_flwr.run("quickstart", rounds=1, run_dir="mine", **SMALL)
    with pytest.raises(RunFolderError, match="already contains a run"):
        fedmr_flwr.run("quickstart", rounds=1, run_dir="mine", **SMALL)


def test_an_unknown_setting_is_named():
    with pytest.raises(ConfigError, match="unknown key 'roundz'; did you mean 'rounds'"):
        fedmr_flwr.run("quickstart", roundz=1)


def test_a_section_is_set_by_overrides():
    with pytest.raises(ConfigError, match=r"training is a section; set its keys by overrides, such as 'training.KEY"):
        fedmr_flwr.run("quickstart", training={"lr": 0.1})


def test_a_second_run_reads_files_that_have_changed(tmp_path):
    """A notebook keeps one process while its user writes the data anew."""
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.random((60, 4)), "x_test": rng.random((9, 4))}
    labels = {"y_train": np.arange(60) % 2, "y_test": np.arange(9) % 2}
    found = []
    for scale in (1, 0):
        np.savez(tmp_path / "mine.npz", **{name: scale * values for name, values in arrays.items()}, **labels)
        results = fedmr_flwr.run(
            "quickstart",
            "data.name=npz:mine.npz",
            "model.name=mlp",
            "partition.name=iid",
            rounds=1,
            data_dir=tmp_path,
            **SMALL,
        )
        found.append(results.folder.read_manifest()["data-sha256"])
    assert found[0] != found[1]


def test_changed_code_runs_only_if_it_is_reloaded(tmp_path, monkeypatch):
    """Python imports a module once: a second run had the old code, and the hash of the new one."""
    monkeypatch.syspath_prepend(tmp_path)
    code = "from torch import nn\ndef net(_, classes): return nn.Sequential(nn.Flatten(), {}nn.Linear(64, classes))\n"
    module = tmp_path / "notebook_model.py"

    def train():
        results = fedmr_flwr.run("quickstart", "model.name=notebook_model:net", rounds=1, **SMALL)
        return results.metrics["test-loss"].iloc[-1]

    module.write_text(code.format(""))
    before = train()
    module.write_text(code.format("nn.Tanh(), "))
    with pytest.raises(
        ConfigError, match="notebook_model.py has changed since this process imported it, and the old"
    ):
        train()
    importlib.reload(sys.modules["notebook_model"])
    assert train() != before
