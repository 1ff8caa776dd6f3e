"""The base of our networks, and drawing initial weights from a stream of the run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from fedmr_flwr.models import layers


class Classifier(nn.Module):
    """A network in two parts, so that algorithms can use or replace the representation between them.

    Attributes:
        features: maps [B, C, H, W] images to [B, D] representations, the input of the last layer; a method or a
            module of the model.
        head: maps [B, D] representations to [B, classes] logits; a method or a module; if a model has none, it is
            `classifier`.
        classifier: the last layer.
        blocks: paths of the modules that the unit `block` moves as one piece, such as residual blocks.
        stackable: whether the engine gpu may train several of it as one model whose batch has a part for each: every
            layer with weights is given to `layers.apply`, nothing is drawn, and no example depends on another.
    """

    stackable: ClassVar[bool] = False

    # Declared here and not defined: an attribute of the class would hide a module that a model assigns to its name.
    features: Callable[[torch.Tensor], torch.Tensor]
    head: Callable[[torch.Tensor], torch.Tensor]
    classifier: nn.Linear
    blocks: tuple[str, ...]

    def __getattr__(self, name: str) -> Any:
        if name == "head" and "head" not in self._modules:
            return partial(layers.apply, self.classifier)
        if name == "blocks" and "blocks" not in self._modules:
            return ()
        return super().__getattr__(name)

    def initialise(self, generator: torch.Generator) -> None:
        """Set initial weights besides those of the constructor, which draws from PyTorch's default generator."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] images to [B, classes] logits."""
        return self.head(self.features(images))


class Dropout(nn.Module):
    """Dropout that zeroes first and scales afterwards, which rounds differently from `nn.Dropout`.

    It draws from PyTorch's default generator, which is the client's own in local training.

    Source: Srivastava et al., JMLR 2014; scaled in training, as in PyTorch.

    Args:
        p: the probability that a value becomes zero.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """In training, zero random values and scale the others; in evaluation, return the values."""
        if not self.training:
            return values
        # From the default generator, which is the client's own in local training.
        kept = torch.empty_like(values).bernoulli_(1 - self.p)
        return values * kept / (1 - self.p)


def duplicate(model: nn.Module) -> nn.Module:
    """Return a copy of a model, which may have run: `deepcopy` refuses the tensors that a hook has computed then.

    Those of pruning and of the older weight and spectral norm are computed again before each use.
    """
    held = [value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    return deepcopy(model, {id(tensor): tensor.detach() for tensor in held if not tensor.is_leaf})


@contextmanager
def drawing_from(rng: np.random.Generator) -> Iterator[None]:
    """Let PyTorch's default generator of the CPU draw from a stream inside the block, and restore it afterwards."""
    # No other device: constructors draw on the CPU.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        yield


@torch.no_grad()
def redraw(model: nn.Module) -> None:
    """Draw all weights again from PyTorch's default generator, as the layers' own `reset_parameters` does.

    Raises:
        ValueError: a parameter is not set by it.
    """
    parameters = list(model.named_parameters())
    for _, parameter in parameters:
        parameter.fill_(torch.nan)
    # Inner modules first, because an outer one may set their values, too. MultiheadAttention and Transformer have
    # only the second of the names.
    for module in reversed(list(model.modules())):
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if reset is not None:
            reset()
    if kept := [name for name, parameter in parameters if parameter.isnan().any()]:
        raise ValueError(f"no reset_parameters() of the model's modules sets '{kept[0]}'")
