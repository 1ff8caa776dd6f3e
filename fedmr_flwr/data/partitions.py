"""The division of a training set among clients: labels -> one list of indices per client."""

import hashlib
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedmr_flwr import config
from fedmr_flwr.errors import ConfigError, PartitionError
from fedmr_flwr.files import write_aside
from fedmr_flwr.randomness import stream

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

Indices = NDArray[np.int64]

# The authors' minimum of examples per client.
MIN_EXAMPLES = 10
# Draws before a split is given up; flwr-datasets makes eleven attempts in each.
_DRAWS = 20


def split(labels: Indices, clients: int, partition: config.Partition, seed: int) -> list[Indices]:
    """Divide a training set among clients.

    Args:
        labels: [N] the label of each example.
        clients: number of clients.
        partition: which division, with its parameters.
        seed: the seed of the run.

    Returns:
        For each client the sorted indices of its examples; together they are 0..N-1, each once.

    Raises:
        ConfigError: there is no such partition.
        PartitionError: there are too few examples, or no draw gave every client enough of them.
    """
    if partition.name not in PARTITIONS:
        known = ", ".join(sorted(PARTITIONS))
        raise ConfigError(f"partition.name: '{partition.name}' is not known; choose one of {known}")
    if clients > len(labels):
        raise PartitionError(f"{len(labels)} examples cannot be divided among {clients} clients; lower clients")
    parts = PARTITIONS[partition.name](labels, clients, partition, seed)
    return [np.sort(np.asarray(part, np.int64)) for part in parts]


def _iid(labels: Indices, clients: int, _: config.Partition, seed: int) -> Sequence[Indices]:
    """Equal shares of the shuffled examples."""
    from datasets import Dataset
    from flwr_datasets.partitioner import IidPartitioner

    order = stream(seed, "partition").permutation(len(labels))
    partitioner = IidPartitioner(num_partitions=clients)
    partitioner.dataset = Dataset.from_dict({"index": order})
    return [_column(partitioner, client) for client in range(clients)]


def _dirichlet(labels: Indices, clients: int, partition: config.Partition, seed: int) -> Sequence[Indices]:
    """The authors' split: per class, shares ~ Dir(alpha); full clients get no more; everyone >= 10 examples.

    Source: Hsu et al. 2019 for the Dirichlet split; facts of FedMR's published code for balancing and minimum.
    """
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner

    if clients * MIN_EXAMPLES > len(labels):
        raise PartitionError(
            f"{len(labels)} examples cannot give each of {clients} clients at least {MIN_EXAMPLES}; lower clients"
        )
    table = Dataset.from_dict({"label": labels, "index": np.arange(len(labels))})
    for draw in range(_DRAWS):
        partitioner = DirichletPartitioner(
            num_partitions=clients,
            partition_by="label",
            alpha=partition.alpha,
            min_partition_size=MIN_EXAMPLES,
            self_balancing=True,
            shuffle=False,
            seed=int(stream(seed, "partition", draw).integers(2**31)),
        )
        partitioner.dataset = table
        try:
            # A failed attempt warns, and with a tiny alpha divides by zero before it fails.
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                parts = [_column(partitioner, client) for client in range(clients)]
        except ValueError:
            continue
        if sum(map(len, parts)) == len(labels):
            return parts
    raise PartitionError(
        f"no Dirichlet split of {len(labels)} examples with alpha {partition.alpha:g} gave each of {clients} "
        f"clients at least {MIN_EXAMPLES} examples in {_DRAWS} draws; raise partition.alpha or lower clients"
    )


def _column(partitioner: "Partitioner", client: int) -> Indices:
    """Return a client's indices; through Arrow, because a column read item by item takes a hundred times longer."""
    table = partitioner.load_partition(client).with_format("arrow")[:]
    return np.asarray(table["index"].to_numpy(), np.int64)


# A partition is a function of the labels; add one line to add one.
PARTITIONS: dict[str, Callable[[Indices, int, config.Partition, int], Sequence[Indices]]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
}


def class_counts(labels: Indices, parts: Sequence[Indices], classes: int) -> NDArray[np.int64]:
    """Count the examples of each class that each client holds.

    Returns:
        [clients, classes].
    """
    return np.stack([np.bincount(labels[part], minlength=classes) for part in parts])


def digest(parts: Sequence[Indices]) -> str:
    """Return the SHA-256 of a division, equal for equal divisions."""
    edges, indices = _flat(parts)
    return hashlib.sha256(edges.tobytes() + indices.tobytes()).hexdigest()


def save(parts: Sequence[Indices], path: Path) -> None:
    """Write a division to a file.

    Raises:
        RunFolderError: it cannot be written.
    """
    edges, indices = _flat(parts)
    file = io.BytesIO()
    np.savez(file, edges=edges, indices=indices)
    write_aside(path, file.getvalue())


def _flat(parts: Sequence[Indices]) -> tuple[Indices, Indices]:
    return np.cumsum([len(part) for part in parts]), np.concatenate(list(parts))


def read(path: Path) -> list[Indices]:
    """Read what `save` wrote.

    Raises:
        PartitionError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return np.split(file["indices"], file["edges"][:-1])
    except (OSError, KeyError, ValueError) as error:
        raise PartitionError(f"cannot read the partition {path}: {error}") from None
