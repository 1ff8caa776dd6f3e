"""CIFAR-10 and CIFAR-100, read from the files of their authors."""

import hashlib
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from fedmr_flwr.data.base import DatasetArrays, Normalisation, Source
from fedmr_flwr.data.download import fetch
from fedmr_flwr.errors import DataError
from fedmr_flwr.files import reading


class Cifar(Source):
    """50,000 + 10,000 colour images of 32x32 in pickled batches, in a folder or in their archive.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

    Args:
        number: 10 or 100.
        labels: the key of the labels in a batch.
        classes: number of labels.
        published: its normalisation.
    """

    input_shape = (3, 32, 32)

    def __init__(self, number: int, labels: str, classes: int, published: Normalisation) -> None:
        self._name = f"CIFAR{number}"
        self._archive = f"cifar-{number}-python.tar.gz"
        self._folder = "cifar-10-batches-py" if number == 10 else "cifar-100-python"
        # The last one is the test set: `read` relies on this order.
        self._batches = (
            [*(f"data_batch_{at}" for at in range(1, 6)), "test_batch"] if number == 10 else ["train", "test"]
        )
        self._labels = labels
        self.classes = classes
        self.published = published

    def find(self, folder: Path, download: bool) -> list[Path]:
        """Return the batches, or their archive if they are not unpacked."""
        files = [folder / self._folder / batch for batch in self._batches]
        archive = folder / self._archive
        if all(file.exists() for file in files):
            return files
        if archive.exists():
            return [archive]
        if missing := [file for file in files if not file.exists() and file.parent.exists()]:
            raise DataError(f"{missing[0]} is missing; remove its folder and put {self._archive} in its place")
        fetch(self._name, folder, download, f"put {self._archive}, or the folder {self._folder}, there")
        return files

    def read(self, files: list[Path]) -> DatasetArrays:
        """Read the batches, which must have their published MD5 sums."""
        batches = (
            self._unpack(files[0]) if len(files) == 1 else [self._batch(file, file.read_bytes()) for file in files]
        )
        (x_train, y_train), (x_test, y_test) = (
            (np.concatenate(arrays) for arrays in zip(*part, strict=True)) for part in (batches[:-1], batches[-1:])
        )
        return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}

    def _unpack(self, archive: Path) -> list[tuple[Any, Any]]:
        # Read in place: unpacking would race with other processes, and fail where the folder is read-only.
        with reading(archive, DataError, "replace it with an undamaged copy"), tarfile.open(archive) as tar:
            return [self._batch(archive / batch, self._content(tar, batch)) for batch in self._batches]

    def _content(self, tar: tarfile.TarFile, batch: str) -> bytes:
        member = tar.extractfile(f"{self._folder}/{batch}")
        if member is None:
            raise tarfile.TarError(f"{batch} is not a file")
        return member.read()

    def _batch(self, file: Path, content: bytes) -> tuple[Any, Any]:
        """Return a batch's images and labels."""
        from torchvision import datasets

        known = getattr(datasets, self._name)
        sums = dict([*known.train_list, *known.test_list])
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != sums[file.name]:
            raise DataError(
                f"{file} does not have the MD5 sum of the published file; replace it with an undamaged copy, or "
                f"all of them with an undamaged {self._archive}"
            )
        # Not by torchvision's reader, which drops the coarse labels. Only files with the published sum come this far,
        # because a pickle can run any code.
        batch = pickle.loads(content, encoding="latin1")
        return batch["data"].reshape(-1, *self.input_shape), np.asarray(batch[self._labels])
