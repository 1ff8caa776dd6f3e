"""YAML files with `key=value` overrides."""

import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from fedmr_flwr.config.sections import checked
from fedmr_flwr.config.settings import Settings, Strategy
from fedmr_flwr.errors import ConfigError


def load(conf: Path, overrides: Iterable[str] = ()) -> Settings:
    """Read a configuration file and apply overrides.

    Args:
        conf: a YAML file.
        overrides: "key=value", nested keys with dots: "training.lr=0.1". Naming another strategy drops the
            options that the file gives to its own.

    Raises:
        ConfigError: the file cannot be read, or a key, type or value is wrong.
    """
    try:
        values = yaml.load(conf.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {conf}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{conf} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict | types.NoneType):
        raise ConfigError(f"{conf} must hold 'key: value' lines")
    values = values or {}
    for override in _names_first(overrides, values):
        _set(values, override)
    return parse(values, str(conf))


def parse(values: dict[str, Any], where: str) -> Settings:
    """Validate a configuration.

    Args:
        values: nested mappings with kebab-case keys.
        where: what to call it in an error.

    Raises:
        ConfigError: a key, type or value is wrong.
    """
    return checked(Settings, values, where)


def to_yaml(settings: Settings) -> str:
    """Write a configuration out in full, every default included."""
    return yaml.safe_dump(settings.model_dump(mode="json", by_alias=True), sort_keys=False)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for at, key in enumerate(keys) if key in keys[:at]]:
            raise yaml.constructor.ConstructorError(None, None, f"the key '{twice[0]}' stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _names_first(overrides: Iterable[str], values: dict[str, Any]) -> list[str]:
    """Put the strategy's name before its options, and drop the file's options if it names another."""
    ordered = sorted(overrides, key=lambda override: not override.startswith("strategy.name="))
    names = [override.partition("=")[2] for override in ordered if override.startswith("strategy.name=")]
    section = values.get("strategy")
    if names and isinstance(section, dict) and names[-1] != section.get("name", Strategy().name):
        values["strategy"] = {}
    return ordered


def _set(values: dict[str, Any], override: str) -> None:
    """Put one "a.b=value" into nested mappings."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"'{override}' is no override; write key=value, for instance rounds=20")
    *path, last = key.split(".")
    for part in path:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"'{override}': '{part}' is a single value, it has no keys of its own")
        values = inner
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    # Paths may hold " #" and ": ", which YAML takes for a comment and for a mapping.
    plain = isinstance(value, str | dict) or (value is None and text not in ("", "null", "~"))
    values[last] = text if plain and not text.startswith(('"', "'", "{")) else value
