"""Arrays as the bytes of .npy files: written with a single copy, read without one."""

import io
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from flwr.app import Array
from numpy.typing import DTypeLike, NDArray

from fedmr_flwr.errors import RecordError

# The header of an .npy file as NumPy writes it for plain numbers. NumPy's own reader evaluates the text as a
# Python literal, and bytes from the network can make that fail in many ways.
_SIZE = rb"(?:0|[1-9]\d*)"
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<dtype>[<>|][fiub]\d+)', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>(?:%b,|%b(?:, %b)+)?)\), \} *\n" % (_SIZE, _SIZE, _SIZE),
    re.DOTALL,
)
# Complex numbers and JAX's bfloat16 have no order or no place in NumPy.
_NUMBERS = re.compile(r"bool|u?int\d+|float\d+")


def join(pieces: Sequence[NDArray[Any]], dtype: DTypeLike) -> Array:
    """Serialise the concatenation of vectors with a single copy.

    This is where a recombined model is joined: it is never copied before.

    Args:
        pieces: contiguous vectors; those of another type are converted.
        dtype: the type of the result.
    """
    pieces = [piece.astype(dtype, copy=False) for piece in pieces]
    length = sum(len(piece) for piece in pieces)
    # `bytes.join` allocates the result once and copies each piece into it; `np.concatenate` and `tobytes` would copy
    # twice.
    data = b"".join([_head(np.dtype(dtype), length), *(piece.data.cast("B") for piece in pieces if len(piece))])
    return Array(np.dtype(dtype).name, (length,), "numpy.ndarray", data)


class DeviceArray(Array):
    """An array that stays on a GPU for readers in this process; it is serialised only when `data` is read.

    Args:
        tensor: [N] float32.
    """

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor
        self.dtype, self.shape, self.stype = "float32", tuple(tensor.shape), "numpy.ndarray"

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The bytes of an .npy file."""
        return join([self.tensor.numpy(force=True)], np.float32).data

    @property
    def nbytes(self) -> int:
        """The number of these bytes."""
        return len(_head(np.dtype(np.float32), *self.shape)) + 4 * self.shape[0]


def size(array: Array) -> int:
    """Return the number of bytes of an array, serialised or not."""
    return array.nbytes if isinstance(array, DeviceArray) else len(array.data)


@lru_cache(maxsize=64)
def _head(dtype: np.dtype[Any], length: int) -> bytes:
    """Return the header of the .npy file of a vector."""
    file = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, facts)
    return file.getvalue()


def view(array: Array) -> NDArray[Any]:
    """Return a received array as a read-only view of its bytes.

    Raises:
        RecordError: the bytes are not an array of numbers, or their type or shape differs from the array's.
    """
    if not _NUMBERS.fullmatch(array.dtype):
        raise RecordError(f"an array is {array.dtype[:20]!r}; only floats up to float64 and integers can be averaged")
    values = read(array.data)
    if (values.dtype.name, values.shape) != (array.dtype, tuple(array.shape)):
        found = f"{values.dtype.name}{list(values.shape)}"
        raise RecordError(f"an array is damaged: it is {found}, expected {array.dtype}{list(array.shape)}")
    return values


def in_dtype(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Convert values to another type; for an integer type they are rounded, and must be finite."""
    target = np.dtype(dtype)
    if values.dtype == target or (target.kind in "iub" and not np.isfinite(values).all()):
        return values
    with np.errstate(over="ignore"):  # a model that overflows is reported as such
        return np.asarray(np.rint(values) if target.kind in "iu" else values, target)


def read(data: bytes) -> NDArray[Any]:
    """Return the array of an .npy file as a read-only view of its bytes.

    Raises:
        RecordError: the bytes are not an array of numbers.
    """
    try:
        start = 10 + int.from_bytes(data[8:10], "little")
        dtype, shape, order = _parsed(data[:start])
        # A view, because a server that copied every reply would hold two populations.
        return np.frombuffer(data, dtype, offset=start).reshape(shape, order=order)
    except (ValueError, TypeError) as error:
        raise RecordError(f"an array is damaged: {error}") from None


@lru_cache(maxsize=64)
def _parsed(head: bytes) -> tuple[np.dtype[Any], tuple[int, ...], Literal["C", "F"]]:
    """Return the type, shape and memory order from the header of an .npy file."""
    header = _HEADER.fullmatch(head)
    if header is None:
        raise ValueError("it has no header of a NumPy array")
    dtype = np.dtype(header["dtype"].decode())
    shape = tuple(int(size) for size in header["shape"].replace(b",", b" ").split())
    if not dtype.isnative:
        raise ValueError(f"type {dtype} has another byte order than this machine")
    return dtype, shape, "F" if header["fortran"] == b"True" else "C"
