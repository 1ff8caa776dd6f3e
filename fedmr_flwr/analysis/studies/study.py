"""A study: which configurations, values, strategies and seeds are compared."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field

from fedmr_flwr.config.loading import read_values
from fedmr_flwr.config.sections import Section, validate_section
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.config.yaml_text import read_yaml
from fedmr_flwr.errors import ConfigError

_OPENING, _CLOSING = "[{", "]}"
# Given by --seeds, --out and --strategies.
_NOT_IN_A_GRID = ("seed", "run-dir", "strategy", "strategy.name")


class Cells(Section):
    """Rows of a study's table: every configuration with every combination of the grid's values.

    Attributes:
        configurations: files, or names of those that come with the package.
        overrides: values by dotted key, for all these configurations.
        grid: lists of values by dotted key; a value may be a whole section.
    """

    configurations: tuple[str, ...] = Field(min_length=1)
    overrides: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)


class Study(Section):
    """What is compared.

    Attributes:
        cells: the rows.
        strategies: the columns, with options after slashes: "fedmr/unit=tensor"; all are compared to the first.
        seeds: of the runs of each cell and strategy; each configuration's own if not given.
        target: the accuracy to reach, 0 to 1; for each cell the highest whole percentage that all runs reach if not
            given.
    """

    cells: tuple[Cells, ...] = Field(min_length=1)
    strategies: tuple[str, ...] = Field(("fedmr", "fedavg"), min_length=1)
    seeds: tuple[int, ...] | None = None
    target: float | None = Field(None, ge=0, le=1)


@dataclass(frozen=True)
class Cell:
    """A row: one configuration with one value of each key of the grid.

    Attributes:
        conf: the configuration.
        overrides: those of its configurations, as "key=value".
        chosen: its values of the grid, likewise.
        label: what distinguishes it from the other rows; empty if there is only one row.
    """

    conf: str
    overrides: tuple[str, ...]
    chosen: tuple[str, ...]
    label: str

    @property
    def folder(self) -> str:
        """The name of its folder; empty if there is only one row."""
        return _folder_name(self.label)


@dataclass(frozen=True)
class Variant:
    """A column: a strategy with options, as written: "fedprox", "fedmut/radius=1", "fedmr/clients-per-round=3".

    Attributes:
        label: the strategy as written.
    """

    label: str

    def overrides(self) -> list[str]:
        """Return its overrides of a configuration.

        Raises:
            ConfigError: an option is not written as key=value.
        """
        name, *options = self.label.split("/")
        if wrong := [option for option in options if "=" not in option]:
            raise ConfigError(f"strategy {self.label}: '{wrong[0]}' is not an option; write NAME/key=value")
        return [f"strategy.name={name}", *map(_in_its_section, options)]

    @property
    def folder(self) -> str:
        """Its part of the name of a run's folder."""
        return _folder_name(self.label)


def with_options(label: str, values: Mapping[str, Any]) -> str:
    """Return a strategy as written with further options after it.

    Args:
        label: as in `Variant`.
        values: by dotted key of the configuration.
    """
    for key, value in values.items():
        option = f"{key}={_text(value)}"
        short = option.removeprefix("strategy.")
        label += f"/{short if _in_its_section(short) == option else option}"
    return label


def study_of(
    confs: Sequence[str],
    strategies: str | None = None,
    seeds: str | None = None,
    grid: Iterable[str] = (),
    target: float | None = None,
) -> Study:
    """Return the study of a command line.

    Args:
        confs: configurations, or one study, whose values the others replace; a grid is added to its own.
        strategies: by commas.
        seeds: by commas.
        grid: keys with values by commas.
        target: an accuracy.

    Raises:
        ConfigError: a file or an option is wrong.
    """
    values = [read_values(conf) for conf in confs]
    if any("cells" in found for found in values):
        if len(confs) > 1:
            raise ConfigError(f"{' and '.join(confs)}: a study is compared by itself; name it alone")
        study = validate_section(Study, values[0], confs[0])
    else:
        study = Study(cells=(Cells(configurations=tuple(confs)),))
    if strategies is not None:
        study = study.model_copy(update={"strategies": tuple(parse_strategies(strategies))})
    if seeds is not None:
        study = study.model_copy(update={"seeds": tuple(parse_seeds(seeds))})
    if target is not None:
        study = study.model_copy(update={"target": check_target(target)})
    added = parse_grid(grid)
    cells = tuple(part.model_copy(update={"grid": {**part.grid, **added}}) for part in study.cells)
    return study.model_copy(update={"cells": cells})


