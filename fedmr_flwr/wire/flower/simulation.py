"""The distinction between Flower's simulation and a deployment."""

from flwr.serverapp import Grid


def is_simulation(grid: Grid) -> bool:
    """Return whether the clients behind the Grid that Flower gave a ServerApp are simulated."""
    # Not above: every client imports this module, and that one imports SQLAlchemy, which takes half a second.
    from flwr.superlink.grid import InMemoryGrid

    return isinstance(grid, InMemoryGrid)
