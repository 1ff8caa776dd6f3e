"""A client's half of sealed recombination: it opens what the server dealt it, and seals what it has trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord
from numpy.typing import NDArray

from fedmr_flwr.config.settings import Settings
from fedmr_flwr.core.dealing import Dealing
from fedmr_flwr.core.layout import Columns, Packed
from fedmr_flwr.core.population import average
from fedmr_flwr.errors import SealError
from fedmr_flwr.wire.checks import is_finite
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.messages import FLOATS, INTS, ROUND
from fedmr_flwr.wire.npy import view
from fedmr_flwr.wire.sealed import (
    DEALT,
    SEALED,
    WEIGHTS,
    Piece,
    SealedCodec,
    dealing_of,
    hash_initial,
)
from fedmr_flwr.wire.sealing import Binding, Origin, open_sealed, origin_of, seal


@dataclass(frozen=True)
class Seals:
    """Opens and seals the models of a run at one moment.

    Attributes:
        dealing: who trains what, and where each unit comes from.
        codec: of the models without seals.
        weighting: of the models' mean.
        key: [32], of all nodes.
        binding: what the units belong to.
        skipped: the rounds that have moved nothing.
        initial: the initial model, if some units are still its own.
    """

    dealing: Dealing
    codec: Codec
    weighting: str
    key: bytes
    binding: Binding
    skipped: tuple[int, ...]
    initial: Packed | None

    @classmethod
    def of_run(
        cls, settings: Settings, codec: Codec, key: bytes, run: str, initial: ArrayRecord, start: str,
        skipped: tuple[int, ...],
    ) -> Self:  # fmt: skip
        """Return the seals of a run.

        Args:
            settings: of the run.
            codec: of its models.
            key: of all nodes.
            run: the identifier of the run.
            initial: the initial model, empty if it is not needed.
            start: the SHA-256 of the initial model.
            skipped: the rounds that have moved nothing.

        Raises:
            SealError: the initial model is another one.
        """
        # The clients' units are bound to the hash, so that nobody can exchange the initial model during a run.
        if initial and hash_initial(initial) != start:
            raise SealError("the initial model is not the one with which the run has begun")
        dealing = dealing_of(settings, codec.layout)
        return cls(
            dealing,
            codec,
            str(settings.strategy.options.model_dump()["weighting"]),
            key,
            # With the deals, because each message states the seed: another one could move a unit anywhere.
            Binding(run, codec.layout.fingerprint, start, dealing.fingerprint),
            skipped,
            codec.decode(initial) if initial else None,
        )

    def received(self, client: int, config: ConfigRecord, arrays: ArrayRecord, scores: bool) -> Packed:
        """Open the model of a message: the one that the client is to train, or the mean that it is to score.

        Args:
            client: that received it.
            config: of the message.
            arrays: of the message.
            scores: whether the client is to score it.

        Raises:
            SealError: a unit cannot be opened, or is not the one that should be there.
        """
        if (DEALT in config) != scores:
            raise SealError("a client trains the model of its own slot, and scores the mean of all models")
        if scores:
            population = self._sealed.split_record(arrays, self.dealing.slots)
            examples, dealt = np.array(config[WEIGHTS]), config[DEALT]
            assert isinstance(dealt, int)
            return self.mean(population, examples, dealt)
        number = config[ROUND]
        assert isinstance(number, int)
        (model,) = self._sealed.split_record(arrays, 1)
        return self.open(model, self._slot(client, number), number, newest=number - 1)

    def sealed(self, client: int, number: int, trained: ArrayRecord) -> ArrayRecord:
        """Seal a trained model.

        Args:
            client: that trained it.
            number: of the round.
            trained: as it would be sent without a seal.

        Raises:
            SealError: it has NaN or infinite values, which the server cannot see.
        """
        floats, ints = _vectors(trained)
        if not is_finite(floats):
            raise SealError("the trained model has NaN or infinite values")
        origin = Origin(number, self._slot(client, number))
        pieces = [
            np.frombuffer(seal(self.key, self.binding, origin, at, content, self.skipped), np.uint8)
            for at, content in enumerate(
                _joined(floats, unit.floats) + _joined(ints, unit.ints) for unit in self.dealing.units
            )
        ]
        return ArrayRecord({SEALED: self._sealed.join([pieces])})

    def mean(self, population: Sequence[Sequence[Piece]], examples: NDArray[np.float64], dealt: int) -> Packed:
        """Open a whole population, and return its mean, which is the global model, with the rounding of the wire.

        Args:
            population: [K][U].
            examples: [K], the number of examples that each slot was last trained on.
            dealt: the round of the latest deal.

        Raises:
            SealError: a unit cannot be opened, or is not the one that should be there; or some are missing.
        """
        if len(population) != self.dealing.slots:
            raise SealError(f"there are {len(population)} sealed models, expected {self.dealing.slots}")
        # Some client has trained in the round, or it would not have counted.
        if max(origin_of(piece.data).round for model in population for piece in model) != dealt:
            raise SealError(f"no unit is of round {dealt}, which is said to be the latest")
        models = [self.open(model, slot, dealt, newest=dealt) for slot, model in enumerate(population)]
        # At the start all are the initial model, and have no examples yet.
        weights = examples.tolist() if self.weighting == "examples" and dealt else None
        if weights is not None and not _weigh(weights, len(models)):
            raise SealError("the numbers of examples are not the weights of a mean")
        mean = average(models, weights)
        return self.codec.decode(self.codec.encode(mean))

    def open(self, model: Sequence[Piece], slot: int, number: int, newest: int) -> Packed:
        """Open the units of a slot.

        Args:
            model: [U].
            slot: its number.
            number: the round of the latest deal.
            newest: the latest round in which a unit may have been sealed.
        """
        layout = self.codec.layout
        floats, ints = np.empty(layout.size, self.codec.wire), np.empty(layout.counters, np.int64)
        for at, (unit, piece) in enumerate(zip(self.dealing.units, model, strict=True)):
            origin = origin_of(piece.data)
            if not origin.round:
                self._take_initial(floats, ints, unit.floats, unit.ints)
                continue
            if origin.round > newest:
                raise SealError(f"unit '{unit.name}' of slot {slot} is of round {origin.round}, which is not over")
            self._check_origin(origin, at, slot, number)
            try:
                content = open_sealed(self.key, self.binding, at, piece.data, self.skipped)
                split = unit.size * floats.itemsize
                if not is_finite(np.frombuffer(content[:split], floats.dtype)):
                    raise SealError("it has NaN or infinite values")
            except SealError as error:
                trained_by = self.dealing.assign(origin.round)[origin.slot]
                raise SealError(
                    f"'{unit.name}' of slot {slot}, which client {trained_by} has sealed: {error}"
                ) from None
            _fill(floats, unit.floats, content[:split])
            _fill(ints, unit.ints, content[split:])
        return Packed(floats.astype(layout.dtype, copy=False), ints)

    @property
    def _sealed(self) -> SealedCodec:
        return SealedCodec(self.dealing.units, self.codec.wire)

    def _check_origin(self, origin: Origin, unit: int, slot: int, number: int) -> None:
        """Check that a unit comes from where the deals have taken it from."""
        expected = self.dealing.trace(unit, slot, number, origin.round, self.skipped)
        if origin.slot != expected or origin.round in self.skipped:
            raise SealError(
                f"unit '{self.dealing.units[unit].name}' of slot {slot} is the one of round {origin.round}, slot "
                f"{origin.slot}, but by the deals up to round {number} it comes from slot {expected}: it was "
                "repeated, swapped or held back on its way"
            )

    def _take_initial(self, floats: NDArray[Any], ints: NDArray[Any], own: Columns, own_ints: Columns) -> None:
        if self.initial is None:
            raise SealError("a unit is the initial model's, which is not there")
        for part in own:
            floats[part] = self.initial.floats[part]
        for part in own_ints:
            ints[part] = self.initial.ints[part]

    def _slot(self, client: int, number: int) -> int:
        """Return the slot that a client trains in a round."""
        drawn = self.dealing.assign(number)
        if client not in drawn:
            raise SealError(f"the server asks client {client} to train in round {number}, for which it is not drawn")
        return drawn.index(client)


def _weigh(weights: Sequence[float], count: int) -> bool:
    """Return whether numbers can weigh a mean of so many models."""
    return len(weights) == count and min(weights) >= 0 and 0 < sum(weights) < math.inf


def _vectors(record: ArrayRecord) -> tuple[NDArray[Any], NDArray[Any]]:
    return view(record[FLOATS]), view(record[INTS]) if INTS in record else np.empty(0, np.int64)


def _joined(values: NDArray[Any], columns: Columns) -> bytes:
    return b"".join(values[part].tobytes() for part in columns)


def _fill(values: NDArray[Any], columns: Columns, content: bytes) -> None:
    """Put the bytes of consecutive ranges into a vector."""
    given, at = np.frombuffer(content, values.dtype), 0
    for part in columns:
        end = at + part.stop - part.start
        values[part] = given[at:end]
        at = end
