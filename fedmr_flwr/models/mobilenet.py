"""MobileNetV2 for small images."""

import torch
from torch import nn

from fedmr_flwr.models.base import Classifier, Dropout


class MobileNetV2(Classifier):
    """Torchvision's MobileNetV2 with two of its strides reduced to 1, as usual for images of 32x32.

    Source: Sandler et al., CVPR 2018, table 2; 2,236,682 parameters for colour images and 10 classes.

    Args:
        input_shape: [C, H, W].
        classes: number of labels.
    """

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        from torchvision.models import mobilenet_v2  # takes a second, only for this model

        super().__init__()
        self.convolutions = mobilenet_v2().features
        # With all five strides of 2 an image of 32x32 would shrink to a single pixel.
        self.convolutions[0][0] = nn.Conv2d(input_shape[0], 32, 3, padding=1, bias=False)
        self.convolutions[2].conv[1][0].stride = (1, 1)
        # Not torchvision's head: algorithms need a last layer that is a Linear named `classifier`.
        self.dropout = Dropout(0.2)
        self.classifier = nn.Linear(1280, classes)
        # As torchvision initialises these layers.
        nn.init.kaiming_normal_(self.convolutions[0][0].weight, mode="fan_out")
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        nn.init.zeros_(self.classifier.bias)
        self.blocks = tuple(f"convolutions.{block}" for block in range(len(self.convolutions)))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] images to [B, 1280] representations."""
        return self.dropout(self.convolutions(images).mean((2, 3)))  # type: ignore[no-any-return]
