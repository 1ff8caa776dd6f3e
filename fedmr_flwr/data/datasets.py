"""Data sets as tensors: a name -> training and test examples, loaded once per process."""

import gzip
import hashlib
import importlib
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedmr_flwr.errors import ConfigError, DataError


@dataclass(frozen=True)
class Examples:
    """Images and their labels.

    Attributes:
        images: [N, C, H, W] uint8.
        labels: [N] int64.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A data set; images stay uint8 until they are used.

    Attributes:
        train: what the clients share out among themselves.
        test: the global test set.
        classes: number of labels.
        white: the pixel value that means 1.
        mean: what is subtracted from pixels in [0, 1], and
        std: what they are then divided by.
    """

    train: Examples
    test: Examples
    classes: int
    white: float
    mean: float
    std: float

    @property
    def input_shape(self) -> tuple[int, ...]:
        """[C, H, W]."""
        return tuple(self.train.images.shape[1:])

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Turn uint8 images into float32 of about zero mean and unit variance."""
        return (images.float() / self.white - self.mean) / self.std

    def digest(self) -> str:
        """Return the SHA-256 of every image and label: it tells whether two machines hold the same data."""
        sha = hashlib.sha256()
        for tensor in (self.train.images, self.train.labels, self.test.images, self.test.labels):
            sha.update(tensor.contiguous().numpy().data)
        return sha.hexdigest()


def load(name: str, data_dir: Path | None) -> Dataset:
    """Return a data set.

    Args:
        name: an entry of `DATASETS`; "npz:PATH" for a file of one's own; or "module:function" for a loader of
            one's own, which is called with the folder and returns a `Dataset`.
        data_dir: where its files lie; None looks in `default_data_dir()`.

    Raises:
        ConfigError: there is no such data set.
        DataError: its files are missing or damaged.
    """
    if name not in DATASETS and ":" not in name:
        known = ", ".join(sorted(DATASETS))
        raise ConfigError(f"data.name: '{name}' is not known; choose one of {known}, npz:PATH or module:function")
    return _load(name, data_dir or default_data_dir())


def default_data_dir() -> Path:
    """Return the folder of data files if none is given: $FEDMR_DATA_DIR, or one in the user's cache."""
    return Path(os.environ.get("FEDMR_DATA_DIR") or Path.home() / ".cache" / "fedmr_flwr").absolute()


@lru_cache(maxsize=2)
def _load(name: str, data_dir: Path) -> Dataset:
    if name in DATASETS:
        return DATASETS[name](data_dir)
    kind, _, rest = name.partition(":")
    return _npz(data_dir / Path(rest).expanduser()) if kind == "npz" else _own(name, data_dir)


def _npz(path: Path) -> Dataset:
    """A file with the arrays x_train [N, C, H, W] or [N, H, W] uint8, y_train [N], x_test and y_test."""
    try:
        # Opened here, because NumPy leaves a damaged file open.
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except (KeyError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} does not hold x_train, y_train, x_test and y_test: {' '.join(str(error).split())}"
        ) from None
    examples = {part: _examples(arrays[f"x_{part}"], arrays[f"y_{part}"], f"{part} of {path}") for part in _PARTS}
    counts = np.bincount(examples["train"].images.numpy().reshape(-1), minlength=256)
    pixels = np.arange(256) / 255
    mean = counts @ pixels / counts.sum()
    return Dataset(
        **examples,
        classes=int(max(part.labels.max() for part in examples.values())) + 1,
        white=255.0,
        mean=float(mean),
        std=float(np.sqrt(counts @ (pixels - mean) ** 2 / counts.sum())) or 1.0,
    )


def _examples(images: NDArray[np.generic], labels: NDArray[np.generic], what: str) -> Examples:
    """Insist on uint8 images and as many labels, counted from 0."""
    if images.ndim == 3:
        images = images[:, None]
    if images.dtype != np.uint8 or images.ndim != 4:
        found = f"{images.dtype}{list(images.shape)}"
        raise DataError(f"x_{what} is {found}; it must be uint8, [N, C, H, W] or [N, H, W]")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or not len(labels) or int(labels.min()) < 0:
        found = f"{labels.dtype}{list(labels.shape)}"
        raise DataError(f"y_{what} is {found}; it must be {len(images)} integers from 0 on, at least one")
    return Examples(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64)))


