"""A user's own data, in one npz file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedmr_flwr.data.base import DatasetArrays
from fedmr_flwr.data.own import Own
from fedmr_flwr.errors import DataError
from fedmr_flwr.files import reading

_TRAIN, _TEST = ("x_train", "y_train"), ("x_test", "y_test")


class Npz(Own):
    """A file with the arrays x_train, y_train, x_test, y_test and optionally owners; the normalisation is measured.

    The file of a node needs no x_test and y_test.
    """

    def find(self, folder: Path, download: bool) -> list[Path]:
        """Return the file."""
        path = self.path(folder)
        if not path.is_file():
            raise DataError(f"cannot read {path}: no such file; write npz:FILE, absolute or relative to data-dir")
        return [path]

    def has_test_part(self, files: list[Path]) -> bool:
        """Return true: none is drawn."""
        return True

    def read(self, files: list[Path]) -> DatasetArrays:
        """Read the arrays."""
        (path,) = files
        if self._form:
            found = _arrays(path, _TRAIN, _TEST)
            if len(found) == 3:
                raise DataError(f"{path} contains only one of x_test and y_test; add the other, or leave both out")
            return found
        return _arrays(path, (*_TRAIN, *_TEST), ("owners", "owners_test"))


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
