"""The choice of what carries the messages between server and clients."""

import logging
from collections.abc import Callable

from flwr.serverapp import Grid

from fedmr_flwr.config.loading import resolve_paths
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.report.display import Display
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.wire.grids.in_process import InProcessGrid
from fedmr_flwr.wire.grids.pool import PoolGrid
from fedmr_flwr.wire.grids.superlink import SuperLinkGrid

# ray: Flower's simulation, client processes side by side. in-process: one after the other, right here. deployment:
# clients on machines of their own, connected to a SuperLink. gpu: all clients of a round side by side on one GPU.
ENGINES = ("ray", "in-process", "deployment", "gpu")


def run(settings: Settings, display: Display, prepared: RunFolder | None = None) -> RunFolder:
    """Run a federation with the engine of its settings, or continue one, from start to end.

    Args:
        settings: what to run; in a new folder under runs/ if they name none.
        display: shows the rounds; started and stopped here.
        prepared: the run's folder, if it is made already, perhaps by an earlier server that was stopped.

    Returns:
        The run folder, complete.

    Raises:
        FedmrError: the configuration, the data or the federation is wrong, or Flower failed.
    """
    from fedmr_flwr.data import datasets

    settings = resolve_paths(settings)
    datasets.load(settings.data, settings.data_dir)  # may take minutes, with a progress bar of its own
    with display:
        if settings.engine == "ray":
            from fedmr_flwr.launch import ray

            return ray.run(settings, display, prepared)
        if settings.engine == "deployment":
            from fedmr_flwr.launch import on_superlink

            return on_superlink.run(settings, display, prepared)
        from fedmr_flwr.server.run import run as serve

        logging.getLogger("flwr").setLevel(logging.WARNING)  # its strategies comment on every round
        return serve(settings, grid_of(settings, report=display.print), display, prepared)


def grid_of(settings: Settings, flower: Grid | None = None, report: Callable[[str], None] = lambda _: None) -> Grid:
    """Return the Grid of a run's engine.

    Args:
        settings: the run.
        flower: the Grid that Flower gave the ServerApp, if it runs in one.
        report: called with what concerns the user, a line at a time.

    Raises:
        ConfigError: there is no such engine, or it needs Flower.
        DeviceError: it needs a GPU, and there is none.
    """
    if settings.engine not in ENGINES:
        raise ConfigError(f"engine: '{settings.engine}' is not known; choose one of {', '.join(ENGINES)}")
    if settings.engine == "in-process":
        from fedmr_flwr.client.app import app

        return InProcessGrid(app, settings.clients)
    if settings.engine == "gpu":
        from fedmr_flwr.gpu.grid import GpuGrid

        return GpuGrid(settings, report)
    if flower is None:
        raise ConfigError(f"engine '{settings.engine}' runs under Flower; use `fedmr run` or `flwr run`")
    return SuperLinkGrid(flower) if settings.engine == "deployment" else PoolGrid(flower, settings.clients)
