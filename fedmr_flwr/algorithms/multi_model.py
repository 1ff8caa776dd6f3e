"""The base of algorithms with a population: the server keeps K models and trains M of them in each round."""

import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedmr_flwr.algorithms.base import Algorithm
from fedmr_flwr.algorithms.contract import Combined, Round, Slot, StateArrays
from fedmr_flwr.algorithms.weighting import Weighting, weights
from fedmr_flwr.config.sections import Section
from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.core.population import average, similarity, spread
from fedmr_flwr.core.recombination import Parts
from fedmr_flwr.core.units import Unit, units
from fedmr_flwr.errors import ConfigError, OptionError

_log = logging.getLogger(__name__)


class MultiModelOptions(Section):
    """Options of every algorithm with a population.

    Attributes:
        population: K, the number of models, at least the number of clients in a round, which is the default; if it is
            larger, a random choice of models is trained and the others wait.
        weighting: of the population's mean, the global model: `uniform`, as in FedMR's published code, where every
            model meets all clients in turn; or by the `examples` that each slot was last trained on.
        evaluate_slots: whether to score every slot's model, too, when the global model is evaluated.
    """

    population: int | None = Field(None, ge=1)
    weighting: Weighting = "uniform"
    evaluate_slots: bool = False


@dataclass(frozen=True)
class Population:
    """K models.

    Attributes:
        models: the model of each slot: as its client returned it, or as it was sent where there is no good reply;
            None before the first round with a good reply, when every slot has the initial model.
        examples: [K], the number of examples that each slot was last trained on; 0 for one that never was.
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
        """Restore the population."""
        examples = arrays["examples"]
        models = [Packed(arrays[f"{slot}.floats"], arrays[f"{slot}.ints"]) for slot in range(len(examples))]
        return cls(models, examples)


class MultiModel(Algorithm[Population]):
    """A strategy that keeps K models; a subclass determines the next model of each slot.

    Attributes:
        units: the units for which the spread is reported: the model's layers, or the units of recombination.
    """

    options: MultiModelOptions
    averages_one_model = False

    units: Sequence[Unit]

    def __init__(self, *positional: Any, **arguments: Any) -> None:
        super().__init__(*positional, **arguments)
        given = arguments.get("clients_per_round")
        if given is not None and self.slots < given:
            raise OptionError(
                "population",
                f"{self.slots} is less than the {given} clients of a round; raise it or lower the clients per round",
            )
        if self.options.evaluate_slots and arguments.get("layout") is None:
            _log.warning("evaluate_slots: left out, because only `fedmr run` scores the models of a population")

    @property
    def slots(self) -> int:
        """K, the number of models."""
        return self.options.population or self.clients_per_round

    def settle(self, clients: int) -> None:
        """Fix M, if it follows from the number of connected clients; at most K."""
        super().settle(min(clients, self.options.population or clients))

    def init(self, layout: Layout, slots: int) -> Population:
        """Start without models: every slot has the initial one."""
        self.units = units(layout, "layer")
        self.notice = None
        if slots == 1:
            self._warn("the population has one model: there is none to mix it with; raise the clients of a round")
        return Population(None, np.zeros(slots))

    def _warn(self, notice: str) -> None:
        """Tell the user that this model or this number of clients leaves the algorithm nothing to do."""
        self.notice = notice
        _log.warning(notice)

    def state_bytes(self, clients: int) -> int:
        """Return the bytes of the population and its numbers of examples."""
        return self.slots * (self.codec.layout.nbytes + np.dtype(np.float64).itemsize)

    def models(self, round: Round) -> Sequence[Packed | Parts]:
        """Dispatch the population; before its first training, the global model."""
        if self.state.models is None:
            # One object K times, so that the initial model is encoded once.
            return [round.global_model] * self.slots
        if len(self.state.models) != self.slots:
            raise ConfigError(
                f"the restored state has {len(self.state.models)} models, not {self.slots}; set population"
            )
        return self.dispatch(round, self.state.models)

    @abstractmethod
    def dispatch(self, round: Round, models: Sequence[Packed]) -> Sequence[Packed | Parts]:
        """Return the model to send for each of the K slots.

        Args:
            round: the round.
            models: the population.
        """

    def counts(self, round: Round, slot: Slot) -> bool:
        """Return whether a slot's model counts in the mean: all do, also those that no client has trained."""
        return True

    def combine(self, round: Round, slots: Sequence[Slot]) -> Combined[Population]:
        """Put the trained models into the population; its mean is the global model."""
        # A slot without a reply keeps the model that it was sent, not that from before the recombination: this would
        # repeat some pieces, lose others and change the mean. A list of views of the received bytes, because a [K, P]
        # matrix would copy a gigabyte for ten VGG-16.
        models = [slot.reply.model if slot.reply else slot.sent for slot in slots]
        examples = np.array(
            [
                slot.reply.examples if slot.reply else before
                for slot, before in zip(slots, self.state.examples, strict=True)
            ]
        )
        counted = [at for at, slot in enumerate(slots) if self.counts(round, slot)]
        shares = weights(examples[counted].tolist(), self.options.weighting)
        mean = average([models[at] for at in counted], shares)
        rows = [model.floats for model in models]
        diagnostics = {
            "similarity": similarity(rows, round.layout.parameters),
            "spread": spread(rows, mean.floats, [unit.floats for unit in self.units]),
            "slots": [at for at, slot in enumerate(slots) if slot.client is not None],
        }
        return Combined(mean, Population(models, examples), diagnostics)
