"""Indep: K models that are never mixed, the ablation of FedMR's recombination.

Each slot keeps its own model, which goes to another random client in every round; the mean of the K models
is evaluated and saved.

Source: the comparison in Hu et al., KDD 2024 (arXiv 2305.10730), where it is called FedIndep.
"""

from collections.abc import Sequence

from fedmr_flwr.algorithms.contract import Round
from fedmr_flwr.algorithms.multi_model import MultiModel
from fedmr_flwr.core.layout import Packed


class Indep(MultiModel):
    """Independent models.

    Args:
        clients_per_round: M, the clients drawn in a round.
        seed: the seed of the run.
        layout: of the models, if they travel packed.
        population: K, the number of models, at least M; M if not given.
        weighting: "uniform" or "examples".
        evaluate_slots: whether to score every slot's model.
    """

    accepts_device_models = True

    def dispatch(self, round: Round, models: Sequence[Packed]) -> Sequence[Packed]:
        """Leave every slot its model."""
        return models
