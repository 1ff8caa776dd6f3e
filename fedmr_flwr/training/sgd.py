"""Local training: the one loop of every client."""

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
    """Train a model in place: a fresh optimiser, shuffled batches, cross-entropy, and the changes of a local rule.

    Args:
        model: in any mode, on the device of the examples; its state_dict is changed.
        dataset: defines how inputs are prepared.
        examples: at least one.
        training: optimiser, learning rate, epochs or steps, batch size and augmentation; of one round, see `work_of`.
        rng: for the order of the examples, their augmentation, and the draws of modules and of the rule.
        rule: the algorithm's local rule; None changes nothing.
        received: vectors from the server for the rule, by name.
        kept: arrays that the client kept when it last took part, by name.
        precision: of the arithmetic, see `arithmetic`.
    """
    # The same lane as on the GPU, run to its end: there is one training loop and one order of draws.
    lane = Lane(model, dataset, examples, training, precision)
    lane.begin(rng, rule or LocalRule(), received, kept)
    return lane.run()
