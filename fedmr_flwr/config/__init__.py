"""The configuration of a run: a typed schema, read from YAML files with `key=value` overrides."""

from fedmr_flwr.config.loading import load, parse, to_yaml
from fedmr_flwr.config.sections import AbsolutePath, Section, checked
from fedmr_flwr.config.settings import (
    Data,
    LocalDp,
    Model,
    Partition,
    Precision,
    Privacy,
    Settings,
    Strategy,
    Training,
)

__all__ = [
    "AbsolutePath", "Data", "LocalDp", "Model", "Partition", "Precision", "Privacy", "Section", "Settings",
    "Strategy", "Training", "checked", "load", "parse", "to_yaml",
]  # fmt: skip
