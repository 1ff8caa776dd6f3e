"""What identifies a run: everything that changes its result."""

import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedmr_flwr.config.paths import kind_and_path
from fedmr_flwr.config.registry import FLOWER
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.errors import ConfigError

# Settings of where and how a run is computed, and of what is kept of it. All others identify it: a new setting counts
# as one that changes the result until it is named here.
HOW_COMPUTED = frozenset({
    "engine", "device", "client-cpus", "ray", "deployment", "data-dir", "run-dir", "checkpoint-every",
    "round-timeout", "evaluation", "keep-models", "keep-models-slots", "track",
})  # fmt: skip
# What may change besides when a run is resumed: more rounds, and more patience.
LENGTH = frozenset({"rounds", "max-bad-rounds", "stop"})
# "module:name", as users name code of their own; other names with a colon contain a path, a number or Flower's name.
_OWN = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_]\w*")

# The spec of each imported module of the user's own, and the SHA-256 of its file when it was first looked at.
_imported: dict[str, tuple[object, str]] = {}


def identity(settings: Settings) -> dict[str, Any]:
    """Return the settings that change a run's result, as nested plain values by key."""
    # A cosine of all rounds has another length, and so other rates, when a run gets more of them.
    lasting = settings.model_copy(update={"training": settings.training.over(settings.rounds)})
    values = {key: value for key, value in lasting.effective().items() if key not in HOW_COMPUTED}
    # Where the files come from; what is in them is compared by their hash.
    del values["data"]["download"]
    return values


def check_resumable(overrides: Iterable[str]) -> None:
    """Check that overrides change only what a run may change when it is resumed.

    Raises:
        ConfigError: one of them changes the result.
    """
    allowed = (HOW_COMPUTED | LENGTH) - {"run-dir"}
    for override in overrides:
        if re.split("[.=]", override, maxsplit=1)[0] not in allowed:
            raise ConfigError(
                f"'{override}': a run that is resumed may change only {', '.join(sorted(allowed))}; start a new run"
            )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield each dotted key that both have with different values, and these values.

    Args:
        before: the earlier facts, perhaps of an older version with fewer keys.
        now: the present ones.
    """
    for key, new in now.items():
        old = before.get(key, new)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from ((f"{key}.{inner}", *values) for inner, *values in differences(old, new))
        elif old != new:
            yield key, old, new


def own_code(settings: Settings) -> dict[str, str]:
    """Return the SHA-256 of the file of each module of the user's own that a configuration names, by module.

    Raises:
        ConfigError: one has changed since this process imported it: its old code would run, as in a notebook.
    """
    found = {}
    for text in texts(identity(settings)):
        match = _OWN.fullmatch(text)
        if match and not text.startswith(FLOWER) and not kind_and_path(text)[0] and (path := _source(match[1])):
            found[match[1]] = hashlib.sha256(path.read_bytes()).hexdigest()
            _check_imported(match[1], path, found[match[1]])
    return found


def _check_imported(module: str, path: Path, sha256: str) -> None:
    if module not in sys.modules:
        return
    spec = sys.modules[module].__spec__
    # A module that is reloaded gets another spec.
    if module not in _imported or _imported[module][0] is not spec:
        _imported[module] = spec, sha256
    elif _imported[module][1] != sha256:
        raise ConfigError(
            f"{path} has changed since this process imported it, and the old code would run; start Python again, or "
            "import it again with importlib.reload"
        )


def texts(value: Any) -> Iterator[str]:
    """Yield the texts in nested plain values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from texts(inner)


def _source(module: str) -> Path | None:
    """Return the file of a module; None if there is none, as for "npz" in "npz:FILE"."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None
