"""CluSamp: FedAvg that draws clients from clusters of similar updates, so that a round represents all of them.

Source: Fraboni et al., "Clustered Sampling: Low-Variance and Improved Representativity for Clients Selection in
Federated Learning", ICML 2021, algorithm 2; L1 distance as in the code that was published with FedMR.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedmr_flwr.algorithms.base import Algorithm, Trained
from fedmr_flwr.core.layout import Floats
from fedmr_flwr.core.population import average
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.wire.grids.roster import RosterGrid


class CluSamp(Algorithm):
    """Averaging with clustered sampling.

    The server keeps what each client last added to its model; a client that never took part counts as having
    added nothing. Before each round it clusters these updates by Ward's method on their L1 distances, makes M
    distributions over clients of them, draws one client from each, and averages the drawn models with weight
    1 / M. A client that is drawn twice trains once and counts twice.

    The updates cost the server 4 bytes per parameter and client that has taken part.

    For the arguments see `Algorithm`.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._updates: dict[int, Floats] = {}
        self._distances: NDArray[np.float64] | None = None
        # The clients of this round with how often each was drawn, in the order of the slots.
        self._drawn: Counter[int] = Counter()
        self._start: Floats | None = None

    def _draw_clients(self, server_round: int, grid: Grid) -> list[int]:
        """Draw one client from each distribution; return each of them once."""
        examples = grid.examples if isinstance(grid, RosterGrid) else None
        if examples is None:
            raise ConfigError(
                "clusamp draws clients by their numbers of examples, and not all clients have said theirs; "
                "let them answer queries with 'client' and 'num-examples', or choose another strategy"
            )
        self._refresh(())
        assert self._distances is not None
        rng = stream(self.seed, "select", server_round)
        shares = distributions(examples, self._distances, self.clients_per_round)
        self._drawn = Counter(int(rng.choice(len(row), p=row / row.sum())) for row in shares)
        return list(self._drawn)

    def models(self, server_round: int, arrays: ArrayRecord) -> Sequence[ArrayRecord]:
        """Send the global model to everyone."""
        self._start = self.codec.decode(arrays).floats
        return [arrays] * self.clients_per_round

    def combine(self, server_round: int, trained: Sequence[Trained | None]) -> ArrayRecord:
        """Average the models that came back, each as often as it was drawn, and look at their updates."""
        assert self._start is not None
        good = [(client, reply) for client, reply in zip(self._drawn, trained, strict=False) if reply]
        for client, reply in good:
            columns = self.codec.layout.parameters
            self._updates[client] = np.concatenate([reply.model.floats[p] - self._start[p] for p in columns])
        self._refresh([client for client, _ in good])
        model = average([reply.model for _, reply in good], [self._drawn[client] for client, _ in good])
        return self.codec.encode([model.floats], [model.ints])

    def _refresh(self, changed: Sequence[int]) -> None:
        """Measure the distances of the clients that changed to all others."""
        if self._distances is None:
            self._distances = np.zeros((self.federation, self.federation))
            changed = list(self._updates)
        for one in changed:
            for other in range(self.federation):
                if other != one:
                    distance = _distance(self._updates[one], self._updates.get(other))
                    self._distances[one, other] = self._distances[other, one] = distance

    def state(self) -> dict[str, NDArray[Any]]:
        """Return every client's last update."""
        return {f"update.{client}": update for client, update in sorted(self._updates.items())}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take up the updates of an earlier `state`; their distances are measured anew."""
        self._updates = {int(name.removeprefix("update.")): update for name, update in state.items()}
        self._distances = None


def distributions(examples: NDArray[np.int64], distances: NDArray[np.float64], draws: int) -> NDArray[np.int64]:
    """Divide clients into distributions of similar ones, such that all draws together represent everyone.

    In whole numbers: each distribution has room for N units, where N is the number of all examples, and client i
    has draws * n_i of them. Whole distributions go to those who can fill them alone. The others are clustered, the
    tree of clusters is cut where they fit into one distribution, the largest clusters get one each, and the
    clients of the remaining clusters fill what is left.

    Args:
        examples: [C] the clients' numbers of examples, all positive.
        distances: [C, C] how unlike their updates are.
        draws: M, the number of distributions.

    Returns:
        [M, C] units; every row sums up to N and every column to M n_i, so that client i is expected to be drawn
        M n_i / N times.

    Source: Fraboni et al., ICML 2021, algorithm 2.
    """
    room = int(examples.sum())
    whole, rest = np.divmod(draws * examples, room)
    out = np.zeros((draws, len(examples)), np.int64)
    out[np.arange(whole.sum()), np.repeat(np.arange(len(examples)), whole)] = room
    shared = out[whole.sum() :]
    left = np.flatnonzero(rest)
    clusters = _clusters(rest[left], distances[np.ix_(left, left)], room)
    clusters.sort(key=lambda members: -int(rest[left[members]].sum()))  # stable: equal ones stay in order
    for row, members in zip(shared, clusters, strict=False):
        row[left[members]] = rest[left[members]]
    row = 0
    for client in left[list(chain.from_iterable(clusters[len(shared) :]))]:
        units = int(rest[client])
        while units:
            part = min(units, room - int(shared[row].sum()))
            shared[row, client] += part
            units -= part
            row += units > 0  # there is more of it than this distribution had room for
    return out


def _clusters(units: NDArray[np.int64], distances: NDArray[np.float64], room: int) -> list[list[int]]:
    """Cut the tree of Ward's clusters, from the top, into the largest ones that have no more than `room` units."""
    count = len(units)
    if count < 2:
        return [[at] for at in range(count)]
    # Here, because every process of a client imports this module, and SciPy takes half a second.
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    merges = linkage(squareform(distances, checks=False), "ward")[:, :2].astype(int)
    members = [[at] for at in range(count)]
    for one, other in merges:
        members.append(members[one] + members[other])
    found, open_nodes = [], [len(members) - 1]
    while open_nodes:
        node = open_nodes.pop()
        if units[members[node]].sum() <= room:
            found.append(members[node])
        else:
            open_nodes += merges[node - count].tolist()
    return found


def _distance(one: Floats, other: Floats | None) -> float:
    """Return the L1 distance of two updates; None has added nothing."""
    off = one if other is None else one - other
    return float(np.abs(off).sum(dtype=np.float64))
