"""The evaluation of a global model after a round: on the test or validation set, and on what else is configured."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord
from torch import nn

from fedmr_flwr.algorithms.multi_model import MultiModel
from fedmr_flwr.algorithms.sealed import Sealed
from fedmr_flwr.config.evaluation import is_due
from fedmr_flwr.core.layout import Packed
from fedmr_flwr.data.base import Examples
from fedmr_flwr.models.packing import unpack
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.server.client_evaluation import ask, limited, summary, verified
from fedmr_flwr.server.experiment import Experiment
from fedmr_flwr.training.devices import arithmetic, place
from fedmr_flwr.training.evaluation import Score, evaluate, logits_of
from fedmr_flwr.wire.grids.roster import RosterGrid
from fedmr_flwr.wire.messages import EXAMPLES, ROUND


class Evaluator:
    """Scores the models of a run.

    Args:
        experiment: data, model and strategy.
        out: the run's folder, for everything that does not fit into a row of the metrics.
        grid: sends models to clients.
        config: sent with them.
    """

    def __init__(self, experiment: Experiment, out: RunFolder, grid: RosterGrid, config: ConfigRecord) -> None:
        self._experiment, self._out, self._grid, self._config = experiment, out, grid, config

    def __call__(self, number: int, arrays: ArrayRecord, ends: bool = False) -> dict[str, Any]:
        """Return the numbers that are due after a round, by name.

        Args:
            number: of the round.
            arrays: the global model.
            ends: return those that are due because the run ends early with this round, and were not so before.
        """
        settings, wanted = self._experiment.settings, self._experiment.settings.evaluation
        numbers: dict[str, Any] = {}
        strategy, config = self._experiment.strategy, self._config
        # Of a sealed run only clients can score the global model, which they make of the whole population.
        if sealed := isinstance(strategy, Sealed):
            arrays, told = strategy.population(arrays)
            config = ConfigRecord({**config, **told})

        def due(often: int | str) -> bool:
            before = is_due(often, number, settings.rounds)
            return not before and is_due(often, number, number) if ends else before

        if due(settings.evaluate_every):
            numbers |= self._by_evaluators(number, arrays, config) if sealed else self._on_test(arrays)
        if due(wanted.train):
            score = self._score(self._decode(arrays), self._train)
            numbers |= {"training-set-loss": score.loss, "training-set-accuracy": score.accuracy}
        if due(wanted.classes):
            numbers |= self._on_classes(number, arrays)
        if due(wanted.clients):
            numbers |= self._on_clients(number, "global", lambda _: arrays, config)
            if slots := self._slots:
                records = [self._experiment.codec.encode(model) for model in slots]
                of_slots = self._on_clients(number, "slot", lambda client: records[client % len(records)], config)
                numbers |= {f"slot-{name}": value for name, value in of_slots.items()}
        return numbers

    def _on_test(self, arrays: ArrayRecord) -> dict[str, Any]:
        """Score the global model and, if configured, the model of every slot on the test or validation set."""
        score = self._score(self._decode(arrays), self._test)
        part = self._experiment.settings.data.scored_on
        numbers: dict[str, Any] = {f"{part}-loss": score.loss, f"{part}-accuracy": score.accuracy}
        if self._slots:
            numbers["slot-accuracies"] = [self._score(model, self._test).accuracy for model in self._slots]
        return numbers

    @property
    def _slots(self) -> Sequence[Packed]:
        """The models of the population, if they are to be evaluated."""
        strategy = self._experiment.strategy
        wanted = isinstance(strategy, MultiModel) and strategy.options.evaluate_slots
        return (strategy.state.models or ()) if wanted and isinstance(strategy, MultiModel) else ()

    def _by_evaluators(self, number: int, arrays: ArrayRecord, config: ConfigRecord) -> dict[str, float]:
        """Let the evaluators score the model of a sealed run; return their means, weighted by their examples."""
        settings, config = self._experiment.settings, ConfigRecord({**config, ROUND: number})
        nodes = self._grid.evaluators
        found = ask(self._grid, nodes, lambda _: arrays, config, len(nodes) or 1, settings.round_timeout)
        if settings.engine == "deployment":
            found = limited(found)
        scores = [{"loss": math.nan, **each} for each in found if each is not None]
        weights = [each[EXAMPLES] for each in scores]
        return {
            f"test-{name}": float(np.average([each[name] for each in scores], weights=weights))
            for name in ("loss", "accuracy") if scores
        }  # fmt: skip

    def _on_clients(
        self, number: int, model: str, model_of: Callable[[int], ArrayRecord], config: ConfigRecord
    ) -> dict[str, Any]:
        """Let every client score a model on its own examples; return summaries over them."""
        settings = self._experiment.settings
        config = ConfigRecord({**config, ROUND: number})
        nodes = self._grid.get_node_ids()
        found = ask(self._grid, nodes, model_of, config, settings.clients_per_round, settings.round_timeout)
        if settings.engine == "deployment":
            found = limited(found) if (sizes := self._sizes) is None else verified(found, sizes)
        self._out.add_client_rows(
            {"round": number, "client": client, "model": model, **scores}
            for client, scores in enumerate(found)
            if scores is not None
        )
        summaries = {"client-accuracy": summary(found)}
        if settings.evaluation.fine_tune:
            summaries["tuned-accuracy"] = summary(found, "tuned-accuracy")
        if model == "global":
            self._out.note(**summaries)
        return summaries

    @property
    def _sizes(self) -> Sequence[int] | None:
        """The number of examples on which each client scores, as `client.app` has them; None if they are its own."""
        experiment = self._experiment
        if experiment.parts is None:
            return None
        tests = experiment.tests or [part[:0] for part in experiment.parts]
        return [len(own) or len(part) for own, part in zip(tests, experiment.parts, strict=True)]

    def _on_classes(self, number: int, arrays: ArrayRecord) -> dict[str, float]:
        """Score the global model on each class; return the numbers over all classes."""
        from fedmr_flwr.server.classes import class_scores  # its import of scikit-learn takes a second

        experiment, test = self._experiment, self._experiment.test
        with self._loaded(self._decode(arrays)) as model:
            logits = logits_of(model, experiment.dataset, test, experiment.device)
        scores = class_scores(test.labels.numpy(), logits)
        self._out.save_classes(number, scores)
        return {name: value for name, value in scores.items() if isinstance(value, float)}

    def _score(self, model: Packed, examples: Examples) -> Score:
        with self._loaded(model) as network:
            return evaluate(network, self._experiment.dataset, examples, self._experiment.device)

    @contextmanager
    def _loaded(self, model: Packed) -> Iterator[nn.Module]:
        """Load a model into the network, on the device and in the precision of the run, inside the block."""
        experiment = self._experiment
        place(experiment.model, experiment.device, experiment.precision)
        unpack(model, experiment.layout, experiment.model)
        with arithmetic(experiment.precision, experiment.device):
            yield experiment.model

    def _decode(self, arrays: ArrayRecord) -> Packed:
        return self._experiment.codec.decode(arrays)

    @cached_property
    def _test(self) -> Examples:
        """The test or validation set on the device."""
        return self._experiment.test.to(self._experiment.device)

    @cached_property
    def _train(self) -> Examples:
        """The training examples of all clients, which may be fewer than the data set's."""
        parts, train = self._experiment.parts, self._experiment.dataset.train
        if parts is None or sum(map(len, parts)) == len(train):
            return train
        return train.select(np.sort(np.concatenate(parts)), torch.device("cpu"))
