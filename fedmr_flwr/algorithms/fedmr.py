"""FedMR: K models, trained by different clients in every round, with their layers shuffled between rounds.

Before each round the server recombines: in the first stage every slot gets the mean of the population; after
that each unit of recombination (a layer, by default) is permuted across the slots, independently of the
others. The global model, which is evaluated and saved, is the mean of the population.

Source: Hu et al., "Is Aggregation the Only Choice? Federated Learning via Layer-wise Model Recombination",
KDD 2024 (arXiv 2305.10730); where the paper and its published code differ or are silent, see
docs/fedmr.md.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field, field_validator

from fedmr_flwr.algorithms.contract import Combined, Round, Slot
from fedmr_flwr.algorithms.multi_model import MultiModel, MultiModelOptions, Population
from fedmr_flwr.algorithms.unit_notices import nothing_to_recombine, tell_of_unnamed_units, warn_of_separate_ties
from fedmr_flwr.core.distributions import Choice
from fedmr_flwr.core.layout import Layout, Packed
from fedmr_flwr.core.recombination import Buffers, Parts, Recombination, Sources, sources
from fedmr_flwr.core.units import grouping
from fedmr_flwr.errors import ConfigError, OptionError


class FedMROptions(MultiModelOptions):
    """Options of FedMR, besides those of every algorithm with a population.

    Attributes:
        unit: what is recombined as one piece: `layer`, `tensor`, `block`, `block:DEPTH`, `fraction:P` or a list
            of regular expressions; see `fedmr_flwr.core.units.units`.
        first_stage_rounds: the number of first rounds after which the population is averaged rather than recombined.
        buffers: whether buffers, such as BatchNorm's statistics, `move` with their unit or are the `average`.
        log_recombination: whether every round's metrics contain the source slot of each unit (units × slots numbers).
    """

    unit: Annotated[str | tuple[str, ...], Choice(("layer", "tensor"))] = "layer"
    first_stage_rounds: int = Field(0, ge=0)
    buffers: Buffers = "move"
    log_recombination: bool = False

    # Checked with the configuration, so that a wrong unit is reported before the data are read.
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
    accepts_device_models = True

    def init(self, layout: Layout, slots: int) -> Population:
        """Determine the units of recombination."""
        population = super().init(layout, slots)
        try:
            self.recombination = Recombination(layout, self.options.unit, self.options.buffers)
        except OptionError:  # it names the option already
            raise
        except ConfigError as error:
            raise OptionError("unit", str(error)) from None
        self.units = self.recombination.units
        if notice := nothing_to_recombine(layout, self.options.unit, self.units):
            self._warn(notice)
        elif self.options.unit == "layer":
            tell_of_unnamed_units(layout, self.units)
        return population

    def dispatch(self, round: Round, models: Sequence[Packed]) -> Sequence[Packed | Parts]:
        """Give every slot the mean in the first stage, and a recombined model after it."""
        drawn = self._sources(round)
        if drawn is None:
            return [round.global_model] * len(models)
        # As parts, which are joined while they are serialised: no recombined model is ever copied before.
        return self.recombination.gather(models, round.global_model, drawn)

    def counts(self, round: Round, slot: Slot) -> bool:
        """Count only what was trained, if the first stage sent all slots one model.

        That is FedAvg with uniform weights, whatever K is: the others still have that model, and would shorten the
        step.
        """
        averaged = self.options.first_stage_rounds > 0 and self._sources(round) is None
        return slot.reply is not None or not averaged

    def combine(self, round: Round, slots: Sequence[Slot]) -> Combined[Population]:
        """Put the trained models into the population; log the sources of their units, if configured."""
        first = self.state.models is None  # every slot was sent the initial model, whatever the round's number
        if first and self._infers_layout:  # `fedmr run` knows of its models which tensors are tied
            warn_of_separate_ties(round.layout, self.units, [slot for slot in slots if slot.reply])
        combined = super().combine(round, slots)
        drawn = self._sources(round)
        if not self.options.log_recombination or first or drawn is None:
            return combined
        return replace(combined, diagnostics={**combined.diagnostics, "recombination": drawn.tolist()})

    def _sources(self, round: Round) -> Sources | None:
        return sources(round.seed, round.number, self.options.first_stage_rounds, len(self.units), self.slots)
