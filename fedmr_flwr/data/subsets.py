"""Parts of a data set in place of all of it: some of its training examples, or a validation set for the test set."""

from dataclasses import replace

import numpy as np
import torch

from fedmr_flwr.core.randomness import stream
from fedmr_flwr.data.base import Dataset, Examples, Indices
from fedmr_flwr.data.held_out import draw_validation_part
from fedmr_flwr.errors import DataError


def draw(dataset: Dataset, count: int, seed: int) -> Dataset:
    """Return the data set with so many training examples, as many of each class, or all that a small class has.

    Args:
        dataset: the whole one.
        count: the number of training examples.
        seed: of the run.

    Raises:
        DataError: it has fewer.
    """
    labels = dataset.train.labels.numpy()
    if count > len(labels):
        raise DataError(f"data.train-examples is {count}, but the data set has {len(labels)} training examples")
    shuffled = stream(seed, "train-examples").permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    grouped = labels[by_class]
    # The first of every class come before the second of any.
    rank = np.arange(len(labels)) - np.searchsorted(grouped, grouped)
    # In the order of the files, so that all examples are the same data set as no choice.
    train, owners = _part(dataset, np.sort(by_class[np.lexsort((grouped, rank))[:count]]))
    return replace(dataset, train=train, owners=owners)


def with_validation(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Return the data set with a share of its training examples in place of its test examples.

    Args:
        dataset: the whole one.
        share: of the examples that is for validation, above 0 and below 1.
        seed: of the run.

    Raises:
        DataError: no example would be left for validation.
    """
    owners = None if dataset.owners is None else dataset.owners.numpy()
    kept, held = draw_validation_part(dataset.train.labels.numpy(), owners, share, seed)
    (train, owners_left), (validation, owners_held) = (_part(dataset, chosen) for chosen in (kept, held))
    return replace(dataset, train=train, test=validation, owners=owners_left, test_owners=owners_held)


def _part(dataset: Dataset, indices: Indices) -> tuple[Examples, torch.Tensor | None]:
    """Return some of the training examples, and their authors."""
    chosen = torch.from_numpy(indices)
    examples = Examples(dataset.train.inputs[chosen], dataset.train.labels[chosen])
    return examples, None if dataset.owners is None else dataset.owners[chosen]
