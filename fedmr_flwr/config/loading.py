"""Reading of configuration files with `key=value` overrides, and writing of complete ones."""

import re
import secrets
import time
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic_core import PydanticSerializationError

from fedmr_flwr.config.paths import default_data_dir, find_configuration
from fedmr_flwr.config.sections import drop, override_of, shorten, validate_section
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.config.strategy import Strategy
from fedmr_flwr.config.yaml_text import read_settings, read_yaml, write_yaml
from fedmr_flwr.errors import ConfigError

# Keys of a file that an override of another key replaces: two of one choice, or with another meaning in each.
_REPLACED = {
    "training.local-steps": ("training.local-epochs",),
    "training.local-epochs": ("training.local-steps",),
    "training.schedule": ("training.decay", "training.decay-rounds", "training.final-lr"),
}


def load(conf: str | Path, overrides: Iterable[str] = (), own: Iterable[str] = ()) -> Settings:
    """Read a configuration file and apply overrides.

    A key of one source that another key of the same source leaves without effect is an error. One that a later
    source leaves without effect is dropped: the options of a partition, say, where a file is run with another one.

    Args:
        conf: a YAML file, or the name of one that comes with the package; the first source.
        overrides: "key=value", nested keys with dots: "training.lr=0.1"; the second source. A different
            strategy.name drops the strategy options of the file; a training.schedule, or number of epochs or steps,
            what the file says about another one.
        own: overrides of one run of a comparison; the third source.

    Raises:
        ConfigError: the file cannot be read, or a key, type or value is wrong, or has no effect.
    """
    return _load(conf, [*overrides], [*own], recorded=False)


def _load(conf: str | Path, overrides: list[str], own: list[str], recorded: bool) -> Settings:
    values = read_values(conf)
    every = [*overrides, *own]
    for key in {override.partition("=")[0] for override in every} & _REPLACED.keys():
        for replaced in _REPLACED[key]:
            drop(values, replaced)
    texts = {}
    for override in _names_first(every, values):
        texts[_set(values, override)] = override
    later = {override.partition("=")[0] for override in own}
    return _validate(values, str(conf), texts, {key: 2 if key in later else 1 for key in texts}, recorded)


def load_recorded(conf: Path, overrides: Iterable[str] = ()) -> Settings:
    """Read the configuration of a run from its folder.

    Args:
        conf: as the run has written it. It may name rounds that the run never reached: it can be continued.
        overrides: "key=value", with which it is continued.

    Raises:
        ConfigError: the file cannot be read, or a key, type or value is wrong, or has no effect.
    """
    return _load(conf, [*overrides], [], recorded=True)


def read_values(conf: str | Path) -> dict[str, Any]:
    """Return the values of a YAML file, without a check of its keys.

    Args:
        conf: the file, or the name of one that comes with the package.

    Raises:
        ConfigError: it cannot be read, or does not have keys.
    """
    return read_settings(find_configuration(conf))


def parse(values: dict[str, Any], where: str) -> Settings:
    """Validate a configuration.

    Args:
        values: nested mappings with kebab-case keys.
        where: the name of the configuration in an error.

    Raises:
        ConfigError: a key, type or value is wrong.
    """
    return _validate(values, where, {}, {}, recorded=False)


def _validate(
    values: dict[str, Any], where: str, overrides: Mapping[str, str], sources: Mapping[str, int], recorded: bool
) -> Settings:
    """Validate a configuration, and drop what a later source has left without effect.

    Args:
        values: nested, with all overrides.
        where: the name of the file in an error.
        overrides: the text of each by its key.
        sources: the place of each override's source among all; the file's is 0.
        recorded: whether a run has written the file.

    Raises:
        ConfigError: a key, type or value is wrong, or a source leaves something of its own without effect.
    """

    def source(key: str) -> int:
        override = override_of(key, overrides)
        return 0 if override is None else sources[override]

    settings = validate_section(Settings, values, where, overrides)
    problems, dropped = [], False
    for void in settings.void():
        if not _is_given(values, void.key):
            continue
        if any(source(key) > source(void.key) for key in void.others):
            if not void.stays:
                drop(values, void.key)
                dropped = True
            continue
        override = override_of(void.key, overrides)
        if override is None and recorded and void.stays:
            continue
        if override is None and not void.stays and _is_default(settings, values, void.key):
            continue  # as in a configuration with all keys, which earlier versions wrote
        typed = "" if override is None else f"'{shorten(overrides[override])}'"
        # An override of a whole section does not begin with the key.
        about = ": ".join([typed or where, *([] if override == void.key else [void.key])])
        problems.append(f"{about}: {void.problem}")
    if problems:
        raise ConfigError("; ".join(problems))
    # Again, because a key may have had an effect on another one that is dropped now.
    return _validate(values, where, overrides, sources, recorded) if dropped else settings


