"""FedMut: FedAvg whose clients start from different mutations of the global model, along its last update.

Source: Hu et al., "FedMut: Generalized Federated Learning via Stochastic Mutation", AAAI 2024; defaults and the
acceleration of the first rounds as in the code that was published with FedMR.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedmr_flwr.algorithms.base import Algorithm
from fedmr_flwr.algorithms.contract import Combined, Round, Slot, StateArrays
from fedmr_flwr.config.sections import Section
from fedmr_flwr.core.layout import Floats, Layout, Packed
from fedmr_flwr.core.population import average


class FedMutOptions(Section):
    """Options of FedMut.

    Attributes:
        radius: how far a mutation goes, in lengths of the global model's last update.
        acceleration: how much shorter mutations against the update are at first, so that all of them together
            go on with it; the difference falls to nothing.
        acceleration_rounds: in how many rounds.
    """

    radius: float = Field(5.0, ge=0)
    acceleration: float = Field(0.3, ge=0, le=1)
    acceleration_rounds: int = Field(100, ge=1)


@dataclass(frozen=True)
class FedMutState:
    """The state of FedMut.

    Attributes:
        floats: of the global model at the beginning of the latest good round; None before there was one.
    """

    floats: Floats | None

    def arrays(self) -> StateArrays:
        """Return them."""
        return {} if self.floats is None else {"previous": self.floats}

    @classmethod
    def from_arrays(cls, arrays: StateArrays) -> Self:
        """Make it again."""
        return cls(arrays["previous"])


class FedMut(Algorithm[FedMutState]):
    """Federated averaging of mutated models.

    Every tensor of a slot's model is the global one plus or minus `radius` times its last change. For each
    tensor as many slots get the one as the other; of an odd number of slots the last is not mutated. Buffers
    are not mutated: a variance must not become negative.

    For the arguments see `FedMutOptions` and `Algorithm`.
    """

    options: FedMutOptions
    sends_individual_models = True

    def init(self, layout: Layout, slots: int) -> FedMutState:
        """Start without an earlier model: the first round has nothing to mutate along."""
        return FedMutState(None)

    def models(self, round: Round) -> Sequence[Packed]:
        """Mutate the global model for every slot; in the first round there is nothing to mutate it along."""
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
        """Draw how each tensor of each slot is mutated, [tensors, slots]."""
        options = self.options
        # The first mutation is before the second round.
        left = max(0.0, 1 - (round.number - 2) / options.acceleration_rounds)
        pairs = self.slots // 2
        signs = np.zeros((len(round.layout.parameters), self.slots))
        alternatives = np.tile([1, options.acceleration * left - 1], (len(signs), pairs))
        signs[:, : 2 * pairs] = round.stream("mutate").permuted(alternatives, axis=1)
        return signs

    def combine(self, round: Round, slots: Sequence[Slot]) -> Combined[FedMutState]:
        """Average the models that came back, all alike."""
        model = average([slot.reply.model for slot in slots if slot.reply])
        return Combined(model, FedMutState(round.global_model.floats))
