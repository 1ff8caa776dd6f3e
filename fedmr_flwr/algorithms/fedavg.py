"""FedAvg: every client trains the global model, the server averages the results.

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, algorithm 1.
"""

from collections.abc import Sequence
from typing import Literal

from flwr.app import ArrayRecord

from fedmr_flwr.algorithms.base import Algorithm, Trained
from fedmr_flwr.config.sections import Section
from fedmr_flwr.core.population import average


class FedAvgOptions(Section):
    """Options of FedAvg.

    Attributes:
        weighting: by the clients' numbers of "examples", as in the paper, or "uniform", as in FedMR's mean.
    """

    weighting: Literal["examples", "uniform"] = "examples"


class FedAvg(Algorithm):
    """Federated averaging.

    For the arguments see `FedAvgOptions` and `Algorithm`.
    """

    options: FedAvgOptions
    on_gpu = True

    def models(self, server_round: int, arrays: ArrayRecord) -> Sequence[ArrayRecord]:
        """Send the global model to everyone."""
        return [arrays] * self.clients_per_round

    def combine(self, server_round: int, trained: Sequence[Trained | None]) -> ArrayRecord:
        """Average the models that came back; integers are not averaged, the largest counts."""
        good = [reply for reply in trained if reply]
        weights = [reply.examples for reply in good] if self.options.weighting == "examples" else None
        model = average([reply.model for reply in good], weights)
        return self.codec.encode([model.floats], [model.ints])
