"""The client's side: Flower's handlers around the local training of `fedmr_flwr.training`.

All a client needs comes with the message: the model, the settings of the run and the round. Data set,
partition and network are kept per process, because a process of the simulation serves many clients.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedmr_flwr import algorithms, models
from fedmr_flwr.client_state import ClientState
from fedmr_flwr.config import Data, Settings
from fedmr_flwr.data import datasets, partitions
from fedmr_flwr.errors import ConfigError, DataError, PartitionError
from fedmr_flwr.layout import Layout
from fedmr_flwr.models.base import Classifier
from fedmr_flwr.randomness import stream
from fedmr_flwr.records import (
    ARRAYS,
    CONFIG,
    EXAMPLES,
    LAST_ROUND,
    LOST_STATE,
    METRICS,
    ROUND,
    Codec,
    vector_record,
    vectors,
)  # fmt: skip
from fedmr_flwr.roster import CLIENT
from fedmr_flwr.runs import checkpoint
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.training import evaluate as score
from fedmr_flwr.training import fit, layout_of, pack, pick_device, place, threads, unpack

SETTINGS, LAYOUT, DIGEST = "settings", "layout", "data-sha256"

app = ClientApp()


def train_config(settings: Settings, layout: Layout) -> ConfigRecord:
    """Return what the server sends with every model, for the handlers below.

    Args:
        settings: the run, with its folder.
        layout: of the model.
    """
    return ConfigRecord({SETTINGS: settings.model_dump_json(by_alias=True), LAYOUT: layout.fingerprint})


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model of the message on this client's data."""
    with threads(_sent_settings(message).client_cpus):
        job = _Job(message, context)
        server_round, last_round = (cast(int, job.config.get(key, 0)) for key in (ROUND, LAST_ROUND))
        rule = algorithms.local_rule(job.settings)
        rule.received = vectors(message.content, rule.exchanges)
        found = job.state.recall(last_round) if rule.keeps else {}
        rule.kept = found or {}
        rng = stream(job.settings.seed, "train", server_round, job.client)
        done = fit(job.model, job.dataset, job.examples, job.settings.training, rng, rule)
        trained = pack(job.model, job.codec.layout)
    if rule.keeps:
        resumable = checkpoint.oldest(server_round, job.settings.checkpoint_every)
        job.state.keep(done.outcome.kept, server_round, last_round, resumable)
    metrics = MetricRecord({EXAMPLES: done.examples, "train-loss": done.loss})
    if found is None:
        metrics[LOST_STATE] = 1
    arrays = job.codec.encode([trained.floats], [trained.ints])
    returned = {name: vector_record(values) for name, values in done.outcome.returned.items()}
    return Message(RecordDict({ARRAYS: arrays, **returned, METRICS: metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the model of the message on this client's data."""
    with threads(_sent_settings(message).client_cpus):
        job = _Job(message, context)
        result = score(job.model, job.dataset, job.examples, job.device)
    metrics = MetricRecord({EXAMPLES: result.examples, "loss": result.loss, "accuracy": result.accuracy})
    return Message(RecordDict({METRICS: metrics}), reply_to=message)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Answer with this client's number and examples, once it is clear that what the run needs is there."""
    answer = MetricRecord({CLIENT: _number(context)})
    if SETTINGS in message.content.config_records.get(CONFIG, {}):
        settings = _sent_settings(message)
        if _digest(settings.data, settings.data_dir) != message.content.config_records[CONFIG].get(DIGEST):
            raise DataError("this client holds other data under the same name; give all machines the same files")
        answer[EXAMPLES] = len(_indices(settings, _number(context)))
    return Message(RecordDict({METRICS: answer}), reply_to=message)


class _Job:
    """What a message asks of this client: its model on this client's data."""

    def __init__(self, message: Message, context: Context) -> None:
        self.config = message.content.config_records[CONFIG]
        self.settings = _sent_settings(message)
        self.client = _number(context)
        self.device = _device(self.settings)
        self.dataset = datasets.load(self.settings.data, self.settings.data_dir)
        self.examples = self.dataset.train.select(_indices(self.settings, self.client), self.device)
        self.model, self.codec = _network(
            self.settings.model.name, self.dataset.input_shape, self.dataset.classes, self.device
        )
        if self.codec.layout.fingerprint != self.config[LAYOUT]:
            raise ConfigError(
                f"this client builds another model '{self.settings.model.name}' than the server; "
                "install the same version on both"
            )
        assert self.settings.run_dir is not None
        self.state = ClientState(RunFolder(self.settings.run_dir).client_state / f"client-{self.client:06d}")
        unpack(self.codec.decode(message.content.array_records[ARRAYS]), self.codec.layout, self.model)


def _indices(settings: Settings, client: int) -> partitions.Indices:
    """Return which training examples are this client's."""
    assert settings.run_dir is not None
    path = RunFolder(settings.run_dir).partition
    if not path.exists():
        raise PartitionError(f"{path} is not there; all clients must see the run folder under the same path")
    return _partition(path, path.stat().st_mtime_ns)[client]


def _sent_settings(message: Message) -> Settings:
    return _settings(str(message.content.config_records[CONFIG][SETTINGS]))


def _number(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _device(settings: Settings) -> torch.device:
    # Ray shows each client only the card it gave it, under the number 0.
    hidden = settings.engine == "ray" and settings.device.startswith("cuda")
    return pick_device("cuda" if hidden else settings.device)


@lru_cache(maxsize=4)
def _settings(text: str) -> Settings:
    return Settings.model_validate(json.loads(text))


@lru_cache(maxsize=2)
def _digest(data: Data, data_dir: Path | None) -> str:
    return datasets.load(data, data_dir).digest()


@lru_cache(maxsize=2)
def _partition(path: Path, changed: int) -> list[partitions.Indices]:
    return partitions.read(path)


@lru_cache(maxsize=1)
def _network(name: str, input_shape: tuple[int, ...], classes: int, device: torch.device) -> tuple[Classifier, Codec]:
    model = models.build(name, input_shape, classes)
    layout = layout_of(model)
    place(model, device)
    return model, Codec(layout)
