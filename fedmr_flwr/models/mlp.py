"""A multilayer perceptron, and logistic regression."""

import math

import torch
from torch import nn

from fedmr_flwr.models import layers
from fedmr_flwr.models.base import Classifier


class MLP(Classifier):
    """Two hidden layers of 200, the "2NN" of McMahan et al., AISTATS 2017: 199,210 parameters on MNIST.

    Args:
        input_shape: of one example, which is flattened.
        classes: number of labels.
        hidden: width of the hidden layers.
    """

    stackable = True

    def __init__(self, input_shape: tuple[int, ...], classes: int, hidden: int = 200) -> None:
        super().__init__()
        self.layer1 = nn.Linear(math.prod(input_shape), hidden)
        self.layer2 = nn.Linear(hidden, hidden)
        self.classifier = nn.Linear(hidden, classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Map [B, ...] examples to [B, hidden] representations."""
        return layers.apply(self.layer2, layers.apply(self.layer1, images.flatten(1), relu=True), relu=True)


class Logistic(Classifier):
    """Multinomial logistic regression: one linear layer.

    Args:
        input_shape: of one example, which is flattened.
        classes: number of labels.
    """

    stackable = True

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(math.prod(input_shape), classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, ...] float32 examples as [B, D]."""
        return images.flatten(1)
