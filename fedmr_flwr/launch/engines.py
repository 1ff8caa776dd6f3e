"""The engines: how the clients of a run are executed."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flwr.serverapp import Grid

from fedmr_flwr.config.loading import resolve_paths
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.report.display import Display
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.wire.grids.in_process import InProcessGrid
from fedmr_flwr.wire.grids.pool import PoolGrid
from fedmr_flwr.wire.grids.superlink import SuperLinkGrid

# ray: Flower's simulation, with parallel client processes. in-process: one after another in this process. deployment:
# clients on their own machines, connected to a SuperLink. gpu: all clients of a round side by side on one GPU.
ENGINES = ("ray", "in-process", "deployment", "gpu")


def run(settings: Settings, display: Display, prepared: RunFolder | None = None) -> RunFolder:
    """Run an experiment with the engine of its settings, or resume one.

    Args:
        settings: of the run; its folder is a new one under runs/ if not set.
        display: shows the rounds; started and stopped here.
        prepared: the run's folder, if it exists, perhaps from an earlier server that was stopped.

    Returns:
        The run folder, complete.

    Raises:
        FedmrError: the configuration, the data or the clients are wrong, or Flower failed.
    """
    # Imported here and below, so that the ServerApp does not load engines that it does not use.
    from fedmr_flwr.data import datasets

    check_names(settings)
    settings = resolve_paths(settings)
    # An earlier run of this process, as in a notebook, may have read files that have changed since.
    datasets.forget()
    # Before the display: it may take minutes, and has its own progress bar.
    datasets.load(settings.data, settings.data_dir, settings.seed)
    with display:
        if settings.engine == "ray":
            from fedmr_flwr.launch import ray

            return ray.run(settings, display, prepared)
        if settings.engine == "deployment":
            from fedmr_flwr.launch import on_superlink

            return on_superlink.run(settings, display, prepared)
        from fedmr_flwr.server.run import run as run_server

        with _flower_logs_warnings_only():
            return run_server(settings, grid_of(settings, report=display.print), display, prepared)


def check_names(settings: Settings) -> None:
    """Check the names of engine, data set, partition and model, before anything is read or written.

    Raises:
        ConfigError: one is unknown.
    """
    from fedmr_flwr import models
    from fedmr_flwr.data import datasets, partitions

    if settings.engine not in ENGINES:
        raise ConfigError(f"engine: unknown engine '{settings.engine}'; choose one of {', '.join(ENGINES)}")
    datasets.check_name(settings.data.name)
    partitions.check_name(settings.partition.name)
    models.check_name(settings.model.name)


@contextmanager
def _flower_logs_warnings_only() -> Iterator[None]:
    """Leave out what Flower logs in every round inside the block, which would stand between the display's lines."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def grid_of(settings: Settings, flower: Grid | None = None, report: Callable[[str], None] = lambda _: None) -> Grid:
    """Create the Grid of a run's engine.

    Args:
        settings: of the run.
        flower: the Grid that Flower passed to the ServerApp, if any.
        report: called with each line for the user.

    Raises:
        ConfigError: the engine is unknown, or needs Flower.
        DeviceError: the engine needs a GPU, and there is none.
    """
    check_names(settings)
    if settings.engine == "in-process":
        from fedmr_flwr.client import app

        app.forget()
        return InProcessGrid(app.client_app, settings.clients)
    if settings.engine == "gpu":
        from fedmr_flwr.gpu.grid import GpuGrid

        return GpuGrid(settings, report)
    if flower is None:
        raise ConfigError(f"engine '{settings.engine}' needs Flower; use `fedmr run` or `flwr run`")
    if settings.engine == "deployment":
        from fedmr_flwr.wire.grids.bounded import BoundedGrid

        return SuperLinkGrid(BoundedGrid(flower))
    return PoolGrid(flower, settings.clients)
