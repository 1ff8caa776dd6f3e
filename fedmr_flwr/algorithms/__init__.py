"""The algorithms by name; each file holds one."""

from fedmr_flwr.algorithms.base import Algorithm
from fedmr_flwr.algorithms.fedavg import FedAvg
from fedmr_flwr.algorithms.fedmr import FedMR
from fedmr_flwr.algorithms.indep import Indep
from fedmr_flwr.config import Settings, checked
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.layout import Layout

# Add one line to add one.
ALGORITHMS: dict[str, type[Algorithm]] = {"fedavg": FedAvg, "fedmr": FedMR, "indep": Indep}


def create(settings: Settings, layout: Layout) -> Algorithm:
    """Make the strategy that a configuration names.

    Args:
        settings: the run; `settings.strategy` holds the algorithm's name and options.
        layout: of the model.

    Raises:
        ConfigError: there is no such algorithm, or an option is unknown or wrong.
    """
    name = settings.strategy.name
    if name not in ALGORITHMS:
        raise ConfigError(f"strategy.name: '{name}' is not known; choose one of {', '.join(sorted(ALGORITHMS))}")
    kind = ALGORITHMS[name]
    options = checked(kind.Options, settings.strategy.model_extra or {}, f"strategy {name}", "strategy.")
    return kind(
        clients_per_round=settings.clients_per_round, seed=settings.seed, layout=layout, **options.model_dump()
    )
