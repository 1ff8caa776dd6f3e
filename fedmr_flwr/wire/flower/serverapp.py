"""Flower around a ServerApp: how it waits for replies."""

from flwr.superlink.grid import http_grid

from fedmr_flwr.wire.flower.parts import pull_or_give_up


def apply() -> None:
    """Replace how the Grid that Flower gives a ServerApp waits for parts of a reply; it has no setting for this."""
    vars(http_grid)["pull_objects"] = pull_or_give_up
