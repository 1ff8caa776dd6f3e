"""FedMR for Flower's classic strategy API, whose clients are `NumPyClient`s: `configure_fit`, `aggregate_fit`.

The message-API strategy is `fedmr_flwr.FedMR`. Both deal, train and average alike; here models travel as
lists of arrays without names, clients have no numbers, and Flower itself calls the strategy round by round.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from flwr import common
from flwr.common import Code, FitIns, FitRes, NDArrays, Parameters, Scalar
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import Strategy

from fedmr_flwr.algorithms.base import Trained, mean_metrics, plain_numbers
from fedmr_flwr.algorithms.wrappers import refuse_unfit
from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.core.population import average, similarity
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.core.recombination import Buffers, Recombination, shuffled
from fedmr_flwr.core.units import Spec, grouping
from fedmr_flwr.errors import ConfigError, FederationError, RecordError
from fedmr_flwr.wire.checks import MOST_EXAMPLES
from fedmr_flwr.wire.npy import read

_log = logging.getLogger(__name__)
_PATIENCE = 120

Score = tuple[float, dict[str, Scalar]]
Answers = list[tuple[ClientProxy, FitRes]]
Failures = list[tuple[ClientProxy, FitRes] | BaseException]


class FedMR(Strategy):
    """Federated learning by layer-wise model recombination, for `flwr.server.ServerApp(server_fn=...)`.

    Clients need no change and no knowledge of FedMR. They are never asked to evaluate: the server does, with
    `evaluate_fn`. Which slots are trained and what they are dealt depends on the seed alone. Which clients train
    them does not: Flower gives its nodes random identifiers in every run, so, unlike `fedmr_flwr.FedMR` with
    numbered clients, this strategy cannot promise the same clients, and so the same model, in every run.

    Args:
        clients_per_round: M, the clients drawn in a round; as many are waited for.
        population: K, the number of models, at least M; M if not given.
        keys: the names of the tensors in the order in which clients send them, `list(model.state_dict())`.
            Without them only units that need no names can be recombined: "tensor", "fraction:P" and patterns
            on the tensors' numbers.
        unit: "layer", "tensor", "block", "block:DEPTH", "fraction:P" or a list of regular expressions.
        first_stage_rounds: rounds of averaging before recombination begins.
        buffers: whether buffers, such as BatchNorm's statistics, "move" with their unit or are the "average".
        weighting: of the global model, "uniform" or by the "examples" that each slot was last trained on.
        seed: the seed of the run.
        initial_parameters: where training starts; Flower asks a random client if not given.
        evaluate_fn: scores a global model: (round, arrays, {}) to (loss, metrics), or to None for no result.
        on_fit_config_fn: makes the configuration that clients get: round to dictionary.

    Attributes:
        population: the model of each slot: as its client returned it, or as it was dealt where none did;
            None before the first round with a good result.

    Raises:
        ConfigError: an option's value is wrong, or the unit needs names and there are none.

    Source: Hu et al., "Is Aggregation the Only Choice? Federated Learning via Layer-wise Model Recombination",
    KDD 2024 (arXiv 2305.10730).
    """

    population: list[Packed] | None = None

    def __init__(
        self,
        *,
        clients_per_round: int = 10,
        population: int | None = None,
        keys: Sequence[str] | None = None,
        unit: Spec = "layer",
        first_stage_rounds: int = 0,
        buffers: Buffers = "move",
        weighting: Literal["uniform", "examples"] = "uniform",
        seed: int = 0,
        initial_parameters: Parameters | None = None,
        evaluate_fn: Callable[[int, NDArrays, dict[str, Scalar]], Score | None] | None = None,
        on_fit_config_fn: Callable[[int], dict[str, Scalar]] | None = None,
    ) -> None:
        self.clients_per_round = clients_per_round
        self.slots = clients_per_round if population is None else population
        self.keys = None if keys is None else tuple(keys)
        self.unit, self.first_stage_rounds = unit, first_stage_rounds
        self.buffers, self.weighting, self.seed = buffers, weighting, seed
        self.initial_parameters = initial_parameters
        self.evaluate_fn, self.on_fit_config_fn = evaluate_fn, on_fit_config_fn
        self._check_options()
        self._examples = np.zeros(self.slots)
        self._layout = Layout(())  # until the first model is seen, which makes the recombination, too
        self._recombination: Recombination
        self._dealt: list[Packed] = []
        self._asked: dict[str, int] = {}  # the slot that each client of the round was given

    def _check_options(self) -> None:
        for key, value, least in (
            ("clients_per_round", self.clients_per_round, 1),
            ("population", self.slots, self.clients_per_round),
            ("first_stage_rounds", self.first_stage_rounds, 0),
        ):
            if value < least:
                raise ConfigError(f"{key} is {value}; it must be at least {least}")
        for key, word, words in (
            ("buffers", self.buffers, ("move", "average")),
            ("weighting", self.weighting, ("uniform", "examples")),
        ):
            if word not in words:
                raise ConfigError(f"{key} is '{word}'; choose one of {', '.join(words)}")
        grouping(self.unit)
        by_name = isinstance(self.unit, str) and self.unit.startswith(("layer", "block"))
        if self.keys is None and (by_name or self.buffers == "average"):
            raise ConfigError(
                f"unit='{self.unit}' with buffers='{self.buffers}' needs the names of the tensors: give "
                "keys=list(model.state_dict()), or take unit='tensor' and buffers='move'"
            )

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters | None:
        """Begin a training: forget what an earlier one left and return the model to start from, if there is one."""
        self.population = None
        self._examples[:] = 0
        self._layout = Layout(())
        return self.initial_parameters

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Draw the round's clients and deal each the model of a slot, with instructions of its own.

        Raises:
            ConfigError: the first model does not fit the options.
            FederationError: too few clients come.
        """
        refuse_unfit(self)
        if not self._layout.entries:
            self._learn(parameters)
        clients = _wait_for(self.clients_per_round, client_manager)
        rng = stream(self.seed, "select", server_round)
        drawn = [clients[at] for at in rng.choice(len(clients), self.clients_per_round, replace=False)]
        rng = stream(self.seed, "slots", server_round)
        slots = sorted(rng.choice(self.slots, self.clients_per_round, replace=False).tolist())
        self._asked = {client.cid: slot for client, slot in zip(drawn, slots, strict=True)}
        center = self._decode(parameters)
        self._dealt = self._deal(server_round, center)
        config = {} if self.on_fit_config_fn is None else self.on_fit_config_fn(server_round)

        def instructions(model: Packed) -> FitIns:
            # The bytes of the global model are the same for all: no copy for each client.
            encoded = parameters if model is center else self._encode(model)
            return FitIns(Parameters(list(encoded.tensors), encoded.tensor_type), dict(config))

        return [(client, instructions(self._dealt[slot])) for client, slot in zip(drawn, slots, strict=True)]

    def aggregate_fit(
        self, server_round: int, results: Answers, failures: Failures
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Take the good results into the population; log the others.

        Returns:
            The mean of the population, and the clients' metrics with the "similarity" of the population;
            (None, {}) if not one result is good.
        """
        trained: list[Trained | None] = [None] * self.slots
        for client, result in [*results, *(failure for failure in failures if isinstance(failure, tuple))]:
            slot = self._asked.pop(client.cid, None)
            try:
                if slot is None:
                    raise RecordError("it was not asked, or has answered before")
                trained[slot] = self._read(result)
            except RecordError as error:
                _refuse(client.cid, error)
        for failure in failures:
            if isinstance(failure, BaseException):  # Flower does not say whose, so name all who did not answer
                _refuse(" or ".join(sorted(self._asked)) or "unknown", failure)
        dealt, self._dealt, self._asked = self._dealt, [], {}
        if not any(trained):
            return None, {}
        self.population = [reply.model if reply else kept for reply, kept in zip(trained, dealt, strict=True)]
        for slot, reply in enumerate(trained):
            if reply:
                self._examples[slot] = reply.examples
        center = average(self.population, self._examples.tolist() if self.weighting == "examples" else None)
        alike = similarity([model.floats for model in self.population])
        return self._encode(center), {**mean_metrics([reply for reply in trained if reply]), "similarity": alike}

    def evaluate(self, server_round: int, parameters: Parameters) -> Score | None:
        """Score the global model with `evaluate_fn`, if there is one."""
        return self.evaluate_fn and self.evaluate_fn(server_round, common.parameters_to_ndarrays(parameters), {})

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[Any]:
        """Ask no client: the server evaluates."""
        return []

    def aggregate_evaluate(self, server_round: int, results: Any, failures: Any) -> tuple[None, dict[str, Scalar]]:
        """Return nothing: the server evaluates."""
        return None, {}

    def _learn(self, parameters: Parameters) -> None:
        """Take the shapes and types of the tensors from the first model."""
        tensors = [read(tensor) for tensor in parameters.tensors]
        keys = [str(at) for at in range(len(tensors))] if self.keys is None else self.keys
        if not tensors or len(set(keys)) != len(tensors):
            raise ConfigError(
                f"the first model has {len(tensors)} tensors and keys {len(set(keys))} names; give "
                "initial_parameters and keys=list(model.state_dict()) of one model"
            )
        try:
            self._layout = Layout.of(dict(zip(keys, tensors, strict=True)))
        except TypeError as error:
            raise ConfigError(f"{error}; convert the model with .astype(np.float32)") from None
        self._recombination = Recombination(self._layout, self.unit, self.buffers)

    def _deal(self, server_round: int, center: Packed) -> list[Packed]:
        """Return the model that each slot gets: the global one in the first stage, recombined after it."""
        sources = shuffled(
            self.seed, server_round, self.first_stage_rounds, len(self._recombination.units), self.slots
        )
        if self.population is None or sources is None:
            return [center] * self.slots
        return [
            Packed(np.concatenate([*floats, center.floats[:0]]), np.concatenate([*ints, center.ints[:0]]))
            for floats, ints in self._recombination.deal(self.population, center, sources)
        ]

    def _encode(self, model: Packed) -> Parameters:
        return common.ndarrays_to_parameters(list(self._layout.unpack(model).values()))

    def _decode(self, parameters: Parameters) -> Packed:
        entries, tensors = self._layout.entries, parameters.tensors
        if len(tensors) != len(entries):
            raise RecordError(f"the model has {len(tensors)} tensors, not {len(entries)}")
        try:
            return self._layout.pack({entry.name: read(data) for entry, data in zip(entries, tensors, strict=True)})
        except ValueError as error:
            raise RecordError(str(error)) from None

    def _read(self, result: FitRes) -> Trained:
        """Check and decode what a client returned."""
        if result.status.code != Code.OK:
            raise RecordError(f"{result.status.code.name}: {result.status.message}")
        examples = result.num_examples
        if not isinstance(examples, int | float) or not 0 < examples < MOST_EXAMPLES:
            raise RecordError(f"it trained on {examples} examples")
        model = self._decode(result.parameters)
        if not np.isfinite(model.floats).all():
            raise RecordError("its model holds NaN or infinite values")
        return Trained(model, examples, plain_numbers(result.metrics))


def _wait_for(count: int, client_manager: ClientManager) -> list[ClientProxy]:
    """Wait until at least `count` clients are there; return all in the order of their identifiers."""
    # Asked first, because Flower looks for new clients when it is asked, and else every few seconds.
    if client_manager.num_available() < count:
        client_manager.wait_for(count, timeout=_PATIENCE)
    clients = client_manager.all()
    if len(clients) < count:
        raise FederationError(
            f"{len(clients)} of {count} clients are connected after {_PATIENCE} s; start the others, "
            f"or in a simulation set --federation-config 'num-supernodes={count}'"
        )
    return [clients[cid] for cid in sorted(clients)]


def _refuse(client: str, reason: BaseException) -> None:
    _log.warning("client %s: %s", client, " ".join(str(reason).split()) or type(reason).__name__)
