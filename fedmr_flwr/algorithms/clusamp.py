"""CluSamp: FedAvg that draws clients from clusters of similar updates, so that a round represents all of them.

Source: Fraboni et al., "Clustered Sampling: Low-Variance and Improved Representativity for Clients Selection in
Federated Learning", ICML 2021, algorithm 2; L1 distance as in the code that was published with FedMR.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fedmr_flwr.algorithms.base import Algorithm
from fedmr_flwr.algorithms.contract import Combined, Round, Slot, StateArrays
from fedmr_flwr.core.layout import Floats, Layout, Packed
from fedmr_flwr.core.population import average
from fedmr_flwr.errors import ConfigError


@dataclass(frozen=True)
class CluSampState:
    """The state of CluSamp.

    Attributes:
        by_client: what each client that has taken part last added to its model, over trainable parameters.
    """

    by_client: Mapping[int, Floats]

    def arrays(self) -> StateArrays:
        """Return each client's update."""
        return {f"update.{client}": update for client, update in sorted(self.by_client.items())}

    @classmethod
    def from_arrays(cls, arrays: StateArrays) -> Self:
        """Make them again."""
        return cls({int(name.removeprefix("update.")): update for name, update in arrays.items()})


class CluSamp(Algorithm[CluSampState]):
    """Averaging with clustered sampling.

    The server keeps what each client last added to its model; a client that never took part counts as having
    added nothing. Before each round it clusters these updates by Ward's method on their L1 distances, makes M
    distributions over clients of them, draws one client from each, and averages the drawn models with weight
    1 / M. A client that is drawn twice trains once and counts twice.

    The updates cost the server 4 bytes per parameter and client that has taken part.

    For the arguments see `Algorithm`.
    """

    def init(self, layout: Layout, slots: int) -> CluSampState:
        """Start without updates: no client has taken part."""
        self._measured: dict[int, Floats] = {}  # the updates between which the distances below were taken
        self._distances = np.zeros((0, 0))
        return CluSampState({})

    def clients(self, round: Round) -> list[int]:
        """Draw one client from each distribution."""
        if round.examples is None:
            raise ConfigError(
                "clusamp draws clients by their numbers of examples, and not all clients have stated theirs; "
                "let them answer queries with 'client' and 'num-examples', or choose another strategy"
            )
        rng = round.stream("select")
        shares = distributions(round.examples, self._all_distances(round.num_clients), self.clients_per_round)
        return [int(rng.choice(len(row), p=row / row.sum())) for row in shares]

    def models(self, round: Round) -> Sequence[Packed]:
        """Send the global model to everyone."""
        return [round.global_model] * self.slots

    def combine(self, round: Round, slots: Sequence[Slot]) -> Combined[CluSampState]:
        """Average the models that came back, each as often as it was drawn, and remember their updates."""
        good = {slot.client: slot.reply.model for slot in slots if slot.reply and slot.client is not None}
        before, columns = round.global_model.floats, round.layout.parameters
        updates = {
            client: np.concatenate([model.floats[part] - before[part] for part in columns])
            for client, model in good.items()
        }
        times = Counter(slot.client for slot in slots)
        model = average([*good.values()], [times[client] for client in good])
        return Combined(model, CluSampState({**self.state.by_client, **updates}))

    def _all_distances(self, num_clients: int) -> NDArray[np.float64]:
        """Return the distances of all clients' updates, [N, N]; only those that changed are measured."""
        updates = self.state.by_client
        if len(self._distances) != num_clients:
            self._measured, self._distances = {}, np.zeros((num_clients, num_clients))
        for one in [client for client, update in updates.items() if self._measured.get(client) is not update]:
            for other in range(num_clients):
                if other != one:
                    distance = _distance(updates[one], updates.get(other))
                    self._distances[one, other] = self._distances[other, one] = distance
        self._measured = dict(updates)
        return self._distances


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
