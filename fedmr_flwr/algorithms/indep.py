"""Indep: K models that are never mixed, the ablation of FedMR's recombination.

Each slot keeps its own model, which is trained by another random client in every round; the mean of the K models
is evaluated and saved.

Source: the comparison in Hu et al., KDD 2024 (arXiv 2305.10730), where it is called FedIndep.
"""

from collections.abc import Sequence

from fedmr_flwr.algorithms.contract import Round
from fedmr_flwr.algorithms.multi_model import MultiModel
from fedmr_flwr.core.layout import Packed


class Indep(MultiModel):
    """Independent models.

    For the arguments see `MultiModelOptions` and `Algorithm`.
    """

    accepts_device_models = True

    def dispatch(self, round: Round, models: Sequence[Packed]) -> Sequence[Packed]:
        """Return every slot's own model."""
        return models
