"""FedMR: K models, trained by different clients in every round, their layers shuffled in between.

Before each round the server deals: in the first stage every slot gets the mean of the population; after
that each unit of recombination (a layer, by default) is permuted across the slots, independently of the
others. The global model, the one evaluated and saved, is the uniform mean of the population.

Source: Hu et al., "Is Aggregation the Only Choice? Federated Learning via Layer-wise Model Recombination",
KDD 2024 (arXiv 2305.10730); where the paper and its published code differ or are silent, see
docs/decisions.md.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from pydantic import Field

from fedmr_flwr.algorithms.base import Algorithm, Trained
from fedmr_flwr.config import Section
from fedmr_flwr.layout import Packed
from fedmr_flwr.population import deal, in_order, mean, pieces, similarity
from fedmr_flwr.randomness import stream


class FedMROptions(Section):
    """Options of FedMR.

    Attributes:
        unit: what recombination moves as one piece: "layer" (all tensors of a module together) or "tensor"
            (every state_dict key for itself, as in the published code).
        first_stage_rounds: rounds after which the population is averaged rather than recombined.
    """

    unit: Literal["layer", "tensor"] = "layer"
    first_stage_rounds: int = Field(0, ge=0)


class FedMR(Algorithm):
    """Federated learning by layer-wise model recombination.

    Args:
        clients_per_round: K, the clients drawn in a round and the models in the population.
        seed: the seed of the run.
        layout: of the models, if they travel packed.
        unit: "layer" or "tensor".
        first_stage_rounds: rounds of averaging before recombination begins.
    """

    Options = FedMROptions

    # The model of each slot: as its client returned it, or as it was sent where no good reply came.
    _population: list[Packed] | None = None
    _dealt: Sequence[ArrayRecord] = ()

    def models(self, server_round: int, arrays: ArrayRecord) -> Sequence[ArrayRecord]:
        """Deal the population: K copies of the mean in the first stage, recombined models after it."""
        # The population was last trained in round server_round - 1; after the first `first_stage_rounds`
        # rounds it is averaged, and its mean is the global model.
        if self._population is None or server_round - 1 <= self.options.first_stage_rounds:
            self._dealt = [arrays] * self.clients_per_round
        else:
            self._dealt = self._recombined(server_round, self._population)
        return self._dealt

    def combine(self, server_round: int, trained: Sequence[Trained | None]) -> ArrayRecord:
        """Take the trained models into the population and return its uniform mean."""
        self._population = [
            reply.model if reply else self.codec.decode(dealt)
            for reply, dealt in zip(trained, self._dealt, strict=True)
        ]
        self._dealt = ()
        floats = mean([model.floats for model in self._population])
        ints = np.max([model.ints for model in self._population], axis=0)
        return self.codec.encode([floats], [ints])

    def diagnostics(self) -> dict[str, float]:
        """Return the mean cosine similarity over all pairs of the population."""
        assert self._population is not None
        return {"similarity": similarity([model.floats for model in self._population])}

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the population: [K, P] floats and [K, Q] ints."""
        assert self._population is not None
        return {
            "population.floats": np.stack([model.floats for model in self._population]),
            "population.ints": np.stack([model.ints for model in self._population]),
        }

    @cached_property
    def _units(self) -> tuple[int, list[tuple[slice, int]], list[tuple[slice, int]]]:
        """How many units there are, and from left to right which columns are whose: floats, then ints."""
        layout = self.codec.layout
        units = layout.units(self.options.unit)
        float_runs = in_order([unit.floats for unit in units], layout.size)
        return len(units), float_runs, in_order([unit.ints for unit in units], layout.counters)

    def _recombined(self, server_round: int, population: list[Packed]) -> list[ArrayRecord]:
        """Shuffle each unit across the population, straight into the outgoing records."""
        units, float_runs, int_runs = self._units
        sources = deal(units, len(population), stream(self.seed, "recombine", server_round))
        floats = [model.floats for model in population]
        ints = [model.ints for model in population]
        return [
            self.codec.encode(pieces(floats, float_runs, source), pieces(ints, int_runs, source))
            for source in sources.T
        ]
