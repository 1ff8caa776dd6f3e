"""The algorithms: each file holds one, with its local rule if it has one; by name in `fedmr_flwr.config.registry`."""

from typing import Any

from fedmr_flwr.algorithms.base import Algorithm
from fedmr_flwr.algorithms.contract import ServerStrategy
from fedmr_flwr.config import registry
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.core.layout import Layout
from fedmr_flwr.errors import ConfigError, OptionError


def create(settings: Settings, layout: Layout) -> ServerStrategy[Any]:
    """Make the strategy that a configuration names.

    Args:
        settings: the run.
        layout: of the model.

    Raises:
        ConfigError: an option does not fit the model or the rest of the configuration.
    """
    strategy = settings.strategy
    kind: type[Algorithm[Any]] = registry.find(strategy.name)
    try:
        return kind(
            clients_per_round=settings.clients_per_round,
            seed=settings.seed,
            layout=layout,
            wire=settings.wire,
            guard=settings.guard,
            **dict(strategy.options),
        )
    except OptionError as error:
        raise ConfigError(f"strategy.{error.option.replace('_', '-')}: {error.problem}") from None
