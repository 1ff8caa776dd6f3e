"""How much the clients' examples differ: measures of a division."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedmr_flwr.data.base import Dataset, Indices


def class_counts(dataset: Dataset, parts: Sequence[Indices]) -> NDArray[np.int64]:
    """Count the training examples of each class at each client.

    Returns:
        [clients, classes].
    """
    labels = dataset.train.labels.numpy()
    return np.stack([np.bincount(labels[part], minlength=dataset.classes) for part in parts])


def divergences(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Measure the distance of each client's labels from those of all clients together.

    Args:
        counts: [clients, classes].

    Returns:
        [clients], the Jensen-Shannon distance (the root of the divergence, base 2) between the client's
        distribution of labels and the global one: 0 if they are equal, 1 if they have no label in common.
    """
    # Not the Kullback-Leibler divergence, which is infinite where a client lacks a label.
    own = counts / counts.sum(1, keepdims=True)
    whole = counts.sum(0) / counts.sum()
    middle = (own + whole) / 2

    def entropies(shares: NDArray[np.float64]) -> NDArray[np.float64]:
        logarithms = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
        return np.asarray(-(shares * logarithms).sum(-1))

    squares = entropies(middle) - (entropies(own) + entropies(whole)) / 2
    return np.asarray(np.sqrt(np.clip(squares, 0, 1)))
