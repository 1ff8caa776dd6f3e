"""The search space of a strategy: the distributions that its options and those of training declare."""

from collections.abc import Container, Mapping
from typing import Any

from fedmr_flwr.config.settings import Settings
from fedmr_flwr.core.distributions import Around, Choice, Distribution, LogUniform, Value
from fedmr_flwr.core.randomness import stream

# By dotted key of the configuration.
Space = Mapping[str, Distribution]


def space_of(settings: Settings, fixed: Container[str] = ()) -> Space:
    """Return what is tuned: all options that declare a distribution, but those that are fixed.

    Args:
        settings: with the strategy.
        fixed: dotted keys.
    """
    strategy = settings.strategy
    found: dict[str, Distribution] = {}
    for name, section in (
        ("training", settings.training), ("strategy", strategy.options), ("strategy", strategy.rule_options),
    ):  # fmt: skip
        for attribute, field in type(section).model_fields.items():
            key = f"{name}.{field.alias}"
            for declared in field.metadata if key not in fixed else ():
                if isinstance(declared, Around):
                    found[key] = declared.of(getattr(section, attribute))
                elif isinstance(declared, LogUniform | Choice):
                    found[key] = declared
    return found


def draw(space: Space, seed: int, number: int) -> dict[str, Value]:
    """Draw the values of a trial.

    The draws of a key do not depend on the other keys, the strategy or the number of trials: trial 5 of every
    strategy has the same learning rate, so that none is better because it was luckier with them.

    Args:
        space: what is tuned.
        seed: of the runs.
        number: of the trial.
    """
    return {key: own.draw(stream(seed, f"tune {key}", number)) for key, own in space.items()}


def configured(settings: Settings, space: Space) -> dict[str, Any]:
    """Return the configured values of what is tuned."""
    plain = settings.model_dump(mode="json", by_alias=True)
    return {key: plain[key.partition(".")[0]][key.partition(".")[2]] for key in space}


def describe(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a space as plain values, for a file.

    Args:
        space: what is tuned.
        values: the configured values.
    """
    found = {}
    for key, own in space.items():
        kind = {"log-uniform": [own.low, own.high]} if isinstance(own, LogUniform) else {"choice": list(own.values)}
        found[key] = {"default": values[key], **kind}
    return found
