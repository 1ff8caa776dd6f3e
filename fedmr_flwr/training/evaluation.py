"""The evaluation of a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fedmr_flwr.core.randomness import stream
from fedmr_flwr.data.base import Dataset, Examples
from fedmr_flwr.training.devices import default_generators, generators_of, to_input


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


# Not in inference mode: a tensor that a model keeps from it could not be used in training.
@torch.no_grad()
def evaluate(
    model: nn.Module, dataset: Dataset, examples: Examples, device: torch.device, batch_size: int = 1000
) -> Score:
    """Score a model; if it draws random numbers, it draws the same ones each time.

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
    with _same_draws(device):
        for start in range(0, len(examples), batch_size):
            labels = examples.labels[start : start + batch_size].to(device)
            logits = model(to_input(dataset, examples.inputs[start : start + batch_size].to(device)))
            loss += functional.cross_entropy(logits, labels, reduction="sum")
            correct += (logits.argmax(1) == labels).sum()
    return Score(loss.item() / len(examples), correct.item() / len(examples), len(examples))


@torch.no_grad()
def logits_of(
    model: nn.Module, dataset: Dataset, examples: Examples, device: torch.device, batch_size: int = 1000
) -> NDArray[np.float32]:
    """Return a model's outputs; if it draws random numbers, it draws the same ones each time.

    Args:
        model: on `device`; put into evaluation mode.
        dataset: defines how inputs are prepared.
        examples: N of them.
        device: of the computation.
        batch_size: examples per step.

    Returns:
        [N, classes] float32, on the host.
    """
    model.eval()
    parts = torch.split(examples.inputs, batch_size)
    with _same_draws(device):
        return torch.cat([model(to_input(dataset, part.to(device))).float().cpu() for part in parts]).numpy()


@contextmanager
def _same_draws(device: torch.device) -> Iterator[None]:
    """Let modules draw the same random numbers in every such block."""
    generators = generators_of(device)
    for generator in generators:
        generator.manual_seed(int(stream(0, "evaluate").integers(2**63)))
    with default_generators(generators):
        yield
