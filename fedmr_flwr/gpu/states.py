"""The states of local rules: which of them can use the same captured step, and copying one into another.

A captured step knows tensors by their addresses. So the first state of a kind stays in the lane, and the values of
later clients' states are copied into it.
"""

from collections.abc import Hashable, Iterator

import torch
from torch import nn

from fedmr_flwr.errors import ConfigError
from fedmr_flwr.training.rules import State

Kind = Hashable


def kind_of(state: State) -> Kind:
    """Return everything about a state that a captured step depends on: its structure, shapes and types.

    Raises:
        ConfigError: it contains something else than tensors, networks, generators and tuples.
    """
    return tuple(_walk(state, type(state).__name__))


def copy_into(resident: State, state: State) -> None:
    """Copy the tensors and generators of a state into those of another state of its kind."""
    # In place, because a captured step knows the addresses; without gradients, because parameters may be among them.
    with torch.no_grad():
        for own, given in zip(_values(resident), _values(state), strict=True):
            if isinstance(own, torch.Tensor) and isinstance(given, torch.Tensor):
                if own is not given:  # a constant of the rule's own
                    own.copy_(given)
            elif isinstance(own, torch.Generator) and isinstance(given, torch.Generator):
                own.set_state(given.get_state())


def generators(state: State) -> list[torch.Generator]:
    """Return the generators of a state."""
    return [value for value in _values(state) if isinstance(value, torch.Generator)]


def _values(node: object) -> Iterator[torch.Tensor | torch.Generator]:
    """Yield the tensors and generators of a state in the order of `_walk`."""
    if isinstance(node, torch.Tensor | torch.Generator):
        yield node
    elif isinstance(node, nn.Module):
        yield from node.parameters()
        yield from node.buffers()
    elif isinstance(node, tuple):
        for inner in node:
            yield from _values(inner)


def _walk(node: object, path: str) -> Iterator[Hashable]:
    """Yield the kind of each part of a state."""
    if isinstance(node, torch.Tensor):
        yield path, tuple(node.shape), node.dtype
    elif isinstance(node, nn.Module):
        # The mode is part of the kind: in evaluation Dropout and BatchNorm launch other kernels.
        yield path, type(node), node.training
        for name, tensor in (*node.named_parameters(), *node.named_buffers()):
            yield from _walk(tensor, f"{path}.{name}")
    elif isinstance(node, tuple):
        yield path, type(node), len(node)
        for name, inner in zip(getattr(node, "_fields", range(len(node))), node, strict=True):
            yield from _walk(inner, f"{path}.{name}")
    elif node is None or isinstance(node, torch.Generator):
        yield path, type(node)
    else:
        raise ConfigError(
            f"a captured step cannot use {path}, a {type(node).__name__}: a rule's state may contain tensors, "
            "networks, generators and tuples of them; use these, or set capturable = False"
        )
