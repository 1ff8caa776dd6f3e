"""The evaluation of a model."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from fedmr_flwr.data.base import Dataset, Examples
from fedmr_flwr.training.devices import to_input


@dataclass(frozen=True)
class Score:
    """How good a model is on a set of examples.

    Attributes:
        loss: mean cross-entropy.
        accuracy: share of correct answers, 0 to 1.
        examples: number of examples.
    """

    loss: float
    accuracy: float
    examples: int


@torch.inference_mode()
def evaluate(
    model: nn.Module, dataset: Dataset, examples: Examples, device: torch.device, batch_size: int = 1000
) -> Score:
    """Score a model.

    Args:
        model: on `device`; put into evaluation mode.
        dataset: how to prepare the examples.
        examples: what to score it on.
        device: where to compute.
        batch_size: examples at a time.
    """
    model.eval()
    loss, correct = torch.zeros((), device=device), torch.zeros((), dtype=torch.long, device=device)
    for start in range(0, len(examples), batch_size):
        labels = examples.labels[start : start + batch_size].to(device)
        logits = model(to_input(dataset, examples.inputs[start : start + batch_size].to(device)))
        loss += functional.cross_entropy(logits, labels, reduction="sum")
        correct += (logits.argmax(1) == labels).sum()
    return Score(loss.item() / len(examples), correct.item() / len(examples), len(examples))
