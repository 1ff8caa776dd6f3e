"""What FedMR and its relatives share: a server that keeps K models and trains M of them in a round."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedmr_flwr.algorithms.base import Algorithm
from fedmr_flwr.algorithms.contract import Combined, Round, Slot, StateArrays
from fedmr_flwr.config.sections import Section
from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.core.population import average, similarity, spread
from fedmr_flwr.core.recombination import Parts
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


@dataclass(frozen=True)
class Population:
    """K models.

    Attributes:
        models: the model of each slot: as its client returned it, or as it was sent where none did; None before
            the first round with a good reply, when every slot holds the initial model.
        examples: [K], on how many examples each slot was last trained; 0 for one that never was.
    """

    models: Sequence[Packed] | None
    examples: NDArray[np.float64]

    def arrays(self) -> StateArrays:
        """Return both parts of every model, and the examples."""
        if self.models is None:
            return {}
        arrays: dict[str, NDArray[Any]] = {"examples": self.examples}
        for slot, model in enumerate(self.models):
            floats, ints = model.on_host()
            arrays |= {f"{slot}.floats": floats, f"{slot}.ints": ints}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: StateArrays) -> Self:
        """Make the population again."""
        examples = arrays["examples"]
        models = [Packed(arrays[f"{slot}.floats"], arrays[f"{slot}.ints"]) for slot in range(len(examples))]
        return cls(models, examples)


class MultiModel(Algorithm[Population]):
    """A strategy that keeps K models; a subclass says which of them, or what of them, each slot gets next.

    Attributes:
        units: the parts of the model by which the spread is reported: its layers, or what the subclass recombines.
    """

    options: MultiModelOptions
    sends_individual_models = True

    units: Sequence[Unit]

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        if self.slots < self.clients_per_round:
            raise OptionError(
                "population",
                f"{self.slots} is less than the {self.clients_per_round} clients of a round; raise the one or lower "
                "the other",
            )

    @property
    def slots(self) -> int:
        """K, the number of models."""
        return self.options.population or self.clients_per_round

    def init(self, layout: Layout, slots: int) -> Population:
        """Start without models of its own: every slot holds the initial one."""
        self.units = units(layout, "layer" if layout.named else "tensor")
        return Population(None, np.zeros(slots))

    def models(self, round: Round) -> Sequence[Packed | Parts]:
        """Dispatch the population; before it is trained, the global model."""
        if self.state.models is None:
            return [round.global_model] * self.slots
        return self.dispatch(round, self.state.models)

    @abstractmethod
    def dispatch(self, round: Round, models: Sequence[Packed]) -> Sequence[Packed | Parts]:
        """Return the model that each of the K slots gets before a round.

        Args:
            round: the round.
            models: the population.
        """

    def combine(self, round: Round, slots: Sequence[Slot]) -> Combined[Population]:
        """Take the trained models into the population; its mean is the global model."""
        models = [slot.reply.model if slot.reply else slot.sent for slot in slots]
        examples = np.array(
            [
                slot.reply.examples if slot.reply else before
                for slot, before in zip(slots, self.state.examples, strict=True)
            ]
        )
        mean = average(models, examples.tolist() if self.options.weighting == "examples" else None)
        rows = [model.floats for model in models]
        diagnostics = {
            "similarity": similarity(rows),
            "spread": spread(rows, mean.floats, [unit.floats for unit in self.units]),
            "slots": [at for at, slot in enumerate(slots) if slot.client is not None],
        }
        return Combined(mean, Population(models, examples), diagnostics)
