"""The client app: Flower's handlers around `fedmr_flwr.training`.

A message contains the model, the settings of the run and the round; everything else is found where the client runs
(`fedmr_flwr.client.environment`). Data set, partition and network are kept per process, because a process of the
simulation serves many clients.
"""

import json
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fedmr_flwr import models
from fedmr_flwr.client import privacy
from fedmr_flwr.client.data_spec import DataSpec
from fedmr_flwr.client.environment import ClientEnvironment, SimulatedEnvironment
from fedmr_flwr.client.node import DATA, STATE, NodeEnvironment, number_of, private_errors
from fedmr_flwr.client.seals import Seals
from fedmr_flwr.config.settings import Settings
from fedmr_flwr.config.training import Precision
from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.errors import ConfigError, OwnCodeError, describe, own_place
from fedmr_flwr.models.packing import layout_of, pack, unpack
from fedmr_flwr.runs.bugs import in_one_line
from fedmr_flwr.runs.checkpoint import oldest
from fedmr_flwr.training.devices import arithmetic, place, threads
from fedmr_flwr.training.evaluation import evaluate as score
from fedmr_flwr.training.lane import TrainResult
from fedmr_flwr.training.rules import local_rule
from fedmr_flwr.training.sgd import fit
from fedmr_flwr.training.work import fine_tuning, work_of
from fedmr_flwr.wire import sealing
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.flower.logs import log_errors_in_one_line
from fedmr_flwr.wire.messages import (
    ARRAYS,
    CLIENT,
    CONFIG,
    EVALUATES,
    EXAMPLES,
    KEY,
    LAST_ROUND,
    LOST_STATE,
    METRICS,
    OWN_TESTS,
    ROUND,
    vector_record,
    vectors,
)
from fedmr_flwr.wire.sealed import START, initial_arrays, skipped_rounds

SETTINGS, LAYOUT, SPEC, RUN, DIGEST = "settings", "layout", "data-spec", "run", "data-sha256"


