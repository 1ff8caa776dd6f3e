"""A client's environment: its data, its device, and a folder for its state between rounds.

In a simulation the run's configuration defines all of these. A node of a deployment defines them itself, in Flower's
node configuration; the server has no access to its file system.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from fedmr_flwr.client.state import ClientState
from fedmr_flwr.config.data import Data
from fedmr_flwr.config.paths import KINDS, kind_and_path
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.data import datasets, partitions, skew
from fedmr_flwr.data.base import Dataset, Examples, Facts, Normalisation
from fedmr_flwr.data.held_out import hold_out
from fedmr_flwr.data.own import Form
from fedmr_flwr.errors import ConfigError, DataError, FedmrError, PartitionError
from fedmr_flwr.files import writing
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.training.devices import pick_device

# Keys of a node's configuration.
NUMBER, NAME, DATA, DEVICE, STATE = "partition-id", "name", "data", "device", "state"
_CPU = torch.device("cpu")
# A node's float values may be so many times as large as the server's; beyond that they are on another scale.
_WIDER = 10


@dataclass(frozen=True)
class DataSpec:
    """The format of the server's examples.

    Attributes:
        input_shape: of an example.
        classes: number of labels.
        normalisation: of images; None for texts and float values.
        largest: the largest value of an input; of float values, the largest without its sign.
        floats: whether the inputs are float values.
        facts: what else the server's files say.
    """

    input_shape: tuple[int, ...]
    classes: int
    normalisation: Normalisation | None
    largest: float
    floats: bool = False
    facts: Facts = field(default_factory=Facts)

    @classmethod
    def of(cls, dataset: Dataset) -> "DataSpec":
        """Return the specification of a data set."""
        largest = max(float(part.inputs.aminmax().max) for part in (dataset.train, dataset.test))
        if floats := dataset.train.inputs.is_floating_point():
            lowest = min(float(part.inputs.aminmax().min) for part in (dataset.train, dataset.test))
            largest = max(largest, -lowest)
        return cls(dataset.input_shape, dataset.classes, dataset.normalisation, largest, floats, dataset.facts)

    @property
    def text(self) -> bool:
        """Whether the inputs are texts."""
        return self.normalisation is None and not self.floats

    @property
    def ceiling(self) -> float:
        """The largest value that a node's own inputs may have; beyond it they are on another scale, or no text.

        There is no lower bound: a node's images may all be dark.
        """
        if self.floats:
            return _WIDER * self.largest
        if self.normalisation is None:
            return max(self.largest, self.classes - 1)
        # 255 is what uint8 can hold, and says nothing about files of a user's own: twice what the server's have.
        return int(self.normalisation.white) if self.normalisation.white < 255 else min(255, 2 * self.largest)

    def to_json(self) -> str:
        """Serialise the specification."""
        return _SPEC.dump_json(self).decode()

    @classmethod
    @lru_cache(maxsize=4)
    def from_json(cls, text: str) -> "DataSpec":
        """Parse what `to_json` returned."""
        return _SPEC.validate_json(text)


_SPEC = TypeAdapter(DataSpec)


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
        self._folder = RunFolder(settings.run_dir)
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
        indices = _partition(path, path.stat().st_mtime_ns)[self.number]
        return _tests_of(dataset, settings, indices, self.number, self.device)

    def prepare(self, digest: str) -> int:
        """Compare the data with the server's, and read the partition from the run folder."""
        _check_digest(digest, self.settings.data, self.settings.data_dir, self.settings.seed)
        return len(self.indices)

    @property
    def indices(self) -> partitions.Indices:
        """The indices of this client's training examples."""
        return self.parts()[self.number]

    @property
    def largest(self) -> int:
        """The number of examples of the client with the most."""
        return max(map(len, self.parts()))

    def parts(self) -> list[partitions.Indices]:
        """Return the indices of the training examples of all clients."""
        path = self._folder.partition
        if not path.exists():
            raise PartitionError(
                f"{path} does not exist; all clients must have access to the run folder by the same path"
            )
        return _partition(path, path.stat().st_mtime_ns)


