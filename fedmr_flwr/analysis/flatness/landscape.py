"""Lines and planes through models, and the loss along them. Pure functions."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fedmr_flwr.analysis.flatness.objective import Matrix, Vector

# The loss of a model given as its floats [P].
Loss = Callable[[Vector], float]


def line(loss: Loss, start: Vector, end: Vector, points: int) -> Vector:
    """Return the loss at `points` evenly spaced models from start to end, both included."""
    return np.array([loss(start + share * (end - start)) for share in np.linspace(0, 1, points)])


def barrier(losses: Vector) -> float:
    """Return how far the loss along a line rises above the straight line between its ends; 0 if it never does.

    Source: Frankle et al., ICML 2020, section 2, with the ends interpolated as by Entezari et al., ICLR 2022.
    """
    straight = np.linspace(losses[0], losses[-1], len(losses))
    return float(np.max(losses - straight))


class Plane(NamedTuple):
    """A plane in the space of models.

    Attributes:
        origin: [P].
        axes: [2, P].
    """

    origin: Vector
    axes: Matrix

    def place(self, models: Sequence[Vector]) -> Matrix:
        """Return the coordinates [N, 2] of the points of the plane that are nearest to models."""
        return np.array([np.linalg.lstsq(self.axes.T, model - self.origin)[0] for model in models])

    def model_at(self, x: float, y: float) -> Vector:
        """Return the model at a point of the plane."""
        moved: Vector = self.origin + x * self.axes[0] + y * self.axes[1]
        return moved


def principal_plane(models: Sequence[Vector]) -> Plane:
    """Return the plane through the mean of models along their first two principal directions.

    It contains three models exactly, and of more it keeps the largest share of their differences.

    Args:
        models: at least three, [P] each, not on one line.

    Source: Li et al., NeurIPS 2018, section 7, of an optimiser's path.
    """
    origin = np.mean(models, axis=0)
    rows = np.array(models) - origin
    axes = np.linalg.svd(rows, full_matrices=False)[2][:2]
    # A direction's sign is arbitrary; fixed, so that pictures repeat.
    return Plane(origin, axes * np.where(axes @ rows[0] < 0, -1, 1)[:, None])


def random_plane(model: Vector, tensors: Sequence[tuple[slice, tuple[int, ...]]], rng: np.random.Generator) -> Plane:
    """Return a plane through a model along two random directions, each filter as long as the model's own.

    Args:
        model: [P].
        tensors: the columns and shape of each trainable tensor. Nothing else moves, nor do vectors, such as biases.
        rng: draws the directions.

    Source: Li et al., NeurIPS 2018, section 4.
    """
    directions = np.zeros((2, len(model)))
    for direction in directions:
        for columns, shape in tensors:
            if len(shape) < 2:
                continue
            filters = model[columns].reshape(shape[0], -1)
            drawn = rng.standard_normal(filters.shape)
            drawn *= np.linalg.norm(filters, axis=1, keepdims=True) / np.linalg.norm(drawn, axis=1, keepdims=True)
            direction[columns] = drawn.reshape(-1)
    return Plane(model, directions)


def surface(loss: Loss, plane: Plane, x: Vector, y: Vector) -> Matrix:
    """Return the loss on a grid of a plane, [len(y), len(x)]."""
    return np.array([[loss(plane.model_at(right, up)) for right in x] for up in y])
