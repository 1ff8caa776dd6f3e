"""Model recombination: each slot's next model is put together from parts of different models.

Between two rounds every unit (a layer, for instance) is permuted across the K models, independently of the other
units. Nothing is averaged and nothing is lost: the K pieces of each unit only change slots.

Source: Hu et al., "Is Aggregation the Only Choice? Federated Learning via Layer-wise Model Recombination",
KDD 2024 (arXiv 2305.10730).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedmr_flwr.core.layout import Columns, Entry, Layout, Packed
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.core.units import Spec, Unit, sorted_ranges, units
from fedmr_flwr.errors import OptionError

Buffers = Literal["move", "average"]
# [U, K]: new slot i gets unit u from old slot [u, i].
Sources = NDArray[np.int64]
T = TypeVar("T")


class Parts(NamedTuple):
    """A model as a list of pieces that are not joined yet.

    Attributes:
        floats: views whose concatenation is its [P] floats.
        ints: views whose concatenation is its [Q] ints.
    """

    floats: list[NDArray[Any]]
    ints: list[NDArray[Any]]


def sources(seed: int, number: int, first_stage_rounds: int, units: int, slots: int) -> Sources | None:
    """Return the source of every unit of every slot in a round, which anyone can check from the arguments.

    Args:
        seed: the seed of the run.
        number: the round in which the models are trained next, 1 for the first.
        first_stage_rounds: B; after each of the first B rounds the population is averaged instead.
        units: U, the number of units.
        slots: K, the number of models.

    Returns:
        [U, K]: new slot i gets unit u from old slot [u, i]; None where every slot gets the global model.
    """
    # Round 1 is included: before it there is nothing to recombine, every slot holds the initial model.
    if number - 1 <= first_stage_rounds:
        return None
    # All K models take part, also those that wait: with only some of them the mean would change.
    return draw_permutations(units, slots, stream(seed, "recombine", number))


def draw_permutations(units: int, slots: int, rng: np.random.Generator) -> Sources:
    """Draw, for every unit, an independent uniform permutation of the slots.

    Args:
        units: U, the number of units.
        slots: K, the number of models.
        rng: the only source of randomness.

    Returns:
        [U, K], every row a permutation of 0..K-1.

    Source: Hu et al., KDD 2024, model recombination.
    """
    # Permutations, not independent draws: with replacement some pieces would be lost and the mean would change.
    return rng.permuted(np.tile(np.arange(slots), (units, 1)), axis=1)


def gather(pieces: Sequence[Sequence[T]], owners: Sequence[int], sources: Sources) -> list[list[T]]:
    """Recombine models that are cut into pieces; the pieces are passed on, never copied.

    Args:
        pieces: [K][N], the N pieces of each of K models, all cut at the same positions; of any type.
        owners: [N], the unit of each piece.
        sources: [U, K]: new slot i gets unit u from old slot [u, i].

    Returns:
        [K][N]: piece n of new slot i is pieces[sources[owners[n], i]][n].
    """
    return [[pieces[source[unit]][at] for at, unit in enumerate(owners)] for source in sources.T]


class Recombination:
    """Layer-wise recombination of the models of one layout.

    Args:
        layout: of the models.
        unit: the specification of the units; see `fedmr_flwr.core.units`.
        buffers: "move": buffers, such as BatchNorm's statistics, move with their unit; "average": every slot
            gets the buffers of the global model.

    Attributes:
        units: the units, in the order of the state_dict.

    Raises:
        ConfigError: the unit or the buffers do not fit the layout.
    """

    def __init__(self, layout: Layout, unit: Spec = "layer", buffers: Buffers = "move") -> None:
        if buffers == "average" and not layout.named:
            raise OptionError(
                "buffers",
                "'average' needs the names of the tensors, and this model has only their indices; send "
                "ArrayRecord(model.state_dict()), pass keys=list(model.state_dict()), or leave it out",
            )
        self.units = units(layout, unit)
        moving: tuple[Unit, ...] = self.units
        if buffers == "average":
            entries = {entry.name: entry for entry in layout.entries}
            moving = tuple(_without_buffers(unit, entries) for unit in moving)
        floats, ints = [unit.floats for unit in moving], [unit.ints for unit in moving]
        if buffers == "average":
            # One more unit, which is never permuted, so that "average" draws the same permutations as "move".
            averaged = [entry for entry in layout.entries if entry.buffer]
            floats.append(tuple(entry.columns for entry in averaged if not entry.integer))
            ints.append(tuple(entry.columns for entry in averaged if entry.integer))
        self._floats = sorted_ranges(floats, layout.size)
        self._ints = sorted_ranges(ints, layout.counters)

    def gather(self, models: Sequence[Packed], global_model: Packed, sources: Sources) -> list[Parts]:
        """Recombine a population; nothing is copied.

        Args:
            models: K models.
            global_model: the source of averaged buffers.
            sources: [U, K], from `sources`.

        Returns:
            K models in parts.
        """
        # The global model is slot K, and the averaged buffers, if any, are unit U: then one rule serves both cases.
        from_global = np.vstack([sources, np.full((1, len(models)), len(models))])
        floats = _recombined([*(model.floats for model in models), global_model.floats], self._floats, from_global)
        ints = _recombined([*(model.ints for model in models), global_model.ints], self._ints, from_global)
        return [Parts(*both) for both in zip(floats, ints, strict=True)]


def _recombined(
    vectors: Sequence[NDArray[Any]], ranges: Sequence[tuple[slice, int]], sources: Sources
) -> list[list[NDArray[Any]]]:
    pieces = [[vector[part] for part, _ in ranges] for vector in vectors]
    return gather(pieces, [unit for _, unit in ranges], sources)


def _without_buffers(unit: Unit, entries: Mapping[str, Entry]) -> Unit:
    def columns(entries: list[Entry], integer: bool) -> Columns:
        return tuple(entry.columns for entry in entries if entry.integer == integer)

    own = [entries[key] for key in unit.keys if not entries[key].buffer]
    return Unit(unit.name, unit.keys, columns(own, False), columns(own, True))
