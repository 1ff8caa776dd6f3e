"""The batches of a client's training: which examples, in which order, and how they are augmented."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from fedmr_flwr.config.training import Training
from fedmr_flwr.data import augmentation


@dataclass(frozen=True)
class BatchSchedule:
    """The order of a client's examples, drawn before its first step.

    Attributes:
        order: [E * N] int64, the N examples in the order of each of E epochs.
        changes: [E * N, 3] int64, their augmentation, in the same order; None without augmentation.
    """

    order: torch.Tensor
    changes: torch.Tensor | None

    @classmethod
    def draw(
        cls, examples: int, size: tuple[int, ...], training: Training, rng: np.random.Generator
    ) -> "BatchSchedule":
        """Draw a client's schedule.

        Args:
            examples: N.
            size: of an image, [H, W]; ignored for text.
            training: epochs and augmentation.
            rng: of this client in this round.
        """
        orders, changes = [], []
        for _ in range(training.local_epochs):
            orders.append(torch.from_numpy(rng.permutation(examples)))
            if training.augment:
                changes.append(augmentation.draw(examples, size, rng)[orders[-1]])
        return cls(torch.cat(orders), torch.cat(changes) if changes else None)


def batch_sizes(examples: int, epochs: int, batch_size: int) -> Iterator[int]:
    """Yield the sizes of all batches of a client's training; the last one of an epoch may be smaller.

    Args:
        examples: of the client.
        epochs: passes over them.
        batch_size: of all but the last.
    """
    for _ in range(epochs):
        for start in range(0, examples, batch_size):
            yield min(batch_size, examples - start)


class Batch(NamedTuple):
    """The examples of one step.

    Attributes:
        inputs: [B, ...] uint8.
        labels: [B] int64.
        changes: [B, 3] int64, the augmentation of images; None without augmentation.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    changes: torch.Tensor | None
