"""VGG networks for small images."""

import torch
from torch import nn

from fedmr_flwr.errors import ConfigError
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


class FedMRVGG(Classifier):
    """The VGG of FedMR's published code for 28x28 images: five convolutions without BatchNorm, two linear layers.

    8,024,958 parameters with 62 classes. Its first two pools move by one pixel, and nothing is between its linear
    layers, as in the published code.

    Args:
        input_shape: [C, 28, 28].
        classes: number of labels.

    Raises:
        ConfigError: the images have another size.
    """

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        if input_shape[1:] != (28, 28):
            raise ConfigError(f"model.name: 'vgg-fedmr' is not defined for images of shape {list(input_shape)}")
        self.convolutions = nn.Sequential(
            nn.Conv2d(input_shape[0], 64, 1, padding=1), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 1),
            nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 1),
            nn.Conv2d(128, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 512, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.AvgPool2d(2),  # to 7x7
        )  # fmt: skip
        self.hidden = nn.Linear(512 * 7 * 7, 256)
        self.classifier = nn.Linear(256, classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Map [B, C, 28, 28] images to [B, 256] representations."""
        return self.hidden(self.convolutions(images).flatten(1))  # type: ignore[no-any-return]
