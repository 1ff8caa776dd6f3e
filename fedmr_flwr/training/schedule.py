"""The batches of a client's training: which examples, in which order, and how they are augmented."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from typing import NamedTuple

import numpy as np
import torch

from fedmr_flwr.config.training import Training
from fedmr_flwr.data import augmentation


@dataclass(frozen=True)
class BatchSchedule:
    """The order of a client's examples, drawn before its first step.

    Attributes:
        order: [E * N] int64, the N examples in the order of each of E epochs, the last of which may end early.
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
            training: epochs or steps, batch size and augmentation.
            rng: of this client in this round.
        """
        orders, changes = [], []
        each = len(list(epoch_sizes(examples, training.batch_size)))
        for _ in range(-(-step_count(examples, training) // each)):
            orders.append(torch.from_numpy(rng.permutation(examples)))
            if training.augment:
                changes.append(augmentation.draw(examples, size, rng)[orders[-1]])
        return cls(torch.cat(orders), torch.cat(changes) if changes else None)


def batch_sizes(examples: int, training: Training) -> Iterator[int]:
    """Yield the sizes of all batches of a client's training.

    Args:
        examples: of the client.
        training: epochs or steps, and batch size.
    """
    whole = list(epoch_sizes(examples, training.batch_size))
    return islice(cycle(whole), step_count(examples, training))


def epoch_sizes(examples: int, batch_size: int) -> Iterator[int]:
    """Yield the sizes of the batches of one epoch; the last one may be smaller.

    Args:
        examples: of the client.
        batch_size: of all but the last.
    """
    for start in range(0, examples, batch_size):
        yield min(batch_size, examples - start)


def step_count(examples: int, training: Training) -> int:
    """Return the number of a client's steps: a fraction of an epoch is rounded to whole ones, at least one."""
    if training.local_steps:
        return training.local_steps
    assert training.local_epochs is not None
    return max(1, round(training.local_epochs * len(list(epoch_sizes(examples, training.batch_size)))))


def longest_order(largest: int, training: Training) -> int:
    """Return the most entries of a schedule's order among clients of up to `largest` examples."""
    if training.local_steps:
        return training.local_steps * training.batch_size + largest
    assert training.local_epochs is not None
    return largest * math.ceil(training.local_epochs)


class Batch(NamedTuple):
    """The examples of one step.

    Attributes:
        inputs: [B, ...] uint8 or float32.
        labels: [B] int64.
        changes: [B, 3] int64, the augmentation of images; None without augmentation.
        counts: [K] int32, how many of its B / K examples each of several lanes uses; None for a single lane.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    changes: torch.Tensor | None = None
    counts: torch.Tensor | None = None
