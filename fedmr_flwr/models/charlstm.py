"""A language model for characters."""

import torch
from torch import nn

from fedmr_flwr.models.base import Classifier


class CharLSTM(Classifier):
    """Predicts the next character of a text: embedding of 8, two LSTM layers of 256, as in LEAF.

    Source: Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018; 819,920 parameters with 80
    characters.

    Args:
        input_shape: [T], the characters of a text.
        classes: number of characters.
    """

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, 8)
        self.lstm = nn.LSTM(8, 256, num_layers=2, batch_first=True)
        self.classifier = nn.Linear(256, classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Map [B, T] character indices to the [B, 256] representation of the text."""
        if images.is_floating_point():
            raise TypeError("it reads characters, not float values")
        # Autocast to bfloat16 would run cuDNN's LSTM in float16, whose range is too small for gradients.
        with torch.autocast(images.device.type, enabled=False):
            outputs, _ = self.lstm(self.embedding(images.long()))
        # Only the last position: LEAF's task is the one character after the text.
        return outputs[:, -1]  # type: ignore[no-any-return]
