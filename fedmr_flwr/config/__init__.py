"""The configuration of a run: a typed schema, read from YAML files with `key=value` overrides."""

from fedmr_flwr.config.loading import load, parse, to_yaml
from fedmr_flwr.config.sections import AbsolutePath, Section, validate_section
from fedmr_flwr.config.settings import (
    Data,
    Deployment,
    LocalDp,
    Model,
    Partition,
    Precision,
    Privacy,
    Ray,
    Settings,
    Training,
)
from fedmr_flwr.config.strategy import Strategy

__all__ = [
    "AbsolutePath", "Data", "Deployment", "LocalDp", "Model", "Partition", "Precision", "Privacy", "Ray", "Section",
    "Settings", "Strategy", "Training", "load", "parse", "to_yaml", "validate_section",
]  # fmt: skip
