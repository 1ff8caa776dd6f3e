"""A client's environment: its data, its device, and a folder for its state between rounds.

In a simulation the run's configuration defines all of these. A node of a deployment defines them itself, in Flower's
node configuration; the server has no access to its file system.
"""

from abc import ABC, abstractmethod
from functools import lru_cache
from pathlib import Path

import torch

from fedmr_flwr.client.state import ClientState
from fedmr_flwr.config.data import Data
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.data import datasets, partition_files, partitions, skew
from fedmr_flwr.data.base import Dataset, Examples, Indices
from fedmr_flwr.errors import DataError, PartitionError
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.training.devices import pick_device
from fedmr_flwr.wire.sealing import read_key

_CPU = torch.device("cpu")


class ClientEnvironment(ABC):
    """The environment of a client.

    Args:
        settings: of the run.
        number: of the client.

    Attributes:
        state: of the client between rounds.
    """

    state: ClientState

    def __init__(self, settings: Settings, number: int) -> None:
        self.settings = settings
        self.number = number

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device for training."""

    @abstractmethod
    def examples(self) -> tuple[Dataset, Examples]:
        """Return the data set, which defines how inputs are prepared, and this client's examples, on its device."""

    @abstractmethod
    def tests(self) -> Examples | None:
        """Return this client's own test examples, on its device; None if it has none."""

    @property
    @abstractmethod
    def sealing_key(self) -> bytes:
        """The key of all clients, with which they seal their models.

        Raises:
            ConfigError: this one does not have it.
        """

    @abstractmethod
    def prepare(self, digest: str) -> int:
        """Verify the data and the run folder before the first round.

        Args:
            digest: the hash of the server's data.

        Returns:
            The number of the client's examples.

        Raises:
            FedmrError: data are missing or differ from the server's.
        """


class SimulatedEnvironment(ClientEnvironment):
    """The environment of a simulated client: the run's configuration and folder."""

    def __init__(self, settings: Settings, number: int) -> None:
        super().__init__(settings, number)
        assert settings.run_dir is not None
        self._folder = _folder(settings.run_dir)
        self.state = ClientState(self._folder.client_state / f"client-{number:06d}")

    @property
    def device(self) -> torch.device:
        """The configured device."""
        # Ray shows each client only the card that it has assigned to it, as number 0.
        hidden = self.settings.engine == "ray" and self.settings.device.startswith("cuda")
        return pick_device("cuda" if hidden else self.settings.device)

    def examples(self) -> tuple[Dataset, Examples]:
        """Return the run's data set and this client's part of it."""
        dataset = datasets.load(self.settings.data, self.settings.data_dir, self.settings.seed)
        own = dataset.train.select(self.indices, _CPU)
        return dataset, skew.of_client(own, dataset, self.settings.partition, self.settings.seed, self.number).to(
            self.device
        )

    def tests(self) -> Examples | None:
        """Return this client's part of the run's test examples of clients."""
        path, settings = self._folder.client_tests, self.settings
        if not path.exists():
            return None
        dataset = datasets.load(settings.data, settings.data_dir, settings.seed)
        indices = read_partition(path, path.stat().st_mtime_ns)[self.number]
        return tests_of(dataset, settings, indices, self.number, self.device)

    @property
    def sealing_key(self) -> bytes:
        """The key in the run folder, where a simulation has it."""
        return read_key(self._folder.sealing_key)

    def prepare(self, digest: str) -> int:
        """Compare the data with the server's, and read the partition from the run folder."""
        check_digest(digest, self.settings.data, self.settings.data_dir, self.settings.seed)
        return len(self.indices)

    @property
    def indices(self) -> Indices:
        """The indices of this client's training examples."""
        return self.parts()[self.number]

    @property
    def largest(self) -> int:
        """The number of examples of the client with the most."""
        return max(map(len, self.parts()))

    def parts(self) -> list[Indices]:
        """Return the indices of the training examples of all clients."""
        path = self._folder.partition
        if not path.exists():
            raise PartitionError(
                f"{path} does not exist; all clients must have access to the run folder by the same path"
            )
        return read_partition(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _folder(path: Path) -> RunFolder:
    """Return a run folder, the same object for all clients of a process."""
    return RunFolder(path)


def tests_of(
    dataset: Dataset, settings: Settings, indices: Indices, number: int, device: torch.device
) -> Examples | None:
    """Return a client's test examples on a device: with a fraction for testing, they are among the training set's."""
    source = dataset.train if settings.partition.test_fraction else dataset.test
    if not len(indices):
        return None
    return skew.of_client(source.select(indices, _CPU), dataset, settings.partition, settings.seed, number).to(device)


def check_digest(digest: str, data: Data, data_dir: Path | None, seed: int) -> None:
    """Check that a client has the data that the server has, by their hash.

    Raises:
        DataError: it has others.
    """
    if datasets.load(data, data_dir, seed).digest() != digest:
        raise DataError(
            "this client's data differ from the server's; use the same files on all machines, or in a deployment "
            f"partition.name={partitions.NODES} for data of each client's own"
        )


@lru_cache(maxsize=4)
def read_partition(path: Path, changed: int) -> list[Indices]:
    """Return a division from a file that last changed at a time, read once by a process."""
    # `changed` is part of the cache's key: another partition may be written to the same path.
    return partition_files.read(path)
