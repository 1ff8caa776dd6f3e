"""The position of each tensor of a model in two flat vectors."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
Ints = NDArray[np.int64]
Columns = tuple[slice, ...]

# For models that arrive as records: names are then the only sign of a buffer.
_STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}


class Packed(NamedTuple):
    """A model as two flat vectors, in the order of its state_dict.

    Attributes:
        floats: [P], every tensor of a floating type, in the widest of these types and at least float32. With the
            one-GPU engine this may be a PyTorch tensor on the GPU.
        ints: [Q] int64, every tensor of an integer type, such as BatchNorm's counters.
    """

    floats: Floats
    ints: Ints

    def on_host(self) -> "Packed":
        """Return the model as NumPy vectors, copied from the GPU if necessary."""
        vector: Any = self.floats
        return self if isinstance(vector, np.ndarray) else Packed(vector.numpy(force=True), self.ints)


@dataclass(frozen=True)
class Entry:
    """One tensor of a state_dict.

    Attributes:
        name: its key.
        shape: its shape.
        dtype: its NumPy type.
        columns: the position of its values in `Packed.floats`, or in `Packed.ints` for an integer type.
        buffer: whether it is computed rather than trained, like BatchNorm's statistics.
        frozen: whether it is a parameter that is not trained, like those of a pretrained part.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    columns: slice
    buffer: bool = False
    frozen: bool = False

    @property
    def integer(self) -> bool:
        """Whether the values are in `Packed.ints`."""
        return np.dtype(self.dtype).kind != "f"


@dataclass(frozen=True)
class Layout:
    """Names, shapes, types and positions of a model's tensors.

    Attributes:
        entries: one per tensor, in the order of the state_dict.
        blocks: the paths of the modules that the model declares as its blocks.
        head: the path of its last linear layer.
    """

    entries: tuple[Entry, ...]
    blocks: tuple[str, ...] = ()
    head: str = "classifier"

    @classmethod
    def of(
        cls,
        arrays: Mapping[str, NDArray[np.generic]],
        buffers: Collection[str] | None = None,
        blocks: Collection[str] = (),
        head: str = "classifier",
        frozen: Collection[str] = (),
    ) -> "Layout":
        """Return the layout of a model.

        Args:
            arrays: its state_dict as NumPy arrays.
            buffers: the keys of its buffers; None: those named like PyTorch's normalisation statistics.
            blocks: the paths of the modules that it declares as its blocks.
            head: the path of its last linear layer.
            frozen: the keys of its parameters that are not trained.

        Raises:
            TypeError: a tensor's type cannot be converted to float64 or int64 without loss.
        """
        entries, floats, ints = [], 0, 0
        for name, array in arrays.items():
            # Not longdouble or uint64: they do not fit into float64 or int64, and nothing may change a weight
            # unnoticed.
            if array.dtype.kind == "f" and array.dtype.itemsize <= 8:
                floats, columns = floats + array.size, slice(floats, floats + array.size)
            elif np.can_cast(array.dtype, np.int64):
                ints, columns = ints + array.size, slice(ints, ints + array.size)
            else:
                raise TypeError(
                    f"tensor '{name}' is {array.dtype}; supported are floats up to float64 and integers up to int64"
                )
            buffer = name.rpartition(".")[2] in _STATISTICS if buffers is None else name in buffers
            entries.append(Entry(name, tuple(array.shape), array.dtype.name, columns, buffer, name in frozen))
        return cls(tuple(entries), tuple(blocks), head)

    @cached_property
    def size(self) -> int:
        """P, the number of floating-point values."""
        return max((entry.columns.stop for entry in self.entries if not entry.integer), default=0)

    @cached_property
    def counters(self) -> int:
        """Q, the number of integer values."""
        return max((entry.columns.stop for entry in self.entries if entry.integer), default=0)

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The type of `Packed.floats`."""
        # float32 at least: sums of float16 weights would overflow and lose digits in every algorithm.
        return np.result_type(np.float32, *(entry.dtype for entry in self.entries if not entry.integer))

    @cached_property
    def nbytes(self) -> int:
        """The bytes of a model as two flat vectors."""
        return self.size * self.dtype.itemsize + self.counters * np.dtype(np.int64).itemsize

    @cached_property
    def trainable(self) -> int:
        """The number of trainable values."""
        return sum(part.stop - part.start for part in self.parameters)

    @cached_property
    def parameters(self) -> Columns:
        """The column range of each trainable tensor in `Packed.floats`."""
        return tuple(e.columns for e in self.entries if not (e.buffer or e.frozen or e.integer))

    @cached_property
    def frozen(self) -> Columns:
        """The column range of each parameter in `Packed.floats` that is not trained."""
        return tuple(entry.columns for entry in self.entries if entry.frozen and not entry.integer)

    @cached_property
    def buffers(self) -> Columns:
        """The column range of each buffer in `Packed.floats`, such as BatchNorm's statistics."""
        return tuple(entry.columns for entry in self.entries if entry.buffer and not entry.integer)

    @cached_property
    def variances(self) -> Columns:
        """The column range of each variance in `Packed.floats`, which must not be negative."""
        return tuple(entry.columns for entry in self.entries if entry.name.rpartition(".")[2] == "running_var")

    @cached_property
    def named(self) -> bool:
        """Whether the tensors have names; a model that was sent as a list of arrays has only their indices."""
        return not all(entry.name.isdigit() for entry in self.entries)

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of names, shapes and types: equal for two models of the same architecture."""
        # Without `blocks`, `buffer` and `frozen`: a model that arrives as a record does not state them, and the
        # vectors are equal.
        facts = json.dumps([(entry.name, entry.shape, entry.dtype) for entry in self.entries])
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    def pack(self, arrays: Mapping[str, NDArray[np.generic]]) -> Packed:
        """Copy a state_dict into two flat vectors.

        Args:
            arrays: NumPy arrays with this layout's names, shapes and types.

        Raises:
            ValueError: a tensor is missing, unknown, or of another shape or type.
        """
        if wrong := sorted(set(arrays) ^ {entry.name for entry in self.entries}):
            raise ValueError(f"the tensors {', '.join(wrong)} are missing or unknown")
        packed = Packed(np.empty(self.size, self.dtype), np.empty(self.counters, np.int64))
        for entry in self.entries:
            array = arrays[entry.name]
            if array.shape != entry.shape or array.dtype.name != entry.dtype:
                found = f"{array.dtype.name}{list(array.shape)}"
                raise ValueError(f"tensor '{entry.name}' is {found}, expected {entry.dtype}{list(entry.shape)}")
            (packed.ints if entry.integer else packed.floats)[entry.columns] = array.reshape(-1)
        return packed

    def check(self, packed: Packed) -> None:
        """Check that vectors have this layout's lengths.

        Raises:
            ValueError: they are not.
        """
        if packed.floats.shape != (self.size,) or packed.ints.shape != (self.counters,):
            found = f"{len(packed.floats)} + {len(packed.ints)}"
            raise ValueError(f"the vectors have {found} values, expected {self.size} + {self.counters}")

    def unpack(self, packed: Packed) -> dict[str, NDArray[np.generic]]:
        """Return a model's tensors by name, as views where the types are equal.

        Args:
            packed: [P] floats and [Q] ints.

        Raises:
            ValueError: the vectors are not of this layout's lengths.
        """
        self.check(packed)
        return {
            entry.name: (packed.ints if entry.integer else packed.floats)[entry.columns]
            .astype(entry.dtype, copy=False)
            .reshape(entry.shape)
            for entry in self.entries
        }
