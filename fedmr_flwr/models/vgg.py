"""VGG networks for small images."""

import torch
from torch import nn

from fedmr_flwr.models.base import Classifier, Dropout

_VGG16 = (64, 64, "pool", 128, 128, "pool", *(256,) * 3, "pool", *(512,) * 3, "pool", *(512,) * 3, "pool")


class VGG(Classifier):
    """Convolutions with BatchNorm, then two wide layers with dropout, as in FedMR's published code.

    Source: Simonyan and Zisserman, ICLR 2015, configuration D; 33,646,666 parameters with 10 classes.

    Args:
        input_shape: [C, H, W]; the image is halved five times, rounding up.
        classes: number of labels.
        plan: output channels of each convolution, or "pool".
        hidden: width of the two layers before the last one.
    """

    def __init__(
        self, input_shape: tuple[int, ...], classes: int, plan: tuple[int | str, ...] = _VGG16, hidden: int = 4096
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        depth, height, width = input_shape
        for step in plan:
            if isinstance(step, str):
                # Rounding up changes nothing at 32x32, and leaves one pixel of 28x28.
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
                height, width = -(-height // 2), -(-width // 2)
            else:
                layers += [nn.Conv2d(depth, step, 3, padding=1), nn.BatchNorm2d(step), nn.ReLU()]
                depth = step
        self.convolutions = nn.Sequential(*layers)
        self.hidden = nn.Sequential(
            nn.Linear(depth * height * width, hidden), nn.ReLU(), Dropout(0.5),
            nn.Linear(hidden, hidden), nn.ReLU(), Dropout(0.5),
        )  # fmt: skip
        self.classifier = nn.Linear(hidden, classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] images to [B, hidden] representations."""
        return self.hidden(self.convolutions(images).flatten(1))  # type: ignore[no-any-return]
