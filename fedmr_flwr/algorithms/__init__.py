"""The algorithms: one in each file, with its local rule; `fedmr_flwr.config.registry` lists them by name."""

from typing import Any

from fedmr_flwr.algorithms.base import Algorithm
from fedmr_flwr.config import registry
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.core.layout import Layout
from fedmr_flwr.errors import ConfigError, OptionError
from fedmr_flwr.wire.strategy import ServerStrategy


def create(settings: Settings, layout: Layout) -> ServerStrategy[Any]:
    """Create the configured strategy.

    Args:
        settings: of the run.
        layout: of the model.

    Raises:
        ConfigError: an option does not fit the model or the rest of the configuration.
    """
    strategy = settings.strategy
    kind: type[Algorithm[Any]] = registry.find(strategy.name)
    try:
        created = kind(
            clients_per_round=settings.clients_per_round,
            seed=settings.seed,
            layout=layout,
            wire=settings.wire,
            guard=settings.guard_factor,
            **dict(strategy.options),
        )
    except OptionError as error:
        # The algorithm names its Python argument; the user of a file knows the key.
        raise ConfigError(f"strategy.{error.option.replace('_', '-')}: {error.problem}") from None
    if not settings.privacy.sealed:
        return created
    # Here, so that only the chosen algorithm is imported.
    from fedmr_flwr.algorithms.sealed import Sealed
    from fedmr_flwr.wire.sealed import dealing_of

    logs = bool(dict(strategy.options).get("log_recombination"))
    return Sealed(dealing_of(settings, layout), created.codec, created.notice, logs)
