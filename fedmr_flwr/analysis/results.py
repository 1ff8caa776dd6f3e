"""A run's results in Python: its metrics, configuration, models and data."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fedmr_flwr import models
from fedmr_flwr.algorithms.multi_model import Population
from fedmr_flwr.config.loading import load_recorded
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.data import datasets, partition_files
from fedmr_flwr.data.base import Dataset, Indices
from fedmr_flwr.errors import RunFolderError
from fedmr_flwr.models.packing import layout_of, pack, unpack
from fedmr_flwr.runs import checkpoint
from fedmr_flwr.runs.folder import RunFolder

if TYPE_CHECKING:
    import pandas


class RunResults:
    """The results of a run, read from its folder.

    Args:
        path: the run folder; the run may be incomplete.

    Attributes:
        folder: the run folder.
        config: the run's complete configuration.

    Raises:
        FedmrError: it is not a run folder, or its configuration cannot be read.
    """

    def __init__(self, path: Path | str) -> None:
        self.folder = RunFolder.open(Path(path).absolute())
        self.config: Settings = load_recorded(self.folder.config)

    @property
    def metrics(self) -> pandas.DataFrame:
        """The metrics, a row for each round; the index is the round."""
        import pandas

        rows = self.folder.read_rows()
        return pandas.DataFrame(rows).set_index("round") if rows else pandas.DataFrame()

    def model(self, number: int | None = None) -> nn.Module:
        """Return the global model.

        Args:
            number: the round after which it is the global model: 0 for the initial model, or one of `keep-models`;
                None for the end of the run.

        Raises:
            RunFolderError: it was not kept.
        """
        return self.network(self.packed(number))

    def population(self, number: int | None = None) -> list[nn.Module]:
        """Return the model of each slot; of an algorithm without a population, none.

        Args:
            number: a round of `keep-models`, with `keep-models-slots`; None for the latest checkpoint.

        Raises:
            RunFolderError: they were not kept.
        """
        return [self.network(packed) for packed in self.packed_population(number)]

    @cached_property
    def dataset(self) -> Dataset:
        """The run's data set."""
        return datasets.load(self.config.data, self.config.data_dir, self.config.seed)

    @cached_property
    def parts(self) -> list[Indices]:
        """The indices of each client's training examples; none if the clients had their own."""
        return partition_files.read(self.folder.partition) if self.folder.partition.exists() else []

    @cached_property
    def layout(self) -> Layout:
        """The position of each tensor in a packed model."""
        return layout_of(self._scratch)

    @cached_property
    def rounds(self) -> list[int]:
        """The rounds whose global model was kept."""
        return sorted(
            int(path.stem.partition("-")[2]) for path in self.folder.models.glob("round-??????.safetensors")
        )

    @property
    def last_round(self) -> int:
        """The number of rounds of a completed run, whose model is the final one.

        Raises:
            RunFolderError: the run is not complete.
        """
        if self.folder.status != "completed":
            raise RunFolderError(
                f"{self.folder.path} is not complete; continue it with fedmr resume, or choose a round of keep-models"
            )
        return int(self.folder.read_manifest()["rounds"])

    def packed(self, number: int | None = None) -> Packed:
        """Return the global model as flat vectors; arguments and errors as those of `model`."""
        if number == 0:
            return pack(self._build(), self.layout)
        ends = number is None or (self.folder.status == "completed" and number == self.last_round)
        return self._read(self.folder.model if ends else self.folder.kept_model(number or self.last_round))

    def packed_population(self, number: int | None = None) -> list[Packed]:
        """Return the model of each slot as flat vectors; arguments and errors as those of `population`."""
        if number is not None:
            paths = sorted(self.folder.models.glob(f"round-{number:06d}-slot-*.safetensors"))
            return [self._read(path) for path in paths]
        found, _ = checkpoint.latest(self.folder.checkpoints)
        if found is None or "examples" not in found.state or "0.floats" not in found.state:
            return []
        return list(Population.from_arrays(found.state).models or ())

    def network(self, packed: Packed) -> nn.Module:
        """Return a new network with the weights of a packed model."""
        network = self._build()
        unpack(packed, self.layout, network)
        return network

    @cached_property
    def _scratch(self) -> nn.Module:
        """A network through which files are read: its own class knows which of its tensors are tied."""
        return self._build()

    def _build(self) -> nn.Module:
        config = self.config
        shape, classes, text = datasets.form_of(config.data, config.data_dir, config.seed)
        return models.build(config.model.name, shape, classes, config.seed, config.model.initialise, text=text)

    def _read(self, path: Path) -> Packed:
        try:
            self._scratch.load_state_dict(load_file(path))
        except FileNotFoundError:
            kept = ", ".join(map(str, self.rounds)) or "none"
            raise RunFolderError(
                f"{path} does not exist; rounds whose model was kept: {kept}; choose them with keep-models"
            ) from None
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise RunFolderError(f"{path} is not a model of this run: {reason}") from None
        return pack(self._scratch, self.layout)


def load_run(path: Path | str) -> RunResults:
    """Return the results of a run, from its folder."""
    return RunResults(path)
