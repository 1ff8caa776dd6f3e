"""Conversion of YAML text to plain values and back.

With the core schema of YAML 1.2: PyYAML's own, that of YAML 1.1, reads `1e-3` as text, `12:30` as 750, `010` as 8,
`yes` as true and `2026-11-26` as a date.
"""

import re
from typing import Any

import yaml

from fedmr_flwr.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
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
    """YAML's safe loader with only the core schema; a duplicate key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            # Compared as values, not as text: `1` and `0x1` are the same key.
            if key in keys:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key '{key}'", key_node.start_mark)
            keys.append(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as another type."""


_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {
    tag: yaml.SafeLoader.yaml_constructors[tag]
    for tag in (None, *(_TAG + name for name in ("str", "seq", "map", *_SCALARS)))
}
for _name, (_pattern, _first) in _SCALARS.items():
    # The dumper keeps the rules of YAML 1.1, too: other programs may read the file with PyYAML.
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})$"), _first)


def read_yaml(text: str) -> Any:
    """Return the values of a YAML text.

    Raises:
        ConfigError: it is not valid YAML; the message is one line.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"not valid YAML: {where}{error.problem}") from None
    except (yaml.YAMLError, ValueError, LookupError) as error:  # the latter two for values such as `!!bool x`
        raise ConfigError(f"not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError("not valid YAML: it is nested too deeply") from None


def write_yaml(values: Any) -> str:
    """Return plain values as YAML, from which `read_yaml` returns equal values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)
