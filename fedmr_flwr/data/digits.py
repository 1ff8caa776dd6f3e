"""scikit-learn's handwritten digits, which need no files."""

from pathlib import Path

import numpy as np

from fedmr_flwr.data.base import DatasetArrays, Normalisation, Source


class Digits(Source):
    """scikit-learn's handwritten digits: 1,797 images of 8x8; every fifth is a test example."""

    input_shape = (1, 8, 8)
    classes = 10
    published = Normalisation(mean=(0.305,), std=(0.376,), white=16.0)

    def find(self, folder: Path, download: bool) -> list[Path]:
        """Return no files: scikit-learn contains them, and they are too few to share."""
        return []

    def read(self, files: list[Path]) -> DatasetArrays:
        """Read them with scikit-learn."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images, held_out = bunch.images.astype(np.uint8), np.arange(len(bunch.target)) % 5 == 4
        return {
            "x_train": images[~held_out], "y_train": bunch.target[~held_out],
            "x_test": images[held_out], "y_test": bunch.target[held_out],
        }  # fmt: skip
