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
from flwr.common import (
    Code,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    MetricsAggregationFn,
    NDArrays,
    Parameters,
    Scalar,
)  # fmt: skip
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg as ClassicFedAvg

from fedmr_flwr.algorithms import fedavg, fedcross, fedexp, fedmr, fedmut, indep
from fedmr_flwr.algorithms.base import Algorithm
from fedmr_flwr.algorithms.contract import Reply, Round
from fedmr_flwr.algorithms.metrics import mean_metrics, plain_numbers
from fedmr_flwr.algorithms.plan import Plan
from fedmr_flwr.algorithms.wrappers import refuse_unfit
from fedmr_flwr.core.drawing import draw_clients
from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.core.recombination import Parts
from fedmr_flwr.errors import ConfigError, RecordError, RunError
from fedmr_flwr.wire.npy import in_dtype, read
from fedmr_flwr.wire.numbers import LARGEST, find_metric_problem

_log = logging.getLogger(__name__)
# As long as Flower's own client manager waits by default: a deployment's nodes may start later than its run.
_PATIENCE_SECONDS = 86400

Evaluation = tuple[float, dict[str, Scalar]]
Results = list[tuple[ClientProxy, FitRes]]
Failures = list[tuple[ClientProxy, FitRes] | BaseException]


class ClassicStrategy(ClassicFedAvg):
    """An algorithm for `flwr.server.ServerApp(server_fn=...)`; a subclass sets its class in `Kind`.

    Clients need no change. The slots that are trained and their models depend on the seed alone. The clients that
    train them do not: Flower gives its nodes random identifiers in every run. So, unlike the message-API strategies,
    this one cannot guarantee the same clients, and so the same model, in every run.

    Args:
        keys: the names of the tensors in the order in which clients send them, `list(model.state_dict())`.
            Without them each tensor is a unit, a weight with the bias that follows it, and only units that need no
            names can be chosen: "layer", "tensor", "fraction:P" and patterns on the tensors' indices.
        clients_per_round: M, the number of clients drawn in a round; None: `fraction_fit` of those that are
            connected before the first round, and at least `min_fit_clients`. M then stays.
        fraction_fit: see `clients_per_round`; this and the following are those of Flower's FedAvg.
        fraction_evaluate: the share of the clients that evaluate the global model after a round.
        min_fit_clients: see `clients_per_round`.
        min_evaluate_clients: the least number of clients that evaluate, if so many are connected.
        min_available_clients: the number of clients to wait for; None: 2, or `clients_per_round` if that is 1.
        evaluate_fn: scores a global model: (round, arrays, {}) to (loss, metrics), or to None for no result.
        on_fit_config_fn: returns the configuration for clients that train: round to dictionary.
        on_evaluate_config_fn: returns the configuration for clients that evaluate: round to dictionary.
        accept_failures: whether a round counts in which some clients failed.
        initial_parameters: the initial model; None: Flower requests it from a random client.
        fit_metrics_aggregation_fn: combines the metrics of training; None: their means weighted by examples.
        evaluate_metrics_aggregation_fn: combines the metrics of evaluation; None: their means weighted by examples.
        inplace: has no effect: replies are never copied.
        **arguments: of the algorithm.

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
        clients_per_round: int | None = None,
        fraction_fit: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_fit_clients: int = 2,
        min_evaluate_clients: int = 2,
        min_available_clients: int | None = None,
        evaluate_fn: Callable[[int, NDArrays, dict[str, Scalar]], Evaluation | None] | None = None,
        on_fit_config_fn: Callable[[int], dict[str, Scalar]] | None = None,
        on_evaluate_config_fn: Callable[[int], dict[str, Scalar]] | None = None,
        accept_failures: bool = True,
        initial_parameters: Parameters | None = None,
        fit_metrics_aggregation_fn: MetricsAggregationFn | None = None,
        evaluate_metrics_aggregation_fn: MetricsAggregationFn | None = None,
        inplace: bool = True,
        **arguments: Any,
    ) -> None:
        available = min(2, clients_per_round or 2) if min_available_clients is None else min_available_clients
        self.algorithm = self.Kind(clients_per_round=clients_per_round, **arguments)
        super().__init__(
            fraction_fit=fraction_fit,
            fraction_evaluate=fraction_evaluate,
            min_fit_clients=min_fit_clients,
            min_evaluate_clients=min_evaluate_clients,
            # Not less than the two numbers above, of which Flower would warn.
            min_available_clients=max(available, min_fit_clients, min_evaluate_clients),
            evaluate_fn=evaluate_fn,
            on_fit_config_fn=on_fit_config_fn,
            on_evaluate_config_fn=on_evaluate_config_fn,
            accept_failures=accept_failures,
            initial_parameters=initial_parameters,
            fit_metrics_aggregation_fn=fit_metrics_aggregation_fn or _mean_metrics,
            evaluate_metrics_aggregation_fn=evaluate_metrics_aggregation_fn or _mean_metrics,
        )
        self.min_available_clients = available
        self.keys = None if keys is None else tuple(keys)
        self._given_clients = clients_per_round
        self._layout: Layout | None = None  # until the first model is seen
        self._plan: Plan | None = None
        self._pending: dict[str, int] = {}  # by identifier, the position of each client of the round without a result

    def __repr__(self) -> str:
        """Return the name of the class, as in Flower's log."""
        return f"{type(self).__name__}(accept_failures={self.accept_failures})"

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
        if self._given_clients is None and self.fraction_fit == 0.0:
            return []
        begins = self._layout is None or server_round == 1
        least = (self._given_clients or self.min_fit_clients) if begins else 0
        clients = _wait_for(max(least, self.min_available_clients), client_manager)
        if self._layout is None or begins:
            # In the first round and not in the constructor, because Flower may take the model from a client.
            self._layout = self._infer_layout(parameters)
            if self._given_clients is None:
                self.algorithm.settle(min(self.num_fit_clients(len(clients))[0], len(clients)))
            self.algorithm.begin(self._layout)
        layout = self._layout
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
        layout, plan, good, metrics = self._layout, self._plan, {}, {}
        for client, result in [*results, *(failure for failure in failures if isinstance(failure, tuple))]:
            number = self._pending.pop(client.cid, None)
            try:
                if number is None or layout is None:
                    raise RecordError("it was not drawn, or has replied before")
                good[number] = _read(layout, result)
                metrics[number] = result.num_examples, result.metrics
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
        if not good or (counts and not self.accept_failures):
            return None, {**counts}
        models = plan.models
        assert self.fit_metrics_aggregation_fn is not None
        # In the order of the slots: results arrive in any, and sums depend on it.
        means = self.fit_metrics_aggregation_fn([metrics[at] for at in dict.fromkeys(plan.clients) if at in metrics])
        slots = plan.results(good, lambda slot: _joined(layout, models[slot]))
        encoded = self.algorithm.finish(plan, slots, lambda model: _encode(layout, model))
        numbers = {name: value for name, value in self.algorithm.diagnostics.items() if isinstance(value, float)}
        return encoded, {**counts, **numbers, **means}

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """Draw clients from the seed, and return the instructions to evaluate the global model for each."""
        if self.fraction_evaluate == 0.0:
            return []
        clients = _wait_for(self.min_available_clients, client_manager)
        count = min(self.num_evaluation_clients(len(clients))[0], len(clients))
        config = {} if self.on_evaluate_config_fn is None else self.on_evaluate_config_fn(server_round)
        drawn = draw_clients(server_round, self.algorithm.seed, len(clients), count, "evaluate")
        return [(clients[client], EvaluateIns(parameters, dict(config))) for client in drawn]

    def aggregate_evaluate(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, EvaluateRes]],
        failures: list[tuple[ClientProxy, EvaluateRes] | BaseException],
    ) -> tuple[float | None, dict[str, Scalar]]:
        """Average the losses and the metrics of the good results, as Flower's FedAvg."""
        good, bad = [], list(failures)
        for client, result in results:
            if _is_count(result.num_examples) and np.isfinite(result.loss):
                good.append((client, result))
            else:
                bad.append((client, result))
                reason = f"a loss of {result.loss} on {result.num_examples} examples"
                _log_rejected(client.cid, RecordError(reason))
        return super().aggregate_evaluate(server_round, good, bad)

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
        arrays = {entry.name: read(data) for entry, data in zip(entries, tensors, strict=True)}
        return layout.pack({entry.name: in_dtype(arrays[entry.name], entry.dtype) for entry in entries})
    except ValueError as error:
        raise RecordError(str(error)) from None


