"""Augmentation of whole batches on their device, drawn from a client's own stream."""

import numpy as np
import torch


def draw(examples: int, size: tuple[int, ...], rng: np.random.Generator) -> torch.Tensor:
    """Draw the augmentation of each image of an epoch.

    Args:
        examples: number of images.
        size: of an image, [H, W].
        rng: the only source of randomness.

    Returns:
        [examples, 3] int64: the row and the column of the padded image at which the crop starts, and 1 to flip.
    """
    highest = (*(2 * _padding(side) for side in size), 1)
    # On the host, so that every device augments in the same way.
    return torch.from_numpy(np.stack([rng.integers(0, high + 1, examples) for high in highest], 1))


def crop_and_flip(images: torch.Tensor, drawn: torch.Tensor, background: int = 0) -> torch.Tensor:
    """Pad images, crop them to their original size at a drawn position, and flip some of them horizontally.

    Source: He et al., CVPR 2016, section 4.2: 4 pixels on each side of 32x32.

    Args:
        images: [B, C, H, W] uint8.
        drawn: [B, 3], the result of `draw` for them, on the same device.
        background: the pixel value of the padding.

    Returns:
        [B, C, H, W] uint8.
    """
    count, _, height, width = images.shape
    device = images.device
    down, across = _padding(height), _padding(width)
    # One gather for the batch, not torchvision's transforms: those take one image, and draw from the global
    # generator.
    padded = torch.nn.functional.pad(images, (across, across, down, down), value=background)
    rows = drawn[:, 0, None] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    columns = drawn[:, 1, None] + torch.where(drawn[:, 2, None] == 1, columns.flip(0), columns)
    batch = torch.arange(count, device=device)[:, None, None]
    return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _padding(size: int) -> int:
    """Return the padding of a side in pixels: 4 for a side of 32."""
    return size // 8
