"""The ServerApp that Flower starts, in its simulation as on a SuperLink."""

import os
import shlex
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedmr_flwr.config.loading import load, load_recorded, read_values, resolve_paths
from fedmr_flwr.config.paths import user_path
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.launch import engines
from fedmr_flwr.report.console import Console
from fedmr_flwr.report.display import Display, quiet
from fedmr_flwr.runs.bugs import in_one_line
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.server.run import run
from fedmr_flwr.wire.flower.environment import RAY_ADDRESS
from fedmr_flwr.wire.flower.logs import log_errors_in_one_line
from fedmr_flwr.wire.flower.simulation import is_simulation

_SIMULATION, _DEPLOYMENT = "ray", "engine=deployment"


def server_app(folder: Path) -> ServerApp:
    """Return a ServerApp that runs the experiment of the run configuration: `conf`, a file, and `set`, its overrides.

    Args:
        folder: of the project, whose files are sent with a run, and to which a relative `conf` belongs.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        log_errors_in_one_line()
        with in_one_line():
            conf = folder / user_path(str(context.run_config["conf"]))
            _run(grid, conf, _words(str(context.run_config["set"])))

    return app


def _run(grid: Grid, conf: Path, overrides: list[str]) -> None:
    # Before the options of an engine are checked: real clients are a deployment's, whatever is the default.
    real = [] if is_simulation(grid) or read_values(conf).get("engine", _SIMULATION) != _SIMULATION else [_DEPLOYMENT]
    # `fedmr run` and `fedmr resume` have prepared the folder, and submit the configuration in it.
    out = RunFolder(conf.parent)
    prepared = conf == out.config and out.status == "starting"
    settings = resolve_paths(load_recorded(conf, [*real, *overrides]) if prepared else load(conf, real, overrides))
    if settings.engine != "deployment" and not is_simulation(grid):  # none of its nodes would be used
        raise ConfigError(
            f"'engine={settings.engine}': the clients of this SuperLink are not simulated; leave it out"
        )
    quiet()
    # Flower writes this output to a log, where Rich would assume 80 columns.
    display = Display(settings.rounds, Console(width=120))
    if real and not any(word.startswith("engine=") for word in overrides):
        display.print("engine: deployment, not ray: the clients of this SuperLink are not simulated")
    _check_ray_address(settings)
    if settings.engine == "ray" and (share := settings.ray.client_gpus) and not prepared:
        display.print(
            f"ray.client-gpus={share:g} has no effect by itself under `flwr run`, where Ray starts before the "
            f"configuration is read; add --federation-config client-resources-num-gpus={share:g}, or use `fedmr run`"
        )
    assert settings.run_dir is not None
    display.print(f"run folder: {settings.run_dir}")
    with display:
        run(settings, engines.grid_of(settings, grid, display.print), display, out if prepared else None)
    display.print(f"run folder: {settings.run_dir}")


def _check_ray_address(settings: Settings) -> None:
    """Check that Ray was started with the configured address.

    Raises:
        ConfigError: it was started with another one.
    """
    if settings.engine == "ray" and settings.ray.address not in (None, os.environ.get(RAY_ADDRESS)):
        raise ConfigError(
            "ray.address has no effect under `flwr run`, where Ray starts before the configuration is read; "
            f"export {RAY_ADDRESS}={settings.ray.address} before the SuperLink starts, or leave ray.address out"
        )


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"set = {text!r}: {error}; write key=value key=value") from None
