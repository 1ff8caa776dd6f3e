"""Sealed models as arrays of bytes: their units one after another, for who has no key, too."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord
from numpy.typing import DTypeLike, NDArray

from fedmr_flwr.config.settings import Settings
from fedmr_flwr.core.dealing import Dealing
from fedmr_flwr.core.layout import Layout
from fedmr_flwr.core.units import Unit, units
from fedmr_flwr.errors import RecordError
from fedmr_flwr.wire.messages import FLOATS, INTS
from fedmr_flwr.wire.npy import join, view
from fedmr_flwr.wire.sealing import MOST_BYTES, OVERHEAD, UNTRAINED, origin_of

# A unit of a model, sealed or untrained.
Piece = NDArray[np.uint8]
# The name of the array of sealed models in a record, beside the initial model's where some of them need it.
SEALED = "sealed"
# Keys of a message's configuration: the SHA-256 of the initial model, the rounds in which nothing changed, and of a
# whole population the round of its latest deal and the examples of each slot.
START, SKIPPED, DEALT, WEIGHTS = "sealed-start", "sealed-skipped", "sealed-dealt", "sealed-examples"


def dealing_of(settings: Settings, layout: Layout) -> Dealing:
    """Return the draws and deals of a sealed run.

    Args:
        settings: of the run.
        layout: of its models.
    """
    options = settings.strategy.options.model_dump()
    return Dealing(
        settings.seed,
        settings.clients,
        settings.clients_per_round,
        options["population"] or settings.clients_per_round,
        units(layout, options.get("unit", "layer")),
        recombines="unit" in options,
    )


class SealedCodec:
    """Conversion of models of sealed units to arrays of bytes and back.

    Args:
        of_model: its units.
        dtype: of the values that are sealed.

    Raises:
        RecordError: a unit is too large to be sealed.
    """

    def __init__(self, of_model: Sequence[Unit], dtype: DTypeLike) -> None:
        ints = [sum(part.stop - part.start for part in unit.ints) for unit in of_model]
        size, counter = np.dtype(dtype).itemsize, np.dtype(np.int64).itemsize
        self._lengths: list[int] = [
            size * unit.size + counter * count for unit, count in zip(of_model, ints, strict=True)
        ]
        for unit, length in zip(of_model, self._lengths, strict=True):
            if length > MOST_BYTES:
                raise RecordError(
                    f"unit '{unit.name}' has {length} bytes, too many to be sealed; choose smaller units"
                )

    @property
    def nbytes(self) -> int:
        """The bytes of a model."""
        return sum(OVERHEAD + length for length in self._lengths)

    def untrained(self) -> list[Piece]:
        """Return the initial model, whose units are not sealed."""
        return [np.frombuffer(UNTRAINED, np.uint8)] * len(self._lengths)

    def join(self, models: Iterable[Sequence[Piece]]) -> Array:
        """Put models into one array."""
        return join([piece for model in models for piece in model], np.uint8)

    def split(self, joined: NDArray[np.generic], count: int = 1) -> list[list[Piece]]:
        """Return the models of an array, as views of it.

        Args:
            joined: the result of `join`.
            count: of models.

        Raises:
            RecordError: it does not consist of so many whole models.
        """
        if joined.dtype != np.uint8 or joined.ndim != 1:
            raise RecordError(f"sealed models are {joined.dtype}{list(joined.shape)}, expected a vector of bytes")
        models, at = [], 0
        # Not until the end of the bytes: a reply of zeros would be millions of units that nobody has trained.
        for _ in range(count):
            model = []
            for length in self._lengths:
                sealed = origin_of(joined[at:].data).round > 0
                end = at + (OVERHEAD + length if sealed else len(UNTRAINED))
                if end > len(joined):
                    raise RecordError(f"sealed models end after {len(joined)} bytes, within a unit")
                model.append(joined[at:end].view(np.uint8))
                at = end
            models.append(model)
        if at < len(joined):
            raise RecordError(f"sealed models have {len(joined) - at} bytes too many; expected {count} of them")
        return models

    def split_record(self, record: ArrayRecord, count: int) -> list[list[Piece]]:
        """Return the models of a record's array.

        Args:
            record: of a message.
            count: of models.

        Raises:
            RecordError: it has no such array, or another number of models.
        """
        if SEALED not in record:
            raise RecordError(f"the record has no array '{SEALED}'; server and clients need the same privacy.sealed")
        return self.split(view(record[SEALED]), count)


def initial_arrays(record: ArrayRecord) -> ArrayRecord:
    """Return the part of a record that is the initial model."""
    return ArrayRecord({name: record[name] for name in (FLOATS, INTS) if name in record})


def hash_initial(record: ArrayRecord) -> str:
    """Return the SHA-256 of the initial model."""
    sha = hashlib.sha256()
    for name in (FLOATS, INTS):
        if name in record:
            sha.update(record[name].data)
    return sha.hexdigest()


def has_untrained(models: Iterable[Sequence[Piece]]) -> bool:
    """Return whether some unit is the initial model's."""
    return any(len(piece) == len(UNTRAINED) for model in models for piece in model)


def skipped_rounds(config: ConfigRecord | Mapping[str, object]) -> tuple[int, ...]:
    """Return the rounds of a message's configuration in which nothing changed."""
    listed = config.get(SKIPPED, ())
    return tuple(number for number in listed if isinstance(number, int)) if isinstance(listed, Iterable) else ()
