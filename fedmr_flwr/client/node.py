"""The environment of a client on a machine of its own: a node of a deployment, with settings of its own."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedmr_flwr.client.data_spec import DataSpec
from fedmr_flwr.client.environment import ClientEnvironment, check_digest, read_partition, tests_of
from fedmr_flwr.client.state import ClientState
from fedmr_flwr.config.data import Data
from fedmr_flwr.config.paths import KINDS, kind_and_path
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.data import datasets, partition_files, partitions, skew
from fedmr_flwr.data.base import Dataset, Examples, Indices
from fedmr_flwr.data.held_out import hold_out
from fedmr_flwr.data.own import ExampleFormat
from fedmr_flwr.errors import ConfigError, DataError, FedmrError
from fedmr_flwr.files import writing
from fedmr_flwr.training.devices import pick_device
from fedmr_flwr.wire.sealing import read_key

# Keys of a node's configuration.
NUMBER, NAME, DATA, DEVICE, STATE, KEY = "partition-id", "name", "data", "device", "state", "sealing-key"
ROLE, EVALUATOR = "role", "evaluator"
PINNED = "app-sha256"
_CPU = torch.device("cpu")


class NodeEnvironment(ClientEnvironment):
    """The environment of a node in a deployment, with its own settings.

    Args:
        settings: of the run.
        node_config: of the node: partition-id, data (files with the client's examples, "KIND:PATH" or an npz file;
            or the run's data set, a folder or a copy of the user's own files, of which the client uses its part),
            name, device, state (a folder), sealing-key (a file), if it has one, and app-sha256, if it runs one app
            alone.
        spec: of the server's data.
        run: the identifier of the run.

    Raises:
        ConfigError: data and partition do not match; or the node takes part in sealed runs alone.
    """

    def __init__(self, settings: Settings, node_config: Mapping[str, Any], spec: DataSpec, run: str) -> None:
        super().__init__(settings, number_of(node_config))
        self._spec = spec
        kind, path = kind_and_path(str(node_config[DATA]))
        self._data = Path(path)
        self.evaluates = node_config.get(ROLE) == EVALUATOR
        self._has_own = self.evaluates or settings.partition.name == partitions.NODES
        self._has_folder = not kind and self._data.is_dir()
        self._files = f"{kind or 'npz'}:{path}"
        self._device = str(node_config.get(DEVICE, "auto"))
        self._key = Path(str(node_config[KEY])) if KEY in node_config else None
        # It becomes the name of a folder: a server must not be able to choose another path on the node.
        if not re.fullmatch("[0-9a-f]{16}", run):
            raise ConfigError(f"invalid run identifier {run!r}; install the same version on server and nodes")
        self._state = Path(str(node_config.get(STATE, "state"))) / run
        self.state = ClientState(self._state / f"client-{self.number:06d}")
        # The settings come with each message: a server could ask for models without seals.
        if PINNED in node_config and self._key and not settings.privacy.sealed:
            raise ConfigError(
                "with app-sha256 and sealing-key in its node.yaml this node takes part in sealed runs alone; set "
                "privacy.sealed=true, or remove one of them there"
            )
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
        if self._has_own:
            _, tests = self._own
            return tests and tests.to(self.device)
        settings, dataset = self.settings, self._dataset()
        parts = partitions.split(dataset, settings.clients, settings.partition, settings.seed)
        of_all = partitions.client_tests(dataset, parts, settings.partition, settings.seed)
        return None if of_all is None else tests_of(dataset, settings, of_all[self.number], self.number, self.device)

    @property
    def sealing_key(self) -> bytes:
        """The key of the node's settings."""
        if not self._key:
            raise ConfigError(
                "privacy.sealed needs a key that all nodes have and the server does not: put it into "
                "sealing.key in the node's folder, and set sealing-key: sealing.key in its node.yaml"
            )
        return read_key(self._key)

    def prepare(self, digest: str) -> int:
        """Compare the node's copy of the data set with the server's, or read the node's own examples."""
        # The server would take it for no client, and never ask it for anything more.
        if self.evaluates and not self.settings.privacy.sealed:
            raise ConfigError(
                "it is an evaluator, which scores the models of sealed runs alone; set role: client in its "
                "node.yaml, or privacy.sealed=true"
            )
        if not self._has_own:
            check_digest(digest, *self._copy, self.settings.seed)
            return len(self._indices(self._dataset(), replace=True))
        own, tests = self._own
        if self.settings.evaluation.fine_tune and tests is None:
            raise DataError(
                f"{self._data} has no x_test and y_test, which evaluation.fine-tune needs; add them, or set "
                "partition.test-fraction"
            )
        return len(own)

    def _check_values(self, own: Iterable[Examples]) -> None:
        """Check that a node's own examples are on the scale of the server's."""
        largest, most = 0.0, self._spec.ceiling
        for each in own:
            if each.inputs.is_floating_point() != self._spec.floats:
                kinds = ("float values", "bytes") if self._spec.floats else ("bytes", "float values")
                raise DataError(
                    f"the run's data are {kinds[0]}, but those of {self._data} are {kinds[1]}; convert them"
                )
            largest = max(largest, float(each.inputs.abs().max()))
        # Of a table the server's scale is the node's, and a value may be far from all of the server's.
        if largest > most and not self._spec.facts.columns:
            what = "values" if self._spec.floats else "characters" if self._spec.text else "pixels"
            raise DataError(
                f"x_train or x_test of {self._data} has {what} up to {largest:g}, but the run's data end at "
                f"{self._spec.largest:g} (at most {most:g} is accepted); convert it to the same scale"
            )

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
        form = ExampleFormat(self._spec.input_shape, self._spec.classes, self._spec.facts)
        train, tests = datasets.read_examples(self._files, self.settings.data, form)
        # Whenever they are read, as a file may be replaced during a run.
        self._check_values(filter(None, (train, tests)))
        fraction, cpu = self.settings.partition.test_fraction, torch.device("cpu")
        if tests or not fraction:
            return train, tests
        every, labels = np.arange(len(train)), train.labels.numpy()
        kept, held = hold_out(every, labels, fraction, self.settings.seed, self.number)
        return train.select(kept, cpu), train.select(held, cpu)

    def _indices(self, dataset: Dataset, replace: bool = False) -> Indices:
        """Return this client's part, divided as on the server."""
        # Written once for all rounds, because the division takes long; replaced before the first round, because the
        # data may have changed.
        path = self._state / "partition.npz"
        if replace or not path.exists():
            settings = self.settings
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            partition_files.save(partitions.split(dataset, settings.clients, settings.partition, settings.seed), path)
        return read_partition(path, path.stat().st_mtime_ns)[self.number]


def number_of(node_config: Mapping[str, Any]) -> int:
    """Return a client's number."""
    return int(node_config[NUMBER])


@contextmanager
def private_errors(node_config: Mapping[str, Any]) -> Iterator[None]:
    """Add the node's name to errors, and remove the paths of its folders: errors are sent to the server."""
    try:
        yield
    except FedmrError as error:
        text, name = str(error), node_config.get(NAME, f"client {node_config.get(NUMBER)}")
        for path in (
            Path(kind_and_path(str(node_config[key]))[1]) for key in (DATA, STATE, KEY) if key in node_config
        ):
            text = text.replace(str(path), path.name)
        error.args = (f"{name}: {text}",)  # some kinds are made of other arguments
        raise
