"""FedCross: K models, each drawn a little towards a collaborator before every round.

Source: Hu et al., "FedCross: Towards Accurate Federated Learning via Multi-Model Cross-Aggregation", ICDE 2024
(arXiv 2210.08285), algorithm 1 and its three strategies of selection.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from flwr.app import ArrayRecord
from pydantic import Field

from fedmr_flwr.algorithms.multi_model import MultiModel, MultiModelOptions
from fedmr_flwr.core.layout import Packed
from fedmr_flwr.core.population import cosines


class FedCrossOptions(MultiModelOptions):
    """Options of FedCross, besides those of every algorithm with a population.

    Attributes:
        alpha: weight of a slot's own model; the collaborator's is 1 - alpha.
        collaborator: of a slot: the model of "lowest" or "highest" cosine similarity, or another one in every
            round, "in-order".
    """

    alpha: float = Field(0.99, gt=0, le=1)
    collaborator: Literal["lowest", "highest", "in-order"] = "lowest"


class FedCross(MultiModel):
    """Multi-model cross-aggregation.

    For the arguments see `FedCrossOptions` and `Algorithm`.
    """

    options: FedCrossOptions

    def deal(self, server_round: int, population: list[Packed], arrays: ArrayRecord) -> Sequence[ArrayRecord]:
        """Mix every slot's model with its collaborator's; integers stay the slot's own."""
        alpha = self.options.alpha
        if alpha == 1 or len(population) == 1:
            return [self.codec.encode([model.floats], [model.ints]) for model in population]
        dealt = []
        for slot, chosen in enumerate(self._collaborators(server_round, population)):
            own, other = population[slot], population[chosen].floats
            floats = np.float32(alpha) * own.floats + np.float32(1 - alpha) * other
            dealt.append(self.codec.encode([floats], [own.ints]))
        return dealt

    def _collaborators(self, server_round: int, population: list[Packed]) -> list[int]:
        """Choose another slot for every slot."""
        count = len(population)
        if self.options.collaborator == "in-order":
            return [(slot + 1 + server_round % (count - 1)) % count for slot in range(count)]
        alike = cosines([model.floats for model in population])
        if self.options.collaborator == "highest":
            alike = -alike
        np.fill_diagonal(alike, np.inf)
        return [int(slot) for slot in alike.argmin(1)]
