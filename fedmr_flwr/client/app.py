"""The client's side: Flower's handlers around the local training of `fedmr_flwr.training`.

With the message come the model, the settings of the run and the round; the rest is found where the client runs
(`fedmr_flwr.sites`). Data set, partition and network are kept per process, because a process of the simulation
serves many clients.
"""

import json
from functools import cached_property, lru_cache
from typing import cast

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedmr_flwr import algorithms, models
from fedmr_flwr.client import privacy
from fedmr_flwr.client.sites import DATA, Form, Node, Simulated, Site, number_of
from fedmr_flwr.config.settings import Precision, Settings
from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.models.base import Classifier
from fedmr_flwr.models.packing import layout_of, pack, unpack
from fedmr_flwr.runs import checkpoint
from fedmr_flwr.training.devices import arithmetic, place, threads
from fedmr_flwr.training.evaluation import evaluate as score
from fedmr_flwr.training.sgd import Fit, fit
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.grids.attendance import CLIENT
from fedmr_flwr.wire.messages import (
    ARRAYS,
    CONFIG,
    EXAMPLES,
    LAST_ROUND,
    LOST_STATE,
    METRICS,
    ROUND,
    vector_record,
    vectors,
)

SETTINGS, LAYOUT, FORM, RUN, DIGEST = "settings", "layout", "form", "run", "data-sha256"

app = ClientApp()


def train_config(settings: Settings, layout: Layout, form: Form, run: str) -> ConfigRecord:
    """Return what the server sends with every model, for the handlers below.

    Args:
        settings: the run, with its folder.
        layout: of the model.
        form: of the data.
        run: identifies the run, also when it goes on later.
    """
    if settings.engine == "deployment":  # nodes have paths of their own, and the server's are none of their business
        settings = settings.model_copy(update={"run_dir": None, "data_dir": None})
    text = settings.model_dump_json(by_alias=True)
    return ConfigRecord({SETTINGS: text, LAYOUT: layout.fingerprint, FORM: form.to_json(), RUN: run})


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model of the message on this client's data."""
    settings = _sent_settings(message)
    with threads(settings.client_cpus):
        client = Assignment(message, context)
        dataset, examples = client.site.examples()
        with arithmetic(settings.precision, client.site.device):
            done = fit(
                client.model, dataset, examples, settings.training, client.rng, client.rule, settings.precision
            )
        trained = pack(client.model, client.codec.layout)
        return client.reply(trained, done)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the model of the message on this client's data."""
    settings = _sent_settings(message)
    with threads(settings.client_cpus):
        job = _Job(message, context)
        with arithmetic(settings.precision, job.site.device):
            result = score(job.model, *job.site.examples(), job.site.device)
    metrics = MetricRecord({EXAMPLES: result.examples, "loss": result.loss, "accuracy": result.accuracy})
    return Message(RecordDict({METRICS: metrics}), reply_to=message)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Answer with this client's number and examples, once it is clear that what the run needs is there."""
    answer = MetricRecord({CLIENT: number_of(context.node_config)})
    if SETTINGS in message.content.config_records.get(CONFIG, {}):
        answer[EXAMPLES] = _site(message, context).prepare(str(message.content.config_records[CONFIG][DIGEST]))
    return Message(RecordDict({METRICS: answer}), reply_to=message)


class _Job:
    """What a message asks of this client.

    Attributes:
        received: the model of the message.
    """

    def __init__(self, message: Message, context: Context) -> None:
        self.config = message.content.config_records[CONFIG]
        self.settings = _sent_settings(message)
        self.site = _site(message, context)
        form = _sent_form(message)
        self._network, self.codec = _network(
            self.settings.model.name, form.input_shape, form.classes, self.site.device, self.settings.wire,
            self.settings.precision,
        )  # fmt: skip
        if self.codec.layout.fingerprint != self.config[LAYOUT]:
            raise ConfigError(
                f"this client builds another model '{self.settings.model.name}' than the server; "
                "install the same version on both"
            )
        self.received = self.codec.decode(message.content.array_records[ARRAYS])

    @cached_property
    def model(self) -> Classifier:
        """The network with the model of the message."""
        unpack(self.received, self.codec.layout, self._network)
        return self._network


class Assignment(_Job):
    """What a message asks this client to train, and the reply to it.

    Args:
        message: with the model and the settings.
        context: says which client this is.

    Attributes:
        rule: what the algorithm changes, with what the server sent and what the client kept.
        rng: the client's stream for this round.
    """

    def __init__(self, message: Message, context: Context) -> None:
        super().__init__(message, context)
        self._message = message
        self._round, self._last_round = (cast(int, self.config.get(key, 0)) for key in (ROUND, LAST_ROUND))
        self.rule = algorithms.local_rule(self.settings)
        self.rule.received = vectors(message.content, self.rule.exchanges)
        found = self.site.state.recall(self._last_round) if self.rule.keeps else {}
        self._lost_state = found is None
        self.rule.kept = found or {}
        self.rng = stream(self.settings.seed, "train", self._round, self.site.number)

    def reply(self, trained: Packed, done: Fit) -> Message:
        """Keep what the rule wants kept, and make the reply.

        Args:
            trained: the trained model.
            done: what local training did.
        """
        if self.rule.keeps:
            resumable = checkpoint.oldest(self._round, self.settings.checkpoint_every)
            self.site.state.keep(done.outcome.kept, self._round, self._last_round, resumable)
        metrics = MetricRecord({EXAMPLES: done.examples})
        if how := self.settings.privacy.local_dp:
            received, layout = self.received.on_host(), self.codec.layout
            trained = privacy.protect(trained.on_host(), received, layout, how, self._message)
        else:  # the loss says something of the examples, too
            metrics["train-loss"] = done.loss
        if self._lost_state:
            metrics[LOST_STATE] = 1
        arrays = self.codec.encode(trained)
        returned = {name: vector_record(values) for name, values in done.outcome.returned.items()}
        return Message(RecordDict({ARRAYS: arrays, **returned, METRICS: metrics}), reply_to=self._message)


def _site(message: Message, context: Context) -> Site:
    """Return where this client runs: a node with data of its own says so in its configuration."""
    settings = _sent_settings(message)
    if DATA in context.node_config:
        run = str(message.content.config_records[CONFIG][RUN])
        return Node(settings, context.node_config, _sent_form(message), run)
    if settings.run_dir is None:
        raise ConfigError("this node names no data; start it with `fedmr deploy node`, or see docs/deployment.md")
    return Simulated(settings, number_of(context.node_config))


def _sent_settings(message: Message) -> Settings:
    return _settings(str(message.content.config_records[CONFIG][SETTINGS]))


def _sent_form(message: Message) -> Form:
    return Form.from_json(str(message.content.config_records[CONFIG][FORM]))


@lru_cache(maxsize=4)
def _settings(text: str) -> Settings:
    return Settings.model_validate(json.loads(text))


@lru_cache(maxsize=1)
def _network(
    name: str, input_shape: tuple[int, ...], classes: int, device: torch.device, wire: str, precision: Precision
) -> tuple[Classifier, Codec]:
    model = models.build(name, input_shape, classes)
    layout = layout_of(model)
    place(model, device, precision)
    return model, Codec(layout, wire=wire)
