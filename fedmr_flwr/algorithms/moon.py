"""MOON: FedAvg whose clients keep representations near the received model's and away from their own earlier one's.

Source: Li et al., "Model-Contrastive Federated Learning", CVPR 2021, equations 2 and 3; the default of mu as in
the code that was published with FedMR.
"""

from copy import deepcopy
from typing import NamedTuple, cast

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from fedmr_flwr.algorithms.fedavg import FedAvg
from fedmr_flwr.config.sections import Section
from fedmr_flwr.models.base import Classifier
from fedmr_flwr.training.rules import LocalRule, Outcome, Task


class ContrastiveOptions(Section):
    """Options of MOON's local rule.

    Attributes:
        mu: weight of the contrastive loss.
        temperature: what the similarities are divided by.
    """

    mu: float = Field(5.0, ge=0)
    temperature: float = Field(0.5, gt=0)


class ContrastiveState(NamedTuple):
    """Two models in evaluation mode: the one received, and the one that this client trained before."""

    received: Classifier
    previous: Classifier


class Contrastive(LocalRule):
    """Adds mu times -log(e^(s/T) / (e^(s/T) + e^(p/T))) to the cross-entropy.

    s is the cosine similarity of an example's representation by the model that is trained to that by the model
    received, p that to the one by the model that this client trained when it last took part. A representation is
    the input of the last layer. Both other models are in evaluation mode and do not change. A client that takes
    part for the first time has no earlier model and trains on the cross-entropy alone: with the received model in
    place of its own the term would be constant.
    """

    options: ContrastiveOptions
    keeps = True

    def begin(self, model: nn.Module, task: Task) -> ContrastiveState | None:
        """Freeze the model received and the client's earlier model; None if there is no earlier one."""
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
        model = cast(Classifier, model)
        own = model.features(inputs)
        with torch.no_grad():
            received, previous = state.received.features(inputs), state.previous.features(inputs)
        contrast = contrastive(own, received, previous, self.options.temperature)
        return model.head(own), self.options.mu * contrast

    def end(self, model: nn.Module, state: ContrastiveState | None, task: Task, steps: int) -> Outcome:
        """Keep the trained model, unless it would never be used."""
        if not self.options.mu:
            return Outcome()
        return Outcome(kept={name: tensor.numpy(force=True) for name, tensor in model.state_dict().items()})


def contrastive(
    own: torch.Tensor, received: torch.Tensor, previous: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return the contrastive loss, mean over a batch.

    Args:
        own: [B, D] representations by the model that is trained.
        received: [B, D] by the model that was received.
        previous: [B, D] by the client's earlier model.
        temperature: what the similarities are divided by.

    Source: Li et al., CVPR 2021, equation 2.
    """
    near, far = (functional.cosine_similarity(own, other, dim=1) / temperature for other in (received, previous))
    return functional.softplus(far - near).mean()


def _frozen(model: nn.Module) -> Classifier:
    """Copy a model for looking at examples with it, not for training."""
    return cast(Classifier, deepcopy(model).eval().requires_grad_(False))


class Moon(FedAvg):
    """Federated averaging with a model-contrastive term in local training.

    For the arguments see `FedAvgOptions` and `Algorithm`.
    """

    Rule = Contrastive
