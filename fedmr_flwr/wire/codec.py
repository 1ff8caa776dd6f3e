"""Conversion of models to records and back."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.core.recombination import Parts
from fedmr_flwr.errors import RecordError
from fedmr_flwr.wire.messages import FLOATS, INTS
from fedmr_flwr.wire.npy import DeviceArray, in_dtype, join, view


def restore_dtypes(record: ArrayRecord, before: ArrayRecord) -> ArrayRecord:
    """Convert a model's arrays to the types that they had before; values for an integer type are rounded.

    Flower's own strategies average integers, such as BatchNorm's counters, into float64, and FedAdam converts
    all arrays to float64; clients would reject such a model.

    Args:
        record: the model.
        before: the model before the round.
    """
    # A new record: the given one may still be the strategy's own.
    out = ArrayRecord()
    for name, array in record.items():
        out[name] = array
        if name in before and array.dtype != before[name].dtype:
            out[name] = with_dtype(array, before[name].dtype)
    return out


def with_dtype(array: Array, dtype: str) -> Array:
    """Convert an array to another type, as `in_dtype`.

    Raises:
        RecordError: the array is damaged.
    """
    return Array(in_dtype(view(array), dtype))


class Codec:
    """Conversion of models to records and back.

    Args:
        layout: of the models.
        packed: whether a model is sent as one array per type; otherwise as one array per tensor.
        wire: "float16" sends packed floats in half the bytes, with eleven bits for each value; "float32" sends them
            in the layout's own type.

    Attributes:
        wire: the type in which packed floats are sent.
    """

    def __init__(self, layout: Layout, packed: bool = True, wire: str = "float32") -> None:
        self.layout = layout
        self.packed = packed
        # "float32" is the default's name, but a float64 model must not lose half its digits on the way.
        self.wire = np.dtype(wire) if wire == "float16" else layout.dtype

    @classmethod
    def infer(cls, record: ArrayRecord) -> "Codec":
        """Derive the layout from a record with one array per tensor.

        Raises:
            RecordError: an array is damaged or has an unsupported type.
        """
        try:
            return cls(Layout.of({name: view(array) for name, array in record.items()}), packed=False)
        except TypeError as error:
            raise RecordError(f"the model cannot be packed: {error}") from None

    def encode(self, model: Packed | Parts) -> ArrayRecord:
        """Convert a model to a record.

        Raises:
            RecordError: a value is too large for float16.
        """
        floats, ints = model if isinstance(model, Parts) else ([model.floats], [model.ints])
        if self.packed:
            record = ArrayRecord()
            # The parts of a recombined model are joined while they are serialised: it is never copied before that.
            record[FLOATS] = self._joined(floats)
            if self.layout.counters:
                record[INTS] = join(ints, np.int64)
            return record
        whole = Packed(
            np.concatenate([*floats, np.empty(0, self.layout.dtype)]).astype(self.layout.dtype, copy=False),
            np.concatenate([*ints, np.empty(0, np.int64)]).astype(np.int64, copy=False),
        )
        return ArrayRecord({name: Array(tensor) for name, tensor in self.layout.unpack(whole).items()})

    def decode(self, record: ArrayRecord) -> Packed:
        """Convert a record to a model; packed floats are not copied, and tensors stay on their GPU.

        Raises:
            RecordError: names, shapes or types differ from the layout's.
        """
        arrays: dict[str, Any] = {
            name: array.tensor if isinstance(array, DeviceArray) else view(array) for name, array in record.items()
        }
        try:
            if not self.packed:
                return self.layout.pack(arrays)
            floats = arrays.pop(FLOATS, np.empty(0, self.wire))
            ints = arrays.pop(INTS, np.empty(0, np.int64))
            if arrays:
                raise ValueError(f"unknown arrays {', '.join(sorted(arrays))}")
            on_device = not isinstance(floats, np.ndarray)
            if not on_device and (floats.dtype != self.wire or ints.dtype != np.int64):
                raise ValueError(f"the types are {floats.dtype} and {ints.dtype}, expected {self.wire} and int64")
            self.layout.check(Packed(floats, ints))
        except ValueError as error:
            raise RecordError(f"the model does not match: {error}") from None
        return Packed(floats if on_device else floats.astype(self.layout.dtype, copy=False), ints)

    def _joined(self, floats: Sequence[NDArray[Any]]) -> Array:
        """Return the concatenation of vectors as one array, on the GPU if one of them is there."""
        if any(not isinstance(piece, np.ndarray) for piece in floats):
            from fedmr_flwr.core import tensors

            joined = tensors.join(floats)
            if self.wire == np.float32:
                # It stays on the GPU: with the one-GPU engine the reader is in the same process.
                return DeviceArray(joined)
            floats = [joined.numpy(force=True)]
        return join([self._narrow(piece) for piece in floats], self.wire)

    def _narrow(self, floats: NDArray[Any]) -> NDArray[Any]:
        """Return floats in the type of the wire."""
        with np.errstate(over="ignore"):
            narrow = floats.astype(self.wire, copy=False)
        # A value that float16 cannot hold is an error: it must never become infinite unnoticed.
        if narrow is not floats and not np.isfinite(narrow).all() and np.isfinite(floats).all():
            # Without the value: errors are sent in the clear, also where models are sealed.
            raise RecordError(f"the model has a value that is too large for {self.wire}; set wire=float32")
        return narrow
