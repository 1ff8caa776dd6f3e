"""FedMR's step between two rounds, apart from how models travel: which part of which model each slot gets.

Source: Hu et al., "Is Aggregation the Only Choice? Federated Learning via Layer-wise Model Recombination",
KDD 2024 (arXiv 2305.10730).
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedmr_flwr.core.layout import Columns, Entry, Layout, Packed
from fedmr_flwr.core.population import Sources, deal, in_order, pieces
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.core.units import Spec, Unit, units

Buffers = Literal["move", "average"]


class Parts(NamedTuple):
    """A model that is not put together yet.

    Attributes:
        floats: views whose concatenation is its [P] floats.
        ints: views whose concatenation is its [Q] ints.
    """

    floats: list[NDArray[Any]]
    ints: list[NDArray[Any]]


def shuffled(seed: int, server_round: int, first_stage_rounds: int, units: int, slots: int) -> Sources | None:
    """Draw what is dealt before a round.

    Args:
        seed: the seed of the run.
        server_round: the round that the models are dealt for, 1 for the first.
        first_stage_rounds: B: after each of the first B rounds the population is averaged.
        units: U, the number of units.
        slots: K, the number of models.

    Returns:
        [U, K]: slot i gets unit u from slot [u, i]; None where every slot gets the mean.
    """
    if server_round - 1 <= first_stage_rounds:
        return None
    return deal(units, slots, stream(seed, "recombine", server_round))


class Recombination:
    """Layer-wise recombination of one kind of model.

    Args:
        layout: of the models.
        unit: what moves as one piece; see `fedmr_flwr.units`.
        buffers: "move": buffers, such as BatchNorm's statistics, move with their unit; "average": every slot
            gets the buffers of the global model.

    Attributes:
        units: the units, in the order of the state_dict.

    Raises:
        ConfigError: the unit does not fit the layout.
    """

    def __init__(self, layout: Layout, unit: Spec = "layer", buffers: Buffers = "move") -> None:
        self.units = units(layout, unit)
        own: tuple[Unit, ...] = self.units
        if buffers == "average":
            own = tuple(_without_buffers(unit, layout) for unit in own)
        floats, ints = [unit.floats for unit in own], [unit.ints for unit in own]
        if buffers == "average":  # one unit more, which comes from the global model
            kept = [entry for entry in layout.entries if entry.buffer]
            floats.append(tuple(entry.columns for entry in kept if not entry.integer))
            ints.append(tuple(entry.columns for entry in kept if entry.integer))
        self._float_runs = in_order(floats, layout.size)
        self._int_runs = in_order(ints, layout.counters)

    def deal(self, population: Sequence[Packed], center: Packed, sources: Sources) -> list[Parts]:
        """Recombine a population; nothing is copied.

        Args:
            population: K models.
            center: the global model, from which averaged buffers come.
            sources: [U, K], of `shuffled`.

        Returns:
            K models in parts.
        """
        floats = [*(model.floats for model in population), center.floats]
        ints = [*(model.ints for model in population), center.ints]
        from_center = np.full((1, len(population)), len(population))
        return [
            Parts(pieces(floats, self._float_runs, source), pieces(ints, self._int_runs, source))
            for source in np.vstack([sources, from_center]).T
        ]


def _without_buffers(unit: Unit, layout: Layout) -> Unit:
    def columns(entries: list[Entry], integer: bool) -> Columns:
        return tuple(entry.columns for entry in entries if entry.integer == integer)

    own = [entry for entry in layout.entries if entry.name in unit.keys and not entry.buffer]
    return Unit(unit.name, unit.keys, columns(own, False), columns(own, True))
