"""The ServerApp that Flower starts: whose configuration it runs, with which engine."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.superlink.grid import InMemoryGrid

from fedmr_flwr.config.loading import load, resolve_paths
from fedmr_flwr.errors import ConfigError, UnexpectedError
from fedmr_flwr.launch import server_app
from fedmr_flwr.server.experiment import create_folder
from fedmr_flwr.wire.grids.bounded import BoundedGrid
from fedmr_flwr.wire.grids.pool import PoolGrid
from fedmr_flwr.wire.grids.superlink import SuperLinkGrid

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "conf" / "quickstart.yaml"
SIMULATED = object.__new__(InMemoryGrid)


@pytest.fixture
def flwr_run(monkeypatch, tmp_path):
    """Return a function that calls the ServerApp as `flwr run` does: settings and Grid of the run that it starts."""
    found = []
    monkeypatch.setattr(server_app, "run", lambda *arguments: found.append(arguments))

    def call(grid, *overrides, conf=QUICKSTART):
        words = " ".join([f"run-dir={tmp_path / 'run'}", *overrides])
        server_app.server_app(ROOT)(grid, SimpleNamespace(run_config={"conf": str(conf), "set": words}))
        return found

    return call


def test_simulation_has_a_node_for_each_client(flwr_run):
    ((settings, grid, *_),) = flwr_run(SIMULATED)
    assert (settings.engine, type(grid)) == ("ray", PoolGrid)
    assert len(grid.get_node_ids()) == settings.clients == 20


def test_real_clients_change_the_engine(flwr_run, grid_of, capsys):
    ((settings, grid, *_),) = flwr_run(grid_of(lambda *_: None))
    assert (settings.engine, type(grid), type(grid._grid)) == ("deployment", SuperLinkGrid, BoundedGrid)
    assert "engine: deployment, not ray: the clients of this SuperLink are not simulated" in capsys.readouterr().out


def test_options_of_a_deployment_need_no_engine(flwr_run, grid_of, tmp_path):
    ((settings, *_),) = flwr_run(grid_of(lambda *_: None), "deployment.min-clients=3")
    assert settings.deployment.min_clients == 3
    for engine in ("ray", "in-process"):
        with pytest.raises(ConfigError, match=f"'engine={engine}': the clients of this SuperLink are not simulated"):
            flwr_run(grid_of(lambda *_: None), f"engine={engine}")
    with pytest.raises(ConfigError, match="'deployment.min-clients=3': engine=ray does not use it"):
        flwr_run(SIMULATED, "deployment.min-clients=3")


def test_unchanged_engine_is_not_printed(flwr_run, grid_of, capsys):
    flwr_run(SIMULATED)
    flwr_run(grid_of(lambda *_: None), "engine=deployment")
    assert "engine:" not in capsys.readouterr().out


def test_gpus_of_clients_are_flowers_to_give(flwr_run, tmp_path, capsys):
    flwr_run(SIMULATED)
    assert "client-gpus" not in capsys.readouterr().out
    flwr_run(SIMULATED, "ray.client-gpus=0.25")
    assert "; add --federation-config client-resources-num-gpus=0.25, or use `fedmr run`" in capsys.readouterr().out
    # `fedmr run` has given Flower the same number.
    settings = load(QUICKSTART, [f"run-dir={tmp_path / 'own'}", "ray.client-gpus=0.25"])
    out = create_folder(resolve_paths(settings))
    server_app.server_app(ROOT)(SIMULATED, SimpleNamespace(run_config={"conf": str(out.config), "set": ""}))
    assert "client-gpus" not in capsys.readouterr().out


def test_app_brings_its_conf_files(flwr_run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ((settings, *_),) = flwr_run(SIMULATED, conf=Path("conf/quickstart.yaml"))
    assert settings.clients == 20


def test_prepared_folder_may_end_before_a_round_that_is_kept(flwr_run, monkeypatch, tmp_path):
    settings = load(QUICKSTART, [f"run-dir={tmp_path / 'short'}", "keep-models=[50]"])
    out = create_folder(resolve_paths(settings.model_copy(update={"rounds": 2})))
    found = []
    monkeypatch.setattr(server_app, "run", lambda *arguments: found.append(arguments))
    server_app.server_app(ROOT)(SIMULATED, SimpleNamespace(run_config={"conf": str(out.config), "set": ""}))
    ((used, _, _, folder),) = found
    assert (used.rounds, used.keep_models, folder.path) == (2, (50,), out.path)


def test_unquoted_overrides_are_one_line(flwr_run):
    with pytest.raises(ConfigError, match="No closing quotation; write key=value key=value"):
        flwr_run(SIMULATED, "strategy.unit='")


def test_late_ray_address_is_refused(flwr_run, monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"export RAY_ADDRESS=10\.0\.0\.1:6379 before the SuperLink starts"):
        flwr_run(SIMULATED, "ray.address=10.0.0.1:6379")
    assert not (tmp_path / "run").exists()


def test_bug_of_the_server_is_one_line(flwr_run, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(server_app.engines, "grid_of", None)
    with pytest.raises(UnexpectedError, match=r"a bug in fedmr_flwr: TypeError.*traceback is in .*; please"):
        flwr_run(SIMULATED)
