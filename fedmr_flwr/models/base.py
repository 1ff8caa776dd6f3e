"""What every model shares: the split into features and head, and initial weights from a given generator."""

import math
from abc import abstractmethod

import torch
from torch import nn


class Classifier(nn.Module):
    """A network in two parts, so that algorithms can look at or replace the representation between them.

    Attributes:
        blocks: paths of the modules that recombination by `block` moves as one, for instance residual blocks.
    """

    blocks: tuple[str, ...] = ()

    @abstractmethod
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] images to [B, D] representations, the input of the last layer."""

    @abstractmethod
    def head(self, representations: torch.Tensor) -> torch.Tensor:
        """Map [B, D] representations to [B, classes] logits."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] images to [B, classes] logits."""
        return self.head(self.features(images))


@torch.no_grad()
def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Give a model PyTorch's default initial weights, drawn from `generator` instead of the global one.

    Args:
        model: convolutions, linear layers and normalisations; its values are overwritten.
        generator: the only source of randomness.

    Raises:
        TypeError: a module with parameters of its own is of another type.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            module.reset_parameters()  # ones and zeros: nothing is drawn
        elif [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            raise TypeError(f"no initial weights are known for {type(module).__name__}")
