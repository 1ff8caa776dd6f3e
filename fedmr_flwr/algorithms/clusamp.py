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
from fedmr_flwr.algorithms.weighting import Weighting, client_weights
from fedmr_flwr.config.sections import Section
from fedmr_flwr.core.layout import Floats, Layout, Packed
from fedmr_flwr.core.population import average


class CluSampOptions(Section):
    """Options of CluSamp.

    Attributes:
        weighting: of the clients in the draw: by their `examples`, as in the paper, or `uniform`. The drawn models
            have equal weights in either case: weights by examples would count the examples twice.
    """

    weighting: Weighting = "examples"


@dataclass(frozen=True)
class CluSampState:
    """The state of CluSamp.

    Attributes:
        by_client: the latest update of each client that has taken part, over trainable parameters.
    """

    by_client: Mapping[int, Floats]

    def arrays(self) -> StateArrays:
        """Return each client's update."""
        return {f"update.{client}": update for client, update in sorted(self.by_client.items())}

    @classmethod
    def from_arrays(cls, arrays: StateArrays) -> Self:
        """Restore the updates."""
        return cls({int(name.removeprefix("update.")): update for name, update in arrays.items()})


class CluSamp(Algorithm[CluSampState]):
    """Averaging with clustered sampling.

    The server keeps the latest update of each client; that of a client that never took part counts as
    zero. Before each round it clusters these updates by Ward's method on their L1 distances, derives M
    distributions over clients from them, draws one client from each, and averages the drawn models with weight
    1 / M. A client that is drawn twice trains once and counts twice.

    The updates take 4 bytes per parameter and client on the server.

    For the arguments see `CluSampOptions` and `Algorithm`.
    """

    options: CluSampOptions

    def init(self, layout: Layout, slots: int) -> CluSampState:
        """Start without updates: no client has taken part."""
        self._measured: dict[int, Floats] = {}  # the updates of the distances below
        self._distances = np.zeros((0, 0))
        return CluSampState({})

    def state_bytes(self, clients: int) -> int:
        """Return the bytes of the updates."""
        layout = self.codec.layout
        return clients * layout.trainable * layout.dtype.itemsize

    def clients(self, round: Round) -> list[int]:
        """Draw one client from each distribution."""
        counts = client_weights(round, self.options.weighting)
        rng = round.stream("select")
        shares = distributions(counts, self._all_distances(round.num_clients), self.clients_per_round)
        return [int(rng.choice(len(row), p=row / row.sum())) for row in shares]

    def models(self, round: Round) -> Sequence[Packed]:
        """Send the global model to everyone."""
        return [round.global_model] * self.slots

    def combine(self, round: Round, slots: Sequence[Slot]) -> Combined[CluSampState]:
        """Average the trained models, each as often as it was drawn, and keep their updates."""
        good = {slot.client: slot.reply.model for slot in slots if slot.reply and slot.client is not None}
        before, columns = round.global_model.floats, round.layout.parameters
        updates = {
            client: np.concatenate([model.floats[part] - before[part] for part in columns])
            for client, model in good.items()
        }
        # A client that was drawn twice sent one reply: its seed is the same, so a second training would return the
        # same model.
        times = Counter(slot.client for slot in slots)
        model = average([*good.values()], [times[client] for client in good])
        return Combined(model, CluSampState({**self.state.by_client, **updates}))

    def _all_distances(self, num_clients: int) -> NDArray[np.float64]:
        """Return the distances of all clients' updates, [N, N]."""
        updates = self.state.by_client
        if len(self._distances) != num_clients:
            self._measured, self._distances = {}, np.zeros((num_clients, num_clients))
        # Only those of changed updates: all pairs of 1,000 models in every round would take longer than training
        # them.
        # By identity: an update is replaced, never changed in place.
        for one in [client for client, update in updates.items() if self._measured.get(client) is not update]:
            for other in range(num_clients):
                if other != one:
                    distance = _distance(updates[one], updates.get(other))
                    self._distances[one, other] = self._distances[other, one] = distance
        self._measured = dict(updates)
        return self._distances


def distributions(examples: NDArray[np.int64], distances: NDArray[np.float64], draws: int) -> NDArray[np.int64]:
    """Divide clients into distributions of similar ones, so that all draws together represent all clients.

    In integers: each distribution has room for N units, where N is the number of all examples, and client i
    has draws * n_i of them. A client that can fill whole distributions alone gets them. The others are clustered, the
    tree of clusters is cut where they fit into one distribution, the largest clusters get one each, and the
    clients of the remaining clusters fill the remaining room.

    Args:
        examples: [C] the clients' numbers of examples, all positive.
        distances: [C, C] between their updates.
        draws: M, the number of distributions.

    Returns:
        [M, C] units; every row sums up to N and every column to M n_i, so that client i is expected to be drawn
        M n_i / N times.

    Source: Fraboni et al., ICML 2021, algorithm 2.
    """
    room = int(examples.sum())
    # Integers, so that rows and columns add up exactly, which a test can check without sampling.
    whole, rest = np.divmod(draws * examples, room)
    out = np.zeros((draws, len(examples)), np.int64)
    out[np.arange(whole.sum()), np.repeat(np.arange(len(examples)), whole)] = room
    shared = out[whole.sum() :]
    left = np.flatnonzero(rest)
    clusters = _clusters(rest[left], distances[np.ix_(left, left)], room)
    clusters.sort(key=lambda members: -int(rest[left[members]].sum()))  # stable: equal ones keep their order
    for row, members in zip(shared, clusters, strict=False):
        row[left[members]] = rest[left[members]]
    row = 0
    for client in left[list(chain.from_iterable(clusters[len(shared) :]))]:
        units = int(rest[client])
        while units:
            part = min(units, room - int(shared[row].sum()))
            shared[row, client] += part
            units -= part
            row += units > 0  # the client has more units than this distribution had room for
    return out


def _clusters(units: NDArray[np.int64], distances: NDArray[np.float64], room: int) -> list[list[int]]:
    """Cut the tree of Ward's clusters, from the top, into the largest ones with at most `room` units."""
    count = len(units)
    if count < 2:
        return [[at] for at in range(count)]
    # Imported here, because every client process imports this module, and SciPy takes half a second.
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
    """Return the L1 distance of two updates; None is an update of zeros."""
    off = one if other is None else one - other
    return float(np.abs(off).sum(dtype=np.float64))
