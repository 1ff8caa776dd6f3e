"""Checks of the arrays of a data set, whichever files they come from."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from fedmr_flwr.data.base import PARTS, DatasetArrays
from fedmr_flwr.errors import DataError

# A larger label is treated as an error: a model has an output for every number up to it.
_MOST_CLASSES = 2**16


def validate_arrays(
    arrays: DatasetArrays, where: str, classes: int | None = None, input_shape: tuple[int, ...] | None = None
) -> DatasetArrays:
    """Check that arrays are a data set, and convert them to their final types and shapes.

    Args:
        arrays: the result of `Source.read`.
        where: the name of the source in an error.
        classes: number of labels, if known.
        input_shape: of an example, if known.

    Returns:
        The arrays with a channel axis for grey images, float32 values, and int64 labels and owners.

    Raises:
        DataError: an array has another type or shape, or values that cannot be labels.
    """
    found: DatasetArrays = {}
    for part in PARTS:
        inputs = arrays[f"x_{part}"]
        if inputs.dtype == np.uint8 and inputs.ndim == 3:
            inputs = inputs[:, None]
        floats = inputs.dtype.kind == "f" and inputs.ndim >= 2
        if not (floats or (inputs.dtype == np.uint8 and inputs.ndim in (2, 4))) or 0 in inputs.shape[1:]:
            raise DataError(
                f"x_{part} of {where} is {_format_array(inputs)}; "
                "it must be uint8: images [N, C, H, W] or [N, H, W], or text [N, T]; or float32: features [N, ...]"
            )
        if floats:
            inputs = _finite(inputs, f"x_{part} of {where}")
        # safetensors and the hash of the data set read the memory in order.
        found[f"x_{part}"] = np.ascontiguousarray(inputs)
        found[f"y_{part}"] = _numbers(arrays[f"y_{part}"], len(inputs), f"y_{part} of {where}")
        largest = int(found[f"y_{part}"].max())
        if largest >= (classes or _MOST_CLASSES):
            raise DataError(
                f"y_{part} of {where} has the label {largest}; expected 0 to {(classes or _MOST_CLASSES) - 1}"
            )
    if input_shape and any(found[f"x_{part}"].shape[1:] != input_shape for part in PARTS):
        shapes = " and ".join(_format_array(found[f"x_{part}"]) for part in PARTS)
        raise DataError(f"x_train and x_test of {where} are {shapes}; expected examples of shape {list(input_shape)}")
    train, test = (found[f"x_{part}"] for part in PARTS)
    if (train.shape[1:], train.dtype) != (test.shape[1:], test.dtype):
        differ = "shapes" if train.shape[1:] != test.shape[1:] else "types"
        shapes = f"{_format_array(train)} and {_format_array(test)}"
        raise DataError(f"x_train and x_test of {where} have different {differ}, {shapes}")
    for part, owners in zip(PARTS, ("owners", "owners_test"), strict=True):
        if owners in arrays:
            found[owners] = _numbers(arrays[owners], len(found[f"x_{part}"]), f"{owners} of {where}")
    return found | ({"facts": arrays["facts"]} if "facts" in arrays else {})


def count_classes(found: Mapping[str, torch.Tensor]) -> int:
    """Return one more than the largest label; for text, one more than the largest label or character."""
    text = found["x_train"].ndim == 2 and found["x_train"].dtype == torch.uint8
    counted = ["y_train", "y_test", *(["x_train", "x_test"] if text else [])]
    return max(int(found[name].max()) for name in counted) + 1


def _finite(values: NDArray[np.generic], what: str) -> NDArray[np.float32]:
    """Return values as float32, none of which may be NaN or infinite, also after the conversion."""
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    good = np.isfinite(found.reshape(len(found), math.prod(found.shape[1:]))).all(1)
    if not good.all():
        raise DataError(
            f"{what} has values that are NaN, infinite or beyond float32, first in example {int(good.argmin())}; "
            "replace them, or leave these examples out"
        )
    return found


def _numbers(values: NDArray[np.generic], count: int, what: str) -> NDArray[np.int64]:
    whole = values.dtype.kind in "iu" and values.shape == (count,) and count > 0
    numbers = values.astype(np.int64) if whole else np.empty(0, np.int64)
    if not whole or int(numbers.min()) < 0:
        raise DataError(f"{what} is {_format_array(values)}; expected {count} non-negative integers, at least one")
    return numbers


def _format_array(values: NDArray[np.generic]) -> str:
    return f"{values.dtype}{list(values.shape)}"
