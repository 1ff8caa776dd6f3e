"""Model recombination: which part of which model each slot gets next.

Between two rounds every unit (a layer, for instance) is permuted across the K models, independently of the other
units. Nothing is averaged and nothing is lost: in each unit the K pieces stay the same, only their places change.

Source: Hu et al., "Is Aggregation the Only Choice? Federated Learning via Layer-wise Model Recombination",
KDD 2024 (arXiv 2305.10730).
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedmr_flwr.core.layout import Columns, Entry, Layout, Packed
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.core.units import Spec, Unit, units
from fedmr_flwr.errors import ConfigError

Buffers = Literal["move", "average"]
# [U, K]: new slot i gets unit u from old slot [u, i].
Sources = NDArray[np.int64]
T = TypeVar("T")


class Parts(NamedTuple):
    """A model that is not put together yet.

    Attributes:
        floats: views whose concatenation is its [P] floats.
        ints: views whose concatenation is its [Q] ints.
    """

    floats: list[NDArray[Any]]
    ints: list[NDArray[Any]]


def sources(seed: int, number: int, first_stage_rounds: int, units: int, slots: int) -> Sources | None:
    """Return where the models of a round come from. It follows from the arguments alone, so anyone can check it.

    Args:
        seed: the seed of the run.
        number: the round that the models are for, 1 for the first.
        first_stage_rounds: B; after each of the first B rounds the population is averaged instead.
        units: U, the number of units.
        slots: K, the number of models.

    Returns:
        [U, K]: new slot i gets unit u from old slot [u, i]; None where every slot gets the global model.
    """
    if number - 1 <= first_stage_rounds:
        return None
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
    return rng.permuted(np.tile(np.arange(slots), (units, 1)), axis=1)


def gather(pieces: Sequence[Sequence[T]], owners: Sequence[int], sources: Sources) -> list[list[T]]:
    """Recombine models that are cut into pieces; the pieces are handed on, never copied.

    Args:
        pieces: [K][N], the N pieces of each of K models, all cut alike; of any type.
        owners: [N], the unit that each piece belongs to.
        sources: [U, K]: new slot i gets unit u from old slot [u, i].

    Returns:
        [K][N]: piece n of new slot i is pieces[sources[owners[n], i]][n].
    """
    return [[pieces[source[unit]][at] for at, unit in enumerate(owners)] for source in sources.T]


def sorted_ranges(units: Sequence[Columns], width: int) -> list[tuple[slice, int]]:
    """List the column ranges of all units from left to right.

    Args:
        units: the column ranges of each unit.
        width: P, the number of columns.

    Returns:
        (range, index of its unit) for every range that is not empty.

    Raises:
        ValueError: the units overlap or leave columns out.
    """
    ranges = [(part, unit) for unit, columns in enumerate(units) for part in columns if part.start < part.stop]
    ranges.sort(key=lambda found: found[0].start)
    edges = [0, *(part.stop for part, _ in ranges)]
    if [part.start for part, _ in ranges] != edges[:-1] or edges[-1] != width:
        raise ValueError(f"the units must cover {width} columns once each")
    return ranges


class Recombination:
    """Layer-wise recombination of the models of one layout.

    Args:
        layout: of the models.
        unit: what moves as one piece; see `fedmr_flwr.core.units`.
        buffers: "move": buffers, such as BatchNorm's statistics, move with their unit; "average": every slot
            gets the buffers of the global model.

    Attributes:
        units: the units, in the order of the state_dict.

    Raises:
        ConfigError: the unit or the buffers do not fit the layout.
    """

    def __init__(self, layout: Layout, unit: Spec = "layer", buffers: Buffers = "move") -> None:
        if buffers == "average" and not layout.named:
            raise ConfigError(
                "buffers 'average' needs the names of the tensors, and this model has only their numbers; send "
                "ArrayRecord(model.state_dict()), give keys=list(model.state_dict()), or leave it out"
            )
        self.units = units(layout, unit)
        moving: tuple[Unit, ...] = self.units
        if buffers == "average":
            moving = tuple(_without_buffers(unit, layout) for unit in moving)
        floats, ints = [unit.floats for unit in moving], [unit.ints for unit in moving]
        if buffers == "average":  # one unit more, which comes from the global model
            kept = [entry for entry in layout.entries if entry.buffer]
            floats.append(tuple(entry.columns for entry in kept if not entry.integer))
            ints.append(tuple(entry.columns for entry in kept if entry.integer))
        self._floats = sorted_ranges(floats, layout.size)
        self._ints = sorted_ranges(ints, layout.counters)

    def gather(self, models: Sequence[Packed], global_model: Packed, sources: Sources) -> list[Parts]:
        """Recombine a population; nothing is copied.

        Args:
            models: K models.
            global_model: from which averaged buffers come.
            sources: [U, K], from `sources`.

        Returns:
            K models in parts.
        """
        # The global model is one slot more, and what comes from it one unit more.
        from_global = np.vstack([sources, np.full((1, len(models)), len(models))])
        floats = _recombined([*(model.floats for model in models), global_model.floats], self._floats, from_global)
        ints = _recombined([*(model.ints for model in models), global_model.ints], self._ints, from_global)
        return [Parts(*both) for both in zip(floats, ints, strict=True)]


def _recombined(
    vectors: Sequence[NDArray[Any]], ranges: Sequence[tuple[slice, int]], sources: Sources
) -> list[list[NDArray[Any]]]:
    pieces = [[vector[part] for part, _ in ranges] for vector in vectors]
    return gather(pieces, [unit for _, unit in ranges], sources)


def _without_buffers(unit: Unit, layout: Layout) -> Unit:
    def columns(entries: list[Entry], integer: bool) -> Columns:
        return tuple(entry.columns for entry in entries if entry.integer == integer)

    own = [entry for entry in layout.entries if entry.name in unit.keys and not entry.buffer]
    return Unit(unit.name, unit.keys, columns(own, False), columns(own, True))
