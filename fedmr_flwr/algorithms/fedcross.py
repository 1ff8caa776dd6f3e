"""FedCross: K models, each mixed with a collaborating model before every round.

Source: Hu et al., "FedCross: Towards Accurate Federated Learning via Multi-Model Cross-Aggregation", ICDE 2024
(arXiv 2210.08285), algorithm 1 and its three strategies of selection.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedmr_flwr.algorithms.contract import Round
from fedmr_flwr.algorithms.multi_model import MultiModel, MultiModelOptions
from fedmr_flwr.config.sections import Void
from fedmr_flwr.core.distributions import Choice
from fedmr_flwr.core.layout import Packed
from fedmr_flwr.core.population import cosines


class FedCrossOptions(MultiModelOptions):
    """Options of FedCross, besides those of every algorithm with a population.

    Attributes:
        alpha: weight of a slot's own model; the collaborator's is 1 - alpha.
        collaborator: the other model of each slot: that of `lowest` or `highest` cosine similarity, or a different
            one in every round, `in-order`.
        compare: the values whose similarity counts: the trainable `weights`, or `all`, buffers included, as in the
            published code. With BatchNorm the running statistics are most of a model's length.
    """

    alpha: Annotated[float, Choice((0.5, 0.8, 0.9, 0.95, 0.99, 0.999))] = Field(0.99, gt=0, le=1)
    collaborator: Literal["lowest", "highest", "in-order"] = "lowest"
    compare: Literal["weights", "all"] = "weights"

    def void(self) -> Iterator[Void]:
        """Yield what chooses collaborators, where none is chosen by similarity or none is mixed in."""
        if self.alpha == 1:
            yield Void("collaborator", ("alpha",), "it needs strategy.alpha below 1")
        if self.alpha == 1 or self.collaborator == "in-order":
            problem = "it needs strategy.alpha below 1 and strategy.collaborator=lowest or highest"
            yield Void("compare", ("alpha", "collaborator"), problem)


class FedCross(MultiModel):
    """Multi-model cross-aggregation.

    For the arguments see `FedCrossOptions` and `Algorithm`.
    """

    options: FedCrossOptions

    def dispatch(self, round: Round, models: Sequence[Packed]) -> Sequence[Packed]:
        """Mix every slot's model with its collaborator's; integer buffers are not mixed."""
        alpha = self.options.alpha
        # With one model there is no other; with alpha 1 a product would only cost a copy of each model.
        if alpha == 1 or len(models) == 1:
            return models
        return [
            Packed(alpha * own.floats + (1 - alpha) * models[other].floats, own.ints)
            for own, other in zip(models, self._collaborators(round, models), strict=True)
        ]

    def _collaborators(self, round: Round, models: Sequence[Packed]) -> list[int]:
        """Choose another slot for every slot."""
        count = len(models)
        if self.options.collaborator == "in-order":
            # With the round's number, so that each slot meets every other one in turn.
            return [(slot + 1 + round.number % (count - 1)) % count for slot in range(count)]
        columns = round.layout.parameters if self.options.compare == "weights" else None
        alike = cosines([model.floats for model in models], columns)
        if self.options.collaborator == "highest":
            alike = -alike
        # A model is most like itself, and must not be its own collaborator.
        np.fill_diagonal(alike, np.inf)
        return [int(slot) for slot in alike.argmin(1)]