class NodeEnvironment(ClientEnvironment):
    """The environment of a node in a deployment, with its own settings.

    Args:
        settings: of the run.
        node_config: of the node: partition-id, data (files with the client's examples, "KIND:PATH" or an npz file;
            or the run's data set, a folder or a copy of the user's own files, of which the client uses its part),
            name, device and state (a folder).
        spec: of the server's data.
        run: the identifier of the run.

    Raises:
        ConfigError: data and partition do not match.
    """

    def __init__(self, settings: Settings, node_config: Mapping[str, Any], spec: DataSpec, run: str) -> None:
        super().__init__(settings, number_of(node_config))
        self._spec = spec
        kind, path = kind_and_path(str(node_config[DATA]))
        self._data = Path(path)
        self._has_own = settings.partition.name == partitions.NODES
        self._has_folder = not kind and self._data.is_dir()
        self._files = f"{kind or 'npz'}:{path}"
        self._device = str(node_config.get(DEVICE, "auto"))
        # It becomes the name of a folder: a server must not be able to choose another path on the node.
        if not re.fullmatch("[0-9a-f]{16}", run):
            raise ConfigError(f"invalid run identifier {run!r}; install the same version on server and nodes")
        self._state = Path(str(node_config.get(STATE, "state"))) / run
        self.state = ClientState(self._state / f"client-{self.number:06d}")
        self._name = str(node_config.get(NAME, f"client {self.number}"))
        if settings.partition.name.startswith(partitions.FILE):
            raise ConfigError(
                f"a node cannot open a file of the server: partition.name={settings.partition.name}; choose another "
                f"partition, or give each node its own examples and set partition.name={partitions.NODES}"
            )
        kinds = f"an npz file on the node, or one of {', '.join(f'{kind}:PATH' for kind in KINDS)}"
        if self._has_own and self._has_folder:
            raise ConfigError(
                f"client {self.number} has the folder of a data set, but the run needs each client's own examples; "
                f"set data to {kinds}, or change partition.name in the run's configuration"
            )
        if self._has_own:
            return
        instead = f"set partition.name={partitions.NODES} if each client has its own examples"
        divided = settings.data.name
        if divided in datasets.DATASETS and not self._has_folder:
            raise ConfigError(
                f"client {self.number} has no data folder in its data setting, but the run divides a data set among "
                f"the clients; {instead}"
            )
        if divided not in datasets.DATASETS and not kind_and_path(divided)[0]:
            raise ConfigError(f"a node cannot call a function of the server: data.name={divided}; {instead}")
        if divided not in datasets.DATASETS and self._has_folder:
            raise ConfigError(
                f"client {self.number} has the folder of a data set, but the run divides files of a user's own; set "
                f"data to a copy of them, {kinds}, or {instead}"
            )

    @property
    def device(self) -> torch.device:
        """The device of the node's settings."""
        return pick_device(self._device)

    def examples(self) -> tuple[Dataset, Examples]:
        """Return the data set and the node's own examples, or its part of its copy of the run's data set."""
        with self._private_errors():
            return self._examples()

    def _examples(self) -> tuple[Dataset, Examples]:
        if not self._has_own:
            dataset = self._dataset()
            own = dataset.train.select(self._indices(dataset), _CPU)
            changed = skew.of_client(own, dataset, self.settings.partition, self.settings.seed, self.number)
            return dataset, changed.to(self.device)
        own, _ = self._own
        # A node has no global test set, and only the server evaluates on one.
        return Dataset(own, own, self._spec.classes, self._spec.normalisation), Examples(
            own.inputs.to(self.device), own.labels.to(self.device)
        )

    def tests(self) -> Examples | None:
        """Return the node's own test examples, or its part of those of its copy of the run's data set."""
        with self._private_errors():
            if self._has_own:
                _, tests = self._own
                return tests and tests.to(self.device)
            settings, dataset = self.settings, self._dataset()
            parts = partitions.split(dataset, settings.clients, settings.partition, settings.seed)
            of_all = partitions.client_tests(dataset, parts, settings.partition, settings.seed)
            return (
                None
                if of_all is None
                else _tests_of(dataset, settings, of_all[self.number], self.number, self.device)
            )

    def prepare(self, digest: str) -> int:
        """Compare the node's copy of the data set with the server's, or read the node's own examples."""
        with self._private_errors():
            return self._prepare(digest)

    def _prepare(self, digest: str) -> int:
        if not self._has_own:
            _check_digest(digest, *self._copy, self.settings.seed)
            return len(self._indices(self._dataset(), replace=True))
        (own, tests), most = self._own, self._spec.ceiling
        if self.settings.evaluation.fine_tune and tests is None:
            raise DataError(
                f"{self._data} has no x_test and y_test, which evaluation.fine-tune needs; add them, or set "
                "partition.test-fraction"
            )
        if own.inputs.is_floating_point() != self._spec.floats:
            kinds = ("float values", "bytes") if self._spec.floats else ("bytes", "float values")
            raise DataError(f"the run's data are {kinds[0]}, but those of {self._data} are {kinds[1]}; convert them")
        largest = max(float(each.inputs.abs().max()) for each in (own, tests) if each is not None)
        # Of a table the server's scale is the node's, and a value may be far from all of the server's.
        if largest > most and not self._spec.facts.columns:
            what = "values" if self._spec.floats else "characters" if self._spec.text else "pixels"
            raise DataError(
                f"x_train or x_test of {self._data} has {what} up to {largest:g}, but the run's data end at "
                f"{self._spec.largest:g} (at most {most:g} is accepted); convert it to the same scale"
            )
        return len(own)

    @contextmanager
    def _private_errors(self) -> Iterator[None]:
        """Add the node's name to errors, and remove the paths of its folders: errors are sent to the server."""
        try:
            yield
        except FedmrError as error:
            text = str(error)
            for path in (self._data, self._state):
                text = text.replace(str(path), path.name)
            raise type(error)(f"{self._name}: {text}") from None

    @property
    def _copy(self) -> tuple[Data, Path]:
        """The run's data set on this node, and its folder; the server cannot choose the files, nor download some."""
        data = self.settings.data.model_copy(update={"download": False})
        return (data, self._data) if self._has_folder else (data.model_copy(update={"name": self._files}), Path())

    def _dataset(self) -> Dataset:
        return datasets.load(*self._copy, self.settings.seed)

    @cached_property
    def _own(self) -> tuple[Examples, Examples | None]:
        """The examples of the node's own files, and those for testing, in the files or a fraction of the others."""
        form = Form(self._spec.input_shape, self._spec.classes, self._spec.facts)
        train, tests = datasets.read_examples(self._files, self.settings.data, form)
        fraction, cpu = self.settings.partition.test_fraction, torch.device("cpu")
        if tests or not fraction:
            return train, tests
        every, labels = np.arange(len(train)), train.labels.numpy()
        kept, held = hold_out(every, labels, fraction, self.settings.seed, self.number)
        return train.select(kept, cpu), train.select(held, cpu)

    def _indices(self, dataset: Dataset, replace: bool = False) -> partitions.Indices:
        """Return this client's part, divided as on the server."""
        # Written once for all rounds, because the division takes long; replaced before the first round, because the
        # data may have changed.
        path = self._state / "partition.npz"
        if replace or not path.exists():
            settings = self.settings
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            partitions.save(partitions.split(dataset, settings.clients, settings.partition, settings.seed), path)
        return _partition(path, path.stat().st_mtime_ns)[self.number]


