"""What FedMR and its relatives share: a server that keeps K models and trains M of them in a round."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from pydantic import Field

from fedmr_flwr.algorithms.base import Algorithm, Trained
from fedmr_flwr.config.sections import Section
from fedmr_flwr.core.layout import Packed
from fedmr_flwr.core.population import average, similarity, spread
from fedmr_flwr.core.units import Unit, units
from fedmr_flwr.errors import OptionError


class MultiModelOptions(Section):
    """Options of every algorithm with a population.

    Attributes:
        population: K, the number of models, at least as many as clients in a round; just as many if not given.
        weighting: how the global model averages the population: "uniform", as in FedMR's published code, or
            by the "examples" that each slot was last trained on.
        evaluate_slots: whether to score every slot's model, too, when the global model is evaluated.
    """

    population: int | None = Field(None, ge=1)
    weighting: Literal["uniform", "examples"] = "uniform"
    evaluate_slots: bool = False


class MultiModel(Algorithm):
    """A strategy that keeps K models; a subclass says which of them, or what of them, each slot gets next.

    Attributes:
        population: the model of each slot: as its client returned it, or as it was dealt where none did;
            None before the first round with a good reply.
    """

    options: MultiModelOptions
    individual = True

    population: list[Packed] | None = None

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        if self.slots < self.clients_per_round:
            raise OptionError(
                "population",
                f"{self.slots} is less than the {self.clients_per_round} clients of a round; raise the one or lower "
                "the other",
            )
        if self._codec:
            _ = self.units  # a unit that the model does not have is refused before the first round
        self._examples = np.zeros(self.slots)
        self._center: Packed | None = None
        self._dealt: Sequence[ArrayRecord] = ()

    @abstractmethod
    def deal(self, server_round: int, population: list[Packed], arrays: ArrayRecord) -> Sequence[ArrayRecord]:
        """Return the model that each of the K slots gets before a round.

        Args:
            server_round: 1 for the first.
            population: K models.
            arrays: the global model.
        """

    @property
    def slots(self) -> int:
        """K, the number of models."""
        return self.options.population or self.clients_per_round

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """The parts of the model by which the spread is reported: its layers."""
        return units(self.codec.layout, "layer")

    def models(self, server_round: int, arrays: ArrayRecord) -> Sequence[ArrayRecord]:
        """Deal the population; before it is trained every slot holds the initial model."""
        if self.population is None:
            self._dealt = [arrays] * self.slots
        else:
            self._dealt = self.deal(server_round, self.population, arrays)
        return self._dealt

    def combine(self, server_round: int, trained: Sequence[Trained | None]) -> ArrayRecord:
        """Take the trained models into the population and return its mean."""
        self.population = [
            reply.model if reply else self.codec.decode(dealt)
            for reply, dealt in zip(trained, self._dealt, strict=True)
        ]
        self._dealt = ()
        for slot, reply in enumerate(trained):
            if reply:
                self._examples[slot] = reply.examples
        weights = self._examples.tolist() if self.options.weighting == "examples" else None
        self._center = average(self.population, weights)
        return self.codec.encode([self._center.floats], [self._center.ints])

    def diagnostics(self) -> dict[str, Any]:
        """Return the mean cosine similarity of all pairs, the spread by unit, and the slots that were trained."""
        assert self.population is not None and self._center is not None
        rows = [model.floats for model in self.population]
        return {
            "similarity": similarity(rows),
            "spread": spread(rows, self._center.floats, [unit.floats for unit in self.units]),
            "slots": self.trained_slots,
        }

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the model of every slot and the examples that it was last trained on."""
        if self.population is None:
            return {}
        state: dict[str, NDArray[Any]] = {"examples": self._examples}
        for slot, model in enumerate(self.population):
            floats, ints = model.on_host()
            state |= {f"{slot}.floats": floats, f"{slot}.ints": ints}
        return state

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take up the population of an earlier `state`."""
        if not state:
            self.population = None
            return
        self._examples = state["examples"].copy()
        self.population = [Packed(state[f"{slot}.floats"], state[f"{slot}.ints"]) for slot in range(self.slots)]
