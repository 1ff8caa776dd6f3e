"""FedAvg: every client trains the global model, and the server averages the results.

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, algorithm 1.
"""

from collections.abc import Sequence

from fedmr_flwr.algorithms.base import Algorithm
from fedmr_flwr.algorithms.contract import Combined, NoState, Round, Slot
from fedmr_flwr.algorithms.weighting import Weighting, weighted_mean
from fedmr_flwr.config.sections import Section
from fedmr_flwr.core.layout import Packed


class FedAvgOptions(Section):
    """Options of FedAvg.

    Attributes:
        weighting: of the clients' models: by their `examples`, as in the paper, or `uniform`, the control of FedMR,
            whose mean is uniform.
    """

    weighting: Weighting = "examples"


class FedAvg(Algorithm[NoState]):
    """Federated averaging.

    For the arguments see `FedAvgOptions` and `Algorithm`.
    """

    options: FedAvgOptions
    accepts_device_models = True

    def models(self, round: Round) -> Sequence[Packed]:
        """Send the global model to everyone."""
        return [round.global_model] * self.slots

    def combine(self, round: Round, slots: Sequence[Slot]) -> Combined[NoState]:
        """Average the trained models."""
        return Combined(weighted_mean(slots, self.options.weighting), self.state)
