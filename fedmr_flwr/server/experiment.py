"""Everything that a run needs on the server, created and checked before anything is written."""

from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from fedmr_flwr import algorithms, models
from fedmr_flwr.algorithms.multi_model import MultiModel
from fedmr_flwr.algorithms.sealed import Sealed
from fedmr_flwr.config.loading import to_yaml
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.config.training import Precision
from fedmr_flwr.core.layout import Packed
from fedmr_flwr.core.units import format_unit
from fedmr_flwr.data import datasets, partitions, skew
from fedmr_flwr.data.base import Indices
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.models.packing import arrays_of, layout_of, pack
from fedmr_flwr.report import tracking
from fedmr_flwr.report.display import format_partition
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.server import resources
from fedmr_flwr.training.devices import check_precision, pick_device
from fedmr_flwr.wire.codec import Codec


class Experiment:
    """Data, model and strategy of a run on the server.

    Args:
        settings: of the run.

    Attributes:
        test: the examples on which models are scored, for testing or, with data.validation, for validation.
        tests: the test examples of each client, see `partitions.client_tests`.
        notices: lines for the user, before the run begins.

    Raises:
        FedmrError: something in the configuration or the data is wrong.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        tracking.check(settings.track)
        self.device = pick_device(settings.device)
        # In a deployment the nodes choose their own devices; the server may have only a CPU to score with.
        alone = settings.engine == "deployment" and self.device.type == "cpu"
        self.precision: Precision = "float32" if alone else settings.precision
        check_precision(self.precision, self.device)
        self.dataset = datasets.load(settings.data, settings.data_dir, settings.seed)
        skew.check(self.dataset, settings.partition)
        if settings.training.augment and self.dataset.normalisation is None:
            raise ConfigError("training.augment: only uint8 images can be shifted and flipped; leave it out")
        model = models.build(
            settings.model.name, self.dataset.input_shape, self.dataset.classes, settings.seed,
            settings.model.initialise, settings.model.features, self.dataset.text,
        )  # fmt: skip
        self.layout = layout_of(model)
        self.codec = Codec(self.layout, wire=settings.wire)
        initial = pack(model, self.layout)
        self.arrays = self.codec.encode(initial)
        # Kept for scoring: building a network for each evaluation would take longer than a small one.
        self.model = model
        self.strategy = algorithms.create(settings, self.layout)
        self.units = self.strategy.units if isinstance(self.strategy, MultiModel | Sealed) else ()
        self.test = self.dataset.test
        # None if every client has its own examples, which the server does not know.
        self.parts: list[Indices] | None = None
        self.tests: list[Indices] | None = None
        if settings.engine != "deployment" or settings.partition.name != partitions.NODES:
            self.parts = partitions.split(self.dataset, settings.clients, settings.partition, settings.seed)
            self.test = partitions.test_examples(self.dataset, self.parts, settings.partition)
            self.tests = partitions.client_tests(self.dataset, self.parts, settings.partition, settings.seed)
            if settings.evaluation.fine_tune and not any(map(len, self.tests or ())):
                raise ConfigError(
                    "evaluation.fine-tune: the clients have no test examples of their own; set "
                    "partition.test-fraction"
                )
        notices = [
            self.strategy.notice,
            self._only_averages(),
            datasets.unused_labels(settings.data, self.dataset),
            self._scored_on,
        ]
        self.notices = [*filter(None, notices), *resources.check(settings, self.strategy, self.layout)]

    def _only_averages(self) -> str | None:
        """Return a line for the user if FedMR never recombines: an ablation, or a number too many."""
        rounds = self.settings.rounds
        if dict(self.settings.strategy.options).get("first_stage_rounds", 0) < rounds:
            return None
        return f"strategy.first-stage-rounds: all {rounds} rounds are averaged, and nothing is recombined"

    @property
    def _scored_on(self) -> str | None:
        """A line for the user, if models are not scored on the test set."""
        share = self.settings.data.validation
        return (
            f"data.validation = {share:g}: models are scored on {len(self.test):,} examples held out of the training "
            "set, not on the test set"
            if share
            else None
        )

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the data set."""
        return self.dataset.digest()

    @property
    def chance(self) -> float:
        """The accuracy on these examples of a model that always gives its most frequent label."""
        labels = self.test.labels
        return float(labels.bincount().max()) / len(labels)

    def state_dict(self, model: Packed) -> dict[str, NDArray[Any]]:
        """Return a model's state_dict, as its own class loads it: a tied tensor has all of its names."""
        return arrays_of(model.on_host(), self.layout, self.model)

    def title(self) -> str:
        """Return a title of the run in one line."""
        settings = self.settings
        strategy = settings.strategy
        changed: dict[str, Any] = {"local-rule": strategy.local_rule} if strategy.local_rule else {}
        # The unit even if it is the default, because it is what comparisons of FedMR differ in.
        changed |= strategy.options.model_dump(by_alias=True, include={"unit"})
        for section in (strategy.options, strategy.rule_options):
            changed |= section.model_dump(by_alias=True, exclude_defaults=True)
        if settings.privacy.local_dp:
            changed["local-dp ε"] = settings.privacy.local_dp.epsilon
        if settings.privacy.sealed:
            changed["sealed"] = "units"
        options = "".join(f", {name} {_plain(value)}" for name, value in changed.items())
        return f"{strategy.name}{options} · {format_partition(settings)} · seed {settings.seed}"


def create_folder(settings: Settings) -> RunFolder:
    """Create the folder of a run.

    Raises:
        RunFolderError: the folder contains another run, or cannot be written.
    """
    assert settings.run_dir is not None
    return RunFolder.create(settings.run_dir, to_yaml(settings), engine=settings.engine, seed=settings.seed)


def check(settings: Settings) -> list[str]:
    """Check a run's configuration and data; return lines for the user.

    Raises:
        FedmrError: something in the configuration or the data is wrong.
    """
    return Experiment(settings).notices


def _plain(value: Any) -> str:
    return format_unit(value) if isinstance(value, tuple) else str(value)
