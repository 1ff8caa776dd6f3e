"""The base of all data sets: their examples, the conversion of these to a model's input, and the reading of files."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

# By name: x_train, y_train, x_test, y_test and optionally owners and owners_test, as in a user's own npz file; and
# facts, see `Facts.to_array`.
DatasetArrays = dict[str, NDArray[np.generic]]

PARTS = ("train", "test")
# Of examples in a training or test set.
Indices = NDArray[np.int64]
# Images per step when pixels are counted, so that a large set is not copied whole.
_AT_ONCE = 1000


@dataclass(frozen=True)
class Examples:
    """Images, texts or other values, and their labels.

    Attributes:
        inputs: [N, C, H, W] uint8 images, [N, T] uint8 character indices, or [N, ...] float32 values, which a model
            gets as they are.
        labels: [N] int64.
    """

    inputs: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Examples":
        """Copy all examples to a device, unless they are already there."""
        return Examples(self.inputs.to(device), self.labels.to(device))

    def select(self, indices: NDArray[np.int64], device: torch.device) -> "Examples":
        """Copy some of the examples to a device."""
        # Selected before they are copied: a client's share is small, the data set may not fit the device.
        chosen = torch.from_numpy(indices)
        return Examples(self.inputs[chosen].to(device), self.labels[chosen].to(device))


@dataclass(frozen=True)
class Normalisation:
    """Maps pixels to values of about zero mean and unit variance: (pixel / white - mean) / std.

    Attributes:
        mean: of each channel; a single number applies to all channels.
        std: of each channel.
        white: the pixel value that means 1.
        background: the pixel value around an image.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    white: float = 255.0
    background: int = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] uint8 to float32 on the same device."""
        mean, std = _constants(self, images.device)
        return (images / self.white - mean) / std

    @classmethod
    def measure(cls, images: NDArray[np.generic], white: float = 255.0) -> "Normalisation":
        """Return the normalisation that gives images, [N, C, H, W] uint8, mean 0 and variance 1 in each channel."""
        # From counts of the 256 values: exact, and without a float copy of the images.
        counts = np.zeros((images.shape[1], 256), np.int64)
        for start in range(0, len(images), _AT_ONCE):
            for channel, pixels in enumerate(images[start : start + _AT_ONCE].swapaxes(0, 1)):
                counts[channel] += np.bincount(pixels.reshape(-1), minlength=256)
        shares = counts / counts.sum(1, keepdims=True)
        values = np.arange(256) / white
        mean = shares @ values
        std = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(1))
        # A constant channel has deviation 0; dividing by 1 keeps its values finite.
        return cls(tuple(mean.tolist()), tuple(value or 1.0 for value in std.tolist()), white)


@lru_cache
def _constants(normalisation: Normalisation, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and std as [C, 1, 1] float32 on a device; cached, so that not every batch copies them."""
    # Not inference tensors, even if the first call is from an evaluation: training could not use them afterwards.
    with torch.inference_mode(False):
        mean = torch.tensor(normalisation.mean, device=device)[:, None, None]
        std = torch.tensor(normalisation.std, device=device)[:, None, None]
    return mean, std


@dataclass(frozen=True)
class Column:
    """A column of a table, and how it becomes features; all of it is known from the training part alone.

    Attributes:
        name: in the table.
        mean: of a column of numbers; its feature is (number - mean) / std.
        std: of a column of numbers.
        categories: of a column of texts, which becomes a feature of 0 and 1 for each; other texts are 0 in all.
    """

    name: str
    mean: float = 0.0
    std: float = 1.0
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What the files of a user say besides numbers; a node of a deployment reads its own files by the server's.

    Attributes:
        names: of the classes, in the order of their numbers; empty if labels are numbers.
        columns: of a table, in the order of the features.
        label: the name of the column with the labels.
        client: the name of the column with the clients, if there is one.
        inputs: the name of the column with the images or texts.
    """

    names: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    label: str = ""
    client: str | None = None
    inputs: str = ""

    def to_array(self) -> NDArray[np.uint8]:
        """Return the facts as bytes, to be stored among a data set's arrays."""
        return np.frombuffer(_FACTS.dump_json(self), np.uint8)

    @classmethod
    def from_array(cls, content: torch.Tensor) -> "Facts":
        """Return what `to_array` was made of."""
        return _FACTS.validate_json(content.numpy().tobytes())


_FACTS = TypeAdapter(Facts)


@dataclass(frozen=True)
class Dataset:
    """A data set; images stay uint8 until they are used.

    Attributes:
        train: the examples that are divided among the clients.
        test: the global test set.
        classes: number of labels.
        normalisation: of images; None for texts and float values.
        owners: [N] int64, the index of the author of each training example, for the natural partition; None if
            unknown.
        test_owners: the same for the test examples, with the same indices.
        facts: what else its files say.
    """

    train: Examples
    test: Examples
    classes: int
    normalisation: Normalisation | None
    owners: torch.Tensor | None = None
    test_owners: torch.Tensor | None = None
    facts: Facts = Facts()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """[C, H, W] of images, [T] of texts."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def text(self) -> bool:
        """Whether the examples are texts."""
        return self.train.inputs.dtype == torch.uint8 and self.train.inputs.ndim == 2

    @property
    def background(self) -> int:
        """The pixel value around an image."""
        return self.normalisation.background if self.normalisation else 0

    def prepare(self, inputs: torch.Tensor) -> torch.Tensor:
        """Convert inputs to a model's: uint8 images to float32; texts and float values stay as they are."""
        # Batch by batch, in a quarter of the memory; the one-GPU engine prepares all beforehand if they fit.
        return inputs if self.normalisation is None else self.normalisation(inputs)

    def digest(self) -> str:
        """Return the SHA-256 of all inputs and labels, which is equal if two machines have the same data."""
        return self._digest

    # Computed once for all clients of a process.
    @cached_property
    def _digest(self) -> str:
        sha = hashlib.sha256()
        for tensor in (self.train.inputs, self.train.labels, self.test.inputs, self.test.labels):
            sha.update(tensor.contiguous().numpy().data)
        return sha.hexdigest()


class Source(ABC):
    """Files of some format that contain a data set.

    Attributes:
        input_shape: of an example, if known without the files.
        classes: number of labels, if known without the files; otherwise they are counted.
        text: whether its examples are texts.
        published: the usual normalisation of the data set; None for text, and where it must be measured.
    """

    input_shape: tuple[int, ...] | None = None
    classes: int | None = None
    text: bool = False
    published: Normalisation | None = None

    @abstractmethod
    def find(self, folder: Path, download: bool) -> list[Path]:
        """Return the files of the data set.

        Args:
            folder: the data folder.
            download: whether missing files may be downloaded.

        Raises:
            DataError: they are missing; the message states which files belong where.
        """

    @abstractmethod
    def read(self, files: list[Path]) -> DatasetArrays:
        """Read the files that `find` returned.

        Returns:
            x_train and x_test: [N, C, H, W], [N, H, W] or [N, T] uint8, or [N, ...] floats; y_train and y_test: [N]
            integers; owners and owners_test, where known: [N] integers, the author of each training and test example;
            facts, if there are any.

        Raises:
            DataError: a file is damaged or has unexpected contents; the message names it.
        """
