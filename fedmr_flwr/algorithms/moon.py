"""MOON: FedAvg whose clients keep representations near the received model's and away from their own earlier one's.

Source: Li et al., "Model-Contrastive Federated Learning", CVPR 2021, equations 2 and 3; the default of mu as in
the code that was published with FedMR.
"""

from copy import deepcopy
from typing import cast

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


class Contrastive(LocalRule):
    """Adds mu times -log(e^(s/T) / (e^(s/T) + e^(p/T))) to the cross-entropy.

    s is the cosine similarity of an example's representation by the model that is trained to that by the model
    received, p that to the one by the model that this client trained when it last took part. A representation is
    the input of the last layer. Both other models are in evaluation mode and do not change. A client that takes
    part for the first time has no earlier model and trains on the cross-entropy alone: with the received model in
    place of its own the term would be constant. The reported loss contains the term.
    """

    options: ContrastiveOptions
    keeps = True

    def begin(self, model: nn.Module, task: Task) -> None:
        """Freeze the model received and, if there is one, the client's earlier model."""
        self._others: list[Classifier] = []
        if self.kept and self.options.mu:
            previous = _frozen(model)
            previous.load_state_dict({name: torch.from_numpy(array) for name, array in self.kept.items()})
            self._others = [_frozen(model), previous]

    def loss(self, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return cross-entropy plus the weighted contrastive loss, means over the batch."""
        if not self._others:
            return super().loss(model, inputs, labels)
        model = cast(Classifier, model)
        own = model.features(inputs)
        with torch.no_grad():
            received, previous = (other.features(inputs) for other in self._others)
        contrast = contrastive(own, received, previous, self.options.temperature)
        loss: torch.Tensor = functional.cross_entropy(model.head(own), labels) + self.options.mu * contrast
        return loss

    def end(self, model: nn.Module, steps: int) -> Outcome:
        """Keep the trained model, unless it would never be used."""
        if not self.options.mu:
            return super().end(model, steps)
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