def _own(name: str, data_dir: Path) -> Dataset:
    module, _, function = name.partition(":")
    try:
        loader = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"data.name: '{name}' cannot be imported: {error}; it must be on PYTHONPATH") from None
    found = loader(data_dir)
    if not isinstance(found, Dataset):
        raise ConfigError(f"data.name: '{name}' returned {type(found).__name__}, not a fedmr_flwr Dataset")
    return found


def _digits(_: Path) -> Dataset:
    """scikit-learn's bundled handwritten digits: 1,797 images of 8x8; every fifth is a test example."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images.astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    held_out = torch.arange(len(labels)) % 5 == 4
    return Dataset(
        train=Examples(images[~held_out], labels[~held_out]),
        test=Examples(images[held_out], labels[held_out]),
        classes=10,
        white=16.0,
        mean=0.305,
        std=0.376,
    )


_PARTS = ("train", "test")
_IDX = {
    "train-images": "train-images-idx3-ubyte",
    "train-labels": "train-labels-idx1-ubyte",
    "test-images": "t10k-images-idx3-ubyte",
    "test-labels": "t10k-labels-idx1-ubyte",
}


def _mnist(data_dir: Path) -> Dataset:
    """MNIST, 60,000 + 10,000 images of 28x28. Source: LeCun et al. 1998."""
    return _idx_dataset("MNIST", data_dir, ("mnist", "MNIST/raw"), mean=0.1307, std=0.3081)


def _fashion_mnist(data_dir: Path) -> Dataset:
    """Fashion-MNIST, 60,000 + 10,000 images of 28x28. Source: Xiao et al. 2017."""
    return _idx_dataset("FashionMNIST", data_dir, ("fashion-mnist", "FashionMNIST/raw"), mean=0.286, std=0.353)


def _idx_dataset(name: str, data_dir: Path, inner: tuple[str, ...], mean: float, std: float) -> Dataset:
    """Read a data set of four idx files, from the data folder or one of its inner ones, or download it."""
    folder = _idx_folder(data_dir, inner)
    if folder is None:
        folder = _download(name, data_dir)
    arrays = {part: read_idx(_either(folder, file)) for part, file in _IDX.items()}
    examples = {}
    for part in _PARTS:
        images, labels = arrays[f"{part}-images"], arrays[f"{part}-labels"]
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or labels.max(initial=0) > 9:
            shapes = f"images {images.shape}, labels {labels.shape}"
            raise DataError(f"the {part} files in {folder} do not belong together ({shapes}); replace them")
        examples[part] = Examples(torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64)))
    return Dataset(**examples, classes=10, white=255.0, mean=mean, std=std)


# A data set is a function from the folder of its files to its tensors; add one line to add one.
DATASETS: dict[str, Callable[[Path], Dataset]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "mnist": _mnist,
}


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes, gzipped or not.

    Args:
        path: the file; gzipped if its name ends in .gz.

    Returns:
        An array of the shape that the file states.

    Raises:
        DataError: the file cannot be read, is damaged, or holds another number of bytes than it states.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; replace it with an undamaged copy") from None
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise DataError(f"{path} is not an idx file of unsigned bytes; replace it with an undamaged copy")
    start = 4 + 4 * content[3]
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4))
    if len(content) != start + int(np.prod(shape, dtype=np.int64)):
        raise DataError(
            f"{path} states {'x'.join(map(str, shape))} bytes of data but holds {len(content) - start}; "
            "replace it with an undamaged copy"
        )
    return np.frombuffer(bytearray(content), np.uint8, offset=start).reshape(shape)


def _either(folder: Path, file: str) -> Path:
    """Return the file, or its gzipped form where only that is there."""
    return folder / file if (folder / file).exists() else folder / f"{file}.gz"


def _idx_folder(data_dir: Path, inner: tuple[str, ...]) -> Path | None:
    """Return the folder that holds all four idx files: the data folder or one of its inner ones."""
    for folder in (data_dir, *(data_dir / name for name in inner)):
        if all(_either(folder, file).exists() for file in _IDX.values()):
            return folder
    return None


def _download(name: str, data_dir: Path) -> Path:
    """Let torchvision download a data set of idx files; return their folder."""
    from torchvision import datasets

    try:
        getattr(datasets, name)(str(data_dir), download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        files = ", ".join(f"{file}[.gz]" for file in _IDX.values())
        raise DataError(
            f"{name} is not in {data_dir} and could not be downloaded ({reason}); "
            f"put {files} there, or name their folder with data-dir=FOLDER"
        ) from None
    return data_dir / name / "raw"
