"""The ledger of who took part: the latest round with a good reply of each client."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message
from numpy.typing import NDArray

from fedmr_flwr.wire.grids.roster import RosterGrid
from fedmr_flwr.wire.messages import CONFIG, LAST_ROUND


class Ledger:
    """The latest round with a good reply of each client.

    A client keeps its state by round, and each message states the round of its last good reply; so a lost reply
    counts for neither side.

    Args:
        clients: the number of clients.
    """

    def __init__(self, clients: int) -> None:
        self._last_rounds = np.zeros(clients, np.int64)

    def write_into(self, messages: Sequence[Message], grid: RosterGrid) -> None:
        """Add to each message the round of its client's last good reply, 0 if there was none."""
        for message in messages:
            client = grid.client_of(message.metadata.dst_node_id)
            last = {LAST_ROUND: int(self._last_rounds[client])}
            # A new record, because strategies send the same one to all clients.
            message.content[CONFIG] = ConfigRecord({**message.content.config_records[CONFIG], **last})

    def settle(self, number: int, clients: Sequence[int]) -> None:
        """Record a round as the last one of these clients."""
        self._last_rounds[list(clients)] = number

    def reset(self) -> None:
        """Forget all rounds, so that every client restarts from zero."""
        self._last_rounds[:] = 0

    def save(self) -> dict[str, NDArray[Any]]:
        """Return the ledger's state by name."""
        return {"last-rounds": self._last_rounds.copy()}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Continue from the result of an earlier `save`."""
        self._last_rounds = arrays["last-rounds"].copy()
