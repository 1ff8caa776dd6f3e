"""The division of a training set among clients: labels -> one list of indices per client."""

import heapq
from collections.abc import Callable, Sequence

import numpy as np

from fedmr_flwr.config.partition import Partition
from fedmr_flwr.config.paths import user_path
from fedmr_flwr.config.registry import FLOWER
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.data import flower_partitions, partition_files
from fedmr_flwr.data.base import Dataset, Examples, Indices
from fedmr_flwr.data.held_out import hold_out
from fedmr_flwr.errors import ConfigError, PartitionError

# Not a division: every client is a node with its own examples.
NODES = "nodes"
FILE = "file:"
# The minimum per client in FedMR's published code.
MIN_EXAMPLES = 10
# The published code draws for ever; with many clients and a small alpha no draw gives everyone ten examples.
_DRAWS = 200


def split(dataset: Dataset, clients: int, partition: Partition, seed: int) -> list[Indices]:
    """Divide a training set among clients, without the examples that they keep for testing.

    Args:
        dataset: whose training examples.
        clients: number of clients.
        partition: the kind of division, with its parameters.
        seed: the seed of the run.

    Returns:
        For each client the sorted indices of its examples; together they are 0..N-1, each once (each at most
        once for a file, for a subset of the natural clients, and if some are kept for testing).

    Raises:
        ConfigError: the partition is unknown, or does not exist for this data set.
        PartitionError: there are too few examples, no draw gave every client enough of them, or a file does
            not match.
    """
    return [train for train, _ in _held_out(dataset, clients, partition, seed)]


def client_tests(dataset: Dataset, parts: Sequence[Indices], partition: Partition, seed: int) -> list[Indices] | None:
    """Return the test examples of each client.

    Args:
        dataset: the data set.
        parts: what `split` returned.
        partition: the kind of division, with the fraction for testing.
        seed: the seed of the run.

    Returns:
        For each client indices of the training set with a fraction for testing, otherwise of the test set; None if
        clients have no test examples of their own.
    """
    if partition.test_fraction:
        return [test for _, test in _held_out(dataset, len(parts), partition, seed)]
    if partition.name != "natural" or dataset.owners is None or dataset.test_owners is None:
        return None
    owners, of_tests = dataset.owners.numpy(), dataset.test_owners.numpy()
    return [np.flatnonzero(of_tests == owners[part[0]]) for part in parts]


def check_name(name: str) -> None:
    """Check that there is such a partition.

    Raises:
        ConfigError: there is none.
    """
    known = [*PARTITIONS, "natural", NODES]
    if name not in known and not name.startswith((FILE, FLOWER)):
        raise ConfigError(
            f"partition.name: unknown partition '{name}'; choose one of {', '.join(sorted(known))}, file:PATH, "
            f"{FLOWER}NAME"
        )


def _held_out(dataset: Dataset, clients: int, partition: Partition, seed: int) -> list[tuple[Indices, Indices]]:
    """Divide a training set among clients, and the part of each into examples for training and for testing."""
    parts, fraction = _divide(dataset, clients, partition, seed), partition.test_fraction
    if not fraction:
        return [(part, part[:0]) for part in parts]
    labels = dataset.train.labels.numpy()
    return [hold_out(part, labels, fraction, seed, client) for client, part in enumerate(parts)]


def _divide(dataset: Dataset, clients: int, partition: Partition, seed: int) -> list[Indices]:
    """Divide a training set among clients."""
    labels = dataset.train.labels.numpy()
    if partition.name.startswith(FILE):
        return partition_files.read_for(user_path(partition.name.removeprefix(FILE)), len(labels), clients)
    if partition.name == "natural":
        return _natural(dataset, clients, seed)
    if partition.name == NODES:
        raise ConfigError(
            f"partition.name: '{NODES}' is for clients on their own machines, with their own examples; start "
            "them as in docs/guides/deploy.md, and the run with --superlink NAME"
        )
    check_name(partition.name)
    flower = partition.name.startswith(FLOWER)
    if clients > len(labels):
        raise PartitionError(f"{len(labels)} examples cannot be divided among {clients} clients; lower clients")
    if flower:
        columns = {"label": labels} | ({} if dataset.owners is None else {"client": dataset.owners.numpy()})
        name = partition.name.removeprefix(FLOWER)
        parts = flower_partitions.divide(name, partition.arguments or {}, columns, clients, seed)
    else:
        parts = PARTITIONS[partition.name](labels, clients, partition, seed)
    # Sorted, so that a client's training depends on its set of examples alone, not on how they were drawn.
    return [np.sort(np.asarray(part, np.int64)) for part in parts]


