"""The evaluation of a model."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from fedmr_flwr.data.base import Dataset, Examples
from fedmr_flwr.training.devices import to_input


@dataclass(frozen=True)
class Score:
    """The quality of a model on a set of examples.

    Attributes:
        loss: mean cross-entropy.
        accuracy: share of correct predictions, 0 to 1.
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
        dataset: defines how inputs are prepared.
        examples: the examples to score it on.
        device: of the computation.
        batch_size: examples per step.
    """
    model.eval()
    # Summed on the device: reading each batch's loss would wait for it.
    loss, correct = torch.zeros((), device=device), torch.zeros((), dtype=torch.long, device=device)
    for start in range(0, len(examples), batch_size):
        labels = examples.labels[start : start + batch_size].to(device)
        logits = model(to_input(dataset, examples.inputs[start : start + batch_size].to(device)))
        loss += functional.cross_entropy(logits, labels, reduction="sum")
        correct += (logits.argmax(1) == labels).sum()
    return Score(loss.item() / len(examples), correct.item() / len(examples), len(examples))
