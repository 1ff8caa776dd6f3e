"""Residual networks for small images."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from fedmr_flwr.models.base import Classifier

Norm = Callable[[int], nn.Module]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut. Source: He et al., CVPR 2016, figure 2.

    Args:
        inputs: channels in.
        outputs: channels out.
        stride: of the first convolution.
        norm: creates the normalisation for a number of channels.
        project: whether a shortcut that changes the shape has a 1x1 convolution (option B of the paper);
            otherwise it takes every second pixel and pads with zero channels (option A).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm, project: bool) -> None:
        super().__init__()
        # Without biases, which the normalisation after each convolution would remove.
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = norm(outputs)
        self.stride, self.more = stride, outputs - inputs
        self.shortcut: nn.Module | None = None
        if project and (stride > 1 or self.more):
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        out = torch.relu(self.norm1(self.conv1(maps)))
        out = self.norm2(self.conv2(out))
        if self.shortcut is not None:
            maps = self.shortcut(maps)
        elif self.stride > 1 or self.more:
            maps = nn.functional.pad(maps[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return torch.relu(out + maps)


class ResNet(Classifier):
    """A residual network of basic blocks with a 3x3 stem, for images of about 32x32.

    Args:
        input_shape: [C, H, W].
        classes: number of labels.
        widths: channels of each stage; every stage but the first halves the image.
        depths: blocks of each stage.
        norm: creates a normalisation.
        project: see `BasicBlock`.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        classes: int,
        *,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        norm: Norm,
        project: bool,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], widths[0], 3, padding=1, bias=False)
        self.norm = norm(widths[0])
        stages, inputs = [], widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = []
            for block in range(depth):
                stride = 2 if stage and not block else 1
                blocks.append(BasicBlock(inputs, width, stride, norm, project))
                inputs = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(inputs, classes)
        self.blocks = tuple(f"stages.{stage}.{block}" for stage, depth in enumerate(depths) for block in range(depth))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] images to [B, widths[-1]] representations."""
        maps = self.stages(torch.relu(self.norm(self.conv(images))))
        return maps.mean((2, 3))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """A pre-activation bottleneck with expansion 4. Source: He et al., ECCV 2016, figure 1b.

    Args:
        inputs: channels in.
        width: channels of the 3x3 convolution; four times as many come out.
        stride: of the 3x3 convolution.
        project: whether the shortcut has a 1x1 convolution.
    """

    def __init__(self, inputs: int, width: int, stride: int, project: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False) if project else None

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Map [B, inputs, H, W] to [B, 4 width, H / stride, W / stride]."""
        out = self.conv1(torch.relu(self.bn1(maps)))
        out = self.conv2(torch.relu(self.bn2(out)))
        out = self.conv3(torch.relu(self.bn3(out)))
        return out + (maps if self.shortcut is None else self.shortcut(maps))  # type: ignore[no-any-return]


class FedMRResNet(Classifier):
    """The ResNet-20 of FedMR's published code: bottlenecks [2, 2, 2] of 16, 32 and 64 channels.

    Unlike the ResNet-20 of He et al. it has bottlenecks. Its last normalisation is not used, as in the published
    code, but is part of the model: 219,482 parameters with 10 classes. Images of 28x28 are pooled after the first
    convolution. Convolutions start from a normal distribution, the weights of normalisations from 0.5.

    Args:
        input_shape: [C, H, W].
        classes: number of labels.
    """

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(3, 1, padding=1) if input_shape[1:] == (28, 28) else nn.Identity()
        stages, inputs = [], 16
        for width in (16, 32, 64):
            stride = 1 if width == 16 else 2
            stages.append(
                nn.Sequential(Bottleneck(inputs, width, stride, True), Bottleneck(4 * width, width, 1, False))
            )
            inputs = 4 * width
        self.stages = nn.Sequential(*stages)
        # Kept although `features` does not use it: it is averaged, moved and counted in the published code.
        self.bn = nn.BatchNorm2d(inputs)
        self.classifier = nn.Linear(inputs, classes)
        self.blocks = tuple(f"stages.{stage}.{block}" for stage in range(3) for block in range(2))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")  # N(0, 2 / (k^2 channels out))
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, 0.5)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] images to [B, 256] representations."""
        return self.stages(self.pool(self.conv(images))).mean((2, 3))  # type: ignore[no-any-return]


def resnet20(input_shape: tuple[int, ...], classes: int) -> ResNet:
    """Build the ResNet-20 of He et al., CVPR 2016, section 4.2: basic blocks, shortcuts without parameters."""
    return ResNet(input_shape, classes, widths=(16, 32, 64), depths=(3, 3, 3), norm=nn.BatchNorm2d, project=False)


def resnet18(input_shape: tuple[int, ...], classes: int, norm: Norm = nn.BatchNorm2d) -> ResNet:
    """Build a ResNet-18 (He et al., CVPR 2016, table 1) with a 3x3 stem and no first pooling, for small images."""
    return ResNet(input_shape, classes, widths=(64, 128, 256, 512), depths=(2, 2, 2, 2), norm=norm, project=True)


def resnet18_groupnorm(input_shape: tuple[int, ...], classes: int) -> ResNet:
    """Build a ResNet-18 with GroupNorm of two groups. Source: Hsieh et al., ICML 2020, for non-IID data."""
    return resnet18(input_shape, classes, partial(nn.GroupNorm, 2))
