"""The algorithms by name; each file holds one, with its local rule if it has one."""

from typing import Any

from fedmr_flwr.algorithms.base import Algorithm
from fedmr_flwr.algorithms.clusamp import CluSamp
from fedmr_flwr.algorithms.fedasam import FedASAM
from fedmr_flwr.algorithms.fedavg import FedAvg
from fedmr_flwr.algorithms.fedcross import FedCross
from fedmr_flwr.algorithms.fedexp import FedExP
from fedmr_flwr.algorithms.fedgen import FedGen
from fedmr_flwr.algorithms.fedmr import FedMR
from fedmr_flwr.algorithms.fedmut import FedMut
from fedmr_flwr.algorithms.fedprox import FedProx
from fedmr_flwr.algorithms.flower import PREFIX, FlowerStrategy, flower_strategy
from fedmr_flwr.algorithms.indep import Indep
from fedmr_flwr.algorithms.moon import Moon
from fedmr_flwr.algorithms.scaffold import Scaffold
from fedmr_flwr.config.sections import Section, checked
from fedmr_flwr.config.settings import Settings, Strategy
from fedmr_flwr.core.layout import Layout
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.training.rules import LocalRule

# Add one line to add one.
ALGORITHMS: dict[str, type[Algorithm[Any]]] = {
    "clusamp": CluSamp,
    "fedasam": FedASAM,
    "fedavg": FedAvg,
    "fedcross": FedCross,
    "fedexp": FedExP,
    "fedgen": FedGen,
    "fedmr": FedMR,
    "fedmut": FedMut,
    "fedprox": FedProx,
    "indep": Indep,
    "moon": Moon,
    "scaffold": Scaffold,
}


def resolve(settings: Settings) -> Settings:
    """Write out the options of a configuration's strategy and local rule in full, every default included.

    Raises:
        ConfigError: there is no such algorithm, or an option is unknown or wrong.
    """
    options, rule_options = (section.model_dump(mode="json", by_alias=True) for section in _options(settings))
    named = settings.strategy.model_dump(include={"name", "local_rule"})
    return settings.model_copy(update={"strategy": Strategy(**named, **options, **rule_options)})


def create(settings: Settings, layout: Layout) -> Algorithm[Any] | FlowerStrategy:
    """Make the strategy that a configuration names.

    Args:
        settings: the run; `settings.strategy` holds the algorithm's name and options.
        layout: of the model.

    Raises:
        ConfigError: there is no such algorithm, or an option is unknown or wrong.
    """
    options, _ = _options(settings)
    if settings.strategy.name.startswith(PREFIX) and settings.wire != "float32":
        raise ConfigError(f"wire={settings.wire}: Flower's own strategies would calculate in it; leave wire out")
    return _find(settings.strategy.name, "strategy.name")(
        clients_per_round=settings.clients_per_round,
        seed=settings.seed,
        layout=layout,
        wire=settings.wire,
        guard=settings.guard,
        **options.model_dump(),
    )


def local_rule(settings: Settings) -> LocalRule:
    """Make what a configuration's clients change in local training, for one client in one round.

    Raises:
        ConfigError: as `create`.
    """
    _, options = _options(settings)
    return _rule(settings)(options)


def _options(settings: Settings) -> tuple[Section, Section]:
    """Return the options of the algorithm and of the local rule, which stand side by side."""
    algorithm, rule = _find(settings.strategy.name, "strategy.name"), _rule(settings)
    rule_keys = {field.alias for field in rule.Options.model_fields.values()}
    given = settings.strategy.model_extra or {}
    own = {key: value for key, value in given.items() if key not in rule_keys}
    where = f"strategy {settings.strategy.name}"
    return (
        checked(algorithm.Options, own, where, "strategy."),
        checked(rule.Options, {key: given[key] for key in given.keys() - own.keys()}, where, "strategy."),
    )


def _rule(settings: Settings) -> type[LocalRule]:
    name, other = settings.strategy.name, settings.strategy.local_rule
    own = _find(name, "strategy.name").Rule
    if own.exchanges and settings.privacy.local_dp:
        raise ConfigError(
            f"privacy.local-dp: clients of '{name}' send more than their models ({', '.join(own.exchanges)}), which "
            "would travel without noise; choose another strategy"
        )
    if other is None:
        return own
    rule = _find(other, "strategy.local-rule").Rule
    if rule.exchanges != own.exchanges:
        apart = other if rule.exchanges else name
        raise ConfigError(
            f"strategy.local-rule: '{other}' does not work under '{name}', because the two halves of '{apart}' "
            f"exchange more than models ({', '.join(rule.exchanges or own.exchanges)})"
        )
    return rule


def _find(name: str, key: str) -> type[Algorithm[Any]] | type[FlowerStrategy]:
    if name.startswith(PREFIX):
        return flower_strategy(name)
    if name not in ALGORITHMS:
        raise ConfigError(
            f"{key}: '{name}' is not known; choose one of {', '.join(sorted(ALGORITHMS))}, {PREFIX}NAME"
        )
    return ALGORITHMS[name]
