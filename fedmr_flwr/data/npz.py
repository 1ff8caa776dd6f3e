"""A user's own data, in one npz file."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedmr_flwr.data import cache
from fedmr_flwr.data.base import DatasetArrays, Examples, Source, validate_arrays
from fedmr_flwr.errors import DataError
from fedmr_flwr.files import reading

_TRAIN, _TEST = ("x_train", "y_train"), ("x_test", "y_test")


class Npz(Source):
    """A file with the arrays x_train, y_train, x_test, y_test and optionally owners; the normalisation is measured.

    Args:
        name: the file, absolute or relative to the data folder.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def find(self, folder: Path, download: bool) -> list[Path]:
        """Return the file."""
        path = folder / os.path.expanduser(self._name)  # noqa: PTH111, it leaves an unknown user unchanged
        if not path.is_file():
            raise DataError(f"cannot read {path}: no such file; write npz:FILE, absolute or relative to data-dir")
        return [path]

    def read(self, files: list[Path]) -> DatasetArrays:
        """Read the arrays."""
        (path,) = files
        return _arrays(path, (*_TRAIN, *_TEST), ("owners", "owners_test"))


def read_examples(path: Path, input_shape: tuple[int, ...], classes: int) -> tuple[Examples, Examples | None]:
    """Return the examples of a client from its own file: x_train and y_train, and x_test and y_test if it has them.

    Args:
        path: of the file; other arrays in it are ignored.
        input_shape: the required shape of an example.
        classes: labels are 0..classes-1.

    Returns:
        Those for training, and those for testing or None.

    Raises:
        DataError: the file cannot be read, or its arrays do not match.
    """

    def read() -> DatasetArrays:
        own = _arrays(path, _TRAIN, _TEST)
        if len(own) == 3:
            raise DataError(f"{path} contains only one of x_test and y_test; add the other, or leave both out")
        # Where a client has no test examples, its training examples stand in, so that one check serves all sources.
        tests = {name: own.get(name, own[name.replace("test", "train")]) for name in _TEST}
        found = validate_arrays({**own, **tests}, str(path), classes, input_shape)
        return {name: found[name] for name in own}

    if not path.is_file():
        raise DataError(f"cannot read {path}: no such file; correct `data` in the node's settings")
    found = cache.shared(f"{path.name}-{classes}-{'x'.join(map(str, input_shape))}", [path], read)
    train = Examples(found["x_train"], found["y_train"])
    return train, Examples(found["x_test"], found["y_test"]) if found.keys() >= {*_TEST} else None


def _arrays(path: Path, names: Sequence[str], perhaps: Sequence[str] = ()) -> DatasetArrays:
    """Read arrays from a file."""
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    # Opened here, because NumPy does not close a damaged file. No pickles: they can run any code.
    with (
        reading(path, DataError, f"it must be an npz file with {listed}"),
        path.open("rb") as content,
        np.load(content, allow_pickle=False) as file,
    ):
        return {name: file[name] for name in (*names, *(name for name in perhaps if name in file))}
