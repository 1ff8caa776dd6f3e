"""Small convolutional networks, one for each image size."""

import itertools

import torch
from torch import nn

from fedmr_flwr.errors import ConfigError
from fedmr_flwr.models import layers
from fedmr_flwr.models.base import Classifier


class CNN(Classifier):
    """Two convolutions with max pooling, then fully connected layers.

    Args:
        input_shape: [C, H, W].
        classes: number of labels.
        kernel: size of the convolutions.
        padding: of the convolutions.
        channels: output channels of the two convolutions.
        hidden: widths of the fully connected layers before the last one.
    """

    stackable = True

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        *,
        kernel: int,
        padding: int,
        channels: tuple[int, int],
        hidden: tuple[int, ...],
    ) -> None:
        super().__init__()
        depth, height, width = input_shape
        self.conv1 = nn.Conv2d(depth, channels[0], kernel, padding=padding)
        self.conv2 = nn.Conv2d(channels[0], channels[1], kernel, padding=padding)
        for _ in channels:
            height, width = ((side + 2 * padding - kernel + 1) // 2 for side in (height, width))
        widths = (channels[1] * height * width, *hidden)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.classifier = nn.Linear(widths[-1], classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] images to [B, hidden[-1]] representations."""
        maps = layers.apply(self.conv1, images, pool=2, relu=True)
        maps = layers.apply(self.conv2, maps, pool=2, relu=True)
        values = maps.flatten(1)
        for layer in self.hidden:
            values = layers.apply(layer, values, relu=True)
        return values


def cnn(input_shape: tuple[int, ...], classes: int) -> CNN:
    """Build the CNN for a data set's images.

    32x32 in colour: the network of FedMR's published code for CIFAR, 62,006 parameters with 10 classes.
    28x28 grey: the one for FEMNIST, 147,146 parameters with 10 classes.
    8x8 grey: a smaller one for scikit-learn's digits.

    Args:
        input_shape: [C, H, W].
        classes: number of labels.

    Raises:
        ConfigError: no CNN is defined for this shape.
    """
    # A table and no formula: the first two are networks of published code, whose sizes the tests compare.
    if input_shape == (3, 32, 32):
        return CNN(input_shape, classes, kernel=5, padding=0, channels=(6, 16), hidden=(120, 84))
    if input_shape == (1, 28, 28):
        return CNN(input_shape, classes, kernel=5, padding=0, channels=(16, 32), hidden=(256,))
    if input_shape == (1, 8, 8):
        return CNN(input_shape, classes, kernel=3, padding=1, channels=(16, 32), hidden=(64,))
    raise ConfigError(f"model.name: 'cnn' is not defined for images of shape {list(input_shape)}")