def _in_one_line(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    """Let a node of a deployment log its errors in one line, with the traceback of a bug in its folder."""
    if DATA not in context.node_config:  # the server of a simulation reports its clients' errors itself
        try:
            return call_next(message, context)
        except Exception as error:
            if own_place(error):  # which Flower would not send
                raise OwnCodeError(describe(error)) from error
            raise
    log_errors_in_one_line()
    with private_errors(context.node_config), in_one_line(Path(str(context.node_config[STATE]))):
        return call_next(message, context)


client_app = ClientApp(mods=[_in_one_line])


def train_config(settings: Settings, layout: Layout, spec: DataSpec, run: str) -> ConfigRecord:
    """Return the record that the server sends with every model, for the handlers below.

    Args:
        settings: of the run, with its folder.
        layout: of the model.
        spec: of the data.
        run: the identifier of the run.
    """
    if settings.engine == "deployment":  # nodes have their own paths, and need not know the server's
        settings = settings.model_copy(update={"run_dir": None, "data_dir": None})
    text = settings.model_dump_json(by_alias=True)
    return ConfigRecord({SETTINGS: text, LAYOUT: layout.fingerprint, SPEC: spec.to_json(), RUN: run})


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model of the message on this client's data."""
    settings = _sent_settings(message.content.config_records[CONFIG])
    # Around loading and packing too: with all threads copies are slower as soon as other processes use the cores.
    with threads(settings.client_cpus):
        request = TrainRequest(message, context)
        dataset, examples = request.environment.examples()
        with arithmetic(settings.precision, request.environment.device):
            request.measure("before", request.model)
            result = fit(
                request.model, dataset, examples, request.training, request.rng, request.rule, request.vectors,
                request.kept, settings.precision,
            )  # fmt: skip
            request.measure("after", request.model)
        return request.reply(pack(request.model, request.codec.layout), result)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the model of the message on this client's data, and once more after some local steps, if configured.

    A client without test examples does not fine-tune: it would be scored on what it has just trained on.
    """
    settings = _sent_settings(message.content.config_records[CONFIG])
    with threads(settings.client_cpus):
        request = _Request(message, context)
        environment, steps = request.environment, settings.evaluation.fine_tune
        device, tests = environment.device, environment.tests()
        dataset, examples = environment.examples()
        with arithmetic(settings.precision, device):
            result = score(request.model, dataset, tests or examples, device)
            found: dict[str, float] = {"loss": result.loss, "accuracy": result.accuracy}
            if steps and tests:
                number = cast(int, request.config.get(ROUND, 0))
                training = fine_tuning(settings, number, environment.number, steps)
                rng = stream(settings.seed, "fine-tune", number, environment.number)
                fit(request.model, dataset, examples, training, rng, precision=settings.precision)
                tuned = score(request.model, dataset, tests, device)
                found |= {"tuned-loss": tuned.loss, "tuned-accuracy": tuned.accuracy}
    own = {EXAMPLES: result.examples, OWN_TESTS: int(tests is not None)}
    return Message(RecordDict({METRICS: MetricRecord({**own, **found})}), reply_to=message)


@client_app.query()
def query(message: Message, context: Context) -> Message:
    """Return this client's number and, after verifying data and run folder, its number of examples."""
    config = message.content.config_records.get(CONFIG, ConfigRecord())
    metrics = MetricRecord({CLIENT: _number(config, context)})
    # A client that lacks its data would fail at once in every round; it reports that before the first one instead.
    if SETTINGS in config:
        environment = _environment(config, context)
        metrics[EXAMPLES] = environment.prepare(str(config[DIGEST]))
        if environment.settings.privacy.sealed:
            metrics[KEY] = sealing.identity(environment.sealing_key)
        if isinstance(environment, NodeEnvironment) and environment.evaluates:
            metrics[EVALUATES] = 1
    return Message(RecordDict({METRICS: metrics}), reply_to=message)


class _Request:
    """A message to this client, decoded.

    Attributes:
        scores: whether the client is to score the model, not to train it.
        environment: data, device and state of the client.
        received: the model of the message.
    """

    scores: ClassVar[bool] = True

    def __init__(self, message: Message, context: Context) -> None:
        self.config = message.content.config_records[CONFIG]
        self.settings = _sent_settings(self.config)
        self.environment = _environment(self.config, context)
        spec = _sent_spec(self.config)
        self._network, self.codec = _network(
            self.settings.model.name, spec.input_shape, spec.classes, self.settings.seed, self.environment.device,
            self.settings.wire, self.settings.precision, spec.text,
        )  # fmt: skip
        # The vectors have no names: with another layout they would be loaded into the wrong tensors.
        if self.codec.layout.fingerprint != self.config[LAYOUT]:
            raise ConfigError(
                f"this client's model '{self.settings.model.name}' differs from the server's; "
                "install the same version on both"
            )
        arrays = message.content.array_records[ARRAYS]
        self.seals: Seals | None = None
        if self.settings.privacy.sealed:
            key, run = self.environment.sealing_key, str(self.config[RUN])
            self.seals = Seals.of_run(
                self.settings, self.codec, key, run, initial_arrays(arrays), str(self.config[START]),
                skipped_rounds(self.config),
            )  # fmt: skip
            self.received = self.seals.received(self.environment.number, self.config, arrays, self.scores)
        else:
            self.received = self.codec.decode(arrays)

    @cached_property
    def model(self) -> nn.Module:
        """The network with the model of the message."""
        # Only when the network is needed: the one-GPU engine loads the vectors into its own lanes.
        unpack(self.received, self.codec.layout, self._network)
        return self._network


class TrainRequest(_Request):
    """A request to train, and its reply.

    Args:
        message: with the model and the settings.
        context: of the client.

    Attributes:
        rule: the algorithm's local rule.
        vectors: from the server for the rule, by name.
        kept: arrays that the client kept when it last took part, by name; empty if it never did, or if they are lost.
        rng: the client's stream for this round.
        training: of the client in this round.

    Raises:
        ConfigError: this node does not train.
    """

    scores = False

    def __init__(self, message: Message, context: Context) -> None:
        super().__init__(message, context)
        # A server does not ask it; one that lies must not get more of it than scores.
        if isinstance(self.environment, NodeEnvironment) and self.environment.evaluates:
            raise ConfigError("this node is an evaluator, which does not train; see role in its node.yaml")
        self._message = message
        self._round, self._last_round = (cast(int, self.config.get(key, 0)) for key in (ROUND, LAST_ROUND))
        self.rule = local_rule(self.settings.strategy, self.settings.model.features)
        self.vectors = vectors(message.content, self.rule.exchanges)
        found = self.environment.state.recall(self._last_round) if self.rule.keeps else {}
        self._lost_state = found is None
        self.kept = found or {}
        # Of the round and the client, so that the process in which it trains makes no difference.
        self.rng = stream(self.settings.seed, "train", self._round, self.environment.number)
        self.training = work_of(self.settings, self._round, self.environment.number)
        self._measured: dict[str, float] = {}

    def measure(self, when: str, model: nn.Module) -> None:
        """Score a model on the client's own examples, if configured.

        Args:
            when: before or after training.
            model: on the client's device; its mode is kept.
        """
        if not self.settings.evaluation.forgetting:
            return
        dataset, examples = self.environment.examples()
        tests, mode = self.environment.tests(), model.training
        result = score(model, dataset, tests or examples, self.environment.device)
        model.train(mode)
        self._measured |= {f"{when}-loss": result.loss, f"{when}-accuracy": result.accuracy}

    def reply(self, trained: Packed, result: TrainResult) -> Message:
        """Save the client's state, and return the reply.

        Args:
            trained: the trained model.
            result: of local training.
        """
        if self.rule.keeps:
            resumable = oldest(self._round, self.settings.checkpoint_every)
            self.environment.state.keep(result.outcome.kept, self._round, self._last_round, resumable)
        metrics = MetricRecord({EXAMPLES: result.examples})
        if how := self.settings.privacy.local_dp:
            received, layout = self.received.on_host(), self.codec.layout
            trained = privacy.protect(trained.on_host(), received, layout, how, self._message)
        else:  # the loss depends on the examples, too, and would be sent without noise
            metrics["train-loss"] = result.loss
            for name, value in self._measured.items():
                metrics[name] = value
        if self._lost_state:
            metrics[LOST_STATE] = 1
        arrays = self.codec.encode(trained)
        if self.seals:
            arrays = self.seals.sealed(self.environment.number, self._round, arrays)
        returned = {name: vector_record(values) for name, values in result.outcome.returned.items()}
        return Message(RecordDict({ARRAYS: arrays, **returned, METRICS: metrics}), reply_to=self._message)


def _environment(config: Mapping[str, Any], context: Context) -> ClientEnvironment:
    """Return the client's environment: only a node of a deployment has data in its configuration."""
    settings = _sent_settings(config)
    if DATA in context.node_config:
        return NodeEnvironment(settings, context.node_config, _sent_spec(config), str(config[RUN]))
    if settings.run_dir is None:
        raise ConfigError("this node has no data; start it with `fedmr deploy node`, or see docs/guides/deploy.md")
    return SimulatedEnvironment(settings, _number(config, context))


def _number(config: Mapping[str, Any], context: Context) -> int:
    """Return this client's number: a simulation states it in each message, a node elsewhere has one of its own."""
    simulated = CLIENT in config and DATA not in context.node_config
    return int(config[CLIENT]) if simulated else number_of(context.node_config)


def _sent_settings(config: Mapping[str, Any]) -> Settings:
    return _settings(str(config[SETTINGS]))


def _sent_spec(config: Mapping[str, Any]) -> DataSpec:
    return DataSpec.from_json(str(config[SPEC]))


# Cached, because the text is the same in every message of a run.
@lru_cache(maxsize=4)
def _settings(text: str) -> Settings:
    return Settings.model_validate(json.loads(text))


def forget() -> None:
    """Build the next client's network anew: its class may have been reloaded since an earlier run of this process."""
    _network.cache_clear()


# One network for each process, which serves many clients; a second model would double its memory.
@lru_cache(maxsize=1)
def _network(
    name: str,
    input_shape: tuple[int, ...],
    classes: int,
    seed: int,
    device: torch.device,
    wire: str,
    precision: Precision,
    text: bool,
) -> tuple[nn.Module, Codec]:
    # With the seed of the run, because a model may draw more than what a message brings.
    model = models.build(name, input_shape, classes, seed, text=text)
    layout = layout_of(model)
    place(model, device, precision)
    return model, Codec(layout, wire=wire)