def _read(layout: Layout, result: FitRes) -> Reply:
    """Check and decode what a client returned."""
    if result.status.code != Code.OK:
        raise RecordError(f"{result.status.code.name}: {result.status.message}")
    examples = result.num_examples
    if not _is_count(examples):
        raise RecordError(f"the client trained on {examples} examples")
    model = _decode(layout, result.parameters)
    if not np.isfinite(model.floats).all():
        raise RecordError("the model has NaN or infinite values")
    metrics = plain_numbers(result.metrics)
    if problem := find_metric_problem(metrics):
        raise RecordError(problem[1])
    return Reply(model, examples, metrics)


def _mean_metrics(results: list[tuple[int, dict[str, Scalar]]]) -> dict[str, Scalar]:
    """Average metrics, weighted by examples."""
    means = mean_metrics((examples, plain_numbers(metrics)) for examples, metrics in results)
    return {name: mean for name, mean in means.items() if isinstance(mean, float)}


def _is_count(examples: object) -> bool:
    return isinstance(examples, int | float) and 0 < examples < LARGEST


def _wait_for(count: int, client_manager: ClientManager) -> list[ClientProxy]:
    """Wait until at least `count` clients are connected; return all in the order of their identifiers."""
    # First the number, because this call makes Flower look for new clients, which it else does every few seconds.
    if (connected := client_manager.num_available()) < count:
        # At once, because Flower does not tell this strategy whether it is a simulation, where no more will come.
        _log.warning(
            "Waiting for clients to connect: %d connected (minimum required: %d); start the others, or in a "
            "simulation set --federation-config 'num-supernodes=%d'", connected, count, count
        )  # fmt: skip
        client_manager.wait_for(count, timeout=_PATIENCE_SECONDS)
    clients: Mapping[str, ClientProxy] = client_manager.all()
    if len(clients) < count:
        raise RunError(f"{len(clients)} of {count} clients are connected after {_PATIENCE_SECONDS} s")
    # The manager's own order depends on when the clients connected.
    return [clients[cid] for cid in sorted(clients)]


def _log_rejected(client: str, reason: BaseException) -> None:
    _log.warning("client %s: %s", client, " ".join(str(reason).split()) or type(reason).__name__)
