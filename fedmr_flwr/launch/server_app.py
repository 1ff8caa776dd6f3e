"""The ServerApp that Flower starts: `flwr run`, Flower's simulation and a SuperLink all come here."""

import os
import shlex
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from fedmr_flwr import config
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.launch import engines
from fedmr_flwr.report.display import Display, quiet
from fedmr_flwr.runs import folder
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.server.run import run

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the run configuration names: `conf`, a file, and `set`, overrides of it."""
    conf = Path(str(context.run_config["conf"])).expanduser()
    if not conf.is_absolute():
        conf = Path(__file__).parents[2] / conf  # the files of conf/ travel with the app
    settings = folder.choose(config.load(conf, _words(str(context.run_config["set"]))))
    if settings.engine == "ray" and not engines.is_simulation(grid):  # `flwr run` chooses by its federation
        settings = settings.model_copy(update={"engine": "deployment"})
    if settings.engine == "ray" and settings.ray.address not in (None, os.environ.get("RAY_ADDRESS")):
        raise ConfigError(
            "ray.address comes too late under `flwr run`, where Ray starts before the configuration is read; "
            f"export RAY_ADDRESS={settings.ray.address} before the SuperLink starts, or leave ray.address out"
        )
    assert settings.run_dir is not None
    # `fedmr run` and `fedmr resume` have prepared the folder and hand over the configuration that lies in it.
    out = RunFolder(settings.run_dir)
    prepared = conf == out.config and out.status == "starting"
    quiet()
    console = Console(width=120)
    path = f"run folder: {settings.run_dir}"
    console.print(path, soft_wrap=True, highlight=False, markup=False)
    with Display(settings.rounds, console) as display:
        run(settings, engines.grid_of(settings, grid, display.say), display, out if prepared else None)
    console.print(path, soft_wrap=True, highlight=False, markup=False)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"set = {text!r}: {error}; write key=value key=value") from None