def _iid(labels: Indices, clients: int, _: Partition, seed: int) -> Sequence[Indices]:
    """Equal shares of the shuffled examples."""
    return np.array_split(stream(seed, "partition").permutation(len(labels)), clients)


def _balanced_dirichlet(labels: Indices, clients: int, partition: Partition, seed: int) -> Sequence[Indices]:
    """The authors' split: per class, shares ~ Dir(alpha); full clients get no more; each client >= 10 examples."""
    return _dirichlet(labels, clients, partition, seed, balanced=True)


def _plain_dirichlet(labels: Indices, clients: int, partition: Partition, seed: int) -> Sequence[Indices]:
    """Per class, shares ~ Dir(alpha); each client >= 10 examples."""
    return _dirichlet(labels, clients, partition, seed, balanced=False)


def _dirichlet(labels: Indices, clients: int, partition: Partition, seed: int, balanced: bool) -> Sequence[Indices]:
    """Divide each class by a Dirichlet distribution.

    Source: Hsu et al. 2019 for the Dirichlet split; FedMR's published code for balancing and minimum.
    """
    if clients * MIN_EXAMPLES > len(labels):
        raise PartitionError(
            f"{len(labels)} examples cannot give each of {clients} clients at least {MIN_EXAMPLES}; lower clients"
        )
    for draw in range(_DRAWS):
        parts = _draw_dirichlet(labels, clients, partition.alpha, stream(seed, "partition", draw), balanced)
        if parts is not None and partition.fill_up:
            return _filled_up(parts, stream(seed, "fill-up"))
        if parts is not None and min(map(len, parts)) >= MIN_EXAMPLES:
            return parts
    raise PartitionError(
        f"no Dirichlet split of {len(labels)} examples with alpha {partition.alpha:g} gave each of {clients} "
        f"clients at least {MIN_EXAMPLES} examples in {_DRAWS} draws; raise partition.alpha, lower clients, or set "
        "partition.fill-up=true"
    )


def _draw_dirichlet(
    labels: Indices, clients: int, alpha: float, rng: np.random.Generator, balanced: bool
) -> list[Indices] | None:
    """Draw one split; None if all shares of a class fell to clients that are full."""
    held: list[list[Indices]] = [[] for _ in range(clients)]
    sizes = np.zeros(clients, np.int64)
    for label in np.unique(labels):
        shares = rng.dirichlet(np.full(clients, alpha))
        if balanced:
            shares[sizes * clients >= len(labels)] = 0
        if not shares.sum() > 0:
            return None
        # Shuffled, because a file may be sorted by writer or site, and runs of it would be a second heterogeneity.
        examples = rng.permutation(np.flatnonzero(labels == label))
        # In a random order of the clients, because rounding a class of few examples favours the later ones.
        order = rng.permutation(np.flatnonzero(shares > 0))
        edges = np.floor(np.cumsum(shares[order])[:-1] / shares.sum() * len(examples)).astype(np.int64)
        for client, part in zip(order, np.split(examples, edges), strict=True):
            held[client].append(part)
            sizes[client] += len(part)
    return [np.concatenate([np.empty(0, np.int64), *parts]) for parts in held]


def _filled_up(parts: Sequence[Indices], rng: np.random.Generator) -> list[Indices]:
    """Give every client with fewer than 10 examples random ones, each from the client that then has the most."""
    held = [rng.permutation(part).tolist() for part in parts]
    # A heap: with thousands of clients a search for the largest one at each example would take long.
    largest = [(-len(mine), client) for client, mine in enumerate(held)]
    heapq.heapify(largest)
    for mine in held:
        while len(mine) < MIN_EXAMPLES:
            less, giver = heapq.heappop(largest)
            mine.append(held[giver].pop())
            heapq.heappush(largest, (less + 1, giver))
    return [np.array(mine, np.int64) for mine in held]


