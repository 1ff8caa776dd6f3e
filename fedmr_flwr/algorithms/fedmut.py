"""FedMut: FedAvg whose clients start from different mutations of the global model, along its last update.

Source: Hu et al., "FedMut: Generalized Federated Learning via Stochastic Mutation", AAAI 2024; defaults and the
acceleration of the first rounds as in the code published with FedMR, which differ from those of its own code (see
docs/guides/strategies.md).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedmr_flwr.algorithms.base import Algorithm
from fedmr_flwr.algorithms.contract import Combined, Round, Slot, StateArrays
from fedmr_flwr.algorithms.weighting import Weighting, weighted_mean
from fedmr_flwr.config.sections import Section, Void
from fedmr_flwr.core.distributions import LogUniform
from fedmr_flwr.core.layout import Floats, Layout, Packed


class FedMutOptions(Section):
    """Options of FedMut.

    Attributes:
        radius: the length of a mutation, in multiples of the global model's last update; lower it if training
            diverges.
        acceleration: by how much mutations against the update are shorter at first, so that their mean points
            along the update; the difference decreases to zero.
        acceleration_rounds: the number of rounds in which it does.
        weighting: of the clients' models: `uniform`, as in both published codes, because the mutations cancel each
            other only in a uniform mean; or by their `examples`.
    """

    radius: Annotated[float, LogUniform(0.5, 8)] = Field(5.0, ge=0)
    acceleration: float = Field(0.3, ge=0, le=1)
    acceleration_rounds: int = Field(100, ge=1)
    weighting: Weighting = "uniform"

    def void(self) -> Iterator[Void]:
        """Yield what shortens mutations of no length, and for how long what is not shortened."""
        if not self.radius:
            yield Void("acceleration", ("radius",), "it needs strategy.radius above 0")
        if not (self.radius and self.acceleration):
            problem = "it needs strategy.radius and strategy.acceleration above 0"
            yield Void("acceleration-rounds", ("radius", "acceleration"), problem)


@dataclass(frozen=True)
class FedMutState:
    """The state of FedMut.

    Attributes:
        floats: of the global model before the latest good round; None if there was none.
    """

    floats: Floats | None

    def arrays(self) -> StateArrays:
        """Return the floats, if there are any."""
        return {} if self.floats is None else {"previous": self.floats}

    @classmethod
    def from_arrays(cls, arrays: StateArrays) -> Self:
        """Restore the floats."""
        return cls(arrays["previous"])


class FedMut(Algorithm[FedMutState]):
    """Federated averaging of mutated models.

    Every tensor of a slot's model is the global one plus or minus `radius` times its last change. For each
    tensor, equally many slots get plus and minus; of an odd number of slots the last is not mutated. Buffers
    are not mutated: a variance must not become negative.

    For the arguments see `FedMutOptions` and `Algorithm`.
    """

    options: FedMutOptions
    averages_one_model = False

    def init(self, layout: Layout, slots: int) -> FedMutState:
        """Start without an earlier model: before the second round there is no update."""
        return FedMutState(None)

    def models(self, round: Round) -> Sequence[Packed]:
        """Mutate the global model for every slot; in the first round send it unchanged."""
        current, radius = round.global_model, self.options.radius
        if self.state.floats is None or not radius:
            return [current] * self.slots
        signs = self._signs(round)
        change = current.floats - self.state.floats
        models = []
        for slot in range(self.slots):
            floats = current.floats.copy()
            for part, sign in zip(round.layout.parameters, signs[:, slot].tolist(), strict=True):
                floats[part] += radius * sign * change[part]
            models.append(Packed(floats, current.ints))
        return models

    def _signs(self, round: Round) -> NDArray[np.float64]:
        """Draw the factor of each tensor's mutation in each slot, [tensors, slots]."""
        options = self.options
        # The first mutation is before the second round.
        left = max(0.0, 1 - (round.number - 2) / options.acceleration_rounds)
        pairs = self.slots // 2
        signs = np.zeros((len(round.layout.parameters), self.slots))
        alternatives = np.tile([1, options.acceleration * left - 1], (len(signs), pairs))
        # Permuted within each tensor, not drawn: equally many slots get plus and minus, so the mean moves little.
        signs[:, : 2 * pairs] = round.stream("mutate").permuted(alternatives, axis=1)
        return signs

    def combine(self, round: Round, slots: Sequence[Slot]) -> Combined[FedMutState]:
        """Average the trained models."""
        model = weighted_mean(slots, self.options.weighting)
        return Combined(model, FedMutState(round.global_model.floats))
