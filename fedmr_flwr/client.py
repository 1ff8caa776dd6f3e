"""The client's side: Flower's handlers around the local training of `fedmr_flwr.training`.

All a client needs comes with the message: the model, the settings of the run and the round. Data set,
partition and network are kept per process, because a process of the simulation serves many clients.
"""

import json
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedmr_flwr import config, models
from fedmr_flwr.config import Settings
from fedmr_flwr.data import datasets, partitions
from fedmr_flwr.data.datasets import Dataset, Examples
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.layout import Layout
from fedmr_flwr.models.base import Classifier
from fedmr_flwr.randomness import stream
from fedmr_flwr.records import ARRAYS, CONFIG, EXAMPLES, METRICS, ROUND, Codec
from fedmr_flwr.roster import CLIENT
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.training import (
    evaluate as score,
)
from fedmr_flwr.training import fit, layout_of, memory_format, pack, pick_device, threads, to_input, unpack

SETTINGS, LAYOUT = "settings", "layout"

app = ClientApp()


def train_config(settings: Settings, layout: Layout) -> ConfigRecord:
    """Return what the server sends with every model, for the handlers below.

    Args:
        settings: the run, with its folder.
        layout: of the model.
    """
    return ConfigRecord(
        {SETTINGS: settings.model_dump_json(by_alias=True), LAYOUT: layout.fingerprint}
    )


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model of the message on this client's data."""
    job = _Job(message, context)
    with threads(job.settings.client_cpus):
        model = job.model()
        images = to_input(job.dataset, job.examples.images, job.device)
        labels = job.examples.labels.to(job.device)
        rng = stream(job.settings.seed, "train", int(job.config[ROUND]), job.client)
        done = fit(model, images, labels, job.settings.training, rng)
    metrics = MetricRecord({EXAMPLES: done.examples, "train-loss": done.loss})
    return Message(RecordDict({ARRAYS: job.arrays(model), METRICS: metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the model of the message on this client's data."""
    job = _Job(message, context)
    with threads(job.settings.client_cpus):
        result = score(job.model(), job.dataset, job.examples, job.device)
    metrics = MetricRecord({EXAMPLES: result.examples, "loss": result.loss, "accuracy": result.accuracy})
    return Message(RecordDict({METRICS: metrics}), reply_to=message)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Answer with this client's number."""
    return Message(RecordDict({METRICS: MetricRecord({CLIENT: _number(context)})}), reply_to=message)


class _Job:
    """What a message asks of this client."""

    def __init__(self, message: Message, context: Context) -> None:
        self.record: ArrayRecord = message.content.array_records[ARRAYS]
        self.config = message.content.config_records[CONFIG]
        self.settings = _settings(str(self.config[SETTINGS]))
        self.client = _number(context)
        self.device = pick_device(self.settings.device)
        self.dataset = datasets.load(self.settings.data.name, self.settings.data_dir)
        self.examples = self._examples()

    def model(self) -> Classifier:
        """Return this process's network with the message's weights."""
        model, codec = _network(
            self.settings.model.name, self.dataset.input_shape, self.dataset.classes, self.device
        )
        if codec.layout.fingerprint != self.config[LAYOUT]:
            raise ConfigError(
                f"this client builds another model '{self.settings.model.name}' than the server; "
                "install the same version on both"
            )
        unpack(codec.decode(self.record), codec.layout, model)
        return model

    def arrays(self, model: Classifier) -> ArrayRecord:
        """Return a network's weights as a record."""
        codec = Codec(layout_of(model))
        packed = pack(model, codec.layout)
        return codec.encode([packed.floats], [packed.ints])

    def _examples(self) -> Examples:
        assert self.settings.run_dir is not None
        indices = torch.from_numpy(_partition(RunFolder(self.settings.run_dir).partition)[self.client])
        train = self.dataset.train
        return Examples(train.images[indices], train.labels[indices])


def _number(context: Context) -> int:
    return int(context.node_config["partition-id"])


@lru_cache(maxsize=4)
def _settings(text: str) -> Settings:
    return Settings.model_validate(json.loads(text))


@lru_cache(maxsize=2)
def _partition(path: Path) -> list[partitions.Indices]:
    return partitions.read(path)


@lru_cache(maxsize=1)
def _network(
    name: str, input_shape: tuple[int, ...], classes: int, device: torch.device
) -> tuple[Classifier, Codec]:
    model = models.build(name, input_shape, classes)
    layout = layout_of(model)
    return model.to(device=device, memory_format=memory_format(device)), Codec(layout)
