"""FedMR: K models, trained by different clients in every round, their layers shuffled in between.

Before each round the server deals: in the first stage every slot gets the mean of the population; after
that each unit of recombination (a layer, by default) is permuted across the slots, independently of the
others. The global model, the one evaluated and saved, is the mean of the population.

Source: Hu et al., "Is Aggregation the Only Choice? Federated Learning via Layer-wise Model Recombination",
KDD 2024 (arXiv 2305.10730); where the paper and its published code differ or are silent, see
docs/decisions.md.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from flwr.app import ArrayRecord
from pydantic import Field, field_validator

from fedmr_flwr.algorithms.multi_model import MultiModel, MultiModelOptions
from fedmr_flwr.core.layout import Packed
from fedmr_flwr.core.population import Sources
from fedmr_flwr.core.recombination import Buffers, Recombination, shuffled
from fedmr_flwr.core.units import Unit, grouping
from fedmr_flwr.errors import ConfigError, OptionError


class FedMROptions(MultiModelOptions):
    """Options of FedMR, besides those of every algorithm with a population.

    Attributes:
        unit: what recombination moves as one piece: "layer", "tensor", "block", "block:DEPTH", "fraction:P" or a list
            of regular expressions; see `fedmr_flwr.core.units.units`.
        first_stage_rounds: rounds after which the population is averaged rather than recombined.
        buffers: whether buffers, such as BatchNorm's statistics, "move" with their unit or are the "average".
        log_recombination: whether the diagnostics of every round hold the slot that each unit came from.
    """

    unit: str | tuple[str, ...] = "layer"
    first_stage_rounds: int = Field(0, ge=0)
    buffers: Buffers = "move"
    log_recombination: bool = False

    @field_validator("unit")
    @classmethod
    def _is_a_unit(cls, unit: str | tuple[str, ...]) -> str | tuple[str, ...]:
        try:
            grouping(unit)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return unit


class FedMR(MultiModel):
    """Federated learning by layer-wise model recombination.

    For the arguments see `FedMROptions` and `Algorithm`.
    """

    options: FedMROptions
    on_gpu = True

    _sources: Sources | None = None

    @cached_property
    def recombination(self) -> Recombination:
        """The shuffling of this model's units; known once the model is."""
        try:
            return Recombination(self.codec.layout, self.options.unit, self.options.buffers)
        except ConfigError as error:
            raise OptionError("unit", str(error)) from None

    @property
    def units(self) -> tuple[Unit, ...]:
        """The units of recombination."""
        return self.recombination.units

    def deal(self, server_round: int, population: list[Packed], arrays: ArrayRecord) -> Sequence[ArrayRecord]:
        """Give every slot the mean in the first stage, and a recombined model after it."""
        self._sources = shuffled(
            self.seed, server_round, self.options.first_stage_rounds, len(self.units), len(population)
        )
        if self._sources is None:
            return [arrays] * len(population)
        parts = self.recombination.deal(population, self.codec.decode(arrays), self._sources)
        # The parts are joined while they are serialised: no recombined model is ever put together before.
        return [self.codec.encode(floats, ints) for floats, ints in parts]

    def diagnostics(self) -> dict[str, Any]:
        """Return what `MultiModel` does and, if asked for, the slot that each unit of each slot came from."""
        diagnosis = super().diagnostics()
        if self.options.log_recombination and self._sources is not None:
            diagnosis["recombination"] = self._sources.tolist()
        return diagnosis
