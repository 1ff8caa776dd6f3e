"""Which engine a run takes, and what becomes of its folder when it does not start."""

import io
import logging

import pytest
from rich.console import Console

from fedmr_flwr.data import datasets
from fedmr_flwr.errors import ConfigError, RunFolderError
from fedmr_flwr.launch import engines, on_superlink, ray
from fedmr_flwr.launch.flower import launching
from fedmr_flwr.report.display import Display
from fedmr_flwr.server.experiment import create_folder


@pytest.fixture
def display():
    return Display(1, Console(file=io.StringIO()))


@pytest.mark.parametrize(("engine", "module"), [("ray", ray), ("deployment", on_superlink)])
def test_each_engine_has_its_launcher(toy, display, monkeypatch, engine, module):
    monkeypatch.setattr(module, "run", lambda settings, *_: settings.engine)
    assert engines.run(toy(f"engine={engine}"), display) == engine


def test_run_folder_defaults_to_runs(toy, display, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    settings = toy("rounds=1").model_copy(update={"run_dir": None})
    out = engines.run(settings, display)
    assert (out.path.parent, out.status) == (tmp_path / "runs", "completed")


def test_data_load_before_the_display(toy, display, monkeypatch):
    started = []
    monkeypatch.setattr(Display, "__enter__", lambda self: started.append(self) or self)
    monkeypatch.setattr(ray, "run", lambda *_: None)

    def load(*_):
        assert not started, "data have a progress bar of their own"

    monkeypatch.setattr(datasets, "load", load)
    engines.run(toy("engine=ray"), display)
    assert started


def test_wrong_run_makes_no_folder(toy, display):
    settings = toy("model.name=nonsense")
    with pytest.raises(ConfigError, match="nonsense"), launching(settings, display, None):
        pass
    assert not settings.run_dir.exists()


def test_failed_start_is_in_the_manifest(toy, display):
    settings = toy()
    with pytest.raises(ConfigError), launching(settings, display, None) as out:
        assert out.status == "starting"
        raise ConfigError("it is tired")
    assert (out.status, out.read_manifest()["error"]) == ("failed", "it is tired")


def test_folder_is_locked_while_launching(toy, display):
    settings = toy()
    with launching(settings, display, None) as out:
        with pytest.raises(RunFolderError, match="is in use by process"), launching(settings, display, out):
            pass
        assert out.status == "starting", "the one that was there first has not failed"


def test_running_server_has_not_failed(toy):
    out = create_folder(toy())
    with pytest.raises(ConfigError), out.launching():
        lock = out.locked()
        lock.__enter__()
        raise ConfigError("the launcher is gone")
    assert out.status == "starting"
    lock.__exit__(None, None, None)


def test_a_run_leaves_flowers_log_as_it_was(toy, display, monkeypatch):
    logger = logging.getLogger("flwr")
    monkeypatch.setattr(logger, "level", logging.INFO)
    settings = toy("rounds=1")
    engines.run(settings, display)
    assert logger.level == logging.INFO
