"""The algorithms by name, each as "module:Class".

Algorithms import the configuration, so no module of the configuration imports one: their names are text, like the
name of a user's own algorithm. A class is imported when a strategy's options are checked, after everything else,
because it imports PyTorch and Flower. The configuration uses only the types that the class and its `Rule` declare for
their `options`, the names of the vectors that they exchange, and which training the rule refuses.
"""

import importlib
import inspect
from typing import Any

from fedmr_flwr.errors import ConfigError, describe

# Every algorithm by name; add one line to add one.
ALGORITHMS = {
    "clusamp": "fedmr_flwr.algorithms.clusamp:CluSamp",
    "fedasam": "fedmr_flwr.algorithms.fedasam:FedASAM",
    "fedavg": "fedmr_flwr.algorithms.fedavg:FedAvg",
    "fedcross": "fedmr_flwr.algorithms.fedcross:FedCross",
    "fedexp": "fedmr_flwr.algorithms.fedexp:FedExP",
    "fedgen": "fedmr_flwr.algorithms.fedgen:FedGen",
    "fedmr": "fedmr_flwr.algorithms.fedmr:FedMR",
    "fedmut": "fedmr_flwr.algorithms.fedmut:FedMut",
    "fedprox": "fedmr_flwr.algorithms.fedprox:FedProx",
    "indep": "fedmr_flwr.algorithms.indep:Indep",
    "moon": "fedmr_flwr.algorithms.moon:Moon",
    "scaffold": "fedmr_flwr.algorithms.scaffold:Scaffold",
}
# The prefix of the names of Flower's own strategies.
FLOWER = "flwr:"


def find(name: str) -> type[Any]:
    """Import an algorithm.

    Args:
        name: an entry of `ALGORITHMS`, "flwr:NAME" for one of Flower's strategies, or "module:Class" for your own.

    Raises:
        ConfigError: the algorithm is unknown or cannot be imported.
    """
    if name.startswith(FLOWER):
        flower = importlib.import_module("fedmr_flwr.algorithms.flower")
        return flower.flower_strategy(name)  # type: ignore[no-any-return]
    if name in ALGORITHMS:
        module, _, attribute = ALGORITHMS[name].partition(":")
        return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]
    if ":" not in name:
        raise ConfigError(
            f"unknown algorithm '{name}'; choose one of {', '.join(ALGORITHMS)}, {FLOWER}NAME or module:Class"
        )
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the code of a user's module raises
        raise ConfigError(
            f"'{name}' cannot be imported: {describe(error)}; it must be in the current folder or on PYTHONPATH"
        ) from error
    # Not `issubclass`: that would import the algorithms here, and Flower's own strategies have another base.
    if not (isinstance(found, type) and hasattr(found, "Rule")):
        raise ConfigError(f"'{name}' must be a class derived from fedmr_flwr.Algorithm")
    if inspect.isabstract(found):
        missing = [key for key in dir(found) if getattr(getattr(found, key), "__isabstractmethod__", False)]
        raise ConfigError(f"'{name}' must define {', '.join(missing)}")
    return found
