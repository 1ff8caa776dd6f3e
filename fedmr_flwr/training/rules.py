"""What an algorithm changes in local training: the base of all local rules."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fedmr_flwr.config.options import options_type
from fedmr_flwr.config.sections import Section
from fedmr_flwr.config.settings import Training
from fedmr_flwr.core.layout import Floats


@dataclass(frozen=True)
class Outcome:
    """What a local rule leaves behind, besides the trained model.

    Attributes:
        returned: vectors [.] float32 for the server, by name.
        kept: arrays for the client's next participation, by name.
    """

    returned: Mapping[str, Floats] = field(default_factory=dict)
    kept: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What a local rule may know of the client that it serves.

    Attributes:
        labels: [N] int64 of the client's examples, on the device of the model.
        training: how they are trained on.
        rng: for draws of the rule's own; what it draws changes nothing else.
    """

    labels: torch.Tensor
    training: Training
    rng: np.random.Generator


class LocalRule:
    """What an algorithm changes in local training; this one changes nothing.

    An object serves one client in one round. What it does in a step may be recorded and replayed on a GPU, for other
    clients, too. So it must not wait for the device (`.item()`, printing, branches on the values of tensors), and of
    this client it may use only tensors, networks and `torch.Generator`s that `begin` has made and kept as attributes.

    Args:
        options: of the type that the class declares, `options: ProxOptions`; None takes every default.

    Attributes:
        exchanges: names of the vectors that travel to and from the server besides the model; a rule that has
            some works only with the strategy that knows them.
        keeps: whether the client keeps something for its next participation.
        captured: whether its steps may be recorded and replayed. False for one that must wait for the device.
        received: what the server sent besides the model: vectors [.] float32 by name.
        kept: what the client kept of its last participation; empty if there was none, or if it is lost.
    """

    options: Section
    exchanges: ClassVar[tuple[str, ...]] = ()
    keeps: ClassVar[bool] = False
    captured: ClassVar[bool] = True

    def __init__(self, options: Section | None = None) -> None:
        self.options = options or options_type(type(self))()
        self.received: Mapping[str, Floats] = {}
        self.kept: Mapping[str, NDArray[Any]] = {}

    def begin(self, model: nn.Module, task: Task) -> None:
        """Look at the model that was received, before the first step."""

    def end(self, model: nn.Module, steps: int) -> Outcome:
        """Look at the trained model, after so many steps of the optimiser; say what to return and what to keep."""
        return Outcome()

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Train on one batch.

        Args:
            model: in training mode.
            optimizer: of its parameters.
            inputs: [B, ...] what the model takes.
            labels: [B] int64.

        Returns:
            The batch's mean loss, detached.
        """
        optimizer.zero_grad(set_to_none=True)
        loss = self.loss(model, inputs, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.adjust(model)
        optimizer.step()
        return loss.detach()

    def loss(self, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a batch: cross-entropy."""
        return functional.cross_entropy(model(inputs), labels)

    def adjust(self, model: nn.Module) -> None:
        """Change the gradients before the optimiser uses them."""
