"""FedProx: FedAvg whose clients stay near the global model.

Source: Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, algorithm 2.
"""

from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import nn

from fedmr_flwr.algorithms.fedavg import FedAvg
from fedmr_flwr.config.sections import Section
from fedmr_flwr.core.distributions import LogUniform
from fedmr_flwr.training.rules import LocalRule, Task


class ProxOptions(Section):
    """Options of FedProx's local rule.

    Attributes:
        mu: weight of the proximal term.
    """

    mu: Annotated[float, LogUniform(0.001, 1)] = Field(0.01, ge=0)


class ProxState(NamedTuple):
    """The parameters of the model that was received."""

    received: tuple[torch.Tensor, ...]


class Prox(LocalRule):
    """Adds (mu / 2) |w - w_received|^2 to the loss, over trainable parameters.

    The term is added by its gradient, mu (w - w_received).
    """

    options: ProxOptions

    def begin(self, model: nn.Module, task: Task) -> ProxState:
        """Copy the parameters of the received model."""
        # Clones, because training changes the parameters in place.
        return ProxState(tuple(parameter.detach().clone() for parameter in model.parameters()))

    @torch.no_grad()
    def adjust(self, model: nn.Module, state: ProxState) -> None:
        """Add the gradient of the proximal term."""
        # By hand, not as a loss: the step is the same without a second graph, and `train-loss` remains the
        # cross-entropy.
        for parameter, received in zip(model.parameters(), state.received, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - received, alpha=self.options.mu)


class FedProx(FedAvg):
    """Federated averaging with a proximal term in local training.

    Clients are drawn uniformly and weighted by examples, as in its published code; the paper's algorithm 2 draws them
    by examples and weighs them equally, which has the same expectation.

    For the arguments see `FedAvgOptions` and `Algorithm`.
    """

    Rule = Prox
