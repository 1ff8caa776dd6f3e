"""Indep: K models that are never mixed, the ablation of FedMR's recombination.

Each slot keeps its own model, which goes to another random client in every round; the mean of the K models
is evaluated and saved.

Source: the comparison in Hu et al., KDD 2024 (arXiv 2305.10730), where it is called FedIndep.
"""

from collections.abc import Sequence

from flwr.app import ArrayRecord

from fedmr_flwr.algorithms.multi_model import MultiModel
from fedmr_flwr.core.layout import Packed


class Indep(MultiModel):
    """Independent models.

    For the arguments see `MultiModelOptions` and `Algorithm`.
    """

    on_gpu = True

    def deal(self, server_round: int, population: list[Packed], arrays: ArrayRecord) -> Sequence[ArrayRecord]:
        """Leave every slot its model."""
        return [self.codec.encode([model.floats], [model.ints]) for model in population]
