"""The algorithms by name; each file holds one."""

from fedmr_flwr.algorithms.base import Algorithm
from fedmr_flwr.algorithms.fedavg import FedAvg
from fedmr_flwr.algorithms.fedmr import FedMR
from fedmr_flwr.algorithms.indep import Indep
from fedmr_flwr.config import Section, Settings, Strategy, checked
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.layout import Layout

# Add one line to add one.
ALGORITHMS: dict[str, type[Algorithm]] = {"fedavg": FedAvg, "fedmr": FedMR, "indep": Indep}


def resolve(settings: Settings) -> Settings:
    """Write out the options of a configuration's strategy in full, every default included.

    Raises:
        ConfigError: there is no such algorithm, or an option is unknown or wrong.
    """
    options = _options(settings).model_dump(mode="json", by_alias=True)
    return settings.model_copy(update={"strategy": Strategy(name=settings.strategy.name, **options)})


def create(settings: Settings, layout: Layout) -> Algorithm:
    """Make the strategy that a configuration names.

    Args:
        settings: the run; `settings.strategy` holds the algorithm's name and options.
        layout: of the model.

    Raises:
        ConfigError: there is no such algorithm, or an option is unknown or wrong.
    """
    options = _options(settings).model_dump()
    return ALGORITHMS[settings.strategy.name](
        clients_per_round=settings.clients_per_round, seed=settings.seed, layout=layout, **options
    )


def _options(settings: Settings) -> Section:
    name = settings.strategy.name
    if name not in ALGORITHMS:
        raise ConfigError(f"strategy.name: '{name}' is not known; choose one of {', '.join(sorted(ALGORITHMS))}")
    given = settings.strategy.model_extra or {}
    return checked(ALGORITHMS[name].Options, given, f"strategy {name}", "strategy.")
