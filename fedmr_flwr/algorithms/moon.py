"""MOON: FedAvg whose clients draw representations towards the received model's and away from their earlier one's.

Source: Li et al., "Model-Contrastive Federated Learning", CVPR 2021, equations 2 and 3; the default of mu is that of
its published code's example on CIFAR-10.
"""

import math
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from fedmr_flwr.algorithms.fedavg import FedAvg
from fedmr_flwr.config.sections import Section, Void
from fedmr_flwr.core.distributions import LogUniform
from fedmr_flwr.core.layout import Layout
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.models.base import Classifier, duplicate
from fedmr_flwr.models.parts import last_layer, represent
from fedmr_flwr.training.rules import LocalRule, Outcome, Task


class ContrastiveOptions(Section):
    """Options of MOON's local rule.

    Attributes:
        mu: weight of the contrastive loss.
        temperature: the divisor of the similarities.
    """

    mu: Annotated[float, LogUniform(0.001, 10)] = Field(5.0, ge=0)
    temperature: float = Field(0.5, gt=0)

    def void(self) -> Iterator[Void]:
        """Yield the temperature of a loss without weight."""
        if not self.mu:
            yield Void("temperature", ("mu",), "it needs strategy.mu above 0")


class ContrastiveState(NamedTuple):
    """Two models in evaluation mode: the received one, and the client's earlier one."""

    received: nn.Module
    previous: nn.Module


class Contrastive(LocalRule):
    """Adds mu times -log(e^(s/T) / (e^(s/T) + e^(p/T))) to the cross-entropy.

    s is the cosine similarity of an example's representations by the trained model and by the received model; p is
    that of its representations by the trained model and by the client's earlier model, from when it last took part.
    A representation is the input of the last layer, or the output of the module that `model.features` names. Both
    other models are in evaluation mode and do not change. A client that takes part for the first time has no earlier
    model and trains on the cross-entropy alone.
    """

    options: ContrastiveOptions
    keeps = True
    represents = True

    def begin(self, model: nn.Module, task: Task) -> ContrastiveState | None:
        """Freeze the received and the client's earlier model; None if there is no earlier one, or if mu is 0."""
        if not (self.features or isinstance(model, Classifier) or last_layer(model)):
            raise ConfigError("moon needs a model with a linear layer, or the path of a module in model.features")
        # Not the received model in place of the earlier one: the term would be the constant log 2, at the cost of two
        # passes.
        if not (task.kept and self.options.mu):
            return None
        previous = _frozen(model)
        previous.load_state_dict({name: torch.from_numpy(array) for name, array in task.kept.items()})
        return ContrastiveState(_frozen(model), previous)

    def forward(
        self, model: nn.Module, state: ContrastiveState | None, inputs: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the logits and the weighted contrastive loss, mean over the batch."""
        if state is None:
            return model(inputs), None
        logits, own = represent(model, inputs, self.features)
        with torch.no_grad():
            received, previous = (represent(other, inputs, self.features)[1] for other in state)
        contrast = contrastive(own, received, previous, self.options.temperature)
        return logits, self.options.mu * contrast

    def kept_bytes(self, layout: Layout) -> int:
        """Return the bytes of a model, unless mu is 0."""
        sizes = (math.prod(entry.shape) * np.dtype(entry.dtype).itemsize for entry in layout.entries)
        return sum(sizes) if self.options.mu else 0

    def end(self, model: nn.Module, state: ContrastiveState | None, task: Task, steps: int) -> Outcome:
        """Keep the trained model, unless mu is 0."""
        if not self.options.mu:
            return Outcome()
        return Outcome(kept={name: tensor.numpy(force=True) for name, tensor in model.state_dict().items()})


def contrastive(
    own: torch.Tensor, received: torch.Tensor, previous: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return the contrastive loss, mean over a batch.

    Args:
        own: [B, D] representations by the trained model.
        received: [B, D] by the received model.
        previous: [B, D] by the client's earlier model.
        temperature: the divisor of the similarities.

    Source: Li et al., CVPR 2021, equation 2.
    """
    near, far = (functional.cosine_similarity(own, other, dim=1) / temperature for other in (received, previous))
    # The logarithm of the two exponentials in a form that does not overflow at a small temperature.
    return functional.softplus(far - near).mean()


def _frozen(model: nn.Module) -> nn.Module:
    """Return a copy of a model in evaluation mode, without gradients."""
    # A copy, because training changes the model itself.
    return duplicate(model).eval().requires_grad_(False)


class Moon(FedAvg):
    """Federated averaging with a model-contrastive term in local training.

    Clients are weighted by examples, as in the paper's algorithm 1 and its published code.

    For the arguments see `FedAvgOptions` and `Algorithm`.
    """

    Rule = Contrastive
