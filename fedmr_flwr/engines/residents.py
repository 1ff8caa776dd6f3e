"""What a local rule holds on a device: recognised, and moved into tensors that stay where they are.

A recorded step knows tensors by their addresses. So the first rule of a kind becomes the resident, and those of later
clients hand it what they have begun with.
"""

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fedmr_flwr.training import LocalRule

Kind = Hashable
# What every rule has been given rather than made, and does not use in a step.
_GIVEN = {"options", "received", "kept"}


def kind_of(rule: LocalRule) -> Kind:
    """Describe all that a recorded step of a rule takes for granted: which tensors it has, and plain values.

    Args:
        rule: after `begin`.
    """
    return type(rule), tuple(_described(*leaf) for leaf in _leaves(_made(rule)))


def move(rule: LocalRule, resident: LocalRule) -> None:
    """Let a resident rule go on with what another one of its kind has begun with.

    Args:
        rule: after `begin`; its tensors and generators are copied.
        resident: of the same kind.
    """
    resident.received, resident.kept = rule.received, rule.kept
    with torch.no_grad():
        for (_, mine), (_, own) in zip(_leaves(_made(rule)), _leaves(_made(resident)), strict=True):
            if isinstance(own, torch.Tensor) and mine is not own:
                own.copy_(mine)
            elif isinstance(own, torch.Generator):
                own.set_state(mine.get_state())
    for name, value in _made(rule).items():
        if not any(True for _ in _leaves({name: value})):  # what no step can depend on, such as the round's settings
            setattr(resident, name, value)


def generators(rule: LocalRule, model: nn.Module) -> list[torch.Generator]:
    """Return the generators from which a step draws: the rule's own, and those of the model's modules."""
    found = [value for _, value in _leaves(_made(rule)) if isinstance(value, torch.Generator)]
    for part in model.modules():
        found += [value for value in vars(part).values() if isinstance(value, torch.Generator)]
    return list({id(generator): generator for generator in found}.values())


def _made(rule: LocalRule) -> dict[str, Any]:
    """Return the attributes that a rule has made."""
    return {name: value for name, value in vars(rule).items() if name not in _GIVEN}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Go through the tensors, generators and plain values in an attribute, each with its path."""
    if isinstance(value, torch.Tensor | torch.Generator | bool | int | float | str | None):
        yield path, value
    elif isinstance(value, nn.Module):
        yield path, f"{type(value).__name__}, training {value.training}"
        for name, tensor in (*value.named_parameters(), *value.named_buffers()):
            yield f"{path}.{name}", tensor
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for at, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{at}")


def _described(path: str, value: Any) -> Hashable:
    if isinstance(value, torch.Tensor):
        return path, tuple(value.shape), value.dtype
    return path, "generator" if isinstance(value, torch.Generator) else value
