"""The distinction between Flower's simulation and a deployment."""

from flwr.serverapp import Grid
from flwr.superlink.grid import InMemoryGrid


def is_simulation(grid: Grid) -> bool:
    """Return whether the clients behind the Grid that Flower gave a ServerApp are simulated."""
    return isinstance(grid, InMemoryGrid)
