"""The sharpness of a loss: how much it rises within a small distance of the weights. Pure functions."""

from typing import Protocol

import numpy as np

from fedmr_flwr.analysis.flatness.objective import Vector

# The radii of the papers' experiments on CIFAR-10.
RADIUS, ADAPTIVE_RADIUS = 0.05, 0.5


class Differentiable(Protocol):
    """A loss as a function of a step from the weights."""

    @property
    def weights(self) -> Vector:
        """[P]."""

    def loss(self, step: Vector | None = None) -> float:
        """Return the loss at weights + step."""

    def gradient(self) -> Vector:
        """Return the gradient at the weights."""


def sharpness(objective: Differentiable, radius: float = RADIUS) -> float:
    """Return the rise of the loss by the step of length `radius` along the gradient.

    To first order this is the largest rise within that distance: max L(w + e) - L(w) over |e| <= radius.

    Source: Foret et al., ICLR 2021, equation 2.
    """
    slope = objective.gradient()
    length = np.linalg.norm(slope)
    return _rise(objective, radius * slope / length) if length else 0.0


def adaptive_sharpness(objective: Differentiable, radius: float = ADAPTIVE_RADIUS) -> float:
    """Return the rise of the loss by a step in which each weight moves in proportion to its size.

    To first order this is the largest rise over |e / |w|| <= radius. It does not change if a layer is scaled up and
    the next one down, which leaves the function as it is.

    Source: Kwon et al., ICML 2021, equation 3, with the elementwise operator.
    """
    slope, scale = objective.gradient(), np.abs(objective.weights)
    length = np.linalg.norm(scale * slope)
    return _rise(objective, radius * scale**2 * slope / length) if length else 0.0


def _rise(objective: Differentiable, step: Vector) -> float:
    return objective.loss(step) - objective.loss()
