"""Conversion of YAML text to plain values and back.

With the core schema of YAML 1.2: PyYAML's own, that of YAML 1.1, reads `1e-3` as text, `12:30` as 750, `010` as 8,
`yes` as true and `2026-11-26` as a date.
"""

import re
from pathlib import Path
from types import NoneType
from typing import Any

import yaml

from fedmr_flwr.config.sections import shorten
from fedmr_flwr.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"
# Far beyond any configuration; a list of patterns may have thousands.
_MOST_CHARACTERS, _MOST_VALUES, _MOST_NESTED = 200_000, 10_000, 50
_MOST_DIGITS, _MOST = 21, 2**64 - 1
_TOO_LARGE = f"not a configuration: it has more than {_MOST_CHARACTERS:,} characters"
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with only the core schema, for texts that anybody may have written.

    Merge keys and aliases are read, tags are not. A duplicate key is an error, and so is a text that is nested too
    deeply or has too many values, each counted as often as aliases refer to it.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Read a node and what is inside it, within the bounds."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        self._depth += 1
        if tag := getattr(event, "tag", None):
            raise _wrong(f"the tag '{tag}' is not supported", event)
        if self._depth > _MOST_NESTED:
            raise _wrong("it is nested too deeply", event)
        node = super().compose_node(parent, index)
        assert node is not None  # as long as there is an event
        if isinstance(event, yaml.AliasEvent):
            if node not in self._sizes:
                raise _wrong(f"the alias '{event.anchor}' is inside of what it refers to", event)
        else:
            self._sizes[node] = 1 + sum(self._sizes[inner] for inner in _inside(node))
        if self._sizes[node] > _MOST_VALUES:
            raise _wrong(f"it has more than {_MOST_VALUES:,} values", event)
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
        self._depth -= 1
        return node

    def _check_keys(self, mapping: yaml.MappingNode) -> None:
        keys: set[Any] = set()
        for node, _ in mapping.value:
            if not isinstance(node, yaml.ScalarNode):
                raise _wrong("a key is a list or a mapping", node)
            # Compared as values, not as text: `1` and `0x1` are the same key.
            key = node.value if node.tag == _MERGE else self.construct_object(node)
            if key in keys:
                raise _wrong(f"duplicate key '{key}'", node)
            keys.add(key)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Return a decimal or hexadecimal number of at most 64 bits."""
        text = node.value
        # By its length first: Python refuses to convert very long ones.
        number = int(text, 0) if len(text) <= _MOST_DIGITS else _MOST + 1
        if not -_MOST <= number <= _MOST:
            raise _wrong(
                f"the number {text[:_MOST_DIGITS]}{'...' * (len(text) > _MOST_DIGITS)} exceeds 64 bits", node
            )
        return number


def _inside(node: yaml.Node) -> list[yaml.Node]:
    """Return the nodes of a sequence, or the keys and values of a mapping."""
    if isinstance(node, yaml.MappingNode):
        return [inner for pair in node.value for inner in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _wrong(problem: str, where: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as another type."""


_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {
    tag: yaml.SafeLoader.yaml_constructors[tag]
    for tag in (None, *(_TAG + name for name in ("str", "seq", "map", *_SCALARS)))
} | {_TAG + "int": _Loader.construct_yaml_int, _MERGE: yaml.SafeLoader.construct_yaml_str}
_Loader.add_implicit_resolver(_MERGE, re.compile("<<$"), ["<"])
for _name, (_pattern, _first) in _SCALARS.items():
    # The dumper keeps the rules of YAML 1.1, too: other programs may read the file with PyYAML.
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})$"), _first)


def read_yaml(text: str) -> Any:
    """Return the values of a YAML text.

    Raises:
        ConfigError: it is not valid YAML, or larger than a configuration can be; the message is one line.
    """
    if len(text) > _MOST_CHARACTERS:
        raise ConfigError(_TOO_LARGE)
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"not valid YAML: {where}{shorten(str(error.problem))}") from None
    except Exception as error:  # PyYAML lets errors of Python through
        raise ConfigError(f"not valid YAML: {' '.join(str(error).split())}") from None


def read_settings(path: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file; empty for an empty file.

    Raises:
        ConfigError: the file cannot be read, or is not a mapping; the message is one line and names the file.
    """
    try:
        with path.open("rb") as file:
            # No more, because the name may be that of a data set, or of a device without an end.
            content = file.read(4 * _MOST_CHARACTERS + 1)
        if len(content) > 4 * _MOST_CHARACTERS:
            raise ConfigError(_TOO_LARGE)
        values = read_yaml(content.decode())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{path} is {error}") from None
    # An empty file is None to YAML.
    if not isinstance(values, dict | NoneType):
        raise ConfigError(f"{path} must contain 'key: value' lines")
    return values or {}


def write_yaml(values: Any) -> str:
    """Return plain values as YAML, from which `read_yaml` returns equal values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)
