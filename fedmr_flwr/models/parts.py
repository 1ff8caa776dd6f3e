"""A network in two parts, for the algorithms that use the representation between them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from fedmr_flwr.errors import ConfigError
from fedmr_flwr.models.base import Classifier


class Call(NamedTuple):
    """The input and the output of a module."""

    given: torch.Tensor
    output: torch.Tensor


@contextmanager
def calls_of(modules: Sequence[nn.Module]) -> Iterator[list[Call]]:
    """Record the calls of some modules inside the block, in the order in which they return."""
    calls: list[Call] = []
    handles = [
        module.register_forward_hook(lambda module, given, output: calls.append(Call(given[0], output)))
        for module in modules
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def represent(model: nn.Module, inputs: torch.Tensor, path: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply a model to a batch, and return its representations, too.

    Args:
        model: any model.
        inputs: [B, ...].
        path: of the module whose output is the representation; None: the `features` of a `Classifier`, and the input
            of the last linear layer that any other model uses.

    Returns:
        [B, classes] logits and [B, D] representations.

    Raises:
        ConfigError: the model has no such module, or does not use it.
    """
    if path is None and isinstance(model, Classifier):
        features = model.features(inputs)
        return model.head(features), features
    modules = dict(model.named_modules())
    if path is not None and path not in modules:
        names = ", ".join(name for name, _ in model.named_children())
        raise ConfigError(f"has no module '{path}', which model.features names; its own are {names}")
    linear = [module for module in modules.values() if isinstance(module, nn.Linear)]
    with calls_of(linear if path is None else [modules[path]]) as calls:
        logits: torch.Tensor = model(inputs)
    found = (calls[-1].given if path is None else calls[-1].output) if calls else None
    if not isinstance(found, torch.Tensor):
        what = "a linear layer" if path is None else f"the module '{path}', which model.features names, for a tensor"
        raise ConfigError(f"does not use {what}; name the module of its representations in model.features")
    return logits, found.flatten(1)


def last_layer(model: nn.Module) -> str:
    """Return the path of a model's last linear layer; empty if it has none.

    That is `classifier` or `head`, if it is a linear layer, and otherwise the last one that the model registers.
    """
    layers = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    return next((path for path in ("classifier", "head") if path in layers), layers[-1] if layers else "")


def ends_with(model: nn.Module, layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Apply a model to a batch, and check that it returns what a layer does.

    Args:
        model: any model.
        layer: its last one.
        inputs: [B, ...].

    Returns:
        [B, classes] logits.

    Raises:
        ConfigError: it returns something else.
    """
    with calls_of([layer]) as calls:
        logits: torch.Tensor = model(inputs)
    if not calls or calls[-1].output is not logits:
        raise ConfigError("the model's output must be that of its last linear layer, named 'classifier' or 'head'")
    return logits
