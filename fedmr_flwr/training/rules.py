"""Local rules: an algorithm's changes to local training."""

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
from fedmr_flwr.core.layout import Floats, Layout

# A rule's state for one client: tensors, networks, generators and None, in tuples, named or not. Not dataclasses: the
# one-GPU engine goes through states by walking tuples.
State: TypeAlias = torch.Tensor | nn.Module | torch.Generator | tuple["State", ...] | None


@dataclass(frozen=True)
class Task:
    """The information about a client that a local rule may use.

    Attributes:
        labels: [N] int64 of the client's examples, on the device of the model.
        training: of this client in this round: the learning rate is the one that its steps have.
        rng: for the rule's own draws, which change no other draw.
        received: vectors from the server besides the model, [.] float32 by name.
        kept: arrays that the client kept when it last took part, by name; empty if it never did, or if they are lost.
    """

    labels: torch.Tensor
    training: Training
    rng: np.random.Generator
    received: Mapping[str, Floats] = field(default_factory=dict)
    kept: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The result of a local rule, besides the trained model.

    Attributes:
        returned: vectors [.] float32 for the server, by name.
        kept: arrays for the client's next participation, by name.
    """

    returned: Mapping[str, Floats] = field(default_factory=dict)
    kept: Mapping[str, NDArray[Any]] = field(default_factory=dict)


class LocalRule:
    """An algorithm's changes to local training; this class changes nothing.

    A rule has options but no client: everything that a step needs of a client is in the state that `begin` returns;
    the loop passes it to all other methods. The loop owns the loss (cross-entropy), the optimiser and its steps.

    The one-GPU engine captures a step and replays it for other clients, after copying their states into the tensors,
    networks and generators of the first one. So a step must not wait for the device (`.item()`, printing, branches on
    the values of tensors), and may use only the tensors of the model, the batch and the state.

    Args:
        options: of the type that the class declares, `options: ProxOptions`; None: all defaults.
        features: the path of the module whose output is a model's representation, see `models.parts.represent`.

    Attributes:
        exchanges: names of the vectors that are sent to and from the server besides the model; a rule that has
            some works only with the strategy that uses them.
        keeps: whether the client keeps arrays for its next participation.
        represents: whether it uses `features`; with other rules `model.features` is refused.
        capturable: whether a step may be captured and replayed; False if it must wait for the device.
    """

    options: Section
    exchanges: ClassVar[tuple[str, ...]] = ()
    keeps: ClassVar[bool] = False
    represents: ClassVar[bool] = False
    capturable: ClassVar[bool] = True

    def __init__(self, options: Section | None = None, features: str | None = None) -> None:
        self.options = options or options_type(type(self))()
        self.features = features

    @classmethod
    def misfit(cls, training: Training) -> str | None:
        """Return why the rule's mathematics do not hold under a training, for the user; None if they do."""
        return None

    # Any, because each subclass declares the type of its own state in these methods; a type parameter would be needed
    # wherever a rule is only passed on.

    def begin(self, model: nn.Module, task: Task) -> Any:
        """Return the client's state, of the type `State`; the model is as received."""
        return None

    def forward(
        self, model: nn.Module, state: Any, inputs: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Apply the model to a batch.

        Args:
            model: in training mode.
            state: what `begin` returned.
            inputs: [B, ...], the model's input.
            labels: [B] int64.

        Returns:
            [B, classes] logits, and a scalar to add to their mean cross-entropy or None.
        """
        return model(inputs), None

    # Not part of `forward`, because FedASAM needs two passes for one step.
    def gradients(self, model: nn.Module, state: Any, backward: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Compute the gradients of a batch.

        Args:
            model: in training mode.
            state: what `begin` returned.
            backward: sets the gradients at the model's current weights, and returns the mean cross-entropy, detached.

        Returns:
            The mean cross-entropy to report.
        """
        return backward()

    def adjust(self, model: nn.Module, state: Any) -> None:
        """Change the gradients before the optimiser uses them; called without recording of gradients."""

    def kept_bytes(self, layout: Layout) -> int:
        """Return the bytes of what a client keeps for its next participation.

        Args:
            layout: of the model.
        """
        return 0

    def end(self, model: nn.Module, state: Any, task: Task, steps: int) -> Outcome:
        """Return the vectors for the server and the arrays that the client keeps.

        Args:
            model: trained.
            state: what `begin` returned.
            task: the argument of `begin`.
            steps: the number of the optimiser's steps.
        """
        return Outcome()


def local_rule(strategy: Strategy, features: str | None = None) -> LocalRule:
    """Create the local rule of a configured strategy, for models whose representation is a module's output."""
    rule: type[LocalRule] = registry.find(strategy.local_rule or strategy.name).Rule
    return rule(strategy.rule_options, features)
