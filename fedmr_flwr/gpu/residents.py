"""What a local rule holds on a device: recognised, and moved into tensors that stay where they are.

A recorded step knows tensors by their addresses. So the first rule of a kind becomes the resident, and those of later
clients hand it what they have begun with.
"""

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import nn

from fedmr_flwr.errors import ConfigError
from fedmr_flwr.training.rules import LocalRule

Kind = Hashable
# What every rule has been given rather than made, and does not use in a step.
_GIVEN = {"options", "received", "kept"}
_Plain = bool | int | float | str | None
# What has no part in a step on a device, and is handed over as it is.
_Aside = np.ndarray | BaseModel


def kind_of(rule: LocalRule) -> Kind:
    """Describe all that a recorded step of a rule takes for granted: which tensors it has, and plain values.

    Args:
        rule: after `begin`.

    Raises:
        ConfigError: it holds something that may or may not have a part in a step.
    """
    return type(rule), tuple(_described(*leaf) for leaf in _leaves(rule))


def move(rule: LocalRule, resident: LocalRule) -> None:
    """Let a resident rule go on with what another one of its kind has begun with.

    Args:
        rule: after `begin`; its tensors and generators are copied.
        resident: of the same kind.
    """
    resident.received, resident.kept = rule.received, rule.kept
    with torch.no_grad():
        for (_, mine), (_, own) in zip(_leaves(rule), _leaves(resident), strict=True):
            if isinstance(own, torch.Tensor) and mine is not own:
                own.copy_(mine)
            elif isinstance(own, torch.Generator):
                own.set_state(mine.get_state())
    for name, value in _made(rule).items():
        if isinstance(value, _Aside):
            setattr(resident, name, value)


def generators(rule: LocalRule, model: nn.Module) -> list[torch.Generator]:
    """Return the generators from which a step draws: the rule's own, and those of the model's modules."""
    found = [value for _, value in (*_leaves(rule), *_in_modules(model)) if isinstance(value, torch.Generator)]
    return list({id(generator): generator for generator in found}.values())


def _made(rule: LocalRule) -> dict[str, Any]:
    """Return the attributes that a rule has made."""
    return {name: value for name, value in vars(rule).items() if name not in _GIVEN}


def _leaves(rule: LocalRule) -> Iterator[tuple[str, Any]]:
    """Go through the tensors, generators and plain values of a rule, each with its path."""
    for name, value in _made(rule).items():
        if not isinstance(value, _Aside):
            yield from _inside(value, f"{type(rule).__name__}.{name}")


def _inside(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, torch.Tensor | torch.Generator | _Plain):
        yield path, value
    elif isinstance(value, nn.Module):
        yield path, f"{type(value).__name__}, training {value.training}"
        for name, tensor in (*value.named_parameters(), *value.named_buffers()):
            yield f"{path}.{name}", tensor
        for name, generator in _in_modules(value):
            yield f"{path}.{name}", generator
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _inside(inner, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        yield path, len(value)
        for at, inner in enumerate(value):
            yield from _inside(inner, f"{path}.{at}")
    else:
        raise ConfigError(
            f"a recorded step cannot follow {path}, a {type(value).__name__}: keep tensors, networks and generators, "
            "in lists or mappings, or set captured = False"
        )


def _in_modules(model: nn.Module) -> Iterator[tuple[str, torch.Generator]]:
    """Go through the generators of a network's modules."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Generator):
                yield f"{path}.{name}", value


def _described(path: str, value: Any) -> Hashable:
    if isinstance(value, torch.Tensor):
        return path, tuple(value.shape), value.dtype
    return path, "generator" if isinstance(value, torch.Generator) else value
