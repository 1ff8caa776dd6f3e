"""A round between its two halves: which client trains which slot, and from which model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedmr_flwr.algorithms.contract import Reply, Round, Slot
from fedmr_flwr.core.layout import Packed
from fedmr_flwr.core.recombination import Parts


@dataclass(frozen=True)
class Plan:
    """The clients and models of a round.

    Attributes:
        round: the round.
        clients: [K], the client that trains each slot; None: not trained in this round.
        models: the model of each slot.
    """

    round: Round
    clients: tuple[int | None, ...]
    models: Sequence[Packed | Parts]

    def results(self, replies: Mapping[int, Reply], decode: Callable[[int], Packed]) -> list[Slot]:
        """Return the slots after training.

        Args:
            replies: the good ones by client.
            decode: returns the model of a slot as its client decoded it.
        """

        def slot(at: int, client: int | None) -> Slot:
            # Not decoded yet: only slots without a reply need the model that was sent.
            return Slot(client, None if client is None else replies.get(client), lambda: decode(at))

        return [slot(at, client) for at, client in enumerate(self.clients)]
