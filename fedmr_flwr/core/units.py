"""Units of recombination: groups of tensors that move as one piece."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from fedmr_flwr.core.layout import Columns, Entry, Layout, Packed
from fedmr_flwr.errors import ConfigError

# A unit as a configuration states it: one of `KINDS`, or a list of regular expressions.
Spec = str | Sequence[str]
# Tensors by the name of their unit.
_Groups = dict[str, list[Entry]]

_WRAPPERS = ("_orig_mod.", "module.")
# PyTorch separates the names of modules by points, Flax and Keras by slashes.
_SEPARATOR = re.compile("[./]")

KINDS = ("tensor", "layer", "block", "block:DEPTH", "fraction:P", "[PATTERN, ...]")


@dataclass(frozen=True)
class Unit:
    """Tensors that recombination moves together.

    Attributes:
        name: the tensor's key, the module's path, or the pattern.
        keys: the tensors' keys.
        floats: their column ranges in `Packed.floats`.
        ints: their column ranges in `Packed.ints`.
    """

    name: str
    keys: tuple[str, ...]
    floats: Columns
    ints: Columns

    @property
    def size(self) -> int:
        """The number of floating-point values."""
        return sum(part.stop - part.start for part in self.floats)


def units(layout: Layout, spec: Spec) -> tuple[Unit, ...]:
    """Group a model's tensors into units of recombination.

    Args:
        layout: of the model.
        spec: "tensor": each key is a unit, as in FedMR's published code; "layer": all keys of one module, or for
            keys without modules each array, a weight with the bias that follows it; "block": the blocks that the
            model declares, and each other layer; without declared blocks, all keys below one top-level module;
            "block:2": all keys below one module path of two names; "fraction:0.25": runs of about a quarter of the
            keys, in their order; "fraction:0": each key; a list of regular expressions: a key belongs to the first
            one that matches it, and each is one unit.

    Returns:
        The units in the order of the state_dict; together they cover every column once.

    Raises:
        ConfigError: the specification is unknown, a key matches no pattern, a pattern matches no key, or names are
            needed and the model has none.
    """
    if isinstance(spec, str) and spec.startswith("block") and not layout.named:
        raise ConfigError(
            f"unit '{spec}' needs the names of the tensors, and this model has only their indices; send "
            "ArrayRecord(model.state_dict()), pass keys=list(model.state_dict()), or choose unit='layer' or 'tensor'"
        )
    groups = grouping(spec)(layout)
    return tuple(
        Unit(
            name,
            tuple(entry.name for entry in entries),
            _ranges([entry.columns for entry in entries if not entry.integer]),
            _ranges([entry.columns for entry in entries if entry.integer]),
        )
        for name, entries in groups.items()
    )


def ties(layout: Layout, sent: Packed, trained: Sequence[Packed]) -> list[tuple[str, str]]:
    """Return the names of tensors that are one tied weight: training has changed both, and they are still equal.

    Layers that are only initialised alike differ as soon as they are trained.

    Args:
        layout: of the models.
        sent: a model as it was sent to a client.
        trained: the models of all clients, that client's first.
    """
    first: dict[tuple[tuple[int, ...], bytes], Entry] = {}
    pairs = []
    for entry in layout.entries:
        if entry.integer or entry.buffer:
            continue
        values = trained[0].floats[entry.columns]
        if np.array_equal(values, sent.floats[entry.columns]):
            continue
        other = first.setdefault((entry.shape, hashlib.sha256(values.tobytes()).digest()), entry)
        if other is not entry and all(
            np.array_equal(model.floats[entry.columns], model.floats[other.columns]) for model in trained
        ):
            pairs.append((other.name, entry.name))
    return pairs


def grouping(spec: Spec) -> Callable[[Layout], _Groups]:
    """Return the function that groups a layout's tensors by a specification.

    Raises:
        ConfigError: it is unknown.
    """
    if not isinstance(spec, str):
        return _by_patterns(spec)
    kind, colon, value = spec.partition(":")
    if kind == "fraction" and colon:
        return _by_fraction(_share(spec, value))
    if kind == "block" and re.fullmatch(r"[1-9]\d?", value):
        return lambda layout: _grouped(layout, lambda key: _above(key, int(value)), True)
    if spec == "tensor":
        return lambda layout: _grouped(layout, str, True)
    if spec == "layer":
        return lambda layout: _grouped(layout, module_of, True) if has_modules(layout) else _by_position(layout)
    if spec == "block":
        return _by_block
    raise ConfigError(f"unknown unit '{spec}'; choose one of {', '.join(KINDS)}")


def format_unit(spec: Spec) -> str:
    """Return a specification as text."""
    return spec if isinstance(spec, str) else f"[{', '.join(spec)}]"


def module_of(key: str) -> str:
    """Return the path of the module that owns a state_dict key; the model itself is named "(model)"."""
    # What torch.compile puts around an inner module is none of its own. The tensors of a parametrised weight, such as
    # weight norm's, belong to the layer that has the weight.
    owner, found, _ = f".{key.replace('_orig_mod.', '')}".partition(".parametrizations.")
    path = owner[1:] if found else owner[1 : -len(_SEPARATOR.split(key)[-1]) - 1]
    # Not "model", which may be the name of a module of its own.
    return path or "(model)"


def _above(key: str, depth: int) -> str:
    return ".".join(_SEPARATOR.split(module_of(key))[:depth])


def has_modules(layout: Layout) -> bool:
    """Return whether the keys contain paths of modules; those of a list of arrays, for instance, do not."""
    return any(module_of(entry.name) != "(model)" for entry in layout.entries)


def _grouped(layout: Layout, name_of: Callable[[str], str], unwrap: bool = False) -> _Groups:
    prefix = _prefix_of_wrappers(layout) if unwrap else ""
    groups: _Groups = {}
    for entry in layout.entries:
        groups.setdefault(name_of(entry.name.removeprefix(prefix)), []).append(entry)
    return groups


def _prefix_of_wrappers(layout: Layout) -> str:
    """Return what `torch.compile` and `DataParallel` put before every key."""
    prefix = ""
    names = [entry.name for entry in layout.entries]
    while found := [wrap for wrap in _WRAPPERS if names and all(name.startswith(prefix + wrap) for name in names)]:
        prefix += found[0]
    return prefix


def _by_block(layout: Layout) -> _Groups:
    if not layout.blocks:
        return grouping("block:1")(layout)

    prefix = _prefix_of_wrappers(layout)
    blocks = [block.removeprefix(prefix) for block in layout.blocks]

    def block_of(key: str) -> str:
        # Blocks may be nested: a key belongs to the innermost one.
        above = [block for block in blocks if key.startswith(f"{block}.")]
        return max(above, key=len, default=module_of(key))

    return _grouped(layout, block_of, True)


def _by_position(layout: Layout) -> _Groups:
    """Make each array a unit, a weight together with the bias that follows it."""
    runs: list[list[Entry]] = []
    for entry in layout.entries:
        if runs and len(runs[-1]) == 1 and _is_bias_of(entry, runs[-1][0]):
            runs[-1].append(entry)
        else:
            runs.append([entry])
    return _named(runs)


def _is_bias_of(entry: Entry, weight: Entry) -> bool:
    # The outputs are the first axis of PyTorch's weights, and the last of those of Keras and JAX.
    outputs = {weight.shape[0], weight.shape[-1]} if len(weight.shape) > 1 else set()
    return len(entry.shape) == 1 and entry.shape[0] in outputs and not (entry.integer or weight.integer)


def _named(runs: Sequence[list[Entry]]) -> _Groups:
    return {run[0].name if len(run) == 1 else f"{run[0].name} to {run[-1].name}": run for run in runs}


def _by_fraction(share: Fraction) -> Callable[[Layout], _Groups]:
    def groups(layout: Layout) -> _Groups:
        runs: list[list[Entry]] = []
        for at, entry in enumerate(layout.entries):
            # As the published code cuts them, with runs that differ by a key where n * share is not a whole number.
            if at >= len(layout.entries) * share * len(runs):
                runs.append([])
            runs[-1].append(entry)
        return _named(runs)

    return groups


def _by_patterns(patterns: Sequence[str]) -> Callable[[Layout], _Groups]:
    if not patterns:
        raise ConfigError("the list of patterns is empty; '.*' is one unit of the whole model")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"'{pattern}' is not a regular expression: {error}") from None

    def first(key: str) -> str:
        found = next((pattern for pattern in patterns if re.search(pattern, key)), None)
        # Every key must match and every pattern be used: otherwise a typing error would silently make one large unit
        # of the rest.
        if found is None:
            raise ConfigError(f"no pattern matches '{key}'; add one, or '.*' at the end for all remaining keys")
        return found

    def groups(layout: Layout) -> _Groups:
        found = _grouped(layout, first)
        if unused := [pattern for pattern in patterns if pattern not in found]:
            raise ConfigError(f"the pattern '{unused[0]}' matches no remaining key; remove or correct it")
        return found

    return groups


def _share(spec: str, text: str) -> Fraction:
    """Read a share exactly: in binary, 70 * 0.1 is more than 7."""
    try:
        share = Fraction(text)
    except (ValueError, ZeroDivisionError):
        share = Fraction(-1)
    if not 0 <= share <= 1:
        raise ConfigError(f"'{spec}': the fraction must be from 0 to 1")
    return share


def _ranges(columns: Sequence[slice]) -> Columns:
    """Join adjacent column ranges."""
    # Fewer ranges are fewer pieces to gather and to join for every message.
    joined: list[slice] = []
    for part in columns:
        if joined and joined[-1].stop == part.start:
            joined[-1] = slice(joined[-1].start, part.stop)
        else:
            joined.append(part)
    return tuple(joined)


def sorted_ranges(units: Sequence[Columns], width: int) -> list[tuple[slice, int]]:
    """Return the column ranges of all units from left to right.

    Args:
        units: the column ranges of each unit.
        width: P, the number of columns.

    Returns:
        (range, index of its unit) for every range that is not empty.

    Raises:
        ValueError: the units overlap or leave columns out.
    """
    ranges = [(part, unit) for unit, columns in enumerate(units) for part in columns if part.start < part.stop]
    ranges.sort(key=lambda found: found[0].start)
    # Each range must start where the one before it ends: this finds overlaps and gaps at once.
    edges = [0, *(part.stop for part, _ in ranges)]
    if [part.start for part, _ in ranges] != edges[:-1] or edges[-1] != width:
        raise ValueError(f"the units must cover {width} columns once each")
    return ranges
