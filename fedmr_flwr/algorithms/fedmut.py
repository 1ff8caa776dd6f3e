"""FedMut: FedAvg whose clients start from different mutations of the global model, along its last update.

Source: Hu et al., "FedMut: Generalized Federated Learning via Stochastic Mutation", AAAI 2024; defaults and the
acceleration of the first rounds as in the code that was published with FedMR.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from pydantic import Field

from fedmr_flwr.algorithms.base import Algorithm, Trained
from fedmr_flwr.config.sections import Section
from fedmr_flwr.core.layout import Floats
from fedmr_flwr.core.population import average
from fedmr_flwr.core.randomness import stream


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


class FedMut(Algorithm):
    """Federated averaging of mutated models.

    Every tensor of a slot's model is the global one plus or minus `radius` times its last change. For each
    tensor as many slots get the one as the other; of an odd number of slots the last is not mutated. Buffers
    are not mutated: a variance must not become negative.

    For the arguments see `FedMutOptions` and `Algorithm`.
    """

    options: FedMutOptions
    individual = True

    # The global model at the beginning of this round, and of the last one that was good.
    _start: Floats | None = None
    _previous: Floats | None = None

    def models(self, server_round: int, arrays: ArrayRecord) -> Sequence[ArrayRecord]:
        """Mutate the global model for every slot; in the first round there is nothing to mutate it by."""
        current = self.codec.decode(arrays)
        self._start = current.floats
        if self._previous is None or not self.options.radius:
            return [arrays] * self.clients_per_round
        signs = self._signs(server_round)
        change = current.floats - self._previous
        models = []
        for slot in range(self.clients_per_round):
            floats = current.floats.copy()
            for part, sign in zip(self.codec.layout.parameters, signs[:, slot], strict=True):
                floats[part] += np.float32(self.options.radius * sign) * change[part]
            models.append(self.codec.encode([floats], [current.ints]))
        return models

    def _signs(self, server_round: int) -> NDArray[np.float64]:
        """Draw how each tensor of each slot is mutated, [tensors, slots]."""
        options, rng = self.options, stream(self.seed, "mutate", server_round)
        # The first mutation is before the second round.
        left = max(0.0, 1 - (server_round - 2) / options.acceleration_rounds)
        pairs = self.clients_per_round // 2
        signs = np.zeros((len(self.codec.layout.parameters), self.clients_per_round))
        signs[:, : 2 * pairs] = rng.permuted(
            np.tile([1, options.acceleration * left - 1], (len(signs), pairs)), axis=1
        )
        return signs

    def combine(self, server_round: int, trained: Sequence[Trained | None]) -> ArrayRecord:
        """Average the models that came back, all alike."""
        self._previous = self._start
        model = average([reply.model for reply in trained if reply])
        return self.codec.encode([model.floats], [model.ints])

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the global model at the beginning of the latest round."""
        return {} if self._previous is None else {"previous": self._previous}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take up what an earlier `state` returned."""
        self._previous = state.get("previous")
