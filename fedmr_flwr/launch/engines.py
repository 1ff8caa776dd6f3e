"""The choice of what carries the messages between server and clients."""

from collections.abc import Callable

from flwr.serverapp import Grid
from flwr.superlink.grid import InMemoryGrid

from fedmr_flwr.config.settings import Settings
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.wire.grids.in_process import InProcessGrid
from fedmr_flwr.wire.grids.superlink import SuperLinkGrid

# ray: Flower's simulation, client processes side by side. in-process: one after the other, right here. deployment:
# clients on machines of their own, connected to a SuperLink. gpu: all clients of a round side by side on one GPU.
ENGINES = ("ray", "in-process", "deployment", "gpu")


def is_simulation(flower: Grid) -> bool:
    """Tell whether the clients behind the Grid that Flower gave a ServerApp are simulated."""
    return isinstance(flower, InMemoryGrid)


def grid_of(settings: Settings, flower: Grid | None = None, say: Callable[[str], None] = lambda _: None) -> Grid:
    """Return the Grid of a run's engine.

    Args:
        settings: the run.
        flower: the Grid that Flower gave the ServerApp, if it runs in one.
        say: is told what concerns the user.

    Raises:
        ConfigError: there is no such engine.
        DeviceError: it needs a GPU, and there is none.
    """
    if settings.engine not in ENGINES:
        raise ConfigError(f"engine: '{settings.engine}' is not known; choose one of {', '.join(ENGINES)}")
    if settings.engine == "in-process":
        from fedmr_flwr.client.app import app

        return InProcessGrid(app, settings.clients)
    if settings.engine == "gpu":
        from fedmr_flwr.gpu.grid import GpuGrid

        return GpuGrid(settings, say)
    if flower is None:
        raise ConfigError(f"engine '{settings.engine}' runs under Flower; use `fedmr run` or `flwr run`")
    return SuperLinkGrid(flower) if settings.engine == "deployment" else flower
