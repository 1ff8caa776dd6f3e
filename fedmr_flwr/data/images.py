"""Images of any size and mode as arrays of one shape, with Pillow."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fedmr_flwr.errors import DataError
from fedmr_flwr.files import reading

# An image and its name in an error, opened when it is needed.
Openable = tuple[str, Callable[[], BinaryIO]]

# Modes of grey images; those of a palette or of any other kind are taken as colour.
_GREY = {"1", "L", "LA", "I", "I;16", "I;16B", "I;16L"}
# Of 16 bits the upper 8 are kept. Images that never reach this value, as of a camera with 12 bits, would be all dark.
_LEAST_OF_16_BITS = 4096
_REMEDY = "replace it with a readable image, or remove it"


@dataclass(frozen=True)
class Shape:
    """The shape that all images get.

    Attributes:
        channels: 1, grey, or 3, red, green and blue.
        size: height and width; None: they must be equal, and stay as they are.
    """

    channels: int
    size: tuple[int, int] | None


def of_file(path: Path) -> Openable:
    """Return a file as an image to be opened."""
    return str(path), lambda: path.open("rb")


def channels_of(images: Iterable[Openable]) -> int:
    """Return 1 if all images are grey, otherwise 3; only their headers are read.

    Raises:
        DataError: one cannot be read; the message names it.
    """
    return max((1 if mode in _GREY else 3 for mode in _modes(images)), default=1)


def _modes(images: Iterable[Openable]) -> Iterator[str]:
    for name, opened in images:
        with reading(name, DataError, _REMEDY), opened() as file, Image.open(file) as image:
            yield image.mode


def read(images: Iterable[Openable], count: int, shape: Shape) -> NDArray[np.uint8]:
    """Read images.

    Args:
        images: `count` of them, at least one.
        count: their number.
        shape: that all of them get.

    Returns:
        [count, channels, H, W], turned as a camera's files say, without transparency (black is behind it), and with 8
        bits of images that have 16.

    Raises:
        DataError: one cannot be read, or two have different sizes and none is given, or those with 16 bits do not use
            the upper ones; the message names it.
    """
    found: NDArray[np.uint8] | None = None
    first, deep, brightest = "", "", 0
    for at, (name, opened) in enumerate(images):
        with reading(name, DataError, _REMEDY), opened() as file, Image.open(file) as image:
            if image.mode.startswith("I"):
                deep, brightest = deep or name, max(brightest, int(np.asarray(image).max()))
            pixels = _pixels(image, shape)
        if found is None:
            # Of all images at once: a list of arrays would need the memory twice.
            found, first = np.empty((count, *pixels.shape), np.uint8), name
        if pixels.shape != found.shape[1:]:
            sizes = [f"{height}x{width}" for _, height, width in (found.shape[1:], pixels.shape)]
            raise DataError(
                f"{first} has {sizes[0]} pixels (height x width) but {name} has {sizes[1]}; set data.size, to which "
                "all are resized"
            )
        found[at] = pixels
    if 0 < brightest < _LEAST_OF_16_BITS:
        raise DataError(
            f"{deep} and the other images with 16 bits have no value above {brightest}, and of 16 bits the upper 8 "
            "are read; scale them to 65535, or use an npz file with float32 arrays"
        )
    assert found is not None, "there is at least one image"
    return found


def _pixels(image: Image.Image, shape: Shape) -> NDArray[np.uint8]:
    """Return an image as [channels, H, W]."""
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        turned = Image.fromarray((np.asarray(turned).clip(0, 65535) >> 8).astype(np.uint8))
    if turned.mode == "F":
        raise ValueError("its pixels are floats; use an npz file with float32 arrays")
    if "A" in turned.mode or "transparency" in turned.info:
        turned = turned.convert("RGBA")
        turned = Image.alpha_composite(Image.new("RGBA", turned.size, "black"), turned)
    turned = turned.convert("L" if shape.channels == 1 else "RGB")
    if shape.size:
        height, width = shape.size
        turned = turned.resize((width, height), Image.Resampling.BILINEAR)  # averages where it makes an image smaller
    pixels = np.asarray(turned)
    return pixels[None] if shape.channels == 1 else pixels.transpose(2, 0, 1)