def cells_of(study: Study) -> list[Cell]:
    """Return the rows of a study.

    Raises:
        ConfigError: a key cannot be in a grid.
    """
    several = len({conf for part in study.cells for conf in part.configurations}) > 1
    cells = []
    for part in study.cells:
        for key in part.grid:
            if key in _NOT_IN_A_GRID or key.startswith("strategy.name."):
                raise ConfigError(f"--grid {key}: use --strategies, --seeds and, for all runs, --out FOLDER")
        axes = [[(key, value) for value in values] for key, values in part.grid.items()]
        fixed = tuple(f"{key}={_text(value)}" for key, value in part.overrides.items())
        for conf, chosen in product(part.configurations, product(*axes)):
            names = ([Path(conf).stem] if several else []) + [_name(key, value, part.grid) for key, value in chosen]
            own = tuple(f"{key}={_text(value)}" for key, value in chosen)
            cells.append(Cell(conf, fixed, own, ", ".join(names)))
    return cells


def parse_strategies(text: str) -> list[str]:
    """Parse a list of strategies, separated by commas; a comma in brackets belongs to an option.

    Raises:
        ConfigError: the list is empty or has duplicates.
    """
    labels = [label.strip() for label in _split(text) if label.strip()]
    if not labels or len(set(labels)) < len(labels):
        raise ConfigError(f"--strategies {text}: list each strategy once, separated by commas")
    return labels


def check_target(number: float) -> float:
    """Check that an accuracy is from 0 to 1, and return it.

    Raises:
        ConfigError: it is not, perhaps because it is a percentage.
    """
    if not 0 <= number <= 1:
        raise ConfigError(f"--target {number:g}: the accuracy must be from 0 to 1, such as 0.8")
    return number


def parse_seeds(text: str) -> list[int]:
    """Parse a list of seeds, separated by commas.

    Raises:
        ConfigError: one is not a non-negative integer, or there are duplicates.
    """
    words = [word.strip() for word in text.split(",")]
    # Compared as numbers, because 1 and 01 are the same seed.
    if not all(word.isdecimal() for word in words) or len({int(word) for word in words}) < len(words):
        raise ConfigError(f"--seeds {text}: list each seed once, non-negative integers separated by commas")
    return [int(word) for word in words]


def parse_grid(axes: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Parse keys with lists of values: "partition.alpha=0.1,0.5".

    Raises:
        ConfigError: one has no key, no value, or a key of another one.
    """
    grid: dict[str, tuple[str, ...]] = {}
    for axis in axes:
        key, equals, text = axis.partition("=")
        values = tuple(value.strip() for value in _split(text))
        if not key or not equals or not all(values) or key in grid:
            raise ConfigError(f"--grid {axis}: write each key once, as KEY=VALUE,VALUE")
        grid[key] = values
    return grid


def check_overrides(overrides: Iterable[str], study: Study) -> None:
    """Check that overrides for all runs leave alone what distinguishes the runs.

    Raises:
        ConfigError: one sets a key of the grid, the strategy, the seed or the folder.
    """
    varied = [key for part in study.cells for key in part.grid]
    for override in overrides:
        key = override.partition("=")[0]
        if key in _NOT_IN_A_GRID:
            raise ConfigError(f"'{override}': use --strategies, --seeds and, for all runs, --out FOLDER")
        if clash := [own for own in varied if f"{own}.".startswith(f"{key}.") or f"{key}.".startswith(f"{own}.")]:
            raise ConfigError(f"'{override}': {clash[0]} is in the grid of this comparison; leave one of them out")


def _split(text: str) -> list[str]:
    """Split at the commas that are outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in _OPENING) - (letter in _CLOSING)
        if letter == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _in_its_section(option: str) -> str:
    """Return a strategy's option as an override: a key of the configuration as it is, any other of the strategy."""
    known = {field.alias for field in Settings.model_fields.values()}
    return option if re.split("[.=]", option, maxsplit=1)[0] in known else f"strategy.{option}"


def _text(value: Any) -> str:
    """Return a value as the text of an override; JSON is YAML, too."""
    return value if isinstance(value, str) else json.dumps(value)


def _name(key: str, value: Any, keys: Iterable[str]) -> str:
    """Return a short name of a grid's value: "alpha=0.1", and of a section "dirichlet alpha=0.1"."""
    if isinstance(value, str) and value.startswith("{"):
        value = read_yaml(value)
    if isinstance(value, Mapping):
        return " ".join(_text(inner) if name == "name" else f"{name}={_text(inner)}" for name, inner in value.items())
    last = key.rpartition(".")[2]
    same = sum(other.rpartition(".")[2] == last for other in keys) > 1
    return f"{key if same else last}={_text(value)}"


def _folder_name(label: str) -> str:
    # Labels may contain slashes, brackets and quotes, which do not belong into the name of a folder.
    return re.sub(r"[^A-Za-z0-9.=+-]+", "_", label)
