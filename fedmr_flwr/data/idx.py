"""Data sets in the idx files of MNIST."""

import gzip
import hashlib
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmr_flwr.data.base import PARTS, DatasetArrays, Normalisation, Source
from fedmr_flwr.data.download import fetch
from fedmr_flwr.errors import DataError
from fedmr_flwr.files import reading

# `find` returns them in this order.
_FILES = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
)  # fmt: skip


class Idx(Source):
    """60,000 + 10,000 grey images of 28x28 in four idx files, gzipped or not.

    Args:
        name: of the data set's class in torchvision, which can download it.
        inner: a folder below the data folder that may contain the files.
        published: its normalisation.
    """

    input_shape = (1, 28, 28)
    classes = 10

    def __init__(self, name: str, inner: str, published: Normalisation) -> None:
        self._name = name
        # The folder of this data set first: beside it may be files of another one with the same names.
        self._places = (inner, f"{name}/raw", "")
        self.published = published

    def find(self, folder: Path, download: bool) -> list[Path]:
        """Return the files, from one of the inner folders or from the data folder itself."""
        for place in self._places:
            files = [_either(folder / place, file) for file in _FILES]
            if all(file.exists() for file in files):
                return files
        wanted = ", ".join(f"{file}[.gz]" for file in _FILES)
        fetch(self._name, folder, download, f"put {wanted} there")
        return [_either(folder / f"{self._name}/raw", file) for file in _FILES]

    def read(self, files: list[Path]) -> DatasetArrays:
        """Read all four files."""
        # MNIST, Fashion-MNIST and KMNIST use the same file names.
        self._refuse_another(files[0])
        arrays: DatasetArrays = {}
        for part, images_file, labels_file in zip(PARTS, files[::2], files[1::2], strict=True):
            images, labels = read_idx(images_file), read_idx(labels_file)
            if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
                shapes = f"images {images.shape}, labels {labels.shape}"
                raise DataError(f"the {part} files in {images_file.parent} do not match ({shapes}); replace them")
            arrays |= {f"x_{part}": images, f"y_{part}": labels}
        return arrays

    def _refuse_another(self, file: Path) -> None:
        """Refuse a gzipped file that has the published MD5 sum of another data set."""
        from torchvision import datasets

        found = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
        for other in ("MNIST", "FashionMNIST", "KMNIST"):
            known = getattr(getattr(datasets, other, None), "resources", ())
            if other != self._name and found in (md5 for _, md5 in known):
                raise DataError(
                    f"{file} belongs to {other}, not {self._name}; put {self._name}'s files into "
                    f"{self._places[0]}/ of the data folder"
                )


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes, gzipped or not.

    Args:
        path: the file; gzipped if its name ends in .gz.

    Returns:
        An array of the shape in the file's header.

    Raises:
        DataError: the file cannot be read, is damaged, or has another length than its header states.
    """
    with reading(path, DataError, "replace it with an undamaged copy"):
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        # Two zeros, then 8 for unsigned bytes; the fourth byte is the number of dimensions.
        if len(content) < 4 or content[:3] != b"\x00\x00\x08" or content[3] not in (1, 3):
            raise ValueError("it is not an idx file of unsigned bytes, images or labels")
        start = 4 + 4 * content[3]
        shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4))
        if len(content) != start + math.prod(shape):
            raise ValueError(f"it states {'x'.join(map(str, shape))} bytes of data but has {len(content) - start}")
        return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _either(folder: Path, file: str) -> Path:
    """Return the path of the file, or that of its gzipped form if the file does not exist."""
    return folder / file if (folder / file).exists() else folder / f"{file}.gz"