def _is_default(settings: Settings, values: Mapping[str, Any], key: str) -> bool:
    """Return whether settings would be the same without a key "a.b" of their values."""
    others = deepcopy({**values})
    drop(others, key)
    return Settings.model_validate(others, by_alias=True, by_name=False) == settings


def _is_given(values: Mapping[str, Any], key: str) -> bool:
    """Return whether a key "a.b" has a value; null, false, 0 and the like ask for nothing."""
    first, _, rest = key.partition(".")
    found = values.get(first)
    return bool(found) if not rest else isinstance(found, Mapping) and _is_given(found, rest)


def to_yaml(settings: Settings) -> str:
    """Return a configuration as YAML, with all defaults, but without what has no effect."""
    return write_yaml(settings.effective())


def resolve_paths(settings: Settings) -> Settings:
    """Set the missing paths of a configuration: the data folder, and a new run folder under runs/.

    Raises:
        ConfigError: one of its paths or names is not UTF-8.
    """
    # On the server, because a client on another machine may have another default.
    settings = settings.model_copy(update={"data_dir": settings.data_dir or default_data_dir()})
    if settings.run_dir is None:
        settings = settings.model_copy(update={"run_dir": _new_run_dir(settings)})
    try:
        settings.model_dump_json()
    except PydanticSerializationError:
        raise ConfigError(
            "a path or name of the configuration is not UTF-8, so no message can hold it; rename the file or folder"
        ) from None
    return settings


def _new_run_dir(settings: Settings) -> Path:
    what = f"{_file_name(settings.data.name)}-{_file_name(settings.strategy.name)}-seed{settings.seed}"
    # Random at the end, because several runs may begin in one second.
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{what}-{secrets.token_hex(2)}"
    return Path("runs").absolute() / name


def _file_name(name: str) -> str:
    """Return a data set's or strategy's name as a part of a file's: of a path its end, without special characters."""
    return re.sub(r"[^\w.-]+", "-", name.rpartition("/")[2])


def _names_first(overrides: Iterable[str], values: dict[str, Any]) -> list[str]:
    """Move the strategy's name before its options, and drop the file's options if the name is a different one."""
    # A stable sort, so that of two overrides of one key the later still wins.
    ordered = sorted(overrides, key=lambda override: not override.startswith("strategy.name="))
    names = [read_value(override.partition("=")[2]) for override in ordered if override.startswith("strategy.name=")]
    section = values.get("strategy")
    default = Strategy.model_fields["name"].default
    # Otherwise strategy.name=fedavg would be rejected because of an option that the file gives to FedMR.
    if names and isinstance(section, dict) and names[-1] != section.get("name", default):
        values["strategy"] = {}
    return ordered


def _set(values: dict[str, Any], override: str) -> str:
    """Apply an override "a.b=value" to nested mappings; return its key."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"'{shorten(override)}' is not an override; write key=value, for instance rounds=20")
    *path, last = key.split(".")
    for part in path:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"'{shorten(override)}': '{shorten(part)}' is a single value and has no keys")
        values = inner
    values[last] = read_value(text)
    return key


def read_value(text: str) -> Any:
    """Return the value of an override from its text."""
    try:
        value = read_yaml(text)
    except ConfigError:
        return text
    # Paths may contain " #" and ": ", which YAML reads as a comment and a mapping.
    plain = isinstance(value, str | dict) or (value is None and text not in ("", "null", "~"))
    return text if plain and not text.startswith(('"', "'", "{")) else value