def _shards(labels: Indices, clients: int, partition: Partition, seed: int) -> Sequence[Indices]:
    """Sort by label and cut into shards of equal size; every client gets the same number of random shards.

    Source: McMahan et al., AISTATS 2017, section 3.
    """
    each, rng = partition.shards_per_client, stream(seed, "partition")
    if each * clients > len(labels):
        raise PartitionError(
            f"{len(labels)} examples cannot be cut into {each} shards for each of {clients} clients; lower "
            "partition.shards-per-client or clients"
        )
    order = rng.permutation(len(labels))
    shards = np.array_split(order[np.argsort(labels[order], kind="stable")], each * clients)
    assigned = rng.permutation(len(shards)).reshape(clients, each)
    return [np.concatenate([shards[shard] for shard in mine]) for mine in assigned]


def _quantity(labels: Indices, clients: int, partition: Partition, seed: int) -> Sequence[Indices]:
    """Shuffled examples in unequal shares ~ Dir(alpha), at least 10 for each client.

    Source: Li et al., "Federated Learning on Non-IID Data Silos", ICDE 2022, quantity skew.
    """
    spare = len(labels) - clients * MIN_EXAMPLES
    if spare < 0:
        raise PartitionError(
            f"{len(labels)} examples cannot give each of {clients} clients at least {MIN_EXAMPLES}; lower clients"
        )
    rng = stream(seed, "partition")
    # Everyone gets the minimum first and only the rest is drawn: no draw has to be repeated.
    shares = np.cumsum(rng.dirichlet(np.full(clients, partition.alpha)))[:-1]
    edges = np.floor(shares * spare).astype(np.int64) + MIN_EXAMPLES * np.arange(1, clients)
    return np.split(rng.permutation(len(labels)), edges)


def test_examples(dataset: Dataset, parts: Sequence[Indices], partition: Partition) -> Examples:
    """Return the test examples of a run, without those of authors whose training examples no client has.

    Authors who have no training examples at all stay: a data set that is divided by author tests on new ones.

    Args:
        dataset: whose test set.
        parts: the division of its training examples.
        partition: whether to leave any out.

    Raises:
        PartitionError: no example is left.
    """
    if partition.test == "all" or dataset.owners is None or dataset.test_owners is None:
        return dataset.test
    owners = dataset.owners.numpy()
    absent = np.setdiff1d(owners, owners[np.concatenate(parts)])
    kept = np.flatnonzero(~np.isin(dataset.test_owners.numpy(), absent))
    if not len(kept):
        raise PartitionError("none of the clients' authors has a test example; set partition.test=all")
    if len(kept) == len(dataset.test):
        return dataset.test  # mapped from the shared copy, not read into memory
    return Examples(dataset.test.inputs[kept], dataset.test.labels[kept])


def _natural(dataset: Dataset, clients: int, seed: int) -> list[Indices]:
    """Each client is one author of examples; if there are more authors than clients, some are drawn at random."""
    if dataset.owners is None:
        raise ConfigError(
            "partition.name: this data set does not state the authors of its examples, so it has no natural "
            "partition; choose another one, or name the column of the authors with data.client"
        )
    owners = dataset.owners.numpy()
    _, counts = np.unique(owners, return_counts=True)
    authors = len(counts)
    if clients > authors:
        raise PartitionError(f"the data set has {authors} natural clients, not {clients}; set clients={authors}")
    parts = np.split(np.argsort(owners, kind="stable"), np.cumsum(counts)[:-1])
    drawn = np.sort(stream(seed, "partition").choice(authors, clients, replace=False))
    return [parts[owner] for owner in drawn]


# Every partition that is a function of the labels; add one line to add one.
PARTITIONS: dict[str, Callable[[Indices, int, Partition, int], Sequence[Indices]]] = {
    "iid": _iid,
    "dirichlet": _balanced_dirichlet,
    "dirichlet-plain": _plain_dirichlet,
    "shards": _shards,
    "quantity": _quantity,
}
