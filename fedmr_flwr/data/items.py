"""PyTorch's own data sets, of which each item is an input and its label, as arrays."""

from collections.abc import Sequence, Sized
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import data

from fedmr_flwr.data.base import DatasetArrays
from fedmr_flwr.data.held_out import draw_test_part
from fedmr_flwr.errors import DataError


def arrays_of_items(parts: Sequence[data.Dataset[Any]], where: str, seed: int) -> DatasetArrays:
    """Return the arrays of one or two data sets.

    Args:
        parts: for training and for testing, or one of which a fifth is drawn from the seed for testing; their items
            are an input, a tensor or an array of one shape, and a label, a whole number.
        where: the name of their function in an error.
        seed: of the run.

    Raises:
        DataError: an item is something else, or has another shape than the first.
    """
    (inputs, labels), *others = (_items(part, where) for part in parts)
    if others:
        return {"x_train": inputs, "y_train": labels, "x_test": others[0][0], "y_test": others[0][1]}
    kept, held = draw_test_part(labels, seed, where)
    return {"x_train": inputs[kept], "y_train": labels[kept], "x_test": inputs[held], "y_test": labels[held]}


def _items(items: data.Dataset[Any], where: str) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    if not hasattr(items, "__len__") or not len(cast(Sized, items)):
        raise DataError(f"{where} returned a data set without a length, or without items; it must have both")
    found: NDArray[np.generic] | None = None
    labels = np.empty(len(cast(Sized, items)), np.int64)
    for at in range(len(labels)):
        item = items[at]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"item {at} of {where} is a {type(item).__name__}; it must be an input and its label")
        values, label = (part.numpy(force=True) if isinstance(part, torch.Tensor) else part for part in item)
        if not isinstance(values, np.ndarray):
            raise DataError(
                f"the input of item {at} of {where} is a {type(values).__name__}; it must be a tensor or an array: "
                "of an image, transform=torchvision.transforms.PILToTensor()"
            )
        if np.ndim(label) or not np.issubdtype(np.asarray(label).dtype, np.integer):
            raise DataError(f"the label of item {at} of {where} is not a whole number; only classes can be learned")
        if found is None:
            found = np.empty((len(labels), *values.shape), values.dtype)
        if values.shape != found.shape[1:] or values.dtype != found.dtype:
            shapes = " and ".join(f"{kind}{list(shape)}" for kind, shape in (
                (found.dtype, found.shape[1:]), (values.dtype, values.shape),
            ))  # fmt: skip
            raise DataError(f"items 0 and {at} of {where} differ, {shapes}; all must have one type and shape")
        found[at], labels[at] = values, label
    assert found is not None
    return found, labels
