"""Federated learning by layer-wise model recombination (FedMR), as a Flower app and a library.

    from fedmr_flwr import FedMR          # a Flower strategy
    from fedmr_flwr.models import build   # the models by name

The command line is `fedmr`; see README.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmr_flwr import models
    from fedmr_flwr.algorithms import classic
    from fedmr_flwr.algorithms.fedavg import FedAvg
    from fedmr_flwr.algorithms.fedmr import FedMR
    from fedmr_flwr.algorithms.indep import Indep
    from fedmr_flwr.wire.grids.roster import RosterGrid

__all__ = ["FedAvg", "FedMR", "Indep", "RosterGrid", "classic", "models"]

# Where each public name lives, so that no user's import depends on the layout.
_HOMES = {
    "FedAvg": "fedmr_flwr.algorithms.fedavg",
    "FedMR": "fedmr_flwr.algorithms.fedmr",
    "Indep": "fedmr_flwr.algorithms.indep",
    "RosterGrid": "fedmr_flwr.wire.grids.roster",
    "classic": "fedmr_flwr.algorithms",
    "models": "fedmr_flwr",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: Flower and PyTorch take seconds to load."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedmr_flwr' has no attribute '{name}'")
    if name == "models":
        return import_module("fedmr_flwr.models")
    if name == "classic":
        return import_module("fedmr_flwr.algorithms.classic")
    return getattr(import_module(_HOMES[name]), name)
