"""Federated learning by layer-wise model recombination (FedMR), as a Flower app and a library.

    from fedmr_flwr import FedMR, FedAvg, Scaffold    # Flower strategies, one for each algorithm
    from fedmr_flwr import classic                    # the same for Flower's classic strategy API
    from fedmr_flwr import RosterGrid                 # a Grid whose clients keep their numbers
    from fedmr_flwr import Classifier, Dataset        # for a model and a data set of your own

The command line is `fedmr`; see README.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmr_flwr import models
    from fedmr_flwr.algorithms import classic
    from fedmr_flwr.algorithms.clusamp import CluSamp
    from fedmr_flwr.algorithms.fedasam import FedASAM
    from fedmr_flwr.algorithms.fedavg import FedAvg
    from fedmr_flwr.algorithms.fedcross import FedCross
    from fedmr_flwr.algorithms.fedexp import FedExP
    from fedmr_flwr.algorithms.fedgen import FedGen
    from fedmr_flwr.algorithms.fedmr import FedMR
    from fedmr_flwr.algorithms.fedmut import FedMut
    from fedmr_flwr.algorithms.fedprox import FedProx
    from fedmr_flwr.algorithms.indep import Indep
    from fedmr_flwr.algorithms.moon import Moon
    from fedmr_flwr.algorithms.scaffold import Scaffold
    from fedmr_flwr.data.base import Dataset
    from fedmr_flwr.models.base import Classifier
    from fedmr_flwr.wire.grids.roster import RosterGrid

__all__ = [
    "Classifier", "CluSamp", "Dataset", "FedASAM", "FedAvg", "FedCross", "FedExP", "FedGen", "FedMR", "FedMut",
    "FedProx", "Indep", "Moon", "RosterGrid", "Scaffold", "classic", "models",
]  # fmt: skip

# Where the other public names live, so that no user's import depends on the layout.
_MODULES = {"classic": "fedmr_flwr.algorithms.classic", "models": "fedmr_flwr.models"}
_CLASSES = {
    "Classifier": "fedmr_flwr.models.base",
    "Dataset": "fedmr_flwr.data.base",
    "RosterGrid": "fedmr_flwr.wire.grids.roster",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: Flower and PyTorch take seconds to load."""
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name in _CLASSES:
        return getattr(import_module(_CLASSES[name]), name)
    if name in __all__:
        from fedmr_flwr.config.registry import ALGORITHMS

        # The classes are in the registry already: a second list here could differ from it.
        (module,) = (place.partition(":")[0] for place in ALGORITHMS.values() if place.endswith(f":{name}"))
        return getattr(import_module(module), name)
    raise AttributeError(f"module 'fedmr_flwr' has no attribute '{name}'")
