"""FedASAM: FedAvg whose clients search for flat minima by adaptive sharpness-aware minimisation.

Source: Caldarola et al., "Improving Generalization in Federated Learning by Seeking Flat Minima", ECCV 2022;
the local step is that of Kwon et al., "ASAM", ICML 2021, equation 6 and algorithm 1. The defaults are those of the
code published with FedMR; docs/guides/strategies.md lists others.
"""

from collections.abc import Callable, Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from fedmr_flwr.algorithms.fedavg import FedAvg
from fedmr_flwr.config.sections import Section, Void
from fedmr_flwr.core.distributions import Choice, LogUniform
from fedmr_flwr.training.norms import statistics_kept
from fedmr_flwr.training.rules import LocalRule


class ASAMOptions(Section):
    """Options of FedASAM's local rule.

    Attributes:
        rho: radius of the neighbourhood, relative to the weights; 0 is plain SGD.
        eta: added to the absolute value of every weight.
    """

    rho: Annotated[float, LogUniform(0.02, 1)] = Field(0.1, ge=0)
    eta: Annotated[float, Choice((0.0, 0.01, 0.1, 0.2))] = Field(0.0, ge=0)

    def void(self) -> Iterator[Void]:
        """Yield the summand of a neighbourhood without a radius."""
        if not self.rho:
            yield Void("eta", ("rho",), "it needs strategy.rho above 0")


class ASAM(LocalRule):
    """Takes the gradient where the loss is highest nearby: at w + rho T^2 g / |T g| with T = |w| + eta.

    T is 1 for biases, that is, for every parameter without "weight" in its name. BatchNorm's statistics are
    those of the first pass, at w itself.
    """

    options: ASAMOptions

    def gradients(self, model: nn.Module, state: None, backward: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Compute the gradient at the worst point nearby; return the loss at the current weights."""
        loss = backward()
        if not self.options.rho:
            return loss
        # The weights are copied back, not subtracted: in floating point a step there and back is not exact.
        before = self._climb(model)
        # Otherwise each batch would count twice in BatchNorm's statistics, and from weights that are never used.
        with statistics_kept(model):
            backward()
        # Before the optimiser steps, so that the gradient from nearby is applied at the weights themselves.
        with torch.no_grad():
            for parameter, values in before:
                parameter.copy_(values)
        return loss

    @torch.no_grad()
    def _climb(self, model: nn.Module) -> list[tuple[nn.Parameter, torch.Tensor]]:
        """Move the weights to the worst point nearby; return the parameters with their previous values."""
        trained, scales, scaled = [], [], []
        for name, own in model.named_parameters():
            if own.grad is not None:
                scale = own.abs() + self.options.eta if "weight" in name else torch.ones_like(own)
                trained.append(own)
                scales.append(scale)
                scaled.append(scale * own.grad)
        # On the device, and with a tiny summand instead of a test for zero: a captured step cannot branch on a value.
        length = torch.stack([values.norm() for values in scaled]).norm() + 1e-16
        before = [(own, own.detach().clone()) for own in trained]
        for own, scale, values in zip(trained, scales, scaled, strict=True):
            own.add_(scale * values * (self.options.rho / length))
        return before


class FedASAM(FedAvg):
    """Federated averaging with adaptive sharpness-aware local training.

    Clients are weighted by examples, as in its published code.

    For the arguments see `FedAvgOptions` and `Algorithm`.
    """

    Rule = ASAM
