"""Who trains what, and where each unit comes from, in every round: functions of the seed that anyone can compute.

With them a client of a sealed run checks the server, which deals units that it cannot read.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from fedmr_flwr.core.drawing import draw_clients, draw_slots
from fedmr_flwr.core.recombination import Sources, sources
from fedmr_flwr.core.units import Unit


@dataclass(frozen=True)
class Dealing:
    """The draws and deals of a run.

    Attributes:
        seed: of the run.
        clients: N, the number of clients.
        clients_per_round: M, the number of clients drawn in a round.
        slots: K, the number of models.
        units: U, those that move as one piece.
        recombines: whether they move at all: those of FedMR do, those of Indep stay.
    """

    seed: int
    clients: int
    clients_per_round: int
    slots: int
    units: tuple[Unit, ...]
    recombines: bool

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that the draws and deals follow from."""
        columns = [each for unit in self.units for each in (unit.floats, unit.ints)]
        of_units = [[[part.start, part.stop] for part in each] for each in columns]
        facts = [self.seed, self.clients, self.clients_per_round, self.slots, self.recombines, of_units]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def assign(self, number: int) -> tuple[int | None, ...]:
        """Return the client that trains each slot in a round; None: it is not trained."""
        count = min(self.clients_per_round, self.clients)
        assigned: list[int | None] = [None] * self.slots
        drawn = draw_clients(number, self.seed, self.clients, count)
        for slot, client in zip(draw_slots(number, self.seed, self.slots, count), drawn, strict=True):
            assigned[slot] = client
        return tuple(assigned)

    def sources(self, number: int) -> Sources | None:
        """Return which slot each unit comes from in a round, [U, K]; None if none has moved."""
        return sources(self.seed, number, 0, len(self.units), self.slots) if self.recombines else None

    def trace(self, unit: int, slot: int, number: int, since: int, skipped: Collection[int]) -> int:
        """Return the slot in which a unit was at the end of an earlier round.

        Args:
            unit: its number.
            slot: that it is in after the deal of round `number`.
            number: the round of the latest deal.
            since: the earlier round.
            skipped: the rounds whose deals have moved nothing.
        """
        for past in range(number, since, -1):
            deal = None if past in skipped else self.sources(past)
            slot = slot if deal is None else int(deal[unit, slot])
        return slot
