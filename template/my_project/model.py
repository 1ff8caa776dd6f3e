"""The model: any torch.nn.Module that maps a batch of inputs to a score for each class."""

import torch
from torch import nn


class Net(nn.Module):
    """Two convolutions and two linear layers."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        """Make the layers.

        Args:
            shape: of an input, here channels, height and width.
            classes: the number of labels.
        """
        super().__init__()
        channels, height, width = shape
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.hidden = nn.Linear(32 * (height // 4) * (width // 4), 64)
        self.output = nn.Linear(64, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map [B, channels, height, width] to [B, classes]."""
        features = nn.functional.max_pool2d(torch.relu(self.conv1(images)), 2)
        features = nn.functional.max_pool2d(torch.relu(self.conv2(features)), 2)
        scores: torch.Tensor = self.output(torch.relu(self.hidden(features.flatten(1))))
        return scores
