"""Data sets that scikit-learn contains, which need no files: images of digits, and a table."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from fedmr_flwr.data.base import PARTS, DatasetArrays, Normalisation, Source


class Digits(Source):
    """scikit-learn's handwritten digits: 1,797 images of 8x8; every fifth is a test example."""

    input_shape = (1, 8, 8)
    classes = 10
    published = Normalisation(mean=(0.305,), std=(0.376,), white=16.0)

    def find(self, folder: Path, download: bool) -> list[Path]:
        """Return no files: scikit-learn contains them, and they are too few to share."""
        return []

    def read(self, files: list[Path]) -> DatasetArrays:
        """Read them from scikit-learn's file, as its `load_digits`, without the second that its import takes."""
        spec = find_spec("sklearn")
        assert spec is not None and spec.origin is not None
        rows = np.loadtxt(Path(spec.origin).parent / "datasets/data/digits.csv.gz", np.uint8, delimiter=",")
        images, labels, held_out = rows[:, :-1].reshape(-1, 8, 8), rows[:, -1], np.arange(len(rows)) % 5 == 4
        return {
            "x_train": images[~held_out], "y_train": labels[~held_out],
            "x_test": images[held_out], "y_test": labels[held_out],
        }  # fmt: skip


class BreastCancer(Source):
    """569 tumours, malignant (0) or benign (1), by 30 measures of their cells; every fifth is a test example.

    The measures are scaled to mean 0 and deviation 1 of the training part.

    Source: Street, Wolberg and Mangasarian, "Nuclear feature extraction for breast tumor diagnosis", 1993.
    """

    input_shape = (30,)
    classes = 2

    def find(self, folder: Path, download: bool) -> list[Path]:
        """Return no files: scikit-learn contains them."""
        return []

    def read(self, files: list[Path]) -> DatasetArrays:
        """Read them with scikit-learn."""
        from sklearn.datasets import load_breast_cancer
        from sklearn.preprocessing import StandardScaler

        bunch = load_breast_cancer()
        held_out = np.arange(len(bunch.target)) % 5 == 4
        scaler = StandardScaler().fit(bunch.data[~held_out])
        chosen = dict(zip(PARTS, (~held_out, held_out), strict=True))
        return {f"x_{part}": scaler.transform(bunch.data[own]) for part, own in chosen.items()} | {
            f"y_{part}": bunch.target[own] for part, own in chosen.items()
        }
