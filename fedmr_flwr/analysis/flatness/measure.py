"""How flat the minima are that a run found: its global model, its slots' models, and the lines between them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from fedmr_flwr.analysis.flatness.curvature import top_eigenvalues, trace
from fedmr_flwr.analysis.flatness.landscape import Plane, barrier, line, principal_plane, random_plane, surface
from fedmr_flwr.analysis.flatness.objective import Matrix, Objective, Vector
from fedmr_flwr.analysis.flatness.records import Measured
from fedmr_flwr.analysis.flatness.sharpness import adaptive_sharpness, sharpness
from fedmr_flwr.analysis.results import RunResults
from fedmr_flwr.core.layout import Packed
from fedmr_flwr.core.randomness import stream
from fedmr_flwr.data.base import Examples
from fedmr_flwr.errors import RunFolderError
from fedmr_flwr.models.packing import unpack
from fedmr_flwr.training.evaluation import Score, evaluate

EIGENVALUES = 5
# Probes of the trace: its standard error, which is reported, falls with their root.
_PROBES = 30
_POINTS_OF_A_LINE = 11
_POINTS_OF_A_SIDE = 25
# How far a surface reaches beyond its models, as a share of their extent; random directions have none.
_MARGIN, _REACH = 0.35, 1.0


class Surface(NamedTuple):
    """The loss on a part of a plane, and models in it.

    Attributes:
        x: [X], coordinates.
        y: [Y], coordinates.
        losses: [Y, X].
        places: by the name of a group of models, their coordinates [N, 2].
        labels: of the axes.
        paths: whether each group is a path, in the order of its rounds.
    """

    x: Vector
    y: Vector
    losses: Matrix
    places: dict[str, Matrix]
    labels: tuple[str, str]
    paths: bool = False


class Flatness:
    """The measurements of one run.

    Args:
        results: of the run.
        examples: the number of training examples on which the loss is computed, drawn from the run's seed; all, if
            there are fewer.
        device: of the computation.
        report: called with a line before each step that takes long.
    """

    def __init__(
        self, results: RunResults, examples: int, device: torch.device, report: Callable[[str], None]
    ) -> None:
        self._results = results
        self._count = examples
        self._device = device
        self._report = report
        self._seed = results.config.seed
        parts = results.parts
        # Not those that clients keep for testing, nor those that no client has.
        every = np.sort(np.concatenate(parts)) if parts else np.arange(len(results.dataset.train))
        self._examples = self._drawn(every, 0)
        self._network = results.network(results.packed(0)).to(device)

    def measure(self, number: int | None, slots: bool, clients: int) -> Measured:
        """Measure the models after a round.

        Args:
            number: the round; None for the end of the run.
            slots: whether to measure the curvature at each slot's model, too.
            clients: the number of clients on whose own examples the global model is measured, too.

        Returns:
            The measurements by name.

        Raises:
            RunFolderError: the models of that round were not kept, or there are too few clients.
        """
        results = self._results
        model, population = results.packed(number), results.packed_population(number)
        if slots and not population:
            raise RunFolderError(
                f"{results.folder.path} has no slots' models of that round: they need an algorithm with a population "
                "and keep-models-slots=true for a round before the last"
            )
        found: Measured = {"examples": len(self._examples), "global": self._at(model, self._examples, "global model")}
        if population:
            scores = [self._score(own) for own in population]
            found["accuracy"] = {"global": self._score(model).accuracy, "slots": [score.accuracy for score in scores]}
            found["lines"] = self._lines(model, population)
        if slots:
            found["slots"] = [self._at(own, self._examples, f"slot {slot}") for slot, own in enumerate(population)]
        if clients:
            found["clients"] = list(self._of_clients(model, clients))
        return found

    def surface(self, number: int | None) -> Surface:
        """Return the loss around a round's global model, and on the plane of its slots if it has three or more."""
        model, population = self._results.packed(number), self._results.packed_population(number)
        if len(population) > 2:
            vectors = [own.floats.astype(np.float64) for own in population]
            plane = principal_plane(vectors)
            groups = {"slots": vectors, "global model": [model.floats.astype(np.float64)]}
            return self._surface(plane, groups, ("first principal direction", "second principal direction"))
        tensors = [
            (own.columns, own.shape) for own in self._results.layout.entries if not (own.buffer or own.integer)
        ]
        center = model.floats.astype(np.float64)
        plane = random_plane(center, tensors, stream(self._seed, "surface"))
        labels = ("first random direction (1 is the length of a filter)", "second random direction")
        return self._surface(plane, {"global model": [center]}, labels)

    def paths(self, other: RunResults) -> Surface:
        """Return the loss on one plane with the global models of two runs, round by round.

        Raises:
            RunFolderError: the runs have different models, or fewer than three models were kept.
        """
        both = (self._results, other)
        if other.layout.fingerprint != self._results.layout.fingerprint:
            raise RunFolderError(f"{other.folder.path} has another model than {self._results.folder.path}")
        groups = {
            name: [run.packed(number).floats.astype(np.float64) for number in [0, *run.rounds]]
            for name, run in zip(_names(both), both, strict=True)
        }
        models = [model for group in groups.values() for model in group]
        if min(map(len, groups.values())) < 2:
            raise RunFolderError("a path needs the models of its rounds: run with keep-models, such as 'every 50'")
        labels = ("first principal direction", "second principal direction")
        return self._surface(principal_plane(models), groups, labels)._replace(paths=True)

    def _at(self, model: Packed, examples: Examples, what: str) -> Measured:
        """Measure curvature and sharpness at a model."""
        self._report(f"{what}: {EIGENVALUES} eigenvalues, trace and sharpness on {len(examples)} examples")
        objective = Objective(self._results.network(model), self._results.dataset, examples, self._device)
        count = min(EIGENVALUES, objective.size)
        eigenvalues = top_eigenvalues(objective.products, objective.size, count, stream(self._seed, "lanczos"))
        estimate = trace(objective.products, objective.size, _PROBES, stream(self._seed, "trace"))
        return {
            "loss": objective.loss(),
            "eigenvalues": eigenvalues.tolist(),
            "ratio": float(eigenvalues[0] / eigenvalues[-1]),
            "trace": estimate.mean,
            "trace-error": estimate.error,
            "sharpness": sharpness(objective),
            "adaptive-sharpness": adaptive_sharpness(objective),
        }

    def _of_clients(self, model: Packed, count: int) -> Iterator[Measured]:
        """Measure the global model on the examples of some clients each, drawn from the seed."""
        parts = self._results.parts
        if count > len(parts):
            raise RunFolderError(f"--clients is {count}, but the run knows the examples of {len(parts)} clients")
        for client in np.sort(stream(self._seed, "flatness-clients").choice(len(parts), count, replace=False)):
            examples = self._drawn(parts[client], 1 + int(client))
            yield {"client": int(client), **self._at(model, examples, f"client {client}")}

    def _lines(self, model: Packed, population: Sequence[Packed]) -> Measured:
        """Return the loss from each slot to the next one, and from each slot to the global model."""
        self._report("the loss on the lines between models")
        slots = [own.floats.astype(np.float64) for own in population]
        center = model.floats.astype(np.float64)
        pairs = [(slot, slots[(at + 1) % len(slots)]) for at, slot in enumerate(slots)] if len(slots) > 1 else []
        if len(slots) == 2:
            pairs = pairs[:1]
        between = [line(self._loss, *pair, _POINTS_OF_A_LINE) for pair in pairs]
        to_mean = [line(self._loss, slot, center, _POINTS_OF_A_LINE) for slot in slots]
        return {
            name: {"losses": [losses.tolist() for losses in found], "barriers": [barrier(losses) for losses in found]}
            for name, found in (("between-slots", between), ("slot-to-global", to_mean))
        }

    def _surface(self, plane: Plane, groups: dict[str, list[Vector]], labels: tuple[str, str]) -> Surface:
        self._report(f"the loss at {_POINTS_OF_A_SIDE**2} points of the plane")
        places = {name: plane.place(models) for name, models in groups.items()}
        every = np.concatenate([*places.values()])
        low, high = every.min(0), every.max(0)
        wide = np.where(high > low, _MARGIN * (high - low), _REACH)
        x, y = (np.linspace(low[at] - wide[at], high[at] + wide[at], _POINTS_OF_A_SIDE) for at in (0, 1))
        return Surface(x, y, surface(self._loss, plane, x, y), places, labels)

    def _loss(self, floats: Vector) -> float:
        """Return the loss of a model on the drawn examples."""
        layout, floats = self._results.layout, floats.astype(self._results.layout.dtype)
        for columns in layout.variances:  # beyond the models a plane can leave their range
            floats[columns] = floats[columns].clip(min=0)
        return self._evaluate(Packed(floats, np.zeros(layout.counters, np.int64)), self._examples).loss

    def _score(self, model: Packed) -> Score:
        return self._evaluate(model, self._results.dataset.test)

    def _evaluate(self, model: Packed, examples: Examples) -> Score:
        unpack(model, self._results.layout, self._network)
        return evaluate(self._network, self._results.dataset, examples, self._device)

    def _drawn(self, indices: np.ndarray[Any, np.dtype[np.int64]], number: int) -> Examples:
        """Return some of the examples, drawn from the seed."""
        chosen = stream(self._seed, "flatness", number).permutation(indices)[: self._count]
        return self._results.dataset.train.select(np.sort(chosen), self._device)


def _names(runs: Sequence[RunResults]) -> list[str]:
    """Return the strategies of runs, or if they are the same, the names of their folders."""
    names = [run.config.strategy.name for run in runs]
    return names if len(set(names)) == len(names) else [run.folder.path.name for run in runs]
