"""The examples: return yours instead of scikit-learn's handwritten digits."""

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset


def load(folder: Path) -> TensorDataset:
    """Return all examples, each an input and its label, a whole number from 0.

    A fifth of each class is drawn for testing; return two data sets to choose the examples for testing yourself. The
    configuration's `partition` divides the training examples among the clients.

    Args:
        folder: the configuration's `data-dir`, for files; the digits come with scikit-learn.
    """
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16  # [1797, 1, 8, 8], from 0 to 1
    return TensorDataset(images, torch.tensor(digits.target))
