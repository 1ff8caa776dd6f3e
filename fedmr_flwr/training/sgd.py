"""Local training: the one SGD loop of every client."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from fedmr_flwr import config
from fedmr_flwr.data import augmentation
from fedmr_flwr.data.base import Dataset, Examples
from fedmr_flwr.models.base import Dropout
from fedmr_flwr.training.devices import to_input
from fedmr_flwr.training.rules import LocalRule, Outcome, Task


@dataclass(frozen=True)
class Fit:
    """What local training did.

    Attributes:
        examples: examples of the client.
        loss: mean training loss over all examples of all epochs, measured as training went on.
        outcome: what the local rule leaves behind.
    """

    examples: int
    loss: float
    outcome: Outcome = field(default_factory=Outcome)


@dataclass(frozen=True)
class Course:
    """What a client goes through in a round, drawn before its first step.

    Attributes:
        order: [E, N] int64, in which order each of E epochs takes the N examples.
        changes: [E, N, 3] int64, how they are augmented, in the same order; None if they are not.
    """

    order: torch.Tensor
    changes: torch.Tensor | None

    @classmethod
    def draw(
        cls, examples: int, size: tuple[int, ...], training: config.Training, rng: np.random.Generator
    ) -> "Course":
        """Draw a client's course.

        Args:
            examples: N.
            size: of an image, [H, W]; of no account for texts.
            training: epochs and augmentation.
            rng: of this client in this round.
        """
        orders, changes = [], []
        for _ in range(training.local_epochs):
            orders.append(torch.from_numpy(rng.permutation(examples)))
            if training.augment:
                changes.append(augmentation.draw(examples, size, rng)[orders[-1]])
        return cls(torch.stack(orders), torch.stack(changes) if changes else None)


def fit(
    model: nn.Module,
    dataset: Dataset,
    examples: Examples,
    training: config.Training,
    rng: np.random.Generator,
    rule: LocalRule | None = None,
    precision: config.Precision = "float32",
) -> Fit:
    """Train a model in place: fresh SGD, shuffled batches, cross-entropy, and what a rule changes of it.

    Args:
        model: in any mode, on the device of the examples; its state_dict is changed.
        dataset: how to prepare the examples.
        examples: at least one.
        training: learning rate, momentum, epochs, batch size and augmentation.
        rng: draws the order of the examples, how they are augmented, and what dropout drops.
        rule: what an algorithm changes; None changes nothing.
        precision: of the arithmetic, as `arithmetic` has it.
    """
    rule = rule or LocalRule()
    model.train()
    device, count = examples.labels.device, len(examples)
    seed_dropout(model, device, rng)
    optimizer = torch.optim.SGD(model.parameters(), training.lr, training.momentum, fused=True)
    total = torch.zeros((), device=device)
    rule.begin(model, Task(examples.labels, training, rng.spawn(1)[0]))
    course = Course.draw(count, examples.inputs.shape[2:], training, rng)
    steps = 0
    for epoch in range(training.local_epochs):
        order = course.order[epoch].to(device)
        changes = None if course.changes is None else course.changes[epoch].to(device)
        for start in range(0, count, training.batch_size):
            part = slice(start, start + training.batch_size)
            batch = Batch(examples.inputs[order[part]], examples.labels[order[part]])
            batch = batch if changes is None else batch.augmented(changes[part], dataset)
            loss = train_step(model, optimizer, rule, dataset, batch, precision)
            total.add_(loss, alpha=len(batch.labels))  # on the device: reading it here would wait for every step
            steps += 1
    return Fit(count, total.item() / (count * training.local_epochs), rule.end(model, steps))


class Batch(NamedTuple):
    """The examples of a step.

    Attributes:
        inputs: [B, ...] uint8.
        labels: [B] int64.
    """

    inputs: torch.Tensor
    labels: torch.Tensor

    def augmented(self, changes: torch.Tensor, dataset: Dataset) -> "Batch":
        """Return it with its images changed as [B, 3] `changes` say."""
        return Batch(augmentation.crop_and_flip(self.inputs, changes, dataset.background), self.labels)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rule: LocalRule,
    dataset: Dataset,
    batch: Batch,
    precision: config.Precision,
) -> torch.Tensor:
    """Train on one batch and return its mean loss, without waiting for the device.

    Args:
        model: in training mode.
        optimizer: of its parameters.
        rule: what an algorithm changes.
        dataset: how to prepare the examples.
        batch: at least one example.
        precision: of the arithmetic, as `arithmetic` has it.
    """
    inputs = to_input(dataset, batch.inputs, precision)
    # Without its cache of converted weights, which must not outlive a recorded step.
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
        return rule.step(model, optimizer, inputs, batch.labels)


def seed_dropout(model: nn.Module, device: torch.device, rng: np.random.Generator) -> None:
    """Start a model's dropouts anew, with a generator of their own; without dropout nothing is drawn."""
    dropouts = [module for module in model.modules() if isinstance(module, Dropout)]
    if dropouts:
        generator = dropouts[0].generator or torch.Generator(device)
        generator.manual_seed(int(rng.integers(2**63)))
        for dropout in dropouts:
            dropout.generator = generator
