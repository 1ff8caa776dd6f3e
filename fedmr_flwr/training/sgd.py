"""Local training: the one SGD loop of every client."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedmr_flwr.config.training import Precision, Training
from fedmr_flwr.core.layout import Floats
from fedmr_flwr.data.base import Dataset, Examples
from fedmr_flwr.training.lane import Lane, TrainResult
from fedmr_flwr.training.rules import LocalRule


def fit(
    model: nn.Module,
    dataset: Dataset,
    examples: Examples,
    training: Training,
    rng: np.random.Generator,
    rule: LocalRule | None = None,
    received: Mapping[str, Floats] | None = None,
    kept: Mapping[str, NDArray[Any]] | None = None,
    precision: Precision = "float32",
) -> TrainResult:
    """Train a model in place: fresh SGD, shuffled batches, cross-entropy, and what a rule changes of it.

    Args:
        model: in any mode, on the device of the examples; its state_dict is changed.
        dataset: how to prepare the examples.
        examples: at least one.
        training: learning rate, momentum, epochs, batch size and augmentation.
        rng: draws the order of the examples, how they are augmented, and what modules and the rule draw.
        rule: what an algorithm changes; None changes nothing.
        received: what the server sent to the rule besides the model, by name.
        kept: what the client kept when it last took part, by name.
        precision: of the arithmetic, as `arithmetic` has it.
    """
    lane = Lane(model, dataset, examples, training, precision)
    lane.begin(rng, rule or LocalRule(), received, kept)
    return lane.run()
