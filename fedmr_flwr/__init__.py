"""Federated learning by layer-wise model recombination (FedMR), as a Flower app and a library.

    from fedmr_flwr import FedMR, FedAvg, Scaffold    # Flower strategies, one for each algorithm
    from fedmr_flwr import classic                    # the same for Flower's classic strategy API
    from fedmr_flwr import RosterGrid                 # a Grid whose clients keep their numbers
    from fedmr_flwr import Algorithm, LocalRule       # bases of your own algorithms, with what they need
    from fedmr_flwr import Classifier, Dataset        # of your own models and data sets
    from fedmr_flwr import load_run, run              # runs of experiments, and their results
    from fedmr_flwr import client_app, server_app     # what a Flower project names as its components

The command line is `fedmr`; see README.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmr_flwr import models
    from fedmr_flwr.algorithms import classic
    from fedmr_flwr.algorithms.base import Algorithm
    from fedmr_flwr.algorithms.clusamp import CluSamp
    from fedmr_flwr.algorithms.contract import Combined, NoState, Reply, Round, Slot
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
    from fedmr_flwr.algorithms.multi_model import MultiModel
    from fedmr_flwr.algorithms.scaffold import Scaffold
    from fedmr_flwr.analysis.results import load_run
    from fedmr_flwr.client.app import client_app
    from fedmr_flwr.config.sections import Section
    from fedmr_flwr.core.distributions import Choice, LogUniform
    from fedmr_flwr.core.layout import Layout, Packed
    from fedmr_flwr.core.population import average
    from fedmr_flwr.core.recombination import Parts
    from fedmr_flwr.data.base import Dataset
    from fedmr_flwr.launch.python import run
    from fedmr_flwr.launch.server_app import server_app
    from fedmr_flwr.models.base import Classifier
    from fedmr_flwr.training.rules import LocalRule, Outcome, Task
    from fedmr_flwr.wire.grids.roster import RosterGrid

__all__ = [
    "Algorithm", "Choice", "Classifier", "CluSamp", "Combined", "Dataset", "FedASAM", "FedAvg", "FedCross",
    "FedExP", "FedGen", "FedMR", "FedMut", "FedProx", "Indep", "Layout", "LocalRule", "LogUniform", "Moon",
    "MultiModel", "NoState", "Outcome", "Packed", "Parts", "Reply", "RosterGrid", "Round", "Scaffold", "Section",
    "Slot", "Task", "average", "classic", "client_app", "load_run", "models", "run",
    "server_app",
]  # fmt: skip

# Where the other public names live, so that no user's import depends on the layout.
_MODULES = {"classic": "fedmr_flwr.algorithms.classic", "models": "fedmr_flwr.models"}
_HOMES = {
    "Algorithm": "fedmr_flwr.algorithms.base",
    "Choice": "fedmr_flwr.core.distributions",
    "Classifier": "fedmr_flwr.models.base",
    "Combined": "fedmr_flwr.algorithms.contract",
    "Dataset": "fedmr_flwr.data.base",
    "Layout": "fedmr_flwr.core.layout",
    "LocalRule": "fedmr_flwr.training.rules",
    "LogUniform": "fedmr_flwr.core.distributions",
    "MultiModel": "fedmr_flwr.algorithms.multi_model",
    "NoState": "fedmr_flwr.algorithms.contract",
    "Outcome": "fedmr_flwr.training.rules",
    "Packed": "fedmr_flwr.core.layout",
    "Parts": "fedmr_flwr.core.recombination",
    "Reply": "fedmr_flwr.algorithms.contract",
    "RosterGrid": "fedmr_flwr.wire.grids.roster",
    "Round": "fedmr_flwr.algorithms.contract",
    "Section": "fedmr_flwr.config.sections",
    "Slot": "fedmr_flwr.algorithms.contract",
    "Task": "fedmr_flwr.training.rules",
    "average": "fedmr_flwr.core.population",
    "client_app": "fedmr_flwr.client.app",
    "load_run": "fedmr_flwr.analysis.results",
    "run": "fedmr_flwr.launch.python",
    "server_app": "fedmr_flwr.launch.server_app",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: Flower and PyTorch take seconds to load."""
    if name == "__version__":
        return import_module("importlib.metadata").version("fedmr-flwr")
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in __all__:
        from fedmr_flwr.config.registry import ALGORITHMS

        # The classes are in the registry already: a second list here could differ from it.
        (module,) = (place.partition(":")[0] for place in ALGORITHMS.values() if place.endswith(f":{name}"))
        return getattr(import_module(module), name)
    raise AttributeError(f"module 'fedmr_flwr' has no attribute '{name}'")


def __dir__() -> list[str]:
    """List the public names, of which none needs to have been used: for completion at a prompt."""
    return sorted({*globals(), *__all__, "__version__"})