def _tests_of(
    dataset: Dataset, settings: Settings, indices: partitions.Indices, number: int, device: torch.device
) -> Examples | None:
    """Return a client's test examples on a device: with a fraction for testing, they are among the training set's."""
    source = dataset.train if settings.partition.test_fraction else dataset.test
    if not len(indices):
        return None
    return skew.of_client(source.select(indices, _CPU), dataset, settings.partition, settings.seed, number).to(device)


def number_of(node_config: Mapping[str, Any]) -> int:
    """Return a client's number."""
    return int(node_config[NUMBER])


def _check_digest(digest: str, data: Data, data_dir: Path | None, seed: int) -> None:
    if _digest(data, data_dir, seed) != digest:
        raise DataError(
            "this client's data differ from the server's; use the same files on all machines, or in a deployment "
            f"partition.name={partitions.NODES} for data of each client's own"
        )


@lru_cache(maxsize=2)
def _digest(data: Data, data_dir: Path | None, seed: int) -> str:
    # Once for each process, not for each client.
    return datasets.load(data, data_dir, seed).digest()


@lru_cache(maxsize=4)
def _partition(path: Path, changed: int) -> list[partitions.Indices]:
    # `changed` is part of the cache's key: another partition may be written to the same path.
    return partitions.read(path)
