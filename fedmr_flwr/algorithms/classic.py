"""The algorithms for Flower's classic strategy API (`configure_fit`, `aggregate_fit`) with `NumPyClient`s.

One adapter for all algorithms whose clients train without a local rule. The strategies for the message API are
`fedmr_flwr.FedMR` and the others. Both recombine, train and average in the same way; here models are lists of arrays
without names, clients have no numbers, and Flower calls the strategy round by round.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from flwr import common
from flwr.common import Code, FitIns, FitRes, NDArrays, Parameters, Scalar
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import Strategy

from fedmr_flwr.algorithms import fedavg, fedcross, fedexp, fedmr, fedmut, indep
from fedmr_flwr.algorithms.base import Algorithm
from fedmr_flwr.algorithms.contract import Plan, Reply, Round, Slot
from fedmr_flwr.algorithms.metrics import mean_metrics, plain_numbers
from fedmr_flwr.algorithms.wrappers import refuse_unfit
from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.core.recombination import Parts
from fedmr_flwr.errors import ConfigError, RecordError, RunError
from fedmr_flwr.wire.npy import read
from fedmr_flwr.wire.numbers import LARGEST, find_metric_problem

_log = logging.getLogger(__name__)
_PATIENCE = 120.0

Evaluation = tuple[float, dict[str, Scalar]]
Results = list[tuple[ClientProxy, FitRes]]
Failures = list[tuple[ClientProxy, FitRes] | BaseException]


class ClassicStrategy(Strategy):
    """An algorithm for `flwr.server.ServerApp(server_fn=...)`; a subclass sets its class in `Kind`.

    Clients need no change. They do not evaluate: the server does, with `evaluate_fn`. The slots that are trained and
    their models depend on the seed alone. The clients that train them do not: Flower gives its nodes random
    identifiers in every run. So, unlike the message-API strategies with numbered clients, this one cannot guarantee
    the same clients, and so the same model, in every run.

    Args:
        keys: the names of the tensors in the order in which clients send them, `list(model.state_dict())`.
            Without them only units that need no names can be recombined: "tensor", "fraction:P" and patterns
            on the tensors' indices.
        initial_parameters: the initial model; None: Flower requests it from a random client.
        evaluate_fn: scores a global model: (round, arrays, {}) to (loss, metrics), or to None for no result.
        on_fit_config_fn: returns the configuration for clients: round to dictionary.
        **arguments: of the algorithm; it waits for as many clients as it draws in a round.

    Attributes:
        algorithm: the adapted algorithm.

    Raises:
        ConfigError: an option's value is wrong.
    """

    Kind: ClassVar[type[Algorithm[Any]]]

    def __init__(
        self,
        *,
        keys: Sequence[str] | None = None,
        initial_parameters: Parameters | None = None,
        evaluate_fn: Callable[[int, NDArrays, dict[str, Scalar]], Evaluation | None] | None = None,
        on_fit_config_fn: Callable[[int], dict[str, Scalar]] | None = None,
        **arguments: Any,
    ) -> None:
        self.algorithm = self.Kind(**arguments)
        self.keys = None if keys is None else tuple(keys)
        self.initial_parameters = initial_parameters
        self.evaluate_fn, self.on_fit_config_fn = evaluate_fn, on_fit_config_fn
        self._layout: Layout | None = None  # until the first model is seen
        self._plan: Plan | None = None
        self._pending: dict[str, int] = {}  # by identifier, the position of each client of the round without a result

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters | None:
        """Start a training: forget an earlier one and return the initial model, if there is one."""
        self._layout = None
        return self.initial_parameters

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Draw the round's clients and return the instructions for each, with the model of a slot.

        Raises:
            ConfigError: the first model does not fit the options.
            RunError: too few clients connect.
        """
        if not self.algorithm.averages_one_model:
            refuse_unfit(self)
        if self._layout is None or server_round == 1:
            # In the first round and not in the constructor, because Flower may take the model from a client.
            self._layout = self._infer_layout(parameters)
            self.algorithm.begin(self._layout)
        layout = self._layout
        clients = _wait_for(self.algorithm.clients_per_round, client_manager)
        round = Round(
            server_round, self.algorithm.seed, layout, len(clients), None, lambda: _decode(layout, parameters)
        )
        self._plan = plan = self.algorithm.plan(round)
        config = {} if self.on_fit_config_fn is None else self.on_fit_config_fn(server_round)
        # A model for several slots is encoded once: no copy of its bytes for each client.
        encoded: dict[int, Parameters] = {}
        instructions, self._pending = [], {}
        for client, model in zip(plan.clients, plan.models, strict=True):
            if client is not None and clients[client].cid not in self._pending:
                self._pending[clients[client].cid] = client
                if id(model) not in encoded:
                    encoded[id(model)] = _encode(layout, model)
                sent = encoded[id(model)]
                # Lists and dictionaries of its own: a mod or a client that changes them must not change another's.
                own = Parameters(list(sent.tensors), sent.tensor_type)
                instructions.append((clients[client], FitIns(own, dict(config))))
        return instructions

    def aggregate_fit(
        self, server_round: int, results: Results, failures: Failures
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Combine the good results; log the rejected ones.

        Returns:
            The new global model, and the clients' metrics with the algorithm's diagnostics that are numbers;
            No model if no result is good. If some are not, the numbers of "replies" and "failures", too.
        """
        layout, plan, good = self._layout, self._plan, {}
        for client, result in [*results, *(failure for failure in failures if isinstance(failure, tuple))]:
            number = self._pending.pop(client.cid, None)
            try:
                if number is None or layout is None:
                    raise RecordError("it was not drawn, or has replied before")
                good[number] = _read(layout, result)
            except RecordError as error:
                _log_rejected(client.cid, error)
        for failure in failures:
            if isinstance(failure, BaseException):  # Flower does not name the client, so name all without a result
                _log_rejected(" or ".join(sorted(self._pending)) or "unknown", failure)
        self._plan, self._pending = None, {}
        if plan is None or layout is None:
            return None, {}
        drawn = len({client for client in plan.clients if client is not None})
        counts = {} if len(good) == drawn else {"replies": len(good), "failures": drawn - len(good)}
        if not good:
            return None, {**counts}
        models = plan.models
        slots = plan.results(good, lambda slot: _joined(layout, models[slot]))
        encoded = self.algorithm.finish(plan, slots, lambda model: _encode(layout, model))
        numbers = {name: value for name, value in self.algorithm.diagnostics.items() if isinstance(value, float)}
        return encoded, {**counts, **numbers, **_means(slots)}

    def evaluate(self, server_round: int, parameters: Parameters) -> Evaluation | None:
        """Score the global model with `evaluate_fn`, if there is one."""
        return self.evaluate_fn and self.evaluate_fn(server_round, common.parameters_to_ndarrays(parameters), {})

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[Any]:
        """Send nothing: the server evaluates."""
        return []

    def aggregate_evaluate(self, server_round: int, results: Any, failures: Any) -> tuple[None, dict[str, Scalar]]:
        """Return nothing: the server evaluates."""
        return None, {}

    def _infer_layout(self, parameters: Parameters) -> Layout:
        """Derive the layout from the first model."""
        tensors = [read(tensor) for tensor in parameters.tensors]
        keys = [str(at) for at in range(len(tensors))] if self.keys is None else self.keys
        if not tensors or len(set(keys)) != len(tensors):
            raise ConfigError(
                f"the first model has {len(tensors)} tensors, but keys has {len(set(keys))} names; pass "
                "initial_parameters and keys=list(model.state_dict()) of one model"
            )
        try:
            return Layout.of(dict(zip(keys, tensors, strict=True)))
        except TypeError as error:
            raise ConfigError(f"{error}; convert the model with .astype(np.float32)") from None


class FedAvg(ClassicStrategy):
    """Federated averaging; see `fedmr_flwr.FedAvg`."""

    Kind = fedavg.FedAvg


class FedCross(ClassicStrategy):
    """Multi-model cross-aggregation; see `fedmr_flwr.algorithms.fedcross`."""

    Kind = fedcross.FedCross


class FedExP(ClassicStrategy):
    """Federated averaging with an extrapolated server step; see `fedmr_flwr.algorithms.fedexp`."""

    Kind = fedexp.FedExP


class FedMR(ClassicStrategy):
    """Federated learning by layer-wise model recombination; see `fedmr_flwr.FedMR`."""

    Kind = fedmr.FedMR


class FedMut(ClassicStrategy):
    """Federated averaging of mutated models; see `fedmr_flwr.algorithms.fedmut`."""

    Kind = fedmut.FedMut


class Indep(ClassicStrategy):
    """Independent models; see `fedmr_flwr.Indep`."""

    Kind = indep.Indep


def _joined(layout: Layout, model: Packed | Parts) -> Packed:
    if isinstance(model, Packed):
        return model
    floats, ints = np.empty(0, layout.dtype), np.empty(0, np.int64)
    return Packed(np.concatenate([*model.floats, floats]), np.concatenate([*model.ints, ints]))


def _encode(layout: Layout, model: Packed | Parts) -> Parameters:
    return common.ndarrays_to_parameters(list(layout.unpack(_joined(layout, model)).values()))


def _decode(layout: Layout, parameters: Parameters) -> Packed:
    entries, tensors = layout.entries, parameters.tensors
    if len(tensors) != len(entries):
        raise RecordError(f"the model has {len(tensors)} tensors, expected {len(entries)}")
    try:
        return layout.pack({entry.name: read(data) for entry, data in zip(entries, tensors, strict=True)})
    except ValueError as error:
        raise RecordError(str(error)) from None


def _read(layout: Layout, result: FitRes) -> Reply:
    """Check and decode what a client returned."""
    if result.status.code != Code.OK:
        raise RecordError(f"{result.status.code.name}: {result.status.message}")
    examples = result.num_examples
    if not isinstance(examples, int | float) or not 0 < examples < LARGEST:
        raise RecordError(f"the client trained on {examples} examples")
    model = _decode(layout, result.parameters)
    if not np.isfinite(model.floats).all():
        raise RecordError("the model has NaN or infinite values")
    metrics = plain_numbers(result.metrics)
    if problem := find_metric_problem(metrics):
        raise RecordError(problem[1])
    return Reply(model, examples, metrics)


def _means(slots: Sequence[Slot]) -> dict[str, Scalar]:
    """Average the metrics of the good results."""
    means = mean_metrics((slot.reply.examples, slot.reply.metrics) for slot in slots if slot.reply)
    return {name: mean for name, mean in means.items() if isinstance(mean, float)}


def _wait_for(count: int, client_manager: ClientManager) -> list[ClientProxy]:
    """Wait until at least `count` clients are connected; return all in the order of their identifiers."""
    # First the number, because this call makes Flower look for new clients, which it else does every few seconds.
    if client_manager.num_available() < count:
        client_manager.wait_for(count, timeout=int(_PATIENCE))
    clients: Mapping[str, ClientProxy] = client_manager.all()
    if len(clients) < count:
        raise RunError(
            f"{len(clients)} of {count} clients are connected after {_PATIENCE:g} s; start the others, "
            f"or in a simulation set --federation-config 'num-supernodes={count}'"
        )
    # The manager's own order depends on when the clients connected.
    return [clients[cid] for cid in sorted(clients)]


def _log_rejected(client: str, reason: BaseException) -> None:
    _log.warning("client %s: %s", client, " ".join(str(reason).split()) or type(reason).__name__)
