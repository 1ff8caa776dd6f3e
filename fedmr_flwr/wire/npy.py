"""Arrays as the bytes of .npy files: written in a single copy, read without one."""

import io
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from flwr.app import Array
from numpy.typing import DTypeLike, NDArray

from fedmr_flwr.errors import RecordError

# The head of an .npy file as NumPy writes it for plain numbers. NumPy's own reader evaluates the text as a
# Python literal, which bytes from the network can make fail in many ways.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<dtype>[<>|][fiub]\d+)', "
    rb"'fortran_order': (?P<fortran>True|False), 'shape': \((?P<shape>[0-9, ]*)\), \} *\n",
    re.DOTALL,
)


def join(pieces: Sequence[NDArray[Any]], dtype: DTypeLike) -> Array:
    """Serialise the concatenation of vectors in a single copy.

    Recombination ends here: a recombined model is never put together before it is sent.

    Args:
        pieces: contiguous vectors of the type.
        dtype: the type of the result.
    """
    length = sum(len(piece) for piece in pieces)
    data = b"".join([_head(np.dtype(dtype), length), *(piece.data.cast("B") for piece in pieces if len(piece))])
    return Array(np.dtype(dtype).name, (length,), "numpy.ndarray", data)


class DeviceArray(Array):
    """An array that stays where it is, on a GPU, for readers in this process; it becomes bytes if somebody asks.

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
        """How many they are."""
        return len(_head(np.dtype(np.float32), *self.shape)) + 4 * self.shape[0]


def size(array: Array) -> int:
    """Return how many bytes of data an array has, on the wire or if it were sent."""
    return array.nbytes if isinstance(array, DeviceArray) else len(array.data)


@lru_cache(maxsize=64)
def _head(dtype: np.dtype[Any], length: int) -> bytes:
    """Return how the .npy file of a vector begins."""
    file = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, facts)
    return file.getvalue()


def view(array: Array) -> NDArray[Any]:
    """Return a received array as a read-only view of its bytes.

    Raises:
        RecordError: the bytes are not an array of numbers of the stated type and shape.
    """
    values = read(array.data)
    if (values.dtype.name, values.shape) != (array.dtype, tuple(array.shape)):
        found = f"{values.dtype.name}{list(values.shape)}"
        raise RecordError(f"an array is damaged: it states {array.dtype}{list(array.shape)} but holds {found}")
    return values


def read(data: bytes) -> NDArray[Any]:
    """Return what an .npy file holds as a read-only view of its bytes.

    Raises:
        RecordError: the bytes are not an array of numbers.
    """
    try:
        start = 10 + int.from_bytes(data[8:10], "little")
        dtype, shape, order = _parsed(data[:start])
        return np.frombuffer(data, dtype, offset=start).reshape(shape, order=order)
    except (ValueError, TypeError) as error:
        raise RecordError(f"an array is damaged: {error}") from None


@lru_cache(maxsize=64)
def _parsed(head: bytes) -> tuple[np.dtype[Any], tuple[int, ...], Literal["C", "F"]]:
    """Return the type, shape and order that the head of an .npy file states."""
    header = _HEADER.fullmatch(head)
    if header is None:
        raise ValueError("it does not begin as NumPy arrays do")
    dtype = np.dtype(header["dtype"].decode())
    shape = tuple(int(size) for size in header["shape"].replace(b",", b" ").split())
    if not dtype.isnative:
        raise ValueError(f"type {dtype} is no number of this machine")
    return dtype, shape, "F" if header["fortran"] == b"True" else "C"
