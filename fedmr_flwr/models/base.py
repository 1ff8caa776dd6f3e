"""The base of all models: the split into features and head, and initial weights from a given generator."""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from fedmr_flwr.models import layers

M = TypeVar("M", bound=nn.Module)


class Classifier(nn.Module):
    """A network in two parts, so that algorithms can use or replace the representation between them.

    Attributes:
        classifier: the last layer.
        blocks: paths of the modules that the unit `block` moves as one piece, such as residual blocks.
    """

    classifier: nn.Linear
    blocks: tuple[str, ...] = ()

    @abstractmethod
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] images to [B, D] representations, the input of the last layer."""

    def head(self, representations: torch.Tensor) -> torch.Tensor:
        """Map [B, D] representations to [B, classes] logits."""
        return layers.apply(self.classifier, representations)

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


def materialise(make: Callable[[], M], generator: torch.Generator) -> M:
    """Create a network on the CPU with initial weights drawn from `generator`.

    Args:
        make: its constructor.
        generator: the only source of randomness.

    Raises:
        TypeError: as `initialise`.
    """
    # The constructors of PyTorch's layers draw weights from the global generator; on the meta device they draw
    # nothing.
    with torch.device("meta"):
        model = make()
    # Like `to_empty`, which imports a library for symbolic mathematics and so takes a third of a second.
    model._apply(  # type: ignore[no-untyped-call]
        lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    )
    initialise(model, generator)
    return model


@torch.no_grad()
def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Set PyTorch's default initial weights, drawn from `generator` instead of the global generator.

    Args:
        model: its values are overwritten. Convolutions, linear layers, normalisations, embeddings and LSTMs
            are supported; any other module with values of its own needs a method `initialise(generator)`.
        generator: the only source of randomness.

    Raises:
        TypeError: a module with values of its own is not supported.
    """
    for module in model.modules():
        if callable(own := getattr(module, "initialise", None)):
            own(generator)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            # Written out, because `reset_parameters` of PyTorch's layers accepts no generator.
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, generator=generator)
        elif isinstance(module, nn.LSTM):
            bound = 1 / math.sqrt(module.hidden_size)
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            module.reset_parameters()  # ones and zeros: nothing is drawn
        elif [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            raise TypeError(
                f"{type(module).__name__} has no initial weights; add a method initialise(generator) to it"
            )
