"""What an algorithm changes in local training: the base of all local rules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedmr_flwr.config import registry
from fedmr_flwr.config.options import options_type
from fedmr_flwr.config.sections import Section
from fedmr_flwr.config.strategy import Strategy
from fedmr_flwr.config.training import Training
from fedmr_flwr.core.layout import Floats

# What a rule holds for one client: tensors, networks, generators and None, in tuples, named or not.
State: TypeAlias = torch.Tensor | nn.Module | torch.Generator | tuple["State", ...] | None


@dataclass(frozen=True)
class Task:
    """What a local rule may know of the client that it serves.

    Attributes:
        labels: [N] int64 of the client's examples, on the device of the model.
        training: how they are trained on.
        rng: for draws of the rule's own; they change no other draw.
        received: what the server sent besides the model: vectors [.] float32 by name.
        kept: what the client kept when it last took part, by name; empty if it never did, or if it is lost.
    """

    labels: torch.Tensor
    training: Training
    rng: np.random.Generator
    received: Mapping[str, Floats] = field(default_factory=dict)
    kept: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a local rule leaves behind, besides the trained model.

    Attributes:
        returned: vectors [.] float32 for the server, by name.
        kept: arrays for the client's next participation, by name.
    """

    returned: Mapping[str, Floats] = field(default_factory=dict)
    kept: Mapping[str, NDArray[Any]] = field(default_factory=dict)


class LocalRule:
    """What an algorithm changes in local training; this one changes nothing.

    A rule holds options and no client: what it needs of a client in a step is the state that `begin` returns, and the
    loop hands that state to every other method. The loop owns the loss (cross-entropy), the optimiser and its steps.

    The one-GPU engine records a step and replays it for other clients, after copying their states into the tensors,
    networks and generators of the first. So a step must not wait for the device (`.item()`, printing, branches on the
    values of tensors), and may use no tensors but those of the model, the batch and the state.

    Args:
        options: of the type that the class declares, `options: ProxOptions`; None takes every default.

    Attributes:
        exchanges: names of the vectors that travel to and from the server besides the model; a rule that has
            some works only with the strategy that knows them.
        keeps: whether the client keeps something for its next participation.
        capturable: whether a step may be recorded and replayed. False for one that must wait for the device.
    """

    options: Section
    exchanges: ClassVar[tuple[str, ...]] = ()
    keeps: ClassVar[bool] = False
    capturable: ClassVar[bool] = True

    def __init__(self, options: Section | None = None) -> None:
        self.options = options or options_type(type(self))()

    # A subclass names the type of its own state, in `begin` as in the methods that get it back; hence Any here.

    def begin(self, model: nn.Module, task: Task) -> Any:
        """Return the client's state, of the type `State`, given the model as it was received."""
        return None

    def forward(
        self, model: nn.Module, state: Any, inputs: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Apply the model to a batch.

        Args:
            model: in training mode.
            state: what `begin` returned.
            inputs: [B, ...] what the model takes.
            labels: [B] int64.

        Returns:
            [B, classes] logits, and a scalar to add to their mean cross-entropy or None.
        """
        return model(inputs), None

    def gradients(self, model: nn.Module, state: Any, backward: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Compute the gradients of a batch.

        Args:
            model: in training mode.
            state: what `begin` returned.
            backward: sets the gradients at the model's present weights, and returns the mean cross-entropy, detached.

        Returns:
            The mean cross-entropy to report.
        """
        return backward()

    def adjust(self, model: nn.Module, state: Any) -> None:
        """Change the gradients before the optimiser uses them."""

    def end(self, model: nn.Module, state: Any, task: Task, steps: int) -> Outcome:
        """Return what goes to the server and what the client keeps, given the trained model.

        Args:
            model: trained.
            state: what `begin` returned.
            task: what `begin` was given.
            steps: how many the optimiser took.
        """
        return Outcome()


def local_rule(strategy: Strategy) -> LocalRule:
    """Make what the clients of a configured strategy change in local training."""
    rule: type[LocalRule] = registry.find(strategy.local_rule or strategy.name).Rule
    return rule(strategy.rule_options)
