"""Federated learning by layer-wise model recombination (FedMR), as a Flower app and a library.

    from fedmr_flwr import FedMR          # a Flower strategy
    from fedmr_flwr.models import build   # the models by name

The command line is `fedmr`; see README.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmr_flwr import models
    from fedmr_flwr.algorithms.fedavg import FedAvg
    from fedmr_flwr.algorithms.fedmr import FedMR
    from fedmr_flwr.algorithms.indep import Indep

__all__ = ["FedAvg", "FedMR", "Indep", "models"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: Flower and PyTorch take seconds to load."""
    if name == "models":
        return import_module("fedmr_flwr.models")
    if name in __all__:
        return getattr(import_module("fedmr_flwr.algorithms"), name)
    raise AttributeError(f"module 'fedmr_flwr' has no attribute '{name}'")
